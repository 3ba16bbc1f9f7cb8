//! What a cell's DynamoDB tables cost, how full they are, and what would be cheaper.
//!
//! It exists because an operator who is told "switch this table to provisioned capacity" has every right not to believe it. So this
//! crate is pure — a price table and measurements in, findings out; no clock, no network — and every figure of money carries the
//! arithmetic that made it, with the numbers put in.
//!
//! ```text
//!   prices (dated TOML) ─┐          ┌─ lanes: utilisation, burst credit, throttling
//!                        ├─ analyze ┼─ cost: lines, totals          ┌─ modes: on demand / provisioned / reserved
//!   CellUsage (measured)─┘          ├─ recommendations ─────────────┼─ class: Standard / Standard-IA
//!                                   │                               └─ reserved: break-even
//!                                   └─ share: tenants, Cost Explorer
//! ```
//!
//! What holds:
//! - Money is exact ([`Usd`]): no float takes part; each line rounds once, and totals are the sums of their lines.
//! - A price that is not known is never guessed: what it would price is named, and nothing is recommended on it.
//! - A recommendation saves at least [`modes::MIN_SAVING`], throttles no more than the present in the simulation, and needs a day
//!   of nearly complete measurements.
//! - Tenants' shares and the residual are exactly the total.
//! - No input ends in a panic: bad input is refused by [`CellUsage::check`] and [`PriceTable::parse`], naming the field.

#![forbid(unsafe_code)]

mod arithmetic;
pub mod class;
mod cost;
mod lanes;
pub mod modes;
mod money;
mod prices;
mod report;
mod reserved;
mod series;
pub mod share;
pub mod simulate;
#[cfg(test)]
mod simulate_tests;
mod usage;

pub use arithmetic::{Arithmetic, Outcome, Share};
pub use class::ClassFinding;
pub use cost::{CostKind, CostLine, MONTH_MINUTES, TableCost};
pub use lanes::{
    Burst, Direction, LaneFinding, Limit, MAX_THROTTLED_SHOWN, ThrottledPeriod, Throttling,
};
pub use modes::{Mode, ModeFinding, ModeOption, Size, Verdict};
pub use money::{NotAnAmount, Usd};
pub use prices::{FreeTier, MAX_FILE_BYTES, PriceError, PriceTable, RegionPrices};
pub use report::{Report, TableReport};
pub use reserved::{BLOCK_UNITS, BreakEven, Term};
pub use series::{MAX_UNITS, Rates, Units, Window};
pub use share::{Comparison, Shares, TenantCost};
pub use usage::*;

use crate::lanes::Lane;

/// Analyses a cell. Fails only if the usage does not pass [`CellUsage::check`].
///
/// Takes time in proportion to minutes × lanes, some 50 passes over each: seconds at [`MAX_LANE_MINUTES`], so not for a thread that
/// serves calls.
pub fn analyze(prices: &PriceTable, usage: &CellUsage) -> Result<Report, UsageError> {
    usage.check()?;
    let window = &usage.window;
    let lanes: Vec<Vec<Lane<'_>>> =
        usage.tables.iter().map(|table| lanes::lanes(table, window)).collect();
    let tables: Vec<TableReport> = usage
        .tables
        .iter()
        .zip(&lanes)
        .map(|(table, lanes)| table_report(prices, usage, table, lanes))
        .collect();
    let priced = || tables.iter().filter_map(|table| table.cost.as_ref());
    let (total, total_line) = arithmetic::total("cell", priced().map(|cost| cost.total));
    let (month, month_line) = cost::for_a_month(total, window).dollars("cell, for 30 days");
    let parts: Vec<(Option<&TableCost>, &[Lane<'_>])> = tables
        .iter()
        .map(|table| table.cost.as_ref())
        .zip(lanes.iter().map(Vec::as_slice))
        .collect();
    Ok(Report {
        cell: usage.cell.clone(),
        from: lanes::time_text(window.start),
        until: lanes::time_text(window.time(window.points as usize)),
        prices_as_of: prices.as_of().to_owned(),
        free_tier: prices.free_tier(),
        utilisation: tables
            .iter()
            .flat_map(|t| &t.lanes)
            .map(|lane| lane.utilisation)
            .max()
            .unwrap_or_default(),
        total,
        month,
        arithmetic: vec![total_line, month_line],
        shares: share::shares(usage, &parts, total),
        comparison: usage.reported.map(|reported| share::compare(total, reported.amount)),
        warnings: warnings(&tables),
        tables,
    })
}

fn table_report(
    prices: &PriceTable,
    usage: &CellUsage,
    table: &TableUsage,
    lanes: &[Lane<'_>],
) -> TableReport {
    let window = &usage.window;
    let region = prices.region(&table.region);
    TableReport {
        table: table.table.clone(),
        region: table.region.clone(),
        prices_source: region
            .map(|region| format!("{} (as of {})", region.source(), region.as_of())),
        lanes: lanes.iter().map(|lane| lanes::finding(window, &usage.quota, lane)).collect(),
        cost: cost::table_cost(prices, window, table, lanes, table.class),
        mode: modes::finding(prices, window, &usage.quota, table, lanes),
        class: region.map(|_| class::finding(prices, window, table, lanes)),
        reserved: break_even(prices, table),
    }
}

/// Of a Standard table; on an on-demand one it tells what provisioning could come to.
fn break_even(prices: &PriceTable, table: &TableUsage) -> Vec<BreakEven> {
    let Some(region) = prices.region(&table.region).filter(|_| table.class == TableClass::Standard)
    else {
        return vec![];
    };
    let Some(reserved) = &region.reserved else { return vec![] };
    let pairs =
        Term::ALL.into_iter().flat_map(|term| [(term, Direction::Read), (term, Direction::Write)]);
    pairs
        .filter_map(|(term, direction)| {
            reserved::Block::of(&region.standard, reserved, term, direction)
        })
        .map(|block| block.break_even())
        .collect()
}

fn warnings(tables: &[TableReport]) -> Vec<String> {
    let mut warnings = vec![];
    for table in tables {
        match &table.cost {
            None => warnings.push(format!(
                "{}: no prices are known for {}; it is not in the total",
                table.table, table.region
            )),
            Some(cost) if !cost.unpriced.is_empty() => {
                warnings.push(format!(
                    "{}: not priced, so not in the total: {}",
                    table.table,
                    cost.unpriced.join(", ")
                ));
            }
            Some(_) => {}
        }
        let throttled: u64 = table
            .lanes
            .iter()
            .filter_map(|l| l.throttling.as_ref())
            .map(|t| t.requests)
            .fold(0, u64::saturating_add);
        if throttled > 0 {
            warnings.push(format!("{}: {throttled} requests were throttled", table.table));
        }
    }
    let mut sources: Vec<String> = tables
        .iter()
        .filter_map(|t| Some(format!("prices of {}: {}", t.region, t.prices_source.as_ref()?)))
        .collect();
    sources.sort();
    sources.dedup();
    warnings.extend(sources);
    warnings
}
