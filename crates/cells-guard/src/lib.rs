//! What stands in a cell's own tables beside its tenants' items: a guard for each tenant, and while a tenant moves the log of what
//! was written. Here is their form ([`guard`], [`log`]), what a writer or a mover asks of a guard ([`condition`]), and which tables a
//! cell has ([`tables`]). The [`writer`] keeps the contract of those who write.
//!
//! All of it stands in the cell's *guard table*, the first of its table set with a string sort key, in partitions that begin with a
//! control character. No tenant and no key template has one, so no application's item is ever among them.

#![forbid(unsafe_code)]

pub mod condition;
pub mod connector;
pub mod guard;
pub mod log;
pub mod sdk;
pub mod tables;
pub mod writer;

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

pub use condition::Condition;
pub use connector::MarkingClient;
pub use guard::StoredGuard;
pub use log::{LogRecord, Touched};
pub use sdk::Failure;
pub use tables::{CellTable, CellTables, GuardTable, KeyType};

/// An item, or its key.
pub type Item = HashMap<String, AttributeValue>;

/// A record in a cell's table that cannot be read: which attribute, and what is wrong with it. Never a key or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attribute {attribute} {problem}")]
pub struct Unreadable {
    pub attribute: &'static str,
    pub problem: &'static str,
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn optional_text(item: &Item, attribute: &'static str) -> Result<Option<String>, Unreadable> {
    match item.get(attribute) {
        None => Ok(None),
        Some(AttributeValue::S(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Unreadable { attribute, problem: "is not a string" }),
    }
}

fn required_text(item: &Item, attribute: &'static str) -> Result<String, Unreadable> {
    optional_text(item, attribute)?.ok_or(Unreadable { attribute, problem: "is missing" })
}

fn required_number<T: std::str::FromStr>(
    item: &Item,
    attribute: &'static str,
) -> Result<T, Unreadable> {
    let unreadable = |problem| Unreadable { attribute, problem };
    match item.get(attribute) {
        None => Err(unreadable("is missing")),
        Some(AttributeValue::N(digits)) => {
            digits.parse().map_err(|_| unreadable("is not a number in range"))
        }
        Some(_) => Err(unreadable("is not a number")),
    }
}
