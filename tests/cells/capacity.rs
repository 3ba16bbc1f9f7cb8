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
    v1::AnalyzeCellRequest { cell_id: "cell-a".to_owned(), days, ..Default::default() }
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

    // What is left out must not be taken for nothing.
    cloudwatch.answer_in_part(true);
    let status = world.admin.analyze_cell(ask(1)).await.unwrap_err();
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::Unavailable, "AWS_BUSY"));
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

/// Tenants whose names begin alike, one of them with three times as much as the other, and one with nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cells_cost_is_shared_by_what_tenants_store() {
    use aws_sdk_dynamodb::types::AttributeValue;
    let cloudwatch = Arc::new(CloudWatch::start().await);
    let mut world = World::new(Engine::CloudWatch(cloudwatch.clone()), &["cell-a"]).await;
    let mut orders = table("Orders");
    orders.indexes.clear();
    orders.tenant_key_templates.push("ORDER#{partition_key}".to_owned());
    world.put_set(vec![orders]).await;
    world.provision("cell-a").await;
    let name = world.table("Orders", "cell-a");
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    for (key, count) in [("CUSTOMER#a", 4), ("ORDER#a", 1), ("CUSTOMER#ab", 15), ("OTHER", 20)] {
        for number in 0..count {
            // 2 + key + 2 + 2 + 1 + 100 - key bytes each: 107.
            let value = "x".repeat(100 - key.len());
            let put = dynamodb.put_item().table_name(&name);
            let put = put.item("PK", AttributeValue::S(key.to_owned()));
            let put = put.item("SK", AttributeValue::S(format!("{number:02}")));
            put.item("V", AttributeValue::S(value)).send().await.unwrap();
        }
    }
    cloudwatch.count("ConsumedReadCapacityUnits", &name, None, minutes(10, 1_000_000.0));
    let keys = ["ab", "a", "nobody", "a"].map(str::to_owned).to_vec();
    let request = v1::AnalyzeCellRequest { partition_keys: keys, ..ask(1) };
    let answer = world.admin.analyze_cell(request).await.unwrap().into_inner();
    let shares = &answer.tenant_shares;
    let of = |share: &v1::TenantShare| {
        (share.partition_key.clone(), share.item_count, share.bytes, share.lower_bound)
    };
    let expected = [("ab", 15, 15 * 107), ("a", 5, 5 * 107), ("nobody", 0, 0)];
    let expected = expected.map(|(key, items, bytes)| (key.to_owned(), items, bytes, false));
    assert_eq!(shares.iter().map(of).collect::<Vec<_>>(), expected);
    let dollars = |text: &str| text.trim_start_matches('$').parse::<f64>().unwrap();
    let [ab, a, nobody] = [0, 1, 2].map(|at| dollars(&shares[at].amount));
    let total = dollars(&text(answer.details.as_ref().unwrap(), "total"));
    assert!(a > 0.0 && (ab / a - 3.0).abs() < 1e-6 && nobody == 0.0, "{ab} {a} {nobody}");
    // moto tells no sizes of tables, so what was measured counts as the whole.
    assert!((ab + a - total).abs() < 1e-9, "{ab} + {a} of {total}");
    assert!(answer.measuring_read_units > 0.0);
    assert!(answer.report.contains("everything by stored bytes"), "{}", answer.report);
    assert!(answer.report.contains("measuring 3 partition keys took"), "{}", answer.report);
    assert_eq!(answer.cost_explorer, None, "it was not asked for, and costs money");

    let many = (0..101).map(|number| format!("t{number}")).collect();
    for (keys, field) in
        [(many, "partition_keys"), (vec!["a".to_owned(), String::new()], "partition_keys[1]")]
    {
        let request = v1::AnalyzeCellRequest { partition_keys: keys, ..ask(1) };
        let status = world.admin.analyze_cell(request).await.unwrap_err();
        assert_eq!(
            (status.code(), fault(&status).2),
            (Code::InvalidArgument, vec![field.to_owned()])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_estimate_is_held_against_cost_explorer() {
    use v1::CostExplorerState as State;
    let cloudwatch = Arc::new(CloudWatch::start().await);
    let mut world = World::new(Engine::CloudWatch(cloudwatch.clone()), &["cell-a"]).await;
    let mut orders = table("Orders");
    orders.indexes.clear();
    world.put_set(vec![orders]).await;
    world.provision("cell-a").await;
    let name = world.table("Orders", "cell-a");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // At noon of the last whole day, in UTC; and today, which no bill has yet.
    let noon = i64::try_from(now - now % 86_400).unwrap() - 43_200;
    let units = vec![(noon, 4_000_000.0), (noon + 86_400, 1_000_000.0)];
    cloudwatch.count("ConsumedReadCapacityUnits", &name, None, units);
    let mut compared = async |days: i32| {
        let request = v1::AnalyzeCellRequest { compare_with_cost_explorer: true, ..ask(days) };
        let answer = world.admin.analyze_cell(request).await.unwrap().into_inner();
        (answer.cost_explorer.unwrap(), answer.report)
    };
    // Nothing is known of a tag that is not activated.
    let (none, report) = compared(3).await;
    assert_eq!((none.state(), none.reported.as_str()), (State::NoData, ""));
    assert!(none.note.contains("activate the tag `cell`"), "{}", none.note);
    assert!(report.contains(&none.note), "{report}");

    // 4,000,000 read request units × $0.0000001415, the price of eu-west-1. AWS says 5 % more.
    cloudwatch.bill(&["0.5943"]).await;
    let (near, report) = compared(1).await;
    assert_eq!((near.state(), near.note.as_str()), (State::Compared, ""));
    assert_eq!((near.reported.as_str(), near.estimated.as_str()), ("$0.5943", "$0.566"));
    assert!((near.difference - (0.566 - 0.5943) / 0.5943).abs() < 1e-4, "{}", near.difference);
    assert!(report.contains("Cost Explorer reports $0.5943"), "{report}");

    cloudwatch.bill(&["0.25", "0.2499"]).await;
    let (far, report) = compared(2).await;
    assert_eq!((far.state(), far.reported.as_str()), (State::Compared, "$0.4999"));
    assert!(far.note.contains("differs from Cost Explorer by more than 10"), "{}", far.note);
    assert!(report.contains(&far.note), "{report}");

    cloudwatch.deny_billing();
    let (denied, report) = compared(4).await;
    assert_eq!(
        (denied.state(), denied.note.as_str()),
        (State::Unreachable, "AccessDeniedException")
    );
    assert!(report.contains("Cost Explorer was not reached: AccessDeniedException"), "{report}");
}
