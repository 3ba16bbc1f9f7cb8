//! What a caller is answered: where the tenant lives, how that is known, how old it can be, and how long it may be relied on.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::cells::Cell;
use crate::clock::Moment;
use crate::held::{Held, PlacementState, WriteMode};
use crate::picture::Shared;

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// This process's memory.
    Memory,
    /// The snapshot file of an earlier process; no replica has confirmed it yet.
    SnapshotFile,
    /// A replica, asked for this key.
    Fetched,
    /// A replica, asked for this key: an operator's override.
    Override,
    /// A guess: neither memory nor the routing table knew in time. Not authoritative.
    Fallback,
}

/// An answer without its cell's text: what memory, follower and fetches hand to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub held: Held,
    pub lease_until: Moment,
    pub as_of: Moment,
    pub source: Source,
}

/// Which cell a tenant lives in.
///
/// Made without allocating. It borrows the directory and stays what it was when it was made; its lease runs out while it is held.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    pub(crate) resolved: Resolved,
    pub(crate) shared: &'a Shared,
}

impl<'a> Answer<'a> {
    /// The cell, as last heard of: an endpoint that was changed since the answer was made is the new one.
    pub fn cell(&self) -> &'a Cell {
        self.shared.cells.get(self.resolved.held.cell)
    }

    /// The cell's name.
    pub fn cell_id(&self) -> &'a str {
        self.cell().id()
    }

    /// Where the application's stack in the cell is reached. Empty where the directory has not said.
    pub fn endpoint(&self) -> &'a str {
        self.cell().endpoint()
    }

    /// The cell's AWS Region. Empty where the directory has not said.
    pub fn region(&self) -> &'a str {
        self.cell().region()
    }

    /// Rises by one each time the tenant's cell changes; never falls. 0 only with a fallback.
    pub fn epoch(&self) -> u64 {
        self.resolved.held.epoch
    }

    /// How writers of this tenant write.
    pub fn write_mode(&self) -> WriteMode {
        self.resolved.held.write_mode
    }

    /// Where the placement stands in its life.
    pub fn state(&self) -> PlacementState {
        self.resolved.held.state
    }

    /// When the placement expires, to the millisecond; `None`: never. Retiring it is up to the directory: no clock of this
    /// process is compared with it.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.resolved.held.expires_at()
    }

    /// Where the answer came from.
    pub fn source(&self) -> Source {
        self.resolved.source
    }

    /// Whether the directory once said so. False only for a fallback, which is a guess.
    pub fn is_authoritative(&self) -> bool {
        self.resolved.source != Source::Fallback
    }

    /// How old the answer can be by now: the routing table held this placement at some moment no longer ago. `None`: not known, as
    /// with a fallback, or from a snapshot file.
    pub fn age(&self) -> Option<Duration> {
        (self.resolved.as_of != Moment::NEVER).then(|| self.shared.now().since(self.resolved.as_of))
    }

    /// When the snapshot file was written that the answer is from, by that machine's wall clock: information, and no promise.
    pub fn saved_at(&self) -> Option<SystemTime> {
        match self.resolved.source {
            Source::SnapshotFile => self.shared.picture.load().saved_at,
            _ => None,
        }
    }

    /// How much longer the answer may be used for direct (unguarded) writes; zero: not at all.
    ///
    /// Counted from the moment this process asked, shortened by the drift that its clock is allowed. A write that was sent within the
    /// lease has succeeded only if its response arrived within it too; otherwise its outcome is unknown, and it is repeated guarded.
    pub fn lease(&self) -> Duration {
        if self.resolved.lease_until == Moment::NEVER {
            return Duration::ZERO;
        }
        self.resolved.lease_until.since(self.shared.now())
    }

    /// Whether a writer may write plainly at this moment: the mode is `Direct`, the placement is active and a lease is left.
    pub fn may_write_directly(&self) -> bool {
        self.write_mode() == WriteMode::Direct
            && self.state() == PlacementState::Active
            && !self.lease().is_zero()
    }

    /// Whether the answer is older than it should be: no lease is left on it, and its age is unknown or above the option
    /// `stale_after`. It is still the best that is known, and guarded writes are as safe with it as with any other.
    pub fn is_stale(&self) -> bool {
        self.lease().is_zero() && self.age().is_none_or(|age| age > self.shared.stale_after)
    }
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("cell_id", &self.cell_id())
            .field("epoch", &self.epoch())
            .field("write_mode", &self.write_mode())
            .field("state", &self.state())
            .field("source", &self.source())
            .field("age", &self.age())
            .field("lease", &self.lease())
            .field("stale", &self.is_stale())
            .finish()
    }
}
