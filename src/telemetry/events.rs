//! Metrics of changes that are sent to sinks: by cell, table and group, never by tenant.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::metrics::{Counter, Meter};
use opentelemetry::{KeyValue, StringValue};
use parking_lot::Mutex;

use super::names;

/// Changes that a sink accepted; one that is delivered again counts again.
pub const EVENTS_DELIVERED: &str = "cell.events.delivered";
/// Deliveries that a sink did not accept and that are offered again.
pub const EVENTS_RETRIES: &str = "cell.events.retries";
/// Gaps that were reported to a sink.
pub const EVENTS_GAPS: &str = "cell.events.gaps";
/// Changes that a collector took and then threw away, as it said itself.
pub const EVENTS_REJECTED: &str = "cell.events.rejected";
/// Age of the newest change that was delivered, in seconds. It grows while nothing is written, too.
pub const EVENTS_NEWEST_AGE: &str = "cell.events.newest_age";

/// Group, cell and table.
type Labels = [Arc<str>; 3];

/// Instruments of sinks. Clones share them.
#[derive(Clone, Debug)]
pub struct EventMetrics {
    delivered: Counter<u64>,
    retries: Counter<u64>,
    gaps: Counter<u64>,
    rejected: Counter<u64>,
    /// When the newest delivered change was made, in seconds of the Unix epoch.
    newest: Arc<Mutex<BTreeMap<Labels, i64>>>,
}

impl EventMetrics {
    pub fn new(meter: &Meter) -> Self {
        let newest: Arc<Mutex<BTreeMap<Labels, i64>>> = Arc::default();
        let observed = newest.clone();
        meter
            .i64_observable_gauge(EVENTS_NEWEST_AGE)
            .with_unit("s")
            .with_description("Age of the newest change of an item that was delivered to a sink")
            .with_callback(move |gauge| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
                for (labels, created) in observed.lock().iter() {
                    gauge.observe(now.saturating_sub(*created).max(0), &attributes(labels));
                }
            })
            .build();
        Self {
            delivered: meter
                .u64_counter(EVENTS_DELIVERED)
                .with_unit("{change}")
                .with_description("Changes of items that a sink accepted")
                .build(),
            retries: meter
                .u64_counter(EVENTS_RETRIES)
                .with_unit("{delivery}")
                .with_description("Deliveries that a sink did not accept")
                .build(),
            gaps: meter
                .u64_counter(EVENTS_GAPS)
                .with_unit("{gap}")
                .with_description("Gaps that were reported to a sink")
                .build(),
            rejected: meter
                .u64_counter(EVENTS_REJECTED)
                .with_unit("{change}")
                .with_description("Changes that a collector took and threw away")
                .build(),
            newest,
        }
    }

    /// The metrics of one table for one group, until dropped.
    pub fn table(&self, group: &str, cell: &str, table: &str) -> TableEventMetrics {
        let labels = [group.into(), cell.into(), table.into()];
        let attributes = attributes(&labels);
        TableEventMetrics { metrics: self.clone(), labels, attributes }
    }
}

fn attributes([group, cell, table]: &Labels) -> [KeyValue; 3] {
    [
        KeyValue::new(names::EVENT_GROUP, StringValue::from(group.clone())),
        KeyValue::new(names::CELL_ID, StringValue::from(cell.clone())),
        KeyValue::new(names::TABLE, StringValue::from(table.clone())),
    ]
}

/// See [`EventMetrics::table`].
#[derive(Debug)]
pub struct TableEventMetrics {
    metrics: EventMetrics,
    labels: Labels,
    attributes: [KeyValue; 3],
}

impl TableEventMetrics {
    /// Changes were accepted, the newest of them made at this second of the Unix epoch.
    pub fn delivered(&self, changes: u64, newest_secs: Option<i64>) {
        self.metrics.delivered.add(changes, &self.attributes);
        if let Some(made) = newest_secs {
            let mut newest = self.metrics.newest.lock();
            let known = newest.entry(self.labels.clone()).or_insert(made);
            *known = made.max(*known);
        }
    }

    pub fn retry(&self) {
        self.metrics.retries.add(1, &self.attributes);
    }

    pub fn gap(&self) {
        self.metrics.gaps.add(1, &self.attributes);
    }

    pub fn rejected(&self, changes: u64) {
        self.metrics.rejected.add(changes, &self.attributes);
    }
}

impl Drop for TableEventMetrics {
    /// A table that is followed no more, here at least, has no age.
    fn drop(&mut self) {
        self.metrics.newest.lock().remove(&self.labels);
    }
}
