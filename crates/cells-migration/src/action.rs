//! What the machine asks for, what it is told, and how it is set.

use crate::guard::{GuardCheck, Holder, Side};
use crate::record::Record;
use crate::transaction::Transaction;

/// Milliseconds on the worker's own monotonic clock. No wall clock takes part.
pub type Millis = u64;

/// Longest wait between two fences, or two freezes: 60 seconds, or the budget of what was in vain, where that is longer.
pub const LONGEST_BACKOFF: Millis = 60_000;

/// A position in a cell's items, as the store made it. Empty: the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cursor(pub Vec<u8>);

impl Cursor {
    /// Behind the last item.
    pub fn end() -> Self {
        Self(vec![0xff])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// How long the longest lease for direct writes can still be used after writers were told to log: the cluster's lease, and a
    /// margin for clocks that run at different rates and for writes that are under way. [`crate::Machine::set_leases_end`] changes it.
    pub leases_end: Millis,
    /// Longest time under the fence; after that, writers go on, and it is tried again after as long, twice as long, and so on up to
    /// [`LONGEST_BACKOFF`], or this where it is longer.
    pub pause_budget: Millis,
    /// How long there is a way back, from when this worker sees the soak begin.
    pub soak: Millis,
    /// Records of the log, or of the stream, that are few enough to be dealt with once writers wait.
    pub little: u64,
    /// Pause between two looks at the log, or at the stream, once it was found empty, and between two probes of a freeze.
    pub soak_interval: Millis,
    /// Whether everything is compared once more under the fence, with the log drained. The pause grows with the tenant then.
    pub strict: bool,
    pub writers: Writers,
    /// Longest time from the first answer to a freeze until the fence; after that such writers go on, and it counts as a fence in vain:
    /// they have as long to themselves, twice as long, and so on, as after a fence.
    pub freeze_budget: Millis,
    /// How often in a row one worker fences and has to give up before it says [`Next::Park`]; 0 counts as 1.
    pub max_fences: u32,
}

/// Who writes the tenant's items besides the migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Writers {
    /// All keep to the contract: leases, guards and the log.
    #[default]
    Cooperative,
    /// Some know nothing of guards. They are followed by the stream, and stopped by a freeze that is confirmed.
    Frozen,
    /// Some know nothing of guards, and cannot be stopped: what they write around the commit is lost. Never lossless.
    BestEffort,
}

/// A record in a stream that can be told from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marker {
    pub holder: Holder,
    /// Counts from 1 for each holder.
    pub number: u32,
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
    /// Under the fence too, if the migration is strict.
    Compare { from: Side, fence: GuardCheck, cursor: Cursor },
    /// Delete a page of items in `from` under `fence`, which is that cell's guard: [`Event::Purged`].
    Purge { from: Side, fence: GuardCheck, cursor: Cursor },
    /// Remove some of the migration's own log in `from`, to which nothing is added any more: [`Event::Drained`]. Never that of
    /// another migration, which may be under way if this worker was taken over from long ago.
    DropLog { from: Side },
    /// Find a position in the stream of `from`, behind which is all that is written from now on: [`Event::Listening`].
    Listen { from: Side },
    /// Read some of the stream of `from` behind `position`, parents before children; read in `from`, *after* that, the items that it
    /// names, and put or delete them in the other cell under `fence`. `past`: say whether this marker is before the new position, in
    /// every part of the stream. [`Event::Followed`], or [`Event::Trimmed`] if anything behind `position` may be gone.
    Follow { from: Side, fence: GuardCheck, position: Cursor, past: Option<Marker> },
    /// Leave this marker in the stream of `from`: [`Event::Marked`].
    Mark { from: Side, marker: Marker },
    /// Stop the writers in `from` that know nothing of guards, and probe whether they are: [`Event::Frozen`]. Whoever stops them is told
    /// the worker's number and that of the order ([`crate::Orders`]), and heeds no lower ones of the same migration than it heard, here
    /// and for [`Action::Thaw`].
    Freeze { from: Side, holder: Holder },
    /// Lift every freeze of this migration. The tenant lives in `live`, where those writers are to write: [`Event::Thawed`].
    Thaw { live: Side, holder: Holder },
}

/// What came of the last action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The record as it is. May come unasked, for its wish and its pause.
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
    Listening {
        position: Cursor,
    },
    /// How much of the stream was read, in records, or in what is to be written for them; 0: there is no more of the tenant for now. All
    /// before `next` is applied.
    Followed {
        found: u64,
        next: Cursor,
        past: bool,
    },
    Trimmed,
    Marked,
    /// `holds`: no write of theirs lands any more, whenever it was sent.
    Frozen {
        holds: bool,
    },
    Thawed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    Do(Action),
    WaitUntil(Millis),
    /// An operator paused the migration. No writer is fenced. Until [`Event::Read`] says otherwise there is nothing to do.
    Pause,
    /// This worker has given up, with no writer fenced: to be kept, while the log grows, until an operator retries with a new machine. A
    /// wish to cancel is heard still.
    Park(Parked),
    /// The migration has ended, or another worker has it.
    Leave,
}

/// Why a worker has given up: within the pause budget, so many times in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parked {
    /// The log was not drained: the tenant is written to faster, or the pause budget is too short.
    LogNotDrained { fences: u32 },
    /// Not all was compared, as strict verification asks: the tenant is too large for the pause budget.
    NotCompared { fences: u32 },
    /// The freeze was not confirmed within the freeze budget, or its marker not seen in the stream.
    NotFrozen { fences: u32 },
}

impl Parked {
    pub fn fences(self) -> u32 {
        match self {
            Self::LogNotDrained { fences }
            | Self::NotCompared { fences }
            | Self::NotFrozen { fences } => fences,
        }
    }
}
