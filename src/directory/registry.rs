//! The cells as this replica knows them: a fold over the journal.
//!
//! Invariant: a registry whose `applied` is `n` is the same in every replica, and it is exactly what the tables say as of entry
//! `n`. A commit is conditional on the journal's head, so what is decided on a registry at `n` and committed as `n + 1` was decided
//! on the truth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{Cell, CellId, Change, Cluster, JournalEntry, JournalId, Sequence};
use crate::store::Head;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    journal: JournalId,
    applied: Sequence,
    cells: BTreeMap<CellId, Arc<Cell>>,
    cluster: Cluster,
}

impl Registry {
    /// Builds a registry from a head, and cells and settings that were read *after* it. They may be ahead of the head; entries up to
    /// where one stands leave it alone when they are applied.
    pub fn load(head: Head, cells: Vec<Cell>, cluster: Cluster) -> Self {
        let by_id = cells.into_iter().map(|cell| (cell.id.clone(), Arc::new(cell)));
        let cells = by_id.collect();
        Self { journal: head.journal, applied: head.sequence, cells, cluster }
    }

    /// The journal that this registry follows.
    pub fn journal(&self) -> JournalId {
        self.journal
    }

    /// The settings that all replicas share.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// How long an answer may be used for direct writes after it was current. None at all where the settings were read ahead of the
    /// entries that are taken in: a longer lease must not be given on what came before it.
    pub fn lease(&self) -> Duration {
        match self.cluster.revision > self.applied {
            true => Duration::ZERO,
            false => self.cluster.lease.get(),
        }
    }

    /// The last entry that this registry takes in.
    pub fn applied(&self) -> Sequence {
        self.applied
    }

    pub fn cell(&self, id: &CellId) -> Option<&Arc<Cell>> {
        self.cells.get(id)
    }

    /// The cell with this id, given as text.
    pub fn cell_named(&self, id: &str) -> Option<&Arc<Cell>> {
        self.cells.get(id)
    }

    /// All cells, in the order of their ids.
    pub fn cells(&self) -> impl Iterator<Item = &Arc<Cell>> {
        self.cells.values()
    }

    /// Cells after an id, in order.
    pub fn cells_after(&self, id: Option<&CellId>) -> impl Iterator<Item = &Arc<Cell>> {
        use std::ops::Bound;
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.cells.range::<CellId, _>((from, Bound::Unbounded)).map(|(_, cell)| cell)
    }

    /// Takes in the next entry. One that is not the next is left alone, and `false` is answered.
    pub fn apply(&mut self, entry: &JournalEntry) -> bool {
        if entry.sequence != self.applied.next() {
            return false;
        }
        let sequence = entry.sequence;
        for change in &entry.changes {
            // A cell that was loaded ahead of the head has taken this in already.
            let known = change.cell().and_then(|id| self.cells.get(id));
            if known.is_none_or(|known| known.revision < sequence) {
                self.change_cell(change);
            }
        }
        for (cell, delta) in total_deltas(&entry.changes) {
            if let Some(cell) = self.cells.get_mut(cell)
                && cell.counted_at < sequence
            {
                let cell = Arc::make_mut(cell);
                cell.placements = cell.placements.saturating_add_signed(delta);
                cell.counted_at = sequence;
            }
        }
        self.applied = sequence;
        true
    }

    /// Takes in a change that is only drafted: what is drafted next sees it.
    pub fn anticipate(&mut self, change: &Change) {
        self.change_cell(change);
        for (cell, delta) in change.deltas() {
            if let Some(cell) = self.cells.get_mut(cell) {
                let cell = Arc::make_mut(cell);
                cell.placements = cell.placements.saturating_add_signed(delta);
            }
        }
    }

    fn change_cell(&mut self, change: &Change) {
        match change {
            Change::CellCreated { cell } => {
                self.cells.insert(cell.id.clone(), Arc::new(cell.clone()));
            }
            Change::CellUpdated { cell } => {
                if let Some(known) = self.cells.get_mut(&cell.id) {
                    *known = Arc::new(Cell {
                        placements: known.placements,
                        counted_at: known.counted_at,
                        ..cell.clone()
                    });
                }
            }
            Change::CellDeleted { cell } => {
                self.cells.remove(cell);
            }
            Change::ClusterUpdated { cluster } => {
                if self.cluster.revision < cluster.revision {
                    self.cluster = cluster.clone();
                }
            }
            Change::Placed { .. } | Change::Moved { .. } | Change::Vacated { .. } => {}
        }
    }
}

/// By how much changes move the number of placements of each cell. A placement may name a cell that is not registered: an adopted
/// one.
pub fn total_deltas(changes: &[Change]) -> BTreeMap<&CellId, i64> {
    let mut total = BTreeMap::new();
    for (cell, delta) in changes.iter().flat_map(Change::deltas) {
        *total.entry(cell).or_default() += delta;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::{cell, entry, placed};

    #[test]
    fn applies_only_the_next_entry() {
        let mut registry = Registry::default();
        let second = entry(2, vec![]);
        assert!(!registry.apply(&second));
        assert!(registry.apply(&entry(1, vec![])));
        assert!(registry.apply(&second));
        assert!(!registry.apply(&second), "an entry counts once");
        assert_eq!(registry.applied(), Sequence::new(2));
    }

    /// Cells are read after the head, so they may be ahead of it, each by a different amount. The fold must come out as if they
    /// had been read at the head.
    #[test]
    fn a_torn_load_comes_out_as_a_clean_one() {
        let changes = [
            vec![Change::CellCreated { cell: cell("a", 1) }],
            vec![Change::CellCreated { cell: cell("b", 2) }],
            vec![placed("k1", "a", None), placed("k2", "a", None), placed("k3", "b", None)],
            vec![Change::CellUpdated { cell: cell("b", 4) }, placed("k1", "b", Some("a"))],
        ];
        let entries: Vec<_> = (1..).zip(changes).map(|(n, c)| entry(n, c)).collect();
        let mut states = vec![Registry::default()];
        for entry in &entries {
            let mut next = states[states.len() - 1].clone();
            assert!(next.apply(entry));
            states.push(next);
        }
        let last = &states[4];
        assert_eq!(last.cell(&CellId::new("a").unwrap()).unwrap().placements, 1);
        assert_eq!(last.cell(&CellId::new("b").unwrap()).unwrap().placements, 2);

        for head in 0..states.len() {
            for a_at in head..states.len() {
                for b_at in head..states.len() {
                    let read = |id: &str, at: usize| {
                        states[at].cell(&CellId::new(id).unwrap()).map(|c| Cell::clone(c))
                    };
                    let cells = [read("a", a_at), read("b", b_at)].into_iter().flatten();
                    let at = Head {
                        sequence: Sequence::new(head as u64),
                        journal: JournalId::default(),
                    };
                    let mut torn = Registry::load(at, cells.collect(), Cluster::default());
                    for entry in &entries[head..] {
                        assert!(torn.apply(entry));
                    }
                    assert_eq!(&torn, last, "head {head}, a at {a_at}, b at {b_at}");
                }
            }
        }
    }
}
