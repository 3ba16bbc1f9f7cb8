//! No tenant is seen in clear: not in a span, not in a metric, not in the log.

use cell_directory::proto::v1;
use tonic::Request;

use crate::harness::{Caller, Cuttable, Directory, SOON, ask, ask_without_fallback, resolve};
use crate::otlp::{OtlpReceiver, Spans};

/// In every key that the callers use, so that one search finds them all.
const TENANT: &str = "Wilhelmina-Zaugg";

/// As much as our own code can be made to log.
const TALKATIVE: [&str; 6] = [
    "--trace-sample-ratio",
    "1",
    "--log-filter",
    "info,cell_directory=trace",
    "--lookup-budget",
    "300ms",
];

fn key(of: &str) -> String {
    format!("{TENANT}-{of}")
}

/// Calls every method with a tenant in it, in ways that succeed and ways that fail.
async fn use_everything(directory: &mut Directory, cell: &str) {
    let placed = resolve(directory, Request::new(ask(&key("1")))).await;
    assert!(placed.is_ok(), "{placed:?}");
    for request in [
        v1::ResolveRequest { explain: true, ..ask(&key("1")) },
        v1::ResolveRequest { min_epoch: 99, ..ask(&key("1")) },
        v1::ResolveRequest { mode: v1::ResolveMode::LookupOnly.into(), ..ask(&key("2")) },
        ask(&format!("{TENANT}\u{7}")),
        ask(&TENANT.repeat(100)),
    ] {
        let _ = directory.resolve(request).await;
    }
    let _ = directory
        .batch_resolve(v1::BatchResolveRequest {
            partition_keys: vec![key("1"), key("3"), format!("{TENANT}\n"), key("3")],
            ..Default::default()
        })
        .await;
    for of in ["1", "absent"] {
        let partition_key = key(of);
        let _ = directory.get_placement(v1::GetPlacementRequest { partition_key }).await;
    }
    let _ = directory
        .list_placements(v1::ListPlacementsRequest { cell_id: cell.into(), ..Default::default() })
        .await;
    for (of, cell_id) in [("4", cell), ("4", cell), ("5", "no-such-cell")] {
        let _ = directory
            .pin_placement(v1::PinPlacementRequest {
                partition_key: key(of),
                cell_id: cell_id.to_owned(),
                request_id: "request-1".to_owned(),
                ..Default::default()
            })
            .await;
    }
    for epoch in [99, 0, 0] {
        let partition_key = key("4");
        let delete = v1::DeletePlacementRequest { partition_key, epoch, ..Default::default() };
        let _ = directory.delete_placement(delete).await;
    }
    let history = v1::GetPlacementHistoryRequest { partition_key: key("4"), ..Default::default() };
    let _ = directory.get_placement_history(history).await;
    let row = |of: &str, cell_id: &str| v1::PlacementImport {
        partition_key: key(of),
        cell_id: cell_id.to_owned(),
        ..Default::default()
    };
    let import = v1::ImportPlacementsRequest {
        placements: vec![row("6", cell), row("1", "no-such-cell"), row("\u{0}", cell)],
        validate_only: false,
    };
    let _ = directory.import_placements(futures::stream::iter([import])).await;
}

/// Uses everything with the table there and without it; answers the spans and the log.
async fn record(receiver: &OtlpReceiver, collector: &str, more: &[&str]) -> (Spans, String) {
    let more = [TALKATIVE.as_slice(), more].concat();
    let Cuttable { traced, relay, engine: _engine } = Cuttable::start(collector, &more).await;
    let mut directory = traced.directory().await;
    use_everything(&mut directory, "cell-a").await;
    relay.cut().await;
    use_everything(&mut directory, "cell-a").await;
    let guess = resolve(&mut directory, Request::new(ask(&key("guess")))).await.unwrap();
    assert_eq!(guess.1, v1::DecisionSource::Fallback);
    let _ = directory.resolve(ask_without_fallback(&key("guess"))).await.unwrap_err();
    let last = Caller::sampled();
    resolve(&mut directory, last.asks(ask(&key("1")))).await.unwrap();
    let there = |spans: &Spans| {
        !spans.in_trace(&last.trace_id).named("cells.v1.CellDirectory/Resolve").is_empty()
    };
    let spans = receiver.wait_for_spans(there, SOON).await;
    let counted = |points: &[crate::otlp::MetricPoint]| !points.is_empty();
    receiver.wait_for_points("cell.route.decisions", counted, SOON).await;
    // Ended in order, so that the last of the metrics is received, too.
    (spans, traced.end())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_hashed() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let (spans, log) = record(&receiver, &collector, &[]).await;
    for method in [
        "Resolve",
        "BatchResolve",
        "GetPlacement",
        "ListPlacements",
        "PinPlacement",
        "DeletePlacement",
        "GetPlacementHistory",
        "ImportPlacements",
    ] {
        let name = format!("cells.v1.CellDirectory/{method}");
        assert!(!spans.named(&name).is_empty(), "{method} was not recorded: {spans}");
    }
    assert!(log.contains("cell_directory"), "nothing was logged: {log}");
    // The search itself works: the cell is to be seen.
    assert!(receiver.ever_received("cell-a"));
    assert!(!receiver.ever_received(TENANT), "{spans}");
    let line = log.lines().find(|line| line.contains(TENANT));
    assert_eq!(line, None);
    let decisions = spans.named("cell.route");
    assert!(decisions.iter().all(|span| span.attr("cell.tenant").is_none()));
    assert!(decisions.iter().all(|span| span.str("cell.tenant.hash").is_some_and(is_hash)));
}

fn is_hash(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_clear_in_spans_where_that_is_switched_on() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let (spans, _) = record(&receiver, &collector, &["--clear-tenants"]).await;
    let decisions = spans.named("cell.route");
    assert!(!decisions.is_empty());
    for span in decisions {
        let tenant = span.str("cell.tenant").unwrap();
        assert!(tenant.starts_with(TENANT), "{tenant}");
        assert_eq!(span.attr("cell.tenant.hash"), None);
    }
    // Not even then are they labels of metrics.
    for name in receiver.metric_names() {
        for point in receiver.metric_points(&name) {
            assert!(!format!("{:?}", point.attributes).contains(TENANT), "{point:?}");
        }
    }
}
