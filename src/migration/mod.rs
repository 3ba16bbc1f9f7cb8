//! Moves of tenants between cells: what is asked, what is durable, who works on it, and what is found out.
//!
//! [`cells_migration`] decides; [`driver`](self) performs. [`model`] is the durable form.

mod access;
mod copier;
pub mod driver;
pub mod guards;
pub mod model;
pub mod records;
mod steps;
mod verify;

pub use model::{Ask, Estimate, Findings, Migration, Progress, Spec, TargetCell, Verification};
pub use records::{Begun, MigrationRecords, Order, Told};
