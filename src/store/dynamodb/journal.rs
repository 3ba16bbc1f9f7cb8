//! Reads of the journal, of the registry of cells and of requests, all strongly consistent.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};

use super::DynamoDbStore;
use super::attributes::{number, text};
use super::call::Call;
use super::error::rejected;
use super::records::Trimmed;
use super::schema::control::{JOURNAL_ID, PK, SEQUENCE, SK};
use super::schema::{BUCKET, CELLS_PK, ControlKey, bucket_pk};
use super::{page_size, records};
use crate::domain::{Cell, Cluster, JournalEntry, JournalId, RequestId, RequestRecord, Sequence};
use crate::store::{Commit, CommitOutcome, Head, Journal, StoreError};

/// Most entries asked for at once.
const ENTRIES_PAGE: i32 = 1000;

/// Entries deleted by one call: DynamoDB's limit for BatchWriteItem.
const TRIM_BATCH: u64 = 25;

/// How often what a call left undone is asked for again, and by how much longer the wait is each time.
const TRIM_ROUNDS: u32 = 6;
const TRIM_WAIT: Duration = Duration::from_millis(20);

#[async_trait]
impl Journal for DynamoDbStore {
    async fn head(&self) -> Result<Head, StoreError> {
        let item = self.control_item(&ControlKey::Head).await?;
        let Some(item) = item else {
            return Err(rejected(format!(
                "{} has no journal: run `celld tables create`",
                self.names.control()
            )));
        };
        records::read_head(self.names.control(), &item)
    }

    async fn entries(
        &self,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let mut entries: Vec<JournalEntry> = Vec::new();
        let mut next = after.next();
        // Each round but the last adds at least one entry.
        while entries.len() < limit {
            let (page, more) = self.entries_page(next, limit - entries.len()).await?;
            let first = next;
            for entry in page {
                if entry.sequence != next {
                    // Within a partition, what was trimmed is missing before what was not.
                    return match self.trimmed().await? >= next {
                        true => Ok(entries),
                        false => Err(self.gap(next, entry.sequence)),
                    };
                }
                next = next.next();
                entries.push(entry);
            }
            let on_to_another = bucket_pk(next) != bucket_pk(first);
            if next == first || !(more || on_to_another) {
                break;
            }
        }
        Ok(entries)
    }

    async fn trimmed(&self) -> Result<Sequence, StoreError> {
        Ok(self.trim_record().await?.marked)
    }

    async fn trim(&self, last: Sequence) -> Result<(), StoreError> {
        if last >= self.head().await?.sequence {
            return Err(rejected("the journal's head cannot be trimmed".into()));
        }
        let Trimmed { marked, deleted } = self.trim_record().await?;
        let marked = marked.max(last);
        self.put_trim_record(Trimmed { marked, deleted }).await?;
        // Whatever an earlier trim did not come to is deleted now.
        let mut done = deleted;
        while done < marked {
            let until = marked.min(Sequence::new(done.get() + TRIM_BATCH));
            self.delete_entries(done.next(), until).await?;
            done = until;
        }
        self.put_trim_record(Trimmed { marked, deleted: marked }).await
    }

    async fn rename(&self, head: Head, id: JournalId) -> Result<bool, StoreError> {
        let update = self
            .client
            .update_item()
            .table_name(self.names.control())
            .set_key(Some(records::key(&ControlKey::Head)))
            .update_expression("SET #id = :new")
            .condition_expression(
                "#sequence = :sequence AND (attribute_not_exists(#id) OR #id = :old)",
            )
            .expression_attribute_names("#sequence", SEQUENCE)
            .expression_attribute_names("#id", JOURNAL_ID)
            .expression_attribute_values(":sequence", number(head.sequence))
            .expression_attribute_values(":old", text(head.journal.to_string()))
            .expression_attribute_values(":new", text(id.to_string()));
        let tables = [self.names.control()];
        let done = Call::new("UpdateItem", &tables).unless_refused(update.send()).await?;
        Ok(done.is_some())
    }

    async fn cluster(&self) -> Result<Cluster, StoreError> {
        let item = self.control_item(&ControlKey::Cluster).await?;
        let read = |item| records::read_cluster(self.names.control(), &item);
        Ok(item.map(read).transpose()?.unwrap_or_default())
    }

    async fn cells(&self) -> Result<Vec<Cell>, StoreError> {
        let items = self.control_partition(CELLS_PK).await?;
        records::read_cells(self.names.control(), &items)
    }

    async fn request(&self, id: &RequestId) -> Result<Option<RequestRecord>, StoreError> {
        let item = self.control_item(&ControlKey::Request(id.clone())).await?;
        item.map(|item| records::read_request(self.names.control(), &item)).transpose()
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome, StoreError> {
        self.transact(commit).await
    }
}

impl DynamoDbStore {
    async fn trim_record(&self) -> Result<Trimmed, StoreError> {
        let item = self.control_item(&ControlKey::Trimmed).await?;
        let read = |item| records::read_trimmed(self.names.control(), &item);
        Ok(item.map(read).transpose()?.unwrap_or_default())
    }

    /// Replicas that trim at the same time mark and delete the same, or one a little more; the marks never fall.
    async fn put_trim_record(&self, trimmed: Trimmed) -> Result<(), StoreError> {
        let put = self
            .client
            .put_item()
            .table_name(self.names.control())
            .set_item(Some(records::trimmed_item(trimmed)))
            .condition_expression(format!("attribute_not_exists({PK}) OR #marked <= :marked"))
            .expression_attribute_names("#marked", SEQUENCE)
            .expression_attribute_values(":marked", number(trimmed.marked));
        let tables = [self.names.control()];
        // Where it is refused, somebody else has come further.
        Call::new("PutItem", &tables).unless_refused(put.send()).await.map(drop)
    }

    /// Deletes at most [`TRIM_BATCH`] entries.
    async fn delete_entries(&self, first: Sequence, last: Sequence) -> Result<(), StoreError> {
        let delete = |sequence| {
            let key = records::key(&ControlKey::Entry(Sequence::new(sequence)));
            let delete = DeleteRequest::builder().set_key(Some(key)).build().ok()?;
            Some(WriteRequest::builder().delete_request(delete).build())
        };
        let mut pending: Vec<_> = (first.get()..=last.get()).filter_map(delete).collect();
        for round in 0..TRIM_ROUNDS {
            tokio::time::sleep(TRIM_WAIT * round).await;
            let write = self.client.batch_write_item().request_items(self.names.control(), pending);
            let tables = [self.names.control()];
            let output = Call::new("BatchWriteItem", &tables).run(write.send()).await?;
            let mut left = output.unprocessed_items.unwrap_or_default();
            pending = left.remove(self.names.control()).unwrap_or_default();
            if pending.is_empty() {
                return Ok(());
            }
        }
        Err(StoreError::Throttled)
    }

    /// Entries from `first` on, of the partition that `first` is in, and whether that has more of them.
    async fn entries_page(
        &self,
        first: Sequence,
        limit: usize,
    ) -> Result<(Vec<JournalEntry>, bool), StoreError> {
        let limit = page_size(limit, ENTRIES_PAGE);
        let query = self
            .client
            .query()
            .table_name(self.names.control())
            .consistent_read(true)
            .key_condition_expression(format!("{PK} = :pk AND {SK} >= :first"))
            .expression_attribute_values(":pk", text(bucket_pk(first)))
            .expression_attribute_values(":first", text(ControlKey::Entry(first).sk()))
            .limit(limit);
        let tables = [self.names.control()];
        let mut call = Call::consistent("Query", &tables);
        call.limit = Some(limit);
        let page = call.run(query.send()).await?;
        let items = page.items.unwrap_or_default();
        let read = |item| records::read_entry(self.names.control(), item);
        let entries = items.iter().map(read).collect::<Result<_, _>>()?;
        let more = page.last_evaluated_key.is_some_and(|key| !key.is_empty());
        Ok((entries, more))
    }

    fn gap(&self, due: Sequence, found: Sequence) -> StoreError {
        let table = self.names.control();
        StoreError::Unreadable {
            detail: format!(
                "{table}: the journal has a gap: entry {due} is missing before {found} (partitions of {BUCKET})"
            ),
        }
    }
}
