//! What a directory holds: every placement there is, or those that were asked for of late.
//!
//! Only the follower writes, under its lock; everybody reads. A value is *attached* when it is exact as of the position that the
//! follower has applied in the present picture, so that a renewal covers it; otherwise it is an answer, but without a lease.

use std::sync::Arc;

use cells_map::{CompactMap, Packed};
use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, UnitWeighter};

use crate::floors::Floors;
use crate::held::{Held, Kept};
use crate::key::{Key, Wanted};

/// The generation of the picture before the first that a Watch has made: nothing is attached to it. Pictures have even generations; the
/// odd one after it is that of values which are held along with it, but not attached.
pub(crate) const UNATTACHED: u32 = 0;

/// For a given seed, evictions are the same in every run.
static FIXED: SharedSeed = SharedSeed::from_u64(0x6365_6c6c_7363_6c69);

/// Packed, so that it comes in one cache line with its key.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    packed: [u8; Held::BYTES],
    generation: u32,
}

impl Entry {
    fn new(held: Held, generation: u32) -> Self {
        let mut packed = [0; Held::BYTES];
        held.pack(&mut packed);
        Self { packed, generation }
    }

    #[inline]
    fn held(&self) -> Held {
        Held::unpack(&self.packed)
    }
}

/// What is evicted leaves its epoch behind.
#[derive(Clone)]
pub(crate) struct Evictions(Arc<Floors>);

impl Lifecycle<Key, Entry> for Evictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), key: Key, entry: Entry) {
        self.0.raise(key.as_str(), entry.held().epoch);
    }
}

/// Most shards of a bounded memory, each with a lock of its own. A reader writes to its shard's lock, twice; with as few shards as the
/// library takes by default (four times the processors) two readers are at the same lock all the time, and wait for one another.
const MAX_SHARDS: usize = 1024;

/// A shard evicts when it is full itself. With no fewer places than this, little of the whole goes unused.
const SHARD_PLACES: usize = 128;

pub(crate) type Bounded = Cache<Key, Entry, UnitWeighter, SeedableRandomState, Evictions>;

// There are one or two of these, each behind an `Arc`; a box more would be a wait for memory more.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Memory {
    /// All placements, and those that were fetched before the Watch told of them.
    Whole(CompactMap<Kept>),
    /// At most so many placements; generations tell which are attached.
    Bounded(Box<Bounded>),
}

impl Memory {
    pub fn whole(seed: Option<u64>) -> Self {
        Self::Whole(seed.map_or_else(CompactMap::new, CompactMap::seeded))
    }

    pub fn bounded(capacity: usize, floors: Arc<Floors>, seed: Option<u64>) -> Self {
        let hasher = match seed {
            Some(seed) => SeedableRandomState::with_seed(seed, &FIXED),
            None => SeedableRandomState::random(),
        };
        let capacity = capacity.max(1);
        let shards = (capacity / SHARD_PLACES).clamp(1, MAX_SHARDS);
        let options = OptionsBuilder::new()
            // The cache rounds up.
            .shards(1 << shards.ilog2())
            .estimated_items_capacity(capacity)
            .weight_capacity(capacity as u64)
            .build()
            .expect("both capacities are set");
        Self::Bounded(Box::new(Cache::with_options(
            options,
            UnitWeighter,
            hasher,
            Evictions(floors),
        )))
    }

    /// The value of `key`, and whether it is attached to the picture of `generation`.
    #[inline]
    pub fn get(&self, key: &str, generation: u32) -> Option<(Held, bool)> {
        match self {
            Self::Whole(map) => {
                map.get(key).map(|kept| (kept.held, !kept.loose && generation != UNATTACHED))
            }
            Self::Bounded(cache) => cache
                .get(&Wanted(key))
                .map(|entry| (entry.held(), attached(entry.generation, generation))),
        }
    }

    /// [`Memory::get`] of somebody who does not ask on a caller's behalf: it keeps nothing from being evicted.
    /// Answers the value's own generation.
    pub fn peek(&self, key: &str, generation: u32) -> Option<(Held, u32)> {
        match self {
            Self::Whole(map) => {
                map.get(key).map(|kept| (kept.held, generation | u32::from(kept.loose)))
            }
            Self::Bounded(cache) => {
                cache.peek(&Wanted(key)).map(|entry| (entry.held(), entry.generation))
            }
        }
    }

    pub fn put(&self, key: &str, held: Held, generation: u32) {
        match self {
            Self::Whole(map) => {
                map.insert(key, Kept { held, loose: generation & 1 == 1 });
            }
            Self::Bounded(cache) => cache.insert(key.into(), Entry::new(held, generation)),
        }
    }

    pub fn remove(&self, key: &str) {
        match self {
            Self::Whole(map) => {
                map.remove(key);
            }
            Self::Bounded(cache) => {
                cache.remove(&Wanted(key));
            }
        }
    }

    pub fn is_bounded(&self) -> bool {
        matches!(self, Self::Bounded(_))
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Whole(map) => map.len(),
            Self::Bounded(cache) => cache.len(),
        }
    }

    /// How many portions [`Memory::visit`] comes in.
    pub fn portions(&self) -> usize {
        match self {
            Self::Whole(map) => map.shards(),
            Self::Bounded(_) => 1,
        }
    }

    /// Calls `f` with every key of a portion, its value and its generation. `f` must not use this memory.
    pub fn visit(&self, portion: usize, generation: u32, mut f: impl FnMut(&str, Held, u32)) {
        match self {
            Self::Whole(map) => map.visit(portion, |key, kept| {
                f(key, kept.held, generation | u32::from(kept.loose));
            }),
            Self::Bounded(cache) => cache
                .iter()
                .for_each(|(key, entry)| f(key.as_str(), entry.held(), entry.generation)),
        }
    }
}

pub(crate) fn attached(entry: u32, picture: u32) -> bool {
    entry == picture && picture != UNATTACHED
}
