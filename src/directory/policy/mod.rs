//! Which cell a new tenant gets.
//!
//! A policy only ranks: it is handed cells, and how busy they are as far as that is known, and orders them. What makes a cell eligible at
//! all — its state, its capacity, its weight — is decided in [`choose`], what the caller asked for in [`Constrained`], and that
//! overloaded cells come last in [`Sparing`]: policies around a policy.

mod constrained;
#[cfg(test)]
mod load_tests;
mod rendezvous;
mod sparing;
mod two_choices;

pub use constrained::Constrained;
pub use rendezvous::Rendezvous;
pub use sparing::Sparing;
pub use two_choices::TwoChoices;

use std::sync::Arc;

use crate::domain::{Cell, CellId, Constraints, Loads, PartitionKey};

/// Who is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Newcomer<'a> {
    pub key: &'a PartitionKey,
    pub constraints: &'a Constraints,
    /// Random bits for policies that draw lots.
    pub entropy: u64,
}

/// Orders cells for a newcomer.
pub trait AssignmentPolicy: Send + Sync + 'static {
    /// The policy's name, as in the configuration.
    fn name(&self) -> &'static str;

    /// The cells in the order of preference; those that were passed over come last, without a score. Of a cell that is not in `loads`
    /// it is not known how busy it is, and it is ranked as if that did not matter.
    fn rank(&self, newcomer: Newcomer<'_>, cells: &[Arc<Cell>], loads: &Loads) -> Vec<Candidate>;
}

/// A cell as the policy saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    pub cell: CellId,
    pub standing: Standing,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Could be chosen; the higher the score, the better.
    Ranked { score: f64, why: String },
    /// Could be chosen, but the policy did not look at it.
    NotDrawn,
    /// Could not be chosen.
    Ineligible { why: String },
}

impl Candidate {
    pub fn eligible(&self) -> bool {
        !matches!(self.standing, Standing::Ineligible { .. })
    }
}

/// Every cell, best first, those that are not eligible last. The first is the choice, where it is eligible.
pub fn choose<'a>(
    policy: &dyn AssignmentPolicy,
    newcomer: Newcomer<'_>,
    cells: impl Iterator<Item = &'a Arc<Cell>>,
    loads: &Loads,
) -> Vec<Candidate> {
    let mut eligible = Vec::new();
    let mut refusing = Vec::new();
    for cell in cells {
        let refusal = match cell.refuses_new_tenants() {
            None if cell.weight.get() == 0 => Some("has weight 0".to_owned()),
            refusal => refusal,
        };
        match refusal {
            None => eligible.push(Arc::clone(cell)),
            Some(why) => refusing
                .push(Candidate { cell: cell.id.clone(), standing: Standing::Ineligible { why } }),
        }
    }
    let mut candidates = policy.rank(newcomer, &eligible, loads);
    candidates.extend(refusing);
    candidates
}

/// Best score first; equal scores by id, so that the order is always the same.
fn best_first(ranked: &mut [(f64, &Arc<Cell>)]) {
    ranked
        .sort_by(|(a, a_cell), (b, b_cell)| b.total_cmp(a).then_with(|| a_cell.id.cmp(&b_cell.id)));
}
