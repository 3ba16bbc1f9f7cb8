//! Waits that double and differ: many shards that fail together must not come back together.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    state: u64,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, state: seed }
    }

    /// The wait after so many failures in a row: between half of what doubling gives and all of it, never over the most.
    pub fn wait(&mut self, failures: u32) -> Duration {
        let doubled = self.min.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let most = doubled.min(self.max);
        most.mul_f64(0.5 + self.fraction() / 2.0)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), its upper 53 bits.
    fn fraction(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_is_bounded(seed: u64, failures in 1u32..) {
            let (min, max) = (Duration::from_millis(100), Duration::from_secs(10));
            let wait = Backoff::new(min, max, seed).wait(failures);
            prop_assert!(wait >= min / 2 && wait <= max);
        }
    }
}
