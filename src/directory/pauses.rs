//! Pauses between attempts: exponential, each drawn anew from the upper half of what the exponent allows, so that those who failed
//! together do not come back together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015: "equal jitter").

use std::time::Duration;

use super::randomness::Randomness;

/// How long to pause. Cheap to copy; every draw is independent, whoever draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// Not above `longest`.
    pub shortest: Duration,
    pub longest: Duration,
}

impl Pauses {
    /// The pause after `failures` attempts that failed, the first being 1: at least the shortest, and between half and all of twice
    /// that, four times that, and so on up to the longest.
    pub fn after(&self, failures: u32, randomness: &Randomness) -> Duration {
        let factor = 2u32.saturating_pow(failures);
        let most = self.shortest.saturating_mul(factor).min(self.longest);
        let least = (most / 2).max(self.shortest).min(most);
        least + (most - least).mul_f64(randomness.draw())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ() {
        let pauses =
            Pauses { shortest: Duration::from_millis(10), longest: Duration::from_secs(1) };
        let system = Randomness::system();
        for (failures, most) in [(1, 20), (2, 40), (3, 80), (6, 640), (7, 1000), (u32::MAX, 1000)] {
            let most = Duration::from_millis(most);
            let drawn: HashSet<_> = (0..100).map(|_| pauses.after(failures, &system)).collect();
            assert!(drawn.iter().all(|pause| (most / 2..=most).contains(pause)), "{failures}");
            assert!(drawn.len() > 50, "each draw is independent: {}", drawn.len());
        }
        let fixed =
            Pauses { shortest: Duration::from_millis(7), longest: Duration::from_millis(7) };
        assert_eq!(fixed.after(1, &system), Duration::from_millis(7));
    }
}
