//! What can go wrong, without the words of any transport.

use std::time::Duration;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option is out of its bounds.
    #[error("option {option}: {problem}")]
    InvalidOption {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The tenant has no cell, and the question was to look up only.
    #[error("the tenant has no cell")]
    NotFound,
    /// The directory refuses: the key is not valid, no cell can take the tenant, the caller may not ask. Asking again does not help.
    #[error("the directory refuses: {reason}: {message}")]
    Refused {
        /// The reason, as in `google.rpc.ErrorInfo`; documented in docs/errors.md. Empty where none came.
        reason: String,
        /// What is wrong and what to do next.
        message: String,
    },
    /// No endpoint answered in time. Nothing is known of the tenant here.
    #[error("no endpoint answered in time: {message}")]
    Unavailable {
        /// The last failure.
        message: String,
        /// When asking again may help.
        retry_after: Option<Duration>,
    },
    /// Too many different keys are being asked for at once.
    #[error("more than {limit} misses at once; ask for fewer keys at a time")]
    Overloaded {
        /// The limit.
        limit: usize,
    },
    /// No whole picture arrived within the option `connect_timeout`.
    #[error("no whole picture of the directory within {waited:?}; check the endpoints")]
    NotReady {
        /// How long it was waited.
        waited: Duration,
    },
    /// The directory has not said which tables the cell has: it provisioned none for it, or this process has not heard of them yet.
    #[error("the tables of {cell} are not known; provision it, or try again")]
    NoTables {
        /// The cell.
        cell: String,
    },
    /// The directory was closed.
    #[error("the directory is closed")]
    Closed,
}

/// How a call failed, in the terms that decide what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Another attempt, here or elsewhere, may succeed.
    Passing,
    /// The tenant has no cell.
    NotFound,
    /// The token of a Watch cannot be resumed from: begin anew.
    ResumeTokenExpired,
    /// The routing table is below the `min_epoch` of the question.
    EpochNotReached,
    /// No attempt will succeed.
    Final,
}

/// How a call to one endpoint failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to do next.
    pub kind: FailureKind,
    /// As in `google.rpc.ErrorInfo`; may be empty.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When the endpoint wants to be asked again (`google.rpc.RetryInfo`).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that another attempt may get over.
    pub fn passing(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Passing,
            reason: String::new(),
            message: message.into(),
            retry_after: None,
        }
    }

    pub(crate) fn into_error(self) -> Error {
        match self.kind {
            FailureKind::NotFound => Error::NotFound,
            FailureKind::Passing => {
                Error::Unavailable { message: self.message, retry_after: self.retry_after }
            }
            FailureKind::ResumeTokenExpired | FailureKind::EpochNotReached | FailureKind::Final => {
                Error::Refused { reason: self.reason, message: self.message }
            }
        }
    }
}
