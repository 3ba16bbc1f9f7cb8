//! The placements that this replica holds in memory, kept exact by the journal.
//!
//! Invariant: what is held for a key is what the table says of it as of the last applied entry, or later. Two writers see to that:
//! whoever applies the journal ([`Memory::apply`]), and whoever reads the table on a miss ([`Memory::begin_read`]). A read that was
//! overtaken by an entry about its key could put an old placement over the newer one, even after the newer one was evicted; so a
//! read announces itself first, an entry marks the announced reads of its keys, and a marked read is not kept.
//!
//! *Epochs do not fall.* The table can be ahead of the journal as this replica has applied it, and a read can come back late. So what
//! is held gives way to no lower epoch, and a read that comes back below what was told of its key meanwhile must be repeated
//! ([`ReadTicket::keep`]). A read that an entry has overtaken is not shared with those who come after the entry
//! ([`ReadTicket::round`]): they may know more than it will say.
//!
//! *How old an answer can be*: a poll of the journal that began at `t` and found nothing newer proves that all that is held is
//! current as of `t` ([`Memory::proven`]). A placement read from the table is current as of the start of its read. An entry that was
//! read from the journal proves nothing of the kind: a later entry, not applied yet, may have changed the placement long ago.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use crate::domain::{Change, Epoch, PartitionKey, Placement};
use crate::mutants::{self, Mutant};

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
    reads: Box<[Mutex<HashMap<PartitionKey, ReadsUnderWay>>]>,
    hasher: Xxh3DefaultBuilder,
    origin: Instant,
    /// Nanoseconds after `origin` as of which the journal proves everything held to be current.
    proven_at: AtomicU64,
    /// Numbers the rounds of reads.
    rounds: AtomicU64,
}

/// What is known of a key's reads under way. A round is the reads that no entry came between: they may share a result, so all of
/// them count from the first one's start.
#[derive(Debug)]
struct ReadsUnderWay {
    /// Readers of all rounds that are still under way.
    readers: usize,
    /// The latest round, and when it began.
    round: u64,
    began: Instant,
    /// An entry about the key came since.
    overtaken: bool,
    /// The highest epoch that was told of the key, by the journal or by a reader, since the first of the readers began.
    newest: Option<Epoch>,
    /// Rounds before this one read a table that is not followed any more.
    oldest: u64,
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
            rounds: AtomicU64::new(1),
        }
    }

    /// What is held for a key.
    pub fn get(&self, key: &str) -> Option<Held> {
        // The proof comes first: it speaks of what was held when it was made, and of all that came after, not of what went before.
        let proven_at = self.proven_at.load(Ordering::Acquire);
        let slot = self.held.get(key)?;
        let current_at = slot.current_at.max(proven_at);
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
        let now = Instant::now();
        let mut shard = self.shard(&key).lock();
        let reads = shard.entry(key.clone()).or_insert_with(|| ReadsUnderWay {
            readers: 0,
            round: self.next_round(),
            began: now,
            overtaken: false,
            newest: None,
            oldest: 0,
        });
        if reads.overtaken {
            reads.round = self.next_round();
            reads.began = now;
            reads.overtaken = false;
        }
        reads.readers += 1;
        let (round, began) = (reads.round, reads.began);
        drop(shard);
        ReadTicket { memory: Arc::clone(self), key, round, began }
    }

    /// Takes in what an entry changes. Entries must come in order. `current_at`: when the table surely said so, or earlier; `None`
    /// leaves that to the next proof.
    pub fn apply(&self, changes: &[Change], current_at: Option<Instant>) {
        let current_at = current_at.map_or(0, |at| self.nanos(at));
        for change in changes {
            let (placement, placed) = match change {
                Change::Placed { placement, .. } => (placement, true),
                Change::Vacated { placement } => (placement, false),
                _ => continue,
            };
            let mut shard = self.shard(&placement.key).lock();
            if let Some(reads) = shard.get_mut(&placement.key) {
                reads.overtaken = true;
                reads.tell(placement.epoch);
            }
            let held = self.held.peek(&placement.key);
            if held.is_some_and(|held| held.placement.epoch > placement.epoch)
                && !mutants::is(Mutant::NoEpochCheck)
            {
                // Read from a table that is ahead of this entry.
            } else if placed {
                let slot = Slot { placement: Arc::new(placement.clone()), current_at };
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
            for reads in shard.lock().values_mut() {
                reads.overtaken = true;
                // What was told is of another journal.
                reads.newest = None;
                reads.oldest = self.next_round();
            }
        }
        self.held.clear();
    }

    fn next_round(&self) -> u64 {
        self.rounds.fetch_add(1, Ordering::Relaxed)
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }

    fn shard(&self, key: &PartitionKey) -> &Mutex<HashMap<PartitionKey, ReadsUnderWay>> {
        use std::hash::BuildHasher;
        let hash = self.hasher.hash_one(key);
        &self.reads[hash as usize % READ_SHARDS]
    }
}

impl ReadsUnderWay {
    fn tell(&mut self, epoch: Epoch) {
        self.newest = self.newest.max(Some(epoch));
    }
}

/// A read of the table under way. Dropping it withdraws the announcement.
pub struct ReadTicket {
    memory: Arc<Memory>,
    key: PartitionKey,
    round: u64,
    /// When the round began.
    began: Instant,
}

impl ReadTicket {
    /// Names the reads of the key that no entry came between: only these may share a result. Never 0.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Keeps what was read, unless the journal told of a change since the read was announced that may be the later one. Answers `false`
    /// where a higher epoch was told of meanwhile: what was read must not be answered any more.
    #[must_use]
    pub fn keep(self, placement: &Arc<Placement>) -> bool {
        let mut shard = self.memory.shard(&self.key).lock();
        // There for as long as this ticket is.
        let Some(reads) = shard.get_mut(&self.key) else {
            return false;
        };
        let unchecked = mutants::is(Mutant::NoEpochCheck);
        if !unchecked && reads.newest.is_some_and(|newest| newest > placement.epoch) {
            return false;
        }
        let undisturbed = reads.round == self.round && !reads.overtaken;
        let ahead = unchecked || reads.newest.is_none_or(|newest| newest < placement.epoch);
        reads.tell(placement.epoch);
        if self.round >= reads.oldest && (undisturbed || ahead) {
            let current_at = self.memory.nanos(self.began);
            let slot = Slot { placement: Arc::clone(placement), current_at };
            self.memory.held.insert(self.key.clone(), slot);
        }
        true
    }
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        let mut shard = self.memory.shard(&self.key).lock();
        if let Some(reads) = shard.get_mut(&self.key) {
            reads.readers -= 1;
            if reads.readers == 0 {
                shard.remove(&self.key);
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
            memory.apply(std::slice::from_ref(&overtaking), Some(Instant::now()));
            memory.held.remove("k"); // evicted
            assert!(ticket.keep(&Arc::new(placement("k", "a", 1))));
            assert!(memory.get("k").is_none(), "{overtaking:?}");
        }
        let ticket = memory.begin_read(key("k"));
        memory.clear();
        assert!(ticket.keep(&Arc::new(placement("k", "a", 1))));
        assert!(memory.get("k").is_none());
    }

    #[test]
    fn a_read_that_nothing_overtook_is_kept() {
        let memory = Arc::new(Memory::new(100));
        memory.apply(&[vacated("k")], Some(Instant::now()));
        let ticket = memory.begin_read(key("k"));
        memory.apply(&[vacated("other")], Some(Instant::now()));
        assert!(ticket.keep(&Arc::new(placement("k", "a", 2))));
        assert_eq!(memory.get("k").unwrap().placement.epoch.get(), 2);
        assert!(memory.reads.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn the_journal_puts_and_takes_away() {
        let memory = Arc::new(Memory::new(100));
        memory.apply(&[placed("k", "a", None)], Some(Instant::now()));
        assert_eq!(memory.get("k").unwrap().placement.cell.as_str(), "a");
        memory.apply(&[vacated("k")], Some(Instant::now()));
        assert!(memory.get("k").is_none());
    }

    #[test]
    fn the_age_is_counted_from_the_later_of_read_and_proof() {
        let memory = Arc::new(Memory::new(100));
        let started = Instant::now();
        let ticket = memory.begin_read(key("k"));
        std::thread::sleep(Duration::from_millis(20));
        assert!(ticket.keep(&Arc::new(placement("k", "a", 1))));
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
