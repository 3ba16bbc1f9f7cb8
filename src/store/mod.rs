//! What the directory asks of its storage.
//!
//! Two narrow traits, so that a reader of placements cannot write, and no default methods, so that a wrapper that forgets one does
//! not compile. Every write states its precondition; a lost race is an outcome ([`CommitOutcome`]), not an error. Errors of the AWS SDK
//! stop in [`dynamodb`]. `tests/support/conformance` is the contract as tests, which every implementation passes.

pub mod dynamodb;
pub mod memory;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;

use cells_guard::{GuardTable, StoredGuard};
use cells_migration::{GuardCheck, Holder, Record, RecordCheck};

use crate::domain::{
    Cell, CellId, Change, Cluster, Epoch, HistoryRecord, JournalEntry, JournalId, Mapping,
    MigrationId, PartitionKey, Placement, RequestId, RequestRecord, Sequence, Timestamp,
};
use crate::migration::Findings;

/// Reads of placements. All but [`Placements::list`] and [`Placements::count`] are strongly consistent.
#[async_trait]
pub trait Placements: Send + Sync + 'static {
    /// What the table says of a key, expired placements included.
    async fn mapping(&self, key: &PartitionKey) -> Result<Mapping, StoreError>;

    /// What the table says of several different keys, at most [`MAX_KEYS`], in their order. Costs one call.
    async fn mappings(&self, keys: &[PartitionKey]) -> Vec<Result<Mapping, StoreError>>;

    /// At most `limit` placements of a cell, or of all; none twice over the pages of one listing. Which keys a cell holds may be
    /// known late, but each placement is answered as it stands.
    async fn list(
        &self,
        cell: Option<&CellId>,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError>;

    /// Placements of a cell, as far as the index knows. Reads the cell's whole index.
    async fn count(&self, cell: &CellId) -> Result<u64, StoreError>;

    /// Placements whose expiry has passed, found by examining at most `limit` items: a page may be empty and not the last.
    /// Items that cannot be read are passed over, so that one of them does not keep the rest from being found.
    async fn expired(
        &self,
        now: Timestamp,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError>;

    /// A page of all placements, found by examining at most `limit` items: it may be empty and not the last. Items that cannot be read
    /// are passed over. Each page is what the table says at some moment during the call.
    async fn scan(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError>;

    /// Past placements of a tenant, newest first.
    async fn history(
        &self,
        key: &PartitionKey,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<HistoryRecord>, StoreError>;
}

/// The journal, the registry of cells that it changes, and the records of requests. All reads are strongly consistent.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// How far the journal reaches. One that was never created is [`StoreError::Rejected`], not empty.
    async fn head(&self) -> Result<Head, StoreError>;

    /// The entries after a sequence, in order and without a gap, at most `limit`. None: there is no later entry, or the ones after
    /// `after` have been trimmed.
    async fn entries(&self, after: Sequence, limit: usize)
    -> Result<Vec<JournalEntry>, StoreError>;

    /// The last entry that has been trimmed, or is being trimmed; [`Sequence::START`] where none has.
    async fn trimmed(&self) -> Result<Sequence, StoreError>;

    /// Removes the entries up to and with `last`, which must be before the head. Before the first one goes, [`Journal::trimmed`] says
    /// so. May be repeated.
    async fn trim(&self, last: Sequence) -> Result<(), StoreError>;

    /// Gives the journal another id, on the condition that the head is as given. `false`: it is not.
    async fn rename(&self, head: Head, id: JournalId) -> Result<bool, StoreError>;

    /// All registered cells, in the order of their ids. Each stands as of its own `revision` and `counted_at`.
    async fn cells(&self) -> Result<Vec<Cell>, StoreError>;

    /// The cluster's settings, as of their own `revision`.
    async fn cluster(&self) -> Result<Cluster, StoreError>;

    /// What a request id was used for. A record whose `forget_after` has passed may still be answered, though it no longer
    /// stands in the way of [`Write::PutRequest`].
    async fn request(&self, id: &RequestId) -> Result<Option<RequestRecord>, StoreError>;

    /// Does all of a commit, or nothing.
    ///
    /// # Errors
    /// Where [`StoreError::ambiguous`] says so, the commit may have been done, or may be done yet: whether it was shows in the
    /// journal, by its nonce.
    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome, StoreError>;
}

/// Both halves, for whoever builds a directory.
#[derive(Clone)]
pub struct Store {
    pub placements: Arc<dyn Placements>,
    pub journal: Arc<dyn Journal>,
}

impl Store {
    /// Both halves of one implementation.
    pub fn of<T: Placements + Journal>(implementation: Arc<T>) -> Self {
        Self { placements: implementation.clone(), journal: implementation }
    }
}

/// How far the journal reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The last entry's; [`Sequence::START`] where there is none.
    pub sequence: Sequence,
    pub journal: JournalId,
}

/// An entry to append and the writes that go with it, done in one transaction on the condition that the journal's head is
/// just before the entry. No two writes name the same item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub entry: JournalEntry,
    pub writes: Vec<Write>,
}

/// Most keys that are read at once: DynamoDB's limit for BatchGetItem.
pub const MAX_KEYS: usize = 100;

/// Most items that a commit's writes may touch, counted by [`Write::items`]: DynamoDB allows 100 items a transaction, and the head
/// and the entry are two of them.
pub const MAX_WRITES: usize = 98;

/// Most bytes of an entry's changes, as the store encodes them: a DynamoDB item holds 400 KB.
pub const MAX_ENTRY_BYTES: usize = 300_000;

/// A write and its precondition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Gives a key its placement, where the table still says `expect` of it. Never one that `began_by` adoption: what is
    /// written has our attributes.
    Place { placement: Placement, expect: Expected },
    /// Takes a key's placement away and keeps its epoch, where the table still says `expect` of it.
    Vacate { key: PartitionKey, epoch: Epoch, expect: Expected },
    /// Nothing, where the table still says `expect` of a key.
    CheckPlacement { key: PartitionKey, expect: Expected },
    /// Adds a record of a past placement.
    AddHistory(HistoryRecord),
    /// Writes a cell's settings; its count is left alone unless `set_count`. No condition: the head's is enough.
    PutCell { cell: Cell, set_count: bool },
    /// Removes a cell and its count.
    RemoveCell(CellId),
    /// Moves the count of a cell's placements.
    AddToCount { cell: CellId, delta: i64 },
    /// Writes the cluster's settings. No condition: the head's is enough.
    PutCluster(Cluster),
    /// Records a request, where its id is not taken by a record that the entry's time does not let forget.
    PutRequest(RequestRecord),
    /// Changes one of the items of a tenant's guard in a cell.
    Guard(GuardWrite),
    /// Writes what a migration's protocol keeps, where it still is as `check` says, and with it what was found up to the record's
    /// cursor. Its wish and what is told of it stay.
    PutMigration { check: RecordCheck, record: Record, findings: Option<Findings> },
    /// The tenant can be moved again.
    EndMigration { tenant: PartitionKey, migration: MigrationId },
}

/// A change of one item of a guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardWrite {
    pub table: GuardTable,
    /// The cell that the guard is of.
    pub cell: CellId,
    pub tenant: PartitionKey,
    pub shard: u8,
    /// What the guard must be like. `None`: anything, for something else in the commit says it.
    pub check: Option<GuardCheck>,
    pub effect: GuardEffect,
}

/// What becomes of an item of a guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardEffect {
    Set(StoredGuard),
    /// Somebody else holds it.
    Hold(Holder),
    Remove,
}

/// An item that a write touches.
#[derive(PartialEq, Eq, Hash)]
enum Touched<'a> {
    Mapping(&'a PartitionKey),
    History(&'a PartitionKey, Epoch),
    Cell(&'a CellId),
    Count(&'a CellId),
    Request(&'a RequestId),
    Cluster,
    Guard(&'a str, &'a PartitionKey, u8),
    Migration(u128),
    Moving(&'a PartitionKey),
}

impl Write {
    /// How many of a transaction's items the write takes.
    pub fn items(&self) -> usize {
        let (_, second) = self.touched();
        1 + usize::from(second.is_some())
    }

    fn touched(&self) -> (Touched<'_>, Option<Touched<'_>>) {
        match self {
            Write::Place { placement, .. } => (Touched::Mapping(&placement.key), None),
            Write::Vacate { key, .. } | Write::CheckPlacement { key, .. } => {
                (Touched::Mapping(key), None)
            }
            Write::AddHistory(record) => (Touched::History(&record.key, record.epoch), None),
            Write::PutCell { cell, set_count } => {
                (Touched::Cell(&cell.id), set_count.then_some(Touched::Count(&cell.id)))
            }
            Write::RemoveCell(id) => (Touched::Cell(id), Some(Touched::Count(id))),
            Write::AddToCount { cell, .. } => (Touched::Count(cell), None),
            Write::PutRequest(record) => (Touched::Request(&record.id), None),
            Write::PutCluster(_) => (Touched::Cluster, None),
            Write::Guard(guard) => {
                (Touched::Guard(&guard.table.table_name, &guard.tenant, guard.shard), None)
            }
            Write::PutMigration { record, .. } => (Touched::Migration(record.id.0), None),
            Write::EndMigration { tenant, .. } => (Touched::Moving(tenant), None),
        }
    }
}

impl Commit {
    /// Why no store would take the commit, whatever it holds; `None` where it is well formed.
    fn malformed(&self) -> Option<&'static str> {
        if self.entry.sequence == Sequence::START {
            return Some("a journal entry cannot have the sequence 0");
        }
        if self.writes.iter().map(Write::items).sum::<usize>() > MAX_WRITES {
            return Some("a commit touches more items than a transaction allows");
        }
        let size: usize = self.entry.changes.iter().map(encoded_len).sum();
        if size > MAX_ENTRY_BYTES {
            return Some("a journal entry is larger than the store allows");
        }
        let adopts =
            |write: &Write| matches!(write, Write::Place { placement, .. } if placement.adopted());
        if self.writes.iter().any(adopts) {
            return Some("a placement cannot be written as adopted");
        }
        // DynamoDB refuses such a transaction; DynamoDB Local does it, one write after the other.
        let mut seen = HashSet::new();
        for (first, second) in self.writes.iter().map(Write::touched) {
            if !seen.insert(first) || second.is_some_and(|second| !seen.insert(second)) {
                return Some("a commit touches an item twice");
            }
        }
        None
    }
}

/// The bytes that a change takes in its entry at most, to be held against [`MAX_ENTRY_BYTES`].
pub fn encoded_len(change: &Change) -> usize {
    if let Change::Placed { placement, .. }
    | Change::Moved { placement, .. }
    | Change::Vacated { placement } = change
    {
        // A key, four cell ids at most, and numbers: at most twenty bytes each with their tags.
        return placement.key.as_str().len() + 4 * 66 + 120;
    }
    let mut counted = ByteCount(8); // tags and lengths
    match serde_json::to_writer(&mut counted, change) {
        Ok(()) => counted.0,
        // Cannot happen for these types; larger than any limit, so that it is refused and not lost.
        Err(_) => usize::MAX / (MAX_WRITES * 2),
    }
}

/// Counts what is written to it.
struct ByteCount(usize);

impl std::io::Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a write expects the table to say of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    Absent,
    Vacated(Epoch),
    Placed {
        cell: CellId,
        epoch: Epoch,
        /// The item has none of our attributes.
        adopted: bool,
        /// The migration that works on the tenant, and no other.
        migration: Option<MigrationId>,
    },
}

impl From<&Mapping> for Expected {
    fn from(mapping: &Mapping) -> Self {
        match mapping {
            Mapping::Absent => Expected::Absent,
            Mapping::Vacated(epoch) => Expected::Vacated(*epoch),
            Mapping::Placed(placement) => Expected::Placed {
                cell: placement.cell.clone(),
                epoch: placement.epoch,
                adopted: placement.adopted(),
                migration: placement.migration,
            },
        }
    }
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitOutcome {
    /// All of it was done.
    Committed,
    /// Nothing was done: the journal's head is not where the commit expects it.
    HeadMoved,
    /// Nothing was done: these writes' preconditions do not hold.
    Refused(Vec<Refusal>),
    /// Nothing was done: another transaction was at work on one of the items. Worth trying again as it is.
    Contended,
}

/// A write whose precondition does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its position in [`Commit::writes`].
    pub write: usize,
    pub found: Found,
}

/// What stands in the way of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Mapping(Mapping),
    /// The request id is taken.
    Request(RequestRecord),
    /// A guard or a migration is not as it was taken to be: somebody else has it.
    Superseded,
}

/// Why the store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Refused for its rate, and not done.
    #[error("the store throttled the request")]
    Throttled,
    /// No answer in time. A write may have been done.
    #[error("the store did not answer in time")]
    Timeout,
    /// No connection could be made, so nothing was done.
    #[error("the store could not be reached")]
    Unreachable,
    /// The store failed, or the connection broke. A write may have been done.
    #[error("the store failed")]
    Failed,
    /// The store will not do this however often it is asked: credentials, permissions, a missing table. `detail` is for logs
    /// only.
    #[error("the store rejected the request: {detail}")]
    Rejected { detail: String },
    /// A record cannot be read. `detail` names the table and the attribute.
    #[error("a stored record cannot be read: {detail}")]
    Unreadable { detail: String },
    /// A cursor is not one of this listing.
    #[error("the cursor is not of this listing")]
    ForeignCursor,
}

impl StoreError {
    /// Whether trying again may help.
    pub fn transient(&self) -> bool {
        matches!(self, Self::Throttled | Self::Timeout | Self::Unreachable | Self::Failed)
    }

    /// Whether a write that ended so may have been done, or may be done yet.
    pub fn ambiguous(&self) -> bool {
        matches!(self, Self::Timeout | Self::Failed)
    }

    /// What callers are told, without any text of AWS's: that goes to the log.
    pub fn told(&self) -> String {
        match self {
            Self::Rejected { detail } => {
                tracing::warn!(detail, "the store rejected a request");
                "the store rejected a request; the log says why".to_owned()
            }
            other => other.to_string(),
        }
    }
}

/// Where a listing goes on: opaque, and only good for the store that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub String);

/// A part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Where to go on; `None`: this was the last page.
    pub next: Option<Cursor>,
}
