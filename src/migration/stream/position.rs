//! How far the streams of a cell's tables are applied. Pure.
//!
//! Kept in the migration's record as JSON, so these types are also its storage form: fields are added with a default, and never renamed.
//!
//! Why there is no "latest": a shard that is open when a migration begins to listen is read from its beginning. That applies what is at
//! the target by the copy anyway, and needs no number that a silent shard does not have.

use std::collections::{BTreeMap, HashSet};

use cells_migration::{Cursor, Marker};
use cells_streams::{SequenceNumber, Shard, ShardId};
use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// What a stream keeps is trusted to be there for so many seconds of the 24 hours: workers' clocks may differ by the rest.
const TRUSTED_SECS: i64 = 20 * 3600;

/// Seconds by which [`Position::since`] is brought forward at least, so that the record is not written for it alone all the time; and how
/// much later than a change its record may be read.
const STEP_SECS: i64 = 600;

/// Most bytes of a position: the record that keeps it is an item of 400 KB.
const MAX_BYTES: usize = 250_000;

/// All before it is applied, of all tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Seconds of the Unix epoch: everything that was changed before is applied, or was there before the copy.
    since: i64,
    /// By the names that the table set has for them.
    pub tables: BTreeMap<String, TablePosition>,
}

/// The same of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablePosition {
    /// The stream's ARN. One that was switched off and on again is another.
    pub stream: String,
    shards: BTreeMap<String, Place>,
}

/// The same of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    #[serde(rename = "a")]
    pub at: At,
    /// The latest marker that was seen here: the worker's number, and the marker's.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub marker: Option<(u64, u32)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    /// Nothing of it is applied.
    #[serde(rename = "B")]
    Begin,
    /// All up to this sequence number is.
    #[serde(rename = "A")]
    After(String),
    /// All of it is, and it gets no more.
    #[serde(rename = "E")]
    End,
    /// It was closed, and had children, before the migration began to listen.
    #[serde(rename = "O")]
    Over,
}

impl At {
    fn ended(&self) -> bool {
        matches!(self, Self::End | Self::Over)
    }

    /// # Errors
    /// One that is not stored by us.
    pub fn sequence(&self) -> Result<Option<SequenceNumber>, StoreError> {
        match self {
            Self::After(number) => {
                SequenceNumber::new(number.clone()).map(Some).map_err(|_| unreadable())
            }
            _ => Ok(None),
        }
    }
}

fn unreadable() -> StoreError {
    StoreError::Unreadable { detail: "a migration's position in streams".into() }
}

/// A marker as a place names it.
pub fn marker_of(marker: Marker) -> (u64, u32) {
    (marker.holder.worker, marker.number)
}

impl Position {
    pub fn new(now: i64, tables: BTreeMap<String, TablePosition>) -> Self {
        Self { since: now, tables }
    }

    /// # Errors
    /// One that we did not write.
    pub fn read(cursor: &Cursor) -> Result<Self, StoreError> {
        serde_json::from_slice(&cursor.0).map_err(|_| unreadable())
    }

    /// # Errors
    /// Streams of more shards than a record can hold.
    pub fn cursor(&self) -> Result<Cursor, StoreError> {
        match serde_json::to_vec(self) {
            Ok(bytes) if bytes.len() <= MAX_BYTES => Ok(Cursor(bytes)),
            _ => Err(StoreError::Rejected {
                detail: "the streams of the cell have more shards than a migration can follow"
                    .into(),
            }),
        }
    }

    /// Whether nothing behind it can have left the streams, as far as time tells. A service may say that something has, sooner.
    pub fn kept(&self, now: i64) -> bool {
        now.saturating_sub(self.since) < TRUSTED_SECS
    }

    /// Every shard was read to its open end, in reads that began at `now`.
    pub fn current(&mut self, now: i64) {
        let since = now.saturating_sub(STEP_SECS);
        if since.saturating_sub(self.since) >= STEP_SECS {
            self.since = since;
        }
    }
}

impl TablePosition {
    /// At this moment: what is written from now on comes later. `listed`: the stream's shards, as listed *after* that moment.
    pub fn listen(stream: String, listed: &[Shard]) -> Self {
        let parents: HashSet<&ShardId> = listed.iter().flat_map(|shard| &shard.parents).collect();
        let place = |shard: &Shard| {
            let over = shard.end.is_some() && parents.contains(&shard.id);
            (
                shard.id.to_string(),
                Place { at: if over { At::Over } else { At::Begin }, marker: None },
            )
        };
        Self { stream, shards: listed.iter().map(place).collect() }
    }

    /// Takes note of shards that came since, and none of those that are over and that the stream lists no more, but as parents of others.
    pub fn learn(&mut self, listed: &[Shard]) {
        let ids: HashSet<&str> = listed.iter().map(|shard| shard.id.as_str()).collect();
        let parents: HashSet<&str> =
            listed.iter().flat_map(|shard| &shard.parents).map(ShardId::as_str).collect();
        self.shards.retain(|id, place| match place.at {
            _ if ids.contains(id.as_str()) => true,
            At::Over => false,
            // What comes after it is known.
            At::End => !parents.contains(id.as_str()),
            At::Begin | At::After(_) => true,
        });
        for shard in listed {
            let new = Place { at: At::Begin, marker: None };
            self.shards.entry(shard.id.to_string()).or_insert(new);
        }
    }

    /// What to read now: shards whose parents were read to their end.
    pub fn readable(&self, listed: &[Shard]) -> Vec<(ShardId, At)> {
        let ended =
            |id: &ShardId| self.shards.get(id.as_str()).is_none_or(|place| place.at.ended());
        let waits = |id: &str| {
            let shard = listed.iter().find(|shard| shard.id.as_str() == id);
            shard.is_some_and(|shard| !shard.parents.iter().all(ended))
        };
        let open = self.shards.iter().filter(|(id, place)| !place.at.ended() && !waits(id));
        open.map(|(id, place)| (ShardId::new(id.clone()), place.at.clone())).collect()
    }

    /// A shard was read so far, and this marker was in it.
    pub fn reached(&mut self, shard: &ShardId, at: At, marker: Option<(u64, u32)>) {
        if let Some(place) = self.shards.get_mut(shard.as_str()) {
            place.at = at;
            place.marker = place.marker.max(marker);
        }
    }

    /// Open shards, or ones whose children are not listed yet, before whose position the marker is not. None: it is before the position
    /// everywhere. A shard whose parents were read beyond the marker is behind it as a whole.
    pub fn without(&mut self, marker: (u64, u32), listed: &[Shard]) -> usize {
        // From parents to children, until there is nothing new.
        loop {
            let marked = |id: &ShardId| {
                self.shards
                    .get(id.as_str())
                    .is_some_and(|place| place.at == At::End && place.marker == Some(marker))
            };
            let inherit = |shard: &&Shard| {
                !shard.parents.is_empty()
                    && shard.parents.iter().all(marked)
                    && self
                        .shards
                        .get(shard.id.as_str())
                        .is_some_and(|place| place.marker != Some(marker))
            };
            let heirs: Vec<_> =
                listed.iter().filter(inherit).map(|shard| shard.id.clone()).collect();
            for heir in &heirs {
                if let Some(place) = self.shards.get_mut(heir.as_str()) {
                    place.marker = Some(marker);
                }
            }
            if heirs.is_empty() {
                break;
            }
        }
        let parents: HashSet<&str> =
            listed.iter().flat_map(|shard| &shard.parents).map(ShardId::as_str).collect();
        let lacks = |(id, place): &(&String, &Place)| {
            let asked = match place.at {
                At::Over => false,
                // What comes after it is in its children.
                At::End => !parents.contains(id.as_str()),
                At::Begin | At::After(_) => true,
            };
            asked && place.marker != Some(marker)
        };
        self.shards.iter().filter(lacks).count()
    }
}

#[cfg(test)]
mod tests;
