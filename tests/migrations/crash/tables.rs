//! What every run begins with: two cells with two tables each, three tenants with items, and a migration of one of them just begun.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cell_directory::cells::Cells;
use cell_directory::directory::policy::{Constrained, Rendezvous};
use cell_directory::directory::{
    Clock, CommitterSettings, Directory, Ingredients, MemoryMode, Mutation, NewCell, Pauses,
    Placing, Randomness, Settings, StackSettings,
};
use cell_directory::domain::{
    CellId, CellState, Endpoint, Labels, MigrationId, PartitionKey, Region, Timestamp, Weight,
};
use cell_directory::metering::Consumption;
use cell_directory::migration::{Migration, MigrationRecords, Progress, Spec, Verification};
use cell_directory::store::Store;
use cell_directory::store::dynamodb::client::counting;
use cell_directory::store::dynamodb::{DynamoDbStore, StoreSettings, TableNames, tables};
use cell_directory::tasks::Tasks;
use cell_directory::telemetry::DecisionMetrics;
use cells_guard::{CellTable, CellTables, GuardTable, KeyType};
use cells_migration::Record;
use dynoxide::Database;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::engine::{ENDPOINT, Wire, ask, config};
use super::writer::{Item, Place, place};

/// Who moves, and those whose keys look like theirs.
pub const TENANT: &str = "moves";
const BYSTANDERS: [(&str, &str); 3] =
    [("moves#1", "cell-a"), ("move", "cell-b"), ("moves#2", "cell-b")];

pub const CELLS: [&str; 2] = ["cell-a", "cell-b"];
pub const TABLES: [&str; 2] = ["Orders", "Profiles"];
pub const MAPPINGS: &str = "crash-CellMappings";
pub const CONTROL: &str = "crash-CellControl";
pub const MIGRATION: u128 = 7;

/// How long leases last.
pub const LEASE: Duration = Duration::from_millis(40);

pub fn table_name(table: &str, cell: &str) -> String {
    format!("{table}-{cell}")
}

pub fn guard_table(cell: &str) -> GuardTable {
    GuardTable {
        table_name: table_name("Orders", cell),
        partition_key: "PK".to_owned(),
        sort_key: "SK".to_owned(),
    }
}

/// A store on a client of its own.
pub fn store(wire: &Wire) -> Arc<DynamoDbStore> {
    let client = counting(&config(wire.clone()), Consumption::default()).endpoint_url(ENDPOINT);
    let client = aws_sdk_dynamodb::Client::from_conf(client.build());
    let names = TableNames::with_prefix("crash-").unwrap();
    Arc::new(DynamoDbStore::new(client, names, StoreSettings::default()))
}

/// A replica that knows the cells. What it does by itself it does at once, and then no more.
pub async fn directory(wire: &Wire, seed: u64) -> (Directory, Tasks) {
    let never = Duration::from_secs(24 * 3600);
    let pauses = Pauses { shortest: Duration::from_millis(2), longest: Duration::from_millis(20) };
    let settings = Settings {
        stack: StackSettings {
            load_patience: Duration::from_millis(50),
            default_cell: None,
            lookup_budget: Duration::from_millis(400),
            attempts: 3,
            pauses,
            retry_ratio: 0.2,
            retry_floor: 10,
        },
        committer: CommitterSettings {
            commit_budget: Duration::from_secs(4),
            request_retention: Duration::from_secs(3600),
        },
        memory: MemoryMode::Bounded(100),
        journal_poll_interval: never,
        sweep_interval: never,
        journal_retention: never,
        batch_concurrency: 4,
    };
    let tasks = Tasks::new();
    let ingredients = Ingredients {
        store: Store::of(store(wire)),
        policy: Arc::new(Constrained(Rendezvous)),
        clock: Clock::system().with_instant(|| tokio::time::Instant::now().into_std()),
        randomness: Randomness::seeded(seed),
        metrics: DecisionMetrics::new(&SdkMeterProvider::builder().build().meter("crash")),
        settings,
        keep: None,
    };
    let directory = Directory::start(ingredients, &tasks);
    directory.ready(&CancellationToken::new()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    (directory, tasks)
}

/// Makes it all, and keeps it in a file.
pub async fn prepare(file: &Path) {
    let database = Database::memory().unwrap();
    let wire = Wire::Plain(database.clone());
    let client = counting(&config(wire.clone()), Consumption::default()).endpoint_url(ENDPOINT);
    let client = aws_sdk_dynamodb::Client::from_conf(client.build());
    tables::create(&client, &TableNames::with_prefix("crash-").unwrap()).await.unwrap();
    for cell in CELLS {
        create(&database, &table_name("Orders", cell), &["PK", "SK"]);
        create(&database, &table_name("Profiles", cell), &["PK"]);
    }
    // As if it had always been so: nobody has to wait for leases of another length.
    let lease = LEASE.as_millis().to_string();
    let settings = json!({ "PK": { "S": "CLUSTER" }, "SK": { "S": "SETTINGS" },
        "LeaseMillis": { "N": lease }, "LongestLeaseMillis": { "N": lease }, "Revision": { "N": "0" } });
    ask(&database, "PutItem", &json!({ "TableName": CONTROL, "Item": settings }));
    let (directory, _tasks) = directory(&wire, 1).await;
    for cell in CELLS {
        directory.create_cell(new_cell(cell), Mutation::default()).await.unwrap();
        let tables = Some(cell_tables(cell));
        directory.set_tables(&CellId::new(cell).unwrap(), tables).await.unwrap();
    }
    for (tenant, cell) in BYSTANDERS.into_iter().chain([(TENANT, "cell-a")]) {
        let placing = Placing {
            key: PartitionKey::new(tenant).unwrap(),
            cell: CellId::new(cell).unwrap(),
            since: None,
            expires: None,
        };
        directory.pin(placing, Mutation::default()).await.unwrap();
        write_items(&database, tenant, cell);
    }
    assert_eq!(store(&wire).begin(&migration(Verification::LogDrain), None).await.unwrap(), {
        cell_directory::migration::Begun::Begun
    });
    database.vacuum_into(file.to_str().unwrap()).unwrap();
}

fn create(database: &Database, name: &str, keys: &[&str]) {
    let attributes = keys.iter().map(|key| json!({ "AttributeName": key, "AttributeType": "S" }));
    let schema = keys.iter().zip(["HASH", "RANGE"]);
    let schema = schema.map(|(key, kind)| json!({ "AttributeName": key, "KeyType": kind }));
    let request = json!({
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": attributes.collect::<Vec<_>>(),
        "KeySchema": schema.collect::<Vec<_>>(),
    });
    ask(database, "CreateTable", &request);
}

fn new_cell(id: &str) -> NewCell {
    NewCell {
        id: CellId::new(id).unwrap(),
        region: Region::new("eu-west-1").unwrap(),
        endpoint: Endpoint::new(format!("https://{id}.example.com")).unwrap(),
        labels: Labels::new(BTreeMap::new()).unwrap(),
        weight: Weight::DEFAULT,
        capacity: None,
        state: CellState::Active,
    }
}

fn cell_tables(cell: &str) -> CellTables {
    let table = |name: &str, sort: Option<&str>, templates: &[&str]| CellTable {
        name: name.to_owned(),
        table_name: table_name(name, cell),
        partition_key: "PK".to_owned(),
        sort_key: sort.map(|sort| (sort.to_owned(), KeyType::String)),
        tenant_keys: templates.iter().map(|template| (*template).to_owned()).collect(),
        ttl_attribute: None,
    };
    let both = ["CUSTOMER#{partition_key}", "TRAVELLER#{partition_key}"];
    let tables = CellTables {
        set: "set".to_owned(),
        version: 1,
        tables: vec![table("Orders", Some("SK"), &both), table("Profiles", None, &both[..1])],
        guards: None,
        together: true,
        guarded: true,
    };
    tables.with_guards_as(None)
}

/// Twelve items in three partitions.
fn write_items(database: &Database, tenant: &str, cell: &str) {
    let places = (0..7).map(|n| ("Orders", format!("CUSTOMER#{tenant}"), Some(n)));
    let places = places.chain((0..4).map(|n| ("Orders", format!("TRAVELLER#{tenant}"), Some(n))));
    for (table, partition, sort) in places.chain([("Profiles", format!("CUSTOMER#{tenant}"), None)])
    {
        let mut item = json!({
            "PK": { "S": partition }, "CellId": { "S": cell }, "Count": { "N": "0" },
            "Of": { "S": tenant },
        });
        if let Some(sort) = sort {
            item["SK"] = json!({ "S": format!("ITEM#{sort}") });
        }
        let request = json!({ "TableName": table_name(table, cell), "Item": item });
        ask(database, "PutItem", &request);
    }
}

pub fn migration(verification: Verification) -> Migration {
    let now = Timestamp::from_millis(1_700_000_000_000).unwrap();
    Migration {
        record: Record::new(MigrationId::new(MIGRATION).into(), 1),
        spec: Spec {
            tenant: PartitionKey::new(TENANT).unwrap(),
            source: CellId::new("cell-a").unwrap(),
            target: CellId::new("cell-b").unwrap(),
            verification,
            writers: Default::default(),
            soak: Duration::from_millis(40),
            pause_budget: Duration::from_secs(2),
            rate_limit: None,
            guard_shards: 2,
        },
        progress: Progress::default(),
        findings: None,
        parked: None,
        trouble: None,
        created: now,
        updated: now,
        phase_since: now,
        digest: String::new(),
        caller: None,
        bulk: None,
        beat: 0,
    }
}

/// The items of a cell's table: the tenant's by their places, the guards and logs, and all others.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Contents {
    pub ours: BTreeMap<Place, Item>,
    pub guards: Vec<Item>,
    pub logs: Vec<Item>,
    pub others: Vec<Item>,
}

pub fn contents(database: &Database, cell: &str) -> Contents {
    let mut contents = Contents::default();
    for table in TABLES {
        let request = json!({ "TableName": table_name(table, cell), "ConsistentRead": true });
        let answer = ask(database, "Scan", &request);
        for item in answer["Items"].as_array().unwrap() {
            let Value::Object(item) = item.clone() else { panic!("{item}") };
            let partition = item["PK"]["S"].as_str().unwrap();
            let ends = |what: &str| partition == format!("{what}#{TENANT}");
            if partition.starts_with("\u{1}log#") {
                contents.logs.push(item);
            } else if partition.starts_with('\u{1}') && partition.ends_with(&format!("#{TENANT}")) {
                contents.guards.push(item);
            } else if ends("CUSTOMER") || ends("TRAVELLER") {
                contents.ours.insert(place(table, &item), item);
            } else {
                contents.others.push(item);
            }
        }
    }
    contents
}
