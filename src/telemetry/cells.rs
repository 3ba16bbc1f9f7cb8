//! Metrics of cells: what our calls consume of tables, what cells hold, and how busy they are.
//!
//! Labels are of a closed set: registered cells and their tables, the control tables, and one name for all else, which also takes what would
//! go beyond the bounds here.

use std::collections::HashSet;
use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Meter};
use opentelemetry_semantic_conventions::attribute::DB_COLLECTION_NAME;
use parking_lot::Mutex;

use super::decisions::{MAX_CELL_LABELS, OTHER_CELL};
use super::names::CELL_ID;

/// Capacity units that our own calls consumed, by cell, table and `direction` (`read|write`).
pub const TABLE_CONSUMED: &str = "cell.table.consumed_units";
/// Our own requests that were throttled, likewise.
pub const TABLE_THROTTLES: &str = "cell.table.throttles";
/// Items in a table, by cell and table.
pub const TABLE_ITEMS: &str = "cell.table.items";
/// Bytes in a table and its indexes, by cell and table.
pub const TABLE_SIZE: &str = "cell.table.size";
/// Placements in a cell: its tenants.
pub const PLACEMENTS: &str = "cell.placements";
/// How busy a cell's tables are, whoever uses them; 1 is all of their throughput.
pub const UTILISATION: &str = "cell.utilisation";
/// Requests a minute that are throttled in a cell's tables, whoever makes them.
pub const THROTTLED_PER_MINUTE: &str = "cell.throttled_per_minute";
/// How long ago a cell's load was measured, in seconds.
pub const LOAD_AGE: &str = "cell.load.age";
/// Data for CloudWatch, by `outcome` (`sent|dropped`).
pub const CLOUDWATCH_DATA: &str = "cell.cloudwatch.data";

/// Tables that have a label of their own. With two directions this stays under the SDK's 2,000 attribute sets a metric.
pub const MAX_TABLE_LABELS: usize = 900;

/// Instruments of cells. Clones share them.
#[derive(Clone, Debug)]
pub struct CellMetrics {
    meter: Meter,
    consumed: Counter<f64>,
    throttles: Counter<u64>,
    published: Counter<u64>,
    tables: Arc<Mutex<HashSet<String>>>,
}

/// What is shown of a cell.
#[derive(Clone, Debug, PartialEq)]
pub struct CellGauges {
    pub cell: String,
    pub placements: u64,
    /// `None`: not known.
    pub load: Option<LoadGauges>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LoadGauges {
    pub utilisation: f64,
    pub throttled_per_minute: f64,
    pub age_seconds: f64,
    /// Name, items and bytes.
    pub tables: Vec<(String, u64, u64)>,
}

impl CellMetrics {
    pub fn new(meter: &Meter) -> Self {
        Self {
            consumed: meter
                .f64_counter(TABLE_CONSUMED)
                .with_unit("{unit}")
                .with_description("Capacity units that our calls consumed")
                .build(),
            throttles: meter
                .u64_counter(TABLE_THROTTLES)
                .with_unit("{request}")
                .with_description("Our requests that were throttled")
                .build(),
            published: meter
                .u64_counter(CLOUDWATCH_DATA)
                .with_unit("{datum}")
                .with_description("Data that were put to CloudWatch, or lost")
                .build(),
            meter: meter.clone(),
            tables: Arc::default(),
        }
    }

    /// Counts what our calls did to a table. `cell` and `table` have to be of a closed set.
    pub fn used(
        &self,
        (cell, table): (&str, &str),
        direction: &'static str,
        units: f64,
        throttles: u64,
    ) {
        let (cell, table) =
            if self.labelled(table) { (cell, table) } else { (OTHER_CELL, OTHER_CELL) };
        let labels = [
            KeyValue::new(CELL_ID, cell.to_owned()),
            KeyValue::new(DB_COLLECTION_NAME, table.to_owned()),
            KeyValue::new("direction", direction),
        ];
        if units > 0.0 {
            self.consumed.add(units, &labels);
        }
        if throttles > 0 {
            self.throttles.add(throttles, &labels);
        }
    }

    fn labelled(&self, table: &str) -> bool {
        let mut tables = self.tables.lock();
        if tables.contains(table) {
            return true;
        }
        tables.len() < MAX_TABLE_LABELS && tables.insert(table.to_owned())
    }

    /// Counts data for CloudWatch; `outcome` is `sent` or `dropped`.
    pub fn published(&self, outcome: &'static str, data: usize) {
        if data > 0 {
            self.published.add(data as u64, &[KeyValue::new("outcome", outcome)]);
        }
    }

    /// From now on, every export asks `look` what there is to show of each cell. To be called once.
    pub fn show(&self, look: impl Fn() -> Vec<CellGauges> + Send + Sync + 'static) {
        let look: Look = Arc::new(move || {
            let mut cells = look();
            cells.truncate(MAX_CELL_LABELS);
            cells
        });
        let meter = &self.meter;
        let looking = Arc::clone(&look);
        meter
            .u64_observable_gauge(PLACEMENTS)
            .with_unit("{placement}")
            .with_description("Placements in a cell")
            .with_callback(move |gauge| {
                for cell in looking() {
                    gauge.observe(cell.placements, &[KeyValue::new(CELL_ID, cell.cell)]);
                }
            })
            .build();
        meter
            .f64_observable_gauge(UTILISATION)
            .with_unit("1")
            .with_description("How busy a cell's tables are; 1 is all of their throughput")
            .with_callback(of_load(&look, |load| load.utilisation))
            .build();
        meter
            .f64_observable_gauge(THROTTLED_PER_MINUTE)
            .with_unit("{request}")
            .with_description("Requests a minute that are throttled in a cell's tables")
            .with_callback(of_load(&look, |load| load.throttled_per_minute))
            .build();
        meter
            .f64_observable_gauge(LOAD_AGE)
            .with_unit("s")
            .with_description("How long ago a cell's load was measured")
            .with_callback(of_load(&look, |load| load.age_seconds))
            .build();
        meter
            .u64_observable_gauge(TABLE_ITEMS)
            .with_unit("{item}")
            .with_description("Items in a cell's table")
            .with_callback(of_table(&look, |(_, items, _)| *items))
            .build();
        meter
            .u64_observable_gauge(TABLE_SIZE)
            .with_unit("By")
            .with_description("Bytes in a cell's table and its indexes")
            .with_callback(of_table(&look, |(_, _, bytes)| *bytes))
            .build();
    }
}

/// What there is to show at this moment.
type Look = Arc<dyn Fn() -> Vec<CellGauges> + Send + Sync>;

/// Shows something of the load of each cell where that is known.
fn of_load(
    look: &Look,
    value: fn(&LoadGauges) -> f64,
) -> impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static {
    let look = Arc::clone(look);
    move |gauge| {
        for CellGauges { cell, load, .. } in look() {
            if let Some(load) = load {
                gauge.observe(value(&load), &[KeyValue::new(CELL_ID, cell)]);
            }
        }
    }
}

/// Shows something of each table.
fn of_table(
    look: &Look,
    value: fn(&(String, u64, u64)) -> u64,
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static {
    let look = Arc::clone(look);
    move |gauge| {
        let of_cell = |cell: CellGauges| {
            let tables = cell.load.map(|load| load.tables).unwrap_or_default();
            tables.into_iter().map(move |table| (cell.cell.clone(), table))
        };
        for (cell, table) in look().into_iter().flat_map(of_cell).take(MAX_TABLE_LABELS) {
            let value = value(&table);
            let table = KeyValue::new(DB_COLLECTION_NAME, table.0);
            gauge.observe(value, &[KeyValue::new(CELL_ID, cell), table]);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;

    use super::*;

    #[test]
    fn table_labels_are_bounded() {
        let metrics = CellMetrics::new(&SdkMeterProvider::builder().build().meter("test"));
        for table in 0..2 * MAX_TABLE_LABELS {
            metrics.used(("cell-a", &format!("t{table}")), "read", 1.0, 1);
        }
        assert_eq!(metrics.tables.lock().len(), MAX_TABLE_LABELS);
        assert!(metrics.labelled("t0"));
        assert!(!metrics.labelled("one more"));
    }
}
