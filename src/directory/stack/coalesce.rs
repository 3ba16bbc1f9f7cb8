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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::super::testing::{Inner, found, from_table, gist, look_up, request};
    use super::*;
    use crate::directory::error::Refused;
    use crate::directory::fixtures::placement;
    use crate::domain::{Constraints, Epoch, Region};
    use crate::store::StoreError;

    const FLIGHT: Duration = Duration::from_millis(100);

    fn coalesce(inner: &Inner) -> Coalesce<Inner> {
        CoalesceLayer::default().layer(inner.clone())
    }

    fn flying(service: &Coalesce<Inner>) -> usize {
        service.flights.lock().len()
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_the_same_share_one_flight() {
        for answer in
            [found("k", 1), Err(Refused::PlacementNotFound.into()), Err(Error::OutcomeUnknown)]
        {
            let inner = Inner::answering(answer.clone(), FLIGHT);
            let service = coalesce(&inner);
            let asking: Vec<_> = (0..100).map(|_| service.clone().call(look_up("k"))).collect();
            assert_eq!((inner.calls(), flying(&service)), (1, 1));
            for shared in join_all(asking).await {
                assert_eq!(gist(&shared), gist(&answer));
            }
            assert_eq!(flying(&service), 0, "nothing is left behind");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_does_not_take_the_flight_from_the_others() {
        let inner = Inner::answering(found("k", 1), FLIGHT);
        let mut service = coalesce(&inner);
        let mut leader = service.call(look_up("k"));
        let follower = service.call(look_up("k"));
        assert!(futures::poll!(&mut leader).is_pending());
        let follower = tokio::spawn(follower);
        tokio::time::sleep(FLIGHT / 2).await;
        drop(leader);
        let began = tokio::time::Instant::now();
        assert_eq!(gist(&follower.await.unwrap()), gist(&found("k", 1)));
        assert!(began.elapsed() <= FLIGHT, "it went on where it stood");
        assert_eq!((inner.calls(), flying(&service)), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_everybody_gave_up_is_over() {
        let inner = Inner::answering(found("k", 1), FLIGHT);
        let mut service = coalesce(&inner);
        for polled in [true, false] {
            let mut flights = [service.call(look_up("k")), service.call(look_up("k"))];
            if polled {
                assert!(futures::poll!(&mut flights[0]).is_pending());
            }
            drop(flights);
            assert_eq!(flying(&service), 0);
        }
        assert!(service.call(look_up("k")).await.is_ok());
        assert_eq!(inner.calls(), 3, "nobody joined what was given up");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_ended_is_not_joined() {
        let inner = Inner::new(|call, _| async move { found("k", call as u64 + 1) });
        let mut service = coalesce(&inner);
        // The first answer is still being looked at by who asked for it.
        let mut first = service.call(look_up("k"));
        let again = first.clone();
        assert!(futures::poll!(&mut first).is_ready());
        assert_eq!(gist(&service.call(look_up("k")).await), gist(&found("k", 2)));
        assert_eq!(gist(&again.await), gist(&found("k", 1)));
        assert_eq!(flying(&service), 0);
    }

    /// Which requests share a flight: those that differ only in what the layers above look at.
    #[tokio::test(start_paused = true)]
    async fn only_those_who_ask_the_same_share() {
        let plain = RouteOptions::default;
        let in_region = Constraints {
            regions: vec![Region::new("eu-west-1").unwrap()],
            ..Constraints::default()
        };
        let now = std::time::Instant::now();
        let later = RouteRequest { round: 7, ..look_up("k") };
        for (other, shares) in [
            (request("k", RouteOptions { deadline: Some(now), ..plain() }), true),
            (request("k", RouteOptions { fallback: true, ..plain() }), true),
            (request("k", RouteOptions { assign: true, ..plain() }), false),
            (request("k", RouteOptions { explain: true, ..plain() }), false),
            (request("k", RouteOptions { min_epoch: Some(Epoch::FIRST), ..plain() }), false),
            (request("k", RouteOptions { constraints: Arc::new(in_region), ..plain() }), false),
            (look_up("l"), false),
            (later, false),
        ] {
            let inner = Inner::answering(found("k", 1), FLIGHT);
            let mut service = coalesce(&inner);
            let what = format!("{other:?}");
            let both = [service.call(look_up("k")), service.call(other)];
            let flights = if shares { 1 } else { 2 };
            assert_eq!((inner.calls(), flying(&service)), (flights, flights), "{what}");
            assert!(join_all(both).await.iter().all(Result::is_ok));
            assert_eq!(flying(&service), 0);
        }
    }

    /// Flights come and go on many threads, some given up; each asker gets an answer to the question asked, and nothing stays.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_lost_or_left_when_many_come_and_go() {
        let slots = Arc::new(Semaphore::new(3));
        let inner = Inner::new(move |_, request| {
            let slots = slots.clone();
            async move {
                let _slot = slots.acquire().await;
                tokio::task::yield_now().await;
                let name = request.key.as_str();
                Ok(from_table(placement(name, name, 1)))
            }
        });
        let service = coalesce(&inner);
        let asking = (0..16).map(|who| {
            let mut service = service.clone();
            tokio::spawn(async move {
                for n in 0..500 {
                    let name = format!("k{}", (who * 7 + n) % 5);
                    let mut answer = service.call(look_up(&name));
                    if n % 3 == 0 {
                        let _ = futures::poll!(&mut answer);
                        continue;
                    }
                    let Ok(routed) = answer.await else { panic!("an error from nowhere") };
                    assert_eq!(routed.cell().as_str(), name);
                }
            })
        });
        for who in join_all(asking.collect::<Vec<_>>()).await {
            who.unwrap();
        }
        assert_eq!(flying(&service), 0);
        assert!(inner.calls() < 16 * 500, "some were shared");
    }

    /// A call that panics must not leave the lock to wait for itself.
    #[tokio::test]
    async fn a_call_that_panics_blocks_nobody() {
        #[derive(Clone)]
        struct Panics;
        impl Service<RouteRequest> for Panics {
            type Response = Routed;
            type Error = Error;
            type Future = BoxFuture<'static, Answer>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, request: RouteRequest) -> Self::Future {
                assert!(request.key.as_str() != "bad", "on purpose");
                async { Err(StoreError::Failed.into()) }.boxed()
            }
        }
        let mut service = CoalesceLayer::default().layer(Panics);
        let mut panicking = service.clone();
        let call = move || drop(panicking.call(look_up("bad")));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err());
        assert!(service.call(look_up("good")).await.is_err());
        assert!(service.flights.lock().is_empty());
    }
}
