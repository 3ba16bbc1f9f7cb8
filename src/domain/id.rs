//! Names and counters, each a type of its own, so that one cannot be taken for another.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Why a value is not of a type: what is wrong and what would be right.
///
/// The reason is the one that the API answers (`google.rpc.ErrorInfo.reason`); the edge adds the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Invalid {
    pub reason: &'static str,
    pub problem: String,
}

impl Invalid {
    pub fn new(reason: &'static str, problem: impl Into<String>) -> Self {
        Self { reason, problem: problem.into() }
    }
}

/// A string type whose only constructor validates, with the conversions that all of them share.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $inner:ty, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name($inner);

        impl $name {
            pub fn new(value: impl Into<String> + AsRef<str>) -> Result<Self, $crate::domain::Invalid> {
                $check(value.as_ref())?;
                Ok(Self(value.into().into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::domain::Invalid;
            fn try_from(value: String) -> Result<Self, $crate::domain::Invalid> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use checked_string;

checked_string! {
    /// A tenant's routing key: 1-1,024 bytes of UTF-8 without control characters, compared byte for byte.
    PartitionKey, Box<str>, check_partition_key
}

checked_string! {
    /// A cell's name: `[a-z0-9][a-z0-9-]{0,62}`. Cheap to clone: every placement holds one.
    CellId, std::sync::Arc<str>, check_cell_id
}

checked_string! {
    /// A caller's name for one request, by which a repeat is known: 1-64 characters of `[A-Za-z0-9._-]`.
    RequestId, String, check_request_id
}

impl PartitionKey {
    /// Longest key, in bytes of UTF-8. DynamoDB allows 2,048; ours leaves room for the prefixes that key templates add.
    pub const MAX_BYTES: usize = 1024;
}

fn check_partition_key(value: &str) -> Result<(), Invalid> {
    let invalid = |problem: String| Err(Invalid::new("INVALID_PARTITION_KEY", problem));
    if value.is_empty() {
        return invalid("is empty; send 1-1,024 bytes of UTF-8".into());
    }
    if value.len() > PartitionKey::MAX_BYTES {
        return invalid(format!("has {} bytes; at most 1,024 are allowed", value.len()));
    }
    if has_control(value) {
        return invalid("holds a control character; remove it".into());
    }
    Ok(())
}

fn check_cell_id(value: &str) -> Result<(), Invalid> {
    let well_formed = value.len() <= 63
        && value.bytes().enumerate().all(|(at, byte)| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || (at > 0 && byte == b'-')
        });
    if value.is_empty() || !well_formed {
        return Err(Invalid::new("INVALID_CELL_ID", "is not of the form [a-z0-9][a-z0-9-]{0,62}"));
    }
    Ok(())
}

fn check_request_id(value: &str) -> Result<(), Invalid> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if value.is_empty() || value.len() > 64 || !value.bytes().all(allowed) {
        return Err(Invalid::new(
            "INVALID_REQUEST_ID",
            "is not 1-64 characters of [A-Za-z0-9._-]; send a UUID",
        ));
    }
    Ok(())
}

/// Whether a text holds a control character (Unicode category Cc). Pure ASCII is decided byte by byte.
pub(super) fn has_control(value: &str) -> bool {
    let suspicious = |byte: u8| byte < 0x20 || byte == 0x7f || byte >= 0x80;
    value.bytes().any(suspicious) && value.chars().any(char::is_control)
}

/// Counts a tenant's cells: rises by one each time its cell changes; never reused, never falls. The first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    pub const FIRST: Epoch = Epoch(1);

    /// `None` for 0, which is no epoch.
    pub fn new(value: u64) -> Option<Self> {
        (value > 0).then_some(Self(value))
    }

    pub fn get(self) -> u64 {
        self.0
    }

    /// The epoch of the tenant's next cell. Saturates at `u64::MAX`, which no tenant reaches.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the journal. 0 is before the first entry.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(u64);

impl Sequence {
    pub const START: Sequence = Sequence(0);

    pub fn new(value: u64) -> Self {
        Self(value)
    }

    pub fn get(self) -> u64 {
        self.0
    }

    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Marks one attempt to append to the journal: by it a writer whose reply was lost finds its own entry again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(u128);

impl Nonce {
    /// `random` must come from a source that does not repeat: 128 random bits.
    pub fn new(random: u128) -> Self {
        Self(random)
    }
}

impl fmt::Display for Nonce {
    /// 32 lower-case hexadecimal digits; short enough for a DynamoDB ClientRequestToken (36).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::str::FromStr for Nonce {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

/// Tells one journal from another: it changes when the tables are restored from a backup, whose entries may be others than those that
/// were given the same sequences before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct JournalId(u64);

impl JournalId {
    pub fn new(random: u64) -> Self {
        Self(random)
    }
}

impl fmt::Display for JournalId {
    /// 16 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::str::FromStr for JournalId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A migration's name: 32 lower-case hexadecimal digits, the same in the API, in guards and in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(u128);

impl MigrationId {
    /// `random` must come from a source that does not repeat, or be a digest: 128 bits.
    pub fn new(random: u128) -> Self {
        Self(random)
    }

    pub fn get(self) -> u128 {
        self.0
    }

    /// # Errors
    /// With the reason `INVALID_MIGRATION_ID`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        cells_guard::guard::parse_migration(text).map(|id| Self(id.0)).ok_or_else(|| {
            let problem = "is not 32 of [0-9a-f]; send it as it was answered";
            Invalid::new("INVALID_MIGRATION_ID", problem)
        })
    }
}

impl TryFrom<String> for MigrationId {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

impl From<MigrationId> for String {
    fn from(id: MigrationId) -> String {
        id.to_string()
    }
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<MigrationId> for cells_migration::MigrationId {
    fn from(id: MigrationId) -> Self {
        Self(id.0)
    }
}

impl From<cells_migration::MigrationId> for MigrationId {
    fn from(id: cells_migration::MigrationId) -> Self {
        Self(id.0)
    }
}

/// The first 128 bits of a text's SHA-256: an id that is the same of the same, and of others another one.
pub fn digest128(text: &str) -> u128 {
    let bytes = Sha256::digest(text).first_chunk().copied().unwrap_or_default();
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of requests that were answered before an update, too: a repeat has to find what they began.
    #[test]
    fn a_digest_stays_what_it_is() {
        assert_eq!(
            format!("{:032x}", digest128("StartMigration/abc")),
            "e68ff0362958648186fac8d5ef8d775d"
        );
    }

    #[test]
    fn partition_keys_are_bounded_in_bytes_and_free_of_control_characters() {
        assert!(PartitionKey::new("a").is_ok());
        assert!(PartitionKey::new("é".repeat(512)).is_ok());
        assert!(PartitionKey::new(format!("{}a", "é".repeat(512))).is_err());
        for bad in ["", "a\nb", "\u{0}", "a\u{7f}", "a\u{85}b" /* a C1 control, two bytes */] {
            assert_eq!(
                PartitionKey::new(bad).unwrap_err().reason,
                "INVALID_PARTITION_KEY",
                "{bad:?}"
            );
        }
    }

    #[test]
    fn cell_ids_follow_their_grammar() {
        for good in ["a", "0", "cell-a", &"a".repeat(63)] {
            assert!(CellId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "cell_a", "cell a", &"a".repeat(64), "é"] {
            assert!(CellId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_nonce_survives_its_text() {
        let nonce = Nonce::new(u128::MAX - 7);
        assert_eq!(nonce.to_string().parse::<Nonce>(), Ok(nonce));
        assert_eq!(Nonce::new(1).to_string().len(), 32);
    }
}
