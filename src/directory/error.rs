//! Why the directory does not do what it was asked: each a value, so that the edge can answer it precisely.

use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;

use crate::domain::{CellId, CellState, Epoch, MigrationId, Placement, Timestamp};
use crate::store::StoreError;

use super::policy::Candidate;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The request cannot be done as the state stands. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The store did not answer. Nothing was changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change may have been made, or may be made yet; the store does not answer.
    #[error("the outcome of the change is not known")]
    OutcomeUnknown,
    /// More changes are waiting than the queue holds. Nothing was changed.
    #[error("too many changes are waiting")]
    Overloaded,
    /// This replica has not read the registry of cells yet, or is shutting down.
    #[error("this replica is not ready")]
    NotReady,
}

impl Error {
    /// Why a write was not done, or that nobody knows whether it was.
    pub fn of_write(error: StoreError) -> Self {
        match error.ambiguous() {
            true => Self::OutcomeUnknown,
            false => Self::Store(error),
        }
    }
}

/// Of a queue whose task is away only while this replica is not ready.
impl<T> From<TrySendError<T>> for Error {
    fn from(refused: TrySendError<T>) -> Self {
        match refused {
            TrySendError::Full(_) => Error::Overloaded,
            TrySendError::Closed(_) => Error::NotReady,
        }
    }
}

/// A precondition that does not hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("the tenant has no cell")]
    PlacementNotFound,
    /// As a read of the table and the journal since say; the table was not asked again.
    #[error("the tenant had no cell {age:?} ago")]
    KnownAbsent { age: Duration },
    #[error("the tenant's placement expired at {expired}")]
    PlacementExpired { expired: Timestamp },
    #[error("the tenant lives in {}", .existing.cell)]
    PlacementExists { existing: Box<Placement> },
    #[error("the tenant is at epoch {present}")]
    EpochMismatch { present: Epoch },
    #[error("the routing table is at epoch {}, below the epoch asked for", .present.map_or(0, Epoch::get))]
    EpochNotReached { present: Option<Epoch> },
    #[error("no cell can take the tenant")]
    NoEligibleCell { candidates: Vec<Candidate> },
    #[error("the cell {cell} does not exist")]
    CellNotFound { cell: CellId },
    #[error("the cell {cell} exists already")]
    CellExists { cell: CellId },
    #[error("the cell {cell} {why}")]
    CellNotEligible { cell: CellId, why: String },
    #[error("the cell {cell} holds placements")]
    CellNotEmpty { cell: CellId },
    #[error("the cell {cell} cannot go from {} to {}", .from.as_str(), .to.as_str())]
    StateChangeNotAllowed { cell: CellId, from: CellState, to: CellState },
    #[error("it has changed: its etag is {present}")]
    EtagMismatch { present: String },
    #[error("the tenant is being moved by migration {migration}")]
    Moving { migration: MigrationId },
    /// For a migration's worker: somebody else has the migration, or the tenant is not as it was.
    #[error("something else has changed the tenant or its migration")]
    Superseded,
    #[error("the request id was used for another request")]
    RequestIdReused,
    #[error("another change of the same item kept winning; try again")]
    Contended,
}
