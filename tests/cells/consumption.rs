//! Every kind of call that reads or writes items is counted, by the units that the engine says.

use std::path::Path;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, ConditionCheck, Delete, Get,
    KeySchemaElement, KeyType, KeysAndAttributes, Put, PutRequest, ScalarAttributeType,
    TransactGetItem, TransactWriteItem, Update, WriteRequest,
};
use cell_directory::metering::{Consumption, Direction};
use cell_directory::store::dynamodb::{DynamoDbOptions, connect};

use crate::celld::unique;
use crate::dynamodb_local::DynamoDbLocal;

/// Calls of the SDK that read or write items, as its client names them: those that the test below drives, and those that nobody may make
/// before they are counted.
const COUNTED: [&str; 10] = [
    "get_item",
    "batch_get_item",
    "query",
    "scan",
    "put_item",
    "update_item",
    "delete_item",
    "batch_write_item",
    "transact_write_items",
    "transact_get_items",
];
const UNCOUNTED: [&str; 4] =
    ["execute_statement", "batch_execute_statement", "execute_transaction", "search_vectors"];

struct Counted {
    client: Client,
    consumption: Consumption,
    table: String,
    other: String,
}

impl Counted {
    async fn new() -> Self {
        let consumption = Consumption::default();
        let options = DynamoDbOptions {
            endpoint: Some(DynamoDbLocal::shared().endpoint()),
            read_timeout: Duration::from_secs(20),
            consumption: consumption.clone(),
            ..DynamoDbOptions::default()
        };
        let client = connect(&options).await;
        let (table, other) = (unique("counted"), unique("other"));
        for name in [&table, &other] {
            let key = AttributeDefinition::builder()
                .attribute_name("PK")
                .attribute_type(ScalarAttributeType::S);
            let schema = KeySchemaElement::builder().attribute_name("PK").key_type(KeyType::Hash);
            client
                .create_table()
                .table_name(name)
                .attribute_definitions(key.build().unwrap())
                .key_schema(schema.build().unwrap())
                .billing_mode(BillingMode::PayPerRequest)
                .send()
                .await
                .unwrap();
        }
        Self { client, consumption, table, other }
    }

    /// What was counted of the first table since the last look, and of the second.
    fn since(&self, before: &mut [(f64, f64); 2]) -> [(f64, f64); 2] {
        let now = [&self.table, &self.other].map(|table| {
            let used = self.consumption.used(table);
            (used.units(Direction::Read), used.units(Direction::Write))
        });
        let told = [0, 1].map(|at| (now[at].0 - before[at].0, now[at].1 - before[at].1));
        *before = now;
        told
    }
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn write(table: &str, key: &str) -> TransactWriteItem {
    let put = Put::builder().table_name(table).item("PK", text(key));
    TransactWriteItem::builder().put(put.build().unwrap()).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_call_is_counted_by_table_and_direction() {
    let it = Counted::new().await;
    let (client, table, other) = (&it.client, it.table.as_str(), it.other.as_str());
    let mut before = [(0.0, 0.0); 2];
    let mut driven = Vec::new();
    // What each comes to is DynamoDB's arithmetic: an item of up to 1 KB is written for one unit, in a transaction for two; one of up to
    // 4 KB is read for a half, consistently for one, in a transaction for two.
    let mut counted = |call: &'static str, first: (f64, f64), second: (f64, f64)| {
        assert_eq!(it.since(&mut before), [first, second], "{call}");
        driven.push(call);
    };
    let none = (0.0, 0.0);

    let long = "x".repeat(2_500);
    client
        .put_item()
        .table_name(table)
        .item("PK", text("a"))
        .item("Long", text(&long))
        .send()
        .await
        .unwrap();
    counted("put_item", (0.0, 3.0), none);
    client.get_item().table_name(table).key("PK", text("a")).send().await.unwrap();
    counted("get_item", (0.5, 0.0), none);
    let get = client.get_item().table_name(table).key("PK", text("a")).consistent_read(true);
    get.send().await.unwrap();
    counted("get_item", (1.0, 0.0), none);
    client.put_item().table_name(other).item("PK", text("b")).send().await.unwrap();
    counted("put_item", none, (0.0, 1.0));
    let keys = |key| KeysAndAttributes::builder().keys([("PK".to_owned(), text(key))].into());
    let batch = client.batch_get_item().request_items(table, keys("a").build().unwrap());
    batch.request_items(other, keys("b").build().unwrap()).send().await.unwrap();
    counted("batch_get_item", (0.5, 0.0), (0.5, 0.0));
    let query = client.query().table_name(table).key_condition_expression("PK = :pk");
    query.expression_attribute_values(":pk", text("a")).send().await.unwrap();
    counted("query", (0.5, 0.0), none);
    client.scan().table_name(table).consistent_read(true).send().await.unwrap();
    counted("scan", (1.0, 0.0), none);
    let update = client.update_item().table_name(other).key("PK", text("b"));
    let update =
        update.update_expression("SET N = :n").expression_attribute_values(":n", text("1"));
    update.send().await.unwrap();
    counted("update_item", none, (0.0, 1.0));
    client.delete_item().table_name(other).key("PK", text("b")).send().await.unwrap();
    counted("delete_item", none, (0.0, 1.0));
    let put = |key| {
        let put = PutRequest::builder().item("PK", text(key)).build().unwrap();
        WriteRequest::builder().put_request(put).build()
    };
    let batch = client.batch_write_item().request_items(table, vec![put("c"), put("d")]);
    batch.request_items(other, vec![put("e")]).send().await.unwrap();
    counted("batch_write_item", (0.0, 2.0), (0.0, 1.0));
    let update = Update::builder().table_name(other).key("PK", text("f"));
    let update =
        update.update_expression("SET N = :n").expression_attribute_values(":n", text("1"));
    let delete = Delete::builder().table_name(other).key("PK", text("e"));
    let all = vec![
        write(table, "g"),
        TransactWriteItem::builder().update(update.build().unwrap()).build(),
        TransactWriteItem::builder().delete(delete.build().unwrap()).build(),
    ];
    let answer = client.transact_write_items().set_transact_items(Some(all)).send().await.unwrap();
    // DynamoDB Local does not do it by the book here: so by what it says.
    let told = |table| {
        let mut told = answer.consumed_capacity().iter();
        told.find(|told| told.table_name() == Some(table)).unwrap().capacity_units().unwrap()
    };
    assert!(told(table) >= 2.0 && told(other) >= 4.0, "{answer:?}");
    counted("transact_write_items", (0.0, told(table)), (0.0, told(other)));
    let get = |table: &str, key| {
        let get = Get::builder().table_name(table).key("PK", text(key)).build().unwrap();
        TransactGetItem::builder().get(get).build()
    };
    let gets = vec![get(table, "g"), get(other, "f")];
    client.transact_get_items().set_transact_items(Some(gets)).send().await.unwrap();
    counted("transact_get_items", (2.0, 0.0), (2.0, 0.0));

    // An answer that is an error tells of no units, and is not a throttle.
    let check = ConditionCheck::builder().table_name(table).key("PK", text("absent"));
    let check = check.condition_expression("attribute_exists(PK)").build().unwrap();
    let check = TransactWriteItem::builder().condition_check(check).build();
    let refused = client.transact_write_items().transact_items(check);
    refused.transact_items(write(other, "h")).send().await.unwrap_err();
    counted("transact_write_items", none, none);
    for name in [table, other] {
        let used = it.consumption.used(name);
        assert_eq!((used.throttled_reads, used.throttled_writes), (0, 0));
    }

    driven.sort_unstable();
    driven.dedup();
    let mut all = COUNTED.to_vec();
    all.sort_unstable();
    assert_eq!(driven, all);
}

/// A call of a kind that is not counted would be one that nobody sees.
#[test]
fn no_other_kind_of_call_is_made_and_no_client_is_made_without_the_counting() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["src", "crates/cells-streams/src"] {
        gather(&root.join(folder), &mut sources);
    }
    assert!(sources.len() > 100, "{}", sources.len());
    let mut seen = Vec::new();
    for (file, source) in &sources {
        for call in COUNTED.iter().filter(|call| source.contains(&format!(".{call}()"))) {
            seen.push(*call);
        }
        for call in UNCOUNTED {
            assert!(!source.contains(&format!(".{call}()")), "{file}: {call} is not counted");
        }
        // One way to a client's configuration.
        let made = source.matches("aws_sdk_dynamodb::config::Builder::from(").count();
        let expected = usize::from(file.ends_with("src/store/dynamodb/client.rs"));
        assert_eq!(made, expected, "{file}: take client::counting");
        assert!(
            !source.contains("aws_sdk_dynamodb::Client::new("),
            "{file}: take client::counting"
        );
    }
    assert!(seen.contains(&"get_item") && seen.contains(&"transact_write_items"), "{seen:?}");
}

fn gather(folder: &Path, sources: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}
