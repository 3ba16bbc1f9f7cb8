//! One of the two cells of a migration, as its worker reads and writes it.
//!
//! Everything that is written to a tenant's partitions carries a check of the cell's guard in its own transaction: so the storage refuses
//! what a worker still writes after another one took over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeValue, Delete, DeleteRequest, Put, ReturnConsumedCapacity, TransactWriteItem,
    WriteRequest,
};
use cells_guard::sdk::{cancellation, condition_failed};
use cells_guard::{
    CellTable, CellTables, Condition, GuardTable, Item, KeyType, LogRecord, StoredGuard, Touched,
    guard, log,
};
use cells_migration::{GuardCheck, MigrationId};

use crate::cells::Regions;
use crate::domain::{Cell, CellId, PartitionKey};
use crate::store::dynamodb::client::call_timeouts;
use crate::store::dynamodb::{ByTable, batch_get, from_cancelled, from_sdk, rejected, transact};
use crate::store::{MAX_KEYS, StoreError};

/// Longest wait for the answer of a transaction: of 4 MB, it takes longer than a commit.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most items that one transaction writes beside its check, and most bytes of them: DynamoDB allows 100 and 4 MB.
pub const MAX_CHANGES: usize = 99;
pub const MAX_BYTES: u64 = 3_500_000;

/// Most records of a log that are removed at once: DynamoDB's limit for BatchWriteItem.
pub const MAX_REMOVED: usize = 25;

/// How often records that a batch left over are removed again, and how long is waited the first time.
const MAX_BATCHES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// How often a read is sent again.
const MAX_READS: u32 = 4;

/// A cell and how it is reached.
#[derive(Clone)]
pub struct CellAccess {
    pub cell: CellId,
    pub tables: Arc<CellTables>,
    pub guards: GuardTable,
    client: Client,
}

/// What is written of an item.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Put { table: String, item: Item },
    Delete(Touched),
}

/// What became of changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Applied {
    /// All of them were done, with so much capacity.
    Done { units: f64 },
    /// None of them was: the guard is not as it was taken to be.
    Fenced,
}

/// What became of writes that could change nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Probed {
    /// By permissions.
    pub refused: u32,
    pub let_through: u32,
}

impl Probed {
    fn count<E>(&mut self, failure: Option<SdkError<E, HttpResponse>>) -> Result<(), StoreError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        // Without a failure the condition held, which it cannot: then it was not looked at, but let through.
        let Some(error) = failure else {
            self.let_through += 1;
            return Ok(());
        };
        match error.as_service_error().and_then(ProvideErrorMetadata::code) {
            Some("AccessDeniedException") => self.refused += 1,
            Some("ConditionalCheckFailedException") => self.let_through += 1,
            // Such as a throttled one, or credentials that have run out: that says nothing.
            _ => return Err(from_sdk(&error)),
        }
        Ok(())
    }
}

/// Items, and the key after which there are more.
pub type Items = (Vec<Item>, Option<Item>);

impl CellAccess {
    /// `None`: the cell has no tables, or none that can hold guards, or not where the directory's transactions reach.
    pub fn of(cell: &Cell, regions: &Regions) -> Option<Self> {
        let tables = cell.tables.clone()?;
        let guards = tables.reachable_guards()?;
        Some(Self { cell: cell.id.clone(), tables, guards, client: regions.dynamodb(&cell.region) })
    }

    /// A page of a partition, read consistently, of at most `limit` items and 1 MB.
    pub async fn page(
        &self,
        table: &CellTable,
        partition: &str,
        after: Option<Item>,
        limit: i32,
        keys_only: bool,
    ) -> Result<Items, StoreError> {
        let mut query = self
            .client
            .query()
            .table_name(&table.table_name)
            .consistent_read(true)
            .limit(limit)
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", &table.partition_key)
            .expression_attribute_values(":pk", AttributeValue::S(partition.to_owned()))
            .set_exclusive_start_key(after);
        if keys_only {
            let mut projection = "#pk".to_owned();
            if let Some((sort, _)) = &table.sort_key {
                projection.push_str(", #sk");
                query = query.expression_attribute_names("#sk", sort);
            }
            query = query.projection_expression(projection);
        }
        let page = reading(|| sent(query.clone().send())).await?;
        let next = page.last_evaluated_key.filter(|key| !key.is_empty());
        Ok((page.items.unwrap_or_default(), next))
    }

    /// Items by their keys, read consistently, in the order of the keys. A table that the cell does not have is an error.
    pub async fn get(&self, keys: &[Touched]) -> Result<Vec<Option<Item>>, StoreError> {
        let mut found = ByTable::new();
        for chunk in keys.chunks(MAX_KEYS) {
            let mut wanted = ByTable::new();
            for touched in chunk {
                let table = &self.table(&touched.table)?.table_name;
                wanted.entry(table.clone()).or_default().push(touched.key.clone());
            }
            for (table, items) in reading(|| batch_get(&self.client, wanted.clone())).await? {
                found.entry(table).or_default().extend(items);
            }
        }
        let mut by_key = HashMap::new();
        for table in &self.tables.tables {
            let items = found.get(&table.table_name).into_iter().flatten();
            by_key.extend(items.map(|item| ((&table.name, key_of(table, item)), item)));
        }
        let read = |touched: &Touched| {
            let key = (&touched.table, key_of(self.table(&touched.table).ok()?, &touched.key));
            by_key.get(&key).map(|item| Item::clone(item))
        };
        Ok(keys.iter().map(read).collect())
    }

    /// Does all of these changes, or none, where the tenant's guard is as `check` says. At most [`MAX_CHANGES`] and [`MAX_BYTES`]. The same
    /// under the same token is done once within ten minutes.
    ///
    /// # Errors
    /// Where [`StoreError::ambiguous`] says so, they may have been done, or may be done yet.
    pub async fn apply(
        &self,
        tenant: &PartitionKey,
        check: &GuardCheck,
        shard: u8,
        changes: Vec<Change>,
        token: &str,
    ) -> Result<Applied, StoreError> {
        let mut items = vec![self.guard_check(tenant, check, shard)?];
        for change in changes {
            items.push(self.transact_item(change)?);
        }
        let request = self
            .client
            .transact_write_items()
            .set_transact_items(Some(items))
            .client_request_token(token)
            .return_consumed_capacity(ReturnConsumedCapacity::Total);
        let mut timeouts = aws_sdk_dynamodb::config::Builder::new();
        timeouts.set_timeout_config(Some(call_timeouts(WRITE_TIMEOUT)));
        let error = match request.customize().config_override(timeouts).send().await {
            Ok(done) => {
                let consumed = done.consumed_capacity().iter().filter_map(|c| c.capacity_units());
                return Ok(Applied::Done { units: consumed.sum() });
            }
            Err(error) => error,
        };
        let Some(reasons) = cancellation(&error) else { return Err(from_sdk(&error)) };
        match reasons.iter().any(condition_failed) {
            // There is one condition.
            true => Ok(Applied::Fenced),
            false => Err(from_cancelled(reasons)),
        }
    }

    fn guard_check(
        &self,
        tenant: &PartitionKey,
        check: &GuardCheck,
        shard: u8,
    ) -> Result<TransactWriteItem, StoreError> {
        let condition = Condition::of(check, self.cell.as_str());
        transact::check(condition.of_guard(&self.guards, tenant.as_str(), shard).build())
    }

    fn transact_item(&self, change: Change) -> Result<TransactWriteItem, StoreError> {
        match change {
            Change::Put { table, item } => {
                let put = Put::builder().table_name(&self.table(&table)?.table_name);
                transact::put(put.set_item(Some(item)).build())
            }
            Change::Delete(Touched { table, key }) => {
                let delete = Delete::builder().table_name(&self.table(&table)?.table_name);
                transact::delete(delete.set_key(Some(key)).build())
            }
        }
    }

    /// Some records of one shard of a migration's log, read consistently, and whether there are more.
    pub async fn log(
        &self,
        migration: MigrationId,
        shard: u8,
        limit: i32,
    ) -> Result<(Vec<LogRecord>, bool), StoreError> {
        let query = self
            .client
            .query()
            .table_name(&self.guards.table_name)
            .consistent_read(true)
            .limit(limit)
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", &self.guards.partition_key)
            .expression_attribute_values(
                ":pk",
                AttributeValue::S(log::partition(migration, shard)),
            );
        let page = reading(|| sent(query.clone().send())).await?;
        let read = |item: &Item| {
            log::read(&self.guards, item).map_err(|error| StoreError::Unreadable {
                detail: format!("{}: {error}", self.guards.table_name),
            })
        };
        let records = page.items().iter().map(read).collect::<Result<_, _>>()?;
        Ok((records, page.last_evaluated_key.is_some_and(|key| !key.is_empty())))
    }

    /// Removes records of a log, each by its own key: never one that was not read. No check is needed for that, as no record is ever
    /// written twice.
    pub async fn remove_log(
        &self,
        migration: MigrationId,
        shard: u8,
        records: &[LogRecord],
    ) -> Result<(), StoreError> {
        let keys = records.iter().map(|r| log::key(&self.guards, migration, shard, r.operation));
        let keys: Vec<Item> = keys.collect();
        for chunk in keys.chunks(MAX_REMOVED) {
            let removal = |key: &Item| {
                let delete = DeleteRequest::builder().set_key(Some(key.clone())).build();
                delete.map(|delete| WriteRequest::builder().delete_request(delete).build())
            };
            let removals = chunk.iter().map(removal).collect::<Result<Vec<_>, _>>();
            let mut left = removals.map_err(transact::incomplete)?;
            for round in 0..MAX_BATCHES {
                if left.is_empty() {
                    break;
                }
                if round > 0 {
                    tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(round - 1)).await;
                }
                let request =
                    self.client.batch_write_item().request_items(&self.guards.table_name, left);
                let answer = request.send().await.map_err(|error| from_sdk(&error))?;
                let mut unprocessed = answer.unprocessed_items.unwrap_or_default();
                left = unprocessed.remove(&self.guards.table_name).unwrap_or_default();
            }
            if !left.is_empty() {
                return Err(StoreError::Throttled);
            }
        }
        Ok(())
    }

    /// The guard as it is, read consistently.
    pub async fn guard(&self, tenant: &PartitionKey) -> Result<Option<StoredGuard>, StoreError> {
        let request = self
            .client
            .get_item()
            .table_name(&self.guards.table_name)
            .set_key(Some(guard::key(&self.guards, tenant.as_str(), 0)))
            .consistent_read(true);
        let answer = reading(|| sent(request.clone().send())).await?;
        answer.item.map(|item| self.read_guard(&item)).transpose()
    }

    /// The guards of tenants as they are, read consistently, by their partitions.
    pub async fn guards(
        &self,
        tenants: impl Iterator<Item = &PartitionKey>,
    ) -> Result<HashMap<String, StoredGuard>, StoreError> {
        let keys: Vec<Item> =
            tenants.map(|tenant| guard::key(&self.guards, tenant.as_str(), 0)).collect();
        let mut guards = HashMap::with_capacity(keys.len());
        for chunk in keys.chunks(MAX_KEYS) {
            let wanted = ByTable::from([(self.guards.table_name.clone(), chunk.to_vec())]);
            for item in
                reading(|| batch_get(&self.client, wanted.clone())).await?.into_values().flatten()
            {
                let partition = item.get(&self.guards.partition_key).and_then(|pk| pk.as_s().ok());
                let Some(partition) = partition else { continue };
                guards.insert(partition.clone(), self.read_guard(&item)?);
            }
        }
        Ok(guards)
    }

    fn read_guard(&self, item: &Item) -> Result<StoredGuard, StoreError> {
        guard::read(item).map_err(|error| StoreError::Unreadable {
            detail: format!("{}: {error}", self.guards.table_name),
        })
    }

    /// The ARN of a table's stream. `None`: it has none.
    pub async fn stream(&self, table: &str) -> Result<Option<String>, StoreError> {
        let request = self.client.describe_table().table_name(&self.table(table)?.table_name);
        let described = request.send().await.map_err(|error| from_sdk(&error))?;
        let enabled = described.table.filter(|table| {
            table.stream_specification().is_some_and(|stream| stream.stream_enabled())
        });
        Ok(enabled.and_then(|table| table.latest_stream_arn))
    }

    /// Writes an item into a partition that is no tenant's, and removes it: both show in the table's stream.
    pub async fn come_and_go(&self, table: &str, partition: &str) -> Result<(), StoreError> {
        let table = self.table(table)?;
        let key = key_in(table, partition);
        let mut item = key.clone();
        if let Some(ttl) = &table.ttl_attribute {
            // Whoever dies in between leaves it to the storage, which has not begun to delete by the time it is removed.
            let end = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let end = end.map_or(0, |now| now.as_secs()) + 24 * 3600;
            item.entry(ttl.clone()).or_insert_with(|| AttributeValue::N(end.to_string()));
        }
        let put = self.client.put_item().table_name(&table.table_name).set_item(Some(item));
        let put = sent(put.send()).await;
        if put.as_ref().is_err_and(|error| !error.ambiguous()) {
            return put.map(drop);
        }
        let delete = self.client.delete_item().table_name(&table.table_name).set_key(Some(key));
        // Nobody else knows of the item.
        let deleted = reading(|| sent(delete.clone().send())).await;
        put.and(deleted).map(drop)
    }

    /// Tries to put, update and delete an item in each of the tenant's partitions, under conditions that never hold: so nothing is changed,
    /// and what is told is whether permissions let such writes pass.
    pub async fn probe(&self, tenant: &PartitionKey) -> Result<Probed, StoreError> {
        let mut probed = Probed::default();
        for table in &self.tables.tables {
            for partition in table.partitions(tenant.as_str()) {
                self.probe_partition(table, &partition, &mut probed).await?;
            }
        }
        Ok(probed)
    }

    async fn probe_partition(
        &self,
        table: &CellTable,
        partition: &str,
        probed: &mut Probed,
    ) -> Result<(), StoreError> {
        const NEVER: &str = "attribute_exists(#pk) AND attribute_not_exists(#pk)";
        let key = key_in(table, partition);
        let (name, pk) = (&table.table_name, &table.partition_key);
        let put = self.client.put_item().table_name(name).set_item(Some(key.clone()));
        let put = put.condition_expression(NEVER).expression_attribute_names("#pk", pk);
        probed.count(put.send().await.err())?;
        let update = self.client.update_item().table_name(name).set_key(Some(key.clone()));
        let update = update.condition_expression(NEVER).expression_attribute_names("#pk", pk);
        probed.count(update.send().await.err())?;
        let delete = self.client.delete_item().table_name(name).set_key(Some(key));
        let delete = delete.condition_expression(NEVER).expression_attribute_names("#pk", pk);
        probed.count(delete.send().await.err())
    }

    fn table(&self, name: &str) -> Result<&CellTable, StoreError> {
        let table = self.tables.table(name);
        table.ok_or_else(|| rejected(format!("{} has no table {name}", self.cell)))
    }
}

/// A read, sent again where it failed for a passing reason: a page or a look at a log is many of them, and to begin all of it again
/// because of one would not get on where several in a hundred fail. It changes nothing, or what may be changed twice, so no failure of it
/// leaves anything open.
async fn reading<T, F>(send: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for round in 0..=MAX_READS {
        match send().await {
            Err(error) if error.transient() && round < MAX_READS => {
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(round)).await;
            }
            Err(error) if error.ambiguous() => return Err(StoreError::Throttled),
            done => return done,
        }
    }
    Err(StoreError::Throttled)
}

async fn sent<T, E>(
    call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
) -> Result<T, StoreError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    call.await.map_err(|error| from_sdk(&error))
}

/// The values of a key, of a key itself or of its item.
fn key_of<'a>(table: &CellTable, item: &'a Item) -> Vec<Option<&'a [u8]>> {
    let bytes = |value: &'a AttributeValue| match value {
        AttributeValue::S(text) | AttributeValue::N(text) => Some(text.as_bytes()),
        AttributeValue::B(bytes) => Some(bytes.as_ref()),
        _ => None,
    };
    table.key_names().map(|name| item.get(name).and_then(bytes)).collect()
}

/// A key in a partition, of an item that is no application's.
fn key_in(table: &CellTable, partition: &str) -> Item {
    let mut key =
        Item::from([(table.partition_key.clone(), AttributeValue::S(partition.to_owned()))]);
    if let Some((sort, of)) = &table.sort_key {
        let value = match of {
            KeyType::String => AttributeValue::S("\u{1}".to_owned()),
            KeyType::Number => AttributeValue::N("0".to_owned()),
            KeyType::Binary => AttributeValue::B(Blob::new([1])),
        };
        key.insert(sort.clone(), value);
    }
    key
}
