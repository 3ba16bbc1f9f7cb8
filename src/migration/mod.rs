//! Moves of tenants between cells: what is asked, what is durable, who works on it, and what is found out.
//!
//! [`cells_migration`] decides; [`driver`](self) performs. [`model`] is the durable form.

pub mod guards;
pub mod model;
pub mod records;

pub use model::{
    Ask, Estimate, Findings, Migration, Mismatch, MismatchKind, Progress, Spec, TargetCell,
    Verification,
};
pub use records::{Begun, MigrationRecords, Order, Told};
