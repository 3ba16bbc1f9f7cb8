//! Repeats what failed for a passing reason, with exponential backoff and jitter, within a budget.
//!
//! This is the only place where calls to the table are repeated for a routing decision: the SDK's own retries are off. The budget
//! (a share of the requests, see [`tower::retry::budget`]) keeps retries from multiplying the load on a table that is down. Repeating a
//! decision is safe: it begins with a read, so an assignment whose reply was lost is found.

use std::sync::Arc;

use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, RetryLayer};

use super::{Answer, RouteRequest, Routed};
use crate::directory::error::Error;
use crate::directory::pauses::Pauses;
use crate::directory::randomness::Randomness;

/// How long the budget remembers requests, in seconds.
const BUDGET_WINDOW_SECONDS: u64 = 10;

#[derive(Clone)]
pub struct RetryPolicy {
    budget: Arc<TpsBudget>,
    pauses: Pauses,
    randomness: Randomness,
    failures: u32,
    attempts: u32,
}

/// `attempts` counts the first one. `ratio`: retries as a share of requests, above `floor` a second.
pub fn layer(
    pauses: Pauses,
    randomness: Randomness,
    attempts: u32,
    ratio: f32,
    floor: u32,
) -> RetryLayer<RetryPolicy> {
    let window = std::time::Duration::from_secs(BUDGET_WINDOW_SECONDS);
    RetryLayer::new(RetryPolicy {
        budget: Arc::new(TpsBudget::new(window, floor, ratio)),
        pauses,
        randomness,
        failures: 0,
        attempts,
    })
}

impl Policy<RouteRequest, Routed, Error> for RetryPolicy {
    type Future = tokio::time::Sleep;

    fn retry(&mut self, _: &mut RouteRequest, answer: &mut Answer) -> Option<Self::Future> {
        let worth_it = match answer {
            Ok(_) => {
                self.budget.deposit();
                false
            }
            Err(Error::Store(error)) => error.transient(),
            Err(Error::OutcomeUnknown) => true,
            Err(Error::Refused(_) | Error::Overloaded | Error::NotReady) => false,
        };
        self.failures += 1;
        if !worth_it || self.failures >= self.attempts || !self.budget.withdraw() {
            return None;
        }
        Some(tokio::time::sleep(self.pauses.after(self.failures, &self.randomness)))
    }

    fn clone_request(&mut self, request: &RouteRequest) -> Option<RouteRequest> {
        Some(request.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use tower::retry::Retry;
    use tower::{Layer, Service};

    use super::super::testing::{Inner, every_error, found, gist, look_up};
    use super::*;
    use crate::store::StoreError;

    const PAUSES: Pauses =
        Pauses { shortest: Duration::from_millis(10), longest: Duration::from_millis(80) };

    fn retry(inner: &Inner, attempts: u32, ratio: f32, floor: u32) -> Retry<RetryPolicy, Inner> {
        layer(PAUSES, Randomness::system(), attempts, ratio, floor).layer(inner.clone())
    }

    fn failing(error: Error) -> Inner {
        Inner::answering(Err(error), Duration::ZERO)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_pass_is_repeated_and_not_too_often() {
        for (error, passing) in every_error() {
            for attempts in [1, 2, 5] {
                let inner = failing(error.clone());
                let answer = retry(&inner, attempts, 1.0, 100).call(look_up("k")).await;
                assert_eq!(answer.unwrap_err(), error);
                let expected = if passing { attempts as usize } else { 1 };
                assert_eq!(inner.calls(), expected, "{error:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeat_that_succeeds_is_the_answer() {
        let inner = Inner::new(|call, _| async move {
            match call {
                0 => Err(StoreError::Throttled.into()),
                1 => Err(Error::OutcomeUnknown),
                _ => found("k", 3),
            }
        });
        let began = tokio::time::Instant::now();
        let answer = retry(&inner, 3, 1.0, 100).call(look_up("k")).await;
        assert_eq!(gist(&answer), gist(&found("k", 3)));
        // 10-20 ms and 20-40 ms, and a timer's millisecond each.
        let took = began.elapsed();
        assert!((30..=62).contains(&took.as_millis()), "{took:?}");
    }

    /// A table that is down gets its share of retries above the floor, and no more.
    #[tokio::test(start_paused = true)]
    async fn retries_keep_to_their_budget() {
        for (successes, ratio, floor, allowed) in [
            (0, 0.2, 1, 10), // the floor, for the ten seconds that the budget looks back
            (0, 0.2, 10, 100),
            (1000, 0.2, 1, 210), // and a fifth of what went well
            (1000, 0.0, 1, 10),
        ] {
            let dead = failing(StoreError::Unreachable.into());
            let policy = layer(PAUSES, Randomness::system(), 3, ratio, floor);
            let mut well = policy.layer(Inner::answering(found("k", 1), Duration::ZERO));
            for _ in 0..successes {
                assert!(well.call(look_up("k")).await.is_ok());
            }
            let mut service = policy.layer(dead.clone());
            let requests = 500;
            let answers = join_all((0..requests).map(|_| service.call(look_up("k")))).await;
            assert!(answers.iter().all(Result::is_err));
            let retries = dead.calls() - requests;
            let range = (allowed * 9 / 10)..=allowed + 1;
            assert!(range.contains(&retries), "{retries} retries, {range:?} expected");
        }
    }

    /// Those who failed together do not come back together.
    #[tokio::test(start_paused = true)]
    async fn requests_pause_for_different_times() {
        let times = Arc::new(parking_lot::Mutex::new(std::collections::BTreeSet::new()));
        let noted = times.clone();
        let began = tokio::time::Instant::now();
        let inner = Inner::new(move |call, _| {
            let noted = noted.clone();
            async move {
                if call >= 50 {
                    noted.lock().insert(began.elapsed().as_millis());
                }
                Err(StoreError::Throttled.into())
            }
        });
        let mut service = retry(&inner, 2, 1.0, 100);
        join_all((0..50).map(|_| service.call(look_up("k")))).await;
        assert_eq!(inner.calls(), 100);
        let times = times.lock();
        assert!(times.len() >= 5, "they all came back at {times:?}");
    }
}
