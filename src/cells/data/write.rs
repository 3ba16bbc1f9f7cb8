//! Writes, by the contract that every writer keeps: [`cells_guard::writer`]. Here it learns where tenants live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cells_guard::CellTables;
use cells_guard::writer::{Busy, Call, Error as WriteError, Home, How, Options, Route, Routes};

use super::{CellData, DataError, Item, LEAST_LEASE};
use crate::directory::{Error, Refused, RouteOptions};
use crate::domain::{Cell, CellId, Epoch, PartitionKey, WriteMode};
use crate::store::StoreError;
use crate::store::dynamodb::from_failure;

pub use cells_guard::writer::{Action, Expression, Write};

/// How long a call goes on that names no deadline.
const PATIENCE: Duration = Duration::from_secs(10);

/// Every call of DynamoDB has a shorter deadline of its own.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(60);

/// How long before the caller's deadline a writer gives up at most, so that there is an answer that says more than the deadline.
const MARGIN: Duration = Duration::from_millis(100);

type Writer = cells_guard::writer::Writer<CellData>;

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub cell: CellId,
    /// With a check of the tenant's guard, so that no item is known.
    pub guarded: bool,
    /// Of a put or a delete what was there, of an update what is there now.
    pub item: Option<Item>,
}

impl CellData {
    /// Does one write.
    ///
    /// # Errors
    /// Only after [`Error::OutcomeUnknown`] may it have been done.
    pub async fn write(&self, tenant: &PartitionKey, write: Write) -> Result<Written, DataError> {
        let written = self.writer().write(tenant.as_str(), write, self.call(None)).await;
        self.written(written)
    }

    /// Does all writes, or none. `id`: the same one with the same writes has one effect for ten minutes.
    ///
    /// # Errors
    /// As of [`CellData::write`].
    pub async fn transact(
        &self,
        tenant: &PartitionKey,
        writes: Vec<Write>,
        id: Option<String>,
    ) -> Result<Written, DataError> {
        let written = self.writer().transact(tenant.as_str(), &writes, self.call(id)).await;
        self.written(written)
    }

    fn writer(&self) -> Writer {
        let options = Options {
            least_lease: LEAST_LEASE,
            patience: PATIENCE,
            attempt: LONGEST_ATTEMPT,
            ..Options::default()
        };
        let writer = Writer::new(self.clone(), options, self.guards.clone());
        match &self.watch {
            Some(watch) => writer.watched(Arc::clone(watch)),
            None => writer,
        }
    }

    fn call(&self, id: Option<String>) -> Call {
        let deadline = self.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            (deadline - (left / 10).min(MARGIN)).into()
        });
        Call { deadline, id }
    }

    fn written(
        &self,
        written: Result<cells_guard::writer::Written, WriteError<DataError>>,
    ) -> Result<Written, DataError> {
        let written = written?;
        let cell = CellId::new(&*written.cell).map_err(|invalid| {
            let detail = format!("a cell's name {}", invalid.problem);
            DataError::Store(StoreError::Unreadable { detail })
        })?;
        Ok(Written { cell, guarded: written.how != How::Direct, item: written.item })
    }

    /// A cell with its tables as writers need them.
    async fn writers_home(&self, id: &CellId) -> Result<Home, DataError> {
        let cell = self.registered(id).await?;
        let tables = self.writers_tables(&cell).await?;
        let client = self.regions.dynamodb(&cell.region);
        Ok(Home { cell: id.as_str().into(), tables, client })
    }

    /// As registered with the cell, or else by the table set that it got before tables were registered.
    async fn writers_tables(&self, cell: &Cell) -> Result<Arc<CellTables>, DataError> {
        match &cell.tables {
            Some(tables) => Ok(Arc::clone(tables)),
            None => {
                let set = self.table_set_of(&cell.id).await?;
                Ok(Arc::new(set.cell_tables(&self.prefix, cell, false)))
            }
        }
    }
}

impl Routes for CellData {
    type Error = DataError;
    type Lease = Instant;

    async fn route(&self, tenant: &str, least: Option<u64>) -> Result<Route<Instant>, DataError> {
        let tenant = PartitionKey::new(tenant)
            .map_err(|invalid| DataError::invalid("partition_key", invalid.problem))?;
        let options = RouteOptions {
            min_epoch: least.and_then(Epoch::new),
            deadline: self.deadline,
            ..RouteOptions::default()
        };
        let (residence, lease) = self.routed(tenant, options).await?;
        let mode = match residence.write_mode {
            WriteMode::Direct => cells_migration::WriteMode::Direct,
            WriteMode::Logged => cells_migration::WriteMode::Logged,
        };
        Ok(Route {
            home: self.writers_home(residence.cell.id()).await?,
            epoch: Some(residence.epoch.get()),
            mode,
            lease,
        })
    }

    async fn home(&self, cell: &str) -> Option<Home> {
        self.writers_home(&CellId::new(cell).ok()?).await.ok()
    }

    fn left(&self, lease: &Instant) -> Duration {
        lease.saturating_duration_since(Instant::now())
    }
}

impl From<WriteError<DataError>> for DataError {
    fn from(error: WriteError<DataError>) -> Self {
        match error {
            WriteError::Route(error) => error,
            WriteError::UnknownTable { cell, table } => {
                named(&cell, |cell| DataError::UnknownTable { cell, table })
            }
            WriteError::Invalid { field, problem } => DataError::Invalid { field, problem },
            WriteError::ConditionFailed { write } => DataError::ConditionFailed { write },
            WriteError::GuardMissing { cell } => {
                named(&cell, |cell| DataError::GuardMissing { cell })
            }
            WriteError::Unguarded { cell } => named(&cell, |cell| DataError::NoLease { cell }),
            WriteError::Fenced { .. } | WriteError::Moving => DataError::Moving,
            WriteError::Busy(Busy::Throttled) => StoreError::Throttled.into(),
            WriteError::Busy(Busy::Unreachable) => StoreError::Unreachable.into(),
            WriteError::Busy(Busy::Contended) => Error::from(Refused::Contended).into(),
            WriteError::Refused(failure) => from_failure(failure).into(),
            WriteError::IdUsed => DataError::IdUsed,
            WriteError::Unknown => Error::OutcomeUnknown.into(),
            WriteError::Unreadable(unreadable) => {
                StoreError::Unreadable { detail: format!("a guard's {unreadable}") }.into()
            }
        }
    }
}

/// An error of a cell that writers know by its name.
fn named(cell: &str, error: impl FnOnce(CellId) -> DataError) -> DataError {
    match CellId::new(cell) {
        Ok(cell) => error(cell),
        Err(_) => StoreError::Unreadable { detail: "a cell's name".to_owned() }.into(),
    }
}
