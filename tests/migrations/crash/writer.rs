//! An application that writes as docs/writers.md says, one write at a time, and the model of what it was acknowledged.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::{Condition, GuardTable, LogRecord, Touched, guard, log};
use cells_migration::{GuardCheck, MigrationId, WriteMode};
use dynoxide::Database;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::engine::{ask, perform};
use super::tables::{LEASE, MAPPINGS, TENANT, guard_table, table_name};

/// An item's attributes, and its place: its table and its key's texts.
pub type Item = Map<String, Value>;
pub type Place = (&'static str, String, Option<String>);

/// Where the tenant is taken to live.
#[derive(Debug, Clone)]
struct Route {
    cell: String,
    epoch: u64,
    mode: WriteMode,
    migration: Option<MigrationId>,
    shards: u8,
    /// Until when plain writes are acknowledged.
    lease: Option<Instant>,
}

pub struct Writer {
    lots: StdRng,
    route: Option<Route>,
    /// What the live cell must hold.
    pub model: BTreeMap<Place, Item>,
    /// Writes that were acknowledged, and those of them that were plain.
    pub done: u64,
    pub plain: u64,
    count: u64,
}

/// What became of an attempt.
enum Attempt {
    Done,
    /// The route is not as the guard says.
    Refused,
}

impl Writer {
    pub fn new(seed: u64, model: BTreeMap<Place, Item>) -> Self {
        let lots = StdRng::seed_from_u64(seed);
        Self { lots, route: None, model, done: 0, plain: 0, count: 0 }
    }

    /// Writes now and then.
    pub fn step(&mut self, database: &Database) {
        if self.lots.random_bool(0.3) {
            self.write(database);
        }
    }

    /// Tries one write. `false`: it has to wait.
    pub fn write(&mut self, database: &Database) -> bool {
        let (place, change) = self.draw();
        for _ in 0..4 {
            let Some(route) = self.route(database) else { return false };
            let cell = route.cell.clone();
            let request = self.change(&place, change, &cell);
            let attempt = match route.lease {
                Some(until) if Instant::now() < until => {
                    self.plain += 1;
                    let (operation, request) = plain(&request);
                    ask(database, operation, request);
                    Attempt::Done
                }
                _ => self.guarded(database, &route, &place, request.clone()),
            };
            match attempt {
                Attempt::Done => {
                    self.acknowledged(&place, change, &cell);
                    return true;
                }
                Attempt::Refused => {
                    if !self.reroute(database, &route.cell) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// What is written next: a new item, or another one in place of one that there is, a change of some attributes, a removal.
    fn draw(&mut self) -> (Place, &'static str) {
        let place = match self.lots.random_range(0..10) {
            0 => ("Profiles", format!("CUSTOMER#{TENANT}"), None),
            1..5 => {
                ("Orders", format!("CUSTOMER#{TENANT}"), Some(self.lots.random_range(0..10_u8)))
            }
            _ => ("Orders", format!("TRAVELLER#{TENANT}"), Some(self.lots.random_range(0..6_u8))),
        };
        let place = (place.0, place.1, place.2.map(|n| format!("ITEM#{n}")));
        let change = ["Put", "Update", "Delete"][[0, 0, 1, 1, 2][self.lots.random_range(0..5)]];
        self.count += 1;
        (place, change)
    }

    fn change(&self, place: &Place, change: &str, cell: &str) -> Value {
        let table = table_name(place.0, cell);
        let count = json!({ "N": self.count.to_string() });
        match change {
            "Put" => {
                json!({ "Put": { "TableName": table, "Item": self.item(place, cell) } })
            }
            "Update" => json!({ "Update": {
                "TableName": table,
                "Key": key(place),
                "UpdateExpression": "SET #count = :count, CellId = :cell",
                "ExpressionAttributeNames": { "#count": "Count" },
                "ExpressionAttributeValues": { ":count": count, ":cell": { "S": cell } },
            } }),
            _ => json!({ "Delete": { "TableName": table, "Key": key(place) } }),
        }
    }

    fn item(&self, place: &Place, cell: &str) -> Item {
        let mut item = key(place);
        item.insert("CellId".into(), json!({ "S": cell }));
        item.insert("Count".into(), json!({ "N": self.count.to_string() }));
        item.insert("Note".into(), json!({ "S": format!("put {}", self.count) }));
        item
    }

    fn acknowledged(&mut self, place: &Place, change: &str, cell: &str) {
        self.done += 1;
        match change {
            "Put" => drop(self.model.insert(place.clone(), self.item(place, cell))),
            "Update" => {
                let item = self.model.entry(place.clone()).or_insert_with(|| key(place));
                item.insert("CellId".into(), json!({ "S": cell }));
                item.insert("Count".into(), json!({ "N": self.count.to_string() }));
            }
            _ => drop(self.model.remove(place)),
        }
    }

    /// The route that is held, or what the directory says.
    fn route(&mut self, database: &Database) -> Option<Route> {
        let expired = |route: &Route| route.lease.is_some_and(|until| Instant::now() >= until);
        if self.route.as_ref().is_none_or(expired) || self.lots.random_bool(0.1) {
            self.resolve(database);
        }
        self.route.clone()
    }

    fn resolve(&mut self, database: &Database) {
        let key = json!({ "PartitionKey": { "S": TENANT } });
        let request = json!({ "TableName": MAPPINGS, "Key": key, "ConsistentRead": true });
        let placement = ask(database, "GetItem", &request)["Item"].clone();
        let mode = match placement["WriteMode"]["S"].as_str() {
            Some("DIRECT") => WriteMode::Direct,
            _ => WriteMode::Logged,
        };
        let migration = placement["Migration"]["S"].as_str();
        // One that a replica grants in the last moment before it hears of a change lasts as long.
        let lease = (mode == WriteMode::Direct).then(|| Instant::now() + LEASE);
        self.route = Some(Route {
            cell: placement["CellId"]["S"].as_str().unwrap().to_owned(),
            epoch: placement["Epoch"]["N"].as_str().unwrap().parse().unwrap(),
            mode,
            migration: migration.map(|id| guard::parse_migration(id).unwrap()),
            shards: 1,
            lease,
        });
    }

    fn guarded(
        &mut self,
        database: &Database,
        route: &Route,
        place: &Place,
        change: Value,
    ) -> Attempt {
        let table = guard_table(&route.cell);
        let shard = self.lots.random_range(0..route.shards);
        let check =
            GuardCheck::Open { epoch: route.epoch, mode: route.mode, migration: route.migration };
        let condition = Condition::of(&check, &route.cell);
        let values: Item = condition
            .values
            .iter()
            .map(|(k, v)| (k.clone(), cells_streams::json::attribute(v)))
            .collect();
        let check = json!({ "ConditionCheck": {
            "TableName": table.table_name,
            "Key": cells_streams::json::item(&guard::key(&table, TENANT, shard)),
            "ConditionExpression": condition.expression,
            "ExpressionAttributeValues": values,
        } });
        let mut items = vec![check, change];
        if let (WriteMode::Logged, Some(migration)) = (route.mode, route.migration) {
            let touched = vec![Touched { table: place.0.to_owned(), key: sdk_key(place) }];
            let record = LogRecord { operation: self.lots.random(), touched };
            items.push(logged(&table, migration, shard, &record));
        }
        let request = json!({ "TransactItems": items });
        match perform(database, "TransactWriteItems", &request.to_string()) {
            Ok(_) => Attempt::Done,
            Err((_, body)) => {
                assert!(body.contains("ConditionalCheckFailed"), "{body}");
                Attempt::Refused
            }
        }
    }

    /// Goes by what a cell's guard says. `false`: the writer has to wait.
    fn reroute(&mut self, database: &Database, cell: &str) -> bool {
        let table = guard_table(cell);
        let key = cells_streams::json::item(&guard::key(&table, TENANT, 0));
        let request = json!({ "TableName": table.table_name, "Key": key, "ConsistentRead": true });
        let answer = ask(database, "GetItem", &request);
        let Some(found) = answer.get("Item").filter(|item| item["GuardCell"]["S"] == cell) else {
            self.resolve(database);
            return true;
        };
        match found["GuardState"]["S"].as_str().unwrap() {
            "OPEN" => {
                let mode = match found["GuardMode"]["S"].as_str() {
                    Some("DIRECT") => WriteMode::Direct,
                    _ => WriteMode::Logged,
                };
                let migration = found["GuardMigration"]["S"].as_str();
                self.route = Some(Route {
                    cell: cell.to_owned(),
                    epoch: found["GuardEpoch"]["N"].as_str().unwrap().parse().unwrap(),
                    mode,
                    migration: migration.map(|id| guard::parse_migration(id).unwrap()),
                    shards: found["GuardShards"]["N"].as_str().unwrap().parse().unwrap(),
                    lease: None,
                });
                true
            }
            "MOVED" => {
                self.resolve(database);
                true
            }
            _ => false,
        }
    }
}

fn plain(change: &Value) -> (&'static str, &Value) {
    let of = |name| change.get(name);
    match (of("Put"), of("Update"), of("Delete")) {
        (Some(put), _, _) => ("PutItem", put),
        (_, Some(update), _) => ("UpdateItem", update),
        (_, _, Some(delete)) => ("DeleteItem", delete),
        _ => panic!("{change}"),
    }
}

fn logged(table: &GuardTable, migration: MigrationId, shard: u8, record: &LogRecord) -> Value {
    let item = log::item(table, migration, shard, record);
    json!({ "Put": { "TableName": table.table_name, "Item": cells_streams::json::item(&item) } })
}

fn key(place: &Place) -> Item {
    let mut key = Item::from_iter([("PK".to_owned(), json!({ "S": place.1 }))]);
    if let Some(sort) = &place.2 {
        key.insert("SK".to_owned(), json!({ "S": sort }));
    }
    key
}

fn sdk_key(place: &Place) -> cells_guard::Item {
    let text = |text: &String| AttributeValue::S(text.clone());
    let sort = place.2.iter().map(|sort| ("SK".to_owned(), text(sort)));
    sort.chain([("PK".to_owned(), text(&place.1))]).collect()
}

/// The place of an item.
pub fn place(table: &'static str, item: &Item) -> Place {
    let text = |name: &str| item.get(name).map(|value| value["S"].as_str().unwrap().to_owned());
    (table, text("PK").unwrap(), text("SK"))
}
