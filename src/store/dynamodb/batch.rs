//! Reads of many items by their keys.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::KeysAndAttributes;

use super::attributes::Item;
use super::call::Call;
use super::transact::incomplete;
use crate::store::StoreError;

/// How often the keys of a batch are asked for until all are answered, and by how much longer the wait is each time.
const ROUNDS: u32 = 6;
const WAIT: Duration = Duration::from_millis(10);

/// Items, or keys of such, by the tables that they are in.
pub type ByTable = HashMap<String, Vec<Item>>;

/// Reads items consistently, at most [`MAX_KEYS`](crate::store::MAX_KEYS) in all. Answers those that there are, in no order.
///
/// # Errors
/// [`StoreError::Throttled`] where some keys are left over however often they are asked for.
pub async fn batch_get(client: &Client, keys: ByTable) -> Result<ByTable, StoreError> {
    let (mut left, mut found) = (keys, ByTable::new());
    for round in 0..ROUNDS {
        left.retain(|_, keys| !keys.is_empty());
        if left.is_empty() {
            return Ok(found);
        }
        tokio::time::sleep(WAIT * round).await;
        let names: Vec<String> = left.keys().cloned().collect();
        let tables: Vec<&str> = names.iter().map(String::as_str).collect();
        let wanted = left.into_iter().map(|(table, keys)| {
            let wanted = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true);
            Ok((table, wanted.build().map_err(incomplete)?))
        });
        let wanted = wanted.collect::<Result<_, StoreError>>()?;
        let get = client.batch_get_item().set_request_items(Some(wanted));
        let answer = Call::consistent("BatchGetItem", &tables).run(get.send()).await?;
        for (table, items) in answer.responses.unwrap_or_default() {
            found.entry(table).or_default().extend(items);
        }
        let unprocessed = answer.unprocessed_keys.unwrap_or_default().into_iter();
        left = unprocessed.map(|(table, left)| (table, left.keys)).collect();
    }
    match left.is_empty() {
        true => Ok(found),
        false => Err(StoreError::Throttled),
    }
}
