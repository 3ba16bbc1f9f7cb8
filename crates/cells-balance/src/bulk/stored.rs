//! In which parts a bulk is stored.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Bulk, Header, Item};

/// Tenants of a chunk. The longest key in JSON has 2 KiB (each byte a quote), a reason 512 bytes and the rest below 512, so a full chunk stays
/// below 200 KB; with keys and reasons as they usually are it has about 10, which is what each change of a tenant costs to write.
pub const ITEMS_PER_CHUNK: usize = 64;

/// A part of a bulk's tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The bulk's id.
    pub bulk: String,
    /// From 0 on.
    pub number: u64,
    pub items: Vec<Item>,
    /// Rises by one with each stored change; the first is 1.
    pub revision: u64,
}

/// What is to be written. Each on the condition that what is stored has the revision before it, or is absent where it is 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    pub header: Option<Header>,
    pub chunks: Vec<Chunk>,
}

/// Why what was read is no bulk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    #[error("chunk {number} is of the bulk {is:?}, not of {wanted:?}")]
    OtherBulk { number: u64, is: String, wanted: String },
    #[error("chunk {0} is missing; read all of them")]
    Missing(u64),
    #[error("chunk {0} is there twice or too much")]
    Extra(u64),
    #[error("chunk {number} has {got} tenants, not {wanted}")]
    Length { number: u64, got: usize, wanted: usize },
}

impl Bulk {
    /// The numbers of the chunks that changed since they were taken last, and whether the header did.
    pub fn changed(&self) -> (bool, &BTreeSet<usize>) {
        (self.header_changed, &self.chunks_changed)
    }

    /// What changed since the last call, with the revisions raised. If it cannot be stored, load the bulk again: what is in memory then
    /// is not what is stored.
    pub fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        if std::mem::take(&mut self.header_changed) {
            self.header.revision += 1;
            changes.header = Some(self.header.clone());
        }
        for number in std::mem::take(&mut self.chunks_changed) {
            let items = self.items.chunks(ITEMS_PER_CHUNK).nth(number);
            let (Some(items), Some(revision)) = (items, self.revisions.get_mut(number)) else {
                continue;
            };
            *revision += 1;
            changes.chunks.push(Chunk {
                bulk: self.header.id.clone(),
                number: number as u64,
                items: items.to_vec(),
                revision: *revision,
            });
        }
        changes
    }

    /// A bulk as it was stored. The chunks may come in any order.
    ///
    /// # Errors
    /// Where chunks are missing, or are not this bulk's.
    pub fn load(header: Header, mut chunks: Vec<Chunk>) -> Result<Self, LoadError> {
        chunks.sort_by_key(|chunk| chunk.number);
        let mut left = usize::try_from(header.items).unwrap_or(usize::MAX);
        let mut items = Vec::new();
        let mut revisions = Vec::with_capacity(chunks.len());
        for (chunk, number) in chunks.into_iter().zip(0u64..) {
            if chunk.bulk != header.id {
                let (is, wanted) = (chunk.bulk, header.id);
                return Err(LoadError::OtherBulk { number: chunk.number, is, wanted });
            }
            if chunk.number > number {
                return Err(LoadError::Missing(number));
            }
            if chunk.number < number || left == 0 {
                return Err(LoadError::Extra(chunk.number));
            }
            let (got, wanted) = (chunk.items.len(), left.min(ITEMS_PER_CHUNK));
            if got != wanted {
                return Err(LoadError::Length { number, got, wanted });
            }
            left -= wanted;
            items.extend(chunk.items);
            revisions.push(chunk.revision);
        }
        if left > 0 {
            return Err(LoadError::Missing(revisions.len() as u64));
        }
        let chunks_changed = BTreeSet::new();
        Ok(Self { header, items, revisions, header_changed: false, chunks_changed })
    }
}
