//! A migration as it is kept: what was asked, how far it is, and what was found.
//!
//! Kept as JSON beside the protocol's own attributes, so these types are also its storage form: fields are added with a default, and
//! never renamed.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use cells_migration::Record;
use serde::{Deserialize, Serialize};

use crate::domain::{CellId, Constraints, MigrationId, PartitionKey, Timestamp};

/// How sure a commit has to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verification {
    /// All is compared before the fence, and under it what was written since. The pause does not grow with the tenant.
    #[default]
    LogDrain,
    /// Under the fence, all is compared once more. The pause grows with the tenant.
    Strict,
}

/// Who writes the tenant's items, beside those who keep to the contract of leases, guards and logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Writers {
    /// Nobody.
    #[default]
    Cooperative,
    /// Writers that know nothing of guards. They are followed by the streams of the tables, and stopped by a freeze before the fence.
    Frozen,
    /// Writers that know nothing of guards, and are stopped by nobody: what they write around the commit is lost.
    BestEffort,
}

impl From<Writers> for cells_migration::Writers {
    fn from(writers: Writers) -> Self {
        match writers {
            Writers::Cooperative => Self::Cooperative,
            Writers::Frozen => Self::Frozen,
            Writers::BestEffort => Self::BestEffort,
        }
    }
}

/// Where a tenant is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetCell {
    Cell(CellId),
    /// The best by the assignment policy of those that meet the constraints, but for the one that it is in.
    Choose(Arc<Constraints>),
}

/// What is asked for. What is `None` is as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub tenant: PartitionKey,
    pub target: TargetCell,
    pub verification: Verification,
    pub writers: Writers,
    pub soak: Option<Duration>,
    pub pause_budget: Option<Duration>,
    /// Write capacity units a second at most.
    pub rate_limit: Option<NonZeroU32>,
}

/// What was asked for, and what it was taken to mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub tenant: PartitionKey,
    pub source: CellId,
    pub target: CellId,
    pub verification: Verification,
    #[serde(default)]
    pub writers: Writers,
    /// How long there is a way back after the commit.
    pub soak: Duration,
    /// Longest time in which no write passes; after that, writers go on and it is tried again.
    pub pause_budget: Duration,
    /// Write capacity units a second at most; `None`: no limit.
    pub rate_limit: Option<NonZeroU32>,
    /// Items of each guard while it runs.
    pub guard_shards: u8,
}

/// How far a migration is. Counts are of what was done, some of it perhaps twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Of the tenant at the source, as counted by preflight.
    pub items_estimated: u64,
    pub bytes_estimated: u64,
    pub items_copied: u64,
    pub bytes_copied: u64,
    /// Log records that were applied.
    pub log_applied: u64,
    /// Log records that the last look found; `None`: not looked at yet.
    pub log_backlog: Option<u64>,
    /// Records of the tables' streams that told of the tenant, and were applied.
    pub stream_applied: u64,
    pub items_compared: u64,
    /// Items removed where the tenant does not live any more.
    pub items_purged: u64,
    /// How long no write passed, the last time and in all.
    pub last_pause: Option<Duration>,
    pub total_pause: Duration,
    /// How often writers were fenced.
    pub fences: u32,
    /// Write capacity that the copy consumed, in units, rounded up.
    pub write_units: u64,
}

/// What a comparison of both cells found.
pub type Findings = cells_verify::Findings<Timestamp>;

/// What a move will take, as far as can be told before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    pub spec: Spec,
    /// The tenant's items at the source, counted.
    pub items: u64,
    pub bytes: u64,
    /// Capacity units that the move consumes: of reads at the source and writes at the target, verification and clean-up included.
    pub read_units: u64,
    pub write_units: u64,
    /// At the target's on-demand prices, in millionths of a US dollar; `None`: no price is known for its Region.
    pub cost_micros: Option<u64>,
    /// Without the soak.
    pub duration: Duration,
}

/// One migration.
#[derive(Debug, Clone, PartialEq)]
pub struct Migration {
    /// What the protocol keeps.
    pub record: Record,
    pub spec: Spec,
    pub progress: Progress,
    /// Of the last comparison; what differed, of all.
    pub findings: Option<Findings>,
    /// Why nobody works on it until it is retried.
    pub parked: Option<String>,
    /// What went wrong last, and is tried again.
    pub trouble: Option<String>,
    pub created: Timestamp,
    pub updated: Timestamp,
    /// When the present phase began, as the clock of its worker said.
    pub phase_since: Timestamp,
    /// Digest of the request that began it; empty where it had no id.
    pub digest: String,
    /// The W3C trace context of the call that began it.
    pub caller: Option<String>,
    /// The drain or rebalance that it is part of.
    pub bulk: Option<String>,
    /// Changed by its worker as long as that is alive.
    pub beat: u64,
}

impl Migration {
    pub fn id(&self) -> MigrationId {
        self.record.id.into()
    }
}
