//! What an error of the SDK says of a call.
//!
//! What matters is whether a write may have been done. It was surely not where DynamoDB refused it or no connection existed
//! (see [`crate::connector`]); after a connection existed, anything but a refusal leaves that open.

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::CancellationReason;
use aws_smithy_types::retry::ErrorKind;

/// Longest text of the SDK that a `detail` takes over.
const MAX_DETAIL: usize = 400;

const THROTTLED: [&str; 4] = [
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "Throttling",
];

/// Codes of a single write that met with another one, or with a transaction, on the same item.
pub(crate) const CONTENDED: [&str; 2] =
    ["TransactionConflictException", "ReplicatedWriteConflictException"];

/// Codes of an answer whose request may have been done, or may be done yet, though they come with a 4xx status: the same
/// transaction is still at work under the same token.
const OPEN: [&str; 1] = ["TransactionInProgressException"];

/// How a call of DynamoDB failed. Of a client whose HTTP client is not a [`crate::MarkingClient`], what was never sent cannot be told
/// from what was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Not done, and worth another try: the rate was too high, or something else was at work on the item.
    #[error("dynamodb throttles")]
    Throttled,
    /// It may have been done.
    #[error("dynamodb did not answer in time")]
    Timeout,
    /// Nothing was sent.
    #[error("dynamodb cannot be reached")]
    Unreachable,
    /// It may have been done.
    #[error("dynamodb failed")]
    Failed,
    /// Refused, or never sent. The detail is for logs: it may hold what is nobody else's business.
    #[error("dynamodb refuses")]
    Rejected { detail: String },
}

impl Failure {
    /// Whether a write that ended so may have been done, or may be done yet.
    pub fn ambiguous(&self) -> bool {
        matches!(self, Self::Timeout | Self::Failed)
    }

    pub fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match error {
            SdkError::TimeoutError(_) => Self::Timeout,
            SdkError::DispatchFailure(failure) => {
                let connected = failure
                    .as_connector_error()
                    .is_some_and(|error| error.connection_metadata().is_some());
                if connected && failure.is_timeout() {
                    Self::Timeout
                } else if connected {
                    Self::Failed
                } else if failure.is_io() || failure.is_timeout() || passes(failure.as_other()) {
                    Self::Unreachable
                } else {
                    // Nothing was sent, and not for want of a network: credentials, as a rule.
                    Self::rejected(DisplayErrorContext(error).to_string())
                }
            }
            SdkError::ResponseError(_) => Self::Failed,
            SdkError::ServiceError(failure) => {
                let status = failure.raw().status().as_u16();
                Self::of_service(failure.err(), status)
            }
            SdkError::ConstructionFailure(_) => {
                Self::rejected(DisplayErrorContext(error).to_string())
            }
            _ => Self::Failed,
        }
    }

    fn of_service(error: &impl ProvideErrorMetadata, status: u16) -> Self {
        let code = error.code().unwrap_or("no error code");
        if THROTTLED.contains(&code) || CONTENDED.contains(&code) || status == 429 {
            Self::Throttled
        } else if !(400..500).contains(&status)
            || code == "InternalServerError"
            || OPEN.contains(&code)
        {
            // Among them an answer that says it was done but cannot be read.
            Self::Failed
        } else {
            Self::rejected(format!("{code}: {}", error.message().unwrap_or("no message")))
        }
    }

    pub(crate) fn rejected(detail: String) -> Self {
        Self::Rejected { detail: cut(detail) }
    }
}

/// Why a transaction was cancelled, of what is left when no condition failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// Another transaction was at work on one of the items.
    Contended,
    Throttled,
    /// As it is, it will never be done. For logs only.
    Other(String),
}

impl Cancelled {
    /// Something that passes counts first: what else is wrong shows when it is sent again.
    pub fn of(reasons: &[CancellationReason]) -> Self {
        let has = |code| reasons.iter().any(|reason| reason.code() == Some(code));
        if has("TransactionConflict") {
            Self::Contended
        } else if has("ThrottlingError") || has("ProvisionedThroughputExceeded") {
            Self::Throttled
        } else {
            let why = reasons.iter().find(|reason| reason.code() != Some("None"));
            let code = why.and_then(CancellationReason::code).unwrap_or("no code");
            let message = why.and_then(CancellationReason::message).unwrap_or("no message");
            Self::Other(cut(format!("the transaction was cancelled: {code}: {message}")))
        }
    }
}

/// Of each part of a transaction why it was cancelled, if that is what the error says.
pub fn cancellation(
    error: &SdkError<TransactWriteItemsError, HttpResponse>,
) -> Option<&[CancellationReason]> {
    match error.as_service_error()? {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => {
            Some(cancelled.cancellation_reasons())
        }
        _ => None,
    }
}

/// Whether it was this part's condition that does not hold.
pub fn condition_failed(reason: &CancellationReason) -> bool {
    reason.code() == Some("ConditionalCheckFailed")
}

/// Whether the HTTP client says of an error without a connection that it may pass: a connection that was closed as soon as it was made.
fn passes(kind: Option<ErrorKind>) -> bool {
    kind == Some(ErrorKind::TransientError)
}

/// Text of AWS's, cut to what a log line bears.
pub fn cut(mut detail: String) -> String {
    if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
        detail.truncate(end);
    }
    detail
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::error::{ConnectorError, ErrorMetadata};
    use aws_sdk_dynamodb::operation::get_item::GetItemError;

    use super::*;

    fn service(code: &str, status: u16) -> Failure {
        let error = ErrorMetadata::builder().code(code).message("m").build();
        Failure::of_service(&error, status)
    }

    #[test]
    fn service_errors_are_told_apart() {
        for code in THROTTLED.into_iter().chain(CONTENDED) {
            assert_eq!(service(code, 400), Failure::Throttled);
        }
        assert_eq!(service("InternalServerError", 500), Failure::Failed);
        assert_eq!(service("ServiceUnavailable", 503), Failure::Failed);
        assert_eq!(service("TransactionInProgressException", 400), Failure::Failed);
        for code in [
            "AccessDeniedException",
            "ResourceNotFoundException",
            "ValidationException",
            "UnrecognizedClientException",
            "ExpiredTokenException",
            "IdempotentParameterMismatchException",
        ] {
            let detail = format!("{code}: m");
            assert_eq!(service(code, 400), Failure::Rejected { detail });
        }
    }

    /// Whatever the order of the parts: what passes is tried again, and what does not is not taken for it.
    #[test]
    fn cancelled_transactions_are_told_apart() {
        let of = |codes: [&str; 3]| {
            let reason = |code| CancellationReason::builder().code(code).message("m").build();
            Cancelled::of(&codes.map(reason))
        };
        for throttled in ["ThrottlingError", "ProvisionedThroughputExceeded"] {
            assert_eq!(of(["None", throttled, "None"]), Cancelled::Throttled);
            assert_eq!(of(["ValidationError", "None", throttled]), Cancelled::Throttled);
            assert_eq!(of([throttled, "TransactionConflict", "None"]), Cancelled::Contended);
        }
        let other = "the transaction was cancelled: ValidationError: m".to_owned();
        assert_eq!(of(["None", "ValidationError", "None"]), Cancelled::Other(other));
        let none = "the transaction was cancelled: no code: no message".to_owned();
        assert_eq!(Cancelled::of(&[]), Cancelled::Other(none));
    }

    /// What never had a connection was not done. For want of one it may be tried again; for want of anything else that is no use.
    #[test]
    fn what_was_not_sent_is_told_apart() {
        let of = |error: ConnectorError| {
            let error: SdkError<GetItemError, HttpResponse> =
                SdkError::dispatch_failure(error.never_connected());
            Failure::of(&error)
        };
        // A connection that is closed at once; the client that makes it says so.
        let closed = ConnectorError::other("closed".into(), Some(ErrorKind::TransientError));
        for error in [closed, ConnectorError::io("refused".into())] {
            assert_eq!(of(error), Failure::Unreachable);
        }
        for error in [ConnectorError::user("no".into()), ConnectorError::other("no".into(), None)] {
            assert!(matches!(of(error), Failure::Rejected { .. }));
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        assert_eq!(cut("é".repeat(1000)).chars().count(), MAX_DETAIL);
    }
}
