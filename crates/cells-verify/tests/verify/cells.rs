//! Which items are compared, and what counts as the same: tables, templates, neighbours, `CellId` and expiry.

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::KeyType;
use cells_verify::{BadCursor, Census, Incompatible, Item, MismatchKind, Verifier, VerifyError};
use futures::executor::block_on;

use crate::world::*;

fn put(world: &World, source: bool, table: &str, partition: &str, key: &Key, value: u8) {
    let cell = if source { "cell-a" } else { "cell-b" };
    put_item(world, source, table, partition, key, item(partition, key, cell, value, source));
}

fn put_item(world: &World, source: bool, table: &str, partition: &str, key: &Key, item: Item) {
    let at = (table.to_owned(), partition.to_owned());
    let change = Change { source, at, key: key.clone(), item: Some(item) };
    world.lock().unwrap().change(change);
}

fn text(key: &str) -> Key {
    Key::Text(key.to_owned())
}

#[test]
fn all_partitions_of_all_tables_and_no_others_are_read() {
    let world = World::default();
    let of = tables(vec![
        table("Data", Some(KeyType::String), &["CUSTOMER#{partition_key}", "{partition_key}#log"]),
        table("Single", None, &["{partition_key}"]),
        table("Bytes", Some(KeyType::Binary), &["B#{partition_key}"]),
    ]);
    let bytes = Key::Bytes(vec![0xFF]);
    // Neighbours whose names begin alike have differences of their own.
    for neighbour in ["a#1", "ab", "A", "a#log"] {
        put(&world, true, "Data", &format!("CUSTOMER#{neighbour}"), &text("x"), 1);
        put(&world, true, "Single", neighbour, &Key::None, 1);
    }
    put(&world, true, "Data", "CUSTOMER#a", &text("1"), 1);
    put(&world, true, "Data", "a#log", &text("2"), 1);
    put(&world, false, "Data", "a#log", &text("2"), 2);
    put(&world, true, "Single", "a", &Key::None, 1);
    put(&world, false, "Bytes", "B#a", &bytes, 1);
    let verifier = verifier(&world, &of, "a").with_page_items(1);
    let (all, _) = compare(&verifier);
    let kinds: Vec<_> = all.suspects.iter().map(|one| one.kind).collect();
    use MismatchKind::{Different, Extra, Missing};
    assert_eq!(kinds, [Missing, Different, Missing, Extra]);
    let at = |table: &str, partition: &str| (table.to_owned(), partition.to_owned());
    let expected =
        [at("Data", "CUSTOMER#a"), at("Data", "a#log"), at("Single", "a"), at("Bytes", "B#a")];
    let keys = [text("1"), text("2"), Key::None, bytes];
    assert_eq!(places(&all.suspects), expected.iter().cloned().zip(keys).collect::<Vec<_>>());
    assert!(world.lock().unwrap().read.iter().all(|read| expected.contains(read)));
    assert_eq!((all.source.items, all.target.items), (3, 2));
}

#[test]
fn a_table_or_a_template_of_one_cell_alone_is_compared() {
    let world = World::default();
    let old = tables(vec![
        table("Data", Some(KeyType::String), &["{partition_key}"]),
        table("Old", Some(KeyType::String), &["{partition_key}"]),
    ]);
    let new = tables(vec![
        table("Data", Some(KeyType::String), &["{partition_key}", "NEW#{partition_key}"]),
        table("New", Some(KeyType::String), &["{partition_key}"]),
    ]);
    put(&world, true, "Old", "a", &text("1"), 1);
    put(&world, false, "New", "a", &text("2"), 1);
    put(&world, false, "Data", "NEW#a", &text("3"), 1);
    // Of the source that is somebody else's partition, and not read.
    put(&world, true, "Data", "NEW#a", &text("3"), 1);
    let verifier = Verifier::new(side(&world, true, &old), side(&world, false, &new), "a").unwrap();
    let (all, _) = compare(&verifier);
    let kinds: Vec<_> = all.suspects.iter().map(|one| one.kind).collect();
    use MismatchKind::{Extra, Missing};
    assert_eq!(kinds, [Extra, Missing, Extra]);
    let touched: Vec<_> = all.suspects.into_iter().map(|one| one.at).collect();
    let rechecked = block_on(verifier.recheck(&touched, NOW)).unwrap();
    assert_eq!(rechecked.differing.iter().map(|one| one.kind).collect::<Vec<_>>(), kinds);
}

#[test]
fn cells_that_cannot_be_compared_are_refused() {
    let world = World::default();
    let of = |sort, partition: &str| {
        let mut table = table("T", sort, &["{partition_key}"]);
        table.partition_key = partition.to_owned();
        tables(vec![table])
    };
    let keys = Some(Incompatible::Keys { table: "T".to_owned() });
    let plain = of(Some(KeyType::String), "PK");
    for other in [of(None, "PK"), of(Some(KeyType::Number), "PK"), of(Some(KeyType::String), "Id")]
    {
        let refused = Verifier::new(side(&world, true, &plain), side(&world, false, &other), "a");
        assert_eq!(refused.err(), keys);
    }
    let same = Verifier::new(side(&world, true, &plain), side(&world, true, &plain), "a");
    assert_eq!(same.err(), Some(Incompatible::SameCell));
    let twice = tables([plain.tables.clone(), plain.tables].concat());
    let refused = Verifier::new(side(&world, true, &twice), side(&world, false, &twice), "a");
    assert_eq!(refused.err(), Some(Incompatible::TwoTables { table: "T".to_owned() }));
}

#[test]
fn a_cursor_is_of_its_tenant_tables_and_cells() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::String), &["{partition_key}"])]);
    let cursor = verifier(&world, &of, "a").start();
    let other = tables(vec![table("T", Some(KeyType::String), &["X#{partition_key}"])]);
    let mut expiring = of.clone();
    expiring.tables[0].ttl_attribute = None;
    for other in [
        verifier(&world, &of, "b"),
        verifier(&world, &other, "a"),
        verifier(&world, &expiring, "a"),
        Verifier::new(side(&world, false, &of), side(&world, true, &of), "a").unwrap(),
    ] {
        let refused = block_on(other.compare_page(&cursor, NOW)).unwrap_err();
        assert_eq!(refused, VerifyError::Cursor(BadCursor::OtherPlan));
    }
    assert!(block_on(verifier(&world, &of, "a").compare_page(&cursor, NOW)).is_ok());
}

/// An item with this attribute at each side, and what is told of it.
fn told(
    name: &str,
    source: Option<AttributeValue>,
    target: Option<AttributeValue>,
) -> (Option<MismatchKind>, cells_verify::Compared) {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::String), &["{partition_key}"])]);
    for (is_source, value) in [(true, source), (false, target)] {
        let mut item = item("a", &text("k"), "", 1, false);
        item.remove("CellId");
        item.extend(value.map(|value| (name.to_owned(), value)));
        put_item(&world, is_source, "T", "a", &text("k"), item);
    }
    let (all, _) = compare(&verifier(&world, &of, "a"));
    assert!(all.suspects.len() <= 1);
    (all.suspects.first().map(|one| one.kind), all)
}

#[test]
fn an_item_names_its_own_cell() {
    let name = |cell: &str| Some(AttributeValue::S(cell.to_owned()));
    let nested = |cell: &str| {
        let map = [("CellId".to_owned(), AttributeValue::S(cell.to_owned()))].into();
        Some(AttributeValue::M(map))
    };
    let number = || Some(AttributeValue::N("1".to_owned()));
    let different = Some(MismatchKind::Different);
    for (source, target, expected, misnamed) in [
        (name("cell-a"), name("cell-b"), None, (0, 0)),
        (name("cell-a"), name("cell-a"), different, (0, 1)),
        (name("cell-b"), name("cell-a"), different, (1, 1)),
        (name("cell-a"), name("cell-c"), different, (0, 1)),
        (name("cell-c"), name("cell-b"), None, (1, 0)),
        (name("cell-c"), name("cell-c"), different, (1, 1)),
        (name("cell-a"), None, different, (0, 0)),
        (None, name("cell-b"), different, (0, 0)),
        (None, None, None, (0, 0)),
        (number(), number(), None, (0, 0)),
        (number(), name("cell-b"), different, (0, 0)),
        (nested("cell-a"), nested("cell-a"), None, (0, 0)),
        (nested("cell-a"), nested("cell-b"), different, (0, 0)),
    ] {
        let what = format!("{source:?} {target:?}");
        let (kind, all) = told("CellId", source, target);
        assert_eq!(kind, expected, "{what}");
        assert_eq!((all.source.misnamed, all.target.misnamed), misnamed, "{what}");
        assert_eq!(all.source.digest == all.target.digest, expected.is_none(), "{what}");
    }
}

#[test]
fn what_has_expired_is_absent() {
    let at = |seconds: u64| Some(AttributeValue::N(seconds.to_string()));
    use MismatchKind::{Different, Extra, Missing};
    for (source, target, expected, items) in [
        (at(NOW), at(NOW), None, (0, 0)),
        (at(NOW - 1), at(NOW - 2), None, (0, 0)),
        (at(NOW + 1), at(NOW + 1), None, (1, 1)),
        (at(NOW + 1), at(NOW + 2), Some(Different), (1, 1)),
        (at(NOW), at(NOW + 1), Some(Extra), (0, 1)),
        (at(NOW + 1), at(NOW), Some(Missing), (1, 0)),
        (at(0), at(0), None, (1, 1)),
        (at(0), at(NOW), Some(Missing), (1, 0)),
    ] {
        let (kind, all) = told("TTL", source, target);
        assert_eq!((kind, (all.source.items, all.target.items)), (expected, items));
        assert_eq!((all.source.expired, all.target.expired), (1 - items.0, 1 - items.1));
    }
}

/// An item that one side has deleted already, and the other not yet.
#[test]
fn what_the_storage_deletes_late_is_no_difference() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::String), &["{partition_key}"])]);
    for n in 0..9 {
        let key = text(&n.to_string());
        let mut gone = item("a", &key, "cell-a", 1, false);
        gone.insert("TTL".to_owned(), AttributeValue::N((NOW - 5).to_string()));
        put_item(&world, n % 2 == 0, "T", "a", &key, gone);
    }
    let (all, _) = compare(&verifier(&world, &of, "a").with_page_items(2));
    assert_eq!(all.suspects, []);
    assert_eq!((all.source.items, all.target.items), (0, 0));
    assert_eq!((all.source.expired, all.target.expired), (5, 4), "each once, though pages overlap");
}

#[test]
fn one_cell_is_counted_as_it_is_in_a_comparison() {
    let world = World::default();
    let of = tables(vec![
        table("T", Some(KeyType::String), &["{partition_key}", "X#{partition_key}"]),
        table("Single", None, &["{partition_key}"]),
    ]);
    for n in 0..25_u8 {
        let key = text(&n.to_string());
        put(&world, true, "T", "a", &key, n);
        put(&world, false, "T", "a", &key, n);
        put(&world, true, "T", "ab", &key, n);
    }
    put(&world, true, "Single", "a", &Key::None, 1);
    put(&world, false, "Single", "a", &Key::None, 1);
    let key = text("wrong");
    put_item(&world, false, "T", "X#a", &key, item("X#a", &key, "cell-c", 1, false));
    let mut gone = item("a", &text("gone"), "cell-a", 1, false);
    gone.insert("TTL".to_owned(), AttributeValue::N("1799999999".to_owned()));
    put_item(&world, true, "T", "a", &text("gone"), gone);
    let count = |source, tenant: &str| {
        let census = Census::new(side(&world, source, &of), tenant).unwrap().with_page_items(4);
        block_on(census.one_cell(NOW)).unwrap()
    };
    let (all, _) = compare(&verifier(&world, &of, "a"));
    assert_eq!(count(true, "a"), all.source);
    assert_eq!((all.source.items, all.source.expired), (26, 1));
    let target = count(false, "a");
    assert_eq!((target.items, target.misnamed), (27, 1));
    assert_ne!(target.digest, all.source.digest);
    world.lock().unwrap().target.remove(&("T".to_owned(), "X#a".to_owned()));
    assert_eq!(count(false, "a").digest, all.source.digest, "whatever the cell");
    assert_eq!(count(true, "nobody").items, 0);
}
