//! `cells.v1.CellRecovery`: parses, asks, and writes what is answered. Decides nothing.

use tonic::{Request, Response, Status};

use super::admin::paged;
use super::convert::{duration_between, timestamp};
use super::page::Query;
use super::parse;
use super::status::{Fault, Reason};
use super::tables::{operation_id, operation_message, schedule_message, version};
use crate::cells::{
    CellBackup, CellsError, Compared, DrillOutcome, DrillSource, Operation, Origin, Registrar,
    Restorable, TableRecovery,
};
use crate::domain::Timestamp;
use crate::proto::v1;
use crate::proto::v1::cell_recovery_server::CellRecovery;
use crate::proto::v1::restore_cell_request::From as AskedOrigin;

pub struct RecoveryService {
    pub cells: Registrar,
}

#[tonic::async_trait]
impl CellRecovery for RecoveryService {
    async fn get_recovery_status(
        &self,
        request: Request<v1::GetRecoveryStatusRequest>,
    ) -> Result<Response<v1::GetRecoveryStatusResponse>, Status> {
        let cell = parse::cell_id("cell_id", &request.into_inner().cell_id)?;
        let status = self.cells.recovery_status(&cell).await.map_err(Fault::from)?;
        let now = self.cells.directory.now();
        let age = status.newest.as_ref().map(|newest| duration_between(newest.created, now));
        Ok(Response::new(v1::GetRecoveryStatusResponse {
            tables: status.tables.iter().map(table).collect(),
            schedule: status.schedule.map(schedule_message),
            newest_backup: status.newest.as_ref().map(backup),
            newest_backup_age: age,
            last_drill: status.last_drill.as_ref().map(drill),
        }))
    }

    async fn list_backups(
        &self,
        request: Request<v1::ListBackupsRequest>,
    ) -> Result<Response<v1::ListBackupsResponse>, Status> {
        let request = request.into_inner();
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let query = Query { method: "ListBackups", filter: &request.cell_id };
        let page = (request.page_size, request.page_token.as_str());
        let backups = self.cells.backups(&cell).await.map_err(Fault::from)?;
        let all = newest_first(backups, |backup| (backup.created, &backup.name));
        let (page, next_page_token) = paged(all, |(at, _)| at, &query, page)?;
        let backups = page.iter().map(|(_, one)| backup(one)).collect();
        Ok(Response::new(v1::ListBackupsResponse { backups, next_page_token }))
    }

    async fn back_up_cell(
        &self,
        request: Request<v1::BackUpCellRequest>,
    ) -> Result<Response<v1::BackUpCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "BackUpCell", &request)?;
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let begun = self.cells.back_up(&cell, id.as_ref()).await.map_err(Fault::from)?;
        let backup_name = begun.backup().unwrap_or_default().to_owned();
        let operation = Some(operation_message(&begun));
        Ok(Response::new(v1::BackUpCellResponse { operation, backup_name }))
    }

    async fn restore_cell(
        &self,
        request: Request<v1::RestoreCellRequest>,
    ) -> Result<Response<v1::RestoreCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "RestoreCell", &request)?;
        let source = parse::cell_id("source_cell_id", &request.source_cell_id)?;
        let target = parse::cell_id("target_cell_id", &request.target_cell_id)?;
        let from = origin(request.from, self.cells.directory.now())?;
        let begun = self.cells.restore(&source, &target, from, id.as_ref()).await;
        let operation = Some(operation_message(&begun.map_err(Fault::from)?));
        Ok(Response::new(v1::RestoreCellResponse { operation }))
    }

    async fn start_recovery_drill(
        &self,
        request: Request<v1::StartRecoveryDrillRequest>,
    ) -> Result<Response<v1::StartRecoveryDrillResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "StartRecoveryDrill", &request)?;
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let source = match v1::DrillSource::try_from(request.source) {
            Ok(v1::DrillSource::Unspecified | v1::DrillSource::LatestPointInTime) => {
                DrillSource::LatestPointInTime
            }
            Ok(v1::DrillSource::NewestBackup) => DrillSource::NewestBackup,
            Err(_) => return Err(parse::unknown("source", request.source).into()),
        };
        let begun = self.cells.drill(&cell, source, id.as_ref()).await.map_err(Fault::from)?;
        let operation = Some(operation_message(&begun));
        Ok(Response::new(v1::StartRecoveryDrillResponse { operation }))
    }

    async fn get_recovery_drill(
        &self,
        request: Request<v1::GetRecoveryDrillRequest>,
    ) -> Result<Response<v1::GetRecoveryDrillResponse>, Status> {
        let request = request.into_inner();
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let id = operation_id("operation_id", request.operation_id)?;
        let drills = self.cells.drills(&cell).await.map_err(Fault::from)?;
        let found = drills.iter().find(|drill| drill.id == id).map(drill);
        let drill = found.ok_or_else(|| Fault::from(CellsError::DrillNotFound { cell }))?;
        Ok(Response::new(v1::GetRecoveryDrillResponse { drill: Some(drill) }))
    }

    async fn list_recovery_drills(
        &self,
        request: Request<v1::ListRecoveryDrillsRequest>,
    ) -> Result<Response<v1::ListRecoveryDrillsResponse>, Status> {
        let request = request.into_inner();
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let query = Query { method: "ListRecoveryDrills", filter: &request.cell_id };
        let page = (request.page_size, request.page_token.as_str());
        let drills = self.cells.drills(&cell).await.map_err(Fault::from)?;
        let all = newest_first(drills, |drill| (drill.created, drill.id.as_str()));
        let (page, next_page_token) = paged(all, |(at, _)| at, &query, page)?;
        let drills = page.iter().map(|(_, one)| drill(one)).collect();
        Ok(Response::new(v1::ListRecoveryDrillsResponse { drills, next_page_token }))
    }
}

/// Each with a text by which the newest comes first.
fn newest_first<T>(all: Vec<T>, key: impl Fn(&T) -> (Timestamp, &str)) -> Vec<(String, T)> {
    let place = |one: &T| {
        let (created, id) = key(one);
        let left = i64::MAX.saturating_sub(created.millis()).max(0);
        format!("{left:020}/{id}")
    };
    let mut placed: Vec<_> = all.into_iter().map(|one| (place(&one), one)).collect();
    placed.sort_by(|(a, _), (b, _)| a.cmp(b));
    placed
}

fn origin(asked: Option<AskedOrigin>, now: Timestamp) -> Result<Origin, Fault> {
    match asked {
        None => Err(parse::missing("from")),
        Some(AskedOrigin::BackupName(name)) if name.is_empty() => {
            Err(parse::missing("backup_name"))
        }
        Some(AskedOrigin::BackupName(name)) => Ok(Origin::Backup(name)),
        Some(AskedOrigin::PointInTime(at)) => {
            let at = parse::past_time("point_in_time", Some(at), now)?;
            at.map(Origin::PointInTime).ok_or_else(|| parse::missing("point_in_time"))
        }
        Some(AskedOrigin::LatestPointInTime(true)) => Ok(Origin::Latest),
        Some(AskedOrigin::LatestPointInTime(false)) => Err(Fault::field(
            Reason::MissingField,
            "latest_point_in_time",
            "is false; set it to true, or name a backup or a time",
        )),
    }
}

fn table(table: &TableRecovery) -> v1::TableRecovery {
    use v1::PointInTimeRecoveryState as State;
    let state = match &table.restorable {
        None => State::Unsupported,
        Some(Restorable::Off) => State::Off,
        Some(Restorable::NoTable) => State::NoTable,
        Some(Restorable::Between { .. }) => State::On,
    };
    let mut message = v1::TableRecovery {
        table: table.table.clone(),
        point_in_time_recovery: state.into(),
        ..Default::default()
    };
    if let Some(Restorable::Between { earliest, latest, days }) = &table.restorable {
        message.days = i32::from(*days);
        message.earliest_restore_time = Some(timestamp(*earliest));
        message.latest_restore_time = Some(timestamp(*latest));
    }
    message
}

fn backup(backup: &CellBackup) -> v1::CellBackup {
    let tables = backup.tables.iter().map(|(table, one)| v1::TableBackup {
        table: table.clone(),
        available: one.available,
        size_bytes: version(one.bytes),
        create_time: Some(timestamp(one.created)),
    });
    v1::CellBackup {
        backup_name: backup.name.clone(),
        create_time: Some(timestamp(backup.created)),
        scheduled: backup.scheduled,
        complete: backup.complete,
        tables: tables.collect(),
    }
}

fn drill(operation: &Operation) -> v1::RecoveryDrill {
    use v1::DrillOutcome as Outcome;
    let recovery = operation.recovery.clone().unwrap_or_default();
    let outcome = match operation.drill_outcome() {
        DrillOutcome::Running => Outcome::Running,
        DrillOutcome::Matched => Outcome::Matched,
        DrillOutcome::Different => Outcome::Different,
        DrillOutcome::Failed => Outcome::Failed,
    };
    let comparisons = recovery.compared.iter();
    let tables = comparisons.map(|(table, compared)| comparison(operation, table, compared));
    let began = operation.created;
    v1::RecoveryDrill {
        operation_id: operation.id.as_str().to_owned(),
        cell_id: operation.cell.as_str().to_owned(),
        outcome: outcome.into(),
        backup_name: operation.backup().unwrap_or_default().to_owned(),
        restore_point: recovery.point.map(timestamp),
        recovery_point: recovery.point.map(|point| duration_between(point, operation.lost_at())),
        recovery_time: recovery.usable.map(|usable| duration_between(began, usable)),
        tables: tables.collect(),
        failure: recovery.failure.or_else(|| operation.error.clone()).unwrap_or_default(),
        left_tables: recovery.left,
        create_time: Some(timestamp(began)),
        end_time: operation.ended().then(|| timestamp(operation.updated)),
    }
}

fn comparison(operation: &Operation, table: &str, compared: &Compared) -> v1::TableComparison {
    let digest = |tallied: &crate::cells::Tallied| v1::TableDigest {
        items: version(tallied.items),
        digest: tallied.digest.clone(),
    };
    let differences = compared.differences.map(|differences| v1::ItemDifferences {
        missing: version(differences.missing),
        extra: version(differences.extra),
        differing: version(differences.differing),
    });
    v1::TableComparison {
        table: table.to_owned(),
        restored_table: crate::cells::drill_table(table, &operation.id),
        matched: compared.matched,
        source: Some(digest(&compared.source)),
        restored: Some(digest(&compared.restored)),
        differences,
        compare_time: Some(timestamp(compared.at)),
    }
}
