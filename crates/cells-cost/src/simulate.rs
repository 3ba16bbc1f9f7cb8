//! What would have happened under another capacity: burst credit and autoscaling, minute by minute.
//!
//! Demand is what was consumed, plus a unit for each throttled request (nobody knows what it would have taken: at least that).
//!
//! - **Burst credit** ([AWS: burst capacity]): unused capacity of up to 300 seconds is kept and may be spent at once. A minute's
//!   demand is served by that minute's capacity, then by credit; the rest is throttled. Credit starts at nothing, since what was
//!   left before the window is not known: the simulation throttles rather too early than too late.
//! - **Autoscaling** ([AWS: auto scaling], target tracking): up after 2 minutes above the target, to what brings the use back to it;
//!   down after 15 minutes that were 20 points or more below, to what the busiest of them needs. Always within min and max. At most
//!   4 decreases a day (UTC), then one for each hour without a decrease, 27 in all. A change takes effect 2 minutes after its alarm.
//! - **What is billed** is the highest capacity of each hour: the dearest reading of AWS's "per hour of provisioned capacity".
//!
//! [AWS: burst capacity]: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/burst-adaptive-capacity.html
//! [AWS: auto scaling]: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/AutoScaling.html

use crate::series::{Units, Window};
use crate::usage::{Autoscaling, Capacity};

/// Unused capacity that DynamoDB keeps, in seconds of it.
pub const BURST_SECONDS: u64 = 300;
/// Minutes above the target before capacity rises.
pub const SCALE_UP_MINUTES: u32 = 2;
/// Minutes well below the target before capacity falls.
pub const SCALE_DOWN_MINUTES: u32 = 15;
/// How far below the target that is, in percentage points.
pub const SCALE_DOWN_MARGIN: u64 = 20;
/// From an alarm to the new capacity.
pub const APPLY_MINUTES: usize = 2;
/// Decreases of a day (UTC) that need no hour of waiting.
pub const FREE_DECREASES: u32 = 4;
/// All decreases of a day: the free ones and one for each further hour.
pub const MAX_DECREASES: u32 = 27;

/// How a capacity would have fared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Demand that neither capacity nor credit served, in thousandths of a unit.
    pub throttled: u64,
    pub throttled_minutes: u64,
    /// Minutes whose demand was above the capacity.
    pub minutes_above: u64,
    /// The most credit that was in use at once.
    pub deepest_credit: u64,
    /// The capacity of every minute.
    pub capacity: Vec<u64>,
    pub decreases: u32,
}

impl Run {
    /// Unit-minutes that are billed: the highest capacity of each hour for all of the hour.
    pub fn billed_unit_minutes(&self, first_minute: usize) -> u64 {
        self.hours(first_minute)
            .fold(0, |sum: u64, (units, minutes)| sum.saturating_add(units.saturating_mul(minutes)))
    }

    /// The billed capacity of each clock hour and the minutes of it inside of the window.
    pub fn hours(&self, first_minute: usize) -> impl Iterator<Item = (u64, u64)> {
        let (head, rest) = self.capacity.split_at(first_minute.min(self.capacity.len()));
        std::iter::once(head)
            .filter(|hour| !hour.is_empty())
            .chain(rest.chunks(60))
            .map(|hour| (hour.iter().copied().max().unwrap_or(0), hour.len() as u64))
    }
}

/// Minutes of a window before its first full hour.
pub(crate) fn first_minute(window: &Window) -> usize {
    let into = usize::try_from(window.start.rem_euclid(3600) / 60).unwrap_or(0);
    (60 - into) % 60
}

/// Demand a minute, in thousandths of a unit. A longer period is spread evenly over its minutes, the remainder in the last.
pub(crate) fn demand(window: &Window, consumed: &[Option<Units>], throttled: &[u64]) -> Vec<u64> {
    let minutes = u64::from(window.period_seconds / 60).max(1);
    let mut demand = Vec::with_capacity(consumed.len().saturating_mul(minutes as usize));
    for (i, units) in consumed.iter().enumerate() {
        let refused = throttled.get(i).copied().unwrap_or(0).saturating_mul(1000);
        let milli = units.map_or(0, Units::milli).saturating_add(refused);
        for minute in 1..=minutes {
            let rest = if minute == minutes { milli % minutes } else { 0 };
            demand.push(milli / minutes + rest);
        }
    }
    demand
}

/// Runs demand against a capacity, which scales if it has autoscaling.
pub(crate) fn run(window: &Window, demand: &[u64], capacity: &Capacity) -> Run {
    let mut scaler = Scaler::new(window, capacity);
    let mut run = Run { capacity: Vec::with_capacity(demand.len()), ..Run::default() };
    let mut credit = 0u64;
    for (minute, &wanted) in demand.iter().enumerate() {
        let units = scaler.capacity_at(minute);
        run.capacity.push(units);
        let milli = units.saturating_mul(1000);
        let (budget, most_credit) = (milli.saturating_mul(60), milli.saturating_mul(BURST_SECONDS));
        credit = credit.min(most_credit);
        if wanted <= budget {
            credit = most_credit.min(credit.saturating_add(budget - wanted));
        } else {
            let above = wanted - budget;
            let spent = above.min(credit);
            credit -= spent;
            run.minutes_above += 1;
            run.deepest_credit = run.deepest_credit.max(spent);
            run.throttled = run.throttled.saturating_add(above - spent);
            run.throttled_minutes += u64::from(above > spent);
        }
        scaler.observe(minute, wanted, units);
    }
    run.decreases = scaler.decreases;
    run
}

/// The state of target tracking: `capacity_at` and `observe` are called for every minute in turn.
struct Scaler {
    settings: Option<Autoscaling>,
    units: u64,
    /// A change and the minute that it takes effect in.
    pending: Option<(usize, u64)>,
    above: u32,
    below: u32,
    /// The most that a minute of the current run below the target wanted.
    busiest: u64,
    start_minute: i64,
    day: i64,
    decreases_today: u32,
    last_decrease: Option<usize>,
    decreases: u32,
}

impl Scaler {
    fn new(window: &Window, capacity: &Capacity) -> Self {
        let within = |s: &Autoscaling| capacity.units.clamp(s.min.min(s.max), s.max);
        Self {
            settings: capacity.autoscaling,
            units: capacity.autoscaling.as_ref().map_or(capacity.units, within),
            pending: None,
            above: 0,
            below: 0,
            busiest: 0,
            start_minute: window.start.div_euclid(60),
            day: i64::MIN,
            decreases_today: 0,
            last_decrease: None,
            decreases: 0,
        }
    }

    fn capacity_at(&mut self, minute: usize) -> u64 {
        if let Some((at, units)) = self.pending
            && at <= minute
        {
            self.units = units;
            self.pending = None;
        }
        self.units
    }

    fn observe(&mut self, minute: usize, wanted: u64, units: u64) {
        let Some(settings) = self.settings else { return };
        // Both sides in thousandths of a unit a minute, times 100.
        let used = u128::from(wanted) * 100;
        let full = u128::from(units) * 60_000;
        let target = u64::from(settings.target_percent);
        let is_above = used > full * u128::from(target);
        let is_below = used <= full * u128::from(target.saturating_sub(SCALE_DOWN_MARGIN))
            && target > SCALE_DOWN_MARGIN;
        self.above = if is_above { self.above + 1 } else { 0 };
        self.busiest = if is_below { self.busiest.max(wanted) } else { 0 };
        self.below = if is_below { self.below + 1 } else { 0 };
        if self.pending.is_some() {
            return;
        }
        if self.above >= SCALE_UP_MINUTES {
            let units = needed(wanted, target).clamp(settings.min, settings.max);
            if units > self.units {
                self.pending = Some((minute + 1 + APPLY_MINUTES, units));
            }
            self.above = 0;
        } else if self.below >= SCALE_DOWN_MINUTES {
            let units = needed(self.busiest, target).clamp(settings.min, settings.max);
            if units < self.units && self.may_decrease(minute) {
                self.pending = Some((minute + 1 + APPLY_MINUTES, units));
                (self.below, self.busiest) = (0, 0);
            }
        }
    }

    /// Counts the decrease if it is allowed.
    fn may_decrease(&mut self, minute: usize) -> bool {
        let now = self.start_minute.saturating_add(i64::try_from(minute).unwrap_or(i64::MAX));
        let day = now.div_euclid(24 * 60);
        if day != self.day {
            (self.day, self.decreases_today) = (day, 0);
        }
        let rested = self.last_decrease.is_none_or(|last| minute - last >= 60);
        let allowed = self.decreases_today < FREE_DECREASES
            || (rested && self.decreases_today < MAX_DECREASES);
        if allowed {
            self.decreases_today += 1;
            self.decreases += 1;
            self.last_decrease = Some(minute);
        }
        allowed
    }
}

/// Units of which `milli` a minute is `target` percent, rounded up; at least 1.
pub(crate) fn needed(milli: u64, target: u64) -> u64 {
    let units = (u128::from(milli) * 100).div_ceil(60_000 * u128::from(target.max(1)));
    u64::try_from(units).unwrap_or(u64::MAX).max(1)
}

/// The smallest fixed capacity that throttles nothing of the demand: more never throttles more.
pub(crate) fn smallest_unthrottled(window: &Window, demand: &[u64]) -> u64 {
    let mut low = 1;
    let mut high = needed(demand.iter().copied().max().unwrap_or(0), 100);
    while low < high {
        let middle = low + (high - low) / 2;
        let capacity = Capacity { units: middle, autoscaling: None };
        if run(window, demand, &capacity).throttled == 0 {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}
