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
            // "Nothing was changed" is true of the last attempt only, where an earlier one left its outcome open.
            Ok(Err(Error::Store(_) | Error::Overloaded | Error::NotReady)) if writing.open() => {
                Err(Error::OutcomeUnknown)
            }
            Ok(answer) => answer,
            // An assignment that is on its way may still be made.
            Err(_elapsed) if writing.open() => Err(Error::OutcomeUnknown),
            Err(_elapsed) => Err(Error::Store(StoreError::Timeout)),
        });
        bounded.boxed()
    }
}
