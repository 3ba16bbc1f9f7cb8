//! The comparison of a restored table with the one that it is of, page by page. Pure: who reads the pages is told which comes next.
//!
//! The first pass counts and digests both tables. As long as the restored one has no more than [`MAX_KEYS`] items, their hashes are kept by
//! their keys', and what differs is counted in the same pass. A larger one is read again where the digests differ, as often as it takes to
//! look at no more than that many keys at a time, at most [`MAX_PASSES`] times. Nothing of an item but hashes is kept.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::digest::{Tally, of_item, of_key};
use crate::cells::cloud::Page;
use crate::cells::data::Item;
use crate::domain::Timestamp;

/// Keys that are held at the same time, 32 bytes each: with a hash table's own needs at most 80 MB.
pub const MAX_KEYS: usize = 1_000_000;

/// How often both tables are read again at most.
pub const MAX_PASSES: u64 = 32;

/// A part of a hash. Two of a million keys share theirs with a probability below 10^-26.
type Short = [u8; 16];

/// What a table holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallied {
    pub items: u64,
    /// In hexadecimal.
    pub digest: String,
}

impl From<Tally> for Tallied {
    fn from(tally: Tally) -> Self {
        Self { items: tally.items, digest: tally.hex() }
    }
}

/// How many items differ, by their keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// In the cell's table alone.
    pub missing: u64,
    /// In the restored table alone.
    pub extra: u64,
    /// In both, and not the same.
    pub differing: u64,
}

/// What a comparison showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub matched: bool,
    pub source: Tallied,
    pub restored: Tallied,
    /// `None`: the same, or too large to be counted.
    pub differences: Option<Differences>,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Restored,
    Source,
}

/// A comparison under way.
pub struct Comparison {
    /// The names of the key's attributes.
    key: Vec<String>,
    max_keys: usize,
    side: Option<Side>,
    from: Option<Item>,
    /// Of the first pass.
    restored: Tally,
    source: Tally,
    /// Of the keys that this pass is about, the restored items that the source has not shown yet; `None`: there are too many.
    open: Option<HashMap<Short, Short>>,
    differences: Differences,
    /// 0: the first one, over all keys.
    pass: u64,
    passes: u64,
}

impl Comparison {
    pub fn new(key: Vec<String>) -> Self {
        Self::with_room(key, MAX_KEYS)
    }

    fn with_room(key: Vec<String>, max_keys: usize) -> Self {
        Self {
            key,
            max_keys,
            side: Some(Side::Restored),
            from: None,
            restored: Tally::default(),
            source: Tally::default(),
            open: Some(HashMap::new()),
            differences: Differences::default(),
            pass: 0,
            passes: 0,
        }
    }

    /// Which page comes next: of which table, and after which key. `None`: there is nothing more to read.
    pub fn next(&self) -> Option<(Side, Option<&Item>)> {
        self.side.map(|side| (side, self.from.as_ref()))
    }

    /// Takes the page that was asked for.
    pub fn take(&mut self, page: Page) {
        let Some(side) = self.side else { return };
        for item in &page.items {
            self.item(side, item);
        }
        self.from = page.next;
        if self.from.is_none() {
            self.side = match side {
                Side::Restored => Some(Side::Source),
                Side::Source => self.end_of_pass(),
            };
        }
    }

    fn item(&mut self, side: Side, item: &Item) {
        let (hash, key) = (of_item(item), short(&of_key(item, &self.key)));
        if self.pass == 0 {
            match side {
                Side::Restored => self.restored.add(&hash),
                Side::Source => self.source.add(&hash),
            }
        } else if bucket(&key, self.passes) != self.pass - 1 {
            return;
        }
        let Some(open) = &mut self.open else { return };
        match side {
            Side::Restored if open.len() >= self.max_keys => self.open = None,
            Side::Restored => {
                open.insert(key, short(&hash));
            }
            Side::Source => match open.remove(&key) {
                None => self.differences.missing += 1,
                Some(restored) if restored != short(&hash) => self.differences.differing += 1,
                Some(_) => {}
            },
        }
    }

    /// What is read next: nothing, or all of it again for the next part of the keys.
    fn end_of_pass(&mut self) -> Option<Side> {
        let first = self.pass == 0;
        match &self.open {
            // Keys that were not all looked at have no differences to tell.
            None if !first => return None,
            None => {}
            Some(open) => self.differences.extra += open.len() as u64,
        }
        if first {
            if self.matched() || self.open.is_some() {
                return None;
            }
            self.differences = Differences::default();
            // Half full on average, for the parts are not of one size.
            let part = (self.max_keys as u64 / 2).max(1);
            self.passes = self.restored.items.div_ceil(part);
            if self.passes > MAX_PASSES {
                return None;
            }
        }
        if self.pass == self.passes {
            return None;
        }
        self.pass += 1;
        self.open = Some(HashMap::new());
        Some(Side::Restored)
    }

    fn matched(&self) -> bool {
        self.restored == self.source
    }

    /// What it showed, once nothing more is to be read.
    pub fn result(&self, now: Timestamp) -> Option<Compared> {
        if self.side.is_some() {
            return None;
        }
        let matched = self.matched();
        let counted = !matched && self.open.is_some();
        Some(Compared {
            matched,
            source: self.source.into(),
            restored: self.restored.into(),
            differences: counted.then_some(self.differences),
            at: now,
        })
    }
}

fn short(hash: &[u8; 32]) -> Short {
    let mut short = [0; 16];
    short.copy_from_slice(hash.split_at(16).0);
    short
}

/// Which part of so many a key belongs to.
fn bucket(key: &Short, parts: u64) -> u64 {
    u64::try_from(u128::from_be_bytes(*key) % u128::from(parts.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws_sdk_dynamodb::types::AttributeValue;
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    type Table = BTreeMap<u16, u8>;

    fn item(key: u16, value: u8) -> Item {
        let number = |n: u16| AttributeValue::N(n.to_string());
        [("K".to_owned(), number(key)), ("V".to_owned(), number(value.into()))].into()
    }

    /// A page of a table, after a key.
    fn page(table: &Table, from: Option<&Item>, size: usize) -> Page {
        let after = from.map(|key| match &key["K"] {
            AttributeValue::N(n) => n.parse::<u16>().unwrap(),
            other => panic!("{other:?}"),
        });
        let rest: Vec<_> =
            table.iter().filter(|(key, _)| after.is_none_or(|after| **key > after)).collect();
        let items: Vec<_> =
            rest.iter().take(size).map(|(key, value)| item(**key, **value)).collect();
        let next = (rest.len() > size).then(|| {
            let last = items.last().unwrap()["K"].clone();
            [("K".to_owned(), last)].into()
        });
        Page { items, next }
    }

    /// The result, and how many pages it took.
    fn compare(source: &Table, restored: &Table, room: usize) -> (Compared, usize) {
        let mut comparison = Comparison::with_room(vec!["K".to_owned()], room);
        let mut pages = 0;
        while let Some((side, from)) = comparison.next() {
            let table = if side == Side::Source { source } else { restored };
            let page = page(table, from, 3);
            comparison.take(page);
            pages += 1;
            assert!(pages < 10_000, "it never ends");
        }
        (comparison.result(Timestamp::from_millis(0).unwrap()).unwrap(), pages)
    }

    fn expected(source: &Table, restored: &Table) -> Differences {
        let only = |a: &Table, b: &Table| a.keys().filter(|key| !b.contains_key(key)).count();
        let both = |(key, value): &(&u16, &u8)| restored.get(key).is_some_and(|v| v != *value);
        Differences {
            missing: only(source, restored) as u64,
            extra: only(restored, source) as u64,
            differing: source.iter().filter(both).count() as u64,
        }
    }

    proptest! {
        /// However little room there is.
        #[test]
        fn every_difference_is_counted_once(
            source in btree_map(0_u16..60, 0_u8..3, 0..40),
            restored in btree_map(0_u16..60, 0_u8..3, 0..40),
            room in 12_usize..50,
        ) {
            let (result, _) = compare(&source, &restored, room);
            prop_assert_eq!(result.matched, source == restored);
            prop_assert_eq!(result.source.items, source.len() as u64);
            prop_assert_eq!(result.restored.items, restored.len() as u64);
            if source == restored {
                prop_assert_eq!(result.differences, None);
            } else if let Some(differences) = result.differences {
                prop_assert_eq!(differences, expected(&source, &restored));
            } else {
                // Parts are of chance size: with so few keys one may be too large.
                prop_assert!(restored.len() > room);
            }
        }
    }

    #[test]
    fn what_is_too_large_is_compared_in_parts_and_what_is_far_too_large_by_digest_alone() {
        let restored: Table = (0..400).map(|key| (key, 0)).collect();
        let mut source = restored.clone();
        source.remove(&7);
        source.insert(8, 1);
        source.insert(1000, 0);
        let exact = Some(Differences { missing: 1, extra: 1, differing: 1 });
        let (at_once, few) = compare(&source, &restored, 400);
        let (in_parts, many) = compare(&source, &restored, 100);
        assert_eq!((at_once.differences, in_parts.differences), (exact, exact));
        assert_eq!(many, few * 9, "once to digest, and eight times for an eighth of the keys");
        let (too_large, once) = compare(&source, &restored, 20);
        assert_eq!((too_large.matched, too_large.differences, once), (false, None, few));
        assert!(compare(&restored, &restored, 20).0.matched);
    }
}
