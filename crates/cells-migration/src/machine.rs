//! What to do next. Decides and does nothing.

use crate::action::{Action, Cursor, Event, LONGEST_BACKOFF, Millis, Next, Parked, Settings};
use crate::guard::{GuardCheck, Side};
use crate::record::{Leg, Phase, Record, Wish};
use crate::transaction::{Transaction, waiting};

mod stream;

use stream::Stream;

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
    /// How many fences in a row were in vain, and why the last one was.
    vain: Option<Parked>,
    stream: Stream,
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
            stream: Stream::new(&record),
            record,
            since: now,
            found: None,
            vain: None,
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

    /// Whether writers wait for this worker, or may. It lets them go on by itself when that takes too long.
    pub fn stops_writers(&self) -> bool {
        self.record.phase == Phase::Fenced || self.freezing()
    }

    /// What to do now. The same until an event comes or the time has come.
    pub fn next(&self, now: Millis) -> Next {
        match self.standing {
            Standing::Lost => Next::Leave,
            _ if self.doubt => Next::Do(Action::Read),
            _ if self.record.phase.ended() => Next::Leave,
            // In a pause, too: a fence that the last worker sent may land yet, and is refused after this.
            Standing::Taking => transact(Transaction::take_over(&self.record)),
            Standing::Holding => self.hold(now),
        }
    }

    fn hold(&self, now: Millis) -> Next {
        let cancels = self.record.wish == Some(Wish::Cancel);
        match self.thaw(now) {
            Some(thaw) => thaw,
            None if self.pauses() => Next::Pause,
            None => {
                let cancel = cancels.then(|| self.cancel()).flatten();
                cancel.or_else(|| self.listen()).unwrap_or_else(|| self.work(now))
            }
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
        let record = &self.known();
        let (from, fence, cursor) = (record.live(), self.fence(), self.reached.clone());
        let (all, elapsed) = (cursor == Cursor::end(), now.saturating_sub(self.since));
        match record.phase {
            Phase::Planned => transact(Transaction::start(record)),
            Phase::Logging if elapsed < self.settings.leases_end => {
                Next::WaitUntil(self.since.saturating_add(self.settings.leases_end))
            }
            Phase::Logging => self.proceed(Phase::Copying),
            Phase::Copying if all => self.proceed(Phase::CatchingUp),
            Phase::CatchingUp if self.little() => self.proceed(Phase::Verifying),
            Phase::Copying | Phase::CatchingUp | Phase::Verifying
                if cursor != self.record.cursor || self.stream_moved() =>
            {
                transact(Transaction::save(record, record.phase, cursor))
            }
            Phase::Copying => Next::Do(Action::Copy { from, fence, cursor }),
            Phase::CatchingUp => self.catch_up(),
            Phase::Verifying if !all => Next::Do(Action::Compare { from, fence, cursor }),
            // What came since the comparison is in the log, or in the stream.
            Phase::Verifying => self.try_to_fence(now),
            Phase::Fenced if record.paused => transact(Transaction::unfence(record)),
            Phase::Fenced => self.under_the_fence(now, elapsed >= self.settings.pause_budget),
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

    fn catch_up(&self) -> Next {
        match (self.log_is_little(), self.follow()) {
            (true, Some((_, follow))) => follow,
            _ => self.drain(),
        }
    }

    /// After a fence in vain writers have some time to themselves, longer each time; the log is kept short in it.
    fn try_to_fence(&self, now: Millis) -> Next {
        let end = self.since.saturating_add(self.backoff());
        match self.vain {
            Some(why) if why.fences() >= self.settings.max_fences => Next::Park(why),
            _ if now < end && !self.freezing() => self.look(now, end),
            _ if !self.little() => self.catch_up(),
            _ => self.freeze(now).unwrap_or_else(|| transact(Transaction::fence(&self.known()))),
        }
    }

    fn backoff(&self) -> Millis {
        let Some(why) = self.vain else { return 0 };
        let budget = match why {
            Parked::NotFrozen { .. } => self.settings.freeze_budget,
            Parked::LogNotDrained { .. } | Parked::NotCompared { .. } => self.settings.pause_budget,
        };
        let doublings = why.fences().saturating_sub(1);
        let factor = 1_u64.checked_shl(doublings).unwrap_or(Millis::MAX);
        budget.saturating_mul(factor).min(LONGEST_BACKOFF.max(budget))
    }

    fn under_the_fence(&self, now: Millis, late: bool) -> Next {
        let record = &self.known();
        let (from, fence, cursor) = (record.live(), self.fence(), self.reached.clone());
        let stops = self.stop_them(now);
        let compared = !self.settings.strict || cursor == Cursor::end();
        match stops {
            None if self.dry() && compared => transact(Transaction::commit(record)),
            _ if late => transact(Transaction::unfence(record)),
            Some(Next::WaitUntil(at)) => {
                Next::WaitUntil(at.min(self.since.saturating_add(self.settings.pause_budget)))
            }
            Some(next) => next,
            None if !self.dry() => self.drain(),
            // The record keeps no cursor under the fence: who takes over compares again from the beginning, as does the next fence.
            None => Next::Do(Action::Compare { from, fence, cursor }),
        }
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

    /// Drains the log, and lets it be for a while once it is empty, until `end` at most; the stream likewise.
    fn look(&self, now: Millis, end: Millis) -> Next {
        let due = match self.found {
            Some((0, at)) => at.saturating_add(self.settings.soak_interval),
            _ => 0,
        };
        match self.follow() {
            _ if now >= due => self.drain(),
            Some((due, follow)) if now >= due => follow,
            Some((next, _)) => Next::WaitUntil(end.min(due).min(next)),
            None => Next::WaitUntil(end.min(due)),
        }
    }

    fn drain(&self) -> Next {
        Next::Do(Action::Drain { from: self.record.live(), fence: self.fence() })
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
        self.log_is_little() && self.stream_is_little()
    }

    fn log_is_little(&self) -> bool {
        self.found.is_some_and(|(found, _)| found <= self.settings.little)
    }

    fn proceed(&self, phase: Phase) -> Next {
        transact(Transaction::save(&self.known(), phase, Cursor::default()))
    }

    fn copy_again(&self) -> Next {
        transact(Transaction::copy_again(&self.known()))
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
            Event::Listening { position } => self.stream.listens(position),
            Event::Followed { found, next, past } => self.stream.followed(found, next, past, now),
            Event::Trimmed => self.stream.trimmed(),
            Event::Marked => self.stream.marked(),
            Event::Frozen { holds } => self.stream.frozen(holds, now),
            Event::Thawed => self.thawed(now),
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
        if self.record.paused && !paused {
            self.stream.resumed();
        }
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
        let same = !begins && record.worker == self.record.worker;
        if !same {
            self.found = None;
        }
        self.stream.adopt(&self.record, &record, same);
        self.reached = record.cursor.clone();
        self.record = record;
    }

    fn count_fences(&mut self, next: Phase) {
        match (self.record.phase, next) {
            // For an operator's sake it was lifted in time.
            (Phase::Fenced, Phase::Verifying) if !self.record.paused => match self.dry() {
                true => self.in_vain(|fences| Parked::NotCompared { fences }),
                false => self.in_vain(|fences| Parked::LogNotDrained { fences }),
            },
            (_, Phase::Committed) => self.vain = None,
            _ => {}
        }
    }

    fn in_vain(&mut self, why: fn(u32) -> Parked) {
        self.vain = Some(why(self.vain.map_or(0, Parked::fences).saturating_add(1)));
    }
}

fn transact(transaction: Transaction) -> Next {
    Next::Do(Action::Transact(Box::new(transaction)))
}
