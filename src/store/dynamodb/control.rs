//! What the records of `CellControl` have in common: reads of one and of a partition, lists by time, and transactions.

use aws_sdk_dynamodb::types::builders::{DeleteBuilder, PutBuilder};
use aws_sdk_dynamodb::types::{Delete, Put, TransactWriteItem};
use cells_guard::sdk::{cancellation, condition_failed};

use super::attributes::{Item, Reader, text};
use super::call::Call;
use super::error::{from_cancelled, from_sdk};
use super::records::key;
use super::schema::ControlKey;
use super::schema::control::{PK, SK};
use super::{DynamoDbStore, page_size, transact};
use crate::store::{Cursor, StoreError};

/// Most pages of one partition that is read as a whole, of up to 1 MB each. A larger one is not read at all.
const MAX_PAGES: usize = 64;

/// Most entries of a page of a list.
const LIST_PAGE: i32 = 100;

impl DynamoDbStore {
    pub(super) async fn control_item(&self, of: &ControlKey) -> Result<Option<Item>, StoreError> {
        let get = self
            .client
            .get_item()
            .table_name(self.names.control())
            .set_key(Some(key(of)))
            .consistent_read(true);
        let tables = [self.names.control()];
        let output = Call::consistent("GetItem", &tables).run(get.send()).await?;
        Ok(output.item)
    }

    /// All items of a partition, by consistent reads.
    pub(super) async fn control_partition(&self, pk: &str) -> Result<Vec<Item>, StoreError> {
        self.control_items(pk, None, MAX_PAGES).await
    }

    /// The items of a partition whose sort keys begin so, by consistent reads: of so many pages at most.
    pub(super) async fn control_items(
        &self,
        pk: &str,
        prefix: Option<&str>,
        most: usize,
    ) -> Result<Vec<Item>, StoreError> {
        let table = self.names.control();
        let (mut items, mut from) = (Vec::new(), None);
        for _ in 0..most {
            let query = self
                .client
                .query()
                .table_name(table)
                .consistent_read(true)
                .expression_attribute_names("#pk", PK)
                .expression_attribute_values(":pk", text(pk))
                .set_exclusive_start_key(from);
            let query = match prefix {
                None => query.key_condition_expression("#pk = :pk"),
                Some(prefix) => query
                    .key_condition_expression("#pk = :pk AND begins_with(#sk, :prefix)")
                    .expression_attribute_names("#sk", SK)
                    .expression_attribute_values(":prefix", text(prefix)),
            };
            let page = Call::consistent("Query", &[table]).run(query.send()).await?;
            items.extend(page.items.unwrap_or_default());
            from = page.last_evaluated_key.filter(|key| !key.is_empty());
            if from.is_none() {
                return Ok(items);
            }
        }
        // Who takes a part for the whole does wrong, and nobody hears of it.
        let detail = format!("{table}: the partition {pk} is larger than {most} pages");
        Err(StoreError::Unreadable { detail })
    }

    /// The newest entries of a list that is kept in the order of times, and where to go on. Entries of another form are passed over.
    pub(super) async fn newest(
        &self,
        pk: &str,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<(Vec<ControlKey>, Option<Cursor>), StoreError> {
        let table = self.names.control();
        let parse = |sk: &str| ControlKey::parse(pk, sk);
        let from =
            after.map(|Cursor(sk)| parse(sk).ok_or(StoreError::ForeignCursor)).transpose()?;
        let query = self
            .client
            .query()
            .table_name(table)
            .consistent_read(true)
            .scan_index_forward(false)
            .limit(page_size(limit, LIST_PAGE))
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", PK)
            .expression_attribute_values(":pk", text(pk))
            .set_exclusive_start_key(from.as_ref().map(key));
        let page = Call::consistent("Query", &[table]).run(query.send()).await?;
        let (mut entries, mut last) = (Vec::new(), None);
        for item in page.items() {
            let sk = Reader { table, item }.text(SK)?;
            entries.extend(parse(sk));
            last = Some(Cursor(sk.to_owned()));
        }
        Ok((entries, last.filter(|_| page.last_evaluated_key.is_some())))
    }

    pub(super) fn put_control(&self, item: Item) -> PutBuilder {
        Put::builder().table_name(self.names.control()).set_item(Some(item))
    }

    /// Puts an item where none of its key is.
    pub(super) fn put_new(&self, item: Item) -> Result<TransactWriteItem, StoreError> {
        let new = format!("attribute_not_exists({PK})");
        transact::put(self.put_control(item).condition_expression(new).build())
    }

    pub(super) fn delete_control(&self, of: &ControlKey) -> DeleteBuilder {
        Delete::builder().table_name(self.names.control()).set_key(Some(key(of)))
    }

    /// Does a transaction. Answers which item's condition did not hold; `None`: it was done.
    ///
    /// # Errors
    /// [`StoreError::Throttled`] too where another transaction was at work on an item.
    pub(super) async fn all_or_nothing(
        &self,
        items: Vec<TransactWriteItem>,
    ) -> Result<Option<usize>, StoreError> {
        let table = self.names.control();
        let request =
            self.client.transact_write_items().set_transact_items(Some(items)).customize();
        let request = request.config_override(self.commit_config());
        let error = match Call::new("TransactWriteItems", &[table]).raw(request.send()).await {
            Ok(_) => return Ok(None),
            Err(error) => error,
        };
        let Some(reasons) = cancellation(&error) else { return Err(from_sdk(&error)) };
        match reasons.iter().position(condition_failed) {
            Some(failed) => Ok(Some(failed)),
            None => Err(from_cancelled(reasons)),
        }
    }
}
