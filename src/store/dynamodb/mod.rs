//! The store on DynamoDB, and on whatever speaks its protocol.
//!
//! Two tables: `CellMappings`, which other people's clients may read and may have written ([`mapping`]), and `CellControl` with all
//! else ([`schema`] lists its records, [`records`] writes and reads them). A commit is one transaction ([`commit`]).
//! Invariants: no call is made without a deadline ([`client`]), nor repeated in here but for keys that a batch left over; no error
//! of the SDK leaves ([`error`]); no key and no item enters a log or a span ([`call`]).

mod attributes;
mod bulks;
mod call;
mod cells;
pub mod client;
mod commit;
mod cursor;
pub mod entry;
mod error;
#[cfg(test)]
mod faults;
mod guards;
mod journal;
mod loads;
mod mapping;
mod migrations;
mod placements;
mod records;
pub mod schema;
#[cfg(test)]
mod strategies;
pub mod tables;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Builder;

pub use client::{DynamoDbOptions, connect};
pub use error::{from_failure, from_sdk};
pub use schema::TableNames;

/// What the store is told of its surroundings.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Longest wait for the answer of a commit. Reads wait as long as the client says.
    pub commit_timeout: Duration,
    /// How long after a placement's expiry the storage's own TTL may delete it. Long enough for a sweeper to retire it first, or
    /// its epoch is lost.
    pub ttl_grace: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            commit_timeout: DynamoDbOptions::default().commit_timeout,
            ttl_grace: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Placements and journal in two tables of DynamoDB.
#[derive(Debug)]
pub struct DynamoDbStore {
    client: Client,
    names: TableNames,
    settings: StoreSettings,
    /// Found out once: an adopted `CellMappings` may have no index by cell, and is scanned instead.
    index_missing: AtomicBool,
}

impl DynamoDbStore {
    /// `client` as made by [`connect`]: without retries, with a deadline on every call.
    pub fn new(client: Client, names: TableNames, settings: StoreSettings) -> Self {
        Self { client, names, settings, index_missing: AtomicBool::new(false) }
    }

    /// What is different for a commit: it may take longer than a read.
    fn commit_config(&self) -> Builder {
        let mut builder = Builder::new();
        let timeout = self.settings.commit_timeout;
        builder.set_timeout_config(Some(client::call_timeouts(timeout)));
        builder
    }
}

/// A page size as the API takes it, at most `most`.
fn page_size(limit: usize, most: i32) -> i32 {
    i32::try_from(limit).unwrap_or(most).clamp(1, most)
}
