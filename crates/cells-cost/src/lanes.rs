//! A lane is one direction of one table or index: what has a capacity, a load and a limit of its own.
//!
//! How full a lane is, whether burst credit carries its peaks, and when it was throttled, is found here.

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Product, Share};
use crate::series::{Rates, Units, Window, sum};
use crate::simulate::{BURST_SECONDS, demand, run};
use crate::usage::{Billing, Capacity, Quota, TableUsage, Throughput};

/// Throttled periods that a report lists: the worst ones.
pub const MAX_THROTTLED_SHOWN: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Read,
    Write,
}

impl Direction {
    pub(crate) fn capacity_unit(self) -> &'static str {
        match self {
            Self::Read => "RCU",
            Self::Write => "WCU",
        }
    }

    pub(crate) fn request_unit(self) -> &'static str {
        match self {
            Self::Read => "RRU",
            Self::Write => "WRU",
        }
    }
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

pub(crate) struct Lane<'a> {
    /// The table's name, or `table/index`.
    pub resource: String,
    pub direction: Direction,
    /// A write of the table itself, where it has replicas: it is priced apart and cannot be reserved.
    pub replicated: bool,
    pub capacity: Option<Capacity>,
    pub consumed: &'a [Option<Units>],
    pub throttled: &'a [u64],
    pub demand: Vec<u64>,
}

impl Lane<'_> {
    pub fn consumed_total(&self) -> Units {
        sum(self.consumed)
    }

    /// Points that were measured.
    pub fn known(&self) -> usize {
        self.consumed.iter().flatten().count()
    }
}

/// The lanes of a table: its reads, its writes, then each index's.
pub(crate) fn lanes<'a>(table: &'a TableUsage, window: &Window) -> Vec<Lane<'a>> {
    let throughput = match table.billing {
        Billing::OnDemand => None,
        Billing::Provisioned(throughput) => Some(throughput),
    };
    let mut lanes = Vec::with_capacity(2 + 2 * table.indexes.len());
    let mut add = |resource: String,
                   index: bool,
                   throughput: Option<Throughput>,
                   load: &'a crate::Load| {
        for direction in [Direction::Read, Direction::Write] {
            let (consumed, throttled, capacity) = match direction {
                Direction::Read => (&load.reads, &load.throttled_reads, throughput.map(|t| t.read)),
                Direction::Write => {
                    (&load.writes, &load.throttled_writes, throughput.map(|t| t.write))
                }
            };
            lanes.push(Lane {
                resource: resource.clone(),
                direction,
                replicated: direction == Direction::Write && !index && !table.replicas.is_empty(),
                capacity,
                consumed,
                throttled,
                demand: demand(window, consumed, throttled),
            });
        }
    };
    add(table.table.clone(), false, throughput, &table.load);
    for index in &table.indexes {
        add(format!("{}/{}", table.table, index.index), true, index.throughput, &index.load);
    }
    lanes
}

/// How full a lane was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LaneFinding {
    /// The table's name, or `table/index`.
    pub resource: String,
    pub direction: Direction,
    /// Units a second that there are at most.
    pub limit: u64,
    pub limit_is: Limit,
    /// Of what was consumed, a second.
    pub rates: Rates,
    /// The 99th percentile of the minutes against the limit: what an assignment policy should see.
    pub utilisation: Share,
    /// The busiest minute against the limit.
    pub peak: Share,
    /// Of provisioned capacity only.
    pub burst: Option<Burst>,
    pub throttling: Option<Throttling>,
    pub arithmetic: Vec<Arithmetic>,
}

/// What a lane is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    Provisioned,
    AutoscalingMaximum,
    OnDemandQuota,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Provisioned => "provisioned",
            Self::AutoscalingMaximum => "autoscaling maximum",
            Self::OnDemandQuota => "on-demand quota",
        })
    }
}

/// Peaks above the capacity at the time, by simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Burst {
    pub minutes_above: u64,
    /// Whether burst credit served all of them.
    pub covered: bool,
    /// The most credit that one minute took.
    pub deepest_credit: Units,
    /// Demand that neither capacity nor credit serves.
    pub uncovered: Units,
    pub uncovered_minutes: u64,
}

/// Requests that were throttled, as measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Throttling {
    pub requests: u64,
    pub periods: usize,
    pub first: String,
    pub last: String,
    /// The worst periods, at most [`MAX_THROTTLED_SHOWN`], in order of time.
    pub worst: Vec<ThrottledPeriod>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThrottledPeriod {
    /// When the period begins, in UTC.
    pub at: String,
    pub requests: u64,
}

pub(crate) fn finding(window: &Window, quota: &Quota, lane: &Lane<'_>) -> LaneFinding {
    let consumed = demand(window, lane.consumed, &[]);
    let rates = Rates::of(&consumed);
    let (limit, limit_is) = match lane.capacity {
        Some(Capacity { autoscaling: Some(scaling), .. }) => {
            (scaling.max, Limit::AutoscalingMaximum)
        }
        Some(Capacity { units, .. }) => (units, Limit::Provisioned),
        None => (on_demand_quota(quota, lane.direction), Limit::OnDemandQuota),
    };
    let of_limit = |rate: Units| Share::of(rate.milli().into(), i128::from(limit) * 1000);
    let unit = match lane.capacity {
        Some(_) => lane.direction.capacity_unit(),
        None => lane.direction.request_unit(),
    };
    let mut arithmetic = vec![
        Product::of_units(rates.p99, &format!("{unit}/s"))
            .over(limit, &format!("{unit}/s"))
            .times_percent()
            .number(format!("{} utilisation, 99th percentile", lane.direction), "%"),
    ];
    let burst = lane.capacity.map(|capacity| {
        arithmetic.push(
            Product::of(capacity.units, unit)
                .times(BURST_SECONDS, "s")
                .number(format!("{} burst credit at most", lane.direction), "units"),
        );
        let run = run(window, &lane.demand, &capacity);
        Burst {
            minutes_above: run.minutes_above,
            covered: run.throttled == 0,
            deepest_credit: Units::from_milli(run.deepest_credit),
            uncovered: Units::from_milli(run.throttled),
            uncovered_minutes: run.throttled_minutes,
        }
    });
    LaneFinding {
        resource: lane.resource.clone(),
        direction: lane.direction,
        limit,
        limit_is,
        rates,
        utilisation: of_limit(rates.p99),
        peak: of_limit(rates.max),
        burst,
        throttling: throttling(window, lane.throttled),
        arithmetic,
    }
}

pub(crate) fn on_demand_quota(quota: &Quota, direction: Direction) -> u64 {
    match direction {
        Direction::Read => quota.read,
        Direction::Write => quota.write,
    }
}

fn throttling(window: &Window, throttled: &[u64]) -> Option<Throttling> {
    let mut periods: Vec<(usize, u64)> =
        throttled.iter().copied().enumerate().filter(|(_, requests)| *requests > 0).collect();
    let (first, last) = (periods.first()?.0, periods.last()?.0);
    let (requests, count) =
        (periods.iter().fold(0u64, |sum, (_, n)| sum.saturating_add(*n)), periods.len());
    periods.sort_by_key(|(i, requests)| (std::cmp::Reverse(*requests), *i));
    periods.truncate(MAX_THROTTLED_SHOWN);
    periods.sort_unstable();
    let worst = periods
        .into_iter()
        .map(|(i, requests)| ThrottledPeriod { at: time_text(window.time(i)), requests })
        .collect();
    let (first, last) = (time_text(window.time(first)), time_text(window.time(last)));
    Some(Throttling { requests, periods: count, first, last, worst })
}

/// A time in UTC.
pub(crate) fn time_text(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}
