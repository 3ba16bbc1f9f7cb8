//! The less loaded of two cells drawn at random: M. Mitzenmacher, "The power of two choices in randomized load balancing" (2001).
//!
//! Two different cells are drawn, each with a chance in proportion to its weight; the one with fewer placements for its capacity
//! wins, or the less busy one: what counts is the greater of the two. Replicas that know slightly old counts do not all rush to the same cell, as they would by taking the least loaded of all.

use std::sync::Arc;

use super::{AssignmentPolicy, Candidate, Newcomer, Standing};
use crate::domain::{Cell, Loads};

/// What a cell without a capacity is taken to hold when its load is compared.
const REFERENCE_CAPACITY: f64 = 1_000_000.0;

#[derive(Debug, Clone, Copy, Default)]
pub struct TwoChoices;

impl AssignmentPolicy for TwoChoices {
    fn name(&self) -> &'static str {
        "least-loaded"
    }

    fn rank(&self, newcomer: Newcomer<'_>, cells: &[Arc<Cell>], loads: &Loads) -> Vec<Candidate> {
        let (high, low) = (newcomer.entropy >> 32, newcomer.entropy & 0xffff_ffff);
        let first = draw(cells, None, high);
        let second = draw(cells, first, low);
        let mut drawn: Vec<_> = [first, second]
            .into_iter()
            .flatten()
            .map(|at| (-load(&cells[at], loads), &cells[at]))
            .collect();
        super::best_first(&mut drawn);

        let mut candidates: Vec<_> = drawn
            .iter()
            .map(|(score, cell)| Candidate {
                cell: cell.id.clone(),
                standing: Standing::Ranked { score: *score, why: why(-score, cell, loads) },
            })
            .collect();
        let others =
            cells.iter().enumerate().filter(|(at, _)| Some(*at) != first && Some(*at) != second);
        candidates.extend(
            others
                .map(|(_, cell)| Candidate { cell: cell.id.clone(), standing: Standing::NotDrawn }),
        );
        candidates
    }
}

/// Draws a cell other than `not`, by weight. `lot` is a number of 32 random bits.
fn draw(cells: &[Arc<Cell>], not: Option<usize>, lot: u64) -> Option<usize> {
    let others = || cells.iter().enumerate().filter(|(at, _)| Some(*at) != not);
    let total: u64 = others().map(|(_, cell)| u64::from(cell.weight.get())).sum();
    let mut ticket = u64::try_from((u128::from(lot) * u128::from(total)) >> 32).unwrap_or(0);
    for (at, cell) in others() {
        let weight = u64::from(cell.weight.get());
        if ticket < weight {
            return Some(at);
        }
        ticket -= weight;
    }
    None
}

/// How full a cell is: of tenants, or of work, whichever is more.
fn load(cell: &Cell, loads: &Loads) -> f64 {
    let utilisation = loads.get(&cell.id).map_or(0.0, |load| load.utilisation);
    filling(cell).max(utilisation)
}

fn filling(cell: &Cell) -> f64 {
    let capacity = cell.capacity.map_or(REFERENCE_CAPACITY, |c| c.get() as f64);
    cell.placements as f64 / capacity
}

fn why(load: f64, cell: &Cell, loads: &Loads) -> String {
    match loads.get(&cell.id) {
        None => format!("drawn, at {load:.4} of its capacity"),
        Some(known) => {
            let (filling, utilisation) = (filling(cell), known.utilisation);
            format!("drawn, at {filling:.4} of its capacity and utilisation {utilisation:.2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::directory::fixtures::{cell, key};
    use crate::domain::Constraints;

    fn rank(cells: &[Arc<Cell>], entropy: u64) -> Vec<Candidate> {
        let newcomer = Newcomer { key: &key("k"), constraints: &Constraints::default(), entropy };
        TwoChoices.rank(newcomer, cells, &Loads::default())
    }

    fn loaded(id: &str, placements: u64, capacity: u64) -> Arc<Cell> {
        Arc::new(Cell { placements, capacity: NonZeroU64::new(capacity), ..cell(id, 1) })
    }

    #[test]
    fn the_less_loaded_of_the_two_drawn_wins() {
        let cells = [loaded("a", 90, 100), loaded("b", 500, 1000), loaded("c", 10, 1000)];
        for entropy in (0..64).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let ranked = rank(&cells, entropy);
            assert_eq!(ranked.len(), 3);
            let names: Vec<_> = ranked.iter().map(|c| c.cell.as_str()).collect();
            assert_eq!(ranked[2].standing, Standing::NotDrawn);
            match names[2] {
                "a" => assert_eq!(names[0], "c"),
                "b" => assert_eq!(names[0], "c"),
                _ => assert_eq!(names[0], "b"),
            }
        }
    }

    #[test]
    fn one_cell_or_none_is_no_trouble() {
        assert_eq!(rank(&[loaded("a", 1, 2)], u64::MAX)[0].cell.as_str(), "a");
        assert!(rank(&[], 7).is_empty());
    }

    #[test]
    fn loads_even_out() {
        let mut counts = [0u64; 4];
        for n in 0..4_000u64 {
            let cells: Vec<_> =
                (0..4).map(|at| loaded(&format!("c{at}"), counts[at], 10_000)).collect();
            let entropy = xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes());
            let won = rank(&cells, entropy)[0].cell.to_string();
            counts[won[1..].parse::<usize>().unwrap()] += 1;
        }
        let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
        // Drawing one cell at random would spread by about 100.
        assert!(spread < 20, "{counts:?}");
    }
}
