//! Counts decisions by source and cell, and times those that did not come from memory.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tower::{Layer, Service};

use super::{Answer, FallbackReason, RouteRequest, Routed};
use crate::directory::error::Error;
use crate::telemetry::DecisionMetrics;

#[derive(Clone)]
pub struct MetricsLayer {
    metrics: DecisionMetrics,
}

impl MetricsLayer {
    pub fn new(metrics: DecisionMetrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics { inner, metrics: self.metrics.clone() }
    }
}

#[derive(Clone)]
pub struct Metrics<S> {
    inner: S,
    metrics: DecisionMetrics,
}

impl<S> Service<RouteRequest> for Metrics<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
    S::Future: Unpin,
{
    type Response = Routed;
    type Error = Error;
    type Future = MetricsFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: RouteRequest) -> Self::Future {
        MetricsFuture {
            inner: self.inner.call(request),
            metrics: self.metrics.clone(),
            began: None,
        }
    }
}

pub struct MetricsFuture<F> {
    inner: F,
    metrics: DecisionMetrics,
    /// Set when the decision turns out not to be ready at once: those that are are not worth a look at the clock.
    began: Option<Instant>,
}

impl<F: Future<Output = Answer> + Unpin> Future for MetricsFuture<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let answer = match Pin::new(&mut self.inner).poll(cx) {
            Poll::Ready(answer) => answer,
            Poll::Pending => {
                self.began.get_or_insert_with(Instant::now);
                return Poll::Pending;
            }
        };
        if let Ok(routed) = &answer {
            let elapsed = self.began.map(|began| began.elapsed());
            let reason = routed.source.fallback_reason().map(FallbackReason::as_str);
            self.metrics.record(routed.source.as_str(), routed.cell().as_str(), reason, elapsed);
        }
        Poll::Ready(answer)
    }
}
