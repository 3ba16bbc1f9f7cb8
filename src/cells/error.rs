//! Why the cells' side does not do what it was asked.

use super::check::Violation;
use super::cloud::CloudError;
use super::operation::OperationId;
use super::table_set::TableSetId;
use crate::directory;
use crate::domain::CellId;
use crate::store::StoreError;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CellsError {
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// AWS would refuse it. Not empty.
    #[error("the table set cannot be had on AWS")]
    Invalid(Vec<Violation>),
    #[error("table set {} does not exist", .0.as_str())]
    TableSetNotFound(TableSetId),
    #[error("operation {} does not exist", .0.as_str())]
    OperationNotFound(OperationId),
    #[error("the table set has changed: its etag is {present:?}")]
    EtagMismatch { present: String },
    #[error("operation {} is at work on {cell}", .operation.as_str())]
    Busy { cell: CellId, operation: OperationId },
    #[error("{cell} has no tables of a table set")]
    NotProvisioned { cell: CellId },
    /// What stands in the way of removing a cell's tables.
    #[error("{cell} is in use")]
    InUse { cell: CellId, obstacles: Vec<String> },
    #[error("the usage cannot be analysed: {problem}")]
    NotAnalyzed { problem: String },
    #[error("{cell} has no backup of this name")]
    BackupNotFound { cell: CellId },
    /// Why what was asked for cannot be restored.
    #[error("{cell} cannot be restored from this")]
    NotRestorable { cell: CellId, obstacles: Vec<String> },
    #[error("{cell} had no such drill")]
    DrillNotFound { cell: CellId },
    #[error("the request id was used for another request")]
    RequestIdReused,
}
