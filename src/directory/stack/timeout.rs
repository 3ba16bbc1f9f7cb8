//! Bounds a flight to the table as a whole: every attempt and every pause.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tower::{Layer, Service};

use super::{Answer, RouteRequest, Routed, Writing};
use crate::directory::error::Error;
use crate::store::StoreError;

#[derive(Debug, Clone, Copy)]
pub struct TimeoutLayer {
    budget: Duration,
}

impl TimeoutLayer {
    pub fn new(budget: Duration) -> Self {
        Self { budget }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Timeout<S>;

    fn layer(&self, inner: S) -> Timeout<S> {
        Timeout { inner, budget: self.budget }
    }
}

#[derive(Debug, Clone)]
pub struct Timeout<S> {
    inner: S,
    budget: Duration,
}

impl<S> Service<RouteRequest> for Timeout<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = Routed;
    type Error = Error;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: RouteRequest) -> Self::Future {
        let writing = Writing::shared();
        request.writing = writing.clone();
        let answer = tokio::time::timeout(self.budget, self.inner.call(request));
        let bounded = answer.map(move |answer| match answer {
            // What an error says is true of the last attempt only, where an earlier one left its outcome open.
            Ok(Err(_)) if writing.open().is_some() => Err(Error::OutcomeUnknown),
            Ok(answer) => answer,
            // An assignment that is on its way may still be made.
            Err(_elapsed) if writing.open().is_some() => Err(Error::OutcomeUnknown),
            Err(_elapsed) => Err(Error::Store(StoreError::Timeout)),
        });
        bounded.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Inner, every_error, found, gist, look_up};
    use super::*;
    use crate::domain::Epoch;

    const BUDGET: Duration = Duration::from_millis(500);

    fn timeout(inner: Inner) -> Timeout<Inner> {
        TimeoutLayer::new(BUDGET).layer(inner)
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_passes_as_it_is() {
        let late = BUDGET - Duration::from_millis(1);
        let errors = every_error().into_iter().map(|(error, _)| Err(error));
        for answer in errors.chain([found("k", 1)]) {
            let mut service = timeout(Inner::answering(answer.clone(), late));
            assert_eq!(gist(&service.call(look_up("k")).await), gist(&answer));
        }
    }

    /// A write, once it is handed on, may be made: whoever gives up then does not know.
    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_is_a_timeout_before_a_write_and_unknown_after() {
        let reading = |_, _| std::future::pending();
        let writing = |_, request: RouteRequest| async move {
            request.writing.begin(Epoch::FIRST);
            std::future::pending().await
        };
        let settled = |_, request: RouteRequest| async move {
            request.writing.begin(Epoch::FIRST);
            request.writing.settle();
            std::future::pending().await
        };
        let timed_out = Error::Store(StoreError::Timeout);
        for (inner, expected) in [
            (Inner::new(reading), &timed_out),
            (Inner::new(writing), &Error::OutcomeUnknown),
            (Inner::new(settled), &timed_out),
        ] {
            let began = tokio::time::Instant::now();
            let answer = timeout(inner).call(look_up("k")).await;
            assert_eq!(answer.unwrap_err(), *expected);
            assert_eq!(began.elapsed(), BUDGET);
        }
    }

    /// "Nothing was changed" would be true of the last attempt only.
    #[tokio::test(start_paused = true)]
    async fn an_error_of_a_later_attempt_does_not_hide_an_open_write() {
        for (error, _) in every_error() {
            let inner = Inner::new(move |_, request| {
                let error = error.clone();
                async move {
                    request.writing.begin(Epoch::FIRST);
                    Err(error)
                }
            });
            let answer = timeout(inner).call(look_up("k")).await;
            assert_eq!(answer.unwrap_err(), Error::OutcomeUnknown);
        }
    }

    /// Flights do not hear of each other's writes, even where requests were made from one another.
    #[tokio::test(start_paused = true)]
    async fn each_flight_has_its_own_writes() {
        let inner = Inner::new(|call, request| async move {
            if call == 0 {
                request.writing.begin(Epoch::FIRST);
            }
            std::future::pending().await
        });
        let mut service = timeout(inner);
        let request = look_up("k");
        let both = futures::future::join(service.call(request.clone()), service.call(request));
        let (first, second) = both.await;
        assert_eq!(first.unwrap_err(), Error::OutcomeUnknown);
        assert_eq!(second.unwrap_err(), Error::Store(StoreError::Timeout));
    }
}
