//! DynamoDB's typed JSON: `{"S": "text"}`, `{"N": "1.5"}`, `{"B": "<base64>"}`, and so on, as a protobuf Struct.
//!
//! Source: the DynamoDB developer guide, "Data type descriptors". Numbers travel as text, so none is rounded.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::Item;

/// DynamoDB's own limit on nesting.
const MAX_DEPTH: usize = 32;

/// What is wrong with a value, and where: `item.Total`.
pub type Wrong = (String, &'static str);

/// An item of typed JSON.
///
/// # Errors
/// Names the attribute that is not typed JSON.
pub fn item(field: &str, json: Struct) -> Result<Item, Wrong> {
    let read = |(name, value): (String, Value)| {
        let value = attribute(&format!("{field}.{name}"), value, 0)?;
        Ok((name, value))
    };
    json.fields.into_iter().map(read).collect()
}

/// Typed JSON of an item.
pub fn message(item: &Item) -> Struct {
    let fields: BTreeMap<_, _> =
        item.iter().map(|(name, value)| (name.clone(), write(value))).collect();
    Struct { fields }
}

fn attribute(at: &str, value: Value, depth: usize) -> Result<AttributeValue, Wrong> {
    let wrong = |problem| (at.to_owned(), problem);
    if depth > MAX_DEPTH {
        return Err(wrong("is nested deeper than 32 levels"));
    }
    let shape =
        "is not of the form {\"S\": \"text\"}, with one of S, N, B, BOOL, NULL, SS, NS, BS, L, M";
    let Some(Kind::StructValue(typed)) = value.kind else { return Err(wrong(shape)) };
    let mut fields = typed.fields.into_iter();
    let (Some((name, value)), None) = (fields.next(), fields.next()) else {
        return Err(wrong(shape));
    };
    Ok(match (name.as_str(), value.kind) {
        ("S", Some(Kind::StringValue(text))) => AttributeValue::S(text),
        ("N", Some(Kind::StringValue(number))) => AttributeValue::N(number),
        ("B", Some(Kind::StringValue(bytes))) => AttributeValue::B(blob(at, &bytes)?),
        ("BOOL", Some(Kind::BoolValue(value))) => AttributeValue::Bool(value),
        ("NULL", Some(Kind::BoolValue(value))) => AttributeValue::Null(value),
        ("SS", Some(Kind::ListValue(list))) => AttributeValue::Ss(texts(at, list)?),
        ("NS", Some(Kind::ListValue(list))) => AttributeValue::Ns(texts(at, list)?),
        ("BS", Some(Kind::ListValue(list))) => {
            let blobs = texts(at, list)?.into_iter().map(|bytes| blob(at, &bytes));
            AttributeValue::Bs(blobs.collect::<Result<_, _>>()?)
        }
        ("L", Some(Kind::ListValue(list))) => {
            let values = list.values.into_iter().enumerate();
            let values =
                values.map(|(n, value)| attribute(&format!("{at}[{n}]"), value, depth + 1));
            AttributeValue::L(values.collect::<Result<_, _>>()?)
        }
        ("M", Some(Kind::StructValue(map))) => {
            let values = map.fields.into_iter().map(|(name, value)| {
                let value = attribute(&format!("{at}.{name}"), value, depth + 1)?;
                Ok((name, value))
            });
            AttributeValue::M(values.collect::<Result<_, _>>()?)
        }
        _ => return Err(wrong(shape)),
    })
}

fn texts(at: &str, list: ListValue) -> Result<Vec<String>, Wrong> {
    let text = |value: Value| match value.kind {
        Some(Kind::StringValue(text)) => Ok(text),
        _ => Err((at.to_owned(), "is a set that holds something else than strings")),
    };
    list.values.into_iter().map(text).collect()
}

fn blob(at: &str, bytes: &str) -> Result<Blob, Wrong> {
    let bytes = STANDARD.decode(bytes);
    bytes.map(Blob::new).map_err(|_| (at.to_owned(), "is not base64"))
}

fn write(value: &AttributeValue) -> Value {
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let base64 = |blob: &Blob| Kind::StringValue(STANDARD.encode(blob.as_ref()));
    let list = |kinds: Vec<Kind>| {
        let values = kinds.into_iter().map(|kind| Value { kind: Some(kind) }).collect();
        Kind::ListValue(ListValue { values })
    };
    let (name, kind) = match value {
        AttributeValue::S(value) => ("S", text(value)),
        AttributeValue::N(value) => ("N", text(value)),
        AttributeValue::B(value) => ("B", base64(value)),
        AttributeValue::Bool(value) => ("BOOL", Kind::BoolValue(*value)),
        AttributeValue::Ss(values) => {
            ("SS", list(values.iter().map(|value| text(value)).collect()))
        }
        AttributeValue::Ns(values) => {
            ("NS", list(values.iter().map(|value| text(value)).collect()))
        }
        AttributeValue::Bs(values) => ("BS", list(values.iter().map(base64).collect())),
        AttributeValue::L(values) => {
            let values = values.iter().map(write).collect();
            ("L", Kind::ListValue(ListValue { values }))
        }
        AttributeValue::M(map) => ("M", Kind::StructValue(message(map))),
        AttributeValue::Null(value) => ("NULL", Kind::BoolValue(*value)),
        // A type that DynamoDB does not have today.
        _ => ("NULL", Kind::BoolValue(true)),
    };
    let fields = [(name.to_owned(), Value { kind: Some(kind) })].into();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{hash_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = AttributeValue> {
        let number = "-?[1-9][0-9]{0,37}(\\.[0-9]{1,9})?";
        let blob = || vec(any::<u8>(), 0..20).prop_map(Blob::new);
        let leaf = prop_oneof![
            "\\PC{0,20}".prop_map(AttributeValue::S),
            number.prop_map(AttributeValue::N),
            blob().prop_map(AttributeValue::B),
            any::<bool>().prop_map(AttributeValue::Bool),
            Just(AttributeValue::Null(true)),
            vec("[a-z]{0,5}", 1..4).prop_map(AttributeValue::Ss),
            vec(number, 1..4).prop_map(AttributeValue::Ns),
            vec(blob(), 1..4).prop_map(AttributeValue::Bs),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(AttributeValue::L),
                hash_map("\\PC{1,6}", inner, 0..4).prop_map(AttributeValue::M),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_item_survives_its_json(item in hash_map("\\PC{1,8}", value(), 0..6)) {
            prop_assert_eq!(super::item("item", message(&item)).unwrap(), item);
        }
    }

    #[test]
    fn what_is_no_typed_json_is_named() {
        let typed = |name: &str, kind| Value {
            kind: Some(Kind::StructValue(Struct {
                fields: [(name.to_owned(), Value { kind: Some(kind) })].into(),
            })),
        };
        for (bad, problem) in [
            (Value { kind: Some(Kind::StringValue("plain".into())) }, "not of the form"),
            (typed("X", Kind::StringValue("a".into())), "not of the form"),
            (typed("N", Kind::NumberValue(1.0)), "not of the form"),
            (typed("B", Kind::StringValue("é".into())), "base64"),
            (
                typed("SS", Kind::ListValue(ListValue { values: vec![Value { kind: None }] })),
                "strings",
            ),
        ] {
            let json = Struct { fields: [("A".to_owned(), bad)].into() };
            let (at, why) = item("item", json).unwrap_err();
            assert!(at == "item.A" && why.contains(problem), "{at} {why}");
        }
        let mut deep = typed("S", Kind::StringValue("x".into()));
        for _ in 0..40 {
            deep = typed("L", Kind::ListValue(ListValue { values: vec![deep] }));
        }
        let json = Struct { fields: [("A".to_owned(), deep)].into() };
        assert!(item("item", json).unwrap_err().1.contains("32 levels"));
    }
}
