//! Plans against the best of all plans, where there are few enough of them to try all.

use cells_balance::*;
use proptest::prelude::*;

use crate::world::*;

/// A world of plain cells, each with tenants of these loads and bytes, and nothing that rules a target out.
fn plain(cells: &[(u64, Vec<(u64, u64)>)]) -> World {
    let mut world = World { cells: vec![], background: vec![], tenants: vec![], loads: vec![] };
    for (at, (background, tenants)) in cells.iter().enumerate() {
        let id = format!("cell-{at}");
        world.cells.push(cell(&id, 0.0));
        world.background.push(*background);
        for (load, bytes) in tenants {
            world.tenants.push(tenant(&format!("t{}", world.tenants.len()), &id, 0.0, *bytes));
            world.loads.push(*load);
        }
    }
    world.measure()
}

/// Every way to place the tenants: calls `each` with the cell of every tenant.
fn all_ways(world: &World, mut each: impl FnMut(&[usize])) {
    let (tenants, cells) = (world.tenants.len(), world.cells.len());
    for number in 0..cells.pow(tenants as u32) {
        let way: Vec<usize> =
            (0..tenants).map(|at| number / cells.pow(at as u32) % cells).collect();
        each(&way);
    }
}

/// The fewest bytes with which all cells come into the band, if they can.
fn fewest_bytes(world: &World, low: u64, high: u64) -> Option<u64> {
    let mut fewest = None;
    let homes: Vec<usize> = world.tenants.iter().map(|one| world.place(&one.cell)).collect();
    all_ways(world, |way| {
        let mut levels = world.background.clone();
        way.iter().zip(&world.loads).for_each(|(cell, load)| levels[*cell] += load);
        if levels.iter().all(|level| (low..=high).contains(level)) {
            let moved = (0..way.len()).filter(|&at| way[at] != homes[at]);
            let bytes: u64 = moved.map(|at| world.tenants[at].bytes.unwrap()).sum();
            fewest = Some(fewest.map_or(bytes, |least: u64| least.min(bytes)));
        }
    });
    fewest
}

fn rebalanced(world: &World, low: u64, high: u64) -> (Plan, bool) {
    let band = Band { low: low as f64 / 1e3, high: high as f64 / 1e3 };
    let options = RebalanceOptions { hotspot_share: 1.0, ..RebalanceOptions::default() };
    let plan = plan_rebalance(&world.cells, &world.tenants, band, &[], &options).unwrap();
    let in_band = plan.cells.iter().all(|cell| cell.standing == Some(Standing::InBand));
    (plan, in_band)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// The promise: no cell below the band, no load wider than the band, room for all that is above.
    #[test]
    fn twice_the_fewest_bytes_at_most(
        first in prop::collection::vec((1u64..200, 1u64..1_000), 1..7),
        second in prop::collection::vec((1u64..200, 1u64..1_000), 0..3),
        part in 0.0f64..1.0,
    ) {
        let loads: u64 = first.iter().map(|(load, _)| load).sum();
        let excess = 1 + (part * (loads - 1) as f64) as u64;
        let world = plain(&[(2_000, first), (2_000, second), (0, vec![])]);
        let high = world.level(0) - excess;
        let above = [0, 1].map(|cell| world.level(cell).saturating_sub(high));
        prop_assert!(above.iter().map(|above| above + 200).sum::<u64>() <= high, "room for all");
        let (plan, in_band) = rebalanced(&world, 0, high);
        prop_assert!(in_band, "{plan:?}");
        let fewest = fewest_bytes(&world, 0, high).expect("what a plan can do");
        prop_assert!(fewest <= plan.bytes && plan.bytes <= 2 * fewest, "{} of {fewest}", plan.bytes);
        prop_assert!(plan.bytes_at_least.unwrap() <= fewest);
    }

    /// R. L. Graham's rule for targets that are not empty, by C.-Y. Lee: at most 3/2 − 1/(2m).
    #[test]
    fn a_drain_fills_no_target_much_more_than_it_must(
        tenants in prop::collection::vec(1u64..300, 0..7),
        targets in prop::collection::vec(0u64..400, 1..4),
    ) {
        let mut cells = vec![(0, tenants.iter().map(|load| (*load, 1)).collect())];
        cells.extend(targets.iter().map(|background| (*background, vec![])));
        let mut world = plain(&cells);
        // Not empty, so that the utilisation counts.
        world.cells.iter_mut().for_each(|cell| cell.placements += 1);
        let plan = plan_drain("cell-0", &world.tenants, &world.cells, &DrainOptions::default()).unwrap();
        prop_assert_eq!(plan.moves.len(), tenants.len());
        let after = world.after(&plan.moves);
        let fullest = (1..world.cells.len()).map(|at| after.level(at)).max().unwrap();
        let mut best = u64::MAX;
        all_ways(&world, |way| {
            if way.iter().all(|cell| *cell > 0) {
                let mut levels = world.background.clone();
                way.iter().zip(&world.loads).for_each(|(cell, load)| levels[*cell] += load);
                best = best.min(levels[1..].iter().copied().max().unwrap());
            }
        });
        let m = targets.len() as u64;
        prop_assert!(fullest * 2 * m <= best * (3 * m - 1), "{fullest} of {best} with {m} targets");
    }
}

/// Small worlds as they come, cells below the band and loads wider than it among them. Nothing is promised of these, so this says how
/// it is: the same worlds at each run.
#[test]
fn how_good_plans_are_where_nothing_is_promised() {
    let mut state = 7u64;
    let mut draw = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let (mut can, mut does, mut worst) = (0, 0, 1.0f64);
    let (mut planned, mut fewest) = (0, 0);
    for _ in 0..600 {
        let mut some = |n| (0..n).map(|_| (1 + draw(200), 1 + draw(1_000))).collect::<Vec<_>>();
        let cells = [(200, some(3)), (100, some(2)), (0, some(2))];
        let (low, high) = (150, 500);
        let world = plain(&cells);
        let Some(least) = fewest_bytes(&world, low, high).filter(|least| *least > 0) else {
            continue;
        };
        can += 1;
        let (plan, in_band) = rebalanced(&world, low, high);
        assert!(plan.bytes_at_least.unwrap() <= least || !in_band);
        if in_band {
            does += 1;
            (planned, fewest) = (planned + plan.bytes, fewest + least);
            worst = worst.max(plan.bytes as f64 / least as f64);
        }
    }
    println!(
        "{does} of {can} in the band; {planned} bytes, {fewest} at best; the worst ratio {worst:.2}"
    );
    assert!(can > 300, "too few that can be: {can}");
    assert!(does * 100 >= can * 85, "{does} of {can}");
    assert!(planned * 100 <= fewest * 120, "{planned} bytes, {fewest} at best");
}
