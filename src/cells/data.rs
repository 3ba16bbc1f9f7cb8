//! A tenant's items, read and written in the tenant's cell.
//!
//! Invariants: no call touches a partition that the table's templates do not make of the tenant; writes keep the writers' contract
//! ([`cells_guard::writer`]), so that none is lost or done in a cell that the tenant has left.

mod compare;
mod export;
pub mod json;
mod merge;
mod query;
mod size;
mod write;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::writer::{KnownGuards, Watch};
use parking_lot::Mutex;

use super::aws::Regions;
use super::records::{CellRecords, CellTablesRecord, Cells};
use super::table_set::{TableSet, TableSetId, TableSpec};
use crate::directory::{
    DecisionTrace, Directory, Error, Home, Refused, Residence, RouteOptions, RouteRequest,
};
use crate::domain::{Cell, CellId, Epoch, PartitionKey, WriteMode};
use crate::store::StoreError;
use crate::store::dynamodb::from_sdk;
use crate::telemetry::rpc::RpcTrace;

pub use export::{Export, ExportPosition, Exported};
pub use query::{CellFailure, Found, Position, Query};
pub use size::item_bytes;
pub use write::{Action, Expression, Write, Written};

/// An item, or its key.
pub type Item = HashMap<String, AttributeValue>;

/// How long it is remembered which tables a cell has.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Least lease that a write is begun under.
const LEAST_LEASE: Duration = Duration::from_millis(250);

/// Why a tenant's data cannot be read or written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DataError {
    #[error(transparent)]
    Directory(#[from] Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{cell} has no tables of a table set")]
    NotProvisioned { cell: CellId },
    #[error("{cell} has no table {table}")]
    UnknownTable { cell: CellId, table: String },
    /// The table is declared and not there.
    #[error("a table of {cell} does not exist")]
    TableMissing { cell: CellId },
    /// A field of the request, and what is wrong with it.
    #[error("{field} {problem}")]
    Invalid { field: String, problem: String },
    /// The number of the write whose condition does not hold.
    #[error("the condition of write {write} does not hold")]
    ConditionFailed { write: usize },
    /// And the cell's tables can hold no guards. Nothing was written.
    #[error(
        "the placement's lease is too short for a direct write, and no table of {cell} can hold a guard"
    )]
    NoLease { cell: CellId },
    /// And there is no lease. Nothing was written.
    #[error("the tenant has no guard in {cell}, and no lease for a direct write")]
    GuardMissing { cell: CellId },
    /// For longer than the caller waits. Nothing was written.
    #[error("the tenant is just moving to another cell")]
    Moving,
    /// A request id that was used for other writes, or for these in another form. This call wrote nothing.
    #[error("the request id was used for another transaction")]
    IdUsed,
    /// A position in partitions that the tables of today do not have.
    #[error("the tables' key templates have changed")]
    PositionGone,
    /// A previous cell's table cannot be laid under the current one's.
    #[error("the table of {cell} has another sort key than the current cell's")]
    KeysDiffer { cell: CellId },
    /// The first of the previous cells that are not asked.
    #[error("the tenant has lived in more cells than are asked")]
    TooManyCells,
}

impl DataError {
    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }
}

/// Reads and writes tenants' items.
#[derive(Clone)]
pub struct CellData {
    directory: Directory,
    records: Arc<dyn CellRecords>,
    regions: Arc<Regions>,
    prefix: String,
    known: Arc<Mutex<Known>>,
    /// What guards of tenants on the move said last.
    guards: Arc<KnownGuards>,
    /// Is told of writes.
    watch: Option<Arc<dyn Watch>>,
    /// The call that asks.
    rpc: Option<RpcTrace>,
    /// When whoever asks gives up.
    deadline: Option<Instant>,
}

#[derive(Default)]
struct Known {
    /// Versions never change.
    sets: HashMap<(TableSetId, u64), Arc<TableSet>>,
    cells: HashMap<CellId, (Instant, Option<CellTablesRecord>)>,
}

/// A table of a cell.
struct Place {
    cell: Arc<Cell>,
    spec: TableSpec,
    /// On AWS.
    name: String,
}

/// Where a tenant lives.
struct Lives {
    cell: CellId,
    /// The epoch, where a migration works on the tenant.
    moving: Option<Epoch>,
}

/// A table's stream.
pub(super) struct StreamFound {
    pub spec: TableSpec,
    /// `None`: the table has none.
    pub arn: Option<String>,
    pub streams: aws_sdk_dynamodbstreams::Client,
}

impl CellData {
    pub fn new(
        directory: Directory,
        records: Arc<dyn CellRecords>,
        regions: Arc<Regions>,
        prefix: String,
    ) -> Self {
        let (known, guards) = (Arc::default(), Arc::default());
        let (watch, rpc, deadline) = (None, None, None);
        Self { directory, records, regions, prefix, known, guards, watch, rpc, deadline }
    }

    /// The same, of whose writes this is told.
    pub fn watched(self, watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// The same, whose routing decisions are part of this call's trace.
    pub fn under(&self, rpc: Option<RpcTrace>) -> Self {
        Self { rpc, ..self.clone() }
    }

    /// The same, for a caller who gives up then.
    pub fn until(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    fn client(&self, place: &Place) -> aws_sdk_dynamodb::Client {
        self.regions.dynamodb(&place.cell.region)
    }

    /// The stream of a cell's table.
    pub(super) async fn stream(
        &self,
        cell: &CellId,
        table: &str,
    ) -> Result<StreamFound, DataError> {
        let place = self.place(cell, table).await?;
        let described = self.client(&place).describe_table().table_name(&place.name).send().await;
        let description = match described {
            Ok(described) => described.table,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|e| e.is_resource_not_found_exception()) =>
            {
                return Err(DataError::TableMissing { cell: cell.clone() });
            }
            Err(error) => return Err(from_sdk(&error).into()),
        };
        let enabled = description.filter(|description| {
            description.stream_specification().is_some_and(|stream| stream.stream_enabled())
        });
        let arn = enabled.and_then(|description| description.latest_stream_arn);
        let streams = self.regions.streams(&place.cell.region);
        Ok(StreamFound { spec: place.spec, arn, streams })
    }

    /// The tables that a cell has by its table set; none if it was never provisioned.
    pub(super) async fn tables(&self, cell: &CellId) -> Result<Vec<TableSpec>, DataError> {
        let tables = self.cell_tables(cell).await?.and_then(|record| record.tables);
        let Some((set, version)) = tables else { return Ok(Vec::new()) };
        Ok(self.table_set(set, version, cell).await?.tables.clone())
    }

    /// Where a tenant lives.
    async fn home(&self, tenant: &PartitionKey) -> Result<Lives, DataError> {
        let (residence, _) = self.routed(tenant.clone(), RouteOptions::default()).await?;
        let moving = residence.write_mode == WriteMode::Logged;
        let epoch = moving.then_some(residence.epoch);
        Ok(Lives { cell: residence.cell.id().clone(), moving: epoch })
    }

    /// A tenant's residence, and until when it holds.
    async fn routed(
        &self,
        tenant: PartitionKey,
        options: RouteOptions,
    ) -> Result<(Residence, Option<Instant>), DataError> {
        let trace = DecisionTrace::under(self.rpc.clone());
        let request = RouteRequest::new(tenant, Arc::new(options), trace);
        let routed = self.directory.route(request).await?;
        match routed.home {
            Home::Placed(residence) => Ok((residence, routed.lease_until)),
            // A guess is not asked for, so not answered.
            Home::Default(_) => Err(Error::from(StoreError::Timeout).into()),
        }
    }

    /// A cell's table by the name that its table set has for it.
    async fn place(&self, cell: &CellId, table: &str) -> Result<Place, DataError> {
        let registered = self.registered(cell).await?;
        let set = self.table_set_of(cell).await?;
        let spec = set.table(table).cloned().ok_or_else(|| DataError::UnknownTable {
            cell: cell.clone(),
            table: table.to_owned(),
        })?;
        let name = spec.table_name(&self.prefix, cell);
        Ok(Place { cell: registered, spec, name })
    }

    async fn registered(&self, cell: &CellId) -> Result<Arc<Cell>, DataError> {
        let registered =
            match self.directory.peek(|registry| registry.cell(cell).cloned()).flatten() {
                Some(cell) => Some(cell),
                None => self.directory.cell(cell).await?,
            };
        Ok(registered.ok_or_else(|| Error::from(Refused::CellNotFound { cell: cell.clone() }))?)
    }

    /// The table set that a cell has.
    async fn table_set_of(&self, cell: &CellId) -> Result<Arc<TableSet>, DataError> {
        let tables = self.cell_tables(cell).await?.and_then(|record| record.tables);
        let (set, version) =
            tables.ok_or_else(|| DataError::NotProvisioned { cell: cell.clone() })?;
        self.table_set(set, version, cell).await
    }

    async fn cell_tables(&self, cell: &CellId) -> Result<Option<CellTablesRecord>, StoreError> {
        if let Some((since, record)) = self.known.lock().cells.get(cell)
            && since.elapsed() < REMEMBERED
            && record.as_ref().is_some_and(|record| record.tables.is_some())
        {
            return Ok(record.clone());
        }
        let began = Instant::now();
        let record = self.records.cell_tables(cell).await?;
        self.known.lock().cells.insert(cell.clone(), (began, record.clone()));
        Ok(record)
    }

    async fn table_set(
        &self,
        id: TableSetId,
        version: u64,
        cell: &CellId,
    ) -> Result<Arc<TableSet>, DataError> {
        let key = (id, version);
        if let Some(set) = self.known.lock().sets.get(&key) {
            return Ok(Arc::clone(set));
        }
        let set = self.records.table_set_at(&key.0, version).await?;
        let set = set.ok_or_else(|| DataError::NotProvisioned { cell: cell.clone() })?;
        let set = Arc::new(set);
        self.known.lock().sets.insert(key, Arc::clone(&set));
        Ok(set)
    }
}
