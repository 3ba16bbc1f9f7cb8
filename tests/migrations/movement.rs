//! A tenant there and back, with all that a DynamoDB item can be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_data_client::CellDataClient;

use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::scene::{Item, Scene, partition, text};
use crate::world::Engine;

/// Each case on each engine.
macro_rules! on_both_engines {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let engine = super::Engine::Embedded(super::Arc::new(super::Embedded::temporary()));
                super::$case(super::Scene::new(engine).await).await;
            })+
        }
        mod dynamodb_local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let engine = super::Engine::DynamoDbLocal(super::DynamoDbLocal::shared());
                super::$case(super::Scene::new(engine).await).await;
            })+
        }
    };
}

on_both_engines!(a_tenant_moves_and_comes_back_as_it_was);

/// What copiers get wrong: all types, numbers of 38 digits, nothing at all, deep nests, what is as large as can be, what has expired.
fn poison(tenant: &str, cell: &str) -> Vec<Item> {
    let number = |text: &str| AttributeValue::N(text.to_owned());
    let mut deep = text("bottom");
    for level in 0..30 {
        deep = match level % 2 {
            0 => AttributeValue::L(vec![deep]),
            _ => AttributeValue::M([("n".to_owned(), deep)].into()),
        };
    }
    let values = [
        ("numbers", number("99999999999999999999999999999999999999")),
        ("small", number("0.00000000000000000000000000000000000001")),
        ("negative", number("-1.5")),
        ("binary", AttributeValue::B(Blob::new(vec![0, 255, 1, 128]))),
        ("empty", text("")),
        ("nothing", AttributeValue::B(Blob::new(Vec::new()))),
        ("null", AttributeValue::Null(true)),
        ("no", AttributeValue::Bool(false)),
        ("texts", AttributeValue::Ss(vec!["b".into(), "a".into(), "é".into()])),
        ("figures", AttributeValue::Ns(vec!["3".into(), "-20".into(), "1".into()])),
        ("blobs", AttributeValue::Bs(vec![Blob::new(vec![2]), Blob::new(vec![1, 0])])),
        ("no list", AttributeValue::L(Vec::new())),
        ("no map", AttributeValue::M(Default::default())),
        ("deep", deep),
        ("large", text(&"x".repeat(399 * 1024))),
        ("TTL", number("1000000000")),
    ];
    let items = values.into_iter().map(|(name, value)| {
        Item::from([
            ("PK".to_owned(), text(&partition(tenant))),
            ("SK".to_owned(), text(&format!("ITEM#{name}"))),
            ("CellId".to_owned(), text(cell)),
            (name.to_owned(), value),
        ])
    });
    items.collect()
}

/// The same items as they are in another cell.
fn in_cell(items: &BTreeMap<String, Item>, cell: &str) -> BTreeMap<String, Item> {
    let stamped = items.iter().map(|(key, item)| {
        let mut item = item.clone();
        item.insert("CellId".to_owned(), text(cell));
        (key.clone(), sorted(item))
    });
    stamped.collect()
}

/// Sets have no order.
fn sorted(mut item: Item) -> Item {
    for value in item.values_mut() {
        match value {
            AttributeValue::Ss(set) | AttributeValue::Ns(set) => set.sort(),
            AttributeValue::Bs(set) => set.sort_by(|a, b| a.as_ref().cmp(b.as_ref())),
            _ => {}
        }
    }
    item
}

async fn a_tenant_moves_and_comes_back_as_it_was(mut scene: Scene) {
    for (tenant, items) in [("moves", 30), ("moves#1", 3), ("move", 3)] {
        scene.pin(tenant, "cell-a").await;
        for item in poison(tenant, "cell-a").into_iter().take(items) {
            scene.write("CustomerData", "cell-a", item).await;
        }
    }
    for n in 0..250 {
        let item = Item::from([
            ("PK".to_owned(), text("TRAVELLER#moves")),
            ("SK".to_owned(), text(&format!("{n:04}"))),
            ("CellId".to_owned(), text("cell-a")),
        ]);
        scene.write("Journeys", "cell-a", item).await;
    }
    let cart =
        [("PK".to_owned(), text(&partition("moves"))), ("CellId".to_owned(), text("cell-a"))];
    scene.write("Carts", "cell-a", cart.into()).await;
    let tables = ["CustomerData", "Journeys", "Carts"];
    let mut before = Vec::new();
    for table in tables {
        before.push(scene.items(table, "cell-a").await);
    }
    let ours = |items: &BTreeMap<String, Item>| -> BTreeMap<String, Item> {
        let names = [partition("moves"), "TRAVELLER#moves".to_owned()];
        let of = |item: &Item| names.iter().any(|name| *name == *item["PK"].as_s().unwrap());
        items.iter().filter(|(_, item)| of(item)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };

    let begun = scene.start("moves", "cell-b").await.unwrap();
    let id = begun.migration_id.clone();
    let soaking = scene.until(&id, v1::MigrationState::Soaking).await;
    assert_eq!((soaking.live_cell_id.as_str(), soaking.epoch), ("cell-b", 2));
    let report = soaking.report.unwrap();
    assert_eq!((report.mismatches, report.source_items), (0, report.target_items));
    assert_eq!(report.source_digest, report.target_digest);
    assert_eq!(report.source_items, 15 + 250 + 1 + 1, "{report:?}");
    for (table, before) in tables.iter().zip(&before) {
        let there = in_cell(&scene.items(table, "cell-b").await, "cell-b");
        assert_eq!(there, in_cell(&ours(before), "cell-b"), "{table}");
    }
    let placement = scene.placement("moves").await;
    assert_eq!((placement.cell_id.as_str(), placement.epoch), ("cell-b", 2));
    assert_eq!(placement.write_mode(), v1::WriteMode::Logged);
    assert_eq!(placement.migration_id, id);

    // The cell that was left is kept as the present one is, and is not asked beside it.
    let request = v1::QueryRequest {
        partition_key: "moves".to_owned(),
        table: "CustomerData".to_owned(),
        scope: v1::QueryScope::AllCells.into(),
        // Not those that are nested deeper than prost reads.
        sort_key_prefix: "ITEM#n".to_owned(),
        ..Default::default()
    };
    let mut data = CellDataClient::new(scene.world.server.channel().await);
    let found = data.query(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    let cells: BTreeSet<_> =
        found.items.iter().map(|item| (&*item.cell_id, item.previous)).collect();
    assert_eq!(cells, [("cell-b", false)].into(), "{found:?}");

    scene.reverse(&id).await;
    let done = scene.until(&id, v1::MigrationState::Done).await;
    assert_eq!((done.live_cell_id.as_str(), done.epoch), ("cell-a", 3));
    for (table, before) in tables.iter().zip(&before) {
        assert_eq!(scene.items(table, "cell-b").await, BTreeMap::new(), "{table}");
        let back = in_cell(&scene.items(table, "cell-a").await, "cell-a");
        assert_eq!(back, in_cell(before, "cell-a"), "{table}");
    }
    let placement = scene.placement("moves").await;
    assert_eq!((placement.cell_id.as_str(), placement.epoch), ("cell-a", 3));
    assert_eq!(placement.write_mode(), v1::WriteMode::Direct);
    assert_eq!(placement.migration_id, "");
    // One guard a tenant, and where it was a marker; no log.
    let guards = scene.records("cell-a").await;
    assert_eq!(guards.len(), 3, "{guards:?}");
    let markers = scene.records("cell-b").await;
    let states: Vec<_> = markers.values().map(|marker| marker["GuardState"].clone()).collect();
    assert_eq!(states, [text("MOVED")], "{markers:?}");
}
