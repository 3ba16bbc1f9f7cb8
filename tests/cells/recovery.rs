//! Backups, restores and drills, on moto: what it restores are real copies of real items, at once, and of the present whatever the time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_recovery_client::CellRecoveryClient;
use cell_directory::proto::v1::restore_cell_request::From;
use tonic::Code;
use tonic::transport::Channel;

use crate::embedded::Embedded;
use crate::world::{Engine, World, fault, table};

const SOON: Duration = Duration::from_secs(60);

fn recoverable(name: &str) -> v1::TableSpec {
    v1::TableSpec { point_in_time_recovery_days: 14, deletion_protection: true, ..table(name) }
}

struct Stage {
    world: World,
    dynamodb: Client,
}

impl Stage {
    /// `cell-a` with tables and 50 items, and `cell-b`, cordoned and empty.
    async fn new() -> Self {
        Self::with(&["CustomerData", "Orders"]).await
    }

    async fn with(tables: &[&str]) -> Self {
        let mut world = World::new(Engine::moto(), &["cell-a", "cell-b"]).await;
        world.put_set(tables.iter().map(|name| recoverable(name)).collect()).await;
        world.provision("cell-a").await;
        world.cordon("cell-b").await;
        let dynamodb = Client::new(&world.sdk().await);
        let stage = Self { world, dynamodb };
        for number in 0..50 {
            stage.put(number, "first").await;
        }
        stage
    }

    async fn put(&self, number: u32, value: &str) {
        let text = |value: String| AttributeValue::S(value);
        let table = self.world.table("CustomerData", "cell-a");
        let put = self.dynamodb.put_item().table_name(table);
        let put = put.item("PK", text(format!("CUSTOMER#{number}"))).item("SK", text("x".into()));
        let put = put.item("CellId", text("cell-a".into())).item("Value", text(value.into()));
        let set = vec![format!("{number}.0"), "7".to_owned()];
        put.item("Set", AttributeValue::Ns(set)).send().await.unwrap();
    }

    async fn delete(&self, number: u32) {
        let text = |value: String| AttributeValue::S(value);
        let table = self.world.table("CustomerData", "cell-a");
        let delete = self.dynamodb.delete_item().table_name(table);
        let delete = delete.key("PK", text(format!("CUSTOMER#{number}")));
        delete.key("SK", text("x".into())).send().await.unwrap();
    }

    /// Of a cell's `CustomerData`, past the server.
    async fn items(&self, cell: &str) -> BTreeMap<String, HashMap<String, AttributeValue>> {
        let scan = self.dynamodb.scan().table_name(self.world.table("CustomerData", cell));
        let items = scan.send().await.unwrap().items.unwrap_or_default();
        items.into_iter().map(|item| (item["PK"].as_s().unwrap().clone(), item)).collect()
    }

    async fn tables(&self) -> Vec<String> {
        self.dynamodb.list_tables().send().await.unwrap().table_names.unwrap_or_default()
    }

    async fn client(&self) -> CellRecoveryClient<Channel> {
        CellRecoveryClient::new(self.world.server.channel().await)
    }

    async fn back_up(&mut self) -> (String, v1::Operation) {
        let request = v1::BackUpCellRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
        let begun = self.client().await.back_up_cell(request).await.unwrap().into_inner();
        let id = begun.operation.unwrap().operation_id;
        (begun.backup_name, self.world.ended(&id).await)
    }

    async fn restore(&mut self, from: From) -> v1::Operation {
        let begun = self.client().await.restore_cell(to_b(from)).await.unwrap().into_inner();
        begun.operation.unwrap()
    }

    async fn begin_drill(&mut self, source: v1::DrillSource) -> String {
        let request = v1::StartRecoveryDrillRequest {
            cell_id: "cell-a".to_owned(),
            source: source.into(),
            ..Default::default()
        };
        let begun = self.client().await.start_recovery_drill(request).await.unwrap();
        begun.into_inner().operation.unwrap().operation_id
    }

    async fn drilled(&mut self, id: &str) -> v1::RecoveryDrill {
        let operation = self.world.ended(id).await;
        let request = v1::GetRecoveryDrillRequest {
            cell_id: "cell-a".to_owned(),
            operation_id: id.to_owned(),
        };
        let drill = self.client().await.get_recovery_drill(request).await.unwrap().into_inner();
        let drill = drill.drill.unwrap();
        assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?} {drill:?}");
        assert!(drill.end_time.is_some() && drill.left_tables.is_empty(), "{drill:?}");
        drill
    }

    async fn status(&self) -> v1::GetRecoveryStatusResponse {
        let request = v1::GetRecoveryStatusRequest { cell_id: "cell-a".to_owned() };
        self.client().await.get_recovery_status(request).await.unwrap().into_inner()
    }
}

fn to_b(from: From) -> v1::RestoreCellRequest {
    v1::RestoreCellRequest {
        source_cell_id: "cell-a".to_owned(),
        target_cell_id: "cell-b".to_owned(),
        from: Some(from),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_is_restored_from_a_backup_with_all_that_a_restore_leaves_out() {
    let mut stage = Stage::new().await;
    let (name, operation) = stage.back_up().await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    assert_eq!(operation.r#type(), v1::OperationType::BackUp);
    assert_eq!(name, format!("celld-cell-a-{}", operation.operation_id));
    let backed_up = stage.items("cell-a").await;
    stage.put(50, "later").await;
    stage.put(3, "later").await;

    let status = stage.status().await;
    assert_eq!(status.tables.len(), 2);
    for table in &status.tables {
        assert_eq!(table.point_in_time_recovery(), v1::PointInTimeRecoveryState::On);
        assert_eq!(table.days, 14);
        assert!(table.earliest_restore_time.is_some() && table.latest_restore_time.is_some());
    }
    let newest = status.newest_backup.unwrap();
    assert_eq!((newest.backup_name.as_str(), newest.complete), (name.as_str(), true));
    assert!(status.newest_backup_age.unwrap().seconds < 60);
    assert!(status.schedule.is_none() && status.last_drill.is_none());

    let operation = stage.restore(From::BackupName(name)).await;
    assert_eq!(
        (operation.cell_id.as_str(), operation.r#type()),
        ("cell-b", v1::OperationType::Restore)
    );
    let operation = stage.world.ended(&operation.operation_id).await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    assert_eq!(stage.items("cell-b").await, backed_up, "as of the backup");
    assert_eq!(stage.items("cell-a").await.len(), 51, "the source is as it was");
    // Stream, TTL, tags, recovery, protection: all as declared, and the cell is one with tables.
    assert_eq!(stage.world.changes("cell-b").await, Vec::<String>::new());
    let done: Vec<_> = operation.steps.iter().map(|step| step.done.as_str()).collect();
    for mended in [
        "enable the stream NEW_AND_OLD_IMAGES",
        "delete by the time in TTL",
        "enable point-in-time recovery for 14 days",
        "protect from deletion",
    ] {
        assert!(done.contains(&mended), "{mended}: {done:?}");
    }
    let again = stage.client().await.restore_cell(to_b(From::LatestPointInTime(true))).await;
    assert_eq!(fault(&again.unwrap_err()).1, "CELL_IN_USE", "the cell has tables now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_is_restored_to_a_point_in_time_though_the_server_is_killed() {
    // One table: in moto a table can be set back to the one moment at which that was switched on.
    let mut stage = Stage::with(&["CustomerData"]).await;
    let time = stage.status().await.tables[0].latest_restore_time;
    let outside = v1::RestoreCellRequest {
        from: Some(From::PointInTime(prost_types::Timestamp { seconds: 1_000, nanos: 0 })),
        ..to_b(From::LatestPointInTime(true))
    };
    let refused = stage.client().await.restore_cell(outside).await.unwrap_err();
    assert_eq!(fault(&refused).1, "NOT_RESTORABLE");
    let before = stage.items("cell-a").await;
    let begun = stage.restore(From::PointInTime(time.unwrap())).await;
    for pause in [0, 100, 250] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        stage.world.restart().await;
    }
    let operation = stage.world.ended(&begun.operation_id).await;
    assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    assert_eq!(stage.items("cell-b").await, before);
    assert_eq!(stage.world.changes("cell-b").await, Vec::<String>::new());
    assert_eq!(stage.world.provision("cell-b").await.steps_done, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_matches_on_a_quiet_cell_and_counts_what_differs_on_another() {
    let mut stage = Stage::new().await;
    let tables = stage.tables().await;
    let id = stage.begin_drill(v1::DrillSource::LatestPointInTime).await;
    let quiet = stage.drilled(&id).await;
    assert_eq!(quiet.outcome(), v1::DrillOutcome::Matched, "{quiet:?}");
    assert_eq!(quiet.tables.len(), 2);
    let data = &quiet.tables[0];
    assert_eq!(data.table, stage.world.table("CustomerData", "cell-a"));
    assert_eq!(data.source, data.restored);
    assert_eq!(data.source.as_ref().unwrap().items, 50);
    assert_eq!((data.source.as_ref().unwrap().digest.len(), &data.differences), (64, &None));
    assert!(quiet.recovery_time.is_some() && quiet.recovery_point.is_some());
    assert_eq!(stage.tables().await, tables, "the temporary tables are gone");

    let (name, _) = stage.back_up().await;
    for number in [0, 1] {
        stage.put(number, "changed").await;
    }
    stage.delete(2).await;
    for number in [50, 51, 52] {
        stage.put(number, "new").await;
    }
    let id = stage.begin_drill(v1::DrillSource::NewestBackup).await;
    let drill = stage.drilled(&id).await;
    assert_eq!(drill.outcome(), v1::DrillOutcome::Different, "{drill:?}");
    assert_eq!(drill.backup_name, name);
    let differences = drill.tables[0].differences.unwrap();
    assert_eq!((differences.missing, differences.extra, differences.differing), (3, 1, 2));
    assert_eq!(drill.tables[0].source.as_ref().unwrap().items, 52);
    assert!(drill.tables[1].matched);
    assert_eq!(stage.tables().await, tables);
    let kept = stage.items("cell-a").await;
    assert_eq!(kept.len(), 52, "the cell's own tables are untouched");

    let list = |page_size, page_token| v1::ListRecoveryDrillsRequest {
        cell_id: "cell-a".to_owned(),
        page_size,
        page_token,
    };
    let mut client = stage.client().await;
    let first = client.list_recovery_drills(list(1, String::new())).await.unwrap().into_inner();
    assert_eq!(first.drills, std::slice::from_ref(&drill), "the newest first");
    let rest = client.list_recovery_drills(list(1, first.next_page_token)).await.unwrap();
    let rest = rest.into_inner();
    assert_eq!((rest.drills, rest.next_page_token.as_str()), (vec![quiet], ""));
    assert_eq!(stage.status().await.last_drill, Some(drill));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_goes_on_after_kills_and_leaves_nothing() {
    let mut stage = Stage::new().await;
    let tables = stage.tables().await;
    let id = stage.begin_drill(v1::DrillSource::LatestPointInTime).await;
    // Killed when the first temporary table is there, and at whatever comes later.
    let deadline = Instant::now() + SOON;
    while stage.tables().await.len() == tables.len() {
        assert!(Instant::now() < deadline, "nothing is restored");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for pause in [0, 150] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        stage.world.restart().await;
    }
    let drill = stage.drilled(&id).await;
    assert_eq!(drill.outcome(), v1::DrillOutcome::Matched, "{drill:?}");
    assert_eq!(stage.tables().await, tables);
    assert_eq!(stage.items("cell-a").await.len(), 50);
}

/// Backups of the slot that is under way, made by nobody's call, and listed with those that were asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_backs_up_a_cell_once_a_slot() {
    let mut world =
        World::with_flags(Engine::moto(), &["cell-a"], &["--backups-interval=50ms"]).await;
    let schedule = |every_hours| Some(v1::BackupSchedule { every_hours, keep_days: 30 });
    let set = |every_hours| v1::TableSet {
        table_set_id: "default".to_owned(),
        tables: vec![recoverable("CustomerData"), recoverable("Orders")],
        backups: schedule(every_hours),
        ..Default::default()
    };
    let request = |every_hours| v1::PutTableSetRequest {
        table_set: Some(set(every_hours)),
        validate_only: false,
    };
    let refused = world.admin.put_table_set(request(0)).await.unwrap_err();
    let expected = ["table_set.backups.every_hours".to_owned()].to_vec();
    assert_eq!(fault(&refused), (Code::InvalidArgument, "INVALID_TABLE_SET".to_owned(), expected));
    let put = world.admin.put_table_set(request(720)).await.unwrap().into_inner();
    assert_eq!(put.table_set.unwrap().backups, schedule(720));
    world.provision("cell-a").await;
    let dynamodb = Client::new(&world.sdk().await);
    let mut stage = Stage { world, dynamodb };
    let deadline = Instant::now() + SOON;
    let newest = loop {
        if let Some(newest) = stage.status().await.newest_backup {
            break newest;
        }
        assert!(Instant::now() < deadline, "no backup is made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(newest.scheduled && newest.complete, "{newest:?}");
    assert_eq!(stage.status().await.schedule, schedule(720));
    // Another process and further looks make no other one.
    stage.world.restart().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (asked, _) = stage.back_up().await;
    let request = v1::ListBackupsRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let listed = stage.client().await.list_backups(request).await.unwrap().into_inner();
    let names: Vec<_> = listed.backups.iter().map(|one| one.backup_name.as_str()).collect();
    assert_eq!(names, [asked.as_str(), newest.backup_name.as_str()], "the newest first");
    let request =
        v1::ListBackupsRequest { cell_id: "cell-a".to_owned(), page_size: 1, ..Default::default() };
    let page = stage.client().await.list_backups(request.clone()).await.unwrap().into_inner();
    assert_eq!(page.backups, listed.backups[..1]);
    let request = v1::ListBackupsRequest { page_token: page.next_page_token, ..request };
    let page = stage.client().await.list_backups(request).await.unwrap().into_inner();
    assert_eq!((&page.backups[..], page.next_page_token.as_str()), (&listed.backups[1..], ""));
    let all = stage.dynamodb.list_backups().send().await.unwrap().backup_summaries.unwrap();
    assert_eq!(all.len(), 4, "two of each table");
}

/// Each refusal says what is in the way, and nothing is begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused() {
    let mut stage = Stage::new().await;
    let tables = stage.tables().await;
    let mut client = stage.client().await;
    let latest = || to_b(From::LatestPointInTime(true));
    for (request, code, reason, field) in [
        (
            v1::RestoreCellRequest { from: None, ..latest() },
            Code::InvalidArgument,
            "MISSING_FIELD",
            "from",
        ),
        (
            to_b(From::BackupName(String::new())),
            Code::InvalidArgument,
            "MISSING_FIELD",
            "backup_name",
        ),
        (
            to_b(From::LatestPointInTime(false)),
            Code::InvalidArgument,
            "MISSING_FIELD",
            "latest_point_in_time",
        ),
        (
            to_b(From::PointInTime(prost_types::Timestamp { seconds: 99_999_999_999, nanos: 0 })),
            Code::InvalidArgument,
            "INVALID_TIME",
            "point_in_time",
        ),
        (
            v1::RestoreCellRequest { target_cell_id: "B".to_owned(), ..latest() },
            Code::InvalidArgument,
            "INVALID_CELL_ID",
            "target_cell_id",
        ),
        (
            v1::RestoreCellRequest { target_cell_id: "cell-z".to_owned(), ..latest() },
            Code::NotFound,
            "CELL_NOT_FOUND",
            "",
        ),
        (to_b(From::BackupName("no-such".to_owned())), Code::NotFound, "BACKUP_NOT_FOUND", ""),
        (
            v1::RestoreCellRequest { source_cell_id: "cell-b".to_owned(), ..latest() },
            Code::FailedPrecondition,
            "CELL_NOT_PROVISIONED",
            "",
        ),
        (
            v1::RestoreCellRequest { target_cell_id: "cell-a".to_owned(), ..latest() },
            Code::FailedPrecondition,
            "CELL_IN_USE",
            "",
        ),
    ] {
        let status = client.restore_cell(request).await.unwrap_err();
        let fields = [field].into_iter().filter(|field| !field.is_empty());
        let fields: Vec<_> = fields.map(str::to_owned).collect();
        assert_eq!(fault(&status), (code, reason.to_owned(), fields), "{status:?}");
    }
    let mut active = v1::Cell { cell_id: "cell-b".to_owned(), ..Default::default() };
    active.state = v1::CellState::Active.into();
    let request = v1::UpdateCellRequest {
        cell: Some(active),
        update_mask: Some(prost_types::FieldMask { paths: vec!["state".to_owned()] }),
        ..Default::default()
    };
    stage.world.admin.update_cell(request).await.unwrap();
    let refused = client.restore_cell(latest()).await.unwrap_err();
    assert_eq!(fault(&refused).1, "CELL_IN_USE");
    let drill = v1::StartRecoveryDrillRequest {
        cell_id: "cell-a".to_owned(),
        source: v1::DrillSource::NewestBackup.into(),
        ..Default::default()
    };
    let refused = client.start_recovery_drill(drill.clone()).await.unwrap_err();
    assert_eq!(fault(&refused).1, "NOT_RESTORABLE", "there is no backup");
    let unknown = v1::StartRecoveryDrillRequest { source: 9, ..drill };
    let refused = client.start_recovery_drill(unknown).await.unwrap_err();
    assert_eq!(fault(&refused).1, "UNKNOWN_ENUM_VALUE");
    let request = v1::GetRecoveryDrillRequest {
        cell_id: "cell-a".to_owned(),
        operation_id: "op-none".to_owned(),
    };
    let absent = client.get_recovery_drill(request).await.unwrap_err();
    assert_eq!(fault(&absent).1, "DRILL_NOT_FOUND");
    assert_eq!(stage.tables().await, tables, "nothing was made");
    // The same request again is the same operation.
    let request =
        v1::BackUpCellRequest { cell_id: "cell-a".to_owned(), request_id: "once".to_owned() };
    let begun = client.back_up_cell(request.clone()).await.unwrap().into_inner();
    assert_eq!(
        client.back_up_cell(request).await.unwrap().into_inner().backup_name,
        begun.backup_name
    );
}

/// The embedded engine knows neither backups nor recovery: that is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_are_no_backups_that_is_said() {
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    let mut world = World::new(engine, &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let dynamodb = Client::new(&world.sdk().await);
    let stage = Stage { world, dynamodb };
    let status = stage.status().await;
    let state = status.tables[0].point_in_time_recovery();
    assert_eq!(state, v1::PointInTimeRecoveryState::Unsupported);
    assert!(status.newest_backup.is_none());
    let request = v1::BackUpCellRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let refused = stage.client().await.back_up_cell(request).await.unwrap_err();
    assert_eq!(fault(&refused).1, "AWS_UNSUPPORTED");
}
