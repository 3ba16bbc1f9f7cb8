//! Keys: their order within a partition, and their hash for reports.
//!
//! DynamoDB orders sort keys by type: strings by their UTF-8 bytes, numbers by value, binary by unsigned bytes. Here each is written as
//! bytes of that order, so that comparing bytes is enough. A table without sort key has one item in each partition, with no bytes.

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::{CellTable, KeyType};

use crate::canon::hash_of;
use crate::{Item, number};

/// The bytes that compare as sort keys of this type do. `None`: the value is of another type.
pub fn order(of: KeyType, value: &AttributeValue) -> Option<Vec<u8>> {
    match (of, value) {
        (KeyType::String, AttributeValue::S(text)) => Some(text.as_bytes().to_vec()),
        (KeyType::Number, AttributeValue::N(text)) => number::ordered(text),
        (KeyType::Binary, AttributeValue::B(bytes)) => Some(bytes.as_ref().to_vec()),
        _ => None,
    }
}

/// A sort key, absent in a table that has none, and the bytes of its order.
#[derive(Debug, Clone, PartialEq)]
pub struct SortKey {
    pub value: Option<AttributeValue>,
    pub order: Vec<u8>,
}

/// The sort key of an item, or of a key, of this partition. `None`: it is of another partition, or no such key.
pub fn sort_key(table: &CellTable, partition: &str, item: &Item) -> Option<SortKey> {
    if partition_of(table, item)? != partition {
        return None;
    }
    match &table.sort_key {
        None => Some(SortKey { value: None, order: Vec::new() }),
        Some((name, of)) => {
            let value = item.get(name)?;
            Some(SortKey { order: order(*of, value)?, value: Some(value.clone()) })
        }
    }
}

pub fn partition_of<'a>(table: &CellTable, item: &'a Item) -> Option<&'a str> {
    match item.get(&table.partition_key) {
        Some(AttributeValue::S(partition)) => Some(partition),
        _ => None,
    }
}

/// The key's attributes.
pub fn key(table: &CellTable, partition: &str, sort: Option<&AttributeValue>) -> Item {
    let partition = AttributeValue::S(partition.to_owned());
    let sort = table.sort_key.as_ref().zip(sort);
    let sort = sort.map(|((name, _), value)| (name.clone(), value.clone()));
    std::iter::once((table.partition_key.clone(), partition)).chain(sort).collect()
}

/// What stands for a key in a report: SHA-256 of the partition key and of the sort key's [`order`], each after its length as eight bytes,
/// in hexadecimal. Who can guess a key can recognise it.
pub fn key_hash(partition: &str, order: &[u8]) -> String {
    let hash = hash_of(&[partition.as_bytes(), order]);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
