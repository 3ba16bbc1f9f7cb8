//! Which cells get new tenants: by state, by weight, by capacity, by policy.

use cell_directory::proto::v1;
use futures::future::join_all;
use tonic::Code;

use crate::celld::cell;
use crate::checks::refused;
use crate::world::{Engine, World, def, pin, resolve};

on_both_engines!(
    only_active_cells_get_new_tenants,
    neither_weightless_nor_full_cells_get_new_tenants,
    capacity_is_exact_under_concurrency,
    both_policies_spread_tenants,
);

async fn only_active_cells_get_new_tenants(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let old = server.pin(pin("old", "cell-a")).await.unwrap();
    for (n, state) in [v1::CellState::Cordoned, v1::CellState::Draining, v1::CellState::Quarantined]
        .into_iter()
        .enumerate()
    {
        server.set_state("cell-a", state).await;
        for m in 0..8 {
            let placed = server.resolve(&format!("new-{n}-{m}")).await.placement.unwrap();
            assert_eq!(placed.cell_id, "cell-b", "{state:?}");
        }
        assert_eq!(server.resolve("old").await.placement.unwrap(), old, "{state:?}");
    }
    // And again when it is back.
    server.set_state("cell-a", v1::CellState::Active).await;
    server.set_state("cell-b", v1::CellState::Cordoned).await;
    assert_eq!(server.resolve("back").await.placement.unwrap().cell_id, "cell-a");

    server.set_state("cell-a", v1::CellState::Quarantined).await;
    server.create_cell(cell("cell-r")).await.unwrap();
    server.set_state("cell-r", v1::CellState::Retired).await;
    let answer = server.try_resolve(resolve("nobody")).await;
    refused(answer, Code::FailedPrecondition, "NO_ELIGIBLE_CELL");
    let answer = server.pin(pin("nobody", "cell-r")).await;
    refused(answer, Code::FailedPrecondition, "CELL_NOT_ELIGIBLE");
}

async fn neither_weightless_nor_full_cells_get_new_tenants(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["weightless", "small", "large"]).await;
    let weightless = v1::Cell { weight: Some(0), ..cell("weightless") };
    server.update_cell(weightless, &["weight"]).await.unwrap();
    // So heavy that all go there while it has room.
    let small = v1::Cell { capacity: Some(2), weight: Some(1_000_000), ..cell("small") };
    server.update_cell(small.clone(), &["capacity", "weight"]).await.unwrap();
    let large = v1::Cell { weight: Some(1), ..cell("large") };
    server.update_cell(large, &["weight"]).await.unwrap();
    let mut homes = Vec::new();
    for n in 0..6 {
        homes.push(server.resolve(&format!("tenant-{n}")).await.placement.unwrap().cell_id);
    }
    assert_eq!(homes, ["small", "small", "large", "large", "large", "large"]);
    assert_eq!(server.resolve("tenant-0").await.placement.unwrap().cell_id, "small");
    // Room is made by whoever leaves, and by a larger capacity; a smaller one drives nobody out.
    server.delete("tenant-0").await.unwrap();
    assert_eq!(server.resolve("tenant-6").await.placement.unwrap().cell_id, "small");
    assert_eq!(server.resolve("tenant-7").await.placement.unwrap().cell_id, "large");
    let grown = v1::Cell { capacity: Some(3), ..small.clone() };
    server.update_cell(grown, &["capacity"]).await.unwrap();
    assert_eq!(server.resolve("tenant-8").await.placement.unwrap().cell_id, "small");
    let shrunk = v1::Cell { capacity: Some(1), ..small };
    let shrunk = server.update_cell(shrunk, &["capacity"]).await.unwrap();
    assert_eq!(shrunk.placement_count, 3);
    assert_eq!(server.resolve("tenant-1").await.placement.unwrap().cell_id, "small");
}

async fn capacity_is_exact_under_concurrency(engine: Engine) {
    let (world, server) = World::with_cells(engine, &[]).await;
    server.create_cell(v1::Cell { capacity: Some(10), ..cell("ten") }).await.unwrap();
    let other = world.serve(&[]).await;
    let callers = (0..64).map(|n| {
        let server = if n % 2 == 0 { &server } else { &other };
        let key = format!("tenant-{n}");
        async move { (server.try_resolve(resolve(&key)).await, key) }
    });
    let mut placed = Vec::new();
    for (answer, key) in join_all(callers).await {
        match answer {
            Ok(answer) => {
                assert_eq!(answer.placement.unwrap().cell_id, "ten");
                placed.push(key);
            }
            Err(status) => {
                refused(Err::<(), _>(status), Code::FailedPrecondition, "NO_ELIGIBLE_CELL");
            }
        }
    }
    assert_eq!(placed.len(), 10);
    assert_eq!(world.counts().await["ten"], 10);
    assert_eq!(world.scan(&world.mappings()).await.len(), 10);
    for server in [&server, &other] {
        assert_eq!(server.cell("ten").await.unwrap().placement_count, 10);
    }
    // Pins fill the last place exactly, too.
    server.delete(&placed[0]).await.unwrap();
    let pins = (0..16).map(|n| server.pin(pin(&format!("pinned-{n}"), "ten")));
    let pins = join_all(pins).await;
    assert_eq!(pins.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert_eq!(world.counts().await["ten"], 10);
}

async fn both_policies_spread_tenants(engine: Engine) {
    let spread = async |policy: &str, weights: [u32; 3]| {
        let world = World::new(engine.clone()).await;
        let server = world.serve(&[&format!("--assignment-policy={policy}")]).await;
        for (id, weight) in ["a", "b", "c"].into_iter().zip(weights) {
            server.create_cell(v1::Cell { weight: Some(weight), ..cell(id) }).await.unwrap();
        }
        let partition_keys = (0..200).map(|n| format!("tenant-{n}")).collect();
        let request = v1::BatchResolveRequest { partition_keys, ..def() };
        server.directory.clone().batch_resolve(request).await.unwrap();
        let counts = world.counts().await;
        assert_eq!(counts.values().sum::<i64>(), 200);
        ["a", "b", "c"].map(|id| counts[id])
    };
    // By weight: 120 of 200 are due to `c`. Rendezvous draws no lots: this comes out the same each time.
    let by_weight = spread("rendezvous", [100, 100, 300]).await;
    assert!((100..=140).contains(&by_weight[2]), "{by_weight:?}");
    assert!(by_weight[0] >= 20 && by_weight[1] >= 20, "{by_weight:?}");
    // By load: what lots spread, counts even out.
    let by_load = spread("least-loaded", [100, 100, 100]).await;
    let gap = by_load.iter().max().unwrap() - by_load.iter().min().unwrap();
    assert!(gap <= 12, "{by_load:?}");
}
