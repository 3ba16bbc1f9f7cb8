//! Answers from memory, and keeps what the layers below read.
//!
//! Only placements are kept: neither errors nor "not found" are ever cached.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower::{Layer, Service};
use tracing::Instrument;

use super::{Answer, Home, RouteRequest, Routed, SlowAnswer, Source, Step};
use crate::directory::clock::Clock;
use crate::directory::error::Error;
use crate::directory::memory::Memory;

#[derive(Clone)]
pub struct CacheLayer {
    memory: Arc<Memory>,
    clock: Clock,
}

impl CacheLayer {
    pub fn new(memory: Arc<Memory>, clock: Clock) -> Self {
        Self { memory, clock }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cached<S>;

    fn layer(&self, inner: S) -> Cached<S> {
        Cached { inner, memory: Arc::clone(&self.memory), clock: self.clock.clone() }
    }
}

#[derive(Clone)]
pub struct Cached<S> {
    inner: S,
    memory: Arc<Memory>,
    clock: Clock,
}

impl<S> Cached<S> {
    /// What memory can answer: a placement that is not below the epoch asked for and has not expired.
    fn recall(&self, request: &RouteRequest) -> Option<Routed> {
        let held = self.memory.get(request.key.as_str())?;
        let placement = &held.placement;
        let below = request.options.min_epoch.is_some_and(|epoch| placement.epoch < epoch);
        let expired = placement.expires.is_some() && placement.expired(self.clock.now());
        if below || expired {
            return None;
        }
        let steps = match request.options.explain {
            false => Vec::new(),
            true => {
                let age = held.as_of.elapsed();
                let (cell, epoch) = (&placement.cell, placement.epoch);
                vec![Step::new(
                    "memory",
                    format!("held: {cell} at epoch {epoch}, at most {age:?} old"),
                )]
            }
        };
        Some(Routed {
            home: Home::Placed(held.placement),
            source: Source::Memory,
            as_of: held.as_of,
            steps,
        })
    }
}

impl<S> Service<RouteRequest> for Cached<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Routed;
    type Error = Error;
    type Future = CachedFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: RouteRequest) -> CachedFuture {
        if let Some(routed) = self.recall(&request) {
            return CachedFuture::Held(Some(routed));
        }
        let span = request.trace.begin(&request.key);
        let explain = request.options.explain;
        let ticket = self.memory.begin_read(request.key.clone());
        // The span is entered while the call is made, too: what it starts at once belongs under it.
        let answer = span.in_scope(|| self.inner.call(request));
        let miss = async move {
            let mut routed = answer.await?;
            if let Home::Placed(placement) = &routed.home {
                ticket.keep(Arc::clone(placement));
            }
            if explain {
                routed.steps.insert(0, Step::new("memory", "not held, or not good enough"));
            }
            Ok(routed)
        };
        CachedFuture::Missed(Box::pin(miss.instrument(span)))
    }
}

pub enum CachedFuture {
    Held(Option<Routed>),
    Missed(SlowAnswer),
}

impl Future for CachedFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut *self {
            CachedFuture::Held(routed) => Poll::Ready(routed.take().ok_or(Error::NotReady)),
            CachedFuture::Missed(answer) => answer.as_mut().poll(cx),
        }
    }
}
