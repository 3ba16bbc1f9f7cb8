//! Moves of tenants between cells: what is asked, what is durable, who works on it, and what is found out.
//!
//! ```text
//!  edge ── MigrationApi ──► service ── preflight
//!                              │
//!                        MigrationRecords ◄── worker (takes migrations up, and over)
//!                                               │
//!            cells_migration::Machine ◄──────► driver ──► pulse (what is told)
//!                                               │
//!                                            perform ──► steps (guards, record, journal)
//!                                               ├──────► copier, access (items, log)
//!                                               ├──────► outsiders (stream, freeze)
//!                                               └──────► verify (cells_verify)
//! ```
//! [`cells_migration`] decides; [`driver`] has it done. [`bulk`] moves many tenants. [`model`] is the durable form; [`api`] is what the edge asks.

mod access;
pub mod api;
mod beats;
pub mod bounds;
pub mod bulk;
mod copier;
pub mod driver;
pub mod error;
pub mod eta;
pub mod freeze;
pub mod guards;
pub mod instruction;
pub mod model;
mod outsiders;
mod perform;
mod preflight;
mod pulse;
pub mod records;
mod service;
mod steps;
mod stream;
mod trace;
mod verify;
mod worker;

pub use api::{Filter, MigrationApi, TenantVerification};
pub use error::{MigrationError, Obstacle};
pub use guards::GuardCount;
pub use instruction::Instruction;
pub use model::{
    Ask, Estimate, Findings, Migration, Progress, Spec, TargetCell, Verification, Writers,
};
pub use records::{Begun, MigrationRecords, Order, Told};
pub use service::{Defaults, Migrations};
pub use worker::{MigrationWorker, WorkerSettings};

/// Migrations that nobody works on, for the tests.
#[cfg(test)]
#[path = "../../tests/support/migrations.rs"]
pub mod fake;
