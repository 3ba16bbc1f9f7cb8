//! Why a migration is not begun, found, or steered.

use cells_migration::{Leg, Phase};

use super::instruction::Instruction;
use crate::cells::data::DataError;
use crate::cells::{CellsError, CloudError};
use crate::directory::{Error, Refused};
use crate::domain::{CellId, MigrationId};
use crate::store::StoreError;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MigrationError {
    /// Of the directory: the tenant has no placement, or an expired one; an unknown cell; a `request_id` of another request.
    #[error(transparent)]
    Directory(#[from] Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cells(#[from] CellsError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("there is no migration {0}")]
    NotFound(MigrationId),
    /// The tenant is on its way already.
    #[error("the tenant is on its way to {target}")]
    AlreadyMoving { migration: MigrationId, target: CellId },
    #[error("the tenant lives in {0} already")]
    SameCell(CellId),
    /// The tenant has left the cell that a bulk was to move it out of.
    #[error("the tenant is not in {due} any more, but in {cell}")]
    Elsewhere { due: CellId, cell: CellId },
    /// The bulk that it was to be begun for has changed its mind.
    #[error("the bulk that asked for it has changed")]
    Superseded,
    /// What a look at both cells found, before anything was changed. Not empty.
    #[error("the tenant cannot be moved there")]
    Obstructed(Vec<Obstacle>),
    /// There is no time for this instruction any more, or not yet.
    #[error("the migration cannot be {}: it is {}{}", .instruction.done(), .phase.name(), way(*.leg))]
    NotNow { instruction: Instruction, migration: MigrationId, leg: Leg, phase: Phase },
}

impl MigrationError {
    /// What callers are told, without any text of AWS's: that goes to the log.
    pub fn told(&self) -> String {
        match self {
            Self::Store(error)
            | Self::Directory(Error::Store(error))
            | Self::Cells(CellsError::Store(error) | CellsError::Directory(Error::Store(error)))
            | Self::Data(DataError::Store(error) | DataError::Directory(Error::Store(error))) => {
                error.told()
            }
            Self::Cells(CellsError::Cloud(CloudError::Refused { code, detail })) => {
                tracing::warn!(code, detail, "AWS refused a call of a migration");
                format!("AWS refused a call with {code}")
            }
            other => other.to_string(),
        }
    }
}

fn way(leg: Leg) -> &'static str {
    match leg {
        Leg::Forward => "",
        Leg::Back => ", on its way back",
    }
}

/// Something that stands in the way of a move.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The target takes no tenants. `why` follows the cell's name.
    #[error("the cell {cell} {why}")]
    NotEligible { cell: CellId, why: String },
    /// A table that is not the same in both cells. `why` follows the table's name.
    #[error("the table {table} {why}")]
    SchemasDiffer { table: String, why: String },
    #[error("the cell {cell} has no tables of a table set")]
    NoTables { cell: CellId },
    #[error("the cell {cell} has no table with a sort key of strings, which guards and logs need")]
    NoGuardTable { cell: CellId },
    #[error("the tenant has no guard in {cell} yet")]
    GuardMissing { cell: CellId },
    #[error("the cell {cell} is in another account or Region than the directory's tables")]
    NotTogether { cell: CellId },
    #[error("the cell {cell} holds {items} items of the tenant already")]
    TargetNotEmpty { cell: CellId, items: u64 },
    #[error(
        "{items} items are too large for {cell}, whose name is longer than that of the cell that they name"
    )]
    ItemsTooLarge { cell: CellId, items: u64 },
    #[error("point-in-time recovery of the table {table} is declared, and off")]
    NotRecoverable { table: String },
    #[error(
        "the table {table} has no stream by which writers that know nothing of guards could be followed"
    )]
    NoStream { table: String },
    #[error("no hook is configured by which writers that know nothing of guards could be stopped")]
    NoFreeze,
    #[error(
        "writes under the permissions that the probe of the freeze uses are refused in {cell} already"
    )]
    ProbeRefused { cell: CellId },
}

impl From<Refused> for MigrationError {
    fn from(refused: Refused) -> Self {
        Self::Directory(refused.into())
    }
}

impl From<Obstacle> for MigrationError {
    fn from(obstacle: Obstacle) -> Self {
        Self::Obstructed(vec![obstacle])
    }
}
