//! How busy cells are, by what CloudWatch counted: measured by one replica at a time, published, shown, and minded by assignment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cell_directory::domain::{CellId, Timestamp};
use cell_directory::metering::{LoadRecord, LoadRecords};
use cell_directory::proto::v1;
use cell_directory::store::dynamodb::{
    DynamoDbOptions, DynamoDbStore, StoreSettings, TableNames, connect, tables,
};

use crate::celld::{Celld, cell, command, unique};
use crate::cloudwatch::{CloudWatch, Datum};
use crate::data::message;
use crate::dynamodb_local::DynamoDbLocal;
use crate::world::{Engine, World, table};

const SOON: Duration = Duration::from_secs(60);
const PUBLISH: [&str; 2] = ["--cloudwatch-metrics=publish", "--load-interval=300ms"];

/// The same sum in each of the last minutes.
fn minutes(sum: f64) -> Vec<(i64, f64)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now - now % 60).unwrap();
    (1..40).rev().map(|minute| (now - minute * 60, sum)).collect()
}

/// Waits until a replica's cells are as they should be.
async fn wait_for_cells(
    server: &Celld,
    mut done: impl FnMut(&[v1::Cell]) -> bool,
) -> Vec<v1::Cell> {
    let deadline = Instant::now() + SOON;
    let mut admin = server.admin().await;
    loop {
        let listed = admin.list_cells(v1::ListCellsRequest::default()).await.unwrap().into_inner();
        if done(&listed.cells) {
            return listed.cells;
        }
        assert!(Instant::now() < deadline, "{:?}", listed.cells);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_for_data(
    cloudwatch: &CloudWatch,
    mut done: impl FnMut(&[Datum]) -> bool,
) -> Vec<Datum> {
    let deadline = Instant::now() + SOON;
    loop {
        let put = cloudwatch.put();
        if done(&put) {
            return put;
        }
        assert!(Instant::now() < deadline, "{put:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn of<'a>(put: &'a [Datum], metric: &str, dimensions: &[(&str, &str)]) -> Vec<&'a Datum> {
    let dimensions: BTreeMap<_, _> =
        dimensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    put.iter().filter(|datum| datum.metric == metric && datum.dimensions == dimensions).collect()
}

fn utilisation(cells: &[v1::Cell], id: &str) -> Option<f64> {
    cells.iter().find(|cell| cell.cell_id == id)?.load.as_ref().map(|load| load.utilisation)
}

/// Cells of new tenants, by a replica.
async fn newcomers(server: &Celld, names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut directory = server.directory().await;
    let mut homes = BTreeMap::new();
    for partition_key in names {
        let request = v1::ResolveRequest { partition_key, ..Default::default() };
        let answer = directory.resolve(request).await.unwrap().into_inner();
        *homes.entry(answer.placement.unwrap().cell_id).or_default() += 1;
    }
    homes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_cells_are_measured_in_turns_published_once_shown_and_spared() {
    let cloudwatch = Arc::new(CloudWatch::start().await);
    let engine = Engine::CloudWatch(cloudwatch.clone());
    let mut world = World::new(engine, &["cell-a", "cell-b", "cell-c"]).await;
    let units = |units| Some(v1::Provision { units, autoscaling: None });
    let mut orders = table("Orders");
    orders.provisioned = Some(v1::Throughput { read: units(100), write: units(10) });
    orders.indexes[0].throughput = Some(v1::Throughput { read: units(5), write: units(5) });
    world.put_set(vec![orders]).await;
    for id in ["cell-a", "cell-b"] {
        world.provision(id).await;
    }
    let (orders_a, orders_b) = (world.table("Orders", "cell-a"), world.table("Orders", "cell-b"));
    // Half of what is provisioned is written in one cell, and nine tenths and more are read in the other, by its index.
    cloudwatch.count("ConsumedWriteCapacityUnits", &orders_a, None, minutes(10.0 * 60.0 / 2.0));
    let index = Some("CellIdIndex");
    cloudwatch.count("ConsumedReadCapacityUnits", &orders_b, None, minutes(60.0));
    cloudwatch.count("ConsumedReadCapacityUnits", &orders_b, index, minutes(5.0 * 60.0 * 0.95));
    cloudwatch.count("ReadThrottleEvents", &orders_b, index, minutes(3.0));

    let (one, two) = (world.join(&PUBLISH).await, world.join(&PUBLISH).await);
    let both = |cells: &[v1::Cell]| cells.iter().filter(|cell| cell.load.is_some()).count() == 2;
    wait_for_cells(&one, both).await;
    let cells = wait_for_cells(&two, both).await;
    assert!((utilisation(&cells, "cell-a").unwrap() - 0.5).abs() < 1e-9, "{cells:?}");
    let busy = cells[1].load.unwrap();
    assert!((busy.utilisation - 0.95).abs() < 1e-9, "{busy:?}");
    assert!((busy.throttled_per_minute - 3.0).abs() < 1e-9 && busy.overloaded, "{busy:?}");
    assert_eq!(cells[2].load, None, "a cell without tables");
    // Who does not ask is not told, and nothing is where it was not measured.
    assert_eq!(utilisation(&wait_for_cells(&world.server, |_| true).await, "cell-a"), None);

    let homes = newcomers(&two, (0..40).map(|n| format!("tenant-{n}"))).await;
    assert_eq!(homes.keys().map(String::as_str).collect::<Vec<_>>(), ["cell-a", "cell-c"]);
    let explain = v1::ResolveRequest {
        partition_key: "explained".to_owned(),
        explain: true,
        ..Default::default()
    };
    let answer = two.directory().await.resolve(explain).await.unwrap().into_inner();
    let said = format!("{:?}", answer.decision.unwrap());
    assert!(said.contains("only after all others: 3.0 requests a minute are throttled"), "{said}");
    assert!(said.contains("utilisation 0.50 leaves 1.00"), "{said}");

    // A cell that comes later, and is measured by whoever is left.
    one.kill();
    let late = v1::CreateCellRequest { cell: Some(cell("cell-d")), ..Default::default() };
    world.admin.create_cell(late).await.unwrap();
    let last = [("CellId", "cell-d")];
    wait_for_data(&cloudwatch, |put| !of(put, "Placements", &last).is_empty()).await;
    cloudwatch.count("ConsumedReadCapacityUnits", &orders_b, index, Vec::new());
    cloudwatch.count("ReadThrottleEvents", &orders_b, index, Vec::new());
    let rested = |cells: &[v1::Cell]| utilisation(cells, "cell-b").unwrap() < 0.1;
    let cells = wait_for_cells(&two, rested).await;
    assert!(!cells[1].load.as_ref().unwrap().overloaded);
    let homes = newcomers(&two, (0..60).map(|n| format!("later-{n}"))).await;
    assert!(homes.contains_key("cell-b"), "{homes:?}");

    // CloudWatch is gone: nothing that is asked of the directory changes.
    cloudwatch.die(true);
    assert_eq!(
        newcomers(&two, (0..10).map(|n| format!("last-{n}"))).await.values().sum::<usize>(),
        10
    );
    published_once(&cloudwatch.put(), &orders_a, &orders_b);
}

/// Everybody's consumption, minute by minute as it was counted, none twice, and apart from our own.
fn published_once(put: &[Datum], orders_a: &str, orders_b: &str) {
    let everybodys: Vec<_> =
        put.iter().filter(|datum| !datum.dimensions.contains_key("Caller")).collect();
    let mut seen = BTreeSet::new();
    for datum in &everybodys {
        assert!(seen.insert((&datum.metric, &datum.dimensions, datum.minute)), "{datum:?}");
    }
    let written = [("CellId", "cell-a"), ("TableName", orders_a)];
    let written = of(put, "ConsumedWriteCapacityUnits", &written);
    assert!(written.len() >= 5, "{written:?}");
    assert!(written.iter().all(|datum| (datum.value, datum.unit.as_str()) == (300.0, "Count")));
    // The table with its index; then the index rested.
    let read = [("CellId", "cell-b"), ("TableName", orders_b)];
    let values = of(put, "ConsumedReadCapacityUnits", &read);
    assert!(values.iter().all(|datum| [345.0, 60.0].contains(&datum.value)), "{values:?}");
    assert!(values.len() >= 5, "{values:?}");
    let throttled = of(put, "ThrottledRequests", &read);
    assert!(throttled.len() >= 5 && throttled.iter().all(|datum| datum.value == 3.0));
    let holds = |metric| of(put, metric, &[("CellId", "cell-a")]);
    for (metric, unit) in [
        ("Placements", "Count"),
        ("ItemCount", "Count"),
        ("TableSizeBytes", "Bytes"),
        ("Utilisation", "Percent"),
    ] {
        let data = holds(metric);
        assert!(!data.is_empty() && data.iter().all(|datum| datum.unit == unit), "{metric}");
    }
    assert!((holds("Utilisation")[0].value - 50.0).abs() < 1e-9);
    let names: BTreeSet<_> = everybodys.iter().map(|datum| datum.metric.as_str()).collect();
    let all = [
        "ConsumedReadCapacityUnits",
        "ConsumedWriteCapacityUnits",
        "ItemCount",
        "Placements",
        "TableSizeBytes",
        "ThrottledRequests",
        "Utilisation",
    ];
    assert_eq!(names, BTreeSet::from(all));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_consumption_is_published_to_the_unit() {
    let cloudwatch = Arc::new(CloudWatch::before(DynamoDbLocal::shared().endpoint()).await);
    let engine = Engine::CloudWatch(cloudwatch.clone());
    let mut world = World::new(engine, &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let customers = world.table("CustomerData", "cell-a");
    let World { prefix, server, .. } = world;
    server.kill();
    // From here on one process makes all calls. It polls rarely, so that none is under way when it ends.
    cloudwatch.take_reported();
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--cloudwatch-metrics=publish"]);
    serve.args(["--dynamodb-endpoint", &cloudwatch.endpoint(), "--table-prefix", &prefix]);
    serve.args(["--load-interval=1m", "--journal-poll-interval=10s", "--sweep-interval=1h"]);
    serve.args(["--operations-interval=1m", "--read-timeout=20s", "--lookup-budget=50s"]);
    serve.args(["--commit-timeout=20s", "--commit-budget=50s", "--log-filter=error"]);
    let server = Celld::start(serve);
    server.ready().await;
    newcomers(&server, (0..20).map(|n| format!("tenant-{n}"))).await;
    let channel = server.channel().await;
    let mut data = v1::cell_data_client::CellDataClient::new(channel);
    for n in 0..5 {
        data.put(put(&format!("tenant-{n}"))).await.unwrap();
    }
    // What was measured at the start is written by now, or will never be.
    wait_for_data(&cloudwatch, |put| !of(put, "Placements", &[("CellId", "cell-a")]).is_empty())
        .await;
    assert!(server.terminate().success());

    let mut published = BTreeMap::new();
    let mut owners = BTreeSet::new();
    for datum in cloudwatch.put() {
        let Some(caller) = datum.dimensions.get("Caller") else { continue };
        assert_eq!(caller, "cell-directory");
        let read = match datum.metric.as_str() {
            "ConsumedReadCapacityUnits" => true,
            "ConsumedWriteCapacityUnits" => false,
            other => panic!("{other}"),
        };
        let table = datum.dimensions["TableName"].clone();
        owners.insert((table.clone(), datum.dimensions["CellId"].clone()));
        *published.entry((table, read)).or_insert(0.0) += datum.value;
    }
    let mut reported = cloudwatch.take_reported();
    // A read that needs none, such as that of an empty index.
    reported.retain(|_, units| *units > 0.0);
    assert_eq!(published, reported);
    // An item of two indexes' keys is written once to each; five items.
    assert!(published[&(customers.clone(), false)] >= 5.0, "{published:?}");
    let owned = |table: String, cell: &str| (table, cell.to_owned());
    let control = |name| owned(format!("{prefix}{name}"), "_CONTROL");
    assert_eq!(
        owners,
        [control("CellControl"), control("CellMappings"), owned(customers, "cell-a")].into()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_and_a_cells_record_have_one_winner() {
    let prefix = unique("loads");
    let endpoint = Some(DynamoDbLocal::shared().endpoint());
    let read_timeout = Duration::from_secs(20);
    let options = DynamoDbOptions { endpoint, read_timeout, ..DynamoDbOptions::default() };
    let (client, names) = (connect(&options).await, TableNames::with_prefix(&prefix).unwrap());
    tables::create(&client, &names).await.unwrap();
    let store = DynamoDbStore::new(client, names, StoreSettings::default());

    let mut won = Vec::new();
    for turn in [5, 5, 4, 6, 10_000, 7, 7, 8] {
        won.push(store.take_turn(turn, 2).await.unwrap());
    }
    // The turn of a clock that was far ahead is no turn.
    assert_eq!(won, [true, false, false, true, true, true, false, true]);

    let at = |seconds| Timestamp::from_seconds(seconds).unwrap();
    let record = |seconds| LoadRecord {
        cell: CellId::new("cell-a").unwrap(),
        at: at(seconds),
        load: None,
        published: Some(seconds),
    };
    assert_eq!(store.loads().await.unwrap(), Vec::new(), "the turn is no load");
    assert!(store.put_load(&record(60), None).await.unwrap());
    assert!(!store.put_load(&record(61), None).await.unwrap());
    assert!(store.put_load(&record(120), Some(at(60))).await.unwrap());
    assert!(!store.put_load(&record(121), Some(at(60))).await.unwrap());
    assert_eq!(store.loads().await.unwrap(), [record(120)]);
}

fn put(tenant: &str) -> v1::PutRequest {
    let key = format!("CUSTOMER#{tenant}");
    let item = serde_json::json!({ "PK": { "S": key }, "SK": { "S": "PROFILE" } });
    v1::PutRequest {
        partition_key: tenant.to_owned(),
        table: "CustomerData".to_owned(),
        item: Some(message(item)),
        condition: None,
    }
}
