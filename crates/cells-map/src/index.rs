//! Where a shard's records are: a hash table of eight bytes a slot.
//!
//! A slot is `hash << 32 | address`. With 32 bits of the hash at hand a record is looked at only if it is the right one (but for one
//! in billions), and the table grows and shrinks without touching a record: one pass over eight-byte slots.
//!
//! Open addressing with Robin Hood order: a slot's *home* is its hash scaled to the table, and walking from any home, no slot is
//! nearer to its own home than one that could take its place. So a search for an absent key ends early, even at 7/8 full, and a
//! removal closes its gap by moving back the slots behind it: no tombstones, nothing to clean up later.
//!
//! Invariants: at least one slot of a table that is not empty is free; `len` slots are not.

use crate::size::step;

/// A free slot. No record has the address `u32::MAX` (see `arena.rs`).
const FREE: u64 = u64::MAX;

#[derive(Default)]
pub(crate) struct Index {
    slots: Box<[u64]>,
    len: u32,
}

fn slot_of(hash: u32, address: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(address)
}

fn hash_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

fn address_of(slot: u64) -> u32 {
    slot as u32
}

/// Where a hash belongs among `slots` slots, which need not be a power of two: the hash as a fraction, times the slots.
fn home(hash: u32, slots: usize) -> usize {
    ((u64::from(hash) * slots as u64) >> 32) as usize
}

fn after(at: usize, slots: usize) -> usize {
    if at + 1 == slots { 0 } else { at + 1 }
}

/// How far behind its home the slot at `at` lies.
fn distance(slot: u64, at: usize, slots: usize) -> usize {
    let home = home(hash_of(slot), slots);
    if at >= home { at - home } else { at + slots - home }
}

/// Puts `slot` among `slots`, one of which must be free.
fn place(slots: &mut [u64], mut slot: u64) {
    let mut at = home(hash_of(slot), slots.len());
    let mut away = 0;
    loop {
        let other = slots[at];
        if other == FREE {
            slots[at] = slot;
            return;
        }
        let others = distance(other, at, slots.len());
        if others < away {
            slots[at] = slot;
            slot = other;
            away = others;
        }
        at = after(at, slots.len());
        away += 1;
    }
}

impl Index {
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }

    /// The slot with this hash whose address `is` the wanted one.
    pub fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<usize> {
        let slots = &*self.slots;
        if slots.is_empty() {
            return None;
        }
        let mut at = home(hash, slots.len());
        for away in 0..slots.len() {
            let slot = slots[at];
            if slot == FREE {
                return None;
            }
            if hash_of(slot) == hash {
                if is(address_of(slot)) {
                    return Some(at);
                }
            } else if distance(slot, at, slots.len()) < away {
                return None;
            }
            at = after(at, slots.len());
        }
        None
    }

    /// The address in a slot that [`Index::find`] has given.
    pub fn address(&self, at: usize) -> u32 {
        address_of(self.slots[at])
    }

    /// Gives a slot's record a new address.
    pub fn moved(&mut self, at: usize, address: u32) {
        self.slots[at] = slot_of(hash_of(self.slots[at]), address);
    }

    /// Adds a record that is not in the index.
    pub fn insert(&mut self, hash: u32, address: u32) {
        // At most 7/8 full: a hit then takes 4.5 slots on average, which is one cache line or two that follow each other.
        let wanted = (self.len() + 1) * 8;
        if wanted > self.slots.len() * 7 {
            self.resize(step(wanted.div_ceil(7)));
        }
        place(&mut self.slots, slot_of(hash, address));
        self.len += 1;
    }

    /// Takes out the slot at `at`.
    pub fn remove(&mut self, mut at: usize) {
        let slots = self.slots.len();
        loop {
            let next = after(at, slots);
            let slot = self.slots[next];
            if slot == FREE || distance(slot, next, slots) == 0 {
                break;
            }
            self.slots[at] = slot;
            at = next;
        }
        self.slots[at] = FREE;
        self.len -= 1;
        // Under 3/8 full it shrinks to 5/8: far enough from both bounds for the next resize to be a good while away.
        if slots > 8 && self.len() * 8 < slots * 3 {
            self.resize(step((self.len() * 8).div_ceil(5)));
        }
    }

    /// All addresses, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().filter(|slot| **slot != FREE).map(|slot| address_of(*slot))
    }

    fn resize(&mut self, slots: usize) {
        let mut resized = vec![FREE; slots].into_boxed_slice();
        for slot in self.slots.iter().filter(|slot| **slot != FREE) {
            place(&mut resized, *slot);
        }
        self.slots = resized;
    }
}
