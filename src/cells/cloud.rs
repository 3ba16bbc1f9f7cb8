//! What provisioning asks of AWS. Narrow, so that a test can stand between any two calls.

use async_trait::async_trait;

use super::data::Item;
use super::plan::{Change, Observed, Wanted};
use crate::domain::{Region, Timestamp};

#[async_trait]
pub trait Cloud: Send + Sync + 'static {
    /// What a table is; `None`: there is none.
    async fn observe(&self, table: &TableRef) -> Result<Option<Observed>, CloudError>;

    /// Begins one change, and does not wait until it has taken effect. May be repeated.
    async fn apply(&self, wanted: &Wanted, change: &Change) -> Result<(), CloudError>;

    /// Whether the table holds any item, by a consistent read.
    async fn holds_data(&self, table: &TableRef) -> Result<bool, CloudError>;

    /// The on-demand backups of a table, whoever made them. They outlive it.
    async fn backups(&self, table: &TableRef) -> Result<Vec<Backup>, CloudError>;

    /// Begins a backup. Repeated, it makes another of the same name: look before.
    async fn create_backup(&self, table: &TableRef, name: &str) -> Result<(), CloudError>;

    /// Deletes one. May be repeated.
    async fn delete_backup(&self, table: &TableRef, backup: &Backup) -> Result<(), CloudError>;

    /// To which times a table can be set back.
    async fn restorable(&self, table: &TableRef) -> Result<Restorable, CloudError>;

    /// Begins to restore into a new table. `Busy` where there is a table of that name.
    async fn restore(&self, restoration: &Restoration) -> Result<(), CloudError>;

    /// A page of at most 1 MB of a table's items, by a consistent read; `from`: after this key.
    async fn page(&self, table: &TableRef, from: Option<&Item>) -> Result<Page, CloudError>;

    /// Begins to delete a table and what scales it. May be repeated.
    async fn delete(&self, table: &TableRef) -> Result<(), CloudError>;
}

/// An on-demand backup of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub name: String,
    /// As AWS identifies it.
    pub arn: String,
    /// Whole. Otherwise it is being made.
    pub available: bool,
    /// When it was begun. It holds what was written until a minute before, and perhaps what was until a minute after.
    pub created: Timestamp,
    pub bytes: u64,
}

/// To which times a table can be set back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restorable {
    /// Point-in-time recovery is off.
    Off,
    Between {
        earliest: Timestamp,
        latest: Timestamp,
        days: u8,
    },
    NoTable,
}

/// A new table with what another one held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoration {
    pub source: TableRef,
    /// The new table's name, in the same Region.
    pub target: String,
    pub from: RestoreFrom,
    /// Billed on demand, however the source is. Otherwise as the source.
    pub on_demand: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreFrom {
    /// A backup, by its ARN.
    Backup(String),
    PointInTime(Timestamp),
}

/// Items of a table, and where to go on; `None`: these were the last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    pub items: Vec<Item>,
    pub next: Option<Item>,
}

/// A table by where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRef {
    pub region: Region,
    pub name: String,
}

impl From<&Wanted> for TableRef {
    fn from(wanted: &Wanted) -> Self {
        Self { region: wanted.region.clone(), name: wanted.name.clone() }
    }
}

/// Why AWS did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// Not now: throttled, too many tables in change, this table in change, or no answer. It may have been done.
    #[error("AWS is busy: {code}")]
    Busy { code: String },
    /// However often it is asked. `detail` is for logs only.
    #[error("AWS refused: {code}: {detail}")]
    Refused { code: String, detail: String },
    /// The endpoint does not know the call.
    #[error("the endpoint does not know this call")]
    Unsupported,
}
