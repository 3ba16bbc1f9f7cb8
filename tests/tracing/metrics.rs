//! The metrics of calls and decisions: their numbers are those of what was sent, and nothing else is a label.

use std::collections::{BTreeMap, BTreeSet};

use cell_directory::proto::v1;
use tonic::Request;

use crate::harness::{Cuttable, SOON, Traced, ask, ask_without_fallback, resolve};
use crate::otlp::{MetricPoint, MetricValue, OtlpReceiver};

const DURATION: &str = "rpc.server.call.duration";
const CALLS: &str = "rpc.server.calls";
const DECISIONS: &str = "cell.route.decisions";

/// The counts by the values of some labels, in their order.
fn by(points: &[MetricPoint], labels: &[&str]) -> BTreeMap<Vec<String>, u64> {
    let mut counts = BTreeMap::new();
    for point in points {
        let label = |name: &&str| {
            point.attributes.get(*name).map_or_else(String::new, |value| value.to_string())
        };
        *counts.entry(labels.iter().map(label).collect()).or_default() += point.count() as u64;
    }
    counts
}

fn expected<const N: usize>(counts: &[([&str; N], u64)]) -> BTreeMap<Vec<String>, u64> {
    let owned = |labels: &[&str; N]| labels.map(str::to_owned).to_vec();
    counts.iter().map(|(labels, count)| (owned(labels), *count)).collect()
}

/// Waits until a metric's counts are these and no others.
async fn assert_counts<const N: usize>(
    receiver: &OtlpReceiver,
    metric: &str,
    labels: [&str; N],
    counts: &[([&str; N], u64)],
) -> Vec<MetricPoint> {
    let expected = expected(counts);
    let equal = |points: &[MetricPoint]| by(points, &labels) == expected;
    receiver.wait_for_points(metric, equal, SOON).await
}

fn labels(points: &[MetricPoint]) -> BTreeSet<&str> {
    points.iter().flat_map(|point| point.attributes.keys().map(String::as_str)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_counted_and_timed_by_method_and_status() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), &collector, &[]);
    let mut directory = traced.directory().await;
    for number in 0..7 {
        resolve(&mut directory, Request::new(ask(&format!("customer-{number}")))).await.unwrap();
    }
    for _ in 0..3 {
        directory.resolve(ask("")).await.unwrap_err();
    }
    let absent = || v1::GetPlacementRequest { partition_key: "absent".to_owned() };
    for _ in 0..2 {
        directory.get_placement(absent()).await.unwrap_err();
    }
    let keys = vec!["customer-1".to_owned(), "customer-2".to_owned(), String::new()];
    let batch = v1::BatchResolveRequest { partition_keys: keys, ..Default::default() };
    directory.batch_resolve(batch).await.unwrap();
    traced.celld.admin().await.list_cells(v1::ListCellsRequest::default()).await.unwrap();
    directory.import_placements(futures::stream::iter([])).await.unwrap();

    let counts = [
        (["cells.v1.CellAdmin/ListCells", "OK"], 1),
        (["cells.v1.CellDirectory/BatchResolve", "OK"], 1),
        (["cells.v1.CellDirectory/GetPlacement", "NOT_FOUND"], 2),
        (["cells.v1.CellDirectory/ImportPlacements", "OK"], 1),
        (["cells.v1.CellDirectory/Resolve", "INVALID_ARGUMENT"], 3),
        (["cells.v1.CellDirectory/Resolve", "OK"], 7),
    ];
    let labelled = ["rpc.method", "rpc.response.status_code"];
    for metric in [DURATION, CALLS] {
        let points = assert_counts(&receiver, metric, labelled, &counts).await;
        let allowed = BTreeSet::from(["rpc.system.name", "rpc.method", "rpc.response.status_code"]);
        assert_eq!(labels(&points), allowed);
        assert!(points.iter().all(|point| point.has(&[("rpc.system.name", "grpc")])));
        for point in &points {
            let MetricValue::Histogram { count, sum, bounds, bucket_counts } = &point.value else {
                assert_eq!((metric, point.unit.as_str()), (CALLS, "{call}"));
                assert!(matches!(point.value, MetricValue::Sum { monotonic: true, .. }));
                continue;
            };
            assert_eq!((metric, point.unit.as_str()), (DURATION, "s"));
            assert_eq!(bucket_counts.iter().sum::<u64>(), *count);
            assert_eq!(bucket_counts.len(), bounds.len() + 1);
            assert!(*sum > 0.0 && *sum < 60.0, "{sum}");
        }
    }
    traced.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_counted_by_source_cell_and_reason() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let budget = ["--lookup-budget", "300ms"];
    let Cuttable { traced, relay, engine: _engine } = Cuttable::start(&collector, &budget).await;
    let mut directory = traced.directory().await;
    for number in 0..6 {
        resolve(&mut directory, Request::new(ask(&format!("customer-{number}")))).await.unwrap();
    }
    for _ in 0..9 {
        resolve(&mut directory, Request::new(ask("customer-1"))).await.unwrap();
    }
    let keys = (0..8).map(|number| format!("customer-{number}")).collect();
    let batch = v1::BatchResolveRequest { partition_keys: keys, ..Default::default() };
    directory.batch_resolve(batch).await.unwrap();
    relay.cut().await;
    for _ in 0..4 {
        let guess = resolve(&mut directory, Request::new(ask("customer-9"))).await.unwrap();
        assert_eq!(guess.1, v1::DecisionSource::Fallback);
    }
    // No decision: nothing to count.
    directory.resolve(ask_without_fallback("customer-9")).await.unwrap_err();
    directory.resolve(ask("")).await.unwrap_err();

    let counts = [
        (["assigned", "cell-a", ""], 8),
        (["fallback", "cell-z", "unavailable"], 4),
        (["memory", "cell-a", ""], 15),
    ];
    let labelled = ["cell.route.source", "cell.id", "cell.route.fallback_reason"];
    let points = assert_counts(&receiver, DECISIONS, labelled, &counts).await;
    assert_eq!(labels(&points), BTreeSet::from(labelled));
    // What left memory is timed, by source.
    let counts = [(["assigned"], 8), (["fallback"], 4)];
    let timed =
        assert_counts(&receiver, "cell.route.duration", ["cell.route.source"], &counts).await;
    assert_eq!(labels(&timed), BTreeSet::from(["cell.route.source"]));
    assert!(!receiver.ever_received("customer-"));
    traced.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cells_hold_and_what_tables_cost_is_told_by_cell_and_table() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), &collector, &[]);
    let mut directory = traced.directory().await;
    for number in 0..7 {
        resolve(&mut directory, Request::new(ask(&format!("customer-{number}")))).await.unwrap();
    }
    let all = |points: &[MetricPoint]| {
        let latest = |cell: &str| points.iter().rfind(|point| point.has(&[("cell.id", cell)]));
        let held = ["cell-a", "cell-b", "cell-c"].map(|cell| latest(cell).map(MetricPoint::count));
        held.into_iter().flatten().sum::<f64>() == 7.0
    };
    let placements = receiver.wait_for_points("cell.placements", all, SOON).await;
    assert_eq!(labels(&placements), BTreeSet::from(["cell.id"]));

    let counted = |points: &[MetricPoint]| {
        let of = |table: &str, direction: &str| {
            points.iter().any(|point| {
                let labels = [("cell.id", "_CONTROL"), ("direction", direction)];
                point.has(&labels) && point.has(&[("db.collection.name", table)])
            })
        };
        of("CellControl", "read") && of("CellControl", "write") && of("CellMappings", "write")
    };
    let units = receiver.wait_for_points("cell.table.consumed_units", counted, SOON).await;
    assert_eq!(labels(&units), BTreeSet::from(["cell.id", "db.collection.name", "direction"]));
    assert!(
        units.iter().all(|point| matches!(point.value, MetricValue::Sum { monotonic: true, .. }))
    );
    assert!(!receiver.ever_received("customer-"));
    traced.end();
}
