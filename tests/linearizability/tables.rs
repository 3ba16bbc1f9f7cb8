//! The tables as they stand when nobody writes any more, read past proxies and service.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;

use crate::record::{Change, Entry, Kind, Op, Outcome, Recorder, Tables};

type Item = HashMap<String, AttributeValue>;

/// Entries under one key.
const BUCKET: u64 = 1000;

/// Who reads the tables, in the history.
const READER: usize = 99;

/// Adds to the history what the tables hold of these keys.
pub async fn read(endpoint: &str, prefix: &str, keys: &[String], recorder: &Recorder) {
    let client = client(endpoint);
    let control = format!("{prefix}CellControl");
    let head = number(&query(&client, &control, "JOURNAL").await[0], "Sequence");
    let mut entries = Vec::new();
    for bucket in 0..=head / BUCKET {
        entries.extend(query(&client, &control, &format!("JOURNAL#{bucket:012}")).await);
    }
    let cells = query(&client, &control, "CELL").await;
    let counts: BTreeMap<_, _> = cells.iter().filter_map(count).collect();
    let changes = entries.iter().flat_map(changes).collect();
    let entries = entries.iter().map(entry).collect();
    recorder.tables(Tables { head, counts, entries }, changes);

    let mappings = client.scan().table_name(format!("{prefix}CellMappings")).consistent_read(true);
    let pages = mappings.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    let pages = pages.unwrap();
    let items: HashMap<_, _> =
        pages.iter().map(|item| (item["PartitionKey"].as_s().unwrap().as_str(), item)).collect();
    for key in keys {
        let op = Op::new(READER, key, Kind::Final, recorder.now());
        let found = items.get(key.as_str());
        let cell = found.and_then(|item| item.get("CellId")).map(|cell| cell.as_s().unwrap());
        let outcome = if cell.is_some() { Outcome::Ok } else { Outcome::Vacated };
        let got_epoch = found.map_or(0, |item| number(item, "Epoch"));
        let got_cell = cell.cloned().unwrap_or_default();
        recorder.op(Op { outcome, got_cell, got_epoch, back: Some(recorder.now()), ..op });
    }
}

fn client(endpoint: &str) -> Client {
    let credentials =
        aws_sdk_dynamodb::config::Credentials::new("local", "local", None, None, "tests");
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::v2026_01_12())
        .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
        .credentials_provider(credentials)
        .endpoint_url(endpoint)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Client::from_conf(config.build())
}

async fn query(client: &Client, table: &str, pk: &str) -> Vec<Item> {
    let query = client
        .query()
        .table_name(table)
        .consistent_read(true)
        .key_condition_expression("PK = :pk")
        .expression_attribute_values(":pk", AttributeValue::S(pk.to_owned()));
    let items = query.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
    items.unwrap()
}

fn number(item: &Item, name: &str) -> u64 {
    item[name].as_n().unwrap().parse().unwrap()
}

fn text(item: &Item, name: &str) -> String {
    item[name].as_s().unwrap().clone()
}

fn entry(item: &Item) -> Entry {
    Entry { sequence: text(item, "SK").parse().unwrap(), nonce: text(item, "Nonce") }
}

/// The changes of placements in an entry.
fn changes(item: &Item) -> Vec<Change> {
    let sequence = entry(item).sequence;
    let changes = cell_directory::store::dynamodb::entry::of_item(item).unwrap();
    let changes = changes.iter().map(|change| serde_json::to_value(change).unwrap());
    let changes: Vec<_> = changes.collect();
    let placements = changes.iter().filter(|change| change["placement"].is_object());
    let told = placements.map(|change| {
        let placement = &change["placement"];
        let name = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Change {
            sequence,
            change: name(&change["change"]),
            key: name(&placement["key"]),
            cell: name(&placement["cell"]),
            epoch: placement["epoch"].as_u64().unwrap(),
        }
    });
    told.collect()
}

fn count(item: &Item) -> Option<(String, u64)> {
    let cell = item["SK"].as_s().unwrap().strip_prefix("COUNT#")?;
    Some((cell.to_owned(), number(item, "Placements")))
}
