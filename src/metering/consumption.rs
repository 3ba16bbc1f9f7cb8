//! What our own calls consume of tables, and how often they are throttled: counted as the answers come in, read by whoever publishes it.
//!
//! A call that is counted costs one look-up by the table's name, without a lock, and an atomic addition. Totals only ever rise; each reader
//! remembers what it has seen ([`Tally`]), so that one may be slow, or absent, without the other's noticing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Tables that are counted one by one. What is more is counted together, under [`OTHER_TABLE`]: names come from table sets, so that an
/// account full of cells must not become a heap full of counters.
pub const MAX_TABLES: usize = 10_000;

/// Stands for all tables beyond [`MAX_TABLES`].
pub const OTHER_TABLE: &str = "_OTHER";

/// Units are counted in thousandths: DynamoDB bills in halves, and tells sums of them.
const MILLI: f64 = 1000.0;

/// Which kind of units a call consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Read,
    Write,
}

impl Direction {
    pub const ALL: [Direction; 2] = [Direction::Read, Direction::Write];

    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Read => "read",
            Direction::Write => "write",
        }
    }
}

/// One table's counters.
#[derive(Debug)]
pub struct Table {
    name: Arc<str>,
    milli_units: [AtomicU64; 2],
    throttles: [AtomicU64; 2],
}

impl Table {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            milli_units: Default::default(),
            throttles: Default::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds consumed units, read and write.
    pub fn consumed(&self, read: f64, write: f64) {
        for (counter, units) in self.milli_units.iter().zip([read, write]) {
            // `as` saturates, and takes what is no number for zero.
            let milli = (units * MILLI).round() as u64;
            if milli > 0 {
                counter.fetch_add(milli, Ordering::Relaxed);
            }
        }
    }

    /// Adds one throttled request.
    pub fn throttled(&self, direction: Direction) {
        let [read, write] = &self.throttles;
        match direction {
            Direction::Read => read.fetch_add(1, Ordering::Relaxed),
            Direction::Write => write.fetch_add(1, Ordering::Relaxed),
        };
    }

    fn used(&self) -> Used {
        let [read, write] = self.milli_units.each_ref().map(|n| n.load(Ordering::Relaxed));
        let [throttled_reads, throttled_writes] =
            self.throttles.each_ref().map(|n| n.load(Ordering::Relaxed));
        Used { read_milli: read, write_milli: write, throttled_reads, throttled_writes }
    }
}

/// What a table was used for: units in thousandths, and throttled requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub read_milli: u64,
    pub write_milli: u64,
    pub throttled_reads: u64,
    pub throttled_writes: u64,
}

impl Used {
    pub fn units(&self, direction: Direction) -> f64 {
        let milli = match direction {
            Direction::Read => self.read_milli,
            Direction::Write => self.write_milli,
        };
        milli as f64 / MILLI
    }

    pub fn throttles(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Read => self.throttled_reads,
            Direction::Write => self.throttled_writes,
        }
    }

    fn since(self, before: Used) -> Used {
        Used {
            read_milli: self.read_milli.saturating_sub(before.read_milli),
            write_milli: self.write_milli.saturating_sub(before.write_milli),
            throttled_reads: self.throttled_reads.saturating_sub(before.throttled_reads),
            throttled_writes: self.throttled_writes.saturating_sub(before.throttled_writes),
        }
    }
}

/// The counters of all tables that this process calls. Clones share them.
#[derive(Clone)]
pub struct Consumption(Arc<Inner>);

struct Inner {
    tables: ArcSwap<HashMap<Arc<str>, Arc<Table>, Xxh3DefaultBuilder>>,
    new_table: Mutex<()>,
    other: Arc<Table>,
}

impl Default for Consumption {
    fn default() -> Self {
        Self(Arc::new(Inner {
            tables: ArcSwap::default(),
            new_table: Mutex::new(()),
            other: Table::new(OTHER_TABLE),
        }))
    }
}

impl std::fmt::Debug for Consumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumption").field("tables", &self.0.tables.load().len()).finish()
    }
}

impl Consumption {
    /// A table's counters, made when it is seen for the first time.
    pub fn table(&self, name: &str) -> Arc<Table> {
        if let Some(table) = self.0.tables.load().get(name) {
            return Arc::clone(table);
        }
        let _one_at_a_time = self.0.new_table.lock();
        let tables = self.0.tables.load_full();
        if let Some(table) = tables.get(name) {
            return Arc::clone(table);
        }
        if tables.len() >= MAX_TABLES {
            return Arc::clone(&self.0.other);
        }
        let table = Table::new(name);
        let mut more = HashMap::clone(&tables);
        more.insert(Arc::clone(&table.name), Arc::clone(&table));
        self.0.tables.store(Arc::new(more));
        table
    }

    /// What a table was used for until now.
    pub fn used(&self, name: &str) -> Used {
        self.0.tables.load().get(name).map(|table| table.used()).unwrap_or_default()
    }
}

/// A reader of [`Consumption`]: is told of all that was used since it last asked.
#[derive(Debug, Default)]
pub struct Tally {
    consumption: Consumption,
    seen: HashMap<Arc<str>, Used>,
}

impl Tally {
    pub fn of(consumption: Consumption) -> Self {
        Self { consumption, seen: HashMap::new() }
    }

    /// The tables that were used since the last call, in the order of their names.
    pub fn take(&mut self) -> Vec<(Arc<str>, Used)> {
        let tables = self.consumption.0.tables.load_full();
        let other = &self.consumption.0.other;
        let mut used = Vec::new();
        for table in tables.values().chain([other]) {
            let now = table.used();
            let before = self.seen.insert(Arc::clone(&table.name), now).unwrap_or_default();
            if now != before {
                used.push((Arc::clone(&table.name), now.since(before)));
            }
        }
        used.sort_by(|(a, _), (b, _)| a.cmp(b));
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_is_told_everything_once() {
        let consumption = Consumption::default();
        let (mut first, mut second) =
            (Tally::of(consumption.clone()), Tally::of(consumption.clone()));
        consumption.table("b").consumed(0.5, 2.0);
        consumption.table("a").throttled(Direction::Write);
        let told = first.take();
        assert_eq!(told.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((told[0].1.throttles(Direction::Write), told[1].1.read_milli), (1, 500));
        assert!(first.take().is_empty());
        consumption.table("b").consumed(1.5, 0.0);
        assert_eq!(first.take()[0].1.units(Direction::Read), 1.5);
        let all = second.take();
        assert_eq!(all[1].1.units(Direction::Read), 2.0);
        assert_eq!(all[1].1.units(Direction::Write), 2.0);
    }

    #[test]
    fn what_is_no_number_of_units_adds_nothing() {
        let consumption = Consumption::default();
        let table = consumption.table("a");
        table.consumed(f64::NAN, -1.0);
        assert_eq!(consumption.used("a"), Used::default());
    }

    #[test]
    fn tables_beyond_the_bound_are_counted_together() {
        let consumption = Consumption::default();
        // Filled at once: one by one, each would copy all that there are.
        let full = (0..MAX_TABLES).map(|n| Table::new(&format!("t{n}")));
        let full = full.map(|table| (Arc::clone(&table.name), table)).collect();
        consumption.0.tables.store(Arc::new(full));
        consumption.table("one more").consumed(1.0, 0.0);
        consumption.table("t7").consumed(2.0, 0.0);
        let told = Tally::of(consumption).take();
        let told: Vec<_> = told.iter().map(|(name, used)| (&**name, used.read_milli)).collect();
        assert_eq!(told, [(OTHER_TABLE, 1000), ("t7", 2000)]);
    }
}
