//! What the cases of writers share: two cells' tables on DynamoDB Local, a proxy that goes wrong on demand, and an example that is driven
//! through it. What became of a call is read past the proxy, by the crate that the service itself uses.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, Delete, KeySchemaElement, KeyType as Role,
    Put, ScalarAttributeType, TransactWriteItem,
};
use cell_directory::store::dynamodb::{DynamoDbOptions, connect};
use cells_guard::{CellTable, CellTables, GuardTable, Item, LogRecord, StoredGuard, guard, log};
use cells_migration::{Guard, GuardState, Holder, MigrationId, WriteMode};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use crate::AMPLE;
use crate::celld::unique;
use crate::dynamodb_local::DynamoDbLocal;
use crate::proxy::Proxy;

pub const CELLS: [&str; 2] = ["cell-a", "cell-b"];
pub const SHARDS: u8 = 4;
pub const MIGRATION: MigrationId = MigrationId(0x000a_11ce_0000_0000_0000_0000_0000_0b0b);

/// A lease that does not end while a test runs, and none.
pub const LONG: f64 = 3600.0;
pub const NONE: f64 = 0.0;

/// Longest wait for a driver's answer, or for what it must come to.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
pub enum Language {
    Python,
    Go,
}

pub struct World {
    pub language: Language,
    pub proxy: Proxy,
    pub client: Client,
    pub cells: [CellTables; 2],
    driver: Driver,
}

/// An example and what drives it, ready to run.
pub struct Build {
    language: Language,
    folder: tempfile::TempDir,
}

/// One tenant, by whom a call is told from others' on its way.
pub struct Case<'a> {
    pub world: &'a World,
    pub tenant: String,
    routes: RefCell<Vec<Value>>,
    deadline: f64,
    resolving: f64,
}

/// What a call came to.
#[derive(Debug)]
pub struct Answer {
    outcome: String,
    said: String,
    pub item: Value,
    /// The lowest epoch that each question to the directory would take.
    pub asked: Vec<u64>,
}

impl World {
    /// With a directory that answers what each case lists. `attempt`: the longest that the driver waits for an answer of DynamoDB's.
    pub async fn new(build: &Build, attempt: Duration) -> Self {
        let cells = CELLS.map(|cell| cell_tables(&unique("writers"), cell));
        let all = json!([registered(CELLS[0], &cells[0]), registered(CELLS[1], &cells[1])]);
        let world = Self::with(build, cells, &json!({ "cells": all }), attempt).await;
        for table in world.cells.iter().flat_map(|cell| &cell.tables) {
            create(&world.client, table).await;
        }
        world
    }

    /// With the directory of a server that has made the cells' tables.
    pub async fn at(build: &Build, server: &str, prefix: &str) -> Self {
        let cells = CELLS.map(|cell| cell_tables(prefix, cell));
        Self::with(build, cells, &json!({ "directory": server }), AMPLE).await
    }

    async fn with(build: &Build, cells: [CellTables; 2], setup: &Value, attempt: Duration) -> Self {
        let backend = DynamoDbLocal::shared().endpoint();
        let proxy = Proxy::start(&backend);
        // An engine on a busy machine: what is tested is what it answers, not when.
        let read_timeout = AMPLE;
        let endpoint = Some(backend);
        let options = DynamoDbOptions { endpoint, read_timeout, ..DynamoDbOptions::default() };
        let mut setup = setup.clone();
        setup["endpoint"] = json!(proxy.endpoint());
        setup["attemptSeconds"] = json!(attempt.as_secs_f64());
        let driver = Driver::start(build, &setup);
        Self { language: build.language, proxy, client: connect(&options).await, cells, driver }
    }

    pub fn case(&self, name: &str) -> Case<'_> {
        let tenant = format!("{:?}-{name}", self.language).to_lowercase();
        let (routes, deadline) = (RefCell::default(), PATIENCE.as_secs_f64());
        Case { world: self, tenant, routes, deadline, resolving: 0.0 }
    }

    fn guards(&self, cell: usize) -> GuardTable {
        self.cells[cell].guard_table().unwrap()
    }
}

/// A guard for direct writers, which no migration holds.
pub fn guard_of(cell: usize, state: GuardState, epoch: u64) -> StoredGuard {
    let guard = Guard { state, epoch, mode: WriteMode::Direct, holder: None };
    StoredGuard { guard, cell: CELLS[cell].to_owned(), shards: 1, next: None }
}

/// The same while a migration holds it.
pub fn logged(guard: StoredGuard) -> StoredGuard {
    let holder = Some(Holder { migration: MIGRATION, worker: 1 });
    let mode = WriteMode::Logged;
    StoredGuard { guard: Guard { mode, holder, ..guard.guard }, shards: SHARDS, ..guard }
}

impl Case<'_> {
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline: deadline.as_secs_f64(), ..self }
    }

    /// With a directory that takes so long to answer.
    pub fn resolved_after(self, time: Duration) -> Self {
        Self { resolving: time.as_secs_f64(), ..self }
    }

    /// What the directory answers from the next call on: each once, and the last for ever. None: it is down.
    pub fn routes(&self, routes: &[(usize, u64, WriteMode, f64)]) {
        let answers = routes.iter().map(|(cell, epoch, mode, lease)| {
            json!({
                "placement": {
                    "partitionKey": self.tenant,
                    "cellId": CELLS[*cell],
                    "epoch": epoch.to_string(),
                    "writeMode": format!("WRITE_MODE_{}", guard::mode_name(*mode)),
                },
                "decision": { "authoritative": true, "lease": format!("{lease}s") },
            })
        });
        *self.routes.borrow_mut() = answers.collect();
    }

    /// Makes the tenant's guard in the table of a cell so: all shards of it and no more, at once.
    pub async fn guard(&self, cell: usize, stored: &StoredGuard) {
        let table = self.world.guards(cell);
        let mut change = self.world.client.transact_write_items();
        for shard in 0..SHARDS {
            let write = TransactWriteItem::builder();
            let write = if shard < stored.shards {
                let item = guard::item(&table, &self.tenant, shard, stored);
                write.put(
                    Put::builder()
                        .table_name(&table.table_name)
                        .set_item(Some(item))
                        .build()
                        .unwrap(),
                )
            } else {
                let key = guard::key(&table, &self.tenant, shard);
                write.delete(
                    Delete::builder()
                        .table_name(&table.table_name)
                        .set_key(Some(key))
                        .build()
                        .unwrap(),
                )
            };
            change = change.transact_items(write.build());
        }
        // The example may be reading or checking it.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = change.clone().send().await {
            let conflict = error.into_service_error().is_transaction_canceled_exception();
            assert!(conflict && Instant::now() < deadline, "{}", self.tenant);
        }
    }

    pub fn key(&self, sort: &str) -> Value {
        json!({ "PK": { "S": format!("CUSTOMER#{}", self.tenant) }, "SK": { "S": sort } })
    }

    pub fn put(&self, sort: &str, value: &str) -> Value {
        let mut item = self.key(sort);
        item["Value"] = json!({ "S": value });
        json!({ "action": "Put", "table": "Orders", "params": { "Item": item } })
    }

    pub fn create(&self, sort: &str, value: &str) -> Value {
        let mut put = self.put(sort, value);
        put["params"]["ConditionExpression"] = json!("attribute_not_exists(PK)");
        put
    }

    pub fn delete(&self, sort: &str) -> Value {
        json!({ "action": "Delete", "table": "Orders", "params": { "Key": self.key(sort) } })
    }

    /// In a table of which the partition key is the whole key.
    pub fn count(&self) -> Value {
        json!({ "action": "Update", "table": "Profiles", "params": {
            "Key": { "PK": { "S": format!("CUSTOMER#{}", self.tenant) } },
            "UpdateExpression": "ADD #count :one",
            "ExpressionAttributeNames": { "#count": "Count" },
            "ExpressionAttributeValues": { ":one": { "N": "1" } },
        }})
    }

    /// Sends a call off.
    pub fn begin(&self, writes: &[Value]) {
        self.send(&json!({ "writes": writes }));
    }

    pub fn begin_get(&self, sort: &str) {
        self.send(&json!({ "get": { "table": "Orders", "key": self.key(sort) } }));
    }

    fn send(&self, call: &Value) {
        let mut call = call.clone();
        call["tenant"] = json!(self.tenant);
        call["deadlineSeconds"] = json!(self.deadline);
        call["resolveSeconds"] = json!(self.resolving);
        call["routes"] = json!(*self.routes.borrow());
        self.world.driver.tell(&call);
    }

    async fn answer(&self) -> Answer {
        let line = self.world.driver.answer().await;
        let said: Value = serde_json::from_str(&line).unwrap();
        let text = |field: &str| said[field].as_str().unwrap_or_default().to_owned();
        let asked = said["asked"].as_array().unwrap().iter().map(|epoch| epoch.as_u64().unwrap());
        let item = said["item"].clone();
        Answer { outcome: text("outcome"), said: text("said"), item, asked: asked.collect() }
    }

    /// A call that must come to this; the epochs that the directory was asked for.
    pub async fn write(&self, writes: &[Value], outcome: &str) -> Vec<u64> {
        self.begin(writes);
        self.comes_to(outcome).await.asked
    }

    pub async fn comes_to(&self, outcome: &str) -> Answer {
        let answer = self.answer().await;
        assert_eq!(answer.outcome, outcome, "{}: {}", self.tenant, answer.said);
        answer
    }

    /// The attribute `Value` of an item.
    pub async fn value(&self, cell: usize, sort: &str) -> Option<String> {
        let item = self.read(&self.world.cells[cell].tables[1], Some(sort)).await?;
        Some(item["Value"].as_s().unwrap().clone())
    }

    /// The attribute `Count` of the tenant's profile.
    pub async fn counted(&self, cell: usize) -> Option<String> {
        let item = self.read(&self.world.cells[cell].tables[0], None).await?;
        Some(item["Count"].as_n().unwrap().clone())
    }

    async fn read(&self, table: &CellTable, sort: Option<&str>) -> Option<Item> {
        let partition = AttributeValue::S(format!("CUSTOMER#{}", self.tenant));
        let mut get = self.world.client.get_item().table_name(&table.table_name);
        get = get.key(&table.partition_key, partition).consistent_read(true);
        if let Some((name, _)) = &table.sort_key {
            get = get.key(name, AttributeValue::S(sort.unwrap().to_owned()));
        }
        get.send().await.unwrap().item
    }

    /// The tenant's records in the log, with the shard that each is in.
    pub async fn log(&self, cell: usize) -> Vec<(u8, LogRecord)> {
        let table = self.world.guards(cell);
        let mut records = Vec::new();
        for shard in 0..SHARDS {
            let query = self.world.client.query().table_name(&table.table_name);
            let query = query.key_condition_expression("#partition = :partition");
            let query = query.expression_attribute_names("#partition", &table.partition_key);
            let partition = AttributeValue::S(log::partition(MIGRATION, shard));
            let query = query.expression_attribute_values(":partition", partition);
            for item in query.consistent_read(true).send().await.unwrap().items() {
                records.push((shard, log::read(&table, item).unwrap()));
            }
        }
        let ours = AttributeValue::S(format!("CUSTOMER#{}", self.tenant));
        records
            .retain(|(_, record)| record.touched.iter().any(|touched| touched.key["PK"] == ours));
        records
    }

    /// How many requests of an operation named the tenant.
    pub fn calls(&self, operation: &str) -> usize {
        self.world.proxy.calls(&[operation], &format!("#{}\"", self.tenant))
    }

    /// Waits until so many requests of an operation named the tenant.
    pub async fn came(&self, operation: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.calls(operation) < times {
            assert!(Instant::now() < deadline, "{}: no {times} {operation}", self.tenant);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An example in a process of its own. Killed on drop.
struct Driver {
    child: Child,
    calls: parking_lot::Mutex<ChildStdin>,
    answers: Mutex<mpsc::UnboundedReceiver<String>>,
}

impl Build {
    pub fn of(language: Language) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut script = Command::new(here().join("scripts/build-writers"));
        script.arg(format!("{language:?}").to_lowercase()).arg(folder.path());
        let output = script.output().unwrap();
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{wrong}", output.status);
        Self { language, folder }
    }

    fn program(&self) -> Command {
        let folder = self.folder.path();
        match self.language {
            Language::Python => {
                let tools = std::env::var_os("CELLD_TEST_TOOLS").unwrap_or("target/tools".into());
                let mut python = Command::new(here().join(tools).join("python/bin/python"));
                python.arg(folder.join("driver.py"));
                python
            }
            Language::Go => Command::new(folder.join("writers")),
        }
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Driver {
    fn start(build: &Build, setup: &Value) -> Self {
        let mut command = build.program();
        // Settings of the caller's have no business between programs of one machine.
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if upper.ends_with("_PROXY") || upper.starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, answers) = mpsc::unbounded_channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let calls = child.stdin.take().unwrap().into();
        let driver = Self { child, calls, answers: answers.into() };
        driver.tell(setup);
        driver
    }

    fn tell(&self, line: &Value) {
        writeln!(self.calls.lock(), "{line}").unwrap();
    }

    async fn answer(&self) -> String {
        let mut answers = self.answers.lock().await;
        // A call ends by its own deadline, which is as far away.
        let answer = tokio::time::timeout(2 * PATIENCE, answers.recv()).await;
        answer.expect("an answer in time").expect("a driver that did not end")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cell_tables(prefix: &str, cell: &str) -> CellTables {
    let table = |name: &str| {
        json!({
            "name": name,
            "table_name": format!("{prefix}{name}-{cell}"),
            "partition_key": "PK",
            "tenant_keys": ["CUSTOMER#{partition_key}"],
        })
    };
    let mut orders = table("Orders");
    orders["sort_key"] = json!(["SK", "S"]);
    let tables = json!([table("Profiles"), orders]);
    // From the form in which it is kept: there, fields are only added.
    serde_json::from_value(json!({
        "set": "default", "version": 1, "tables": tables, "guards": "Orders", "together": true,
    }))
    .unwrap()
}

/// A cell as `GetCell` answers it, in the JSON of its message.
fn registered(cell: &str, tables: &CellTables) -> Value {
    let all = tables.tables.iter().map(|table| {
        let sort_key = table.sort_key.as_ref().map_or("", |(name, _)| name);
        json!({
            "name": table.name,
            "tableName": table.table_name,
            "partitionKey": table.partition_key,
            "sortKey": sort_key,
        })
    });
    let guards = tables.guard_table().unwrap().table_name;
    let guards = tables.tables.iter().find(|table| table.table_name == guards).unwrap();
    let tables = json!({ "tables": all.collect::<Vec<_>>(), "guards": guards.name });
    json!({ "cellId": cell, "region": "eu-west-1", "tables": tables })
}

async fn create(client: &Client, table: &CellTable) {
    let mut create = client.create_table().table_name(&table.table_name);
    let roles = [Role::Hash, Role::Range];
    for (name, role) in table.key_names().zip(roles) {
        let attribute = AttributeDefinition::builder().attribute_name(name);
        let attribute = attribute.attribute_type(ScalarAttributeType::S).build().unwrap();
        let key = KeySchemaElement::builder().attribute_name(name).key_type(role).build().unwrap();
        create = create.attribute_definitions(attribute).key_schema(key);
    }
    create.billing_mode(BillingMode::PayPerRequest).send().await.unwrap();
}

/// An item's key as [`LogRecord`]s have it.
pub fn key_in_log(typed: &Value) -> HashMap<String, AttributeValue> {
    let all = typed.as_object().unwrap().iter();
    all.map(|(name, value)| {
        (name.clone(), AttributeValue::S(value["S"].as_str().unwrap().to_owned()))
    })
    .collect()
}
