//! The span of a commit, which one task makes for many callers.
//!
//! It stands under one of the callers that it serves, so that an assignment's trace reaches down to the transaction, and is linked to
//! all others. A sampled caller comes first: its trace is the one that is looked at. Callers are known by their span's ids and not by
//! their span, which a commit that outlives them must not hold open.

use opentelemetry::trace::{SpanContext, Status};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::domain::Sequence;
use crate::telemetry::{names, propagation};

/// Makes the span of a commit that serves `callers`, those that are not traced left out.
pub fn begin<'a>(
    sequence: Sequence,
    commands: usize,
    callers: impl Iterator<Item = &'a SpanContext>,
) -> Span {
    let span = tracing::info_span!(
        target: "cells::commit",
        parent: None,
        "cell.commit",
        otel.kind = "internal",
        { names::COMMIT_SEQUENCE } = names::number(sequence.get()),
        { names::COMMIT_COMMANDS } = names::number(commands as u64),
        { names::COMMIT_OUTCOME } = Empty,
    );
    propagation::serve(&span, callers.cloned());
    span
}

/// Notes what came of the commit, and ends the span.
pub fn end(span: Span, outcome: &'static str, failed: bool) {
    span.record(names::COMMIT_OUTCOME, outcome);
    if failed && !span.is_disabled() {
        span.set_status(Status::error(""));
    }
}
