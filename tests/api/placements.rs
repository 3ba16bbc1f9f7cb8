//! PinPlacement, DeletePlacement and what they leave in a tenant's history.

use cell_directory::proto::v1;
use cell_directory::proto::v1::PlacementEvent as Event;
use tonic::Code;

use crate::checks::{invalid, refused, violations};
use crate::world::{Engine, World, def, from_now, pin};

on_both_engines!(
    pins_a_new_tenant,
    a_pin_moves_nobody,
    a_pin_respects_what_the_cell_is_for,
    a_pin_that_is_wrong_changes_nothing,
    a_deleted_tenant_returns_above_its_epoch,
    deletes_only_at_the_epoch_asked_for,
    anybody_can_read_what_is_written,
);

async fn pins_a_new_tenant(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let expires = from_now(3_600_000);
    let request = v1::PinPlacementRequest { expire_time: Some(expires), ..pin("tenant", "cell-b") };
    let placed = server.pin(request).await.unwrap();
    assert_eq!((placed.cell_id.as_str(), placed.epoch), ("cell-b", 1));
    assert_eq!(placed.partition_key, "tenant");
    assert_eq!(placed.endpoint, "https://cell-b.example.com");
    assert_eq!(placed.expire_time, Some(expires));
    assert_eq!(server.get("tenant").await.unwrap(), placed);
    assert_eq!(server.look_up("tenant").await.unwrap().placement.unwrap(), placed);
    assert_eq!(server.cell("cell-b").await.unwrap().placement_count, 1);
    let history = server.history("tenant").await;
    assert_eq!((history.len(), history[0].began_by()), (1, Event::Pinned));
    assert_eq!((history[0].begin_time, history[0].end_time), (placed.create_time, None));
}

async fn a_pin_moves_nobody(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let placed = server.pin(pin("tenant", "cell-a")).await.unwrap();
    let before = world.dump().await;
    let other_expiry =
        v1::PinPlacementRequest { expire_time: Some(from_now(60_000)), ..pin("tenant", "cell-a") };
    assert_eq!(server.pin(other_expiry).await.unwrap(), placed, "is answered as is");
    let details =
        refused(server.pin(pin("tenant", "cell-b")).await, Code::AlreadyExists, "PLACEMENT_EXISTS");
    let info = details.error_info().unwrap();
    assert_eq!((&*info.metadata["cell_id"], &*info.metadata["epoch"]), ("cell-a", "1"));
    assert_eq!(world.dump().await, before);
}

async fn a_pin_respects_what_the_cell_is_for(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cordoned", "full", "weightless"]).await;
    server.set_state("cordoned", v1::CellState::Cordoned).await;
    let full = v1::Cell { cell_id: "full".into(), capacity: Some(1), ..def() };
    server.update_cell(full, &["capacity"]).await.unwrap();
    server.pin(pin("first", "full")).await.unwrap();
    let before = world.dump().await;
    for (cell, word) in [("cordoned", "CORDONED"), ("full", "full: 1 of 1")] {
        let answer = server.pin(pin("tenant", cell)).await;
        let details = refused(answer, Code::FailedPrecondition, "CELL_NOT_ELIGIBLE");
        let (_, subject, why) = violations(&details).remove(0);
        assert_eq!(subject, cell);
        assert!(why.contains(word), "{why}");
    }
    refused(server.pin(pin("tenant", "nowhere")).await, Code::NotFound, "CELL_NOT_FOUND");
    assert_eq!(world.dump().await, before);
    // Weight is about the policy's choice; an operator who pins has chosen.
    let weightless = v1::Cell { cell_id: "weightless".into(), weight: Some(0), ..def() };
    server.update_cell(weightless, &["weight"]).await.unwrap();
    assert_eq!(server.pin(pin("tenant", "weightless")).await.unwrap().cell_id, "weightless");
}

async fn a_pin_that_is_wrong_changes_nothing(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for past in [from_now(-1000), from_now(-86_400_000), prost_types::Timestamp::default()] {
        let request =
            v1::PinPlacementRequest { expire_time: Some(past), ..pin("tenant", "cell-a") };
        invalid(server.pin(request).await, "INVALID_TIME", "expire_time");
    }
    let preview = v1::PinPlacementRequest {
        validate_only: true,
        request_id: "preview".into(),
        ..pin("tenant", "cell-a")
    };
    let would_be = server.pin(preview.clone()).await.unwrap();
    assert_eq!((would_be.cell_id.as_str(), would_be.epoch), ("cell-a", 1));
    let impossible = v1::PinPlacementRequest { cell_id: "nowhere".into(), ..preview };
    refused(server.pin(impossible).await, Code::NotFound, "CELL_NOT_FOUND");
    assert_eq!(world.dump().await, before);
    refused(server.look_up("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
}

async fn a_deleted_tenant_returns_above_its_epoch(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    let preview =
        v1::DeletePlacementRequest { partition_key: "tenant".into(), validate_only: true, ..def() };
    let before = world.dump().await;
    let would_go = server.delete_as(preview).await.unwrap();
    assert_eq!(world.dump().await, before);
    let gone = server.delete("tenant").await.unwrap();
    assert_eq!(gone, would_go);
    assert_eq!((gone.cell_id.as_str(), gone.epoch), ("cell-a", 1));
    refused(server.look_up("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
    refused(server.get("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
    let before = world.dump().await;
    refused(server.delete("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
    assert_eq!(world.dump().await, before);

    assert_eq!(server.pin(pin("tenant", "cell-b")).await.unwrap().epoch, 2);
    server.delete("tenant").await.unwrap();
    let assigned = server.resolve("tenant").await.placement.unwrap();
    assert_eq!(assigned.epoch, 3);

    let history = server.history("tenant").await;
    let lives: Vec<_> = history
        .iter()
        .map(|entry| (entry.epoch, entry.cell_id.as_str(), entry.began_by(), entry.ended_by()))
        .collect();
    assert_eq!(
        lives,
        [
            (3, assigned.cell_id.as_str(), Event::Assigned, Event::Unspecified),
            (2, "cell-b", Event::Pinned, Event::Deleted),
            (1, "cell-a", Event::Pinned, Event::Deleted),
        ]
    );
    assert!(history.iter().all(|entry| entry.begin_time.is_some()));
    assert!(history[0].end_time.is_none() && history[1..].iter().all(|e| e.end_time.is_some()));
    let counts = world.counts().await;
    assert_eq!(counts.values().sum::<i64>(), 1);
    assert_eq!(counts[&assigned.cell_id], 1);
}

async fn deletes_only_at_the_epoch_asked_for(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    server.resolve("tenant").await;
    server.delete("tenant").await.unwrap();
    server.resolve("tenant").await;
    let at = |epoch| v1::DeletePlacementRequest { partition_key: "tenant".into(), epoch, ..def() };
    let before = world.dump().await;
    for other in [1, 3, u64::MAX] {
        let details = refused(server.delete_as(at(other)).await, Code::Aborted, "EPOCH_MISMATCH");
        assert_eq!(details.error_info().unwrap().metadata["epoch"], "2");
    }
    assert_eq!(world.dump().await, before);
    assert_eq!(server.delete_as(at(2)).await.unwrap().epoch, 2);
}

/// Somebody else's router reads `CellMappings` with a plain GetItem.
async fn anybody_can_read_what_is_written(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let cell_of = async |key: &str| {
        let item = world.item(key).await.unwrap_or_default();
        item.get("CellId").map(|cell| cell.as_s().unwrap().clone())
    };
    let assigned = server.resolve("assigned").await.placement.unwrap();
    assert_eq!(cell_of("assigned").await.as_ref(), Some(&assigned.cell_id));
    server.pin(pin("pinned", "cell-b")).await.unwrap();
    assert_eq!(cell_of("pinned").await.as_deref(), Some("cell-b"));
    let item = world.item("pinned").await.unwrap();
    for name in ["CreatedAt", "LastUpdated"] {
        let time = item[name].as_s().unwrap();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{name} {time}");
    }
    assert!(!item.contains_key("TTL"));
    server.delete("pinned").await.unwrap();
    assert_eq!(cell_of("pinned").await, None);

    // The storage's own TTL comes well after the expiry.
    let expires = from_now(60_000);
    let request = v1::PinPlacementRequest { expire_time: Some(expires), ..pin("brief", "cell-a") };
    server.pin(request).await.unwrap();
    let ttl: i64 = world.item("brief").await.unwrap()["TTL"].as_n().unwrap().parse().unwrap();
    assert!(ttl >= expires.seconds + 3600, "{ttl}");
}
