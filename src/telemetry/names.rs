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

/// Position in the journal that a commit is written to.
pub const COMMIT_SEQUENCE: &str = "cell.commit.sequence";
/// Commands that a commit serves.
pub const COMMIT_COMMANDS: &str = "cell.commit.commands";
/// What came of a commit: `committed|head_moved|refused|failed`.
pub const COMMIT_OUTCOME: &str = "cell.commit.outcome";

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
