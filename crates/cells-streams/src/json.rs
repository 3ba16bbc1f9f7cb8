//! Deliveries as JSON lines, one an event or a gap, values in DynamoDB's typed JSON (`{"S": "text"}`).
//!
//! ```json
//! {"type":"MODIFY","group":"g","table":"Orders-cell-a","cell":"cell-a","shard":"shardId-1","sequence":"100",
//!  "created":1700000000,"id":"…","expired":false,"entity_type":"Order","tenant":"customer-1",
//!  "keys":{"PK":{"S":"…"}},"old":{…},"new":{…}}
//! {"type":"GAP","group":"g","table":"Orders-cell-a","cell":"cell-a","shard":"shardId-1","after":"100","cause":"TRIMMED"}
//! ```
//! What is not known, and images that are not asked for, are left out.

use std::fmt;
use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::event::{Delivery, Event, Gap, Item, Source};

/// Which tenant a change belongs to, if any.
pub type TenantOf = Arc<dyn Fn(&Event) -> Option<String> + Send + Sync>;

/// Writes deliveries as JSON lines.
#[derive(Clone, Default)]
pub struct Json {
    tenant_of: Option<TenantOf>,
    without_images: bool,
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Json").finish_non_exhaustive()
    }
}

impl Json {
    /// Lines without `tenant`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lines with the `tenant` that `of` finds.
    pub fn with_tenant(of: TenantOf) -> Self {
        Self { tenant_of: Some(of), ..Self::default() }
    }

    /// The same lines without `old` and `new`. An `entity_type` stays.
    pub fn without_images(self) -> Self {
        Self { without_images: true, ..self }
    }

    /// One line an event or a gap, each with its line feed.
    pub fn lines(&self, delivery: &Delivery) -> Vec<u8> {
        self.each_line(delivery).concat().into_bytes()
    }

    /// The same line by line.
    pub fn each_line(&self, delivery: &Delivery) -> Vec<String> {
        let line = |value: Value| format!("{value}\n");
        match delivery {
            Delivery::Events(batch) => {
                batch.events.iter().map(|event| line(self.event(event))).collect()
            }
            Delivery::Gap(gap) => vec![line(gap_line(gap))],
        }
    }

    /// One event.
    pub fn event(&self, event: &Event) -> Value {
        let record = &event.record;
        let mut line = head(record.kind.as_str(), &event.source, event.shard.as_str());
        line.insert("sequence".into(), json!(record.sequence.as_str()));
        line.insert("expired".into(), json!(record.expired));
        line.insert("keys".into(), item(&record.keys));
        let images = !self.without_images;
        let tenant = self.tenant_of.as_ref().and_then(|tenant_of| tenant_of(event));
        let optional = [
            ("id", Some(&record.id).filter(|id| !id.is_empty()).map(|id| json!(id))),
            ("created", record.created_secs.map(|secs| json!(secs))),
            ("entity_type", event.entity_type().map(|name| json!(name))),
            ("tenant", tenant.map(|tenant| json!(tenant))),
            ("old", record.old.as_ref().filter(|_| images).map(item)),
            ("new", record.new.as_ref().filter(|_| images).map(item)),
        ];
        let known = optional.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
        line.extend(known);
        Value::Object(line)
    }
}

fn gap_line(gap: &Gap) -> Value {
    let mut line = head("GAP", &gap.source, gap.shard.as_str());
    line.insert("cause".into(), json!(gap.cause.as_str()));
    if let Some(after) = &gap.after {
        line.insert("after".into(), json!(after.as_str()));
    }
    Value::Object(line)
}

fn head(kind: &str, source: &Source, shard: &str) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("type".into(), json!(kind));
    line.insert("group".into(), json!(source.group.as_str()));
    line.insert("table".into(), json!(source.stream.table()));
    line.insert("cell".into(), json!(source.cell));
    line.insert("shard".into(), json!(shard));
    line
}

/// An item in DynamoDB's typed JSON.
pub fn item(item: &Item) -> Value {
    Value::Object(item.iter().map(|(name, value)| (name.clone(), attribute(value))).collect())
}

/// A value in DynamoDB's typed JSON. Nested 32 deep at most: DynamoDB's own limit.
pub fn attribute(value: &AttributeValue) -> Value {
    let bytes = |blob: &aws_sdk_dynamodb::primitives::Blob| json!(STANDARD.encode(blob.as_ref()));
    match value {
        AttributeValue::S(text) => json!({ "S": text }),
        AttributeValue::N(number) => json!({ "N": number }),
        AttributeValue::B(blob) => json!({ "B": bytes(blob) }),
        AttributeValue::Bool(value) => json!({ "BOOL": value }),
        AttributeValue::Null(value) => json!({ "NULL": value }),
        AttributeValue::Ss(texts) => json!({ "SS": texts }),
        AttributeValue::Ns(numbers) => json!({ "NS": numbers }),
        AttributeValue::Bs(blobs) => json!({ "BS": blobs.iter().map(bytes).collect::<Vec<_>>() }),
        AttributeValue::L(values) => {
            json!({ "L": values.iter().map(attribute).collect::<Vec<_>>() })
        }
        AttributeValue::M(values) => json!({ "M": item(values) }),
        // No reader of streams lets one through.
        _ => Value::Null,
    }
}
