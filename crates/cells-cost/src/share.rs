//! Who a cell's cost belongs to, and whether it is what AWS says.
//!
//! DynamoDB does not bill by tenant, so a tenant's share is an estimate, and its method is named: stored bytes for storage and
//! backups, consumed units for reads and writes. Capacity that is provisioned and idle belongs to nobody; it stays in the residual,
//! as does everything of tenants that were not measured. Shares round down and the residual is what is left: together they are the
//! total, to the picodollar.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Product, Share, Sum};
use crate::cost::{CostKind, TableCost};
use crate::lanes::{Direction, Lane};
use crate::money::Usd;
use crate::series::Window;
use crate::simulate::run;
use crate::usage::{CellUsage, TenantUnits, TenantUsage};

/// By how much Cost Explorer may differ before a report warns.
pub const MAX_DIFFERENCE: Share = Share::from_percent(10);

/// How shares were made.
pub const METHOD: &str = "storage, recovery and backups by stored bytes; reads by consumed read units; writes, streams and replicas \
     by consumed write units; idle provisioned capacity and what no tenant was measured for is not attributed";

/// How shares were made where nobody metered tenants.
pub const METHOD_BY_BYTES: &str = "everything by stored bytes, for reads and writes are not metered by tenant: who uses much and stores little \
     costs more than this says; idle provisioned capacity and what no tenant was measured for is not attributed";

/// A tenant's estimated part of the cell's cost over the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TenantCost {
    pub tenant: String,
    pub amount: Usd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shares {
    pub method: &'static str,
    /// By name. Together with `residual` exactly the cell's total.
    pub tenants: Vec<TenantCost>,
    pub residual: Usd,
    pub arithmetic: Arithmetic,
}

/// Cost Explorer's amount against the estimate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    pub reported: Usd,
    pub estimated: Usd,
    /// Of the reported amount; positive if the estimate is higher.
    pub difference: Share,
    pub warning: Option<String>,
    pub arithmetic: Vec<Arithmetic>,
}

/// What a table's tenants are measured against, in bytes and thousandths of units.
#[derive(Clone, Copy, Default)]
struct Wholes {
    bytes: u128,
    reads: u128,
    writes: u128,
}

/// `None` without tenants. `tables` are the costs and lanes in the order of the usage's tables.
pub(crate) fn shares<'a>(
    usage: &CellUsage,
    tables: &[(Option<&'a TableCost>, &'a [Lane<'a>])],
    total: Usd,
) -> Option<Shares> {
    if usage.tenants.is_empty() {
        return None;
    }
    let mut by_table: BTreeMap<&str, Vec<&TenantUsage>> = BTreeMap::new();
    for tenant in &usage.tenants {
        by_table.entry(&tenant.table).or_default().push(tenant);
    }
    let mut amounts: BTreeMap<&str, Usd> = BTreeMap::new();
    for (table, (cost, lanes)) in usage.tables.iter().zip(tables) {
        let tenants = by_table.get(table.table.as_str()).map_or(&[][..], Vec::as_slice);
        let wholes = wholes(
            &usage.window,
            table.bytes,
            table.indexes.iter().map(|index| index.bytes),
            lanes,
            tenants,
        );
        for tenant in tenants {
            let amount = cost.iter().flat_map(|cost| &cost.lines).map(|line| {
                let (part, whole) = match line.kind {
                    CostKind::Reads => (tenant.reads.milli(), wholes.reads),
                    CostKind::Writes | CostKind::Streams | CostKind::ReplicaWrites => {
                        (tenant.writes.milli(), wholes.writes)
                    }
                    CostKind::Storage
                    | CostKind::Pitr
                    | CostKind::Backups
                    | CostKind::Restores
                    | CostKind::ReplicaStorage => (tenant.bytes, wholes.bytes),
                };
                part_of(line.amount, part, whole)
            });
            let sum = amounts.entry(&tenant.tenant).or_default();
            *sum = *sum + amount.sum();
        }
    }
    let attributed: Usd = amounts.values().copied().sum();
    let (residual, arithmetic) =
        Sum::default().plus(total).minus(attributed).dollars("not attributed");
    let tenants = amounts
        .into_iter()
        .map(|(tenant, amount)| TenantCost { tenant: tenant.to_owned(), amount })
        .collect();
    let method = match usage.tenant_units {
        TenantUnits::Metered => METHOD,
        TenantUnits::ByStoredBytes => METHOD_BY_BYTES,
    };
    Some(Shares { method, tenants, residual, arithmetic })
}

/// At least what all tenants have together, so that measurements that disagree never attribute more than there is.
fn wholes(
    window: &Window,
    own: u64,
    indexes: impl Iterator<Item = u64>,
    lanes: &[Lane<'_>],
    tenants: &[&TenantUsage],
) -> Wholes {
    let direction = |direction| {
        lanes
            .iter()
            .filter(|lane| lane.direction == direction)
            .map(|lane| used_or_paid(window, lane))
            .sum::<u128>()
    };
    let claimed = |part: fn(&TenantUsage) -> u64| {
        tenants.iter().map(|tenant| u128::from(part(tenant))).sum::<u128>()
    };
    Wholes {
        bytes: (u128::from(own) + indexes.map(u128::from).sum::<u128>()).max(claimed(|t| t.bytes)),
        reads: direction(Direction::Read).max(claimed(|t| t.reads.milli())),
        writes: direction(Direction::Write).max(claimed(|t| t.writes.milli())),
    }
}

/// What was consumed, or could have been of what was provisioned.
fn used_or_paid(window: &Window, lane: &Lane<'_>) -> u128 {
    let consumed = u128::from(lane.consumed_total().milli());
    let provisioned = lane.capacity.map_or(0, |capacity| {
        run(window, &lane.demand, &capacity)
            .capacity
            .iter()
            .map(|units| u128::from(*units) * 60_000)
            .sum()
    });
    consumed.max(provisioned)
}

/// `amount` × `part` ÷ `whole`, rounded down. `part` is at most `whole`.
fn part_of(amount: Usd, part: u64, whole: u128) -> Usd {
    let whole = i128::try_from(whole).unwrap_or(i128::MAX);
    if whole <= 0 {
        return Usd::ZERO;
    }
    // Whole multiples first: the products stay small without losing a digit.
    let (multiples, rest) = (amount.picos() / whole, amount.picos() % whole);
    let part = i128::from(part);
    let small = rest.checked_mul(part).map_or(0, |product| product / whole);
    Usd::from_picos(multiples.saturating_mul(part).saturating_add(small))
}

pub(crate) fn compare(estimated: Usd, reported: Usd) -> Comparison {
    let (difference, line) = Sum::default().plus(estimated).minus(reported).dollars("difference");
    let mut arithmetic = vec![line];
    let share = difference.share_of(reported);
    if reported > Usd::ZERO {
        arithmetic.push(
            Product::of_usd(difference)
                .over_usd(reported)
                .times_percent()
                .number("of what is reported", "%"),
        );
    }
    let too_far = share.millionths().abs() > MAX_DIFFERENCE.millionths()
        || (reported <= Usd::ZERO && difference != Usd::ZERO);
    let warning = too_far.then(|| {
        format!(
            "the estimate differs from Cost Explorer by more than {MAX_DIFFERENCE}: discounts, reserved capacity, the free tier, \
             stale prices or tables that are not the cell's may be why"
        )
    });
    Comparison { reported, estimated, difference: share, warning, arithmetic }
}
