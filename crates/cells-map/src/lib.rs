//! A compact, concurrent map from text keys to small values of a fixed size.
//!
//! It exists because a routing table is large, is held whole in memory, and is asked far more often than it changes. A standard map
//! of `String` to a value of 40 bytes takes three allocations' worth of rounding and pointers, and a lookup waits for memory three
//! times: for the table's control bytes, for its bucket, for the key's text. Here a placement costs its value, its key and some 12
//! to 20 bytes; a lookup waits twice: for the index's slot, which holds enough of the hash to be right, and for the record, in which
//! value and key lie next to each other.
//!
//! ```text
//!   hash of the key ─┬─ high half ► shard (a lock each) ─┬─ index: slots of [hash: 32 bits][address: 32 bits]
//!                    └─ low half ──────────────────────► └─ arena: chunks of records [key's bytes: u16][value][key]
//! ```
//!
//! What holds:
//! - A value is read and written under its shard's lock: never torn, and [`CompactMap::update`] is atomic for its key.
//! - A key that is there stays visible while its shard grows, shrinks or moves records.
//! - No work under a lock grows with the map beyond its shard; a removal moves at most 32 KiB.
//! - Space that removals leave is used again: in a shard what is dead stays under 256 bytes plus a twelfth of what lives.
//! - [`CompactMap::get`] allocates nothing.
//! - Keys come from callers, so the hash (XXH3) has a secret of 192 random bytes for each map: whoever does not know it cannot
//!   choose keys that fall together. XXH3 is no cryptographic hash: this is a hindrance, not a proof.

#![forbid(unsafe_code)]

mod arena;
mod index;
mod shard;
mod size;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use xxhash_rust::xxh3::xxh3_64_with_secret;

use crate::shard::Shard;

/// The longest key that a map can hold, in bytes.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// Shards of [`CompactMap::new`]: at ten million keys a shard is some 700 KiB, of which growing copies the index only.
const SHARDS: usize = 1024;

/// The most shards a map can have.
const MAX_SHARDS: usize = 1 << 16;

/// A value that is kept packed in a fixed number of bytes.
///
/// `unpack` of what `pack` wrote must give an equal value. Neither may use the map that holds the value.
pub trait Packed: Copy {
    /// How many bytes a packed value takes.
    const BYTES: usize;

    /// Writes the value to `to`, which is [`Packed::BYTES`] long and may hold anything.
    fn pack(&self, to: &mut [u8]);

    /// Reads the value back from `from`, which is [`Packed::BYTES`] long.
    fn unpack(from: &[u8]) -> Self;
}

/// Two shards never share a cache line, nor two lines that the processor fetches as a pair.
#[repr(align(128))]
#[derive(Default)]
struct Locked(RwLock<Shard>);

/// A map from text keys of up to [`MAX_KEY_BYTES`] bytes to packed values. See the crate's documentation.
///
/// A shard holds 1 GiB of records at least; an insertion into one that is full panics.
pub struct CompactMap<V> {
    shards: Box<[Locked]>,
    /// Changed under the lock of the shard whose keys are counted.
    len: AtomicUsize,
    secret: [u8; 192],
    /// Tests blank out bits of the hash to make keys collide.
    #[cfg(test)]
    hash_mask: u64,
    /// Values are packed and unpacked, none is kept as such.
    value: PhantomData<fn() -> V>,
}

impl<V: Packed> Default for CompactMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Packed> CompactMap<V> {
    /// An empty map of 1,024 shards (128 KiB).
    pub fn new() -> Self {
        Self::with_shards(SHARDS)
    }

    /// An empty map of `shards` shards, rounded up to a power of two and to at most 65,536.
    ///
    /// More shards make for shorter waits of readers for writers; an empty shard costs 128 bytes, the first key in it some 300.
    pub fn with_shards(shards: usize) -> Self {
        Self::with_secret(shards, random_secret())
    }

    /// An empty map of 1,024 shards whose order is the same in every run: for simulations. Whoever knows the seed can make keys collide.
    pub fn seeded(seed: u64) -> Self {
        let mut secret = [0; 192];
        for (n, word) in (0u64..).zip(secret.chunks_exact_mut(8)) {
            // Odd factors of two kinds, so that no word is like another.
            let mixed =
                (seed ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word.copy_from_slice(&(mixed ^ (mixed >> 29)).to_le_bytes());
        }
        Self::with_secret(SHARDS, secret)
    }

    fn with_secret(shards: usize, secret: [u8; 192]) -> Self {
        let shards = shards.min(MAX_SHARDS).next_power_of_two();
        Self {
            shards: (0..shards).map(|_| Locked::default()).collect(),
            len: AtomicUsize::new(0),
            secret,
            #[cfg(test)]
            hash_mask: u64::MAX,
            value: PhantomData,
        }
    }

    /// The value of `key`. Takes the shard's read lock and allocates nothing.
    #[inline]
    pub fn get(&self, key: &str) -> Option<V> {
        let (shard, hash) = self.locate(key.as_bytes());
        self.shards[shard].0.read().get(hash, key.as_bytes())
    }

    /// Sets the value of `key` and returns the one it replaces.
    ///
    /// # Panics
    ///
    /// If `key` is longer than [`MAX_KEY_BYTES`], or its shard is full.
    pub fn insert(&self, key: &str, value: V) -> Option<V> {
        self.update(key, |old| (Some(value), old))
    }

    /// Removes `key` and returns its value.
    pub fn remove(&self, key: &str) -> Option<V> {
        self.update(key, |old| (None, old))
    }

    /// Replaces the value of `key` by the first half of what `f` makes of it, where `None` is "not there"; returns the second half.
    ///
    /// `f` runs under the shard's write lock: it must not use the map (it could wait for itself). If it panics, nothing changes.
    ///
    /// # Panics
    ///
    /// If `key` is to be set and is longer than [`MAX_KEY_BYTES`], or its shard is full.
    pub fn update<R>(&self, key: &str, f: impl FnOnce(Option<V>) -> (Option<V>, R)) -> R {
        let (shard, hash) = self.locate(key.as_bytes());
        let mut shard = self.shards[shard].0.write();
        let slot = shard.find::<V>(hash, key.as_bytes());
        let (new, result) = f(slot.map(|slot| shard.value(slot)));
        match (slot, new) {
            (Some(slot), Some(value)) => shard.overwrite(slot, value),
            (Some(slot), None) => {
                shard.remove::<V>(slot, |key| self.locate(key).1);
                self.len.fetch_sub(1, Ordering::Relaxed);
            }
            (None, Some(value)) => {
                assert!(
                    key.len() <= MAX_KEY_BYTES,
                    "a key of a compact map has at most {MAX_KEY_BYTES} bytes"
                );
                shard.insert(hash, key.as_bytes(), value);
                self.len.fetch_add(1, Ordering::Relaxed);
            }
            (None, None) => {}
        }
        result
    }

    /// How many keys there are. While others write, a recent count.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes all keys, shard after shard: a key that is set meanwhile may stay.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.0.write();
            self.len.fetch_sub(shard.len(), Ordering::Relaxed);
            let cleared = std::mem::take(&mut *shard);
            // The memory is given back after the lock.
            drop(shard);
            drop(cleared);
        }
    }

    /// How many shards there are: a power of two.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Calls `f` with every key of the shard numbered `shard` and its value, in no order; a number out of range has no keys.
    ///
    /// Runs under the shard's read lock: writers of the shard wait for it, and `f` must not use the map. A key never changes its
    /// shard. So over all shards every key that was there all along is seen exactly once, every other one at most once.
    pub fn visit(&self, shard: usize, mut f: impl FnMut(&str, V)) {
        let Some(shard) = self.shards.get(shard) else { return };
        shard.0.read().visit(|key, value| {
            // Every key came in as text.
            if let Ok(key) = std::str::from_utf8(key) {
                f(key, value);
            }
        });
    }

    /// Bytes that the map has allocated, by its own account: for a metric. Takes every shard's read lock in turn.
    ///
    /// What the allocator adds for rounding is not counted, what it has not touched yet of a chunk is.
    pub fn memory_bytes(&self) -> usize {
        let heap: usize = self.shards.iter().map(|shard| shard.0.read().bytes()).sum();
        size_of::<Self>() + size_of_val(&*self.shards) + heap
    }

    /// The shard of a key, and the half of the hash that places it in there.
    #[inline]
    fn locate(&self, key: &[u8]) -> (usize, u32) {
        let hash = xxh3_64_with_secret(key, &self.secret);
        #[cfg(test)]
        let hash = hash & self.hash_mask;
        ((hash >> 32) as usize & (self.shards.len() - 1), hash as u32)
    }
}

/// Bytes that nobody can guess: the standard library's keyed hash of the numbers from 0, its key from the system's randomness.
fn random_secret() -> [u8; 192] {
    let random = RandomState::new();
    let mut secret = [0; 192];
    for (n, word) in secret.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&random.hash_one(n).to_le_bytes());
    }
    secret
}
