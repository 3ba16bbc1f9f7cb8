//! Attaches a span to routing decisions (DESIGN §7), under the caller's trace.
//!
//! A decision from memory that the head sampler did not choose gets no span at all: making one costs more than the decision. Every
//! other decision has one: sampled ones from the start, slow ones from the moment the cache layer misses
//! ([`DecisionTrace::begin`]), so that the calls to the table are its children.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tower::{Layer, Service};
use tracing::Span;
use tracing::field::Empty;

use super::{Answer, Home, RouteRequest, Routed};
use crate::directory::error::Error;
use crate::domain::PartitionKey;
use crate::telemetry::names;
use crate::telemetry::rpc::RpcTrace;

/// The span of one decision, made when it is needed.
#[derive(Debug, Clone, Default)]
pub struct DecisionTrace {
    /// The RPC that asks. `None`: nothing is traced.
    rpc: Option<RpcTrace>,
    span: Arc<OnceLock<Span>>,
}

impl DecisionTrace {
    pub fn under(rpc: Option<RpcTrace>) -> Self {
        Self { rpc, span: Arc::default() }
    }

    /// The decision's span; makes it if there is none yet.
    pub fn begin(&self, key: &PartitionKey) -> Span {
        let Some(rpc) = &self.rpc else {
            return Span::none();
        };
        let make = || {
            let span = tracing::info_span!(
                target: "cells::route",
                parent: rpc.span(),
                "cell.route",
                otel.kind = "internal",
                otel.status_code = Empty,
                cell.id = Empty,
                cell.route.source = Empty,
                cell.route.epoch = Empty,
                cell.route.age_ms = Empty,
                cell.route.authoritative = Empty,
                cell.route.fallback_reason = Empty,
                error.type = Empty,
            );
            rpc.tenants().record(&span, key.as_str());
            span
        };
        self.span.get_or_init(make).clone()
    }

    fn sampled(&self) -> bool {
        self.rpc.as_ref().is_some_and(RpcTrace::sampled)
    }

    /// Notes the decision on the span, where there is one.
    fn conclude(&self, answer: &Answer) {
        let Some(span) = self.span.get() else { return };
        match answer {
            Ok(routed) => note(span, routed),
            Err(error) => {
                span.record("error.type", error_type(error));
                if !matches!(error, Error::Refused(_)) {
                    span.record("otel.status_code", "ERROR");
                }
            }
        }
    }
}

fn note(span: &Span, routed: &Routed) {
    span.record("cell.id", routed.cell().as_str());
    span.record("cell.route.source", routed.source.as_str());
    match &routed.home {
        Home::Placed(residence) => {
            span.record("cell.route.epoch", names::number(residence.epoch.get()));
            let age = routed.as_of.elapsed().as_secs_f64() * 1000.0;
            span.record("cell.route.age_ms", age);
            span.record("cell.route.authoritative", true);
        }
        Home::Default(_) => {
            span.record("cell.route.authoritative", false);
        }
    }
    if let Some(reason) = routed.source.fallback_reason() {
        span.record("cell.route.fallback_reason", reason.as_str());
    }
}

/// A short, fixed name of an error, for telemetry.
fn error_type(error: &Error) -> &'static str {
    match error {
        Error::Refused(_) => "refused",
        Error::Store(_) => "store",
        Error::OutcomeUnknown => "outcome_unknown",
        Error::Overloaded => "overloaded",
        Error::NotReady => "not_ready",
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner }
    }
}

#[derive(Debug, Clone)]
pub struct Trace<S> {
    inner: S,
}

impl<S> Service<RouteRequest> for Trace<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
    S::Future: Unpin,
{
    type Response = Routed;
    type Error = Error;
    type Future = TraceFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: RouteRequest) -> Self::Future {
        if request.trace.sampled() {
            request.trace.begin(&request.key);
        }
        let trace = request.trace.clone();
        TraceFuture { inner: self.inner.call(request), trace }
    }
}

pub struct TraceFuture<F> {
    inner: F,
    trace: DecisionTrace,
}

impl<F: Future<Output = Answer> + Unpin> Future for TraceFuture<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let answer = ready!(Pin::new(&mut self.inner).poll(cx));
        self.trace.conclude(&answer);
        Poll::Ready(answer)
    }
}
