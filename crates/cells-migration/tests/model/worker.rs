//! A driver: does what the machine asks for, one call to the store at a time.

use cells_migration::{
    Action, Event, GuardCheck, Machine, Next, Orders, Phase, Record, Side, Transaction,
};

use crate::Moves;
use crate::bounds::{Bounds, KEYS};
use crate::mutant::Mutant;
use crate::state::{Late, State, Step, Value, cursor, index, key, of};

/// All that a worker might wait for is over at this time; nothing is at 0, when everything begins.
const LATER: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    pub machine: Machine,
    busy: Option<Busy>,
    orders: Orders,
}

/// In the middle of an action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Busy {
    /// Has read what it is to write, which is the last of the action.
    Writing {
        side: Side,
        fence: GuardCheck,
        key: usize,
        value: Value,
        done: Event,
    },
    Comparing {
        from: Side,
        fence: GuardCheck,
        key: usize,
        there: Value,
        done: Event,
    },
    Draining {
        from: Side,
        fence: GuardCheck,
        found: u64,
        left: u16,
        stage: Stage,
    },
    /// A mutant that reads the items before the log.
    ReadTooEarly {
        from: Side,
        fence: GuardCheck,
        items: [Value; KEYS],
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Read,
    Apply(usize, Value),
    Remove(usize),
}

/// What became of a call.
pub enum Call {
    /// The action goes on.
    On(Busy),
    Over(Event),
}

impl Worker {
    pub fn new(bounds: &Bounds, record: Record) -> Self {
        let machine = Machine::new(bounds.settings(), record, 0);
        Self { machine, busy: None, orders: Orders::default() }
    }

    pub fn steps(&self, state: &State, moves: &Moves, at: usize, steps: &mut Vec<Step>) {
        let record = self.machine.record();
        let next = self.machine.next(0);
        if self.busy.is_none() && next == Next::Leave {
            return;
        }
        let known = (record.wish, record.paused);
        if self.busy.is_none()
            && state.record.id == record.id
            && (state.record.wish, state.record.paused) != known
        {
            steps.push(Step::Hear(at));
        }
        if self.busy.is_none() && moves.does_nothing(state, record) {
            return;
        }
        let waits = matches!(next, Next::WaitUntil(_) | Next::Pause | Next::Park(_));
        if self.busy.is_some() || !waits {
            steps.push(Step::Work(at));
            let writes = self.busy.is_some() || !matches!(next, Next::Do(Action::Read));
            if state.unknowns > 0 && writes {
                steps.extend([Step::Lose(at), Step::Delay(at)]);
            }
        }
        if self.busy.is_some() {
            return;
        }
        if matches!(next, Next::Park(_)) {
            steps.push(Step::Retry(at));
        }
        let later = match record.phase {
            Phase::Logging if waits => {
                let leased = state.writers.iter().any(|writer| writer.leased());
                !leased || moves.mutant == Some(Mutant::NoWaitForLeases)
            }
            Phase::Fenced | Phase::Verifying | Phase::Soaking => true,
            _ => false,
        };
        if later && self.machine.next(LATER) != next && (!self.is_late() || state.overdue > 0) {
            steps.push(Step::WorkLater(at));
        }
    }

    /// What it would do later is to give up for now.
    fn is_late(&self) -> bool {
        let thaws = matches!(self.machine.next(LATER), Next::Do(Action::Thaw { .. }));
        self.machine.record().phase == Phase::Fenced || thaws
    }

    /// Has the migration, and nothing to do.
    pub fn rests(&self, state: &State, moves: &Moves, at: usize) -> bool {
        let mut steps = Vec::new();
        self.steps(state, moves, at, &mut steps);
        let works =
            |step: &Step| matches!(step, Step::Work(_) | Step::WorkLater(_) | Step::Hear(_));
        self.machine.record().holder() == state.record.holder() && !steps.iter().any(works)
    }
}

impl State {
    pub fn work(&mut self, moves: &Moves, step: Step) {
        let (Step::Work(at)
        | Step::WorkLater(at)
        | Step::Lose(at)
        | Step::Delay(at)
        | Step::Hear(at)) = step
        else {
            return;
        };
        let Some(mut worker) = self.workers[at].take() else { return };
        match step {
            Step::Hear(_) => {
                let record = self.record_of(worker.machine.record());
                worker.machine.on(Event::Read(record), 0);
            }
            Step::Work(_) => self.call(moves, &mut worker, 0),
            Step::WorkLater(_) => {
                if worker.is_late() {
                    self.overdue -= 1;
                }
                self.call(moves, &mut worker, LATER);
            }
            Step::Lose(_) => {
                self.unknowns -= 1;
                self.call(moves, &mut worker.clone(), 0);
                let _ = worker.sent();
                worker.lose(moves);
            }
            Step::Delay(_) => {
                self.unknowns -= 1;
                let sent = worker.sent();
                self.late.extend(sent);
                worker.lose(moves);
            }
            _ => {}
        }
        self.workers[at] = Some(worker);
    }

    fn call(&mut self, moves: &Moves, worker: &mut Worker, now: u64) {
        let log = of(worker.machine.record().id);
        let call = match worker.busy.take() {
            Some(busy) => self.go_on(moves, log, busy),
            None => match worker.machine.next(now) {
                Next::Do(action @ (Action::Freeze { .. } | Action::Thaw { .. })) => {
                    Call::Over(self.order(moves, &mut worker.orders, &action))
                }
                Next::Do(action) => self.begin(moves, worker.machine.record(), action),
                Next::WaitUntil(_) | Next::Pause | Next::Park(_) | Next::Leave => return,
            },
        };
        match call {
            Call::On(busy) => worker.busy = Some(busy),
            Call::Over(event) => worker.machine.on(event, 0),
        }
    }

    fn begin(&mut self, moves: &Moves, record: &Record, action: Action) -> Call {
        let log = of(record.id);
        match action {
            Action::Read => Call::Over(Event::Read(self.record_of(record))),
            Action::Transact(transaction) => {
                let transaction = moves.distorted(record, *transaction, self.overdue);
                match self.transact(moves, &transaction) {
                    Ok(()) => Call::Over(Event::Done(transaction.record)),
                    Err(()) => Call::Over(Event::Refused),
                }
            }
            Action::Copy { from, fence, cursor: at } => {
                let key = key(&at);
                let done = Event::Copied { next: cursor(key + 1) };
                if moves.mutant == Some(Mutant::CheckpointBeforeApply)
                    && let Some(next) = cursor(key + 1)
                {
                    let save = Transaction::save(record, record.phase, next);
                    let _ = self.transact(moves, &save);
                }
                match self.items[index(from)][key] {
                    0 => Call::Over(done),
                    value => {
                        Call::On(Busy::Writing { side: from.other(), fence, key, value, done })
                    }
                }
            }
            Action::Compare { .. }
                if moves.mutant == Some(Mutant::StrictWithoutComparing)
                    && record.phase == Phase::Fenced =>
            {
                Call::Over(Event::Compared { next: None })
            }
            Action::Compare { from, fence, cursor: at } => {
                let key = key(&at);
                let there = self.items[index(from.other())][key];
                let done = Event::Compared { next: cursor(key + 1) };
                Call::On(Busy::Comparing { from, fence, key, there, done })
            }
            Action::Purge { from, fence, cursor: at } => {
                let key = key(&at);
                match self.write(moves, from, fence, key, 0) {
                    Ok(()) => Call::Over(Event::Purged { next: cursor(key + 1) }),
                    Err(()) => Call::Over(Event::Refused),
                }
            }
            Action::DropLog { from } => {
                let found = self.log[index(from)][log].count_ones();
                match moves.mutant {
                    Some(Mutant::DropAnyLog) => self.log[index(from)] = [0; 2],
                    _ => self.log[index(from)][log] = 0,
                }
                Call::Over(Event::Drained { found: found.into() })
            }
            Action::Drain { .. }
                if moves.mutant == Some(Mutant::PositionBeforeFence)
                    && record.phase == Phase::Fenced =>
            {
                Call::Over(Event::Drained { found: 0 })
            }
            Action::Drain { from, fence } if moves.mutant == Some(Mutant::ReadBeforeLog) => {
                Call::On(Busy::ReadTooEarly { from, fence, items: self.items[index(from)] })
            }
            Action::Drain { from, fence } => self.look_at_the_log(log, from, fence),
            _ => self.mind_the_plain(moves, record, action),
        }
    }

    /// A migration that another one came after has ended.
    fn record_of(&self, known: &Record) -> Record {
        match self.record.id == known.id {
            true => self.record.clone(),
            false => Record { phase: Phase::Aborted, ..known.clone() },
        }
    }

    fn look_at_the_log(&mut self, log: usize, from: Side, fence: GuardCheck) -> Call {
        match self.log[index(from)][log] {
            0 => Call::Over(Event::Drained { found: 0 }),
            left => {
                let found = left.count_ones().into();
                Call::On(Busy::Draining { from, fence, found, left, stage: Stage::Read })
            }
        }
    }

    fn go_on(&mut self, moves: &Moves, log: usize, busy: Busy) -> Call {
        match busy {
            Busy::Writing { side, fence, key, value, done } => {
                if moves.mutant == Some(Mutant::DrainDuringCopy) {
                    let ids = std::mem::take(&mut self.log[index(side.other())][log]);
                    for key in moves.keys(ids) {
                        let value = self.items[index(side.other())][key];
                        let _ = self.write(moves, side, fence, key, value);
                    }
                }
                match self.write(moves, side, fence, key, value) {
                    Ok(()) => Call::Over(done),
                    Err(()) => Call::Over(Event::Refused),
                }
            }
            Busy::Comparing { from, fence, key, there, done } => {
                match self.items[index(from)][key] {
                    value if value == there => Call::Over(done),
                    _ if moves.mutant == Some(Mutant::CheckpointBeforeApply) => Call::Over(done),
                    value => {
                        Call::On(Busy::Writing { side: from.other(), fence, key, value, done })
                    }
                }
            }
            Busy::ReadTooEarly { from, fence, items } => {
                let left = self.log[index(from)][log];
                for key in moves.keys(left) {
                    let _ = self.write(moves, from.other(), fence, key, items[key]);
                }
                self.log[index(from)][log] &= !left;
                Call::Over(Event::Drained { found: left.count_ones().into() })
            }
            Busy::Draining { from, fence, found, left, stage } => {
                self.drain(moves, log, from, fence, (found, left), stage)
            }
        }
    }

    fn drain(
        &mut self,
        moves: &Moves,
        log: usize,
        from: Side,
        fence: GuardCheck,
        (found, left): (u64, u16),
        stage: Stage,
    ) -> Call {
        let on = |left, stage| Call::On(Busy::Draining { from, fence, found, left, stage });
        match stage {
            Stage::Read => {
                let key = moves.keys(left)[0];
                if moves.mutant == Some(Mutant::RemoveBeforeApply) {
                    self.log[index(from)][log] &= !moves.of_key(left, key);
                }
                on(left, Stage::Apply(key, self.items[index(from)][key]))
            }
            Stage::Apply(key, value) => match self.write(moves, from.other(), fence, key, value) {
                Ok(()) => on(left, Stage::Remove(key)),
                Err(()) => Call::Over(Event::Refused),
            },
            Stage::Remove(key) => {
                let read = if moves.mutant == Some(Mutant::RemoveNewer) { u16::MAX } else { left };
                self.log[index(from)][log] &= !moves.of_key(read, key);
                match left & !moves.of_key(left, key) {
                    0 => Call::Over(Event::Drained { found }),
                    left => on(left, Stage::Read),
                }
            }
        }
    }
}

impl Worker {
    /// No answer came.
    fn lose(&mut self, moves: &Moves) {
        let event = match (self.busy.take(), self.machine.next(0)) {
            // Not known to be frozen; everything else is asked for again.
            (None, Next::Do(action @ Action::Freeze { .. })) => {
                if self.orders.stands(&action) {
                    self.orders.broke();
                }
                Event::Frozen { holds: false }
            }
            (None, Next::Do(Action::Thaw { .. } | Action::Mark { .. })) => return,
            _ if moves.mutant == Some(Mutant::GoOnAfterUnknown) => Event::Refused,
            _ => Event::Unknown,
        };
        self.machine.on(event, 0);
    }

    /// What it sends next and what may land later.
    fn sent(&mut self) -> Option<Late> {
        match &self.busy {
            Some(Busy::Writing { side, fence, key, value, .. }) => {
                Some(Late::Write { side: *side, fence: *fence, key: *key, value: *value })
            }
            Some(Busy::Draining { from, fence, stage: Stage::Apply(key, value), .. }) => {
                Some(Late::Write { side: from.other(), fence: *fence, key: *key, value: *value })
            }
            // A record that is removed later had been applied before it was sent.
            Some(_) => None,
            None => match self.machine.next(0) {
                Next::Do(Action::Transact(transaction)) => Some(Late::Transaction(*transaction)),
                Next::Do(Action::Purge { from, fence, cursor }) => {
                    Some(Late::Write { side: from, fence, key: key(&cursor), value: 0 })
                }
                // Only whether it holds is asked.
                Next::Do(action @ Action::Freeze { .. }) if self.orders.stands(&action) => None,
                Next::Do(action @ (Action::Freeze { .. } | Action::Thaw { .. })) => {
                    let number = self.orders.give(&action);
                    Some(Late::Order(action, number))
                }
                Next::Do(action @ Action::Mark { .. }) => Some(Late::Plain(action)),
                _ => None,
            },
        }
    }
}

impl Moves {
    /// The keys of these writes, each once.
    fn keys(&self, ids: u16) -> Vec<usize> {
        (0..KEYS).filter(|key| self.of_key(ids, *key) != 0).collect()
    }

    fn of_key(&self, ids: u16, key: usize) -> u16 {
        let ops = self.bounds.ops.iter().map(|ops| ops.len()).sum();
        (0..ops).filter(|op| self.key_of(*op) == key).fold(0, |bits, op| bits | ids & 1 << op)
    }
}
