//! What a partition holds, by reading it.

use aws_sdk_dynamodb::types::{AttributeValue, ReturnConsumedCapacity};

use super::{Clients, cloud_error};
use crate::cells::capacity::share::Stored;
use crate::cells::cloud::CloudError;
use crate::cells::data::item_bytes;

/// Reads a partition, at most so many pages of 1 MB.
pub(super) async fn stored(
    clients: &Clients,
    table: &str,
    key: &str,
    partition: &str,
    pages: usize,
) -> Result<Stored, CloudError> {
    let mut stored = Stored::default();
    let mut from = None;
    while stored.pages < pages {
        let query = clients
            .dynamodb
            .query()
            .table_name(table)
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", key)
            .expression_attribute_values(":pk", AttributeValue::S(partition.to_owned()))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .set_exclusive_start_key(from);
        let page = query.send().await.map_err(|error| cloud_error(&error))?;
        stored.pages += 1;
        stored.read_units +=
            page.consumed_capacity().and_then(|c| c.capacity_units()).unwrap_or(0.0);
        for item in page.items() {
            stored.items += 1;
            stored.bytes += item_bytes(item);
        }
        from = page.last_evaluated_key.filter(|key| !key.is_empty());
        if from.is_none() {
            return Ok(stored);
        }
    }
    Ok(Stored { more: true, ..stored })
}
