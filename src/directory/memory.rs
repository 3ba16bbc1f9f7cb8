//! The placements that this replica holds in memory, kept exact by the journal.
//!
//! Invariant: what is held for a key is what the table says of it as of the last applied entry, or later. Two writers see to that:
//! whoever applies the journal ([`Memory::apply`]), and whoever reads the table on a miss ([`Memory::begin_read`]). A read that was
//! overtaken by an entry about its key could put an old placement over the newer one, even after the newer one was evicted; so a
//! read announces itself first, an entry marks the announced reads of its keys, and a marked read is not kept.
//!
//! *How old an answer can be*: a poll of the journal that began at `t` and found nothing newer proves that all that is held is
//! current as of `t` ([`Memory::proven`]). A placement read from the table is current as of the start of its read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use crate::domain::{Change, PartitionKey, Placement};

/// Independent locks for reads under way; a power of two.
const READ_SHARDS: usize = 64;

/// A placement and how old it can be.
#[derive(Debug, Clone)]
pub struct Held {
    pub placement: Arc<Placement>,
    /// The table said so at this moment or later.
    pub as_of: Instant,
}

#[derive(Debug, Clone)]
struct Slot {
    placement: Arc<Placement>,
    /// Nanoseconds after `Memory::origin` as of which the placement is known to be current, apart from the journal's proof.
    current_at: u64,
}

/// A bounded cache of placements. The least useful are evicted (S3-FIFO-like, by the `quick_cache` library).
pub struct Memory {
    held: Cache<PartitionKey, Slot, quick_cache::UnitWeighter, Xxh3DefaultBuilder>,
    reads: Box<[Mutex<HashMap<PartitionKey, ReadUnderWay>>]>,
    hasher: Xxh3DefaultBuilder,
    origin: Instant,
    /// Nanoseconds after `origin` as of which the journal proves everything held to be current.
    proven_at: AtomicU64,
}

/// What is known of a key's reads under way. Readers that come while one is under way may be handed its result, so all count from
/// the first one's start.
#[derive(Debug)]
struct ReadUnderWay {
    began: Instant,
    readers: usize,
    overtaken: bool,
}

impl Memory {
    /// Holds at most about `capacity` placements.
    pub fn new(capacity: usize) -> Self {
        Self {
            held: Cache::with(
                capacity,
                capacity as u64,
                quick_cache::UnitWeighter,
                Xxh3DefaultBuilder::new(),
                quick_cache::sync::DefaultLifecycle::default(),
            ),
            reads: (0..READ_SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Xxh3DefaultBuilder::new(),
            origin: Instant::now(),
            proven_at: AtomicU64::new(0),
        }
    }

    /// What is held for a key.
    pub fn get(&self, key: &str) -> Option<Held> {
        let slot = self.held.get(key)?;
        let current_at = slot.current_at.max(self.proven_at.load(Ordering::Acquire));
        Some(Held {
            placement: slot.placement,
            as_of: self.origin + Duration::from_nanos(current_at),
        })
    }

    /// How many placements are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Announces a read of the table. Call before the read begins.
    pub fn begin_read(self: &Arc<Self>, key: PartitionKey) -> ReadTicket {
        let began = Instant::now();
        let mut reads = self.shard(&key).lock();
        let read = reads.entry(key.clone()).or_insert(ReadUnderWay {
            began,
            readers: 0,
            overtaken: false,
        });
        read.readers += 1;
        drop(reads);
        ReadTicket { memory: Arc::clone(self), key }
    }

    /// Takes in what an entry changes. Entries must come in order; `began` is when the read of the journal that brought them began, or the
    /// commit that wrote them.
    pub fn apply(&self, changes: &[Change], began: Instant) {
        for change in changes {
            let (placement, held) = match change {
                Change::Placed { placement, .. } => (placement, true),
                Change::Vacated { placement } => (placement, false),
                _ => continue,
            };
            let mut reads = self.shard(&placement.key).lock();
            if let Some(read) = reads.get_mut(&placement.key) {
                read.overtaken = true;
            }
            if held {
                let slot =
                    Slot { placement: Arc::new(placement.clone()), current_at: self.nanos(began) };
                self.held.insert(placement.key.clone(), slot);
            } else {
                self.held.remove(&placement.key);
            }
        }
    }

    /// Records that everything held is current as of `at`: a poll that began then found nothing that is not applied.
    pub fn proven(&self, at: Instant) {
        self.proven_at.fetch_max(self.nanos(at), Ordering::AcqRel);
    }

    /// As of when everything held is known to be current.
    pub fn last_proof(&self) -> Instant {
        self.origin + Duration::from_nanos(self.proven_at.load(Ordering::Acquire))
    }

    /// Forgets everything: the journal cannot be followed from where this replica stands.
    pub fn clear(&self) {
        for shard in &self.reads {
            for read in shard.lock().values_mut() {
                read.overtaken = true;
            }
        }
        self.held.clear();
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn shard(&self, key: &PartitionKey) -> &Mutex<HashMap<PartitionKey, ReadUnderWay>> {
        use std::hash::BuildHasher;
        let hash = self.hasher.hash_one(key);
        &self.reads[hash as usize % READ_SHARDS]
    }
}

/// A read of the table under way. Dropping it withdraws the announcement.
pub struct ReadTicket {
    memory: Arc<Memory>,
    key: PartitionKey,
}

impl ReadTicket {
    /// Keeps what was read, unless the journal told of a change since the read was announced. Other readers of the key, who may
    /// have read the same or earlier, are not in the way: without a change they all read the same.
    pub fn keep(self, placement: Arc<Placement>) {
        let reads = self.memory.shard(&self.key).lock();
        if let Some(read) = reads.get(&self.key)
            && !read.overtaken
        {
            let slot = Slot { placement, current_at: self.memory.nanos(read.began) };
            self.memory.held.insert(self.key.clone(), slot);
        }
    }
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        let mut reads = self.memory.shard(&self.key).lock();
        if let Some(read) = reads.get_mut(&self.key) {
            read.readers -= 1;
            if read.readers == 0 {
                reads.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::{key, placed, placement};

    fn vacated(name: &str) -> Change {
        Change::Vacated { placement: placement(name, "a", 1) }
    }

    #[test]
    fn a_read_that_the_journal_overtook_is_not_kept() {
        let memory = Arc::new(Memory::new(100));
        for overtaking in [vacated("k"), placed("k", "b", None)] {
            let ticket = memory.begin_read(key("k"));
            memory.apply(std::slice::from_ref(&overtaking), Instant::now());
            memory.held.remove("k"); // evicted
            ticket.keep(Arc::new(placement("k", "a", 1)));
            assert!(memory.get("k").is_none(), "{overtaking:?}");
        }
        let ticket = memory.begin_read(key("k"));
        memory.clear();
        ticket.keep(Arc::new(placement("k", "a", 1)));
        assert!(memory.get("k").is_none());
    }

    #[test]
    fn a_read_that_nothing_overtook_is_kept() {
        let memory = Arc::new(Memory::new(100));
        memory.apply(&[vacated("k")], Instant::now());
        let ticket = memory.begin_read(key("k"));
        memory.apply(&[vacated("other")], Instant::now());
        ticket.keep(Arc::new(placement("k", "a", 2)));
        assert_eq!(memory.get("k").unwrap().placement.epoch.get(), 2);
        assert!(memory.reads.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn the_journal_puts_and_takes_away() {
        let memory = Arc::new(Memory::new(100));
        memory.apply(&[placed("k", "a", None)], Instant::now());
        assert_eq!(memory.get("k").unwrap().placement.cell.as_str(), "a");
        memory.apply(&[vacated("k")], Instant::now());
        assert!(memory.get("k").is_none());
    }

    #[test]
    fn the_age_is_counted_from_the_later_of_read_and_proof() {
        let memory = Arc::new(Memory::new(100));
        let started = Instant::now();
        let ticket = memory.begin_read(key("k"));
        std::thread::sleep(Duration::from_millis(20));
        ticket.keep(Arc::new(placement("k", "a", 1)));
        let by_read = memory.get("k").unwrap().as_of;
        assert!(by_read >= started && by_read.elapsed() >= Duration::from_millis(20));

        std::thread::sleep(Duration::from_millis(20));
        let poll = Instant::now();
        memory.proven(poll);
        memory.proven(started); // an older poll's proof, late: takes nothing back
        let by_proof = memory.get("k").unwrap().as_of;
        assert!(by_proof > by_read && by_proof <= poll);
    }
}
