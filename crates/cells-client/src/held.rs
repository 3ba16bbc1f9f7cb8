//! A placement as memory holds it: small, `Copy`, without text. Its cell is a number in the [`CellTable`].

use std::time::{Duration, SystemTime};

use cells_map::Packed;

use crate::cells::{CellIndex, CellTable};
use crate::proto;

/// How writers of a tenant write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteMode {
    /// Nothing is known of it: a fallback, which has no placement behind it.
    Unknown,
    /// Writers with a lease write plainly.
    Direct,
    /// Every write is guarded and leaves a change-log record.
    Logged,
}

/// Where a placement stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PlacementState {
    /// Nothing is known of it: a fallback, which has no placement behind it.
    Unknown,
    /// The tenant lives in this cell.
    Active,
    /// The tenant's expiry has passed; it is about to be retired.
    Expired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub cell: CellIndex,
    pub epoch: u64,
    pub write_mode: WriteMode,
    pub state: PlacementState,
    /// Milliseconds since 1970; 0: never. At most 48 bits: the year 10889.
    expire_ms: u64,
}

const EXPIRE_MAX: u64 = (1 << 48) - 1;

impl Held {
    /// `None` where the placement names no cell, or there is no room for another cell.
    pub fn from_proto(placement: &proto::Placement, cells: &CellTable) -> Option<Self> {
        let write_mode = match placement.write_mode() {
            proto::WriteMode::Direct => WriteMode::Direct,
            proto::WriteMode::Logged => WriteMode::Logged,
            proto::WriteMode::Unspecified => WriteMode::Unknown,
        };
        let state = match placement.state() {
            proto::PlacementState::Active => PlacementState::Active,
            proto::PlacementState::Expired => PlacementState::Expired,
            proto::PlacementState::Unspecified => PlacementState::Unknown,
        };
        let expire_ms = placement.expire_time.as_ref().map_or(0, |time| {
            let ms =
                time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000);
            // Zero means "never": an expiry at the dawn of time is still one.
            u64::try_from(ms).unwrap_or(1).clamp(1, EXPIRE_MAX)
        });
        Some(Self {
            cell: cells.intern(&placement.cell_id)?,
            epoch: placement.epoch,
            write_mode,
            state,
            expire_ms,
        })
    }

    pub fn fallback(cell: CellIndex) -> Self {
        Self {
            cell,
            epoch: 0,
            write_mode: WriteMode::Unknown,
            state: PlacementState::Unknown,
            expire_ms: 0,
        }
    }

    pub fn expires_at(&self) -> Option<SystemTime> {
        (self.expire_ms != 0)
            .then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(self.expire_ms))
    }

    /// The same placement with its cell numbered otherwise.
    pub fn in_cell(self, cell: CellIndex) -> Self {
        Self { cell, ..self }
    }
}

impl Packed for Held {
    /// Cell 4, epoch 8, mode and state 1, expiry 6.
    const BYTES: usize = 19;

    #[inline]
    fn pack(&self, to: &mut [u8]) {
        to[..4].copy_from_slice(&self.cell.to_bits().to_le_bytes());
        to[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        let mode = match self.write_mode {
            WriteMode::Unknown => 0,
            WriteMode::Direct => 1,
            WriteMode::Logged => 2,
        };
        let state = match self.state {
            PlacementState::Unknown => 0,
            PlacementState::Active => 1,
            PlacementState::Expired => 2,
        };
        to[12] = mode | state << 4;
        to[13..19].copy_from_slice(&self.expire_ms.to_le_bytes()[..6]);
    }

    #[inline]
    fn unpack(from: &[u8]) -> Self {
        let mut cell = [0; 4];
        cell.copy_from_slice(&from[..4]);
        let mut epoch = [0; 8];
        epoch.copy_from_slice(&from[4..12]);
        let mut expire = [0; 8];
        expire[..6].copy_from_slice(&from[13..19]);
        Self {
            cell: CellIndex::from_bits(u32::from_le_bytes(cell)),
            epoch: u64::from_le_bytes(epoch),
            write_mode: match from[12] & 15 {
                1 => WriteMode::Direct,
                2 => WriteMode::Logged,
                _ => WriteMode::Unknown,
            },
            state: match from[12] >> 4 & 7 {
                1 => PlacementState::Active,
                2 => PlacementState::Expired,
                _ => PlacementState::Unknown,
            },
            expire_ms: u64::from_le_bytes(expire),
        }
    }
}

/// A placement in the whole map: `loose` where it is not known to be exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub held: Held,
    pub loose: bool,
}

/// The highest bit of the byte of mode and state.
const LOOSE: u8 = 1 << 7;

impl Packed for Kept {
    const BYTES: usize = Held::BYTES;

    #[inline]
    fn pack(&self, to: &mut [u8]) {
        self.held.pack(to);
        to[12] |= if self.loose { LOOSE } else { 0 };
    }

    #[inline]
    fn unpack(from: &[u8]) -> Self {
        Self { held: Held::unpack(from), loose: from[12] & LOOSE != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_loses_nothing() {
        for write_mode in [WriteMode::Unknown, WriteMode::Direct, WriteMode::Logged] {
            for state in [PlacementState::Unknown, PlacementState::Active, PlacementState::Expired]
            {
                for number in [0, 1, u32::MAX] {
                    let held = Held {
                        cell: CellIndex::from_bits(number),
                        epoch: u64::MAX - u64::from(number),
                        write_mode,
                        state,
                        expire_ms: u64::from(number).min(EXPIRE_MAX),
                    };
                    let mut bytes = [0xAA; Held::BYTES];
                    held.pack(&mut bytes);
                    assert_eq!(Held::unpack(&bytes), held);
                    for loose in [true, false] {
                        let kept = Kept { held, loose };
                        kept.pack(&mut bytes);
                        assert_eq!(Kept::unpack(&bytes), kept);
                    }
                }
            }
        }
    }
}
