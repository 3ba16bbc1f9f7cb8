//! What is kept in `CellControl` of loads: whose turn it is to measure, and what was measured.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::{CellId, CellLoad, Timestamp};
use crate::store::StoreError;

/// What was measured of a cell, and until when what was counted of its tables has been published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadRecord {
    pub cell: CellId,
    /// When this was written; tells one version of the record from another.
    pub at: Timestamp,
    /// `None`: nothing is known of the cell's tables, or it has none.
    pub load: Option<CellLoad>,
    /// Minutes that begin before this, in seconds since 1970, are published or never will be.
    pub published: Option<i64>,
}

#[async_trait]
pub trait LoadRecords: Send + Sync + 'static {
    /// All that was measured, in the order of the cells' ids; that of cells which are gone, too, for a while.
    async fn loads(&self) -> Result<Vec<LoadRecord>, StoreError>;

    /// Writes what was measured in place of the record that was written at `replaces`, or of none. `false`: it is another one by now.
    async fn put_load(
        &self,
        record: &LoadRecord,
        replaces: Option<Timestamp>,
    ) -> Result<bool, StoreError>;

    /// Takes a turn. `false`: somebody else has it, or a later one. A turn that is further ahead than `ahead` was taken by a clock that was
    /// wrong, and counts for nothing.
    async fn take_turn(&self, turn: i64, ahead: i64) -> Result<bool, StoreError>;
}
