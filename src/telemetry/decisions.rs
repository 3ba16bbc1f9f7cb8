//! Metrics of routing decisions: how many, from where, to which cell, and how long those took that left memory.
//!
//! Cells are labels because an operator has to see where tenants go; tenants never are. The number of cell labels is
//! bounded here, before the SDK's own limit would start to lose whole attribute sets.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use opentelemetry::metrics::{BoundCounter, Counter, Histogram, Meter};
use opentelemetry::{KeyValue, StringValue};
use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use super::metrics::DURATION_BOUNDS;
use super::names::{self, SOURCE_MEMORY};

/// Counter of decisions, by source, cell and fallback reason.
pub const ROUTE_DECISIONS: &str = "cell.route.decisions";
/// Histogram of what a decision took that memory could not give, by source.
pub const ROUTE_DURATION: &str = "cell.route.duration";

/// Cells that have a label of their own. With five sources this stays under the SDK's 2,000 attribute sets a metric.
pub const MAX_CELL_LABELS: usize = 350;
/// Label of the cells beyond [`MAX_CELL_LABELS`].
pub const OTHER_CELL: &str = "_OTHER";

/// Counts decisions. Clones share everything.
#[derive(Clone, Debug)]
pub struct DecisionMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    decisions: Counter<u64>,
    duration: Histogram<f64>,
    /// Read on every hit, written when a cell is seen for the first time.
    cells: ArcSwap<HashMap<Arc<str>, Arc<Cell>, Xxh3DefaultBuilder>>,
    new_cell: Mutex<()>,
    other: Arc<Cell>,
}

#[derive(Debug)]
struct Cell {
    label: Arc<str>,
    hits: OnceLock<BoundCounter<u64>>,
}

impl Cell {
    fn new(label: &str) -> Arc<Self> {
        Arc::new(Self { label: label.into(), hits: OnceLock::new() })
    }
}

impl DecisionMetrics {
    /// Decision metrics made by `meter`.
    pub fn new(meter: &Meter) -> Self {
        Self(Arc::new(Inner {
            decisions: meter
                .u64_counter(ROUTE_DECISIONS)
                .with_unit("{decision}")
                .with_description("Routing decisions")
                .build(),
            duration: meter
                .f64_histogram(ROUTE_DURATION)
                .with_unit("s")
                .with_description("Duration of routing decisions that memory could not give")
                .with_boundaries(DURATION_BOUNDS.to_vec())
                .build(),
            cells: ArcSwap::default(),
            new_cell: Mutex::new(()),
            other: Cell::new(OTHER_CELL),
        }))
    }

    /// Records one decision; `reason` for a fallback, `elapsed` unless memory answered at once. Tens of nanoseconds for
    /// a hit, some hundred for the others.
    ///
    /// `source` and `reason` are labels and have to be of a closed set: the values of [`names::ROUTE_SOURCE`] and
    /// [`names::ROUTE_FALLBACK_REASON`].
    pub fn record(
        &self,
        source: &'static str,
        cell: &str,
        reason: Option<&'static str>,
        elapsed: Option<Duration>,
    ) {
        if source == SOURCE_MEMORY {
            self.record_hits(cell, 1);
        } else {
            self.0.count(source, self.0.cell(cell).label.clone(), reason);
        }
        if let Some(elapsed) = elapsed {
            let source = KeyValue::new(names::ROUTE_SOURCE, source);
            self.0.duration.record(elapsed.as_secs_f64(), &[source]);
        }
    }

    /// Records `count` decisions from memory for one cell: one call for a whole batch.
    #[inline]
    pub fn record_hits(&self, cell: &str, count: u64) {
        let cells = self.0.cells.load();
        match cells.get(cell) {
            Some(cell) => self.0.hits(cell).add(count),
            None => self.0.hits(&self.0.cell(cell)).add(count),
        }
    }
}

impl Inner {
    fn count(&self, source: &'static str, cell: Arc<str>, reason: Option<&'static str>) {
        let source = KeyValue::new(names::ROUTE_SOURCE, source);
        let cell = KeyValue::new(names::CELL_ID, StringValue::from(cell));
        match reason {
            Some(reason) => {
                let reason = KeyValue::new(names::ROUTE_FALLBACK_REASON, reason);
                self.decisions.add(1, &[source, cell, reason]);
            }
            None => self.decisions.add(1, &[source, cell]),
        }
    }

    #[inline]
    fn hits<'a>(&self, cell: &'a Cell) -> &'a BoundCounter<u64> {
        cell.hits.get_or_init(|| {
            self.decisions.bind(&[
                KeyValue::new(names::ROUTE_SOURCE, SOURCE_MEMORY),
                KeyValue::new(names::CELL_ID, StringValue::from(cell.label.clone())),
            ])
        })
    }

    /// The cell's label, made if there is room for one more.
    fn cell(&self, id: &str) -> Arc<Cell> {
        if let Some(known) = self.cells.load().get(id) {
            return known.clone();
        }
        let _one_at_a_time = self.new_cell.lock();
        let cells = self.cells.load_full();
        if let Some(known) = cells.get(id) {
            return known.clone();
        }
        if cells.len() >= MAX_CELL_LABELS {
            return self.other.clone();
        }
        let cell = Cell::new(id);
        let mut more = HashMap::clone(&cells);
        more.insert(cell.label.clone(), cell.clone());
        self.cells.store(Arc::new(more));
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;

    fn decisions() -> DecisionMetrics {
        DecisionMetrics::new(&SdkMeterProvider::builder().build().meter("test"))
    }

    #[test]
    fn cell_labels_are_bounded() {
        let decisions = decisions();
        for cell in 0..2 * MAX_CELL_LABELS {
            decisions.record_hits(&format!("cell-{cell}"), 1);
            decisions.record("table", &format!("cell-{cell}"), None, None);
        }
        assert_eq!(decisions.0.cells.load().len(), MAX_CELL_LABELS);
        assert_eq!(&*decisions.0.cell("cell-0").label, "cell-0");
        assert_eq!(&*decisions.0.cell("one-more").label, OTHER_CELL);
    }

    #[test]
    fn a_cell_that_many_see_first_has_one_label() {
        let decisions = decisions();
        let seen: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| decisions.0.cell("cell-a"))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seen.iter().all(|cell| Arc::ptr_eq(cell, &seen[0])));
    }
}
