//! What a consumer hands on: changes of items, and gaps.
//!
//! Invariant: a [`Gap`] is handed on exactly where the next change of its shard cannot be shown to follow the one before it.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::{GroupName, SequenceNumber, ShardId, StreamArn};

/// An item or its keys: attributes by name, in the type that DynamoDB's own client uses.
pub type Item = HashMap<String, AttributeValue>;

/// The sort of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    Insert,
    Modify,
    Remove,
}

impl ChangeKind {
    /// As DynamoDB Streams spells it: `INSERT`, `MODIFY`, `REMOVE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Modify => "MODIFY",
            Self::Remove => "REMOVE",
        }
    }
}

/// One stream record, as the service has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The service's id of the record, the same at every delivery. Empty if it gave none.
    pub id: String,
    pub kind: ChangeKind,
    pub sequence: SequenceNumber,
    /// When the change was made, roughly: seconds of the Unix epoch by the service's clock, rounded down.
    pub created_secs: Option<i64>,
    pub keys: Item,
    /// The item before the change, if the stream's view type has it.
    pub old: Option<Item>,
    /// The item after the change, if the stream's view type has it.
    pub new: Option<Item>,
    /// Whether the storage itself removed the item because its time to live was over.
    pub expired: bool,
}

/// Where changes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub group: GroupName,
    pub stream: StreamArn,
    /// The cell whose table it is, as the caller names it.
    pub cell: String,
}

/// One change of one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub source: Arc<Source>,
    pub shard: ShardId,
    pub record: Record,
}

impl Event {
    pub fn table(&self) -> &str {
        self.source.stream.table()
    }

    /// The item's `PK`, if its table has a text attribute of that name in its key.
    pub fn pk(&self) -> Option<&str> {
        text(&self.record.keys, "PK")
    }

    /// The item's `EntityType` after the change or else before it, if it is text and the stream carries images.
    pub fn entity_type(&self) -> Option<&str> {
        let images = [&self.record.new, &self.record.old];
        images.into_iter().flatten().find_map(|image| text(image, "EntityType"))
    }
}

fn text<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name).and_then(|value| value.as_s().ok()).map(String::as_str)
}

/// Changes of one shard in the shard's order: at least one, at most what one call of GetRecords gives (1,000 records, 1 MB).
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub source: Arc<Source>,
    pub shard: ShardId,
    pub events: Vec<Event>,
}

/// Why changes are missing, or may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapCause {
    /// The position to read on from is older than what the stream keeps (24 hours).
    Trimmed,
    /// Nothing of the shard was read yet, and its first records may be so old that they are gone ([`crate::Options::trusted`]).
    Stale,
    /// The shard went away before it was read to its end. Nothing more of it will come.
    ShardGone,
    /// The shard's parents went away before this group saw them, or ended in a gap.
    ParentsGone,
}

impl GapCause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "TRIMMED",
            Self::Stale => "STALE",
            Self::ShardGone => "SHARD_GONE",
            Self::ParentsGone => "PARENTS_GONE",
        }
    }
}

/// Between `after` and the next change of this shard, changes were lost or may have been: what was derived from the stream is to be
/// made anew from the table.
///
/// The service does not tell whether there was anything between the position and its trim horizon. So a gap is never missing where
/// something was lost, and can be there where nothing happened to lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub source: Arc<Source>,
    pub shard: ShardId,
    /// The last change of the shard that was accepted; `None`: none was.
    pub after: Option<SequenceNumber>,
    pub cause: GapCause,
}

/// What a sink is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    Events(Batch),
    Gap(Gap),
}

impl Delivery {
    pub fn source(&self) -> &Source {
        match self {
            Self::Events(batch) => &batch.source,
            Self::Gap(gap) => &gap.source,
        }
    }

    pub fn shard(&self) -> &ShardId {
        match self {
            Self::Events(batch) => &batch.shard,
            Self::Gap(gap) => &gap.shard,
        }
    }
}
