//! What is kept of table sets, of which cell has which, and of operations. Every write states its precondition; a lost race is a value.

use std::sync::Arc;

use async_trait::async_trait;
use cells_guard::CellTables;

use super::operation::{Operation, OperationId};
use super::table_set::{TableSet, TableSetId};
use crate::directory::{CellPatch, Directory, Error, Mutation};
use crate::domain::{Cell, CellId};
use crate::store::StoreError;

/// Which tables a cell has, as of the last operation that ended well, and the operation that is at work on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellTablesRecord {
    pub cell: CellId,
    /// The set and its version; `None`: none was ever brought about.
    pub tables: Option<(TableSetId, u64)>,
    pub operation: Option<OperationId>,
}

/// What became of a new operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    Started,
    /// There is one of this id.
    Exists(Box<Operation>),
    /// Another one is at work on the cell.
    Busy(OperationId),
}

/// The registry of cells, read consistently.
#[async_trait]
pub trait Cells: Send + Sync + 'static {
    async fn cell(&self, id: &CellId) -> Result<Option<Arc<Cell>>, Error>;

    /// Records which tables a cell has; `None`: none any more, which is refused while it holds placements. From then on new tenants get
    /// their guards with their placements.
    async fn set_tables(&self, id: &CellId, tables: Option<CellTables>) -> Result<(), Error>;
}

#[async_trait]
impl Cells for Directory {
    async fn cell(&self, id: &CellId) -> Result<Option<Arc<Cell>>, Error> {
        Ok(self.registry().await?.cell(id).cloned())
    }

    async fn set_tables(&self, id: &CellId, tables: Option<CellTables>) -> Result<(), Error> {
        let registry = self.registry().await?;
        let cell = registry.cell(id);
        if cell.is_none_or(|cell| cell.tables.as_deref() == tables.as_ref()) {
            return Ok(());
        }
        let tables = Some(tables.map(Arc::new));
        let patch = CellPatch { tables, ..CellPatch::default() };
        self.update_cell(id.clone(), patch, None, Mutation::default()).await.map(|_| ())
    }
}

#[async_trait]
pub trait CellRecords: Send + Sync + 'static {
    /// The newest version.
    async fn table_set(&self, id: &TableSetId) -> Result<Option<TableSet>, StoreError>;

    /// One version.
    async fn table_set_at(
        &self,
        id: &TableSetId,
        version: u64,
    ) -> Result<Option<TableSet>, StoreError>;

    /// The newest version of each set, in the order of their ids. There are few.
    async fn table_sets(&self) -> Result<Vec<TableSet>, StoreError>;

    /// Adds a version, where the newest one is the one before it. `false`: it is not.
    async fn put_table_set(&self, set: &TableSet) -> Result<bool, StoreError>;

    async fn cell_tables(&self, cell: &CellId) -> Result<Option<CellTablesRecord>, StoreError>;

    /// What every cell has that ever had tables, and by that every operation under way. One item a cell.
    async fn all_cell_tables(&self) -> Result<Vec<CellTablesRecord>, StoreError>;

    /// A cell's drills, as of their last steps, in any order. They are kept for longer than other operations.
    async fn drills(&self, cell: &CellId) -> Result<Vec<Operation>, StoreError>;

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError>;

    /// All operations that are kept, in the order of their ids. They may be many: for whoever lists them.
    async fn operations(&self) -> Result<Vec<Operation>, StoreError>;

    /// Begins an operation, where none is at work on its cell.
    async fn start(&self, operation: &Operation) -> Result<Started, StoreError>;

    /// Writes an operation, where its worker epoch is the stored one, or one above it and its beat the stored one: a taking over.
    /// Where the operation has ended, the cell is free for the next. `false`: somebody else holds it.
    async fn save(&self, operation: &Operation, taking_over: bool) -> Result<bool, StoreError>;
}
