//! What one server does, the others know: what concerns correctness at once, what concerns memory within a few polls.

use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource::Memory;
use tonic::Code;

use crate::celld::cell;
use crate::checks::refused;
use crate::world::{Engine, World, def, pin, resolve, until};

on_both_engines!(
    memory_follows_the_other_server,
    what_a_cell_is_for_holds_everywhere_at_once,
    a_cells_address_follows,
    a_server_that_hears_nothing_is_still_right_when_it_changes_something,
);

async fn memory_follows_the_other_server(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let other = world.serve(&[]).await;
    let placed = server.pin(pin("tenant", "cell-a")).await.unwrap();
    // The journal brings it into memory; nobody has asked there yet.
    until(
        async || other.look_up("tenant").await.unwrap().decision.unwrap().source(),
        |source| *source == Memory,
    )
    .await;
    assert_eq!(other.resolve("tenant").await.placement.unwrap(), placed);

    server.delete("tenant").await.unwrap();
    let gone = until(async || other.look_up("tenant").await, |answer| answer.is_err()).await;
    refused(gone, Code::NotFound, "PLACEMENT_NOT_FOUND");
    other.pin(pin("tenant", "cell-b")).await.unwrap();
    let back = until(async || server.look_up("tenant").await, |answer| answer.is_ok()).await;
    let placement = back.unwrap().placement.unwrap();
    assert_eq!((placement.cell_id.as_str(), placement.epoch), ("cell-b", 2));
    // What is held grows no older than a few polls.
    let age = until(
        async || server.resolve("tenant").await.decision.unwrap(),
        |decision| decision.source() == Memory && decision.age.unwrap().seconds == 0,
    );
    age.await;
}

async fn what_a_cell_is_for_holds_everywhere_at_once(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    // Hears of nothing by itself in the time that this takes.
    let other = world.serve(&["--journal-poll-interval=1m"]).await;
    for n in 0..6 {
        let (cordoned, open) = if n % 2 == 0 { ("cell-a", "cell-b") } else { ("cell-b", "cell-a") };
        server.set_state(open, v1::CellState::Active).await;
        server.set_state(cordoned, v1::CellState::Cordoned).await;
        for m in 0..4 {
            let placed = other.resolve(&format!("tenant-{n}-{m}")).await.placement.unwrap();
            assert_eq!(placed.cell_id, open);
        }
        let answer = other.pin(pin("pinned", cordoned)).await;
        refused(answer, Code::FailedPrecondition, "CELL_NOT_ELIGIBLE");
        assert_eq!(other.cell(cordoned).await.unwrap().state(), v1::CellState::Cordoned);
    }
    // A refusal is not given on an old registry either.
    server.set_state("cell-a", v1::CellState::Cordoned).await;
    server.set_state("cell-b", v1::CellState::Cordoned).await;
    let answer = other.try_resolve(resolve("late")).await;
    refused(answer, Code::FailedPrecondition, "NO_ELIGIBLE_CELL");
    server.create_cell(cell("cell-c")).await.unwrap();
    assert_eq!(other.resolve("late").await.placement.unwrap().cell_id, "cell-c");
    server.delete_cell("cell-a").await.unwrap_err();
    server.create_cell(cell("cell-d")).await.unwrap();
    assert_eq!(other.pin(pin("later", "cell-d")).await.unwrap().cell_id, "cell-d");
    assert_eq!(server.cell("cell-d").await.unwrap().placement_count, 1);
}

async fn a_cells_address_follows(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&[]).await;
    other.resolve("tenant").await;
    let moved = v1::Cell { endpoint: "https://moved.example.com".into(), ..cell("cell-a") };
    server.update_cell(moved, &["endpoint"]).await.unwrap();
    until(
        async || other.resolve("tenant").await.placement.unwrap().endpoint,
        |endpoint| endpoint == "https://moved.example.com",
    )
    .await;
}

async fn a_server_that_hears_nothing_is_still_right_when_it_changes_something(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let deaf = world.serve(&["--journal-poll-interval=1m"]).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    deaf.resolve("tenant").await;
    server.delete("tenant").await.unwrap();
    server.pin(pin("tenant", "cell-b")).await.unwrap();
    // Its memory says cell-a at epoch 1.
    let stale = v1::DeletePlacementRequest { partition_key: "tenant".into(), epoch: 1, ..def() };
    refused(deaf.delete_as(stale).await, Code::Aborted, "EPOCH_MISMATCH");
    let answer = deaf.pin(pin("tenant", "cell-a")).await;
    refused(answer, Code::AlreadyExists, "PLACEMENT_EXISTS");
    assert_eq!(deaf.delete("tenant").await.unwrap().epoch, 2);
    // And knows its own changes, and those before them, from then on.
    refused(deaf.look_up("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
}
