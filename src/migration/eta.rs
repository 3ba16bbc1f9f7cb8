//! How long what a migration does will go on.

use std::time::Duration;

use cells_migration::Phase;

use super::Migration;
use crate::domain::Timestamp;

/// From `now`, at the rate of the present phase so far:
///
/// - copying and verifying: until both cells were compared; a comparison is taken to be as fast as the copy,
/// - fenced: what is left of the pause budget,
/// - soaking: what is left of the soak,
/// - removing: until all is removed.
///
/// `None`: it is not known, as nothing was done yet, more was done than had been counted, or the phase is too short to tell; or
/// nobody works on it.
pub fn time_left(migration: &Migration, now: Timestamp) -> Option<Duration> {
    if migration.record.paused || migration.parked.is_some() {
        return None;
    }
    let (spec, progress) = (&migration.spec, &migration.progress);
    let elapsed = now.since(migration.phase_since);
    let all = progress.items_estimated;
    match migration.record.phase {
        Phase::Copying => {
            let compared = Work { done: progress.items_copied, all, further: all };
            compared.left(elapsed)
        }
        Phase::Verifying => Work { done: progress.items_compared, all, further: 0 }.left(elapsed),
        Phase::Fenced => Some(spec.pause_budget.saturating_sub(elapsed)),
        Phase::Soaking => Some(spec.soak.saturating_sub(elapsed)),
        Phase::Cleaning => Work { done: progress.items_purged, all, further: 0 }.left(elapsed),
        Phase::Aborting => {
            let copied = progress.items_copied;
            Work { done: progress.items_purged, all: copied, further: 0 }.left(elapsed)
        }
        Phase::Planned
        | Phase::Logging
        | Phase::CatchingUp
        | Phase::Committed
        | Phase::Done
        | Phase::Aborted => None,
    }
}

/// Items that are worked through at an even rate.
struct Work {
    done: u64,
    all: u64,
    /// What comes after these, at the same rate.
    further: u64,
}

impl Work {
    fn left(&self, elapsed: Duration) -> Option<Duration> {
        let left = self.all.checked_sub(self.done)?.saturating_add(self.further);
        if self.done == 0 || elapsed.is_zero() {
            return None;
        }
        let millis = elapsed.as_millis().saturating_mul(left.into()) / u128::from(self.done);
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::fake;

    const SINCE: i64 = 1_700_000_000_000;

    /// What is left, so many seconds into a phase.
    fn left(seconds: i64, phase: Phase, change: impl FnOnce(&mut Migration)) -> Option<u128> {
        let mut migration = fake::migration(1);
        migration.record.phase = phase;
        migration.progress =
            crate::migration::Progress { items_estimated: 1000, ..Default::default() };
        migration.phase_since = Timestamp::from_millis(SINCE).unwrap();
        change(&mut migration);
        let now = Timestamp::from_millis(SINCE + seconds * 1000).unwrap();
        time_left(&migration, now).map(|left| left.as_millis())
    }

    #[test]
    fn a_copy_goes_on_at_its_rate_and_is_compared_at_the_same() {
        let copied = |items| move |m: &mut Migration| m.progress.items_copied = items;
        // 25 a second: 30 s for 750, and 40 s for the comparison of all.
        assert_eq!(left(10, Phase::Copying, copied(250)), Some(70_000));
        assert_eq!(left(40, Phase::Copying, copied(1000)), Some(40_000));
        assert_eq!(left(10, Phase::Copying, copied(0)), None);
        assert_eq!(left(0, Phase::Copying, copied(250)), None);
        // More than was counted: nobody knows how much there is.
        assert_eq!(left(10, Phase::Copying, copied(1001)), None);
        // A clock that went back.
        assert_eq!(left(-10, Phase::Copying, copied(250)), None);
    }

    #[test]
    fn comparing_and_removing_have_nothing_after_them() {
        let compared = |m: &mut Migration| m.progress.items_compared = 500;
        assert_eq!(left(10, Phase::Verifying, compared), Some(10_000));
        let purged = |m: &mut Migration| m.progress.items_purged = 900;
        assert_eq!(left(9, Phase::Cleaning, purged), Some(1000));
        // Only what was copied is removed again.
        let aborted = |m: &mut Migration| {
            (m.progress.items_copied, m.progress.items_purged) = (200, 100);
        };
        assert_eq!(left(10, Phase::Aborting, aborted), Some(10_000));
    }

    #[test]
    fn a_soak_and_a_fence_end_when_they_are_to() {
        let times = |m: &mut Migration| {
            m.spec.soak = Duration::from_secs(3600);
            m.spec.pause_budget = Duration::from_secs(2);
        };
        assert_eq!(left(600, Phase::Soaking, times), Some(3_000_000));
        assert_eq!(left(7200, Phase::Soaking, times), Some(0));
        assert_eq!(left(1, Phase::Fenced, times), Some(1000));
    }

    #[test]
    fn nothing_is_said_where_nobody_works_or_nothing_is_known() {
        assert_eq!(left(10, Phase::Soaking, |m| m.record.paused = true), None);
        assert_eq!(left(10, Phase::Soaking, |m| m.parked = Some("why".to_owned())), None);
        for phase in [Phase::Planned, Phase::Logging, Phase::CatchingUp, Phase::Done] {
            assert_eq!(left(10, phase, |m| m.progress.items_copied = 500), None, "{phase:?}");
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let huge = |m: &mut Migration| {
            (m.progress.items_estimated, m.progress.items_copied) = (u64::MAX, 1);
        };
        assert_eq!(
            left(253_402_300_799 - SINCE / 1000, Phase::Copying, huge),
            Some(u64::MAX.into())
        );
    }
}
