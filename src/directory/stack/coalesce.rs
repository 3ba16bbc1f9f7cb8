//! Lets all who ask the same at the same time share one flight to the table (single flight).
//!
//! A flight lives as long as anybody waits for it, so a caller who gives up does not take it from the others. Callers share a flight
//! only if they ask the same in all respects that the layers below look at, and if nobody was told of a change of the key in between
//! ([`RouteRequest::round`]): a flight's answer must be right for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use tower::{Layer, Service};

use super::{Answer, RouteOptions, RouteRequest, Routed};
use crate::directory::error::Error;
use crate::domain::PartitionKey;

/// What makes requests the same.
type Question = (PartitionKey, u64, RouteOptions);
type Flight = BoxFuture<'static, Answer>;
type Flights = Arc<Mutex<HashMap<Question, Listed>>>;

/// A flight that can be joined.
struct Listed {
    number: u64,
    flight: WeakShared<Flight>,
}

#[derive(Clone, Default)]
pub struct CoalesceLayer {
    flights: Flights,
    next: Arc<AtomicU64>,
}

impl<S> Layer<S> for CoalesceLayer {
    type Service = Coalesce<S>;

    fn layer(&self, inner: S) -> Coalesce<S> {
        Coalesce { inner, flights: Arc::clone(&self.flights), next: Arc::clone(&self.next) }
    }
}

#[derive(Clone)]
pub struct Coalesce<S> {
    inner: S,
    flights: Flights,
    next: Arc<AtomicU64>,
}

impl<S> Service<RouteRequest> for Coalesce<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Routed;
    type Error = Error;
    type Future = Shared<Flight>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: RouteRequest) -> Shared<Flight> {
        // What only the layers above look at does not make a difference.
        let options = RouteOptions {
            deadline: None,
            fallback: false,
            ..RouteOptions::clone(&request.options)
        };
        let question = (request.key.clone(), request.round, options);
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&question).and_then(|listed| listed.flight.upgrade()) {
            return flight;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = self.inner.call(request);
        // Made last: if the call panicked, its drop would wait for the lock that is held here.
        let landing =
            Landing { flights: Arc::clone(&self.flights), question: question.clone(), number };
        let flight = async move {
            // Dropped when the flight ends or everybody has given up.
            let _landing = landing;
            answer.await
        };
        let flight = flight.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(question, Listed { number, flight: weak });
        }
        flight
    }
}

/// Takes a flight off the list when it is over.
struct Landing {
    flights: Flights,
    question: Question,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // A new flight may have taken the place of one that everybody gave up.
        if flights.get(&self.question).is_some_and(|listed| listed.number == self.number) {
            flights.remove(&self.question);
        }
    }
}
