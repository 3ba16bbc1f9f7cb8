//! Answers the default cell where the table does not answer in time and the caller welcomes a guess.
//!
//! A guess is flagged (source FALLBACK, not authoritative) and harmless: a tenant's guard exists only in the tenant's own cell, so a
//! guarded write to a wrong cell is refused by the storage. A caller's own deadline counts too: shortly before it runs out, a guess is
//! better than nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;
use tower::{Layer, Service};

use super::{Answer, Home, RouteOptions, RouteRequest, Routed, Source, Step};
use crate::directory::error::Error;
use crate::domain::CellId;
use crate::store::StoreError;

/// How long before the caller's deadline a guess is sent, so that it arrives: a tenth of what is left, within these bounds.
const MIN_MARGIN: Duration = Duration::from_millis(2);
const MAX_MARGIN: Duration = Duration::from_millis(50);

/// Why a guess was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackReason {
    Timeout,
    Throttled,
    Unavailable,
    NotReady,
}

impl FallbackReason {
    pub fn as_str(self) -> &'static str {
        match self {
            FallbackReason::Timeout => "timeout",
            FallbackReason::Throttled => "throttled",
            FallbackReason::Unavailable => "unavailable",
            FallbackReason::NotReady => "not_ready",
        }
    }

    /// `None` for an error that is an answer, not the lack of one.
    fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Store(StoreError::Throttled) | Error::Overloaded => Some(Self::Throttled),
            Error::Store(StoreError::Timeout) | Error::OutcomeUnknown => Some(Self::Timeout),
            Error::Store(
                StoreError::Unreachable | StoreError::Failed | StoreError::Rejected { .. },
            ) => Some(Self::Unavailable),
            Error::NotReady => Some(Self::NotReady),
            // The table did answer; a guess would hide that its answer cannot be read.
            Error::Store(StoreError::Unreadable { .. } | StoreError::ForeignCursor)
            | Error::Refused(_) => None,
        }
    }
}

#[derive(Clone)]
pub struct FallbackLayer {
    default_cell: Option<CellId>,
}

impl FallbackLayer {
    pub fn new(default_cell: Option<CellId>) -> Self {
        Self { default_cell }
    }
}

impl<S> Layer<S> for FallbackLayer {
    type Service = Fallback<S>;

    fn layer(&self, inner: S) -> Fallback<S> {
        Fallback { inner, default_cell: self.default_cell.clone() }
    }
}

#[derive(Clone)]
pub struct Fallback<S> {
    inner: S,
    default_cell: Option<CellId>,
}

impl<S> Service<RouteRequest> for Fallback<S>
where
    S: Service<RouteRequest, Response = Routed, Error = Error>,
    S::Future: Unpin,
{
    type Response = Routed;
    type Error = Error;
    type Future = FallbackFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: RouteRequest) -> Self::Future {
        let guess = match &self.default_cell {
            Some(cell) if request.options.fallback => Some(Guess {
                cell: cell.clone(),
                options: Arc::clone(&request.options),
                patience: None,
            }),
            _ => None,
        };
        FallbackFuture { inner: self.inner.call(request), guess }
    }
}

pub struct FallbackFuture<F> {
    inner: F,
    /// `None`: no guess is welcome, or there is none.
    guess: Option<Guess>,
}

struct Guess {
    cell: CellId,
    options: Arc<RouteOptions>,
    /// Runs out shortly before the caller's deadline. Made when the answer is not there at once.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Guess {
    /// Whether the caller can wait no longer.
    fn out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.options.deadline else {
            return false;
        };
        let patience = self.patience.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(Instant::now());
            let margin = (left / 10).clamp(MIN_MARGIN, MAX_MARGIN);
            Box::pin(tokio::time::sleep(left.saturating_sub(margin)))
        });
        patience.as_mut().poll(cx).is_ready()
    }

    fn answer(&self, reason: FallbackReason) -> Routed {
        let steps = match self.options.explain {
            false => Vec::new(),
            true => vec![
                Step::new("memory", "not held"),
                Step::new("table", format!("no answer: {}", reason.as_str())),
                Step::new("fallback", format!("the default cell {}", self.cell)),
            ],
        };
        Routed {
            home: Home::Default(self.cell.clone()),
            source: Source::Fallback(reason),
            as_of: Instant::now(),
            steps,
        }
    }
}

impl<F: Future<Output = Answer> + Unpin> Future for FallbackFuture<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let answer = Pin::new(&mut self.inner).poll(cx);
        let Some(guess) = &mut self.guess else {
            return answer;
        };
        let reason = match &answer {
            Poll::Ready(Ok(_)) => None,
            Poll::Ready(Err(error)) => FallbackReason::of(error),
            Poll::Pending => guess.out_of_patience(cx).then_some(FallbackReason::Timeout),
        };
        match reason {
            Some(reason) => Poll::Ready(Ok(guess.answer(reason))),
            None => answer,
        }
    }
}
