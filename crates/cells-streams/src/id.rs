//! The names that everything else is keyed by.
//!
//! Invariants: a [`GroupName`] and a table's name contain no `#`, so that the key of a record can be split again; two
//! [`SequenceNumber`]s are equal exactly if they denote the same number, while the text stays as the service wrote it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// Text that is no valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not valid: {rule}")]
pub struct InvalidName {
    what: &'static str,
    rule: &'static str,
}

/// A stream's ARN, `arn:<partition>:dynamodb:<region>:<account>:table/<table>/stream/<label>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamArn {
    arn: String,
    table: std::ops::Range<usize>,
}

/// What is before the label.
const LABEL: &str = "/stream/";

impl StreamArn {
    /// # Errors
    ///
    /// If the text names no table's stream.
    pub fn new(arn: impl Into<String>) -> Result<Self, InvalidName> {
        let arn = arn.into();
        let invalid = InvalidName {
            what: "the stream's arn",
            rule: "expected …:table/<table>/stream/<label>, as DescribeTable gives it",
        };
        let Some(start) = arn.find(":table/").map(|at| at + ":table/".len()) else {
            return Err(invalid);
        };
        let Some(length) = arn[start..].find(LABEL) else { return Err(invalid) };
        let table = start..start + length;
        if !is_name(&arn[table.clone()], 255) {
            return Err(invalid);
        }
        Ok(Self { arn, table })
    }

    pub fn as_str(&self) -> &str {
        &self.arn
    }

    /// The name of the table whose stream it is.
    pub fn table(&self) -> &str {
        &self.arn[self.table.clone()]
    }

    /// What tells the streams of a table apart: the time at which it was made, so that later ones sort after earlier ones.
    pub fn label(&self) -> &str {
        self.arn[self.table.end..].strip_prefix(LABEL).unwrap_or_default()
    }
}

impl fmt::Display for StreamArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn)
    }
}

/// `[A-Za-z0-9_.-]`, which is also what DynamoDB allows in a table's name.
fn is_name(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A consumer group: consumers of one name share a stream's shards and its checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(String);

impl GroupName {
    /// Longest name, in bytes.
    pub const MAX: usize = 64;

    /// 1 to 64 of `[A-Za-z0-9_.-]`.
    ///
    /// # Errors
    ///
    /// If the text is anything else.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        if is_name(&name, Self::MAX) {
            Ok(Self(name))
        } else {
            Err(InvalidName {
                what: "the consumer group",
                rule: "expected 1 to 64 of A-Z a-z 0-9 _ . -",
            })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shard of a stream. DynamoDB's are `shardId-<milliseconds>-<hash>`, 28 to 65 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(String);

impl ShardId {
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run of one consumer. Two runs never share an owner, or a restarted process would trust leases of its former life.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(String);

impl OwnerId {
    /// `<name>/<128 random bits>`: a name for people, such as the host's, and what makes it unique.
    pub fn unique(name: &str) -> Self {
        Self(format!("{name}/{:032x}", rand::random::<u128>()))
    }

    /// Exactly this text. The caller answers for its never being used again: for tests and for reading records.
    pub fn exactly(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A position in a shard: a decimal number of up to 40 digits, ascending within a shard and from a parent to its children.
#[derive(Debug, Clone)]
pub struct SequenceNumber(String);

impl SequenceNumber {
    /// # Errors
    ///
    /// If the text is empty or has anything but digits.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(text))
        } else {
            Err(InvalidName { what: "the sequence number", rule: "expected decimal digits" })
        }
    }

    /// As the service wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the zeros in front, whose number says nothing: longer is then greater.
    fn digits(&self) -> &str {
        self.0.trim_start_matches('0')
    }
}

impl PartialEq for SequenceNumber {
    fn eq(&self, other: &Self) -> bool {
        self.digits() == other.digits()
    }
}

impl Eq for SequenceNumber {}

impl Hash for SequenceNumber {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digits().hash(state);
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.digits(), other.digits());
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn sequence_numbers_sort_as_numbers(a in any::<u128>(), b in any::<u128>(), zeros in 0usize..4) {
            let of = |n: u128, zeros| SequenceNumber::new(format!("{}{n}", "0".repeat(zeros))).unwrap();
            prop_assert_eq!(of(a, zeros).cmp(&of(b, 0)), a.cmp(&b));
            prop_assert_eq!(of(a, zeros), of(a, 0));
        }
    }

    #[test]
    fn an_arn_names_its_table() {
        let arn = "arn:aws:dynamodb:us-east-1:1:table/Orders-cell-a/stream/2026-01-01T00:00:00.000";
        let arn = StreamArn::new(arn).unwrap();
        assert_eq!((arn.table(), arn.label()), ("Orders-cell-a", "2026-01-01T00:00:00.000"));
        for bad in ["", "arn:aws:dynamodb:r:1:table/T", "x:table//stream/l", "x:table/a#b/stream/l"]
        {
            assert!(StreamArn::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_could_not_be_split_again_are_refused() {
        for bad in ["", "a#b", "a b", &"a".repeat(65)] {
            assert!(GroupName::new(bad).is_err(), "{bad}");
        }
        assert!(SequenceNumber::new("12a").is_err());
    }
}
