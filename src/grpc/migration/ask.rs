//! What is asked to be moved, and how: from a message, with its bounds.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::grpc::parse;
use crate::grpc::status::{Fault, Reason};
use crate::migration::bounds::{MAX_RATE, PAUSE_BUDGET, SOAK};
use crate::migration::{Ask, TargetCell, Verification, Writers};
use crate::proto::v1;
use crate::proto::v1::start_migration_request::Target;

pub fn ask(request: v1::StartMigrationRequest) -> Result<Ask, Fault> {
    let verification = verification("verification", request.verification)?;
    Ok(Ask {
        tenant: parse::partition_key("partition_key", request.partition_key)?,
        target: target(request.target, request.constraints)?,
        verification,
        writers: writers("writers", request.writers)?,
        soak: soak("soak_duration", request.soak_duration)?,
        pause_budget: pause_budget("pause_budget", request.pause_budget)?,
        rate_limit: rate(request.rate_limit_units)?,
    })
}

pub fn verification(field: &str, value: i32) -> Result<Verification, Fault> {
    match v1::MigrationVerification::try_from(value) {
        Ok(v1::MigrationVerification::Unspecified | v1::MigrationVerification::LogDrain) => {
            Ok(Verification::LogDrain)
        }
        Ok(v1::MigrationVerification::Strict) => Ok(Verification::Strict),
        Err(_) => Err(parse::unknown(field, value)),
    }
}

fn writers(field: &str, value: i32) -> Result<Writers, Fault> {
    match v1::MigrationWriters::try_from(value) {
        Ok(v1::MigrationWriters::Unspecified | v1::MigrationWriters::Cooperative) => {
            Ok(Writers::Cooperative)
        }
        Ok(v1::MigrationWriters::Frozen) => Ok(Writers::Frozen),
        Ok(v1::MigrationWriters::BestEffort) => Ok(Writers::BestEffort),
        Err(_) => Err(parse::unknown(field, value)),
    }
}

pub fn soak(field: &str, value: Option<prost_types::Duration>) -> Result<Option<Duration>, Fault> {
    parse::duration(field, value, SOAK, "0s to 30 days")
}

pub fn pause_budget(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Fault> {
    parse::duration(field, value, PAUSE_BUDGET, "50ms to 60s")
}

fn target(
    target: Option<Target>,
    constraints: Option<v1::PlacementConstraints>,
) -> Result<TargetCell, Fault> {
    match target {
        Some(Target::TargetCellId(_)) if constraints.is_some() => {
            let problem =
                "is not set, and constraints are for it alone; set it to true, or leave them out";
            Err(Fault::field(Reason::MissingField, "choose", problem))
        }
        Some(Target::TargetCellId(id)) => {
            parse::cell_id("target_cell_id", &id).map(TargetCell::Cell)
        }
        Some(Target::Choose(true)) => {
            let constraints = constraints.map(parse::constraints).transpose()?;
            Ok(TargetCell::Choose(constraints.unwrap_or_default()))
        }
        Some(Target::Choose(false)) => {
            let problem = "is false; set it to true, or name a cell in target_cell_id";
            Err(Fault::field(Reason::MissingField, "choose", problem))
        }
        None => {
            let problem = "is required; name a cell, or set choose to true";
            Err(Fault::field(Reason::MissingField, "target_cell_id", problem))
        }
    }
}

/// `None` for 0: as configured.
fn rate(units: u32) -> Result<Option<NonZeroU32>, Fault> {
    if units > MAX_RATE {
        let problem = format!("is {units}; 1 to {MAX_RATE} are allowed, 0 means as configured");
        return Err(Fault::field(Reason::InvalidRateLimit, "rate_limit_units", problem));
    }
    Ok(NonZeroU32::new(units))
}
