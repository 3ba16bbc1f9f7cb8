//! The small item in a cell's own table that says whether the cell takes checked writes of a tenant.

use crate::record::MigrationId;

/// One of the two cells of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Where the tenant lives when the migration is asked for.
    Source,
    /// Where it is to live.
    Target,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Source, Self::Target];

    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Target,
            Self::Target => Self::Source,
        }
    }
}

/// How writers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteMode {
    /// Plainly under a lease, else checked.
    Direct,
    /// Checked, each write with a record of the keys that it touches.
    Logged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuardState {
    /// Checked writes pass.
    Open,
    /// The tenant is being copied here.
    Incoming,
    /// Nothing passes: the cell is about to be left.
    Fenced,
    /// The tenant lives elsewhere.
    Moved,
}

/// Who works on a migration: a worker that takes over has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    pub migration: MigrationId,
    pub worker: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    pub state: GuardState,
    /// While open, the placement's epoch; while incoming, the one it is to open at; when moved, the one that opened elsewhere.
    pub epoch: u64,
    pub mode: WriteMode,
    /// The migration that works on this cell, from its start until its end.
    pub holder: Option<Holder>,
}

/// What a transaction asks of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuardCheck {
    /// There is none, or a marker of a tenant that left, and no migration holds it.
    Vacant,
    /// Open at this epoch for direct writers, and no migration holds it.
    Idle { epoch: u64 },
    /// In this state, and held by this very worker.
    Held { state: GuardState, holder: Holder },
    /// Held by any worker of this migration.
    Of { migration: MigrationId },
    /// What a writer asks: open at the epoch and in the mode that it was told. In [`WriteMode::Logged`] also held by the migration in
    /// whose log the write leaves its record: a migration that was cancelled leaves the epoch as it was, and the next one does not
    /// look at its log.
    Open { epoch: u64, mode: WriteMode, migration: Option<MigrationId> },
}

impl GuardCheck {
    pub fn holds(&self, guard: Option<&Guard>) -> bool {
        let Some(guard) = guard else { return *self == Self::Vacant };
        match *self {
            Self::Vacant => guard.state == GuardState::Moved && guard.holder.is_none(),
            Self::Idle { epoch } => {
                guard.state == GuardState::Open
                    && (guard.epoch, guard.mode) == (epoch, WriteMode::Direct)
                    && guard.holder.is_none()
            }
            Self::Held { state, holder } => guard.state == state && guard.holder == Some(holder),
            Self::Of { migration } => {
                guard.holder.is_some_and(|holder| holder.migration == migration)
            }
            Self::Open { epoch, mode, migration } => {
                let of = guard.holder.map(|holder| holder.migration);
                guard.state == GuardState::Open
                    && (guard.epoch, guard.mode) == (epoch, mode)
                    && (mode == WriteMode::Direct || of == migration)
            }
        }
    }
}
