//! Moves of tenants between cells: what is asked, what is durable, who works on it, and what is found out.
//!
//! [`cells_migration`] decides; [`driver`](self) performs. [`model`] is the durable form; [`api`] is what the edge asks.

pub mod api;
pub mod error;
pub mod eta;
pub mod instruction;
pub mod model;

pub use api::{Filter, GuardCount, MigrationApi, TenantVerification};
pub use error::{MigrationError, Obstacle};
pub use instruction::Instruction;
pub use model::{
    Ask, Estimate, Findings, Migration, MigrationId, Mismatch, MismatchKind, Progress, Spec,
    TargetCell, Verification,
};

/// Migrations that nobody works on, for the tests.
#[cfg(test)]
#[path = "../../tests/support/migrations.rs"]
pub mod fake;
