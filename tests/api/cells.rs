//! CellAdmin: a cell's life, and what is refused on the way.

use std::collections::BTreeMap;

use cell_directory::proto::v1;
use tonic::Code;

use crate::celld::cell;
use crate::checks::{invalid, refused};
use crate::world::{Engine, World, def, mask, pin};

on_both_engines!(
    a_cells_life,
    an_update_changes_what_the_mask_names,
    an_etag_is_of_one_version,
    retired_is_final_and_empty,
    a_cell_with_placements_stays,
    lists_cells_by_id,
    previews_change_nothing,
);

async fn a_cells_life(engine: Engine) {
    let world = World::new(engine).await;
    let server = world.serve(&[]).await;
    refused(server.cell("cell-a").await, Code::NotFound, "CELL_NOT_FOUND");
    let plain = server.create_cell(cell("cell-a")).await.unwrap();
    assert_eq!((plain.weight, plain.capacity), (Some(100), Some(0)));
    assert_eq!((plain.state(), plain.placement_count), (v1::CellState::Active, 0));
    assert!(!plain.etag.is_empty() && plain.create_time.is_some());
    assert_eq!(plain.update_time, plain.create_time);
    let full = v1::Cell {
        labels: [("tier".to_owned(), "gold \"é\"".to_owned())].into(),
        weight: Some(0),
        capacity: Some(u64::MAX),
        state: v1::CellState::Quarantined.into(),
        ..cell("cell-b")
    };
    let created = server.create_cell(full.clone()).await.unwrap();
    let v1::Cell { etag, create_time, update_time, .. } = created.clone();
    assert_eq!(created, v1::Cell { etag, create_time, update_time, ..full });
    let restarted = world.serve(&[]).await;
    for wanted in [plain, created] {
        assert_eq!(server.cell(&wanted.cell_id).await.unwrap(), wanted);
        assert_eq!(restarted.cell(&wanted.cell_id).await.unwrap(), wanted);
    }

    let before = world.dump().await;
    refused(server.create_cell(cell("cell-a")).await, Code::AlreadyExists, "CELL_EXISTS");
    refused(server.delete_cell("nowhere").await, Code::NotFound, "CELL_NOT_FOUND");
    let nowhere = server.update_cell(cell("nowhere"), &["endpoint"]).await;
    refused(nowhere, Code::NotFound, "CELL_NOT_FOUND");
    assert_eq!(world.dump().await, before);

    server.delete_cell("cell-a").await.unwrap();
    refused(server.cell("cell-a").await, Code::NotFound, "CELL_NOT_FOUND");
    refused(server.pin(pin("tenant", "cell-a")).await, Code::NotFound, "CELL_NOT_FOUND");
    let again = server.create_cell(cell("cell-a")).await.unwrap();
    assert_eq!(again.placement_count, 0);
}

async fn an_update_changes_what_the_mask_names(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let mut known = server.cell("cell-a").await.unwrap();
    // Every field is given; only the named ones count.
    let given = v1::Cell {
        region: "us-east-1".into(),
        endpoint: "http://elsewhere".into(),
        labels: [("tier".to_owned(), "gold".to_owned())].into(),
        weight: Some(7),
        capacity: Some(5),
        state: v1::CellState::Draining.into(),
        ..cell("cell-a")
    };
    for field in ["weight", "capacity", "labels", "endpoint", "state"] {
        let wanted = match field {
            "weight" => v1::Cell { weight: given.weight, ..known },
            "capacity" => v1::Cell { capacity: given.capacity, ..known },
            "labels" => v1::Cell { labels: given.labels.clone(), ..known },
            "endpoint" => v1::Cell { endpoint: given.endpoint.clone(), ..known },
            _ => v1::Cell { state: given.state, ..known },
        };
        let updated = server.update_cell(given.clone(), &[field]).await.unwrap();
        assert_ne!(updated.etag, wanted.etag, "{field}");
        let v1::Cell { etag, update_time, .. } = updated.clone();
        assert_eq!(updated, v1::Cell { etag, update_time, ..wanted }, "{field}");
        assert_eq!(server.cell("cell-a").await.unwrap(), updated);
        known = updated;
    }
    // Labels are replaced, and what is absent goes back to its default.
    let labels = [("zone".to_owned(), "b".to_owned())].into();
    let less = v1::Cell { cell_id: "cell-a".into(), labels, ..def() };
    let updated =
        server.update_cell(less.clone(), &["labels", "weight", "capacity"]).await.unwrap();
    assert_eq!(updated.labels, BTreeMap::from([("zone".to_owned(), "b".to_owned())]));
    assert_eq!((updated.weight, updated.capacity), (Some(100), Some(0)));
    assert_eq!(
        (updated.endpoint.as_str(), updated.region.as_str()),
        ("http://elsewhere", "eu-west-1")
    );

    let before = world.dump().await;
    for paths in [
        &["region"][..],
        &["cell_id"],
        &["etag"],
        &["placement_count"],
        &["weight", "Weight"],
        &["*"],
        &[""],
    ] {
        let answer = server.update_cell(less.clone(), paths).await;
        invalid(answer, "INVALID_UPDATE_MASK", "update_mask");
    }
    invalid(server.update_cell(less.clone(), &[]).await, "INVALID_UPDATE_MASK", "update_mask");
    let unmasked = v1::UpdateCellRequest { cell: Some(less.clone()), ..def() };
    let answer = server.admin.clone().update_cell(unmasked).await;
    invalid(answer, "INVALID_UPDATE_MASK", "update_mask");
    // A named field must be given properly.
    invalid(server.update_cell(less.clone(), &["state"]).await, "UNKNOWN_ENUM_VALUE", "cell.state");
    invalid(server.update_cell(less, &["endpoint"]).await, "INVALID_ENDPOINT", "cell.endpoint");
    assert_eq!(world.dump().await, before);
}

async fn an_etag_is_of_one_version(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let created = server.cell("cell-a").await.unwrap();
    // Placements come and go without making another version.
    server.resolve("tenant").await;
    assert_eq!(server.cell("cell-a").await.unwrap().etag, created.etag);
    server.delete("tenant").await.unwrap();
    let first = v1::Cell { weight: Some(1), ..created.clone() };
    let updated = server.update_cell(first, &["weight"]).await.unwrap();
    let before = world.dump().await;
    for stale in [created.etag.as_str(), "r0", "x"] {
        let second = v1::Cell { weight: Some(2), etag: stale.into(), ..created.clone() };
        let answer = server.update_cell(second, &["weight"]).await;
        let details = refused(answer, Code::Aborted, "ETAG_MISMATCH");
        assert_eq!(details.error_info().unwrap().metadata["etag"], updated.etag);
        let delete =
            v1::DeleteCellRequest { cell_id: "cell-a".into(), etag: stale.into(), ..def() };
        refused(server.admin.clone().delete_cell(delete).await, Code::Aborted, "ETAG_MISMATCH");
    }
    for ill in ["a b", "é", &"x".repeat(65)] {
        let second = v1::Cell { etag: ill.into(), ..updated.clone() };
        invalid(server.update_cell(second, &["weight"]).await, "INVALID_ETAG", "cell.etag");
        let delete = v1::DeleteCellRequest { cell_id: "cell-a".into(), etag: ill.into(), ..def() };
        invalid(server.admin.clone().delete_cell(delete).await, "INVALID_ETAG", "etag");
    }
    let tagged = v1::Cell { etag: "r1".into(), ..cell("cell-b") };
    invalid(server.create_cell(tagged).await, "INVALID_ETAG", "cell.etag");
    assert_eq!(world.dump().await, before);

    // Of many who read the same version, one changes it.
    let attempts = (0..8).map(|weight| {
        let cell = v1::Cell { weight: Some(10 + weight), ..updated.clone() };
        server.update_cell(cell, &["weight"])
    });
    let (mut won, mut lost) = (0, 0);
    for answer in futures::future::join_all(attempts).await {
        match answer {
            Ok(_) => won += 1,
            Err(status) => {
                refused(Err::<(), _>(status), Code::Aborted, "ETAG_MISMATCH");
                lost += 1;
            }
        }
    }
    assert_eq!((won, lost), (1, 7));
    let etag = server.cell("cell-a").await.unwrap().etag;
    let delete = v1::DeleteCellRequest { cell_id: "cell-a".into(), etag, ..def() };
    server.admin.clone().delete_cell(delete).await.unwrap();
}

async fn retired_is_final_and_empty(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    let retire =
        v1::Cell { cell_id: "cell-a".into(), state: v1::CellState::Retired.into(), ..def() };
    let before = world.dump().await;
    let answer = server.update_cell(retire.clone(), &["state"]).await;
    refused(answer, Code::FailedPrecondition, "CELL_NOT_EMPTY");
    assert_eq!(world.dump().await, before);
    server.delete("tenant").await.unwrap();
    server.update_cell(retire.clone(), &["state"]).await.unwrap();
    let before = world.dump().await;
    for state in [
        v1::CellState::Active,
        v1::CellState::Cordoned,
        v1::CellState::Draining,
        v1::CellState::Quarantined,
    ] {
        let back = v1::Cell { state: state.into(), ..retire.clone() };
        let answer = server.update_cell(back, &["state"]).await;
        refused(answer, Code::FailedPrecondition, "STATE_CHANGE_NOT_ALLOWED");
    }
    assert_eq!(world.dump().await, before);
    let label = [("why".to_owned(), "old".to_owned())].into();
    let labelled = v1::Cell { labels: label, ..retire };
    server.update_cell(labelled, &["labels", "state"]).await.unwrap();
    server.delete_cell("cell-a").await.unwrap();
}

async fn a_cell_with_placements_stays(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    server.resolve("tenant").await;
    let before = world.dump().await;
    refused(server.delete_cell("cell-a").await, Code::FailedPrecondition, "CELL_NOT_EMPTY");
    assert_eq!(world.dump().await, before);
    server.delete("tenant").await.unwrap();
    server.delete_cell("cell-a").await.unwrap();
    // Nothing is left of it but the journal's word.
    assert!(world.counts().await.is_empty());
    // Its tenants' past stays, and new ones go elsewhere.
    assert_eq!(server.history("tenant").await[0].cell_id, "cell-a");
    server.create_cell(cell("cell-b")).await.unwrap();
    let placed = server.resolve("tenant").await.placement.unwrap();
    assert_eq!((placed.cell_id.as_str(), placed.epoch), ("cell-b", 2));
}

async fn lists_cells_by_id(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["m", "b", "a-1", "z", "a"]).await;
    for page_size in [1, 2, 5, 0] {
        let (mut ids, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListCellsRequest { page_size, page_token };
            let page = server.admin.clone().list_cells(request).await.unwrap().into_inner();
            assert!(page_size == 0 || page.cells.len() <= usize::try_from(page_size).unwrap());
            ids.extend(page.cells.into_iter().map(|cell| cell.cell_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            assert!(ids.len() < 5, "the listing does not end");
        }
        assert_eq!(ids, ["a", "a-1", "b", "m", "z"], "pages of {page_size}");
    }
}

async fn previews_change_nothing(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    let admin = || server.admin.clone();
    let (request_id, validate_only) = ("preview".to_owned(), true);
    let create = v1::CreateCellRequest {
        cell: Some(cell("cell-b")),
        request_id: request_id.clone(),
        validate_only,
    };
    let would_be = admin().create_cell(create.clone()).await.unwrap().into_inner().cell.unwrap();
    assert_eq!(would_be.cell_id, "cell-b");
    let taken = v1::CreateCellRequest { cell: Some(cell("cell-a")), ..create };
    refused(admin().create_cell(taken).await, Code::AlreadyExists, "CELL_EXISTS");
    let update = v1::UpdateCellRequest {
        cell: Some(v1::Cell { weight: Some(3), ..cell("cell-a") }),
        update_mask: mask(&["weight"]),
        request_id: request_id.clone(),
        validate_only,
    };
    let would_be = admin().update_cell(update).await.unwrap().into_inner().cell.unwrap();
    assert_eq!(would_be.weight, Some(3));
    let delete =
        v1::DeleteCellRequest { cell_id: "cell-a".into(), request_id, validate_only, ..def() };
    admin().delete_cell(delete).await.unwrap();
    assert_eq!(world.dump().await, before);
    assert_eq!(server.cell("cell-a").await.unwrap().weight, Some(100));
}
