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

use arc_swap::ArcSwapOption;
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
use crate::domain::{JournalEntry, JournalId, Sequence};
use crate::store::{Head, Journal, StoreError};

/// Most entries read at once.
const ENTRIES_PAGE: usize = 100;

pub struct Replica {
    journal: Arc<dyn Journal>,
    memory: Arc<Memory>,
    clock: Clock,
    randomness: Randomness,
    registry: ArcSwapOption<Registry>,
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
#[derive(Clone, Copy)]
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
mod tests {
    use super::*;
    use crate::directory::fixtures::{Call, Fault, Faulty, cell, entry, now, placed, placement};
    use crate::directory::memory::{Mode, Residence};
    use crate::domain::{CellId, Change, PartitionKey};
    use crate::store::memory::MemoryStore;
    use crate::store::{Commit, CommitOutcome, Write};

    fn clock() -> Clock {
        Clock::from_fn(now)
    }

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new(Mode::Bounded(10_000), clock(), &Randomness::system()))
    }

    async fn append(store: &MemoryStore, entry: JournalEntry, writes: Vec<Write>) {
        let commit = Commit { entry, writes };
        assert_eq!(store.commit(&commit).await, Ok(CommitOutcome::Committed));
    }

    #[tokio::test]
    async fn follows_what_others_write() {
        let store = Arc::new(MemoryStore::default());
        let memory = memory();
        let replica = Replica::new(store.clone(), memory.clone(), clock());
        assert_eq!(replica.registry().unwrap_err(), Error::NotReady);

        let created = Change::CellCreated { cell: cell("a", 1) };
        let put = Write::PutCell { cell: cell("a", 1), set_count: true };
        append(&store, entry(1, vec![created]), vec![put]).await;
        replica.catch_up().await.unwrap();
        let proof = memory.last_proof();

        append(&store, entry(2, vec![placed("k", "a", None)]), vec![]).await;
        replica.catch_up().await.unwrap();
        assert!(memory.get("k").is_some());
        assert!(memory.last_proof() > proof);
        let a = CellId::new("a").unwrap();
        assert_eq!(replica.registry().unwrap().cell(&a).unwrap().placements, 1);

        // The committer applies its own entry after the follower did: nothing counts twice.
        replica.apply_own(&entry(2, vec![placed("k", "a", None)]), Instant::now());
        assert_eq!(replica.registry().unwrap().cell(&a).unwrap().placements, 1);
    }

    #[tokio::test]
    async fn a_journal_that_went_back_is_read_anew() {
        let store = Arc::new(MemoryStore::default());
        append(&store, entry(1, vec![placed("k", "a", None)]), vec![]).await;
        let memory = memory();
        let replica = Replica::new(store, memory.clone(), clock());
        replica.catch_up().await.unwrap();
        replica.apply_own(&entry(2, vec![placed("k2", "a", None)]), Instant::now());
        assert!(memory.get("k2").is_some());
        replica.catch_up().await.unwrap();
        assert!(memory.get("k2").is_none());
        assert_eq!(replica.registry().unwrap().applied(), Sequence::new(1));
    }

    /// A replica on a store with cell `a` and `n` tenants.
    async fn behind(n: u64) -> (Arc<Faulty>, Arc<Replica>) {
        let store = Faulty::new();
        let cell = cell("a", 1);
        let put = Write::PutCell { cell: cell.clone(), set_count: true };
        append(&store.inner, entry(1, vec![Change::CellCreated { cell }]), vec![put]).await;
        let replica = Arc::new(Replica::new(store.clone(), memory(), clock()));
        replica.catch_up().await.unwrap();
        for at in 2..n + 2 {
            append(&store.inner, entry(at, vec![placed(&format!("k{at}"), "a", None)]), vec![])
                .await;
        }
        (store, replica)
    }

    fn applied(replica: &Replica) -> u64 {
        replica.registry().unwrap().applied().get()
    }

    #[tokio::test]
    async fn catches_up_page_by_page_and_keeps_what_it_has() {
        let (store, replica) = behind(250).await;
        let proof = replica.memory().last_proof();
        store.next(Call::Entries, [None, Some(Fault::Fail(StoreError::Timeout))]);
        assert_eq!(replica.catch_up().await, Err(StoreError::Timeout));
        assert_eq!(applied(&replica), 101);
        assert_eq!(replica.memory().len(), 100);
        let held = replica.memory().get("k2").unwrap();
        assert_eq!(replica.memory().last_proof(), proof, "it may have changed since");
        assert_eq!(held.as_of, proof);
        replica.catch_up().await.unwrap();
        assert_eq!((applied(&replica), replica.memory().len()), (251, 250));
        assert!(replica.memory().get("k2").unwrap().as_of > proof);
        assert_eq!(store.count(Call::Cells), 1, "read once");
    }

    /// What is applied while the head is being read may be ahead of it, and is no reason to forget everything.
    #[tokio::test]
    async fn an_own_entry_during_a_poll_is_no_step_back() {
        let (store, replica) = behind(0).await;
        let (gate, before, after) = Fault::gate();
        store.next(Call::Head, [Some(gate)]);
        let polling = replica.clone();
        let poll = tokio::spawn(async move { polling.catch_up().await });
        before.add_permits(1);
        tokio::task::yield_now().await;
        let own = entry(2, vec![placed("k", "a", None)]);
        append(&store.inner, own.clone(), vec![]).await;
        replica.apply_own(&own, Instant::now());
        after.add_permits(1);
        poll.await.unwrap().unwrap();
        assert!(replica.memory().get("k").is_some());
        assert_eq!((applied(&replica), store.count(Call::Cells)), (2, 1));
    }

    /// Many who read the journal at once, each at another pace, apply each entry once.
    #[tokio::test(start_paused = true)]
    async fn readers_of_the_journal_do_not_get_in_each_others_way() {
        let (store, replica) = behind(250).await;
        let polls: Vec<_> = (1..20)
            .map(|n| {
                store.next(Call::Head, [Some(Fault::Slow(Duration::from_millis(n * 7 % 10)))]);
                store.next(Call::Entries, [Some(Fault::Slow(Duration::from_millis(n % 5)))]);
                let replica = replica.clone();
                tokio::spawn(async move { replica.catch_up().await })
            })
            .collect();
        for poll in polls {
            poll.await.unwrap().unwrap();
        }
        let registry = replica.registry().unwrap();
        let a = CellId::new("a").unwrap();
        assert_eq!((applied(&replica), registry.cell(&a).unwrap().placements), (251, 250));
    }

    /// Two who load the registry for the first time: what the faster one has applied since is not taken back by the slower one.
    #[tokio::test]
    async fn a_late_first_load_takes_nothing_back() {
        let (store, _) = behind(0).await;
        let replica = Arc::new(Replica::new(store.clone(), memory(), clock()));
        let (gate, before, after) = Fault::gate();
        store.next(Call::Cells, [Some(gate)]);
        let slow = replica.clone();
        let slow = tokio::spawn(async move { slow.catch_up().await });
        tokio::task::yield_now().await;
        append(&store.inner, entry(2, vec![placed("k", "a", None)]), vec![]).await;
        replica.catch_up().await.unwrap();
        assert_eq!(applied(&replica), 2);
        let loaded = replica.registry().unwrap();
        before.add_permits(1);
        after.add_permits(1);
        slow.await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&loaded, &replica.registry().unwrap()));
    }

    /// A replica that cannot read the journal yet answers from the table. No entry up to the head that it then begins with is applied to
    /// what it read meanwhile, so no poll vouches for it.
    #[tokio::test]
    async fn what_was_read_before_the_first_load_is_not_trusted_after_it() {
        let (store, _) = behind(1).await;
        let memory = memory();
        let replica = Replica::new(store.clone(), memory.clone(), clock());
        let key = PartitionKey::new("k2").unwrap();
        let read = Residence::from(&placement("k2", "a", 1));
        let slow = memory.begin_read(key.clone());
        assert!(memory.begin_read(key).keep(read));
        assert!(memory.get("k2").is_some_and(|held| held.trusted));
        let vacated = Change::Vacated { placement: placement("k2", "a", 1) };
        append(&store.inner, entry(3, vec![vacated]), vec![]).await;
        let before = clock().instant();
        replica.catch_up().await.unwrap();
        let untrusted = || {
            let held = memory.get("k2").unwrap();
            assert!(!held.trusted && held.as_of < before);
        };
        untrusted();
        assert!(slow.keep(read));
        untrusted();
    }

    /// Who looked at the head, was overtaken while reading on, and then finds those entries trimmed: what was adopted meanwhile is later
    /// than that head, and is not given up for it.
    #[tokio::test]
    async fn who_fell_behind_does_not_go_back_to_an_older_head() {
        let (store, replica) = behind(10).await;
        let (gate, before, after) = Fault::gate();
        store.next(Call::Entries, [Some(gate)]);
        let slow = replica.clone();
        let slow = tokio::spawn(async move { slow.catch_up().await });
        tokio::task::yield_now().await;
        for at in 12..20 {
            append(&store.inner, entry(at, vec![placed(&format!("k{at}"), "a", None)]), vec![])
                .await;
        }
        store.inner.trim(Sequence::new(15)).await.unwrap();
        // It falls behind, too, and adopts the head as it is by now.
        replica.catch_up().await.unwrap();
        assert_eq!((applied(&replica), store.count(Call::Cells)), (19, 2));
        let adopted = replica.registry().unwrap();
        before.add_permits(1);
        after.add_permits(1);
        slow.await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&adopted, &replica.registry().unwrap()));
        assert_eq!(replica.memory().applied(), Sequence::new(19));
        assert_eq!(replica.feed().position().sequence, Sequence::new(19));
    }

    /// What the journal does not vouch for has no position in it: a hole lies between what it was and where the replica stands.
    #[tokio::test]
    async fn what_is_not_trusted_has_no_sequence() {
        let (store, replica) = behind(3).await;
        replica.catch_up().await.unwrap();
        let held = || replica.memory().get("k2").unwrap();
        assert_eq!((held().trusted, held().sequence), (true, Sequence::new(4)));
        let proof = replica.memory().last_proof();
        for at in 5..9 {
            append(&store.inner, entry(at, vec![placed(&format!("k{at}"), "a", None)]), vec![])
                .await;
        }
        store.inner.trim(Sequence::new(7)).await.unwrap();
        for _ in 0..2 {
            // No later poll vouches for it either.
            replica.catch_up().await.unwrap();
            assert_eq!(applied(&replica), 8);
            assert_eq!((held().trusted, held().sequence), (false, Sequence::START));
            assert!(held().as_of <= proof);
        }
        // Until an entry tells of it.
        append(&store.inner, entry(9, vec![placed("k2", "a", None)]), vec![]).await;
        replica.catch_up().await.unwrap();
        assert_eq!((held().trusted, held().sequence), (true, Sequence::new(9)));
    }

    #[tokio::test]
    async fn a_journal_with_a_hole_is_not_read_over() {
        let store = Faulty::new();
        append(&store.inner, entry(1, vec![placed("k", "a", None)]), vec![]).await;
        let replica = Replica::new(store.clone(), memory(), clock());
        replica.begin_with(Registry::default());
        // An answer without the first entry, though none was trimmed.
        append(&store.inner, entry(2, vec![placed("l", "a", None)]), vec![]).await;
        store.next(Call::Entries, [Some(Fault::Skip(1))]);
        let Err(StoreError::Unreadable { detail }) = replica.catch_up().await else { panic!() };
        assert_eq!(detail, "journal entry 2 stands where 1 is due");
        assert!(replica.memory().is_empty());
        assert_eq!(applied(&replica), 0);
    }
}
