//! Which migrations a worker takes up, which wait, and that an operator is heard meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;

use crate::embedded::Embedded;
use crate::scene::{Item, Scene, partition, request, text};
use crate::world::Engine;

/// A server that has room for one migration, and tenants in `cell-a`, each with so many items.
async fn room_for_one(tenants: &[(&str, usize)]) -> Scene {
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    let mut scene = Scene::with_flags(engine, &["--migration-concurrency=1"]).await;
    for (tenant, items) in tenants {
        scene.pin(tenant, "cell-a").await;
        for number in 0..*items {
            let item = Item::from([
                ("PK".to_owned(), text(&partition(tenant))),
                ("SK".to_owned(), text(&format!("ITEM#{number:03}"))),
                ("CellId".to_owned(), text("cell-a")),
            ]);
            scene.write("CustomerData", "cell-a", item).await;
        }
    }
    scene.guarded("cell-a", tenants.len()).await;
    scene
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_soaks_is_in_nobodys_way() {
    let mut scene = room_for_one(&[("first", 3), ("second", 3)]).await;
    for tenant in ["first", "second"] {
        let begun = scene.start(tenant, "cell-b").await.unwrap();
        let soaks = scene.until(&begun.migration_id, v1::MigrationState::Soaking).await;
        assert_eq!(soaks.live_cell_id, "cell-b");
    }
}

/// A page of 100 items takes minutes at one unit a second: whoever is not heard before that is not heard in this test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_copy_hears_its_operator_and_a_planned_one_finds_its_tenant_gone() {
    let mut scene = room_for_one(&[("slow", 100), ("gone", 3)]).await;
    let limited = v1::StartMigrationRequest { rate_limit_units: 1, ..request("slow", "cell-b") };
    let slow = scene.start_with(limited).await.unwrap().migration_id;
    let deadline = Instant::now() + Duration::from_secs(60);
    while scene.get(&slow).await.progress.unwrap().items_copied < 100 {
        assert!(Instant::now() < deadline, "nothing is copied");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let gone = scene.start("gone", "cell-b").await.unwrap().migration_id;
    let delete = v1::DeletePlacementRequest { partition_key: "gone".into(), ..Default::default() };
    scene.directory.delete_placement(delete).await.unwrap();
    assert_eq!(scene.get(&gone).await.state(), v1::MigrationState::Planned, "there is no room");

    let pause = v1::PauseMigrationRequest { migration_id: slow.clone() };
    scene.moves.pause_migration(pause).await.unwrap();
    let ended = scene.until(&gone, v1::MigrationState::Aborted).await;
    assert_eq!(ended.trouble, "the tenant is not in cell-a any more");

    let cancel = v1::CancelMigrationRequest { migration_id: slow.clone() };
    scene.moves.cancel_migration(cancel).await.unwrap();
    let aborting = scene.until(&slow, v1::MigrationState::Aborting).await;
    assert_eq!((aborting.live_cell_id.as_str(), aborting.epoch), ("cell-a", 1));
}
