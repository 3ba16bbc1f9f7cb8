//! What is made of calls that were timed.

use std::time::{Duration, Instant};

/// A call that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub began: Instant,
    pub took: Duration,
}

/// The part of a run that one figure is about.
pub fn between(samples: &[Sample], from: Instant, to: Instant) -> Vec<Sample> {
    samples.iter().filter(|sample| sample.began >= from && sample.began < to).copied().collect()
}

/// The duration that 99 of 100 calls took at most.
pub fn p99(samples: &[Sample]) -> Duration {
    assert!(samples.len() >= 1000, "{} calls say nothing of one in a hundred", samples.len());
    let mut took: Vec<_> = samples.iter().map(|sample| sample.took).collect();
    let at = took.len() * 99 / 100;
    *took.select_nth_unstable(at).1
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
