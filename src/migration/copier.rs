//! Copies a tenant's items, applies its log, and removes what is left behind: a page at a time, each of which may be repeated.
//!
//! A page is written in transactions side by side, each of which checks another item of the guard: checks of one item would conflict.

use std::collections::HashSet;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::writer::CELL_ID;
use cells_guard::{CellTable, Item, KeyType, LogRecord, Touched};
use cells_migration::{Cursor, GuardCheck, Side};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::access::{Applied, CellAccess, Change, MAX_BYTES, MAX_CHANGES, MAX_REMOVED};
use super::model::Spec;
use super::steps::Cells;
use crate::cells::data::item_bytes;
use crate::store::StoreError;

/// Transactions of a page that are under way at the same time.
const SIDE_BY_SIDE: usize = 4;

/// Most items of a page, where nothing else is set.
pub const PAGE_ITEMS: i32 = (SIDE_BY_SIDE * MAX_CHANGES) as i32;

/// Most records of one shard of a log that one look takes up.
const LOG_RECORDS: i32 = 100;

/// Most records of one shard that are looked at to see which keys they name.
const PENDING_RECORDS: i32 = 1000;

/// How often one request of a page is sent, and how long is waited the first time: a page is many requests, and to begin all of it again
/// because of one would not get on where several in a hundred fail.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// What was done of a page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Done {
    pub items: u64,
    pub bytes: u64,
    /// Write capacity, in units.
    pub units: f64,
    /// Where to go on; `None`: that was all.
    pub next: Option<Cursor>,
}

/// Records of a log by shard.
type Shards = Vec<(u8, Vec<LogRecord>)>;

/// What one look at a log found, of which there may be more.
pub struct Log {
    shards: Shards,
    /// The keys that they name, each once.
    pub touched: Vec<Touched>,
}

impl Log {
    /// Its number of records.
    pub fn records(&self) -> u64 {
        self.shards.iter().map(|(_, records)| records.len() as u64).sum()
    }
}

/// The keys that records of a log name which are not applied yet.
pub struct Pending {
    keys: HashSet<(String, Vec<String>)>,
    /// Those of all records. The log may have got longer since.
    pub all: bool,
}

impl Pending {
    pub fn names(&self, at: &Touched) -> bool {
        self.keys.contains(&name(at))
    }
}

/// Moves items of one tenant between its cells.
pub struct Copier<'a> {
    pub spec: &'a Spec,
    pub cells: &'a Cells,
    pub migration: cells_migration::MigrationId,
    /// Most items of a page.
    pub page_items: i32,
}

/// A place among a tenant's partitions, as a cursor's bytes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Place {
    /// Position of the table, and of the partition by its templates.
    table: usize,
    partition: usize,
    /// The key to go on after: of its sort key, the type and the text.
    after: Option<(String, String)>,
}

impl Copier<'_> {
    /// Copies a page of items from one cell to the other. `None`: the guard does not let it.
    pub async fn copy(
        &self,
        from: Side,
        fence: &GuardCheck,
        cursor: &Cursor,
    ) -> Result<Option<Done>, StoreError> {
        let (cell, to) = (self.cells.of(from), self.cells.of(from.other()));
        let (table, items, next) = self.read(cell, cursor, false).await?;
        let mut done = Done { next, ..Done::default() };
        let Some(table) = table else { return Ok(Some(done)) };
        let puts = items.into_iter().map(|item| {
            done.items += 1;
            done.bytes += item_bytes(&item);
            Change::Put { table: table.name.clone(), item: stamped(&table.name, item, to) }
        });
        let puts = puts.collect();
        let units = self.apply(to, fence, puts).await?;
        Ok(units.map(|units| Done { units, ..done }))
    }

    /// Deletes a page of the tenant's items in a cell. `None`: the guard does not let it.
    pub async fn purge(
        &self,
        from: Side,
        fence: &GuardCheck,
        cursor: &Cursor,
    ) -> Result<Option<Done>, StoreError> {
        let cell = self.cells.of(from);
        let (table, keys, next) = self.read(cell, cursor, true).await?;
        let Some(table) = table else { return Ok(Some(Done { next, ..Done::default() })) };
        let items = keys.len() as u64;
        let deletes = keys.into_iter().map(|key| {
            let table = table.name.clone();
            Change::Delete(Touched { table, key })
        });
        let units = self.apply(cell, fence, deletes.collect()).await?;
        Ok(units.map(|units| Done { items, units, next, ..Done::default() }))
    }

    /// Applies some of the log: what its records name is written in the other cell as it is in this one now. `false`: the guard does
    /// not let it.
    pub async fn drain(&self, from: Side, fence: &GuardCheck) -> Result<bool, StoreError> {
        let log = self.log(from).await?;
        let applied = self.rewrite(from, fence, &log.touched).await?;
        if applied {
            self.remove(from, log).await?;
        }
        Ok(applied)
    }

    /// Writes items in the other cell as they are in this one now. `false`: the guard does not let it.
    pub async fn rewrite(
        &self,
        from: Side,
        fence: &GuardCheck,
        keys: &[Touched],
    ) -> Result<bool, StoreError> {
        Ok(self.carry(from, fence, keys).await?.is_some())
    }

    /// The same; what it consumed, in write capacity units.
    pub async fn carry(
        &self,
        from: Side,
        fence: &GuardCheck,
        keys: &[Touched],
    ) -> Result<Option<f64>, StoreError> {
        let (cell, to) = (self.cells.of(from), self.cells.of(from.other()));
        let items = cell.get(keys).await?;
        let changes = keys.iter().zip(items).map(|(at, item)| match item {
            Some(item) => {
                Change::Put { table: at.table.clone(), item: stamped(&at.table, item, to) }
            }
            None => Change::Delete(at.clone()),
        });
        self.apply(to, fence, changes.collect()).await
    }

    /// Removes some of the log in a cell, to which nothing is added any more, and tells how many records.
    pub async fn drop_log(&self, from: Side) -> Result<u64, StoreError> {
        let log = self.log(from).await?;
        let records = log.records();
        self.remove(from, log).await?;
        Ok(records)
    }

    /// Looks at a cell's log without applying it.
    pub async fn pending(&self, from: Side) -> Result<Pending, StoreError> {
        let (shards, all) = self.shards(from, PENDING_RECORDS).await?;
        let records = shards.iter().flat_map(|(_, records)| records);
        Ok(Pending { keys: records.flat_map(|record| &record.touched).map(name).collect(), all })
    }

    /// Reads some of a cell's log. What it names is to be read after it, so that what it tells of is seen.
    pub async fn log(&self, from: Side) -> Result<Log, StoreError> {
        let (shards, _) = self.shards(from, LOG_RECORDS).await?;
        let touched = self.touched(&shards);
        Ok(Log { shards, touched })
    }

    /// The first records of each shard of a cell's log, so many at most, and whether those are all.
    async fn shards(&self, from: Side, most: i32) -> Result<(Shards, bool), StoreError> {
        let cell = self.cells.of(from);
        let reads = (0..self.spec.guard_shards).map(|shard| async move {
            let (records, more) = cell.log(self.migration, shard, most).await?;
            Ok::<_, StoreError>(((shard, records), more))
        });
        let reads: Vec<_> = stream::iter(reads).buffered(SIDE_BY_SIDE).try_collect().await?;
        let all = reads.iter().all(|(_, more)| !more);
        Ok((reads.into_iter().map(|(shard, _)| shard).collect(), all))
    }

    /// Removes what was read of a log, after it was applied.
    pub async fn remove(&self, from: Side, log: Log) -> Result<(), StoreError> {
        let cell = self.cells.of(from);
        let parts = log.shards.iter().flat_map(|(shard, records)| {
            records.chunks(MAX_REMOVED).map(|part| (*shard, part.to_vec()))
        });
        let removals = parts.collect::<Vec<_>>().into_iter().map(|(shard, part)| async move {
            for attempt in 1.. {
                match cell.remove_log(self.migration, shard, &part).await {
                    Err(error) if passing(&error) && attempt < ATTEMPTS => rest(attempt).await,
                    // To remove a record twice, or late, does no harm: there is never another of its name.
                    Err(error) if error.ambiguous() => return Err(StoreError::Throttled),
                    removed => return removed,
                }
            }
            Ok(())
        });
        stream::iter(removals).buffer_unordered(SIDE_BY_SIDE).try_collect().await
    }

    /// The tenant's keys among those that records name, each once. Others are none of this migration's: a record is written by an
    /// application.
    fn touched(&self, shards: &[(u8, Vec<LogRecord>)]) -> Vec<Touched> {
        let mut seen = HashSet::new();
        let named = shards.iter().flat_map(|(_, records)| records).flat_map(|r| &r.touched);
        let ours = named.filter(|at| {
            let ours = self.is_ours(at);
            if !ours {
                tracing::warn!(migration = %crate::domain::MigrationId::from(self.migration), "a log record names what is no key of the tenant's");
            }
            ours && seen.insert(name(at))
        });
        ours.cloned().collect()
    }

    /// Whether this is a key that an item of the tenant can have.
    pub fn is_ours(&self, at: &Touched) -> bool {
        let Some(table) = self.cells.source.tables.table(&at.table) else { return false };
        let Some(AttributeValue::S(partition)) = at.key.get(&table.partition_key) else {
            return false;
        };
        let whole = match &table.sort_key {
            None => at.key.len() == 1,
            Some((sort, of)) => {
                let value = at.key.get(sort);
                at.key.len() == 2 && value.is_some_and(|value| is_key(value, *of))
            }
        };
        whole && table.partitions(self.spec.tenant.as_str()).any(|ours| ours == *partition)
    }

    /// A page of a cell's items: their table, and where it goes on.
    async fn read(
        &self,
        cell: &CellAccess,
        cursor: &Cursor,
        keys_only: bool,
    ) -> Result<(Option<CellTable>, Vec<Item>, Option<Cursor>), StoreError> {
        // The tables of either cell are the same, but for the names that DynamoDB has for them.
        let place = Place::read(cursor)?;
        let Some(table) = cell.tables.tables.get(place.table) else {
            return Ok((None, Vec::new(), None));
        };
        let partitions: Vec<_> = table.partitions(self.spec.tenant.as_str()).collect();
        let Some(partition) = partitions.get(place.partition) else {
            let next = Place { table: place.table + 1, ..Place::default() };
            return Ok((None, Vec::new(), Some(next.cursor()?)));
        };
        let after =
            place.after.as_ref().map(|after| key_of(table, partition, after)).transpose()?;
        let (items, next) = cell.page(table, partition, after, self.page_items, keys_only).await?;
        let last = next.and_then(|key| sort_of(table, &key));
        let more = match last {
            Some(after) => Place { after: Some(after), ..place },
            None if place.partition + 1 < partitions.len() => {
                Place { partition: place.partition + 1, after: None, ..place }
            }
            None => Place { table: place.table + 1, ..Place::default() },
        };
        let next = match more.table < cell.tables.tables.len() {
            true => Some(more.cursor()?),
            false => None,
        };
        Ok((Some(table.clone()), items, next))
    }

    /// One transaction, sent again under the same token where it failed for a passing reason: if it was done, it is not done again, and
    /// an attempt that comes late finds that it was.
    async fn send(
        &self,
        cell: &CellAccess,
        fence: &GuardCheck,
        shard: u8,
        changes: Vec<Change>,
    ) -> Result<Applied, StoreError> {
        let token = format!("{:032x}", rand::random::<u128>());
        let mut open = false;
        for attempt in 1.. {
            match cell.apply(&self.spec.tenant, fence, shard, changes.clone(), &token).await {
                Err(error) if passing(&error) && attempt < ATTEMPTS => {
                    open |= error.ambiguous();
                    rest(attempt).await;
                }
                Err(error) if open && !error.ambiguous() => return Err(StoreError::Failed),
                result => return result,
            }
        }
        Err(StoreError::Failed)
    }

    /// Writes changes in as few transactions as there can be, and answers what they consumed. `None`: the guard lets none of them, or
    /// none of those that came last.
    async fn apply(
        &self,
        cell: &CellAccess,
        fence: &GuardCheck,
        changes: Vec<Change>,
    ) -> Result<Option<f64>, StoreError> {
        let shards = self.spec.guard_shards.max(1);
        let batches = batches(changes).into_iter().enumerate().map(|(number, batch)| {
            let shard = u8::try_from(number % usize::from(shards)).unwrap_or(0);
            self.send(cell, fence, shard, batch)
        });
        // All of them are waited for, even where one fails: nothing of a page is under way once it is answered for.
        let results: Vec<_> = stream::iter(batches).buffer_unordered(SIDE_BY_SIDE).collect().await;
        let mut units = 0.0;
        let (mut fenced, mut failed) = (false, None);
        for result in results {
            match result {
                Ok(Applied::Done { units: of }) => units += of,
                Ok(Applied::Fenced) => fenced = true,
                // One whose outcome is open counts for more than one that was not done.
                Err(error) if error.ambiguous() || failed.is_none() => failed = Some(error),
                Err(_) => {}
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok((!fenced).then_some(units)),
        }
    }
}

/// What is the same for the same key.
pub(super) fn name(at: &Touched) -> (String, Vec<String>) {
    // Maps have no order; a key has two attributes at most.
    let mut key: Vec<_> = at.key.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
    key.sort();
    (at.table.clone(), key)
}

/// Whether a sort key can be this.
fn is_key(value: &AttributeValue, of: KeyType) -> bool {
    match (value, of) {
        (AttributeValue::S(text), KeyType::String) => !text.is_empty(),
        (AttributeValue::N(_), KeyType::Number) => true,
        (AttributeValue::B(bytes), KeyType::Binary) => !bytes.as_ref().is_empty(),
        _ => false,
    }
}

fn passing(error: &StoreError) -> bool {
    error.transient() || error.ambiguous()
}

async fn rest(attempt: u32) {
    tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(attempt.min(ATTEMPTS) - 1)).await;
}

/// Changes in groups that one transaction takes.
fn batches(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut batches: Vec<Vec<Change>> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let size = match &change {
            Change::Put { item, .. } => item_bytes(item),
            Change::Delete(at) => item_bytes(&at.key),
        };
        bytes += size;
        match batches.last_mut() {
            Some(batch) if batch.len() < MAX_CHANGES && bytes <= MAX_BYTES => batch.push(change),
            _ => {
                batches.push(vec![change]);
                bytes = size;
            }
        }
    }
    batches
}

/// The item as it is in another cell: one that says which cell it is in says it rightly there. A key stays as it is.
fn stamped(table: &str, mut item: Item, cell: &CellAccess) -> Item {
    let mut keys = cell.tables.table(table).into_iter().flat_map(CellTable::key_names);
    if !keys.any(|key| key == CELL_ID)
        && let Some(AttributeValue::S(stamp)) = item.get_mut(CELL_ID)
    {
        cell.cell.as_str().clone_into(stamp);
    }
    item
}

/// The key of a partition's item by its sort key's type and text.
fn key_of(
    table: &CellTable,
    partition: &str,
    (of, text): &(String, String),
) -> Result<Item, StoreError> {
    let unreadable = || StoreError::Unreadable { detail: "a migration's cursor".into() };
    let Some((sort, _)) = &table.sort_key else { return Err(unreadable()) };
    let value = match of.as_str() {
        "S" => AttributeValue::S(text.clone()),
        "N" => AttributeValue::N(text.clone()),
        "B" => {
            let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text);
            AttributeValue::B(aws_sdk_dynamodb::primitives::Blob::new(
                bytes.map_err(|_| unreadable())?,
            ))
        }
        _ => return Err(unreadable()),
    };
    let partition = AttributeValue::S(partition.to_owned());
    Ok([(table.partition_key.clone(), partition), (sort.clone(), value)].into())
}

/// The type and the text of a key's sort key. `None`: the table has none, so a partition has one item.
fn sort_of(table: &CellTable, key: &Item) -> Option<(String, String)> {
    let (sort, _) = table.sort_key.as_ref()?;
    match key.get(sort)? {
        AttributeValue::S(text) => Some(("S".into(), text.clone())),
        AttributeValue::N(text) => Some(("N".into(), text.clone())),
        AttributeValue::B(bytes) => {
            let text =
                base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes.as_ref());
            Some(("B".into(), text))
        }
        _ => None,
    }
}

impl Place {
    fn read(cursor: &Cursor) -> Result<Self, StoreError> {
        if cursor.0.is_empty() {
            return Ok(Self::default());
        }
        let unreadable = |_| StoreError::Unreadable { detail: "a migration's cursor".into() };
        serde_json::from_slice(&cursor.0).map_err(unreadable)
    }

    fn cursor(&self) -> Result<Cursor, StoreError> {
        let rejected = |_| StoreError::Rejected { detail: "a cursor cannot be written".into() };
        serde_json::to_vec(self).map(Cursor).map_err(rejected)
    }
}
