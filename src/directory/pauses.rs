//! Pauses between attempts: exponential, each drawn anew from the upper half of what the exponent allows, so that those who failed
//! together do not come back together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015: "equal jitter").

use std::time::Duration;

/// How long to pause. Cheap to copy; every draw is independent, whoever draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pauses {
    /// The longest first pause; the next is twice as long, and so on.
    pub first: Duration,
    /// The longest pause of all.
    pub longest: Duration,
}

impl Pauses {
    /// The pause after `failures` attempts that failed, the first being 1: between half of what the exponent allows and all of it.
    pub fn after(&self, failures: u32) -> Duration {
        let factor = 2u32.saturating_pow(failures.saturating_sub(1));
        let most = self.first.saturating_mul(factor).min(self.longest);
        most.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ() {
        let pauses = Pauses { first: Duration::from_millis(20), longest: Duration::from_secs(1) };
        for (failures, most) in [(1, 20), (2, 40), (3, 80), (6, 640), (7, 1000), (u32::MAX, 1000)] {
            let most = Duration::from_millis(most);
            let drawn: HashSet<_> = (0..100).map(|_| pauses.after(failures)).collect();
            assert!(drawn.iter().all(|pause| (most / 2..=most).contains(pause)), "{failures}");
            assert!(drawn.len() > 50, "copies and repeats draw anew: {}", drawn.len());
        }
    }
}
