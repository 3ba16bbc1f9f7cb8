//! What a collector is told of writes before, while and after their tenant moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_data_client::CellDataClient;
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::embedded::Embedded;
use crate::otlp::{MetricPoint, OtlpReceiver};
use crate::scene::{Scene, partition, request};
use crate::world::Engine;

const TENANT: &str = "counted";

/// Writes while there are leases.
const DIRECT: u64 = 10;

fn text(value: &str) -> Value {
    let typed = Value { kind: Some(Kind::StringValue(value.to_owned())) };
    let typed = Struct { fields: [("S".to_owned(), typed)].into() };
    Value { kind: Some(Kind::StructValue(typed)) }
}

fn put(sort: &str, condition: Option<&str>) -> v1::PutRequest {
    let fields = [("PK".to_owned(), text(&partition(TENANT))), ("SK".to_owned(), text(sort))];
    v1::PutRequest {
        partition_key: TENANT.to_owned(),
        table: "CustomerData".to_owned(),
        item: Some(Struct { fields: fields.into() }),
        condition: condition
            .map(|text| v1::Expression { expression: text.to_owned(), ..Default::default() }),
    }
}

/// Calls by mode and outcome, of all exports.
fn counts(points: &[MetricPoint]) -> BTreeMap<(String, String), u64> {
    let label = |point: &MetricPoint, name: &str| point.attributes[name].to_string();
    let mut counts = BTreeMap::new();
    for point in points {
        let labels = (label(point, "cell.write.mode"), label(point, "cell.write.outcome"));
        *counts.entry(labels).or_default() += point.count() as u64;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_counted_as_they_were_made_and_as_they_ended() {
    let (endpoint, collector) = OtlpReceiver::start().await;
    let flag: &'static str = format!("--otlp-endpoint={endpoint}").leak();
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    let mut scene = Scene::with_flags(engine, &[flag, "--metrics-interval=200ms"]).await;
    scene.pin(TENANT, "cell-a").await;
    // Long enough for a call on a busy machine.
    scene.lease(Duration::from_secs(10)).await;
    let mut data = CellDataClient::new(scene.world.server.channel().await);
    for sort in 0..DIRECT {
        data.put(put(&sort.to_string(), None)).await.unwrap();
    }
    data.put(put("1", Some("attribute_not_exists(PK)"))).await.unwrap_err();
    // No lease is left: the guard is checked.
    scene.lease(Duration::ZERO).await;
    for sort in ["a", "b"] {
        data.put(put(sort, None)).await.unwrap();
    }
    let begun = scene.start_with(request(TENANT, "cell-b")).await.unwrap();
    scene.until(&begun.migration_id, v1::MigrationState::Soaking).await;
    data.put(put("c", None)).await.unwrap();
    data.put(put("c", Some("attribute_not_exists(PK)"))).await.unwrap_err();
    assert_eq!(scene.items("CustomerData", "cell-b").await.len() as u64, DIRECT + 3);

    let soon = Duration::from_secs(60);
    let counted = |points: &[MetricPoint]| {
        let counts = counts(points);
        let of = |mode: &str, outcome: &str| {
            counts.get(&(mode.to_owned(), outcome.to_owned())).copied().unwrap_or(0)
        };
        // A replica that stands still for a while on a busy machine has no lease after it, and checks the guard.
        let plain = |outcome| of("direct", outcome) + of("guarded", outcome);
        of("direct", "ok") > 0
            && of("guarded", "ok") >= 2
            && [plain("ok"), plain("condition_failed")] == [DIRECT + 2, 1]
            && [of("logged", "ok"), of("logged", "condition_failed")] == [1, 1]
            && counts.values().sum::<u64>() == DIRECT + 5
    };
    let points = collector.wait_for_points("cell.write.calls", counted, soon).await;
    assert!(points.iter().all(|point| point.unit == "{call}" && point.attributes.len() == 2));
    let timed = |points: &[MetricPoint]| {
        let of = |mode: &str| {
            let of = points.iter().filter(|point| point.has(&[("cell.write.mode", mode)]));
            of.map(MetricPoint::count).sum::<f64>()
        };
        of("direct") + of("guarded") == (DIRECT + 3) as f64 && of("logged") == 2.0
    };
    collector.wait_for_points("cell.write.duration", timed, soon).await;
    assert!(!collector.ever_received(&partition(TENANT)));
}
