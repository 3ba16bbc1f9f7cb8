//! Reading and writing attributes, with errors that name the table and the attribute but never a key or a value.

use std::collections::HashMap;
use std::str::FromStr;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::domain::Timestamp;
use crate::store::StoreError;

/// A stored item, or its key.
pub type Item = HashMap<String, AttributeValue>;

pub fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// Seconds since 1970, rounded up: the storage must not delete a moment too early.
pub fn seconds_rounded_up(time: Timestamp) -> i64 {
    let seconds = time.seconds();
    if time.millis() > seconds.saturating_mul(1000) { seconds.saturating_add(1) } else { seconds }
}

/// An item of a table, read attribute by attribute.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub table: &'a str,
    pub item: &'a Item,
}

impl<'a> Reader<'a> {
    pub fn unreadable(&self, attribute: &str, problem: &str) -> StoreError {
        StoreError::Unreadable {
            detail: format!("{}: attribute {attribute} {problem}", self.table),
        }
    }

    pub fn has(&self, attribute: &str) -> bool {
        self.item.contains_key(attribute)
    }

    pub fn optional_text(&self, attribute: &str) -> Result<Option<&'a str>, StoreError> {
        match self.item.get(attribute) {
            None => Ok(None),
            Some(AttributeValue::S(text)) => Ok(Some(text)),
            Some(_) => Err(self.unreadable(attribute, "is not a string")),
        }
    }

    pub fn text(&self, attribute: &str) -> Result<&'a str, StoreError> {
        self.optional_text(attribute)?.ok_or_else(|| self.unreadable(attribute, "is missing"))
    }

    pub fn optional_number<T: FromStr>(&self, attribute: &str) -> Result<Option<T>, StoreError> {
        let digits = match self.item.get(attribute) {
            None => return Ok(None),
            Some(AttributeValue::N(digits)) => digits,
            Some(_) => return Err(self.unreadable(attribute, "is not a number")),
        };
        match digits.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.unreadable(attribute, "is not a number in range")),
        }
    }

    pub fn number<T: FromStr>(&self, attribute: &str) -> Result<T, StoreError> {
        self.optional_number(attribute)?.ok_or_else(|| self.unreadable(attribute, "is missing"))
    }

    /// A string that a type's own parser accepts.
    pub fn parsed<T>(
        &self,
        attribute: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        parse(self.text(attribute)?)
            .ok_or_else(|| self.unreadable(attribute, "has a value that is not known"))
    }

    pub fn optional_parsed<T>(
        &self,
        attribute: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        if !self.has(attribute) {
            return Ok(None);
        }
        self.parsed(attribute, parse).map(Some)
    }

    /// JSON, as serde writes it.
    pub fn json<T: serde::de::DeserializeOwned>(&self, attribute: &str) -> Result<T, StoreError> {
        // serde's message may quote the value, so only where it is wrong is told.
        serde_json::from_str(self.text(attribute)?).map_err(|error| {
            let problem = format!("is not the JSON expected, at column {}", error.column());
            self.unreadable(attribute, &problem)
        })
    }
}

/// JSON for an attribute. Fails only for types that JSON cannot hold, of which none is stored.
pub fn json<T: serde::Serialize>(value: &T) -> Result<AttributeValue, StoreError> {
    match serde_json::to_string(value) {
        Ok(json) => Ok(text(json)),
        Err(_) => Err(StoreError::Rejected { detail: "a value cannot be written as JSON".into() }),
    }
}
