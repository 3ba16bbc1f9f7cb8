//! Moves that operators steer and look at, and those that cannot be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use cell_directory::proto::v1::start_migration_request::Target;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::celld::cell;
use crate::embedded::Embedded;
use crate::scene::{FLAGS, Item, Scene, partition, request, tables, text};
use crate::world::{Engine, fault};

const SOON: Duration = Duration::from_secs(120);

const TENANT: &str = "steered";
const ITEMS: i64 = 60;

fn embedded() -> Engine {
    Engine::Embedded(Arc::new(Embedded::temporary()))
}

fn item(tenant: &str, sort: &str, cell: &str) -> Item {
    [("PK", partition(tenant)), ("SK", sort.to_owned()), ("CellId", cell.to_owned())]
        .map(|(name, value)| (name.to_owned(), text(&value)))
        .into()
}

fn at_once(tenant: &str, to: &str) -> v1::StartMigrationRequest {
    let soak_duration = Some(prost_types::Duration::default());
    v1::StartMigrationRequest { soak_duration, ..request(tenant, to) }
}

/// Asserts that a call was refused for what is as it is.
#[track_caller]
fn refused(status: &Status, reason: &str) {
    assert_eq!(fault(status), (Code::FailedPrecondition, reason.to_owned(), vec![]), "{status:?}");
}

impl Scene {
    async fn verify(&mut self) -> v1::VerifyTenantResponse {
        let request = v1::VerifyTenantRequest { partition_key: TENANT.to_owned() };
        self.moves.verify_tenant(request).await.unwrap().into_inner()
    }

    async fn ended(&mut self, id: &str) -> v1::Migration {
        let deadline = Instant::now() + SOON;
        loop {
            let migration = self.get(id).await;
            if migration.end_time.is_some() {
                return migration;
            }
            assert!(Instant::now() < deadline, "{migration:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn missing_guards(&mut self) -> i64 {
        let request = v1::GetGuardCoverageRequest { cell_id: "cell-a".to_owned() };
        let counted = self.moves.get_guard_coverage(request).await.unwrap().into_inner();
        assert_eq!(counted.placements, 1);
        counted.missing
    }

    async fn deprovision(&mut self, cell: &str) -> Result<v1::Operation, Status> {
        let (cell_id, delete_data) = (cell.to_owned(), true);
        let request = v1::DeprovisionCellRequest { cell_id, delete_data, ..Default::default() };
        let begun = self.world.admin.deprovision_cell(request).await?.into_inner();
        Ok(begun.operation.unwrap())
    }
}

/// What is in each cell, the tenant's own first.
fn cells(verified: &v1::VerifyTenantResponse) -> Vec<(&str, i64)> {
    verified.cells.iter().map(|one| (one.cell_id.as_str(), one.items)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_stands_still_when_it_is_paused_and_what_each_cell_holds_can_be_seen() {
    let mut scene = Scene::plain(embedded()).await;
    scene.pin(TENANT, "cell-a").await;
    for n in 0..ITEMS {
        scene.write("CustomerData", "cell-a", item(TENANT, &format!("{n:03}"), "cell-a")).await;
    }
    // The first page takes more than a hundred units: the next one waits for some seconds.
    let begun = scene.start_with(v1::StartMigrationRequest {
        rate_limit_units: 15,
        verification: v1::MigrationVerification::Strict.into(),
        ..request(TENANT, "cell-b")
    });
    let id = begun.await.unwrap().migration_id;
    scene.until(&id, v1::MigrationState::Copying).await;
    let migration_id = id.clone();
    scene.moves.pause_migration(v1::PauseMigrationRequest { migration_id }).await.unwrap();

    // Not all was copied, which is no difference.
    let verified = scene.verify().await;
    let report = verified.report.as_ref().unwrap();
    assert_eq!((report.source_items, report.target_items, report.mismatches), (ITEMS, 0, 0));
    let found = cells(&verified);
    assert_eq!((found[0], found[1].0, found.len()), (("cell-a", ITEMS), "cell-b", 2));
    assert_eq!(verified.leftovers, 0);
    let paused = scene.get(&id).await;
    assert_eq!((paused.state(), paused.paused), (v1::MigrationState::Copying, true));

    // A stranger to all guards. The comparison before the fence mends that, and the one under it finds nothing any more.
    scene.write("CustomerData", "cell-b", item(TENANT, "stray", "cell-b")).await;
    let migration_id = id.clone();
    scene.moves.resume_migration(v1::ResumeMigrationRequest { migration_id }).await.unwrap();
    let soaking = scene.until(&id, v1::MigrationState::Soaking).await;
    let told = |migration: &v1::Migration| {
        let report = migration.report.clone().unwrap();
        (report.source_items, report.target_items, report.mismatches, report.repaired)
    };
    assert_eq!(told(&soaking), (ITEMS, ITEMS, 1, 1));
    let example = &soaking.report.as_ref().unwrap().examples[0];
    assert_eq!((example.r#type(), example.repaired), (v1::MismatchType::Extra, true));

    let verified = scene.verify().await;
    assert_eq!(cells(&verified), [("cell-b", ITEMS), ("cell-a", ITEMS)]);
    assert_eq!((verified.report.unwrap().mismatches, verified.leftovers), (0, 0));
    scene.write("CustomerData", "cell-a", item(TENANT, "stray", "cell-a")).await;
    let verified = scene.verify().await;
    assert_eq!(cells(&verified), [("cell-b", ITEMS), ("cell-a", ITEMS + 1)]);
    let report = verified.report.unwrap();
    assert_eq!((report.mismatches, report.repaired), (1, 0), "{report:?}");

    // The way back mends that, too, and tells of both.
    scene.reverse(&id).await;
    let done = scene.until(&id, v1::MigrationState::Done).await;
    assert_eq!((done.live_cell_id.as_str(), told(&done)), ("cell-a", (ITEMS, ITEMS, 2, 2)));
    scene.write("CustomerData", "cell-b", item(TENANT, "stray", "cell-b")).await;
    let verified = scene.verify().await;
    assert_eq!((cells(&verified), verified.leftovers), (vec![("cell-a", ITEMS), ("cell-b", 1)], 1));
    let report = verified.report.unwrap();
    assert_eq!((report.source_items, report.target_items, report.mismatches), (ITEMS, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_without_room_or_with_other_tables_is_no_target() {
    let gold = [("tier".to_owned(), "gold".to_owned())];
    let all = vec![
        cell("cell-a"),
        v1::Cell { capacity: Some(1), ..cell("cell-full") },
        v1::Cell { labels: gold.into(), region: "us-east-1".to_owned(), ..cell("cell-gold") },
        cell("cell-plain"),
    ];
    let mut scene = Scene::with_cells(embedded(), all, &[]).await;
    let mut differ = tables();
    differ[0].tenant_key_templates = vec!["OTHER#{partition_key}".to_owned()];
    let set = v1::TableSet {
        table_set_id: "other".to_owned(),
        tables: differ.clone(),
        ..Default::default()
    };
    let put = v1::PutTableSetRequest { table_set: Some(set), validate_only: false };
    scene.world.admin.put_table_set(put).await.unwrap();
    let create = v1::CreateCellRequest { cell: Some(cell("cell-other")), ..Default::default() };
    scene.world.admin.create_cell(create).await.unwrap();
    let provision = v1::ProvisionCellRequest {
        cell_id: "cell-other".to_owned(),
        table_set_id: "other".to_owned(),
        ..Default::default()
    };
    let begun = scene.world.admin.provision_cell(provision).await.unwrap().into_inner();
    let ended = scene.world.ended(&begun.operation.unwrap().operation_id).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    scene.pin("resident", "cell-full").await;
    scene.pin(TENANT, "cell-a").await;
    scene.write("CustomerData", "cell-a", item(TENANT, "1", "cell-a")).await;

    let full = scene.start(TENANT, "cell-full").await.unwrap_err();
    refused(&full, "CELL_NOT_ELIGIBLE");
    assert!(full.message().contains("the cell cell-full is full: 1 of 1"), "{full:?}");
    let other = scene.start(TENANT, "cell-other").await.unwrap_err();
    refused(&other, "SCHEMAS_DIFFER");
    assert_eq!(other.get_details_error_info().unwrap().metadata["table"], differ[0].name);

    let choose = |labels: &[(&str, &str)], regions: &[&str]| v1::StartMigrationRequest {
        target: Some(Target::Choose(true)),
        constraints: Some(v1::PlacementConstraints {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        }),
        validate_only: true,
        ..request(TENANT, "")
    };
    for (labels, regions, due) in [
        (&[][..], &[][..], &["cell-gold", "cell-plain"][..]),
        (&[("tier", "gold")], &[], &["cell-gold"]),
        (&[], &["eu-west-1"], &["cell-plain"]),
    ] {
        for _ in 0..5 {
            let plan = scene.moves.start_migration(choose(labels, regions)).await.unwrap();
            let chosen = plan.into_inner().estimate.unwrap().spec.unwrap().target_cell_id;
            assert!(due.contains(&chosen.as_str()), "{chosen} for {labels:?} {regions:?}");
        }
    }
    for (labels, regions) in
        [(&[("tier", "silver")][..], &[][..]), (&[("tier", "gold")], &["eu-west-1"])]
    {
        let none = scene.moves.start_migration(choose(labels, regions)).await.unwrap_err();
        refused(&none, "NO_ELIGIBLE_CELL");
    }
    let both = v1::StartMigrationRequest {
        target: request(TENANT, "cell-plain").target,
        ..choose(&[], &["eu-west-1"])
    };
    let both = scene.moves.start_migration(both).await.unwrap_err();
    let due = (Code::InvalidArgument, "MISSING_FIELD".to_owned(), vec!["choose".to_owned()]);
    assert_eq!(fault(&both), due);

    // What it costs is what the target's Region takes for it.
    let mut costs = Vec::new();
    for target in ["cell-gold", "cell-plain"] {
        let plan = v1::StartMigrationRequest { validate_only: true, ..request(TENANT, target) };
        let plan = scene.moves.start_migration(plan).await.unwrap().into_inner();
        let estimate = plan.estimate.unwrap();
        costs.push((estimate.write_units, estimate.cost_micros.unwrap()));
    }
    assert_eq!(costs[0].0, costs[1].0);
    assert!(costs[0].1 < costs[1].1, "{costs:?}");
    assert_eq!(scene.placement(TENANT).await.migration_id, "", "nothing was begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_moves_into_a_last_place_one_ends_and_a_planned_move_holds_its_cells() {
    let all = vec![
        cell("cell-a"),
        v1::Cell { capacity: Some(1), ..cell("cell-b") },
        cell("cell-c"),
        cell("cell-d"),
    ];
    // While the first one soaks nobody works on others.
    let mut scene = Scene::with_cells(embedded(), all, &["--migration-concurrency=1"]).await;
    for tenant in ["first", "one", "two", "cordoned"] {
        scene.pin(tenant, "cell-a").await;
        scene.write("CustomerData", "cell-a", item(tenant, "1", "cell-a")).await;
    }
    let first = scene.start("first", "cell-c").await.unwrap().migration_id;
    scene.until(&first, v1::MigrationState::Soaking).await;
    let mut begun = Vec::new();
    for (tenant, to) in [("one", "cell-b"), ("two", "cell-b"), ("cordoned", "cell-d")] {
        let migration = scene.start_with(at_once(tenant, to)).await.unwrap();
        assert_eq!(migration.state(), v1::MigrationState::Planned);
        begun.push(migration.migration_id);
    }
    let delete =
        v1::DeletePlacementRequest { partition_key: "first".to_owned(), ..Default::default() };
    let moving = scene.directory.delete_placement(delete).await.unwrap_err();
    refused(&moving, "MIGRATION_RUNNING");
    assert_eq!(moving.get_details_error_info().unwrap().metadata["migration_id"], first);

    scene.world.cordon("cell-d").await;
    let why = format!("migration {} from cell-a to cell-d is PLANNED", begun[2]);
    let delete = v1::DeleteCellRequest { cell_id: "cell-d".to_owned(), ..Default::default() };
    for held in [
        scene.deprovision("cell-d").await.unwrap_err(),
        scene.world.admin.delete_cell(delete).await.unwrap_err(),
    ] {
        refused(&held, "CELL_IN_USE");
        let listed = held.get_details_precondition_failure().unwrap().violations;
        assert!(listed.iter().any(|one| one.description.contains(&why)), "{listed:?}");
    }

    let migration_id = first.clone();
    scene.moves.complete_migration(v1::CompleteMigrationRequest { migration_id }).await.unwrap();
    let mut ended = Vec::new();
    for id in &begun {
        ended.push(scene.ended(id).await);
    }
    let cordoned = ended.pop().unwrap();
    assert_eq!(cordoned.state(), v1::MigrationState::Aborted, "{cordoned:#?}");
    assert_eq!(cordoned.trouble, "the cell cell-d is CORDONED");
    let states: BTreeSet<_> = ended.iter().map(|one| one.state().as_str_name()).collect();
    assert_eq!(states, ["MIGRATION_STATE_ABORTED", "MIGRATION_STATE_DONE"].into(), "{ended:#?}");
    let lost = ended.iter().find(|one| one.state() == v1::MigrationState::Aborted).unwrap();
    assert_eq!(lost.trouble, "the cell cell-b is full: 1 of 1");
    assert_eq!((lost.live_cell_id.as_str(), lost.epoch), ("cell-a", 1));
    assert_eq!(lost.progress.as_ref().unwrap().items_copied, 0);
    assert_eq!(scene.items("CustomerData", "cell-b").await.len(), 1);

    let begun = scene.deprovision("cell-d").await.unwrap();
    let gone = scene.world.ended(&begun.operation_id).await;
    assert_eq!(gone.state(), v1::OperationState::Succeeded, "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_is_missing_is_counted_until_it_was_filled_in() {
    let mut scene = Scene::with_flags(embedded(), &["--guards-interval=1h"]).await;
    scene.pin(TENANT, "cell-a").await;
    assert_eq!(scene.missing_guards().await, 0);
    let guards = scene.records("cell-a").await;
    assert_eq!(guards.len(), 1, "{guards:?}");
    for guard in guards.values() {
        let delete =
            scene.tables.delete_item().table_name(scene.world.table("CustomerData", "cell-a"));
        let key = |name: &str| -> AttributeValue { guard[name].clone() };
        delete.key("PK", key("PK")).key("SK", key("SK")).send().await.unwrap();
    }
    assert_eq!(scene.missing_guards().await, 1);

    // One that looks more often.
    let _other = scene.world.join(&FLAGS).await;
    let deadline = Instant::now() + SOON;
    while scene.missing_guards().await > 0 {
        assert!(Instant::now() < deadline, "nobody fills it in");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        scene.records("cell-a").await.into_keys().collect::<Vec<_>>(),
        guards.into_keys().collect::<Vec<_>>()
    );
}
