//! Time as this crate sees it: a monotonic clock that comes in as an argument.
//!
//! A lease is counted on the caller's own clock from the moment it sent its question. So the clock must never stand still while the
//! rest of the world goes on: on Linux it is `CLOCK_BOOTTIME`, which goes on while the machine is suspended (the standard library's
//! `Instant` does not). No wall clock takes part.

use std::time::Duration;

/// Reads a monotonic clock. Its zero is arbitrary but never changes.
pub trait Clock: Send + Sync + 'static {
    /// The time since the clock's zero; never falls.
    fn now(&self) -> Duration;
}

/// The system's monotonic clock, time in suspension included where the system can tell.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    #[cfg(not(target_os = "linux"))]
    origin: std::time::Instant,
}

impl SystemClock {
    /// The clock, whose zero is the boot or this moment.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            #[cfg(not(target_os = "linux"))]
            origin: std::time::Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    #[cfg(target_os = "linux")]
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // The time since boot is neither negative nor are its nanoseconds out of range.
        Duration::new(now.tv_sec.max(0) as u64, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// A moment on a [`Clock`], in nanoseconds. [`Moment::NEVER`] lies before all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Before every moment that a clock can give: "unknown", "over".
    pub const NEVER: Self = Self(0);
    /// After every moment that matters: "no need to wake".
    pub const LAST: Self = Self(u64::MAX);
    /// A clock's zero: a hundred years after `NEVER`, so that what was current before the process began has a moment too.
    const ZERO: u64 = 100 * 366 * 24 * 3600 * 1_000_000_000;

    pub fn now(clock: &dyn Clock) -> Self {
        Self(Self::ZERO).after(clock.now())
    }

    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// The moment as long before; [`Moment::NEVER`] where that is out of range.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// How long from `earlier` to here; zero where it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn to_bits(self) -> u64 {
        self.0
    }

    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is left of a `lease` on a clock that may run slow by `parts_per_million` against the clocks of the directory.
///
/// Rounded down. A slow clock makes a lease seem longer than it is, so it is used for less.
pub(crate) fn shortened(lease: Duration, parts_per_million: u32) -> Duration {
    let ppm = u128::from(parts_per_million.min(1_000_000));
    let left = lease.as_nanos() * (1_000_000 - ppm) / 1_000_000;
    Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_clock_shortens_a_lease_and_never_lengthens_it() {
        assert_eq!(shortened(Duration::from_secs(5), 1_000), Duration::from_millis(4_995));
        assert_eq!(shortened(Duration::from_nanos(1), 1), Duration::ZERO);
        assert_eq!(shortened(Duration::from_secs(5), 0), Duration::from_secs(5));
        assert_eq!(shortened(Duration::from_secs(5), u32::MAX), Duration::ZERO);
    }

    #[test]
    fn moments_before_the_clock_began_are_told_apart() {
        let now = Moment::now(&SystemClock::new());
        let long_ago = now.before(Duration::from_secs(90 * 24 * 3600));
        assert_eq!(now.since(long_ago), Duration::from_secs(90 * 24 * 3600));
        assert!(long_ago > Moment::NEVER);
        assert_eq!(Moment::NEVER.since(now), Duration::ZERO);
    }
}
