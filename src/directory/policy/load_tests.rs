//! What loads do to policies, and that without any nothing changes.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use proptest::prelude::*;

use super::{
    AssignmentPolicy, Candidate, Constrained, Newcomer, Rendezvous, Sparing, Standing, TwoChoices,
    choose,
};
use crate::directory::fixtures::{cell, key, now};
use crate::domain::{Cell, CellId, CellLoad, Constraints, Labels, LoadTerms, Loads, Weight};

fn load(id: &str, utilisation: f64, throttled_per_minute: f64) -> CellLoad {
    CellLoad {
        cell: CellId::new(id).unwrap(),
        at: now(),
        utilisation,
        throttled_per_minute,
        tables: Vec::new(),
    }
}

fn loads(of: &[(&str, f64)]) -> Loads {
    let all = of.iter().map(|(id, utilisation)| load(id, *utilisation, 0.0));
    Loads::at(now(), all, LoadTerms::default())
}

fn candidates(
    policy: &dyn AssignmentPolicy,
    name: &str,
    cells: &[Arc<Cell>],
    loads: &Loads,
) -> Vec<Candidate> {
    let entropy = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
    let newcomer = Newcomer { key: &key(name), constraints: &Constraints::default(), entropy };
    choose(policy, newcomer, cells.iter(), loads)
}

fn cells(ids: &[&str]) -> Vec<Arc<Cell>> {
    ids.iter().map(|id| Arc::new(cell(id, 1))).collect()
}

/// How many of 2,000 tenants each cell gets.
fn won(
    policy: &dyn AssignmentPolicy,
    cells: &[Arc<Cell>],
    loads: &Loads,
) -> BTreeMap<String, usize> {
    let mut won = BTreeMap::new();
    for n in 0..2_000 {
        let best = candidates(policy, &format!("tenant-{n}"), cells, loads).remove(0);
        *won.entry(best.cell.to_string()).or_default() += 1;
    }
    won
}

const POLICIES: [&dyn AssignmentPolicy; 2] =
    [&Constrained(Sparing(Rendezvous)), &Constrained(Sparing(TwoChoices))];

#[test]
fn an_overloaded_cell_gets_nobody_while_another_can_take_them_and_everybody_where_none_can() {
    let cells = cells(&["a", "b", "c"]);
    for policy in POLICIES {
        let throttled = Loads::at(now(), [load("b", 0.1, 5.0)], LoadTerms::default());
        for loads in [loads(&[("b", 0.9)]), loads(&[("b", 7.0), ("a", 0.1)]), throttled] {
            assert_eq!(won(policy, &cells, &loads).get("b"), None, "{}", policy.name());
        }
        let all = loads(&[("a", 0.95), ("b", 0.95), ("c", 0.95)]);
        let won_by_all: usize = won(policy, &cells, &all).values().sum();
        assert_eq!(won_by_all, 2_000, "{}", policy.name());
        let alone = cells[1..2].to_vec();
        assert_eq!(won(policy, &alone, &loads(&[("b", 9.0)]))["b"], 2_000);
    }
}

/// A busy cell that alone has what is asked for is still chosen, and not outdone by those that lack it.
#[test]
fn constraints_come_before_load() {
    let gold = Labels::new([("tier".to_owned(), "gold".to_owned())].into()).unwrap();
    let mut cells = cells(&["a", "b"]);
    cells.push(Arc::new(Cell { labels: gold.clone(), ..cell("c", 1) }));
    let constraints = Constraints { labels: gold, regions: Vec::new() };
    for policy in POLICIES {
        let newcomer = Newcomer { key: &key("k"), constraints: &constraints, entropy: 1 };
        let ranked = choose(policy, newcomer, cells.iter(), &loads(&[("c", 2.0)]));
        assert_eq!(ranked[0].cell.as_str(), "c");
        let Standing::Ranked { why, .. } = &ranked[0].standing else { panic!("{ranked:?}") };
        assert!(
            why.ends_with("; only after all others: utilisation 2.00 is not below 0.90"),
            "{why}"
        );
    }
}

#[test]
fn the_busier_a_cell_the_fewer_newcomers() {
    let cells = cells(&["a", "b"]);
    let won_by_a =
        |utilisation| won(&Sparing(Rendezvous), &cells, &loads(&[("a", utilisation)]))["a"];
    // Half, and at 0.825 the weights are as 0.525 to 1: 0.344. The standard deviation is 22.
    assert!((930..1_070).contains(&won_by_a(0.75)), "{}", won_by_a(0.75));
    assert!((620..760).contains(&won_by_a(0.825)), "{}", won_by_a(0.825));
    assert_eq!(won(&TwoChoices, &cells, &loads(&[("a", 0.2)])).get("a"), None);
    assert_eq!(won(&TwoChoices, &cells, &loads(&[("a", 0.2), ("b", 0.3)])).get("b"), None);
}

#[test]
fn explanations_say_what_was_considered() {
    let cells = cells(&["a"]);
    let why =
        |policy| match candidates(policy, "k", &cells, &loads(&[("a", 0.84)])).remove(0).standing {
            Standing::Ranked { why, .. } => why,
            other => panic!("{other:?}"),
        };
    assert!(
        why(POLICIES[0]).ends_with("at weight 100, of which utilisation 0.84 leaves 0.43"),
        "{}",
        why(POLICIES[0])
    );
    assert_eq!(why(POLICIES[1]), "drawn, at 0.0000 of its capacity and utilisation 0.84");
}

prop_compose! {
    fn some_cells()(
        all in prop::collection::vec((1u32..1_000, 0u64..100, prop::option::of(1u64..200)), 1..8),
    ) -> Vec<Arc<Cell>> {
        let made = all.into_iter().enumerate().map(|(n, (weight, placements, capacity))| Cell {
            weight: Weight::new(weight).unwrap(),
            placements,
            capacity: capacity.and_then(NonZeroU64::new),
            ..cell(&format!("c{n}"), 1)
        });
        made.map(Arc::new).collect()
    }
}

proptest! {
    /// As it was before there were loads, to the last word of the explanation.
    #[test]
    fn without_loads_nothing_changes(cells in some_cells(), name in "[a-z]{1,8}") {
        let plain: [&dyn AssignmentPolicy; 2] = [&Constrained(Rendezvous), &Constrained(TwoChoices)];
        for (policy, plain) in POLICIES.into_iter().zip(plain) {
            let with = candidates(policy, &name, &cells, &Loads::default());
            prop_assert_eq!(&with, &candidates(plain, &name, &cells, &Loads::default()));
            // Nor do loads of cells that are none, or of idle ones as far as the choice goes by rendezvous.
            let others = loads(&[("elsewhere", 3.0)]);
            prop_assert_eq!(&with, &candidates(policy, &name, &cells, &others));
        }
    }

    /// A cell that gets busier never wins a tenant by it, and who is lost goes to cells that did not change.
    #[test]
    fn getting_busier_wins_nobody(
        cells in some_cells(),
        name in "[a-z]{1,8}",
        utilisations in prop::collection::vec(0.0f64..1.5, 8),
        which in 0usize..8,
        more in 0.0f64..1.0,
    ) {
        let busier = which % cells.len();
        let at = |raised: f64| {
            let all = cells.iter().zip(&utilisations).enumerate().map(|(n, (cell, utilisation))| {
                let extra = if n == busier { raised } else { 0.0 };
                load(cell.id.as_str(), utilisation + extra, 0.0)
            });
            Loads::at(now(), all, LoadTerms::default())
        };
        for policy in POLICIES {
            let before = candidates(policy, &name, &cells, &at(0.0));
            let after = candidates(policy, &name, &cells, &at(more));
            prop_assert_eq!(&after, &candidates(policy, &name, &cells, &at(more)), "the same again");
            prop_assert_eq!(after.len(), cells.len());
            // Which two are drawn changes where a cell becomes overloaded; by rendezvous nobody else's score does.
            let overloaded = |loads: &Loads| loads.overloaded(&cells[busier].id).is_some();
            if policy.name() == "rendezvous" || overloaded(&at(0.0)) == overloaded(&at(more)) {
                let winner = &cells[busier].id;
                prop_assert!(after[0].cell != *winner || before[0].cell == *winner);
            }
            if overloaded(&at(more)) && !overloaded(&at(0.0)) {
                let free = |cell: &&Arc<Cell>| {
                    cell.refuses_new_tenants().is_none()
                        && at(more).overloaded(&cell.id).is_none()
                };
                let others_free = cells.iter().any(|cell| free(&cell));
                prop_assert!(!others_free || after[0].cell != cells[busier].id);
            }
        }
    }
}
