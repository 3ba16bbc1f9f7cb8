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

/// How long the budget remembers requests, in seconds.
const BUDGET_WINDOW_SECONDS: u64 = 10;

#[derive(Clone)]
pub struct RetryPolicy {
    budget: Arc<TpsBudget>,
    pauses: Pauses,
    failures: u32,
    attempts: u32,
}

/// `attempts` counts the first one. `ratio`: retries as a share of requests, above `floor` a second.
pub fn layer(pauses: Pauses, attempts: u32, ratio: f32, floor: u32) -> RetryLayer<RetryPolicy> {
    let window = std::time::Duration::from_secs(BUDGET_WINDOW_SECONDS);
    RetryLayer::new(RetryPolicy {
        budget: Arc::new(TpsBudget::new(window, floor, ratio)),
        pauses,
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
        Some(tokio::time::sleep(self.pauses.after(self.failures)))
    }

    fn clone_request(&mut self, request: &RouteRequest) -> Option<RouteRequest> {
        Some(request.clone())
    }
}
