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
use crate::domain::{CellId, Sequence};
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
            written: false,
            as_of: Instant::now(),
            sequence: Sequence::START,
            lease_until: None,
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::super::testing::{
        Inner, REJECTED, UNREADABLE, every_error, found, gist, look_up, request,
    };
    use super::*;
    use crate::directory::error::Refused;

    fn fallback(inner: Inner, cell: Option<&str>) -> Fallback<Inner> {
        let cell = cell.map(|cell| CellId::new(cell).unwrap());
        FallbackLayer::new(cell).layer(inner)
    }

    fn failing(error: Error) -> Inner {
        Inner::answering(Err(error), Duration::ZERO)
    }

    fn welcome() -> RouteOptions {
        RouteOptions { fallback: true, ..RouteOptions::default() }
    }

    #[tokio::test]
    async fn the_lack_of_an_answer_is_a_guess_with_its_reason() {
        use FallbackReason::{NotReady, Throttled, Timeout, Unavailable};
        for (error, reason, name) in [
            (Error::Store(StoreError::Timeout), Timeout, "timeout"),
            (Error::OutcomeUnknown, Timeout, "timeout"),
            (Error::Store(StoreError::Throttled), Throttled, "throttled"),
            (Error::Overloaded, Throttled, "throttled"),
            (Error::Store(StoreError::Unreachable), Unavailable, "unavailable"),
            (Error::Store(StoreError::Failed), Unavailable, "unavailable"),
            (Error::Store(REJECTED()), Unavailable, "unavailable"),
            (Error::NotReady, NotReady, "not_ready"),
        ] {
            let mut service = fallback(failing(error), Some("default"));
            let answer = service.call(request("k", welcome())).await;
            let expected = ("default".to_owned(), Source::Fallback(reason), None);
            assert_eq!(gist(&answer), Ok(expected));
            assert_eq!(reason.as_str(), name);
            assert!(answer.unwrap().steps.is_empty());
        }
    }

    #[tokio::test]
    async fn an_answer_is_never_turned_into_a_guess() {
        for error in [
            Error::Store(UNREADABLE()),
            Refused::PlacementNotFound.into(),
            Refused::NoEligibleCell { candidates: vec![] }.into(),
            Refused::Contended.into(),
        ] {
            let mut service = fallback(failing(error.clone()), Some("default"));
            assert_eq!(service.call(request("k", welcome())).await.unwrap_err(), error);
        }
        let mut service =
            fallback(Inner::answering(found("k", 2), Duration::ZERO), Some("default"));
        assert_eq!(gist(&service.call(request("k", welcome())).await), gist(&found("k", 2)));
    }

    #[tokio::test]
    async fn nobody_gets_a_guess_who_did_not_ask_for_it() {
        for (error, _) in every_error() {
            let mut refusing = fallback(failing(error.clone()), Some("default"));
            assert_eq!(refusing.call(look_up("k")).await.unwrap_err(), error);
            let mut without = fallback(failing(error.clone()), None);
            assert_eq!(without.call(request("k", welcome())).await.unwrap_err(), error);
        }
    }

    /// A caller with a deadline gets the guess a little before it, however long the table takes.
    #[tokio::test(start_paused = true)]
    async fn a_guess_arrives_before_the_deadline() {
        for (left, margin) in [(2000, 50), (500, 50), (100, 10), (10, 2)] {
            let hanging = Inner::new(|_, _| std::future::pending());
            let left = Duration::from_millis(left);
            let began = tokio::time::Instant::now();
            let deadline = Some(Instant::now() + left);
            let options = RouteOptions { deadline, explain: true, ..welcome() };
            let answer = fallback(hanging, Some("default")).call(request("k", options)).await;
            let took = began.elapsed();
            let latest = left - Duration::from_millis(margin);
            // The deadline is on a clock that tests cannot stop; a timer rounds up to a millisecond.
            let slack = Duration::from_millis(2);
            assert!(took <= latest + slack, "{took:?} of {left:?}");
            assert!(
                took + left / 5 + slack >= latest,
                "{took:?} of {left:?}: patience was too short"
            );
            let routed = answer.unwrap();
            assert_eq!(routed.source, Source::Fallback(FallbackReason::Timeout));
            let names: Vec<_> = routed.steps.iter().map(|step| step.name).collect();
            assert_eq!(names, ["memory", "table", "fallback"]);
        }
        // One that has passed already waits for nothing.
        let hanging = Inner::new(|_, _| std::future::pending());
        let options = RouteOptions { deadline: Some(Instant::now()), ..welcome() };
        let began = tokio::time::Instant::now();
        assert!(fallback(hanging, Some("d")).call(request("k", options)).await.is_ok());
        assert!(began.elapsed() <= Duration::from_millis(2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_refuses_a_guess_waits_for_the_answer() {
        let slow = || Inner::answering(found("k", 1), Duration::from_secs(60));
        let deadline = Some(Instant::now() + Duration::from_millis(100));
        let refusing = RouteOptions { deadline, ..RouteOptions::default() };
        let without_deadline = welcome();
        for options in [refusing, without_deadline] {
            let answer = fallback(slow(), Some("default")).call(request("k", options)).await;
            assert_eq!(gist(&answer), gist(&found("k", 1)));
        }
        // What is there at once needs no patience, even after the deadline.
        let options = RouteOptions { deadline: Some(Instant::now()), ..welcome() };
        let ready = Inner::answering(found("k", 1), Duration::ZERO);
        let mut answer = fallback(ready, Some("default")).call(request("k", options));
        assert_eq!(gist(&(&mut answer).now_or_never().unwrap()), gist(&found("k", 1)));
        assert!(answer.guess.unwrap().patience.is_none(), "no timer was made");
    }
}
