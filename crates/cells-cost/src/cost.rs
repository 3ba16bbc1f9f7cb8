//! What a table costs, line by line.
//!
//! A month is 30 days here, so that windows compare; AWS's months have 28 to 31. A line for which no price is known is named in
//! `unpriced` and not guessed. Prices of other Regions are those of the replicas: the storage and the replicated writes of each.

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Product, total};
use crate::lanes::{Direction, Lane};
use crate::money::Usd;
use crate::prices::{ClassPrices, PriceTable, RegionPrices};
use crate::series::{Units, Window};
use crate::simulate::{first_minute, run};
use crate::usage::{Capacity, TableClass, TableUsage};

/// The month of every price "per month": 30 days.
pub const MONTH_MINUTES: u64 = 30 * 24 * 60;
const GB: u64 = 1 << 30;

/// What a line of cost is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CostKind {
    Reads,
    Writes,
    Storage,
    Pitr,
    Backups,
    Restores,
    Streams,
    ReplicaWrites,
    ReplicaStorage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CostLine {
    pub kind: CostKind,
    pub amount: Usd,
    pub arithmetic: Arithmetic,
}

/// A table's cost over the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableCost {
    pub lines: Vec<CostLine>,
    pub total: Usd,
    pub arithmetic: Arithmetic,
    /// The total for 30 days.
    pub month: Usd,
    pub month_arithmetic: Arithmetic,
    /// What could not be priced, and so is not in the total.
    pub unpriced: Vec<String>,
}

/// How a table's throughput is, or would be, paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    OnDemand,
    /// A capacity for each lane, in order.
    Provisioned(Vec<Capacity>),
}

impl Plan {
    /// As it is.
    pub fn present(lanes: &[Lane<'_>]) -> Self {
        let capacities: Vec<Capacity> = lanes.iter().filter_map(|lane| lane.capacity).collect();
        if capacities.len() == lanes.len() { Self::Provisioned(capacities) } else { Self::OnDemand }
    }
}

/// Lines, and the names of what had no price.
#[derive(Default)]
pub(crate) struct Priced {
    pub lines: Vec<CostLine>,
    pub unpriced: Vec<String>,
}

impl Priced {
    fn add(&mut self, kind: CostKind, what: &str, product: Product) {
        let (amount, arithmetic) = product.dollars(what);
        self.lines.push(CostLine { kind, amount, arithmetic });
    }

    /// A line, unless the price is not known. `price` only matters if there is something to pay for.
    fn add_if_used(
        &mut self,
        used: u64,
        kind: CostKind,
        what: &str,
        price: Option<Usd>,
        product: impl FnOnce(Usd) -> Product,
    ) {
        match price {
            _ if used == 0 => {}
            Some(price) => self.add(kind, what, product(price)),
            None => self.unpriced.push(what.to_owned()),
        }
    }
}

/// `None` if the Region, or the class in it, has no prices.
pub(crate) fn table_cost(
    prices: &PriceTable,
    window: &Window,
    table: &TableUsage,
    lanes: &[Lane<'_>],
    class: TableClass,
) -> Option<TableCost> {
    let mut priced = throughput(prices, window, table, lanes, class, &Plan::present(lanes))?;
    let region = prices.region(&table.region)?;
    let here = region.class(class)?;
    let stored =
        table.indexes.iter().fold(table.bytes, |sum, index| sum.saturating_add(index.bytes));
    priced.add(CostKind::Storage, "storage", gb_months(stored, window, here.storage_gb_month));
    extras(&mut priced, window, table, region);
    for replica in &table.replicas {
        let there = prices.region(replica).and_then(|region| region.class(class));
        priced.add_if_used(
            stored,
            CostKind::ReplicaStorage,
            &format!("storage in {replica}"),
            there.map(|p| p.storage_gb_month),
            |price| gb_months(stored, window, price),
        );
    }
    let Priced { lines, unpriced } = priced;
    let (sum, arithmetic) = total("total", lines.iter().map(|line| line.amount));
    let (month, month_arithmetic) = for_a_month(sum, window).dollars("for 30 days");
    Some(TableCost { lines, total: sum, arithmetic, month, month_arithmetic, unpriced })
}

fn extras(priced: &mut Priced, window: &Window, table: &TableUsage, region: &RegionPrices) {
    // Continuous backups are billed by the table's own size; indexes are not in them.
    let protected = if table.pitr { table.bytes } else { 0 };
    priced.add_if_used(
        protected,
        CostKind::Pitr,
        "point-in-time recovery",
        region.pitr_gb_month,
        |price| gb_months(protected, window, price),
    );
    priced.add_if_used(
        table.backup_bytes,
        CostKind::Backups,
        "on-demand backups",
        region.backup_gb_month,
        |price| gb_months(table.backup_bytes, window, price),
    );
    priced.add_if_used(
        table.restored_bytes,
        CostKind::Restores,
        "restores",
        region.restore_gb,
        |price| Product::of(table.restored_bytes, "B").over(GB, "B/GB").times_usd(price),
    );
    priced.add_if_used(
        table.streams_reads,
        CostKind::Streams,
        "streams reads",
        region.streams_read_request,
        |price| Product::of(table.streams_reads, "requests").times_usd(price),
    );
}

/// What reads and writes cost over the window under a plan, replicas included.
pub(crate) fn throughput(
    prices: &PriceTable,
    window: &Window,
    table: &TableUsage,
    lanes: &[Lane<'_>],
    class: TableClass,
    plan: &Plan,
) -> Option<Priced> {
    let here = prices.region(&table.region)?.class(class)?;
    let mut priced = Priced::default();
    for (i, lane) in lanes.iter().enumerate() {
        let amount = Amount::of(window, lane, plan, i);
        let kind = match lane.direction {
            Direction::Read => CostKind::Reads,
            Direction::Write => CostKind::Writes,
        };
        priced.add(
            kind,
            &format!("{}s of {}", lane.direction, lane.resource),
            amount.cost(here, lane),
        );
        if lane.direction == Direction::Read {
            continue;
        }
        for replica in &table.replicas {
            let what = format!("writes of {} replicated to {replica}", lane.resource);
            match prices.region(replica).and_then(|region| region.class(class)) {
                Some(there) => priced.add(CostKind::ReplicaWrites, &what, amount.cost(there, lane)),
                None => priced.unpriced.push(what),
            }
        }
    }
    Some(priced)
}

/// How much of a lane is billed.
enum Amount {
    Requests(Units),
    Fixed { units: u64, minutes: u64 },
    Scaled { unit_minutes: u64 },
}

impl Amount {
    fn of(window: &Window, lane: &Lane<'_>, plan: &Plan, index: usize) -> Self {
        let capacity = match plan {
            Plan::OnDemand => None,
            Plan::Provisioned(capacities) => capacities.get(index),
        };
        match capacity {
            None => Self::Requests(lane.consumed_total()),
            Some(Capacity { units, autoscaling: None }) => {
                Self::Fixed { units: *units, minutes: window.minutes() }
            }
            Some(scaled) => {
                let run = run(window, &lane.demand, scaled);
                Self::Scaled { unit_minutes: run.billed_unit_minutes(first_minute(window)) }
            }
        }
    }

    fn cost(&self, prices: &ClassPrices, lane: &Lane<'_>) -> Product {
        let (request, hour) = unit_prices(prices, lane);
        let unit = lane.direction.capacity_unit();
        match *self {
            Self::Requests(units) => {
                Product::of_units(units, lane.direction.request_unit()).times_usd(request)
            }
            Self::Fixed { units, minutes } if minutes.is_multiple_of(60) => {
                Product::of(minutes / 60, "h").times(units, unit).times_usd(hour)
            }
            Self::Fixed { units, minutes } => {
                Product::of(minutes, "min").over(60, "min/h").times(units, unit).times_usd(hour)
            }
            Self::Scaled { unit_minutes } => unit_hours(unit_minutes, unit).times_usd(hour),
        }
    }
}

pub(crate) fn unit_hours(unit_minutes: u64, unit: &str) -> Product {
    if unit_minutes.is_multiple_of(60) {
        Product::of(unit_minutes / 60, &format!("{unit}-h"))
    } else {
        Product::of(unit_minutes, &format!("{unit}-min")).over(60, "min/h")
    }
}

/// A lane's price for a request unit and for a capacity unit's hour.
pub(crate) fn unit_prices(prices: &ClassPrices, lane: &Lane<'_>) -> (Usd, Usd) {
    match lane.direction {
        Direction::Read => (prices.read_request, prices.read_capacity_hour),
        Direction::Write if lane.replicated => {
            (prices.replicated_write_request, prices.replicated_write_capacity_hour)
        }
        Direction::Write => (prices.write_request, prices.write_capacity_hour),
    }
}

fn gb_months(bytes: u64, window: &Window, price: Usd) -> Product {
    let product = Product::of(bytes, "B").over(GB, "B/GB");
    let minutes = window.minutes();
    if minutes.is_multiple_of(60) {
        product.times(minutes / 60, "h").over(MONTH_MINUTES / 60, "h/month").times_usd(price)
    } else {
        product.times(minutes, "min").over(MONTH_MINUTES, "min/month").times_usd(price)
    }
}

/// An amount of the window, scaled to 30 days.
pub(crate) fn for_a_month(amount: Usd, window: &Window) -> Product {
    let minutes = window.minutes();
    if minutes.is_multiple_of(60) {
        Product::of_usd(amount).times(MONTH_MINUTES / 60, "h").over(minutes / 60, "h")
    } else {
        Product::of_usd(amount).times(MONTH_MINUTES, "min").over(minutes, "min")
    }
}
