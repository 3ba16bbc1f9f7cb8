//! Writers that do not cooperate: they read no guards and leave no records in the log.
//!
//! What they change is learned from the stream of the cell's tables, of which a record only says that a key is to be looked at again,
//! as one of the log does. A stream is no barrier: it never says that nothing more comes. So before the fence such writers are
//! *frozen* by a hook, and once that is confirmed, a marker is left in the stream. Behind the marker there is nothing of theirs.
//!
//! ```text
//!  Unknown ──Thaw──► Off ──Freeze──► Asked ──holds──► Holds ──Mark──► Marked ──Follow, past it──► Past ──► fence, commit
//! ```
//! What is known of a freeze counts for one worker under one number: who takes over under the fence freezes again, anywhere else it
//! thaws first.

use crate::action::{Action, Cursor, Marker, Millis, Next, Parked, Writers};
use crate::record::{Phase, Record};

use super::Machine;

/// What this worker knows of writers that do not cooperate, and of their stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    /// How far it was followed, in what is applied; the record says it after the next transaction.
    position: Option<Cursor>,
    /// What the last look at it found, in this phase and under this number, and when.
    found: Option<(u64, Millis)>,
    /// What follows the position is lost.
    trimmed: bool,
    freeze: Freeze,
    /// When the first answer to a freeze came.
    began: Millis,
    /// Markers that may have been left under this number.
    markers: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Freeze {
    /// Another worker may have frozen them, or this one under another number.
    Unknown,
    Off,
    /// Not confirmed when it was probed last.
    Asked(Millis),
    Holds,
    /// A marker was left after it held.
    Marked,
    /// All before the marker is applied.
    Past,
}

impl Stream {
    pub(super) fn new(record: &Record) -> Self {
        Self {
            position: record.stream.clone(),
            found: None,
            trimmed: false,
            freeze: Freeze::Unknown,
            began: 0,
            markers: 0,
        }
    }

    /// The record is this one from now on. `same`: the phase is, and the worker's number.
    pub(super) fn adopt(&mut self, from: &Record, to: &Record, same: bool) {
        self.position = to.stream.clone();
        if same {
            return;
        }
        (self.found, self.trimmed) = (None, false);
        let fences = (from.phase, to.phase) == (Phase::Verifying, Phase::Fenced);
        if from.worker != to.worker {
            (self.freeze, self.markers) = (Freeze::Unknown, 0);
        } else if !fences && self.freeze != Freeze::Off {
            self.ends(Freeze::Unknown);
        }
    }

    /// The freeze holds no more, for all that is known. A marker may be in the stream though nobody said so: the next one is another.
    fn ends(&mut self, then: Freeze) -> Freeze {
        if self.freeze == Freeze::Holds {
            self.markers = self.markers.saturating_add(1);
        }
        std::mem::replace(&mut self.freeze, then)
    }

    /// A thaw that the pause asked for may have been done, though nobody said so.
    pub(super) fn resumed(&mut self) {
        if self.freeze != Freeze::Off {
            self.ends(Freeze::Unknown);
        }
    }

    pub(super) fn listens(&mut self, position: Cursor) {
        self.position = Some(position);
    }

    pub(super) fn followed(&mut self, found: u64, next: Cursor, past: bool, now: Millis) {
        (self.found, self.position) = (Some((found, now)), Some(next));
        if past && self.freeze == Freeze::Marked {
            self.freeze = Freeze::Past;
        }
    }

    pub(super) fn trimmed(&mut self) {
        self.trimmed = true;
    }

    pub(super) fn frozen(&mut self, holds: bool, now: Millis) {
        if matches!(self.freeze, Freeze::Unknown | Freeze::Off) {
            self.began = now;
        }
        self.freeze = if holds { Freeze::Holds } else { Freeze::Asked(now) };
    }

    pub(super) fn marked(&mut self) {
        self.markers = self.markers.saturating_add(1);
        // There is something in the stream by now.
        (self.freeze, self.found) = (Freeze::Marked, None);
    }
}

impl Machine {
    fn follows(&self) -> bool {
        self.settings.writers != Writers::Cooperative
    }

    /// The record with what is known of the stream by now.
    pub(super) fn known(&self) -> Record {
        Record { stream: self.stream.position.clone(), ..self.record.clone() }
    }

    pub(super) fn stream_moved(&self) -> bool {
        self.stream.position != self.record.stream
    }

    /// A position has to be kept before the first item is copied or compared. From there on nothing may be missing: what was trimmed,
    /// or has no position, is copied again. Never from the latest.
    pub(super) fn listen(&self) -> Option<Next> {
        let begins = self.reached == Cursor::default();
        let from = self.record.live();
        match (self.record.phase, &self.stream.position) {
            _ if !self.follows() => None,
            (Phase::Copying, None) => Some(Next::Do(Action::Listen { from })),
            (Phase::Verifying, None) if begins => Some(Next::Do(Action::Listen { from })),
            (Phase::CatchingUp | Phase::Verifying | Phase::Fenced, position)
                if position.is_none() || self.stream.trimmed =>
            {
                Some(self.copy_again())
            }
            _ => None,
        }
    }

    pub(super) fn stream_is_little(&self) -> bool {
        let little = |(found, _)| found <= self.settings.little;
        !self.follows() || self.stream.found.is_some_and(little)
    }

    /// The next look at the stream, and when it is due, if it is followed in this phase.
    pub(super) fn follow(&self) -> Option<(Millis, Next)> {
        let position = self.stream.position.clone().filter(|_| self.follows())?;
        let past = (self.stream.freeze == Freeze::Marked).then(|| self.marker(0));
        let (from, fence) = (self.record.live(), self.fence());
        let due = match self.stream.found {
            Some((0, at)) => at.saturating_add(self.settings.soak_interval),
            _ => 0,
        };
        Some((due, Next::Do(Action::Follow { from, fence, position, past })))
    }

    /// The last one that was left, or the one after it.
    fn marker(&self, further: u32) -> Marker {
        let number = self.stream.markers.saturating_add(further);
        Marker { holder: self.record.holder(), number }
    }

    /// What is still to be done until nothing of theirs can be missing; `None`: nothing.
    pub(super) fn stop_them(&self, now: Millis) -> Option<Next> {
        let (from, holder) = (self.record.live(), self.record.holder());
        let freezes = self.settings.writers == Writers::Frozen;
        match self.stream.freeze {
            _ if !self.follows() => None,
            Freeze::Past => None,
            Freeze::Asked(at)
                if freezes && now < at.saturating_add(self.settings.soak_interval) =>
            {
                Some(Next::WaitUntil(at.saturating_add(self.settings.soak_interval)))
            }
            Freeze::Unknown | Freeze::Off | Freeze::Asked(_) if freezes => {
                Some(Next::Do(Action::Freeze { from, holder }))
            }
            Freeze::Marked => match self.follow() {
                Some((due, _)) if now < due => Some(Next::WaitUntil(due)),
                Some((_, follow)) => Some(follow),
                None => Some(self.copy_again()),
            },
            _ => Some(Next::Do(Action::Mark { from, marker: self.marker(1) })),
        }
    }

    /// Before the fence only those are stopped who can be; without a freeze the marker is left under the fence, to miss little.
    pub(super) fn freeze(&self, now: Millis) -> Option<Next> {
        (self.settings.writers == Writers::Frozen).then(|| self.stop_them(now)).flatten()
    }

    /// Lets them go on where the tenant lives: whenever they may be frozen and are not about to be moved.
    pub(super) fn thaw(&self, now: Millis) -> Option<Next> {
        let may_be = match self.record.phase {
            _ if self.settings.writers != Writers::Frozen => false,
            Phase::Copying | Phase::Committed | Phase::Aborting => {
                self.stream.freeze != Freeze::Off
            }
            Phase::Verifying => match self.stream.freeze {
                Freeze::Unknown => true,
                Freeze::Off => false,
                _ => self.record.paused || self.freeze_is_late(now),
            },
            _ => false,
        };
        let (live, holder) = (self.record.live(), self.record.holder());
        may_be.then_some(Next::Do(Action::Thaw { live, holder }))
    }

    pub(super) fn freezing(&self) -> bool {
        !matches!(self.stream.freeze, Freeze::Unknown | Freeze::Off)
    }

    fn freeze_is_late(&self, now: Millis) -> bool {
        now >= self.stream.began.saturating_add(self.settings.freeze_budget)
    }

    pub(super) fn thawed(&mut self, now: Millis) {
        let was = self.stream.ends(Freeze::Off);
        let asked = !matches!(was, Freeze::Unknown | Freeze::Off);
        if asked && self.record.phase == Phase::Verifying && !self.record.paused {
            self.in_vain(|fences| Parked::NotFrozen { fences });
            self.since = now;
        }
    }
}
