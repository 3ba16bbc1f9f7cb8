//! Answers from memory, and keeps what the layers below read.
//!
//! Only placements are kept: neither errors nor "not found" are ever cached. What comes back below an epoch that this replica told of
//! meanwhile is not answered: the read is repeated.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower::{Layer, Service};
use tracing::Instrument;

use super::{Answer, Home, RouteRequest, Routed, SlowAnswer, Source, Step};
use crate::directory::clock::Clock;
use crate::directory::error::{Error, Refused};
use crate::directory::memory::{Memory, ReadTicket};

/// How often a read is begun that the journal overtakes, before the caller is told to try again.
const MAX_READS: usize = 4;

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

impl<S> Cached<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
{
    /// Announces a read and begins it.
    fn begin(&mut self, request: &RouteRequest) -> Read<S::Future> {
        let ticket = self.memory.begin_read(request.key.clone());
        let request = RouteRequest { round: ticket.round(), ..request.clone() };
        Read { answer: self.inner.call(request), ticket }
    }

    async fn miss(&mut self, request: RouteRequest, mut read: Read<S::Future>) -> Answer {
        for _ in 0..MAX_READS {
            let Read { answer, ticket } = read;
            let mut routed = answer.await?;
            let told = match &routed.home {
                Home::Placed(placement) => ticket.keep(placement),
                Home::Default(_) => true,
            };
            if told {
                if request.options.explain {
                    routed.steps.insert(0, Step::new("memory", "not held, or not good enough"));
                }
                return Ok(routed);
            }
            if let Some(routed) = self.recall(&request) {
                return Ok(routed);
            }
            read = self.begin(&request);
        }
        Err(Refused::Contended.into())
    }
}

/// A read of the table under way. The order matters: one that is given up ends before its announcement does, so that nobody joins it
/// unannounced.
struct Read<F> {
    answer: F,
    ticket: ReadTicket,
}

impl<S> Service<RouteRequest> for Cached<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error> + Clone + Send + 'static,
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
        // The span is entered while the call is made, too: what it starts at once belongs under it.
        let read = span.in_scope(|| self.begin(&request));
        let mut layer = self.clone();
        let miss = async move { layer.miss(request, read).await };
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
