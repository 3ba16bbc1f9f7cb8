//! Who reads which shard, and how far it got.
//!
//! The algorithm is that of the Kinesis Client Library and of Amazon's DynamoDB lock client: a lease has a counter that its owner
//! raises. An observer that has not seen it change for as long as a lease lasts, *by its own monotonic clock*, may take it; no two
//! clocks are ever compared. (<https://docs.aws.amazon.com/streams/latest/dev/kcl-dynamoDB.html>,
//! <https://aws.amazon.com/blogs/database/building-distributed-locks-with-the-dynamodb-lock-client/>.)
//!
//! Invariants:
//! - Every change of a lease states owner and epoch, or epoch and counter, as read. Taking raises the epoch, so a former owner can
//!   neither renew nor checkpoint.
//! - The counter rises with every change.
//! - A shard's record is made after those of its parents. So where a record was there already when a listing began, a parent without
//!   one was finished and forgotten, or was gone from the beginning.

use async_trait::async_trait;

use crate::{OwnerId, SequenceNumber, ShardId};

/// How often a lease changed hands. Never falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseEpoch(u64);

impl LeaseEpoch {
    pub const NEVER_TAKEN: Self = Self(0);

    pub const fn new(epoch: u64) -> Self {
        Self(epoch)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Epoch and counter as an observer read them: what a change of hands is conditional on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub epoch: LeaseEpoch,
    pub counter: u64,
}

/// How far a shard was accepted by the sink.
///
/// ```text
///   Horizon ──nothing there yet──► Fresh ◄── a new shard
///      │                            │  └──too long ago──┐
///      │ records                    │ records           │ gap reported
///      └──────────► After ◄─────────┤                   │
///                    │  └───────────│───trimmed─────────┤
///                    ▼              │                   ▼
///                   End ◄───────────┘       Orphan ──► Lost ──records──► After
///                                                       └──none──► LostEnd: its children are orphans
/// ```
///
/// Why `Fresh` has a time: of a shard that was read and had nothing, nothing tells later whether its first records were trimmed, since
/// TRIM_HORIZON never fails. And where a shard's listed start is no record, DynamoDB Streams may or may not take it for a position:
/// DynamoDB Local calls it trimmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// Nothing yet, and its parents went away unseen: a gap is to be reported first.
    Orphan,
    /// From the oldest record there is. Nothing is promised of what was before.
    Horizon,
    /// Nothing yet, and no record of it is older than this second of the Unix epoch. 0: no older than the ends of its parents.
    Fresh { as_of_secs: i64 },
    /// A gap was reported and nothing came since: from the oldest record there is.
    Lost,
    /// All up to this record.
    After(SequenceNumber),
    /// All there was; no record of its children is older than this second of the Unix epoch.
    End { as_of_secs: i64 },
    /// A gap was reported and nothing came since. What was trimmed may include the beginnings of its children.
    LostEnd,
}

impl Position {
    /// Whether nothing more will come.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::End { .. } | Self::LostEnd)
    }
}

/// A shard's record before anybody owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLease {
    pub shard: ShardId,
    pub parents: Vec<ShardId>,
    pub position: Position,
    /// Records made before this second of the Unix epoch are not handed on: for a group that started at the latest.
    pub since_secs: Option<i64>,
}

/// A shard's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub shard: ShardId,
    pub parents: Vec<ShardId>,
    pub position: Position,
    pub since_secs: Option<i64>,
    pub owner: Option<OwnerId>,
    pub stamp: Stamp,
}

/// What an owner shows to change its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub shard: ShardId,
    pub owner: OwnerId,
    pub epoch: LeaseEpoch,
}

/// Where a group starts, and whether the shards of that time all have their records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// `None`: at the trim horizon. Otherwise the second of the Unix epoch at which the group was first started.
    pub since_secs: Option<i64>,
    /// From then on a new shard is read from its beginning.
    pub initialised: bool,
}

/// Of a change under a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The claim held and the change is made.
    Held,
    /// The lease is another's, or gone. Nothing was changed.
    Lost,
}

/// Of an attempt to take a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    Won(Lease),
    /// Somebody changed it since it was read.
    Lost,
}

/// The records could not be reached or read. A change may have been made or not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the leases' table: {0}")]
pub struct LeaseError(pub String);

/// The records of one group for one stream. All reads are strongly consistent.
///
/// After an error a change may have been made: every one may be repeated with the same arguments, and then says `Held` or `Won` if
/// it had been made before (a release then says `Lost`, which comes to the same).
#[async_trait]
pub trait Leases: Send + Sync {
    /// Records how the group starts, if that is not recorded yet; returns what is recorded.
    async fn begin(&self, since_secs: Option<i64>) -> Result<Group, LeaseError>;

    /// Records that all shards of the group's start have their records.
    async fn initialised(&self) -> Result<(), LeaseError>;

    /// All shards' records, in any order. Not a snapshot: a change made meanwhile may be in it or not.
    async fn list(&self) -> Result<Vec<Lease>, LeaseError>;

    /// Makes a shard's record, unless there is one.
    async fn create(&self, lease: &NewLease) -> Result<(), LeaseError>;

    /// Makes `owner` the owner if the record still has this stamp; raises the epoch.
    async fn take(
        &self,
        shard: &ShardId,
        seen: Stamp,
        owner: &OwnerId,
    ) -> Result<Taken, LeaseError>;

    /// Raises the counter.
    async fn renew(&self, claim: &Claim) -> Result<Claimed, LeaseError>;

    /// Records how far the sink accepted, and raises the counter.
    async fn checkpoint(&self, claim: &Claim, position: &Position) -> Result<Claimed, LeaseError>;

    /// Leaves the lease without an owner: anybody may take it at once.
    async fn release(&self, claim: &Claim) -> Result<Claimed, LeaseError>;

    /// Deletes a record whose position is the end. Any other stays.
    async fn forget(&self, shard: &ShardId) -> Result<(), LeaseError>;
}
