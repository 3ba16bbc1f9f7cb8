//! What the edge asks of moves, as one narrow trait: the edge is tested without cells, and knows nothing of workers.

use async_trait::async_trait;

use super::{Ask, Estimate, Findings, GuardCount, Instruction, Migration, MigrationError};
use crate::directory::Request;
use crate::domain::{CellId, MigrationId, PartitionKey};
use crate::store::{Cursor, Page};

/// Moves of tenants. Every error but those of an outcome that is not known means that nothing was changed.
#[async_trait]
pub trait MigrationApi: Send + Sync + 'static {
    /// What a move would take. Changes nothing.
    async fn plan(&self, ask: Ask) -> Result<Estimate, MigrationError>;

    /// Begins a move. The same `request` again answers the migration that it began. `caller`: the W3C `traceparent` of the call.
    async fn start(
        &self,
        ask: Ask,
        request: Option<Request>,
        caller: Option<String>,
    ) -> Result<Migration, MigrationError>;

    async fn get(&self, id: MigrationId) -> Result<Migration, MigrationError>;

    /// At most `limit` migrations that fit the filter; a page may hold fewer, or none, and not be the last.
    async fn list(
        &self,
        filter: Filter,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Migration>, MigrationError>;

    /// Steers a migration. To repeat it is harmless. See [`Instruction::allowed`].
    async fn ask(&self, id: MigrationId, wish: Instruction) -> Result<Migration, MigrationError>;

    /// How many tenants of a cell have no guard yet.
    async fn guards(&self, cell: &CellId) -> Result<GuardCount, MigrationError>;

    /// Compares what the cells hold of a tenant, now. Changes nothing.
    async fn verify(&self, tenant: &PartitionKey) -> Result<TenantVerification, MigrationError>;
}

/// Which migrations to list. All that is set has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub tenant: Option<PartitionKey>,
    /// From or to this cell.
    pub cell: Option<CellId>,
    /// Those that have not ended.
    pub active_only: bool,
}

impl Filter {
    pub fn fits(&self, migration: &Migration) -> bool {
        let spec = &migration.spec;
        let tenant = self.tenant.as_ref().is_none_or(|tenant| *tenant == spec.tenant);
        let cell =
            self.cell.as_ref().is_none_or(|cell| *cell == spec.source || *cell == spec.target);
        tenant && cell && !(self.active_only && migration.record.phase.ended())
    }
}

/// What the cells hold of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantVerification {
    pub findings: Findings,
    /// The cells that were looked at, and the tenant's items in each.
    pub cells: Vec<(CellId, u64)>,
    /// Items in cells where the tenant does not live and no migration needs them.
    pub leftovers: u64,
}
