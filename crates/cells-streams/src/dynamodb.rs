//! Leases in a DynamoDB table that is keyed by `PK` and `SK`; [`crate::schema`] has the records.
//!
//! Why it bears the SDK's own retries: every write states what it expects, and after a condition that failed the item that came back
//! with the failure is compared with what the write would have made: a lost reply is no lost race.

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::{DisplayErrorContext, SdkError};
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};

use crate::event::Item;
use crate::lease::{
    Claim, Claimed, Group, Lease, LeaseEpoch, LeaseError, Leases, NewLease, Position, Stamp, Taken,
};
use crate::schema::{self, StreamKey};
use crate::{GroupName, OwnerId, ShardId, StreamArn};

/// Most pages of one listing: 64 MB of shards' records.
const MAX_PAGES: usize = 64;

/// Longest text of the SDK in an error.
const MAX_DETAIL: usize = 400;

/// The records of one group for one stream's table.
///
/// Shards of a stream that the table got later are not shown: here they cannot be found, and would be taken for gone. Those of its earlier
/// streams are, so that what was not read of them is reported.
#[derive(Debug, Clone)]
pub struct DynamoDbLeases {
    client: Client,
    control_table: String,
    group: GroupName,
    table: String,
    label: String,
}

impl DynamoDbLeases {
    /// Leases of `group` on `stream`, kept in `control_table`, whose key is `PK` (S) and `SK` (S).
    ///
    /// The client should have timeouts well below a lease's duration.
    pub fn new(
        client: Client,
        control_table: impl Into<String>,
        group: GroupName,
        stream: &StreamArn,
    ) -> Self {
        let (table, label) = (stream.table().to_owned(), stream.label().to_owned());
        Self { client, control_table: control_table.into(), group, table, label }
    }

    fn group_key(&self) -> StreamKey {
        StreamKey::Group { group: self.group.clone(), table: self.table.clone() }
    }

    fn shard_key(&self, shard: &ShardId) -> StreamKey {
        let (group, table) = (self.group.clone(), self.table.clone());
        StreamKey::Shard { group, table, shard: shard.clone() }
    }

    fn update(&self, key: &StreamKey) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.control_table)
            .key(schema::PK, schema::s(key.pk()))
            .key(schema::SK, schema::s(key.sk()))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }

    /// Puts an item unless its key is taken. That it was is no error.
    async fn put_if_absent(&self, item: Item) -> Result<(), LeaseError> {
        let put = self.client.put_item().table_name(&self.control_table).set_item(Some(item));
        match put.condition_expression("attribute_not_exists(PK)").send().await {
            Ok(_) => Ok(()),
            Err(error) => match error.as_service_error() {
                Some(refused) if refused.is_conditional_check_failed_exception() => Ok(()),
                _ => Err(failed(&error)),
            },
        }
    }

    /// An update under a claim that raises the counter.
    async fn claimed(
        &self,
        claim: &Claim,
        change: &str,
        values: Vec<(&str, AttributeValue)>,
        names: &[(&str, &str)],
    ) -> Result<Claimed, LeaseError> {
        let mut update = self
            .update(&self.shard_key(&claim.shard))
            .update_expression(format!("{change} ADD #counter :one"))
            .condition_expression("#owner = :owner AND #epoch = :epoch")
            .expression_attribute_names("#counter", schema::COUNTER)
            .expression_attribute_names("#owner", schema::OWNER)
            .expression_attribute_names("#epoch", schema::EPOCH)
            .expression_attribute_values(":one", schema::n(1))
            .expression_attribute_values(":owner", schema::s(claim.owner.as_str()))
            .expression_attribute_values(":epoch", schema::n(claim.epoch.get()));
        for (name, value) in values {
            update = update.expression_attribute_values(name, value);
        }
        for (alias, name) in names {
            update = update.expression_attribute_names(*alias, *name);
        }
        match update.send().await {
            Ok(_) => Ok(Claimed::Held),
            Err(error) => refusal(&error).map(|_| Claimed::Lost).ok_or_else(|| failed(&error)),
        }
    }
}

#[async_trait]
impl Leases for DynamoDbLeases {
    async fn begin(&self, since_secs: Option<i64>) -> Result<Group, LeaseError> {
        let key = self.group_key();
        let fresh = Group { since_secs, initialised: false };
        self.put_if_absent(schema::group_item(&key, &fresh)).await?;
        let get = self
            .client
            .get_item()
            .table_name(&self.control_table)
            .key(schema::PK, schema::s(key.pk()))
            .key(schema::SK, schema::s(key.sk()))
            .consistent_read(true);
        let answer = get.send().await.map_err(|error| failed(&error))?;
        answer.item.as_ref().and_then(schema::parse_group).ok_or_else(|| unreadable(&key))
    }

    async fn initialised(&self) -> Result<(), LeaseError> {
        let update = self
            .update(&self.group_key())
            .update_expression("SET #done = :done")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_names("#done", schema::INITIALISED)
            .expression_attribute_values(":done", AttributeValue::Bool(true));
        update.send().await.map(|_| ()).map_err(|error| failed(&error))
    }

    async fn list(&self) -> Result<Vec<Lease>, LeaseError> {
        let pk = self.group_key().pk();
        let (mut leases, mut after) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let query = self
                .client
                .query()
                .table_name(&self.control_table)
                .consistent_read(true)
                .key_condition_expression("PK = :pk AND begins_with(SK, :shards)")
                .expression_attribute_values(":pk", schema::s(&pk))
                .expression_attribute_values(":shards", schema::s(schema::SHARD_PREFIX))
                .set_exclusive_start_key(after);
            let page = query.send().await.map_err(|error| failed(&error))?;
            let ours = |item: &&Item| !schema::is_of_later_stream(item, &self.label);
            for item in page.items().iter().filter(ours) {
                // One that cannot be read must not be taken for one that is not there.
                let lease = schema::parse_lease(item);
                leases.push(lease.ok_or_else(|| unreadable(&self.group_key()))?);
            }
            after = page.last_evaluated_key;
            if after.is_none() {
                return Ok(leases);
            }
        }
        Err(LeaseError(format!("more than {MAX_PAGES} pages of shards' records under {pk}")))
    }

    async fn create(&self, lease: &NewLease) -> Result<(), LeaseError> {
        let NewLease { shard, parents, position, since_secs } = lease.clone();
        let stamp = Stamp { epoch: LeaseEpoch::NEVER_TAKEN, counter: 0 };
        let lease = Lease { shard, parents, position, since_secs, owner: None, stamp };
        let mut item = schema::lease_item(&self.shard_key(&lease.shard), &lease);
        item.insert(schema::STREAM.into(), schema::s(&self.label));
        self.put_if_absent(item).await
    }

    async fn take(
        &self,
        shard: &ShardId,
        seen: Stamp,
        owner: &OwnerId,
    ) -> Result<Taken, LeaseError> {
        let key = self.shard_key(shard);
        let update = self
            .update(&key)
            .update_expression("SET #owner = :owner, #epoch = :next ADD #counter :one")
            .condition_expression("#epoch = :epoch AND #counter = :counter")
            .expression_attribute_names("#owner", schema::OWNER)
            .expression_attribute_names("#epoch", schema::EPOCH)
            .expression_attribute_names("#counter", schema::COUNTER)
            .expression_attribute_values(":owner", schema::s(owner.as_str()))
            .expression_attribute_values(":next", schema::n(seen.epoch.next().get()))
            .expression_attribute_values(":epoch", schema::n(seen.epoch.get()))
            .expression_attribute_values(":counter", schema::n(seen.counter))
            .expression_attribute_values(":one", schema::n(1))
            .return_values(ReturnValue::AllNew);
        let found = match update.send().await {
            Ok(answer) => answer.attributes,
            Err(error) => refusal(&error).ok_or_else(|| failed(&error))?,
        };
        let Some(found) = found else { return Ok(Taken::Lost) };
        let lease = schema::parse_lease(&found).ok_or_else(|| unreadable(&key))?;
        // Ours, though the condition failed: the reply of the attempt that succeeded was lost.
        let ours = lease.owner.as_ref() == Some(owner) && lease.stamp.epoch == seen.epoch.next();
        Ok(if ours { Taken::Won(lease) } else { Taken::Lost })
    }

    async fn renew(&self, claim: &Claim) -> Result<Claimed, LeaseError> {
        self.claimed(claim, "", Vec::new(), &[]).await
    }

    async fn checkpoint(&self, claim: &Claim, position: &Position) -> Result<Claimed, LeaseError> {
        let (name, sequence, as_of) = schema::position(position);
        let mut names = vec![("#position", schema::POSITION)];
        let mut values = vec![(":position", schema::s(name))];
        let (mut set, mut remove) = (String::from("SET #position = :position"), Vec::new());
        let parts = [
            ("#sequence", schema::SEQUENCE, ":sequence", sequence),
            ("#as_of", schema::AS_OF_SECS, ":as_of", as_of),
        ];
        for (alias, name, place, value) in parts {
            names.push((alias, name));
            match value {
                Some(value) => {
                    set += &format!(", {alias} = {place}");
                    values.push((place, value));
                }
                None => remove.push(alias),
            }
        }
        let remove = match remove.is_empty() {
            true => String::new(),
            false => format!(" REMOVE {}", remove.join(", ")),
        };
        self.claimed(claim, &(set + &remove), values, &names).await
    }

    async fn release(&self, claim: &Claim) -> Result<Claimed, LeaseError> {
        self.claimed(claim, "REMOVE #owner", Vec::new(), &[]).await
    }

    async fn forget(&self, shard: &ShardId) -> Result<(), LeaseError> {
        let key = self.shard_key(shard);
        let delete = self
            .client
            .delete_item()
            .table_name(&self.control_table)
            .key(schema::PK, schema::s(key.pk()))
            .key(schema::SK, schema::s(key.sk()))
            .condition_expression("#position IN (:end, :lost)")
            .expression_attribute_names("#position", schema::POSITION)
            .expression_attribute_values(":end", schema::s(schema::SHARD_END))
            .expression_attribute_values(":lost", schema::s(schema::LOST_END));
        match delete.send().await {
            Ok(_) => Ok(()),
            Err(error) => match error.as_service_error() {
                Some(refused) if refused.is_conditional_check_failed_exception() => Ok(()),
                _ => Err(failed(&error)),
            },
        }
    }
}

/// The item that a condition failed on, if that is what happened; there may have been none.
fn refusal<R>(error: &SdkError<UpdateItemError, R>) -> Option<Option<Item>> {
    match error.as_service_error() {
        Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
            Some(refused.item.clone())
        }
        _ => None,
    }
}

fn failed<E, R>(error: &SdkError<E, R>) -> LeaseError
where
    E: std::error::Error + 'static,
    R: std::fmt::Debug,
{
    let text = DisplayErrorContext(error).to_string();
    LeaseError(text.chars().take(MAX_DETAIL).collect())
}

fn unreadable(key: &StreamKey) -> LeaseError {
    LeaseError(format!("a record under {} cannot be read: written by a later version?", key.pk()))
}
