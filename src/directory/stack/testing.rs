//! For the tests of the layers: a service to put a layer around, and requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tower::Service;

use super::{Answer, DecisionTrace, Home, RouteOptions, RouteRequest, Routed, Source};
use crate::directory::error::{Error, Refused};
use crate::directory::fixtures::{key, placement};
use crate::directory::memory::Residence;
use crate::domain::{Placement, Sequence};
use crate::store::StoreError;

type Work = dyn Fn(usize, RouteRequest) -> BoxFuture<'static, Answer> + Send + Sync;

/// Does what it is told to do at each call, which are numbered from 0.
#[derive(Clone)]
pub struct Inner {
    work: Arc<Work>,
    calls: Arc<AtomicUsize>,
}

impl Inner {
    pub fn new<F>(work: impl Fn(usize, RouteRequest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let work = move |call, request| work(call, request).boxed();
        Self { work: Arc::new(work), calls: Arc::default() }
    }

    /// Always answers this, after a time.
    pub fn answering(answer: Answer, after: Duration) -> Self {
        Self::new(move |_, _| {
            let answer = answer.clone();
            async move {
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
                answer
            }
        })
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<RouteRequest> for Inner {
    type Response = Routed;
    type Error = Error;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RouteRequest) -> Self::Future {
        (self.work)(self.calls.fetch_add(1, Ordering::SeqCst), request)
    }
}

pub fn request(name: &str, options: RouteOptions) -> RouteRequest {
    RouteRequest::new(key(name), Arc::new(options), DecisionTrace::default())
}

pub fn look_up(name: &str) -> RouteRequest {
    request(name, RouteOptions::default())
}

/// A placement as the table answers it.
pub fn from_table(placement: Placement) -> Routed {
    Routed {
        home: Home::Placed(Residence::from(&placement)),
        source: Source::Table,
        written: false,
        as_of: std::time::Instant::now(),
        sequence: Sequence::START,
        lease_until: None,
        steps: Vec::new(),
    }
}

pub fn found(name: &str, epoch: u64) -> Answer {
    Ok(from_table(placement(name, "a", epoch)))
}

/// What an answer says, without its time.
pub fn gist(answer: &Answer) -> Result<(String, Source, Option<u64>), Error> {
    let routed = answer.as_ref().map_err(Clone::clone)?;
    let epoch = match &routed.home {
        Home::Placed(placement) => Some(placement.epoch.get()),
        Home::Default(_) => None,
    };
    Ok((routed.cell().as_str().to_owned(), routed.source, epoch))
}

pub const UNREADABLE: fn() -> StoreError = || StoreError::Unreadable { detail: "x".into() };
pub const REJECTED: fn() -> StoreError = || StoreError::Rejected { detail: "x".into() };

/// Every error, and whether another attempt may help.
pub fn every_error() -> Vec<(Error, bool)> {
    vec![
        (StoreError::Throttled.into(), true),
        (StoreError::Timeout.into(), true),
        (StoreError::Unreachable.into(), true),
        (StoreError::Failed.into(), true),
        (Error::OutcomeUnknown, true),
        (REJECTED().into(), false),
        (UNREADABLE().into(), false),
        (StoreError::ForeignCursor.into(), false),
        (Error::Overloaded, false),
        (Error::NotReady, false),
        (Refused::PlacementNotFound.into(), false),
    ]
}
