//! The journal: the totally ordered, gapless list of every change to placements and cells.
//!
//! Invariants: entry `n + 1` is written only in a transaction that moves the journal's head from `n`; a writer commits only what
//! it decided on the state as of `n`. So whoever has applied all entries up to the head knows the state exactly, and every
//! replica that applies them in order comes to the same state.

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::cluster::Cluster;
use super::id::{CellId, Nonce, PartitionKey, Sequence};
use super::placement::Placement;
use super::time::Timestamp;

/// Changes that were made together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    pub sequence: Sequence,
    /// By which the writer knows its entry again when the reply was lost.
    pub nonce: Nonce,
    pub written: Timestamp,
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// A tenant got a cell. `replaced` is the cell of an expired placement that this one took the place of.
    Placed {
        placement: Placement,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaced: Option<CellId>,
    },
    /// A step of a migration, after which the placement is so. `gained` counts the tenant from now on and `lost` no longer: while a tenant
    /// moves, both cells do, for either may be the one that it stays in.
    Moved {
        placement: Placement,
        /// Where the tenant lived before the step.
        from: CellId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gained: Option<CellId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost: Option<CellId>,
    },
    /// A tenant has no cell any more: `placement` as it last stood.
    Vacated {
        placement: Placement,
    },
    CellCreated {
        cell: Cell,
    },
    CellUpdated {
        cell: Cell,
    },
    CellDeleted {
        cell: CellId,
    },
    ClusterUpdated {
        cluster: Cluster,
    },
}

impl Change {
    /// The tenant that the change is about, if it is about one.
    pub fn key(&self) -> Option<&PartitionKey> {
        match self {
            Change::Placed { placement, .. }
            | Change::Moved { placement, .. }
            | Change::Vacated { placement } => Some(&placement.key),
            Change::CellCreated { .. }
            | Change::CellUpdated { .. }
            | Change::CellDeleted { .. }
            | Change::ClusterUpdated { .. } => None,
        }
    }

    /// The cell whose registration the change is about, if it is about one.
    pub fn cell(&self) -> Option<&CellId> {
        match self {
            Change::CellCreated { cell } | Change::CellUpdated { cell } => Some(&cell.id),
            Change::CellDeleted { cell } => Some(cell),
            Change::Placed { .. }
            | Change::Moved { .. }
            | Change::Vacated { .. }
            | Change::ClusterUpdated { .. } => None,
        }
    }

    /// By how much the change moves the number of placements of each cell.
    pub fn deltas(&self) -> impl Iterator<Item = (&CellId, i64)> {
        let (gained, lost) = match self {
            Change::Placed { placement, replaced } => (Some(&placement.cell), replaced.as_ref()),
            Change::Moved { gained, lost, .. } => (gained.as_ref(), lost.as_ref()),
            Change::Vacated { placement } => (None, Some(&placement.cell)),
            _ => (None, None),
        };
        let gained = gained.map(|cell| (cell, 1));
        gained.into_iter().chain(lost.map(|cell| (cell, -1)))
    }
}
