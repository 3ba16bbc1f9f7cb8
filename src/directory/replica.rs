//! This replica's state and the one way in which it changes: the journal, applied in order.
//!
//! Whoever reads the journal applies what it read: the follower, which polls, the committer, which knows what it has just written, and
//! whoever asks for the state as it stands in the table. All hold `turn` while they apply, and an entry that was applied already
//! is left alone, so it does not matter who comes first. Nobody holds it while the store is asked: a slow poll, or many callers who
//! want to know the state, must not keep a commit from being answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::memory::Memory;
use super::registry::Registry;
use crate::domain::{JournalEntry, Sequence};
use crate::store::{Journal, StoreError};

/// Most entries read at once.
const ENTRIES_PAGE: usize = 100;

pub struct Replica {
    journal: Arc<dyn Journal>,
    memory: Arc<Memory>,
    registry: ArcSwapOption<Registry>,
    /// Held while entries are applied, never across an `await`.
    turn: Mutex<()>,
}

impl Replica {
    pub fn new(journal: Arc<dyn Journal>, memory: Arc<Memory>) -> Self {
        Self { journal, memory, registry: ArcSwapOption::empty(), turn: Mutex::new(()) }
    }

    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
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

    /// Applies all entries up to the journal's head, loading the registry first where that has not been done. Proves all that is
    /// held in memory to be current as of the start of this call.
    ///
    /// # Errors
    /// Those of the store; what was applied until then stays applied, and nothing that is held is forgotten.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        // Before the head is read: what is applied meanwhile may well be ahead of it.
        let known = self.registry.load_full();
        let head = self.journal.head().await?;
        let mut applied = match known {
            Some(known) if known.applied() <= head => known.applied(),
            known => self.load(known, head).await?,
        };
        while applied < head {
            let entries = self.journal.entries(applied, ENTRIES_PAGE).await?;
            let before = applied;
            applied = self.apply_read(&entries)?;
            if applied <= before {
                let missing = before.next();
                let detail = format!("journal entry {missing} is missing");
                return Err(StoreError::Unreadable { detail });
            }
        }
        self.memory.proven(began);
        Ok(())
    }

    /// Applies an entry that this replica has just committed. `began`: when the commit began.
    pub fn apply_own(&self, entry: &JournalEntry, began: Instant) {
        let _turn = self.turn.lock();
        let Some(registry) = self.registry.load_full() else {
            return;
        };
        let mut next = Registry::clone(&registry);
        if next.apply(entry) {
            self.memory.apply(&entry.changes, Some(began));
            self.registry.store(Some(Arc::new(next)));
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
                self.memory.apply(&entry.changes, None);
            } else if entry.sequence > next.applied() {
                let (found, due) = (entry.sequence, next.applied().next());
                gap = Some(format!("journal entry {found} stands where {due} is due"));
                break;
            }
        }
        let applied = next.applied();
        self.registry.store(Some(Arc::new(next)));
        match gap {
            None => Ok(applied),
            Some(detail) => Err(StoreError::Unreadable { detail }),
        }
    }

    /// Reads the cells anew: for the first time, or because the journal is behind what was applied and so not the one that this replica
    /// followed, but one from a backup. Answers what is applied then.
    async fn load(
        &self,
        known: Option<Arc<Registry>>,
        head: Sequence,
    ) -> Result<Sequence, StoreError> {
        let loaded = Registry::load(head, self.journal.cells().await?);
        let _turn = self.turn.lock();
        let present = self.registry.load_full();
        if present.as_ref().map(Arc::as_ptr) != known.as_ref().map(Arc::as_ptr) {
            // Somebody else was first; what they applied is not taken back.
            return Ok(present.map_or(head, |present| present.applied()));
        }
        if let Some(known) = known {
            tracing::error!(
                applied = %known.applied(), %head,
                "the journal went back, as after a restore: forgetting what is held and reading it anew"
            );
        }
        // The first time, too: what was read from the table before the head was, an entry up to the head may have changed, and that
        // entry will not be applied. Kept, it would be proven current by every poll from now on.
        self.memory.clear();
        tracing::info!(%head, cells = loaded.cells().count(), "read the registry of cells");
        self.registry.store(Some(Arc::new(loaded)));
        Ok(head)
    }
}

/// Polls the journal at a constant rate, whatever the load, until `stop`.
pub async fn follow(replica: Arc<Replica>, interval: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
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
        failing = replica.memory().last_proof().elapsed() > interval * 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::{Call, Fault, Faulty, cell, entry, placed, placement};
    use crate::domain::{CellId, Change, PartitionKey};
    use crate::store::memory::MemoryStore;
    use crate::store::{Commit, CommitOutcome, Write};

    async fn append(store: &MemoryStore, entry: JournalEntry, writes: Vec<Write>) {
        let commit = Commit { entry, writes };
        assert_eq!(store.commit(&commit).await, Ok(CommitOutcome::Committed));
    }

    #[tokio::test]
    async fn follows_what_others_write() {
        let store = Arc::new(MemoryStore::default());
        let memory = Arc::new(Memory::new(100));
        let replica = Replica::new(store.clone(), memory.clone());
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
        let memory = Arc::new(Memory::new(100));
        let replica = Replica::new(store, memory.clone());
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
        let replica = Arc::new(Replica::new(store.clone(), Arc::new(Memory::new(10_000))));
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
        let replica = Arc::new(Replica::new(store.clone(), Arc::new(Memory::new(10))));
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
    /// what it read meanwhile.
    #[tokio::test]
    async fn what_was_read_before_the_first_load_is_not_held_after_it() {
        let (store, _) = behind(1).await;
        let memory = Arc::new(Memory::new(10));
        let replica = Replica::new(store.clone(), memory.clone());
        let key = PartitionKey::new("k2").unwrap();
        let read = Arc::new(placement("k2", "a", 1));
        let slow = memory.begin_read(key.clone());
        assert!(memory.begin_read(key).keep(&read));
        assert!(memory.get("k2").is_some());
        let vacated = Change::Vacated { placement: placement("k2", "a", 1) };
        append(&store.inner, entry(3, vec![vacated]), vec![]).await;
        replica.catch_up().await.unwrap();
        assert!(memory.get("k2").is_none());
        assert!(slow.keep(&read));
        assert!(memory.get("k2").is_none());
    }

    #[tokio::test]
    async fn a_journal_with_a_hole_is_not_read_over() {
        let store = Arc::new(MemoryStore::starting_at(Sequence::new(5)));
        append(&store, entry(6, vec![placed("k", "a", None)]), vec![]).await;
        let replica = Replica::new(store, Arc::new(Memory::new(10)));
        // As if it had followed the journal before its beginning was forgotten.
        replica.registry.store(Some(Arc::new(Registry::default())));
        let Err(StoreError::Unreadable { detail }) = replica.catch_up().await else { panic!() };
        assert_eq!(detail, "journal entry 6 stands where 1 is due");
        assert!(replica.memory().is_empty());
        assert_eq!(applied(&replica), 0);
    }
}
