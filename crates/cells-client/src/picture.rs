//! What readers see: memory, and the lease on what it holds.
//!
//! Invariants:
//! - A reader takes the lease *first* and the value after it. A lease that was granted at position `p` covers every value that memory
//!   holds at `p` or later, so a value that is read after its lease is covered by it; the other way round it might be older.
//! - Memory and lease are reached through one pointer: a lease never covers the values of another picture.
//! - `lease_until` and `as_of` only rise, but for a revocation, which sets the lease to "over".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::answer::{Resolved, Source};
use crate::cells::CellTable;
use crate::clock::{Clock, Moment};
use crate::floors::Floors;
use crate::memory::{Memory, attached};

pub(crate) struct Picture {
    pub memory: Arc<Memory>,
    /// Rises with each picture; `UNATTACHED` until a Watch was followed.
    pub generation: u32,
    /// When the snapshot file was written that all of this is from. Information only.
    pub saved_at: Option<SystemTime>,
    lease_until: AtomicU64,
    as_of: AtomicU64,
}

impl Picture {
    pub fn new(memory: Arc<Memory>, generation: u32, saved_at: Option<SystemTime>) -> Self {
        Self {
            memory,
            generation,
            saved_at,
            lease_until: AtomicU64::new(0),
            as_of: AtomicU64::new(0),
        }
    }

    /// All that is attached was current at `as_of` and may be used until `until`.
    pub fn renew(&self, until: Moment, as_of: Moment) {
        self.as_of.fetch_max(as_of.to_bits(), Ordering::Release);
        self.lease_until.fetch_max(until.to_bits(), Ordering::Release);
    }

    pub fn revoke(&self) {
        self.lease_until.store(0, Ordering::Release);
    }

    pub fn lease_until(&self) -> Moment {
        Moment::from_bits(self.lease_until.load(Ordering::Acquire))
    }

    pub fn as_of(&self) -> Moment {
        Moment::from_bits(self.as_of.load(Ordering::Acquire))
    }

    /// The answer that memory has for `key`.
    #[inline]
    pub fn resolve(&self, key: &str) -> Option<Resolved> {
        let (lease_until, as_of) = (self.lease_until(), self.as_of());
        let (held, attached) = self.memory.get(key, self.generation)?;
        Some(self.answer(held, attached, lease_until, as_of))
    }

    /// The answer that a value gives which the follower has just looked at, under its lock.
    pub fn answer_now(&self, held: crate::held::Held, generation: u32) -> Resolved {
        self.answer(held, attached(generation, self.generation), self.lease_until(), self.as_of())
    }

    #[inline]
    fn answer(
        &self,
        held: crate::held::Held,
        attached: bool,
        lease_until: Moment,
        as_of: Moment,
    ) -> Resolved {
        // A picture from a file stays one until a replica has confirmed it.
        let from_file = self.saved_at.is_some() && as_of == Moment::NEVER;
        let source = if from_file { Source::SnapshotFile } else { Source::Memory };
        if attached {
            Resolved { held, lease_until, as_of, source }
        } else {
            Resolved { held, lease_until: Moment::NEVER, as_of: Moment::NEVER, source }
        }
    }
}

/// What all handles of a directory share with its follower.
pub(crate) struct Shared {
    pub picture: ArcSwap<Picture>,
    pub cells: CellTable,
    pub floors: Arc<Floors>,
    pub clock: Arc<dyn Clock>,
    /// Answers older than this are stale, unless a lease is left on them.
    pub stale_after: std::time::Duration,
}

impl Shared {
    pub fn now(&self) -> Moment {
        Moment::now(&*self.clock)
    }
}
