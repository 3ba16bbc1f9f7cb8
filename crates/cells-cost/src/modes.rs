//! Which billing mode, and how much capacity, would have served the same demand for less.
//!
//! Every option is priced over the same window and run against the same demand; the present is one of them. A change is
//! recommended only if it saves [`MIN_SAVING`] of what throughput costs now **and** throttles no more than the present does in the
//! simulation. So a recommendation never costs more than the present, and an option that is not recommended says why.

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Share, Sum, total};
use crate::cost::{Plan, for_a_month, throughput};
use crate::lanes::{Direction, Lane, on_demand_quota};
use crate::money::Usd;
use crate::prices::PriceTable;
use crate::reserved::{Block, Term};
use crate::series::{Units, Window, percentile};
use crate::simulate::{first_minute, needed, run, smallest_unthrottled};
use crate::usage::{Autoscaling, Capacity, Quota, TableClass, TableUsage};

/// What a change must save of the present cost of throughput.
pub const MIN_SAVING: Share = Share::from_percent(10);
/// Shortest window that anything is recommended from.
pub const MIN_MINUTES: u64 = 24 * 60;
/// Least part of the points that must be there.
pub const MIN_COVERAGE: Share = Share::from_percent(90);
/// Shortest window that a reservation of a year is recommended from: a week has every weekday in it.
pub const MIN_RESERVED_MINUTES: u64 = 7 * 24 * 60;
/// The use that right-sized capacity aims at, in percent: AWS's own default for autoscaling.
pub const TARGET_PERCENT: u8 = 70;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Present,
    OnDemand,
    Provisioned,
    ProvisionedReserved(Term),
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Present => f.pad("as it is"),
            Self::OnDemand => f.pad("on demand"),
            Self::Provisioned => f.pad("provisioned, right-sized"),
            Self::ProvisionedReserved(term) => {
                f.pad(&format!("provisioned, right-sized, reserved for {term}"))
            }
        }
    }
}

/// A capacity that fits the demand of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    pub resource: String,
    pub direction: Direction,
    pub capacity: Capacity,
}

/// A way to pay for a table's throughput. Costs are those of throughput alone, replicas' writes included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModeOption {
    pub mode: Mode,
    pub cost: Usd,
    pub month: Usd,
    /// Demand that is throttled in the simulation.
    pub throttled: Units,
    /// Empty on demand.
    pub sizes: Vec<Size>,
    pub reserved_read_blocks: u64,
    pub reserved_write_blocks: u64,
    /// Why it is, or is not, recommended.
    pub note: String,
    pub arithmetic: Vec<Arithmetic>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Saves so much in 30 days, and so much of the present cost of throughput.
    Change {
        to: Mode,
        saving_month: Usd,
        saving: Share,
    },
    Keep {
        why: String,
    },
    /// Nothing is recommended: the window is short, or has holes.
    TooLittleData {
        why: String,
    },
    /// Nothing is recommended: a part of the cost is not known.
    NotPriced {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModeFinding {
    pub verdict: Verdict,
    /// The present first.
    pub options: Vec<ModeOption>,
}

/// Why too little is known, if it is: the window is short, or has holes.
pub(crate) fn too_little(window: &Window, lanes: &[Lane<'_>]) -> Option<String> {
    if window.minutes() < MIN_MINUTES {
        return Some(format!(
            "the window has {} minutes; at least {MIN_MINUTES} are needed",
            window.minutes()
        ));
    }
    let points = i128::from(window.points);
    lanes.iter().find_map(|lane| {
        let coverage = Share::of(lane.known() as i128, points);
        (coverage < MIN_COVERAGE).then(|| {
            format!(
                "{} of the points of {}s of {} are there; at least {MIN_COVERAGE} are needed",
                coverage, lane.direction, lane.resource
            )
        })
    })
}

/// Which replica's Region has no prices of a class, if one has none.
pub(crate) fn not_priced(
    prices: &PriceTable,
    table: &TableUsage,
    class: TableClass,
) -> Option<String> {
    let known =
        |region: &&String| prices.region(region).and_then(|region| region.class(class)).is_some();
    let unknown = table.replicas.iter().find(|region| !known(region))?;
    Some(format!("no prices of {class} are known for the replica in {unknown}"))
}

/// `None` if the Region, or the table's class in it, has no prices.
pub(crate) fn finding(
    prices: &PriceTable,
    window: &Window,
    quota: &Quota,
    table: &TableUsage,
    lanes: &[Lane<'_>],
) -> Option<ModeFinding> {
    let compared = Compared { prices, window, quota, table, lanes };
    let present_plan = Plan::present(lanes);
    let present = compared.option(Mode::Present, &present_plan)?;
    if let Some(why) = too_little(window, lanes) {
        return Some(ModeFinding {
            verdict: Verdict::TooLittleData { why },
            options: vec![present],
        });
    }
    if let Some(why) = not_priced(prices, table, table.class) {
        return Some(ModeFinding { verdict: Verdict::NotPriced { why }, options: vec![present] });
    }
    let mut options = vec![present];
    if present_plan != Plan::OnDemand {
        options.push(compared.option(Mode::OnDemand, &Plan::OnDemand)?);
    }
    let sized = Plan::Provisioned(lanes.iter().map(|lane| compared.right_size(lane)).collect());
    let provisioned = compared.option(Mode::Provisioned, &sized)?;
    for term in Term::ALL {
        options.extend(compared.reserved(term, &sized, &provisioned));
    }
    options
        .insert(options.len().min(if present_plan == Plan::OnDemand { 1 } else { 2 }), provisioned);
    let verdict = compared.judge(&mut options);
    Some(ModeFinding { verdict, options })
}

struct Compared<'a> {
    prices: &'a PriceTable,
    window: &'a Window,
    quota: &'a Quota,
    table: &'a TableUsage,
    lanes: &'a [Lane<'a>],
}

impl Compared<'_> {
    fn option(&self, mode: Mode, plan: &Plan) -> Option<ModeOption> {
        let priced =
            throughput(self.prices, self.window, self.table, self.lanes, self.table.class, plan)?;
        let mut arithmetic: Vec<Arithmetic> =
            priced.lines.iter().map(|line| line.arithmetic.clone()).collect();
        let (cost, cost_line) = total("throughput", priced.lines.iter().map(|line| line.amount));
        let (month, month_line) = for_a_month(cost, self.window).dollars("for 30 days");
        arithmetic.extend([cost_line, month_line]);
        Some(ModeOption {
            mode,
            cost,
            month,
            throttled: self.throttled(plan),
            sizes: self.sizes(plan),
            reserved_read_blocks: 0,
            reserved_write_blocks: 0,
            note: String::new(),
            arithmetic,
        })
    }

    fn sizes(&self, plan: &Plan) -> Vec<Size> {
        let Plan::Provisioned(capacities) = plan else { return vec![] };
        self.lanes
            .iter()
            .zip(capacities)
            .map(|(lane, capacity)| Size {
                resource: lane.resource.clone(),
                direction: lane.direction,
                capacity: *capacity,
            })
            .collect()
    }

    /// Demand that is throttled in the simulation: on demand, what exceeds the quota.
    fn throttled(&self, plan: &Plan) -> Units {
        let milli = self.lanes.iter().enumerate().fold(0u64, |sum, (i, lane)| {
            let throttled = match plan {
                Plan::Provisioned(capacities) => {
                    capacities.get(i).map_or(0, |c| run(self.window, &lane.demand, c).throttled)
                }
                Plan::OnDemand => {
                    let most = on_demand_quota(self.quota, lane.direction).saturating_mul(60_000);
                    lane.demand
                        .iter()
                        .fold(0, |sum: u64, milli| sum.saturating_add(milli.saturating_sub(most)))
                }
            };
            sum.saturating_add(throttled)
        });
        Units::from_milli(milli)
    }

    /// The cheapest capacity that throttles nothing: fixed, or scaling from the lowest minimum that does.
    fn right_size(&self, lane: &Lane<'_>) -> Capacity {
        let target = u64::from(TARGET_PERCENT);
        let mut sorted = lane.demand.clone();
        sorted.sort_unstable();
        let needed_at =
            |percent| needed(percentile(&sorted, percent).milli().saturating_mul(60), target);
        let fixed = smallest_unthrottled(self.window, &lane.demand).max(needed_at(99));
        let fixed = Capacity { units: fixed, autoscaling: None };
        let max = needed_at(100);
        let first = needed(lane.demand.first().copied().unwrap_or(0), target);
        let scaled = [10, 50, 90, 99].into_iter().find_map(|percent| {
            let min = needed_at(percent).min(max);
            let autoscaling = Autoscaling { min, max, target_percent: TARGET_PERCENT };
            let capacity =
                Capacity { units: first.clamp(min, max), autoscaling: Some(autoscaling) };
            let run = run(self.window, &lane.demand, &capacity);
            (run.throttled == 0)
                .then(|| (run.billed_unit_minutes(first_minute(self.window)), capacity))
        });
        match scaled {
            Some((unit_minutes, capacity))
                if unit_minutes < fixed.units.saturating_mul(self.window.minutes()) =>
            {
                capacity
            }
            _ => fixed,
        }
    }

    /// `None` where nothing can be reserved, or no price is known.
    fn reserved(&self, term: Term, plan: &Plan, unreserved: &ModeOption) -> Option<ModeOption> {
        let Plan::Provisioned(capacities) = plan else { return None };
        if self.table.class != TableClass::Standard {
            return None;
        }
        let region = self.prices.region(&self.table.region)?;
        let reserved = region.reserved.as_ref()?;
        let mut option = ModeOption {
            mode: Mode::ProvisionedReserved(term),
            arithmetic: vec![],
            ..unreserved.clone()
        };
        // What cannot be reserved costs what it costs without.
        let mut amounts = vec![];
        let priced =
            throughput(self.prices, self.window, self.table, self.lanes, self.table.class, plan)?;
        let lines_in_order = priced.lines.iter();
        let reservable = |lane: &Lane<'_>| !lane.replicated;
        let names: Vec<String> = self
            .lanes
            .iter()
            .filter(|l| reservable(l))
            .map(|l| format!("{}s of {}", l.direction, l.resource))
            .collect();
        for line in lines_in_order.filter(|line| !names.contains(&line.arithmetic.what)) {
            amounts.push(line.amount);
            option.arithmetic.push(line.arithmetic.clone());
        }
        for direction in [Direction::Read, Direction::Write] {
            let block = Block::of(&region.standard, reserved, term, direction)?;
            let best = block.best(&self.hours(direction, capacities, reservable));
            amounts.push(best.cost);
            option.arithmetic.extend(best.arithmetic);
            match direction {
                Direction::Read => option.reserved_read_blocks = best.blocks,
                Direction::Write => option.reserved_write_blocks = best.blocks,
            }
        }
        if option.reserved_read_blocks + option.reserved_write_blocks == 0 {
            return None;
        }
        let (cost, cost_line) = total("throughput", amounts);
        let (month, month_line) = for_a_month(cost, self.window).dollars("for 30 days");
        option.arithmetic.extend([cost_line, month_line]);
        (option.cost, option.month) = (cost, month);
        Some(option)
    }

    /// The billed capacity of each hour, summed over the lanes of a direction that can be reserved.
    fn hours(
        &self,
        direction: Direction,
        capacities: &[Capacity],
        reservable: impl Fn(&Lane<'_>) -> bool,
    ) -> Vec<(u64, u64)> {
        let mut hours: Vec<(u64, u64)> = vec![];
        for (lane, capacity) in self
            .lanes
            .iter()
            .zip(capacities)
            .filter(|(lane, _)| lane.direction == direction && reservable(lane))
        {
            for (i, (units, minutes)) in run(self.window, &lane.demand, capacity)
                .hours(first_minute(self.window))
                .enumerate()
            {
                match hours.get_mut(i) {
                    Some(hour) => hour.0 = hour.0.saturating_add(units),
                    None => hours.push((units, minutes)),
                }
            }
        }
        hours
    }

    /// Notes for each option why it is not recommended, and picks the cheapest that is.
    fn judge(&self, options: &mut [ModeOption]) -> Verdict {
        let Some((present, others)) = options.split_first_mut() else {
            return Verdict::Keep { why: "there is nothing to compare".into() };
        };
        let mut best: Option<(usize, Usd, Share)> = None;
        for (i, option) in others.iter_mut().enumerate() {
            let saving_month = present.month - option.month;
            let saving = (present.cost - option.cost).share_of(present.cost);
            let (_, line) =
                Sum::default().plus(present.month).minus(option.month).dollars("saving in 30 days");
            option.arithmetic.push(line);
            let objection = self.objection(present, option, saving);
            option.note = objection.clone().unwrap_or_else(|| format!("would save {saving}"));
            if objection.is_none() && best.is_none_or(|(_, most, _)| saving_month > most) {
                best = Some((i, saving_month, saving));
            }
        }
        let Some((i, saving_month, saving)) = best else {
            let why = others
                .iter()
                .map(|o| format!("{}: {}", o.mode, o.note))
                .collect::<Vec<_>>()
                .join("; ");
            return Verdict::Keep { why };
        };
        let Some(chosen) = others.get_mut(i) else {
            return Verdict::Keep { why: "there is nothing to compare".into() };
        };
        chosen.note = format!("recommended: saves {saving}");
        Verdict::Change { to: chosen.mode, saving_month, saving }
    }

    fn objection(
        &self,
        present: &ModeOption,
        option: &ModeOption,
        saving: Share,
    ) -> Option<String> {
        if option.throttled > present.throttled {
            return Some(format!(
                "would throttle {} units of demand in the simulation, {} as it is",
                option.throttled, present.throttled
            ));
        }
        let over = option.sizes.iter().find(|size| {
            size.capacity.autoscaling.map_or(size.capacity.units, |scaling| scaling.max)
                > on_demand_quota(self.quota, size.direction)
        });
        if let Some(size) = over {
            return Some(format!(
                "needs more {} capacity of {} than the quota",
                size.direction, size.resource
            ));
        }
        if matches!(option.mode, Mode::ProvisionedReserved(_))
            && self.window.minutes() < MIN_RESERVED_MINUTES
        {
            return Some(
                "a reservation binds for a year at least, and the window is shorter than a week"
                    .into(),
            );
        }
        if option.cost > present.cost {
            return Some(format!("costs {} more", Share::from_millionths(-saving.millionths())));
        }
        (saving < MIN_SAVING).then(|| format!("saves {saving}, less than {MIN_SAVING}"))
    }
}
