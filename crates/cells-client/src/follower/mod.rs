//! Follows the journal: a pure state machine between the Watch, the renewals and memory.
//!
//! It exists apart from any I/O so that a simulation can drive it through every interleaving. Events come in with the time, actions go
//! out; [`Follower::wake_at`] says when to come back without an event. The one thing that it changes by itself is memory.
//!
//! ```text
//!   watch messages ──► apply ──► memory, position ──► grants that waited for it ──► lease of the picture
//!   answers to misses ─► settle ─► kept in memory only where they are exact as of the position
//! ```
//!
//! Invariants:
//! 1. A value that is *attached* to the picture takes in every change of its key up to `applied`, or up to a later entry.
//! 2. A lease is granted to a picture only for a position that it has applied, of the same journal.
//! 3. The epoch that a client is answered for a key never falls, as long as the journal stays the same: see `settle`, and `floors`.
//! 4. What is held is answered until something newer replaces it, whatever happens to endpoints, streams and tokens.

mod apply;
mod link;
mod refresh;
mod renewal;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::refresh::source;
pub(crate) use self::settle::{Fetched, Settled, Ticket};

use self::link::{Endpoints, Kind, Link};
use self::refresh::Refresh;
use self::renewal::{Grant, Renewals};
use self::settle::Tickets;
use crate::clock::Moment;
use crate::error::{Failure, FailureKind};
use crate::memory::Memory;
use crate::options::{Mode, Options};
use crate::picture::{Picture, Shared};
use crate::proto;
use crate::rng::Rng;

/// What has happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Nothing but time.
    Tick,
    /// A message of the open Watch.
    Watch(Box<proto::WatchResponse>),
    /// The Watch could not be opened, or has ended.
    WatchEnded(Failure),
    /// The renewal was answered.
    Synced(Result<proto::SyncResponse, Failure>),
    /// The refresh was answered.
    Refreshed(Result<proto::BatchResolveResponse, Failure>),
}

/// What to do. Of each kind one at most is under way.
#[derive(Debug)]
pub(crate) enum Action {
    /// Opens a Watch.
    OpenWatch { endpoint: usize, request: proto::WatchRequest },
    /// Drops the Watch, open or being opened.
    CloseWatch,
    /// Asks for a renewal. Counted as sent at the time of the event that led to it.
    Sync { endpoint: usize },
    /// Drops the question for a renewal.
    CancelSync,
    /// Asks for many keys.
    Refresh { endpoint: usize, request: proto::BatchResolveRequest },
    /// Drops that.
    CancelRefresh,
}

/// Where the picture stands in the journal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    /// Whether a Watch was followed, now or in the life of the snapshot file's writer.
    pub attached: bool,
    pub journal_id: String,
    /// All entries up to this one are applied.
    pub applied: u64,
    /// Where to go on. Empty: begin anew.
    pub token: String,
    /// From a snapshot file: some values are of this position, which the Watch may not have reached yet.
    pub reached: u64,
}

/// What a snapshot file is written from.
pub(crate) struct Export {
    pub position: Position,
    pub picture: Arc<Picture>,
    /// What the Watch has not told of yet: the next process must not take it for what the position says.
    pub ahead: HashSet<Box<str>>,
}

/// A picture in the making.
struct Building {
    memory: Memory,
    journal_id: String,
}

pub(crate) struct Follower {
    options: Options,
    shared: Arc<Shared>,
    rng: Rng,
    endpoints: Endpoints,
    endpoint_count: usize,
    link: Link,
    position: Position,
    building: Option<Building>,
    renewals: Renewals,
    tickets: Tickets,
    /// Whole map: values that were fetched and that the Watch has not told of yet, and the position that came with them.
    ahead: HashMap<Box<str>, u64>,
    /// Whole map: values that are not exact, and since when the table is known not to have them.
    absent: HashMap<Box<str>, Moment>,
    refresh: Refresh,
    /// The first generation of the present journal: epochs of values from before are of another.
    journal_generation: u32,
    /// Until then an answer might be of the journal before: it is not kept.
    settle_until: Moment,
}

impl Follower {
    pub fn new(options: Options, shared: Arc<Shared>, endpoint_count: usize) -> Self {
        let mut rng = Rng::new(options.seed);
        Self {
            endpoints: Endpoints::new(endpoint_count, options.backoff_max, &mut rng),
            endpoint_count: endpoint_count.max(1),
            link: Link::Idle { at: Moment::NEVER },
            position: Position::default(),
            building: None,
            renewals: Renewals::new(
                options.sync_interval,
                options.attempt_timeout.max(Duration::from_secs(1)),
            ),
            tickets: Tickets::default(),
            ahead: HashMap::new(),
            absent: HashMap::new(),
            refresh: Refresh::new(&options),
            journal_generation: 0,
            settle_until: Moment::NEVER,
            options,
            shared,
            rng,
        }
    }

    /// Takes over where the snapshot file's writer left off. The picture is in place already.
    pub fn resume(&mut self, position: Position) {
        self.position = position;
        self.refresh_all();
        if !self.shared.picture.load().memory.is_bounded() {
            self.ahead = self.refresh.queued().map(|key| (key.into(), 0)).collect();
        }
    }

    /// What a snapshot file is written from.
    pub fn export(&self) -> Export {
        Export {
            position: self.position.clone(),
            picture: self.shared.picture.load_full(),
            ahead: self.ahead.keys().cloned().collect(),
        }
    }

    /// Whether there is a whole picture, however old.
    pub fn is_ready(&self) -> bool {
        self.position.attached
    }

    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The endpoint that is known to be alive, if any.
    pub fn alive(&self) -> Option<usize> {
        self.link.endpoint()
    }

    /// What follows from an event at `now`, in order.
    pub fn on_event(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Watch(message) => {
                if let Err(failure) = self.on_message(now, *message) {
                    actions.push(Action::CloseWatch);
                    self.broken(now, &failure);
                }
            }
            Event::WatchEnded(failure) => self.broken(now, &failure),
            Event::Synced(answer) => self.on_synced(now, answer, &mut actions),
            Event::Refreshed(answer) => self.on_refreshed(now, answer),
        }
        self.on_time(now, &mut actions);
        actions
    }

    /// When to call [`Follower::on_event`] even if nothing happens.
    pub fn wake_at(&self) -> Moment {
        let link = match self.link {
            Link::Idle { at } => at,
            Link::Opening { .. } | Link::Open { .. } => {
                self.link.silent_at(self.options.watch_silence).unwrap_or(Moment::LAST)
            }
        };
        let renewal = match self.renewals.late_at() {
            Some(late) => late,
            None if self.position.attached => self.renewals.next_at,
            None => Moment::LAST,
        };
        link.min(renewal).min(self.refresh.wake_at(self.position.attached))
    }

    /// What time alone brings about.
    fn on_time(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.link.silent_at(self.options.watch_silence).is_some_and(|at| at <= now) {
            actions.push(Action::CloseWatch);
            self.broken(now, &Failure::passing("the watch has fallen silent"));
        }
        if let Link::Idle { at } = self.link
            && at <= now
        {
            actions.push(self.open(now));
        }
        if self.renewals.late_at().is_some_and(|late| late <= now) {
            self.renewals.sent = None;
            self.renewals.failed(now, None);
            actions.push(Action::CancelSync);
        }
        if self.position.attached && self.renewals.sent.is_none() && self.renewals.next_at <= now {
            // Who sends us changes knows best how far we can have come.
            let first = self.link.endpoint().unwrap_or_else(|| self.endpoints.pick(now));
            let endpoint = (first + self.renewals.failures) % self.endpoint_count;
            self.renewals.send(now, endpoint);
            actions.push(Action::Sync { endpoint });
        }
        self.on_refresh_time(now, actions);
    }

    fn open(&mut self, now: Moment) -> Action {
        let endpoint = self.endpoints.pick(now);
        let bounded = matches!(self.options.mode, Mode::Bounded { .. });
        let kind = match (self.position.token.is_empty(), bounded) {
            (false, _) => Kind::Live,
            (true, false) => Kind::Snapshot,
            (true, true) => Kind::Begin,
        };
        self.building = None;
        self.link = Link::Opening { endpoint, since: now, kind };
        let request = proto::WatchRequest {
            resume_token: self.position.token.clone(),
            cell_ids: Vec::new(),
            changes_only: bounded,
        };
        Action::OpenWatch { endpoint, request }
    }

    /// The Watch is no more: goes on elsewhere, or begins anew. What is held stays.
    fn broken(&mut self, now: Moment, failure: &Failure) {
        let (endpoint, lived) = match self.link {
            Link::Idle { .. } => return,
            Link::Opening { endpoint, .. } => (endpoint, Duration::ZERO),
            Link::Open { endpoint, opened, .. } => (endpoint, now.since(opened)),
        };
        tracing::info!(endpoint, reason = %failure.reason, message = %failure.message, "the watch has ended");
        self.building = None;
        let at = self.endpoints.failed(endpoint, now, lived, failure.retry_after, &mut self.rng);
        if failure.kind == FailureKind::ResumeTokenExpired && !self.position.token.is_empty() {
            // The endpoint is well. From here on there is a gap between what is held and what will come.
            self.position.token.clear();
            self.endpoints.prefer(endpoint);
        }
        self.link = Link::Idle { at };
    }

    fn on_synced(
        &mut self,
        now: Moment,
        answer: Result<proto::SyncResponse, Failure>,
        actions: &mut Vec<Action>,
    ) {
        let Some(sent) = self.renewals.sent.take() else { return };
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.renewals.failed(now, failure.retry_after),
        };
        let lease = duration(answer.lease.as_ref()).unwrap_or_default();
        self.renewals.answered(sent.at, lease);
        if !self.position.attached {
            return;
        }
        if answer.journal_id != self.position.journal_id {
            self.other_journal(now, sent.endpoint, actions);
            return;
        }
        // An age that is missing is no age of zero.
        let age = duration(answer.age.as_ref()).unwrap_or(Duration::MAX);
        let grant = Grant::new(sent.at, answer.sequence, lease, age, self.options.clock_drift_ppm);
        if grant.sequence <= self.position.applied {
            self.shared.picture.load().renew(grant.until, grant.as_of);
        } else {
            self.renewals.wait(now, grant);
        }
    }

    /// A replica is on another journal than the picture: the tables were restored, or that replica has not noticed yet.
    fn other_journal(&mut self, now: Moment, endpoint: usize, actions: &mut Vec<Action>) {
        // Which of the two is the newer one cannot be told from here; no lease may outlive a restore.
        self.shared.picture.load().revoke();
        self.renewals.forget();
        let live = matches!(self.link, Link::Open { kind: Kind::Live, .. });
        if live && self.link.endpoint() == Some(endpoint) {
            // Whoever is asked to resume says whether the token is still of its journal.
            actions.push(Action::CloseWatch);
            self.broken(now, &Failure::passing("the replica follows another journal"));
        }
    }

    fn generation(&self) -> u32 {
        self.shared.picture.load().generation
    }

    /// The generation of what is held but not exact, in the present picture.
    fn loose(&self) -> u32 {
        self.generation() | 1
    }

    fn set_picture(&self, picture: Picture) {
        self.shared.picture.store(Arc::new(picture));
    }
}

/// A duration of the API; negative ones and those out of range are none.
pub(crate) fn duration(duration: Option<&prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| Duration::try_from(*duration).ok())
}
