//! What an operator asks of backups and restores: checked here, brought about by the worker.

use futures::future::try_join_all;

use super::{CellBackup, Origin, asked_backup, by_name, drill_table};
use crate::cells::check::{self, Violation};
use crate::cells::cloud::{CloudError, Restorable, TableRef};
use crate::cells::error::CellsError;
use crate::cells::operation::{Goal, Operation, OperationId};
use crate::cells::plan::Wanted;
use crate::cells::registrar::Registrar;
use crate::cells::table_set::{BackupSchedule, TableSet};
use crate::directory::Request;
use crate::domain::{Cell, CellId, CellState, Timestamp};

/// Longest name of a table.
const MAX_TABLE_NAME: usize = 255;

/// What a drill restores from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillSource {
    LatestPointInTime,
    NewestBackup,
}

/// What a table can be set back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRecovery {
    /// On AWS.
    pub table: String,
    /// `None`: the endpoint does not know it.
    pub restorable: Option<Restorable>,
}

/// What a cell can be set back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryStatus {
    pub tables: Vec<TableRecovery>,
    pub schedule: Option<BackupSchedule>,
    /// The newest that is complete.
    pub newest: Option<CellBackup>,
    pub last_drill: Option<Operation>,
}

/// A cell with its tables.
struct Provisioned {
    cell: std::sync::Arc<Cell>,
    set: TableSet,
    tables: Vec<Wanted>,
}

impl Registrar {
    /// What a cell can be set back to.
    pub async fn recovery_status(&self, cell: &CellId) -> Result<RecoveryStatus, CellsError> {
        let Provisioned { cell, set, tables } = self.provisioned(cell).await?;
        let newest = match self.backups_of(&cell.id, &tables).await {
            Ok(backups) => backups.into_iter().find(|backup| backup.complete),
            // As point-in-time recovery is, which says so for itself.
            Err(CloudError::Unsupported) => None,
            Err(error) => return Err(error.into()),
        };
        let status = tables.iter().map(async |wanted| {
            let restorable = match self.cloud.restorable(&TableRef::from(wanted)).await {
                Err(CloudError::Unsupported) => None,
                known => Some(known?),
            };
            Ok::<_, CloudError>(TableRecovery { table: wanted.name.clone(), restorable })
        });
        let last_drill = self.drills(&cell.id).await?.into_iter().next();
        let tables = try_join_all(status).await?;
        Ok(RecoveryStatus { tables, schedule: set.backups, newest, last_drill })
    }

    /// The backups of a cell's tables, the newest first.
    pub async fn backups(&self, cell: &CellId) -> Result<Vec<CellBackup>, CellsError> {
        let Provisioned { cell, tables, .. } = self.provisioned(cell).await?;
        Ok(self.backups_of(&cell.id, &tables).await?)
    }

    /// Begins to back up a cell. Repeated with the same request, answers the operation that it began.
    pub async fn back_up(
        &self,
        cell: &CellId,
        request: Option<&Request>,
    ) -> Result<Operation, CellsError> {
        if let Some(begun) = self.begun(cell, request).await? {
            return Ok(begun);
        }
        let Provisioned { cell, set, tables } = self.provisioned(cell).await?;
        // An endpoint that knows none says so now.
        self.backups_of(&cell.id, &tables).await?;
        let goal = |id: &OperationId| Goal::BackUp {
            set: set.id,
            version: set.version,
            backup: asked_backup(&cell.id, id),
            keep_days: None,
        };
        self.start(&cell.id, goal, request).await
    }

    /// Begins to restore a cell's tables as another one's.
    pub async fn restore(
        &self,
        source: &CellId,
        target: &CellId,
        from: Origin,
        request: Option<&Request>,
    ) -> Result<Operation, CellsError> {
        if let Some(begun) = self.begun(target, request).await? {
            return Ok(begun);
        }
        let Provisioned { cell: source, set, tables } = self.provisioned(source).await?;
        let target = self.cell(target).await?;
        let violations = check::for_cell(&set, &self.prefix, &target);
        if !violations.is_empty() {
            return Err(CellsError::Invalid(violations));
        }
        let obstacles = self.restore_obstacles(&source, &target, &set).await?;
        if !obstacles.is_empty() {
            return Err(CellsError::InUse { cell: target.id.clone(), obstacles });
        }
        self.restorable(&source.id, &tables, &from).await?;
        let (set, version, source) = (set.id, set.version, source.id.clone());
        self.start(&target.id, |_| Goal::Restore { set, version, source, from }, request).await
    }

    /// Begins a recovery drill.
    pub async fn drill(
        &self,
        cell: &CellId,
        from: DrillSource,
        request: Option<&Request>,
    ) -> Result<Operation, CellsError> {
        if let Some(begun) = self.begun(cell, request).await? {
            return Ok(begun);
        }
        let Provisioned { cell, set, tables } = self.provisioned(cell).await?;
        let from = match from {
            DrillSource::LatestPointInTime => Origin::Latest,
            DrillSource::NewestBackup => {
                let backups = self.backups_of(&cell.id, &tables).await?;
                let newest = backups.into_iter().find(|backup| backup.complete);
                let newest = newest.ok_or_else(|| CellsError::NotRestorable {
                    cell: cell.id.clone(),
                    obstacles: vec!["there is no backup that every table has whole".to_owned()],
                })?;
                Origin::Backup(newest.name)
            }
        };
        self.restorable(&cell.id, &tables, &from).await?;
        // Every drill's suffix is as long as this one's.
        let any = OperationId::new("any").map_err(|_| CellsError::RequestIdReused)?;
        let long = tables.iter().map(|wanted| drill_table(&wanted.name, &any));
        if let Some(name) = long.into_iter().find(|name| name.len() > MAX_TABLE_NAME) {
            let problem = format!("makes the temporary table {name}, longer than 255 characters");
            return Err(CellsError::Invalid(vec![Violation { field: "cell_id".into(), problem }]));
        }
        let (set, version) = (set.id, set.version);
        self.start(&cell.id, |_| Goal::Drill { set, version, from }, request).await
    }

    /// A cell's drills, the newest first.
    pub async fn drills(&self, cell: &CellId) -> Result<Vec<Operation>, CellsError> {
        let mut drills = self.records.drills(cell).await?;
        drills.sort_by(|a, b| (b.created, &b.id).cmp(&(a.created, &a.id)));
        Ok(drills)
    }

    async fn provisioned(&self, cell: &CellId) -> Result<Provisioned, CellsError> {
        let cell = self.cell(cell).await?;
        let none = || CellsError::NotProvisioned { cell: cell.id.clone() };
        let record = self.records.cell_tables(&cell.id).await?;
        let (set, version) = record.and_then(|record| record.tables).ok_or_else(none)?;
        let set = self.records.table_set_at(&set, version).await?.ok_or_else(none)?;
        let tables = Wanted::of(&set, &self.prefix, &cell);
        Ok(Provisioned { cell, set, tables })
    }

    async fn backups_of(
        &self,
        cell: &CellId,
        tables: &[Wanted],
    ) -> Result<Vec<CellBackup>, CloudError> {
        // One after the other: few such calls are let through in a second.
        let mut backups = Vec::new();
        for wanted in tables {
            let of_table = self.cloud.backups(&TableRef::from(wanted)).await?;
            backups.push((wanted.name.clone(), of_table));
        }
        Ok(by_name(cell, backups))
    }

    /// Why a cell cannot be given another one's tables.
    async fn restore_obstacles(
        &self,
        source: &Cell,
        target: &Cell,
        set: &TableSet,
    ) -> Result<Vec<String>, CellsError> {
        let mut obstacles = Vec::new();
        if target.id == source.id {
            obstacles.push("a cell is not restored over itself: register another one".to_owned());
            return Ok(obstacles);
        }
        if target.region != source.region {
            let (own, other) = (&target.region, &source.region);
            obstacles.push(format!("the cell is in {own}, and its source in {other}"));
        }
        if target.state != CellState::Cordoned {
            let state = target.state.as_str();
            obstacles.push(format!("the cell is {state}: cordon it, so that no tenant comes"));
        }
        if target.placements > 0 {
            let tenants = target.placements;
            obstacles.push(format!("{tenants} tenants live in the cell: restore into another"));
        }
        let record = self.records.cell_tables(&target.id).await?;
        if record.is_some_and(|record| record.tables.is_some()) {
            obstacles.push("the cell has tables: restore into another".to_owned());
            return Ok(obstacles);
        }
        for wanted in Wanted::of(set, &self.prefix, target) {
            if self.cloud.observe(&TableRef::from(&wanted)).await?.is_some() {
                obstacles.push(format!("table {} exists: delete it first", wanted.name));
            }
        }
        Ok(obstacles)
    }

    /// Refuses what cannot be restored, with every table's reason.
    async fn restorable(
        &self,
        cell: &CellId,
        tables: &[Wanted],
        from: &Origin,
    ) -> Result<(), CellsError> {
        let mut obstacles = Vec::new();
        match from {
            Origin::Backup(name) => {
                let backups = self.backups_of(cell, tables).await?;
                let Some(backup) = backups.into_iter().find(|backup| backup.name == *name) else {
                    return Err(CellsError::BackupNotFound { cell: cell.clone() });
                };
                if backup.apart {
                    let name = &backup.name;
                    obstacles.push(format!(
                        "backups named {name} were begun more than an hour apart: they are not one"
                    ));
                }
                for Wanted { name: table, .. } in tables.iter().filter(|_| !backup.complete) {
                    let whole = |(of, one): &(String, _)| of == table && available(one);
                    if !backup.tables.iter().any(whole) {
                        obstacles.push(format!("table {table} has no whole backup of this name"));
                    }
                }
            }
            Origin::PointInTime(_) | Origin::Latest => {
                for wanted in tables {
                    let is = self.cloud.restorable(&TableRef::from(wanted)).await?;
                    obstacles.extend(outside(&wanted.name, &is, from));
                }
            }
        }
        match obstacles.is_empty() {
            true => Ok(()),
            false => Err(CellsError::NotRestorable { cell: cell.clone(), obstacles }),
        }
    }
}

fn available(backup: &crate::cells::cloud::Backup) -> bool {
    backup.available
}

/// Why a table cannot be set back to a time.
fn outside(table: &str, is: &Restorable, from: &Origin) -> Option<String> {
    match (is, from) {
        (Restorable::NoTable, _) => Some(format!("table {table} does not exist")),
        (Restorable::Off, _) => Some(format!("table {table} has no point-in-time recovery")),
        (Restorable::Between { earliest, latest, .. }, Origin::PointInTime(at)) => {
            let inside = |at: &Timestamp| at >= earliest && at <= latest;
            (!inside(at))
                .then(|| format!("table {table} can be set back to {earliest} until {latest}"))
        }
        (Restorable::Between { .. }, _) => None,
    }
}
