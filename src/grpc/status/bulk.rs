//! Errors of bulks.

use cells_balance::PlanError;

use super::{Fault, Reason};
use crate::migration::bulk::BulkError;

impl From<BulkError> for Fault {
    fn from(error: BulkError) -> Fault {
        let message = error.to_string();
        let say = |reason, next: &str| Fault::new(reason, format!("{message}; {next}"));
        match error {
            BulkError::Directory(error) => error.into(),
            BulkError::Store(error) => error.into(),
            BulkError::NotFound(id) => {
                say(Reason::BulkNotFound, "list the bulks").with("bulk_id", id)
            }
            BulkError::TakesTenants { cell, .. } => {
                say(Reason::CellTakesTenants, "set its state to CORDONED or DRAINING first")
                    .with("cell_id", cell)
            }
            BulkError::Running(id) => {
                say(Reason::BulkRunning, "wait until it has ended, or cancel it")
                    .with("bulk_id", id)
            }
            BulkError::NothingToMove { staying } => {
                say(Reason::NothingToMove, "the plan says why they stay").with("staying", staying)
            }
            BulkError::Plan(PlanError::CeilingUnknown(cell)) => {
                let problem = format!(
                    "cannot be kept, since the utilisation of {cell} is not known; leave it out, or measure first"
                );
                Fault::field(Reason::InvalidUtilisation, "max_utilisation", problem)
            }
            // What the edge lets through; of the registry, which can change between two reads.
            BulkError::Plan(_) | BulkError::Unfit(_) => {
                tracing::warn!(error = message, "a plan or a bulk could not be made");
                Fault::new(Reason::Contended, format!("{message}; nothing was changed, try again"))
            }
            BulkError::NotNow { bulk, .. } => {
                say(Reason::InstructionNotAllowed, "begin another one for what is left")
                    .with("bulk_id", bulk)
            }
        }
    }
}
