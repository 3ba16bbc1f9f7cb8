//! What a cell holds of a tenant, in one number that does not depend on the order in which it was read.
//!
//! The digest is the sum of the items' hashes modulo 2^256. (Source: M. Bellare and D. Micciancio, "A New Paradigm for Collision-Free
//! Hashing", 1997, AdHash.) It finds accidents, not forgers: who chooses items can choose two sets of one sum.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::canon::Hash;

/// A sum of hashes. Written as 64 hexadecimal digits; read from nothing, too, which is no item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    high: u128,
    low: u128,
}

impl Digest {
    pub fn add(&mut self, hash: &Hash) {
        let (high, low) = hash.split_at(16);
        let half = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte));
        self.merge(&Self { high: half(high), low: half(low) });
    }

    /// That of the items of both.
    pub fn merge(&mut self, other: &Self) {
        let (low, carry) = self.low.overflowing_add(other.low);
        self.low = low;
        self.high = self.high.wrapping_add(other.high).wrapping_add(u128::from(carry));
    }

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let digits = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let half = |digits: &str| u128::from_str_radix(digits, 16).ok();
        let (high, low) = text.split_at_checked(32).filter(|_| digits)?;
        Some(Self { high: half(high)?, low: half(low)? })
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}{:032x}", self.high, self.low)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("is not a digest of 64 digits"))
    }
}

/// Items of one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub items: u64,
    /// Items whose expiry has passed: in no other number here.
    pub expired: u64,
    /// Items whose `CellId` names another cell than the one that they are in.
    pub misnamed: u64,
    /// Of the items, wherever they are and in any order.
    pub digest: Digest,
}

impl Tally {
    pub fn merge(&mut self, other: &Self) {
        self.items += other.items;
        self.expired += other.expired;
        self.misnamed += other.misnamed;
        self.digest.merge(&other.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_carries_wraps_and_keeps_no_order() {
        let of = |bytes: &[u8]| {
            let mut hash = [0; 32];
            hash[32 - bytes.len()..].copy_from_slice(bytes);
            hash
        };
        let mut digest = Digest::default();
        digest.add(&of(&[0xFF; 16]));
        digest.add(&of(&[1]));
        assert_eq!(digest.to_string(), format!("{:0>31}1{:0>32}", "", ""));
        digest.add(&[0xFF; 32]);
        assert_eq!(digest.to_string(), format!("{:0>32}{}", "", "f".repeat(32)));
        digest.add(&of(&[1]));
        digest.add(&[0xFF; 32]);
        digest.add(&of(&[1]));
        assert_eq!(digest.to_string(), format!("{:0>31}1{:0>32}", "", ""));
        let (mut one, mut other) = (Digest::default(), Digest::default());
        let hashes = [[7; 32], [0xF0; 32], [0xAB; 32]];
        hashes.iter().for_each(|hash| one.add(hash));
        hashes.iter().rev().for_each(|hash| other.add(hash));
        assert_eq!(one, other);
        other.add(&hashes[0]);
        assert_ne!(one, other);
    }

    #[test]
    fn it_is_kept_as_text() {
        let mut digest = Digest::default();
        digest.add(&[0x0A; 32]);
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(text, format!("\"{}\"", "0a".repeat(32)));
        assert_eq!(serde_json::from_str::<Digest>(&text).unwrap(), digest);
        assert_eq!(serde_json::from_str::<Digest>("\"\"").unwrap(), Digest::default());
        for bad in ["\"0a\"".to_owned(), format!("\"{}\"", "+".repeat(64)), "1".to_owned()] {
            assert!(serde_json::from_str::<Digest>(&bad).is_err(), "{bad}");
        }
    }
}
