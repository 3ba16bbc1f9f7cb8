//! Telemetry end to end: over a real socket to a real OTLP receiver, or to a collector that is not there.

#[path = "../../tests/support/otlp/mod.rs"]
mod otlp;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant, SystemTime};

use cells_guard::writer::{Ended, Ending, How, Watch};
use http::{HeaderMap, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};
use tonic::Code;
use tracing::{Instrument, info_span};

use super::*;
use otlp::{MetricValue, OtlpReceiver, Spans};

const SOON: Duration = Duration::from_secs(10);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn config(endpoint: &str, ratio: f64) -> TelemetryConfig {
    TelemetryConfig {
        otlp_endpoint: Some(endpoint.to_owned()),
        otlp_timeout: Duration::from_secs(1),
        trace_sample_ratio: ratio,
        metrics_interval: Duration::from_millis(100),
        log_filter: "off".to_owned(),
        ..TelemetryConfig::default()
    }
}

fn headers(flags: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let traceparent = format!("00-{TRACE}-{CALLER}-{flags}");
    headers.insert("traceparent", HeaderValue::from_str(&traceparent).unwrap());
    headers.insert("tracestate", HeaderValue::from_static("vendor=1"));
    headers
}

/// A request on the slow path, as a server would trace it: `rpc ─ route ─ dynamodb`, the last in a task of its own.
async fn slow_request(telemetry: &Telemetry, headers: &HeaderMap, source: &'static str) {
    let remote = propagation::extract(headers);
    let sampled = telemetry.head_sampler().decide(remote.as_ref());
    let rpc = info_span!(target: "cells::rpc", "rpc", otel.kind = "server");
    propagation::attach(&rpc, remote, sampled);
    async {
        let route =
            info_span!(target: "cells::route", "route", cell.route.source = tracing::field::Empty);
        TenantLabel::keyed(b"key").record(&route, "customer-1");
        async {
            // A library's span between ours must not break the chain.
            let library = tracing::info_span!(target: "h2::client", "library");
            let dynamodb = library.in_scope(|| info_span!(target: "cells::dynamodb", "dynamodb"));
            let read = tokio::task::yield_now().instrument(dynamodb);
            tokio::spawn(read.in_current_span()).await.unwrap();
            tracing::Span::current().record(names::ROUTE_SOURCE, source);
        }
        .instrument(route)
        .await;
    }
    .instrument(rpc)
    .await;
}

/// Runs `test` on this thread with telemetry that exports to `endpoint`, and shuts it down.
fn with_telemetry<T>(
    cfg: &TelemetryConfig,
    test: impl AsyncFnOnce(&Telemetry) -> T,
) -> (T, bool, Duration) {
    let (telemetry, dispatch) = build(cfg, "replica-1").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result =
        tracing::dispatcher::with_default(&dispatch, || runtime.block_on(test(&telemetry)));
    let begun = Instant::now();
    let flushed = telemetry.shutdown();
    (result, flushed, begun.elapsed())
}

/// A receiver on a runtime that outlives the telemetry.
fn receiver() -> (tokio::runtime::Runtime, String, OtlpReceiver) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (endpoint, receiver) = runtime.block_on(OtlpReceiver::start());
    (runtime, endpoint, receiver)
}

fn assert_local_trace(spans: &Spans, source: &str) {
    assert_eq!(spans.0.len(), 3, "{spans}");
    let (rpc, route, dynamodb) = (spans.one("rpc"), spans.one("route"), spans.one("dynamodb"));
    assert_eq!(rpc.parent_span_id.as_deref(), Some(CALLER));
    assert_eq!(spans.path(dynamodb), ["rpc", "route", "dynamodb"]);
    assert_eq!(spans.children(rpc), [route]);
    assert_eq!(route.str("cell.route.source"), Some(source));
    assert_eq!(route.str("cell.tenant.hash").map(str::len), Some(16));
    for span in &spans.0 {
        assert_eq!((span.trace_id.as_str(), span.flags & 1), (TRACE, 1), "{spans}");
        assert_eq!(span.trace_state, "vendor=1");
        assert_eq!(span.resource["service.name"], "celld".into());
        assert_eq!(span.resource["service.instance.id"], "replica-1".into());
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION").into());
        assert!(!format!("{span:?}").contains("customer-1"));
    }
    assert_eq!(rpc.flags & 0x300, 0x300, "the caller's span is remote");
    assert_eq!(route.flags & 0x300, 0x100, "ours is not");
}

#[test]
fn an_unsampled_fallback_arrives_whole_under_the_callers_trace() {
    let (_runtime, endpoint, receiver) = receiver();
    let (_, flushed, _) = with_telemetry(&config(&endpoint, 1.0), async |telemetry| {
        slow_request(telemetry, &headers("00"), "table").await;
        slow_request(telemetry, &headers("00"), "fallback").await;
        let counts = telemetry.tail_counts().unwrap();
        assert_eq!((counts.kept(), counts.uninteresting(), counts.over_limit()), (3, 3, 0));
    });
    assert!(flushed);
    assert_local_trace(&receiver.spans(), "fallback");
}

#[test]
fn a_sampled_request_arrives_whole_whatever_its_source() {
    let (_runtime, endpoint, receiver) = receiver();
    let (_, flushed, _) = with_telemetry(&config(&endpoint, 0.0), async |telemetry| {
        slow_request(telemetry, &headers("01"), "table").await;
    });
    assert!(flushed);
    assert_local_trace(&receiver.spans(), "table");
}

#[test]
fn without_a_remote_parent_the_ratio_decides() {
    let (_runtime, endpoint, receiver) = receiver();
    for (ratio, spans) in [(0.0, 0), (1.0, 3)] {
        with_telemetry(&config(&endpoint, ratio), async |telemetry| {
            slow_request(telemetry, &HeaderMap::new(), "table").await;
        });
        assert_eq!(receiver.spans().0.len(), spans);
    }
    assert_eq!(receiver.spans().one("rpc").parent_span_id, None);
}

#[test]
fn a_late_error_is_dated_back_and_kept() {
    let (_runtime, endpoint, receiver) = receiver();
    with_telemetry(&config(&endpoint, 0.0), async |telemetry| {
        let late = |status| LateSpan {
            name: "late".into(),
            kind: SpanKind::Server,
            started: SystemTime::now() - Duration::from_secs(1),
            attributes: vec![KeyValue::new("rpc.method", "x")],
            status,
        };
        let remote = propagation::extract(&headers("00"));
        telemetry.late_spans().record(remote.clone(), false, late(Status::Unset));
        telemetry.late_spans().record(remote, false, late(Status::error("internal")));
    });
    let spans = receiver.spans();
    let span = spans.one("late");
    assert!(span.is_error && span.duration() >= Duration::from_secs(1));
    assert_eq!((span.parent_span_id.as_deref(), span.str("rpc.method")), (Some(CALLER), Some("x")));
}

#[test]
fn metrics_arrive_with_their_attributes() {
    let (_runtime, endpoint, receiver) = receiver();
    with_telemetry(&config(&endpoint, 0.0), async |telemetry| {
        let rpc = telemetry.rpc_metrics(["cells.v1.CellDirectory/Resolve"]);
        let resolve = rpc.method("/cells.v1.CellDirectory/Resolve");
        rpc.record(resolve, Code::Ok, Duration::from_micros(15));
        rpc.record(resolve, Code::Ok, Duration::from_micros(15));
        rpc.record(resolve, Code::Unavailable, Duration::from_secs(3));
        rpc.record(rpc.method("/any/thing"), Code::Unimplemented, Duration::from_micros(15));
        let decisions = telemetry.decision_metrics();
        decisions.record_hits("cell-a", 256);
        decisions.record("memory", "cell-a", None, None);
        decisions.record("fallback", "cell-d", Some("TIMEOUT"), Some(Duration::from_millis(30)));
        let named = |name: &str, count| receiver.metric_points(name).len() == count;
        for _ in 0..100 {
            if named("rpc.server.calls", 3) && named("cell.route.decisions", 2) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not received, got {:?}", receiver.metric_names());
    });
    let point = |name: &str, attributes: &[(&str, &str)]| {
        let points = receiver.metric_points(name);
        let found: Vec<_> = points.iter().filter(|point| point.has(attributes)).collect();
        assert_eq!(found.len(), 1, "{attributes:?} of {points:#?}");
        found[0].clone()
    };
    let resolve = ("rpc.method", "cells.v1.CellDirectory/Resolve");
    let ok = point("rpc.server.call.duration", &[resolve, ("rpc.response.status_code", "OK")]);
    assert!(ok.has(&[("rpc.system.name", "grpc")]) && !ok.attributes.contains_key("error.type"));
    assert_eq!(ok.unit, "s");
    let MetricValue::Histogram { count, sum, bounds, bucket_counts } = &ok.value else {
        panic!("{ok:?}");
    };
    assert_eq!((*count, bounds.len(), bucket_counts[1]), (2, 19, 2));
    assert!((sum - 30e-6).abs() < 1e-9);
    point("rpc.server.call.duration", &[resolve, ("error.type", "UNAVAILABLE")]);
    let calls = point(
        "rpc.server.calls",
        &[("rpc.method", "_OTHER"), ("rpc.response.status_code", "UNIMPLEMENTED")],
    );
    assert_eq!(calls.value, MetricValue::Sum { value: 1.0, monotonic: true });
    let hits =
        point("cell.route.decisions", &[("cell.route.source", "memory"), ("cell.id", "cell-a")]);
    assert_eq!((hits.count(), hits.attributes.len()), (257.0, 2));
    let fallback = [("cell.route.source", "fallback"), ("cell.route.fallback_reason", "TIMEOUT")];
    assert_eq!(point("cell.route.decisions", &fallback).count(), 1.0);
    assert_eq!(point("cell.route.duration", &[("cell.route.source", "fallback")]).count(), 1.0);
    point("cells.telemetry.exports", &[("signal", "metrics"), ("outcome", "ok")]);
}

/// What a collector that does not work may cost: nothing to callers, and a bounded shutdown.
fn assert_harmless(endpoint: &str) {
    let spans = 4 * 8_192_u32;
    let (slowest, _, shutdown) = with_telemetry(&config(endpoint, 1.0), async |telemetry| {
        let (calls, decisions) = (telemetry.rpc_metrics(["a/B"]), telemetry.decision_metrics());
        let mut slowest = Duration::ZERO;
        for _ in 0..spans {
            let begun = Instant::now();
            let span = info_span!(target: "cells::rpc", "rpc");
            propagation::attach(&span, None, true);
            drop(span);
            calls.record(calls.method("/a/B"), Code::Ok, Duration::from_micros(10));
            decisions.record_hits("cell-a", 1);
            slowest = slowest.max(begun.elapsed());
        }
        // Long enough for exports to have begun, failed and been retried.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let (traces, metrics) = telemetry.export_health().unwrap();
        assert_eq!((traces.succeeded(), metrics.succeeded()), (0, 0));
        assert!(traces.failed() > 0 && metrics.failed() > 0);
        slowest
    });
    // Generous, for a busy machine; a caller that waited for an export would take the timeout of 1 s.
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert!(shutdown < FLUSH_TIMEOUT + Duration::from_millis(500), "{shutdown:?}");
}

#[test]
fn an_absent_collector_is_harmless() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_harmless(&format!("http://{free}"));
}

#[test]
fn a_collector_that_never_answers_is_harmless() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_harmless(&format!("http://{}", silent.local_addr().unwrap()));
}

#[test]
fn a_shutdown_while_an_export_hangs_is_bounded() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut cfg = config(&format!("http://{}", silent.local_addr().unwrap()), 1.0);
    cfg.otlp_timeout = Duration::from_secs(60);
    let (_, flushed, shutdown) = with_telemetry(&cfg, async |telemetry| {
        slow_request(telemetry, &HeaderMap::new(), "table").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    });
    assert!(!flushed);
    assert!(shutdown < FLUSH_TIMEOUT + Duration::from_millis(500), "{shutdown:?}");
}

#[test]
fn a_collector_that_comes_late_gets_what_is_new() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_, flushed, _) =
        with_telemetry(&config(&format!("http://{address}"), 1.0), async |telemetry| {
            slow_request(telemetry, &headers("01"), "table").await;
            let (traces, _) = telemetry.export_health().unwrap();
            let deadline = Instant::now() + SOON;
            while traces.failed() == 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let receiver = OtlpReceiver::start_at(address).await;
            slow_request(telemetry, &headers("01"), "table").await;
            receiver.wait_for_spans(|spans| spans.0.len() == 3, SOON).await;
        });
    // The receiver is gone again by now, so the last metrics are lost.
    let _ = flushed;
}

#[test]
fn it_can_be_dropped_inside_a_runtime() {
    let (_runtime, endpoint, receiver) = receiver();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (telemetry, dispatch) = build(&config(&endpoint, 1.0), "x").unwrap();
        let _default = tracing::dispatcher::set_default(&dispatch);
        slow_request(&telemetry, &headers("01"), "table").await;
    });
    assert_eq!(receiver.spans().0.len(), 3);
}

#[test]
fn without_an_endpoint_everything_is_a_noop() {
    let cfg = TelemetryConfig { log_filter: "off".to_owned(), ..TelemetryConfig::default() };
    with_telemetry(&cfg, async |telemetry| {
        assert!(!telemetry.is_exporting() && !telemetry.late_spans().is_enabled());
        assert!(!telemetry.head_sampler().decide(propagation::extract(&headers("01")).as_ref()));
        telemetry.decision_metrics().record_hits("cell-a", 1);
        slow_request(telemetry, &headers("01"), "fallback").await;
    });
}

/// Each way to write and to end has a label of its own, and all of them stand in the document.
#[test]
fn writes_are_counted_by_mode_and_outcome() {
    let (_runtime, endpoint, receiver) = receiver();
    let all = || [How::Direct, How::Guarded, How::Logged].map(|how| Ending::ALL.map(|e| (how, e)));
    with_telemetry(&config(&endpoint, 0.0), async |telemetry| {
        let metrics = telemetry.write_metrics();
        for (how, ending) in all().into_iter().flatten() {
            metrics.ended(Ended { how, ending, took: Duration::from_millis(30) });
        }
        metrics.ended(Ended { how: How::Logged, ending: Ending::Done, took: Duration::ZERO });
        for _ in 0..100 {
            if sums(&receiver, "cell.write.calls").values().sum::<f64>() == 28.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not received, got {:?}", receiver.metric_points("cell.write.calls"));
    });
    let points = receiver.metric_points("cell.write.calls");
    assert!(points.iter().all(|point| point.attributes.len() == 2), "{points:#?}");
    let counts = sums(&receiver, "cell.write.calls");
    assert_eq!(counts.len(), 27, "{counts:?}");
    let more: Vec<_> = counts.iter().filter(|(_, count)| **count != 1.0).collect();
    assert_eq!(more, [(&"logged/ok".to_owned(), &2.0)]);
    let page = include_str!("../../docs/metrics.md");
    for point in &points {
        for name in ["cell.write.mode", "cell.write.outcome"] {
            let value = point.attributes[name].to_string();
            assert!(page.contains(&format!("`{value}`")), "{value} is not in docs/metrics.md");
        }
    }
    let took = sums(&receiver, "cell.write.duration");
    assert_eq!(took.values().copied().collect::<Vec<_>>(), [9.0, 9.0, 10.0], "{took:?}");
}

/// Counts of all exports, by mode and outcome.
fn sums(receiver: &OtlpReceiver, metric: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for point in receiver.metric_points(metric) {
        let labels = point.attributes.values().map(ToString::to_string).collect::<Vec<_>>();
        *sums.entry(labels.join("/")).or_default() += point.count();
    }
    sums
}

/// A metric that is documented nowhere is one that nobody looks at.
#[test]
fn every_metric_is_documented() {
    let page = include_str!("../../docs/metrics.md");
    let sources = [
        include_str!("cells.rs"),
        include_str!("decisions.rs"),
        include_str!("metrics.rs"),
        include_str!("overload.rs"),
        include_str!("pipeline.rs"),
        include_str!("writes.rs"),
    ];
    let mut found = 0;
    for source in sources {
        let names = source.split('"').skip(1).step_by(2).filter(|text| {
            let named = |prefix| text.starts_with(prefix) && !text.contains([' ', '{', '*']);
            named("cell.") || named("cells.telemetry.") || named("rpc.server.")
        });
        for name in names {
            assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/metrics.md");
            found += 1;
        }
    }
    assert!(found >= 20, "{found}");
}

#[test]
fn bad_settings_are_named() {
    let refused = |change: fn(&mut TelemetryConfig)| {
        let mut cfg = config("http://127.0.0.1:1", 0.5);
        change(&mut cfg);
        build(&cfg, "x").err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(
        refused(|cfg| cfg.log_filter = "info,cells=loud".to_owned())
            .starts_with("log_filter \"info,cells=loud\"")
    );
    assert!(refused(|cfg| cfg.trace_sample_ratio = 1.5).starts_with("trace_sample_ratio 1.5"));
    assert!(refused(|cfg| cfg.otlp_timeout = Duration::ZERO).starts_with("otlp_timeout"));
    assert!(refused(|cfg| cfg.metrics_interval = Duration::ZERO).starts_with("metrics_interval"));
    for endpoint in ["", "localhost:4317", "ftp://x:1", "http://", "http://a b"] {
        let mut cfg = config(endpoint, 0.5);
        cfg.otlp_endpoint = Some(endpoint.to_owned());
        let error = build(&cfg, "x").err().map(|error| error.to_string());
        assert!(
            error.as_ref().is_some_and(|error| error.starts_with("otlp_endpoint")),
            "{endpoint}: {error:?}"
        );
    }
}
