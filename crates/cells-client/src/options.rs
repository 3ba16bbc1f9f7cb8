//! What a user can set, with its bounds. Checked once, by [`Options::check`].

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;

/// The most endpoints.
pub const MAX_ENDPOINTS: usize = 64;
/// The most placements of the bounded mode.
pub const MAX_CAPACITY: usize = 1 << 26;
/// The longest time that any option can say.
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// What a directory holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Every placement there is: a key that is not in memory has no cell, or has got one just now.
    Whole,
    /// The placements that were asked for, at most so many (1-67,108,864). The Watch keeps them exact.
    Bounded {
        /// How many.
        capacity: usize,
    },
}

/// When a miss is asked of a second endpoint while the first has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hedge {
    /// Never: the second endpoint is asked only after the first has failed.
    Off,
    /// After so long.
    After(Duration),
    /// After the time that 95 % of the answers stay below, as observed; at least and at most so long.
    Adaptive {
        /// At least.
        min: Duration,
        /// At most; also the value until enough was observed.
        max: Duration,
    },
}

/// The cell to answer as a guess where nothing is known and no endpoint answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackCell {
    /// Its name.
    pub cell_id: String,
    /// Where it is reached.
    pub endpoint: String,
    /// Its Region.
    pub region: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub mode: Mode,
    pub snapshot: Option<PathBuf>,
    pub snapshot_interval: Duration,
    pub connect_timeout: Duration,
    pub wait: bool,
    pub hedge: Hedge,
    pub attempt_timeout: Duration,
    pub deadline: Duration,
    pub sync_interval: Duration,
    pub watch_silence: Duration,
    pub stale_after: Duration,
    pub backoff_max: Duration,
    pub clock_drift_ppm: u32,
    pub journal_settle: Duration,
    pub fallback_cell: Option<FallbackCell>,
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Whole,
            snapshot: None,
            snapshot_interval: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(30),
            wait: true,
            hedge: Hedge::Adaptive {
                min: Duration::from_millis(2),
                max: Duration::from_millis(100),
            },
            attempt_timeout: Duration::from_millis(500),
            deadline: Duration::from_secs(2),
            sync_interval: Duration::from_secs(1),
            watch_silence: Duration::from_secs(10),
            stale_after: Duration::from_secs(10),
            backoff_max: Duration::from_secs(10),
            clock_drift_ppm: 1_000,
            journal_settle: Duration::from_secs(60),
            fallback_cell: None,
            seed: None,
        }
    }
}

impl Options {
    pub fn check(&self, endpoints: usize) -> Result<(), Error> {
        let bad = |option, problem: &str| {
            Err(Error::InvalidOption { option, problem: problem.to_owned() })
        };
        if endpoints == 0 || endpoints > MAX_ENDPOINTS {
            return bad("endpoints", "give 1 to 64 of them");
        }
        if let Mode::Bounded { capacity } = self.mode
            && (capacity == 0 || capacity > MAX_CAPACITY)
        {
            return bad("mode", "the capacity is 1 to 67,108,864");
        }
        let times = [
            ("snapshot_interval", self.snapshot_interval),
            ("connect_timeout", self.connect_timeout),
            ("attempt_timeout", self.attempt_timeout),
            ("deadline", self.deadline),
            ("sync_interval", self.sync_interval),
            ("watch_silence", self.watch_silence),
            ("stale_after", self.stale_after),
            ("backoff_max", self.backoff_max),
        ];
        for (option, time) in times {
            if time < Duration::from_millis(1) || time > MAX_TIME {
                return bad(option, "give 1 ms to 24 h");
            }
        }
        if self.clock_drift_ppm > 500_000 {
            return bad("clock_drift", "at most half");
        }
        if let Hedge::Adaptive { min, max } = self.hedge
            && min > max
        {
            return bad("hedge", "the least delay is above the greatest");
        }
        if self.fallback_cell.as_ref().is_some_and(|cell| cell.cell_id.is_empty()) {
            return bad("fallback_cell", "give its cell_id");
        }
        Ok(())
    }
}
