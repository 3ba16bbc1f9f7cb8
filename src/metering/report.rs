//! Tells what our own calls consume: by OTLP, and to CloudWatch where that is wanted.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::consumption::{Direction, Tally, Used};
use super::outbox::{Datum, Outbox, Unit};
use super::owners::Names;
use crate::directory::{Directory, Registry};
use crate::domain::Timestamp;
use crate::telemetry::CellMetrics;

/// The value of the dimension `Caller`, by which our own consumption is told from everybody's.
pub const CALLER: &str = "cell-directory";

pub struct Reporter {
    pub tally: Tally,
    pub names: Names,
    pub directory: Directory,
    pub metrics: CellMetrics,
    pub outbox: Option<Outbox>,
    /// Between two reports: a datum of a metric each. At least a minute's where CloudWatch is told.
    pub interval: Duration,
}

impl Reporter {
    /// Reports until `stop`, and then once more; after that nothing comes, and `done` is cancelled.
    pub async fn run(mut self, stop: CancellationToken, done: CancellationToken) {
        let _done = done.drop_guard();
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let stopped = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            self.report(self.directory.now());
            if stopped {
                return;
            }
        }
    }

    fn report(&mut self, now: Timestamp) {
        let minute = now.seconds() - now.seconds().rem_euclid(60);
        let used = self.tally.take();
        let told = self.directory.peek(|registry| self.tell(&used, minute, Some(registry)));
        // Until the registry has been read, nobody calls tables of cells.
        let data = told.unwrap_or_else(|| self.tell(&used, minute, None));
        if let Some(outbox) = &self.outbox {
            outbox.push(data);
        }
    }

    /// Tells OTLP, and answers what CloudWatch is to be told.
    fn tell(
        &self,
        used: &[(Arc<str>, Used)],
        minute: i64,
        registry: Option<&Registry>,
    ) -> Vec<Datum> {
        let mut data = Vec::new();
        for (table, used) in used {
            let owner = self.names.owner(table, registry);
            let datum = |name, value| {
                let datum = Datum::new(name, minute, value, Unit::Count);
                let datum = datum.with("CellId", owner.cell).with("TableName", owner.table);
                datum.with("Caller", CALLER)
            };
            let mut throttles = 0;
            for direction in Direction::ALL {
                let (units, throttled) = (used.units(direction), used.throttles(direction));
                let labels = (owner.cell, owner.table);
                self.metrics.used(labels, direction.as_str(), units, throttled);
                throttles += throttled;
                if units > 0.0 {
                    data.push(datum(consumed(direction), units));
                }
            }
            if throttles > 0 {
                data.push(datum("ThrottledRequests", throttles as f64));
            }
        }
        data
    }
}

fn consumed(direction: Direction) -> &'static str {
    match direction {
        Direction::Read => "ConsumedReadCapacityUnits",
        Direction::Write => "ConsumedWriteCapacityUnits",
    }
}
