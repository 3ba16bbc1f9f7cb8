//! Placements: where a tenant lives, lived, and may live.

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Labels, Region};
use super::cluster::Cluster;
use super::id::{CellId, Epoch, MigrationId, PartitionKey, RequestId};
use super::time::Timestamp;

/// How writers of a tenant write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WriteMode {
    /// Plainly.
    Direct,
    /// Every write is guarded and leaves a change-log record.
    Logged,
}

impl WriteMode {
    pub fn as_str(self) -> &'static str {
        match self {
            WriteMode::Direct => "DIRECT",
            WriteMode::Logged => "LOGGED",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [WriteMode::Direct, WriteMode::Logged].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// How a placement began or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PlacementEvent {
    Assigned,
    Pinned,
    Imported,
    /// Found in a table that somebody else's router wrote.
    Adopted,
    Deleted,
    Expired,
    /// By a migration.
    Moved,
}

impl PlacementEvent {
    pub const ALL: [PlacementEvent; 7] = [
        PlacementEvent::Assigned,
        PlacementEvent::Pinned,
        PlacementEvent::Imported,
        PlacementEvent::Adopted,
        PlacementEvent::Deleted,
        PlacementEvent::Expired,
        PlacementEvent::Moved,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            PlacementEvent::Assigned => "ASSIGNED",
            PlacementEvent::Pinned => "PINNED",
            PlacementEvent::Imported => "IMPORTED",
            PlacementEvent::Adopted => "ADOPTED",
            PlacementEvent::Deleted => "DELETED",
            PlacementEvent::Expired => "EXPIRED",
            PlacementEvent::Moved => "MOVED",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.as_str() == text)
    }
}

/// Which cell a tenant lives in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub key: PartitionKey,
    pub cell: CellId,
    pub epoch: Epoch,
    pub write_mode: WriteMode,
    /// How this epoch began. [`PlacementEvent::Adopted`]: the stored item has none of our attributes yet, and its epoch counts
    /// as 1.
    pub began_by: PlacementEvent,
    /// `None` where an adopted item has no readable time.
    pub created: Option<Timestamp>,
    pub updated: Option<Timestamp>,
    pub expires: Option<Timestamp>,
    /// The migration that works on the tenant. The table says it; memory and snapshots leave it out, and whoever writes on what
    /// they say is refused by the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationId>,
}

impl Placement {
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Whether the stored item is still just what somebody else's router wrote.
    pub fn adopted(&self) -> bool {
        self.began_by == PlacementEvent::Adopted
    }
}

/// What `CellMappings` says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// The tenant never had a cell.
    Absent,
    /// The tenant has no cell now; the epoch of its last one is kept, so that it is never given again.
    Vacated(Epoch),
    /// The tenant has a cell, whose expiry may have passed.
    Placed(Placement),
}

impl Mapping {
    /// The epoch that the tenant's next cell gets.
    pub fn next_epoch(&self) -> Epoch {
        match self {
            Mapping::Absent => Epoch::FIRST,
            Mapping::Vacated(epoch) => epoch.next(),
            Mapping::Placed(placement) => placement.epoch.next(),
        }
    }

    /// The epoch of the tenant's present or last cell.
    pub fn last_epoch(&self) -> Option<Epoch> {
        match self {
            Mapping::Absent => None,
            Mapping::Vacated(epoch) => Some(*epoch),
            Mapping::Placed(placement) => Some(placement.epoch),
        }
    }

    pub fn placement(&self) -> Option<&Placement> {
        match self {
            Mapping::Placed(placement) => Some(placement),
            Mapping::Absent | Mapping::Vacated(_) => None,
        }
    }
}

/// What the cell of a new tenant must be like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Constraints {
    /// Labels that the cell must carry, each with just this value.
    pub labels: Labels,
    /// Regions that the cell may be in; empty for any.
    pub regions: Vec<Region>,
}

impl Constraints {
    pub const MAX_REGIONS: usize = 32;

    /// Why a cell does not meet the constraints, or `None` where it does.
    pub fn unmet_by(&self, cell: &Cell) -> Option<String> {
        if !self.regions.is_empty() && !self.regions.contains(&cell.region) {
            return Some(format!("is in region {}, which was not asked for", cell.region));
        }
        let missing = self.labels.iter().find(|(key, value)| cell.labels.get(key) != Some(value));
        missing.map(|(key, value)| format!("lacks the label {key}={value}"))
    }
}

/// A past placement. The present one is not recorded apart: it is what the mapping says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    pub key: PartitionKey,
    pub epoch: Epoch,
    pub cell: CellId,
    pub began_by: PlacementEvent,
    pub began: Option<Timestamp>,
    pub ended_by: PlacementEvent,
    pub ended: Timestamp,
}

/// What a mutation with a `request_id` did, kept so that a repeat gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    pub id: RequestId,
    /// The RPC, and a digest of the request without its id: a repeat must agree in both.
    pub method: String,
    pub digest: String,
    pub outcome: StoredOutcome,
    /// When the record may be forgotten.
    pub forget_after: Timestamp,
}

impl RequestRecord {
    /// Whether a repeat at `now` is answered from it: the storage deletes late, so one past its time counts as absent.
    pub fn counts(&self, now: Timestamp) -> bool {
        self.forget_after > now
    }
}

/// What a mutation answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredOutcome {
    Placed(Placement),
    Vacated(Placement),
    Cell(Cell),
    CellDeleted,
    Cluster(Cluster),
}
