//! The cells that placements name, each under a number that never changes.
//!
//! An answer borrows its cell from here, so that answering counts no references: two threads that ask for tenants of one cell share
//! nothing that either of them writes. The price: what was once known of a cell is kept until the directory is dropped. Cells are few
//! and are changed by hand; [`MAX_VERSIONS`] bounds what a runaway operator can do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::proto;

/// How many cells, and how many versions of cells, a directory can hold in its life.
pub(crate) const MAX_VERSIONS: usize = 1 << 20;

/// What a cell may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CellState {
    /// Not known: only an answer named the cell so far, or the cell is not registered (any more).
    Unknown,
    /// Serves its tenants and gets new ones.
    Active,
    /// Serves its tenants and gets no new ones.
    Cordoned,
    /// Gets no new tenants, and those it has are to be moved away.
    Draining,
    /// Believed to be unhealthy.
    Quarantined,
    /// At the end of its life.
    Retired,
}

/// A cell as last heard of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub(crate) id: Box<str>,
    pub(crate) region: Box<str>,
    pub(crate) endpoint: Box<str>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) state: CellState,
    /// For those who write to them.
    pub(crate) tables: Option<Arc<proto::CellTables>>,
}

impl Cell {
    /// The cell's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the application's stack in this cell is reached. Empty where the directory has not said.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The AWS Region. Empty where the directory has not said.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The cell's labels. Known from the Watch only: empty where just an answer to a miss has named the cell.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// What the cell may be used for. The tenants that a cell already has keep resolving to it in every state.
    pub fn state(&self) -> CellState {
        self.state
    }

    pub(crate) fn from_proto(cell: &proto::Cell) -> Self {
        Self {
            id: cell.cell_id.as_str().into(),
            region: cell.region.as_str().into(),
            endpoint: cell.endpoint.as_str().into(),
            labels: cell.labels.clone(),
            state: match cell.state() {
                proto::CellState::Unspecified => CellState::Unknown,
                proto::CellState::Active => CellState::Active,
                proto::CellState::Cordoned => CellState::Cordoned,
                proto::CellState::Draining => CellState::Draining,
                proto::CellState::Quarantined => CellState::Quarantined,
                proto::CellState::Retired => CellState::Retired,
            },
            tables: cell.tables.clone().map(Arc::new),
        }
    }

    fn unknown(id: &str) -> Self {
        Self {
            id: id.into(),
            region: "".into(),
            endpoint: "".into(),
            labels: BTreeMap::new(),
            state: CellState::Unknown,
            tables: None,
        }
    }
}

/// A cell's number in the table of one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CellIndex(u32);

impl CellIndex {
    pub fn to_bits(self) -> u32 {
        self.0
    }

    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

struct Slot {
    /// The present version's place in `versions`.
    version: AtomicUsize,
    /// The journal's entry up to which the present version is known to hold.
    sequence: AtomicU64,
}

pub(crate) struct CellTable {
    slots: boxcar::Vec<Slot>,
    versions: boxcar::Vec<Cell>,
    /// Held while anything is added or changed.
    numbers: Mutex<HashMap<Box<str>, CellIndex>>,
    /// What a number that was never given stands for.
    nowhere: Cell,
}

impl CellTable {
    pub fn new() -> Self {
        Self {
            slots: boxcar::Vec::new(),
            versions: boxcar::Vec::new(),
            numbers: Mutex::new(HashMap::new()),
            nowhere: Cell::unknown(""),
        }
    }

    /// The number of the cell `id`, a new one where there is none. `None`: the id is empty, or the table is full.
    pub fn intern(&self, id: &str) -> Option<CellIndex> {
        if id.is_empty() {
            return None;
        }
        let mut numbers = self.numbers.lock();
        if let Some(index) = numbers.get(id) {
            return Some(*index);
        }
        if self.versions.count() >= MAX_VERSIONS {
            tracing::error!(limit = MAX_VERSIONS, "no room for another cell; restart the process");
            return None;
        }
        let version = self.versions.push(Cell::unknown(id));
        let slot = self.slots.push(Slot { version: version.into(), sequence: 0.into() });
        let index = CellIndex(u32::try_from(slot).ok()?);
        numbers.insert(id.into(), index);
        Some(index)
    }

    /// The number of a cell that was named before.
    #[cfg(feature = "data")]
    pub fn find(&self, id: &str) -> Option<CellIndex> {
        self.numbers.lock().get(id).copied()
    }

    #[inline]
    pub fn get(&self, index: CellIndex) -> &Cell {
        self.slots
            .get(index.0 as usize)
            .and_then(|slot| self.versions.get(slot.version.load(Ordering::Acquire)))
            .unwrap_or(&self.nowhere)
    }

    /// Takes over what is known of a cell as of the journal's entry `sequence`, unless something newer is known.
    pub fn update(&self, cell: Cell, sequence: u64) {
        let Some(index) = self.intern(&cell.id) else { return };
        let _changing = self.numbers.lock();
        let Some(slot) = self.slots.get(index.0 as usize) else { return };
        if slot.sequence.load(Ordering::Relaxed) > sequence {
            return;
        }
        slot.sequence.store(sequence, Ordering::Relaxed);
        if *self.get(index) == cell {
            return;
        }
        if self.versions.count() >= MAX_VERSIONS {
            tracing::error!(
                limit = MAX_VERSIONS,
                "no room for another version of a cell; restart the process"
            );
            return;
        }
        let version = self.versions.push(cell);
        slot.version.store(version, Ordering::Release);
    }

    /// Takes over a cell's address from an answer that named it, unless something newer is known.
    pub fn address(&self, id: &str, endpoint: &str, region: &str, sequence: u64) {
        if endpoint.is_empty() {
            return;
        }
        let Some(index) = self.intern(id) else { return };
        let known = self.get(index);
        if &*known.endpoint != endpoint || &*known.region != region {
            let cell = Cell { endpoint: endpoint.into(), region: region.into(), ..known.clone() };
            self.update(cell, sequence);
        }
    }

    /// Takes over which tables a cell has, from an answer that was asked for them, unless something newer is known.
    #[cfg(feature = "data")]
    pub fn tables(&self, id: &str, tables: proto::CellTables, sequence: u64) {
        let Some(index) = self.intern(id) else { return };
        let cell = Cell { tables: Some(Arc::new(tables)), ..self.get(index).clone() };
        self.update(cell, sequence);
    }

    /// The cell is not registered any more. Its address is kept for who still holds an old answer.
    pub fn deleted(&self, id: &str, sequence: u64) {
        let Some(index) = self.intern(id) else { return };
        let cell = Cell { state: CellState::Unknown, ..self.get(index).clone() };
        self.update(cell, sequence);
    }

    /// Another journal numbers its entries anew: whatever it says of a cell is newer.
    pub fn forget_sequences(&self) {
        let _changing = self.numbers.lock();
        for (_, slot) in self.slots.iter() {
            slot.sequence.store(0, Ordering::Relaxed);
        }
    }

    /// All cells in the order of their numbers.
    pub fn all(&self) -> Vec<Cell> {
        (0..self.slots.count()).map(|n| self.get(CellIndex(n as u32)).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_news_of_a_cell_is_not_taken() {
        let table = CellTable::new();
        let cell = |endpoint: &str| Cell { endpoint: endpoint.into(), ..Cell::unknown("a") };
        let index = table.intern("a").unwrap();
        table.update(cell("http://new"), 7);
        table.update(cell("http://old"), 6);
        table.address("a", "http://old", "r", 5);
        assert_eq!(table.get(index).endpoint(), "http://new");
        table.forget_sequences();
        table.address("a", "http://restored", "r", 1);
        assert_eq!(table.get(index).endpoint(), "http://restored");
        table.deleted("a", 9);
        assert_eq!(table.get(index).state(), CellState::Unknown);
        assert_eq!(table.get(index).endpoint(), "http://restored");
    }

    #[test]
    fn a_borrowed_version_outlives_its_successors() {
        let table = CellTable::new();
        let index = table.intern("a").unwrap();
        let before = table.get(index);
        for n in 0..100_u64 {
            table.update(Cell { endpoint: format!("http://{n}").into(), ..Cell::unknown("a") }, n);
        }
        assert_eq!(before.endpoint(), "");
        assert_eq!(table.get(index).endpoint(), "http://99");
        assert_eq!(table.intern(""), None);
        assert_eq!(table.get(CellIndex(5)).id(), "");
    }
}
