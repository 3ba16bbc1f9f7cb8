//! The settings that all replicas share.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{Invalid, Sequence};
use super::time::Timestamp;

/// How long an answer may be used for direct writes after it was current, in milliseconds: 0-60 s. 0: no direct writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseDuration(u32);

impl LeaseDuration {
    pub const DEFAULT: Self = Self(5_000);
    pub const MAX: Self = Self(60_000);

    fn longest() -> Self {
        Self::MAX
    }

    pub fn new(duration: Duration) -> Result<Self, Invalid> {
        let millis = u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let whole = duration == Duration::from_millis(u64::from(millis));
        if !whole || millis > Self::MAX.0 {
            let problem = "is not a whole number of milliseconds from 0 to 60 s, such as 5s";
            return Err(Invalid::new("INVALID_LEASE_DURATION", problem));
        }
        Ok(Self(millis))
    }

    /// `None` for more than a minute.
    pub fn from_millis(millis: u32) -> Option<Self> {
        (millis <= Self::MAX.0).then_some(Self(millis))
    }

    pub fn millis(self) -> u32 {
        self.0
    }

    pub fn get(self) -> Duration {
        Duration::from_millis(u64::from(self.0))
    }
}

/// The cluster's settings. Where they were never set they are [`Cluster::default`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub lease: LeaseDuration,
    /// No longer lease than this was about when the settings came to be so. What does not say it was written by who did not know.
    #[serde(default = "LeaseDuration::longest")]
    pub longest: LeaseDuration,
    pub updated: Option<Timestamp>,
    /// The entry that changed the settings last; [`Sequence::START`]: none did.
    pub revision: Sequence,
}

impl Default for Cluster {
    fn default() -> Self {
        let lease = LeaseDuration::DEFAULT;
        Self { lease, longest: lease, updated: None, revision: Sequence::START }
    }
}

impl Cluster {
    /// Identifies this version.
    pub fn etag(&self) -> String {
        format!("r{}", self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_to_its_bounds() {
        for (good, millis) in [("0", 0), ("0.001", 1), ("5", 5_000), ("60", 60_000)] {
            let duration = Duration::from_secs_f64(good.parse().unwrap());
            assert_eq!(LeaseDuration::new(duration).unwrap().millis(), millis);
        }
        for bad in [Duration::from_micros(1), Duration::from_millis(60_001), Duration::MAX] {
            assert_eq!(LeaseDuration::new(bad).unwrap_err().reason, "INVALID_LEASE_DURATION");
        }
        assert_eq!(LeaseDuration::from_millis(60_001), None);
    }
}
