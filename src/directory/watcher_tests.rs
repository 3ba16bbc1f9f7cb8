//! A watcher on a replica that polls when the test says so, against what the table says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::fixtures::stage::cell_id;
use super::fixtures::{Faulty, cell, entry, key, placed};
use super::replica::Replica;
use super::*;
use crate::domain::{Change, JournalEntry, Sequence};
use crate::store::{Commit, CommitOutcome, Journal, StoreError, Write};

struct Rig {
    store: Arc<Faulty>,
    replica: Arc<Replica>,
    written: u64,
}

impl Rig {
    /// A replica that keeps so many changes for its watchers, in this mode, on a table with the cell `a`.
    async fn new(mode: MemoryMode, kept: usize) -> Self {
        let store = Faulty::new();
        let memory = Arc::new(Memory::new(
            mode,
            Clock::system(),
            &crate::directory::randomness::Randomness::seeded(1),
        ));
        let replica = Replica::new(store.clone(), memory, Clock::system());
        let replica = Arc::new(replica.with_feed(feed::Feed::keeping(kept)));
        let mut rig = Self { store, replica, written: 0 };
        let cell = cell("a", 1);
        let put = Write::PutCell { cell: cell.clone(), set_count: true };
        rig.write(vec![Change::CellCreated { cell }], vec![put]).await;
        rig.poll().await;
        rig
    }

    async fn bounded(kept: usize) -> Self {
        Self::new(MemoryMode::Bounded(1000), kept).await
    }

    async fn write(&mut self, changes: Vec<Change>, writes: Vec<Write>) {
        self.written += 1;
        let commit = Commit { entry: entry(self.written, changes), writes };
        assert_eq!(self.store.inner.commit(&commit).await, Ok(CommitOutcome::Committed));
    }

    /// Journal entries that place a tenant each.
    async fn place(&mut self, count: usize) {
        for _ in 0..count {
            let name = format!("k{}", self.written + 1);
            self.write(vec![placed(&name, "a", None)], vec![]).await;
        }
    }

    async fn poll(&self) {
        self.replica.catch_up().await.unwrap();
    }

    fn watch(&self, options: WatchOptions) -> Watcher {
        Watcher::new(self.replica.clone(), self.store.store(), options).unwrap()
    }

    fn resume(&self, position: Position) -> Watcher {
        self.watch(WatchOptions { resume: Some(position), ..WatchOptions::default() })
    }
}

fn sequences(entries: &[Arc<JournalEntry>]) -> Vec<u64> {
    entries.iter().map(|entry| entry.sequence.get()).collect()
}

async fn changes(watcher: &mut Watcher) -> (Vec<u64>, bool) {
    match watcher.next().await.unwrap() {
        Piece::Changes { entries, caught_up } => (sequences(&entries), caught_up),
        other @ Piece::Snapshot { .. } => panic!("{other:?}"),
    }
}

fn changes_only() -> WatchOptions {
    WatchOptions { changes_only: true, ..WatchOptions::default() }
}

/// Cut off with its position, from which the table tells the rest, page by page and without loss.
#[tokio::test(start_paused = true)]
async fn who_reads_too_slowly_is_cut_off_and_goes_on_through_the_table() {
    let mut rig = Rig::bounded(20).await;
    let mut watcher = rig.watch(changes_only());
    assert_eq!(changes(&mut watcher).await, (vec![], true));
    rig.place(5).await;
    rig.poll().await;
    assert_eq!(changes(&mut watcher).await, ((2..=6).collect(), true));
    rig.place(250).await;
    rig.poll().await;
    assert_eq!(watcher.next().await, Err(WatchEnd::TooSlow));
    let position = watcher.position();
    assert_eq!(position.sequence.get(), 6);

    let mut resumed = rig.resume(position);
    let mut all = Vec::new();
    loop {
        let (entries, caught_up) = changes(&mut resumed).await;
        all.extend(entries);
        if caught_up {
            break;
        }
        // It goes on while it reads.
        if all.len() == 100 {
            rig.place(3).await;
            rig.poll().await;
        }
    }
    assert_eq!(all, (7..=259).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_was_trimmed_has_expired() {
    let mut rig = Rig::bounded(4).await;
    let position = rig.watch(changes_only()).position();
    rig.place(30).await;
    rig.poll().await;
    rig.store.inner.trim(Sequence::new(1)).await.unwrap();
    let mut resumed = rig.resume(position);
    assert_eq!(changes(&mut resumed).await.0, (2..=31).collect::<Vec<_>>(), "nothing is missing");
    rig.store.inner.trim(Sequence::new(10)).await.unwrap();
    assert_eq!(rig.resume(position).next().await, Err(WatchEnd::Expired));
    // What the feed keeps is told whatever the table keeps.
    let near = Position { sequence: Sequence::new(29), ..position };
    rig.store.inner.trim(Sequence::new(30)).await.unwrap();
    assert_eq!(changes(&mut rig.resume(near)).await, (vec![30, 31], true));
}

/// The table was restored, and somebody else has noticed before this replica.
#[tokio::test(start_paused = true)]
async fn entries_of_another_journal_are_not_told() {
    let mut rig = Rig::bounded(4).await;
    let position = rig.watch(changes_only()).position();
    rig.place(30).await;
    rig.poll().await;
    let head = rig.store.inner.head().await.unwrap();
    let other = crate::domain::JournalId::new(77);
    assert_eq!(rig.store.inner.rename(head, other).await, Ok(true));
    assert_eq!(rig.resume(position).next().await, Err(WatchEnd::Expired));
    rig.poll().await;
    assert_eq!(rig.resume(position).next().await, Err(WatchEnd::Expired));
    assert_eq!(rig.watch(changes_only()).position().journal, other);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_ends_what_needs_it_and_nothing_else() {
    let mut rig = Rig::bounded(4).await;
    let mut current = rig.watch(changes_only());
    let position = current.position();
    assert_eq!(changes(&mut current).await, (vec![], true));
    rig.place(2).await;
    rig.poll().await;
    rig.store.die(StoreError::Timeout);
    assert_eq!(changes(&mut current).await, (vec![2, 3], true));
    assert_eq!(changes(&mut current).await, (vec![], true), "a heartbeat");
    let failed = Err(WatchEnd::Failed(Error::Store(StoreError::Timeout)));
    assert_eq!(rig.watch(WatchOptions::default()).next().await, failed);
    rig.store.heal();
    rig.place(10).await;
    rig.poll().await;
    rig.store.die(StoreError::Timeout);
    assert_eq!(rig.resume(position).next().await, failed);
}

/// A snapshot from the table may be ahead of the replica: it is called whole only when a poll has come past it.
#[tokio::test(start_paused = true)]
async fn a_snapshot_ahead_of_the_replica_is_not_whole_yet() {
    let mut rig = Rig::bounded(1000).await;
    rig.place(3).await;
    let mut watcher = rig.watch(WatchOptions::default());
    assert!(matches!(watcher.next().await, Ok(Piece::Snapshot { .. })));
    assert_eq!(changes(&mut watcher).await, (vec![], false));
    assert_eq!(changes(&mut watcher).await, (vec![], false), "a heartbeat");
    rig.poll().await;
    assert_eq!(changes(&mut watcher).await, (vec![2, 3, 4], true));

    // Nothing new: the poll alone makes it whole, without waiting for a heartbeat.
    let mut watcher = rig.watch(WatchOptions::default());
    assert!(matches!(watcher.next().await, Ok(Piece::Snapshot { .. })));
    assert_eq!(changes(&mut watcher).await, (vec![], false));
    let began = tokio::time::Instant::now();
    let (replica, waiting) = (rig.replica.clone(), changes(&mut watcher));
    let polling = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        replica.catch_up().await.unwrap();
    };
    let (told, ()) = tokio::join!(waiting, polling);
    assert_eq!(told, (vec![], true));
    assert!(began.elapsed() < Duration::from_millis(200));
}

/// Whoever resumed ahead of the replica hears nothing twice, and is not called up to date until the replica is.
#[tokio::test(start_paused = true)]
async fn who_is_ahead_waits_for_the_replica() {
    let mut rig = Rig::bounded(1000).await;
    let present = rig.watch(changes_only()).position();
    let ahead = Position { sequence: Sequence::new(3), ..present };
    let mut watcher = rig.resume(ahead);
    assert_eq!(changes(&mut watcher).await, (vec![], false));
    rig.place(1).await;
    rig.poll().await;
    assert_eq!(changes(&mut watcher).await, (vec![], false));
    assert_eq!(watcher.position(), ahead);
    rig.place(2).await;
    rig.poll().await;
    assert_eq!(changes(&mut watcher).await, (vec![4], true));
}

/// gRPC's clients take 4 MiB by default.
#[tokio::test(start_paused = true)]
async fn no_piece_is_too_large_for_a_message() {
    let mut rig = Rig::new(MemoryMode::Whole, 65_536).await;
    let long = |n: usize| format!("{n:0>1000}");
    let memory = rig.replica.memory().clone();
    memory.begin_load();
    assert!(memory.end_load());
    for at in 0..60 {
        let changes = (0..90).map(|n| placed(&long(at * 90 + n), "a", None)).collect();
        rig.write(changes, vec![]).await;
    }
    let mut watcher = rig.watch(changes_only());
    rig.poll().await;
    let mut told = 0;
    loop {
        let Piece::Changes { entries, caught_up } = watcher.next().await.unwrap() else { panic!() };
        let changes: usize = entries.iter().map(|entry| entry.changes.len()).sum();
        assert!(changes <= 1100, "{changes} changes of a kilobyte each");
        told += changes;
        if caught_up {
            break;
        }
    }
    assert_eq!(told, 60 * 90);

    let mut watcher = rig.watch(WatchOptions::default());
    let (mut held, mut parts) = (BTreeMap::new(), 0);
    while !watcher.whole() {
        let Piece::Snapshot { placements, cells } = watcher.next().await.unwrap() else { panic!() };
        assert!(placements.len() <= 1100, "{}", placements.len());
        assert_eq!(cells.len(), usize::from(parts == 0));
        parts += 1;
        for placement in placements {
            assert!(held.insert(placement.key.clone(), placement).is_none(), "told twice");
        }
    }
    assert_eq!(held.len(), 60 * 90);
    assert!(held.contains_key(&key(&long(77))));
}

/// No message holds more cells than fit, and what waits for its turn is neither lost nor told twice.
#[tokio::test(start_paused = true)]
async fn many_cells_come_in_several_parts() {
    for mode in [MemoryMode::Whole, MemoryMode::Bounded(1000)] {
        let mut rig = Rig::new(mode, 1000).await;
        for n in 0..300 {
            let cell = cell(&format!("cell-{n}"), rig.written + 1);
            let put = Write::PutCell { cell: cell.clone(), set_count: true };
            rig.write(vec![Change::CellCreated { cell }], vec![put]).await;
        }
        rig.poll().await;
        let mut watcher = rig.watch(WatchOptions::default());
        let mut told = BTreeSet::new();
        let mut parts = Vec::new();
        while !watcher.whole() {
            let Piece::Snapshot { cells, .. } = watcher.next().await.unwrap() else { panic!() };
            parts.push(cells.len());
            for cell in cells {
                assert!(told.insert(cell.id.clone()), "{} was told twice", cell.id);
            }
        }
        assert_eq!((told.len(), parts), (301, vec![128, 128, 45]), "{mode:?}");
        assert_eq!(changes(&mut watcher).await.0, Vec::<u64>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_some_cells_is_told_of_those_who_leave() {
    let mut rig = Rig::bounded(1000).await;
    let cells = [cell_id("a")].into();
    let mut watcher = rig.watch(WatchOptions { cells, changes_only: true, ..def() });
    assert_eq!(changes(&mut watcher).await, (vec![], true));
    rig.write(vec![placed("other", "b", None)], vec![]).await;
    rig.write(vec![placed("leaves", "b", Some("a")), placed("other", "b", Some("c"))], vec![])
        .await;
    rig.write(vec![Change::CellDeleted { cell: cell_id("b") }], vec![]).await;
    rig.poll().await;
    let Piece::Changes { entries, caught_up } = watcher.next().await.unwrap() else { panic!() };
    assert_eq!((sequences(&entries), caught_up), (vec![3], true));
    assert_eq!(entries[0].changes, [placed("leaves", "b", Some("a"))]);
    assert_eq!(watcher.position().sequence.get(), 4, "told how far it is all the same");
}

fn def<T: Default>() -> T {
    T::default()
}

/// Leases of a replica: from its proof, not from the read; a longer one with the next proof.
#[tokio::test]
async fn a_lease_counts_from_the_proof() {
    let mut rig = Rig::bounded(1000).await;
    let memory = rig.replica.memory().clone();
    let lease = || memory.lease_until().checked_duration_since(memory.last_proof()).unwrap();
    assert_eq!(lease(), Duration::from_secs(5));
    let at = rig.written + 1;
    let cluster =
        crate::domain::Cluster { lease: LeaseDuration::MAX, revision: Sequence::new(at), ..def() };
    rig.write(vec![Change::ClusterUpdated { cluster: cluster.clone() }], vec![]).await;
    let before = memory.last_proof();
    // Applied, but the poll that brought it proves nothing.
    rig.replica.pull().await.unwrap();
    assert_eq!((lease(), memory.last_proof()), (Duration::from_secs(5), before));
    rig.poll().await;
    assert_eq!(lease(), Duration::from_secs(60));
    let shorter = crate::domain::Cluster {
        lease: LeaseDuration::new(Duration::from_secs(1)).unwrap(),
        revision: Sequence::new(at + 1),
        ..def()
    };
    rig.write(vec![Change::ClusterUpdated { cluster: shorter }], vec![]).await;
    rig.replica.pull().await.unwrap();
    assert_eq!(lease(), Duration::from_secs(1), "at once");
    let wait = rig.replica.leases_run_out(Instant::now()) - Instant::now();
    assert!(wait > Duration::from_secs(50), "{wait:?}");
}

/// A registry that was read ahead of the entries that are taken in knows of a longer lease, but not yet of what came before it.
#[tokio::test]
async fn a_lease_that_was_read_ahead_of_its_entry_is_not_granted() {
    let mut rig = Rig::bounded(1000).await;
    let cluster =
        crate::domain::Cluster { lease: LeaseDuration::MAX, revision: Sequence::new(3), ..def() };
    let head = rig.store.inner.head().await.unwrap();
    let mut registry = Registry::load(head, vec![], cluster.clone());
    assert_eq!(registry.lease(), Duration::ZERO);
    rig.place(1).await;
    assert!(registry.apply(&entry(2, vec![placed("k2", "a", None)])));
    assert_eq!(registry.lease(), Duration::ZERO);
    assert!(registry.apply(&entry(3, vec![Change::ClusterUpdated { cluster }])));
    assert_eq!(registry.lease(), Duration::from_secs(60));
}
