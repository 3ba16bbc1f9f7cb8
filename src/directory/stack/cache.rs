//! Answers from memory, and keeps what the layers below read.
//!
//! Errors are never cached. That a tenant has no cell is, until an entry tells of it, and for a short time only: somebody else's router
//! may place it without telling. What comes back below an epoch that this replica told of meanwhile is not answered: the read is
//! repeated. What the journal does not vouch for any more is answered only where the table does not answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tower::{Layer, Service};
use tracing::Instrument;

use super::{Answer, Home, RouteRequest, Routed, SlowAnswer, Source, Step};
use crate::directory::clock::Clock;
use crate::directory::error::{Error, Refused};
use crate::directory::memory::{Held, Memory, ReadTicket, Residence};
use crate::domain::Mapping;
use crate::mutants::{self, Mutant};

/// How often a read is begun that the journal overtakes, before the caller is told to try again.
const MAX_READS: usize = 4;

#[derive(Clone)]
pub struct CacheLayer {
    memory: Arc<Memory>,
    clock: Clock,
    load_patience: Duration,
}

impl CacheLayer {
    /// `load_patience`: how long a tenant that is not held waits for a load of the whole table.
    pub fn new(memory: Arc<Memory>, clock: Clock, load_patience: Duration) -> Self {
        Self { memory, clock, load_patience }
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cached<S>;

    fn layer(&self, inner: S) -> Cached<S> {
        Cached {
            inner,
            memory: Arc::clone(&self.memory),
            clock: self.clock.clone(),
            load_patience: self.load_patience,
        }
    }
}

#[derive(Clone)]
pub struct Cached<S> {
    inner: S,
    memory: Arc<Memory>,
    clock: Clock,
    load_patience: Duration,
}

impl<S> Cached<S> {
    /// What memory can answer.
    #[inline]
    fn recall(&self, request: &RouteRequest) -> Option<Routed> {
        let held = self.memory.get(request.key.as_str())?;
        (held.trusted && self.good(&held, request)).then(|| self.recalled(&held, request))
    }

    /// Whether a placement is not below the epoch asked for and has not expired.
    fn good(&self, held: &Held, request: &RouteRequest) -> bool {
        let Residence { epoch, expires, .. } = held.residence;
        let below = request.options.min_epoch.is_some_and(|least| epoch < least);
        (!below || mutants::is(Mutant::NoEpochCheck))
            && (expires.is_none() || !held.residence.expired(self.clock.now()))
    }

    fn recalled(&self, held: &Held, request: &RouteRequest) -> Routed {
        let steps = match request.options.explain {
            false => Vec::new(),
            true => {
                let age = self.clock.instant().saturating_duration_since(held.as_of);
                let Residence { cell, epoch, .. } = held.residence;
                let cell = cell.id();
                vec![Step::new(
                    "memory",
                    format!("held: {cell} at epoch {epoch}, at most {age:?} old"),
                )]
            }
        };
        Routed {
            home: Home::Placed(held.residence),
            source: Source::Memory,
            written: false,
            as_of: held.as_of,
            sequence: held.sequence,
            lease_until: held.trusted.then_some(held.lease_until),
            steps,
        }
    }

    /// What is known to be absent: the answer, or what an assignment may assume.
    fn absence(&self, request: &RouteRequest) -> Option<Result<Mapping, Error>> {
        let options = &request.options;
        if options.min_epoch.is_some() {
            return None;
        }
        let key = request.key.as_str();
        if options.assign {
            return self.memory.assumption(key).map(Ok);
        }
        let (_, as_of) = self.memory.absence(key)?;
        let age = self.clock.instant().saturating_duration_since(as_of);
        Some(Err(Refused::KnownAbsent { age }.into()))
    }
}

impl<S> Cached<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
{
    /// Announces a read and begins it.
    fn begin(&mut self, request: &RouteRequest) -> Read<S::Future> {
        let ticket = self.memory.begin_read(request.key.clone());
        let request = RouteRequest {
            round: ticket.round(),
            lease_until: Some(self.memory.lease_until()),
            sequence: self.memory.applied(),
            ..request.clone()
        };
        Read { answer: self.inner.call(request), ticket }
    }

    /// Waits for a load of the whole table, where one is under way, to bring the tenant: a read that the load makes needless would be one
    /// for each tenant who is asked for at a start, and the table would be read twice.
    async fn await_load(&mut self, request: &RouteRequest) -> Option<Routed> {
        // Without what is below, which need not be shareable.
        let memory = Arc::clone(&self.memory);
        let above = Cached {
            inner: (),
            memory,
            clock: self.clock.clone(),
            load_patience: self.load_patience,
        };
        let found = self.memory.found_loading(|| above.recall(request));
        tokio::time::timeout(self.load_patience, found).await.ok()?
    }

    async fn miss(&mut self, request: RouteRequest, mut read: Read<S::Future>) -> Answer {
        for reads in 1.. {
            let Read { answer, ticket } = read;
            let mut routed = match answer.await {
                Ok(routed) => routed,
                Err(error) => return self.failed(&request, ticket, error),
            };
            let told = match routed.home {
                // What the call placed itself is its answer, whatever was told of since: another read could place the tenant a second time,
                // or end in an error that says that nothing was changed.
                Home::Placed(residence) => ticket.keep(residence) || routed.written,
                Home::Default(_) => true,
            };
            if told {
                if request.options.explain {
                    routed.steps.insert(0, Step::new("memory", self.missed(&request)));
                }
                return Ok(routed);
            }
            if let Some(routed) = self.recall(&request) {
                return Ok(routed);
            }
            if reads == MAX_READS {
                break;
            }
            read = self.begin(&request);
        }
        Err(Refused::Contended.into())
    }
}

impl<S> Cached<S> {
    /// Remembers that there is no placement, where the table says so; where it says nothing, what is held is better than nothing.
    fn failed(&self, request: &RouteRequest, ticket: ReadTicket, error: Error) -> Answer {
        match error {
            Error::Refused(Refused::PlacementNotFound) => {
                // Whether it never had a cell or lost it is for an assignment to find out.
                ticket.keep_absent(Mapping::Absent);
            }
            Error::Store(_) | Error::Overloaded | Error::NotReady => {
                let held = self.memory.get(request.key.as_str());
                if let Some(held) = held.filter(|held| self.good(held, request)) {
                    return Ok(self.recalled(&held, request));
                }
            }
            Error::Refused(_) | Error::OutcomeUnknown => {}
        }
        Err(error)
    }

    fn missed(&self, request: &RouteRequest) -> &'static str {
        match request.assumed {
            Some(_) => "the whole table is held, and the tenant is not in it",
            None => "not held, or not good enough",
        }
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
            return CachedFuture::Known(Some(Ok(routed)));
        }
        let span = request.trace.begin(&request.key);
        let mut request = request;
        match self.absence(&request) {
            Some(Ok(mapping)) => request.assumed = Some(mapping),
            Some(Err(absent)) => return CachedFuture::Known(Some(Err(absent))),
            None => {}
        }
        let mut layer = self.clone();
        if self.memory.wants_load() {
            let miss = async move {
                if let Some(routed) = layer.await_load(&request).await {
                    return Ok(routed);
                }
                let read = layer.begin(&request);
                layer.miss(request, read).await
            };
            return CachedFuture::Missed(Box::pin(miss.instrument(span)));
        }
        // The span is entered while the call is made, too: what it starts at once belongs under it.
        let read = span.in_scope(|| self.begin(&request));
        let miss = async move { layer.miss(request, read).await };
        CachedFuture::Missed(Box::pin(miss.instrument(span)))
    }
}

pub enum CachedFuture {
    Known(Option<Answer>),
    Missed(SlowAnswer),
}

impl Future for CachedFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut *self {
            CachedFuture::Known(answer) => {
                Poll::Ready(answer.take().unwrap_or(Err(Error::NotReady)))
            }
            CachedFuture::Missed(answer) => answer.as_mut().poll(cx),
        }
    }
}

#[cfg(test)]
mod tests;
