//! Tests of the tail processor, on hand-made spans and a processor that only collects.

use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{SpanKind, TraceFlags, TraceState};

use super::*;

const SMALL: Limits =
    Limits { traces: 3, spans_per_trace: 4, spans: 8, age: Duration::from_secs(10) };

#[derive(Clone, Debug, Default)]
struct Collected(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Collected {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}
    fn on_end(&self, span: SpanData) {
        self.0.lock().push(span);
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Collected {
    fn ids(&self) -> Vec<u64> {
        ids(&self.0.lock())
    }
}

fn ids(spans: &[SpanData]) -> Vec<u64> {
    let mut ids: Vec<_> = spans
        .iter()
        .map(|span| u64::from_be_bytes(span.span_context.span_id().to_bytes()))
        .collect();
    ids.sort_unstable();
    ids
}

/// Span `id` of `trace` under `parent`; 0 is no parent.
fn span(trace: u128, id: u64, parent: u64) -> SpanData {
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(trace),
            SpanId::from(id),
            TraceFlags::NOT_SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: "test".into(),
        start_time: std::time::UNIX_EPOCH,
        end_time: std::time::UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

fn under_remote(mut span: SpanData) -> SpanData {
    span.parent_span_is_remote = true;
    span
}

fn with(mut span: SpanData, attribute: KeyValue) -> SpanData {
    span.attributes.push(attribute);
    span
}

fn fallback(span: SpanData) -> SpanData {
    with(span, KeyValue::new(names::ROUTE_SOURCE, names::SOURCE_FALLBACK))
}

fn failed(mut span: SpanData) -> SpanData {
    span.status = Status::error("no");
    span
}

fn tail() -> (TailProcessor<Collected>, Collected) {
    let collected = Collected::default();
    (TailProcessor::with_limits(collected.clone(), SMALL), collected)
}

fn waiting() -> (Waiting, Instant, Vec<SpanData>) {
    let waiting = Waiting::new(SMALL, Arc::new(TailCounts::default()));
    (waiting, Instant::now(), Vec::new())
}

#[test]
fn a_sampled_span_goes_straight_through() {
    let (tail, collected) = tail();
    let mut sampled = with(span(1, 2, 1), KeyValue::new(names::KEEP, true));
    sampled.span_context = SpanContext::new(
        TraceId::from(1),
        SpanId::from(2),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    tail.on_end(sampled);
    assert_eq!(collected.ids(), [2]);
    assert!(collected.0.lock()[0].attributes.is_empty());
}

#[test]
fn one_remarkable_span_keeps_its_whole_local_trace() {
    let marks: [fn(SpanData) -> SpanData; 3] =
        [fallback, failed, |span| with(span, KeyValue::new(names::KEEP, true))];
    for mark in marks {
        // 1 ─┬─ 2 ─── 4        any one of them, root included, decides for all
        //    └─ 3
        for marked in 1..=4 {
            let (tail, collected) = tail();
            for (id, parent) in [(4, 2), (2, 1), (3, 1), (1, 0)] {
                let plain = span(9, id, parent);
                tail.on_end(if id == marked { mark(plain) } else { plain });
                assert_eq!(
                    collected.ids().is_empty(),
                    id != 1,
                    "nothing before the root has ended"
                );
            }
            assert_eq!(collected.ids(), [1, 2, 3, 4]);
            let spans = collected.0.lock();
            assert!(spans.iter().all(|span| span.span_context.is_sampled()));
            assert!(
                spans.iter().all(|span| {
                    span.attributes.iter().all(|kv| kv.key.as_str() != names::KEEP)
                })
            );
            assert_eq!((tail.counts.kept(), tail.counts.uninteresting()), (4, 0));
        }
    }
}

#[test]
fn an_unremarkable_local_trace_is_dropped() {
    let (tail, collected) = tail();
    tail.on_end(with(span(1, 2, 1), KeyValue::new(names::ROUTE_SOURCE, "table")));
    tail.on_end(with(span(1, 3, 1), KeyValue::new(names::KEEP, false)));
    tail.on_end(span(1, 1, 0));
    assert!(collected.ids().is_empty());
    assert_eq!(tail.counts.uninteresting(), 3);
    assert_eq!(tail.waiting.lock().spans, 0);
    assert!(tail.waiting.lock().traces.is_empty());
}

#[test]
fn local_roots_of_one_trace_are_decided_apart() {
    let (tail, collected) = tail();
    // Two requests of one caller, in flight together: 10 ─ 11 fails, 20 ─ 21 does not.
    tail.on_end(failed(span(1, 11, 10)));
    tail.on_end(span(1, 21, 20));
    tail.on_end(under_remote(span(1, 20, 5)));
    assert!(collected.ids().is_empty());
    tail.on_end(under_remote(span(1, 10, 5)));
    assert_eq!(collected.ids(), [10, 11]);
    assert_eq!(tail.counts.uninteresting(), 2);
    assert!(tail.waiting.lock().traces.is_empty());
}

#[test]
fn too_many_traces_drop_the_oldest_and_count_it() {
    let (mut waiting, now, mut ready) = waiting();
    for trace in 1..=4 {
        waiting.ended(span(trace, 2, 1), now, &mut ready);
    }
    assert_eq!(waiting.traces.len(), SMALL.traces);
    assert!(!waiting.traces.contains_key(&TraceId::from(1)));
    assert_eq!((waiting.counts.over_limit(), ready.len()), (1, 0));
}

#[test]
fn too_many_spans_of_a_trace_drop_the_oldest_that_decides_nothing() {
    let (mut waiting, now, mut ready) = waiting();
    waiting.ended(failed(span(1, 2, 1)), now, &mut ready);
    for id in 3..=7 {
        waiting.ended(span(1, id, 1), now, &mut ready);
    }
    assert_eq!(waiting.spans, SMALL.spans_per_trace);
    waiting.ended(span(1, 1, 0), now, &mut ready);
    assert_eq!(ids(&ready), [1, 2, 5, 6, 7]);
    assert_eq!((waiting.counts.over_limit(), waiting.spans), (2, 0));
}

#[test]
fn too_many_fallbacks_in_one_trace_stay_bounded_too() {
    let (mut waiting, now, mut ready) = waiting();
    for id in 2..=9 {
        waiting.ended(fallback(span(1, id, 1)), now, &mut ready);
    }
    assert_eq!((waiting.spans, waiting.counts.over_limit()), (4, 4));
    waiting.ended(span(1, 1, 0), now, &mut ready);
    assert_eq!(ids(&ready), [1, 6, 7, 8, 9]);
}

#[test]
fn a_batch_of_a_thousand_fallbacks_is_kept_whole() {
    let mut waiting = Waiting::new(LIMITS, Arc::new(TailCounts::default()));
    let (now, mut ready) = (Instant::now(), Vec::new());
    for key in 1..=1_000 {
        for child in 1..=3 {
            waiting.ended(span(1, 10 * key + child, 10 * key), now, &mut ready);
        }
        waiting.ended(fallback(span(1, 10 * key, 1)), now, &mut ready);
    }
    waiting.ended(span(1, 1, 0), now, &mut ready);
    assert_eq!((ready.len(), waiting.counts.over_limit(), waiting.spans), (4_001, 0, 0));
}

#[test]
fn too_many_spans_over_all_drop_the_oldest_trace() {
    let (mut waiting, now, mut ready) = waiting();
    for (trace, id) in (1..=3).flat_map(|trace| (2..=4).map(move |id| (trace, id))) {
        waiting.ended(span(trace, id, 1), now, &mut ready);
        assert!(waiting.spans <= SMALL.spans);
    }
    assert!(!waiting.traces.contains_key(&TraceId::from(1)));
    assert_eq!((waiting.counts.over_limit(), waiting.spans), (3, 6));
}

#[test]
fn a_trace_without_end_is_given_up_by_age_but_its_error_is_not_lost() {
    let (mut waiting, start, mut ready) = waiting();
    waiting.ended(failed(span(1, 3, 2)), start, &mut ready);
    waiting.ended(span(2, 3, 2), start, &mut ready);
    waiting.ended(span(3, 3, 2), start + SMALL.age / 2, &mut ready);
    assert!(ready.is_empty());
    waiting.ended(span(3, 4, 2), start + SMALL.age, &mut ready);
    assert_eq!(ids(&ready), [3]);
    assert_eq!((waiting.counts.over_limit(), waiting.traces.len(), waiting.spans), (1, 1, 2));
}

#[test]
fn shutdown_exports_the_errors_that_still_wait() {
    let (tail, collected) = tail();
    tail.on_end(failed(span(1, 3, 2)));
    tail.on_end(span(2, 4, 2));
    tail.shutdown_with_timeout(Duration::from_secs(1)).unwrap();
    assert_eq!(collected.ids(), [3]);
    assert_eq!(tail.counts.over_limit(), 1);
}
