//! Two cells with their tables and guards, a directory that says what a test has it say, and a writer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType as AwsKeyType,
    ScalarAttributeType,
};
use cells_guard::writer::{
    Action, Call, Error, Expression, Home, KnownGuards, Options, Route, Routes, Write, Writer,
    Written,
};
use cells_guard::{CellTable, CellTables, GuardTable, Item, KeyType, LogRecord, StoredGuard};
use cells_guard::{guard, log};
use cells_migration::{Guard, GuardState, Holder, MigrationId, WriteMode};

use crate::embedded::Embedded;
use crate::faults::Faults;

pub const TENANT: &str = "t";
pub const MOVE: MigrationId = MigrationId(7);

/// What the directory says.
#[derive(Clone, Copy)]
pub struct Said {
    pub cell: &'static str,
    pub epoch: Option<u64>,
    pub mode: WriteMode,
}

pub struct Directory {
    said: Mutex<Said>,
    /// Cells that are known without asking.
    knows_cells: Mutex<bool>,
    /// Milliseconds.
    lease: Arc<AtomicU64>,
    homes: HashMap<&'static str, Home>,
    pub asked: Mutex<Vec<Option<u64>>>,
}

#[derive(Debug, PartialEq)]
pub struct Down;

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("down")
    }
}

/// The directory of one test.
#[derive(Clone, Copy)]
pub struct Of(&'static Directory);

impl Routes for Of {
    type Error = Down;
    type Lease = ();

    async fn route(&self, _: &str, least: Option<u64>) -> Result<Route<()>, Down> {
        self.0.asked.lock().unwrap().push(least);
        let said = *self.0.said.lock().unwrap();
        if least > said.epoch {
            return Err(Down);
        }
        let home = self.0.homes[said.cell].clone();
        Ok(Route { home, epoch: said.epoch, mode: said.mode, lease: Some(()) })
    }

    async fn home(&self, cell: &str) -> Option<Home> {
        let knows = *self.0.knows_cells.lock().unwrap();
        self.0.homes.get(cell).filter(|_| knows).cloned()
    }

    fn left(&self, (): &()) -> Duration {
        Duration::from_millis(self.0.lease.load(Ordering::SeqCst))
    }
}

pub struct World {
    pub client: Client,
    pub faults: Faults,
    pub directory: &'static Directory,
    pub writer: Arc<Writer<Of>>,
    pub lease: Arc<AtomicU64>,
    _engine: Embedded,
}

pub type Outcome = Result<Written, Error<Down>>;

fn tables(cell: &str) -> CellTables {
    let table = |name: &str, sort_key| CellTable {
        name: name.to_owned(),
        table_name: format!("{name}-{cell}"),
        partition_key: "PK".to_owned(),
        sort_key,
        tenant_keys: vec!["CUSTOMER#{partition_key}".to_owned()],
        ttl_attribute: None,
    };
    let sort = Some(("SK".to_owned(), KeyType::String));
    CellTables {
        set: "default".to_owned(),
        version: 1,
        tables: vec![table("Carts", None), table("Orders", sort)],
        guards: None,
        together: true,
        guarded: true,
    }
    .with_guards_as(None)
}

pub fn guard_table(cell: &str) -> GuardTable {
    tables(cell).guard_table().unwrap()
}

pub fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub fn key(sort: &str) -> Item {
    [("PK".to_owned(), text("CUSTOMER#t")), ("SK".to_owned(), text(sort))].into()
}

pub fn put(sort: &str, value: &str) -> Write {
    let mut item = key(sort);
    item.insert("V".to_owned(), text(value));
    write(Action::Put(item))
}

pub fn write(action: Action) -> Write {
    Write {
        table: "Orders".to_owned(),
        field: "item".to_owned(),
        action,
        condition: Expression::default(),
    }
}

/// Adds one to `N`.
pub fn add(sort: &str) -> Write {
    let mut add = write(Action::Update(key(sort), "ADD N :one".to_owned()));
    add.condition.values = [(":one".to_owned(), AttributeValue::N("1".to_owned()))].into();
    add
}

pub fn only_if(mut write: Write, condition: &str) -> Write {
    write.condition.text = condition.to_owned();
    write
}

/// Open in a cell.
pub fn open(cell: &str, epoch: u64) -> StoredGuard {
    let guard = Guard { state: GuardState::Open, epoch, mode: WriteMode::Direct, holder: None };
    StoredGuard { guard, cell: cell.to_owned(), shards: 1, next: None }
}

/// Of a cell that is worked on.
pub fn held(cell: &str, state: GuardState, epoch: u64, migration: MigrationId) -> StoredGuard {
    let holder = Some(Holder { migration, worker: 1 });
    let guard = Guard { state, epoch, mode: WriteMode::Logged, holder };
    StoredGuard { guard, cell: cell.to_owned(), shards: 1, next: None }
}

pub fn moved(cell: &str, epoch: u64, next: &str) -> StoredGuard {
    let next = Some(next.to_owned());
    StoredGuard { next, ..held(cell, GuardState::Moved, epoch, MOVE) }
}

fn client(endpoint: &str, faults: Option<&Faults>) -> Client {
    let http = aws_smithy_http_client::Builder::new().build_http();
    let http = faults.map_or(http.clone(), |faults| faults.before(http));
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "tests"))
        .retry_config(RetryConfig::disabled())
        .endpoint_url(endpoint);
    Client::from_conf(config.build())
}

pub async fn create(client: &Client, table: &str, sort: bool) {
    let keys = [("PK", AwsKeyType::Hash), ("SK", AwsKeyType::Range)];
    let mut create =
        client.create_table().table_name(table).billing_mode(BillingMode::PayPerRequest);
    for (name, kind) in keys.into_iter().take(1 + usize::from(sort)) {
        let key = KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap();
        let definition = AttributeDefinition::builder().attribute_name(name);
        let definition = definition.attribute_type(ScalarAttributeType::S).build().unwrap();
        create = create.key_schema(key).attribute_definitions(definition);
    }
    create.send().await.unwrap();
}

/// An engine with a client past the faults.
pub fn engine() -> (Embedded, Client) {
    let engine = Embedded::temporary();
    let client = client(engine.endpoint(), None);
    (engine, client)
}

impl World {
    /// The tenant is in `cell-a` at epoch 1, its guard open; the lease has a minute left.
    pub async fn new() -> Self {
        let options = Options { attempt: Duration::from_secs(30), ..Options::default() };
        Self::with(options).await
    }

    pub async fn with(options: Options) -> Self {
        let (engine, past) = engine();
        let faults = Faults::default();
        let through = client(engine.endpoint(), Some(&faults));
        let lease = Arc::new(AtomicU64::new(60_000));
        let mut homes = HashMap::new();
        for cell in ["cell-a", "cell-b"] {
            create(&past, &format!("Carts-{cell}"), false).await;
            create(&past, &format!("Orders-{cell}"), true).await;
            let tables = Arc::new(tables(cell));
            homes.insert(cell, Home { cell: cell.into(), tables, client: through.clone() });
        }
        let said = Said { cell: "cell-a", epoch: Some(1), mode: WriteMode::Direct };
        let directory: &'static Directory = Box::leak(Box::new(Directory {
            said: Mutex::new(said),
            knows_cells: Mutex::new(true),
            lease: lease.clone(),
            homes,
            asked: Mutex::default(),
        }));
        let known = Arc::new(KnownGuards::default());
        let writer = Arc::new(Writer::new(Of(directory), options, known));
        let world = Self { client: past, faults, directory, writer, lease, _engine: engine };
        world.guard(&open("cell-a", 1)).await;
        world
    }

    /// One that knows nothing yet.
    pub fn another_writer(&self) -> Writer<Of> {
        Writer::new(Of(self.directory), Options::default(), Arc::default())
    }

    pub fn said(&self, cell: &'static str, epoch: Option<u64>, mode: WriteMode) {
        *self.directory.said.lock().unwrap() = Said { cell, epoch, mode };
    }

    /// No cell is known but by asking.
    pub fn forget_cells(&self) {
        *self.directory.knows_cells.lock().unwrap() = false;
    }

    pub fn no_lease(&self) {
        self.lease.store(0, Ordering::SeqCst);
    }

    /// Sets all shards of a guard.
    pub async fn guard(&self, stored: &StoredGuard) {
        set_guard(&self.client, stored).await;
    }

    pub async fn write(&self, write: Write) -> Outcome {
        self.writer.write(TENANT, write, Call::default()).await
    }

    pub async fn transact(&self, writes: &[Write], id: Option<&str>) -> Outcome {
        let call = Call { id: id.map(str::to_owned), ..Call::default() };
        self.writer.transact(TENANT, writes, call).await
    }

    /// An attribute of one of the tenant's items.
    pub async fn value(&self, cell: &str, sort: &str, name: &str) -> Option<AttributeValue> {
        let read = self.client.get_item().table_name(format!("Orders-{cell}"));
        let read = read.set_key(Some(key(sort))).consistent_read(true).send().await.unwrap();
        read.item?.remove(name)
    }

    pub async fn text(&self, cell: &str, sort: &str) -> Option<String> {
        self.value(cell, sort, "V").await.map(|value| value.as_s().unwrap().clone())
    }

    pub async fn number(&self, cell: &str, sort: &str) -> Option<String> {
        self.value(cell, sort, "N").await.map(|value| value.as_n().unwrap().clone())
    }

    /// The log records of a migration.
    pub async fn log(&self, cell: &str, migration: MigrationId, shards: u8) -> Vec<LogRecord> {
        let mut records = Vec::new();
        for shard in 0..shards {
            let read = self
                .client
                .query()
                .table_name(format!("Orders-{cell}"))
                .key_condition_expression("PK = :p")
                .expression_attribute_values(":p", text(&log::partition(migration, shard)))
                .send()
                .await
                .unwrap();
            let items = read.items.unwrap_or_default();
            let table = guard_table(cell);
            records.extend(items.iter().map(|item| log::read(&table, item).unwrap()));
        }
        records
    }
}

pub async fn set_guard(client: &Client, stored: &StoredGuard) {
    let table = guard_table(&stored.cell);
    for shard in 0..stored.shards {
        let item = guard::item(&table, TENANT, shard, stored);
        let put = client.put_item().table_name(&table.table_name).set_item(Some(item));
        put.send().await.unwrap();
    }
}
