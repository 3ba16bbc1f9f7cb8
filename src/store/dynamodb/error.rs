//! From the AWS SDK's errors to the store's. Nothing of the SDK goes further than this.
//!
//! What matters is whether a write may have been done: [`cells_guard::Failure`] tells.

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::types::CancellationReason;
use cells_guard::Failure;
use cells_guard::sdk::{Cancelled, cut};

use crate::store::StoreError;

pub fn from_sdk<E>(error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    from_failure(Failure::of(error))
}

pub fn from_failure(failure: Failure) -> StoreError {
    match failure {
        Failure::Throttled => StoreError::Throttled,
        Failure::Timeout => StoreError::Timeout,
        Failure::Unreachable => StoreError::Unreachable,
        Failure::Failed => StoreError::Failed,
        Failure::Rejected { detail } => StoreError::Rejected { detail },
    }
}

/// Of a transaction that was cancelled though no condition failed.
pub fn from_cancelled(reasons: &[CancellationReason]) -> StoreError {
    match Cancelled::of(reasons) {
        Cancelled::Contended | Cancelled::Throttled => StoreError::Throttled,
        Cancelled::Other(why) => rejected(why),
    }
}

/// A rejection for a reason of AWS's, cut to what a log line bears.
pub fn rejected(detail: String) -> StoreError {
    StoreError::Rejected { detail: cut(detail) }
}
