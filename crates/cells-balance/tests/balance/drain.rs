//! Drains, case by case and in any world.

use std::collections::{BTreeMap, HashSet};

use cells_balance::*;
use proptest::prelude::*;

use crate::world::*;

fn plan(tenants: &[TenantView], cells: &[CellView]) -> Plan {
    plan_drain("a", tenants, cells, &DrainOptions::default()).unwrap()
}

/// The cell that is drained, as it is when a drain is planned.
fn drained() -> CellView {
    CellView { state: CellState::Draining, ..cell("a", 0.8) }
}

#[test]
fn the_largest_comes_first_and_goes_where_least_is() {
    let cells = [drained(), cell("b", 0.1), cell("c", 0.3)];
    let tenants = [
        tenant("small", "a", 0.125, 9_000),
        tenant("large", "a", 0.5, 1),
        tenant("middle", "a", 0.25, 1),
        tenant("elsewhere", "b", 1.0, 1),
    ];
    let plan = plan(&tenants, &cells);
    // 0.4 to b (0.5), 0.2 to c (0.5), 0.1 to either: b by its id.
    assert_eq!(ways(&plan), [("large", "a", "b"), ("middle", "a", "c"), ("small", "a", "b")]);
    assert_eq!(plan.spread_by, Some(SpreadBy::Utilisation));
    assert_eq!(plan.bytes, 9_002);
    let after = |at: usize| plan.cells[at].utilisation_after.unwrap();
    assert!((after(0) - 0.1).abs() < 1e-9, "an eighth is nobody's");
    assert!((after(1) - 0.6).abs() < 1e-9 && (after(2) - 0.5).abs() < 1e-9);
    assert_eq!((plan.cells[0].placements_after, plan.cells[1].placements_after), (7, 12));
}

#[test]
fn what_is_not_known_of_loads_is_taken_to_be_even() {
    let cells = [drained(), cell("b", 0.0), cell("c", 0.0)];
    let unknown = |key: &str| TenantView { load_share: None, ..tenant(key, "a", 0.0, 1) };
    let tenants = [unknown("t1"), unknown("t2"), tenant("known", "a", 0.5, 1)];
    let plan = plan(&tenants, &cells);
    // 0.4 for the known one, 0.2 for each of the others.
    assert_eq!(ways(&plan), [("known", "a", "b"), ("t1", "a", "c"), ("t2", "a", "c")]);
}

#[test]
fn without_utilisation_bytes_count_and_without_these_placements() {
    let cells = [
        drained(),
        CellView { utilisation: None, bytes: Some(100), weight: 1, ..cell("b", 0.0) },
        CellView {
            utilisation: Some(0.0),
            bytes: Some(300),
            weight: 10,
            placements: 30,
            ..cell("c", 0.0)
        },
    ];
    let tenants = [tenant("t1", "a", 0.1, 50)];
    let by_bytes = plan(&tenants, &cells);
    assert_eq!(by_bytes.spread_by, Some(SpreadBy::Bytes));
    assert_eq!(ways(&by_bytes), [("t1", "a", "c")], "350/10 is less than 150/1");
    let mut unknown = cells.clone();
    unknown[2].bytes = None;
    let by_number = plan(&tenants, &unknown);
    assert_eq!(by_number.spread_by, Some(SpreadBy::Placements));
    assert_eq!(ways(&by_number), [("t1", "a", "c")], "31/10 is less than 11/1");
    // Of a cell that takes none of them it does not matter.
    unknown[2].state = CellState::Cordoned;
    unknown[1].utilisation = Some(0.1);
    assert_eq!(plan(&tenants, &unknown).spread_by, Some(SpreadBy::Utilisation));
}

#[test]
fn who_cannot_go_anywhere_is_told_why_cell_by_cell() {
    type Change = fn(&mut CellView);
    let reasons: [(Change, &str); 8] = [
        (|cell| cell.state = CellState::Quarantined, "is QUARANTINED"),
        (|cell| cell.weight = 0, "has weight 0"),
        (|cell| cell.schema_group = "two".into(), "its tables are declared otherwise"),
        (|cell| cell.together = false, "no one transaction reaches both cells"),
        (|cell| cell.region = "us-east-1".into(), "is in another region"),
        (|cell| cell.region = "eu-central-1".into(), "is in another region"),
        (|cell| cell.labels.clear(), "lacks the label tier=gold"),
        (|cell| cell.capacity = Some(10), "is full: 10 of 10, with what is planned"),
    ];
    let gold = |id: &str| CellView { labels: labels(&[("tier", "gold")]), ..cell(id, 0.1) };
    let mut cells = vec![drained()];
    for (at, (change, _)) in reasons.iter().enumerate() {
        let mut cell = gold(&format!("b{at}"));
        change(&mut cell);
        cells.push(cell);
    }
    let tenant = TenantView {
        required_labels: labels(&[("tier", "gold")]),
        allowed_regions: vec!["eu-west-1".into(), "eu-central-1".into()],
        ..tenant("t1", "a", 0.5, 1)
    };
    let found = plan(std::slice::from_ref(&tenant), &cells);
    assert_eq!((ways(&found), found.unplaced_total), (vec![], 1));
    let told: Vec<String> =
        found.unplaced[0].refused.iter().map(|one| one.why.to_string()).collect();
    assert_eq!(told, reasons.map(|(_, text)| text.to_owned()));

    // Where other Regions are allowed, it goes to the one that the tenant allows, too.
    let options = DrainOptions { residency: Residency::OtherRegions, ..DrainOptions::default() };
    let elsewhere = plan_drain("a", std::slice::from_ref(&tenant), &cells[..7], &options).unwrap();
    assert_eq!(ways(&elsewhere), [("t1", "a", "b5")]);
    let none = plan_drain("a", &[tenant], &cells[..6], &options).unwrap();
    assert_eq!(none.unplaced[0].refused[4].why, Refusal::RegionNotAllowed);
}

#[test]
fn a_capacity_counts_the_moves_before_and_reasons_are_bounded() {
    let mut cells = vec![drained()];
    cells.extend(
        (0..20).map(|at| CellView { capacity: Some(10), ..cell(&format!("b{at:02}"), 0.1) }),
    );
    cells[7].capacity = Some(12);
    let tenants: Vec<_> = (0..3).map(|at| tenant(&format!("t{at}"), "a", 0.1, 1)).collect();
    let plan = plan(&tenants, &cells);
    assert_eq!(ways(&plan), [("t0", "a", "b06"), ("t1", "a", "b06")]);
    let [unplaced] = &plan.unplaced[..] else { panic!("{:?}", plan.unplaced) };
    assert_eq!(
        (unplaced.tenant.as_str(), unplaced.refused.len(), unplaced.more),
        ("t2", MAX_REFUSALS, 4)
    );
    assert_eq!(unplaced.refused[6].why, Refusal::Full { placements: 12, capacity: 12 });
}

#[test]
fn a_ceiling_is_kept() {
    let cells = [drained(), cell("b", 0.4), CellView { utilisation: None, ..cell("c", 0.0) }];
    let tenants = [tenant("t1", "a", 0.25, 1), tenant("t2", "a", 0.5, 1)];
    let options = |ceiling| DrainOptions { ceiling: Some(ceiling), ..DrainOptions::default() };
    let plan = plan_drain("a", &tenants, &cells, &options(0.7)).unwrap();
    assert_eq!(ways(&plan), [("t1", "a", "b")]);
    let refused = &plan.unplaced[0].refused;
    assert_eq!(refused[0].why.to_string(), "its utilisation would be 0.80, above the ceiling");
    assert_eq!(refused[1].why, Refusal::UtilisationUnknown);
    let refuse = |cells: &[CellView], ceiling| {
        plan_drain("a", &[], cells, &options(ceiling)).unwrap_err().to_string()
    };
    assert!(refuse(&cells, f64::NAN).starts_with("options.ceiling must be above 0"));
    let unknown = [CellView { utilisation: None, ..drained() }];
    assert!(refuse(&unknown, 0.7).contains("the utilisation of \"a\" is not known"));
}

#[test]
fn a_cell_that_is_not_there_is_refused() {
    let refused = plan_drain("x", &[], &[cell("a", 0.1)], &DrainOptions::default());
    assert_eq!(refused, Err(PlanError::UnknownCell("x".into())));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn everybody_goes_where_they_may_or_is_told_why_not(
        world in a_world(),
        residency in a_residency(),
        ceiling in prop::option::of(0.2f64..1.5),
    ) {
        let source = &world.cells[0];
        let ceiling = ceiling.filter(|_| source.utilisation.is_some());
        let options = DrainOptions { residency, ceiling };
        let plan = plan_drain("cell-0", &world.tenants, &world.cells, &options).unwrap();
        let after = world.after(&plan.moves);
        let went: HashSet<&str> = plan.moves.iter().map(|one| one.tenant.as_str()).collect();
        let mut arrived: BTreeMap<&str, u64> = BTreeMap::new();
        plan.moves.iter().for_each(|one| *arrived.entry(&one.target).or_default() += 1);
        for tenant in &world.tenants {
            let left = plan.left.iter().any(|left| left.tenant == tenant.key);
            let unplaced = plan.unplaced.iter().find(|one| one.tenant == tenant.key);
            let mine = tenant.cell == "cell-0";
            prop_assert_eq!(left, mine && (tenant.moving || tenant.expires_soon));
            let in_lists = usize::from(went.contains(&*tenant.key)) + usize::from(unplaced.is_some()) + usize::from(left);
            prop_assert_eq!(in_lists, usize::from(mine), "{}", tenant.key);
            let Some(unplaced) = unplaced else { continue };
            prop_assert_eq!(unplaced.refused.len(), world.cells.len() - 1);
            for refused in &unplaced.refused {
                let target = &world.cells[world.place(&refused.cell)];
                let arrived = arrived.get(&*target.id).copied().unwrap_or(0);
                match &refused.why {
                    Refusal::Full { .. } => prop_assert!(target.placements + arrived >= target.capacity.unwrap()),
                    Refusal::AboveCeiling { utilisation } => prop_assert!(*utilisation > ceiling.unwrap()),
                    Refusal::UtilisationUnknown => prop_assert!(ceiling.is_some() && target.utilisation.is_none()),
                    _ => prop_assert!(!could_take(source, tenant, target, residency), "{refused:?}"),
                }
            }
        }
        for one in &plan.moves {
            let tenant = world.tenants.iter().find(|tenant| tenant.key == one.tenant).unwrap();
            prop_assert!(could_take(source, tenant, &world.cells[world.place(&one.target)], residency), "{one:?}");
        }
        for (at, target) in world.cells.iter().enumerate() {
            let taken = arrived.get(&*target.id).copied().unwrap_or(0);
            prop_assert!(taken == 0 || target.capacity.is_none_or(|most| target.placements + taken <= most));
            let known = world.tenants.iter().filter(|one| one.cell == "cell-0").all(|one| one.load_share.is_some());
            if let (Some(ceiling), true, true) = (ceiling, taken > 0, known) {
                prop_assert!(after.level(at) as f64 / 1e3 <= ceiling + 1e-9);
            }
        }
    }
}
