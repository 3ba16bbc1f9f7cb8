//! How the cells are read: by what the owner implements, and nothing of a copier.

use cells_guard::{CellTable, CellTables};

use crate::Item;

/// Items of a partition in the order of their sort keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Whole, with all their attributes.
    pub items: Vec<Item>,
    /// The key after which it goes on, as the storage answered it; `None`: that was all.
    pub next: Option<Item>,
}

/// Reads one cell's tables, strongly consistently: what an eventually consistent read does not show yet would pass for missing, and
/// what it still shows for present.
pub trait Reader: Send + Sync {
    type Error: Send;

    /// The next page of a partition, of at most `limit` items: of its beginning, or after a key that need not exist any more.
    fn query(
        &self,
        table: &CellTable,
        partition: &str,
        after: Option<&Item>,
        limit: u32,
    ) -> impl Future<Output = Result<Page, Self::Error>> + Send;

    /// What is under these keys, at most [`crate::verifier::KEYS_AT_ONCE`] different ones: an answer for each, in their order. What
    /// the storage left out for now has to be asked for again, not answered as absent.
    fn get(
        &self,
        table: &CellTable,
        keys: &[Item],
    ) -> impl Future<Output = Result<Vec<Option<Item>>, Self::Error>> + Send;
}

/// One cell: its name, as items have it in `CellId`, its tables, and who reads them.
#[derive(Debug)]
pub struct CellSide<R> {
    pub cell: String,
    pub tables: CellTables,
    pub reader: R,
}
