//! What is kept of bulks. Every write states its precondition; a lost race is a value.

use async_trait::async_trait;
use cells_balance::bulk::{Changes, Chunk, Header};

use super::model::{BulkId, BulkProgress, BulkRecord};
use crate::domain::Timestamp;
use crate::store::{Cursor, Page, StoreError};

/// What became of a new bulk.
#[derive(Debug, Clone, PartialEq)]
pub enum BulkBegun {
    Begun,
    /// There is one of this id.
    Exists(Box<BulkRecord>),
    /// Another one drains the cell, or rebalances.
    Running(BulkId),
}

/// The stored part of a bulk that says that a migration is to be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub bulk: BulkId,
    pub generation: u64,
    /// The chunk's number and revision.
    pub chunk: u64,
    pub revision: u64,
}

#[async_trait]
pub trait BulkRecords: Send + Sync + 'static {
    /// Begins a bulk with its tenants, where none drains the same cell, or rebalances, too.
    async fn begin_bulk(
        &self,
        record: &BulkRecord,
        chunks: &[Chunk],
    ) -> Result<BulkBegun, StoreError>;

    async fn bulk(&self, id: BulkId) -> Result<Option<BulkRecord>, StoreError>;

    /// A bulk's tenants, in the order of the chunks.
    async fn chunks(&self, record: &BulkRecord) -> Result<Vec<Chunk>, StoreError>;

    /// Bulks that have not ended.
    async fn active_bulks(&self) -> Result<Vec<BulkId>, StoreError>;

    /// Bulks, the newest first. One that began long ago may be left out.
    async fn bulks(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<BulkRecord>, StoreError>;

    /// Raises the worker's number by one where it is still `worker`, and answers the new one; `None`: somebody else was first.
    async fn take_bulk(&self, id: BulkId, worker: u64) -> Result<Option<u64>, StoreError>;

    /// A sign of life, and how far it is. Answers the bulk as it is now; `None`: another worker has it.
    async fn beat_bulk(
        &self,
        id: BulkId,
        worker: u64,
        progress: &BulkProgress,
        now: Timestamp,
    ) -> Result<Option<BulkRecord>, StoreError>;

    /// Stores what a worker changed, where it still has the bulk and each part is as it was. `false`: one is not, and what is stored has to be
    /// read again.
    ///
    /// # Errors
    /// Some of it may have been stored.
    async fn save_bulk(
        &self,
        record: &BulkRecord,
        changes: &Changes,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Stores what an operator changed of the header, where it still has the revision before. `false`: it has not.
    async fn steer_bulk(
        &self,
        id: BulkId,
        header: &Header,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}
