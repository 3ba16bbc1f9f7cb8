//! A shard: an index over an arena. It knows what a record is: `[key's bytes: u16][value][key]`.
//!
//! Invariant: every record whose address is in the index lives, every other one is counted as dead.

use crate::Packed;
use crate::arena::{Arena, address};
use crate::index::Index;

const HEADER: usize = size_of::<u16>();

#[derive(Default)]
pub(crate) struct Shard {
    index: Index,
    arena: Arena,
}

/// A record at the start of some bytes, taken apart.
struct Record<'a> {
    value: &'a [u8],
    key: &'a [u8],
}

impl Record<'_> {
    #[inline]
    fn of<V: Packed>(bytes: &[u8]) -> Record<'_> {
        let (header, rest) = bytes.split_at(HEADER);
        let (value, rest) = rest.split_at(V::BYTES);
        Record { value, key: &rest[..usize::from(u16::from_le_bytes([header[0], header[1]]))] }
    }

    fn size(&self) -> usize {
        HEADER + self.value.len() + self.key.len()
    }
}

impl Shard {
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.index.bytes() + self.arena.bytes()
    }

    /// The slot of `key`.
    #[inline]
    pub fn find<V: Packed>(&self, hash: u32, key: &[u8]) -> Option<usize> {
        self.index.find(hash, |at| Record::of::<V>(self.arena.at(at)).key == key)
    }

    #[inline]
    pub fn get<V: Packed>(&self, hash: u32, key: &[u8]) -> Option<V> {
        // The record is at hand when the key has matched: it is not looked up a second time.
        let mut value = None;
        self.index.find(hash, |at| {
            let record = Record::of::<V>(self.arena.at(at));
            let found = record.key == key;
            if found {
                value = Some(V::unpack(record.value));
            }
            found
        });
        value
    }

    /// The value in a slot that [`Shard::find`] has given.
    pub fn value<V: Packed>(&self, slot: usize) -> V {
        V::unpack(Record::of::<V>(self.arena.at(self.index.address(slot))).value)
    }

    /// Puts `value` over the one in `slot`.
    pub fn overwrite<V: Packed>(&mut self, slot: usize, value: V) {
        let bytes = self.arena.at_mut(self.index.address(slot));
        value.pack(&mut bytes[HEADER..HEADER + V::BYTES]);
    }

    /// Adds a key that is not there, of at most `u16::MAX` bytes.
    pub fn insert<V: Packed>(&mut self, hash: u32, key: &[u8], value: V) {
        let (at, to) = self.arena.append(HEADER + V::BYTES + key.len());
        let (header, rest) = to.split_at_mut(HEADER);
        header.copy_from_slice(&(key.len() as u16).to_le_bytes());
        value.pack(&mut rest[..V::BYTES]);
        rest[V::BYTES..].copy_from_slice(key);
        self.index.insert(hash, at);
    }

    /// Removes the key in `slot`; `hash` says what a key's hash is.
    pub fn remove<V: Packed>(&mut self, slot: usize, hash: impl Fn(&[u8]) -> u32) {
        let at = self.index.address(slot);
        let size = Record::of::<V>(self.arena.at(at)).size();
        self.index.remove(slot);
        if self.index.len() == 0 {
            *self = Self::default();
            return;
        }
        self.arena.kill(at, size);
        if let Some(victim) = self.arena.victim() {
            self.evacuate::<V>(victim, hash);
        }
    }

    pub fn visit<V: Packed>(&self, mut f: impl FnMut(&[u8], V)) {
        for at in self.index.addresses() {
            let record = Record::of::<V>(self.arena.at(at));
            f(record.key, V::unpack(record.value));
        }
    }

    /// Moves what lives in a chunk to the head, and gives the chunk back.
    fn evacuate<V: Packed>(&mut self, victim: usize, hash: impl Fn(&[u8]) -> u32) {
        let bytes = self.arena.take(victim);
        let mut offset = 0;
        while offset < bytes.len() {
            let record = Record::of::<V>(&bytes[offset..]);
            let size = record.size();
            let here = address(victim, offset);
            // A record lives if the index has its very address.
            if let Some(slot) = self.index.find(hash(record.key), |at| at == here) {
                let (at, to) = self.arena.append(size);
                to.copy_from_slice(&bytes[offset..offset + size]);
                self.index.moved(slot, at);
            }
            offset += size;
        }
        self.arena.release(victim);
    }
}
