//! Keeps a newcomer to the labels and Regions that were asked for, around any policy.

use std::sync::Arc;

use super::{AssignmentPolicy, Candidate, Newcomer, Standing};
use crate::domain::{Cell, Loads};

#[derive(Debug, Clone, Copy, Default)]
pub struct Constrained<P>(pub P);

impl<P: AssignmentPolicy> AssignmentPolicy for Constrained<P> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn rank(&self, newcomer: Newcomer<'_>, cells: &[Arc<Cell>], loads: &Loads) -> Vec<Candidate> {
        let mut fitting = Vec::with_capacity(cells.len());
        let mut unfit = Vec::new();
        for cell in cells {
            match newcomer.constraints.unmet_by(cell) {
                None => fitting.push(Arc::clone(cell)),
                Some(why) => unfit.push(Candidate {
                    cell: cell.id.clone(),
                    standing: Standing::Ineligible { why },
                }),
            }
        }
        let mut candidates = self.0.rank(newcomer, &fitting, loads);
        candidates.extend(unfit);
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::{cell, key};
    use crate::directory::policy::{Rendezvous, choose};
    use crate::domain::{CellState, Constraints, Labels, Region, Weight};

    #[test]
    fn only_fitting_cells_are_ranked_and_the_others_say_why() {
        let labels =
            |tier: &str| Labels::new([("tier".to_owned(), tier.to_owned())].into()).unwrap();
        let gold = Cell { labels: labels("gold"), ..cell("a", 1) };
        let far = Cell { region: Region::new("us-east-1").unwrap(), ..gold.clone() };
        let cells = [
            gold.clone(),
            Cell { id: cell("b", 1).id, ..far },
            Cell { labels: labels("iron"), ..cell("c", 1) },
            Cell { id: cell("d", 1).id, state: CellState::Cordoned, ..gold.clone() },
            Cell { id: cell("e", 1).id, weight: Weight::new(0).unwrap(), ..gold.clone() },
            Cell { id: cell("f", 1).id, capacity: 5.try_into().ok(), placements: 5, ..gold },
        ]
        .map(Arc::new);
        let constraints = Constraints {
            labels: labels("gold"),
            regions: vec![Region::new("eu-west-1").unwrap()],
        };
        let newcomer = Newcomer { key: &key("k"), constraints: &constraints, entropy: 0 };
        let candidates =
            choose(&Constrained(Rendezvous), newcomer, cells.iter(), &Loads::default());
        assert_eq!(candidates[0].cell.as_str(), "a");
        let why: Vec<_> = candidates[1..]
            .iter()
            .map(|candidate| match &candidate.standing {
                Standing::Ineligible { why } => (candidate.cell.as_str(), why.as_str()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            why,
            [
                ("b", "is in region us-east-1, which was not asked for"),
                ("c", "lacks the label tier=gold"),
                ("d", "is CORDONED"),
                ("e", "has weight 0"),
                ("f", "is full: 5 of 5"),
            ]
        );
    }
}
