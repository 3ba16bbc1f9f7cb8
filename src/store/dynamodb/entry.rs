//! A journal entry's changes as bytes: protobuf, so that a newer replica's fields do no harm to an older one, with what repeats written
//! once. A placement takes some 30 bytes where JSON takes 300; entries are written for every change and read by every replica.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use prost::Message;

use super::schema::control::{CHANGES, WRITTEN_AT};
use crate::domain::{
    CellId, Change, Epoch, MigrationId, PartitionKey, Placement, PlacementEvent, Timestamp,
    WriteMode,
};

#[derive(Clone, PartialEq, Message)]
struct Stored {
    /// The cells that placements name, by their position.
    #[prost(string, repeated, tag = "1")]
    cells: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<StoredChange>,
}

/// One of these is there.
#[derive(Clone, PartialEq, Message)]
struct StoredChange {
    #[prost(message, optional, tag = "1")]
    placed: Option<StoredPlacement>,
    #[prost(message, optional, tag = "2")]
    vacated: Option<StoredPlacement>,
    /// A change of something other than a placement: rare, and so as JSON.
    #[prost(string, optional, tag = "3")]
    other: Option<String>,
    #[prost(message, optional, tag = "4")]
    moved: Option<StoredMove>,
}

/// Cells by their numbers.
#[derive(Clone, PartialEq, Message)]
struct StoredMove {
    #[prost(message, optional, tag = "1")]
    placement: Option<StoredPlacement>,
    #[prost(uint32, tag = "2")]
    from: u32,
    #[prost(uint32, optional, tag = "3")]
    gained: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    lost: Option<u32>,
}

/// Times are milliseconds after the entry's own: mostly 0.
#[derive(Clone, PartialEq, Message)]
struct StoredPlacement {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(uint32, tag = "2")]
    cell: u32,
    #[prost(uint64, tag = "3")]
    epoch: u64,
    #[prost(bool, tag = "4")]
    logged: bool,
    /// Position in [`PlacementEvent::ALL`].
    #[prost(uint32, tag = "5")]
    began_by: u32,
    #[prost(sint64, optional, tag = "6")]
    created: Option<i64>,
    #[prost(sint64, optional, tag = "7")]
    updated: Option<i64>,
    #[prost(sint64, optional, tag = "8")]
    expires: Option<i64>,
    #[prost(uint32, optional, tag = "9")]
    replaced: Option<u32>,
    /// As text; empty: none.
    #[prost(string, tag = "10")]
    migration: String,
}

/// Numbers cells as they come.
#[derive(Default)]
struct Cells {
    numbers: HashMap<CellId, u32>,
    names: Vec<String>,
}

impl Cells {
    fn number(&mut self, cell: &CellId) -> u32 {
        if let Some(number) = self.numbers.get(cell) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(cell.as_str().to_owned());
        self.numbers.insert(cell.clone(), number);
        number
    }
}

/// `None` for a change that cannot be written, of which there is none.
pub(super) fn encode(changes: &[Change], written: Timestamp) -> Option<Vec<u8>> {
    let mut cells = Cells::default();
    let encode = |change: &Change| match change {
        Change::Placed { placement, replaced } => {
            let replaced = replaced.as_ref().map(|cell| cells.number(cell));
            let placed = StoredPlacement { replaced, ..stored(placement, written, &mut cells) };
            Some(StoredChange { placed: Some(placed), ..StoredChange::default() })
        }
        Change::Moved { placement, from, gained, lost } => {
            let moved = StoredMove {
                placement: Some(stored(placement, written, &mut cells)),
                from: cells.number(from),
                gained: gained.as_ref().map(|cell| cells.number(cell)),
                lost: lost.as_ref().map(|cell| cells.number(cell)),
            };
            Some(StoredChange { moved: Some(moved), ..StoredChange::default() })
        }
        Change::Vacated { placement } => {
            let vacated = Some(stored(placement, written, &mut cells));
            Some(StoredChange { vacated, ..StoredChange::default() })
        }
        other => {
            let other = Some(serde_json::to_string(other).ok()?);
            Some(StoredChange { other, ..StoredChange::default() })
        }
    };
    let changes = changes.iter().map(encode).collect::<Option<_>>()?;
    Some(Stored { cells: cells.names, changes }.encode_to_vec())
}

fn stored(placement: &Placement, written: Timestamp, cells: &mut Cells) -> StoredPlacement {
    let after = |time: Option<Timestamp>| time.map(|time| time.millis() - written.millis());
    StoredPlacement {
        key: placement.key.as_str().to_owned(),
        cell: cells.number(&placement.cell),
        epoch: placement.epoch.get(),
        logged: placement.write_mode == WriteMode::Logged,
        began_by: placement.began_by as u32,
        created: after(placement.created),
        updated: after(placement.updated),
        expires: after(placement.expires),
        replaced: None,
        migration: placement.migration.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// The changes of an entry as the table holds it, for tools that read the journal themselves. `None` where the item is no entry.
pub fn of_item(item: &HashMap<String, AttributeValue>) -> Option<Vec<Change>> {
    let written = Timestamp::parse(item.get(WRITTEN_AT)?.as_s().ok()?)?;
    decode(item.get(CHANGES)?.as_b().ok()?.as_ref(), written)
}

/// `None` where the bytes are not an entry's changes, or hold one that is not known.
pub(super) fn decode(bytes: &[u8], written: Timestamp) -> Option<Vec<Change>> {
    let Stored { cells, changes } = Stored::decode(bytes).ok()?;
    let cells: Vec<_> = cells.into_iter().map(|id| CellId::new(id).ok()).collect::<Option<_>>()?;
    let cell = |number: Option<u32>| match number {
        None => Some(None),
        Some(number) => cells.get(number as usize).cloned().map(Some),
    };
    let decode = |change| match change {
        StoredChange { placed: Some(placed), vacated: None, other: None, moved: None } => {
            let replaced = cell(placed.replaced)?;
            Some(Change::Placed { placement: placement(placed, written, &cells)?, replaced })
        }
        StoredChange { placed: None, vacated: None, other: None, moved: Some(moved) } => {
            Some(Change::Moved {
                placement: placement(moved.placement?, written, &cells)?,
                from: cell(Some(moved.from))??,
                gained: cell(moved.gained)?,
                lost: cell(moved.lost)?,
            })
        }
        StoredChange { placed: None, vacated: Some(vacated), other: None, moved: None } => {
            Some(Change::Vacated { placement: placement(vacated, written, &cells)? })
        }
        StoredChange { placed: None, vacated: None, other: Some(other), moved: None } => {
            serde_json::from_str(&other).ok()
        }
        _ => None,
    };
    changes.into_iter().map(decode).collect()
}

fn placement(stored: StoredPlacement, written: Timestamp, cells: &[CellId]) -> Option<Placement> {
    let time = |after: Option<i64>| match after {
        None => Some(None),
        Some(after) => Timestamp::from_millis(written.millis().checked_add(after)?).map(Some),
    };
    Some(Placement {
        key: PartitionKey::new(stored.key).ok()?,
        cell: cells.get(stored.cell as usize)?.clone(),
        epoch: Epoch::new(stored.epoch)?,
        write_mode: if stored.logged { WriteMode::Logged } else { WriteMode::Direct },
        began_by: *PlacementEvent::ALL.get(stored.began_by as usize)?,
        created: time(stored.created)?,
        updated: time(stored.updated)?,
        expires: time(stored.expires)?,
        migration: match stored.migration.as_str() {
            "" => None,
            text => Some(MigrationId::parse(text).ok()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::strategies;
    use super::*;

    proptest! {
        /// Cut short anywhere, or with a byte changed, it may come out as another entry, but it does not panic.
        #[test]
        fn arbitrary_bytes_are_no_danger(
            entry in strategies::entry(), cut: prop::sample::Index, at: prop::sample::Index, byte: u8,
        ) {
            let mut bytes = encode(&entry.changes, entry.written).unwrap();
            let _ = decode(&bytes[..cut.index(bytes.len() + 1)], entry.written);
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                let _ = decode(&bytes, entry.written);
            }
        }
    }

    #[test]
    fn what_names_an_unknown_cell_or_nothing_at_all_is_refused() {
        let written = Timestamp::from_millis(0).unwrap();
        let stray = StoredPlacement { key: "k".into(), epoch: 1, cell: 7, ..Default::default() };
        let placed = StoredChange { placed: Some(stray), ..Default::default() };
        for change in [placed, StoredChange::default()] {
            let stored = Stored { cells: vec!["a".into()], changes: vec![change] };
            assert_eq!(decode(&stored.encode_to_vec(), written), None);
        }
    }
}
