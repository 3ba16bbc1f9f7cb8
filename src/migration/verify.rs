//! The comparison of both cells, by [`cells_verify`], which shares nothing with the copier, and the repair of what differs still after
//! the log was drained.

use cells_guard::{CellTable, Item, Touched};
use cells_verify::{CellSide, Page, Reader, VerifyError};

use super::access::CellAccess;
use crate::store::StoreError;

impl Reader for CellAccess {
    type Error = StoreError;

    async fn query(
        &self,
        table: &CellTable,
        partition: &str,
        after: Option<&Item>,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let (items, next) = self.page(table, partition, after.cloned(), limit, false).await?;
        Ok(Page { items, next })
    }

    async fn get(&self, table: &CellTable, keys: &[Item]) -> Result<Vec<Option<Item>>, StoreError> {
        let touched = |key: &Item| Touched { table: table.name.clone(), key: key.clone() };
        let keys: Vec<_> = keys.iter().map(touched).collect();
        CellAccess::get(self, &keys).await
    }
}

/// A cell as the verifier sees it.
pub fn side(cell: &CellAccess) -> CellSide<CellAccess> {
    CellSide {
        cell: cell.cell.as_str().to_owned(),
        tables: cells_guard::CellTables::clone(&cell.tables),
        reader: cell.clone(),
    }
}

/// Why a comparison did not get on, as the store's error that it is handled as.
pub fn store_error(error: VerifyError<StoreError>) -> StoreError {
    match error {
        VerifyError::Read { error, .. } => error,
        other => StoreError::Rejected { detail: other.to_string() },
    }
}
