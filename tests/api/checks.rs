//! What every error must be like.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Takes the error of a call that must have failed, and holds it against what every error of the API must have.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
) -> ErrorDetails {
    refusal(&answer.expect_err("a refusal"), code, reason)
}

#[track_caller]
pub fn refusal(status: &Status, code: Code, reason: &str) -> ErrorDetails {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(
        (status.code(), info.reason.as_str(), info.domain.as_str()),
        (code, reason, "cells.v1"),
        "{status:?}"
    );
    assert!(!status.message().is_empty(), "{status:?}");
    for foreign in ["Exception", "aws", "dynamodb", "panicked"] {
        assert!(!status.message().contains(foreign), "{status:?}");
    }
    details
}

/// The same for INVALID_ARGUMENT in a field: BadRequest names it, and only it.
#[track_caller]
pub fn invalid<T: std::fmt::Debug>(answer: Result<T, Status>, reason: &str, field: &str) {
    let details = refused(answer, Code::InvalidArgument, reason);
    let violations = details.bad_request().map(|bad| bad.field_violations.clone());
    let violations = violations.unwrap_or_default();
    let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [field]);
    assert!(!violations[0].description.is_empty());
}

/// Kind, subject and description of each PreconditionFailure violation.
pub fn violations(details: &ErrorDetails) -> Vec<(String, String, String)> {
    let failure = details.precondition_failure().expect("a PreconditionFailure");
    let violations = failure.violations.iter();
    violations.map(|v| (v.r#type.clone(), v.subject.clone(), v.description.clone())).collect()
}
