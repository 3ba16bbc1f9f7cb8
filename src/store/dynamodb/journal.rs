//! Reads of the journal, of the registry of cells and of requests, all strongly consistent.

use async_trait::async_trait;

use super::DynamoDbStore;
use super::attributes::{Item, text};
use super::call::Call;
use super::error::rejected;
use super::schema::control::{PK, SK};
use super::schema::{BUCKET, CELLS_PK, ControlKey, bucket_pk};
use super::{page_size, records};
use crate::domain::{Cell, JournalEntry, RequestId, RequestRecord, Sequence};
use crate::store::{Commit, CommitOutcome, Journal, StoreError};

/// Most entries asked for at once.
const ENTRIES_PAGE: i32 = 1000;

/// Most pages of the registry of cells, of up to 1 MB each: some ten thousand cells.
const MAX_CELL_PAGES: usize = 64;

#[async_trait]
impl Journal for DynamoDbStore {
    async fn head(&self) -> Result<Sequence, StoreError> {
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
                    return Err(self.gap(next, entry.sequence));
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

    async fn cells(&self) -> Result<Vec<Cell>, StoreError> {
        let mut items: Vec<Item> = Vec::new();
        let mut start = None;
        for _ in 0..MAX_CELL_PAGES {
            let query = self
                .client
                .query()
                .table_name(self.names.control())
                .consistent_read(true)
                .key_condition_expression(format!("{PK} = :pk"))
                .expression_attribute_values(":pk", text(CELLS_PK))
                .set_exclusive_start_key(start);
            let tables = [self.names.control()];
            let page = Call::consistent("Query", &tables).run(query.send()).await?;
            items.extend(page.items.unwrap_or_default());
            start = page.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() {
                return records::read_cells(self.names.control(), &items);
            }
        }
        Err(rejected(format!("{} holds more cells than the directory reads", self.names.control())))
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
    async fn control_item(&self, key: &ControlKey) -> Result<Option<Item>, StoreError> {
        let get = self
            .client
            .get_item()
            .table_name(self.names.control())
            .set_key(Some(records::key(key)))
            .consistent_read(true);
        let tables = [self.names.control()];
        let output = Call::consistent("GetItem", &tables).run(get.send()).await?;
        Ok(output.item)
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
