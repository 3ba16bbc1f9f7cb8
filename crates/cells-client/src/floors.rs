//! The epochs that must not be undercut for keys that memory does not hold (any more).
//!
//! A client must never be told a lower epoch than it was told before. For a key in memory that is easy. For one that was evicted, that
//! was vacated, or whose answer could not be kept, a replica that lags might tell an older one. So each of their epochs raises the
//! floor of the key's bucket. Buckets are few and of fixed size, so the floor of a key can be too high (another key shares its bucket)
//! but never too low. An answer below its floor is doubtful: the directory is asked whether a higher epoch exists, which settles it.

use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

/// Buckets: half a mebibyte. Most tenants never move and have epoch 1, which casts doubt on nobody.
/// Tests have so few that keys collide all the time.
const BUCKETS: usize = if cfg!(test) { 3 } else { 1 << 16 };

pub(crate) struct Floors(Box<[AtomicU64]>);

impl Floors {
    pub fn new() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }

    /// `key` was answered with `epoch`, and memory does not hold that.
    pub fn raise(&self, key: &str, epoch: u64) {
        self.bucket(key).fetch_max(epoch, Ordering::Relaxed);
    }

    /// No answer for `key` that memory has forgotten had a higher epoch.
    pub fn floor(&self, key: &str) -> u64 {
        self.bucket(key).load(Ordering::Relaxed)
    }

    /// Another journal: its epochs have nothing to do with those before.
    pub fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Ordering::Relaxed);
        }
    }

    /// The buckets above epoch 1, for the snapshot file.
    pub fn raised(&self) -> Vec<(u32, u64)> {
        let buckets =
            self.0.iter().enumerate().map(|(n, bucket)| (n as u32, bucket.load(Ordering::Relaxed)));
        buckets.filter(|(_, epoch)| *epoch > 1).collect()
    }

    pub fn restore(&self, bucket: u32, epoch: u64) {
        if let Some(bucket) = self.0.get(bucket as usize) {
            bucket.fetch_max(epoch, Ordering::Relaxed);
        }
    }

    /// The hash has no secret: the buckets mean the same in the next process. Keys that are chosen to collide cost a question more.
    fn bucket(&self, key: &str) -> &AtomicU64 {
        &self.0[xxh3_64(key.as_bytes()) as usize % BUCKETS]
    }
}
