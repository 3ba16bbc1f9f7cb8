//! The contract of the store as tests. Every implementation passes all of them.
//!
//! Each case takes a fresh, empty store from an [`Engine`]. `for_every_case!` in `tests/conformance.rs` lists them once for all engines.

mod journal;
mod migrations;
mod placements;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use cell_directory::domain::{
    Cell, CellId, CellState, Change, Endpoint, Epoch, HistoryRecord, JournalEntry, Labels, Mapping,
    Nonce, PartitionKey, Placement, PlacementEvent, Region, RequestId, RequestRecord, Sequence,
    StoredOutcome, Timestamp, Weight, WriteMode,
};
use cell_directory::migration::MigrationRecords;
use cell_directory::store::{Commit, CommitOutcome, Expected, Found, Page, Refusal, Store, Write};

pub use journal::*;
pub use migrations::*;
pub use placements::*;

/// Something that has stores.
#[async_trait]
pub trait Engine: Send + Sync {
    /// An empty store, whose journal's head is at `head`.
    async fn fresh(&self, head: Sequence) -> Fixture;

    /// What an empty store keeps of migrations.
    async fn fresh_records(&self) -> Arc<dyn MigrationRecords>;
}

/// A store, and what no store can do by itself.
pub struct Fixture {
    pub store: Store,
    pub outsider: Box<dyn Outsider>,
}

/// Somebody else's router, which writes to the same table.
#[async_trait]
pub trait Outsider: Send + Sync {
    /// Writes just a key, its cell, and what is given of an expiry.
    async fn adopt(&self, key: &PartitionKey, cell: &CellId, expires: Option<Timestamp>);
}

impl Fixture {
    async fn commit(&self, commit: &Commit) -> CommitOutcome {
        self.store.journal.commit(commit).await.unwrap()
    }

    /// Commits writes at the journal's present head.
    async fn write(&self, writes: Vec<Write>) -> CommitOutcome {
        let head = self.store.journal.head().await.unwrap();
        self.commit(&commit(head.sequence.next().get(), writes)).await
    }

    async fn must(&self, writes: Vec<Write>) {
        assert_eq!(self.write(writes).await, CommitOutcome::Committed);
    }

    async fn mapping(&self, of: &PartitionKey) -> Mapping {
        self.store.placements.mapping(of).await.unwrap()
    }

    async fn cells(&self) -> Vec<Cell> {
        self.store.journal.cells().await.unwrap()
    }

    async fn head(&self) -> u64 {
        self.store.journal.head().await.unwrap().sequence.get()
    }

    /// All pages of a listing, and how many there were. An endless one is cut off and fails.
    async fn pages(&self, cell: Option<&CellId>, limit: usize) -> (Vec<Placement>, usize) {
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = self.store.placements.list(cell, limit, after.as_ref());
            let Page { items, next } = page.await.unwrap();
            assert!(items.len() <= limit, "{} of {limit}", items.len());
            all.extend(items);
            pages += 1;
            assert!(pages < 1000, "the listing does not end");
            match next {
                Some(_) => after = next,
                None => return (all, pages),
            }
        }
    }
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(1_800_000_000 + seconds).unwrap()
}

pub fn key(text: &str) -> PartitionKey {
    PartitionKey::new(text).unwrap()
}

pub fn id(text: &str) -> CellId {
    CellId::new(text).unwrap()
}

pub fn epoch(n: u64) -> Epoch {
    Epoch::new(n).unwrap()
}

pub fn placement(of: &str, cell: &str, n: u64) -> Placement {
    Placement {
        key: key(of),
        cell: id(cell),
        epoch: epoch(n),
        write_mode: WriteMode::Direct,
        began_by: PlacementEvent::Assigned,
        created: Some(at(0)),
        updated: Some(at(1)),
        expires: None,
        migration: None,
    }
}

/// What is read of an item that somebody else wrote.
pub fn adopted(of: &str, cell: &str) -> Placement {
    Placement {
        began_by: PlacementEvent::Adopted,
        created: None,
        updated: None,
        ..placement(of, cell, 1)
    }
}

pub fn cell(name: &str, revision: u64) -> Cell {
    Cell {
        id: id(name),
        region: Region::new("eu-west-1").unwrap(),
        endpoint: Endpoint::new("https://cell.example.com").unwrap(),
        labels: Labels::new(BTreeMap::from([("tier".into(), "é 1".into())])).unwrap(),
        weight: Weight::DEFAULT,
        capacity: None,
        state: CellState::Active,
        created: at(0),
        updated: at(0),
        revision: Sequence::new(revision),
        placements: 0,
        counted_at: Sequence::new(revision),
        tables: None,
    }
}

/// Never the same twice, not even in the tests of another process.
pub fn nonce() -> Nonce {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let count = u128::from(COUNT.fetch_add(1, Ordering::Relaxed));
    let process = u128::from(std::process::id());
    Nonce::new((now.as_nanos() << 64) | (process << 32) | count)
}

pub fn entry(sequence: u64, changes: Vec<Change>) -> JournalEntry {
    JournalEntry { sequence: Sequence::new(sequence), nonce: nonce(), written: at(0), changes }
}

pub fn commit(sequence: u64, writes: Vec<Write>) -> Commit {
    let placed = writes.iter().filter_map(|write| match write {
        Write::Place { placement, .. } => {
            Some(Change::Placed { placement: placement.clone(), replaced: None })
        }
        _ => None,
    });
    let entry = entry(sequence, placed.collect());
    Commit { entry, writes }
}

pub fn place(placement: Placement, expect: Expected) -> Write {
    Write::Place { placement, expect }
}

pub fn vacate(of: &str, n: u64, expect: Expected) -> Write {
    Write::Vacate { key: key(of), epoch: epoch(n), expect }
}

pub fn expect_placed(cell: &str, n: u64, adopted: bool) -> Expected {
    Expected::Placed { cell: id(cell), epoch: epoch(n), adopted, migration: None }
}

pub fn past(of: &str, n: u64) -> HistoryRecord {
    HistoryRecord {
        key: key(of),
        epoch: epoch(n),
        cell: id("cell-a"),
        began_by: PlacementEvent::Imported,
        began: n.is_multiple_of(2).then(|| at(1)),
        ended_by: PlacementEvent::Deleted,
        ended: at(2),
    }
}

pub fn request(name: &str, digest: &str, forget_after: Timestamp) -> RequestRecord {
    RequestRecord {
        id: RequestId::new(name).unwrap(),
        method: "CellDirectory/PinPlacement".into(),
        digest: digest.into(),
        outcome: StoredOutcome::Placed(placement("tenant", "cell-a", 1)),
        forget_after,
    }
}

pub fn refused(write: usize, found: Mapping) -> CommitOutcome {
    let found = Found::Mapping(found);
    CommitOutcome::Refused(vec![Refusal { write, found }])
}
