//! The change log of a migration: a record of each write that was acknowledged while it ran, in the transaction of the write itself.
//!
//! A record names the keys that were touched, not what became of them: whoever applies it reads that, later, and so applies what
//! is there then. Records have no order and need none.
//!
//! | attribute | |
//! | --- | --- |
//! | the partition key | `\u{1}log#<migration>#<shard>`, with the shard of the guard that the write checked |
//! | the sort key | `\u{1}<operation id>`, 32 hexadecimal digits, never used twice |
//! | `LogKeys` | a list of maps: `Table`, as the table set names it, and `Key`, the key's attributes |

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use cells_migration::MigrationId;

use crate::guard::migration_name;
use crate::tables::GuardTable;
use crate::{Item, Unreadable, text};

pub const KEYS: &str = "LogKeys";
const TABLE: &str = "Table";
const KEY: &str = "Key";

/// A key that a write touched.
#[derive(Debug, Clone, PartialEq)]
pub struct Touched {
    /// As the table set names it.
    pub table: String,
    pub key: Item,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogRecord {
    /// Of the write: random, 128 bits.
    pub operation: u128,
    pub touched: Vec<Touched>,
}

/// The partition of one shard's records.
pub fn partition(migration: MigrationId, shard: u8) -> String {
    format!("\u{1}log#{}#{shard}", migration_name(migration))
}

pub fn key(table: &GuardTable, migration: MigrationId, shard: u8, operation: u128) -> Item {
    [
        (table.partition_key.clone(), text(partition(migration, shard))),
        (table.sort_key.clone(), text(format!("\u{1}{operation:032x}"))),
    ]
    .into()
}

pub fn item(table: &GuardTable, migration: MigrationId, shard: u8, record: &LogRecord) -> Item {
    let touched = record.touched.iter().map(|touched| {
        let entry = [
            (TABLE.to_owned(), text(&touched.table)),
            (KEY.to_owned(), AttributeValue::M(touched.key.clone())),
        ];
        AttributeValue::M(HashMap::from(entry))
    });
    let mut item = key(table, migration, shard, record.operation);
    item.insert(KEYS.to_owned(), AttributeValue::L(touched.collect()));
    item
}

/// # Errors
/// Where it is not what [`item`] writes.
pub fn read(table: &GuardTable, item: &Item) -> Result<LogRecord, Unreadable> {
    let unreadable = |attribute, problem| Unreadable { attribute, problem };
    let operation = match item.get(&table.sort_key) {
        Some(AttributeValue::S(sort)) => {
            sort.strip_prefix('\u{1}').and_then(|digits| u128::from_str_radix(digits, 16).ok())
        }
        _ => None,
    };
    let operation =
        operation.ok_or_else(|| unreadable("the sort key", "is not that of a log record"))?;
    let Some(AttributeValue::L(entries)) = item.get(KEYS) else {
        return Err(unreadable(KEYS, "is not a list"));
    };
    let touched = entries.iter().map(|entry| match entry {
        AttributeValue::M(entry) => match (entry.get(TABLE), entry.get(KEY)) {
            (Some(AttributeValue::S(table)), Some(AttributeValue::M(key))) => {
                Ok(Touched { table: table.clone(), key: key.clone() })
            }
            _ => Err(unreadable(KEYS, "has an entry without table or key")),
        },
        _ => Err(unreadable(KEYS, "has an entry that is no map")),
    });
    Ok(LogRecord { operation, touched: touched.collect::<Result<_, _>>()? })
}
