//! Faults put in on purpose, one at a time. The checker is to find a history for each in which it does harm.

use cells_migration::{
    Cursor, Guard, GuardCheck, GuardEffect, GuardState, Phase, Record, Transaction, Wish, WriteMode,
};

use crate::Moves;
use crate::bounds::Bounds;
use crate::state::{State, Value, cursor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Copies while leases for direct writes are still good.
    NoWaitForLeases,
    /// Reads a page, drains the log, and writes the page.
    DrainDuringCopy,
    /// Takes the log as drained under the fence as it was before.
    PositionBeforeFence,
    /// Writes at the other cell without a check of its guard.
    UnfencedWrite,
    /// The check of the guard does not ask for the worker.
    FenceForAnyWorker,
    /// Saves how far the copy has come before it has come there; the verification, which would mend it, mends nothing.
    CheckpointBeforeApply,
    /// Removes records of the log before what they name is applied.
    RemoveBeforeApply,
    /// Removes records that came after those that were read.
    RemoveNewer,
    /// Reads items before the log that names them.
    ReadBeforeLog,
    /// Goes on under its number after a write without an answer.
    GoOnAfterUnknown,
    /// Commits without a check of anything.
    CommitBlindly,
    /// Opens the target first, and leaves the source in a transaction of its own.
    CommitInTwo,
    /// Writers are direct again at once after the commit.
    SoakWithoutLog,
    /// Cancels what was committed.
    AbortAfterCommit,
    /// Deletes what was copied without a check of the guard.
    PurgeWithoutGuard,
    /// Writers leave no records.
    WriteWithoutARecord,
    /// The guard does not ask how a writer means to write.
    PassInAnyMode,
    /// The guard does not ask in which migration's log a write leaves its record.
    PassForAnyMigration,
    /// Drops the log of whichever migration is under way.
    DropAnyLog,
    /// A direct write counts as done though its answer came after the lease.
    AcknowledgeAfterTheLease,
    /// Takes all as compared under the fence.
    StrictWithoutComparing,
    /// Takes over under the fence, and takes as compared what another worker is to have compared.
    StrictByHearsay,
    /// Goes on under the second fence where it stopped to compare under the first.
    StrictWhereItStopped,
    /// Does nothing more once it is paused.
    PauseUnderTheFence,
    /// Gives up when the fence lasts too long, and does not lift it.
    ParkUnderTheFence,
    /// Takes a freeze that was asked for as one that holds.
    FreezeUnconfirmed,
    /// Takes the stream as followed past the marker as soon as the freeze holds.
    NotFollowedAfterTheFreeze,
    /// Leaves the marker when it asks for the freeze.
    MarkerBeforeTheFreeze,
    /// Takes any marker for its own.
    AnyMarker,
    /// Goes on with what is left of a stream that was trimmed.
    FollowFromTheLatest,
    /// Saves how far the stream was followed before what it names is applied.
    PositionBeforeApply,
    /// A freeze is lifted by whoever asks for it.
    ThawOfAnyWorker,
    /// Of what one worker orders, the hook does not ask what came later.
    OrdersOfOneWorkerAlike,
}

impl Mutant {
    pub const ALL: [Self; 33] = [
        Self::NoWaitForLeases,
        Self::DrainDuringCopy,
        Self::PositionBeforeFence,
        Self::UnfencedWrite,
        Self::FenceForAnyWorker,
        Self::CheckpointBeforeApply,
        Self::RemoveBeforeApply,
        Self::RemoveNewer,
        Self::ReadBeforeLog,
        Self::GoOnAfterUnknown,
        Self::CommitBlindly,
        Self::CommitInTwo,
        Self::SoakWithoutLog,
        Self::AbortAfterCommit,
        Self::PurgeWithoutGuard,
        Self::WriteWithoutARecord,
        Self::PassInAnyMode,
        Self::PassForAnyMigration,
        Self::DropAnyLog,
        Self::AcknowledgeAfterTheLease,
        Self::StrictWithoutComparing,
        Self::StrictByHearsay,
        Self::StrictWhereItStopped,
        Self::PauseUnderTheFence,
        Self::ParkUnderTheFence,
        Self::FreezeUnconfirmed,
        Self::NotFollowedAfterTheFreeze,
        Self::MarkerBeforeTheFreeze,
        Self::AnyMarker,
        Self::FollowFromTheLatest,
        Self::PositionBeforeApply,
        Self::ThawOfAnyWorker,
        Self::OrdersOfOneWorkerAlike,
    ];

    /// Enough for it to do harm.
    pub fn bounds(self) -> Bounds {
        match self {
            Self::UnfencedWrite | Self::FenceForAnyWorker => {
                Bounds { takeovers: 1, ..Bounds::ONE_WRITER }
            }
            Self::CheckpointBeforeApply | Self::RemoveBeforeApply => {
                Bounds { takeovers: 1, ..Bounds::ONE_OP }
            }
            Self::CommitBlindly => Bounds { takeovers: 1, overdue: 1, ..Bounds::ONE_OP },
            Self::GoOnAfterUnknown => Bounds { unknowns: 1, ..Bounds::ONE_WRITER },
            Self::SoakWithoutLog | Self::AbortAfterCommit => {
                Bounds { wishes: true, ..Bounds::ONE_OP }
            }
            Self::PassForAnyMigration => Bounds { wishes: true, again: true, ..Bounds::ONE_OP },
            Self::DropAnyLog => {
                Bounds { wishes: true, again: true, takeovers: 1, ..Bounds::ONE_OP }
            }
            Self::PurgeWithoutGuard => {
                Bounds { wishes: true, again: true, takeovers: 1, ..Bounds::NO_WRITER }
            }
            Self::StrictWithoutComparing => Bounds::STRICT,
            Self::StrictByHearsay => Bounds { takeovers: 1, ..Bounds::STRICT },
            Self::StrictWhereItStopped => Bounds { overdue: 1, ..Bounds::STRICT },
            Self::PauseUnderTheFence => Bounds { pauses: true, ..Bounds::ONE_OP },
            Self::ParkUnderTheFence => Bounds { overdue: 1, ..Bounds::ONE_OP },
            Self::FreezeUnconfirmed
            | Self::NotFollowedAfterTheFreeze
            | Self::MarkerBeforeTheFreeze => Bounds::PLAIN,
            Self::AnyMarker => Bounds { overdue: 1, ..Bounds::PLAIN },
            Self::FollowFromTheLatest => Bounds { trims: 1, ..Bounds::PLAIN },
            Self::PositionBeforeApply => Bounds { takeovers: 1, ..Bounds::PLAIN },
            Self::ThawOfAnyWorker => Bounds { takeovers: 1, ..Bounds::PLAIN },
            Self::OrdersOfOneWorkerAlike => Bounds { unknowns: 1, ..Bounds::PLAIN },
            _ => Bounds::ONE_KEY,
        }
    }
}

impl Moves {
    pub fn writes_anyway(&self, fence: GuardCheck, guard: Option<Guard>, value: Value) -> bool {
        match self.mutant {
            Some(Mutant::UnfencedWrite) => true,
            Some(Mutant::FenceForAnyWorker) => match (fence, guard) {
                (GuardCheck::Held { state, holder }, Some(guard)) => {
                    let of = GuardCheck::Of { migration: holder.migration };
                    guard.state == state && of.holds(Some(&guard))
                }
                _ => false,
            },
            Some(Mutant::PurgeWithoutGuard) => value == 0,
            _ => false,
        }
    }

    pub fn passes(&self, check: GuardCheck, guard: Option<Guard>) -> bool {
        let (GuardCheck::Open { epoch, mode, .. }, Some(guard)) = (check, guard) else {
            return false;
        };
        (guard.state, guard.epoch) == (GuardState::Open, epoch)
            && match self.mutant {
                Some(Mutant::PassInAnyMode) => true,
                Some(Mutant::PassForAnyMigration) => guard.mode == mode,
                _ => false,
            }
    }

    /// Whether a transaction asks nothing.
    pub fn blind(&self, transaction: &Transaction) -> bool {
        match self.mutant {
            Some(Mutant::CommitBlindly | Mutant::SoakWithoutLog) => {
                transaction.record.phase == Phase::Committed
            }
            Some(Mutant::AbortAfterCommit) => transaction.record.phase == Phase::Aborting,
            _ => false,
        }
    }

    /// Whether a worker stands still though there is something to do.
    pub fn does_nothing(&self, state: &State, record: &Record) -> bool {
        match self.mutant {
            Some(Mutant::PauseUnderTheFence) => record.paused,
            Some(Mutant::ParkUnderTheFence) => record.phase == Phase::Fenced && state.overdue > 0,
            _ => false,
        }
    }

    /// What a worker sends instead.
    pub fn distorted(
        &self,
        record: &Record,
        mut transaction: Transaction,
        overdue: u8,
    ) -> Transaction {
        let phase = transaction.record.phase;
        let commits = phase == Phase::Committed && record.phase == Phase::Fenced;
        match self.mutant {
            Some(Mutant::StrictByHearsay)
                if (phase, record.phase) == (Phase::Fenced, Phase::Fenced) =>
            {
                transaction.record.cursor = Cursor::end();
                transaction
            }
            Some(Mutant::StrictWhereItStopped)
                if phase == Phase::Fenced && overdue < self.bounds.overdue =>
            {
                transaction.record.cursor = cursor(1).unwrap_or_default();
                transaction
            }
            Some(Mutant::AbortAfterCommit)
                if record.phase == Phase::Committed && record.wish == Some(Wish::Cancel) =>
            {
                Transaction::abort(record)
            }
            Some(Mutant::CommitInTwo) if commits => Transaction {
                guards: transaction.guards[1..].into(),
                placement: None,
                ..transaction
            },
            Some(Mutant::SoakWithoutLog) if commits => {
                if let GuardEffect::Set(guard) = &mut transaction.guards[1].effect {
                    guard.mode = WriteMode::Direct;
                }
                if let Some((_, after)) = &mut transaction.placement {
                    after.mode = WriteMode::Direct;
                }
                transaction
            }
            _ => transaction,
        }
    }
}
