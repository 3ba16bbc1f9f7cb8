//! What to do next. Decides and does nothing.

use crate::guard::{GuardCheck, Side};
use crate::record::{Leg, Phase, Record, Wish};
use crate::transaction::{Transaction, waiting};

/// Milliseconds on the worker's own monotonic clock. No wall clock takes part.
pub type Millis = u64;

/// A position in a cell's items, as the store made it. Empty: the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cursor(pub Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How long the longest lease for direct writes can still be used after writers were told to log: the cluster's lease, and a
    /// margin for clocks that run at different rates and for writes that are under way.
    pub leases_end: Millis,
    /// Longest time under the fence; after that, writers go on and it is tried again.
    pub pause_budget: Millis,
    /// How long there is a way back, from when this worker sees the soak begin.
    pub soak: Millis,
    /// Records of the log that are few enough to be drained under the fence.
    pub little: u64,
    /// Pause between two looks at the log in the soak, once it was found empty.
    pub soak_interval: Millis,
}

/// One thing for the driver to do. Each may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the record: [`Event::Read`].
    Read,
    /// [`Event::Done`] or [`Event::Refused`].
    Transact(Box<Transaction>),
    /// Copy a page of items from `from` to the other cell: [`Event::Copied`]. `fence`: each write carries this check of the other
    /// cell's guard.
    Copy { from: Side, fence: GuardCheck, cursor: Cursor },
    /// Read some of the migration's own log in `from`; read there, *after* that, the items that it names, and put or delete them in the other cell
    /// under `fence`; then remove the records that were read. [`Event::Drained`].
    Drain { from: Side, fence: GuardCheck },
    /// Compare a page of items of both cells, and write those that differ as they are in `from`, under `fence`: [`Event::Compared`].
    Compare { from: Side, fence: GuardCheck, cursor: Cursor },
    /// Delete a page of items in `from` under `fence`, which is that cell's guard: [`Event::Purged`].
    Purge { from: Side, fence: GuardCheck, cursor: Cursor },
    /// Remove some of the migration's own log in `from`, to which nothing is added any more: [`Event::Drained`]. Never that of
    /// another migration, which may be under way if this worker was taken over from long ago.
    DropLog { from: Side },
}

/// What came of the last action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The record as it is. May come unasked, for its wish.
    Read(Record),
    /// The transaction was done, and this is its record.
    Done(Record),
    /// A check did not hold, and nothing was done.
    Refused,
    /// There was no answer: it may have been done, or may be yet.
    Unknown,
    /// `next`: where to go on; `None`: that was all.
    Copied {
        next: Option<Cursor>,
    },
    Compared {
        next: Option<Cursor>,
    },
    Purged {
        next: Option<Cursor>,
    },
    /// How many records of the log were found, and dealt with.
    Drained {
        found: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    Do(Action),
    WaitUntil(Millis),
    /// The migration has ended, or another worker has it.
    Leave,
}

/// A worker's view of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    settings: Settings,
    record: Record,
    /// How far this worker has come; the record says it after the next transaction.
    reached: Cursor,
    /// On this worker's clock: when it saw the phase begin.
    since: Millis,
    /// What the last look at the log found, in this phase, and when.
    found: Option<(u64, Millis)>,
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
            standing: Standing::Taking,
            doubt: false,
        }
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What to do now. The same until an event comes or the time has come.
    pub fn next(&self, now: Millis) -> Next {
        match self.standing {
            Standing::Lost => Next::Leave,
            _ if self.doubt => Next::Do(Action::Read),
            _ if self.record.phase.ended() => Next::Leave,
            Standing::Taking => transact(Transaction::take_over(&self.record)),
            Standing::Holding if self.record.wish == Some(Wish::Cancel) => {
                self.cancel().unwrap_or_else(|| self.work(now))
            }
            Standing::Holding => self.work(now),
        }
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
            Phase::Verifying if !all => Next::Do(Action::Compare { from, fence, cursor }),
            // What came since the comparison is in the log.
            Phase::Verifying if self.little() => transact(Transaction::fence(record)),
            Phase::Fenced if self.dry() => transact(Transaction::commit(record)),
            Phase::Fenced if elapsed >= self.settings.pause_budget => {
                transact(Transaction::unfence(record))
            }
            Phase::CatchingUp | Phase::Verifying | Phase::Fenced => drain,
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

    fn soak(&self, now: Millis) -> Next {
        let record = &self.record;
        let end = self.since.saturating_add(self.settings.soak);
        match (record.wish, self.found) {
            (Some(Wish::Reverse), _) => transact(Transaction::reverse(record)),
            (Some(Wish::Complete), _) => transact(Transaction::settle(record)),
            _ if now >= end => transact(Transaction::settle(record)),
            (_, Some((0, at))) if now < at.saturating_add(self.settings.soak_interval) => {
                Next::WaitUntil(end.min(at.saturating_add(self.settings.soak_interval)))
            }
            _ => Next::Do(Action::Drain { from: record.live(), fence: self.fence() }),
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
                let wish = self.record.wish;
                self.adopt(Record { wish, ..record }, now);
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
            Standing::Holding if !self.doubt => self.record.wish = record.wish,
            Standing::Holding | Standing::Taking => self.adopt(record, now),
        }
        self.doubt = false;
    }

    fn adopt(&mut self, record: Record, now: Millis) {
        if (record.leg, record.phase) != (self.record.leg, self.record.phase) {
            (self.since, self.found) = (now, None);
        }
        self.reached = record.cursor.clone();
        self.record = record;
    }
}

impl Cursor {
    /// Behind the last item.
    pub fn end() -> Self {
        Self(vec![0xff])
    }
}

fn transact(transaction: Transaction) -> Next {
    Next::Do(Action::Transact(Box::new(transaction)))
}
