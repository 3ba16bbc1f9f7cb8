//! Rebalances, case by case.

use cells_balance::*;

use crate::world::*;

const BAND: Band = Band { low: 0.3, high: 0.7 };

fn plan(cells: &[CellView], tenants: &[TenantView]) -> Plan {
    plan_rebalance(cells, tenants, BAND, &[], &RebalanceOptions::default()).unwrap()
}

fn standing(plan: &Plan, cell: &str) -> Standing {
    plan.cells.iter().find(|one| one.cell == cell).unwrap().standing.unwrap()
}

#[test]
fn inside_the_band_nothing_is_done() {
    let cells = [cell("a", 0.7), cell("b", 0.3)];
    let tenants = [tenant("t1", "a", 0.3, 1), tenant("t2", "a", 0.3, 1)];
    let plan = plan(&cells, &tenants);
    assert_eq!(ways(&plan), []);
    assert_eq!((plan.bytes, plan.bytes_at_least), (0, Some(0)));
    // Measurements are not exact.
    let hardly = [cell("a", 0.7 + TOLERANCE / 2.0), cell("b", 0.3 - TOLERANCE / 2.0)];
    assert_eq!(ways(&self::plan(&hardly, &tenants)), []);
    assert_ne!(ways(&self::plan(&[cell("a", 0.71), cell("b", 0.4)], &tenants)), []);
}

#[test]
fn few_bytes_rather_than_few_moves() {
    // 0.1 has to go: 0.1 with 1,000 bytes, or twice 0.05 with 10 each.
    let cells = [cell("a", 0.8), cell("b", 0.4)];
    let tenants = [
        tenant("large", "a", 0.125, 1_000),
        tenant("small-1", "a", 0.0625, 10),
        tenant("small-2", "a", 0.0625, 10),
        tenant("idle", "a", 0.0, 0),
    ];
    let plan = plan(&cells, &tenants);
    assert_eq!(ways(&plan), [("small-1", "a", "b"), ("small-2", "a", "b")]);
    assert_eq!((plan.bytes, plan.bytes_at_least), (20, Some(20)));
    assert_eq!(standing(&plan, "a"), Standing::InBand);
    assert!((plan.moves[0].relieves.unwrap() - 0.05).abs() < 1e-9);
}

#[test]
fn what_the_last_one_makes_needless_stays() {
    // By density: 0.05 for 1 byte, then 0.15 for 4 bytes, which covers the 0.1 alone.
    let cells = [cell("a", 0.8), cell("b", 0.4)];
    let tenants = [tenant("t1", "a", 0.0625, 1), tenant("t2", "a", 0.1875, 4)];
    assert_eq!(ways(&plan(&cells, &tenants)), [("t2", "a", "b")]);
}

#[test]
fn cells_below_the_band_come_first_as_targets_and_are_filled() {
    let cells = [cell("a", 0.8), cell("b", 0.31), cell("c", 0.2), cell("d", 0.6)];
    let tenants =
        [tenant("t1", "a", 0.125, 10), tenant("t2", "d", 0.05, 20), tenant("t3", "d", 0.05, 10)];
    let plan = plan(&cells, &tenants);
    // The 0.1 of `t1` is all that `c` lacks.
    assert_eq!(ways(&plan), [("t1", "a", "c")]);
    let filled = self::plan(&[cell("c", 0.25), cell("d", 0.6)], &tenants[1..]);
    assert_eq!(ways(&filled), [("t2", "d", "c"), ("t3", "d", "c")]);
    assert_eq!(filled.bytes_at_least, Some(23), "0.03 for 10 bytes, and 0.02 of the 0.03 for 20");
    // With a low end of 0 nothing is filled.
    let band = Band { low: 0.0, high: 0.7 };
    let none = plan_rebalance(&cells[2..], &tenants[1..], band, &[], &RebalanceOptions::default())
        .unwrap();
    assert_eq!(ways(&none), []);
}

#[test]
fn a_cell_below_the_band_comes_before_one_with_more_room() {
    let roomy = CellView { size: 10.0, ..cell("c", 0.5) };
    let tenants = [tenant("t1", "a", 0.125, 10)];
    assert_eq!(ways(&plan(&[cell("a", 0.8), cell("b", 0.2), roomy], &tenants)), [("t1", "a", "b")]);
}

#[test]
fn who_gives_does_not_take() {
    // With 0.4 gone from `a`, it had room for the 0.1 of `b`; and were that 0.4 to stay after all, `a` would be fuller than ever.
    let cells = [cell("a", 0.9), cell("b", 0.75), cell("c", 0.3)];
    let tenants = [tenant("t1", "a", 0.4 / 0.9, 1), tenant("t2", "b", 0.1 / 0.75, 1)];
    let plan = plan(&cells, &tenants);
    assert_eq!((ways(&plan), standing(&plan, "b")), (vec![("t1", "a", "c")], Standing::Above));
}

#[test]
fn who_takes_does_not_give() {
    // With `t1` come to `g`, it could give `t2`; and were `t1` to stay after all, `g` would be below the band.
    let gold = CellView { labels: labels(&[("tier", "gold")]), ..cell("g", 0.55) };
    let golden = TenantView {
        required_labels: labels(&[("tier", "gold")]),
        ..tenant("t1", "a", 0.1 / 0.8, 1)
    };
    let tenants = [golden, tenant("t2", "g", 0.3 / 0.55, 1)];
    let options = RebalanceOptions { hotspot_share: 1.0, ..RebalanceOptions::default() };
    let cells = [cell("a", 0.8), cell("d", 0.25), gold];
    let plan = plan_rebalance(&cells, &tenants, BAND, &[], &options).unwrap();
    assert_eq!((ways(&plan), standing(&plan, "d")), (vec![("t1", "a", "g")], Standing::Below));
}

#[test]
fn the_tenant_that_is_the_hotspot_is_reported_and_stays() {
    let cells = [cell("a", 0.9), cell("b", 0.4)];
    let hot = tenant("hot", "a", 0.6, 1);
    let others = [tenant("t1", "a", 0.15, 500), tenant("t2", "a", 0.1, 500)];
    let plan = plan(&cells, &[hot.clone(), others[0].clone(), others[1].clone()]);
    assert_eq!(ways(&plan), [("t1", "a", "b"), ("t2", "a", "b")], "the others make room");
    let [spot] = &plan.hotspots[..] else { panic!("{:?}", plan.hotspots) };
    assert_eq!((spot.tenant.as_str(), spot.cell.as_str()), ("hot", "a"));
    assert_eq!((spot.share, spot.cause), (0.6, HotspotCause::Share));

    // Where it is alone, the cell stays above the band, and it says why.
    let plan = self::plan(&cells, &[hot]);
    assert_eq!((ways(&plan), plan.hotspots_total), (vec![], 1));
    assert_eq!(standing(&plan, "a"), Standing::Above);
    assert_eq!(plan.cells[0].stuck, Some(Stuck { hotspots: 1, ..Stuck::default() }));
}

#[test]
fn a_tenant_for_whom_no_cell_has_room_is_a_hotspot_unless_it_is_small() {
    // 0.36 of load; the most room is 0.3.
    let cells = [cell("a", 0.9), cell("b", 0.4), cell("c", 0.5)];
    let wide = tenant("wide", "a", 0.4, 1);
    let found = plan(&cells, std::slice::from_ref(&wide));
    assert_eq!(found.hotspots[0].cause, HotspotCause::Room);
    assert_eq!(ways(&found), []);
    // That it had room where it may not go does not count.
    let mut gold = cell("d", 0.3);
    gold.labels = labels(&[("tier", "gold")]);
    gold.region = "eu-central-1".into();
    let found = plan(&[cell("a", 0.9), cell("b", 0.4), gold], std::slice::from_ref(&wide));
    assert_eq!(found.hotspots_total, 1);
    // In full cells nobody is to blame who is small.
    let full = [cell("a", 0.9), cell("b", 0.69)];
    let found = plan(&full, &[tenant("small", "a", 0.09, 1)]);
    assert_eq!((found.hotspots_total, ways(&found)), (0, vec![]));
    assert_eq!(found.cells[0].stuck, Some(Stuck { no_room: 1, ..Stuck::default() }));
    // Who has nowhere to go at all is stuck, not hot.
    let found = plan(&[cell("a", 0.9)], &[wide]);
    assert_eq!((found.hotspots_total, found.cells[0].stuck.unwrap().no_target), (0, 1));
}

#[test]
fn who_stays_is_told_apart() {
    let cells = [cell("a", 0.9), cell("b", 0.4)];
    let moving = TenantView { moving: true, ..tenant("moving", "a", 0.2, 1) };
    let expiring = TenantView { expires_soon: true, ..tenant("expiring", "a", 0.2, 1) };
    let unknown = TenantView { load_share: None, ..tenant("unknown", "a", 0.0, 1) };
    let lately = tenant("lately", "a", 0.2, 1);
    let last = [LastMove { tenant: "lately".into(), source: "c".into(), target: "x".into() }];
    let tenants = [moving, expiring, unknown, lately];
    let plan = plan_rebalance(&cells, &tenants, BAND, &last, &RebalanceOptions::default()).unwrap();
    let stuck =
        Stuck { moving: 1, expiring: 1, load_unknown: 1, moved_lately: 1, ..Stuck::default() };
    assert_eq!((ways(&plan), plan.cells[0].stuck), (vec![], Some(stuck)));
    assert_eq!(plan.left_total, 2);
    assert_eq!(plan.left[0], Left { tenant: "moving".into(), why: LeftAlone::Moving });
    assert_eq!(plan.left[1].why, LeftAlone::ExpiresSoon);
}

#[test]
fn a_load_counts_for_less_in_a_larger_cell() {
    // 0.2 of `a` is 0.05 of `b`, which has room for 0.06.
    let large = CellView { size: 4.0, ..cell("b", 0.64) };
    let tenants = [tenant("t1", "a", 0.25, 1)];
    let plan = plan(&[cell("a", 0.8), large], &tenants);
    assert_eq!(ways(&plan), [("t1", "a", "b")]);
    assert!((plan.cells[1].utilisation_after.unwrap() - 0.69).abs() < 1e-9);
    assert_eq!(ways(&self::plan(&[cell("a", 0.8), cell("b", 0.64)], &tenants)), []);
}

#[test]
fn an_empty_cell_takes_though_it_was_never_measured() {
    let fresh = CellView { utilisation: None, placements: 0, ..cell("b", 0.0) };
    let band = Band { low: 0.0, high: 0.7 };
    let tenants = [tenant("t1", "a", 0.25, 1)];
    let plan = |cells: &[CellView]| {
        plan_rebalance(cells, &tenants, band, &[], &RebalanceOptions::default()).unwrap()
    };
    assert_eq!(ways(&plan(&[cell("a", 0.8), fresh.clone()])), [("t1", "a", "b")]);
    let unmeasured = CellView { placements: 1, ..fresh };
    let stays = plan(&[cell("a", 0.8), unmeasured]);
    assert_eq!((ways(&stays), standing(&stays, "b")), (vec![], Standing::Unknown));
}

#[test]
fn bytes_that_are_not_known_are_guessed_by_items_then_by_the_cell() {
    let cells = [CellView { bytes: Some(5_000), ..cell("a", 0.9) }, cell("b", 0.3)];
    let by_items = TenantView { bytes: None, items: Some(2), ..tenant("items", "a", 0.2, 0) };
    let by_cell = TenantView { bytes: None, ..tenant("cell", "a", 0.2, 0) };
    let plan = plan(&cells, &[by_items, by_cell]);
    assert_eq!(ways(&plan), [("items", "a", "b"), ("cell", "a", "b")]);
    assert_eq!((plan.bytes, plan.bytes_guessed), (2 * ASSUMED_ITEM_BYTES + 500, 2));
    assert_eq!(plan.moves[0].bytes, None);
}

#[test]
fn bad_input_is_refused_by_its_field() {
    let (cells, tenants) = ([cell("a", 0.8), cell("b", 0.4)], [tenant("t1", "a", 0.1, 1)]);
    let refuse = |cells: &[CellView], tenants: &[TenantView], band, share| {
        let options = RebalanceOptions { hotspot_share: share, ..RebalanceOptions::default() };
        plan_rebalance(cells, tenants, band, &[], &options).unwrap_err().to_string()
    };
    for (low, high) in [(-0.1, 0.7), (0.7, 0.7), (0.0, 1e4), (f64::NAN, 0.7), (0.1, f64::NAN)] {
        assert!(refuse(&cells, &tenants, Band { low, high }, 0.5).starts_with("band: "));
    }
    for share in [0.0, 1.1, f64::NAN] {
        assert!(refuse(&cells, &tenants, BAND, share).starts_with("options.hotspot_share "));
    }
    let first = |change: fn(&mut CellView)| {
        let mut cells = cells.clone();
        change(&mut cells[0]);
        refuse(&cells, &tenants, BAND, 0.5)
    };
    assert!(first(|cell| cell.utilisation = Some(-0.1)).contains("cells[\"a\"].utilisation"));
    assert!(first(|cell| cell.utilisation = Some(f64::NAN)).contains("cells[\"a\"].utilisation"));
    assert!(first(|cell| cell.size = 0.0).contains("cells[\"a\"].size"));
    assert!(first(|cell| cell.size = f64::INFINITY).contains("cells[\"a\"].size"));
    assert!(first(|cell| cell.id = "b".into()).contains("\"b\" is there twice"));
    assert!(first(|cell| cell.id = "c".into()).contains("tenants[\"t1\"].cell is \"a\""));
    let twice = [tenants[0].clone(), tenants[0].clone()];
    assert!(refuse(&cells, &twice, BAND, 0.5).contains("\"t1\" is there twice"));
    let share = [TenantView { load_share: Some(1.5), ..tenants[0].clone() }];
    assert!(refuse(&cells, &share, BAND, 0.5).contains("tenants[\"t1\"].load_share"));
}

#[test]
fn extremes_do_not_overflow() {
    let huge = |id: &str, utilisation| CellView {
        size: 1e6,
        bytes: Some(u64::MAX),
        placements: u64::MAX,
        ..cell(id, utilisation)
    };
    let cells = [huge("a", 1_000.0), huge("b", 0.0), huge("c", 999.9)];
    let tenants: Vec<_> = (0..40)
        .map(|at| tenant(&format!("t{at}"), "a", if at < 30 { 0.4 } else { 1.0 }, u64::MAX))
        .collect();
    let band = Band { low: 0.0, high: 500.0 };
    let options = RebalanceOptions { hotspot_share: 1.0, ..RebalanceOptions::default() };
    let plan = plan_rebalance(&cells, &tenants, band, &[], &options).unwrap();
    assert_eq!(plan.bytes, u64::MAX);
    plan_drain("a", &tenants, &cells, &DrainOptions::default()).unwrap();
}
