//! What is durable of a migration.

use crate::action::Cursor;
use crate::guard::{Holder, Side};

/// Tells migrations apart; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MigrationId(pub u128);

/// Whether the tenant is on its way to the target, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    Forward,
    Back,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing was changed yet.
    Planned,
    /// Writers are told to log; the last leases for direct writes run out.
    Logging,
    Copying,
    /// The log is drained until little is left.
    CatchingUp,
    /// Both cells are compared.
    Verifying,
    /// No write passes; what is left of the log is drained.
    Fenced,
    /// The tenant lives in the other cell.
    Committed,
    /// The cell that was left is kept current, so that there is a way back.
    Soaking,
    /// Writers are direct again; what is left behind is removed.
    Cleaning,
    Done,
    /// Writers are direct again at the source; what was copied is removed.
    Aborting,
    Aborted,
}

impl Phase {
    pub fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }

    /// As it is stored, and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "PLANNED",
            Self::Logging => "LOGGING",
            Self::Copying => "COPYING",
            Self::CatchingUp => "CATCHING_UP",
            Self::Verifying => "VERIFYING",
            Self::Fenced => "FENCED",
            Self::Committed => "COMMITTED",
            Self::Soaking => "SOAKING",
            Self::Cleaning => "CLEANING",
            Self::Done => "DONE",
            Self::Aborting => "ABORTING",
            Self::Aborted => "ABORTED",
        }
    }
}

/// What an operator asks of a migration under way. Whether there still is time for it, the machine decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    /// To end where the tenant is, as long as it was not committed.
    Cancel,
    /// To go back, out of the soak.
    Reverse,
    /// To end the soak now.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    pub id: MigrationId,
    pub leg: Leg,
    pub phase: Phase,
    /// Raised by each worker that takes over.
    pub worker: u64,
    /// The epoch at which the tenant is placed.
    pub epoch: u64,
    /// How far the phase has come; before that everything was done. Under the fence always the beginning: what was compared there
    /// counts for the worker alone that compared it, and for that fence alone.
    pub cursor: Cursor,
    /// How far the stream of the cell that the tenant lives in is applied; only with writers that do not cooperate.
    pub stream: Option<Cursor>,
    pub wish: Option<Wish>,
    /// An operator's, like the wish: transactions keep it. The machine goes no further, and first lets writers go on if they are
    /// fenced; a wish to cancel counts in a pause, too. What is to be removed after that waits for the end of the pause: whoever
    /// takes the wish to cancel may end the pause with it.
    pub paused: bool,
}

impl Record {
    /// A migration of a tenant that is placed at this epoch.
    pub fn new(id: MigrationId, epoch: u64) -> Self {
        Self {
            id,
            leg: Leg::Forward,
            phase: Phase::Planned,
            worker: 0,
            epoch,
            cursor: Cursor::default(),
            stream: None,
            wish: None,
            paused: false,
        }
    }

    pub fn holder(&self) -> Holder {
        Holder { migration: self.id, worker: self.worker }
    }

    /// Where the tenant lives.
    pub fn live(&self) -> Side {
        use Phase::*;
        let moved = matches!(self.phase, Committed | Soaking | Cleaning | Done);
        match (self.leg, moved) {
            (Leg::Forward, false) | (Leg::Back, true) => Side::Source,
            (Leg::Forward, true) | (Leg::Back, false) => Side::Target,
        }
    }
}
