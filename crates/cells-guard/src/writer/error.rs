//! Why a write or a read was not done.

use crate::{Failure, Unreadable};

/// Passing reasons for which DynamoDB did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    Throttled,
    /// Other transactions on the same items.
    Contended,
    Unreachable,
}

/// `E`: of who knows where tenants live.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error<E> {
    /// It is not known where the tenant lives. Nothing was written.
    #[error("{0}")]
    Route(E),
    #[error("{cell} has no table {table}")]
    UnknownTable { cell: String, table: String },
    /// A field of the request, and what is wrong with it.
    #[error("{field} {problem}")]
    Invalid { field: String, problem: String },
    /// The number of the write whose condition does not hold. Nothing was written.
    #[error("the condition of write {write} does not hold")]
    ConditionFailed { write: usize },
    /// The tenant has no guard in its cell, and there is no lease for a direct write. Nothing was written.
    #[error("the tenant has no guard in {cell}")]
    GuardMissing { cell: String },
    /// None of the cell's tables can hold a guard, and there is no lease. Nothing was written.
    #[error("{cell} can hold no guards, and the placement's lease is too short for a direct write")]
    Unguarded { cell: String },
    /// The tenant is just about to move, and was so until the deadline. Nothing was written.
    #[error("the tenant is about to leave {cell}, or has not arrived in it")]
    Fenced { cell: String },
    /// The tenant moved on more often than is followed. Nothing was written.
    #[error("the tenant keeps moving")]
    Moving,
    /// Nothing was written.
    #[error("dynamodb is busy, or cannot be reached")]
    Busy(Busy),
    /// DynamoDB refuses. Nothing was written.
    #[error(transparent)]
    Refused(Failure),
    /// Within ten minutes the call's id was used for other writes, or for these before a move of the tenant began or ended. This call
    /// wrote nothing; that one may have.
    #[error("the id was used for another transaction")]
    IdUsed,
    /// The write may have been done, or may be done yet.
    #[error("the outcome of the write is not known")]
    Unknown,
    /// The guard cannot be read. Nothing was written.
    #[error("the tenant's guard cannot be read: {0}")]
    Unreadable(#[from] Unreadable),
}

impl<E> Error<E> {
    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }
}
