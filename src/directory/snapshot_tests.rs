//! Snapshots through the directory: what a second process answers from what the first one saved.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::facade_tests::ingredients;
use super::fixtures::stage::{Time, cell_id, new_cell};
use super::fixtures::{Call, Fault, Faulty, cell, commit_now, entry, key, placed, placement};
use super::keeper::{Keep, KeepSettings};
use super::*;
use crate::domain::{Change, Cluster, JournalId, Sequence};
use crate::store::{Commit, CommitOutcome, Journal, StoreError};

struct Process {
    directory: Directory,
    tasks: Tasks,
}

fn settings(folder: &Path) -> KeepSettings {
    KeepSettings {
        directory: folder.to_owned(),
        interval: Duration::from_secs(3600),
        tables: "tables".into(),
    }
}

impl Process {
    fn start(store: &Arc<Faulty>, time: &Time, folder: &Path, mode: MemoryMode) -> Self {
        let tasks = Tasks::new();
        let plain = ingredients(store, time);
        let keep = Keep::open(settings(folder), mode, &plain.clock);
        let settings = Settings {
            memory: mode,
            journal_poll_interval: Duration::from_millis(10),
            ..plain.settings
        };
        let ingredients = Ingredients { settings, keep: Some(keep), ..plain };
        Self { directory: Directory::start(ingredients, &tasks), tasks }
    }

    async fn stop(self) {
        assert!(self.tasks.stop(Duration::from_secs(60)).await);
    }

    async fn pin(&self, name: &str, cell: &str) {
        let placing = Placing { key: key(name), cell: cell_id(cell), since: None, expires: None };
        self.directory.pin(placing, Mutation::default()).await.unwrap();
    }

    async fn route(&self, name: &str, assign: bool) -> Result<Routed, Error> {
        let options = RouteOptions { assign, fallback: true, ..RouteOptions::default() };
        let trace = DecisionTrace::default();
        self.directory.route(RouteRequest::new(key(name), Arc::new(options), trace)).await
    }

    fn lease(&self, routed: &Routed) -> Duration {
        let now = self.directory.clock().instant();
        let until = routed.lease_until.unwrap_or(now);
        until.saturating_duration_since(now)
    }

    /// Where a tenant lives by memory: cell, age, lease.
    async fn held(&self, name: &str) -> (String, Duration, Duration) {
        let routed = self.route(name, false).await.unwrap();
        assert_eq!(routed.source, Source::Memory, "{name}");
        let age = self.directory.clock().instant().saturating_duration_since(routed.as_of);
        (routed.cell().to_string(), age, self.lease(&routed))
    }

    async fn leased(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.held(name).await.2.is_zero() {
            assert!(Instant::now() < deadline, "{name} gets no lease");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn complete(&self) {
        let memory = self.directory.shared.replica.memory();
        let loaded = tokio::time::timeout(Duration::from_secs(30), memory.loaded());
        loaded.await.unwrap();
    }
}

/// A store with `k0` to `k4`, and a folder with the snapshot of a process that was stopped.
async fn saved(mode: MemoryMode) -> (Arc<Faulty>, Time, tempfile::TempDir) {
    let (store, time, folder) = (Faulty::new(), Time::new(), tempfile::tempdir().unwrap());
    let first = Process::start(&store, &time, folder.path(), mode);
    first.directory.ready(first.tasks.stopping()).await;
    for id in ["a", "b"] {
        first.directory.create_cell(new_cell(id), Mutation::default()).await.unwrap();
    }
    for n in 0..5 {
        first.pin(&format!("k{n}"), "a").await;
    }
    first.complete().await;
    first.leased("k0").await;
    first.stop().await;
    (store, time, folder)
}

const MODES: [MemoryMode; 2] = [MemoryMode::Whole, MemoryMode::Bounded(1000)];

#[tokio::test]
async fn what_was_held_is_answered_without_the_table_with_its_age_and_no_lease() {
    for mode in MODES {
        let (store, time, folder) = saved(mode).await;
        time.pass(Duration::from_secs(7200));
        store.die(StoreError::Unreachable);
        let second = Process::start(&store, &time, folder.path(), mode);
        assert!(second.directory.peek(|_| ()).is_some(), "ready at once");
        for n in 0..5 {
            let (cell, age, lease) = second.held(&format!("k{n}")).await;
            assert_eq!((cell.as_str(), lease), ("a", Duration::ZERO));
            assert!(age >= Duration::from_secs(7200) && age < Duration::from_secs(7300), "{age:?}");
        }
        let standing = second.directory.standing().unwrap();
        assert!(standing.age >= Duration::from_secs(7200) && standing.lease.is_zero());
        for assign in [false, true] {
            let unknown = second.route("unknown", assign).await.unwrap();
            assert!(matches!(unknown.source, Source::Fallback(_)), "{:?}", unknown.source);
        }
        store.heal();
        second.leased("k0").await;
        assert!(second.held("k4").await.1 < Duration::from_secs(60));
        second.stop().await;
    }
}

/// A restart within the lease: the age rests on the wall clock, which may have been set, so it gives no lease. Nor does a read of the
/// table, for as long as this process has not heard how long leases are now.
#[tokio::test]
async fn a_quick_restart_gives_no_lease() {
    let (store, time, folder) = saved(MemoryMode::Whole).await;
    for ahead in [false, true] {
        if ahead {
            // The file is from the future, as after a wall clock was set back.
            time.pass(Duration::from_secs(3600));
            let again = Process::start(&store, &time, folder.path(), MemoryMode::Whole);
            again.leased("k0").await;
            again.stop().await;
        }
        let now = if ahead { Time::new() } else { time.clone() };
        let down = || Some(Fault::Fail(StoreError::Unreachable));
        store.ask(move |call| if call == Call::Head { down() } else { None });
        let second = Process::start(&store, &now, folder.path(), MemoryMode::Whole);
        let routed = second.route("k0", false).await.unwrap();
        assert!(second.lease(&routed).is_zero());
        assert!(second.directory.standing().unwrap().lease.is_zero());
        // Read just now, but how long leases are now is not known.
        let read = second.route(&format!("new-{ahead}"), true).await.unwrap();
        assert_ne!(read.source, Source::Memory);
        assert!(second.lease(&read).is_zero());
        store.heal();
        second.leased("k0").await;
        second.stop().await;
    }
}

/// The file is complete, so nothing is scanned: the journal tells of all that came since.
#[tokio::test]
async fn the_journal_goes_on_from_the_snapshot() {
    let (store, time, folder) = saved(MemoryMode::Whole).await;
    let other = tempfile::tempdir().unwrap();
    let meanwhile = Process::start(&store, &time, other.path(), MemoryMode::Whole);
    meanwhile.directory.ready(meanwhile.tasks.stopping()).await;
    meanwhile.directory.delete(key("k1"), None, Mutation::default()).await.unwrap();
    meanwhile.directory.delete(key("k2"), None, Mutation::default()).await.unwrap();
    meanwhile.pin("k2", "b").await;
    meanwhile.pin("k5", "b").await;
    meanwhile.stop().await;
    let scans = store.count(Call::Scan);
    let second = Process::start(&store, &time, folder.path(), MemoryMode::Whole);
    second.leased("k0").await;
    for (name, cell) in [("k0", "a"), ("k2", "b"), ("k5", "b")] {
        assert_eq!(second.held(name).await.0, cell, "{name}");
    }
    let gone = second.route("k1", false).await.unwrap_err();
    let absent = |gone: &Error| {
        matches!(gone, Error::Refused(Refused::PlacementNotFound | Refused::KnownAbsent { .. }))
    };
    assert!(absent(&gone), "{gone:?}");
    assert_eq!(store.count(Call::Scan), scans, "nothing was scanned");
    second.stop().await;
}

#[tokio::test]
async fn a_snapshot_behind_the_trimmed_entries_is_read_anew() {
    let (store, time, folder) = saved(MemoryMode::Whole).await;
    let other = tempfile::tempdir().unwrap();
    let meanwhile = Process::start(&store, &time, other.path(), MemoryMode::Whole);
    meanwhile.directory.ready(meanwhile.tasks.stopping()).await;
    meanwhile.directory.delete(key("k1"), None, Mutation::default()).await.unwrap();
    meanwhile.pin("k5", "b").await;
    meanwhile.pin("k6", "b").await;
    meanwhile.stop().await;
    let head = store.inner.head().await.unwrap().sequence;
    store.inner.trim(Sequence::new(head.get() - 1)).await.unwrap();
    let scans = store.count(Call::Scan);
    let second = Process::start(&store, &time, folder.path(), MemoryMode::Whole);
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.count(Call::Scan) == scans {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    second.complete().await;
    second.leased("k5").await;
    assert_eq!(second.held("k0").await.0, "a");
    let gone = second.route("k1", false).await.unwrap_err();
    let absent = |gone: &Error| {
        matches!(gone, Error::Refused(Refused::PlacementNotFound | Refused::KnownAbsent { .. }))
    };
    assert!(absent(&gone), "{gone:?}");
    second.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_another_journal_is_forgotten() {
    let (store, time, folder) = saved(MemoryMode::Whole).await;
    let head = store.inner.head().await.unwrap();
    assert!(store.inner.rename(head, crate::domain::JournalId::new(99)).await.unwrap());
    // As the backup knows nothing of it.
    let second = Process::start(&Faulty::new(), &time, folder.path(), MemoryMode::Whole);
    let memory = second.directory.shared.replica.memory();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !memory.is_empty() {
        assert!(Instant::now() < deadline, "the other journal's placements are still held");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    second.stop().await;
}

/// Whatever is wrong with the file or its folder, the replica starts, and from the table.
#[tokio::test]
async fn a_bad_file_is_ignored_and_replaced() {
    let (store, time, folder) = saved(MemoryMode::Whole).await;
    let file = folder.path().join("snapshot");
    let good = std::fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut older = good.clone();
    older[8] = 0;
    for bad in [&flipped[..], &older, &good[..good.len() - 1], b""] {
        std::fs::write(&file, bad).unwrap();
        let keep = Keep::open(settings(folder.path()), MemoryMode::Whole, &time.clock());
        assert!(!keep.recalled());
        drop(keep);
        let second = Process::start(&store, &time, folder.path(), MemoryMode::Whole);
        second.directory.ready(second.tasks.stopping()).await;
        second.complete().await;
        second.leased("k0").await;
        second.stop().await;
        let keep = Keep::open(settings(folder.path()), MemoryMode::Whole, &time.clock());
        assert!(keep.recalled(), "replaced by a good one");
    }
    let other = KeepSettings { tables: "others".into(), ..settings(folder.path()) };
    assert!(!Keep::open(other, MemoryMode::Whole, &time.clock()).recalled());
    // A directory that is a file.
    let keep = Keep::open(settings(&file), MemoryMode::Whole, &time.clock());
    assert!(!keep.recalled());
}

/// While the table is only read in part, the file that holds all of it stays.
#[tokio::test]
async fn a_whole_file_gives_way_to_no_part_of_it() {
    let (store, time, folder) = saved(MemoryMode::Whole).await;
    let other = tempfile::tempdir().unwrap();
    let meanwhile = Process::start(&store, &time, other.path(), MemoryMode::Whole);
    meanwhile.directory.ready(meanwhile.tasks.stopping()).await;
    for name in ["k5", "k6", "k7"] {
        meanwhile.pin(name, "b").await;
    }
    meanwhile.stop().await;
    let head = store.inner.head().await.unwrap().sequence;
    store.inner.trim(Sequence::new(head.get() - 1)).await.unwrap();
    store.always(Call::Scan, Fault::Fail(StoreError::Unreachable));
    let before = std::fs::read(folder.path().join("snapshot")).unwrap();
    let second = Process::start(&store, &time, folder.path(), MemoryMode::Whole);
    let memory = second.directory.shared.replica.memory();
    let deadline = Instant::now() + Duration::from_secs(30);
    while memory.complete() || memory.get("k0").unwrap().trusted {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    second.stop().await;
    assert_eq!(std::fs::read(folder.path().join("snapshot")).unwrap(), before);
}

#[tokio::test]
async fn a_directory_has_one_writer() {
    let (_, time, folder) = saved(MemoryMode::Whole).await;
    let first = Keep::open(settings(folder.path()), MemoryMode::Whole, &time.clock());
    let second = Keep::open(settings(folder.path()), MemoryMode::Whole, &time.clock());
    assert!(first.recalled() && second.recalled(), "both may read");
    let has_files = |keep: Keep| keep.into_parts().0.is_some();
    assert!(!has_files(second));
    assert!(has_files(first));
}

/// Memory is gone through while it changes, so it can be ahead of the registry. Entries that it has taken in change nothing.
#[tokio::test]
async fn memory_that_is_ahead_of_its_sequence_comes_out_right() {
    let (store, clock) = (Faulty::new(), Time::new().clock());
    let memory = Arc::new(Memory::new(
        MemoryMode::Whole,
        clock.clone(),
        &crate::directory::randomness::Randomness::seeded(1),
    ));
    // `k` was vacated and placed anew meanwhile; `l` came and went.
    memory.restore(&key("k"), Residence::from(&placement("k", "b", 2)));
    memory.restored(clock.instant(), true);
    let replica = Replica::new(store.clone(), Arc::clone(&memory), clock);
    let cells = vec![cell("a", 0), cell("b", 0)];
    let start = Sequence::START;
    replica.begin_with(Registry::load(
        crate::store::Head { journal: JournalId::default(), sequence: start },
        cells,
        Cluster::default(),
    ));
    let again = Change::Placed { placement: placement("k", "b", 2), replaced: None };
    let entries = [
        vec![placed("k", "a", None), placed("l", "a", None)],
        vec![Change::Vacated { placement: placement("k", "a", 1) }],
        vec![Change::Vacated { placement: placement("l", "a", 1) }],
        vec![again],
    ];
    for (sequence, changes) in (1..).zip(entries) {
        let commit = Commit { entry: entry(sequence, changes), writes: vec![] };
        assert_eq!(commit_now(&store.inner, &commit), CommitOutcome::Committed);
        replica.catch_up().await.unwrap();
        let held = memory.get("k").unwrap();
        assert_eq!((held.residence.cell.as_str(), held.residence.epoch.get()), ("b", 2));
    }
    assert!(memory.get("l").is_none());
    let registry = replica.registry().unwrap();
    let counts: Vec<_> = registry.cells().map(|cell| cell.placements).collect();
    assert_eq!(counts, [0, 1]);
    assert_eq!(store.count(Call::Cells), 0, "the registry was not read anew");
}
