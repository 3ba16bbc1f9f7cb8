//! Randomness that comes in as a seed: the same seed makes the same choices. For jitter and ties only, nothing secret.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub fn new(seed: Option<u64>) -> Self {
        Self(seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8)))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between half of `duration` and all of it.
    pub fn jitter(&mut self, duration: Duration) -> Duration {
        let half = u64::try_from(duration.as_nanos() / 2).unwrap_or(u64::MAX / 2);
        Duration::from_nanos(half + self.next() % (half + 1))
    }
}
