//! What the store holds, who is at work, and what may happen next.

use cells_migration::{
    Action, Cursor, Guard, GuardCheck, GuardState, MigrationId, Phase, Placement, Record, Side,
    Transaction, Wish, WriteMode,
};

use crate::Moves;
use crate::bounds::{Bounds, KEYS};
use crate::plain::Plain;
use crate::worker::Worker;
use crate::writer::Writer;

/// What a key holds; 0: nothing.
pub type Value = u8;

const EPOCH: u64 = 1;
const FIRST: MigrationId = MigrationId(1);

/// What the tenant has at the beginning.
const ITEMS: [Value; KEYS] = [7, 8];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub record: Record,
    pub placement: Placement,
    pub guards: [Option<Guard>; 2],
    pub items: [[Value; KEYS]; 2],
    /// Of each cell and each migration, a bit for each write that left a record: by the number of the write.
    pub log: [[u16; 2]; 2],
    pub workers: [Option<Worker>; 2],
    pub writers: [Writer; 2],
    pub plain: Plain,
    /// Workers' writes that may land at any time.
    pub late: Vec<Late>,
    /// Of each key, the acknowledged write that landed last.
    pub acknowledged: [Value; KEYS],
    /// Of each key, the writes whose first attempt has an unknown outcome: they may take effect at any later time.
    pub loose: [Vec<Value>; KEYS],
    pub takeovers: u8,
    pub unknowns: u8,
    pub overdue: u8,
    pub wished: bool,
    pub paused: bool,
    pub again: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Late {
    Transaction(Transaction),
    /// What the hook is told, and its number.
    Order(Action, u64),
    /// A marker.
    Plain(Action),
    Write {
        side: Side,
        fence: GuardCheck,
        key: usize,
        value: Value,
    },
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A worker makes its next call to the store.
    Work(usize),
    /// The same, after all the time that it might wait for.
    WorkLater(usize),
    /// The same, and the answer is lost.
    Lose(usize),
    /// The same, and what was sent lands later, if ever.
    Delay(usize),
    Land(usize),
    TakeOver(usize),
    Hear(usize),
    Wish(Wish),
    Pause,
    Resume,
    /// An operator retries what a worker parked.
    Retry(usize),
    StartAgain,
    Route(usize),
    Expire(usize),
    Send(usize),
    LandDirect(usize),
    Acknowledge(usize),
    LandLate(usize),
    WriteChecked(usize),
    WritePlain,
    FreezeHolds,
    Trim(usize),
}

pub fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Target => 1,
    }
}

impl State {
    pub fn new(bounds: &Bounds) -> Self {
        let record = Record::new(FIRST, EPOCH);
        let guard =
            Guard { state: GuardState::Open, epoch: EPOCH, mode: WriteMode::Direct, holder: None };
        Self {
            placement: Placement {
                side: Side::Source,
                epoch: EPOCH,
                mode: WriteMode::Direct,
                migration: None,
            },
            guards: [Some(guard), None],
            items: [ITEMS, [0; KEYS]],
            log: [[0; 2]; 2],
            workers: [Some(Worker::new(bounds, record.clone())), None],
            writers: [Writer::default(), Writer::default()],
            plain: Plain::new(bounds.trims),
            late: Vec::new(),
            acknowledged: ITEMS,
            loose: Default::default(),
            takeovers: bounds.takeovers,
            unknowns: bounds.unknowns,
            overdue: bounds.overdue,
            wished: !bounds.wishes,
            paused: !bounds.pauses,
            again: !bounds.again,
            record,
        }
    }

    pub fn live(&self) -> usize {
        index(self.placement.side)
    }

    /// What the tenant's cell holds is what was acknowledged last, or what may have come after it.
    pub fn keeps_what_was_acknowledged(&self) -> bool {
        (0..KEYS).all(|key| {
            let value = self.items[self.live()][key];
            value == self.acknowledged[key]
                || self.loose[key].contains(&value)
                || self.writers.iter().any(|writer| writer.has_under_way(key, value))
        })
    }

    pub fn one_cell_is_open(&self) -> bool {
        let open = |side: &Side| {
            self.guards[index(*side)].is_some_and(|guard| guard.state == GuardState::Open)
        };
        let open: Vec<_> = Side::BOTH.into_iter().filter(open).collect();
        match open[..] {
            [] => true,
            [side] => {
                self.placement.side == side
                    && self.guards[index(side)]
                        .is_some_and(|guard| guard.epoch == self.placement.epoch)
            }
            _ => false,
        }
    }

    /// Whoever has the migration and does nothing lets writers write.
    pub fn nobody_waits_for_who_rests(&self, moves: &Moves) -> bool {
        let fenced = |guard: &Guard| guard.state == GuardState::Fenced;
        let waits = self.plain.is_stopped() || self.guards.iter().flatten().any(fenced);
        let rests = |(at, worker): (usize, &Option<Worker>)| {
            worker.as_ref().is_some_and(|worker| worker.rests(self, moves, at))
        };
        !(waits && self.workers.iter().enumerate().any(rests))
    }

    pub fn done(&self) -> bool {
        self.record.phase == Phase::Done
    }

    /// The migration has ended, and nothing is left that was its own.
    pub fn at_rest(&self) -> bool {
        self.record.phase.ended()
            && self.placement.migration.is_none()
            && self.placement.mode == WriteMode::Direct
            && self.log == [[0; 2]; 2]
            && !self.plain.is_stopped()
            && self.guards.iter().flatten().all(|guard| guard.holder.is_none())
    }

    pub fn steps(&self, moves: &Moves, steps: &mut Vec<Step>) {
        for (at, worker) in self.workers.iter().enumerate() {
            let Some(worker) = worker else { continue };
            worker.steps(self, moves, at, steps);
        }
        let under_way = !self.record.phase.ended();
        if self.takeovers > 0 && under_way {
            steps.push(Step::TakeOver(1));
        }
        if !self.wished && under_way {
            steps.extend([Wish::Cancel, Wish::Reverse, Wish::Complete].map(Step::Wish));
        }
        if !self.paused && under_way {
            steps.push(Step::Pause);
        }
        if self.record.paused {
            steps.push(Step::Resume);
        }
        if !self.again && self.record.phase == Phase::Aborted {
            steps.push(Step::StartAgain);
        }
        steps.extend((0..self.late.len()).map(Step::Land));
        for (at, writer) in self.writers.iter().enumerate() {
            writer.steps(self, moves, at, steps);
        }
        self.plain.steps(moves, steps);
    }

    pub fn take(&mut self, moves: &Moves, step: Step) {
        match step {
            Step::Work(_) | Step::WorkLater(_) | Step::Lose(_) | Step::Delay(_) | Step::Hear(_) => {
                self.work(moves, step);
            }
            Step::Land(at) => {
                let _ = match self.late.remove(at) {
                    Late::Transaction(transaction) => self.transact(moves, &transaction),
                    Late::Order(action, number) => {
                        self.obey(moves, &action, number);
                        Ok(())
                    }
                    Late::Plain(action) => {
                        let record = self.record.clone();
                        self.mind_the_plain(moves, &record, action);
                        Ok(())
                    }
                    Late::Write { side, fence, key, value } => {
                        self.write(moves, side, fence, key, value)
                    }
                };
            }
            Step::TakeOver(at) => {
                self.takeovers -= 1;
                self.workers[at] = Some(Worker::new(&moves.bounds, self.record.clone()));
            }
            Step::Wish(wish) => {
                self.wished = true;
                self.record.wish = Some(wish);
            }
            Step::Pause => (self.paused, self.record.paused) = (true, true),
            Step::Resume => self.record.paused = false,
            Step::Retry(at) => {
                self.workers[at] = Some(Worker::new(&moves.bounds, self.record.clone()));
            }
            Step::StartAgain => {
                self.again = true;
                self.record = Record::new(MigrationId(2), self.placement.epoch);
                // Whoever was taken over from may still be about.
                self.workers[1] = Some(Worker::new(&moves.bounds, self.record.clone()));
            }
            Step::Route(at)
            | Step::Expire(at)
            | Step::Send(at)
            | Step::LandDirect(at)
            | Step::Acknowledge(at)
            | Step::LandLate(at)
            | Step::WriteChecked(at) => self.go_on_writing(moves, at, step),
            Step::WritePlain | Step::FreezeHolds | Step::Trim(_) => self.take_plain(moves, step),
        }
    }

    /// All of it or nothing, as the store does it.
    pub fn transact(&mut self, moves: &Moves, transaction: &Transaction) -> Result<(), ()> {
        let Transaction { check, record, guards, placement } = transaction;
        let placed = placement.is_none_or(|(before, _)| before == self.placement);
        let guarded = guards
            .iter()
            .all(|change| change.check.holds(self.guards[index(change.side)].as_ref()));
        if !(check.holds(&self.record) && placed && guarded || moves.blind(transaction)) {
            return Err(());
        }
        for change in guards {
            let guard = &mut self.guards[index(change.side)];
            *guard = change.effect.apply(*guard);
        }
        if let Some((_, after)) = placement {
            self.placement = *after;
        }
        let Record { wish, paused, .. } = self.record;
        self.record = Record { wish, paused, ..record.clone() };
        Ok(())
    }

    /// A worker's write at the cell that is not live.
    pub fn write(
        &mut self,
        moves: &Moves,
        side: Side,
        fence: GuardCheck,
        key: usize,
        value: Value,
    ) -> Result<(), ()> {
        let guard = self.guards[index(side)];
        if !fence.holds(guard.as_ref()) && !moves.writes_anyway(fence, guard, value) {
            return Err(());
        }
        self.items[index(side)][key] = value;
        Ok(())
    }
}

/// The number of a migration's log.
pub fn of(migration: MigrationId) -> usize {
    usize::from(migration != FIRST)
}

/// The cursor in front of a key.
pub fn cursor(key: usize) -> Option<Cursor> {
    (key < KEYS).then(|| Cursor(vec![key as u8]))
}

pub fn key(cursor: &Cursor) -> usize {
    cursor.0.first().map_or(0, |key| usize::from(*key))
}
