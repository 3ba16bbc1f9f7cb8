//! Backups of cells, restores, and drills that prove them.
//!
//! All are operations, worked on as every other: look at what there is, do what is missing, look again. What makes that hold after a crash
//! is that every name is made of what is known beforehand: a scheduled backup's of its slot, any other's and a temporary table's of the
//! operation.
//!
//! A drill keeps the order: restore ► wait until usable ► compare ► delete the temporary tables. A failure anywhere skips what is left up to
//! the deletion, never that. A table is deleted only if it has the drill's name and AWS says that it was restored from the cell's own.

mod asked;
mod backup;
mod compare;
mod digest;
mod drill;
mod schedule;
mod work;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cloud::Backup;
use super::operation::{Goal, Operation, OperationId, OperationState};
use crate::domain::{CellId, Timestamp};

pub use asked::{DrillSource, RecoveryStatus, TableRecovery};
pub(super) use backup::BackedUp;
pub(super) use compare::Comparison;
pub use compare::{Compared, Side, Tallied};
pub use schedule::{Scheduler, SchedulerSettings};

/// From what something is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The backup of this name, of each table.
    Backup(String),
    PointInTime(Timestamp),
    /// The latest time to which all tables can be set back, when the operation looks first.
    Latest,
}

/// What a restore or a drill has found out so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// As of when the restored data is. Fixed before the first table is restored, so that all are of one time.
    pub point: Option<Timestamp>,
    /// When the point was fixed, by celld's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed: Option<Timestamp>,
    /// When all restored tables were usable.
    pub usable: Option<Timestamp>,
    /// By the name of the cell's own table.
    pub compared: BTreeMap<String, Compared>,
    /// Why a drill goes straight to its clean-up.
    pub failure: Option<String>,
    /// Since when a drill cleans up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleaning: Option<Timestamp>,
    /// Temporary tables that could not be deleted, each with the reason.
    pub left: Vec<String>,
}

/// What a drill showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillOutcome {
    Running,
    Matched,
    Different,
    Failed,
}

impl Operation {
    /// What a drill showed, whatever became of its clean-up.
    pub fn drill_outcome(&self) -> DrillOutcome {
        let recovery = self.recovery.as_ref();
        let compared = recovery.map(|recovery| &recovery.compared);
        let failed = recovery.is_none_or(|recovery| recovery.failure.is_some());
        if self.state == OperationState::Running {
            DrillOutcome::Running
        } else if failed || compared.is_none_or(BTreeMap::is_empty) {
            DrillOutcome::Failed
        } else if compared.is_some_and(|all| all.values().all(|one| one.matched)) {
            DrillOutcome::Matched
        } else {
            DrillOutcome::Different
        }
    }

    /// As of when what a drill restores would have been lost: when it was begun, or, where it asked for the latest time of all, when that
    /// was fixed.
    pub fn lost_at(&self) -> Timestamp {
        let latest = matches!(self.goal, Goal::Drill { from: Origin::Latest, .. });
        let fixed = self.recovery.as_ref().and_then(|recovery| recovery.fixed);
        fixed.filter(|_| latest).unwrap_or(self.created)
    }

    /// The backup that is made or restored, by its name.
    pub fn backup(&self) -> Option<&str> {
        match &self.goal {
            Goal::BackUp { backup, .. }
            | Goal::Restore { from: Origin::Backup(backup), .. }
            | Goal::Drill { from: Origin::Backup(backup), .. } => Some(backup),
            _ => None,
        }
    }
}

/// The name of a schedule's backup: of the slot that began so many seconds after 1970.
pub fn scheduled_backup(cell: &CellId, slot: i64) -> String {
    format!("celld-{cell}-{slot}")
}

/// The slot of a backup that a schedule of this cell made; `None`: something else made it.
pub fn slot_of(cell: &CellId, backup: &str) -> Option<i64> {
    let slot = backup.strip_prefix("celld-")?.strip_prefix(cell.as_str())?.strip_prefix('-')?;
    let digits = !slot.is_empty() && slot.bytes().all(|byte| byte.is_ascii_digit());
    // Only what this very slot would be written as.
    slot.parse().ok().filter(|at: &i64| digits && at.to_string() == slot)
}

/// The name of a backup that somebody asked for. It is no scheduled one: an operation's id holds a letter.
pub fn asked_backup(cell: &CellId, operation: &OperationId) -> String {
    format!("celld-{cell}-{}", operation.as_str())
}

/// The temporary table in which a drill restores a table.
pub fn drill_table(table: &str, operation: &OperationId) -> String {
    let hash = Sha256::digest(operation.as_str());
    let short: String = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{table}-drill-{short}")
}

/// Furthest apart that backups of one name are begun and still taken for one of all tables, unless a schedule gave the name: it was used
/// twice, and not every table has both.
const MAX_APART_MILLIS: i64 = 3600 * 1000;

/// Backups of one name, of a cell's tables. Names are not unique: of several of a table, the newest whole one is taken, and the newest
/// where none is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellBackup {
    pub name: String,
    /// When the first of them was begun.
    pub created: Timestamp,
    /// A schedule made it.
    pub scheduled: bool,
    /// Every table has it, all are whole, and they were begun at about one time.
    pub complete: bool,
    /// They were not begun at about one time.
    pub apart: bool,
    /// By the table's name on AWS, in its order. One of each.
    pub tables: Vec<(String, Backup)>,
}

/// By which of several backups of one name is taken.
fn preference(backup: &Backup) -> (bool, Timestamp) {
    (backup.available, backup.created)
}

/// Of a table's backups the newest whole one of a name.
fn newest_whole<'a>(backups: &'a [Backup], name: &str) -> Option<&'a Backup> {
    let whole = backups.iter().filter(|one| one.name == name && one.available);
    whole.max_by_key(|one| preference(one))
}

/// The backups of a cell's tables by their names, the newest first.
fn by_name(cell: &CellId, tables: Vec<(String, Vec<Backup>)>) -> Vec<CellBackup> {
    let all = tables.len();
    let mut named: BTreeMap<String, BTreeMap<String, Backup>> = BTreeMap::new();
    for (table, backups) in tables {
        for backup in backups {
            let of_table = named.entry(backup.name.clone()).or_default();
            let other = of_table.get(&table);
            if other.is_none_or(|other| preference(other) < preference(&backup)) {
                of_table.insert(table.clone(), backup);
            }
        }
    }
    let grouped = named.into_iter().filter_map(|(name, tables)| {
        let first = tables.values().map(|backup| backup.created).min()?;
        let last = tables.values().map(|backup| backup.created).max()?;
        let scheduled = slot_of(cell, &name).is_some();
        let apart = !scheduled && last.millis().saturating_sub(first.millis()) > MAX_APART_MILLIS;
        let whole = tables.len() == all && tables.values().all(|backup| backup.available);
        let tables = tables.into_iter().collect();
        Some(CellBackup {
            created: first,
            scheduled,
            complete: whole && !apart,
            apart,
            tables,
            name,
        })
    });
    let mut grouped: Vec<_> = grouped.collect();
    grouped.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600 * 1000;

    #[test]
    fn a_schedules_backups_are_told_from_all_others() {
        let cell = CellId::new("cell-a").unwrap();
        assert_eq!(slot_of(&cell, &scheduled_backup(&cell, 1_700_006_400)), Some(1_700_006_400));
        let operation = OperationId::new("op-1").unwrap();
        let longer = CellId::new("cell-a-1").unwrap();
        for foreign in [
            asked_backup(&cell, &operation),
            scheduled_backup(&longer, 7),
            "final-op-1".to_owned(),
            "celld-cell-a-".to_owned(),
            "celld-cell-a-007".to_owned(),
            "celld-cell-a-+7".to_owned(),
            "celld-cell-a-99999999999999999999".to_owned(),
            "by-hand".to_owned(),
        ] {
            assert_eq!(slot_of(&cell, &foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_backup_is_complete_if_every_table_has_it_whole() {
        let at = |millis| Timestamp::from_millis(millis).unwrap();
        let backup = |name: &str, created, available| Backup {
            name: name.to_owned(),
            arn: String::new(),
            available,
            created: at(created),
            bytes: 0,
        };
        let cell = CellId::new("a").unwrap();
        let tables = vec![
            (
                "D-a".to_owned(),
                vec![
                    backup("celld-a-1", 1, true),
                    backup("x", 3, true),
                    backup("twice", 5, true),
                    backup("twice", HOUR + 9, true),
                    backup("twice", HOUR + 10, false),
                    backup("apart", 0, true),
                ],
            ),
            (
                "O-a".to_owned(),
                vec![
                    backup("celld-a-1", HOUR + 2, true),
                    backup("y", 4, false),
                    backup("twice", 9, true),
                    backup("apart", HOUR + 1, true),
                ],
            ),
        ];
        let grouped = by_name(&cell, tables);
        let seen: Vec<_> = grouped
            .iter()
            .map(|one| (one.name.as_str(), one.created.millis(), one.complete, one.scheduled))
            .collect();
        let expected = [
            ("twice", 9, true, false),
            ("y", 4, false, false),
            ("x", 3, false, false),
            ("celld-a-1", 1, true, true),
            ("apart", 0, false, false),
        ];
        assert_eq!(seen, expected);
        let apart: Vec<_> = grouped.iter().filter(|one| one.apart).map(|one| &one.name).collect();
        assert_eq!(apart, ["apart"]);
    }
}
