//! Cells: what an operator registers and what the directory counts.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

pub use cells_balance::CellState;
use cells_guard::CellTables;
use serde::{Deserialize, Serialize};

use super::id::{CellId, Invalid, Sequence, checked_string, has_control};
use super::time::Timestamp;

checked_string! {
    /// An AWS Region such as `eu-west-1`: `[a-z0-9][a-z0-9-]{0,31}`. Not held against a list: new Regions open.
    Region, String, check_region
}

checked_string! {
    /// Where a cell's stack is reached: 1-512 bytes of printable ASCII, handed on uninterpreted.
    Endpoint, String, check_endpoint
}

fn check_region(value: &str) -> Result<(), Invalid> {
    let well_formed = value.bytes().enumerate().all(|(at, byte)| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || (at > 0 && byte == b'-')
    });
    if value.is_empty() || value.len() > 32 || !well_formed {
        return Err(Invalid::new(
            "INVALID_REGION",
            "is not of the form [a-z0-9][a-z0-9-]{0,31}, such as eu-west-1",
        ));
    }
    Ok(())
}

fn check_endpoint(value: &str) -> Result<(), Invalid> {
    if value.is_empty() || value.len() > 512 || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Invalid::new(
            "INVALID_ENDPOINT",
            "is not 1-512 printable ASCII characters, such as https://cell-a.example.com",
        ));
    }
    Ok(())
}

/// Free labels of a cell, or those that a placement asks for: at most 32; keys `[a-z0-9][a-z0-9._/-]{0,62}`, values at most 128
/// bytes of UTF-8 without control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    pub const MAX: usize = 32;

    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, Invalid> {
        let invalid = |problem: String| Err(Invalid::new("INVALID_LABELS", problem));
        if labels.len() > Self::MAX {
            return invalid(format!("holds {} labels; at most 32 are allowed", labels.len()));
        }
        for (key, value) in &labels {
            let well_formed = key.bytes().enumerate().all(|(at, byte)| {
                byte.is_ascii_lowercase()
                    || byte.is_ascii_digit()
                    || (at > 0 && matches!(byte, b'.' | b'_' | b'/' | b'-'))
            });
            if key.is_empty() || key.len() > 63 || !well_formed {
                return invalid("has a key not of the form [a-z0-9][a-z0-9._/-]{0,62}".into());
            }
            if value.len() > 128 || has_control(value) {
                return invalid(format!(
                    "label {key} has a value over 128 bytes or with a control character"
                ));
            }
        }
        Ok(Self(labels))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A cell's share of new tenants, relative to the others': 0-1,000,000; 0 gets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weight(u32);

impl Weight {
    pub const DEFAULT: Weight = Weight(100);

    pub fn new(value: u32) -> Result<Self, Invalid> {
        if value > 1_000_000 {
            return Err(Invalid::new(
                "INVALID_WEIGHT",
                format!("is {value}; at most 1,000,000 is allowed"),
            ));
        }
        Ok(Self(value))
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

/// How many placements a cell can take; `None` for no limit.
pub type Capacity = Option<NonZeroU64>;

/// A registered cell and the number of its placements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    pub id: CellId,
    pub region: Region,
    pub endpoint: Endpoint,
    pub labels: Labels,
    pub weight: Weight,
    pub capacity: Capacity,
    pub state: CellState,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// The journal entry that last created or updated the cell; its etag. Changes of `placements` do not count.
    pub revision: Sequence,
    /// Placements in the cell, as of `counted_at`.
    pub placements: u64,
    /// The last journal entry that `placements` takes in.
    pub counted_at: Sequence,
    /// The tables that were provisioned for the cell. In the journal, so that a tenant's guard is written with its placement by whoever
    /// places it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Arc<CellTables>>,
}

impl Cell {
    /// Identifies this version of the cell's settings.
    pub fn etag(&self) -> String {
        format!("r{}", self.revision)
    }

    /// Why the cell takes no new tenants, or `None` where it takes them.
    pub fn refuses_new_tenants(&self) -> Option<String> {
        if self.state != CellState::Active {
            return Some(format!("is {}", self.state.as_str()));
        }
        match self.capacity {
            Some(capacity) if self.placements >= capacity.get() => {
                Some(format!("is full: {} of {capacity}", self.placements))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let labels = |n: usize| (0..n).map(|i| (format!("k{i}"), "v".into())).collect();
        assert!(Labels::new(labels(32)).is_ok());
        assert!(Labels::new(labels(33)).is_err());
        for (key, value) in [
            ("", "v".to_owned()),
            ("-k", "v".into()),
            ("K", "v".into()),
            ("k", "v".repeat(129)),
            ("k", "a\tb".into()),
        ] {
            assert!(
                Labels::new([(key.to_owned(), value.clone())].into()).is_err(),
                "{key}={value}"
            );
        }
    }

    #[test]
    fn states_survive_their_text() {
        for state in CellState::ALL {
            assert_eq!(CellState::parse(state.as_str()), Some(state));
        }
        assert_eq!(CellState::parse("active"), None);
    }
}
