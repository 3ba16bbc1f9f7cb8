//! A digest of a table's items that does not depend on their order, nor on that of a set's elements, nor on how a number is written.
//!
//! Each item is written in one canonical way and hashed with SHA-256; the table's digest is the sum of the hashes modulo 2^256. (Source:
//! M. Bellare and D. Micciancio, "A New Paradigm for Collision-Free Hashing", 1997, AdHash.) It finds accidents, not forgers.

use aws_sdk_dynamodb::types::AttributeValue;
use sha2::{Digest, Sha256};

use crate::cells::data::Item;

pub type Hash = [u8; 32];

/// How many items, and the sum of their hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub items: u64,
    sum: Hash,
}

impl Tally {
    pub fn add(&mut self, hash: &Hash) {
        self.items += 1;
        let mut carry = 0_u16;
        // The last byte is the lowest.
        for (sum, byte) in self.sum.iter_mut().zip(hash).rev() {
            let total = u16::from(*sum) + u16::from(*byte) + carry;
            *sum = total.to_be_bytes()[1];
            carry = total >> 8;
        }
    }

    pub fn hex(&self) -> String {
        self.sum.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

pub fn of_item(item: &Item) -> Hash {
    let mut out = Vec::new();
    map(item.iter(), &mut out);
    Sha256::digest(out).into()
}

/// Of these attributes of an item alone.
pub fn of_key(item: &Item, key: &[String]) -> Hash {
    let mut out = Vec::new();
    map(key.iter().filter_map(|name| item.get_key_value(name)), &mut out);
    Sha256::digest(out).into()
}

/// Lengths come first, so that no two values are written the same.
fn bytes(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((bytes.len() as u64).to_be_bytes());
    out.extend(bytes);
}

fn many(tag: u8, elements: &[Vec<u8>], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend((elements.len() as u64).to_be_bytes());
    for element in elements {
        bytes(b'.', element, out);
    }
}

fn map<'a>(attributes: impl Iterator<Item = (&'a String, &'a AttributeValue)>, out: &mut Vec<u8>) {
    let mut attributes: Vec<_> = attributes.collect();
    attributes.sort_by_key(|(name, _)| *name);
    out.push(b'M');
    out.extend((attributes.len() as u64).to_be_bytes());
    for (name, attribute) in attributes {
        bytes(b'.', name.as_bytes(), out);
        value(attribute, out);
    }
}

fn set(tag: u8, elements: impl Iterator<Item = Vec<u8>>, out: &mut Vec<u8>) {
    let mut elements: Vec<_> = elements.collect();
    elements.sort();
    many(tag, &elements, out);
}

fn value(attribute: &AttributeValue, out: &mut Vec<u8>) {
    match attribute {
        AttributeValue::S(text) => bytes(b'S', text.as_bytes(), out),
        AttributeValue::N(text) => bytes(b'N', number(text).as_bytes(), out),
        AttributeValue::B(blob) => bytes(b'B', blob.as_ref(), out),
        AttributeValue::Bool(true) => out.push(b't'),
        AttributeValue::Bool(false) => out.push(b'f'),
        AttributeValue::Null(_) => out.push(b'0'),
        AttributeValue::Ss(texts) => {
            set(b'1', texts.iter().map(|text| text.clone().into_bytes()), out);
        }
        AttributeValue::Ns(texts) => {
            set(b'2', texts.iter().map(|text| number(text).into_bytes()), out);
        }
        AttributeValue::Bs(blobs) => {
            set(b'3', blobs.iter().map(|blob| blob.as_ref().to_vec()), out);
        }
        AttributeValue::L(values) => {
            let element = |one: &AttributeValue| {
                let mut out = Vec::new();
                value(one, &mut out);
                out
            };
            many(b'L', &values.iter().map(element).collect::<Vec<_>>(), out);
        }
        AttributeValue::M(attributes) => map(attributes.iter(), out),
        // A type that DynamoDB does not have today: told apart by how the SDK shows it.
        other => bytes(b'?', format!("{other:?}").as_bytes(), out),
    }
}

/// One text for each number: `-` if it is below 0, digits without zeros at either end, `e` and the power of ten. What is no number stays
/// as it is.
fn number(text: &str) -> String {
    normal(text).unwrap_or_else(|| text.to_owned())
}

fn normal(text: &str) -> Option<String> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (rest, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    let short = significant.trim_end_matches('0');
    if short.is_empty() {
        return Some("0".to_owned());
    }
    let dropped = i64::try_from(significant.len() - short.len()).ok()?;
    let power = exponent.checked_add(dropped)?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    Some(format!("{sign}{short}e{power}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use aws_sdk_dynamodb::primitives::Blob;
    use proptest::collection::{btree_set, hash_map, vec};
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn scalar() -> impl Strategy<Value = AttributeValue> {
        prop_oneof![
            "[a-z]{0,6}".prop_map(AttributeValue::S),
            any::<i32>().prop_map(|n| AttributeValue::N(n.to_string())),
            vec(any::<u8>(), 0..6).prop_map(|bytes| AttributeValue::B(Blob::new(bytes))),
            any::<bool>().prop_map(AttributeValue::Bool),
            Just(AttributeValue::Null(true)),
            btree_set("[a-z]{1,4}", 1..5)
                .prop_map(|set| AttributeValue::Ss(set.into_iter().collect())),
            btree_set(any::<i16>(), 1..5)
                .prop_map(|set| AttributeValue::Ns(set.iter().map(ToString::to_string).collect())),
            btree_set(vec(any::<u8>(), 1..4), 1..5)
                .prop_map(|set| AttributeValue::Bs(set.into_iter().map(Blob::new).collect())),
        ]
    }

    fn attribute() -> impl Strategy<Value = AttributeValue> {
        scalar().prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(AttributeValue::L),
                hash_map("[a-z]{1,3}", inner, 0..4).prop_map(AttributeValue::M),
            ]
        })
    }

    fn item() -> impl Strategy<Value = Item> {
        hash_map("[a-z]{1,3}", attribute(), 1..6)
    }

    /// The same value, written otherwise: sets turned round, numbers with zeros and powers.
    fn rewritten(value: &AttributeValue) -> AttributeValue {
        let number = |text: &String| match text.strip_prefix('-') {
            Some(digits) => format!("-00{digits}.00"),
            None => format!("{text}000e-3"),
        };
        match value {
            AttributeValue::N(text) => AttributeValue::N(number(text)),
            AttributeValue::Ns(texts) => {
                AttributeValue::Ns(texts.iter().rev().map(number).collect())
            }
            AttributeValue::Ss(texts) => AttributeValue::Ss(texts.iter().rev().cloned().collect()),
            AttributeValue::Bs(blobs) => AttributeValue::Bs(blobs.iter().rev().cloned().collect()),
            AttributeValue::L(values) => AttributeValue::L(values.iter().map(rewritten).collect()),
            AttributeValue::M(map) => AttributeValue::M(rewritten_all(map)),
            other => other.clone(),
        }
    }

    fn rewritten_all(item: &Item) -> Item {
        item.iter().map(|(name, value)| (name.clone(), rewritten(value))).collect()
    }

    fn tally<'a>(items: impl IntoIterator<Item = &'a Item>) -> Tally {
        let mut tally = Tally::default();
        items.into_iter().for_each(|item| tally.add(&of_item(item)));
        tally
    }

    proptest! {
        #[test]
        fn order_and_notation_do_not_matter(items in vec(item(), 0..12), by in any::<Index>()) {
            let mut turned: Vec<_> = items.iter().map(rewritten_all).collect();
            if !turned.is_empty() {
                let by = by.index(turned.len());
                turned.rotate_left(by);
                turned.reverse();
            }
            prop_assert_eq!(tally(&items), tally(&turned));
        }

        #[test]
        fn any_attribute_that_differs_shows(item in item(), name in any::<Index>(), new in attribute()) {
            let name = item.keys().nth(name.index(item.len())).unwrap().clone();
            let mut changed = item.clone();
            changed.insert(name.clone(), new.clone());
            prop_assert_eq!(of_item(&item) == of_item(&changed), item[&name] == new);
            let mut less = item.clone();
            less.remove(&name);
            prop_assert_ne!(of_item(&item), of_item(&less));
            let mut renamed = less;
            renamed.insert(format!("{name}x"), item[&name].clone());
            prop_assert_ne!(of_item(&item), of_item(&renamed));
        }

        #[test]
        fn a_number_is_its_value(digits in 1..1_000_000_i64, zeros in 0_u32..6, negative in any::<bool>()) {
            let sign = if negative { "-" } else { "" };
            let plain = format!("{sign}{digits}");
            let moved = format!("{sign}0{digits}{}.0e-{zeros}", "0".repeat(zeros as usize));
            prop_assert_eq!(number(&plain), number(&moved));
            let other = format!("{sign}{}", digits + 1);
            prop_assert_ne!(number(&plain), number(&other));
        }
    }

    #[test]
    fn numbers_that_are_the_same_are_written_the_same() {
        for same in [
            &["1", "1.0", "01", "+1", "10e-1", "0.1E1", "1e0"][..],
            &["0", "-0", "0.00", "0e7"],
            &["-12.50", "-1250e-2", "-0.125e2"],
            &["1e125", "10e124"],
        ] {
            for one in same {
                assert_eq!(number(one), number(same[0]), "{one}");
            }
        }
        assert_ne!(number("1"), number("-1"));
        assert_ne!(number("1"), number("10"));
        for none in ["", "-", ".", "1e", "NaN", "1e99999999999999999999", "0x1"] {
            assert_eq!(number(none), none);
        }
    }

    /// What a careless encoding would take for the same.
    #[test]
    fn values_of_different_types_differ() {
        let text = |value: &str| AttributeValue::S(value.to_owned());
        let texts = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let values = [
            text("1"),
            AttributeValue::N("1".to_owned()),
            AttributeValue::B(Blob::new("1")),
            AttributeValue::Ss(texts(&["1"])),
            AttributeValue::Ns(texts(&["1"])),
            AttributeValue::Bs(vec![Blob::new("1")]),
            AttributeValue::L(vec![text("1")]),
            AttributeValue::L(vec![text("1"), text("")]),
            AttributeValue::L(vec![text(""), text("1")]),
            AttributeValue::Ss(texts(&["1", "2"])),
            AttributeValue::Ss(texts(&["12"])),
            AttributeValue::M(HashMap::from([("1".to_owned(), text("1"))])),
            AttributeValue::Bool(true),
            AttributeValue::Bool(false),
            AttributeValue::Null(true),
        ];
        let of =
            |value: &AttributeValue| of_item(&HashMap::from([("a".to_owned(), value.clone())]));
        for (at, one) in values.iter().enumerate() {
            for other in &values[..at] {
                assert_ne!(of(one), of(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn the_sum_carries_and_wraps() {
        let (mut tally, mut one) = (Tally::default(), [0; 32]);
        one[31] = 1;
        tally.add(&[0xff; 32]);
        tally.add(&one);
        assert_eq!((tally.items, tally.hex()), (2, "0".repeat(64)));
        let mut carried = Tally::default();
        let mut low = [0; 32];
        low[31] = 0xff;
        carried.add(&low);
        carried.add(&one);
        assert!(carried.hex().ends_with("0100"));
    }
}
