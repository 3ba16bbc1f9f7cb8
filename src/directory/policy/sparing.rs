//! Prefers cells that are not overloaded, around any policy.
//!
//! An overloaded cell is not ruled out: to live in a busy cell is better than to live nowhere.

use std::sync::Arc;

use super::{AssignmentPolicy, Candidate, Newcomer, Standing};
use crate::domain::{Cell, Loads};

#[derive(Debug, Clone, Copy, Default)]
pub struct Sparing<P>(pub P);

impl<P: AssignmentPolicy> AssignmentPolicy for Sparing<P> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn rank(&self, newcomer: Newcomer<'_>, cells: &[Arc<Cell>], loads: &Loads) -> Vec<Candidate> {
        let overloaded = |cell: &&Arc<Cell>| loads.overloaded(&cell.id).is_some();
        // Mostly there is none, and nothing to be sorted out.
        if !cells.iter().any(|cell| overloaded(&cell)) {
            return self.0.rank(newcomer, cells, loads);
        }
        let (last, first): (Vec<_>, Vec<_>) =
            cells.iter().cloned().partition(|cell| overloaded(&cell));
        let mut candidates = self.0.rank(newcomer, &first, loads);
        let mut spared = self.0.rank(newcomer, &last, loads);
        for candidate in &mut spared {
            let overload = loads.overloaded(&candidate.cell).unwrap_or_default();
            if let Standing::Ranked { why, .. } = &mut candidate.standing {
                *why = format!("{why}; only after all others: {overload}");
            }
        }
        candidates.extend(spared);
        candidates
    }
}
