//! Replicas, a journal and one client, a step at a time in any order. The model is the journal itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::super::{Action, Event, Fetched, Follower, Settled, Ticket, source};
use crate::answer::{Resolved, Source};
use crate::cells::CellTable;
use crate::clock::{Clock, Moment, SystemClock};
use crate::error::{Failure, FailureKind};
use crate::floors::Floors;
use crate::held::Held;
use crate::memory::{Memory, UNATTACHED};
use crate::options::{Mode, Options};
use crate::picture::{Picture, Shared};
use crate::proto;
use crate::proto::batch_resolve_result::Outcome;
use crate::proto::placement_change::Change;
use crate::proto::watch_response::Event as Piece;
use crate::snapshot;

pub const KEYS: u8 = 8;
pub const REPLICAS: usize = 3;
const LEASE_MS: u64 = 5_000;
const CELLS: [&str; 3] = ["a", "b", "c"];
/// The client's clock is slow by as much as is allowed.
const DRIFT_PPM: u32 = 1_000;

/// What happens next. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// The tenant is placed, moved, or its mode changes.
    Change {
        key: u8,
        cell: u8,
        logged: bool,
    },
    Vacate {
        key: u8,
    },
    /// The replica reads the journal to its end.
    Poll {
        replica: usize,
    },
    /// The replica puts its next message on the wire.
    Produce,
    /// The client gets the next message from the wire.
    Deliver,
    Break,
    /// Tokens so far expire.
    Expire,
    ServeSync,
    DeliverSync,
    LoseSync,
    Ask {
        key: u8,
        replica: usize,
        table: bool,
    },
    Serve {
        flight: usize,
    },
    Land {
        flight: usize,
    },
    ServeRefresh {
        replica: usize,
    },
    DeliverRefresh,
    Pass {
        ms: u16,
    },
    /// The client writes its file, ends and starts again.
    Restart,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    at: u64,
    key: u8,
    /// `None`: vacated.
    after: Option<proto::Placement>,
    /// Of what was vacated.
    epoch: u64,
}

#[derive(Clone, Copy, Default)]
struct Replica {
    position: usize,
    as_of: u64,
}

struct Stream {
    replica: usize,
    position: usize,
    /// The next key of a snapshot that is not whole.
    snapshot: Option<u8>,
    first: bool,
    expired: bool,
    wire: Vec<proto::WatchResponse>,
}

struct Flight {
    ticket: Ticket,
    key: u8,
    replica: usize,
    table: bool,
    sent: Moment,
    min_epoch: u64,
    answer: Option<Result<proto::ResolveResponse, FailureKind>>,
}

pub struct Sim {
    mode: Mode,
    now: u64,
    journal: Vec<Entry>,
    oldest: usize,
    replicas: [Replica; REPLICAS],
    shared: Arc<Shared>,
    follower: Follower,
    stream: Option<Stream>,
    sync: Option<(usize, Option<proto::SyncResponse>)>,
    refresh: Option<(Vec<String>, Option<proto::BatchResolveResponse>)>,
    flights: Vec<Flight>,
    /// The highest epoch that the client was told, key by key.
    told: BTreeMap<u8, u64>,
    /// How often a lease was seen, so that a test that never sees one is noticed.
    pub leased: usize,
    folder: tempfile::TempDir,
}

fn name(key: u8) -> String {
    format!("tenant-{key}")
}

fn shared(mode: Mode) -> Arc<Shared> {
    let floors = Arc::new(Floors::new());
    let memory = match mode {
        Mode::Whole => Memory::whole(None),
        Mode::Bounded { capacity } => Memory::bounded(capacity, floors.clone(), Some(7)),
    };
    Arc::new(Shared {
        picture: ArcSwap::from_pointee(Picture::new(Arc::new(memory), UNATTACHED, None)),
        cells: CellTable::new(),
        floors,
        clock: Arc::new(SystemClock::new()) as Arc<dyn Clock>,
        stale_after: Duration::from_secs(10),
    })
}

fn options(mode: Mode) -> Options {
    Options { mode, seed: Some(1), clock_drift_ppm: DRIFT_PPM, ..Options::default() }
}

impl Sim {
    pub fn new(mode: Mode) -> Self {
        let shared = shared(mode);
        let follower = Follower::new(options(mode), shared.clone(), REPLICAS);
        let mut sim = Self {
            mode,
            now: 1_000_000,
            journal: Vec::new(),
            oldest: 0,
            replicas: Default::default(),
            shared,
            follower,
            stream: None,
            sync: None,
            refresh: None,
            flights: Vec::new(),
            told: BTreeMap::new(),
            leased: 0,
            folder: tempfile::tempdir().unwrap(),
        };
        sim.event(Event::Tick);
        sim
    }

    /// The client's clock: slow.
    fn moment(&self) -> Moment {
        let slow = u128::from(self.now) * u128::from(1_000_000 - DRIFT_PPM);
        Moment::from_bits(1 << 62).after(Duration::from_nanos(slow as u64))
    }

    fn truth(&self, key: u8, position: usize) -> Option<&proto::Placement> {
        self.journal[..position]
            .iter()
            .rev()
            .find(|entry| entry.key == key)
            .and_then(|entry| entry.after.as_ref())
    }

    fn last_epoch(&self, key: u8) -> u64 {
        self.journal.iter().rev().find(|entry| entry.key == key).map_or(0, |entry| entry.epoch)
    }

    fn event(&mut self, event: Event) {
        let now = self.moment();
        for action in self.follower.on_event(now, event) {
            match action {
                Action::OpenWatch { endpoint, request } => {
                    let token = request.resume_token.parse::<usize>().ok();
                    self.stream = Some(Stream {
                        replica: endpoint,
                        position: token.unwrap_or(self.replicas[endpoint].position),
                        snapshot: (token.is_none() && !request.changes_only).then_some(0),
                        first: true,
                        expired: token.is_some_and(|token| token < self.oldest),
                        wire: Vec::new(),
                    });
                }
                Action::CloseWatch => self.stream = None,
                Action::Sync { endpoint } => self.sync = Some((endpoint, None)),
                Action::CancelSync => self.sync = None,
                Action::Refresh { request, .. } => {
                    self.refresh = Some((request.partition_keys, None))
                }
                Action::CancelRefresh => self.refresh = None,
            }
        }
    }

    pub fn step(&mut self, op: Op) {
        match op {
            Op::Change { key, cell, logged } => self.change(key % KEYS, cell, logged),
            Op::Vacate { key } => self.vacate(key % KEYS),
            Op::Poll { replica } => {
                self.replicas[replica % REPLICAS] =
                    Replica { position: self.journal.len(), as_of: self.now };
            }
            Op::Produce => self.produce(),
            Op::Deliver => self.deliver(),
            Op::Break => {
                if self.stream.take().is_some() {
                    self.event(Event::WatchEnded(Failure::passing("broken")));
                }
            }
            Op::Expire => self.oldest = self.journal.len() + 1,
            Op::ServeSync => self.serve_sync(),
            Op::DeliverSync => {
                if let Some((_, Some(answer))) = self.sync.take_if(|(_, answer)| answer.is_some()) {
                    self.event(Event::Synced(Ok(answer)));
                }
            }
            Op::LoseSync => {
                if self.sync.take().is_some() {
                    self.event(Event::Synced(Err(Failure::passing("lost"))));
                }
            }
            Op::Ask { key, replica, table } => self.ask(key % KEYS, replica % REPLICAS, table),
            Op::Serve { flight } => self.serve(flight),
            Op::Land { flight } => self.land(flight),
            Op::ServeRefresh { replica } => self.serve_refresh(replica % REPLICAS),
            Op::DeliverRefresh => {
                if let Some((_, Some(answer))) =
                    self.refresh.take_if(|(_, answer)| answer.is_some())
                {
                    self.event(Event::Refreshed(Ok(answer)));
                }
            }
            Op::Pass { ms } => {
                self.now += u64::from(ms);
                self.event(Event::Tick);
            }
            Op::Restart => self.restart(),
        }
        self.check();
    }

    fn change(&mut self, key: u8, cell: u8, logged: bool) {
        let cell = CELLS[usize::from(cell) % CELLS.len()].to_owned();
        let before = self.truth(key, self.journal.len());
        let stays = before.is_some_and(|before| before.cell_id == cell);
        let epoch = self.last_epoch(key) + u64::from(!stays);
        let mode = if logged { proto::WriteMode::Logged } else { proto::WriteMode::Direct };
        let after = proto::Placement {
            partition_key: name(key),
            cell_id: cell,
            epoch,
            write_mode: mode.into(),
            state: proto::PlacementState::Active.into(),
            ..Default::default()
        };
        self.journal.push(Entry { at: self.now, key, after: Some(after), epoch });
    }

    fn vacate(&mut self, key: u8) {
        if let Some(before) = self.truth(key, self.journal.len()) {
            let epoch = before.epoch;
            self.journal.push(Entry { at: self.now, key, after: None, epoch });
        }
    }

    /// The stream's next message: a part of a snapshot, or the changes of up to two entries.
    fn produce(&mut self) {
        let Some(stream) = &self.stream else { return };
        if stream.expired {
            return;
        }
        let replica = self.replicas[stream.replica];
        let (mut position, mut token) = (stream.position, String::new());
        let (event, snapshot);
        match stream.snapshot {
            Some(from) if from < KEYS => {
                // Read now, not when the snapshot began.
                let placements = (from..(from + 3).min(KEYS))
                    .filter_map(|key| self.truth(key, replica.position));
                let part = proto::SnapshotPart {
                    placements: placements.cloned().collect(),
                    cells: Vec::new(),
                };
                (event, snapshot) = (Piece::Snapshot(part), Some(from + 3));
            }
            Some(_) | None => {
                let to = replica.position.max(position).min(position + 2);
                let changes = (position..to).map(|n| self.wire_change(n)).collect();
                (event, snapshot) = (Piece::Changes(proto::Changes { changes }), None);
                position = to;
                token = to.to_string();
            }
        }
        let message = proto::WatchResponse {
            caught_up: snapshot.is_none() && position >= replica.position,
            event: Some(event),
            resume_token: token,
            sequence: position as u64,
            journal_id: "j".to_owned(),
        };
        if let Some(stream) = &mut self.stream {
            (stream.snapshot, stream.position, stream.first) = (snapshot, position, false);
            stream.wire.push(message);
        }
    }

    fn wire_change(&self, n: usize) -> proto::PlacementChange {
        let entry = &self.journal[n];
        let change = match &entry.after {
            Some(placement) => Change::Placed(placement.clone()),
            None => Change::Vacated(proto::Placement {
                partition_key: name(entry.key),
                cell_id: "a".to_owned(),
                epoch: entry.epoch,
                ..Default::default()
            }),
        };
        proto::PlacementChange { sequence: n as u64 + 1, change: Some(change) }
    }

    fn deliver(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        if stream.expired {
            self.stream = None;
            let expired =
                Failure { kind: FailureKind::ResumeTokenExpired, ..Failure::passing("expired") };
            return self.event(Event::WatchEnded(expired));
        }
        if !stream.wire.is_empty() {
            let message = stream.wire.remove(0);
            self.event(Event::Watch(Box::new(message)));
        }
    }

    fn serve_sync(&mut self) {
        let Some((endpoint, answer)) = &mut self.sync else { return };
        let replica = self.replicas[*endpoint];
        let age = self.now - replica.as_of;
        *answer = Some(proto::SyncResponse {
            sequence: replica.position as u64,
            age: prost_types::Duration::try_from(Duration::from_millis(age)).ok(),
            lease: prost_types::Duration::try_from(Duration::from_millis(
                LEASE_MS.saturating_sub(age),
            ))
            .ok(),
            journal_id: "j".to_owned(),
        });
    }

    fn ask(&mut self, key: u8, replica: usize, table: bool) {
        if self.flights.len() < 6 {
            let ticket = self.follower.begin(&name(key));
            let min_epoch = ticket.core.held_epoch;
            let sent = self.moment();
            self.flights.push(Flight {
                ticket,
                key,
                replica,
                table,
                sent,
                min_epoch,
                answer: None,
            });
        }
    }

    /// What a replica answers: from its memory where it has what is asked for, or else from the table.
    fn replies(
        &self,
        key: u8,
        replica: usize,
        table: bool,
        min: u64,
    ) -> Result<proto::ResolveResponse, FailureKind> {
        let replica = self.replicas[replica];
        let memory = self.truth(key, replica.position).filter(|held| held.epoch >= min && !table);
        let age = if memory.is_some() { self.now - replica.as_of } else { 0 };
        let placement = match (memory, self.truth(key, self.journal.len())) {
            (Some(held), _) => held,
            (None, Some(held)) if held.epoch >= min => held,
            (None, Some(_)) => return Err(FailureKind::EpochNotReached),
            (None, None) => return Err(FailureKind::NotFound),
        };
        let decision = proto::Decision {
            source: proto::DecisionSource::Memory.into(),
            authoritative: true,
            age: prost_types::Duration::try_from(Duration::from_millis(age)).ok(),
            lease: prost_types::Duration::try_from(Duration::from_millis(
                LEASE_MS.saturating_sub(age),
            ))
            .ok(),
            sequence: replica.position as u64,
            ..Default::default()
        };
        Ok(proto::ResolveResponse { placement: Some(placement.clone()), decision: Some(decision) })
    }

    fn serve(&mut self, flight: usize) {
        let count = self.flights.len().max(1);
        let number = flight % count;
        let Some(flight) = self.flights.get(number) else { return };
        let answer = self.replies(flight.key, flight.replica, flight.table, flight.min_epoch);
        self.flights[number].answer.get_or_insert(answer);
    }

    fn land(&mut self, flight: usize) {
        let count = self.flights.len().max(1);
        if self.flights.get(flight % count).is_none_or(|flight| flight.answer.is_none()) {
            return;
        }
        let flight = self.flights.remove(flight % count);
        if let Some(Ok(response)) = &flight.answer {
            self.settle(&flight, response, flight.sent, false);
        }
        self.follower.end(&flight.ticket);
    }

    /// As `fetch` does: a doubtful answer is good if no higher epoch exists.
    fn settle(
        &mut self,
        flight: &Flight,
        response: &proto::ResolveResponse,
        sent: Moment,
        verified: bool,
    ) {
        let (Some(placement), Some(decision)) = (&response.placement, &response.decision) else {
            return;
        };
        let fetched = Fetched {
            held: Held::from_proto(placement, &self.shared.cells).unwrap(),
            source: source(decision),
            sent,
            sequence: decision.sequence,
            age: super::super::duration(decision.age.as_ref()),
            lease: super::super::duration(decision.lease.as_ref()).unwrap(),
        };
        match self.follower.settle(self.moment(), &flight.ticket, &fetched, verified) {
            Settled::Answer(resolved) => self.see(flight.key, resolved),
            Settled::Doubtful { epoch } | Settled::Over { epoch } => {
                let sent = self.moment();
                match self.replies(flight.key, flight.replica, false, epoch + 1) {
                    Ok(response) => self.settle(flight, &response, sent, false),
                    Err(FailureKind::EpochNotReached) => {
                        self.settle(flight, response, fetched.sent, true)
                    }
                    Err(_) => {}
                }
            }
        }
    }

    fn serve_refresh(&mut self, replica: usize) {
        let Some((keys, _)) = &self.refresh else { return };
        let results = keys.iter().map(|key| {
            let key = key.rsplit_once('-').unwrap().1.parse().unwrap();
            match self.replies(key, replica, false, 0) {
                Ok(response) => proto::BatchResolveResult {
                    outcome: response.placement.map(Outcome::Placement),
                    decision: response.decision,
                },
                Err(_) => proto::BatchResolveResult {
                    outcome: Some(Outcome::Error(proto::KeyError {
                        code: 5,
                        ..Default::default()
                    })),
                    decision: None,
                },
            }
        });
        let answer = proto::BatchResolveResponse {
            results: results.collect(),
            sequence: self.replicas[replica].position as u64,
            ..Default::default()
        };
        if let Some((_, place)) = &mut self.refresh {
            *place = Some(answer);
        }
    }

    fn restart(&mut self) {
        let path = self.folder.path().join("file");
        if self.follower.position().attached {
            snapshot::write(&path, &self.follower.export(), &self.shared, || 0).unwrap();
        } else {
            // Nothing was written: the next process is a new client.
            self.told.clear();
        }
        self.shared = shared(self.mode);
        self.follower = Follower::new(options(self.mode), self.shared.clone(), REPLICAS);
        if path.exists() {
            let position = snapshot::load(&path, &self.shared).unwrap();
            self.follower.resume(position);
            std::fs::remove_file(&path).unwrap();
        }
        (self.stream, self.sync, self.refresh) = (None, None, None);
        self.flights.clear();
        self.event(Event::Tick);
    }

    /// What the client answers for every key keeps every promise.
    fn check(&mut self) {
        for key in 0..KEYS {
            if let Some(resolved) = self.shared.picture.load().resolve(&name(key)) {
                self.see(key, resolved);
            }
        }
    }

    fn see(&mut self, key: u8, resolved: Resolved) {
        assert_ne!(resolved.source, Source::Fallback);
        let told = self.told.entry(key).or_default();
        assert!(
            resolved.held.epoch >= *told,
            "the epoch of {key} fell from {told} to {}",
            resolved.held.epoch
        );
        *told = resolved.held.epoch;
        if resolved.lease_until > self.moment() {
            self.leased += 1;
            let held = resolved.held;
            assert!(
                self.was_true_within_the_lease(key, &held),
                "a lease on {key} outlives the truth: {held:?}"
            );
        }
    }

    fn was_true_within_the_lease(&self, key: u8, held: &Held) -> bool {
        // Newest first. A state of the key stood from its entry until the next newer one.
        let mut until = u64::MAX;
        for entry in self.journal.iter().rev().filter(|entry| entry.key == key) {
            if until < self.now.saturating_sub(LEASE_MS) {
                return false;
            }
            let same =
                entry.after.as_ref().and_then(|after| Held::from_proto(after, &self.shared.cells));
            if same == Some(*held) {
                return true;
            }
            until = entry.at;
        }
        false
    }

    /// Everything is well again: in the end the client holds what the journal says.
    pub fn heal_and_compare(&mut self) {
        let mut quiet = 0;
        for _ in 0..2_000 {
            for replica in 0..REPLICAS {
                self.step(Op::Poll { replica });
            }
            self.step(Op::Produce);
            self.step(Op::Deliver);
            self.step(Op::ServeSync);
            self.step(Op::DeliverSync);
            self.step(Op::ServeRefresh { replica: 0 });
            self.step(Op::DeliverRefresh);
            self.step(Op::Pass { ms: 250 });
            let picture = self.shared.picture.load();
            let live = self.follower.position().applied == self.journal.len() as u64
                && picture.lease_until() > self.moment()
                && self.building_is_done()
                && self.refresh_is_done();
            quiet = if live { quiet + 1 } else { 0 };
            if quiet > 5 {
                return self.compare();
            }
        }
        panic!("the client does not catch up");
    }

    fn building_is_done(&self) -> bool {
        self.follower.building.is_none() && self.stream.is_some()
    }

    fn refresh_is_done(&self) -> bool {
        self.refresh.is_none() && self.follower.refresh.is_idle()
    }

    pub fn holds_anything(&self) -> bool {
        self.shared.picture.load().memory.len() > 0
    }

    fn compare(&self) {
        let picture = self.shared.picture.load();
        let bounded = picture.memory.is_bounded();
        for key in 0..KEYS {
            let truth = self.truth(key, self.journal.len());
            let truth = truth.map(|truth| Held::from_proto(truth, &self.shared.cells).unwrap());
            match picture.resolve(&name(key)) {
                None => assert!(bounded || truth.is_none(), "{key} is missing"),
                Some(answer) => {
                    assert_eq!(Some(answer.held), truth, "{key}");
                    assert!(answer.lease_until > self.moment(), "{key} has no lease");
                }
            }
        }
    }
}
