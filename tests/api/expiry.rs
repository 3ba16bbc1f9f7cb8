//! Expiry: past it a placement resolves as absent at once, and is retired through the journal.

use cell_directory::domain::Change;
use cell_directory::proto::v1;
use cell_directory::proto::v1::PlacementEvent as Event;
use tonic::Code;

use crate::checks::refused;
use crate::world::{Engine, Server, World, from_now, pin, until};

on_both_engines!(
    an_expired_tenant_has_no_cell,
    an_expired_tenant_is_placed_anew,
    the_sweeper_retires_what_expired,
);

/// Pins a tenant for a moment, and waits until that has passed.
async fn expired(server: &Server, key: &str) -> v1::Placement {
    let request =
        v1::PinPlacementRequest { expire_time: Some(from_now(700)), ..pin(key, "cell-a") };
    let pinned = server.pin(request).await.unwrap();
    let answer = until(async || server.look_up(key).await, |answer| answer.is_err()).await;
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    pinned
}

async fn an_expired_tenant_has_no_cell(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    // Its first sweep comes before there is anything to retire.
    let other = world.serve(&[]).await;
    let pinned = expired(&server, "tenant").await;
    let details = refused(server.look_up("tenant").await, Code::NotFound, "PLACEMENT_EXPIRED");
    assert!(details.error_info().unwrap().metadata.contains_key("expire_time"));
    refused(other.look_up("tenant").await, Code::NotFound, "PLACEMENT_EXPIRED");
    // Who asks for the record gets it, flagged.
    let stored = server.get("tenant").await.unwrap();
    assert_eq!(stored, v1::Placement { state: v1::PlacementState::Expired.into(), ..pinned });
    assert_eq!(server.delete("tenant").await.unwrap().epoch, 1);
    assert_eq!(server.resolve("tenant").await.placement.unwrap().epoch, 2);
}

async fn an_expired_tenant_is_placed_anew(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    server.set_state("cell-b", v1::CellState::Cordoned).await;
    for key in ["assigned", "pinned"] {
        expired(&server, key).await;
    }
    server.set_state("cell-b", v1::CellState::Active).await;
    server.set_state("cell-a", v1::CellState::Cordoned).await;
    let placed = server.resolve("assigned").await.placement.unwrap();
    assert_eq!((placed.cell_id.as_str(), placed.epoch), ("cell-b", 2));
    assert_eq!((placed.state(), placed.expire_time), (v1::PlacementState::Active, None));
    let placed = server.pin(pin("pinned", "cell-b")).await.unwrap();
    assert_eq!((placed.cell_id.as_str(), placed.epoch), ("cell-b", 2));
    assert!(!world.item("pinned").await.unwrap().contains_key("TTL"));
    for key in ["assigned", "pinned"] {
        let history = server.history(key).await;
        assert_eq!((history[1].epoch, history[1].ended_by()), (1, Event::Expired));
        assert_eq!((history[1].cell_id.as_str(), history.len()), ("cell-a", 2));
    }
    let counts = world.counts().await;
    assert_eq!((counts["cell-a"], counts["cell-b"]), (0, 2));
}

async fn the_sweeper_retires_what_expired(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    server.pin(pin("lasting", "cell-a")).await.unwrap();
    let later = v1::PinPlacementRequest {
        expire_time: Some(from_now(3_600_000)),
        ..pin("later", "cell-a")
    };
    server.pin(later).await.unwrap();
    for key in ["first", "second"] {
        expired(&server, key).await;
    }
    // Two sweepers retire each once.
    let _sweepers = (
        world.serve(&["--sweep-interval=20ms"]).await,
        world.serve(&["--sweep-interval=20ms"]).await,
    );
    until(async || world.counts().await["cell-a"], |count| *count == 2).await;
    for key in ["first", "second"] {
        let history = server.history(key).await;
        assert_eq!((history.len(), history[0].ended_by()), (1, Event::Expired));
        refused(server.get(key).await, Code::NotFound, "PLACEMENT_NOT_FOUND");
        assert_eq!(server.resolve(key).await.placement.unwrap().epoch, 2);
    }
    for key in ["lasting", "later"] {
        assert_eq!(server.get(key).await.unwrap().epoch, 1);
    }
    let retired = world.journal().await.into_iter().flatten().filter_map(|change| match change {
        Change::Vacated { placement } => Some(placement.key.as_str().to_owned()),
        _ => None,
    });
    let mut retired: Vec<_> = retired.collect();
    retired.sort();
    assert_eq!(retired, ["first", "second"]);
}
