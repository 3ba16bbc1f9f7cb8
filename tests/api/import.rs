//! ImportPlacements: records where tenants live already, each row for itself.

use cell_directory::proto::v1;
use cell_directory::proto::v1::PlacementEvent as Event;

use crate::checks::invalid;
use crate::world::{Engine, Server, World, def, from_now, pin};

on_both_engines!(
    records_each_row_for_itself,
    a_preview_records_nothing,
    rows_of_one_tenant_count_in_their_order,
    a_portion_is_bounded,
    asks_neither_state_nor_capacity,
);

fn row(key: &str, cell: &str) -> v1::PlacementImport {
    v1::PlacementImport { partition_key: key.into(), cell_id: cell.into(), ..def() }
}

async fn import(
    server: &Server,
    portions: Vec<v1::ImportPlacementsRequest>,
) -> Result<v1::ImportPlacementsResponse, tonic::Status> {
    let answer = server.directory.clone().import_placements(tokio_stream::iter(portions)).await;
    answer.map(tonic::Response::into_inner)
}

fn portion(placements: Vec<v1::PlacementImport>) -> v1::ImportPlacementsRequest {
    v1::ImportPlacementsRequest { placements, ..def() }
}

fn totals(answer: &v1::ImportPlacementsResponse) -> [u64; 3] {
    [answer.created, answer.unchanged, answer.failed]
}

async fn records_each_row_for_itself(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b", "gone"]).await;
    server.set_state("gone", v1::CellState::Retired).await;
    server.pin(pin("there", "cell-a")).await.unwrap();
    server.pin(pin("elsewhere", "cell-a")).await.unwrap();
    server.pin(pin("returning", "cell-a")).await.unwrap();
    server.delete("returning").await.unwrap();
    let since = from_now(-86_400_000);
    let until = from_now(86_400_000);
    let first = vec![
        v1::PlacementImport {
            create_time: Some(since),
            expire_time: Some(until),
            ..row("new", "cell-b")
        },
        row("there", "cell-a"),
        row("elsewhere", "cell-b"),
        row("", "cell-a"),
        row("returning", "cell-b"),
    ];
    let second = vec![
        row("lost", "nowhere"),
        row("late", "gone"),
        row("ill", "Not-A-Cell"),
        v1::PlacementImport { create_time: Some(from_now(3_600_000)), ..row("early", "cell-a") },
        v1::PlacementImport { expire_time: Some(since), ..row("over", "cell-a") },
        row("newer", "cell-a"),
    ];
    let portions = vec![portion(first), portion(vec![]), portion(second)];
    let answer = import(&server, portions.clone()).await.unwrap();
    assert_eq!(totals(&answer), [3, 1, 7]);
    let failures: Vec<_> = answer
        .failures
        .iter()
        .map(|failure| {
            let error = failure.error.as_ref().unwrap();
            assert!(!error.message.is_empty());
            (failure.index, error.code, error.reason.as_str())
        })
        .collect();
    assert_eq!(
        failures,
        [
            (2, 6, "PLACEMENT_EXISTS"),
            (3, 3, "INVALID_PARTITION_KEY"),
            (5, 5, "CELL_NOT_FOUND"),
            (6, 9, "CELL_NOT_ELIGIBLE"),
            (7, 3, "INVALID_CELL_ID"),
            (8, 3, "INVALID_TIME"),
            (9, 3, "INVALID_TIME"),
        ]
    );
    let new = server.get("new").await.unwrap();
    assert_eq!((new.cell_id.as_str(), new.epoch), ("cell-b", 1));
    assert_eq!((new.create_time, new.expire_time), (Some(since), Some(until)));
    assert_eq!(server.get("returning").await.unwrap().epoch, 2);
    assert_eq!(server.history("newer").await[0].began_by(), Event::Imported);
    assert_eq!(server.get("elsewhere").await.unwrap().cell_id, "cell-a");
    assert_eq!(world.counts().await["cell-b"], 2);

    let before = world.dump().await;
    let again = import(&server, portions).await.unwrap();
    assert_eq!(totals(&again), [0, 4, 7]);
    assert_eq!(world.dump().await, before);
}

async fn a_preview_records_nothing(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    server.pin(pin("there", "cell-a")).await.unwrap();
    let before = world.dump().await;
    let preview = v1::ImportPlacementsRequest {
        validate_only: true,
        placements: vec![row("new", "cell-a"), row("there", "cell-a"), row("there", "cell-b")],
    };
    // Only the first message's options count.
    let answer = import(&server, vec![preview, portion(vec![row("newer", "cell-a")])]).await;
    assert_eq!(totals(&answer.unwrap()), [2, 1, 1]);
    assert_eq!(world.dump().await, before);
}

async fn rows_of_one_tenant_count_in_their_order(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let rows = vec![row("tenant", "cell-a"), row("tenant", "cell-a"), row("tenant", "cell-b")];
    let answer = import(&server, vec![portion(rows)]).await.unwrap();
    assert_eq!(totals(&answer), [1, 1, 1]);
    assert_eq!(answer.failures[0].index, 2);
    assert_eq!(server.get("tenant").await.unwrap().cell_id, "cell-a");
    assert_eq!(totals(&import(&server, vec![]).await.unwrap()), [0, 0, 0], "an empty stream");
}

async fn a_portion_is_bounded(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let rows = |n: usize| (0..n).map(|n| row(&format!("tenant-{n}"), "cell-a")).collect::<Vec<_>>();
    let before = world.dump().await;
    let answer = import(&server, vec![portion(rows(1001))]).await;
    invalid(answer, "INVALID_BATCH_SIZE", "placements");
    assert_eq!(world.dump().await, before);

    let answer = import(&server, vec![portion(rows(1000)), portion(rows(1000))]).await.unwrap();
    assert_eq!(totals(&answer), [1000, 1000, 0]);
    assert_eq!(world.counts().await["cell-a"], 1000);

    // All failures are counted, the first thousand are told.
    let wrong = |n| row(&format!("tenant-{n}"), "cell-b");
    let portions = (0..2).map(|_| portion((0..600).map(wrong).collect())).collect();
    let answer = import(&server, portions).await.unwrap();
    assert_eq!((totals(&answer), answer.failures.len()), ([0, 0, 1200], 1000));
    assert_eq!(answer.failures.last().unwrap().index, 999);
}

/// The tenants are there, whatever the cell is for.
async fn asks_neither_state_nor_capacity(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    let cell = v1::Cell {
        cell_id: "cell-a".into(),
        capacity: Some(1),
        state: v1::CellState::Draining.into(),
        ..def()
    };
    server.update_cell(cell, &["capacity", "state"]).await.unwrap();
    let rows = (0..3).map(|n| row(&format!("tenant-{n}"), "cell-a")).collect();
    assert_eq!(totals(&import(&server, vec![portion(rows)]).await.unwrap()), [3, 0, 0]);
    assert_eq!(server.cell("cell-a").await.unwrap().placement_count, 3);
}
