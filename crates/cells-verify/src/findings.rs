//! What a comparison found, as it is kept and shown. No item, key or value is in it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::verifier::{Compared, Differing};

/// Mismatches that are told one by one.
pub const MAX_EXAMPLES: usize = 20;

/// What a comparison of both cells found. Kept as JSON: fields are added with a default, and never renamed. `Time` is how its owner
/// writes a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Findings<Time> {
    /// Items compared in each cell, expired ones left out.
    pub source_items: u64,
    pub target_items: u64,
    /// Items passed over, for their expiry had passed.
    pub source_expired: u64,
    pub target_expired: u64,
    /// Items at the source that named another cell in `CellId`.
    pub source_misnamed: u64,
    /// Digests of each cell's items, in hexadecimal; the same for the same items in any order.
    pub source_digest: Digest,
    pub target_digest: Digest,
    /// Items that differed still after the log had been drained: each is a finding. Of all comparisons.
    pub mismatches: u64,
    /// How many of them were written again as they are at the source.
    pub repaired: u64,
    /// The first [`MAX_EXAMPLES`] of them.
    pub examples: Vec<Mismatch>,
    /// When it ended; `None`: it is under way.
    pub ended: Option<Time>,
}

/// An item that was not the same in both cells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// As the table set names it.
    pub table: String,
    /// A hash of the key, in hexadecimal: keys may be personal data.
    pub key_hash: String,
    pub kind: MismatchKind,
    pub repaired: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MismatchKind {
    /// At the source alone.
    Missing,
    /// At the target alone.
    Extra,
    /// In both, and not the same.
    Different,
}

impl<Time> Default for Findings<Time> {
    fn default() -> Self {
        Self {
            source_items: 0,
            target_items: 0,
            source_expired: 0,
            target_expired: 0,
            source_misnamed: 0,
            source_digest: Digest::default(),
            target_digest: Digest::default(),
            mismatches: 0,
            repaired: 0,
            examples: Vec::new(),
            ended: None,
        }
    }
}

impl<Time> Findings<Time> {
    /// Another comparison of the same cells: counts and digests are its own, but what differed before stays told.
    pub fn begin_again(&mut self) {
        *self = Self {
            mismatches: self.mismatches,
            repaired: self.repaired,
            examples: std::mem::take(&mut self.examples),
            ..Self::default()
        };
    }

    /// Counts what a step compared. Its suspects are no findings yet.
    pub fn count(&mut self, step: &Compared) {
        self.source_items += step.source.items;
        self.target_items += step.target.items;
        self.source_expired += step.source.expired;
        self.target_expired += step.target.expired;
        self.source_misnamed += step.source.misnamed;
        self.source_digest.merge(&step.source.digest);
        self.target_digest.merge(&step.target.digest);
    }

    /// Adds what differed still, and whether it was written again as it is at the source.
    pub fn add(&mut self, differing: &Differing, repaired: bool) {
        self.mismatches += 1;
        self.repaired += u64::from(repaired);
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(Mismatch {
                table: differing.at.table.clone(),
                key_hash: differing.key_hash.clone(),
                kind: differing.kind,
                repaired,
            });
        }
    }

    /// Whether no item differs that was not mended.
    pub fn settled(&self) -> bool {
        self.mismatches == self.repaired
    }
}
