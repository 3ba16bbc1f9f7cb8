//! A bulk as it is kept: its head here, its tenants in chunks of [`cells_balance::bulk`].
//!
//! Kept as JSON, so these types are also its storage form: fields are added with a default, and never renamed.

use std::fmt;
use std::time::Duration;

use cells_balance::bulk::{End, Header, Summary};
use serde::{Deserialize, Serialize};

use crate::domain::{Invalid, MigrationId, Timestamp, digest128};
use crate::migration::Verification;

/// A bulk's name: 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BulkId(u128);

impl BulkId {
    /// `random` must come from a source that does not repeat, or be a digest: 128 bits.
    pub fn new(random: u128) -> Self {
        Self(random)
    }

    /// # Errors
    /// With the reason `INVALID_BULK_ID`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let id = MigrationId::parse(text).map(|id| Self(id.get()));
        id.map_err(|invalid| Invalid::new("INVALID_BULK_ID", invalid.problem))
    }
}

impl fmt::Display for BulkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The migration of a tenant's attempt: the same of the same, and of others another one.
pub fn migration_id(bulk: &str, tenant: &str, attempt: u32) -> MigrationId {
    MigrationId::new(digest128(&format!("bulk/{bulk}/{attempt}/{tenant}")))
}

/// How each tenant is moved. What is `None` is as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub verification: Verification,
    pub soak: Option<Duration>,
    pub pause_budget: Option<Duration>,
}

/// What was planned and asked for: what of a bulk never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub terms: Terms,
    /// Names the chunks: of two that begin a bulk of one id, each has its own.
    pub generation: u64,
    /// Tenants that stayed when it was planned.
    pub staying: u64,
    pub created: Timestamp,
    /// Digest of the request that began it; empty where it had no id.
    pub digest: String,
    /// The W3C trace context of the call that began it.
    pub caller: Option<String>,
}

/// What its worker tells of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BulkProgress {
    pub summary: Summary,
    /// What went wrong last, and is tried again.
    pub trouble: Option<String>,
}

/// A bulk without its tenants.
#[derive(Debug, Clone, PartialEq)]
pub struct BulkRecord {
    pub id: BulkId,
    pub header: Header,
    pub planned: Planned,
    pub progress: BulkProgress,
    pub updated: Timestamp,
    /// How many workers have taken it over; 0: none has come.
    pub worker: u64,
    /// Changed by its worker as long as that is alive.
    pub beat: u64,
}

impl BulkRecord {
    pub fn ended(&self) -> Option<End> {
        self.header.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_and_says_what_it_is_not() {
        let id = BulkId::new(0xab);
        assert_eq!(BulkId::parse(&id.to_string()), Ok(id));
        assert_eq!(BulkId::parse("AB").unwrap_err().reason, "INVALID_BULK_ID");
    }

    #[test]
    fn each_attempt_of_each_tenant_of_each_bulk_has_a_migration_of_its_own() {
        let all = [("a", "t", 1), ("a", "t", 2), ("a", "1/t", 1), ("b", "t", 1), ("a", "u", 1)];
        let ids: std::collections::HashSet<_> =
            all.iter().map(|(bulk, tenant, n)| migration_id(bulk, tenant, *n)).collect();
        assert_eq!(ids.len(), all.len());
        assert_eq!(migration_id("a", "t", 1), migration_id("a", "t", 1));
    }
}
