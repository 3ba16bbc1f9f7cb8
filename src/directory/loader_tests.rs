//! A whole memory behind a journal that is trimmed: it reads anew, and forgets only what the table itself, asked for the key, says to
//! be gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fixtures::stage::{PAUSES, Time, register};
use super::fixtures::{Call, Fault, Faulty, commit_now, entry, key, placement};
use super::loader::Loader;
use super::memory::{Memory, Mode};
use super::replica::Replica;
use crate::domain::{Change, Epoch, Placement, Sequence};
use crate::store::{Commit, CommitOutcome, Expected, Journal, Placements, StoreError, Write};

struct Rig {
    store: Arc<Faulty>,
    replica: Arc<Replica>,
    stop: CancellationToken,
    loading: JoinHandle<()>,
}

async fn head(store: &Faulty) -> u64 {
    store.inner.head().await.unwrap().sequence.get()
}

/// Places a tenant whose key was `before` this.
async fn place(store: &Faulty, placement: Placement, before: Expected) {
    let change = Change::Placed { placement: placement.clone(), replaced: None };
    let writes = vec![Write::Place { placement, expect: before }];
    let entry = entry(head(store).await + 1, vec![change]);
    assert_eq!(commit_now(&store.inner, &Commit { entry, writes }), CommitOutcome::Committed);
}

async fn vacate(store: &Faulty, name: &str) {
    let placement = placement(name, "a", 1);
    let expect = Expected::from(&crate::domain::Mapping::Placed(placement.clone()));
    let writes = vec![Write::Vacate { key: key(name), epoch: Epoch::FIRST, expect }];
    let entry = entry(head(store).await + 1, vec![Change::Vacated { placement }]);
    assert_eq!(commit_now(&store.inner, &Commit { entry, writes }), CommitOutcome::Committed);
}

/// Removes all entries but the last.
async fn trim(store: &Faulty) {
    store.inner.trim(Sequence::new(head(store).await - 1)).await.unwrap();
}

impl Rig {
    /// A replica that holds the whole table: `k0` to `k9` in cell `a`.
    async fn new() -> Self {
        let store = Faulty::new();
        for (at, id) in (1..).zip(["a", "b"]) {
            register(&store.inner, id, at);
        }
        for n in 0..10 {
            place(&store, placement(&format!("k{n}"), "a", 1), Expected::Absent).await;
        }
        let clock = Time::new().clock();
        let memory = Arc::new(Memory::new(
            Mode::Whole,
            clock.clone(),
            &crate::directory::randomness::Randomness::seeded(1),
        ));
        let replica = Arc::new(Replica::new(store.clone(), memory, clock));
        let stop = CancellationToken::new();
        let loader = Loader {
            replica: replica.clone(),
            placements: store.clone(),
            pauses: PAUSES,
            randomness: crate::directory::randomness::Randomness::seeded(1),
        };
        let loading = tokio::spawn(loader.run(stop.clone()));
        let rig = Self { store, replica, stop, loading };
        rig.replica.catch_up().await.unwrap();
        rig.loaded().await;
        rig
    }

    /// `k1` goes, `k2` goes and comes back in `b`, `k10` comes; the entries that tell of it are trimmed.
    async fn behind() -> Self {
        let rig = Self::new().await;
        vacate(&rig.store, "k1").await;
        vacate(&rig.store, "k2").await;
        place(&rig.store, placement("k2", "b", 2), Expected::Vacated(Epoch::FIRST)).await;
        place(&rig.store, placement("k10", "b", 1), Expected::Absent).await;
        trim(&rig.store).await;
        rig
    }

    async fn loaded(&self) {
        let loaded = tokio::time::timeout(Duration::from_secs(60), self.replica.memory().loaded());
        loaded.await.unwrap();
        assert!(self.replica.memory().complete());
    }

    fn held(&self, name: &str) -> Option<(&'static str, bool)> {
        let held = self.replica.memory().get(name)?;
        Some((held.residence.cell.id().as_str(), held.trusted))
    }

    /// Everything is as the table says.
    fn right(&self) {
        assert_eq!(self.held("k1"), None);
        assert_eq!(self.held("k2"), Some(("b", true)));
        assert_eq!(self.held("k10"), Some(("b", true)));
        for n in [0, 3, 4, 5, 6, 7, 8, 9] {
            assert_eq!(self.held(&format!("k{n}")), Some(("a", true)), "k{n}");
        }
        assert_eq!(self.replica.memory().len(), 10);
    }

    async fn end(self) {
        self.stop.cancel();
        self.loading.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_behind_the_trimmed_entries_reads_anew() {
    let rig = Rig::behind().await;
    let as_of = rig.replica.memory().get("k1").unwrap().as_of;
    // The table does not answer yet: what is held is kept, with its age, and nothing vouches for it.
    rig.store.always(Call::Scan, Fault::Fail(StoreError::Unreachable));
    rig.replica.catch_up().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.held("k1"), Some(("a", false)));
    assert_eq!(rig.replica.memory().get("k1").unwrap().as_of, as_of);
    assert_eq!(rig.replica.memory().len(), 10);
    assert!(!rig.replica.memory().complete());
    rig.store.heal();
    rig.loaded().await;
    rig.right();
    rig.end().await;
}

/// A scan that comes back empty, as it might from a table that is being restored: each key is asked for before it is let go.
#[tokio::test(start_paused = true)]
async fn an_empty_scan_wipes_nothing() {
    let rig = Rig::behind().await;
    let asked = rig.store.count(Call::Mappings);
    rig.store.next(Call::Scan, [Some(Fault::Skip(usize::MAX))]);
    rig.replica.catch_up().await.unwrap();
    rig.loaded().await;
    assert!(rig.store.count(Call::Mappings) > asked);
    assert_eq!(rig.held("k1"), None, "the table was asked, and it is gone");
    assert_eq!(rig.held("k2"), Some(("b", true)));
    for n in [0, 3, 9] {
        assert_eq!(rig.held(&format!("k{n}")), Some(("a", true)), "k{n}");
    }
    rig.end().await;
}

/// Errors, then a page that leaves out a tenant, then answers to single keys that are lost: nothing is forgotten on the way.
#[tokio::test(start_paused = true)]
async fn errors_and_truncated_pages_wipe_nothing() {
    let rig = Rig::behind().await;
    let fail = || Some(Fault::Fail(StoreError::Throttled));
    rig.store.next(Call::Scan, [fail(), fail(), Some(Fault::Skip(1))]);
    rig.store.always(Call::Mappings, Fault::Fail(StoreError::Timeout));
    rig.replica.catch_up().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!rig.replica.memory().complete());
    for n in 0..10 {
        assert!(rig.held(&format!("k{n}")).is_some(), "k{n}");
    }
    rig.store.heal();
    rig.loaded().await;
    rig.right();
    rig.end().await;
}

/// The table says absent only for whom it was asked: a vacated key that the scan left out is let go then, not before.
#[tokio::test(start_paused = true)]
async fn a_vacated_key_goes_when_the_table_was_asked() {
    let rig = Rig::behind().await;
    let (gate, before, after) = Fault::gate();
    rig.store.next(Call::Mappings, [Some(gate)]);
    rig.replica.catch_up().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.held("k2"), Some(("b", true)), "scanned");
    assert_eq!(rig.held("k1"), Some(("a", false)), "not asked for yet");
    before.add_permits(1);
    after.add_permits(1);
    rig.loaded().await;
    rig.right();
    assert_eq!(rig.store.count(Call::Mapping), 0);
    rig.end().await;
}

/// What is committed while the scan runs is newer than what the scan may have read.
#[tokio::test(start_paused = true)]
async fn what_is_told_during_a_load_stays() {
    let rig = Rig::behind().await;
    let (gate, before, after) = Fault::gate();
    rig.store.next(Call::Scan, [Some(gate)]);
    rig.replica.catch_up().await.unwrap();
    before.add_permits(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Read by the scan, and gone before its answer comes.
    vacate(&rig.store, "k3").await;
    rig.replica.catch_up().await.unwrap();
    after.add_permits(1);
    rig.loaded().await;
    assert_eq!(rig.held("k3"), None);
    assert_eq!(rig.replica.memory().len(), 9);
    assert!(rig.store.inner.mapping(&key("k3")).await.unwrap().placement().is_none());
    rig.end().await;
}
