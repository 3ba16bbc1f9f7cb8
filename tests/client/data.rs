//! Writes and reads by the Rust client, in the cells of a real server, whose guards came with the placements.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use cells_client::data::{Call, Data, DataError, Expression, How, Item, Query, Reads, Write};
use cells_client::{Directory, Error, Mode};
use cells_guard::{GuardTable, StoredGuard, guard, log};
use cells_migration::{Guard, GuardState, Holder, MigrationId, WriteMode};

use crate::celld::{Celld, table};
use crate::{MODES, SOON, World, client, place, until};

const TABLE: &str = "Orders";
const MOVE: MigrationId = MigrationId(7);

fn config(world: &World) -> Config {
    Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "tests"))
        .endpoint_url(world.engine.endpoint())
        .build()
}

async fn provision(server: &Celld, cells: &[&str]) {
    server.provision(vec![table(TABLE, Some("SK"))], cells).await;
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

fn key(tenant: &str, sort: &str) -> Item {
    [("PK".to_owned(), text(&format!("CUSTOMER#{tenant}"))), ("SK".to_owned(), text(sort))].into()
}

fn add(tenant: &str, sort: &str) -> Write {
    let one = AttributeValue::N("1".to_owned());
    Write::update(TABLE, key(tenant, sort), Expression::new("ADD N :one").value(":one", one))
}

async fn number(data: &Data, tenant: &str, sort: &str) -> Option<String> {
    let item = data.get(tenant, TABLE, key(tenant, sort), Reads::Strict).await.unwrap()?;
    item["N"].as_n().ok().cloned()
}

fn guard_table(world: &World, cell: &str) -> GuardTable {
    GuardTable {
        table_name: format!("{}{TABLE}-{cell}", world.prefix),
        partition_key: "PK".to_owned(),
        sort_key: "SK".to_owned(),
    }
}

async fn set_guard(world: &World, cell: &str, state: GuardState, epoch: u64, next: Option<&str>) {
    let holder = Some(Holder { migration: MOVE, worker: 1 });
    let guard = Guard { state, epoch, mode: WriteMode::Logged, holder };
    let next = next.map(str::to_owned);
    let stored = StoredGuard { guard, cell: cell.to_owned(), shards: 1, next };
    let table = guard_table(world, cell);
    let past = aws_sdk_dynamodb::Client::from_conf(config(world));
    let put = past.put_item().table_name(&table.table_name);
    put.set_item(Some(guard::item(&table, "tenant", 0, &stored))).send().await.unwrap();
}

/// Under a lease and without one, in either memory; with the servers up and down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_writes_plainly_under_a_lease_and_guarded_without() {
    for mode in MODES {
        let world = World::new();
        let servers = world.pair().await;
        provision(&servers[0], &["cell-a"]).await;
        let mut api = servers[0].directory().await;
        place(&mut api, "tenant", "cell-a").await;
        let directory = client(&servers, mode).connect().await.unwrap();
        let data = directory.data(config(&world)).unwrap();
        directory.locate("tenant").await.unwrap();
        let leased = || directory.resolve("tenant").is_some_and(|a| a.lease().as_secs() >= 1);
        until("a lease", leased).await;

        let written = data.write("tenant", add("tenant", "n")).await.unwrap();
        assert_eq!((written.how, &*written.cell, written.epoch), (How::Direct, "cell-a", 1));
        assert_eq!(written.item.unwrap()["N"].as_n().unwrap(), "1");
        place(&mut api, "tableless", "cell-b").await;
        let missing = data.put("tableless", TABLE, key("tableless", "1")).await;
        let tableless = DataError::Route(Error::NoTables { cell: "cell-b".to_owned() });
        assert_eq!(missing.unwrap_err(), tableless);
        provision(&servers[0], &["cell-b"]).await;
        let deadline = Instant::now() + SOON;
        while let Err(error) = data.put("tableless", TABLE, key("tableless", "1")).await {
            assert!(Instant::now() < deadline, "{error:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Nobody had a cell for this one.
        let new = data.put("new", TABLE, key("new", "1")).await.unwrap();
        assert_eq!(new.epoch, 1);
        let foreign = data.put("tenant", TABLE, key("new", "1")).await.unwrap_err();
        assert!(matches!(foreign, DataError::Invalid { .. }), "{foreign:?}");

        // Nobody renews the lease, and nobody answers: the guard does.
        servers.into_iter().for_each(Celld::kill);
        until("the lease to end", || directory.status().lease.is_zero()).await;
        let written = data.write("tenant", add("tenant", "n")).await.unwrap();
        assert_eq!((written.how, &*written.cell), (How::Guarded, "cell-a"));
        let both = [add("tenant", "n"), Write::delete(TABLE, key("tenant", "x"))];
        data.transact("tenant", &both, Call::default()).await.unwrap();
        let never = Expression::new("attribute_not_exists(PK)");
        let error = data.write("tenant", add("tenant", "n").only_if(never)).await.unwrap_err();
        assert_eq!(error, DataError::ConditionFailed { write: 0 });
        assert_eq!(number(&data, "tenant", "n").await.as_deref(), Some("3"));

        // It moves, and nobody is there who could say so but the guards.
        set_guard(&world, "cell-b", GuardState::Open, 2, None).await;
        set_guard(&world, "cell-a", GuardState::Moved, 2, Some("cell-b")).await;
        let written = data.write("tenant", add("tenant", "n")).await.unwrap();
        assert_eq!((written.how, &*written.cell, written.epoch), (How::Logged, "cell-b", 2));
        assert_eq!(number(&data, "tenant", "n").await.as_deref(), Some("1"));
        let query = Query { table: TABLE.to_owned(), reads: Reads::Strict, ..Query::default() };
        let found = data.query("tenant", &query).await.unwrap();
        assert_eq!((found.items.len(), &*found.cell), (1, "cell-b"));
        let past = aws_sdk_dynamodb::Client::from_conf(config(&world));
        let records = past.query().table_name(guard_table(&world, "cell-b").table_name);
        let records = records.key_condition_expression("PK = :p");
        let records = records.expression_attribute_values(":p", text(&log::partition(MOVE, 0)));
        assert_eq!(records.send().await.unwrap().count, 1);
        directory.close().await;
    }
}

/// What a client knows of cells' tables outlives it: it writes, guarded, before it has reached anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_client_writes_with_all_servers_down() {
    let (world, folder) = (World::new(), tempfile::tempdir().unwrap());
    let servers = world.pair().await;
    provision(&servers[0], &["cell-a"]).await;
    let mut api = servers[0].directory().await;
    place(&mut api, "tenant", "cell-a").await;
    place(&mut api, "tableless", "cell-b").await;
    let file = folder.path().join("cells.snapshot");
    let directory = client(&servers, Mode::Whole).snapshot(&file).connect().await.unwrap();
    until("both", || ["tenant", "tableless"].iter().all(|key| directory.resolve(key).is_some()))
        .await;
    directory.close().await;
    let endpoints = servers.each_ref().map(|server| format!("http://{}", server.address));
    servers.into_iter().for_each(Celld::kill);

    let again = Directory::builder(endpoints).snapshot(&file).connect_lazily();
    let again = again.connect().await.unwrap();
    let data = again.data(config(&world)).unwrap();
    let written = data.write("tenant", add("tenant", "n")).await.unwrap();
    assert_eq!((written.how, written.epoch), (How::Guarded, 1));
    assert_eq!(number(&data, "tenant", "n").await.as_deref(), Some("1"));
    let error = data.put("tableless", TABLE, key("tableless", "1")).await.unwrap_err();
    assert!(matches!(error, DataError::Route(Error::Unavailable { .. })), "{error:?}");
    again.close().await;
}
