//! Cell Directory: knows which cell each tenant of a cell-based architecture lives in, and decides where new tenants go.
//!
//! `docs/architecture.md` is the map of this house.

#![forbid(unsafe_code)]

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "the feature `mutants` puts faults in on purpose: it is for tests, never for a release"
);

// So that unit tests and those in `tests/` can share their fixtures.
#[cfg(test)]
extern crate self as cell_directory;

pub mod app;
pub mod cells;
pub mod config;
pub mod directory;
pub mod domain;
pub mod embedded;
pub mod grpc;
pub mod metering;
pub mod migration;
pub mod mutants;
pub mod store;
pub mod tasks;
pub mod telemetry;

/// The generated contract (`proto/`).
pub mod proto {
    #![allow(clippy::all, clippy::pedantic, missing_docs)]

    /// Package `cells.v1`.
    pub mod v1 {
        tonic::include_proto!("cells.v1");
    }

    /// The descriptors of all of it, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
