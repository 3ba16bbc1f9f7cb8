//! Metrics of what the server does not take: calls that are shed, connections that are refused or cut, and the state that decides it.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Meter, UpDownCounter};

/// Calls that were refused because the server is overloaded, by `class` and `cause` (`delay|in_flight`).
pub const ADMISSION_SHEDS: &str = "cell.admission.sheds";
/// How long calls wait for a processor, in seconds.
pub const ADMISSION_QUEUE_DELAY: &str = "cell.admission.queue_delay";
/// How many calls may wait for a processor before one of each `class` is refused; 2^32 - 1 while there is no bound.
pub const ADMISSION_QUEUE_BOUND: &str = "cell.admission.queue_bound";
/// Calls that wait for the table.
pub const ADMISSION_IN_FLIGHT: &str = "cell.admission.in_flight";
/// Connections that are open.
pub const CONNECTIONS_OPEN: &str = "cell.connections.open";
/// Connections that the server ended, by `cause` (`limit|handshake|idle|age|grace`).
pub const CONNECTIONS_ENDED: &str = "cell.connections.ended";

/// Instruments of admission and of connections. Clones share them.
#[derive(Clone, Debug)]
pub struct OverloadMetrics {
    sheds: Counter<u64>,
    queue_delay: Gauge<f64>,
    queue_bound: Gauge<u64>,
    in_flight: Gauge<u64>,
    open: UpDownCounter<i64>,
    ended: Counter<u64>,
}

impl OverloadMetrics {
    pub fn new(meter: &Meter) -> Self {
        Self {
            sheds: meter
                .u64_counter(ADMISSION_SHEDS)
                .with_unit("{call}")
                .with_description("Calls that were refused because the server is overloaded")
                .build(),
            queue_delay: meter
                .f64_gauge(ADMISSION_QUEUE_DELAY)
                .with_unit("s")
                .with_description("How long calls wait for a processor")
                .build(),
            queue_bound: meter
                .u64_gauge(ADMISSION_QUEUE_BOUND)
                .with_unit("{call}")
                .with_description("Calls that may wait for a processor, by class")
                .build(),
            in_flight: meter
                .u64_gauge(ADMISSION_IN_FLIGHT)
                .with_unit("{call}")
                .with_description("Calls that wait for the table")
                .build(),
            open: meter
                .i64_up_down_counter(CONNECTIONS_OPEN)
                .with_unit("{connection}")
                .with_description("Connections that are open")
                .build(),
            ended: meter
                .u64_counter(CONNECTIONS_ENDED)
                .with_unit("{connection}")
                .with_description("Connections that the server refused or ended")
                .build(),
        }
    }

    /// Adds refused calls of one class for one cause.
    pub fn shed(&self, class: &'static str, cause: &'static str, calls: u64) {
        self.sheds.add(calls, &[KeyValue::new("class", class), KeyValue::new("cause", cause)]);
    }

    pub fn queue_delay(&self, seconds: f64) {
        self.queue_delay.record(seconds, &[]);
    }

    pub fn queue_bound(&self, class: &'static str, calls: u32) {
        self.queue_bound.record(calls.into(), &[KeyValue::new("class", class)]);
    }

    pub fn in_flight(&self, calls: u64) {
        self.in_flight.record(calls, &[]);
    }

    /// A connection was opened (1) or is gone (-1).
    pub fn connections(&self, change: i64) {
        self.open.add(change, &[]);
    }

    /// The server refused or ended a connection.
    pub fn connection_ended(&self, cause: &'static str) {
        self.ended.add(1, &[KeyValue::new("cause", cause)]);
    }
}
