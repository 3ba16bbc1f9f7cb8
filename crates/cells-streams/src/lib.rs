//! Follows the DynamoDB Stream of one table, shares its shards among several consumers, and loses nothing silently.
//!
//! It exists because the pieces that Amazon offers (the Kinesis Client Library with its DynamoDB Streams adapter) are for the JVM,
//! and because what follows a control plane's tables has to say when it missed something: a cache or a copy derived from a stream is
//! wrong for ever after a change that nobody told it of.
//!
//! ```text
//!   Streams ──list──► Planner ──actions──► Consumer ──a worker a shard──► Reader ──► Sink
//!   Leases  ──list──►    (pure)                                          (pure)      │
//!      ▲                                                                             │ accepted
//!      └──────────────── checkpoint: owner and epoch still as taken ◄────────────────┘
//! ```
//!
//! # What holds
//!
//! - **At least once.** Every change that the stream keeps until it is read is delivered. A position is recorded only after the sink
//!   accepted all up to it. Around a takeover, a crash or a lost reply, changes are delivered again.
//! - **In order.** Changes of an item come in their order: within a shard by sequence number, and a shard begins only after all of
//!   its parents are recorded as read to their end. A repeated delivery repeats what was delivered before; no change is delivered
//!   for the first time after a later one of the same item. Not so for changes that a reported gap covers, which a former owner
//!   whose sink was slow can still be delivering.
//! - **No silent gap.** Where changes were trimmed before they were read (24 hours), or a shard went away, the sink gets a [`Gap`]
//!   and accepts it before anything later of that shard. Reading goes on at the trim horizon, never at the latest. What the group
//!   never was promised is no gap: that is, what was gone when it first started. The service does not tell whether a shard of which
//!   nothing was read has lost its first records, so that is judged by age: a shard that begins more than [`Options::trusted`] after
//!   the last change before it is reported as [`GapCause::Stale`], which after a long silence of the table can be a false alarm.
//!   Two things are taken on trust: that wall clocks differ by less than `trusted` is short of 24 hours, and that ten empty reads in
//!   a row mean the open end of a shard.
//! - **One owner a shard** decides what is recorded: leases with epochs, changed by compare-and-set. A former owner (a paused
//!   process) cannot record a position, begins no delivery later than its lease allows by its own clock, and stops when it learns of
//!   its loss. No wall clock takes part in that. A shard has one reader, for a moment two: what DynamoDB Streams allows, so several groups on
//!   one stream need to be few.
//! - **Bounded.** One page of records in memory a shard; at most five reads a second a shard; each wait, retry and page count has a
//!   name in [`Options`] or a constant.
//!
//! # Groups
//!
//! Consumers of one [`GroupName`] share shards and checkpoints; groups do not know of each other. The records are in [`schema`].
//! A new group starts by [`StartAt`]; after that the checkpoints say. The stream of a table that was switched off and on again is
//! another one under the same records: shards of the old one that were not read to their end are reported as gaps. A consumer that still
//! follows the old one leaves the shards of the new one alone.
//!
//! # Sources
//!
//! - Shards and their lineage, the limits of reading:
//!   <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html>
//! - Leases: see [`lease`].

#![forbid(unsafe_code)]

mod backoff;
mod consumer;
mod dynamodb;
mod event;
mod id;
pub mod json;
pub mod lease;
mod memory;
mod options;
mod plan;
mod post;
mod reader;
pub mod schema;
mod sdk;
pub mod sink;
mod streams;
mod worker;

pub use consumer::{Consumer, Status};
pub use dynamodb::DynamoDbLeases;
pub use event::{Batch, ChangeKind, Delivery, Event, Gap, GapCause, Item, Record, Source};
pub use id::{GroupName, InvalidName, OwnerId, SequenceNumber, ShardId, StreamArn};
pub use lease::{Leases, Position};
pub use memory::MemoryLeases;
pub use options::{InvalidOptions, Options, StartAt};
pub use post::Post;
pub use sdk::SdkStreams;
pub use sink::{Sink, SinkError};
pub use streams::{
    MAX_RECORDS, ReadFrom, RecordPage, Shard, ShardIterator, ShardPage, Streams, StreamsError,
};
