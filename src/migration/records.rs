//! What is kept of migrations. Every write states its precondition; a lost race is a value.

use async_trait::async_trait;

use super::bulk::Part;
use super::model::{Migration, Progress};
use crate::domain::{MigrationId, PartitionKey, Timestamp};
use crate::store::{Cursor, Page, StoreError, Write};

/// What became of a new migration.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    Begun,
    /// There is one of this id.
    Exists(Box<Migration>),
    /// Another one works on the tenant.
    Moving(MigrationId),
    /// The part of the bulk that it was to be begun for is not as it was.
    Superseded,
}

/// What a worker tells of its migration beside the protocol's own steps. By it others see that it is alive.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub beat: u64,
    pub progress: Progress,
    pub trouble: Option<String>,
    pub parked: Option<String>,
}

/// What an operator changes of a migration's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Wish(cells_migration::Wish),
    Pause(bool),
    /// To go on with one that was parked.
    Unpark,
}

#[async_trait]
pub trait MigrationRecords: Send + Sync + 'static {
    /// Begins a migration, where none works on its tenant and, of a bulk, where the part that says so is stored still.
    async fn begin(&self, migration: &Migration, part: Option<&Part>) -> Result<Begun, StoreError>;

    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError>;

    /// The tenants that move now, and the migrations that work on them.
    async fn moving(&self) -> Result<Vec<(PartitionKey, MigrationId)>, StoreError>;

    /// Migrations, the newest first. One that ended long ago may be left out.
    async fn migrations(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Migration>, StoreError>;

    /// Does all of these writes, or none. `false`: a precondition does not hold.
    ///
    /// # Errors
    /// Where [`StoreError::ambiguous`] says so, they may have been done, or may be done yet.
    async fn write(&self, writes: &[Write], now: Timestamp) -> Result<bool, StoreError>;

    /// Tells how far a migration is, where the worker of this number still has it. `false`: another one has.
    async fn tell(
        &self,
        id: MigrationId,
        worker: u64,
        told: &Told,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Changes what is asked of a migration. `false`: there is none.
    async fn order(
        &self,
        id: MigrationId,
        order: Order,
        now: Timestamp,
    ) -> Result<bool, StoreError>;
}
