//! Weighted rendezvous hashing, by the logarithmic method: C. Schindelhauer and G. Schomaker, "Weighted distributed hash tables"
//! (SPAA 2005).
//!
//! Each cell draws a number in (0, 1) from a hash of tenant and cell, and scores `-weight / ln(draw)`; the highest score wins. A
//! cell's chance is its share of the weights, and a cell that is added or taken away moves only the tenants that it wins or loses.
//! A busy cell's weight counts for less, so that it loses newcomers as it would by a lower weight: to all others, in proportion.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{AssignmentPolicy, Candidate, Newcomer, Standing, best_first};
use crate::domain::{Cell, Loads};

#[derive(Debug, Clone, Copy, Default)]
pub struct Rendezvous;

impl AssignmentPolicy for Rendezvous {
    fn name(&self) -> &'static str {
        "rendezvous"
    }

    fn rank(&self, newcomer: Newcomer<'_>, cells: &[Arc<Cell>], loads: &Loads) -> Vec<Candidate> {
        let score = |cell: &Arc<Cell>| {
            let seed = xxh3_64(cell.id.as_str().as_bytes());
            let hash = xxh3_64_with_seed(newcomer.key.as_str().as_bytes(), seed);
            // The upper 53 bits, moved off both ends of the interval: the logarithm is finite and not zero.
            let draw = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -f64::from(cell.weight.get()) * loads.share(&cell.id) / draw.ln()
        };
        let mut ranked: Vec<_> = cells.iter().map(|cell| (score(cell), cell)).collect();
        best_first(&mut ranked);
        let candidate = |(score, cell): (f64, &Arc<Cell>)| Candidate {
            cell: cell.id.clone(),
            standing: Standing::Ranked { score, why: why(score, cell, loads) },
        };
        ranked.into_iter().map(candidate).collect()
    }
}

fn why(score: f64, cell: &Cell, loads: &Loads) -> String {
    let weight = cell.weight.get();
    match loads.get(&cell.id) {
        None => format!("rendezvous score {score:.3} at weight {weight}"),
        Some(load) => {
            let (share, utilisation) = (loads.share(&cell.id), load.utilisation);
            format!(
                "rendezvous score {score:.3} at weight {weight}, of which utilisation {utilisation:.2} leaves {share:.2}"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::{cell, key};
    use crate::domain::{Constraints, Weight};

    fn winner(name: &str, cells: &[Arc<Cell>]) -> String {
        let newcomer =
            Newcomer { key: &key(name), constraints: &Constraints::default(), entropy: 0 };
        Rendezvous.rank(newcomer, cells, &Loads::default())[0].cell.to_string()
    }

    fn weighted(id: &str, weight: u32) -> Arc<Cell> {
        Arc::new(Cell { weight: Weight::new(weight).unwrap(), ..cell(id, 1) })
    }

    #[test]
    fn shares_follow_the_weights() {
        let cells = [weighted("a", 100), weighted("b", 200), weighted("c", 100)];
        let won_by_b =
            (0..20_000).filter(|n| winner(&format!("tenant-{n}"), &cells) == "b").count();
        // Half of 20,000; the standard deviation is 71.
        assert!((9_700..10_300).contains(&won_by_b), "{won_by_b}");
    }

    #[test]
    fn a_new_cell_takes_tenants_only_for_itself() {
        let before = [weighted("a", 100), weighted("b", 200)];
        let after = [weighted("a", 100), weighted("b", 200), weighted("c", 100)];
        let mut moved = 0;
        for n in 0..5_000 {
            let name = format!("tenant-{n}");
            let (old, new) = (winner(&name, &before), winner(&name, &after));
            if old != new {
                assert_eq!(new, "c");
                moved += 1;
            }
        }
        // A quarter of 5,000; the standard deviation is 31.
        assert!((1_100..1_400).contains(&moved), "{moved}");
    }
}
