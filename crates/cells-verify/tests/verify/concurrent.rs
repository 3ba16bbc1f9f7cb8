//! Cells that are written while they are compared.

use std::collections::BTreeMap;

use cells_guard::KeyType;
use cells_verify::{Item, MismatchKind};
use futures::executor::block_on;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use crate::world::*;

fn at() -> Partition {
    ("T".to_owned(), "tenant".to_owned())
}

fn of_cell(source: bool, key: i64, value: u8) -> Item {
    let cell = if source { "cell-a" } else { "cell-b" };
    item("tenant", &Key::Number(key), cell, value, source)
}

fn kind(state: &State, key: &Key) -> Option<MismatchKind> {
    let value = |items: &Items| {
        items.get(&at()).and_then(|items| items.get(key)).map(|item| item["V"].clone())
    };
    match (value(&state.source), value(&state.target)) {
        (Some(_), None) => Some(MismatchKind::Missing),
        (None, Some(_)) => Some(MismatchKind::Extra),
        (a, b) => (a != b).then_some(MismatchKind::Different),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_nobody_writes_is_told_exactly_and_the_rest_is_settled_by_a_recheck(
        source in btree_map(0_i64..50, 0_u8..2, 0..40),
        target in btree_map(0_i64..50, 0_u8..2, 0..40),
        hot in btree_set(0_i64..50, 1..20),
        writes in vec((any::<bool>(), any::<prop::sample::Index>(), prop::option::of(0_u8..2)), 0..60),
        changes_a_read in 0_usize..4,
        sizes in vec(1_usize..7, 0..40),
        limit in 1_u32..9,
    ) {
        let world = World::default();
        {
            let mut state = world.lock().unwrap();
            for (is_source, meant) in [(true, &source), (false, &target)] {
                let items: BTreeMap<_, _> = meant
                    .iter()
                    .map(|(key, value)| (Key::Number(*key), of_cell(is_source, *key, *value)))
                    .collect();
                state.cell(is_source).insert(at(), items);
            }
            state.changes = writes
                .iter()
                .map(|(source, key, value)| {
                    let key = *hot.iter().nth(key.index(hot.len())).unwrap();
                    let item = value.map(|value| of_cell(*source, key, value));
                    Change { source: *source, at: at(), key: Key::Number(key), item }
                })
                .collect();
            state.changes_a_read = changes_a_read;
            state.sizes = sizes.into();
        }
        let tables = tables(vec![table("T", Some(KeyType::Number), &["{partition_key}"])]);
        let verifier = verifier(&world, &tables, "tenant").with_page_items(limit);
        let (all, _) = compare(&verifier);
        let touched: Vec<_> = all.suspects.iter().map(|suspect| suspect.at.clone()).collect();
        // Then nobody writes: the log is drained.
        let persisting: BTreeMap<_, _> = {
            let mut state = world.lock().unwrap();
            state.changes.clear();
            let keys = (0..50).map(Key::Number);
            keys.filter_map(|key| kind(&state, &key).map(|kind| (key, kind))).collect()
        };
        let suspects: BTreeMap<_, _> =
            all.suspects.iter().map(|one| (place(&one.at).1, one.kind)).collect();
        for key in (0..50).filter(|key| !hot.contains(key)).map(Key::Number) {
            prop_assert_eq!(suspects.get(&key), persisting.get(&key), "{:?}", key);
            let times = all.suspects.iter().filter(|one| place(&one.at).1 == key).count();
            prop_assert!(times <= 1, "{:?}", key);
        }
        let rechecked = block_on(verifier.recheck(&touched, NOW)).unwrap();
        let found: BTreeMap<_, _> =
            rechecked.differing.iter().map(|one| (place(&one.at).1, one.kind)).collect();
        let expected: BTreeMap<_, _> =
            persisting.into_iter().filter(|(key, _)| suspects.contains_key(key)).collect();
        prop_assert_eq!(&found, &expected);
        for one in &rechecked.differing {
            let state = world.lock().unwrap();
            prop_assert_eq!(one.source.as_ref(), state.source[&at()].get(&place(&one.at).1));
        }
    }
}
