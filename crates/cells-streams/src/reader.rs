//! Decides what the reader of one shard does next. Pure: the driver in [`crate::worker`] performs a step and says what came of it.
//!
//! ```text
//!            ┌──────────── expired ◄────────────┐
//!            ▼                                  │
//!   ┌──► [ seek ] ──iterator──► [ read ] ──records──► [ offer ] ──accepted──► [ save ] ──► read, or over at the shard's end
//!   │       │                     │                      ▲                       │
//!   │       └──── trimmed, gone ──┴──── the gap ─────────┘                       │
//!   └────────────────────── at the trim horizon, once the gap is saved ◄─────────┘
//! ```
//!
//! Invariants:
//! - A position is saved only after the sink accepted all up to it; nothing is read on before it is saved.
//! - One page at most is held.
//! - The time that is recorded with a position without a sequence number is no later than any record that is still to come.
//! - Reading goes on after the last accepted record, or behind a gap that the sink accepted. Never from the latest.
//! - No delivery begins after the time until which the lease is surely held.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::event::{Batch, Delivery, Event, Gap, GapCause, Source};
use crate::lease::{Claimed, Lease, Position};
use crate::streams::{ReadFrom, RecordPage, ShardIterator, StreamsError};
use crate::{Options, ShardId};

/// How often a checkpoint is tried when the consumer is to stop.
const STOP_TRIES: u32 = 3;

/// How many empty pages in a row are taken for the open end of a shard. One alone proves nothing: GetRecords may come upon a stretch
/// without records.
const TIP_PAGES: u32 = 10;

/// How often the emptiness of a shard is recorded while it can be trusted.
const REFRESHES: i64 = 20;

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Iterator(ReadFrom),
    Records(ShardIterator),
    Deliver(Arc<Delivery>),
    Checkpoint(Position),
    /// Renew the lease before anything else.
    Renew,
    /// Nothing before this time, unless lease or stop change.
    Wait(Duration),
    Over(Ended),
}

/// Why a reader ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The shard is read to its end, and that is recorded.
    Finished,
    /// Another has the lease.
    Lost,
    /// It was asked to; the lease is still held.
    Stopped,
}

/// What surrounds the reader at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub lost: bool,
    pub held_until: Duration,
    pub stopping: bool,
}

/// Whether the stream lists a shard, by a complete listing that began at `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub at: Duration,
    pub shard: bool,
}

#[derive(Debug)]
enum State {
    Seek,
    Read(ShardIterator),
    Offer(Arc<Delivery>, Position, Then),
    Save(Position, Then),
    Over(Ended),
}

/// What follows a saved position.
#[derive(Debug, Clone)]
enum Then {
    Read(ShardIterator),
    Seek,
    End,
}

#[derive(Debug)]
pub struct Reader {
    source: Arc<Source>,
    shard: ShardId,
    since_secs: Option<i64>,
    position: Position,
    state: State,
    trusted_secs: i64,
    /// No record that is still to come is older than this second of the Unix epoch.
    young_secs: Option<i64>,
    empty_pages: u32,
    failures: u32,
    /// Nothing before this, after a failure.
    not_before: Duration,
    /// No call of GetRecords before this.
    read_at: Duration,
    not_found_since: Option<Duration>,
    read_interval: Duration,
    idle_interval: Duration,
    backoff: Backoff,
}

impl Reader {
    /// The first read waits as long as the next ones: there may have been a reader just before.
    pub fn new(
        now: Duration,
        source: Arc<Source>,
        lease: &Lease,
        options: &Options,
        seed: u64,
    ) -> Self {
        let mut reader = Self {
            source,
            shard: lease.shard.clone(),
            since_secs: lease.since_secs,
            position: lease.position.clone(),
            state: State::Seek,
            trusted_secs: i64::try_from(options.trusted.as_secs()).unwrap_or(i64::MAX),
            young_secs: match lease.position {
                Position::Fresh { as_of_secs } => Some(as_of_secs),
                _ => None,
            },
            empty_pages: 0,
            failures: 0,
            not_before: Duration::ZERO,
            read_at: now + options.read_interval,
            not_found_since: None,
            read_interval: options.read_interval,
            idle_interval: options.idle_interval,
            backoff: Backoff::new(options.backoff_min, options.backoff_max, seed),
        };
        match reader.position {
            Position::Orphan => reader.offer_gap(GapCause::ParentsGone, Position::Lost, Then::Seek),
            Position::End { .. } | Position::LostEnd => reader.state = State::Over(Ended::Finished),
            _ => {}
        }
        reader
    }

    /// The next step. Asking twice gives the same.
    pub fn next(&self, now: Duration, standing: Standing) -> Step {
        if let State::Over(ended) = self.state {
            return Step::Over(ended);
        }
        if standing.lost {
            return Step::Over(Ended::Lost);
        }
        if standing.stopping && self.may_stop() {
            return Step::Over(Ended::Stopped);
        }
        if now < self.not_before {
            return Step::Wait(self.not_before);
        }
        match &self.state {
            State::Seek => Step::Iterator(self.read_from()),
            State::Read(_) if now < self.read_at => Step::Wait(self.read_at),
            State::Read(iterator) => Step::Records(iterator.clone()),
            State::Offer(..) if now >= standing.held_until => Step::Renew,
            State::Offer(delivery, ..) => Step::Deliver(delivery.clone()),
            State::Save(position, _) => Step::Checkpoint(position.clone()),
            State::Over(ended) => Step::Over(*ended),
        }
    }

    /// A batch at hand is finished first, if the sink takes it.
    fn may_stop(&self) -> bool {
        match self.state {
            State::Offer(..) => self.failures > 0,
            State::Save(..) => self.failures >= STOP_TRIES,
            _ => true,
        }
    }

    /// Whether a delivery is at hand that the sink has not accepted.
    pub fn holds_delivery(&self) -> bool {
        matches!(self.state, State::Offer(..))
    }

    fn read_from(&self) -> ReadFrom {
        match &self.position {
            Position::After(at) => ReadFrom::After(at.clone()),
            _ => ReadFrom::TrimHorizon,
        }
    }

    pub fn got_iterator(
        &mut self,
        now: Duration,
        wall_secs: i64,
        answer: Result<ShardIterator, StreamsError>,
        listed: Option<Listed>,
    ) {
        match answer {
            Ok(iterator) => {
                self.not_found_since = None;
                self.state = State::Read(iterator);
                if let Position::Fresh { as_of_secs } = self.position
                    && wall_secs.saturating_sub(as_of_secs) > self.trusted_secs
                {
                    self.offer_gap(GapCause::Stale, Position::Lost, Then::Seek);
                }
            }
            Err(error) => self.stream_failed(now, &error, listed),
        }
    }

    pub fn got_records(
        &mut self,
        now: Duration,
        wall_secs: i64,
        answer: Result<RecordPage, StreamsError>,
    ) {
        // Whatever came of it, it counts against the shard's five calls a second.
        self.read_at = now + self.read_interval;
        let page = match answer {
            Ok(page) => page,
            Err(error) => return self.stream_failed(now, &error, None),
        };
        self.failures = 0;
        let then = page.next.map_or(Then::End, Then::Read);
        let created = page.records.last().and_then(|record| record.created_secs);
        self.young_secs = self.young_secs.max(created);
        let Some(last) = page.records.last().map(|record| record.sequence.clone()) else {
            match then {
                Then::Read(iterator) => {
                    self.read_at = now + self.idle_interval.max(self.read_interval);
                    self.empty_pages = self.empty_pages.saturating_add(1);
                    if self.empty_pages >= TIP_PAGES {
                        self.young_secs = Some(wall_secs);
                    }
                    self.state = match self.refreshed() {
                        Some(fresh) => State::Save(fresh, Then::Read(iterator)),
                        None => State::Read(iterator),
                    };
                }
                _ => {
                    let end = match self.position {
                        Position::Lost => Position::LostEnd,
                        _ => self.end(wall_secs),
                    };
                    self.state = State::Save(end, Then::End);
                }
            }
            return;
        };
        self.empty_pages = 0;
        let events: Vec<Event> = page
            .records
            .into_iter()
            .filter(|record| match (self.since_secs, record.created_secs) {
                (Some(since), Some(created)) => created >= since,
                _ => true,
            })
            .map(|record| Event { source: self.source.clone(), shard: self.shard.clone(), record })
            .collect();
        let save = match then {
            Then::End => self.end(wall_secs),
            _ => Position::After(last),
        };
        if events.is_empty() {
            self.state = State::Save(save, then);
            return;
        }
        let batch = Batch { source: self.source.clone(), shard: self.shard.clone(), events };
        self.state = State::Offer(Arc::new(Delivery::Events(batch)), save, then);
    }

    /// The end of the shard. What is not known to be young is taken for as old as may be.
    fn end(&self, wall_secs: i64) -> Position {
        let oldest = wall_secs.saturating_sub(self.trusted_secs);
        Position::End { as_of_secs: self.young_secs.unwrap_or(oldest) }
    }

    /// What to record of a shard that still has nothing: that it was seen so, now and then.
    fn refreshed(&self) -> Option<Position> {
        let young = self.young_secs?;
        let due = match self.position {
            Position::Horizon => true,
            Position::Fresh { as_of_secs } => {
                young.saturating_sub(as_of_secs) >= self.trusted_secs / REFRESHES
            }
            _ => false,
        };
        due.then_some(Position::Fresh { as_of_secs: young })
    }

    pub fn delivered(&mut self, now: Duration, accepted: bool) {
        if !accepted {
            return self.back_off(now);
        }
        self.failures = 0;
        self.state = match std::mem::replace(&mut self.state, State::Seek) {
            State::Offer(_, position, then) => State::Save(position, then),
            other => other,
        };
    }

    /// `None`: it is not known what came of it; the same checkpoint is tried again.
    pub fn checkpointed(&mut self, now: Duration, outcome: Option<Claimed>) {
        match outcome {
            None => self.back_off(now),
            Some(Claimed::Lost) => self.state = State::Over(Ended::Lost),
            Some(Claimed::Held) => {
                self.failures = 0;
                self.state = match std::mem::replace(&mut self.state, State::Seek) {
                    State::Save(position, then) => {
                        self.position = position;
                        match then {
                            Then::Read(iterator) => State::Read(iterator),
                            Then::Seek => State::Seek,
                            Then::End => State::Over(Ended::Finished),
                        }
                    }
                    other => other,
                };
            }
        }
    }

    /// A renewal that the reader asked for could not be made.
    pub fn renewal_failed(&mut self, now: Duration) {
        self.back_off(now);
    }

    fn stream_failed(&mut self, now: Duration, error: &StreamsError, listed: Option<Listed>) {
        match error {
            StreamsError::ExpiredIterator => {
                self.state = State::Seek;
                self.failures = self.failures.saturating_add(1);
                // The first time there is nothing to wait for.
                if self.failures > 1 {
                    self.not_before = now + self.backoff.wait(self.failures);
                }
            }
            StreamsError::Trimmed => self.trimmed(now),
            StreamsError::NotFound => self.not_found(now, listed),
            StreamsError::Throttled | StreamsError::Failed(_) | StreamsError::Rejected(_) => {
                self.back_off(now);
            }
        }
    }

    fn trimmed(&mut self, now: Duration) {
        self.state = State::Seek;
        match self.position {
            Position::Fresh { .. } | Position::After(_) => {
                self.offer_gap(GapCause::Trimmed, Position::Lost, Then::Seek);
            }
            // Nothing was promised of what was there before, or its loss was reported.
            _ => self.back_off(now),
        }
    }

    /// The service says the same of a shard that is gone and of a stream that is: only a listing from later on tells.
    fn not_found(&mut self, now: Duration, listed: Option<Listed>) {
        self.state = State::Seek;
        let since = *self.not_found_since.get_or_insert(now);
        match listed {
            Some(listed) if listed.at > since && !listed.shard => {
                self.offer_gap(GapCause::ShardGone, Position::LostEnd, Then::End);
            }
            _ => self.back_off(now),
        }
    }

    fn offer_gap(&mut self, cause: GapCause, save: Position, then: Then) {
        let after = match &self.position {
            Position::After(at) => Some(at.clone()),
            _ => None,
        };
        let gap = Gap { source: self.source.clone(), shard: self.shard.clone(), after, cause };
        self.state = State::Offer(Arc::new(Delivery::Gap(gap)), save, then);
    }

    fn back_off(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + self.backoff.wait(self.failures);
    }
}

#[cfg(test)]
mod tests;
