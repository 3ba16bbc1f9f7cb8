use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::primitives::Blob;
use cells_guard::KeyType;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;

/// A number: digits that do not end with 0, and a power of ten.
type Number = (i64, i16);

/// A value as it is meant, whatever the way it is written.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    S(String),
    N(Number),
    B(Vec<u8>),
    Bool(bool),
    Null,
    Ss(BTreeSet<String>),
    Ns(BTreeSet<Number>),
    Bs(BTreeSet<Vec<u8>>),
    L(Vec<Value>),
    M(BTreeMap<String, Value>),
}

fn number() -> impl Strategy<Value = Number> {
    // Few, so that the same one is met often.
    let digits = prop_oneof![-3_i64..4, Just(11), any::<i64>()];
    (digits, prop_oneof![-2_i16..3, -130..108_i16]).prop_map(|(mut digits, mut power)| {
        while digits != 0 && digits % 10 == 0 {
            digits /= 10;
            power += 1;
        }
        (digits, if digits == 0 { 0 } else { power })
    })
}

fn value() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        "[a1]{0,2}".prop_map(Value::S),
        number().prop_map(Value::N),
        vec(0x60_u8..0x63, 0..3).prop_map(Value::B),
        any::<bool>().prop_map(Value::Bool),
        Just(Value::Null),
        btree_set("[a1]{0,2}", 1..4).prop_map(Value::Ss),
        btree_set(number(), 1..4).prop_map(Value::Ns),
        btree_set(vec(0x60_u8..0x63, 0..3), 1..4).prop_map(Value::Bs),
    ];
    scalar.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::L),
            btree_map("[ab]{1,2}", inner, 0..3).prop_map(Value::M),
        ]
    })
}

fn written_number((digits, power): Number, way: u8) -> String {
    let sign = if digits < 0 { "-" } else { "" };
    let size = digits.unsigned_abs();
    match way % 5 {
        0 => format!("{digits}E{power}"),
        1 => format!("{digits}000e{}", power - 3),
        2 => format!("{sign}0.{size:025}E+{}", i32::from(power) + 25).replace("E+-", "E-"),
        3 if (0..20).contains(&power) => format!("{digits}{}", "0".repeat(power as usize)),
        3 if digits == 0 => "-0.0".to_owned(),
        _ => format!("{sign}0{size}.000E{power}"),
    }
}

/// One of many ways to write it.
fn written(value: &Value, way: u8) -> AttributeValue {
    let turn = |mut all: Vec<AttributeValue>| {
        let by = usize::from(way) % all.len().max(1);
        all.rotate_left(by);
        if way % 2 == 1 {
            all.reverse();
        }
        all
    };
    let texts = |all: Vec<AttributeValue>| -> Vec<String> {
        turn(all)
            .into_iter()
            .map(|one| match one {
                AttributeValue::S(text) | AttributeValue::N(text) => text,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    match value {
        Value::S(text) => AttributeValue::S(text.clone()),
        Value::N(number) => AttributeValue::N(written_number(*number, way)),
        Value::B(bytes) => AttributeValue::B(Blob::new(bytes.clone())),
        Value::Bool(value) => AttributeValue::Bool(*value),
        Value::Null => AttributeValue::Null(true),
        Value::Ss(all) => {
            AttributeValue::Ss(texts(all.iter().cloned().map(AttributeValue::S).collect()))
        }
        Value::Ns(all) => {
            let number = |one: &Number| AttributeValue::N(written_number(*one, way));
            AttributeValue::Ns(texts(all.iter().map(number).collect()))
        }
        Value::Bs(all) => {
            let mut all: Vec<_> = all.iter().cloned().map(Blob::new).collect();
            if way % 2 == 1 {
                all.reverse();
            }
            AttributeValue::Bs(all)
        }
        Value::L(all) => AttributeValue::L(all.iter().map(|one| written(one, way)).collect()),
        Value::M(map) => AttributeValue::M(written_all(map, way)),
    }
}

fn written_all(map: &BTreeMap<String, Value>, way: u8) -> Item {
    map.iter().map(|(name, value)| (name.clone(), written(value, way))).collect()
}

fn table(name: &str) -> CellTable {
    CellTable {
        name: name.to_owned(),
        table_name: format!("{name}-cell-a"),
        partition_key: "PK".to_owned(),
        sort_key: Some(("SK".to_owned(), KeyType::String)),
        tenant_keys: vec!["{partition_key}".to_owned()],
        ttl_attribute: None,
    }
}

fn hash(item: &Item) -> Hash {
    item_hash(&table("T"), item, Named::Exactly("cell-a")).unwrap()
}

fn of(value: AttributeValue) -> Hash {
    hash(&HashMap::from([("a".to_owned(), value)]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However each is written.
    #[test]
    fn hashes_are_the_same_exactly_for_the_same_value(
        one in btree_map("[ab]{1,2}", value(), 0..3),
        other in btree_map("[ab]{1,2}", value(), 0..3),
        change in any::<bool>(),
        ways in any::<(u8, u8)>(),
    ) {
        let other = if change { other } else { one.clone() };
        let (a, b) = (hash(&written_all(&one, ways.0)), hash(&written_all(&other, ways.1)));
        prop_assert_eq!(a == b, one == other);
    }

    /// Small values meet often, so that unlike ones that look alike are compared.
    #[test]
    fn no_value_passes_for_another(one in value(), other in value(), ways in any::<(u8, u8)>()) {
        let (a, b) = (of(written(&one, ways.0)), of(written(&other, ways.1)));
        prop_assert_eq!(a == b, one == other);
    }
}

#[test]
fn values_that_look_alike_differ() {
    let text = |value: &str| AttributeValue::S(value.to_owned());
    let texts = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let map = |name: &str, value| AttributeValue::M(HashMap::from([(name.to_owned(), value)]));
    let values = [
        text(""),
        text("1"),
        text("1.0"),
        AttributeValue::N("1".to_owned()),
        AttributeValue::N("-1".to_owned()),
        AttributeValue::N("10".to_owned()),
        AttributeValue::N("0".to_owned()),
        AttributeValue::N("no number".to_owned()),
        AttributeValue::B(Blob::new("")),
        AttributeValue::B(Blob::new("1")),
        AttributeValue::Ss(texts(&["1"])),
        AttributeValue::Ss(texts(&["1", "2"])),
        AttributeValue::Ss(texts(&["12"])),
        AttributeValue::Ss(texts(&["", "12"])),
        AttributeValue::Ns(texts(&["1"])),
        AttributeValue::Ns(texts(&["1", "2"])),
        AttributeValue::Bs(vec![Blob::new("1")]),
        AttributeValue::Bs(vec![Blob::new("")]),
        AttributeValue::L(vec![]),
        AttributeValue::L(vec![text("1")]),
        AttributeValue::L(vec![text("1"), text("")]),
        AttributeValue::L(vec![text(""), text("1")]),
        AttributeValue::L(vec![AttributeValue::L(vec![]), AttributeValue::L(vec![])]),
        AttributeValue::L(vec![AttributeValue::L(vec![AttributeValue::L(vec![])])]),
        AttributeValue::M(HashMap::new()),
        map("1", text("1")),
        map("", text("11")),
        map("11", text("")),
        AttributeValue::Bool(true),
        AttributeValue::Bool(false),
        AttributeValue::Null(true),
    ];
    for (at, one) in values.iter().enumerate() {
        for other in values.iter().take(at) {
            assert_ne!(of(one.clone()), of(other.clone()), "{one:?} {other:?}");
        }
    }
    assert_ne!(of(AttributeValue::Null(true)), hash(&Item::new()), "null is not absent");
}

#[test]
fn numbers_of_38_digits_keep_all_of_them() {
    let number = |text: &str| of(AttributeValue::N(text.to_owned()));
    let digits = "1234567890123456789012345678901234567";
    assert_ne!(number(&format!("{digits}8")), number(&format!("{digits}9")));
    assert_ne!(number(&format!("0.{digits}8")), number(&format!("0.{digits}9")));
    assert_eq!(number("1E+2"), number("100"));
    assert_eq!(number("-0"), number("0"));
    assert_eq!(number("9.99E+125"), number("999E123"));
    let set =
        |texts: &[&str]| of(AttributeValue::Ns(texts.iter().map(|t| (*t).to_owned()).collect()));
    assert_eq!(set(&["100", "-0", "0.5"]), set(&["5E-1", "1E+2", "0.0"]));
    assert_ne!(set(&["100", "0"]), set(&["100", "1"]));
}

#[test]
fn nests_are_compared_to_their_ground() {
    let nest = |depth: usize, ground: &str, maps: bool| {
        (0..depth).fold(AttributeValue::S(ground.to_owned()), |inner, _| match maps {
            true => AttributeValue::M(HashMap::from([("n".to_owned(), inner)])),
            false => AttributeValue::L(vec![inner]),
        })
    };
    for maps in [true, false] {
        assert_eq!(of(nest(32, "a", maps)), of(nest(32, "a", maps)));
        assert_ne!(of(nest(32, "a", maps)), of(nest(32, "b", maps)));
        assert_ne!(of(nest(32, "a", maps)), of(nest(31, "a", maps)));
        let endless = HashMap::from([("a".to_owned(), nest(10_000, "a", maps))]);
        assert!(item_hash(&table("T"), &endless, Named::Any).is_err());
        // What is nested so deep is not dropped in one go on a small stack.
        std::mem::forget(endless);
    }
}

#[test]
fn the_table_and_the_cell_count() {
    let item =
        |cell: &str| HashMap::from([(CELL_ID.to_owned(), AttributeValue::S(cell.to_owned()))]);
    let exactly =
        |item: &Item, cell: &str| item_hash(&table("T"), item, Named::Exactly(cell)).unwrap();
    let any = |item: &Item| item_hash(&table("T"), item, Named::Any).unwrap();
    assert_eq!(exactly(&item("cell-a"), "cell-a"), exactly(&item("cell-b"), "cell-b"));
    assert_ne!(exactly(&item("cell-a"), "cell-b"), exactly(&item("cell-b"), "cell-b"));
    assert_eq!(any(&item("cell-z")), exactly(&item("cell-b"), "cell-b"));
    assert_ne!(any(&item("cell-b")), any(&Item::new()));
    let nested = |cell: &str| HashMap::from([("a".to_owned(), AttributeValue::M(item(cell)))]);
    assert_ne!(any(&nested("cell-a")), any(&nested("cell-b")), "only the item's own");
    let number = |n: &str| HashMap::from([(CELL_ID.to_owned(), AttributeValue::N(n.to_owned()))]);
    assert_ne!(any(&number("1")), any(&number("2")), "only text");
    let mut keyed = table("T");
    keyed.sort_key = Some((CELL_ID.to_owned(), KeyType::String));
    let of_key = |cell: &str| item_hash(&keyed, &item(cell), Named::Any).unwrap();
    assert_ne!(of_key("cell-a"), of_key("cell-b"), "not where it is part of the key");
    let other = item_hash(&table("Other"), &item("cell-a"), Named::Any).unwrap();
    assert_ne!(any(&item("cell-a")), other);
}
