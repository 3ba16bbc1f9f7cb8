//! Which endpoint to follow, and when to try again. Pure.
//!
//! ```text
//!            open            first message
//!   Idle ──────────► Opening ───────────► Open
//!    ▲                  │                   │  ended, silent, not gapless
//!    └──────────────────┴───────────────────┘  (after a pause that grows, with jitter; elsewhere)
//! ```

use std::time::Duration;

use crate::clock::Moment;
use crate::rng::Rng;

/// The first pause after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// A stream that lived so long was no failure: the next pause is the first again.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// The longest that a server can ask us to stay away.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// What the messages of the open stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes on top of what is held.
    Live,
    /// A snapshot and its changes, which become the next picture.
    Snapshot,
    /// Changes only, and the first message has yet to say where they begin.
    Begin,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Link {
    Idle { at: Moment },
    Opening { endpoint: usize, since: Moment, kind: Kind },
    Open { endpoint: usize, opened: Moment, heard: Moment, sequence: u64, kind: Kind },
}

impl Link {
    /// The endpoint that sends us messages.
    pub fn endpoint(&self) -> Option<usize> {
        match self {
            Self::Open { endpoint, .. } => Some(*endpoint),
            Self::Idle { .. } | Self::Opening { .. } => None,
        }
    }

    /// When the silence of a stream has lasted too long.
    pub fn silent_at(&self, silence: Duration) -> Option<Moment> {
        match self {
            Self::Idle { .. } => None,
            Self::Opening { since, .. } => Some(since.after(silence)),
            Self::Open { heard, .. } => Some(heard.after(silence)),
        }
    }
}

/// The endpoints, in turn.
pub(crate) struct Endpoints {
    /// No sooner than this, endpoint by endpoint.
    not_before: Vec<Moment>,
    next: usize,
    failures: u32,
    backoff_max: Duration,
}

impl Endpoints {
    pub fn new(count: usize, backoff_max: Duration, rng: &mut Rng) -> Self {
        let count = count.max(1);
        // Clients that start together do not all go to the first.
        let next = (rng.next() % count as u64) as usize;
        Self { not_before: vec![Moment::NEVER; count], next, failures: 0, backoff_max }
    }

    /// The next one that may be asked at `now`; where none may, the next.
    pub fn pick(&self, now: Moment) -> usize {
        let count = self.not_before.len();
        let in_turn = (0..count).map(|n| (self.next + n) % count);
        in_turn.clone().find(|n| self.not_before[*n] <= now).unwrap_or(self.next)
    }

    /// `endpoint` has failed: when to try the next one.
    pub fn failed(
        &mut self,
        endpoint: usize,
        now: Moment,
        lived: Duration,
        retry_after: Option<Duration>,
        rng: &mut Rng,
    ) -> Moment {
        if lived >= STABLE_AFTER {
            self.failures = 0;
        }
        let backoff = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(self.backoff_max);
        self.failures = self.failures.saturating_add(1);
        let count = self.not_before.len();
        let at = now.after(rng.jitter(backoff));
        let own = retry_after.map_or(at, |wait| at.max(now.after(wait.min(RETRY_AFTER_MAX))));
        if let Some(not_before) = self.not_before.get_mut(endpoint) {
            *not_before = own;
        }
        self.next = (endpoint + 1) % count;
        // Where every endpoint has asked for quiet, it is kept.
        let soonest = self.not_before.iter().min().copied().unwrap_or(at);
        at.max(soonest)
    }

    /// Where to ask again without having failed.
    pub fn prefer(&mut self, endpoint: usize) {
        self.next = endpoint % self.not_before.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_to_the_limit_and_begin_anew_after_a_stable_stream() {
        let mut rng = Rng::new(Some(1));
        let mut endpoints = Endpoints::new(2, 10 * SECOND, &mut rng);
        let now = Moment::from_bits(1 << 60);
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            last = endpoints.failed(0, now, Duration::ZERO, None, &mut rng).since(now);
            assert!(last >= BACKOFF_MIN / 2 && last <= 10 * SECOND, "{last:?}");
        }
        assert!(last >= 5 * SECOND);
        let first = endpoints.failed(0, now, STABLE_AFTER, None, &mut rng).since(now);
        assert!(first <= BACKOFF_MIN);
    }

    #[test]
    fn an_endpoint_that_asks_for_quiet_gets_it_while_others_are_tried() {
        let mut rng = Rng::new(Some(2));
        let mut endpoints = Endpoints::new(2, SECOND, &mut rng);
        let now = Moment::from_bits(1 << 60);
        let at = endpoints.failed(0, now, Duration::ZERO, Some(30 * SECOND), &mut rng);
        assert!(at < now.after(SECOND));
        assert_eq!(endpoints.pick(at), 1);
        let at = endpoints.failed(1, at, Duration::ZERO, Some(20 * SECOND), &mut rng);
        assert!(at >= now.after(20 * SECOND), "both asked for quiet");
        assert_eq!(endpoints.pick(at), 1);
        // A server cannot send us away for ever.
        let at = endpoints.failed(1, now, Duration::ZERO, Some(1_000_000 * SECOND), &mut rng);
        assert!(at <= now.after(60 * SECOND));
    }
}
