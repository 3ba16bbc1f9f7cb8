//! One trace a migration: a span for each phase that a worker sees, whoever the worker is, and linked to the call that began it.
//!
//! The trace's id is the migration's own, so that workers in other processes go on with it and whoever has the one id has the other.
//! Counts alone are told, never a key or an item.

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::model::{Progress, Spec};
use crate::domain::MigrationId;
use crate::telemetry::{names, propagation};

/// Begins the span of a phase.
pub fn begin(
    id: MigrationId,
    spec: &Spec,
    record: &cells_migration::Record,
    caller: Option<&str>,
) -> Span {
    let span = tracing::info_span!(
        target: "cells::migration",
        parent: None,
        "cell.migration.step",
        otel.name = format!("migration {}", record.phase.name()),
        otel.kind = "internal",
        { names::MIGRATION_ID } = %id,
        { names::MIGRATION_PHASE } = record.phase.name(),
        { names::MIGRATION_SOURCE } = spec.source.as_str(),
        { names::MIGRATION_TARGET } = spec.target.as_str(),
        { names::MIGRATION_WORKER } = names::number(record.worker),
        { names::MIGRATION_EPOCH } = names::number(record.epoch),
        { names::MIGRATION_ITEMS_COPIED } = Empty,
        { names::MIGRATION_LOG_APPLIED } = Empty,
        { names::MIGRATION_ITEMS_COMPARED } = Empty,
        { names::MIGRATION_ITEMS_PURGED } = Empty,
    );
    let root = SpanContext::new(
        TraceId::from(id.get()),
        // No id is zero, and the low half of a random number is as good as any.
        SpanId::from((id.get() as u64).max(1)),
        TraceFlags::SAMPLED,
        true,
        TraceState::default(),
    );
    propagation::attach(&span, Some(root), true);
    if let Some(caller) = caller.and_then(propagation::read_traceparent) {
        span.add_link(caller);
    }
    span
}

/// Notes something that was done, with its count.
pub fn event(span: &Span, name: &'static str, items: u64) {
    if !span.is_disabled() {
        span.add_event(name, vec![KeyValue::new("items", names::number(items))]);
    }
}

/// Notes how far the migration is, and ends the span.
pub fn end(span: Span, progress: &Progress) {
    span.record(names::MIGRATION_ITEMS_COPIED, names::number(progress.items_copied));
    span.record(names::MIGRATION_LOG_APPLIED, names::number(progress.log_applied));
    span.record(names::MIGRATION_ITEMS_COMPARED, names::number(progress.items_compared));
    span.record(names::MIGRATION_ITEMS_PURGED, names::number(progress.items_purged));
}
