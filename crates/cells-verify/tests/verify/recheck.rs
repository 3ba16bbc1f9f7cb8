//! Suspects, and keys that a log names, are read again.

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::{KeyType, Touched};
use cells_verify::{Item, MismatchKind};
use futures::executor::block_on;

use crate::world::*;

fn touched(table: &str, key: Item) -> Touched {
    Touched { table: table.to_owned(), key }
}

fn key(partition: &str, n: i64) -> Item {
    let mut key = item(partition, &Key::Number(n), "", 0, n % 2 == 0);
    key.retain(|name, _| name == "PK" || name == "SK");
    key
}

fn put(world: &World, source: bool, n: i64, value: u8) {
    let (partition, key) = ("tenant".to_owned(), Key::Number(n));
    let cell = if source { "cell-a" } else { "cell-b" };
    let item = Some(item(&partition, &key, cell, value, source));
    let at = ("T".to_owned(), partition);
    world.lock().unwrap().change(Change { source, at, key, item });
}

#[test]
fn what_differs_still_comes_with_the_sources_item() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::Number), &["{partition_key}"])]);
    for n in 0..100 {
        put(&world, true, n, 1);
        put(&world, false, n, 1);
    }
    put(&world, true, 7, 2);
    put(&world, false, 200, 1);
    put(&world, true, 300, 1);
    let verifier = verifier(&world, &of, "tenant");
    // Twice each, in another order than theirs.
    let keys: Vec<_> =
        (0..400).rev().chain(0..400).map(|n| touched("T", key("tenant", n))).collect();
    let rechecked = block_on(verifier.recheck(&keys, NOW)).unwrap();
    assert_eq!((rechecked.checked, rechecked.foreign), (400, 0));
    let found: Vec<_> =
        rechecked.differing.iter().map(|one| (place(&one.at).1, one.kind)).collect();
    use MismatchKind::{Different, Extra, Missing};
    let number = Key::Number;
    assert_eq!(found, [(number(7), Different), (number(200), Extra), (number(300), Missing)]);
    let sources: Vec<_> = rechecked.differing.iter().map(|one| one.source.clone()).collect();
    let at = |n| Some(item("tenant", &number(n), "cell-a", if n == 7 { 2 } else { 1 }, true));
    assert_eq!(sources, [at(7), None, at(300)]);
    assert_eq!(world.lock().unwrap().read.len(), 800, "each key once at each side");
}

/// A log record is an application's: it may name anything.
#[test]
fn keys_of_nobody_or_of_somebody_else_are_not_read() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::Number), &["C#{partition_key}"])]);
    let number = |name: &str| (name.to_owned(), AttributeValue::N("1".to_owned()));
    let text = |name: &str, text: &str| (name.to_owned(), AttributeValue::S(text.to_owned()));
    let verifier = verifier(&world, &of, "a");
    let foreign = [
        touched("T", key("C#b", 1)),
        touched("T", key("C#a#1", 1)),
        touched("T", key("a", 1)),
        touched("Other", key("C#a", 1)),
        touched("T-of-some-cell", key("C#a", 1)),
        touched("T", Item::new()),
        touched("T", [text("PK", "C#a")].into()),
        touched("T", [text("PK", "C#a"), text("SK", "1")].into()),
        touched("T", [text("PK", "C#a"), number("SK"), number("V")].into()),
        touched("T", [text("PK", "\u{1}guard#0#a"), text("SK", "\u{1}")].into()),
    ];
    let rechecked = block_on(verifier.recheck(&foreign, NOW)).unwrap();
    assert_eq!((rechecked.checked, rechecked.foreign), (0, foreign.len() as u64));
    assert_eq!(world.lock().unwrap().read, []);
}

#[test]
fn a_source_item_that_has_expired_is_none() {
    let world = World::default();
    let of = tables(vec![table("T", Some(KeyType::Number), &["{partition_key}"])]);
    put(&world, true, 1, 1);
    put(&world, false, 1, 1);
    let at = ("T".to_owned(), "tenant".to_owned());
    let expires = AttributeValue::N(NOW.to_string());
    let insert = |state: &mut State| {
        let items = state.source.get_mut(&at).unwrap();
        items.get_mut(&Key::Number(1)).unwrap().insert("TTL".to_owned(), expires);
    };
    insert(&mut world.lock().unwrap());
    let keys = [touched("T", key("tenant", 1))];
    let rechecked = block_on(verifier(&world, &of, "tenant").recheck(&keys, NOW)).unwrap();
    let found: Vec<_> = rechecked.differing.into_iter().map(|one| (one.kind, one.source)).collect();
    assert_eq!(found, [(MismatchKind::Extra, None)]);
}
