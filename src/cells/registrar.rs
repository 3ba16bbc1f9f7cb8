//! What an operator asks of cells' tables: checked here, brought about by the [worker](super::Worker).

use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::capacity::Accounts;
use super::check;
use super::cloud::{Cloud, TableRef};
use super::error::CellsError;
use super::memory::{MemoryRecords, NoCloud};
use super::operation::{FinalBackup, Goal, Operation, OperationId};
use super::plan::{Plan, Wanted, plan};
use super::records::{CellRecords, Cells, Started};
use super::table_set::{TableSet, TableSetId};
use crate::directory::{Directory, Error, Randomness, Refused, Request};
use crate::domain::{Cell, CellId};
use crate::migration::{Migration, MigrationRecords, Spec};

/// How often a write of a new version is tried against others who write one, too.
const MAX_RACES: usize = 8;

/// Migrations that are read at the same time, and at most so many that are told.
const LOOKS: usize = 16;
const MAX_MOVES: usize = 10;

#[derive(Clone)]
pub struct Registrar {
    pub directory: Directory,
    pub records: Arc<dyn CellRecords>,
    pub cloud: Arc<dyn Cloud>,
    pub accounts: Arc<dyn Accounts>,
    /// `None`: no tenant moves here.
    pub migrations: Option<Arc<dyn MigrationRecords>>,
    /// Before every table's name.
    pub prefix: String,
    pub randomness: Randomness,
}

/// How to remove a cell's tables.
#[derive(Debug, Clone, Copy)]
pub struct Removal {
    /// Tables that hold items go, too.
    pub delete_data: bool,
    pub final_backup: FinalBackup,
}

impl Registrar {
    /// For a directory on a store without tables: what is put is kept in memory, and nothing can be provisioned.
    pub fn without_cloud(directory: Directory) -> Self {
        Self {
            directory,
            records: Arc::new(MemoryRecords::default()),
            cloud: Arc::new(NoCloud),
            accounts: Arc::new(NoCloud),
            migrations: None,
            prefix: String::new(),
            randomness: Randomness::system(),
        }
    }

    /// Makes the next version of a table set, or answers the present one where it is the same already. `set.version` and `set.created`
    /// are not looked at. `etag`: only on top of this version.
    pub async fn put_table_set(
        &self,
        mut set: TableSet,
        etag: Option<&str>,
        validate_only: bool,
    ) -> Result<TableSet, CellsError> {
        let violations = check::table_set(&set);
        if !violations.is_empty() {
            return Err(CellsError::Invalid(violations));
        }
        for _ in 0..MAX_RACES {
            let present = self.records.table_set(&set.id).await?;
            if let Some(etag) = etag {
                let is = present.as_ref().map(TableSet::etag).unwrap_or_default();
                if is != etag {
                    return Err(CellsError::EtagMismatch { present: is });
                }
            }
            if let Some(present) = &present
                && (&present.tables, &present.tags, &present.backups)
                    == (&set.tables, &set.tags, &set.backups)
            {
                return Ok(present.clone());
            }
            set.version = present.map_or(1, |present| present.version + 1);
            set.created = self.directory.now();
            if validate_only || self.records.put_table_set(&set).await.map_err(Error::of_write)? {
                return Ok(set);
            }
        }
        Err(CellsError::Directory(Refused::Contended.into()))
    }

    pub async fn table_set(&self, id: &TableSetId) -> Result<TableSet, CellsError> {
        let found = self.records.table_set(id).await?;
        found.ok_or_else(|| CellsError::TableSetNotFound(id.clone()))
    }

    /// What [`Registrar::provision`] would change, drift included.
    pub async fn plan(
        &self,
        cell: &CellId,
        set: &TableSetId,
    ) -> Result<(TableSet, Plan), CellsError> {
        let (cell, set) = self.checked(cell, set).await?;
        let wanted = Wanted::of(&set, &self.prefix, &cell);
        let tables = wanted.iter().map(async |wanted| {
            let observed = self.cloud.observe(&TableRef::from(wanted)).await?;
            Ok::<_, CellsError>((wanted.name.clone(), plan(wanted, observed.as_ref())))
        });
        Ok((set, Plan { tables: try_join_all(tables).await? }))
    }

    /// Begins to bring about a cell's tables. Repeated with the same request, answers the operation that it began.
    pub async fn provision(
        &self,
        cell: &CellId,
        set: &TableSetId,
        request: Option<&Request>,
    ) -> Result<Operation, CellsError> {
        let (cell, set) = self.checked(cell, set).await?;
        let (set, version) = (set.id, set.version);
        self.start(&cell.id, |_| Goal::Provision { set, version }, request).await
    }

    /// Begins to remove a cell's tables.
    pub async fn deprovision(
        &self,
        cell: &CellId,
        removal: Removal,
        request: Option<&Request>,
    ) -> Result<Operation, CellsError> {
        if let Some(begun) = self.begun(cell, request).await? {
            return Ok(begun);
        }
        let cell = self.cell(cell).await?;
        let mut obstacles = obstacles(&cell);
        obstacles.extend(self.moves(&cell.id).await?);
        if !obstacles.is_empty() {
            return Err(CellsError::InUse { cell: cell.id.clone(), obstacles });
        }
        let tables = self.records.cell_tables(&cell.id).await?;
        let Some((set, version)) = tables.and_then(|record| record.tables) else {
            return Err(CellsError::NotProvisioned { cell: cell.id.clone() });
        };
        if !removal.delete_data {
            let obstacles = self.full_tables(&cell, &set, version).await?;
            if !obstacles.is_empty() {
                return Err(CellsError::InUse { cell: cell.id.clone(), obstacles });
            }
        }
        let Removal { delete_data, final_backup } = removal;
        let goal = Goal::Deprovision { set, version, delete_data, final_backup };
        self.start(&cell.id, |_| goal, request).await
    }

    /// Refuses to lose sight of tables and migrations: a cell that has some, or is about to, is not to be unregistered.
    pub async fn refuse_if_in_use(&self, cell: &CellId) -> Result<(), CellsError> {
        let mut obstacles = self.moves(cell).await?;
        let record = self.records.cell_tables(cell).await?;
        if record.is_some_and(|record| record.tables.is_some() || record.operation.is_some()) {
            obstacles.push("the cell has tables: deprovision it first".to_owned());
        }
        match obstacles.is_empty() {
            true => Ok(()),
            false => Err(CellsError::InUse { cell: cell.clone(), obstacles }),
        }
    }

    /// The first of the migrations from or to a cell. From LOGGING on both cells count the tenant, but the target of one that is PLANNED
    /// does not. One may begin just after this look: its worker looks at the cell again, and ends it where the cell takes no tenants.
    async fn moves(&self, cell: &CellId) -> Result<Vec<String>, CellsError> {
        let Some(records) = &self.migrations else { return Ok(Vec::new()) };
        let running = records.moving().await?;
        let looks = running.into_iter().map(|(_, id)| records.migration(id));
        let of_cell = |migration: Migration| {
            let Spec { source, target, .. } = &migration.spec;
            let ends = [source, target].contains(&cell) && !migration.record.phase.ended();
            ends.then(|| {
                let (id, state) = (migration.id(), migration.record.phase.name());
                format!(
                    "migration {id} from {source} to {target} is {state}: wait until it has ended, or cancel it"
                )
            })
        };
        let found = stream::iter(looks)
            .buffered(LOOKS)
            .try_filter_map(|found| std::future::ready(Ok(found.and_then(of_cell))));
        Ok(found.take(MAX_MOVES).try_collect().await?)
    }

    pub async fn operation(&self, id: &OperationId) -> Result<Operation, CellsError> {
        let found = self.records.operation(id).await?;
        found.ok_or_else(|| CellsError::OperationNotFound(id.clone()))
    }

    pub(super) async fn cell(&self, id: &CellId) -> Result<Arc<Cell>, CellsError> {
        let cell = self.directory.cell(id).await?;
        cell.ok_or_else(|| CellsError::Directory(Refused::CellNotFound { cell: id.clone() }.into()))
    }

    /// A cell and the newest version of a set, which fits it.
    async fn checked(
        &self,
        cell: &CellId,
        set: &TableSetId,
    ) -> Result<(Arc<Cell>, TableSet), CellsError> {
        let cell = self.cell(cell).await?;
        let set = self.table_set(set).await?;
        let violations = check::for_cell(&set, &self.prefix, &cell);
        match violations.is_empty() {
            true => Ok((cell, set)),
            false => Err(CellsError::Invalid(violations)),
        }
    }

    async fn full_tables(
        &self,
        cell: &Cell,
        set: &TableSetId,
        version: u64,
    ) -> Result<Vec<String>, CellsError> {
        let set = self.records.table_set_at(set, version).await?;
        let mut full = Vec::new();
        for wanted in set.iter().flat_map(|set| Wanted::of(set, &self.prefix, cell)) {
            let table = TableRef::from(&wanted);
            if self.cloud.observe(&table).await?.is_some() && self.cloud.holds_data(&table).await? {
                full.push(format!("table {} holds items", wanted.name));
            }
        }
        Ok(full)
    }

    /// The operation that this very request began before, if any.
    pub(super) async fn begun(
        &self,
        cell: &CellId,
        request: Option<&Request>,
    ) -> Result<Option<Operation>, CellsError> {
        let Some(request) = request else { return Ok(None) };
        match self.records.operation(&operation_id(request.begins())?).await? {
            Some(begun) if begun.digest == request.digest && begun.cell == *cell => Ok(Some(begun)),
            Some(_) => Err(CellsError::RequestIdReused),
            None => Ok(None),
        }
    }

    /// Begins an operation. `goal`: by the operation's id, of which names are made.
    pub(super) async fn start(
        &self,
        cell: &CellId,
        goal: impl FnOnce(&OperationId) -> Goal,
        request: Option<&Request>,
    ) -> Result<Operation, CellsError> {
        if let Some(begun) = self.begun(cell, request).await? {
            return Ok(begun);
        }
        let (id, digest) = match request {
            Some(request) => (operation_id(request.begins())?, request.digest.clone()),
            None => (operation_id(self.randomness.draw())?, String::new()),
        };
        let goal = goal(&id);
        let operation = Operation::new(id, cell.clone(), goal, digest, self.directory.now());
        match self.records.start(&operation).await.map_err(Error::of_write)? {
            Started::Started => Ok(operation),
            Started::Exists(begun) if begun.digest == operation.digest && begun.cell == *cell => {
                Ok(*begun)
            }
            Started::Exists(_) => Err(CellsError::RequestIdReused),
            Started::Busy(operation) => Err(CellsError::Busy { cell: cell.clone(), operation }),
        }
    }
}

/// Why a cell's tables cannot be removed, as far as the registry knows.
pub(super) fn obstacles(cell: &Cell) -> Vec<String> {
    let mut obstacles = Vec::new();
    if cell.state == crate::domain::CellState::Active {
        obstacles
            .push("the cell is ACTIVE: cordon it, so that no tenant comes in between".to_owned());
    }
    if cell.placements > 0 {
        obstacles
            .push(format!("{} tenants live in the cell: move or delete them", cell.placements));
    }
    obstacles
}

fn operation_id(id: u128) -> Result<OperationId, CellsError> {
    // Always of the right form.
    OperationId::new(format!("op-{id:032x}")).map_err(|_| CellsError::RequestIdReused)
}
