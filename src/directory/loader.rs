//! Reads the whole table into memory, where memory is to hold all of it: at the start, and where the journal has left a hole.
//!
//! What is held goes on answering meanwhile, and nothing is forgotten because a page did not mention it: a scan that comes back empty or
//! is cut short proves nothing. Only what the table, asked for the key itself, says to be absent is let go.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::memory::{Memory, Residence};
use super::pauses::Pauses;
use super::randomness::Randomness;
use super::replica::Replica;
use crate::domain::{Mapping, PartitionKey};
use crate::store::{Cursor, MAX_KEYS, Placements, StoreError};

/// Most items of a page.
const PAGE: usize = 5000;

/// Items of the first page, and of any page at least.
const SMALLEST_PAGE: usize = 500;

/// A page has at most this part of what was read before it.
const PART: usize = 4;

/// After a page that came, the next may be larger than the largest so far by this part of it.
const GROWTH: usize = 16;

/// How many items to ask for. A page that does not come in time has been read all the same, and is read once more: so none is large against
/// what came before it, and after a failure they are half as large. With pages of a fixed size, one that is too large for the read
/// timeout would be read again and again, and never come.
#[derive(Debug, Clone, Copy)]
struct PageSize {
    taken: usize,
    most: usize,
}

impl PageSize {
    const FIRST: Self = Self { taken: 0, most: PAGE };

    fn get(self) -> usize {
        (self.taken / PART).clamp(SMALLEST_PAGE, self.most)
    }

    fn came(self, items: usize) -> Self {
        let most = (self.most + self.most / GROWTH).min(PAGE);
        Self { taken: self.taken.saturating_add(items), most }
    }

    fn failed(self) -> Self {
        Self { most: (self.get() / 2).max(SMALLEST_PAGE), ..self }
    }
}

pub struct Loader {
    pub replica: Arc<Replica>,
    pub placements: Arc<dyn Placements>,
    pub pauses: Pauses,
    pub randomness: Randomness,
}

impl Loader {
    /// Loads whenever that is wanted, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.replica.load_wanted() => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.load() => {}
            }
        }
    }

    /// Reads until all is held.
    async fn load(&self) {
        let memory = self.replica.memory();
        while memory.wants_load() {
            memory.begin_load();
            if self.scan(memory).await && self.confirm(memory).await && memory.end_load() {
                tracing::info!(placements = memory.len(), "holding the whole routing table");
                return;
            }
        }
    }

    /// `false`: the load was called off.
    async fn scan(&self, memory: &Memory) -> bool {
        let mut after: Option<Cursor> = None;
        let (mut failures, mut size) = (0, PageSize::FIRST);
        loop {
            let page = match self.placements.scan(size.get(), after.as_ref()).await {
                Ok(page) => page,
                Err(error) => {
                    failures += 1;
                    size = size.failed();
                    self.pause(failures, &error).await;
                    continue;
                }
            };
            failures = 0;
            size = size.came(page.items.len());
            if !memory.take_in(&page.items) {
                return false;
            }
            after = page.next;
            if after.is_none() {
                return true;
            }
        }
    }

    /// Asks for the keys that the scan did not mention.
    async fn confirm(&self, memory: &Arc<Memory>) -> bool {
        for part in 0..memory.parts() {
            let keys = memory.unconfirmed(part);
            for keys in keys.chunks(MAX_KEYS) {
                let mut failures = 0;
                while let Err(error) = self.ask(memory, keys).await {
                    failures += 1;
                    self.pause(failures, &error).await;
                }
            }
        }
        true
    }

    async fn ask(&self, memory: &Arc<Memory>, keys: &[PartitionKey]) -> Result<(), StoreError> {
        let tickets: Vec<_> = keys.iter().map(|key| memory.begin_read(key.clone())).collect();
        let mappings = self.placements.mappings(keys).await;
        for (ticket, mapping) in tickets.into_iter().zip(mappings) {
            match mapping? {
                // Where something newer was told of meanwhile, that is what is held.
                Mapping::Placed(placement) => drop(ticket.keep(Residence::from(&placement))),
                absent => ticket.keep_absent(absent),
            }
        }
        Ok(())
    }

    async fn pause(&self, failures: u32, error: &StoreError) {
        tracing::warn!(%error, failures, "cannot read the routing table; trying again");
        tokio::time::sleep(self.pauses.after(failures, &self.randomness)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a table of so many items where pages above a limit never come. How many items that reads.
    fn read(items: usize, limit: usize) -> usize {
        let (mut size, mut left, mut read) = (PageSize::FIRST, items, 0);
        while left > 0 {
            let page = size.get().min(left);
            read += page;
            if page > limit {
                size = size.failed();
            } else {
                size = size.came(page);
                left -= page;
            }
        }
        read
    }

    #[test]
    fn pages_that_are_too_large_to_come_cost_little() {
        for items in [0, 1, 499, 10_000, 50_000, 1_000_000] {
            assert_eq!(read(items, PAGE), items);
            for limit in [600, 700, 1000, 2000, 4999] {
                let read = read(items, limit);
                assert!(read * 2 <= items * 3, "{read} of {items}, pages up to {limit}");
            }
        }
    }

    #[test]
    fn pages_grow_to_the_largest_and_back_to_it() {
        let mut size = PageSize::FIRST;
        let mut pages = 0;
        while size.get() < PAGE {
            size = size.came(size.get());
            pages += 1;
        }
        assert!(pages < 20, "{pages}");
        for _ in 0..100 {
            size = size.failed();
        }
        assert_eq!(size.get(), SMALLEST_PAGE);
        for _ in 0..50 {
            size = size.came(size.get());
        }
        assert_eq!(size.get(), PAGE);
    }
}
