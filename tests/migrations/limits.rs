//! What does not fit: items that would be larger than DynamoDB allows once they name the other cell.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_dynamodb::types::PointInTimeRecoverySpecification;
use cell_directory::proto::v1;
use cell_directory::proto::v1::migration_service_client::MigrationServiceClient;
use tonic::Code;
use tonic_types::StatusExt;

use crate::celld::cell;
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::scene::{CELLS, FLAGS, Item, Scene, partition, request, text};
use crate::world::{Engine, World, fault, table};

const TENANT: &str = "large";

/// Where the directory's own tables are, if nothing else is said.
const HERE: &str = "us-east-1";

/// DynamoDB's limit of an item, in bytes.
const LIMIT: usize = 400 * 1024;

/// An item that has this many bytes in `cell-a`.
fn item(bytes: usize) -> Item {
    let mut item = Item::from([
        ("PK".to_owned(), text(&partition(TENANT))),
        ("SK".to_owned(), text("ITEM")),
        ("CellId".to_owned(), text("cell-a")),
        ("Body".to_owned(), text("")),
    ]);
    let size: usize =
        item.iter().map(|(name, value)| name.len() + value.as_s().unwrap().len()).sum();
    item.insert("Body".to_owned(), text(&"x".repeat(bytes - size)));
    item
}

/// All items, guards and logs of all cells.
async fn everything(scene: &Scene) -> BTreeMap<String, BTreeMap<String, Item>> {
    let mut all = BTreeMap::new();
    for cell in CELLS {
        for table in ["CustomerData", "Journeys", "Carts"] {
            all.insert(format!("{table}-{cell}"), scene.items(table, cell).await);
        }
        all.insert(format!("records of {cell}"), scene.records(cell).await);
    }
    all
}

async fn what_would_be_too_large_at_the_target_stays_where_it_is(mut scene: Scene) {
    scene.pin(TENANT, "cell-a").await;
    scene.guarded("cell-a", 1).await;
    // `cell-longer` has five letters more than `cell-a`.
    let (fits, too_large) = (item(LIMIT - 5), item(LIMIT - 4));
    scene.write("CustomerData", "cell-a", too_large).await;
    let (before, placement) = (everything(&scene).await, scene.placement(TENANT).await);

    let plan =
        || v1::StartMigrationRequest { validate_only: true, ..request(TENANT, "cell-longer") };
    let refused = scene.moves.start_migration(plan()).await.unwrap_err();
    let due = (Code::FailedPrecondition, "ITEMS_TOO_LARGE".to_owned(), vec![]);
    assert_eq!(fault(&refused), due);
    let why = "1 items are too large for cell-longer, whose name is longer than that of the cell that they name";
    assert!(refused.message().contains(why), "{refused:?}");
    assert_eq!(refused.get_details_error_info().unwrap().metadata["cell_id"], "cell-longer");
    assert_eq!(everything(&scene).await, before);
    assert_eq!(scene.placement(TENANT).await, placement);

    // In earnest it is not read before the answer, but before anything is changed.
    let begun = scene.start(TENANT, "cell-longer").await.unwrap();
    let ended = scene.until(&begun.migration_id, v1::MigrationState::Aborted).await;
    assert!(ended.trouble.contains(why), "{ended:#?}");
    assert_eq!((ended.live_cell_id.as_str(), ended.epoch), ("cell-a", placement.epoch));
    assert_eq!(ended.progress.unwrap().items_copied, 0);
    assert_eq!(everything(&scene).await, before);
    let after = scene.placement(TENANT).await;
    let same = |placement: v1::Placement| v1::Placement { update_time: None, ..placement };
    assert_eq!(same(after), same(placement));

    // A byte less, and it is just not too large.
    scene.write("CustomerData", "cell-a", fits).await;
    scene.moves.start_migration(plan()).await.unwrap();
    let moved = v1::StartMigrationRequest {
        soak_duration: Some(prost_types::Duration::default()),
        ..request(TENANT, "cell-longer")
    };
    let begun = scene.start_with(moved).await.unwrap();
    scene.until(&begun.migration_id, v1::MigrationState::Done).await;
    let there = scene.items("CustomerData", "cell-longer").await;
    let mut due = item(LIMIT - 5);
    due.insert("CellId".to_owned(), text("cell-longer"));
    assert_eq!(there.into_values().collect::<Vec<_>>(), [due]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_too_large_at_the_target_stays_where_it_is_embedded() {
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    what_would_be_too_large_at_the_target_stays_where_it_is(Scene::new(engine).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_too_large_at_the_target_stays_where_it_is_dynamodb_local() {
    let engine = Engine::DynamoDbLocal(DynamoDbLocal::shared());
    what_would_be_too_large_at_the_target_stays_where_it_is(Scene::new(engine).await).await;
}

/// A tenant that arrives in a table that cannot be set back would lose what its cell promised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_whose_point_in_time_recovery_was_turned_off_takes_nobody() {
    let mut world = World::with_flags(Engine::moto(), &[], &FLAGS).await;
    for id in ["cell-a", "cell-b"] {
        // One transaction spans tables of one Region, and moto has Regions.
        let cell = v1::Cell { region: HERE.to_owned(), ..cell(id) };
        let request = v1::CreateCellRequest { cell: Some(cell), ..Default::default() };
        world.admin.create_cell(request).await.unwrap();
    }
    let backed = v1::TableSpec { point_in_time_recovery_days: 7, ..table("CustomerData") };
    world.put_set(vec![backed, table("Journeys")]).await;
    for cell in ["cell-a", "cell-b"] {
        let operation = world.provision(cell).await;
        assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
    }
    let mut directory = world.server.directory().await;
    let mut moves = MigrationServiceClient::new(world.server.channel().await);
    let pin = v1::PinPlacementRequest {
        partition_key: TENANT.to_owned(),
        cell_id: "cell-a".to_owned(),
        ..Default::default()
    };
    directory.pin_placement(pin).await.unwrap();
    let plan = || v1::StartMigrationRequest { validate_only: true, ..request(TENANT, "cell-b") };
    let estimate = moves.start_migration(plan()).await.unwrap().into_inner().estimate;
    assert!(estimate.is_some(), "recovery is on, and of one table not asked for");

    let here = world.sdk().await.into_builder().region(aws_config::Region::new(HERE)).build();
    let tables = aws_sdk_dynamodb::Client::new(&here);
    let off = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(false);
    let update =
        tables.update_continuous_backups().table_name(world.table("CustomerData", "cell-b"));
    update.point_in_time_recovery_specification(off.build().unwrap()).send().await.unwrap();
    for request in [plan(), request(TENANT, "cell-b")] {
        let refused = moves.start_migration(request).await.unwrap_err();
        let due = (Code::FailedPrecondition, "NOT_RECOVERABLE".to_owned(), vec![]);
        assert_eq!(fault(&refused), due, "{refused:?}");
        let metadata = refused.get_details_error_info().unwrap().metadata;
        assert_eq!(metadata["table"], world.table("CustomerData", "cell-b"));
    }
    // Nothing was begun, and the source is asked for nothing.
    let placement = v1::GetPlacementRequest { partition_key: TENANT.to_owned() };
    let placement = directory.get_placement(placement).await.unwrap().into_inner().placement;
    assert_eq!(placement.unwrap().migration_id, "");
    let listed = moves.list_migrations(v1::ListMigrationsRequest::default()).await.unwrap();
    assert!(listed.into_inner().migrations.is_empty());
    let back = v1::PinPlacementRequest {
        partition_key: "other".to_owned(),
        cell_id: "cell-b".to_owned(),
        ..Default::default()
    };
    directory.pin_placement(back).await.unwrap();
    let back = v1::StartMigrationRequest { validate_only: true, ..request("other", "cell-a") };
    moves.start_migration(back).await.unwrap();
}
