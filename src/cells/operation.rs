//! An operation on a cell's tables: what is wanted, how far it is, and who is at work on it.
//!
//! ```text
//! RUNNING ──► SUCCEEDED
//!    └──────► FAILED (what is there stays; the next operation goes on from it)
//! ```
//! One worker holds an operation, by a number that rises with each taking over. What a worker writes holds only while the number is
//! its own, so one that was thought dead and comes back changes nothing. Whether the holder is alive is judged by its beat: one that
//! does not change for as long as a watcher's own clock says is taken over. No two clocks are compared. (As M. Burrows' Chubby and
//! AWS's lock client for DynamoDB do.)

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::recovery::{Origin, Recovery};
use super::table_set::TableSetId;
use crate::domain::{CellId, Invalid, Timestamp};

/// Steps of which the last ones are kept.
pub const MAX_STEPS: usize = 200;

/// An operation's name: `[a-z0-9-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(String);

impl OperationId {
    /// # Errors
    /// With the reason `INVALID_OPERATION_ID`.
    pub fn new(id: impl Into<String>) -> Result<Self, Invalid> {
        let id = id.into();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if id.is_empty() || id.len() > 64 || !id.bytes().all(allowed) {
            let problem = "is not 1 to 64 of [a-z0-9-]; send it as it was answered";
            return Err(Invalid::new("INVALID_OPERATION_ID", problem));
        }
        Ok(Self(id))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What an operation brings about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// The cell's tables are as this version of the set says.
    Provision { set: TableSetId, version: u64 },
    /// The cell has no tables.
    Deprovision { set: TableSetId, version: u64, delete_data: bool, final_backup: FinalBackup },
    /// Every table of the cell has a backup of this name. `keep_days`: scheduled ones that are older have gone.
    BackUp { set: TableSetId, version: u64, backup: String, keep_days: Option<u32> },
    /// The cell has tables with what the source's held.
    Restore { set: TableSetId, version: u64, source: CellId, from: Origin },
    /// It is known whether the cell's tables can be restored.
    Drill { set: TableSetId, version: u64, from: Origin },
}

impl Goal {
    pub fn set(&self) -> (&TableSetId, u64) {
        match self {
            Goal::Provision { set, version }
            | Goal::Deprovision { set, version, .. }
            | Goal::BackUp { set, version, .. }
            | Goal::Restore { set, version, .. }
            | Goal::Drill { set, version, .. } => (set, *version),
        }
    }

    /// What tables the cell has once this has succeeded; `None`: those that it had.
    pub fn leaves(&self) -> Option<Option<(&TableSetId, u64)>> {
        match self {
            Goal::Provision { set, version } | Goal::Restore { set, version, .. } => {
                Some(Some((set, *version)))
            }
            Goal::Deprovision { .. } => Some(None),
            Goal::BackUp { .. } | Goal::Drill { .. } => None,
        }
    }
}

/// Whether tables that hold data are backed up before they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalBackup {
    Required,
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    Running,
    Succeeded,
    Failed,
}

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub table: String,
    pub done: String,
    pub at: Timestamp,
}

/// The durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub cell: CellId,
    pub goal: Goal,
    /// What was asked with the request id that the operation's id is made of: its digest; empty where it came without.
    pub digest: String,
    pub state: OperationState,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// The newest last, at most [`MAX_STEPS`].
    pub steps: Vec<Step>,
    /// How many steps were done in all, and how many were left when it was looked at last.
    pub steps_done: u64,
    pub steps_left: u64,
    /// What is different and left alone.
    pub notes: Vec<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What a restore or a drill has found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// By table, the ARNs of backups that already had the name which the operation gives its own: none of them is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub former_backups: BTreeMap<String, Vec<String>>,
    /// Raised by each worker that takes over.
    pub worker_epoch: u64,
    /// Changed by the worker as long as it is alive.
    pub beat: u64,
}

impl Operation {
    pub fn new(id: OperationId, cell: CellId, goal: Goal, digest: String, now: Timestamp) -> Self {
        Self {
            id,
            cell,
            goal,
            digest,
            state: OperationState::Running,
            created: now,
            updated: now,
            steps: Vec::new(),
            steps_done: 0,
            steps_left: 0,
            notes: Vec::new(),
            error: None,
            recovery: None,
            former_backups: BTreeMap::new(),
            worker_epoch: 0,
            beat: 0,
        }
    }

    pub fn ended(&self) -> bool {
        self.state != OperationState::Running
    }

    pub fn is_drill(&self) -> bool {
        matches!(self.goal, Goal::Drill { .. })
    }

    /// Notes a step that was done.
    pub fn done(&mut self, table: &str, done: String, now: Timestamp) {
        self.steps.push(Step { table: table.to_owned(), done, at: now });
        let excess = self.steps.len().saturating_sub(MAX_STEPS);
        self.steps.drain(..excess);
        self.steps_done += 1;
        self.updated = now;
    }

    pub fn end(&mut self, result: Result<(), String>, now: Timestamp) {
        self.state = match result {
            Ok(()) => OperationState::Succeeded,
            Err(_) => OperationState::Failed,
        };
        self.error = result.err();
        self.steps_left = if self.error.is_some() { self.steps_left } else { 0 };
        self.updated = now;
    }
}
