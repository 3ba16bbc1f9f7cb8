//! Consumed capacity over time.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arithmetic::decimal;

/// The most units that a single number can hold: ten times a quota of 40,000 a second, for 93 days, and more.
pub const MAX_UNITS: u64 = 1_000_000_000_000_000;

/// Capacity or request units in thousandths: an eventually consistent read takes half a unit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Units(u64);

impl Units {
    pub const ZERO: Self = Self(0);

    pub const fn from_milli(milli: u64) -> Self {
        Self(milli)
    }

    /// Saturates.
    pub const fn from_whole(units: u64) -> Self {
        Self(units.saturating_mul(1000))
    }

    /// As CloudWatch gives it. `None` for what is not a number, is negative or exceeds [`MAX_UNITS`].
    pub fn from_f64(units: f64) -> Option<Self> {
        (0.0..=MAX_UNITS as f64).contains(&units).then(|| Self((units * 1000.0).round() as u64))
    }

    pub const fn milli(self) -> u64 {
        self.0
    }

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&decimal(self.0.into(), 3))
    }
}

/// The time that all series of a report cover: `points` periods from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Seconds since 1970-01-01T00:00:00Z; a whole minute.
    pub start: i64,
    /// Whole minutes, up to an hour.
    pub period_seconds: u32,
    pub points: u32,
}

impl Window {
    pub fn minutes(&self) -> u64 {
        u64::from(self.period_seconds / 60) * u64::from(self.points)
    }

    pub fn seconds(&self) -> u64 {
        self.minutes() * 60
    }

    /// When point `index` begins.
    pub(crate) fn time(&self, index: usize) -> i64 {
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        self.start.saturating_add(i64::from(self.period_seconds).saturating_mul(index))
    }
}

/// The sum of a series; what is missing counts as nothing.
pub(crate) fn sum(points: &[Option<Units>]) -> Units {
    points.iter().flatten().fold(Units::ZERO, |sum, units| sum.plus(*units))
}

/// Rates of a series in thousandths of a unit a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    pub mean: Units,
    pub p50: Units,
    pub p99: Units,
    pub max: Units,
}

impl Rates {
    /// Of demand a minute. A percentile is the smallest rate that so many of the minutes do not exceed (nearest rank).
    pub(crate) fn of(minutes: &[u64]) -> Self {
        let mut sorted = minutes.to_vec();
        sorted.sort_unstable();
        let total = sorted.iter().fold(0u128, |sum, milli| sum + u128::from(*milli));
        let count = sorted.len().max(1) as u128;
        let mean = u64::try_from(total.div_ceil(count * 60)).unwrap_or(u64::MAX);
        Self {
            mean: Units(mean),
            p50: percentile(&sorted, 50),
            p99: percentile(&sorted, 99),
            max: percentile(&sorted, 100),
        }
    }
}

/// The rate a second of the minute at `percent` of sorted demand; zero of nothing.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> Units {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    Units(sorted.get(rank).map_or(0, |milli| milli.div_ceil(60)))
}
