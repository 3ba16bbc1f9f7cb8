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
        let mut failures = 0;
        loop {
            let page = match self.placements.scan(PAGE, after.as_ref()).await {
                Ok(page) => page,
                Err(error) => {
                    failures += 1;
                    self.pause(failures, &error).await;
                    continue;
                }
            };
            failures = 0;
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
