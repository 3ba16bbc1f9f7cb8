//! What provisioning asks of AWS. Narrow, so that a test can stand between any two calls.

use async_trait::async_trait;

use super::plan::{Change, Observed, Wanted};
use crate::domain::Region;

#[async_trait]
pub trait Cloud: Send + Sync + 'static {
    /// What a table is; `None`: there is none.
    async fn observe(&self, table: &TableRef) -> Result<Option<Observed>, CloudError>;

    /// Begins one change, and does not wait until it has taken effect. May be repeated.
    async fn apply(&self, wanted: &Wanted, change: &Change) -> Result<(), CloudError>;

    /// Whether the table holds any item, by a consistent read.
    async fn holds_data(&self, table: &TableRef) -> Result<bool, CloudError>;

    /// Makes a backup of this name unless there is one; answers whether it is there and whole.
    async fn back_up(&self, table: &TableRef, backup: &str) -> Result<bool, CloudError>;

    /// Begins to delete a table and what scales it. May be repeated.
    async fn delete(&self, table: &TableRef) -> Result<(), CloudError>;
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
