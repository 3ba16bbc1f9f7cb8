//! Cells that nobody writes: what differs is told exactly, at every size of pages and with every type of sort key.

use std::collections::BTreeMap;

use cells_guard::{CellTable, KeyType};
use cells_verify::{Comparison, Item, MismatchKind, Page, Place, Side, View};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::world::*;

/// What is meant to be in a partition of each cell: keys and values.
type Meant = BTreeMap<Key, u8>;

fn key(of: KeyType) -> BoxedStrategy<Key> {
    match of {
        // With texts of which UTF-8 and UTF-16 have another order.
        KeyType::String => {
            let odd = prop_oneof![Just("\u{FF61}"), Just("\u{1F600}"), Just("é"), Just("z")];
            prop_oneof!["[ab]{1,3}".prop_map(Key::Text), odd.prop_map(|s| Key::Text(s.to_owned()))]
                .boxed()
        }
        KeyType::Number => {
            prop_oneof![-40_i64..40, -300_000_i64..300_000].prop_map(Key::Number).boxed()
        }
        KeyType::Binary => vec(prop_oneof![Just(0_u8), Just(0x7F), Just(0x80), Just(0xFF)], 1..4)
            .prop_map(Key::Bytes)
            .boxed(),
    }
}

fn meant(of: KeyType) -> impl Strategy<Value = Meant> {
    btree_map(key(of), 0_u8..3, 0..25)
}

/// Both sides, alike for the most part.
fn both(of: KeyType) -> impl Strategy<Value = (Meant, Meant)> {
    (meant(of), meant(of), vec(any::<prop::sample::Index>(), 0..4), any::<bool>()).prop_map(
        |(source, other, gone, alike)| {
            if !alike {
                return (source, other);
            }
            let mut target = source.clone();
            for gone in gone {
                if let Some(key) = target.keys().nth(gone.index(target.len().max(1))).cloned() {
                    target.remove(&key);
                }
            }
            target.extend(other.into_iter().take(2));
            (source, target)
        },
    )
}

fn types() -> impl Strategy<Value = KeyType> {
    prop_oneof![Just(KeyType::String), Just(KeyType::Number), Just(KeyType::Binary)]
}

fn differences(source: &Meant, target: &Meant) -> Vec<(Key, MismatchKind)> {
    let all: BTreeMap<_, _> = source.iter().chain(target).collect();
    let kind = |key: &Key| match (source.get(key), target.get(key)) {
        (Some(_), None) => Some(MismatchKind::Missing),
        (None, Some(_)) => Some(MismatchKind::Extra),
        (a, b) => (a != b).then_some(MismatchKind::Different),
    };
    all.into_keys().filter_map(|key| Some((key.clone(), kind(key)?))).collect()
}

fn items(meant: &Meant, partition: &str, source: bool) -> BTreeMap<Key, Item> {
    let cell = if source { "cell-a" } else { "cell-b" };
    let item =
        |(key, value): (&Key, &u8)| (key.clone(), item(partition, key, cell, *value, source));
    meant.iter().map(item).collect()
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(1_usize..9, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn it_tells_exactly_what_differs(
        (of, sides) in types().prop_flat_map(|of| (Just(of), both(of))),
        sizes in sizes(),
        limit in 1_u32..12,
    ) {
        let world = World::default();
        let at = ("T".to_owned(), "tenant".to_owned());
        {
            let mut state = world.lock().unwrap();
            state.source.insert(at.clone(), items(&sides.0, "tenant", true));
            state.target.insert(at, items(&sides.1, "tenant", false));
            state.sizes = sizes.into();
        }
        let tables = tables(vec![table("T", Some(of), &["{partition_key}"])]);
        let verifier = verifier(&world, &tables, "tenant").with_page_items(limit);
        let (all, _) = compare(&verifier);
        let found: Vec<_> =
            all.suspects.iter().map(|one| (place(&one.at).1, one.kind)).collect();
        prop_assert_eq!(found, differences(&sides.0, &sides.1));
        prop_assert_eq!(all.source.items, sides.0.len() as u64);
        prop_assert_eq!(all.target.items, sides.1.len() as u64);
        prop_assert_eq!(all.source.digest == all.target.digest, sides.0 == sides.1);
        prop_assert_eq!((all.source.misnamed, all.target.misnamed), (0, 0));
    }

    /// The pure core, which keeps the rest of a page until the other side has come as far.
    #[test]
    fn a_comparison_reads_each_item_once(
        (of, sides) in types().prop_flat_map(|of| (Just(of), both(of))),
        sizes in vec((any::<bool>(), 0_usize..5), 1..50),
    ) {
        let table = table("T", Some(of), &["{partition_key}"]);
        let view = |cell, exact| {
            Some(View { table: &table, partition: "tenant", cell, exact, now: NOW })
        };
        let mut rest = [items(&sides.0, "tenant", true), items(&sides.1, "tenant", false)];
        let from = (Place::Start, Place::Start);
        let mut comparison = Comparison::new(view("cell-a", false), view("cell-b", true), from);
        let mut found = Vec::new();
        for (source_first, size) in sizes.iter().cycle() {
            let order = [(Side::Source, 0), (Side::Target, 1)];
            let mut sides: Vec<_> = order.into_iter().filter(|(side, _)| comparison.wants(*side).is_some()).collect();
            if !source_first {
                sides.reverse();
            }
            let Some((side, number)) = sides.first() else { break };
            let page = cut(&mut rest[*number], &table, *size);
            comparison.take(*side, &page).unwrap();
            if comparison.wants(*side).is_none() {
                // One page of a side is all that it holds.
                prop_assert!(comparison.take(*side, &page).is_err());
            }
            found.extend(comparison.suspects().into_iter().map(|one| (place(&one.at).1, one.kind)));
        }
        prop_assert!(comparison.ended());
        prop_assert_eq!(found, differences(&sides.0, &sides.1));
        prop_assert_eq!(comparison.tally(Side::Target).items, sides.1.len() as u64);
    }
}

/// The first items, which are then gone.
fn cut(rest: &mut BTreeMap<Key, Item>, table: &CellTable, size: usize) -> Page {
    let keys: Vec<_> = rest.keys().take(size.max(1)).cloned().collect();
    let items: Vec<_> = keys.iter().map(|key| rest.remove(key).unwrap()).collect();
    let next = items
        .last()
        .filter(|_| !rest.is_empty())
        .map(|last| table.key_names().map(|name| (name.to_owned(), last[name].clone())).collect());
    Page { items, next }
}

/// Cells that are the same cost one read of each item, and as many steps as there are pages.
#[test]
fn pages_that_end_at_the_same_keys_are_read_once() {
    let world = World::default();
    let meant: Meant = (0..100).map(|n| (Key::Number(n), 0)).collect();
    let at = ("T".to_owned(), "tenant".to_owned());
    {
        let mut state = world.lock().unwrap();
        state.source.insert(at.clone(), items(&meant, "tenant", true));
        state.target.insert(at, items(&meant, "tenant", false));
    }
    let tables = tables(vec![table("T", Some(KeyType::Number), &["{partition_key}"])]);
    let verifier = verifier(&world, &tables, "tenant").with_page_items(10);
    let (all, steps) = compare(&verifier);
    assert_eq!((all.source.items, all.target.items, all.suspects.len()), (100, 100, 0));
    // The last page is full, so it says that there is more.
    assert_eq!((steps, world.lock().unwrap().items_read), (11, 200));
}

/// A page of the one side is a hundred times as long as one of the other, or all of a side is missing.
#[test]
fn each_step_comes_one_page_on() {
    for (source, target) in [(0..1000, 900..1000), (900..1000, 0..1000), (0..1000, 0..0)] {
        let world = World::default();
        let meant =
            |keys: std::ops::Range<i64>| keys.map(|n| (Key::Number(n), 0)).collect::<Meant>();
        let (source, target) = (meant(source), meant(target));
        let at = ("T".to_owned(), "tenant".to_owned());
        {
            let mut state = world.lock().unwrap();
            state.source.insert(at.clone(), items(&source, "tenant", true));
            state.target.insert(at, items(&target, "tenant", false));
        }
        let tables = tables(vec![table("T", Some(KeyType::Number), &["{partition_key}"])]);
        let verifier = verifier(&world, &tables, "tenant").with_page_items(10);
        let (all, steps) = compare(&verifier);
        assert_eq!(all.suspects.len(), differences(&source, &target).len());
        let pages = (source.len() + target.len()) / 10 + 2;
        assert!(steps <= pages, "{steps} steps for {pages} pages");
    }
}
