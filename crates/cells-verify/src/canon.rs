//! An item's hash: the same for the same item, however it is written, and another for every other.
//!
//! SHA-256 over a form in which each value says its type and its length, so that no two values are written the same. Attributes of a
//! map and elements of a set are in the order of their bytes; numbers are [`number::ordered`]; elements of a list stay where they are.
//!
//! `CellId` differs between cells on purpose. Where it names the cell that the item is in, a mark without the name stands for it.

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::CellTable;
use cells_guard::writer::CELL_ID;
use sha2::{Digest, Sha256};

use crate::{Item, number};

pub type Hash = [u8; 32];

/// DynamoDB nests 32 levels; a reader that answers with more than this is not read to the end.
const MAX_DEPTH: usize = 64;

const TEXT: u8 = b's';
const NUMBER: u8 = b'n';
/// What DynamoDB would not have taken for one.
const NO_NUMBER: u8 = b'!';
const BINARY: u8 = b'b';
const TRUE: u8 = b'+';
const FALSE: u8 = b'-';
const NULL: u8 = b'0';
const TEXTS: u8 = b'S';
const NUMBERS: u8 = b'N';
const BINARIES: u8 = b'B';
const LIST: u8 = b'[';
const MAP: u8 = b'{';
const OWN_CELL: u8 = b'@';

/// Which `CellId` counts as that of the item's own cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// Every name: what a copy will have there does not depend on it.
    Any,
    /// This one alone.
    Exactly(&'a str),
}

/// An item that cannot be compared, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incomparable(pub &'static str);

/// Whether an item has a `CellId` that can differ between cells, and which. `None` where there is none, and where it is part of the key.
pub fn cell_id<'a>(table: &CellTable, item: &'a Item) -> Option<&'a str> {
    match item.get(CELL_ID) {
        Some(AttributeValue::S(name)) if !table.key_names().any(|key| key == CELL_ID) => Some(name),
        _ => None,
    }
}

/// The hash of an item of this table.
///
/// # Errors
/// Where a value is of a type that this version does not know, or nested deeper than DynamoDB does: taking two such for the same
/// would be a guess.
pub fn item_hash(table: &CellTable, item: &Item, named: Named<'_>) -> Result<Hash, Incomparable> {
    let own = cell_id(table, item).is_some_and(|name| match named {
        Named::Any => true,
        Named::Exactly(cell) => name == cell,
    });
    let mut out = Form(Sha256::new());
    out.text(&table.name);
    out.map(item, own, 0)?;
    Ok(out.0.finalize().into())
}

/// The hash of bytes that were written by the same rules, one after the other.
pub(crate) fn hash_of(parts: &[&[u8]]) -> Hash {
    let mut out = Form(Sha256::new());
    parts.iter().for_each(|part| out.sized(part));
    out.0.finalize().into()
}

struct Form(Sha256);

impl Form {
    fn tag(&mut self, tag: u8) {
        self.0.update([tag]);
    }

    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_be_bytes());
    }

    fn sized(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.tag(TEXT);
        self.sized(text.as_bytes());
    }

    fn number(&mut self, text: &str) {
        let (tag, bytes) = number_form(text);
        self.tag(tag);
        self.sized(&bytes);
    }

    fn set(&mut self, tag: u8, mut elements: Vec<Vec<u8>>) {
        elements.sort_unstable();
        self.tag(tag);
        self.count(elements.len());
        elements.iter().for_each(|element| self.sized(element));
    }

    /// `own`: the attribute `CellId` names the cell that this is in.
    fn map(&mut self, map: &Item, own: bool, depth: usize) -> Result<(), Incomparable> {
        let mut names: Vec<_> = map.iter().collect();
        names.sort_unstable_by_key(|(name, _)| name.as_bytes());
        self.tag(MAP);
        self.count(names.len());
        for (name, value) in names {
            self.sized(name.as_bytes());
            match own && name == CELL_ID {
                true => self.tag(OWN_CELL),
                false => self.value(value, depth + 1)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &AttributeValue, depth: usize) -> Result<(), Incomparable> {
        if depth > MAX_DEPTH {
            return Err(Incomparable("has an item that is nested too deep to be compared"));
        }
        match value {
            AttributeValue::S(text) => self.text(text),
            AttributeValue::N(text) => self.number(text),
            AttributeValue::B(bytes) => {
                self.tag(BINARY);
                self.sized(bytes.as_ref());
            }
            AttributeValue::Bool(value) => self.tag(if *value { TRUE } else { FALSE }),
            AttributeValue::Null(_) => self.tag(NULL),
            AttributeValue::Ss(texts) => {
                self.set(TEXTS, texts.iter().map(|text| text.as_bytes().to_vec()).collect());
            }
            AttributeValue::Ns(texts) => {
                self.set(NUMBERS, texts.iter().map(|text| element(text)).collect())
            }
            AttributeValue::Bs(all) => {
                self.set(BINARIES, all.iter().map(|bytes| bytes.as_ref().to_vec()).collect());
            }
            AttributeValue::L(values) => {
                self.tag(LIST);
                self.count(values.len());
                for value in values {
                    self.value(value, depth + 1)?;
                }
            }
            AttributeValue::M(map) => self.map(map, false, depth)?,
            _ => return Err(Incomparable("has an item with a type that is not known")),
        }
        Ok(())
    }
}

fn number_form(text: &str) -> (u8, Vec<u8>) {
    match number::ordered(text) {
        Some(bytes) => (NUMBER, bytes),
        None => (NO_NUMBER, text.as_bytes().to_vec()),
    }
}

fn element(text: &str) -> Vec<u8> {
    let (tag, mut bytes) = number_form(text);
    bytes.insert(0, tag);
    bytes
}

#[cfg(test)]
#[path = "canon_tests.rs"]
mod tests;
