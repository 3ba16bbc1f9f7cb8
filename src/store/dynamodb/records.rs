//! The records of `CellControl`: how each is written and read. Their keys are in [`super::schema`].

use std::collections::BTreeMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use super::attributes::{Item, Reader, json, number, seconds_rounded_up, text};
use super::entry;
use super::error::rejected;
use super::schema::control::{
    BEGUN_AT, BEGUN_BY, CAPACITY, CELL_ID, CHANGES, COUNTED_AT, CREATED_AT, DELETED, DIGEST,
    ENDED_AT, ENDED_BY, ENDPOINT, FORGET_AFTER, JOURNAL_ID, LABELS, LAST_UPDATED, LEASE_MILLIS,
    LONGEST_LEASE_MILLIS, METHOD, NONCE, OUTCOME, PK, PLACEMENTS, REGION, REVISION, SEQUENCE, SK,
    STATE, TABLES, WEIGHT, WRITTEN_AT,
};
use super::schema::{ControlKey, TTL};
use crate::domain::{
    Cell, CellId, CellState, Cluster, Endpoint, HistoryRecord, JournalEntry, Labels, LeaseDuration,
    PlacementEvent, Region, RequestRecord, Sequence, Timestamp, Weight,
};
use crate::store::{Head, StoreError};

pub fn key(key: &ControlKey) -> Item {
    Item::from([(PK.to_owned(), text(key.pk())), (SK.to_owned(), text(key.sk()))])
}

fn item<const N: usize>(of: &ControlKey, attributes: [(&str, AttributeValue); N]) -> Item {
    let mut item = key(of);
    item.extend(attributes.map(|(name, value)| (name.to_owned(), value)));
    item
}

fn read_key(reader: &Reader<'_>) -> Result<ControlKey, StoreError> {
    ControlKey::parse(reader.text(PK)?, reader.text(SK)?)
        .ok_or_else(|| reader.unreadable(SK, "is not the key of a known record"))
}

fn wrong_kind(reader: &Reader<'_>) -> StoreError {
    reader.unreadable(SK, "is the key of another kind of record")
}

pub fn head_item(head: Head) -> Item {
    item(
        &ControlKey::Head,
        [(SEQUENCE, number(head.sequence)), (JOURNAL_ID, text(head.journal.to_string()))],
    )
}

pub fn read_head(table: &str, item: &Item) -> Result<Head, StoreError> {
    let reader = Reader { table, item };
    Ok(Head {
        sequence: reader.number(SEQUENCE).map(Sequence::new)?,
        // A journal that was begun by hand, or before there were ids, has none.
        journal: reader.optional_parsed(JOURNAL_ID, |text| text.parse().ok())?.unwrap_or_default(),
    })
}

/// How far the journal has been trimmed. What is marked must not be read any more; what is deleted is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trimmed {
    pub marked: Sequence,
    pub deleted: Sequence,
}

pub fn trimmed_item(trimmed: Trimmed) -> Item {
    item(
        &ControlKey::Trimmed,
        [(SEQUENCE, number(trimmed.marked)), (DELETED, number(trimmed.deleted))],
    )
}

pub fn read_trimmed(table: &str, item: &Item) -> Result<Trimmed, StoreError> {
    let reader = Reader { table, item };
    Ok(Trimmed {
        marked: Sequence::new(reader.number(SEQUENCE)?),
        deleted: Sequence::new(reader.number(DELETED)?),
    })
}

pub fn cluster_item(cluster: &Cluster) -> Item {
    let mut item = item(
        &ControlKey::Cluster,
        [
            (LEASE_MILLIS, number(cluster.lease.millis())),
            (LONGEST_LEASE_MILLIS, number(cluster.longest.millis())),
            (REVISION, number(cluster.revision)),
        ],
    );
    if let Some(updated) = cluster.updated {
        item.insert(LAST_UPDATED.to_owned(), text(updated.to_string()));
    }
    item
}

pub fn read_cluster(table: &str, item: &Item) -> Result<Cluster, StoreError> {
    let reader = Reader { table, item };
    let lease = |attribute| {
        let lease = LeaseDuration::from_millis(reader.number(attribute)?);
        lease.ok_or_else(|| reader.unreadable(attribute, "is longer than a minute"))
    };
    Ok(Cluster {
        lease: lease(LEASE_MILLIS)?,
        longest: match reader.has(LONGEST_LEASE_MILLIS) {
            true => lease(LONGEST_LEASE_MILLIS)?,
            false => LeaseDuration::MAX,
        },
        updated: reader.optional_parsed(LAST_UPDATED, Timestamp::parse)?,
        revision: Sequence::new(reader.number(REVISION)?),
    })
}

pub fn entry_item(entry: &JournalEntry) -> Result<Item, StoreError> {
    let Some(changes) = entry::encode(&entry.changes, entry.written) else {
        return Err(rejected("a change cannot be written".into()));
    };
    Ok(item(
        &ControlKey::Entry(entry.sequence),
        [
            (NONCE, text(entry.nonce.to_string())),
            (WRITTEN_AT, text(entry.written.to_string())),
            (CHANGES, AttributeValue::B(Blob::new(changes))),
        ],
    ))
}

pub fn read_entry(table: &str, item: &Item) -> Result<JournalEntry, StoreError> {
    let reader = Reader { table, item };
    let ControlKey::Entry(sequence) = read_key(&reader)? else {
        return Err(wrong_kind(&reader));
    };
    let written = reader.parsed(WRITTEN_AT, Timestamp::parse)?;
    let Some(AttributeValue::B(changes)) = item.get(CHANGES) else {
        return Err(reader.unreadable(CHANGES, "is not binary"));
    };
    let changes = entry::decode(changes.as_ref(), written);
    Ok(JournalEntry {
        sequence,
        nonce: reader.parsed(NONCE, |text| text.parse().ok())?,
        written,
        changes: changes.ok_or_else(|| reader.unreadable(CHANGES, "holds no known changes"))?,
    })
}

/// A cell's settings, without its count.
pub fn cell_item(cell: &Cell) -> Result<Item, StoreError> {
    let labels = cell.labels.iter();
    let labels = labels.map(|(k, v)| (k.to_owned(), text(v))).collect();
    let mut item = item(
        &ControlKey::Cell(cell.id.clone()),
        [
            (REGION, text(cell.region.as_str())),
            (ENDPOINT, text(cell.endpoint.as_str())),
            (LABELS, AttributeValue::M(labels)),
            (WEIGHT, number(cell.weight.get())),
            (STATE, text(cell.state.as_str())),
            (CREATED_AT, text(cell.created.to_string())),
            (LAST_UPDATED, text(cell.updated.to_string())),
            (REVISION, number(cell.revision)),
        ],
    );
    if let Some(capacity) = cell.capacity {
        item.insert(CAPACITY.to_owned(), number(capacity));
    }
    if let Some(tables) = &cell.tables {
        item.insert(TABLES.to_owned(), json(&**tables)?);
    }
    Ok(item)
}

/// Placements of a cell as far as the journal entry `at`.
pub fn count_item(cell: &CellId, placements: u64, at: Sequence) -> Item {
    item(
        &ControlKey::Count(cell.clone()),
        [(PLACEMENTS, number(placements)), (COUNTED_AT, number(at))],
    )
}

/// The cells that a set of settings and counts makes, in the order of their ids. A count without settings is what a
/// removal left for a moment; settings without a count are of a cell that never had a placement.
pub fn read_cells(table: &str, items: &[Item]) -> Result<Vec<Cell>, StoreError> {
    let mut counts = BTreeMap::new();
    let mut cells = Vec::new();
    for item in items {
        let reader = Reader { table, item };
        match read_key(&reader)? {
            ControlKey::Count(id) => {
                counts.insert(id, read_count(&reader)?);
            }
            ControlKey::Cell(id) => cells.push(read_settings(&reader, id)?),
            _ => return Err(wrong_kind(&reader)),
        }
    }
    for cell in &mut cells {
        if let Some((placements, at)) = counts.get(&cell.id) {
            (cell.placements, cell.counted_at) = (*placements, *at);
        }
    }
    cells.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(cells)
}

/// A count may be below zero for placements that were there before the cell was registered.
fn read_count(reader: &Reader<'_>) -> Result<(u64, Sequence), StoreError> {
    let placements: i64 = reader.number(PLACEMENTS)?;
    let at = Sequence::new(reader.number(COUNTED_AT)?);
    Ok((u64::try_from(placements).unwrap_or(0), at))
}

fn read_settings(reader: &Reader<'_>, id: CellId) -> Result<Cell, StoreError> {
    let revision = Sequence::new(reader.number(REVISION)?);
    Ok(Cell {
        id,
        region: reader.parsed(REGION, |text| Region::new(text).ok())?,
        endpoint: reader.parsed(ENDPOINT, |text| Endpoint::new(text).ok())?,
        labels: read_labels(reader)?,
        weight: Weight::new(reader.number(WEIGHT)?)
            .map_err(|invalid| reader.unreadable(WEIGHT, &invalid.problem))?,
        capacity: reader.optional_number(CAPACITY)?,
        state: reader.parsed(STATE, CellState::parse)?,
        created: reader.parsed(CREATED_AT, Timestamp::parse)?,
        updated: reader.parsed(LAST_UPDATED, Timestamp::parse)?,
        revision,
        placements: 0,
        counted_at: revision,
        tables: match reader.has(TABLES) {
            true => Some(reader.json(TABLES)?),
            false => None,
        },
    })
}

fn read_labels(reader: &Reader<'_>) -> Result<Labels, StoreError> {
    let Some(AttributeValue::M(map)) = reader.item.get(LABELS) else {
        return Err(reader.unreadable(LABELS, "is not a map"));
    };
    let mut labels = BTreeMap::new();
    for (key, value) in map {
        let AttributeValue::S(value) = value else {
            return Err(reader.unreadable(LABELS, "holds a value that is not a string"));
        };
        labels.insert(key.clone(), value.clone());
    }
    Labels::new(labels).map_err(|invalid| reader.unreadable(LABELS, &invalid.problem))
}

pub fn history_item(record: &HistoryRecord) -> Item {
    let mut item = item(
        &ControlKey::History(record.key.clone(), record.epoch),
        [
            (CELL_ID, text(record.cell.as_str())),
            (BEGUN_BY, text(record.began_by.as_str())),
            (ENDED_BY, text(record.ended_by.as_str())),
            (ENDED_AT, text(record.ended.to_string())),
        ],
    );
    if let Some(began) = record.began {
        item.insert(BEGUN_AT.to_owned(), text(began.to_string()));
    }
    item
}

pub fn read_history(table: &str, item: &Item) -> Result<HistoryRecord, StoreError> {
    let reader = Reader { table, item };
    let ControlKey::History(key, epoch) = read_key(&reader)? else {
        return Err(wrong_kind(&reader));
    };
    Ok(HistoryRecord {
        key,
        epoch,
        cell: reader.parsed(CELL_ID, |text| CellId::new(text).ok())?,
        began_by: reader.parsed(BEGUN_BY, PlacementEvent::parse)?,
        began: reader.optional_parsed(BEGUN_AT, Timestamp::parse)?,
        ended_by: reader.parsed(ENDED_BY, PlacementEvent::parse)?,
        ended: reader.parsed(ENDED_AT, Timestamp::parse)?,
    })
}

pub fn request_item(record: &RequestRecord) -> Result<Item, StoreError> {
    Ok(item(
        &ControlKey::Request(record.id.clone()),
        [
            (METHOD, text(record.method.as_str())),
            (DIGEST, text(record.digest.as_str())),
            (OUTCOME, json(&record.outcome)?),
            (FORGET_AFTER, text(record.forget_after.to_string())),
            (TTL, number(seconds_rounded_up(record.forget_after))),
        ],
    ))
}

pub fn read_request(table: &str, item: &Item) -> Result<RequestRecord, StoreError> {
    let reader = Reader { table, item };
    let ControlKey::Request(id) = read_key(&reader)? else {
        return Err(wrong_kind(&reader));
    };
    Ok(RequestRecord {
        id,
        method: reader.text(METHOD)?.to_owned(),
        digest: reader.text(DIGEST)?.to_owned(),
        outcome: reader.json(OUTCOME)?,
        forget_after: reader.parsed(FORGET_AFTER, Timestamp::parse)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::strategies;
    use super::*;
    use crate::domain::JournalId;

    proptest! {
        #[test]
        fn a_head_survives_its_item(n in any::<u64>(), id in any::<u64>()) {
            let head = Head { sequence: Sequence::new(n), journal: JournalId::new(id) };
            prop_assert_eq!(read_head("T", &head_item(head)), Ok(head));
        }

        #[test]
        fn how_far_it_was_trimmed_survives_its_item(marked in any::<u64>(), deleted in any::<u64>()) {
            let trimmed =
                Trimmed { marked: Sequence::new(marked), deleted: Sequence::new(deleted) };
            prop_assert_eq!(read_trimmed("T", &trimmed_item(trimmed)), Ok(trimmed));
        }

        #[test]
        fn the_cluster_survives_its_item(cluster in strategies::cluster()) {
            prop_assert_eq!(read_cluster("T", &cluster_item(&cluster)), Ok(cluster));
        }

        #[test]
        fn an_entry_survives_its_item(entry in strategies::entry()) {
            let item = entry_item(&entry).unwrap();
            prop_assert_eq!(read_entry("T", &item), Ok(entry));
        }

        #[test]
        fn a_cell_survives_its_items(cell in strategies::cell()) {
            let items = [cell_item(&cell).unwrap(), count_item(&cell.id, cell.placements, cell.counted_at)];
            prop_assert_eq!(read_cells("T", &items), Ok(vec![cell]));
        }

        #[test]
        fn a_past_placement_survives_its_item(record in strategies::history()) {
            prop_assert_eq!(read_history("T", &history_item(&record)), Ok(record));
        }

        #[test]
        fn a_request_survives_its_item(record in strategies::request()) {
            let item = request_item(&record).unwrap();
            prop_assert_eq!(read_request("T", &item), Ok(record));
        }

        #[test]
        fn settings_without_a_count_have_none_and_counts_without_settings_no_cell(cell in strategies::cell()) {
            let alone = read_cells("T", &[cell_item(&cell).unwrap()]).unwrap();
            prop_assert_eq!((alone[0].placements, alone[0].counted_at), (0, cell.revision));
            prop_assert_eq!(read_cells("T", &[count_item(&cell.id, 3, cell.revision)]), Ok(vec![]));
        }
    }

    #[test]
    fn a_count_below_zero_is_none() {
        let id = CellId::new("a").unwrap();
        let mut item = count_item(&id, 0, Sequence::new(4));
        item.insert(PLACEMENTS.to_owned(), number(-2));
        let reader = Reader { table: "T", item: &item };
        assert_eq!(read_count(&reader), Ok((0, Sequence::new(4))));
    }

    #[test]
    fn a_record_under_another_kinds_key_is_refused() {
        let head = head_item(Head { sequence: Sequence::START, journal: JournalId::default() });
        for result in [
            read_entry("T", &head).map(|_| ()),
            read_history("T", &head).map(|_| ()),
            read_request("T", &head).map(|_| ()),
            read_cells("T", std::slice::from_ref(&head)).map(|_| ()),
        ] {
            assert!(matches!(result, Err(StoreError::Unreadable { .. })), "{result:?}");
        }
    }
}
