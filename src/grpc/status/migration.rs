//! Errors of migrations.

use tonic_types::PreconditionViolation;

use super::{Fault, MAX_VIOLATIONS, Reason, SOON};
use crate::migration::{Instruction, MigrationError, Obstacle};

impl From<MigrationError> for Fault {
    fn from(error: MigrationError) -> Fault {
        let message = error.to_string();
        let say = |reason, next: &str| Fault::new(reason, format!("{message}; {next}"));
        match error {
            MigrationError::Directory(error) => error.into(),
            MigrationError::Store(error) => error.into(),
            MigrationError::Cells(error) => error.into(),
            MigrationError::Data(error) => error.into(),
            MigrationError::NotFound(id) => {
                say(Reason::MigrationNotFound, "list the migrations").with("migration_id", id)
            }
            MigrationError::AlreadyMoving { migration, target } => {
                let next = "wait until that migration has ended, or cancel or complete it";
                say(Reason::MigrationRunning, next)
                    .with("migration_id", migration)
                    .with("target_cell_id", target)
            }
            MigrationError::SameCell(cell) => {
                say(Reason::SameCell, "name another cell, or set choose").with("cell_id", cell)
            }
            // Of bulks alone, which never let them out.
            MigrationError::Elsewhere { .. } | MigrationError::Superseded => {
                say(Reason::Contended, "try again")
            }
            MigrationError::Obstructed(obstacles) => obstructed(&message, &obstacles),
            MigrationError::NotNow { instruction, migration, phase, .. } => {
                say(Reason::InstructionNotAllowed, instead(instruction))
                    .with("migration_id", migration)
                    .with("state", phase.name())
            }
        }
    }
}

/// One obstacle gives its own reason; of several, each is a violation whose type is its reason.
fn obstructed(message: &str, obstacles: &[Obstacle]) -> Fault {
    let mut fault = match obstacles {
        [obstacle] => {
            let text = format!("{obstacle}; {}; nothing was changed", next(obstacle));
            let fault =
                Fault::new(reason(obstacle), text).with(subject(obstacle).0, subject(obstacle).1);
            match obstacle {
                Obstacle::GuardMissing { .. } => fault.retry(SOON),
                _ => fault,
            }
        }
        _ => {
            let text = format!("{message}; what stands in the way is listed; nothing was changed");
            Fault::new(Reason::MigrationObstructed, text)
        }
    };
    let violations = obstacles.iter().take(MAX_VIOLATIONS).map(|obstacle| {
        let text = format!("{obstacle}; {}", next(obstacle));
        PreconditionViolation::new(reason(obstacle).as_str(), subject(obstacle).1, text)
    });
    fault.violations = violations.collect();
    fault
}

fn reason(obstacle: &Obstacle) -> Reason {
    match obstacle {
        Obstacle::NotEligible { .. } => Reason::CellNotEligible,
        Obstacle::SchemasDiffer { .. } => Reason::SchemasDiffer,
        Obstacle::NoTables { .. } => Reason::CellNotProvisioned,
        Obstacle::NoGuardTable { .. } => Reason::NoGuardTable,
        Obstacle::GuardMissing { .. } => Reason::GuardMissing,
        Obstacle::NotTogether { .. } => Reason::CellApart,
        Obstacle::TargetNotEmpty { .. } => Reason::TargetNotEmpty,
        Obstacle::ItemsTooLarge { .. } => Reason::ItemsTooLarge,
        Obstacle::NotRecoverable { .. } => Reason::NotRecoverable,
        Obstacle::NoStream { .. } => Reason::NoStream,
        Obstacle::NoFreeze => Reason::FreezeNotConfigured,
        Obstacle::ProbeRefused { .. } => Reason::FreezeProbeRefused,
    }
}

/// What an obstacle is about: the name of its metadata, and the value.
fn subject(obstacle: &Obstacle) -> (&'static str, &str) {
    match obstacle {
        Obstacle::NotEligible { cell, .. }
        | Obstacle::NoTables { cell }
        | Obstacle::NoGuardTable { cell }
        | Obstacle::GuardMissing { cell }
        | Obstacle::NotTogether { cell }
        | Obstacle::ItemsTooLarge { cell, .. }
        | Obstacle::ProbeRefused { cell }
        | Obstacle::TargetNotEmpty { cell, .. } => ("cell_id", cell.as_str()),
        Obstacle::SchemasDiffer { table, .. }
        | Obstacle::NotRecoverable { table }
        | Obstacle::NoStream { table } => ("table", table),
        Obstacle::NoFreeze => ("writers", "FROZEN"),
    }
}

fn next(obstacle: &Obstacle) -> &'static str {
    match obstacle {
        Obstacle::NotEligible { .. } => "choose another cell",
        Obstacle::SchemasDiffer { .. } => "provision both cells with the same table set",
        Obstacle::NoTables { .. } => "provision it",
        Obstacle::NoGuardTable { .. } => "add such a table to its table set and provision it",
        Obstacle::GuardMissing { .. } => "wait until GetGuardCoverage says that none is missing",
        Obstacle::NotTogether { .. } => "choose a cell that is not",
        Obstacle::TargetNotEmpty { .. } => "look at VerifyTenant, and remove what is left there",
        Obstacle::ItemsTooLarge { .. } => "make them smaller, or choose a cell with a shorter name",
        Obstacle::NotRecoverable { .. } => "provision its cell, which turns it on",
        Obstacle::NoStream { .. } => {
            "declare one in its table set (KEYS_ONLY is enough) and provision its cell"
        }
        Obstacle::NoFreeze => "set migration_freeze_url",
        Obstacle::ProbeRefused { .. } => {
            "lift the freeze, or let the probe's profile write what applications do"
        }
    }
}

fn instead(instruction: Instruction) -> &'static str {
    match instruction {
        Instruction::Cancel => "what was committed can be reversed while it is SOAKING",
        Instruction::Reverse => {
            "there is a way back while it is SOAKING: before the commit cancel it, after the soak move the tenant again"
        }
        Instruction::Complete => "there is a soak to end while it is SOAKING alone",
        Instruction::Pause | Instruction::Resume => "it has ended",
        Instruction::Retry => "nobody gave it up: it goes on by itself, or was paused",
    }
}
