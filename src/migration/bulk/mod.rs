//! Drains and rebalances: many migrations as one durable thing.
//!
//! ```text
//!  edge ── BulkApi ──► Bulks (service) ── gather ──► cells_balance::plan_drain, plan_rebalance
//!                         │
//!                    BulkRecords ◄── BulkWorker (takes bulks up, and over)
//!                                       │
//!                cells_balance::Bulk ◄──┴── Runner ──► Moves (migrations are begun, looked at, cancelled)
//! ```
//! [`cells_balance`] decides; [`runner`] performs: a step is stored before it is acted upon, and a migration is begun only where the stored step is
//! still the last word. So whatever dies, and whoever takes over from a worker that is alive, no tenant is moved that was given up, and none twice.

pub mod api;
pub mod error;
mod gather;
pub mod model;
mod moves;
pub mod records;
pub mod runner;
mod service;
mod worker;

pub use api::{BulkApi, BulkPage, DrainAsk, How, RebalanceAsk, Targets};
pub use error::BulkError;
pub use model::{BulkId, BulkProgress, BulkRecord, Planned, Terms, migration_id};
pub use moves::{Moves, NotStarted, Order};
pub use records::{BulkBegun, BulkRecords, Part};
pub use runner::BulkShared;
pub use service::{BulkParts, Bulks};
pub use worker::{BulkSettings, BulkWorker};

#[cfg(test)]
mod tests;
