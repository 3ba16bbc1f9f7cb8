//! Direct writes: under the placement's lease, and reported only if the answer came inside it.

use std::collections::HashMap;
use std::time::Instant;

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, Delete, Put, ReturnValue, TransactWriteItem, Update,
};

use super::{CELL_ID, CellData, DataError, Item, LEAST_LEASE, Place};
use crate::cells::table_set::KeyAttribute;
use crate::directory::Error;
use crate::domain::{CellId, PartitionKey};
use crate::store::StoreError;
use crate::store::dynamodb::from_sdk;

/// Writes of one transaction: DynamoDB's limit.
const MAX_WRITES: usize = 100;

/// A condition or an update, with what its names and values stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expression {
    /// Empty: none.
    pub text: String,
    pub names: HashMap<String, String>,
    pub values: Item,
}

/// What to do with one item. Keys hold exactly the key's attributes.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Put(Item),
    /// By an expression that shares the condition's names and values.
    Update(Item, String),
    Delete(Item),
    Check(Item),
}

impl Action {
    fn item(&self) -> &Item {
        match self {
            Action::Put(item)
            | Action::Update(item, _)
            | Action::Delete(item)
            | Action::Check(item) => item,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub table: String,
    /// The request's field that holds item or key, for errors.
    pub field: String,
    pub action: Action,
    pub condition: Expression,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub cell: CellId,
    /// Of a put or a delete what was there, of an update what is there now.
    pub item: Option<Item>,
}

impl CellData {
    /// Does one write.
    ///
    /// # Errors
    /// Only after [`Error::OutcomeUnknown`] may it have been done.
    pub async fn write(&self, tenant: &PartitionKey, write: Write) -> Result<Written, DataError> {
        let (cell, lease) = self.leased(tenant).await?;
        let place = self.place(&cell, &write.table).await?;
        let write = prepare(tenant, &place, write)?;
        let item = within(lease, self.send(&place, write)).await?;
        Ok(Written { cell, item: item.filter(|item| !item.is_empty()) })
    }

    /// Does all writes, or none. `token`: the same one with the same writes has one effect for ten minutes.
    ///
    /// # Errors
    /// As of [`CellData::write`].
    pub async fn transact(
        &self,
        tenant: &PartitionKey,
        writes: Vec<Write>,
        token: Option<String>,
    ) -> Result<Written, DataError> {
        if !(1..=MAX_WRITES).contains(&writes.len()) {
            let problem = format!("holds {} writes; 1 to {MAX_WRITES} are allowed", writes.len());
            return Err(DataError::invalid("writes", problem));
        }
        let (cell, lease) = self.leased(tenant).await?;
        let mut items = Vec::new();
        let mut client = None;
        for write in writes {
            let place = self.place(&cell, &write.table).await?;
            let write = prepare(tenant, &place, write)?;
            items.push(transact_item(&place, write)?);
            client.get_or_insert_with(|| self.client(&place));
        }
        let Some(client) = client else { return Err(DataError::invalid("writes", "is empty")) };
        let sent = client
            .transact_write_items()
            .set_transact_items(Some(items))
            .set_client_request_token(token)
            .send();
        let sent = async {
            let Err(error) = sent.await else { return Ok(()) };
            let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) =
                error.as_service_error()
            else {
                return Err(refused(from_sdk(&error)));
            };
            let mut reasons = cancelled.cancellation_reasons().iter();
            match reasons.position(|reason| reason.code() == Some("ConditionalCheckFailed")) {
                Some(write) => Err(DataError::ConditionFailed { write }),
                None => {
                    let mut codes =
                        cancelled.cancellation_reasons().iter().filter_map(|r| r.code());
                    Err(match codes.any(|code| code == "ValidationError") {
                        true => invalid_write("writes"),
                        // Another transaction on one of the items, or too high a rate.
                        false => DataError::Store(StoreError::Throttled),
                    })
                }
            }
        };
        within(lease, sent).await?;
        Ok(Written { cell, item: None })
    }

    async fn leased(&self, tenant: &PartitionKey) -> Result<(CellId, Instant), DataError> {
        let (cell, lease) = self.home(tenant).await?;
        let lease = lease.filter(|until| *until > Instant::now() + LEAST_LEASE);
        lease.map(|lease| (cell, lease)).ok_or(DataError::NoLease)
    }

    async fn send(&self, place: &Place, write: Write) -> Result<Option<Item>, DataError> {
        let client = self.client(place);
        let Expression { text, names, values } = write.condition;
        let (names, values) = (some(names), some(values));
        let condition = Some(text).filter(|text| !text.is_empty());
        match write.action {
            Action::Put(item) => {
                let put = client
                    .put_item()
                    .table_name(&place.name)
                    .set_item(Some(item))
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .return_values(ReturnValue::AllOld);
                put.send().await.map(|done| done.attributes).map_err(unwritten)
            }
            Action::Update(key, update) => {
                let update = client
                    .update_item()
                    .table_name(&place.name)
                    .set_key(Some(key))
                    .set_update_expression(Some(update).filter(|update| !update.is_empty()))
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .return_values(ReturnValue::AllNew);
                update.send().await.map(|done| done.attributes).map_err(unwritten)
            }
            Action::Delete(key) => {
                let delete = client
                    .delete_item()
                    .table_name(&place.name)
                    .set_key(Some(key))
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .return_values(ReturnValue::AllOld);
                delete.send().await.map(|done| done.attributes).map_err(unwritten)
            }
            // Goes with others, in a transaction.
            Action::Check(_) => {
                Err(DataError::invalid(write.field, "is a check alone: nothing to write"))
            }
        }
    }
}

/// What comes of a write whose answer must arrive inside the lease.
async fn within<T>(
    lease: Instant,
    write: impl Future<Output = Result<T, DataError>>,
) -> Result<T, DataError> {
    let unknown = || DataError::Directory(Error::OutcomeUnknown);
    match tokio::time::timeout_at(lease.into(), write).await {
        Err(_elapsed) => Err(unknown()),
        Ok(Err(DataError::Store(error))) if error.ambiguous() => Err(unknown()),
        // Polled once more after the lease ended, an answer may still be seen.
        Ok(Ok(_)) if Instant::now() >= lease => Err(unknown()),
        Ok(answer) => answer,
    }
}

/// Why the only write of a call was not done, or whether that is not known.
fn unwritten<E>(error: SdkError<E, HttpResponse>) -> DataError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    match code {
        Some("ConditionalCheckFailedException") => DataError::ConditionFailed { write: 0 },
        _ => refused(from_sdk(&error)),
    }
}

/// A write that DynamoDB will not have is wrong in itself: an expression that it cannot read, a value that does not fit.
fn refused(error: StoreError) -> DataError {
    match error {
        StoreError::Rejected { detail } if detail.starts_with("ValidationException") => {
            tracing::debug!(detail, "a write was not valid");
            invalid_write("write")
        }
        error => error.into(),
    }
}

fn invalid_write(field: &str) -> DataError {
    DataError::invalid(
        field,
        "is not valid: look at the expressions, at the types of key and values, and at the item's size (400 KB)",
    )
}

/// Holds a write against the table's key and the tenant's partitions, and stamps what is put with its cell.
fn prepare(tenant: &PartitionKey, place: &Place, mut write: Write) -> Result<Write, DataError> {
    let spec = &place.spec;
    let field = write.field.clone();
    let whole = matches!(write.action, Action::Put(_));
    let item = write.action.item();
    let name = &spec.partition_key.name;
    let Some(AttributeValue::S(partition)) = item.get(name) else {
        return Err(DataError::invalid(
            format!("{field}.{name}"),
            "is missing, or is not {\"S\": …}",
        ));
    };
    if !spec.tenant_keys.iter().any(|template| template.tenant(partition).as_ref() == Some(tenant))
    {
        let templates: Vec<_> = spec.tenant_keys.iter().cloned().map(String::from).collect();
        let problem = format!("is not a partition of the tenant: {}", templates.join(", "));
        return Err(DataError::invalid(format!("{field}.{name}"), problem));
    }
    if let Some(KeyAttribute { name, .. }) = &spec.sort_key
        && !item.contains_key(name)
    {
        return Err(DataError::invalid(format!("{field}.{name}"), "is missing"));
    }
    let attributes = 1 + usize::from(spec.sort_key.is_some());
    if !whole && item.len() != attributes {
        return Err(DataError::invalid(field, "holds more than the key"));
    }
    if let Action::Update(_, update) = &write.action {
        let names = write.condition.names.values().map(String::as_str);
        let says = names.chain(words(update)).any(|name| name == CELL_ID);
        if says {
            return Err(DataError::invalid("update", "names CellId, which the directory sets"));
        }
    }
    if let Action::Put(item) = &mut write.action {
        item.insert(CELL_ID.to_owned(), AttributeValue::S(place.cell.id.as_str().to_owned()));
    }
    Ok(write)
}

fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '#' && c != ':')
}

fn some<K, V>(map: HashMap<K, V>) -> Option<HashMap<K, V>> {
    Some(map).filter(|map| !map.is_empty())
}

fn transact_item(place: &Place, write: Write) -> Result<TransactWriteItem, DataError> {
    let Expression { text, names, values } = write.condition;
    let (names, values) = (some(names), some(values));
    let condition = Some(text).filter(|text| !text.is_empty());
    let incomplete = |_| DataError::invalid(write.field.clone(), "lacks an expression");
    let item = TransactWriteItem::builder();
    Ok(match write.action {
        Action::Put(values_of) => {
            let put = Put::builder().table_name(&place.name).set_item(Some(values_of));
            let put = put
                .set_condition_expression(condition)
                .set_expression_attribute_names(names)
                .set_expression_attribute_values(values);
            item.put(put.build().map_err(incomplete)?)
        }
        Action::Update(key, expression) => {
            let update = Update::builder().table_name(&place.name).set_key(Some(key));
            let update = update
                .update_expression(expression)
                .set_condition_expression(condition)
                .set_expression_attribute_names(names)
                .set_expression_attribute_values(values);
            item.update(update.build().map_err(incomplete)?)
        }
        Action::Delete(key) => {
            let delete = Delete::builder().table_name(&place.name).set_key(Some(key));
            let delete = delete
                .set_condition_expression(condition)
                .set_expression_attribute_names(names)
                .set_expression_attribute_values(values);
            item.delete(delete.build().map_err(incomplete)?)
        }
        Action::Check(key) => {
            let check = ConditionCheck::builder().table_name(&place.name).set_key(Some(key));
            let check = check
                .set_condition_expression(condition)
                .set_expression_attribute_names(names)
                .set_expression_attribute_values(values);
            item.condition_check(check.build().map_err(incomplete)?)
        }
    }
    .build())
}
