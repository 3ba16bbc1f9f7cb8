//! Bulks in `CellControl`: the head, the tenants in chunks, the mark that one is at work, and the list in the order of their times.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, ReturnValue, TransactWriteItem, Update,
};
use cells_balance::bulk::{Changes, Chunk, Header, Purpose};

use super::DynamoDbStore;
use super::attributes::{Item, Reader, json, number, seconds_rounded_up, text};
use super::call::Call;
use super::records::key;
use super::schema::control::{
    BEAT, BULK, LAST_UPDATED, PROGRESS, RECORD, REVISION, SPEC, WORKER_EPOCH,
};
use super::schema::{BULK_LOG_PK, BULKS_PK, ControlKey, TTL, bulk_pk, chunks_prefix};
use super::transact::{check, delete, put, update};
use crate::domain::{CellId, Timestamp};
use crate::migration::bulk::{BulkBegun, BulkId, BulkProgress, BulkRecord, BulkRecords, Part};
use crate::store::{Cursor, Page, StoreError};

/// How long a bulk is kept after it began.
const KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// Chunks of one transaction: with those of the longest keys and reasons, 2 MB.
const TOGETHER: usize = 10;

#[async_trait]
impl BulkRecords for DynamoDbStore {
    async fn begin_bulk(
        &self,
        record: &BulkRecord,
        chunks: &[Chunk],
    ) -> Result<BulkBegun, StoreError> {
        let forget = number(seconds_rounded_up(record.planned.created.plus(KEPT)));
        // Of a name that nobody else uses. Nothing refers to them until the head is there, and without it they go by themselves.
        for chunks in chunks.chunks(TOGETHER) {
            let puts = chunks.iter().map(|chunk| self.put_chunk(record, chunk));
            if self.all_or_nothing(puts.collect::<Result<_, _>>()?).await?.is_some() {
                return Err(StoreError::Throttled);
            }
        }
        let active = active_key(&record.header.purpose)?;
        let mut head = bulk_item(record)?;
        head.insert(TTL.to_owned(), forget.clone());
        let mut mark = key(&active);
        mark.insert(BULK.to_owned(), text(record.id.to_string()));
        let at = u64::try_from(record.planned.created.millis()).unwrap_or(0);
        let mut listed = key(&ControlKey::BulkListed(at, record.id));
        listed.insert(TTL.to_owned(), forget);
        let items = vec![self.put_new(head)?, self.put_new(mark)?, self.put_new(listed)?];
        if self.all_or_nothing(items).await?.is_none() {
            return Ok(BulkBegun::Begun);
        }
        if let Some(existing) = self.bulk(record.id).await? {
            return Ok(BulkBegun::Exists(Box::new(existing)));
        }
        let other = self.control_item(&active).await?;
        let table = self.names.control();
        // Over in between: nothing was begun, and to try again is right.
        let item = other.ok_or(StoreError::Throttled)?;
        read_id(&Reader { table, item: &item }).map(BulkBegun::Running)
    }

    async fn bulk(&self, id: BulkId) -> Result<Option<BulkRecord>, StoreError> {
        let item = self.control_item(&ControlKey::Bulk(id)).await?;
        item.map(|item| read_bulk(self.names.control(), id, &item)).transpose()
    }

    async fn chunks(&self, record: &BulkRecord) -> Result<Vec<Chunk>, StoreError> {
        let table = self.names.control();
        let prefix = chunks_prefix(record.planned.generation);
        // Of a million tenants there are hundreds of pages, and not one too many.
        let items = self.control_items(&bulk_pk(record.id), Some(&prefix), usize::MAX).await?;
        items.iter().map(|item| Reader { table, item }.json(RECORD)).collect()
    }

    async fn active_bulks(&self) -> Result<Vec<BulkId>, StoreError> {
        let table = self.names.control();
        let items = self.control_partition(BULKS_PK).await?;
        items.iter().map(|item| read_id(&Reader { table, item })).collect()
    }

    async fn bulks(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<BulkRecord>, StoreError> {
        let (entries, next) = self.newest(BULK_LOG_PK, limit, after).await?;
        let mut items = Vec::new();
        for entry in entries {
            if let ControlKey::BulkListed(_, id) = entry {
                items.extend(self.bulk(id).await?);
            }
        }
        Ok(Page { items, next })
    }

    async fn take_bulk(&self, id: BulkId, worker: u64) -> Result<Option<u64>, StoreError> {
        let next = worker.saturating_add(1);
        let table = self.names.control();
        let update = self
            .client
            .update_item()
            .table_name(table)
            .set_key(Some(key(&ControlKey::Bulk(id))))
            .update_expression("SET #worker = :next")
            .condition_expression("#worker = :was")
            .expression_attribute_names("#worker", WORKER_EPOCH)
            .expression_attribute_values(":next", number(next))
            .expression_attribute_values(":was", number(worker));
        let taken = Call::new("UpdateItem", &[table]).unless_refused(update.send()).await?;
        Ok(taken.map(|_| next))
    }

    async fn beat_bulk(
        &self,
        id: BulkId,
        worker: u64,
        progress: &BulkProgress,
        now: Timestamp,
    ) -> Result<Option<BulkRecord>, StoreError> {
        let table = self.names.control();
        let update = self
            .client
            .update_item()
            .table_name(table)
            .set_key(Some(key(&ControlKey::Bulk(id))))
            .update_expression("SET #progress = :progress, #updated = :updated ADD #beat :one")
            .condition_expression("#worker = :worker")
            .expression_attribute_names("#progress", PROGRESS)
            .expression_attribute_names("#updated", LAST_UPDATED)
            .expression_attribute_names("#beat", BEAT)
            .expression_attribute_names("#worker", WORKER_EPOCH)
            .expression_attribute_values(":progress", json(progress)?)
            .expression_attribute_values(":updated", text(now.to_string()))
            .expression_attribute_values(":one", number(1))
            .expression_attribute_values(":worker", number(worker))
            .return_values(ReturnValue::AllNew);
        let told = Call::new("UpdateItem", &[table]).unless_refused(update.send()).await?;
        let item = told.and_then(|answer| answer.attributes);
        item.map(|item| read_bulk(table, id, &item)).transpose()
    }

    async fn save_bulk(
        &self,
        record: &BulkRecord,
        changes: &Changes,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        for chunks in changes.chunks.chunks(TOGETHER) {
            let mut items = vec![self.check_worker(record)?];
            for chunk in chunks {
                items.push(self.put_chunk(record, chunk)?);
            }
            if self.all_or_nothing(items).await?.is_some() {
                return Ok(false);
            }
        }
        let Some(header) = &changes.header else { return Ok(true) };
        let change = self.change_header(record.id, header, now)?;
        let change = change
            .condition_expression("#revision = :was AND #worker = :worker")
            .expression_attribute_names("#worker", WORKER_EPOCH)
            .expression_attribute_values(":worker", number(record.worker));
        let mut items = vec![update(change.build())?];
        if header.ended.is_some() {
            let mark = self
                .delete_control(&active_key(&header.purpose)?)
                .condition_expression("#bulk = :bulk")
                .expression_attribute_names("#bulk", BULK)
                .expression_attribute_values(":bulk", text(record.id.to_string()));
            items.push(delete(mark.build())?);
        }
        Ok(self.all_or_nothing(items).await?.is_none())
    }

    async fn steer_bulk(
        &self,
        id: BulkId,
        header: &Header,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let change = self.change_header(id, header, now)?;
        let change = change.condition_expression("#revision = :was");
        Ok(self.all_or_nothing(vec![update(change.build())?]).await?.is_none())
    }
}

impl DynamoDbStore {
    /// A chunk where the one before it is stored.
    fn put_chunk(
        &self,
        record: &BulkRecord,
        chunk: &Chunk,
    ) -> Result<TransactWriteItem, StoreError> {
        let of = ControlKey::BulkChunk(record.id, record.planned.generation, chunk.number);
        let mut item = key(&of);
        item.insert(RECORD.to_owned(), json(chunk)?);
        item.insert(REVISION.to_owned(), number(chunk.revision));
        let forget = seconds_rounded_up(record.planned.created.plus(KEPT));
        item.insert(TTL.to_owned(), number(forget));
        match chunk.revision {
            1 => self.put_new(item),
            revision => put(self
                .put_control(item)
                .condition_expression("#revision = :was")
                .expression_attribute_names("#revision", REVISION)
                .expression_attribute_values(":was", number(revision.saturating_sub(1)))
                .build()),
        }
    }

    /// That a worker still has its bulk.
    fn check_worker(&self, record: &BulkRecord) -> Result<TransactWriteItem, StoreError> {
        self.check_number(&ControlKey::Bulk(record.id), WORKER_EPOCH, record.worker)
    }

    /// That a part of a bulk is as it was stored.
    pub(super) fn check_part(&self, part: &Part) -> Result<TransactWriteItem, StoreError> {
        let of = ControlKey::BulkChunk(part.bulk, part.generation, part.chunk);
        self.check_number(&of, REVISION, part.revision)
    }

    fn check_number(
        &self,
        of: &ControlKey,
        attribute: &str,
        value: u64,
    ) -> Result<TransactWriteItem, StoreError> {
        let is = ConditionCheck::builder()
            .table_name(self.names.control())
            .set_key(Some(key(of)))
            .condition_expression("#is = :value")
            .expression_attribute_names("#is", attribute)
            .expression_attribute_values(":value", number(value));
        check(is.build())
    }

    /// To be conditional on `#revision = :was`.
    fn change_header(
        &self,
        id: BulkId,
        header: &Header,
        now: Timestamp,
    ) -> Result<aws_sdk_dynamodb::types::builders::UpdateBuilder, StoreError> {
        Ok(Update::builder()
            .table_name(self.names.control())
            .set_key(Some(key(&ControlKey::Bulk(id))))
            .update_expression("SET #record = :record, #revision = :revision, #updated = :updated")
            .expression_attribute_names("#record", RECORD)
            .expression_attribute_names("#revision", REVISION)
            .expression_attribute_names("#updated", LAST_UPDATED)
            .expression_attribute_values(":record", json(header)?)
            .expression_attribute_values(":revision", number(header.revision))
            .expression_attribute_values(":updated", text(now.to_string()))
            .expression_attribute_values(":was", number(header.revision.saturating_sub(1))))
    }
}

/// One at a time of each: what is at work has the place.
fn active_key(purpose: &Purpose) -> Result<ControlKey, StoreError> {
    Ok(match purpose {
        Purpose::Drain { cell } => ControlKey::ActiveDrain(CellId::new(cell).map_err(|_| {
            StoreError::Rejected { detail: "a bulk's cell is no cell's id".into() }
        })?),
        Purpose::Rebalance { .. } => ControlKey::ActiveRebalance,
    })
}

fn bulk_item(record: &BulkRecord) -> Result<Item, StoreError> {
    let mut item = key(&ControlKey::Bulk(record.id));
    let attributes: [(&str, AttributeValue); 7] = [
        (RECORD, json(&record.header)?),
        (SPEC, json(&record.planned)?),
        (PROGRESS, json(&record.progress)?),
        (REVISION, number(record.header.revision)),
        (WORKER_EPOCH, number(record.worker)),
        (BEAT, number(record.beat)),
        (LAST_UPDATED, text(record.updated.to_string())),
    ];
    item.extend(attributes.map(|(name, value)| (name.to_owned(), value)));
    Ok(item)
}

fn read_id(reader: &Reader<'_>) -> Result<BulkId, StoreError> {
    reader.parsed(BULK, |text| BulkId::parse(text).ok())
}

fn read_bulk(table: &str, id: BulkId, item: &Item) -> Result<BulkRecord, StoreError> {
    let reader = Reader { table, item };
    Ok(BulkRecord {
        id,
        header: reader.json(RECORD)?,
        planned: reader.json(SPEC)?,
        progress: reader.json(PROGRESS)?,
        updated: reader.parsed(LAST_UPDATED, Timestamp::parse)?,
        worker: reader.number(WORKER_EPOCH)?,
        beat: reader.number(BEAT)?,
    })
}
