//! What the edge asks of bulks, as one narrow trait.

use async_trait::async_trait;
use cells_balance::bulk::{Cancel, Item, Limits};
use cells_balance::{Band, Plan};

use super::error::BulkError;
use super::model::{BulkId, BulkRecord, Terms};
use crate::directory::Request;
use crate::domain::CellId;
use crate::store::{Cursor, Page};

/// Tenants that failed or were skipped, of an answer.
pub const MAX_PROBLEMS: usize = 100;

/// Where tenants may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    pub other_regions: bool,
    /// Labels in which the target has to agree with the cell that is left, where that has them.
    pub keep_labels: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DrainAsk {
    pub cell: CellId,
    pub targets: Targets,
    /// No target's utilisation may rise above it.
    pub ceiling: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RebalanceAsk {
    pub band: Band,
    pub targets: Targets,
    pub hotspot_share: f64,
}

/// How a bulk is begun and run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct How {
    pub limits: Limits,
    pub terms: Terms,
    pub request: Option<Request>,
    /// The W3C `traceparent` of the call.
    pub caller: Option<String>,
}

/// A bulk and what went wrong in it.
#[derive(Debug, Clone, PartialEq)]
pub struct BulkPage {
    pub record: BulkRecord,
    /// The first [`MAX_PROBLEMS`] tenants that failed or were skipped.
    pub problems: Vec<Item>,
}

/// Drains and rebalances. Every error but those of an outcome that is not known means that nothing was changed.
#[async_trait]
pub trait BulkApi: Send + Sync + 'static {
    async fn plan_drain(&self, ask: DrainAsk) -> Result<Plan, BulkError>;

    /// Begins a drain. The same `request` again answers the bulk that it began.
    async fn start_drain(&self, ask: DrainAsk, how: How) -> Result<BulkPage, BulkError>;

    async fn plan_rebalance(&self, ask: RebalanceAsk) -> Result<Plan, BulkError>;

    /// Begins a rebalance. The same `request` again answers the bulk that it began.
    async fn start_rebalance(&self, ask: RebalanceAsk, how: How) -> Result<BulkPage, BulkError>;

    async fn get(&self, id: BulkId) -> Result<BulkPage, BulkError>;

    /// At most `limit` bulks; a page may hold fewer, or none, and not be the last.
    async fn list(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<BulkRecord>, BulkError>;

    async fn pause(&self, id: BulkId, paused: bool) -> Result<BulkPage, BulkError>;

    async fn cancel(&self, id: BulkId, how: Cancel) -> Result<BulkPage, BulkError>;
}
