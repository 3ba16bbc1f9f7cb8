//! Metrics of writes of tenants' items by `CellData`: how they were made, and how they ended. No tenant, no cell and no table is a label.

use cells_guard::writer::{Ended, Ending, How, Watch};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use super::metrics::DURATION_BOUNDS;
use super::names;

/// Calls that were to write, by mode and outcome.
pub const WRITE_CALLS: &str = "cell.write.calls";
/// What they took from when the tenant's cell was known, by mode. What a move has writers wait is seen here.
pub const WRITE_DURATION: &str = "cell.write.duration";

/// Instruments of writes. Clones share them.
#[derive(Clone, Debug)]
pub struct WriteMetrics {
    calls: Counter<u64>,
    duration: Histogram<f64>,
}

impl WriteMetrics {
    pub fn new(meter: &Meter) -> Self {
        Self {
            calls: meter
                .u64_counter(WRITE_CALLS)
                .with_unit("{call}")
                .with_description("Calls that were to write items of a tenant")
                .build(),
            duration: meter
                .f64_histogram(WRITE_DURATION)
                .with_unit("s")
                .with_description(
                    "Duration of calls that were to write, from when the cell was known",
                )
                .with_boundaries(DURATION_BOUNDS.to_vec())
                .build(),
        }
    }
}

fn mode(how: How) -> &'static str {
    match how {
        How::Direct => "direct",
        How::Guarded => "guarded",
        How::Logged => "logged",
    }
}

fn outcome(ending: Ending) -> &'static str {
    match ending {
        Ending::Done => "ok",
        Ending::Retried => "retried",
        Ending::Redirected => "redirected",
        Ending::Settled => "settled",
        Ending::Condition => "condition_failed",
        Ending::Moving => "moving",
        Ending::Busy => "busy",
        Ending::Refused => "refused",
        Ending::Unknown => "unknown",
    }
}

impl Watch for WriteMetrics {
    fn ended(&self, ended: Ended) {
        let mode = KeyValue::new(names::WRITE_MODE, mode(ended.how));
        self.duration.record(ended.took.as_secs_f64(), std::slice::from_ref(&mode));
        self.calls.add(1, &[mode, KeyValue::new(names::WRITE_OUTCOME, outcome(ended.ending))]);
    }
}
