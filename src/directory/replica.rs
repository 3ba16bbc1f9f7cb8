//! This replica's state and the one way in which it changes: the journal, applied in order.
//!
//! Whoever reads the journal applies what it read: the follower, which polls, the committer, which knows what it has just written, and
//! whoever asks for the state as it stands in the table. All hold `turn` while they apply, and an entry that was applied already
//! is left alone, so it does not matter who comes first. Nobody holds it while the store is asked: a slow poll, or many callers who
//! want to know the state, must not keep a commit from being answered.
//!
//! Two things can go wrong with a journal that is followed. Entries that this replica has not applied may have been trimmed: then the
//! cells are read anew, and placements are kept but not trusted ([`Memory::distrust`]). Or the journal is another one, because the tables
//! were restored: then everything is forgotten.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::error::Error;
use super::feed::{Feed, Position};
use super::leases::LeaseTerms;
use super::memory::Memory;
use super::randomness::Randomness;
use super::registry::Registry;
use crate::domain::{JournalEntry, JournalId, LeaseDuration, Loads, Sequence};
use crate::store::{Head, Journal, StoreError};

/// Most entries read at once.
const ENTRIES_PAGE: usize = 100;

pub struct Replica {
    journal: Arc<dyn Journal>,
    memory: Arc<Memory>,
    clock: Clock,
    randomness: Randomness,
    registry: ArcSwapOption<Registry>,
    /// How busy cells are. Not of the registry, which is the same in every replica.
    loads: ArcSwap<Loads>,
    feed: Feed,
    /// Told when the whole table has to be read.
    load_wanted: Notify,
    terms: Mutex<LeaseTerms>,
    /// Held while entries are applied, never across an `await`.
    turn: Mutex<()>,
}

impl Replica {
    pub fn new(journal: Arc<dyn Journal>, memory: Arc<Memory>, clock: Clock) -> Self {
        Self {
            journal,
            memory,
            clock,
            randomness: Randomness::system(),
            registry: ArcSwapOption::empty(),
            loads: ArcSwap::default(),
            feed: Feed::default(),
            load_wanted: Notify::new(),
            terms: Mutex::default(),
            turn: Mutex::new(()),
        }
    }

    /// The same with lots from elsewhere.
    pub fn with_randomness(self, randomness: Randomness) -> Self {
        Self { randomness, ..self }
    }

    /// The same with another feed.
    #[cfg(test)]
    pub fn with_feed(self, feed: Feed) -> Self {
        Self { feed, ..self }
    }

    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What has been applied lately, for those who watch.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Waits until the whole table has to be read.
    pub async fn load_wanted(&self) {
        self.load_wanted.notified().await;
    }

    /// The registry as of the last applied entry.
    ///
    /// # Errors
    /// [`Error::NotReady`] until it has been read for the first time.
    pub fn registry(&self) -> Result<Arc<Registry>, Error> {
        self.registry.load_full().ok_or(Error::NotReady)
    }

    /// Runs `look` on the registry without taking a share of it, for hot paths. `None` until it has been read.
    pub fn peek<T>(&self, look: impl FnOnce(&Registry) -> T) -> Option<T> {
        self.registry.load().as_deref().map(look)
    }

    /// How busy cells are, as far as that is known here. It decides preferences only, so replicas may differ.
    pub fn loads(&self) -> Arc<Loads> {
        self.loads.load_full()
    }

    /// The longest lease that anybody may have now, and the revision of the cluster's settings by which that is known.
    pub fn longest_lease(&self) -> (Sequence, LeaseDuration) {
        // Before what is known of leases, which is ahead of the registry while an entry is taken in.
        let revision = self.peek(|registry| registry.cluster().revision);
        (revision.unwrap_or(Sequence::START), self.terms.lock().longest(self.clock.instant()))
    }

    pub fn set_loads(&self, loads: Loads) {
        self.loads.store(Arc::new(loads));
    }

    /// When no lease is left that anybody may have been given on what stood before an entry, from what this replica knows of the
    /// cluster's leases. `committed`: some moment after the entry was committed, and applied here.
    pub fn leases_run_out(&self, committed: Instant) -> Instant {
        self.terms.lock().run_out(committed)
    }

    /// Begins with what an earlier process saved: the registry as of its last entry. Memory holds the placements already, which may be
    /// ahead of it: entries that they have taken in change nothing when they are applied again.
    pub fn begin_with(&self, registry: Registry) {
        let _turn = self.turn.lock();
        // How long leases are by now is for the first poll to find out.
        self.memory.set_leases(Duration::ZERO);
        self.adopt(registry);
    }

    /// Applies all entries up to the journal's head, loading the registry first where that has not been done. Proves all that is
    /// held in memory to be current as of the start of this call.
    ///
    /// # Errors
    /// Those of the store; what was applied until then stays applied, and nothing that is held is forgotten.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        let began = self.clock.instant();
        // Before the head is read: what is applied meanwhile may well be ahead of it.
        let known = self.registry.load_full();
        let mut head = self.journal.head().await?;
        if let Some(known) = &known
            && known.journal() == head.journal
            && known.applied() > head.sequence
        {
            head = self.renamed(head).await?;
        }
        let mut applied = match known {
            Some(known) if known.journal() != head.journal => {
                self.load(Some(known), head, Why::AnotherJournal).await?
            }
            Some(known) => known.applied(),
            None => self.load(None, head, Why::Beginning).await?,
        };
        while applied < head.sequence {
            let entries = self.journal.entries(applied, ENTRIES_PAGE).await?;
            let next = entries.first().map(|entry| entry.sequence);
            if next != Some(applied.next()) && self.journal.trimmed().await? > applied {
                let known = self.registry.load_full();
                // Somebody else may have come further meanwhile, even beyond the head as it was: nobody goes back there.
                match &known {
                    Some(present) if present.journal() != head.journal => {
                        return Err(StoreError::Throttled);
                    }
                    Some(present) if present.applied() > applied => applied = present.applied(),
                    _ => applied = self.load(known, head, Why::FellBehind).await?,
                }
                continue;
            }
            let before = applied;
            applied = self.apply_read(&entries)?;
            if applied <= before {
                let missing = before.next();
                let detail = format!("journal entry {missing} is missing");
                return Err(StoreError::Unreadable { detail });
            }
        }
        {
            let _turn = self.turn.lock();
            // All that there was at the start is applied, so this is no length from before.
            self.memory.set_leases(self.peek(Registry::lease).unwrap_or_default());
        }
        self.memory.proven(began);
        Ok(())
    }

    /// Applies the entries that somebody else has just written: one read where [`Replica::catch_up`] takes two. Proves nothing.
    ///
    /// # Errors
    /// As of [`Replica::catch_up`].
    pub async fn pull(&self) -> Result<(), StoreError> {
        if let Some(known) = self.registry.load_full() {
            let entries = self.journal.entries(known.applied(), ENTRIES_PAGE).await?;
            let next = entries.first().map(|entry| entry.sequence);
            // A full page may not be the last, and none at all is strange.
            if next == Some(known.applied().next()) && entries.len() < ENTRIES_PAGE {
                return self.apply_read(&entries).map(|_| ());
            }
        }
        self.catch_up().await
    }

    /// Applies an entry that this replica has just committed. `began`: when the commit began.
    pub fn apply_own(&self, entry: &JournalEntry, began: Instant) {
        let _turn = self.turn.lock();
        let Some(registry) = self.registry.load_full() else {
            return;
        };
        let mut next = Registry::clone(&registry);
        if next.apply(entry) {
            self.take_in(entry, &next, Some(began));
            self.publish(next);
        }
    }

    /// Applies those entries of a page of the journal that are not applied yet. Answers what is applied then.
    fn apply_read(&self, entries: &[JournalEntry]) -> Result<Sequence, StoreError> {
        let _turn = self.turn.lock();
        let mut next = self.registry.load().as_deref().cloned().unwrap_or_default();
        let mut gap = None;
        for entry in entries {
            if next.apply(entry) {
                // When it was written is not known, only that it was after the last proof.
                self.take_in(entry, &next, None);
            } else if entry.sequence > next.applied() {
                let (found, due) = (entry.sequence, next.applied().next());
                gap = Some(format!("journal entry {found} stands where {due} is due"));
                break;
            }
        }
        let applied = next.applied();
        self.publish(next);
        match gap {
            None => Ok(applied),
            Some(detail) => Err(StoreError::Unreadable { detail }),
        }
    }

    /// Tells memory, leases and those who watch of an entry that the registry has taken in. Called under `turn`.
    fn take_in(&self, entry: &JournalEntry, registry: &Registry, began: Option<Instant>) {
        self.memory.apply(&entry.changes, began);
        self.terms.lock().changed(registry.cluster().lease.get(), self.clock.instant());
        self.feed.push(entry.clone());
    }

    /// The journal is behind what was applied under the same id, so it comes from a backup. It gets an id of its own: positions in the
    /// one that was lost must not be taken for positions in this one.
    async fn renamed(&self, head: Head) -> Result<Head, StoreError> {
        let id = JournalId::new(self.randomness.draw());
        let renamed = self.journal.rename(head, id).await?;
        tracing::error!(head = %head.sequence, %id, renamed, "the journal went back, as after a restore");
        match self.journal.head().await? {
            // Somebody is writing to it already: the next poll finds out.
            again if again.journal == head.journal => Err(StoreError::Throttled),
            again => Ok(again),
        }
    }

    /// Reads the cells and the settings anew. Answers what is applied then.
    async fn load(
        &self,
        known: Option<Arc<Registry>>,
        head: Head,
        why: Why,
    ) -> Result<Sequence, StoreError> {
        let (cells, cluster) =
            futures::future::try_join(self.journal.cells(), self.journal.cluster()).await?;
        let loaded = Registry::load(head, cells, cluster);
        let _turn = self.turn.lock();
        let present = self.registry.load_full();
        if present.as_ref().map(Arc::as_ptr) != known.as_ref().map(Arc::as_ptr) {
            // Somebody else was first; what they applied is not taken back.
            return Ok(present.map_or(head.sequence, |present| present.applied()));
        }
        let cells = loaded.cells().count();
        let head = head.sequence;
        match why {
            Why::Beginning => {
                tracing::info!(%head, cells, "read the registry of cells");
                // What was read from the table so far may have changed by an entry that is never applied: those up to the head are not.
                self.memory.distrust();
            }
            Why::AnotherJournal => {
                tracing::error!(%head, "the journal is another one, as after a restore: forgetting what is held");
                self.memory.clear();
            }
            Why::FellBehind => {
                tracing::warn!(%head, "fell behind the journal's trimmed entries: reading placements anew");
                self.memory.distrust();
            }
        }
        self.adopt(loaded);
        if why == Why::AnotherJournal {
            // Leases may have been longer in what was lost.
            self.terms.lock().lost(self.clock.instant());
        }
        Ok(head)
    }

    /// Takes a registry over that is not the fold of what was applied before. Called under `turn`.
    fn adopt(&self, registry: Registry) {
        self.feed.clear();
        self.terms.lock().loaded(registry.cluster(), self.clock.instant());
        self.publish(registry);
        self.load_wanted.notify_one();
    }

    /// Called under `turn`, after memory has taken in what the registry has.
    fn publish(&self, registry: Registry) {
        let position = Position { journal: registry.journal(), sequence: registry.applied() };
        self.memory.applied_up_to(position.sequence);
        self.memory.shorten_leases(registry.lease());
        self.registry.store(Some(Arc::new(registry)));
        self.feed.moved(position);
    }
}

/// Why the registry is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Beginning,
    AnotherJournal,
    FellBehind,
}

/// Polls the journal at a constant rate, whatever the load, until `stop`.
pub async fn follow(replica: Arc<Replica>, interval: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match replica.catch_up().await {
            Ok(()) if failing => tracing::info!("following the journal again"),
            Ok(()) => {}
            Err(error) if !failing => {
                tracing::warn!(%error, "the journal cannot be followed; memory goes on answering and ages");
            }
            Err(_) => {}
        }
        let proof = replica.memory().last_proof();
        failing = replica.clock.instant().saturating_duration_since(proof) > interval * 4;
    }
}

#[cfg(test)]
mod tests;
