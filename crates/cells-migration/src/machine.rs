//! What to do next. Decides and does nothing.

use crate::action::{Action, Cursor, Event, LONGEST_BACKOFF, Millis, Next, Parked, Settings};
use crate::guard::{GuardCheck, Side};
use crate::record::{Leg, Phase, Record, Wish};
use crate::transaction::{Transaction, waiting};

/// A worker's view of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    settings: Settings,
    record: Record,
    /// How far this worker has come; the record says it after the next transaction.
    reached: Cursor,
    /// On this worker's clock: when it saw the phase begin.
    since: Millis,
    /// What the last look at the log found, in this phase and under this number, and when.
    found: Option<(u64, Millis)>,
    /// How many fences in a row lasted too long.
    lifted: u32,
    /// Whether the log was drained under the last of them.
    dried: bool,
    standing: Standing,
    /// The record may differ from what is known.
    doubt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Standing {
    /// The record is somebody else's so far.
    Taking,
    Holding,
    /// Another worker has it.
    Lost,
}

impl Machine {
    /// A worker that takes a migration over, or begins it.
    pub fn new(settings: Settings, record: Record, now: Millis) -> Self {
        Self {
            settings,
            reached: record.cursor.clone(),
            record,
            since: now,
            found: None,
            lifted: 0,
            dried: false,
            standing: Standing::Taking,
            doubt: false,
        }
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// How long after [`Phase::Logging`] was entered the last lease for direct writes can still be used, margins included. To be told
    /// when it is entered, as operators change the cluster's leases at any time. Counts from when this worker saw the phase begin; the
    /// last one counts.
    pub fn set_leases_end(&mut self, leases_end: Millis) {
        self.settings.leases_end = leases_end;
    }

    /// What to do now. The same until an event comes or the time has come.
    pub fn next(&self, now: Millis) -> Next {
        match self.standing {
            Standing::Lost => Next::Leave,
            _ if self.doubt => Next::Do(Action::Read),
            _ if self.record.phase.ended() => Next::Leave,
            // In a pause, too: a fence that the last worker sent may land yet, and is refused after this.
            Standing::Taking => transact(Transaction::take_over(&self.record)),
            Standing::Holding if self.pauses() => Next::Pause,
            Standing::Holding if self.record.wish == Some(Wish::Cancel) => {
                self.cancel().unwrap_or_else(|| self.work(now))
            }
            Standing::Holding => self.work(now),
        }
    }

    /// A pause is kept in every phase but one: under the fence writers would wait for the operator, so it is lifted first. To cancel is
    /// to go no further, and is done in a pause, too; the removal that comes after it waits, as the one after the soak does.
    fn pauses(&self) -> bool {
        let cancels = self.record.wish == Some(Wish::Cancel) && self.cancel().is_some();
        self.record.paused && self.record.phase != Phase::Fenced && !cancels
    }

    /// The end of what was not committed; `None`: it is too late.
    fn cancel(&self) -> Option<Next> {
        use Phase::*;
        match (self.record.leg, self.record.phase) {
            (Leg::Forward, Planned) => Some(self.proceed(Aborted)),
            (Leg::Forward, Logging | Copying | CatchingUp | Verifying | Fenced) => {
                Some(transact(Transaction::abort(&self.record)))
            }
            _ => None,
        }
    }

    fn work(&self, now: Millis) -> Next {
        let record = &self.record;
        let (from, fence, cursor) = (record.live(), self.fence(), self.reached.clone());
        let (all, elapsed) = (cursor == Cursor::end(), now.saturating_sub(self.since));
        let drain = Next::Do(Action::Drain { from, fence });
        match record.phase {
            Phase::Planned => transact(Transaction::start(record)),
            Phase::Logging if elapsed < self.settings.leases_end => {
                Next::WaitUntil(self.since.saturating_add(self.settings.leases_end))
            }
            Phase::Logging => self.proceed(Phase::Copying),
            Phase::Copying if all => self.proceed(Phase::CatchingUp),
            Phase::Copying | Phase::Verifying if cursor != record.cursor => {
                transact(Transaction::save(record, record.phase, cursor))
            }
            Phase::Copying => Next::Do(Action::Copy { from, fence, cursor }),
            Phase::CatchingUp if self.little() => self.proceed(Phase::Verifying),
            Phase::CatchingUp => drain,
            Phase::Verifying if !all => Next::Do(Action::Compare { from, fence, cursor }),
            // What came since the comparison is in the log.
            Phase::Verifying => self.try_to_fence(now),
            Phase::Fenced if record.paused => transact(Transaction::unfence(record)),
            Phase::Fenced if self.dry() && (all || !self.settings.strict) => {
                transact(Transaction::commit(record))
            }
            Phase::Fenced if elapsed >= self.settings.pause_budget => {
                transact(Transaction::unfence(record))
            }
            // The record keeps no cursor under the fence: who takes over compares again from the beginning, as does the next fence.
            Phase::Fenced if self.dry() => Next::Do(Action::Compare { from, fence, cursor }),
            Phase::Fenced => drain,
            Phase::Committed => match record.leg {
                Leg::Forward => self.proceed(Phase::Soaking),
                Leg::Back => transact(Transaction::settle(record)),
            },
            Phase::Soaking => self.soak(now),
            Phase::Cleaning => self.clean(from, from.other(), Transaction::finish),
            Phase::Aborting => self.clean(Side::Source, Side::Target, Transaction::forget),
            Phase::Done | Phase::Aborted => Next::Leave,
        }
    }

    /// After a fence that lasted too long writers have some time to themselves, longer each time; the log is kept short in it.
    fn try_to_fence(&self, now: Millis) -> Next {
        let fences = self.lifted;
        let end = self.since.saturating_add(self.backoff());
        match self.dried {
            _ if fences < self.settings.max_fences.max(1) => match now >= end && self.little() {
                true => transact(Transaction::fence(&self.record)),
                false => self.look(now, end),
            },
            true => Next::Park(Parked::NotCompared { fences }),
            false => Next::Park(Parked::LogNotDrained { fences }),
        }
    }

    fn backoff(&self) -> Millis {
        let budget = self.settings.pause_budget;
        let Some(doublings) = self.lifted.checked_sub(1) else { return 0 };
        let factor = 1_u64.checked_shl(doublings).unwrap_or(Millis::MAX);
        budget.saturating_mul(factor).min(LONGEST_BACKOFF.max(budget))
    }

    fn soak(&self, now: Millis) -> Next {
        let record = &self.record;
        let end = self.since.saturating_add(self.settings.soak);
        match record.wish {
            Some(Wish::Reverse) => transact(Transaction::reverse(record)),
            Some(Wish::Complete) => transact(Transaction::settle(record)),
            _ if now >= end => transact(Transaction::settle(record)),
            _ => self.look(now, end),
        }
    }

    /// Drains the log, and lets it be for a while once it is empty, until `end` at most.
    fn look(&self, now: Millis, end: Millis) -> Next {
        match self.found {
            Some((0, at)) if now < at.saturating_add(self.settings.soak_interval) => {
                Next::WaitUntil(end.min(at.saturating_add(self.settings.soak_interval)))
            }
            _ => Next::Do(Action::Drain { from: self.record.live(), fence: self.fence() }),
        }
    }

    /// Removes the log of the one cell and the items of the other.
    fn clean(&self, log: Side, items: Side, end: fn(&Record) -> Transaction) -> Next {
        let cursor = self.reached.clone();
        match (self.dry(), cursor == Cursor::end()) {
            (false, _) => Next::Do(Action::DropLog { from: log }),
            (true, false) => Next::Do(Action::Purge { from: items, fence: self.fence(), cursor }),
            (true, true) => transact(end(&self.record)),
        }
    }

    /// What the guard of the cell that is not live must be, for this worker to write there.
    fn fence(&self) -> GuardCheck {
        GuardCheck::Held { state: waiting(&self.record), holder: self.record.holder() }
    }

    fn dry(&self) -> bool {
        self.found.is_some_and(|(found, _)| found == 0)
    }

    fn little(&self) -> bool {
        self.found.is_some_and(|(found, _)| found <= self.settings.little)
    }

    fn proceed(&self, phase: Phase) -> Next {
        transact(Transaction::save(&self.record, phase, Cursor::default()))
    }

    /// Takes note of what came of what [`Machine::next`] asked for.
    pub fn on(&mut self, event: Event, now: Millis) {
        match event {
            Event::Read(record) => self.read(record, now),
            Event::Done(record) => {
                let Record { wish, paused, .. } = self.record;
                self.adopt(Record { wish, paused, ..record }, now);
                self.standing = Standing::Holding;
            }
            Event::Refused => self.doubt = true,
            // What was sent may be done at any later time. Under a new number, the storage refuses it then.
            Event::Unknown => (self.standing, self.doubt) = (Standing::Taking, true),
            Event::Copied { next } | Event::Compared { next } | Event::Purged { next } => {
                self.reached = next.unwrap_or_else(Cursor::end);
            }
            Event::Drained { found } => self.found = Some((found, now)),
        }
    }

    fn read(&mut self, record: Record, now: Millis) {
        let mine = record.holder() == self.record.holder();
        match self.standing {
            Standing::Lost => {}
            Standing::Holding if !mine => self.standing = Standing::Lost,
            Standing::Holding if !self.doubt => self.heed(&record, now),
            Standing::Holding | Standing::Taking => {
                self.heed(&record, now);
                if !mine {
                    // The phase may be another one by the same name: a fence that was lifted, and one that came after it.
                    self.since = now;
                }
                self.adopt(record, now);
            }
        }
        self.doubt = false;
    }

    /// What an operator asks, now.
    fn heed(&mut self, record: &Record, now: Millis) {
        let Record { wish, paused, .. } = *record;
        if self.record.paused && !paused && record.phase == Phase::Soaking {
            // There was no way back in the pause.
            self.since = now;
        }
        (self.record.wish, self.record.paused) = (wish, paused);
    }

    fn adopt(&mut self, record: Record, now: Millis) {
        let begins = (record.leg, record.phase) != (self.record.leg, self.record.phase);
        if begins {
            self.since = now;
            self.count_fences(record.phase);
        }
        // Another worker may have lifted the fence since, and writers written: what was seen under one number says nothing under another.
        if begins || record.worker != self.record.worker {
            self.found = None;
        }
        self.reached = record.cursor.clone();
        self.record = record;
    }

    fn count_fences(&mut self, next: Phase) {
        match (self.record.phase, next) {
            // For an operator's sake it was lifted in time.
            (Phase::Fenced, Phase::Verifying) if !self.record.paused => {
                self.dried = self.dry();
                self.lifted = self.lifted.saturating_add(1);
            }
            (_, Phase::Committed) => (self.lifted, self.dried) = (0, false),
            _ => {}
        }
    }
}

fn transact(transaction: Transaction) -> Next {
    Next::Do(Action::Transact(Box::new(transaction)))
}
