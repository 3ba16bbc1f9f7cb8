//! What is changed together or not at all: checks and effects on the migration's record, the guards of both cells, and the placement
//! with its journal entry. Data, so that a store renders it and a model evaluates it.

use crate::action::Cursor;
use crate::guard::{Guard, GuardCheck, GuardState, Holder, Side, WriteMode};
use crate::record::{Leg, MigrationId, Phase, Record};

/// A tenant's placement, as far as a migration is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    pub side: Side,
    pub epoch: u64,
    pub mode: WriteMode,
    /// The migration that works on the tenant; there is one at a time.
    pub migration: Option<MigrationId>,
}

/// The placement as it must be: in every particular.
pub type PlacementCheck = Placement;

/// The record as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordCheck {
    pub id: MigrationId,
    pub leg: Leg,
    pub phase: Phase,
    pub worker: u64,
}

impl RecordCheck {
    pub fn of(record: &Record) -> Self {
        Self { id: record.id, leg: record.leg, phase: record.phase, worker: record.worker }
    }

    pub fn holds(&self, record: &Record) -> bool {
        *self == Self::of(record)
    }
}

/// What is asked of a cell's guard, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuardChange {
    pub side: Side,
    pub check: GuardCheck,
    pub effect: GuardEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuardEffect {
    Set(Guard),
    /// Changes its holder alone.
    Hold(Holder),
    Remove,
}

impl GuardEffect {
    pub fn apply(self, guard: Option<Guard>) -> Option<Guard> {
        match self {
            Self::Set(guard) => Some(guard),
            Self::Hold(holder) => guard.map(|guard| Guard { holder: Some(holder), ..guard }),
            Self::Remove => None,
        }
    }
}

/// All of it, or nothing. The record keeps what operators set: its wish, and whether it is paused.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    pub check: RecordCheck,
    pub record: Record,
    pub guards: Vec<GuardChange>,
    /// With it goes an entry of the journal.
    pub placement: Option<(PlacementCheck, Placement)>,
}

impl Transaction {
    /// The record alone.
    pub fn save(from: &Record, phase: Phase, cursor: Cursor) -> Self {
        Self::to(from, Record { phase, cursor, ..from.clone() })
    }

    /// From a phase to the next, at its beginning.
    fn phase(from: &Record, phase: Phase) -> Self {
        Self::save(from, phase, Cursor::default())
    }

    fn to(from: &Record, record: Record) -> Self {
        Self { check: RecordCheck::of(from), record, guards: Vec::new(), placement: None }
    }

    /// Another worker goes on, and the storage refuses what the last one still writes.
    pub fn take_over(from: &Record) -> Self {
        let mut transaction = Self::to(from, Record { worker: from.worker + 1, ..from.clone() });
        let effect = GuardEffect::Hold(transaction.record.holder());
        if from.phase != Phase::Planned {
            let check = GuardCheck::Of { migration: from.id };
            transaction.guards = Side::BOTH.map(|side| GuardChange { side, check, effect }).into();
        }
        transaction
    }

    /// Writers begin to log, and the target lets nobody write but this worker.
    pub fn start(from: &Record) -> Self {
        let before = Placement {
            side: Side::Source,
            epoch: from.epoch,
            mode: WriteMode::Direct,
            migration: None,
        };
        let after = Placement { mode: WriteMode::Logged, migration: Some(from.id), ..before };
        let holder = Some(from.holder());
        let source =
            Guard { state: GuardState::Open, epoch: from.epoch, mode: WriteMode::Logged, holder };
        let target = Guard { state: GuardState::Incoming, epoch: from.epoch + 1, ..source };
        let change =
            |side, check, guard| GuardChange { side, check, effect: GuardEffect::Set(guard) };
        Self {
            guards: vec![
                change(Side::Source, GuardCheck::Idle { epoch: from.epoch }, source),
                change(Side::Target, GuardCheck::Vacant, target),
            ],
            placement: Some((before, after)),
            ..Self::phase(from, Phase::Logging)
        }
    }

    pub fn fence(from: &Record) -> Self {
        let live = from.live();
        let guards = vec![held(from, live, GuardState::Open, open(from, GuardState::Fenced))];
        Self { guards, ..Self::phase(from, Phase::Fenced) }
    }

    /// Writers go on where they were. What was compared stays so: whatever changes now is in the log.
    pub fn unfence(from: &Record) -> Self {
        let live = from.live();
        let guards = vec![held(from, live, GuardState::Fenced, open(from, GuardState::Open))];
        Self { guards, ..Self::save(from, Phase::Verifying, Cursor::end()) }
    }

    /// Of the stream something is missing: what was copied is worth nothing. If writers are fenced, they go on.
    pub fn copy_again(from: &Record) -> Self {
        let guards = match from.phase {
            Phase::Fenced => Self::unfence(from).guards,
            _ => Vec::new(),
        };
        Self { guards, ..Self::phase(&Record { stream: None, ..from.clone() }, Phase::Copying) }
    }

    /// The tenant changes its cell.
    pub fn commit(from: &Record) -> Self {
        let (live, epoch) = (from.live(), from.epoch + 1);
        let before = placed(from, live, WriteMode::Logged);
        let after = Placement { side: live.other(), epoch, ..before };
        let opens = Guard { epoch, ..open(from, GuardState::Open) };
        let moved = Guard { epoch, ..open(from, GuardState::Moved) };
        Self {
            record: Record {
                phase: Phase::Committed,
                cursor: Cursor::default(),
                stream: None,
                epoch,
                ..from.clone()
            },
            guards: vec![
                held(from, live, GuardState::Fenced, moved),
                held(from, live.other(), waiting(from), opens),
            ],
            placement: Some((before, after)),
            ..Self::phase(from, Phase::Committed)
        }
    }

    /// Out of the soak, on the way back: the same once more with the cells exchanged, but for the copy.
    pub fn reverse(from: &Record) -> Self {
        let back = Record { leg: Leg::Back, ..from.clone() };
        Self::to(from, Record { phase: Phase::Verifying, cursor: Cursor::default(), ..back })
    }

    /// Writers are direct again where the tenant lives. There is no way back from here.
    pub fn settle(from: &Record) -> Self {
        let live = from.live();
        let direct = Guard { mode: WriteMode::Direct, ..open(from, GuardState::Open) };
        let before = placed(from, live, WriteMode::Logged);
        Self {
            guards: vec![held(from, live, GuardState::Open, direct)],
            placement: Some((before, Placement { mode: WriteMode::Direct, ..before })),
            ..Self::phase(from, Phase::Cleaning)
        }
    }

    /// Nobody holds the guards any more; a marker stays behind where the tenant was.
    pub fn finish(from: &Record) -> Self {
        let live = from.live();
        let free = |state| Guard { holder: None, mode: WriteMode::Direct, ..open(from, state) };
        let before = placed(from, live, WriteMode::Direct);
        Self {
            guards: vec![
                held(from, live, GuardState::Open, free(GuardState::Open)),
                held(from, live.other(), GuardState::Moved, free(GuardState::Moved)),
            ],
            placement: Some((before, Placement { migration: None, ..before })),
            ..Self::phase(from, Phase::Done)
        }
    }

    /// Writers go on at the source as if nothing had been. Loses to a commit, as it asks for a phase before it.
    pub fn abort(from: &Record) -> Self {
        let was = match from.phase {
            Phase::Fenced => GuardState::Fenced,
            _ => GuardState::Open,
        };
        let direct = Guard { mode: WriteMode::Direct, ..open(from, GuardState::Open) };
        let before = placed(from, Side::Source, WriteMode::Logged);
        Self {
            guards: vec![held(from, Side::Source, was, direct)],
            placement: Some((before, Placement { mode: WriteMode::Direct, ..before })),
            ..Self::phase(from, Phase::Aborting)
        }
    }

    /// Nothing is left of it but the record.
    pub fn forget(from: &Record) -> Self {
        let free = Guard { holder: None, mode: WriteMode::Direct, ..open(from, GuardState::Open) };
        let before = placed(from, Side::Source, WriteMode::Direct);
        let target = GuardChange {
            effect: GuardEffect::Remove,
            ..held(from, Side::Target, GuardState::Incoming, free)
        };
        Self {
            guards: vec![held(from, Side::Source, GuardState::Open, free), target],
            placement: Some((before, Placement { migration: None, ..before })),
            ..Self::phase(from, Phase::Aborted)
        }
    }
}

/// The state in which the guard of the cell waits that the tenant does not live in.
pub(crate) fn waiting(record: &Record) -> GuardState {
    match (record.leg, record.phase) {
        (_, Phase::Committed | Phase::Soaking | Phase::Cleaning) | (Leg::Back, _) => {
            GuardState::Moved
        }
        (Leg::Forward, _) => GuardState::Incoming,
    }
}

/// The guard of the cell that the tenant lives in, while it is this worker's and writes are logged.
fn open(record: &Record, state: GuardState) -> Guard {
    Guard { state, epoch: record.epoch, mode: WriteMode::Logged, holder: Some(record.holder()) }
}

fn held(record: &Record, side: Side, state: GuardState, becomes: Guard) -> GuardChange {
    let check = GuardCheck::Held { state, holder: record.holder() };
    GuardChange { side, check, effect: GuardEffect::Set(becomes) }
}

fn placed(record: &Record, side: Side, mode: WriteMode) -> Placement {
    Placement { side, epoch: record.epoch, mode, migration: Some(record.id) }
}
