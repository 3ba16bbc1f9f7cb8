//! The one place that makes errors into statuses.
//!
//! Every status carries `google.rpc.ErrorInfo` with a reason from [`Reason`], documented in `docs/errors.md`; `BadRequest` names the
//! field, `RetryInfo` comes where waiting helps, `PreconditionFailure` where several things stand in the way. No text of the store
//! reaches a caller.

mod bulk;
mod migration;

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt};

use crate::cells::data::DataError;
use crate::cells::{CellsError, CloudError, Violation};
use crate::directory::policy::Standing;
use crate::directory::{Error, Refused};
use crate::domain::{CellId, Invalid};
use crate::proto::v1::KeyError;
use crate::store::StoreError;

/// `google.rpc.ErrorInfo.domain`.
pub const DOMAIN: &str = "cells.v1";

/// When to try again what failed for a passing reason.
const SOON: Duration = Duration::from_millis(200);

/// Most cells that a status explains.
const MAX_VIOLATIONS: usize = 50;

macro_rules! reasons {
    ($($name:ident = $text:literal: $code:ident,)*) => {
        /// Why a call failed. The texts are part of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Reason { $($name,)* }

        impl Reason {
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }

            pub fn code(self) -> Code {
                match self { $(Reason::$name => Code::$code,)* }
            }
        }
    };
}

reasons! {
    InvalidPartitionKey = "INVALID_PARTITION_KEY": InvalidArgument,
    InvalidCellId = "INVALID_CELL_ID": InvalidArgument,
    InvalidRequestId = "INVALID_REQUEST_ID": InvalidArgument,
    InvalidRegion = "INVALID_REGION": InvalidArgument,
    InvalidEndpoint = "INVALID_ENDPOINT": InvalidArgument,
    InvalidLabels = "INVALID_LABELS": InvalidArgument,
    InvalidWeight = "INVALID_WEIGHT": InvalidArgument,
    InvalidEtag = "INVALID_ETAG": InvalidArgument,
    InvalidTime = "INVALID_TIME": InvalidArgument,
    InvalidUpdateMask = "INVALID_UPDATE_MASK": InvalidArgument,
    InvalidPageSize = "INVALID_PAGE_SIZE": InvalidArgument,
    InvalidPageToken = "INVALID_PAGE_TOKEN": InvalidArgument,
    InvalidBatchSize = "INVALID_BATCH_SIZE": InvalidArgument,
    InvalidLeaseDuration = "INVALID_LEASE_DURATION": InvalidArgument,
    InvalidResumeToken = "INVALID_RESUME_TOKEN": InvalidArgument,
    UnknownEnumValue = "UNKNOWN_ENUM_VALUE": InvalidArgument,
    InvalidItem = "INVALID_ITEM": InvalidArgument,
    InvalidWindow = "INVALID_WINDOW": InvalidArgument,
    InvalidAck = "INVALID_ACK": InvalidArgument,
    InvalidTableSet = "INVALID_TABLE_SET": InvalidArgument,
    InvalidOperationId = "INVALID_OPERATION_ID": InvalidArgument,
    InvalidMigrationId = "INVALID_MIGRATION_ID": InvalidArgument,
    InvalidBulkId = "INVALID_BULK_ID": InvalidArgument,
    InvalidUtilisation = "INVALID_UTILISATION": InvalidArgument,
    InvalidLimit = "INVALID_LIMIT": InvalidArgument,
    InvalidDuration = "INVALID_DURATION": InvalidArgument,
    InvalidRateLimit = "INVALID_RATE_LIMIT": InvalidArgument,
    MissingField = "MISSING_FIELD": InvalidArgument,
    MalformedMessage = "MALFORMED_MESSAGE": InvalidArgument,
    RequestIdReused = "REQUEST_ID_REUSED": InvalidArgument,
    PlacementNotFound = "PLACEMENT_NOT_FOUND": NotFound,
    PlacementExpired = "PLACEMENT_EXPIRED": NotFound,
    CellNotFound = "CELL_NOT_FOUND": NotFound,
    TableNotFound = "TABLE_NOT_FOUND": NotFound,
    TableSetNotFound = "TABLE_SET_NOT_FOUND": NotFound,
    OperationNotFound = "OPERATION_NOT_FOUND": NotFound,
    BackupNotFound = "BACKUP_NOT_FOUND": NotFound,
    DrillNotFound = "DRILL_NOT_FOUND": NotFound,
    MigrationNotFound = "MIGRATION_NOT_FOUND": NotFound,
    BulkNotFound = "BULK_NOT_FOUND": NotFound,
    PlacementExists = "PLACEMENT_EXISTS": AlreadyExists,
    CellExists = "CELL_EXISTS": AlreadyExists,
    EpochMismatch = "EPOCH_MISMATCH": Aborted,
    EtagMismatch = "ETAG_MISMATCH": Aborted,
    Contended = "CONTENDED": Aborted,
    WatchTooSlow = "WATCH_TOO_SLOW": Aborted,
    EpochNotReached = "EPOCH_NOT_REACHED": FailedPrecondition,
    NoEligibleCell = "NO_ELIGIBLE_CELL": FailedPrecondition,
    CellNotEligible = "CELL_NOT_ELIGIBLE": FailedPrecondition,
    CellNotEmpty = "CELL_NOT_EMPTY": FailedPrecondition,
    OperationRunning = "OPERATION_RUNNING": FailedPrecondition,
    CellInUse = "CELL_IN_USE": FailedPrecondition,
    ConditionFailed = "CONDITION_FAILED": FailedPrecondition,
    CellNotProvisioned = "CELL_NOT_PROVISIONED": FailedPrecondition,
    NotRestorable = "NOT_RESTORABLE": FailedPrecondition,
    KeysDiffer = "KEYS_DIFFER": FailedPrecondition,
    TooManyCells = "TOO_MANY_CELLS": FailedPrecondition,
    MigrationRunning = "MIGRATION_RUNNING": FailedPrecondition,
    MigrationObstructed = "MIGRATION_OBSTRUCTED": FailedPrecondition,
    SameCell = "SAME_CELL": FailedPrecondition,
    SchemasDiffer = "SCHEMAS_DIFFER": FailedPrecondition,
    NoGuardTable = "NO_GUARD_TABLE": FailedPrecondition,
    CellApart = "CELL_APART": FailedPrecondition,
    TargetNotEmpty = "TARGET_NOT_EMPTY": FailedPrecondition,
    ItemsTooLarge = "ITEMS_TOO_LARGE": FailedPrecondition,
    NotRecoverable = "NOT_RECOVERABLE": FailedPrecondition,
    NoStream = "NO_STREAM": FailedPrecondition,
    FreezeNotConfigured = "FREEZE_NOT_CONFIGURED": FailedPrecondition,
    FreezeProbeRefused = "FREEZE_PROBE_REFUSED": FailedPrecondition,
    CellTakesTenants = "CELL_TAKES_TENANTS": FailedPrecondition,
    BulkRunning = "BULK_RUNNING": FailedPrecondition,
    NothingToMove = "NOTHING_TO_MOVE": FailedPrecondition,
    InstructionNotAllowed = "INSTRUCTION_NOT_ALLOWED": FailedPrecondition,
    AwsRefused = "AWS_REFUSED": FailedPrecondition,
    ResumeTokenExpired = "RESUME_TOKEN_EXPIRED": FailedPrecondition,
    StateChangeNotAllowed = "STATE_CHANGE_NOT_ALLOWED": FailedPrecondition,
    MessageTooLarge = "MESSAGE_TOO_LARGE": ResourceExhausted,
    HeadersTooLarge = "HEADERS_TOO_LARGE": ResourceExhausted,
    TooManyChanges = "TOO_MANY_CHANGES": ResourceExhausted,
    Overloaded = "OVERLOADED": ResourceExhausted,
    DeadlineExceeded = "DEADLINE_EXCEEDED": DeadlineExceeded,
    OutcomeUnknown = "OUTCOME_UNKNOWN": DeadlineExceeded,
    Cancelled = "CANCELLED": Cancelled,
    StoreThrottled = "STORE_THROTTLED": Unavailable,
    StoreTimeout = "STORE_TIMEOUT": Unavailable,
    StoreUnavailable = "STORE_UNAVAILABLE": Unavailable,
    StoreRejected = "STORE_REJECTED": Unavailable,
    AwsBusy = "AWS_BUSY": Unavailable,
    NoLease = "NO_LEASE": Unavailable,
    GuardMissing = "GUARD_MISSING": Unavailable,
    TenantMoving = "TENANT_MOVING": Unavailable,
    NotReady = "NOT_READY": Unavailable,
    ShuttingDown = "SHUTTING_DOWN": Unavailable,
    RecordUnreadable = "RECORD_UNREADABLE": DataLoss,
    MethodNotFound = "METHOD_NOT_FOUND": Unimplemented,
    AwsUnsupported = "AWS_UNSUPPORTED": Unimplemented,
    EncodingNotSupported = "ENCODING_NOT_SUPPORTED": Unimplemented,
}

/// Why a call, or one of its keys, failed, before it is put on the wire.
#[derive(Debug, Clone)]
pub struct Fault {
    reason: Reason,
    message: String,
    /// The request's fields that are wrong, each with what is wrong with it.
    fields: Vec<(String, String)>,
    retry_after: Option<Duration>,
    metadata: Vec<(&'static str, String)>,
    violations: Vec<PreconditionViolation>,
}

impl Fault {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            fields: Vec::new(),
            retry_after: None,
            metadata: Vec::new(),
            violations: Vec::new(),
        }
    }

    /// A fault in a field of the request.
    pub fn field(
        reason: Reason,
        field: impl Into<String>,
        problem: impl std::fmt::Display,
    ) -> Self {
        let field = field.into();
        let mut fault = Self::new(reason, format!("{field} {problem}"));
        fault.fields = vec![(field, fault.message.clone())];
        fault
    }

    /// A value that is not of its type, in a field of the request.
    pub fn invalid(field: impl Into<String>, invalid: &Invalid) -> Self {
        let known = Reason::ALL.iter().find(|reason| reason.as_str() == invalid.reason);
        Self::field(*known.unwrap_or(&Reason::MalformedMessage), field, &invalid.problem)
    }

    /// A page token that is damaged, or of another listing.
    pub fn not_a_page_token() -> Self {
        Self::field(
            Reason::InvalidPageToken,
            "page_token",
            "is not a token of this query; send next_page_token as it was answered, or nothing to start over",
        )
    }

    /// The server is overloaded: the call was not begun. `retry_after` should differ from call to call.
    pub fn overloaded(retry_after: Duration) -> Self {
        Self::new(
            Reason::Overloaded,
            "the server is overloaded; nothing was changed, wait before trying again or try another replica",
        )
        .retry(retry_after)
    }

    fn retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub fn reason(&self) -> Reason {
        self.reason
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name, value.to_string()));
        self
    }

    /// With what stands in the way of a cell.
    fn obstructed(mut self, cell: &CellId, obstacles: Vec<String>) -> Self {
        let obstacles = obstacles.into_iter().take(MAX_VIOLATIONS);
        self.violations =
            obstacles.map(|why| PreconditionViolation::new("CELL", cell.as_str(), why)).collect();
        self.with("cell_id", cell)
    }

    /// For one key of many.
    pub fn into_key_error(self) -> KeyError {
        KeyError {
            code: self.reason.code() as i32,
            reason: self.reason.as_str().to_owned(),
            message: self.message,
            retry_delay: self.retry_after.and_then(|after| after.try_into().ok()),
        }
    }
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Status {
        let metadata = fault.metadata.into_iter().map(|(name, value)| (name.to_owned(), value));
        let mut details = ErrorDetails::with_error_info(
            fault.reason.as_str(),
            DOMAIN,
            metadata.collect::<std::collections::HashMap<_, _>>(),
        );
        for (field, problem) in fault.fields {
            details.add_bad_request_violation(field, problem);
        }
        if let Some(after) = fault.retry_after {
            details.set_retry_info(Some(after));
        }
        if !fault.violations.is_empty() {
            details.set_precondition_failure(fault.violations);
        }
        Status::with_error_details(fault.reason.code(), fault.message, details)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match error {
            Error::Refused(refused) => refused.into(),
            Error::Store(error) => error.into(),
            Error::OutcomeUnknown => Fault::new(
                Reason::OutcomeUnknown,
                "the store's answer was lost: the change may have been made; repeat the call, which is safe with the same request_id",
            )
            .retry(SOON),
            Error::Overloaded => {
                Fault::new(Reason::TooManyChanges, "too many changes are waiting; try again").retry(SOON)
            }
            Error::NotReady => Fault::new(
                Reason::NotReady,
                "this replica has not read the registry of cells yet, or is shutting down; try again",
            )
            .retry(SOON),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        let unavailable = |reason, problem: &str| {
            Fault::new(reason, format!("{problem}; nothing was changed, try again")).retry(SOON)
        };
        match error {
            StoreError::Throttled => {
                unavailable(Reason::StoreThrottled, "the routing table throttles requests")
            }
            StoreError::Timeout => {
                unavailable(Reason::StoreTimeout, "the routing table did not answer in time")
            }
            StoreError::Unreachable | StoreError::Failed => {
                unavailable(Reason::StoreUnavailable, "the routing table cannot be reached")
            }
            StoreError::Rejected { detail } => {
                tracing::error!(
                    detail,
                    "the store rejected a request; check the tables and permissions"
                );
                Fault::new(
                    Reason::StoreRejected,
                    "the routing table rejected the request; nothing was changed, and the server's log says why",
                )
            }
            StoreError::Unreadable { detail } => {
                tracing::error!(detail, "a stored record cannot be read; correct or remove it");
                Fault::new(
                    Reason::RecordUnreadable,
                    "a stored record cannot be read; the server's log says which",
                )
            }
            // A well made token whose insides are of another listing, or of another engine.
            StoreError::ForeignCursor => Fault::not_a_page_token(),
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Fault {
        let message = refused.to_string();
        let say = |reason: Reason, next: &str| Fault::new(reason, format!("{message}; {next}"));
        match refused {
            Refused::PlacementNotFound => {
                say(Reason::PlacementNotFound, "resolve it with assignment, or pin it")
            }
            Refused::KnownAbsent { age } => {
                say(Reason::PlacementNotFound, "resolve it with assignment, or pin it")
                    .with("age_ms", age.as_micros().div_ceil(1000))
            }
            Refused::PlacementExpired { expired } => {
                say(Reason::PlacementExpired, "resolve it with assignment, or pin it")
                    .with("expire_time", expired)
            }
            Refused::PlacementExists { existing } => {
                say(Reason::PlacementExists, "delete that placement first, or leave it")
                    .with("cell_id", existing.cell)
                    .with("epoch", existing.epoch)
            }
            Refused::EpochMismatch { present } => {
                say(Reason::EpochMismatch, "read the placement and decide anew")
                    .with("epoch", present)
            }
            Refused::EpochNotReached { present } => {
                say(Reason::EpochNotReached, "check that the epoch comes from this directory")
                    .with("epoch", present.map_or(0, |epoch| epoch.get()))
            }
            Refused::NoEligibleCell { candidates } => {
                let mut fault =
                    say(Reason::NoEligibleCell, "add a cell, uncordon one, or ask for less");
                let violations = candidates.iter().take(MAX_VIOLATIONS).map(|candidate| {
                    let why = match &candidate.standing {
                        Standing::Ineligible { why } => why.clone(),
                        Standing::Ranked { .. } | Standing::NotDrawn => {
                            "was passed over".to_owned()
                        }
                    };
                    PreconditionViolation::new("CELL", candidate.cell.as_str(), why)
                });
                fault.violations = violations.collect();
                if fault.violations.is_empty() {
                    let none = PreconditionViolation::new("REGISTRY", "", "no cell is registered");
                    fault.violations.push(none);
                }
                fault
            }
            Refused::CellNotFound { cell } => {
                say(Reason::CellNotFound, "list the cells, or create it").with("cell_id", cell)
            }
            Refused::CellExists { cell } => {
                say(Reason::CellExists, "update it, or choose another id").with("cell_id", cell)
            }
            Refused::CellNotEligible { cell, why } => {
                let mut fault = say(Reason::CellNotEligible, "choose another cell");
                fault.violations = vec![PreconditionViolation::new("CELL", cell.as_str(), why)];
                fault.with("cell_id", cell)
            }
            Refused::CellNotEmpty { cell } => {
                let mut fault = say(Reason::CellNotEmpty, "move or delete them first");
                let why = "holds placements";
                fault.violations = vec![PreconditionViolation::new("CELL", cell.as_str(), why)];
                fault.with("cell_id", cell)
            }
            Refused::StateChangeNotAllowed { cell, .. } => {
                say(Reason::StateChangeNotAllowed, "RETIRED is final: create a new cell")
                    .with("cell_id", cell)
            }
            Refused::EtagMismatch { present } => {
                say(Reason::EtagMismatch, "read the cell and decide anew").with("etag", present)
            }
            Refused::RequestIdReused => Fault::field(
                Reason::RequestIdReused,
                "request_id",
                "was used for another request; send a new one",
            ),
            Refused::Moving { migration } => {
                say(Reason::MigrationRunning, "wait until it has ended, or cancel it")
                    .with("migration_id", migration)
            }
            Refused::Contended | Refused::Superseded => {
                say(Reason::Contended, "nothing was changed").retry(SOON)
            }
        }
    }
}

impl From<DataError> for Fault {
    fn from(error: DataError) -> Fault {
        let message = error.to_string();
        let say = |reason, next: &str| Fault::new(reason, format!("{message}; {next}"));
        match error {
            DataError::Directory(error) => error.into(),
            DataError::Store(error) => error.into(),
            DataError::NotProvisioned { cell } => {
                say(Reason::CellNotProvisioned, "provision it").with("cell_id", cell)
            }
            DataError::UnknownTable { cell, .. } => {
                // The caller knows the name that it sent.
                Fault::new(
                    Reason::TableNotFound,
                    "the cell's table set has no such table; look at the table set",
                )
                .with("cell_id", cell)
            }
            DataError::TableMissing { cell } => {
                say(Reason::TableNotFound, "look at PlanCell").with("cell_id", cell)
            }
            DataError::Invalid { field, problem } => {
                Fault::field(Reason::InvalidItem, field, problem)
            }
            DataError::ConditionFailed { write } => {
                say(Reason::ConditionFailed, "nothing was written").with("write", write)
            }
            DataError::PositionGone => Fault::not_a_page_token(),
            DataError::KeysDiffer { cell } => {
                say(Reason::KeysDiffer, "ask that cell's table by itself").with("cell_id", cell)
            }
            DataError::TooManyCells => say(Reason::TooManyCells, "ask the cells by themselves"),
            DataError::NoLease { cell } => say(Reason::NoLease, "nothing was written, try again")
                .retry(SOON)
                .with("cell_id", cell),
            DataError::GuardMissing { cell } => {
                let next = "nothing was written; try again, and if that does not help make the guards that are missing";
                say(Reason::GuardMissing, next).retry(SOON).with("cell_id", cell)
            }
            DataError::Moving => {
                say(Reason::TenantMoving, "nothing was written, try again").retry(SOON)
            }
            DataError::IdUsed => Fault::field(
                Reason::RequestIdReused,
                "request_id",
                "was used within ten minutes for other writes, or for these before a move of the tenant began or ended, in which case they may have been done; this call wrote nothing: read, then send a new one",
            ),
        }
    }
}

impl From<CellsError> for Fault {
    fn from(error: CellsError) -> Fault {
        let message = error.to_string();
        let say = |reason, next: &str| Fault::new(reason, format!("{message}; {next}"));
        match error {
            CellsError::Directory(error) => error.into(),
            CellsError::Store(error) => error.into(),
            CellsError::Cloud(CloudError::Busy { code }) => {
                say(Reason::AwsBusy, "nothing was changed, try again")
                    .retry(SOON)
                    .with("code", code)
            }
            CellsError::Cloud(CloudError::Refused { code, detail }) => {
                tracing::warn!(code, detail, "AWS refused a call");
                let next = "look at the permissions and at the log of celld; nothing was changed";
                Fault::new(Reason::AwsRefused, format!("AWS refused a call with {code}; {next}"))
                    .with("code", code)
            }
            CellsError::Cloud(CloudError::Unsupported) => {
                say(Reason::AwsUnsupported, "an emulator does not know all that AWS does")
            }
            CellsError::Invalid(violations) => {
                let mut fault = Fault::new(Reason::InvalidTableSet, message);
                let shown = violations.into_iter().take(MAX_VIOLATIONS);
                fault.fields = shown
                    .map(|Violation { field, problem }| {
                        let problem = format!("{field} {problem}");
                        (field, problem)
                    })
                    .collect();
                if let Some((_, first)) = fault.fields.first() {
                    fault.message = first.clone();
                }
                fault
            }
            CellsError::TableSetNotFound(id) => {
                say(Reason::TableSetNotFound, "list the table sets, or put it")
                    .with("table_set_id", id.as_str())
            }
            CellsError::OperationNotFound(id) => {
                say(Reason::OperationNotFound, "list the operations; one is kept for 90 days")
                    .with("operation_id", id.as_str())
            }
            CellsError::EtagMismatch { present } => {
                say(Reason::EtagMismatch, "read the table set and decide anew")
                    .with("etag", present)
            }
            CellsError::Busy { cell, operation } => {
                say(Reason::OperationRunning, "wait until it has ended")
                    .with("cell_id", cell)
                    .with("operation_id", operation.as_str())
            }
            CellsError::NotProvisioned { cell } => {
                say(Reason::CellNotProvisioned, "there is nothing to remove").with("cell_id", cell)
            }
            CellsError::InUse { cell, obstacles } => {
                let next = "its obstacles are listed; nothing was changed";
                say(Reason::CellInUse, next).obstructed(&cell, obstacles)
            }
            CellsError::BackupNotFound { cell } => {
                say(Reason::BackupNotFound, "list its backups").with("cell_id", cell)
            }
            CellsError::DrillNotFound { cell } => {
                say(Reason::DrillNotFound, "list its drills; one is kept for 400 days")
                    .with("cell_id", cell)
            }
            CellsError::NotRestorable { cell, obstacles } => {
                let next = "what stands in the way is listed; nothing was changed";
                say(Reason::NotRestorable, next).obstructed(&cell, obstacles)
            }
            CellsError::NotAnalyzed { problem } => Fault::field(
                Reason::InvalidWindow,
                "days",
                format!("make the analysis fail: {problem}"),
            ),
            CellsError::RequestIdReused => Refused::RequestIdReused.into(),
        }
    }
}

/// Makes the statuses that tonic itself answers into ours. Leaves those alone that have details already.
pub fn refine(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let message = status.message();
    let fault = match status.code() {
        Code::Internal if message.contains("decode") || message.contains("buffer") => Fault::new(
            Reason::MalformedMessage,
            "the message is not a valid protobuf encoding of its type; text must be UTF-8",
        ),
        Code::OutOfRange | Code::ResourceExhausted => Fault::new(
            Reason::MessageTooLarge,
            "the message is larger than the server takes; send less at once",
        ),
        Code::Unimplemented if message.contains("compress") || message.contains("encoding") => {
            Fault::new(
                Reason::EncodingNotSupported,
                "the message's compression is not supported; send it uncompressed",
            )
        }
        Code::Unimplemented => Fault::new(
            Reason::MethodNotFound,
            "there is no such method; reflection lists those there are",
        ),
        Code::DeadlineExceeded => Fault::new(
            Reason::DeadlineExceeded,
            "the deadline passed before the answer was there; a change may have been made",
        ),
        Code::Cancelled => {
            Fault::new(Reason::Cancelled, "the call was cancelled before the answer was there")
        }
        Code::Internal | Code::InvalidArgument | Code::Unknown => Fault::new(
            Reason::MalformedMessage,
            "the message does not follow the protocol of this method",
        ),
        _ => return status,
    };
    fault.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_documented_and_no_other() {
        let documented = include_str!("../../docs/errors.md");
        let listed: Vec<_> = documented
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(reason, _)| reason)
            .collect();
        for reason in Reason::ALL {
            assert!(
                listed.contains(&reason.as_str()),
                "{} is not in docs/errors.md",
                reason.as_str()
            );
        }
        for reason in &listed {
            assert!(Reason::ALL.iter().any(|r| r.as_str() == *reason), "{reason} does not exist");
        }
    }

    #[test]
    fn the_stores_text_does_not_reach_callers() {
        let detail = "AccessDeniedException: arn:aws:secret".to_owned();
        for error in
            [StoreError::Rejected { detail: detail.clone() }, StoreError::Unreadable { detail }]
        {
            let status = Status::from(Fault::from(error));
            assert!(!status.message().contains("arn"), "{status:?}");
        }
    }
}
