//! The server span of a call, made when it is needed.
//!
//! A call that is answered from memory and was not chosen by the head sampler never gets a span. Everything else does: a sampled
//! call at its start, a slow one when the first thing under it wants a parent, a failed one after the fact.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind, Status};
use opentelemetry_semantic_conventions::attribute::{
    ERROR_TYPE, RPC_METHOD, RPC_RESPONSE_STATUS_CODE, RPC_SYSTEM_NAME,
};
use tonic::Code;
use tracing::Span;
use tracing::field::Empty;

use super::metrics::{RPC_SYSTEM_GRPC, RpcMethod, RpcMetrics, code_name, is_server_error};
use super::propagation;
use super::{HeadSampler, LateSpan, LateSpans, TenantLabel};

/// What the spans of all calls share.
#[derive(Debug, Clone)]
pub struct RpcTracer {
    pub head: HeadSampler,
    pub late: LateSpans,
    pub metrics: RpcMetrics,
    pub tenants: TenantLabel,
}

/// One call's span. Clones share it.
#[derive(Debug, Clone)]
pub struct RpcTrace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tracer: RpcTracer,
    method: RpcMethod,
    remote: Option<SpanContext>,
    sampled: bool,
    span: OnceLock<Span>,
}

impl RpcTrace {
    /// Begins a call. `eager`: it is known to be slow, so that it gets its span at once.
    pub fn begin(
        tracer: &RpcTracer,
        method: RpcMethod,
        headers: &http::HeaderMap,
        eager: bool,
    ) -> Self {
        let remote = propagation::extract(headers);
        let sampled = tracer.head.decide(remote.as_ref());
        let trace = Self(Arc::new(Inner {
            tracer: tracer.clone(),
            method,
            remote,
            sampled,
            span: OnceLock::new(),
        }));
        if sampled || eager {
            trace.span();
        }
        trace
    }

    pub fn sampled(&self) -> bool {
        self.0.sampled
    }

    pub fn tenants(&self) -> &TenantLabel {
        &self.0.tracer.tenants
    }

    /// The span; makes it if there is none yet.
    pub fn span(&self) -> &Span {
        let inner = &*self.0;
        inner.span.get_or_init(|| {
            let method = inner.tracer.metrics.name(inner.method);
            let span = tracing::info_span!(
                target: "cells::rpc",
                parent: None,
                "rpc",
                otel.name = method,
                otel.kind = "server",
                otel.status_code = Empty,
                { RPC_SYSTEM_NAME } = RPC_SYSTEM_GRPC,
                { RPC_METHOD } = method,
                { RPC_RESPONSE_STATUS_CODE } = Empty,
                { ERROR_TYPE } = Empty,
            );
            propagation::attach(&span, inner.remote.clone(), inner.sampled);
            span
        })
    }

    /// The span, where there is one already.
    pub fn made(&self) -> Option<&Span> {
        self.0.span.get()
    }

    /// Ends the call, which took `elapsed`.
    pub fn end(&self, code: Code, elapsed: Duration) {
        let inner = &*self.0;
        if let Some(span) = inner.span.get() {
            span.record(RPC_RESPONSE_STATUS_CODE, code_name(code));
            if is_server_error(code) {
                span.record("otel.status_code", "ERROR");
                span.record(ERROR_TYPE, code_name(code));
            }
        } else if is_server_error(code) && inner.tracer.late.is_enabled() {
            let now = SystemTime::now();
            let method = inner.tracer.metrics.name(inner.method).to_owned();
            let late = LateSpan {
                name: method.clone().into(),
                kind: SpanKind::Server,
                started: now.checked_sub(elapsed).unwrap_or(now),
                attributes: vec![
                    KeyValue::new(RPC_SYSTEM_NAME, RPC_SYSTEM_GRPC),
                    KeyValue::new(RPC_METHOD, method),
                    KeyValue::new(RPC_RESPONSE_STATUS_CODE, code_name(code)),
                    KeyValue::new(ERROR_TYPE, code_name(code)),
                ],
                status: Status::error(""),
            };
            inner.tracer.late.record(inner.remote.clone(), inner.sampled, late);
        }
    }
}
