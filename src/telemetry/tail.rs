//! Keeps what head sampling left out but must not be lost: fallbacks, errors, and what is marked to be kept.
//!
//! Whether a span matters is known at its end, when its children have gone. So a span that is recorded but not sampled
//! waits here until its *local root* ends: the span of its trace that has no parent in this process. Then the local trace
//! (that root and all under it) is exported as a whole if any span in it
//! - has the status error, or
//! - has `cell.route.source` = `fallback`, or
//! - has `cells.keep` = true,
//!
//! and is forgotten otherwise. `tracing` closes a span after its children, so at that moment the local trace is complete.
//! One trace may have several local roots (a caller that sends several requests): each is decided alone.
//!
//! ```text
//! on_end ─ sampled ───────────────────────────────────────────▶ batch processor
//!        └ recorded ─ not a root ─▶ buffer ─ root ends ─ keep ─▶ batch processor, with the sampled flag
//!                                          │            └ else ▶ dropped
//!                                          └ over a limit ─▶ oldest: its kept kinds exported, the rest counted
//! ```
//!
//! Work that outlives [`MAX_AGE`] (a migration) belongs under a sampled root, which passes straight through.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::{SpanContext, SpanId, Status, TraceId};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use parking_lot::Mutex;

use super::names;

/// Traces that may wait at once. A trace waits as long as its slow request runs.
pub const MAX_TRACES: usize = 4_096;
/// Spans of one trace that may wait at once. Fits a batch of 1,000 keys that all leave memory, at four spans a key.
pub const MAX_SPANS_PER_TRACE: usize = 4_096;
/// Spans that may wait at once over all traces: bounds memory, at about 1 KiB a span.
pub const MAX_SPANS: usize = 16_384;
/// How long a trace may wait for its root.
pub const MAX_AGE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Limits {
    traces: usize,
    spans_per_trace: usize,
    spans: usize,
    age: Duration,
}

const LIMITS: Limits = Limits {
    traces: MAX_TRACES,
    spans_per_trace: MAX_SPANS_PER_TRACE,
    spans: MAX_SPANS,
    age: MAX_AGE,
};

/// What the tail processor did with recorded spans since the start, in spans.
#[derive(Debug, Default)]
pub struct TailCounts {
    kept: AtomicU64,
    uninteresting: AtomicU64,
    over_limit: AtomicU64,
}

impl TailCounts {
    /// Spans exported although they were not sampled.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Spans dropped because nothing in their local trace was worth keeping. The normal case.
    pub fn uninteresting(&self) -> u64 {
        self.uninteresting.load(Ordering::Relaxed)
    }

    /// Spans dropped before their local trace was decided, because a limit was reached.
    pub fn over_limit(&self) -> u64 {
        self.over_limit.load(Ordering::Relaxed)
    }
}

/// A [`SpanProcessor`] in front of the batch processor.
#[derive(Debug)]
pub(super) struct TailProcessor<P> {
    next: P,
    waiting: Mutex<Waiting>,
    counts: Arc<TailCounts>,
}

impl<P: SpanProcessor> TailProcessor<P> {
    pub(super) fn new(next: P) -> Self {
        Self::with_limits(next, LIMITS)
    }

    fn with_limits(next: P, limits: Limits) -> Self {
        let counts = Arc::new(TailCounts::default());
        Self { next, waiting: Mutex::new(Waiting::new(limits, counts.clone())), counts }
    }

    pub(super) fn counts(&self) -> Arc<TailCounts> {
        self.counts.clone()
    }

    /// Hands spans on, marked as sampled: the batch processor takes no others.
    fn export(&self, spans: Vec<SpanData>) {
        self.counts.kept.fetch_add(spans.len() as u64, Ordering::Relaxed);
        for mut span in spans {
            let cx = &span.span_context;
            span.span_context = SpanContext::new(
                cx.trace_id(),
                cx.span_id(),
                cx.trace_flags().with_sampled(true),
                cx.is_remote(),
                cx.trace_state().clone(),
            );
            self.next.on_end(without_marks(span));
        }
    }
}

impl<P: SpanProcessor> SpanProcessor for TailProcessor<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.next.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() {
            self.next.on_end(without_marks(span));
            return;
        }
        let mut ready = Vec::new();
        self.waiting.lock().ended(span, Instant::now(), &mut ready);
        self.export(ready);
    }

    /// Flushes what is decided; traces that are still running go on waiting.
    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let mut ready = Vec::new();
        self.waiting.lock().evict_all(&mut ready);
        self.export(ready);
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// The undecided spans. Reads no clock and exports nothing itself: what is to be exported is pushed to `ready`.
///
/// Invariants: `arrival` holds exactly the traces of `traces`, oldest first; no trace is empty; `spans` is their total.
#[derive(Debug)]
struct Waiting {
    limits: Limits,
    counts: Arc<TailCounts>,
    traces: HashMap<TraceId, Trace>,
    arrival: BTreeMap<u64, TraceId>,
    next_arrival: u64,
    spans: usize,
}

#[derive(Debug)]
struct Trace {
    arrival: u64,
    since: Instant,
    /// In the order in which they ended.
    spans: Vec<SpanData>,
}

impl Trace {
    /// Drops the oldest quarter and says how many spans that was: a quarter, so that a trace at its limit does not move
    /// all its spans for each new one. Spans that decide nothing go first. The oldest are leaves, or all under them is
    /// gone, so the rest stays connected.
    fn make_room(&mut self) -> usize {
        let quota = (self.spans.len() / 4).max(1);
        let mut dropped = 0;
        self.spans.retain(|span| {
            let drop = dropped < quota && !is_worth_keeping(span);
            dropped += usize::from(drop);
            !drop
        });
        if dropped == 0 {
            dropped = self.spans.drain(..quota).len();
        }
        dropped
    }
}

impl Waiting {
    fn new(limits: Limits, counts: Arc<TailCounts>) -> Self {
        Self {
            limits,
            counts,
            traces: HashMap::new(),
            arrival: BTreeMap::new(),
            next_arrival: 0,
            spans: 0,
        }
    }

    fn ended(&mut self, span: SpanData, now: Instant, ready: &mut Vec<SpanData>) {
        self.evict_aged(now, ready);
        if is_local_root(&span) {
            self.decide(span, ready);
        } else {
            self.buffer(span, now, ready);
        }
    }

    fn decide(&mut self, root: SpanData, ready: &mut Vec<SpanData>) {
        let mut local = self.take_descendants(&root);
        local.push(root);
        if local.iter().any(is_worth_keeping) {
            ready.append(&mut local);
        } else {
            self.counts.uninteresting.fetch_add(local.len() as u64, Ordering::Relaxed);
        }
    }

    /// Removes what is under `root`, leaving spans of other local roots of the trace.
    fn take_descendants(&mut self, root: &SpanData) -> Vec<SpanData> {
        let id = root.span_context.trace_id();
        let Some(trace) = self.traces.get_mut(&id) else {
            return Vec::new();
        };
        let mut family = HashSet::from([root.span_context.span_id()]);
        // Parents end after their children, so one pass from the end finds all; a second pass would find nothing new.
        let mut members: Vec<bool> = trace
            .spans
            .iter()
            .rev()
            .map(|span| {
                let member = family.contains(&span.parent_span_id);
                if member {
                    family.insert(span.span_context.span_id());
                }
                member
            })
            .collect();
        let taken: Vec<_> =
            trace.spans.extract_if(.., |_| members.pop().unwrap_or(false)).collect();
        self.spans -= taken.len();
        if trace.spans.is_empty() {
            self.remove(id);
        }
        taken
    }

    fn buffer(&mut self, span: SpanData, now: Instant, ready: &mut Vec<SpanData>) {
        let id = span.span_context.trace_id();
        if !self.traces.contains_key(&id) {
            if self.traces.len() >= self.limits.traces {
                self.evict_oldest(ready);
            }
            let arrival = self.next_arrival;
            self.next_arrival += 1;
            self.arrival.insert(arrival, id);
            self.traces.insert(id, Trace { arrival, since: now, spans: Vec::new() });
        }
        if let Some(trace) = self.traces.get_mut(&id) {
            if trace.spans.len() >= self.limits.spans_per_trace {
                let dropped = trace.make_room();
                self.spans -= dropped;
                self.counts.over_limit.fetch_add(dropped as u64, Ordering::Relaxed);
            }
            trace.spans.push(span);
            self.spans += 1;
        }
        while self.spans > self.limits.spans {
            self.evict_oldest(ready);
        }
    }

    fn evict_aged(&mut self, now: Instant, ready: &mut Vec<SpanData>) {
        while let Some(oldest) = self.oldest()
            && self
                .traces
                .get(&oldest)
                .is_none_or(|trace| now.saturating_duration_since(trace.since) >= self.limits.age)
        {
            self.evict(oldest, ready);
        }
    }

    fn evict_oldest(&mut self, ready: &mut Vec<SpanData>) {
        if let Some(oldest) = self.oldest() {
            self.evict(oldest, ready);
        }
    }

    fn evict_all(&mut self, ready: &mut Vec<SpanData>) {
        while let Some(oldest) = self.oldest() {
            self.evict(oldest, ready);
        }
    }

    fn oldest(&self) -> Option<TraceId> {
        self.arrival.first_key_value().map(|(_, id)| *id)
    }

    /// Gives a trace up before its root has ended. Fallbacks and errors are recorded whatever happens, if need be
    /// without the rest of their tree.
    fn evict(&mut self, id: TraceId, ready: &mut Vec<SpanData>) {
        let Some(trace) = self.remove(id) else {
            return;
        };
        self.spans -= trace.spans.len();
        if trace.spans.iter().any(is_worth_keeping) {
            ready.extend(trace.spans);
        } else {
            self.counts.over_limit.fetch_add(trace.spans.len() as u64, Ordering::Relaxed);
        }
    }

    fn remove(&mut self, id: TraceId) -> Option<Trace> {
        let trace = self.traces.remove(&id)?;
        self.arrival.remove(&trace.arrival);
        Some(trace)
    }
}

/// Whether the span has no parent in this process.
fn is_local_root(span: &SpanData) -> bool {
    span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote
}

fn is_worth_keeping(span: &SpanData) -> bool {
    matches!(span.status, Status::Error { .. }) || span.attributes.iter().any(is_keeping_mark)
}

fn is_keeping_mark(attribute: &KeyValue) -> bool {
    match attribute.key.as_str() {
        names::ROUTE_SOURCE => attribute.value.as_str() == names::SOURCE_FALLBACK,
        names::KEEP => attribute.value == Value::Bool(true),
        _ => false,
    }
}

/// Our internal mark is nobody else's business.
fn without_marks(mut span: SpanData) -> SpanData {
    span.attributes.retain(|attribute| attribute.key.as_str() != names::KEEP);
    span
}

#[cfg(test)]
#[path = "tail_tests.rs"]
mod tests;
