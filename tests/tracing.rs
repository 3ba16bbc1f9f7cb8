//! Telemetry as a collector gets it: a real `celld` process, a real OTLP receiver, real gRPC calls between them.
//!
//! `trees` asserts the whole span tree of each source, `sampling` what is exported and what is not, `privacy` that no tenant is seen in
//! clear, `metrics` that the numbers are those of the calls made, `collectors` that a sick collector changes no answer.

#[path = "support/celld.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod celld;
#[path = "support/embedded.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod embedded;
#[path = "support/otlp/mod.rs"]
mod otlp;
#[path = "support/relay.rs"]
mod relay;

#[path = "tracing/collectors.rs"]
mod collectors;
#[path = "tracing/harness.rs"]
mod harness;
#[path = "tracing/metrics.rs"]
mod metrics;
#[path = "tracing/privacy.rs"]
mod privacy;
#[path = "tracing/sampling.rs"]
mod sampling;
#[path = "tracing/trees.rs"]
mod trees;
