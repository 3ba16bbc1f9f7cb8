//! An existing `CellMappings` is adopted as it is: items that somebody else's router wrote resolve unchanged, count as epoch 1, and get our
//! attributes at their first change.

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ScalarAttributeType,
};
use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource::{Memory, Table};
use cell_directory::proto::v1::PlacementEvent as Event;
use prost_types::Timestamp;
use tonic::Code;

use crate::celld::cell;
use crate::checks::refused;
use crate::world::{Engine, Item, Server, World, def, pin, text};

on_both_engines!(
    a_foreign_item_resolves_unchanged,
    times_are_read_in_every_common_form,
    a_foreign_tenant_leaves_its_epoch_behind,
    a_foreign_ttl_is_an_expiry,
    a_foreign_item_may_name_an_unknown_cell,
    a_new_cell_counts_what_is_there,
    a_pin_and_an_import_leave_a_foreign_item_as_it_is,
    a_table_from_before_is_adopted,
);

/// What somebody else's router writes.
fn foreign(key: &str, cell: &str, more: &[(&str, AttributeValue)]) -> Item {
    let mut item = Item::from([
        ("PartitionKey".to_owned(), text(key)),
        ("CellId".to_owned(), text(cell)),
        ("CreatedAt".to_owned(), text("2026-01-31T12:00:00.123456")),
        ("LastUpdated".to_owned(), text("2026-01-31T13:00:00Z")),
    ]);
    item.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    item
}

fn ttl(seconds_from_now: i64) -> (&'static str, AttributeValue) {
    let at = crate::world::from_now(0).seconds + seconds_from_now;
    ("TTL", AttributeValue::N(at.to_string()))
}

async fn listed(server: &Server, cell: &str) -> Vec<String> {
    let request = v1::ListPlacementsRequest { cell_id: cell.into(), ..def() };
    let answer = server.directory.clone().list_placements(request).await.unwrap();
    let mut keys: Vec<_> =
        answer.into_inner().placements.into_iter().map(|p| p.partition_key).collect();
    keys.sort();
    keys
}

async fn a_foreign_item_resolves_unchanged(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let nested = AttributeValue::M([("n".to_owned(), text("x"))].into());
    world
        .put_foreign(foreign("tenant", "cell-b", &[("Tier", text("gold")), ("Extra", nested)]))
        .await;
    let before = world.dump().await;
    for source in [Table, Memory] {
        let answer = server.resolve("tenant").await;
        let (placement, decision) = (answer.placement.unwrap(), answer.decision.unwrap());
        assert_eq!((decision.source(), decision.authoritative), (source, true));
        assert_eq!((placement.cell_id.as_str(), placement.epoch), ("cell-b", 1));
        assert_eq!(placement.endpoint, "https://cell-b.example.com");
        assert_eq!(placement.write_mode(), v1::WriteMode::Direct);
        assert_eq!(placement.state(), v1::PlacementState::Active);
        let created = Timestamp { seconds: 1_769_860_800, nanos: 123_000_000 };
        assert_eq!(placement.create_time, Some(created));
        assert_eq!(placement.update_time, Some(Timestamp { seconds: 1_769_864_400, nanos: 0 }));
        assert_eq!(placement.expire_time, None);
        assert_eq!(server.get("tenant").await.unwrap(), placement);
    }
    assert_eq!(listed(&server, "cell-b").await, ["tenant"]);
    assert_eq!(listed(&server, "").await, ["tenant"]);
    let history = server.history("tenant").await;
    assert_eq!((history.len(), history[0].epoch), (1, 1));
    assert_eq!(
        (history[0].began_by(), history[0].ended_by()),
        (Event::Adopted, Event::Unspecified)
    );
    assert_eq!(world.dump().await, before, "nothing is written for having been read");
}

async fn times_are_read_in_every_common_form(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let noon = Some(Timestamp { seconds: 1_769_860_800, nanos: 0 });
    let micros = Some(Timestamp { seconds: 1_769_860_800, nanos: 123_000_000 });
    for (n, (form, wanted)) in [
        (text("2026-01-31T12:00:00Z"), noon),
        (text("2026-01-31T12:00:00"), noon),
        // Python's isoformat(), naive and aware.
        (text("2026-01-31T12:00:00.123456"), micros),
        (text("2026-01-31T12:00:00.123456+00:00"), micros),
        (text("2026-01-31T14:00:00+02:00"), noon),
        (text("yesterday"), None),
        (AttributeValue::N("1769860800".into()), None),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("tenant-{n}");
        let times = [("CreatedAt", form.clone()), ("LastUpdated", form.clone())];
        world.put_foreign(foreign(&key, "cell-a", &times)).await;
        let placement = server.resolve(&key).await.placement.unwrap();
        assert_eq!((placement.create_time, placement.update_time), (wanted, wanted), "{form:?}");
        assert_eq!(placement.cell_id, "cell-a");
    }
    // Only the key and the cell are needed.
    let bare = Item::from([
        ("PartitionKey".to_owned(), text("bare")),
        ("CellId".to_owned(), text("cell-a")),
    ]);
    world.put_foreign(bare).await;
    let placement = server.resolve("bare").await.placement.unwrap();
    assert_eq!((placement.cell_id.as_str(), placement.create_time), ("cell-a", None));
}

async fn a_foreign_tenant_leaves_its_epoch_behind(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    world.put_foreign(foreign("tenant", "cell-a", &[])).await;
    let wrong = v1::DeletePlacementRequest { partition_key: "tenant".into(), epoch: 2, ..def() };
    refused(server.delete_as(wrong).await, Code::Aborted, "EPOCH_MISMATCH");
    let right = v1::DeletePlacementRequest { partition_key: "tenant".into(), epoch: 1, ..def() };
    assert_eq!(server.delete_as(right).await.unwrap().epoch, 1);
    let left = world.item("tenant").await.expect("its epoch stays");
    assert!(!left.contains_key("CellId") && !left.contains_key("TTL"), "{left:?}");
    refused(server.look_up("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
    assert!(listed(&server, "").await.is_empty() && listed(&server, "cell-a").await.is_empty());

    let back = server.resolve("tenant").await.placement.unwrap();
    assert_eq!((back.cell_id.as_str(), back.epoch), ("cell-a", 2));
    let history = server.history("tenant").await;
    assert_eq!((history[1].epoch, history[1].began_by()), (1, Event::Adopted));
    assert_eq!(history[1].ended_by(), Event::Deleted);
    assert_eq!(history[1].begin_time.unwrap().seconds, 1_769_864_400);
}

async fn a_foreign_ttl_is_an_expiry(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    world.put_foreign(foreign("later", "cell-a", &[ttl(3600)])).await;
    let later = server.resolve("later").await.placement.unwrap();
    let due = crate::world::from_now(0).seconds + 3600;
    assert!((due - 60..=due).contains(&later.expire_time.unwrap().seconds));
    // So long past that the storage's own TTL, which deletes nothing older than five years, leaves it alone.
    let ancient = ("TTL", AttributeValue::N("1000000000".into()));
    world.put_foreign(foreign("over", "cell-a", &[ancient])).await;
    refused(server.look_up("over").await, Code::NotFound, "PLACEMENT_EXPIRED");
    assert_eq!(server.get("over").await.unwrap().state(), v1::PlacementState::Expired);
    let placed = server.resolve("over").await.placement.unwrap();
    assert_eq!((placed.epoch, placed.expire_time), (2, None));
    let item = world.item("over").await.unwrap();
    assert!(!item.contains_key("TTL"), "or the storage would delete the new placement: {item:?}");
    assert_eq!(server.history("over").await[1].ended_by(), Event::Expired);
    // Zero is a common way to say never.
    let never = ("TTL", AttributeValue::N("0".into()));
    world.put_foreign(foreign("never", "cell-a", &[never])).await;
    assert_eq!(server.resolve("never").await.placement.unwrap().expire_time, None);
}

async fn a_foreign_item_may_name_an_unknown_cell(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    world.put_foreign(foreign("tenant", "elsewhere", &[])).await;
    let placement = server.resolve("tenant").await.placement.unwrap();
    assert_eq!((placement.cell_id.as_str(), placement.epoch), ("elsewhere", 1));
    assert!(placement.endpoint.is_empty() && placement.region.is_empty());
    let request = v1::BatchResolveRequest { partition_keys: vec!["tenant".into()], ..def() };
    let batch = server.directory.clone().batch_resolve(request).await.unwrap().into_inner();
    assert!(batch.cells.is_empty());
    assert_eq!(server.delete("tenant").await.unwrap().cell_id, "elsewhere");
    assert!(!world.counts().await.contains_key("elsewhere"), "it is no cell of ours");
    let back = server.resolve("tenant").await.placement.unwrap();
    assert_eq!((back.cell_id.as_str(), back.epoch), ("cell-a", 2));

    // What cannot be a cell at all is said to be unreadable, not absent: to assign would make two truths.
    world.put_foreign(foreign("ill", "Not A Cell", &[])).await;
    let before = world.dump().await;
    for answer in
        [server.look_up("ill").await, server.try_resolve(crate::world::resolve("ill")).await]
    {
        refused(answer, Code::DataLoss, "RECORD_UNREADABLE");
    }
    assert_eq!(world.dump().await, before);
}

async fn a_new_cell_counts_what_is_there(engine: Engine) {
    let world = World::new(engine).await;
    let server = world.serve(&[]).await;
    for n in 0..3 {
        world.put_foreign(foreign(&format!("tenant-{n}"), "cell-a", &[])).await;
    }
    let created =
        server.create_cell(v1::Cell { capacity: Some(3), ..cell("cell-a") }).await.unwrap();
    assert_eq!(created.placement_count, 3);
    // They take up its capacity, and keep it from being removed.
    let answer = server.try_resolve(crate::world::resolve("fourth")).await;
    refused(answer, Code::FailedPrecondition, "NO_ELIGIBLE_CELL");
    refused(server.delete_cell("cell-a").await, Code::FailedPrecondition, "CELL_NOT_EMPTY");
    for n in 0..3 {
        server.delete(&format!("tenant-{n}")).await.unwrap();
    }
    assert_eq!(server.cell("cell-a").await.unwrap().placement_count, 0);
    // One that came after the cell was registered is not counted, and found all the same.
    world.put_foreign(foreign("late", "cell-a", &[])).await;
    let before = world.dump().await;
    refused(server.delete_cell("cell-a").await, Code::FailedPrecondition, "CELL_NOT_EMPTY");
    assert_eq!(world.dump().await, before);
    server.delete("late").await.unwrap();
    assert_eq!(server.cell("cell-a").await.unwrap().placement_count, 0, "not below zero");
    server.delete_cell("cell-a").await.unwrap();
}

async fn a_pin_and_an_import_leave_a_foreign_item_as_it_is(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    world.put_foreign(foreign("tenant", "cell-a", &[("Tier", text("gold"))])).await;
    let before = world.dump().await;
    assert_eq!(server.pin(pin("tenant", "cell-a")).await.unwrap().epoch, 1);
    refused(server.pin(pin("tenant", "cell-b")).await, Code::AlreadyExists, "PLACEMENT_EXISTS");
    let rows = ["cell-a", "cell-b"].map(|cell| v1::PlacementImport {
        partition_key: "tenant".into(),
        cell_id: cell.into(),
        ..def()
    });
    let request = v1::ImportPlacementsRequest { placements: rows.into(), ..def() };
    let stream = tokio_stream::iter([request]);
    let answer = server.directory.clone().import_placements(stream).await.unwrap().into_inner();
    assert_eq!((answer.created, answer.unchanged, answer.failed), (0, 1, 1));
    assert_eq!(world.dump().await, before);
}

/// A table that somebody made without our index, full of items.
async fn a_table_from_before_is_adopted(engine: Engine) {
    let world = World::new(engine).await;
    let key = KeySchemaElement::builder().attribute_name("PartitionKey").key_type(KeyType::Hash);
    let attribute = AttributeDefinition::builder()
        .attribute_name("PartitionKey")
        .attribute_type(ScalarAttributeType::S);
    world
        .dynamodb
        .create_table()
        .table_name(world.mappings())
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(key.build().unwrap())
        .attribute_definitions(attribute.build().unwrap())
        .send()
        .await
        .unwrap();
    for n in 0..30 {
        let cell = if n % 3 == 0 { "cell-b" } else { "cell-a" };
        world.put_foreign(foreign(&format!("tenant-{n:02}"), cell, &[])).await;
    }
    let server = world.serve(&[]).await;
    for (id, wanted) in [("cell-a", 20), ("cell-b", 10)] {
        assert_eq!(server.create_cell(cell(id)).await.unwrap().placement_count, wanted);
        let keys = listed(&server, id).await;
        assert_eq!(u64::try_from(keys.len()).unwrap(), wanted);
    }
    let placement = server.resolve("tenant-03").await.placement.unwrap();
    assert_eq!((placement.cell_id.as_str(), placement.epoch), ("cell-b", 1));
    server.delete("tenant-03").await.unwrap();
    assert_eq!(server.pin(pin("tenant-03", "cell-a")).await.unwrap().epoch, 2);
    assert_eq!(listed(&server, "cell-b").await.len(), 9);
    assert!(listed(&server, "cell-a").await.contains(&"tenant-03".to_owned()));
    assert_eq!(world.counts().await, [("cell-a".to_owned(), 21), ("cell-b".to_owned(), 9)].into());
}
