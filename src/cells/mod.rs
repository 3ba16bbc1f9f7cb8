//! What a cell is made of: its tables on DynamoDB, declared once for all cells and brought about by operations that survive a crash.
//!
//! ```text
//! TableSet ── check ──► per cell: wanted tables ─┐
//!                                                ├─ plan (pure) ──► changes ──► worker ──► Cloud
//!                       Cloud::observe ──────────┘
//! ```
//! An operation is level-triggered: it holds no list of steps to be ticked off, but looks at what there is, does the first change that
//! is missing, and looks again. So whoever goes on with it after a crash does the same as who began it, and to run it twice does
//! nothing twice. (The idea is that of Kubernetes' controllers.)

mod aws;
pub mod capacity;
mod check;
mod cloud;
pub mod data;

mod error;
pub mod events;
#[cfg(test)]
pub(crate) mod fixtures;
mod home;
mod memory;
mod operation;
mod plan;
mod records;
mod recovery;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
mod recovery_trouble_tests;
mod registrar;
mod table_set;
mod template;
mod worker;
#[cfg(test)]
mod worker_tests;

pub use aws::{AwsCloud, Regions};
pub use check::Violation;
pub use cloud::{Backup, Cloud, CloudError, Page, Restorable, Restoration, RestoreFrom, TableRef};
pub use error::CellsError;
pub use home::Home;
pub use memory::{MemoryRecords, NoCloud};
pub use operation::{FinalBackup, Goal, Operation, OperationId, OperationState};
pub use plan::{Change, Feature, Observed, ObservedIndex, Plan, TablePlan, Wanted};
pub use records::{CellRecords, CellTablesRecord, Cells, Started};
pub use recovery::{
    CellBackup, Compared, DrillOutcome, DrillSource, Origin, Recovery, RecoveryStatus, Scheduler,
    SchedulerSettings, TableRecovery, Tallied, drill_table,
};
pub use registrar::{Registrar, Removal};
pub use table_set::{
    Autoscaling, BackupSchedule, Billing, Encryption, IndexSpec, KeyAttribute, KeyType, Projection,
    Provision, StreamView, TableClass, TableSet, TableSetId, TableSpec, Throughput,
};
pub use template::KeyTemplate;
pub use worker::{Worker, WorkerSettings};
