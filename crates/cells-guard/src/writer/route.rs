//! Where a tenant lives, as whoever owns the writer knows it.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use cells_migration::WriteMode;

use crate::CellTables;

/// A cell, as a writer needs it.
#[derive(Debug, Clone)]
pub struct Home {
    pub cell: Arc<str>,
    pub tables: Arc<CellTables>,
    /// Of DynamoDB in the cell's account and Region. Without retries of its own, or a retry that finds its own write makes a success a
    /// failed condition; and on a [`crate::MarkingClient`].
    pub client: Client,
}

/// Where a tenant lives.
#[derive(Debug, Clone)]
pub struct Route<L> {
    pub home: Home,
    /// `None`: a guess. The guard tells.
    pub epoch: Option<u64>,
    pub mode: WriteMode,
    /// Until when direct writes are good.
    pub lease: Option<L>,
}

/// Knows where tenants live.
pub trait Routes: Send + Sync {
    type Error: Send;
    /// The end of a lease on the owner's clock.
    type Lease: Copy + Send + Sync;

    /// Where the tenant lives, at this epoch at least.
    fn route(
        &self,
        tenant: &str,
        least: Option<u64>,
    ) -> impl Future<Output = Result<Route<Self::Lease>, Self::Error>> + Send;

    /// The cell that a guard names as the next one, if it is known without asking anybody.
    fn home(&self, cell: &str) -> impl Future<Output = Option<Home>> + Send;

    /// What is left of a lease; zero: it is over.
    fn left(&self, lease: &Self::Lease) -> Duration;
}
