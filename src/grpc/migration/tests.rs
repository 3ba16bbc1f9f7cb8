//! The service on migrations that stand still. `bulks`: drains and rebalances. `requests`: what is taken and refused. `errors`: how the engine's errors are told.
//! `messages`: how a migration is told. `watching`: how a stream goes on and ends. `wire`: over a socket.

mod bulks;
mod errors;
mod messages;
mod requests;
mod watching;
mod wire;

use std::fmt::Debug;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::*;
use crate::domain::Timestamp;
use crate::migration::fake::FakeMigrations;

/// A second after the migrations were made.
const NOW: i64 = 1_700_000_001_000;

fn service(fake: &Arc<FakeMigrations>) -> MigrationService {
    let clock = Clock::from_fn(|| Timestamp::from_millis(NOW).unwrap());
    MigrationService::new(fake.clone(), clock, CancellationToken::new())
}

/// A migration's number as its id.
fn id(number: u128) -> String {
    format!("{number:032x}")
}

/// A request that is right.
fn start() -> v1::StartMigrationRequest {
    v1::StartMigrationRequest {
        partition_key: "tenant-1".to_owned(),
        target: Some(to("cell-1")),
        ..Default::default()
    }
}

fn to(cell: &str) -> v1::start_migration_request::Target {
    v1::start_migration_request::Target::TargetCellId(cell.to_owned())
}

/// The reason of a status, after a look at its form.
#[track_caller]
fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().expect("every status has a reason");
    assert_eq!(info.domain, "cells.v1");
    assert!(!status.message().is_empty() && status.message().len() < 500, "{status:?}");
    info.reason
}

/// Asserts that a call was refused for what is in this field.
#[track_caller]
fn refused<T: Debug>(answer: Result<Response<T>, Status>, field: &str, why: &str) {
    let status = answer.expect_err(field);
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, why), "{field}");
    let violations = status.get_details_bad_request().expect("it names a field").field_violations;
    let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, [field]);
}
