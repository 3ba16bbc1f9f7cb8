//! The stream as a consumer needs it: three calls and what can go wrong with them.
//!
//! Why a trait: the tests' model of a stream misbehaves in ways that no real one can be made to.

use async_trait::async_trait;

use crate::{Record, SequenceNumber, ShardId, StreamArn};

/// A shard as DescribeStream lists it.
///
/// DynamoDB names one parent at most; a merge, which has two, is allowed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    pub id: ShardId,
    pub parents: Vec<ShardId>,
    /// Where the shard starts. Not necessarily a record's number.
    pub start: Option<SequenceNumber>,
    /// Where it ends; `None` while it is open.
    pub end: Option<SequenceNumber>,
}

/// A part of the list of shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPage {
    pub shards: Vec<Shard>,
    /// Where the list goes on, if it does.
    pub next: Option<ShardId>,
}

/// Where to start reading. There is no "latest" on purpose: see the crate's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadFrom {
    TrimHorizon,
    After(SequenceNumber),
}

/// A place in a shard that one call can read from. Good for 15 minutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIterator(String);

impl ShardIterator {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Records in the shard's order, possibly none.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordPage {
    pub records: Vec<Record>,
    /// `None`: the shard is closed and this was its end.
    pub next: Option<ShardIterator>,
}

/// Why a call was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamsError {
    #[error("the iterator is older than 15 minutes")]
    ExpiredIterator,
    #[error("the position is older than what the stream keeps")]
    Trimmed,
    #[error("the stream has no such shard, or there is no such stream")]
    NotFound,
    #[error("the service asks for fewer calls")]
    Throttled,
    /// May pass by itself.
    #[error("the call failed: {0}")]
    Failed(String),
    /// Will not pass by itself: somebody has to look at permissions or settings.
    #[error("the call was refused, check permissions: {0}")]
    Rejected(String),
}

/// Most records that one call asks for: GetRecords' own limit.
pub const MAX_RECORDS: i32 = 1000;

/// One account's DynamoDB Streams in one Region.
#[async_trait]
pub trait Streams: Send + Sync {
    /// A page of the stream's shards, in any order, after the one that the last page named.
    async fn describe(
        &self,
        stream: &StreamArn,
        after: Option<&ShardId>,
    ) -> Result<ShardPage, StreamsError>;

    /// An iterator into a shard.
    async fn iterator(
        &self,
        stream: &StreamArn,
        shard: &ShardId,
        from: &ReadFrom,
    ) -> Result<ShardIterator, StreamsError>;

    /// Records from an iterator on, [`MAX_RECORDS`] at most.
    async fn records(&self, iterator: &ShardIterator) -> Result<RecordPage, StreamsError>;
}
