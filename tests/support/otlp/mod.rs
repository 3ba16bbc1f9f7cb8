//! A real OTLP/gRPC receiver: what a test asserts is what a collector would have got, over a socket, in protobuf.
//!
//! It depends on nothing of the crate under test, so unit tests and integration tests can both include it.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

mod attributes;
mod logs;
mod metrics;
mod receiver;
mod spans;

pub use attributes::{Attr, Attrs};
pub use logs::Log;
pub use metrics::{MetricPoint, MetricValue};
pub use receiver::OtlpReceiver;
pub use spans::{Event, Link, Span, Spans};
