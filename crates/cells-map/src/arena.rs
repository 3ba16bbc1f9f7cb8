//! Where a shard's records lie: a log in chunks of at most 32 KiB.
//!
//! Records are appended to the chunk that is the *head*. One that is no longer wanted is only counted as dead. When too much is
//! dead, `shard.rs` copies what lives in the worst chunk to the head and gives the chunk back: at most 32 KiB of copying for one
//! removal, so no reader of the shard waits for long. Free lists by size would need no copying, but would keep for ever the space of
//! sizes that do not come back.
//!
//! An address is `chunk << 15 | offset`. A record larger than [`LARGE`] has a chunk of its own, of exactly its size, at offset 0.
//!
//! Invariants: `used` and `dead` are the sums over the chunks; a chunk's bytes are records without gaps; a chunk that is dead
//! altogether is given back at once.

use crate::size::step;

const OFFSET_BITS: u32 = 15;

/// Bytes of a full chunk. Small enough for its evacuation to be short and its unfilled end not to matter; large enough for the list
/// of chunks to stay in the cache.
const CHUNK: usize = 1 << OFFSET_BITS;

/// A record above this would leave too much of a shared chunk unfilled.
const LARGE: usize = CHUNK / 4;

/// The first bytes of a shard: so that a map of few keys is small.
const SMALLEST: usize = 256;

/// The number of chunks; the last address stays free, as the index needs one that no record has.
const MOST_CHUNKS: usize = (1 << (u32::BITS - OFFSET_BITS)) - 1;

/// Marks the chunk that is being evacuated, whose place must not be taken before its last record has moved.
const BUSY: u32 = u32::MAX;

#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    dead: u32,
}

impl Chunk {
    fn is_vacant(&self) -> bool {
        self.bytes.capacity() == 0 && self.dead != BUSY
    }
}

#[derive(Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    head: u32,
    used: u32,
    dead: u32,
}

pub(crate) fn address(chunk: usize, offset: usize) -> u32 {
    ((chunk as u32) << OFFSET_BITS) | offset as u32
}

fn split(address: u32) -> (usize, usize) {
    ((address >> OFFSET_BITS) as usize, address as usize & (CHUNK - 1))
}

impl Arena {
    /// From the record at `address` to the end of its chunk.
    #[inline]
    pub fn at(&self, address: u32) -> &[u8] {
        let (chunk, offset) = split(address);
        &self.chunks[chunk].bytes[offset..]
    }

    #[inline]
    pub fn at_mut(&mut self, address: u32) -> &mut [u8] {
        let (chunk, offset) = split(address);
        &mut self.chunks[chunk].bytes[offset..]
    }

    /// Room for a record of `size` bytes, zeroed, and its address.
    ///
    /// # Panics
    ///
    /// If the shard would hold 4 GiB, or 131,071 chunks (of which any two together hold more than 16 KiB: so never below 1 GiB).
    pub fn append(&mut self, size: usize) -> (u32, &mut [u8]) {
        let used = u32::try_from(self.used as usize + size).ok().filter(|used| *used < BUSY);
        let used = used.expect("a shard of a compact map holds less than 4 GiB");
        let chunk = if size > LARGE { self.open(size) } else { self.head_with(size) };
        self.used = used;
        let bytes = &mut self.chunks[chunk].bytes;
        let offset = bytes.len();
        bytes.resize(offset + size, 0);
        (address(chunk, offset), &mut bytes[offset..])
    }

    /// Counts a record of `size` bytes as dead.
    pub fn kill(&mut self, at: u32, size: usize) {
        let (id, _) = split(at);
        let chunk = &mut self.chunks[id];
        chunk.dead += size as u32;
        self.dead += size as u32;
        if chunk.dead as usize == chunk.bytes.len() {
            self.take(id);
            self.release(id);
        }
    }

    /// The chunk to evacuate, once more than an eighth of what lives is dead.
    ///
    /// The worst chunk is at least as dead as the average, so evacuating one brings the sum back under the bound, and copies on
    /// average no more than some eight bytes for a byte that dies.
    pub fn victim(&self) -> Option<usize> {
        let bound = SMALLEST as u32 + (self.used - self.dead) / 8;
        if self.dead <= bound {
            return None;
        }
        let worst = self.chunks.iter().enumerate().max_by_key(|(_, chunk)| chunk.dead);
        worst.map(|(id, _)| id)
    }

    /// Takes a chunk's bytes out. Its place stays taken until [`Arena::release`].
    pub fn take(&mut self, id: usize) -> Vec<u8> {
        let chunk = &mut self.chunks[id];
        let bytes = std::mem::take(&mut chunk.bytes);
        self.used -= bytes.len() as u32;
        self.dead -= chunk.dead;
        chunk.dead = BUSY;
        bytes
    }

    /// Lets another chunk have the place of one that was taken.
    pub fn release(&mut self, id: usize) {
        self.chunks[id].dead = 0;
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.bytes.capacity()).sum();
        chunks + self.chunks.capacity() * size_of::<Chunk>()
    }

    /// A chunk that has room for `size` bytes more.
    fn head_with(&mut self, size: usize) -> usize {
        let head = self.head as usize;
        if let Some(Chunk { bytes, .. }) =
            self.chunks.get_mut(head).filter(|chunk| chunk.bytes.capacity() > 0)
        {
            let wanted = bytes.len() + size;
            if wanted <= bytes.capacity() {
                return head;
            }
            if wanted <= CHUNK {
                bytes.reserve_exact(step(wanted) - bytes.len());
                return head;
            }
        }
        // A new chunk starts with a share of what there is, so that a small shard wastes little; a large one takes it whole.
        let share = (self.used as usize / 4).clamp(SMALLEST, CHUNK);
        let head = self.open(step(share.max(size)));
        self.head = head as u32;
        head
    }

    /// A new chunk, in a vacant place if there is one.
    fn open(&mut self, capacity: usize) -> usize {
        let chunk = Chunk { bytes: Vec::with_capacity(capacity), dead: 0 };
        if let Some(id) = self.chunks.iter().position(Chunk::is_vacant) {
            self.chunks[id] = chunk;
            return id;
        }
        assert!(
            self.chunks.len() < MOST_CHUNKS,
            "a shard of a compact map holds at most {MOST_CHUNKS} chunks"
        );
        if self.chunks.len() == self.chunks.capacity() {
            let places = if self.chunks.is_empty() { 1 } else { step(self.chunks.len() + 1) };
            self.chunks.reserve_exact(places - self.chunks.len());
        }
        self.chunks.push(chunk);
        self.chunks.len() - 1
    }
}
