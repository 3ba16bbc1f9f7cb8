//! What memory holds of a placement: small, of fixed size, and copied without touching anything shared.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::LazyLock;

use cells_map::Packed;
use parking_lot::Mutex;

use crate::domain::{CellId, Epoch, PartitionKey, Placement, PlacementEvent, Timestamp, WriteMode};

/// A cell id that a placement names, kept once for the life of the process: a million placements name a few cells, and threads that
/// count references to the same few names wait for each other. Only ids that were stored are ever made into names, so their number is
/// bounded by what operators have registered (and adopted tables have named), not by what callers send.
#[derive(Clone, Copy)]
pub struct CellName(&'static Named);

struct Named {
    id: CellId,
    number: u32,
}

struct Names {
    by_id: Mutex<HashMap<CellId, CellName>>,
    by_number: boxcar::Vec<CellName>,
}

static NAMES: LazyLock<Names> =
    LazyLock::new(|| Names { by_id: Mutex::default(), by_number: boxcar::Vec::new() });

impl CellName {
    pub fn of(id: &CellId) -> Self {
        let mut by_id = NAMES.by_id.lock();
        if let Some(name) = by_id.get(id) {
            return *name;
        }
        let number = u32::try_from(by_id.len()).unwrap_or(u32::MAX);
        let name = Self(Box::leak(Box::new(Named { id: id.clone(), number })));
        NAMES.by_number.push(name);
        by_id.insert(id.clone(), name);
        name
    }

    pub fn id(self) -> &'static CellId {
        &self.0.id
    }

    /// # Panics
    /// Where no name has this number.
    fn numbered(number: u32) -> Self {
        NAMES.by_number[number as usize]
    }
}

impl Deref for CellName {
    type Target = CellId;

    fn deref(&self) -> &CellId {
        &self.0.id
    }
}

impl PartialEq for CellName {
    fn eq(&self, other: &Self) -> bool {
        self.0.number == other.0.number
    }
}

impl Eq for CellName {}

impl fmt::Debug for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.id.as_str())
    }
}

/// A placement without its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residence {
    pub cell: CellName,
    pub epoch: Epoch,
    pub write_mode: WriteMode,
    pub began_by: PlacementEvent,
    pub created: Option<Timestamp>,
    pub updated: Option<Timestamp>,
    pub expires: Option<Timestamp>,
}

impl Residence {
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// The placement of `key` that this is.
    pub fn placement(&self, key: PartitionKey) -> Placement {
        Placement {
            key,
            cell: self.cell.id().clone(),
            epoch: self.epoch,
            write_mode: self.write_mode,
            began_by: self.began_by,
            created: self.created,
            updated: self.updated,
            expires: self.expires,
            migration: None,
        }
    }
}

impl From<&Placement> for Residence {
    fn from(placement: &Placement) -> Self {
        Self {
            cell: CellName::of(&placement.cell),
            epoch: placement.epoch,
            write_mode: placement.write_mode,
            began_by: placement.began_by,
            created: placement.created,
            updated: placement.updated,
            expires: placement.expires,
        }
    }
}

/// How many generations are told apart.
pub const GENERATIONS: u8 = 16;

/// A residence and since when it is known to be current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub residence: Residence,
    /// Which journal, or stretch of it, vouches for this: see [`super::Memory::distrust`]. Below [`GENERATIONS`].
    pub generation: u8,
    /// Microseconds after the memory's origin as of which this is known, apart from the journal's proof. Below 2^48 (nine years).
    pub current_at: u64,
}

/// Bytes of a packed time: milliseconds since 1970 as a signed number. The years 1 to 9999 take 49 bits.
const TIME: usize = 7;
/// What no time is: absent.
const NO_TIME: i64 = -(1 << 55);
/// Bytes of a packed moment.
const MOMENT: usize = 6;

impl Packed for Slot {
    const BYTES: usize = 4 + 8 + 1 + 3 * TIME + MOMENT;

    fn pack(&self, to: &mut [u8]) {
        let Residence { cell, epoch, write_mode, began_by, created, updated, expires } =
            self.residence;
        let mut to = Writer(to);
        to.put(&cell.0.number.to_le_bytes());
        to.put(&epoch.get().to_le_bytes());
        let flags = (began_by as u8) << 1 | u8::from(write_mode == WriteMode::Logged);
        to.put(&[self.generation << 4 | flags]);
        for time in [created, updated, expires] {
            let millis = time.map_or(NO_TIME, Timestamp::millis);
            to.put(&millis.to_le_bytes()[..TIME]);
        }
        to.put(&self.current_at.to_le_bytes()[..MOMENT]);
    }

    fn unpack(from: &[u8]) -> Self {
        let mut from = Reader(from);
        let cell = CellName::numbered(u32::from_le_bytes(from.take()));
        // What was packed had an epoch above zero and times in range, so the alternatives below are never taken.
        let epoch = Epoch::new(u64::from_le_bytes(from.take())).unwrap_or(Epoch::FIRST);
        let [byte] = from.take();
        let (generation, flags) = (byte >> 4, byte & 0xf);
        let mut time = || {
            let millis = i64::from_le_bytes(from.take_low::<TIME>()) << 8 >> 8;
            (millis != NO_TIME).then(|| Timestamp::from_millis(millis)).flatten()
        };
        let (created, updated, expires) = (time(), time(), time());
        let residence = Residence {
            cell,
            epoch,
            write_mode: if flags & 1 == 1 { WriteMode::Logged } else { WriteMode::Direct },
            began_by: PlacementEvent::ALL[usize::from(flags >> 1) % PlacementEvent::ALL.len()],
            created,
            updated,
            expires,
        };
        Self { residence, generation, current_at: u64::from_le_bytes(from.take_low::<MOMENT>()) }
    }
}

struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (here, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        here.copy_from_slice(bytes);
        self.0 = rest;
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (here, rest) = self.0.split_at(N);
        bytes.copy_from_slice(here);
        self.0 = rest;
        bytes
    }

    /// The low `N` bytes of a number.
    fn take_low<const N: usize>(&mut self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.take::<N>());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Option<Timestamp>> {
        let range = -62_135_596_800_000i64..=253_402_300_799_999;
        prop_oneof![Just(None), range.prop_map(Timestamp::from_millis)]
    }

    proptest! {
        #[test]
        fn a_slot_survives_packing(
            cell in "[a-z]{1,3}", epoch in 1..=u64::MAX, logged: bool, event in 0..PlacementEvent::ALL.len(),
            (created, updated, expires) in (time(), time(), time()),
            generation in 0..GENERATIONS, current_at in 0..1u64 << 48,
        ) {
            let residence = Residence {
                cell: CellName::of(&CellId::new(cell).unwrap()),
                epoch: Epoch::new(epoch).unwrap(),
                write_mode: if logged { WriteMode::Logged } else { WriteMode::Direct },
                began_by: PlacementEvent::ALL[event],
                created, updated, expires,
            };
            let slot = Slot { residence, generation, current_at };
            let mut packed = [0; Slot::BYTES];
            slot.pack(&mut packed);
            prop_assert_eq!(Slot::unpack(&packed), slot);
        }
    }

    #[test]
    fn a_name_is_made_once() {
        let id = CellId::new("once").unwrap();
        assert!(std::ptr::eq(CellName::of(&id).id(), CellName::of(&id.clone()).id()));
    }
}
