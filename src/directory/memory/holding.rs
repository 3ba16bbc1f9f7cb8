//! Where memory keeps what it holds: all of the table, or as much as there is room for.

use cells_map::CompactMap;
use quick_cache::sync::Cache;
use quick_cache::{UnitWeighter, sync::DefaultLifecycle};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::residence::Slot;
use crate::domain::PartitionKey;

/// A bounded cache with the hasher that is used throughout.
pub type Bounded<V> = Cache<PartitionKey, V, UnitWeighter, Xxh3DefaultBuilder>;

pub fn bounded<V: Clone>(capacity: usize) -> Bounded<V> {
    let (hasher, lifecycle) = (Xxh3DefaultBuilder::new(), DefaultLifecycle::default());
    Cache::with(capacity, capacity as u64, UnitWeighter, hasher, lifecycle)
}

pub enum Holding {
    /// Every placement, some 64 bytes each besides its key.
    Whole(Box<CompactMap<Slot>>),
    /// The most useful ones. The others are evicted (S3-FIFO-like, by the `quick_cache` library).
    Bounded(Bounded<Slot>),
}

impl Holding {
    pub fn whole(seed: Option<u64>) -> Self {
        Holding::Whole(Box::new(seed.map_or_else(CompactMap::new, CompactMap::seeded)))
    }

    #[inline]
    pub fn get(&self, key: &str) -> Option<Slot> {
        match self {
            Holding::Whole(map) => map.get(key),
            Holding::Bounded(cache) => cache.get(key),
        }
    }

    /// What is held, without telling the cache that it is useful.
    pub fn peek(&self, key: &str) -> Option<Slot> {
        match self {
            Holding::Whole(map) => map.get(key),
            Holding::Bounded(cache) => cache.peek(key),
        }
    }

    pub fn insert(&self, key: &PartitionKey, slot: Slot) {
        match self {
            Holding::Whole(map) => {
                map.insert(key.as_str(), slot);
            }
            Holding::Bounded(cache) => cache.insert(key.clone(), slot),
        }
    }

    pub fn remove(&self, key: &str) {
        match self {
            Holding::Whole(map) => {
                map.remove(key);
            }
            Holding::Bounded(cache) => {
                cache.remove(key);
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Holding::Whole(map) => map.len(),
            Holding::Bounded(cache) => cache.len(),
        }
    }

    pub fn clear(&self) {
        match self {
            Holding::Whole(map) => map.clear(),
            Holding::Bounded(cache) => cache.clear(),
        }
    }

    /// In how many parts [`Holding::visit`] goes through everything.
    pub fn parts(&self) -> usize {
        match self {
            Holding::Whole(map) => map.shards(),
            Holding::Bounded(_) => 1,
        }
    }

    /// Looks at all that one part holds. What is there all along is seen once over all parts.
    pub fn visit(&self, part: usize, mut look: impl FnMut(&str, Slot)) {
        match self {
            Holding::Whole(map) => map.visit(part, look),
            Holding::Bounded(cache) => {
                for (key, slot) in cache.iter() {
                    look(key.as_str(), slot);
                }
            }
        }
    }
}
