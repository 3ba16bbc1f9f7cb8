//! Every limit of a consumer, by name.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

/// Where a group starts that has no records yet. Later starts go on from the checkpoints, whatever is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// At the oldest changes that the stream still has: up to 24 hours back.
    #[default]
    TrimHorizon,
    /// At the changes that are made from now on, and up to some two minutes before: records' times may be rounded to minutes. Shards that are open now are read from their
    /// beginning and what is older is dropped, which makes the start the same whatever crashes; a shard is open for some four hours.
    Latest,
}

/// Limits and intervals.
#[derive(Debug, Clone)]
pub struct Options {
    pub start: StartAt,
    /// Least time between two reads of a shard: at least 200 ms, for GetRecords allows five a second.
    pub read_interval: Duration,
    /// Time to the next read of a shard that had nothing new.
    pub idle_interval: Duration,
    /// How long a lease that is not renewed keeps others out. It is renewed at a third of that.
    pub lease: Duration,
    /// Time between two looks at the leases: at most a third of `lease`.
    pub tick: Duration,
    /// Time between two listings of the stream's shards. The end of a shard brings the next one forward.
    pub discover_interval: Duration,
    /// How long a finished shard has to be absent from the stream before its record is removed.
    pub forget_after: Duration,
    /// How long a parent that is named but not listed is waited for, if it still gives iterators.
    pub parent_patience: Duration,
    /// Most shards that one consumer reads at a time. Each holds one page in memory at most: 1,000 records, 1 MB.
    pub max_shards: usize,
    /// Bounds the pages that consumers with the same semaphore hold in memory together: a permit a page, from the read until the sink has
    /// accepted it. `None`: `max_shards` is the bound.
    pub pages: Option<Arc<Semaphore>>,
    /// Longest wait for an answer of the stream or of the leases.
    pub call_timeout: Duration,
    /// First wait after a failure; it doubles up to `backoff_max` and is then cut by up to half at random.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Longest wait for the batches at hand when the consumer is stopped.
    pub stop_within: Duration,
    /// How old the first records of a shard may be for it to be trusted to have them all, if none was read yet: below the 24 hours that the stream keeps
    /// them, by as much as the consumers' wall clocks may differ. What is older is reported as a gap.
    pub trusted: Duration,
    /// Seconds of the Unix epoch. Decides where a group starts "from now on" and when `trusted` is over, and nothing about leases.
    pub wall_secs: fn() -> i64,
    /// For the jitter of waits.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            start: StartAt::TrimHorizon,
            read_interval: Duration::from_millis(200),
            idle_interval: Duration::from_secs(1),
            lease: Duration::from_secs(15),
            tick: Duration::from_secs(3),
            discover_interval: Duration::from_secs(30),
            forget_after: Duration::from_secs(3600),
            parent_patience: Duration::from_secs(120),
            max_shards: 256,
            pages: None,
            call_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(10),
            stop_within: Duration::from_secs(10),
            trusted: Duration::from_secs(20 * 3600),
            wall_secs: unix_secs,
            seed: rand::random(),
        }
    }
}

fn unix_secs() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Options that cannot work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidOptions(&'static str);

impl Options {
    /// # Errors
    ///
    /// If a limit would break a promise: reads too fast, leases that cannot be renewed in time, none at all.
    pub fn check(&self) -> Result<(), InvalidOptions> {
        let rules = [
            (
                self.read_interval >= Duration::from_millis(200),
                "read_interval is below 200 ms: a shard allows five reads a second",
            ),
            (self.tick > Duration::ZERO && self.tick * 3 <= self.lease, "tick is over lease / 3"),
            (
                self.trusted >= Duration::from_secs(20)
                    && self.trusted < Duration::from_secs(24 * 3600),
                "trusted is below 20 s or not below the 24 hours that a stream keeps",
            ),
            (self.max_shards > 0, "max_shards is 0"),
            (
                self.call_timeout > Duration::ZERO && self.call_timeout <= self.lease / 2,
                "call_timeout is 0 or over lease / 2: a slow call would cost the lease",
            ),
            (
                self.backoff_min > Duration::ZERO && self.backoff_min <= self.backoff_max,
                "backoff_min is 0 or over backoff_max",
            ),
            (
                self.forget_after >= self.discover_interval * 4,
                "forget_after is below four discover_intervals",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(InvalidOptions(broken)),
            None => Ok(()),
        }
    }

    /// How long after its last renewal was *sent* an owner may begin a delivery. The rest is for clocks that run at other speeds.
    pub(crate) fn lease_use(&self) -> Duration {
        self.lease * 9 / 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_promise_is_refused() {
        assert_eq!(Options::default().check(), Ok(()));
        let too_fast = Options { read_interval: Duration::from_millis(199), ..Options::default() };
        assert!(too_fast.check().is_err());
        let too_slow = Options { tick: Duration::from_secs(6), ..Options::default() };
        assert!(too_slow.check().is_err());
    }
}
