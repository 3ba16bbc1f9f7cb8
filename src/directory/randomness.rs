//! Randomness as a value, as the clocks are, so that a simulation can draw the same lots in every run.
//!
//! For jitter, lots and nonces only; nothing drawn here is secret.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[derive(Clone)]
pub struct Randomness {
    /// `None`: the system's.
    seeded: Option<(u64, Arc<Mutex<StdRng>>)>,
}

impl Randomness {
    pub fn system() -> Self {
        Self { seeded: None }
    }

    /// The same draws in every run. Clones draw from one source.
    pub fn seeded(seed: u64) -> Self {
        Self { seeded: Some((seed, Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))) }
    }

    /// The seed, where there is one.
    pub fn seed(&self) -> Option<u64> {
        self.seeded.as_ref().map(|(seed, _)| *seed)
    }

    /// Numbers over their whole range; fractions from 0 to below 1.
    pub fn draw<T>(&self) -> T
    where
        StandardUniform: Distribution<T>,
    {
        match &self.seeded {
            None => rand::random(),
            Some((_, source)) => source.lock().random(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_all_that_decides() {
        let draws = |seed| {
            let randomness = Randomness::seeded(seed);
            let clone = randomness.clone();
            [randomness.draw::<u64>(), clone.draw(), randomness.draw()]
        };
        let first = draws(1);
        assert_eq!(first, draws(1));
        assert_ne!(first, draws(2));
        assert_ne!(first[0], first[1], "clones draw from one source");
        let system = Randomness::system();
        assert_ne!(system.draw::<u128>(), system.draw::<u128>());
    }
}
