//! Reads of placements. The index by cell is only asked which keys a cell holds; what they are is read from the table itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::operation::query::{QueryError, QueryOutput};
use aws_sdk_dynamodb::operation::scan::ScanOutput;
use aws_sdk_dynamodb::types::Select;

use super::attributes::{Item, Reader, text};
use super::batch::{ByTable, batch_get};
use super::call::Call;
use super::error::{from_sdk, rejected};
use super::schema::mapping::{CELL_ID, PARTITION_KEY};
use super::schema::{CELL_ID_INDEX, TTL, control, history_pk};
use super::{DynamoDbStore, cursor, mapping, page_size, records};
use crate::domain::{CellId, HistoryRecord, Mapping, PartitionKey, Placement, Timestamp};
use crate::store::{Cursor, MAX_KEYS, Page, Placements, StoreError};

/// Most items a page examines.
const LIST_PAGE: i32 = 1000;

/// Most items of a page of the whole table; DynamoDB ends a page at 1 MB.
const SCAN_PAGE: i32 = 5000;

/// Most pages without a single item that one call of `list` goes through before it hands back an empty one.
const EMPTY_PAGES: usize = 16;

/// Most pages of an index or a table that a count reads, of up to 1 MB each.
const COUNT_PAGES: usize = 100_000;

#[async_trait]
impl Placements for DynamoDbStore {
    async fn mapping(&self, key: &PartitionKey) -> Result<Mapping, StoreError> {
        let get = self
            .client
            .get_item()
            .table_name(self.names.mappings())
            .set_key(Some(mapping::key(key)))
            .consistent_read(true);
        let tables = [self.names.mappings()];
        let output = Call::consistent("GetItem", &tables).run(get.send()).await?;
        match output.item {
            Some(item) => mapping::read(self.names.mappings(), &item),
            None => Ok(Mapping::Absent),
        }
    }

    async fn mappings(&self, keys: &[PartitionKey]) -> Vec<Result<Mapping, StoreError>> {
        let table = self.names.mappings();
        let names: Vec<&str> = keys.iter().map(PartitionKey::as_str).collect();
        let items = match self.batch(&names).await {
            Ok(items) => items,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let mut found: HashMap<&str, &Item> = HashMap::with_capacity(items.len());
        for item in &items {
            // An answer without its key is none of those that were asked for.
            if let Ok(key) = (Reader { table, item }).text(PARTITION_KEY) {
                found.insert(key, item);
            }
        }
        let read =
            |key| found.get(key).map_or(Ok(Mapping::Absent), |item| mapping::read(table, item));
        names.into_iter().map(read).collect()
    }

    async fn list(
        &self,
        cell: Option<&CellId>,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        if let Some(cell) = cell
            && let Some(page) = self.list_by_index(cell, limit, after).await?
        {
            return Ok(page);
        }
        self.list_by_scan(cell, limit, after).await
    }

    async fn count(&self, cell: &CellId) -> Result<u64, StoreError> {
        let (mut count, mut start) = (0, None);
        for _ in 0..COUNT_PAGES {
            let counted = match self.index_page(cell, None, start.clone(), true).await? {
                Some(page) => (page.count, page.last_evaluated_key),
                None => {
                    let filter = Filter::Cell(cell);
                    let page = self.scan_page(filter, None, start, true).await?;
                    (page.count, page.last_evaluated_key)
                }
            };
            count += u64::try_from(counted.0).unwrap_or(0);
            start = counted.1.filter(|key| !key.is_empty());
            if start.is_none() {
                return Ok(count);
            }
        }
        Err(rejected("a cell holds more placements than are counted".into()))
    }

    async fn expired(
        &self,
        now: Timestamp,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let start = cursor::start(after, &[PARTITION_KEY], false)?;
        let limit = page_size(limit, LIST_PAGE);
        let page = self.scan_page(Filter::Expiring, Some(limit), start, false).await?;
        let expired = |placement: &Placement| placement.expired(now);
        let items = self.readable(page.items.unwrap_or_default()).filter(expired).collect();
        Ok(Page { items, next: cursor::after(page.last_evaluated_key)? })
    }

    async fn scan(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let start = cursor::start(after, &[PARTITION_KEY], false)?;
        let limit = page_size(limit, SCAN_PAGE);
        let page = self.scan_page(Filter::Placed, Some(limit), start, false).await?;
        let items = self.readable(page.items.unwrap_or_default()).collect();
        Ok(Page { items, next: cursor::after(page.last_evaluated_key)? })
    }

    async fn history(
        &self,
        key: &PartitionKey,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<HistoryRecord>, StoreError> {
        let start = cursor::start(after, &[control::PK, control::SK], false)?;
        let pk = text(history_pk(key));
        if start.as_ref().is_some_and(|start| start.get(control::PK) != Some(&pk)) {
            return Err(StoreError::ForeignCursor);
        }
        let limit = page_size(limit, LIST_PAGE);
        let query = self
            .client
            .query()
            .table_name(self.names.control())
            .consistent_read(true)
            .key_condition_expression(format!("{} = :pk", control::PK))
            .expression_attribute_values(":pk", pk)
            .scan_index_forward(false)
            .limit(limit)
            .set_exclusive_start_key(start);
        let tables = [self.names.control()];
        let mut call = Call::consistent("Query", &tables);
        call.limit = Some(limit);
        let page = call.run(query.send()).await?;
        let items = page.items.unwrap_or_default();
        let read = |item| records::read_history(self.names.control(), item);
        Ok(Page {
            items: items.iter().map(read).collect::<Result<_, _>>()?,
            next: cursor::after(page.last_evaluated_key)?,
        })
    }
}

/// Which items a scan is after.
#[derive(Clone, Copy)]
enum Filter<'a> {
    Placed,
    Cell(&'a CellId),
    Expiring,
}

impl DynamoDbStore {
    /// `None` where the table has no index by cell.
    async fn list_by_index(
        &self,
        cell: &CellId,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Option<Page<Placement>>, StoreError> {
        if self.index_missing.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // An index that somebody else made may have a sort key.
        let start = cursor::start(after, &[PARTITION_KEY, CELL_ID], true)?;
        let other = |start: &Item| start.get(CELL_ID) != Some(&text(cell.as_str()));
        if start.as_ref().is_some_and(other) {
            return Err(StoreError::ForeignCursor);
        }
        let limit = page_size(limit, LIST_PAGE);
        let Some(page) = self.index_page(cell, Some(limit), start, false).await? else {
            return Ok(None);
        };
        let keys = page.items.unwrap_or_default();
        Ok(Some(Page {
            items: self.placements_of(cell, &keys).await?,
            next: cursor::after(page.last_evaluated_key)?,
        }))
    }

    /// A page of the index, or `None` where the table has none that can be read.
    async fn index_page(
        &self,
        cell: &CellId,
        limit: Option<i32>,
        start: Option<Item>,
        count: bool,
    ) -> Result<Option<QueryOutput>, StoreError> {
        if self.index_missing.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let query = self
            .client
            .query()
            .table_name(self.names.mappings())
            .index_name(CELL_ID_INDEX)
            .key_condition_expression(format!("{CELL_ID} = :cell"))
            .expression_attribute_values(":cell", text(cell.as_str()))
            .set_select(count.then_some(Select::Count))
            .set_limit(limit)
            .set_exclusive_start_key(start);
        let tables = [self.names.mappings()];
        let mut call = Call::new("Query", &tables);
        (call.index, call.limit) = (Some(CELL_ID_INDEX), limit);
        let error = match call.raw(query.send()).await {
            Ok(page) => return Ok(Some(page)),
            Err(error) => error,
        };
        match error.as_service_error().map(index_trouble) {
            Some(IndexTrouble::Missing) => {
                tracing::warn!(
                    table = self.names.mappings(),
                    "{CELL_ID_INDEX} does not exist, so listings by cell read the whole table: run `celld tables create`"
                );
                self.index_missing.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Some(IndexTrouble::Backfilling) => Ok(None),
            Some(IndexTrouble::None) | None => Err(from_sdk(&error)),
        }
    }

    /// The placements among items. Those that cannot be read are passed over.
    fn readable(&self, items: Vec<Item>) -> impl Iterator<Item = Placement> {
        items.into_iter().filter_map(|item| match mapping::read(self.names.mappings(), &item) {
            Ok(Mapping::Placed(placement)) => Some(placement),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "passed over a placement that cannot be read");
                None
            }
        })
    }

    /// The placements of keys, in the keys' order, as the table has them: those that are still in the cell.
    async fn placements_of(
        &self,
        cell: &CellId,
        keys: &[Item],
    ) -> Result<Vec<Placement>, StoreError> {
        let table = self.names.mappings();
        let mut ordered = Vec::with_capacity(keys.len());
        for item in keys {
            ordered.push(Reader { table, item }.text(PARTITION_KEY)?);
        }
        let mut found = BTreeMap::new();
        for chunk in ordered.chunks(MAX_KEYS) {
            for item in self.batch(chunk).await? {
                if let Mapping::Placed(placement) = mapping::read(table, &item)? {
                    found.insert(placement.key.as_str().to_owned(), placement);
                }
            }
        }
        let placements = ordered.into_iter().filter_map(|key| found.remove(key));
        Ok(placements.filter(|placement| placement.cell == *cell).collect())
    }

    /// Reads at most [`MAX_KEYS`] items by their keys.
    async fn batch(&self, keys: &[&str]) -> Result<Vec<Item>, StoreError> {
        let table = self.names.mappings();
        let keys = keys.iter().map(|key| Item::from([(PARTITION_KEY.to_owned(), text(*key))]));
        let wanted = ByTable::from([(table.to_owned(), keys.collect())]);
        let mut found = batch_get(&self.client, wanted).await?;
        Ok(found.remove(table).unwrap_or_default())
    }

    async fn list_by_scan(
        &self,
        cell: Option<&CellId>,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let mut start = cursor::start(after, &[PARTITION_KEY], false)?;
        let limit = page_size(limit, LIST_PAGE);
        let filter = cell.map_or(Filter::Placed, Filter::Cell);
        let mut next = None;
        for _ in 0..EMPTY_PAGES {
            let page = self.scan_page(filter, Some(limit), start.take(), false).await?;
            let mut items = Vec::new();
            for item in page.items.unwrap_or_default() {
                if let Mapping::Placed(placement) = mapping::read(self.names.mappings(), &item)? {
                    items.push(placement);
                }
            }
            next = cursor::after(page.last_evaluated_key.clone())?;
            if !items.is_empty() || next.is_none() {
                return Ok(Page { items, next });
            }
            start = page.last_evaluated_key;
        }
        let items = Vec::new();
        Ok(Page { items, next })
    }

    /// A page of the table, of the items that pass a filter.
    async fn scan_page(
        &self,
        filter: Filter<'_>,
        limit: Option<i32>,
        start: Option<Item>,
        count: bool,
    ) -> Result<ScanOutput, StoreError> {
        let scan = self
            .client
            .scan()
            .table_name(self.names.mappings())
            .consistent_read(true)
            .set_limit(limit)
            .set_select(count.then_some(Select::Count))
            .set_exclusive_start_key(start);
        let scan = match filter {
            Filter::Placed => scan.filter_expression(format!("attribute_exists({CELL_ID})")),
            Filter::Cell(cell) => scan
                .filter_expression(format!("{CELL_ID} = :cell"))
                .expression_attribute_values(":cell", text(cell.as_str())),
            // Whatever can expire has a TTL, adopted or ours.
            Filter::Expiring => scan
                .filter_expression("attribute_exists(#ttl)")
                .expression_attribute_names("#ttl", TTL),
        };
        let tables = [self.names.mappings()];
        let mut call = Call::consistent("Scan", &tables);
        call.limit = limit;
        call.run(scan.send()).await
    }
}

/// What the storage says of an index that it will not read.
enum IndexTrouble {
    None,
    /// The table never had it.
    Missing,
    /// It is being built.
    Backfilling,
}

/// The code is that of any invalid request, so only the message tells.
fn index_trouble(error: &QueryError) -> IndexTrouble {
    let message = error.message().unwrap_or_default();
    if error.code() != Some("ValidationException") {
        IndexTrouble::None
    } else if message.contains("backfilling") {
        IndexTrouble::Backfilling
    } else if message.contains("does not have the specified index") {
        IndexTrouble::Missing
    } else {
        IndexTrouble::None
    }
}
