//! From the AWS SDK's errors to the store's. Nothing of the SDK goes further than this.
//!
//! What matters is whether a write may have been done. It was surely not where DynamoDB refused it or no connection existed
//! (see [`super::connector`]); after a connection existed, anything but a refusal leaves that open.

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_types::retry::ErrorKind;

use crate::store::StoreError;

/// Longest text of the SDK that a `detail` takes over.
const MAX_DETAIL: usize = 400;

const THROTTLED: [&str; 4] = [
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "Throttling",
];

/// Codes of an answer whose request may have been done, or may be done yet, though they come with a 4xx status: the same
/// transaction is still at work under the same token.
const OPEN: [&str; 1] = ["TransactionInProgressException"];

pub fn from_sdk<E>(error: &SdkError<E, HttpResponse>) -> StoreError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => StoreError::Timeout,
        SdkError::DispatchFailure(failure) => {
            let connected = failure
                .as_connector_error()
                .is_some_and(|error| error.connection_metadata().is_some());
            if connected && failure.is_timeout() {
                StoreError::Timeout
            } else if connected {
                StoreError::Failed
            } else if failure.is_io() || failure.is_timeout() || passes(failure.as_other()) {
                StoreError::Unreachable
            } else {
                // Nothing was sent, and not for want of a network: credentials, as a rule.
                rejected(DisplayErrorContext(error).to_string())
            }
        }
        SdkError::ResponseError(_) => StoreError::Failed,
        SdkError::ServiceError(failure) => {
            let status = failure.raw().status().as_u16();
            from_service(failure.err(), status)
        }
        SdkError::ConstructionFailure(_) => rejected(DisplayErrorContext(error).to_string()),
        _ => StoreError::Failed,
    }
}

/// Whether the HTTP client says of an error without a connection that it may pass: a connection that was closed as soon as it was made.
fn passes(kind: Option<ErrorKind>) -> bool {
    kind == Some(ErrorKind::TransientError)
}

fn from_service(error: &impl ProvideErrorMetadata, status: u16) -> StoreError {
    let code = error.code().unwrap_or("no error code");
    if THROTTLED.contains(&code) || status == 429 {
        StoreError::Throttled
    } else if !(400..500).contains(&status) || code == "InternalServerError" || OPEN.contains(&code)
    {
        // Among them an answer that says it was done but cannot be read.
        StoreError::Failed
    } else {
        rejected(format!("{code}: {}", error.message().unwrap_or("no message")))
    }
}

/// A rejection for a reason of AWS's, cut to what a log line bears.
pub fn rejected(mut detail: String) -> StoreError {
    if let Some((end, _)) = detail.char_indices().nth(MAX_DETAIL) {
        detail.truncate(end);
    }
    StoreError::Rejected { detail }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::error::{ConnectorError, ErrorMetadata};
    use aws_sdk_dynamodb::operation::get_item::GetItemError;

    use super::*;

    fn service(code: &str, status: u16) -> StoreError {
        let error = ErrorMetadata::builder().code(code).message("m").build();
        from_service(&error, status)
    }

    #[test]
    fn service_errors_are_told_apart() {
        for code in THROTTLED {
            assert_eq!(service(code, 400), StoreError::Throttled);
        }
        assert_eq!(service("InternalServerError", 500), StoreError::Failed);
        assert_eq!(service("ServiceUnavailable", 503), StoreError::Failed);
        assert_eq!(service("TransactionInProgressException", 400), StoreError::Failed);
        for code in [
            "AccessDeniedException",
            "ResourceNotFoundException",
            "ValidationException",
            "UnrecognizedClientException",
            "ExpiredTokenException",
            "IdempotentParameterMismatchException",
        ] {
            let detail = format!("{code}: m");
            assert_eq!(service(code, 400), StoreError::Rejected { detail });
        }
    }

    /// What never had a connection was not done. For want of one it may be tried again; for want of anything else that is no use.
    #[test]
    fn what_was_not_sent_is_told_apart() {
        let of = |error: ConnectorError| {
            let error: SdkError<GetItemError, HttpResponse> =
                SdkError::dispatch_failure(error.never_connected());
            from_sdk(&error)
        };
        // A connection that is closed at once; the client that makes it says so.
        let closed = ConnectorError::other("closed".into(), Some(ErrorKind::TransientError));
        for error in [closed, ConnectorError::io("refused".into())] {
            assert_eq!(of(error), StoreError::Unreachable);
        }
        for error in [ConnectorError::user("no".into()), ConnectorError::other("no".into(), None)] {
            assert!(matches!(of(error), StoreError::Rejected { .. }));
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let StoreError::Rejected { detail } = rejected("é".repeat(1000)) else { panic!() };
        assert_eq!(detail.chars().count(), MAX_DETAIL);
    }
}
