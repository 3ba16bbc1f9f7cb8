//! What a writer was told of its writes, and so what its keys may hold.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use parking_lot::Mutex;

use crate::scene::{Item, partition, text};

pub const TENANT: &str = "load";

/// Tables with the tenant's partitions in them.
pub const TABLES: [&str; 2] = ["CustomerData", "Journeys"];

/// An item's place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub table: &'static str,
    pub sort: String,
}

impl At {
    pub fn new(table: &'static str, sort: String) -> Self {
        Self { table, sort }
    }

    pub fn key(&self) -> Item {
        let partition = match self.table {
            "Journeys" => format!("TRAVELLER#{TENANT}"),
            _ => partition(TENANT),
        };
        [("PK".to_owned(), text(&partition)), ("SK".to_owned(), text(&self.sort))].into()
    }

    /// The item of a value: all of it follows from that, so that two writes are never mixed unseen.
    pub fn item(&self, value: u64) -> Item {
        let mut item = self.key();
        item.insert("V".to_owned(), number(value));
        item.insert("Text".to_owned(), text(&said(value)));
        item
    }

    /// The value of an item that was found here, or what is wrong with it.
    pub fn value(&self, mut item: Item) -> Result<u64, String> {
        item.remove("CellId");
        let value = item.get("V").and_then(|value| value.as_n().ok()?.parse().ok());
        match value {
            Some(value) if self.item(value) == item => Ok(value),
            _ => Err(format!("{self:?} is mixed: {item:?}")),
        }
    }
}

pub fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub fn said(value: u64) -> String {
    format!("{value}: {}", "x".repeat(value as usize % 50))
}

/// The values that a key may have: the one that was acknowledged last, and those since of which it is not known whether they were
/// written. `None`: no item.
#[derive(Debug, Clone)]
pub struct Allowed(Vec<Option<u64>>);

impl Default for Allowed {
    fn default() -> Self {
        Self(vec![None])
    }
}

impl Allowed {
    pub fn acknowledged(&mut self, value: Option<u64>) {
        self.0 = vec![value];
    }

    pub fn unknown(&mut self, value: Option<u64>) {
        self.0.push(value);
    }

    /// The value, if there is no doubt.
    pub fn exact(&self) -> Option<Option<u64>> {
        match self.0[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    pub fn has(&self, value: Option<u64>) -> bool {
        self.0.contains(&value)
    }
}

/// A writer's keys. No other writer writes them.
pub type Ledger = BTreeMap<At, Allowed>;

/// A number that all writers add to.
#[derive(Debug, Default)]
pub struct Counter {
    pub acknowledged: AtomicU64,
    pub unknown: AtomicU64,
}

impl Counter {
    pub fn at(number: usize) -> At {
        At::new("CustomerData", format!("COUNTER#{number}"))
    }
}

/// Figures of all writers together, and what they found wrong.
#[derive(Debug, Default)]
pub struct Tally {
    pub direct: AtomicU64,
    pub guarded: AtomicU64,
    pub logged: AtomicU64,
    pub redirects: AtomicU64,
    pub unknown: AtomicU64,
    pub refused: AtomicU64,
    /// Told that nothing was written, for a passing reason.
    pub passing: AtomicU64,
    pub reads: AtomicU64,
    /// Items that acknowledged transactions wrote, beyond one each.
    pub more_items: AtomicU64,
    calls: AtomicU64,
    all_micros: AtomicU64,
    longest_micros: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    pub fn acknowledged(&self) -> u64 {
        [&self.direct, &self.guarded, &self.logged].map(count).into_iter().sum()
    }

    /// How long a call took.
    pub fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        add(&self.calls, 1);
        add(&self.all_micros, micros);
        self.longest_micros.fetch_max(micros, Ordering::SeqCst);
    }

    /// How long calls took: on average, and the longest.
    pub fn times(&self) -> (Duration, Duration) {
        let average = count(&self.all_micros) / count(&self.calls).max(1);
        (Duration::from_micros(average), Duration::from_micros(count(&self.longest_micros)))
    }

    pub fn wrong(&self, what: String) {
        self.wrong.lock().push(what);
    }

    /// Fails with what was found wrong.
    pub fn check(&self) {
        let wrong = self.wrong.lock();
        assert!(wrong.is_empty(), "{} findings: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    }
}

pub fn count(figure: &AtomicU64) -> u64 {
    figure.load(Ordering::SeqCst)
}

pub fn add(figure: &AtomicU64, more: u64) {
    figure.fetch_add(more, Ordering::SeqCst);
}
