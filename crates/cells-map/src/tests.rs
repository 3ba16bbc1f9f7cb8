//! The map against the standard library's as a model, with hashes of which bits are blanked out: so keys share shards, homes, or
//! the whole hash.

use std::collections::HashMap;

use proptest::prelude::*;

use crate::{CompactMap, MAX_KEY_BYTES, Packed};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value(u64);

impl Packed for Value {
    const BYTES: usize = 8;

    fn pack(&self, to: &mut [u8]) {
        to.copy_from_slice(&self.0.to_le_bytes());
    }

    fn unpack(from: &[u8]) -> Self {
        Self(u64::from_le_bytes(from.try_into().expect("eight bytes")))
    }
}

fn map(shards: usize, hash_mask: u64) -> CompactMap<Value> {
    CompactMap { hash_mask, ..CompactMap::with_shards(shards) }
}

/// All that `visit` shows; every key must be shown once, and by one shard.
fn visited(map: &CompactMap<Value>) -> HashMap<String, Value> {
    let mut all = HashMap::new();
    for shard in 0..map.shards() {
        map.visit(shard, |key, value| {
            assert_eq!(all.insert(key.to_owned(), value), None, "{key:?} was seen twice")
        });
    }
    all
}

/// Keys of 0 to 200 bytes and some large ones; every third with characters of two to four bytes.
fn key(n: u16) -> String {
    let text = match n % 3 {
        0 => "é世🦀",
        _ => "abcdefg",
    };
    let bytes = if n % 41 == 40 { 9000 + usize::from(n) } else { usize::from(n) % 200 };
    let padding: String = text
        .chars()
        .cycle()
        .scan(0, |sum, c| (*sum += c.len_utf8(), *sum).1.le(&bytes).then_some(c))
        .collect();
    if n < 3 { padding } else { format!("{n}{padding}") }
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u16, u64),
    Remove(u16),
    Get(u16),
    Add(u16, u64),
    /// Removes a value that is even, leaves another.
    RemoveEven(u16),
    Fill(u16, u16),
    Drain(u16, u16),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    let keys = || 0..500_u16;
    prop_oneof![
        20 => (keys(), any::<u64>()).prop_map(|(k, v)| Step::Insert(k, v)),
        20 => keys().prop_map(Step::Remove),
        5 => keys().prop_map(Step::Get),
        5 => (keys(), any::<u64>()).prop_map(|(k, v)| Step::Add(k, v)),
        5 => keys().prop_map(Step::RemoveEven),
        4 => (keys(), keys()).prop_map(|(a, b)| Step::Fill(a, b)),
        4 => (keys(), keys()).prop_map(|(a, b)| Step::Drain(a, b)),
        1 => Just(Step::Clear),
    ]
}

fn perform(map: &CompactMap<Value>, model: &mut HashMap<String, Value>, step: Step) {
    match step {
        Step::Insert(k, v) => {
            assert_eq!(map.insert(&key(k), Value(v)), model.insert(key(k), Value(v)))
        }
        Step::Remove(k) => assert_eq!(map.remove(&key(k)), model.remove(&key(k))),
        Step::Get(k) => assert_eq!(map.get(&key(k)), model.get(&key(k)).copied()),
        Step::Add(k, v) => {
            let add = |old: Option<Value>| Value(old.map_or(0, |old| old.0).wrapping_add(v));
            let old = map.update(&key(k), |old| (Some(add(old)), old));
            assert_eq!(old, model.get(&key(k)).copied());
            model.insert(key(k), add(old));
        }
        Step::RemoveEven(k) => {
            let old = map.update(&key(k), |old| (old.filter(|old| old.0 % 2 == 1), old));
            assert_eq!(old, model.get(&key(k)).copied());
            if old.is_some_and(|old| old.0.is_multiple_of(2)) {
                model.remove(&key(k));
            }
        }
        Step::Fill(a, b) => (a..b).for_each(|k| perform(map, model, Step::Insert(k, u64::from(k)))),
        Step::Drain(a, b) => (a..b).for_each(|k| perform(map, model, Step::Remove(k))),
        Step::Clear => {
            map.clear();
            model.clear();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn behaves_like_the_standard_map(
        shards in prop::sample::select(vec![1_usize, 4, 64]),
        mask in prop::sample::select(vec![u64::MAX, 0, 0x1_0000_0003, 0xf000_0000, 0xf_ffff_ffff]),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let map = map(shards, mask);
        let mut model = HashMap::new();
        for step in steps {
            perform(&map, &mut model, step);
            prop_assert_eq!(map.len(), model.len());
        }
        prop_assert_eq!(visited(&map), model.clone());
        for k in 0..500 {
            prop_assert_eq!(map.get(&key(k)), model.get(&key(k)).copied());
        }
    }
}

#[test]
fn keys_with_one_hash_are_told_apart() {
    let map = map(1, 0);
    for n in 0..300 {
        map.insert(&format!("key-{n}"), Value(n));
    }
    for n in (0..300).step_by(2) {
        assert_eq!(map.remove(&format!("key-{n}")), Some(Value(n)));
    }
    for n in 0..300 {
        assert_eq!(map.get(&format!("key-{n}")), (n % 2 == 1).then_some(Value(n)));
    }
}

#[test]
fn space_is_used_again_whatever_the_sizes() {
    let map = map(4, u64::MAX);
    let key = |n: u64, bytes: usize| format!("{n:0bytes$}");
    let mut most = 0;
    for n in 0..200_000 {
        // The sizes drift, so no removed record leaves a hole that fits a later one.
        map.insert(&key(n, 20 + n as usize / 1000), Value(n));
        if n >= 1000 {
            let old = n - 1000;
            assert_eq!(map.remove(&key(old, 20 + old as usize / 1000)), Some(Value(old)));
        }
        if n % 1000 == 0 {
            most = most.max(map.memory_bytes());
        }
    }
    let live: usize = 1000 * (220 + 10);
    assert!(most < live * 2, "{most} bytes for at most {live}");
    for n in 199_000..200_000 {
        assert_eq!(map.get(&key(n, 20 + n as usize / 1000)), Some(Value(n)));
    }
}

#[test]
fn what_is_emptied_gives_its_memory_back() {
    let map = map(16, u64::MAX);
    let empty = map.memory_bytes();
    for n in 0..100_000 {
        map.insert(&n.to_string(), Value(n));
    }
    for n in 0..99_900 {
        map.remove(&n.to_string());
    }
    assert!(map.memory_bytes() < empty + 16 * 1500, "{} bytes for 100 keys", map.memory_bytes());
    for n in 99_900..100_000 {
        assert_eq!(map.remove(&n.to_string()), Some(Value(n)));
    }
    assert_eq!(map.memory_bytes(), empty);
    map.insert("again", Value(1));
    map.clear();
    assert_eq!((map.memory_bytes(), map.len(), map.get("again")), (empty, 0, None));
}

#[test]
fn ten_thousand_keys_cost_little_and_a_few_cost_less() {
    let map = map(1024, u64::MAX);
    for n in 0..1000 {
        map.insert(&format!("customer-{n:010}"), Value(n));
    }
    assert!(map.memory_bytes() < 400_000, "{} bytes", map.memory_bytes());
    for n in 1000..300_000 {
        map.insert(&format!("customer-{n:010}"), Value(n));
    }
    // 19 bytes of key, 8 of value, 2 of length; the rest is the index and what the chunks have in reserve.
    assert!(map.memory_bytes() < 300_000 * (19 + 8 + 24), "{} bytes", map.memory_bytes());
}

#[test]
fn a_key_has_a_longest_size() {
    let map = map(4, u64::MAX);
    let (longest, longer) = ("k".repeat(MAX_KEY_BYTES), "k".repeat(MAX_KEY_BYTES + 1));
    for n in 0..10 {
        assert_eq!(map.insert(&longest, Value(n)), n.checked_sub(1).map(Value));
        assert_eq!(
            map.insert(&longest[..MAX_KEY_BYTES - 1], Value(n)),
            n.checked_sub(1).map(Value)
        );
    }
    assert_eq!(map.get(&longest), Some(Value(9)));
    assert_eq!((map.get(&longer), map.remove(&longer)), (None, None));
    let refused =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map.insert(&longer, Value(1))));
    assert!(refused.is_err());
    assert_eq!(map.remove(&longest), Some(Value(9)));
    assert_eq!((map.len(), map.get(&longest)), (1, None));
}

#[test]
fn an_update_that_panics_changes_nothing() {
    let map = map(1, u64::MAX);
    map.insert("key", Value(1));
    for key in ["key", "other"] {
        let update = || map.update(key, |_| -> (Option<Value>, ()) { panic!("of the caller's") });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(update)).is_err());
    }
    assert_eq!((map.len(), map.get("key"), map.get("other")), (1, Some(Value(1)), None));
}

#[test]
fn shards_are_a_power_of_two_and_each_map_has_its_own_secret() {
    let counts = [0, 1, 3, 1024, usize::MAX].map(|n| CompactMap::<Value>::with_shards(n).shards());
    assert_eq!(counts, [1, 1, 4, 1024, 65_536]);
    let (a, b) = (map(1, u64::MAX), map(1, u64::MAX));
    assert_ne!(a.secret, b.secret);
    assert_ne!(a.locate(b"key"), b.locate(b"key"));
    a.visit(1, |_, _| panic!("there is no such shard"));
}

#[test]
fn keys_spread_over_shards_and_hashes() {
    let map = map(16, u64::MAX);
    for n in 0..16_000 {
        map.insert(&n.to_string(), Value(n));
    }
    for shard in 0..16 {
        let mut keys = 0;
        map.visit(shard, |_, _| keys += 1);
        assert!((800..1200).contains(&keys), "{keys} of 16,000 keys in one of 16 shards");
    }
    let halves =
        (0..1000).filter(|n: &u64| map.locate(n.to_string().as_bytes()).1 > u32::MAX / 2).count();
    assert!((400..600).contains(&halves), "{halves} of 1,000 hashes in the upper half");
}
