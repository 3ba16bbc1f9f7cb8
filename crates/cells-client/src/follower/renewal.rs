//! When to ask for a renewal, and when an answer may be used. Pure.
//!
//! The safety of direct writes rests here: an answer counts from the moment the question was *sent*, and only once the Watch has applied
//! every change up to the answer's position. Until then it is kept aside.

use std::time::Duration;

use crate::clock::{Moment, shortened};

/// Answers that wait for the Watch. They come once an interval: more than these, and the Watch lags for longer than any lease.
const MAX_WAITING: usize = 16;
/// Renewals are not asked for more often than this, however short the lease is.
const MIN_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The position that has to be applied first.
    pub sequence: u64,
    pub until: Moment,
    pub as_of: Moment,
}

impl Grant {
    pub fn new(
        sent: Moment,
        sequence: u64,
        lease: Duration,
        age: Duration,
        drift_ppm: u32,
    ) -> Self {
        let lease = shortened(lease, drift_ppm);
        let until = if lease.is_zero() { Moment::NEVER } else { sent.after(lease) };
        Self { sequence, until, as_of: sent.before(age) }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub at: Moment,
    pub endpoint: usize,
}

pub(crate) struct Renewals {
    interval: Duration,
    timeout: Duration,
    pub sent: Option<Sent>,
    pub next_at: Moment,
    waiting: Vec<Grant>,
    /// Rises with each failure, to ask another endpoint.
    pub failures: usize,
}

impl Renewals {
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Self {
            interval,
            timeout,
            sent: None,
            next_at: Moment::NEVER,
            waiting: Vec::new(),
            failures: 0,
        }
    }

    pub fn send(&mut self, now: Moment, endpoint: usize) {
        self.sent = Some(Sent { at: now, endpoint });
        self.next_at = now.after(self.interval);
    }

    /// The next question comes before a third of the lease is over.
    pub fn answered(&mut self, sent: Moment, lease: Duration) {
        self.failures = 0;
        if !lease.is_zero() {
            self.next_at = sent.after((lease / 3).max(MIN_INTERVAL).min(self.interval));
        }
    }

    pub fn failed(&mut self, now: Moment, retry_after: Option<Duration>) {
        self.failures = self.failures.wrapping_add(1);
        self.next_at =
            self.next_at.max(now.after(retry_after.unwrap_or_default().min(self.interval * 60)));
    }

    /// When the question that is under way has taken too long.
    pub fn late_at(&self) -> Option<Moment> {
        self.sent.map(|sent| sent.at.after(self.timeout))
    }

    /// Keeps a grant until its position is applied.
    pub fn wait(&mut self, now: Moment, grant: Grant) {
        self.waiting.retain(|waiting| waiting.until > now);
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.remove(0);
        }
        self.waiting.push(grant);
    }

    /// Takes the grants whose position is applied.
    pub fn due(&mut self, applied: u64) -> impl Iterator<Item = Grant> {
        self.waiting.extract_if(.., move |grant| grant.sequence <= applied)
    }

    /// Another journal: its positions cannot be compared.
    pub fn forget(&mut self) {
        self.waiting.clear();
        // An answer that is under way is about we do not know which journal: it says so itself.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_grant_counts_from_the_sending_and_is_shortened() {
        let sent = Moment::from_bits(1 << 60);
        let grant = Grant::new(sent, 3, 5 * SECOND, 2 * SECOND, 1_000);
        assert_eq!(grant.until, sent.after(Duration::from_millis(4_995)));
        assert_eq!(grant.as_of, sent.before(2 * SECOND));
        assert_eq!(Grant::new(sent, 3, Duration::ZERO, SECOND, 0).until, Moment::NEVER);
    }

    #[test]
    fn grants_wait_for_their_position_and_their_number_is_bounded() {
        let mut renewals = Renewals::new(SECOND, SECOND);
        let now = Moment::from_bits(1 << 60);
        for sequence in 1..=100 {
            renewals.wait(now, Grant::new(now, sequence, SECOND, SECOND, 0));
        }
        assert_eq!(renewals.due(84).count(), 0);
        assert_eq!(renewals.due(86).map(|grant| grant.sequence).collect::<Vec<_>>(), [85, 86]);
        assert_eq!(renewals.due(u64::MAX).count(), MAX_WAITING - 2);
        // One that is over is of no use.
        renewals.wait(now, Grant::new(now, 1, SECOND, SECOND, 0));
        renewals
            .wait(now.after(2 * SECOND), Grant::new(now.after(2 * SECOND), 2, SECOND, SECOND, 0));
        assert_eq!(renewals.due(u64::MAX).count(), 1);
    }

    #[test]
    fn a_short_lease_is_renewed_in_time() {
        let mut renewals = Renewals::new(SECOND, SECOND);
        let now = Moment::from_bits(1 << 60);
        renewals.send(now, 0);
        renewals.answered(now, Duration::from_millis(600));
        assert_eq!(renewals.next_at, now.after(Duration::from_millis(200)));
        renewals.answered(now, Duration::from_millis(3));
        assert_eq!(renewals.next_at, now.after(MIN_INTERVAL));
    }
}
