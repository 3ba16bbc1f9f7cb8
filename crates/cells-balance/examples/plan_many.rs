//! How long plans and a turn of a bulk take: `cargo run -p cells-balance --example plan_many [TENANTS] [CELLS]`.

use std::collections::HashMap;
use std::time::Instant;

use cells_balance::bulk::{Limits, Observed, Purpose};
use cells_balance::*;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let (tenants, cells) = (arguments.next().unwrap_or(100_000), arguments.next().unwrap_or(100));
    let (cell_views, tenant_views) = world(tenants, cells);

    let clock = Instant::now();
    let plan = plan_rebalance(
        &cell_views,
        &tenant_views,
        Band { low: 0.4, high: 0.7 },
        &[],
        &RebalanceOptions::default(),
    )
    .expect("a plan");
    let of = |standing| plan.cells.iter().filter(|cell| cell.standing == Some(standing)).count();
    println!(
        "rebalance: {tenants} tenants in {cells} cells: {} moves, {} bytes (at least {}), {} of {cells} cells in the band, {:?}",
        plan.moves.len(),
        plan.bytes,
        plan.bytes_at_least.unwrap_or(0),
        of(Standing::InBand),
        clock.elapsed()
    );

    let mut all_in_one = tenant_views;
    all_in_one.iter_mut().for_each(|tenant| tenant.cell = "cell-0".into());
    all_in_one.iter_mut().for_each(|tenant| tenant.load_share = Some(1.0 / tenants as f64));
    let clock = Instant::now();
    let plan = plan_drain("cell-0", &all_in_one, &cell_views, &DrainOptions::default());
    let plan = plan.expect("a plan");
    println!(
        "drain: {} moves, {} unplaced, {:?}",
        plan.moves.len(),
        plan.unplaced_total,
        clock.elapsed()
    );

    let clock = Instant::now();
    let purpose = Purpose::Drain { cell: "cell-0".into() };
    let mut bulk = Bulk::new("bulk-1", purpose, plan.moves, Limits::default()).expect("a bulk");
    let changes = bulk.take_changes();
    let sizes = changes.chunks.iter().map(|chunk| serde_json::to_vec(chunk).expect("JSON").len());
    println!(
        "bulk: {} chunks, {} bytes the longest, {:?}",
        changes.chunks.len(),
        sizes.max().unwrap_or(0),
        clock.elapsed()
    );
    let id = |bulk: &str, tenant: &str, attempt: u32| format!("{bulk}-{tenant}-{attempt}");
    let clock = Instant::now();
    let steps = bulk.next(&HashMap::<String, Observed>::new(), &id);
    println!("next: {} steps, {:?}", steps.len(), clock.elapsed());
}

/// Cells of which a third is above the band and a third below it; the same at each run.
fn world(tenants: usize, cells: usize) -> (Vec<CellView>, Vec<TenantView>) {
    let mut state = 1u64;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as f64 / f64::from(1u32 << 31)
    };
    let per_cell = tenants.div_ceil(cells);
    let cell = |at: usize| CellView {
        id: format!("cell-{at}"),
        region: "eu-west-1".into(),
        labels: [].into(),
        state: CellState::Active,
        placements: per_cell as u64,
        capacity: None,
        weight: 100,
        utilisation: Some([0.9, 0.55, 0.2][at % 3]),
        size: 1.0,
        bytes: Some(per_cell as u64 * 1_000_000),
        schema_group: "one".into(),
        together: true,
    };
    let mut tenant = |at: usize| TenantView {
        key: format!("customer-{at}"),
        cell: format!("cell-{}", at % cells),
        bytes: Some((draw() * 2e6) as u64),
        load_share: Some(draw() * 2.0 / per_cell as f64),
        ..TenantView::default()
    };
    ((0..cells).map(cell).collect(), (0..tenants).map(&mut tenant).collect())
}
