//! Where a listing goes on: DynamoDB's `LastEvaluatedKey` as JSON.
//!
//! A cursor comes back from outside of the store, so it is read as any input: bounded, and held against the names of the attributes that
//! a key of the same listing has. One that does not fit is rejected, never guessed at.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde::{Deserialize, Serialize};

use super::attributes::Item;
use super::error::rejected;
use crate::store::{Cursor, StoreError};

/// Longest cursor, in bytes: a key of 1,024 bytes, escaped, twice over and more.
const MAX_BYTES: usize = 8192;

#[derive(Serialize, Deserialize)]
enum Part {
    S(String),
    N(String),
}

/// The cursor after a page, if the listing goes on.
pub fn after(key: Option<Item>) -> Result<Option<Cursor>, StoreError> {
    let Some(key) = key.filter(|key| !key.is_empty()) else {
        return Ok(None);
    };
    let mut parts = BTreeMap::new();
    for (name, value) in key {
        let part = match value {
            AttributeValue::S(text) => Part::S(text),
            AttributeValue::N(digits) => Part::N(digits),
            _ => {
                return Err(rejected("the key of a page's last item is of an unknown kind".into()));
            }
        };
        parts.insert(name, part);
    }
    let json = serde_json::to_string(&parts);
    json.map(|json| Some(Cursor(json)))
        .map_err(|_| rejected("the key of a page's last item cannot be written".into()))
}

/// The key that a cursor stands for. It must hold these string attributes, and no other unless `others` are allowed.
pub fn start(
    cursor: Option<&Cursor>,
    names: &[&str],
    others: bool,
) -> Result<Option<Item>, StoreError> {
    let Some(Cursor(json)) = cursor else {
        return Ok(None);
    };
    if json.len() > MAX_BYTES {
        return Err(StoreError::ForeignCursor);
    }
    let parts: BTreeMap<String, Part> =
        serde_json::from_str(json).map_err(|_| StoreError::ForeignCursor)?;
    // DynamoDB has no empty keys.
    let has = |name: &&str| matches!(parts.get(*name), Some(Part::S(text)) if !text.is_empty());
    if !names.iter().all(has) || (!others && parts.len() != names.len()) {
        return Err(StoreError::ForeignCursor);
    }
    let item = parts.into_iter().map(|(name, part)| {
        let value = match part {
            Part::S(text) => AttributeValue::S(text),
            Part::N(digits) => AttributeValue::N(digits),
        };
        (name, value)
    });
    Ok(Some(item.collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::attributes::{number, text};
    use super::*;

    proptest! {
        #[test]
        fn a_key_survives_its_cursor(key in "\\PC{1,512}", n in any::<i64>()) {
            let item = Item::from([("A".to_owned(), text(key)), ("B".to_owned(), number(n))]);
            let cursor = after(Some(item.clone())).unwrap();
            prop_assert_eq!(start(cursor.as_ref(), &["A"], true), Ok(Some(item)));
            prop_assert!(start(cursor.as_ref(), &["A"], false).is_err());
            prop_assert!(start(cursor.as_ref(), &["B"], true).is_err());
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,64}") {
            let cursor = Cursor(text);
            prop_assert!(start(Some(&cursor), &["PK"], false).is_err());
        }
    }

    #[test]
    fn the_end_has_no_cursor_and_a_long_one_is_refused() {
        assert_eq!(after(None), Ok(None));
        assert_eq!(after(Some(Item::new())), Ok(None));
        let long = Cursor(format!(r#"{{"A":{{"S":"{}"}}}}"#, "a".repeat(MAX_BYTES)));
        assert!(start(Some(&long), &["A"], false).is_err());
    }
}
