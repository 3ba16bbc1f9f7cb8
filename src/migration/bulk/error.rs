//! Why a bulk is not planned, begun, found, or steered.

use cells_balance::PlanError;
use cells_balance::bulk::BulkError as Unfit;

use super::model::BulkId;
use crate::directory::{Error, Refused};
use crate::domain::{CellId, CellState};
use crate::store::StoreError;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BulkError {
    /// Of the directory: an unknown cell; a `request_id` of another request.
    #[error(transparent)]
    Directory(#[from] Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no bulk {0}")]
    NotFound(BulkId),
    /// The drain of a cell that new tenants come to would not end.
    #[error("the cell {cell} is {}, so new tenants may come", .state.as_str())]
    TakesTenants { cell: CellId, state: CellState },
    #[error("the bulk {0} is at work on that already")]
    Running(BulkId),
    /// With how many tenants stay although they were to go.
    #[error("there is nothing to move; {staying} tenants stay")]
    NothingToMove { staying: u64 },
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What the edge lets through and a bulk does not.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// It cannot be steered any more.
    #[error("the bulk {bulk} {why}")]
    NotNow { bulk: BulkId, why: &'static str },
}

impl From<Refused> for BulkError {
    fn from(refused: Refused) -> Self {
        Self::Directory(refused.into())
    }
}
