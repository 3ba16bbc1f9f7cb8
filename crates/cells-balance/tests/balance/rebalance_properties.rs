//! What a rebalance promises, in any world.

use std::collections::HashSet;

use cells_balance::*;
use proptest::prelude::*;

use crate::world::*;

fn a_band() -> impl Strategy<Value = (u64, u64)> {
    (0u64..600, 50u64..400).prop_map(|(low, width)| (low, low + width))
}

fn band((low, high): (u64, u64)) -> Band {
    Band { low: low as f64 / 1e3, high: high as f64 / 1e3 }
}

fn plan(world: &World, limits: (u64, u64), last: &[LastMove], options: &RebalanceOptions) -> Plan {
    plan_rebalance(&world.cells, &world.tenants, band(limits), last, options).unwrap()
}

fn last_moves(plan: &Plan) -> Vec<LastMove> {
    let last = |one: &Move| LastMove {
        tenant: one.tenant.clone(),
        source: one.source.clone(),
        target: one.target.clone(),
    };
    plan.moves.iter().map(last).collect()
}

/// How far the cells that take part are out of the band, together.
fn distance(world: &World, (low, high): (u64, u64)) -> u64 {
    let part = |at: &usize| {
        let cell = &world.cells[*at];
        let state = matches!(cell.state, CellState::Active | CellState::Cordoned);
        state && cell.utilisation.is_some()
    };
    let out = |level: u64| level.saturating_sub(high) + low.saturating_sub(level);
    (0..world.cells.len()).filter(part).map(|at| out(world.level(at))).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_move_is_allowed(world in a_world(), limits in a_band(), residency in a_residency(), share in 0.2f64..1.0) {
        let options = RebalanceOptions { residency, hotspot_share: share };
        let plan = plan(&world, limits, &[], &options);
        let mut seen = HashSet::new();
        for one in &plan.moves {
            prop_assert!(seen.insert(&one.tenant), "{} is moved twice", one.tenant);
            let tenant = world.tenants.iter().find(|tenant| tenant.key == one.tenant).unwrap();
            let source = &world.cells[world.place(&one.source)];
            let target = &world.cells[world.place(&one.target)];
            prop_assert_eq!(&tenant.cell, &one.source);
            prop_assert!(!tenant.moving && !tenant.expires_soon);
            prop_assert!(tenant.load_share.unwrap() <= share, "a hotspot is moved");
            prop_assert!(could_take(source, tenant, target, residency), "{one:?}");
            prop_assert!(plan.moves.iter().all(|other| other.source != one.target), "{} gives and takes", one.target);
            prop_assert!(matches!(source.state, CellState::Active | CellState::Cordoned));
            prop_assert!(source.utilisation.is_some() && target.utilisation.is_some());
        }
        for (cell, forecast) in world.cells.iter().zip(&plan.cells) {
            let arrived = plan.moves.iter().filter(|one| one.target == cell.id).count() as u64;
            prop_assert!(arrived == 0 || cell.capacity.is_none_or(|most| cell.placements + arrived <= most));
            prop_assert_eq!(&cell.id, &forecast.cell);
        }
    }

    #[test]
    fn in_any_order_and_with_any_of_them_left_out_no_cell_leaves_the_band(
        world in a_world(),
        limits in a_band(),
        order in prop::collection::vec(any::<u64>(), 30),
    ) {
        let plan = plan(&world, limits, &[], &RebalanceOptions::default());
        let mut moves: Vec<(u64, &Move)> = order.iter().copied().zip(&plan.moves).collect();
        moves.sort_by_key(|(order, _)| *order);
        let (low, high) = limits;
        let mut done = vec![];
        // A third of the moves fail.
        for (_, one) in moves.into_iter().filter(|(order, _)| order % 3 > 0) {
            done.push(one);
            let now = world.after(done.iter().copied());
            for cell in 0..world.cells.len() {
                let (before, after) = (world.level(cell), now.level(cell));
                if after != before && world.cells[cell].utilisation.is_some() {
                    prop_assert!(after <= before.max(high), "{} rose to {after}", world.cells[cell].id);
                    prop_assert!(after >= before.min(low), "{} fell to {after}", world.cells[cell].id);
                }
            }
        }
    }

    #[test]
    fn after_the_moves_there_is_nothing_more_to_do(world in a_world(), limits in a_band()) {
        let options = RebalanceOptions::default();
        let first = plan(&world, limits, &[], &options);
        let second = plan(&world.after(&first.moves), limits, &last_moves(&first), &options);
        prop_assert_eq!(ways(&second), []);
    }

    /// Without knowing of the last moves there may be more to do, and each plan brings cells nearer to the band: so it ends, and
    /// never comes back.
    #[test]
    fn plans_come_to_an_end(world in a_world(), limits in a_band()) {
        let (mut world, mut before) = (world.clone(), distance(&world, limits));
        loop {
            let plan = plan(&world, limits, &[], &RebalanceOptions::default());
            if plan.moves.is_empty() {
                break;
            }
            world = world.after(&plan.moves);
            let after = distance(&world, limits);
            prop_assert!(after < before, "from {before} to {after}");
            before = after;
        }
    }

    #[test]
    fn who_was_moved_lately_stays_and_cells_do_not_turn_round(
        world in a_world(),
        limits in a_band(),
        lately in prop::collection::vec((0usize..30, 0usize..7), 0..4),
    ) {
        let known = lately.iter().filter(|(tenant, source)| *tenant < world.tenants.len() && *source < world.cells.len());
        let last: Vec<LastMove> = known.map(|&(tenant, source)| LastMove {
            tenant: world.tenants[tenant].key.clone(),
            source: format!("cell-{source}"),
            target: world.tenants[tenant].cell.clone(),
        }).collect();
        let plan = plan(&world, limits, &last, &RebalanceOptions::default());
        for one in &plan.moves {
            prop_assert!(last.iter().all(|last| last.tenant != one.tenant), "{one:?}");
            prop_assert!(last.iter().all(|last| last.source != one.target), "{one:?}");
            prop_assert!(last.iter().all(|last| last.target != one.source), "{one:?}");
        }
    }

    #[test]
    fn a_plan_says_what_it_does(world in a_world(), limits in a_band()) {
        let (low, high) = limits;
        let plan = plan(&world, limits, &[], &RebalanceOptions::default());
        prop_assert!(plan.bytes_at_least.unwrap() <= plan.bytes);
        let after = world.after(&plan.moves);
        for forecast in &plan.cells {
            let at = after.place(&forecast.cell);
            prop_assert_eq!(forecast.placements_after, after.cells[at].placements);
            let Some(utilisation) = forecast.utilisation_after else { continue };
            let level = after.level(at);
            prop_assert!((utilisation - level as f64 / 1e3).abs() < 1e-6);
            let standing = match level {
                _ if !matches!(after.cells[at].state, CellState::Active | CellState::Cordoned) => Standing::LeftAlone,
                level if level > high => Standing::Above,
                level if level < low => Standing::Below,
                _ => Standing::InBand,
            };
            prop_assert_eq!(forecast.standing, Some(standing));
            prop_assert_eq!(forecast.stuck.is_some(), standing == Standing::Above);
        }
    }

    #[test]
    fn who_is_most_of_the_load_of_a_cell_above_the_band_is_reported(world in a_world(), limits in a_band()) {
        let plan = plan(&world, limits, &[], &RebalanceOptions::default());
        for tenant in &world.tenants {
            let home = world.place(&tenant.cell);
            let part = matches!(world.cells[home].state, CellState::Active | CellState::Cordoned);
            let above = world.cells[home].utilisation.is_some() && world.level(home) > limits.1;
            let most = tenant.load_share.is_some_and(|share| share > 0.5);
            if part && above && most && !tenant.moving && !tenant.expires_soon {
                prop_assert!(plan.hotspots.iter().any(|spot| spot.tenant == tenant.key && spot.cause == HotspotCause::Share));
            }
        }
        for spot in &plan.hotspots {
            prop_assert!(plan.moves.iter().all(|one| one.tenant != spot.tenant));
        }
    }
}
