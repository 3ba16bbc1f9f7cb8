//! What holds for the store on DynamoDB only: its tables, and items that others wrote or that cannot be read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ScalarAttributeType,
};
use cell_directory::domain::{CellId, Mapping, PartitionKey, Placement, Sequence, Timestamp};
use cell_directory::migration::MigrationRecords;
use cell_directory::store::dynamodb::{
    DynamoDbOptions, DynamoDbStore, StoreSettings, TableNames, connect, tables,
};
use cell_directory::store::{CommitOutcome, Expected, Store, StoreError, Write};

use super::conformance::{Engine, Fixture, Outsider, at, commit, epoch, id, key, placement};

/// An engine that speaks DynamoDB's protocol.
pub trait Endpoint: Send + Sync {
    fn endpoint(&self) -> String;
}

impl Endpoint for super::embedded::Embedded {
    fn endpoint(&self) -> String {
        self.endpoint().to_owned()
    }
}

impl Endpoint for &'static super::dynamodb_local::DynamoDbLocal {
    fn endpoint(&self) -> String {
        (**self).endpoint()
    }
}

/// Stores on an engine, each in tables of its own.
pub struct Tables {
    endpoint: Box<dyn Endpoint>,
}

impl Tables {
    pub fn of(endpoint: impl Endpoint + 'static) -> Self {
        Self { endpoint: Box::new(endpoint) }
    }

    pub async fn client(&self) -> Client {
        let options = DynamoDbOptions {
            endpoint: Some(self.endpoint.endpoint()),
            // Engines on a busy machine: what is tested is what they answer, not when.
            read_timeout: Duration::from_secs(20),
            ..DynamoDbOptions::default()
        };
        connect(&options).await
    }

    /// Names of tables that do not exist yet.
    pub fn names(&self) -> TableNames {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (nanos, count) = (now.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed));
        TableNames::with_prefix(&format!("t{nanos}-{count}-")).unwrap()
    }

    async fn stage(&self) -> Stage {
        let (client, names) = (self.client().await, self.names());
        tables::create(&client, &names).await.unwrap();
        Stage::new(client, names)
    }
}

/// A store whose tables a test can reach around it.
pub struct Stage {
    client: Client,
    names: TableNames,
    store: Store,
    records: Arc<DynamoDbStore>,
}

type Item = HashMap<String, AttributeValue>;

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn item<const N: usize>(attributes: [(&str, AttributeValue); N]) -> Item {
    attributes.map(|(name, value)| (name.to_owned(), value)).into()
}

impl Stage {
    fn new(client: Client, names: TableNames) -> Self {
        let settings = StoreSettings {
            commit_timeout: Duration::from_secs(20),
            ttl_grace: Duration::from_secs(100),
        };
        let records = Arc::new(DynamoDbStore::new(client.clone(), names.clone(), settings));
        let store = Store::of(records.clone());
        Self { client, names, store, records }
    }

    async fn put(&self, table: &str, item: Item) {
        let put = self.client.put_item().table_name(table).set_item(Some(item));
        put.send().await.unwrap();
    }

    /// As anybody would read it.
    async fn get(&self, of: &str) -> Item {
        let get = self.client.get_item().table_name(self.names.mappings());
        let get = get.key("PartitionKey", text(of)).send().await.unwrap();
        get.item.unwrap_or_default()
    }

    async fn mapping(&self, of: &str) -> Result<Mapping, StoreError> {
        self.store.placements.mapping(&key(of)).await
    }

    async fn write(&self, writes: Vec<Write>) -> Result<CommitOutcome, StoreError> {
        let head = self.store.journal.head().await?;
        let commit = commit(head.sequence.next().get(), writes);
        self.store.journal.commit(&commit).await
    }

    async fn place(&self, placed: &Placement, expect: Expected) {
        let write = Write::Place { placement: placed.clone(), expect };
        assert_eq!(self.write(vec![write]).await, Ok(CommitOutcome::Committed));
    }
}

#[async_trait]
impl Engine for Tables {
    async fn fresh(&self, head: Sequence) -> Fixture {
        let stage = self.stage().await;
        let start =
            item([("PK", text("JOURNAL")), ("SK", text("HEAD")), ("Sequence", number(head))]);
        stage.put(stage.names.control(), start).await;
        Fixture { store: stage.store.clone(), outsider: Box::new(stage) }
    }

    async fn fresh_records(&self) -> Arc<dyn MigrationRecords> {
        self.stage().await.records
    }
}

#[async_trait]
impl Outsider for Stage {
    async fn adopt(&self, key: &PartitionKey, cell: &CellId, expires: Option<Timestamp>) {
        let mut foreign =
            item([("PartitionKey", text(key.as_str())), ("CellId", text(cell.as_str()))]);
        if let Some(expires) = expires {
            foreign.insert("TTL".into(), number(expires.seconds()));
        }
        self.put(self.names.mappings(), foreign).await;
    }
}

/// The cases of this file, listed once.
#[macro_export]
macro_rules! dynamodb_cases {
    ($engine:expr) => {
        cases!(
            $engine,
            dynamodb_suite::a_plain_get_item_finds_the_cell,
            dynamodb_suite::what_others_added_stays_until_the_key_is_vacated,
            dynamodb_suite::a_record_that_cannot_be_read_is_an_error_that_says_where,
            dynamodb_suite::a_gap_in_the_journal_is_an_error,
            dynamodb_suite::tables_are_made_once_described_and_deleted,
            dynamodb_suite::missing_tables_are_rejected_with_what_to_do,
            dynamodb_suite::a_table_with_another_key_is_refused,
            dynamodb_suite::a_table_without_index_is_adopted,
            dynamodb_suite::a_listing_of_many_placements_is_read_in_batches,
        );
    };
}

pub async fn a_plain_get_item_finds_the_cell(tables: &Tables) {
    let stage = tables.stage().await;
    let placed = Placement {
        expires: Timestamp::from_millis(at(10).millis() + 1),
        ..placement("tenant", "cell-a", 4)
    };
    stage.place(&placed, Expected::Absent).await;
    let found = stage.get("tenant").await;
    assert_eq!(found["CellId"], text("cell-a"));
    assert_eq!(found["CreatedAt"], text("2027-01-15T08:00:00.000Z"));
    assert_eq!(found["LastUpdated"], text("2027-01-15T08:00:01.000Z"));
    assert_eq!(found["Epoch"], number(4));
    // Ten seconds and a bit, and a hundred of grace, rounded up.
    assert_eq!(found["TTL"], number(at(111).seconds()));

    let expect = Expected::from(&Mapping::Placed(placed.clone()));
    let vacate = Write::Vacate { key: placed.key, epoch: epoch(4), expect };
    assert_eq!(stage.write(vec![vacate]).await, Ok(CommitOutcome::Committed));
    let found = stage.get("tenant").await;
    assert!(!found.contains_key("CellId") && !found.contains_key("TTL"), "{found:?}");
    assert_eq!(found["Epoch"], number(4));
}

pub async fn what_others_added_stays_until_the_key_is_vacated(tables: &Tables) {
    let stage = tables.stage().await;
    let foreign = item([
        ("PartitionKey", text("tenant")),
        ("CellId", text("cell-a")),
        ("CreatedAt", text("2026-01-31T12:00:00")),
        ("LastUpdated", text("some day")),
        ("TTL", text("1800000020.5")),
        ("Tier", AttributeValue::M(item([("level", number(3))]))),
        ("Seen", AttributeValue::Bs(vec![b"x".to_vec().into()])),
    ]);
    stage.put(stage.names.mappings(), foreign.clone()).await;
    let found = stage.mapping("tenant").await.unwrap();
    let adopted = found.placement().unwrap();
    assert!(adopted.adopted());
    assert_eq!(adopted.created, Timestamp::parse("2026-01-31T12:00:00Z"));
    assert_eq!((adopted.updated, adopted.expires), (None, Some(at(20))));

    let ours = placement("tenant", "cell-b", 2);
    stage.place(&ours, Expected::from(&found)).await;
    let item = stage.get("tenant").await;
    assert_eq!((&item["Tier"], &item["Seen"]), (&foreign["Tier"], &foreign["Seen"]));
    assert!(!item.contains_key("TTL"));
    assert_eq!(stage.mapping("tenant").await, Ok(Mapping::Placed(ours.clone())));

    let expect = Expected::from(&Mapping::Placed(ours.clone()));
    let vacate = Write::Vacate { key: ours.key, epoch: epoch(2), expect };
    assert_eq!(stage.write(vec![vacate]).await, Ok(CommitOutcome::Committed));
    let left: Vec<_> = stage.get("tenant").await.into_keys().collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

pub async fn a_record_that_cannot_be_read_is_an_error_that_says_where(tables: &Tables) {
    let stage = tables.stage().await;
    let names = stage.names.clone();
    let bad = item([("PartitionKey", text("secret")), ("CellId", text("Cell_A"))]);
    stage.put(names.mappings(), bad).await;
    let says = |error: StoreError, parts: [&str; 2]| match error {
        StoreError::Unreadable { detail } => {
            assert!(parts.iter().all(|part| detail.contains(part)), "{detail}");
            assert!(!detail.contains("secret") && !detail.contains("Cell_A"), "{detail}");
        }
        other => panic!("{other:?}"),
    };
    let place =
        Write::Place { placement: placement("secret", "cell-a", 1), expect: Expected::Absent };
    let attribute = [names.mappings(), "CellId"];
    says(stage.mapping("secret").await.unwrap_err(), attribute);
    says(stage.write(vec![place]).await.unwrap_err(), attribute);
    says(stage.store.placements.list(None, 9, None).await.unwrap_err(), attribute);
    // The search for expired placements passes it over and goes on.
    let expired = Placement { expires: Some(at(0)), ..placement("other", "cell-a", 1) };
    stage.place(&expired, Expected::Absent).await;
    let bad =
        item([("PartitionKey", text("secret")), ("CellId", text("Cell_A")), ("TTL", number(1))]);
    stage.put(names.mappings(), bad).await;
    let found = stage.store.placements.expired(at(1), 9, None).await.unwrap();
    assert_eq!(found.items, [expired]);

    let bad = item([("PK", text("CELL")), ("SK", text("CELL#cell-a")), ("Revision", number(1))]);
    stage.put(names.control(), bad).await;
    says(stage.store.journal.cells().await.unwrap_err(), [names.control(), "Region"]);
}

pub async fn a_gap_in_the_journal_is_an_error(tables: &Tables) {
    let stage = tables.stage().await;
    for _ in 0..4 {
        assert_eq!(stage.write(vec![]).await, Ok(CommitOutcome::Committed));
    }
    let delete = stage.client.delete_item().table_name(stage.names.control());
    let delete = delete.key("PK", text("JOURNAL#000000000000"));
    delete.key("SK", text("00000000000000000002")).send().await.unwrap();
    let entries = async |after| {
        let entries = stage.store.journal.entries(Sequence::new(after), 9).await;
        entries.map(|entries| entries.len())
    };
    assert_eq!(entries(2).await, Ok(2));
    for after in [0, 1] {
        let error = entries(after).await.unwrap_err();
        let gap = matches!(&error, StoreError::Unreadable { detail } if detail.contains("entry 2 is missing"));
        assert!(gap, "{error:?}");
    }
}

pub async fn tables_are_made_once_described_and_deleted(engine: &Tables) {
    let (client, names) = (engine.client().await, engine.names());
    let statuses = |reports: &[tables::TableReport]| -> Vec<Option<String>> {
        reports.iter().map(|report| report.status.clone()).collect()
    };
    let missing = tables::describe(&client, &names).await.unwrap();
    assert_eq!(statuses(&missing), [None, None]);

    let made = tables::create(&client, &names).await.unwrap();
    let active = Some("ACTIVE".to_owned());
    assert_eq!(statuses(&made), [active.clone(), active]);
    assert_eq!(made[0].done, ["created", "enabled TTL by TTL"]);
    assert_eq!(made[1].done, ["created", "enabled TTL by TTL", "began the journal"]);
    assert_eq!(made[0].key, ["PartitionKey (S)"]);
    assert_eq!(made[1].key, ["PK (S)", "SK (S)"]);
    assert_eq!(made[0].indexes, [("CellIdIndex".to_owned(), "ACTIVE".to_owned())]);
    assert!(
        made.iter().all(|report| report.ttl.as_ref().is_some_and(|ttl| ttl.ends_with("by TTL")))
    );
    assert_eq!(tables::verify(&client, &names).await, Ok(()));

    // Again: the journal goes on where it was.
    let stage = Stage::new(client.clone(), names.clone());
    assert_eq!(stage.write(vec![]).await, Ok(CommitOutcome::Committed));
    let again = tables::create(&client, &names).await.unwrap();
    assert!(again.iter().all(|report| report.done.is_empty()), "{again:?}");
    assert_eq!(stage.store.journal.head().await.map(|head| head.sequence), Ok(Sequence::new(1)));
    let described = tables::describe(&client, &names).await.unwrap();
    assert!(described[1].to_string().starts_with(names.control()), "{}", described[1]);

    for done in [&["deleted"][..], &[]] {
        let deleted = tables::delete(&client, &names).await.unwrap();
        assert_eq!(statuses(&deleted), [None, None]);
        assert!(deleted.iter().all(|report| report.done == done), "{deleted:?}");
    }
}

pub async fn missing_tables_are_rejected_with_what_to_do(engine: &Tables) {
    let stage = Stage::new(engine.client().await, engine.names());
    let advice = |error: StoreError| match error {
        StoreError::Rejected { detail } => detail,
        other => panic!("{other:?}"),
    };
    let verify = tables::verify(&stage.client, &stage.names).await;
    let detail = advice(verify.unwrap_err());
    assert!(detail.contains("celld tables create") && detail.contains(stage.names.mappings()));
    advice(stage.mapping("tenant").await.unwrap_err());
    advice(stage.store.journal.commit(&commit(1, vec![])).await.unwrap_err());

    // Tables without a journal are no better.
    let stage = engine.stage().await;
    let delete = stage.client.delete_item().table_name(stage.names.control());
    let delete = delete.key("PK", text("JOURNAL")).key("SK", text("HEAD"));
    delete.send().await.unwrap();
    for result in [
        stage.store.journal.head().await.map(|_| ()),
        tables::verify(&stage.client, &stage.names).await,
    ] {
        assert!(advice(result.unwrap_err()).contains("celld tables create"));
    }
}

async fn make_foreign_table(client: &Client, name: &str, key: &str) {
    let element = KeySchemaElement::builder().attribute_name(key).key_type(KeyType::Hash);
    let attribute =
        AttributeDefinition::builder().attribute_name(key).attribute_type(ScalarAttributeType::S);
    let create = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(element.build().unwrap())
        .attribute_definitions(attribute.build().unwrap());
    create.send().await.unwrap();
}

pub async fn a_table_with_another_key_is_refused(engine: &Tables) {
    let (client, names) = (engine.client().await, engine.names());
    make_foreign_table(&client, names.mappings(), "TenantId").await;
    for result in
        [tables::create(&client, &names).await.map(|_| ()), tables::verify(&client, &names).await]
    {
        let StoreError::Rejected { detail } = result.unwrap_err() else { panic!() };
        assert!(detail.contains("has the key TenantId (S), not PartitionKey (S)"), "{detail}");
    }
}

pub async fn a_table_without_index_is_adopted(engine: &Tables) {
    let (client, names) = (engine.client().await, engine.names());
    make_foreign_table(&client, names.mappings(), "PartitionKey").await;
    let stage = Stage::new(client.clone(), names.clone());
    for n in 0..30 {
        let cell = id(if n % 10 == 0 { "cell-b" } else { "cell-a" });
        stage.adopt(&key(&format!("tenant-{n}")), &cell, None).await;
    }
    let listed = async |stage: &Stage, limit| {
        let (mut all, mut after, cell) = (Vec::new(), None, id("cell-b"));
        loop {
            let page = stage.store.placements.list(Some(&cell), limit, after.as_ref());
            let page = page.await.unwrap();
            all.extend(page.items.into_iter().map(|p| p.key.to_string()));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        all.sort();
        all
    };
    let expected = ["tenant-0", "tenant-10", "tenant-20"];
    // By reading the whole table, while there is no index.
    assert_eq!(listed(&stage, 4).await, expected);
    assert_eq!(stage.store.placements.count(&id("cell-a")).await, Ok(27));

    let reports = tables::create(&client, &names).await.unwrap();
    assert_eq!(reports[0].done, ["added CellIdIndex", "enabled TTL by TTL"]);
    let stage = Stage::new(client, names);
    assert_eq!(listed(&stage, 2).await, expected);
    assert_eq!(stage.store.placements.count(&id("cell-a")).await, Ok(27));
}

pub async fn a_listing_of_many_placements_is_read_in_batches(engine: &Tables) {
    let stage = engine.stage().await;
    for chunk in 0..3 {
        let place = |n: usize| Write::Place {
            placement: placement(&format!("tenant-{chunk}-{n}"), "cell-a", 1),
            expect: Expected::Absent,
        };
        let outcome = stage.write((0..80).map(place).collect()).await;
        assert_eq!(outcome, Ok(CommitOutcome::Committed));
    }
    let page = stage.store.placements.list(Some(&id("cell-a")), 1000, None).await.unwrap();
    assert_eq!((page.items.len(), page.next), (240, None));
}
