//! What a cell's tables are used for and cost, by what CloudWatch counted.

use std::sync::Arc;
use std::time::SystemTime;

use cell_directory::proto::v1;
use prost_types::Struct;
use prost_types::value::Kind;
use tonic::Code;

use crate::cloudwatch::CloudWatch;
use crate::embedded::Embedded;
use crate::world::{Engine, World, fault, table};

/// The same sum in each of the last whole minutes.
fn minutes(count: i64, sum: f64) -> Vec<(i64, f64)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now - now % 60).unwrap();
    (2..2 + count).rev().map(|minute| (now - minute * 60, sum)).collect()
}

fn field<'a>(details: &'a Struct, name: &str) -> &'a Kind {
    details.fields[name].kind.as_ref().unwrap()
}

fn text(details: &Struct, name: &str) -> String {
    match field(details, name) {
        Kind::StringValue(text) => text.clone(),
        other => panic!("{name}: {other:?}"),
    }
}

fn ask(days: i32) -> v1::AnalyzeCellRequest {
    v1::AnalyzeCellRequest { cell_id: "cell-a".to_owned(), days }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_is_judged_by_what_was_counted() {
    let cloudwatch = Arc::new(CloudWatch::start().await);
    let engine = Engine::CloudWatch(cloudwatch.clone());
    let mut world = World::new(engine, &["cell-a"]).await;
    let unknown = world.admin.analyze_cell(ask(1)).await.unwrap_err();
    assert_eq!(fault(&unknown).1, "CELL_NOT_PROVISIONED");
    let units = |units| Some(v1::Provision { units, autoscaling: None });
    let mut provisioned = table("Orders");
    provisioned.provisioned = Some(v1::Throughput { read: units(100), write: units(10) });
    provisioned.indexes[0].throughput = Some(v1::Throughput { read: units(5), write: units(5) });
    world.put_set(vec![table("CustomerData"), provisioned]).await;
    world.provision("cell-a").await;
    let orders = world.table("Orders", "cell-a");
    // An hour of half the reads that are provisioned, and of nine tenths of the index's writes.
    cloudwatch.count("ConsumedReadCapacityUnits", &orders, None, minutes(60, 100.0 * 60.0 / 2.0));
    cloudwatch.count("ConsumedWriteCapacityUnits", &orders, None, minutes(60, 60.0));
    let index = Some("CellIdIndex");
    cloudwatch.count("ConsumedWriteCapacityUnits", &orders, index, minutes(60, 5.0 * 60.0 * 0.9));
    cloudwatch.count("WriteThrottleEvents", &orders, index, minutes(3, 7.0));

    let answer = world.admin.analyze_cell(ask(1)).await.unwrap().into_inner();
    assert!((answer.utilisation - 0.9).abs() < 0.001, "{}", answer.utilisation);
    let details = answer.details.unwrap();
    assert_eq!(text(&details, "cell"), "cell-a");
    let Kind::ListValue(tables) = field(&details, "tables") else { panic!() };
    assert_eq!(tables.values.len(), 2);
    assert!(answer.report.contains(&orders), "{}", answer.report);
    // By hand, at the prices of eu-west-1: (105 read units × $0.000147 + 15 write units × $0.000735) × 720 h.
    assert_eq!(text(&details, "month"), "$19.0512");
    assert!(answer.report.contains("24 h × 10 WCU × $0.000735 = $0.1764"), "{}", answer.report);
    assert!(answer.report.contains("21 requests were throttled"), "{}", answer.report);
    // Made a moment ago, so most of the day is not known.
    assert!(answer.report.contains("no recommendation"), "{}", answer.report);

    for days in [-1, 31] {
        let status = world.admin.analyze_cell(ask(days)).await.unwrap_err();
        let invalid = (Code::InvalidArgument, "INVALID_WINDOW".to_owned(), vec!["days".to_owned()]);
        assert_eq!(fault(&status), invalid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_counted_that_is_said() {
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    let mut world = World::new(engine, &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let status = world.admin.analyze_cell(ask(0)).await.unwrap_err();
    assert_eq!(
        (status.code(), fault(&status).1.as_str()),
        (Code::Unimplemented, "AWS_UNSUPPORTED")
    );
}
