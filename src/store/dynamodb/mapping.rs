//! The items of `CellMappings`: ours, and those of somebody else's router.
//!
//! An item without `Epoch` is foreign: it holds what its writer chose, so only its `CellId` must be readable; times that are not
//! are taken as unknown. An item with `Epoch` is ours, and what it says of epoch, mode and expiry must be readable: a guess there
//! would be a wrong answer. An item with `Epoch` and no `CellId` marks a vacated key, which a plain reader takes for an unknown one.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::attributes::{Item, Reader, number, seconds_rounded_up, text};
use super::schema::TTL;
use super::schema::mapping::{
    BEGUN_BY, CELL_ID, CREATED_AT, EPOCH, EXPIRES_AT, LAST_UPDATED, MIGRATION, PARTITION_KEY,
    VACATED_AT, WRITE_MODE,
};
use crate::domain::{
    CellId, Epoch, Mapping, MigrationId, PartitionKey, Placement, PlacementEvent, Timestamp,
    WriteMode,
};
use crate::store::StoreError;

/// All attributes but the key that a placement or a vacated key may have from us.
const MANAGED: [&str; 10] = [
    CELL_ID,
    CREATED_AT,
    LAST_UPDATED,
    EPOCH,
    WRITE_MODE,
    BEGUN_BY,
    EXPIRES_AT,
    TTL,
    VACATED_AT,
    MIGRATION,
];

pub fn key(key: &PartitionKey) -> Item {
    Item::from([(PARTITION_KEY.to_owned(), text(key.as_str()))])
}

/// A placement as it is stored. `grace`: how long after its expiry the storage itself may delete it.
pub fn placement_item(placement: &Placement, grace: Duration) -> Item {
    let mut item = key(&placement.key);
    let mut set = |name: &str, value: AttributeValue| item.insert(name.to_owned(), value);
    set(CELL_ID, text(placement.cell.as_str()));
    set(EPOCH, number(placement.epoch));
    set(WRITE_MODE, text(placement.write_mode.as_str()));
    set(BEGUN_BY, text(placement.began_by.as_str()));
    if let Some(created) = placement.created {
        set(CREATED_AT, text(created.to_string()));
    }
    if let Some(updated) = placement.updated {
        set(LAST_UPDATED, text(updated.to_string()));
    }
    if let Some(expires) = placement.expires {
        set(EXPIRES_AT, text(expires.to_string()));
        set(TTL, number(seconds_rounded_up(expires.plus(grace))));
    }
    if let Some(migration) = placement.migration {
        set(MIGRATION, text(migration.to_string()));
    }
    item
}

/// What is left of a key whose placement was taken away. It has no `TTL`: the epoch must outlive everything.
pub fn vacated_item(of: &PartitionKey, epoch: Epoch, vacated: Timestamp) -> Item {
    let mut item = key(of);
    item.insert(EPOCH.to_owned(), number(epoch));
    item.insert(VACATED_AT.to_owned(), text(vacated.to_string()));
    item
}

/// An update that leaves attributes alone that are not ours.
pub struct Update {
    pub expression: String,
    /// Placeholders `#n0`, `#n1`, … and `:v0`, `:v1`, …, and what they stand for.
    pub names: Vec<(String, String)>,
    pub values: Vec<(String, AttributeValue)>,
}

/// Turns an existing item into `placement_item`, but for the attributes that are somebody else's.
pub fn placement_update(placement: &Placement, grace: Duration) -> Update {
    let mut item = placement_item(placement, grace);
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for (at, attribute) in MANAGED.into_iter().enumerate() {
        names.push((format!("#n{at}"), attribute.to_owned()));
        match item.remove(attribute) {
            Some(value) => {
                set.push(format!("#n{at} = :v{at}"));
                values.push((format!(":v{at}"), value));
            }
            None => remove.push(format!("#n{at}")),
        }
    }
    Update {
        // Never without a REMOVE: a placement has no VacatedAt.
        expression: format!("SET {} REMOVE {}", set.join(", "), remove.join(", ")),
        names,
        values,
    }
}

/// What an item says of its key. An item with no attributes at all is no item.
pub fn read(table: &str, item: &Item) -> Result<Mapping, StoreError> {
    if item.is_empty() {
        return Ok(Mapping::Absent);
    }
    let reader = Reader { table, item };
    match (reader.has(CELL_ID), reader.has(EPOCH)) {
        (true, true) => read_ours(&reader).map(Mapping::Placed),
        (true, false) => read_foreign(&reader).map(Mapping::Placed),
        (false, true) => read_epoch(&reader).map(Mapping::Vacated),
        (false, false) => Err(reader.unreadable(CELL_ID, "is missing")),
    }
}

fn read_ours(reader: &Reader<'_>) -> Result<Placement, StoreError> {
    let began_by = reader.parsed(BEGUN_BY, PlacementEvent::parse)?;
    if began_by == PlacementEvent::Adopted {
        return Err(reader.unreadable(BEGUN_BY, "is ADOPTED in an item that has an Epoch"));
    }
    Ok(Placement {
        key: read_key(reader)?,
        cell: read_cell(reader)?,
        epoch: read_epoch(reader)?,
        write_mode: reader.parsed(WRITE_MODE, WriteMode::parse)?,
        began_by,
        created: lenient_time(reader.item.get(CREATED_AT)),
        updated: lenient_time(reader.item.get(LAST_UPDATED)),
        expires: reader.optional_parsed(EXPIRES_AT, Timestamp::parse)?,
        migration: reader.optional_parsed(MIGRATION, |text| MigrationId::parse(text).ok())?,
    })
}

fn read_foreign(reader: &Reader<'_>) -> Result<Placement, StoreError> {
    Ok(Placement {
        key: read_key(reader)?,
        cell: read_cell(reader)?,
        epoch: Epoch::FIRST,
        write_mode: WriteMode::Direct,
        began_by: PlacementEvent::Adopted,
        created: lenient_time(reader.item.get(CREATED_AT)),
        updated: lenient_time(reader.item.get(LAST_UPDATED)),
        expires: foreign_expiry(reader.item.get(TTL)),
        migration: None,
    })
}

fn read_key(reader: &Reader<'_>) -> Result<PartitionKey, StoreError> {
    PartitionKey::new(reader.text(PARTITION_KEY)?)
        .map_err(|invalid| reader.unreadable(PARTITION_KEY, &invalid.problem))
}

fn read_cell(reader: &Reader<'_>) -> Result<CellId, StoreError> {
    CellId::new(reader.text(CELL_ID)?)
        .map_err(|invalid| reader.unreadable(CELL_ID, &invalid.problem))
}

fn read_epoch(reader: &Reader<'_>) -> Result<Epoch, StoreError> {
    Epoch::new(reader.number(EPOCH)?).ok_or_else(|| reader.unreadable(EPOCH, "is 0"))
}

/// Times say when, and decide nothing: one that cannot be read is unknown.
fn lenient_time(value: Option<&AttributeValue>) -> Option<Timestamp> {
    Timestamp::parse(value?.as_s().ok()?)
}

/// Other people's `TTL`: epoch seconds, perhaps with a fraction, perhaps as a string. Zero and less are common ways to say "never",
/// and DynamoDB itself deletes nothing that is years past its `TTL`.
fn foreign_expiry(value: Option<&AttributeValue>) -> Option<Timestamp> {
    let digits = match value? {
        AttributeValue::N(digits) | AttributeValue::S(digits) => digits.trim(),
        _ => return None,
    };
    let seconds: f64 = digits.parse().ok()?;
    if !(seconds > 0.0 && seconds < 1e15) {
        return None;
    }
    // In range, so the conversion is exact to the second.
    Timestamp::from_seconds(seconds as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::strategies;
    use super::*;

    const GRACE: Duration = Duration::from_secs(3600);

    fn foreign(extra: &[(&str, AttributeValue)]) -> Item {
        let mut item = Item::from([
            (PARTITION_KEY.to_owned(), text("tenant")),
            (CELL_ID.to_owned(), text("cell-a")),
        ]);
        item.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
        item
    }

    fn placement(item: &Item) -> Placement {
        let mapping = read("T", item).unwrap();
        mapping.placement().unwrap().clone()
    }

    proptest! {
        #[test]
        fn a_placement_survives_its_item(placement in strategies::placement()) {
            let item = placement_item(&placement, GRACE);
            prop_assert_eq!(read("T", &item), Ok(Mapping::Placed(placement.clone())));
            prop_assert_eq!(item.contains_key(TTL), placement.expires.is_some());
        }

        #[test]
        fn a_vacated_key_survives_its_item(placement in strategies::placement(), at in strategies::time()) {
            let item = vacated_item(&placement.key, placement.epoch, at);
            prop_assert_eq!(read("T", &item), Ok(Mapping::Vacated(placement.epoch)));
            prop_assert!(!item.contains_key(CELL_ID) && !item.contains_key(TTL));
        }

        #[test]
        fn an_update_sets_or_removes_every_attribute_of_ours(placement in strategies::placement()) {
            let update = placement_update(&placement, GRACE);
            let set = placement_item(&placement, GRACE).len() - 1;
            prop_assert_eq!(update.values.len(), set);
            prop_assert_eq!(update.names.len(), MANAGED.len());
            let removed = update.expression.split(" REMOVE ").nth(1).unwrap_or_default();
            prop_assert_eq!(removed.split(", ").count(), MANAGED.len() - set);
        }

        #[test]
        fn no_foreign_item_panics(extra in strategies::foreign_attributes()) {
            let extra: Vec<_> = extra.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            prop_assert!(read("T", &foreign(&extra)).unwrap().placement().unwrap().adopted());
        }
    }

    #[test]
    fn foreign_items_count_as_epoch_one() {
        let found = placement(&foreign(&[
            (CREATED_AT, text("2026-01-31T12:00:00.5")),
            (LAST_UPDATED, text("2026-01-31T14:00:00+02:00")),
            ("Tier", AttributeValue::M([("n".into(), number(1))].into())),
        ]));
        assert!(found.adopted());
        assert_eq!((found.epoch, found.write_mode), (Epoch::FIRST, WriteMode::Direct));
        assert_eq!(found.created, Timestamp::from_millis(1_769_860_800_500));
        assert_eq!(found.updated, Timestamp::from_millis(1_769_860_800_000));
        assert_eq!(found.expires, None);
    }

    #[test]
    fn foreign_times_that_cannot_be_read_are_unknown() {
        for odd in [text("yesterday"), number(12), AttributeValue::Null(true)] {
            let found = placement(&foreign(&[(CREATED_AT, odd.clone()), (LAST_UPDATED, odd)]));
            assert_eq!((found.created, found.updated), (None, None));
        }
    }

    #[test]
    fn foreign_ttls_are_read_in_every_common_form() {
        let expected = Timestamp::from_seconds(1_769_860_800);
        for (ttl, expiry) in [
            (number(1_769_860_800), expected),
            (number("1769860800.75"), expected),
            (number("1.7698608E9"), expected),
            (text("1769860800"), expected),
            (number(0), None),
            (number(-1), None),
            (number(1_769_860_800_000_i64), None), // milliseconds: the year 58,000
            (text("soon"), None),
            (text("NaN"), None),
            (AttributeValue::Bool(true), None),
        ] {
            assert_eq!(placement(&foreign(&[(TTL, ttl.clone())])).expires, expiry, "{ttl:?}");
        }
    }

    #[test]
    fn what_decides_must_be_readable() {
        let detail = |item: &Item| match read("Mappings", item) {
            Err(StoreError::Unreadable { detail }) => detail,
            other => panic!("{other:?}"),
        };
        let strange = detail(&foreign(&[(CELL_ID, text("Cell_A"))]));
        assert!(strange.starts_with("Mappings: attribute CellId is not of the form [a-z0-9]"));
        assert!(!strange.contains("Cell_A") && !strange.contains("tenant"));
        for (attribute, value) in [
            (EPOCH, text("1")),
            (EPOCH, number("1.5")),
            (EPOCH, number(0)),
            (WRITE_MODE, text("SIDEWAYS")),
            (BEGUN_BY, text("ADOPTED")),
            (EXPIRES_AT, text("later")),
        ] {
            let mut item = foreign(&[
                (EPOCH, number(3)),
                (WRITE_MODE, text("DIRECT")),
                (BEGUN_BY, text("ASSIGNED")),
            ]);
            assert!(read("Mappings", &item).is_ok());
            item.insert(attribute.to_owned(), value);
            assert!(detail(&item).contains(attribute), "{attribute}");
        }
        let keyless = Item::from([(PARTITION_KEY.to_owned(), text("tenant"))]);
        assert!(detail(&keyless).contains(CELL_ID));
    }
}
