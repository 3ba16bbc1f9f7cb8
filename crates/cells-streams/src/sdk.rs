//! DynamoDB Streams through Amazon's client: translation and nothing else.
//!
//! Why errors are told apart by their code: every operation has its own error type with the same names in it.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_dynamodbstreams::Client;
use aws_sdk_dynamodbstreams::config::http::HttpResponse;
use aws_sdk_dynamodbstreams::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodbstreams::types::{
    self as sdk, AttributeValue as StreamValue, OperationType, ShardIteratorType,
};

use crate::event::{ChangeKind, Item, Record};
use crate::streams::{
    MAX_RECORDS, ReadFrom, RecordPage, Shard, ShardIterator, ShardPage, Streams, StreamsError,
};
use crate::{SequenceNumber, ShardId, StreamArn};

/// Longest text of the SDK in an error.
const MAX_DETAIL: usize = 400;

/// DynamoDB Streams of one account and Region.
#[derive(Debug, Clone)]
pub struct SdkStreams {
    client: Client,
}

impl SdkStreams {
    /// The client's own retries should be off: the consumer backs off by itself, per shard, and knows what is worth repeating.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

#[async_trait]
impl Streams for SdkStreams {
    async fn describe(
        &self,
        stream: &StreamArn,
        after: Option<&ShardId>,
    ) -> Result<ShardPage, StreamsError> {
        let call = self.client.describe_stream().stream_arn(stream.as_str());
        let call = call.set_exclusive_start_shard_id(after.map(|id| id.as_str().to_owned()));
        let answer = call.send().await.map_err(|error| from_sdk(&error))?;
        let description = answer.stream_description.ok_or_else(|| unreadable("no description"))?;
        let shards = description.shards.unwrap_or_default();
        Ok(ShardPage {
            shards: shards.into_iter().map(shard).collect::<Result<_, _>>()?,
            next: description.last_evaluated_shard_id.map(ShardId::new),
        })
    }

    async fn iterator(
        &self,
        stream: &StreamArn,
        shard: &ShardId,
        from: &ReadFrom,
    ) -> Result<ShardIterator, StreamsError> {
        let (kind, sequence) = match from {
            ReadFrom::TrimHorizon => (ShardIteratorType::TrimHorizon, None),
            ReadFrom::After(at) => (ShardIteratorType::AfterSequenceNumber, Some(at)),
        };
        let call = self
            .client
            .get_shard_iterator()
            .stream_arn(stream.as_str())
            .shard_id(shard.as_str())
            .shard_iterator_type(kind)
            .set_sequence_number(sequence.map(|at| at.as_str().to_owned()));
        let answer = call.send().await.map_err(|error| from_sdk(&error))?;
        let iterator = answer.shard_iterator.ok_or_else(|| unreadable("no iterator"))?;
        Ok(ShardIterator::new(iterator))
    }

    async fn records(&self, iterator: &ShardIterator) -> Result<RecordPage, StreamsError> {
        let call = self.client.get_records().shard_iterator(iterator.as_str()).limit(MAX_RECORDS);
        let answer = call.send().await.map_err(|error| from_sdk(&error))?;
        let records = answer.records.unwrap_or_default();
        Ok(RecordPage {
            records: records.into_iter().map(record).collect::<Result<_, _>>()?,
            next: answer.next_shard_iterator.map(ShardIterator::new),
        })
    }
}

fn shard(shard: sdk::Shard) -> Result<Shard, StreamsError> {
    let range = shard.sequence_number_range;
    let (start, end) = match range {
        Some(range) => (range.starting_sequence_number, range.ending_sequence_number),
        None => (None, None),
    };
    Ok(Shard {
        id: ShardId::new(shard.shard_id.ok_or_else(|| unreadable("a shard without an id"))?),
        parents: shard.parent_shard_id.into_iter().map(ShardId::new).collect(),
        start: start.map(sequence).transpose()?,
        end: end.map(sequence).transpose()?,
    })
}

fn record(record: sdk::Record) -> Result<Record, StreamsError> {
    let change = record.dynamodb.ok_or_else(|| unreadable("a record without a change"))?;
    let kind = match record.event_name {
        Some(OperationType::Insert) => ChangeKind::Insert,
        Some(OperationType::Modify) => ChangeKind::Modify,
        Some(OperationType::Remove) => ChangeKind::Remove,
        _ => return Err(unreadable("a record of an unknown kind")),
    };
    let at = change.sequence_number.ok_or_else(|| unreadable("a record without a number"))?;
    // https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/time-to-live-ttl-streams.html
    let expired = kind == ChangeKind::Remove
        && record.user_identity.is_some_and(|identity| {
            identity.r#type.as_deref() == Some("Service")
                && identity.principal_id.as_deref() == Some("dynamodb.amazonaws.com")
        });
    Ok(Record {
        id: record.event_id.unwrap_or_default(),
        kind,
        sequence: sequence(at)?,
        created_secs: change.approximate_creation_date_time.map(|at| at.secs()),
        keys: item(change.keys.unwrap_or_default())?,
        old: change.old_image.map(item).transpose()?,
        new: change.new_image.map(item).transpose()?,
        expired,
    })
}

fn sequence(text: String) -> Result<SequenceNumber, StreamsError> {
    SequenceNumber::new(text).map_err(|error| unreadable(&error.to_string()))
}

fn item(attributes: HashMap<String, StreamValue>) -> Result<Item, StreamsError> {
    attributes.into_iter().map(|(name, value)| Ok((name, attribute(value)?))).collect()
}

/// The two clients have a type each for the same values. Nested 32 deep at most: DynamoDB's own limit.
fn attribute(from: StreamValue) -> Result<AttributeValue, StreamsError> {
    Ok(match from {
        StreamValue::S(text) => AttributeValue::S(text),
        StreamValue::N(number) => AttributeValue::N(number),
        StreamValue::B(bytes) => AttributeValue::B(bytes),
        StreamValue::Bool(value) => AttributeValue::Bool(value),
        StreamValue::Null(value) => AttributeValue::Null(value),
        StreamValue::Ss(texts) => AttributeValue::Ss(texts),
        StreamValue::Ns(numbers) => AttributeValue::Ns(numbers),
        StreamValue::Bs(bytes) => AttributeValue::Bs(bytes),
        StreamValue::L(values) => {
            AttributeValue::L(values.into_iter().map(attribute).collect::<Result<_, _>>()?)
        }
        StreamValue::M(values) => AttributeValue::M(item(values)?),
        // Left out, the change would be another one.
        _ => return Err(unreadable("an attribute of a type that this version does not know")),
    })
}

fn unreadable(what: &str) -> StreamsError {
    StreamsError::Rejected(format!("the answer cannot be read: {what}"))
}

fn from_sdk<E>(error: &SdkError<E, HttpResponse>) -> StreamsError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let detail = || DisplayErrorContext(error).to_string().chars().take(MAX_DETAIL).collect();
    let SdkError::ServiceError(failure) = error else {
        return match error {
            SdkError::ConstructionFailure(_) => StreamsError::Rejected(detail()),
            _ => StreamsError::Failed(detail()),
        };
    };
    let status = failure.raw().status().as_u16();
    match failure.err().code().unwrap_or_default() {
        "ExpiredIteratorException" => StreamsError::ExpiredIterator,
        "TrimmedDataAccessException" => StreamsError::Trimmed,
        "ResourceNotFoundException" => StreamsError::NotFound,
        "LimitExceededException"
        | "ProvisionedThroughputExceededException"
        | "ThrottlingException"
        | "RequestLimitExceeded" => StreamsError::Throttled,
        "InternalServerError" => StreamsError::Failed(detail()),
        _ if status == 429 => StreamsError::Throttled,
        _ if (400..500).contains(&status) => StreamsError::Rejected(detail()),
        _ => StreamsError::Failed(detail()),
    }
}
