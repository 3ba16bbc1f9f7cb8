//! Spans that are made after the fact.
//!
//! On the fast path nobody makes a span in advance; only at the end may it turn out that one was worth recording (an
//! error). `tracing` cannot date a span back, the OpenTelemetry API can.

use std::borrow::Cow;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, SpanContext, SpanKind, Status, Tracer};
use opentelemetry_sdk::trace::SdkTracer;

use super::propagation::parent_context;

/// Makes spans that are over already. Clones are cheap; without an exporter it does nothing.
#[derive(Clone, Debug)]
pub struct LateSpans(pub(super) Option<SdkTracer>);

/// A span that began at `started` and ends when it is recorded.
#[derive(Clone, Debug)]
pub struct LateSpan {
    /// The span's name, of low cardinality.
    pub name: Cow<'static, str>,
    /// The span's kind.
    pub kind: SpanKind,
    /// When it began.
    pub started: SystemTime,
    /// Its attributes.
    pub attributes: Vec<KeyValue>,
    /// Its status; with [`Status::Error`] it is exported whatever the head decision was.
    pub status: Status,
}

impl LateSpans {
    /// Whether [`LateSpans::record`] does anything: lets a caller skip collecting attributes.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Records a local root under the caller's span `remote`.
    pub fn record(&self, remote: Option<SpanContext>, head_sampled: bool, late: LateSpan) {
        let Some(tracer) = &self.0 else {
            return;
        };
        let mut span = tracer
            .span_builder(late.name)
            .with_kind(late.kind)
            .with_start_time(late.started)
            .with_attributes(late.attributes)
            .start_with_context(tracer, &parent_context(remote, head_sampled));
        span.set_status(late.status);
        span.end();
    }
}
