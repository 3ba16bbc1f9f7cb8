//! Where there is no DynamoDB: records that live as long as the process, and no AWS.

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::capacity::share::{Billed, Stored};
use super::capacity::{Accounts, Metered, Meters};
use super::cloud::{Backup, Cloud, CloudError, Page, Restorable, Restoration, TableRef};
use super::data::Item;
use super::operation::{Operation, OperationId, OperationState};
use super::plan::{Change, Observed, Wanted};
use super::records::{CellRecords, CellTablesRecord, Started};
use super::table_set::{TableSet, TableSetId};
use crate::domain::CellId;
use crate::store::StoreError;

/// An implementation that forgets.
#[derive(Default)]
pub struct MemoryRecords {
    sets: Mutex<BTreeMap<(String, u64), TableSet>>,
    cells: Mutex<BTreeMap<CellId, CellTablesRecord>>,
    operations: Mutex<BTreeMap<OperationId, Operation>>,
}

impl MemoryRecords {
    fn of_cell(&self, cell: &CellId, change: impl FnOnce(&mut CellTablesRecord)) {
        let mut cells = self.cells.lock();
        let new = || CellTablesRecord { cell: cell.clone(), tables: None, operation: None };
        change(cells.entry(cell.clone()).or_insert_with(new));
    }
}

#[async_trait]
impl CellRecords for MemoryRecords {
    async fn table_set(&self, id: &TableSetId) -> Result<Option<TableSet>, StoreError> {
        let sets = self.sets.lock();
        Ok(sets.values().rfind(|set| set.id == *id).cloned())
    }

    async fn table_set_at(
        &self,
        id: &TableSetId,
        version: u64,
    ) -> Result<Option<TableSet>, StoreError> {
        Ok(self.sets.lock().get(&(id.as_str().to_owned(), version)).cloned())
    }

    async fn table_sets(&self) -> Result<Vec<TableSet>, StoreError> {
        // In their order, a set's newest version comes last.
        let sets = self.sets.lock();
        let newest: BTreeMap<_, _> =
            sets.values().map(|set| (set.id.clone(), set.clone())).collect();
        Ok(newest.into_values().collect())
    }

    async fn put_table_set(&self, set: &TableSet) -> Result<bool, StoreError> {
        let mut sets = self.sets.lock();
        let newest =
            sets.values().rfind(|known| known.id == set.id).map_or(0, |known| known.version);
        if newest + 1 != set.version {
            return Ok(false);
        }
        sets.insert((set.id.as_str().to_owned(), set.version), set.clone());
        Ok(true)
    }

    async fn cell_tables(&self, cell: &CellId) -> Result<Option<CellTablesRecord>, StoreError> {
        Ok(self.cells.lock().get(cell).cloned())
    }

    async fn all_cell_tables(&self) -> Result<Vec<CellTablesRecord>, StoreError> {
        Ok(self.cells.lock().values().cloned().collect())
    }

    async fn drills(&self, cell: &CellId) -> Result<Vec<Operation>, StoreError> {
        let operations = self.operations.lock();
        let drills = operations.values().filter(|operation| operation.cell == *cell);
        Ok(drills.filter(|operation| operation.is_drill()).cloned().collect())
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        Ok(self.operations.lock().get(id).cloned())
    }

    async fn operations(&self) -> Result<Vec<Operation>, StoreError> {
        Ok(self.operations.lock().values().cloned().collect())
    }

    async fn start(&self, operation: &Operation) -> Result<Started, StoreError> {
        let mut operations = self.operations.lock();
        if let Some(existing) = operations.get(&operation.id) {
            return Ok(Started::Exists(Box::new(existing.clone())));
        }
        let busy = operations.values().find(|other| other.cell == operation.cell && !other.ended());
        if let Some(busy) = busy {
            return Ok(Started::Busy(busy.id.clone()));
        }
        operations.insert(operation.id.clone(), operation.clone());
        self.of_cell(&operation.cell, |record| record.operation = Some(operation.id.clone()));
        Ok(Started::Started)
    }

    async fn save(&self, operation: &Operation, taking_over: bool) -> Result<bool, StoreError> {
        let mut operations = self.operations.lock();
        let Some(stored) = operations.get_mut(&operation.id) else { return Ok(false) };
        let epoch = operation.worker_epoch.saturating_sub(u64::from(taking_over));
        if stored.worker_epoch != epoch || (taking_over && stored.beat != operation.beat) {
            return Ok(false);
        }
        *stored = operation.clone();
        if operation.ended() {
            self.of_cell(&operation.cell, |record| {
                record.operation = None;
                let done = operation.state == OperationState::Succeeded;
                if let Some(tables) = operation.goal.leaves().filter(|_| done) {
                    record.tables = tables.map(|(set, version)| (set.clone(), version));
                }
            });
        }
        Ok(true)
    }
}

/// Knows no call at all, and counts nothing.
pub struct NoCloud;

#[async_trait]
impl Cloud for NoCloud {
    async fn observe(&self, _: &TableRef) -> Result<Option<Observed>, CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn apply(&self, _: &Wanted, _: &Change) -> Result<(), CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn holds_data(&self, _: &TableRef) -> Result<bool, CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn backups(&self, _: &TableRef) -> Result<Vec<Backup>, CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn create_backup(&self, _: &TableRef, _: &str) -> Result<(), CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn delete_backup(&self, _: &TableRef, _: &Backup) -> Result<(), CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn restorable(&self, _: &TableRef) -> Result<Restorable, CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn restore(&self, _: &Restoration) -> Result<(), CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn page(&self, _: &TableRef, _: Option<&Item>) -> Result<Page, CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn delete(&self, _: &TableRef) -> Result<(), CloudError> {
        Err(CloudError::Unsupported)
    }
}

#[async_trait]
impl Meters for NoCloud {
    async fn metered(
        &self,
        _: &TableRef,
        _: &[String],
        _: &cells_cost::Window,
    ) -> Result<Vec<Metered>, CloudError> {
        Err(CloudError::Unsupported)
    }
}

#[async_trait]
impl Accounts for NoCloud {
    async fn stored(&self, _: &TableRef, _: &str, _: &str, _: usize) -> Result<Stored, CloudError> {
        Err(CloudError::Unsupported)
    }

    async fn billed(&self, _: &CellId, _: i64, _: i64) -> Billed {
        Billed::Unreachable { code: "there is no cloud".to_owned() }
    }
}
