//! Bad input gets an error that names its field, and changes nothing.

use std::collections::BTreeMap;

use cell_directory::proto::v1;
use tonic::Code;

use crate::celld::cell;
use crate::checks::{invalid, refused};
use crate::world::{Engine, World, def, look_up, mask, pin, resolve};

on_both_engines!(
    partition_keys_are_checked_everywhere,
    cell_ids_are_checked_everywhere,
    enum_values_must_be_known,
    fields_of_a_cell_are_checked,
    constraints_are_checked,
    times_are_checked,
);

async fn partition_keys_are_checked_everywhere(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let long = "é".repeat(513);
    for ill in ["", "a\nb", "\u{0}", "a\u{7f}", "\u{85}", long.as_str()] {
        let check = |answer: Result<(), tonic::Status>| {
            invalid(answer, "INVALID_PARTITION_KEY", "partition_key");
        };
        check(server.try_resolve(resolve(ill)).await.map(|_| ()));
        check(server.try_resolve(look_up(ill)).await.map(|_| ()));
        check(server.get(ill).await.map(|_| ()));
        check(server.pin(pin(ill, "cell-a")).await.map(|_| ()));
        check(server.delete(ill).await.map(|_| ()));
        let request = v1::GetPlacementHistoryRequest { partition_key: ill.into(), ..def() };
        check(server.directory.clone().get_placement_history(request).await.map(|_| ()));
    }
    assert_eq!(world.dump().await, before);
    assert_eq!(server.resolve(&"é".repeat(512)).await.placement.unwrap().epoch, 1);
}

async fn cell_ids_are_checked_everywhere(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let long = "x".repeat(64);
    for ill in ["", "-a", "A", "cell_a", "cell a", "é", "a\n", "a\u{0}", long.as_str()] {
        let check = |answer: Result<(), tonic::Status>, field| {
            invalid(answer, "INVALID_CELL_ID", field);
        };
        check(server.pin(pin("tenant", ill)).await.map(|_| ()), "cell_id");
        check(server.cell(ill).await.map(|_| ()), "cell_id");
        check(server.delete_cell(ill).await, "cell_id");
        check(server.create_cell(cell(ill)).await.map(|_| ()), "cell.cell_id");
        check(server.update_cell(cell(ill), &["endpoint"]).await.map(|_| ()), "cell.cell_id");
        if !ill.is_empty() {
            let request = v1::ListPlacementsRequest { cell_id: ill.into(), ..def() };
            let answer = server.directory.clone().list_placements(request).await;
            check(answer.map(|_| ()), "cell_id");
        }
    }
    for missing in [
        server.admin.clone().create_cell(v1::CreateCellRequest::default()).await.map(|_| ()),
        server
            .admin
            .clone()
            .update_cell(v1::UpdateCellRequest { update_mask: mask(&["weight"]), ..def() })
            .await
            .map(|_| ()),
    ] {
        invalid(missing, "MISSING_FIELD", "cell");
    }
    assert_eq!(world.dump().await, before);
    server.create_cell(cell(&"x".repeat(63))).await.unwrap();
}

async fn enum_values_must_be_known(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for unknown in [3, 99, -1, i32::MAX, i32::MIN] {
        let request = v1::ResolveRequest { mode: unknown, ..resolve("tenant") };
        invalid(server.try_resolve(request).await, "UNKNOWN_ENUM_VALUE", "mode");
        let request = v1::ResolveRequest { fallback: unknown, ..resolve("tenant") };
        invalid(server.try_resolve(request).await, "UNKNOWN_ENUM_VALUE", "fallback");
        let keys = vec!["tenant".to_owned()];
        let request =
            v1::BatchResolveRequest { partition_keys: keys.clone(), mode: unknown, ..def() };
        let answer = server.directory.clone().batch_resolve(request).await;
        invalid(answer, "UNKNOWN_ENUM_VALUE", "mode");
        let request = v1::BatchResolveRequest { partition_keys: keys, fallback: unknown, ..def() };
        let answer = server.directory.clone().batch_resolve(request).await;
        invalid(answer, "UNKNOWN_ENUM_VALUE", "fallback");
        if unknown != 3 {
            let odd = v1::Cell { state: unknown, ..cell("cell-b") };
            invalid(server.create_cell(odd).await, "UNKNOWN_ENUM_VALUE", "cell.state");
            let odd = v1::Cell { state: unknown, ..cell("cell-a") };
            let answer = server.update_cell(odd, &["state"]).await;
            invalid(answer, "UNKNOWN_ENUM_VALUE", "cell.state");
        }
    }
    assert_eq!(world.dump().await, before);
}

async fn fields_of_a_cell_are_checked(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let labels = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let many = (0..33).map(|n| (format!("k{n}"), String::new())).collect();
    let base = || cell("cell-b");
    for (cell, reason, field) in [
        (v1::Cell { region: String::new(), ..base() }, "INVALID_REGION", "cell.region"),
        (v1::Cell { region: "EU".into(), ..base() }, "INVALID_REGION", "cell.region"),
        (v1::Cell { region: "x".repeat(33), ..base() }, "INVALID_REGION", "cell.region"),
        (v1::Cell { endpoint: String::new(), ..base() }, "INVALID_ENDPOINT", "cell.endpoint"),
        (v1::Cell { endpoint: "http://é".into(), ..base() }, "INVALID_ENDPOINT", "cell.endpoint"),
        (v1::Cell { endpoint: "a\nb".into(), ..base() }, "INVALID_ENDPOINT", "cell.endpoint"),
        (v1::Cell { endpoint: "x".repeat(513), ..base() }, "INVALID_ENDPOINT", "cell.endpoint"),
        (v1::Cell { labels: many, ..base() }, "INVALID_LABELS", "cell.labels"),
        (v1::Cell { labels: labels("", "v"), ..base() }, "INVALID_LABELS", "cell.labels"),
        (v1::Cell { labels: labels("Tier", "v"), ..base() }, "INVALID_LABELS", "cell.labels"),
        (v1::Cell { labels: labels("tier", "a\tb"), ..base() }, "INVALID_LABELS", "cell.labels"),
        (
            v1::Cell { labels: labels("tier", &"x".repeat(129)), ..base() },
            "INVALID_LABELS",
            "cell.labels",
        ),
        (v1::Cell { weight: Some(1_000_001), ..base() }, "INVALID_WEIGHT", "cell.weight"),
    ] {
        invalid(server.create_cell(cell.clone()).await, reason, field);
        if field != "cell.region" {
            let update = v1::Cell { cell_id: "cell-a".into(), ..cell };
            let path = field.strip_prefix("cell.").unwrap();
            invalid(server.update_cell(update, &[path]).await, reason, field);
        }
    }
    assert_eq!(world.dump().await, before);
}

async fn constraints_are_checked(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let labels = |key: &str| BTreeMap::from([(key.to_owned(), "v".to_owned())]);
    let regions = |regions: &[&str]| regions.iter().map(|&region| region.to_owned()).collect();
    for (constraints, reason, field) in [
        (
            v1::PlacementConstraints { labels: labels("Tier"), ..def() },
            "INVALID_LABELS",
            "constraints.labels",
        ),
        (
            v1::PlacementConstraints { regions: regions(&["eu-west-1", "", "x"]), ..def() },
            "INVALID_REGION",
            "constraints.regions[1]",
        ),
        (
            v1::PlacementConstraints { regions: regions(&["x"; 33]), ..def() },
            "INVALID_REGION",
            "constraints.regions",
        ),
    ] {
        let constraints = Some(constraints);
        let request = v1::ResolveRequest { constraints: constraints.clone(), ..resolve("tenant") };
        invalid(server.try_resolve(request).await, reason, field);
        let request =
            v1::BatchResolveRequest { partition_keys: vec!["t".into()], constraints, ..def() };
        invalid(server.directory.clone().batch_resolve(request).await, reason, field);
    }
    assert_eq!(world.dump().await, before);
    refused(server.get("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
}

async fn times_are_checked(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for (seconds, nanos) in [
        (i64::MAX, 0),
        (i64::MIN, 0),
        (253_402_300_800, 0),
        (4_000_000_000, -1),
        (4_000_000_000, 1_000_000_000),
        (4_000_000_000, i32::MIN),
    ] {
        let time = prost_types::Timestamp { seconds, nanos };
        let request =
            v1::PinPlacementRequest { expire_time: Some(time), ..pin("tenant", "cell-a") };
        invalid(server.pin(request).await, "INVALID_TIME", "expire_time");
    }
    assert_eq!(world.dump().await, before);
}
