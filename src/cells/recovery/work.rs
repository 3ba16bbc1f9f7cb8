//! How restores get on, look by look: into another cell, and into a drill's temporary tables.

use super::{Origin, Recovery, newest_whole};
use crate::cells::cloud::{CloudError, Restorable, Restoration, RestoreFrom, TableRef};
use crate::cells::error::CellsError;
use crate::cells::operation::{Goal, Operation};
use crate::cells::plan::Wanted;
use crate::cells::worker::{Look, Watched, Worker};
use crate::domain::{Cell, CellId, Timestamp};

/// Why a restore cannot go on, or that AWS could not be asked.
pub(super) enum Stop {
    Failed(String),
    Error(CellsError),
}

impl From<CloudError> for Stop {
    fn from(error: CloudError) -> Self {
        match error {
            CloudError::Refused { code, detail } => {
                tracing::warn!(code, detail, "AWS refused a call of a restore");
                Stop::Failed(format!("AWS refused a call with {code}"))
            }
            CloudError::Unsupported => {
                Stop::Failed("this endpoint knows no backups and no restores".to_owned())
            }
            busy @ CloudError::Busy { .. } => Stop::Error(busy.into()),
        }
    }
}

/// A table and the one that it is restored into.
pub(super) struct Pair {
    pub source: TableRef,
    pub target: TableRef,
}

impl Worker {
    pub(in crate::cells) async fn restore(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        source: &CellId,
        from: &Origin,
    ) -> Result<Look, CellsError> {
        let Some(targets) = self.wanted(operation).await? else { return Ok(gone()) };
        let Some(sources) = self.wanted_as(operation, source).await? else { return Ok(gone()) };
        let pairs: Vec<_> = sources
            .iter()
            .zip(&targets)
            .map(|(source, target)| Pair { source: source.into(), target: target.into() })
            .collect();
        match self.restored(operation, &pairs, from, false).await {
            // What DynamoDB does not restore is drift from what is declared.
            Ok(true) => self.provision(operation, watch).await,
            Ok(false) => Ok(Look::Working),
            Err(Stop::Failed(error)) => Ok(Look::Ended(Err(error))),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    /// Begins what is missing of a restore. Answers whether all of it is there and settled.
    pub(super) async fn restored(
        &self,
        operation: &mut Operation,
        pairs: &[Pair],
        from: &Origin,
        on_demand: bool,
    ) -> Result<bool, Stop> {
        let recovery = operation.recovery.get_or_insert_with(Recovery::default);
        let Some(point) = recovery.point else {
            // Written before the first table is begun.
            recovery.point = Some(self.point(pairs, from).await?);
            recovery.fixed = Some(self.clock.now());
            return Ok(false);
        };
        let mut left = 0;
        for Pair { source, target } in pairs {
            let Some(is) = self.cloud.observe(target).await? else {
                left += 1;
                let from = self.origin(source, from, point).await?;
                let source = source.clone();
                let restoration =
                    Restoration { source, target: target.name.clone(), from, on_demand };
                match self.cloud.restore(&restoration).await {
                    Ok(()) => {
                        let step = format!("restore it from {}", restoration.source.name);
                        operation.done(&target.name, step, self.clock.now());
                    }
                    Err(CloudError::Busy { code }) => {
                        tracing::debug!(code, table = target.name, "AWS is busy");
                    }
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            if is.restored_from.as_deref() != Some(source.name.as_str()) {
                return Err(Stop::Failed(format!(
                    "table {} was there before, and was not restored from {}; it is left alone",
                    target.name, source.name
                )));
            }
            if is.status.starts_with("INACCESSIBLE") {
                let error = format!("table {} cannot be used: {}", target.name, is.status);
                return Err(Stop::Failed(error));
            }
            left += u64::from(!is.settled());
        }
        operation.steps_left = left;
        Ok(left == 0)
    }

    /// As of when the restored data will be.
    async fn point(&self, pairs: &[Pair], from: &Origin) -> Result<Timestamp, Stop> {
        if let Origin::PointInTime(point) = from {
            return Ok(*point);
        }
        let mut earliest = None;
        for Pair { source, .. } in pairs {
            let of_table = match from {
                Origin::Backup(name) => {
                    let backups = self.cloud.backups(source).await?;
                    newest_whole(&backups, name)
                        .map(|one| one.created)
                        .ok_or_else(|| no_backup(source, name))?
                }
                Origin::Latest | Origin::PointInTime(_) => {
                    match self.cloud.restorable(source).await? {
                        Restorable::Between { latest, .. } => latest,
                        Restorable::Off | Restorable::NoTable => {
                            let table = &source.name;
                            let error = format!("table {table} has no point-in-time recovery");
                            return Err(Stop::Failed(error));
                        }
                    }
                }
            };
            earliest = Some(earliest.map_or(of_table, |other: Timestamp| other.min(of_table)));
        }
        earliest.ok_or_else(|| Stop::Failed("the table set has no tables".to_owned()))
    }

    async fn origin(
        &self,
        source: &TableRef,
        from: &Origin,
        point: Timestamp,
    ) -> Result<RestoreFrom, Stop> {
        let Origin::Backup(name) = from else { return Ok(RestoreFrom::PointInTime(point)) };
        let backups = self.cloud.backups(source).await?;
        let found = newest_whole(&backups, name);
        found.map(|one| RestoreFrom::Backup(one.arn.clone())).ok_or_else(|| no_backup(source, name))
    }

    /// What an operation's cell wants, as if it were another cell's.
    async fn wanted_as(
        &self,
        operation: &Operation,
        cell: &CellId,
    ) -> Result<Option<Vec<Wanted>>, CellsError> {
        let (set, version) = operation.goal.set();
        let Some(set) = self.records.table_set_at(set, version).await? else { return Ok(None) };
        let Some(target) = self.cells.cell(&operation.cell).await? else { return Ok(None) };
        // The source may have been unregistered: its name is what its tables and backups are found by.
        let source = Cell { id: cell.clone(), ..(*target).clone() };
        Ok(Some(Wanted::of(&set, &self.prefix, &source)))
    }
}

impl Goal {
    /// Whether a table that is not there may be made empty.
    pub(in crate::cells) fn makes_empty_tables(&self) -> bool {
        matches!(self, Goal::Provision { .. })
    }
}

pub(super) fn gone() -> Look {
    Look::Ended(Err("the cell or its table set is gone".to_owned()))
}

fn no_backup(table: &TableRef, name: &str) -> Stop {
    Stop::Failed(format!("table {} has no whole backup {name}", table.name))
}
