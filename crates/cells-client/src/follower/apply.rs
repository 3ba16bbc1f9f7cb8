//! Applies the messages of the Watch: to what is held, or to a picture in the making.

use std::sync::Arc;

use super::{Building, Follower, Kind, Link};
use crate::cells::Cell;
use crate::clock::Moment;
use crate::error::{Failure, FailureKind};
use crate::held::Held;
use crate::memory::Memory;
use crate::picture::Picture;
use crate::proto::placement_change::Change;
use crate::proto::watch_response::Event as Piece;
use crate::proto::{PlacementChange, SnapshotPart, WatchResponse};

/// The longest key that the API knows, in bytes.
const MAX_KEY: usize = 1024;

fn valid(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY
}

/// The journal of a stream is not the one that it should be.
fn other_journal() -> Failure {
    Failure {
        kind: FailureKind::ResumeTokenExpired,
        ..Failure::passing("the watch is of another journal; beginning anew")
    }
}

impl Follower {
    /// A message of the open stream. An error: the stream is of no use any more.
    pub(super) fn on_message(
        &mut self,
        now: Moment,
        message: WatchResponse,
    ) -> Result<(), Failure> {
        let kind = match &mut self.link {
            Link::Idle { .. } => return Ok(()),
            Link::Opening { endpoint, kind, .. } => {
                let (endpoint, kind, sequence) = (*endpoint, *kind, message.sequence);
                self.link = Link::Open { endpoint, opened: now, heard: now, sequence, kind };
                kind
            }
            Link::Open { heard, sequence, kind, .. } => {
                if message.sequence < *sequence {
                    return Err(Failure::passing("the sequence of the watch has fallen"));
                }
                (*heard, *sequence) = (now, message.sequence);
                *kind
            }
        };
        match kind {
            Kind::Live => self.on_live(message),
            Kind::Snapshot => self.on_snapshot(now, message),
            Kind::Begin => self.on_begin(now, message),
        }
    }

    /// Changes on top of what is held.
    fn on_live(&mut self, message: WatchResponse) -> Result<(), Failure> {
        if message.journal_id != self.position.journal_id {
            self.shared.picture.load().revoke();
            return Err(other_journal());
        }
        match message.event {
            Some(Piece::Changes(changes)) => {
                changes.changes.into_iter().for_each(|change| self.apply(change))
            }
            Some(Piece::Snapshot(_)) => {
                return Err(Failure::passing("a snapshot where changes were asked for"));
            }
            None => {}
        }
        // A stream that was resumed at a replica behind us tells what is known already; only `max` keeps the position.
        self.advance_to(message.sequence);
        if !message.resume_token.is_empty() && message.sequence >= self.position.applied {
            self.position.token = message.resume_token;
        }
        Ok(())
    }

    fn advance_to(&mut self, sequence: u64) {
        self.position.applied = self.position.applied.max(sequence);
        let picture = self.shared.picture.load();
        for grant in self.renewals.due(self.position.applied) {
            picture.renew(grant.until, grant.as_of);
        }
    }

    fn apply(&mut self, change: PlacementChange) {
        let sequence = change.sequence;
        // Told before: by this stream's predecessor.
        if sequence <= self.position.applied {
            return;
        }
        match change.change {
            Some(Change::Placed(placement)) if valid(&placement.partition_key) => {
                match Held::from_proto(&placement, &self.shared.cells) {
                    Some(held) => self.placed(&placement.partition_key, held, sequence),
                    None => {
                        tracing::error!(sequence, "a placement that names no cell was left out")
                    }
                }
            }
            Some(Change::Vacated(placement)) => {
                self.vacated(&placement.partition_key, placement.epoch, sequence)
            }
            Some(Change::Cell(cell)) => self.shared.cells.update(Cell::from_proto(&cell), sequence),
            Some(Change::CellDeleted(id)) => self.shared.cells.deleted(&id, sequence),
            Some(Change::Placed(_)) | None => {}
        }
    }

    /// Whether what is held is beyond a change that says `epoch`. Within an epoch the Watch is believed, though it may be behind what was
    /// fetched: what it tells is exact as of the position, which is all that a renewal covers.
    fn is_ahead(&self, held: &Held, generation: u32, epoch: u64) -> bool {
        generation >= self.journal_generation && held.epoch > epoch
    }

    fn placed(&mut self, key: &str, held: Held, sequence: u64) {
        self.tickets.note(key, sequence, held.epoch, Some(held));
        self.absent.remove(key);
        let picture = self.shared.picture.load_full();
        match picture.memory.peek(key, picture.generation) {
            Some((old, generation)) if self.is_ahead(&old, generation, held.epoch) => {}
            // A bounded memory holds what was asked for, and nothing else.
            None if picture.memory.is_bounded() => {}
            Some(_) | None => {
                picture.memory.put(key, held, picture.generation);
                self.ahead.remove(key);
            }
        }
    }

    fn vacated(&mut self, key: &str, epoch: u64, sequence: u64) {
        self.tickets.note(key, sequence, epoch, None);
        self.absent.remove(key);
        let picture = self.shared.picture.load_full();
        match picture.memory.peek(key, picture.generation) {
            Some((old, generation)) if self.is_ahead(&old, generation, epoch) => {}
            Some((old, generation)) => {
                if generation >= self.journal_generation {
                    self.shared.floors.raise(key, old.epoch);
                }
                picture.memory.remove(key);
                self.ahead.remove(key);
            }
            None => {}
        }
    }

    /// A piece of a picture in the making.
    fn on_snapshot(&mut self, now: Moment, message: WatchResponse) -> Result<(), Failure> {
        let building = self.building.get_or_insert_with(|| Building {
            memory: Memory::whole(self.options.seed),
            journal_id: message.journal_id.clone(),
        });
        if building.journal_id != message.journal_id {
            return Err(other_journal());
        }
        if building.journal_id != self.position.journal_id && self.position.attached {
            self.shared.picture.load().revoke();
        }
        match message.event {
            Some(Piece::Snapshot(part)) => {
                let restored =
                    self.position.attached && building.journal_id != self.position.journal_id;
                if restored && !part.cells.is_empty() {
                    self.shared.cells.forget_sequences();
                }
                add(&building.memory, part, message.sequence, &self.shared.cells);
                return Ok(());
            }
            Some(Piece::Changes(changes)) => {
                for change in changes.changes {
                    replay(&building.memory, change, &self.shared.cells);
                }
            }
            None => {}
        }
        let behind = self.position.attached
            && building.journal_id == self.position.journal_id
            && message.sequence < self.position.applied.max(self.position.reached);
        if message.caught_up && !behind {
            self.swap(now, message.sequence, message.resume_token);
        }
        Ok(())
    }

    /// The picture in the making is whole, and not behind the present one: it becomes the present one.
    fn swap(&mut self, now: Moment, sequence: u64, token: String) {
        let Some(building) = self.building.take() else { return };
        let old = self.shared.picture.load_full();
        let same = self.enter_journal(now, &building.journal_id);
        if same {
            self.carry_over(&old, &building.memory, sequence);
        }
        let picture =
            Picture::new(Arc::new(building.memory), next_generation(old.generation), None);
        if same && self.position.attached {
            // What was granted for an earlier position covers a later one.
            picture.renew(old.lease_until(), old.as_of());
        }
        tracing::info!(placements = picture.memory.len(), sequence, "a whole picture is in place");
        self.attach(picture, building.journal_id, sequence, token);
    }

    /// Keeps what the old picture knew better: values that were fetched from beyond the new picture's position. Leaves the epochs of
    /// what has gone to `floors`. One pass over the old picture, while it goes on answering.
    fn carry_over(&mut self, old: &Picture, new: &Memory, sequence: u64) {
        let (ahead, floors, refresh) = (&mut self.ahead, &self.shared.floors, &mut self.refresh);
        for portion in 0..old.memory.portions() {
            old.memory.visit(portion, old.generation, |key, held, _| {
                match (new.peek(key, 0), ahead.get(key)) {
                    // An epoch above that of an exact value is from beyond.
                    (Some((newer, _)), _) if held.epoch > newer.epoch => new.put(key, held, 0),
                    (Some(_), _) => {
                        ahead.remove(key);
                    }
                    (None, Some(at)) if *at >= sequence => new.put(key, held, 0),
                    // It may be from beyond all the same, or have gone: without a lease until that is known.
                    (None, Some(_)) => {
                        new.put(key, held, 1);
                        refresh.add(key);
                    }
                    (None, None) => floors.raise(key, held.epoch),
                }
            });
        }
    }

    /// The first message of a stream of changes: what is held stays, unattached, until it is refreshed or changed.
    fn on_begin(&mut self, now: Moment, message: WatchResponse) -> Result<(), Failure> {
        let old = self.shared.picture.load_full();
        self.enter_journal(now, &message.journal_id);
        let picture =
            Picture::new(old.memory.clone(), next_generation(old.generation), old.saved_at);
        self.attach(picture, message.journal_id.clone(), 0, String::new());
        self.refresh_all();
        self.on_live(message)
    }

    fn attach(&mut self, picture: Picture, journal_id: String, applied: u64, token: String) {
        self.set_picture(picture);
        self.position = super::Position { attached: true, journal_id, applied, token, reached: 0 };
        if let Link::Open { kind, .. } = &mut self.link {
            *kind = Kind::Live;
        }
        self.advance_to(applied);
    }

    /// Whether the journal is the one that all before was of. If not, positions and epochs of before mean nothing any more.
    fn enter_journal(&mut self, now: Moment, journal_id: &str) -> bool {
        if !self.position.attached || self.position.journal_id == journal_id {
            return true;
        }
        tracing::warn!("the directory was restored from a backup: its journal is another one");
        self.shared.floors.clear();
        self.shared.cells.forget_sequences();
        self.ahead.clear();
        self.absent.clear();
        self.renewals.forget();
        self.journal_generation = next_generation(self.generation());
        self.settle_until = now.after(self.options.journal_settle);
        false
    }
}

/// Even: the odd number after it is for what is held but not exact.
fn next_generation(generation: u32) -> u32 {
    (generation & !1).wrapping_add(2)
}

fn add(memory: &Memory, part: SnapshotPart, sequence: u64, cells: &crate::cells::CellTable) {
    for cell in &part.cells {
        cells.update(Cell::from_proto(cell), sequence);
    }
    for placement in &part.placements {
        match Held::from_proto(placement, cells) {
            Some(held) if valid(&placement.partition_key) => {
                memory.put(&placement.partition_key, held, 0)
            }
            Some(_) | None => tracing::error!(
                "a placement without a valid key or cell was left out of the snapshot"
            ),
        }
    }
}

/// A change on top of a snapshot that may hold it already: applied whatever the epochs are.
fn replay(memory: &Memory, change: PlacementChange, cells: &crate::cells::CellTable) {
    match change.change {
        Some(Change::Placed(placement)) if valid(&placement.partition_key) => {
            if let Some(held) = Held::from_proto(&placement, cells) {
                memory.put(&placement.partition_key, held, 0);
            }
        }
        Some(Change::Vacated(placement)) => memory.remove(&placement.partition_key),
        Some(Change::Cell(cell)) => cells.update(Cell::from_proto(&cell), change.sequence),
        Some(Change::CellDeleted(id)) => cells.deleted(&id, change.sequence),
        Some(Change::Placed(_)) | None => {}
    }
}
