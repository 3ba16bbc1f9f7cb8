//! The placements that this replica holds in memory, kept exact by the journal.
//!
//! Invariant: what is held for a key is what the table says of it as of the last applied entry, or later. Three writers see to that:
//! whoever applies the journal ([`Memory::apply`]), whoever reads the table on a miss ([`Memory::begin_read`]), and in the whole map
//! the loader, which reads all of it ([`Memory::begin_load`]). A read that was overtaken by an entry about its key could put an old
//! placement over the newer one, even after the newer one was evicted; so a read announces itself first, an entry marks the announced
//! reads of its keys, and a marked read is not kept. A load remembers the keys of all entries that are applied meanwhile.
//!
//! *Epochs do not fall.* The table can be ahead of the journal as this replica has applied it, and a read can come back late. So what
//! is held gives way to no lower epoch, and a read that comes back below what was told of its key meanwhile must be repeated
//! ([`ReadTicket::keep`]). A read that an entry has overtaken is not shared with those who come after the entry
//! ([`ReadTicket::round`]): they may know more than it will say.
//!
//! *How old an answer can be*: a poll of the journal that began at `t` and found nothing newer proves that all that is held is
//! current as of `t` ([`Memory::proven`]). A placement read from the table is current as of the start of its read. An entry that was
//! read from the journal proves nothing of the kind: a later entry, not applied yet, may have changed the placement long ago.
//!
//! *Where the journal leaves a hole* (its old entries are trimmed, and this replica fell behind them), what is held is not proven by
//! what follows. It is kept, with the age that it has, for as long as nothing better is to be had ([`Memory::distrust`]).
//!
//! *What an earlier process saved* comes with a proof from before this process began ([`Memory::restored`]).
//!
//! *Absence* is known in two ways: a read found none and no entry came since ([`ReadTicket::keep_absent`]), or the whole table is held
//! and the key is not there. Somebody else's router may write the table without the journal, so the first is good for a short time
//! only ([`Memory::absence`]), and the second only as an assumption that the storage checks ([`Memory::assumption`]).

mod holding;
mod residence;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::clock::Clock;
use super::randomness::Randomness;
use crate::domain::{Change, Epoch, Mapping, PartitionKey, Placement, Sequence};
use crate::mutants::{self, Mutant};
use holding::{Bounded, Holding, bounded};
pub use residence::{CellName, Residence};
use residence::{GENERATIONS, Slot};

/// Independent locks for reads under way; a power of two.
const READ_SHARDS: usize = 64;

/// Absences that are remembered, in any mode.
const ABSENCES: usize = 100_000;

/// How long an absence that was read is answered: as long as somebody else's router may go unnoticed.
const ABSENCE_GOOD_FOR: Duration = Duration::from_secs(5);

/// How much is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The whole table.
    Whole,
    /// At most about so many placements.
    Bounded(usize),
}

/// What is known of a key, and how old it can be.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub residence: Residence,
    /// The table said so at this moment or later.
    pub as_of: Instant,
    /// Every change of the tenant up to this entry is taken in; [`Sequence::START`] where the journal does not vouch for it.
    pub sequence: Sequence,
    /// `false`: the journal does not vouch for it any more. Good only where the table does not answer.
    pub trusted: bool,
    /// When the lease of what the journal vouches for ends (see [`Memory::lease_until`]).
    pub lease_until: Instant,
}

/// See the module's documentation.
pub struct Memory {
    holding: Holding,
    absent: Bounded<Absent>,
    reads: Box<[Mutex<HashMap<PartitionKey, ReadsUnderWay>>]>,
    hasher: Xxh3DefaultBuilder,
    clock: Clock,
    origin: Instant,
    /// Microseconds after `origin` as of which the journal proves everything of this generation to be current. Negative: before.
    proven_at: AtomicI64,
    /// The same for those of former generations.
    proven_before: AtomicI64,
    generation: AtomicU8,
    /// How long a lease is, in microseconds, counted from the last proof.
    lease: AtomicI64,
    /// The last entry that was applied.
    applied: AtomicU64,
    /// Numbers the rounds of reads.
    rounds: AtomicU64,
    load: Mutex<Option<Load>>,
    /// The whole table is held.
    complete: AtomicBool,
    /// Told when a load has brought something, and when it has ended.
    loading: Notify,
}

/// A key that the table has no placement for.
#[derive(Debug, Clone)]
struct Absent {
    mapping: Mapping,
    read_at: u64,
}

/// A reading of the whole table.
#[derive(Debug, Default)]
struct Load {
    /// Keys that entries have told of since it began: what it reads of them may be older.
    told: HashSet<PartitionKey>,
    began: u64,
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
    /// `randomness`: what decides the order in which a whole table is gone through.
    pub fn new(mode: Mode, clock: Clock, randomness: &Randomness) -> Self {
        let holding = match mode {
            Mode::Whole => Holding::whole(randomness.seed()),
            Mode::Bounded(capacity) => Holding::Bounded(bounded(capacity)),
        };
        let origin = clock.instant();
        Self {
            holding,
            absent: bounded(ABSENCES),
            reads: (0..READ_SHARDS).map(|_| Mutex::default()).collect(),
            hasher: Xxh3DefaultBuilder::new(),
            clock,
            origin,
            proven_at: AtomicI64::new(0),
            proven_before: AtomicI64::new(i64::MAX),
            generation: AtomicU8::new(0),
            lease: AtomicI64::new(0),
            applied: AtomicU64::new(0),
            rounds: AtomicU64::new(1),
            load: Mutex::default(),
            complete: AtomicBool::new(false),
            loading: Notify::new(),
        }
    }

    /// What is held for a key. Allocates nothing.
    #[inline]
    pub fn get(&self, key: &str) -> Option<Held> {
        // The proof comes first: it speaks of what was held when it was made, and of all that came after, not of what went before.
        let proven_at = self.proven_at.load(Ordering::Acquire);
        let lease_until = self.lease_after(proven_at);
        let sequence = self.applied();
        let Slot { residence, generation, current_at } = self.holding.get(key)?;
        let trusted = generation == self.generation.load(Ordering::Acquire);
        let (proven_at, sequence) = match trusted {
            true => (proven_at, sequence),
            // Whatever came in the hole is not taken in.
            false => (self.proven_before.load(Ordering::Acquire), Sequence::START),
        };
        let current_at = match current_at {
            // Only what a proof says is known. It may lie before the origin.
            0 => i64::MIN,
            at => i64::try_from(at).unwrap_or(i64::MAX),
        };
        let as_of = self.instant(proven_at.max(current_at));
        Some(Held { residence, as_of, sequence, trusted, lease_until })
    }

    /// What the table says of a key that has no placement, and as of when, where the table itself said so a short time ago and no entry
    /// has told of the key since.
    pub fn absence(&self, key: &str) -> Option<(Mapping, Instant)> {
        // As with placements, the proof comes first.
        let proven_at = self.proven_at.load(Ordering::Acquire);
        let absent = self.absent.get(key)?;
        let good_until = Duration::from_micros(absent.read_at) + ABSENCE_GOOD_FOR;
        if self.micros(self.clock.instant()) >= micros(good_until) {
            self.absent.remove(key);
            return None;
        }
        let read_at = i64::try_from(absent.read_at).unwrap_or(i64::MAX);
        Some((absent.mapping, self.instant(proven_at.max(read_at))))
    }

    /// What an assignment may assume of a key that is not held, if the storage checks it: also that it is absent where the whole table
    /// is held.
    pub fn assumption(&self, key: &str) -> Option<Mapping> {
        if let Some((mapping, _)) = self.absence(key) {
            return Some(mapping);
        }
        let absent = self.complete() && self.holding.get(key).is_none();
        absent.then_some(Mapping::Absent)
    }

    /// The last entry that was applied. What is asked of memory or of the table after this call takes in all up to it.
    pub fn applied(&self) -> Sequence {
        Sequence::new(self.applied.load(Ordering::Acquire))
    }

    /// Records that all entries up to this one have been applied, or are in what is read from now on.
    pub fn applied_up_to(&self, sequence: Sequence) {
        self.applied.store(sequence.get(), Ordering::Release);
    }

    /// How many placements are held.
    pub fn len(&self) -> usize {
        self.holding.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the whole table is held.
    pub fn complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Whether this memory is to hold the whole table, and does not.
    pub fn wants_load(&self) -> bool {
        matches!(self.holding, Holding::Whole(_)) && !self.complete()
    }

    /// Waits until the whole table is held.
    pub async fn loaded(&self) {
        self.found_loading(|| None::<()>).await;
    }

    /// Looks for something whenever a load has brought more, until it is found or the whole table is held.
    pub async fn found_loading<T>(&self, look: impl Fn() -> Option<T>) -> Option<T> {
        loop {
            let mut more = std::pin::pin!(self.loading.notified());
            // What comes from here on is told of.
            more.as_mut().enable();
            let all = !self.wants_load();
            let found = look();
            if all || found.is_some() {
                return found;
            }
            more.await;
        }
    }

    /// Announces a read of the table. Call before the read begins.
    pub fn begin_read(self: &Arc<Self>, key: PartitionKey) -> ReadTicket {
        let now = self.clock.instant();
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
        let current_at = current_at.map_or(0, |at| self.micros(at));
        let generation = self.generation.load(Ordering::Acquire);
        for change in changes {
            let (placement, placed) = match change {
                Change::Placed { placement, .. } | Change::Moved { placement, .. } => {
                    (placement, true)
                }
                Change::Vacated { placement } => (placement, false),
                _ => continue,
            };
            let mut load = self.load.lock();
            if let Some(load) = &mut *load {
                load.told.insert(placement.key.clone());
            }
            let mut shard = self.shard(&placement.key).lock();
            if let Some(reads) = shard.get_mut(&placement.key) {
                reads.overtaken = true;
                reads.tell(placement.epoch);
            }
            self.absent.remove(&placement.key);
            let held = self.holding.peek(placement.key.as_str());
            if held.is_some_and(|held| held.residence.epoch > placement.epoch)
                && !mutants::is(Mutant::NoEpochCheck)
            {
                // Read from a table that is ahead of this entry.
            } else if placed {
                let residence = Residence::from(placement);
                self.holding.insert(&placement.key, Slot { residence, generation, current_at });
            } else {
                self.holding.remove(placement.key.as_str());
            }
        }
    }

    /// Records that everything held and trusted is current as of `at`: a poll that began then found nothing that is not applied.
    pub fn proven(&self, at: Instant) {
        self.proven_at.fetch_max(self.signed_micros(at), Ordering::AcqRel);
    }

    /// Takes in a placement that an earlier process saved. See [`Memory::restored`].
    pub fn restore(&self, key: &PartitionKey, residence: Residence) {
        let generation = self.generation.load(Ordering::Acquire);
        self.holding.insert(key, Slot { residence, generation, current_at: 0 });
    }

    /// Ends the taking in of what an earlier process saved, before anybody else uses this memory. `proven`: as of when all that was
    /// current, counted back by the wall clock, so that it is good for an age and for nothing else. `complete`: that is the whole table.
    pub fn restored(&self, proven: Instant, complete: bool) {
        // Before the origin in any case: see `Memory::witnessed`.
        self.proven_at.store(self.signed_micros(proven).min(-1), Ordering::Release);
        let whole = matches!(self.holding, Holding::Whole(_));
        self.complete.store(complete && whole, Ordering::Release);
    }

    /// Whether this process itself knows that something was current then, on a clock that never stands still or goes back.
    pub fn witnessed(&self, as_of: Instant) -> bool {
        as_of >= self.origin
    }

    /// Which stretch of the journal vouches for what is trusted.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// When a lease ends on whatever is held and trusted, or is read from the table after this call: a lease after the last proof, which
    /// vouches for the lease's length as much as for what is held (see `docs/adr/0008-leases.md`).
    pub fn lease_until(&self) -> Instant {
        // The order matters: what is looked at after the length takes in all that came before the length was set.
        let proven_at = self.proven_at.load(Ordering::Acquire);
        self.lease_after(proven_at)
    }

    /// When a lease ends that counts from a proof. One from before the origin was made by an earlier process and is dated by the wall
    /// clock, which has no say in leases.
    fn lease_after(&self, proven_at: i64) -> Instant {
        let lease = self.lease.load(Ordering::Acquire);
        self.instant(if proven_at < 0 { proven_at } else { proven_at + lease })
    }

    /// Says how long leases are from now on, at most. Call after what came before has been taken in.
    pub fn shorten_leases(&self, lease: Duration) {
        self.lease.fetch_min(micros(lease).cast_signed(), Ordering::AcqRel);
    }

    /// Says how long leases are from now on, longer ones included: only with a proof that this is not out of date.
    pub fn set_leases(&self, lease: Duration) {
        self.lease.store(micros(lease).cast_signed(), Ordering::Release);
    }

    /// As of when everything held and trusted is known to be current.
    pub fn last_proof(&self) -> Instant {
        self.instant(self.proven_at.load(Ordering::Acquire))
    }

    /// The journal leaves a hole between what was applied and what will be: what is held keeps the age that it has, and gives way to
    /// whatever is read from now on.
    pub fn distrust(&self) {
        let mut load = self.load.lock();
        *load = None;
        self.complete.store(false, Ordering::Release);
        self.absent.clear();
        // Of all former generations, the oldest proof counts.
        self.proven_before.fetch_min(self.proven_at.load(Ordering::Acquire), Ordering::AcqRel);
        // Reads that began before the hole may be of any time.
        self.overtake_all(false);
        let next = (self.generation.load(Ordering::Acquire) + 1) % GENERATIONS;
        if next == 0 {
            // They start over: what is left of the first one must not be taken for trusted.
            self.holding.clear();
        }
        self.generation.store(next, Ordering::Release);
    }

    /// Forgets everything: the journal is not the one that was followed.
    pub fn clear(&self) {
        let mut load = self.load.lock();
        *load = None;
        self.complete.store(false, Ordering::Release);
        self.overtake_all(true);
        self.absent.clear();
        self.holding.clear();
    }

    /// Marks all reads under way, which are not to be kept. `foreign`: what was told is of another journal.
    fn overtake_all(&self, foreign: bool) {
        for shard in &self.reads {
            for reads in shard.lock().values_mut() {
                reads.overtaken = true;
                reads.oldest = self.next_round();
                if foreign {
                    reads.newest = None;
                }
            }
        }
    }

    /// Announces a reading of the whole table. Call before it begins, when all entries up to the head have been applied or will be.
    pub fn begin_load(&self) {
        let began = self.micros(self.clock.instant());
        *self.load.lock() = Some(Load { told: HashSet::new(), began });
    }

    /// Takes in some of what a load has read. `false`: the load was called off ([`Memory::clear`]).
    #[must_use]
    pub fn take_in(&self, placements: &[Placement]) -> bool {
        let load = self.load.lock();
        let Some(load) = &*load else {
            return false;
        };
        let generation = self.generation.load(Ordering::Acquire);
        let slots = placements.iter().filter(|placement| !load.told.contains(&placement.key));
        for placement in slots {
            let held = self.holding.peek(placement.key.as_str());
            if held.is_some_and(|held| held.residence.epoch > placement.epoch) {
                continue;
            }
            let residence = Residence::from(placement);
            let slot = Slot { residence, generation, current_at: load.began };
            self.holding.insert(&placement.key, slot);
        }
        self.loading.notify_waiters();
        true
    }

    /// Keys that are held and that neither the load nor an entry has vouched for, of one part of all ([`Memory::parts`]). They may be
    /// gone, or the table was not read to its end: each has to be asked for before it is forgotten.
    pub fn unconfirmed(&self, part: usize) -> Vec<PartitionKey> {
        let generation = self.generation.load(Ordering::Acquire);
        let mut keys = Vec::new();
        self.holding.visit(part, |key, slot| {
            if slot.generation != generation {
                keys.extend(PartitionKey::new(key));
            }
        });
        keys
    }

    /// In how many parts everything held is gone through.
    pub fn parts(&self) -> usize {
        self.holding.parts()
    }

    /// Looks at all that one part holds and that is trusted.
    pub fn visit(&self, part: usize, mut look: impl FnMut(&str, Residence)) {
        let generation = self.generation.load(Ordering::Acquire);
        self.holding.visit(part, |key, slot| {
            if slot.generation == generation {
                look(key, slot.residence);
            }
        });
    }

    /// Ends a load: all of the table has been taken in, and nothing is [`Memory::unconfirmed`]. `false`: it was called off.
    pub fn end_load(&self) -> bool {
        let mut load = self.load.lock();
        let ended = load.take().is_some();
        if ended && matches!(self.holding, Holding::Whole(_)) {
            self.complete.store(true, Ordering::Release);
            self.loading.notify_waiters();
            // Nothing of a former generation is left.
            self.proven_before.store(i64::MAX, Ordering::Release);
        }
        ended
    }

    fn next_round(&self) -> u64 {
        self.rounds.fetch_add(1, Ordering::Relaxed)
    }

    fn micros(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.origin))
    }

    fn signed_micros(&self, at: Instant) -> i64 {
        let signed = |duration| i64::try_from(micros(duration)).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.origin) {
            Some(after) => signed(after),
            None => -signed(self.origin.saturating_duration_since(at)),
        }
    }

    fn instant(&self, micros: i64) -> Instant {
        let distance = Duration::from_micros(micros.unsigned_abs());
        match micros >= 0 {
            true => self.origin + distance,
            false => self.origin.checked_sub(distance).unwrap_or(self.origin),
        }
    }

    fn shard(&self, key: &PartitionKey) -> &Mutex<HashMap<PartitionKey, ReadsUnderWay>> {
        use std::hash::BuildHasher;
        let hash = self.hasher.hash_one(key);
        &self.reads[hash as usize % READ_SHARDS]
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
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
    pub fn keep(self, residence: Residence) -> bool {
        let memory = &self.memory;
        let mut shard = memory.shard(&self.key).lock();
        // There for as long as this ticket is.
        let Some(reads) = shard.get_mut(&self.key) else {
            return false;
        };
        let unchecked = mutants::is(Mutant::NoEpochCheck);
        if !unchecked && reads.newest.is_some_and(|newest| newest > residence.epoch) {
            return false;
        }
        let undisturbed = reads.round == self.round && !reads.overtaken;
        let ahead = unchecked || reads.newest.is_none_or(|newest| newest < residence.epoch);
        reads.tell(residence.epoch);
        if self.round >= reads.oldest && (undisturbed || ahead) {
            let generation = memory.generation.load(Ordering::Acquire);
            let slot = Slot { residence, generation, current_at: memory.micros(self.began) };
            memory.absent.remove(&self.key);
            memory.holding.insert(&self.key, slot);
        }
        true
    }

    /// Keeps that the table has no placement for the key, unless the journal or another reader told of the key since.
    pub fn keep_absent(self, mapping: Mapping) {
        let memory = &self.memory;
        let shard = memory.shard(&self.key).lock();
        let undisturbed = shard.get(&self.key).is_some_and(|reads| {
            reads.round == self.round && !reads.overtaken && reads.newest.is_none()
        });
        if undisturbed && mapping.placement().is_none() {
            memory.holding.remove(self.key.as_str());
            let read_at = memory.micros(self.began);
            memory.absent.insert(self.key.clone(), Absent { mapping, read_at });
        }
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
