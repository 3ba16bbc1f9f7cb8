//! Names of our own attributes, in one place, so that spans, metrics, the tail processor and the tests cannot drift apart.
//!
//! Names that OpenTelemetry defines (`rpc.*`, `db.*`, `error.type`) come from `opentelemetry_semantic_conventions`.

/// Prefix of the `target` of every span that is exported; spans of libraries (h2, hyper, the AWS SDK) never carry it.
pub const SPAN_TARGET_PREFIX: &str = "cells::";

/// The cell that was chosen.
pub const CELL_ID: &str = "cell.id";
/// How the answer was obtained: `memory|table|assigned|fallback|override`.
pub const ROUTE_SOURCE: &str = "cell.route.source";
/// Epoch of the placement.
pub const ROUTE_EPOCH: &str = "cell.route.epoch";
/// Age of the answer, in milliseconds.
pub const ROUTE_AGE_MS: &str = "cell.route.age_ms";
/// Whether the answer is authoritative.
pub const ROUTE_AUTHORITATIVE: &str = "cell.route.authoritative";
/// Why the default cell was given.
pub const ROUTE_FALLBACK_REASON: &str = "cell.route.fallback_reason";
/// Keyed hash of the tenant (see [`super::TenantLabel`]).
pub const TENANT_HASH: &str = "cell.tenant.hash";
/// The tenant in clear, only where that was switched on.
pub const TENANT: &str = "cell.tenant";

/// How an item was written: `direct|guarded|logged`.
pub const WRITE_MODE: &str = "cell.write.mode";
/// How a call that was to write ended (see [`super::writes`]).
pub const WRITE_OUTCOME: &str = "cell.write.outcome";

/// A table of a cell, by its name in the table set.
pub const TABLE: &str = "cell.table";
/// The group that changes of items are delivered to.
pub const EVENT_GROUP: &str = "cell.event.group";
/// The sort of a change: `INSERT|MODIFY|REMOVE`, or `GAP`.
pub const EVENT_KIND: &str = "cell.event.kind";
/// Whether the storage itself removed the item because its time to live was over.
pub const EVENT_EXPIRED: &str = "cell.event.expired";
/// The item's `EntityType`.
pub const EVENT_ENTITY_TYPE: &str = "cell.event.entity_type";
/// The shard of a change. Its changes come in the order of their sequence numbers.
pub const EVENT_SHARD: &str = "cell.event.shard";
/// The sequence number of a change; of a gap, that of the last change before it.
pub const EVENT_SEQUENCE: &str = "cell.event.sequence_number";
/// The service's id of a change, the same at every delivery.
pub const EVENT_ID: &str = "cell.event.id";
/// Why changes are missing: `TRIMMED|STALE|SHARD_GONE|PARENTS_GONE`.
pub const EVENT_GAP_CAUSE: &str = "cell.event.gap_cause";
/// The item's key in DynamoDB's typed JSON; only where images are switched on.
pub const EVENT_KEY: &str = "cell.event.key";
/// The item before the change, likewise.
pub const EVENT_OLD: &str = "cell.event.old_item";
/// The item after the change, likewise.
pub const EVENT_NEW: &str = "cell.event.new_item";

/// Position in the journal that a commit is written to.
pub const COMMIT_SEQUENCE: &str = "cell.commit.sequence";
/// Commands that a commit serves.
pub const COMMIT_COMMANDS: &str = "cell.commit.commands";
/// What came of a commit: `committed|head_moved|refused|failed`.
pub const COMMIT_OUTCOME: &str = "cell.commit.outcome";

/// A migration, which is its trace's id, too.
pub const MIGRATION_ID: &str = "cell.migration.id";
/// The phase that a span is about, as the API names it.
pub const MIGRATION_PHASE: &str = "cell.migration.phase";
/// Where the tenant lived when the migration was asked for.
pub const MIGRATION_SOURCE: &str = "cell.migration.source";
/// Where it is to live.
pub const MIGRATION_TARGET: &str = "cell.migration.target";
/// The number of the worker.
pub const MIGRATION_WORKER: &str = "cell.migration.worker";
/// The epoch at which the tenant is placed.
pub const MIGRATION_EPOCH: &str = "cell.migration.epoch";
/// Counts at the end of a span, from the beginning of the migration.
pub const MIGRATION_ITEMS_COPIED: &str = "cell.migration.items_copied";
/// Records of the change log.
pub const MIGRATION_LOG_APPLIED: &str = "cell.migration.log_applied";
/// Items that were compared.
pub const MIGRATION_ITEMS_COMPARED: &str = "cell.migration.items_compared";
/// Items that were removed where the tenant does not live.
pub const MIGRATION_ITEMS_PURGED: &str = "cell.migration.items_purged";

/// Internal mark of a span: its local trace is exported whatever the head decision was. Not exported itself.
pub const KEEP: &str = "cells.keep";
/// The value of [`ROUTE_SOURCE`] of answers from memory, which are counted on a faster way.
pub const SOURCE_MEMORY: &str = "memory";
/// The value of [`ROUTE_SOURCE`] that makes a local trace worth keeping.
pub const SOURCE_FALLBACK: &str = "fallback";

/// A counter as an attribute's value: OpenTelemetry's integers are signed, and the bridge makes text of one that is not.
pub fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
