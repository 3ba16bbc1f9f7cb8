//! Reserved capacity: 100 units for one or three years, part of it paid at once.
//!
//! It is bought by payer account and Region, and covers single-Region capacity of Standard tables: no on-demand table, no
//! Standard-IA, no replicated writes. Here it is weighed against one table's capacity; what is bought already is not known.

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Product, Share, Sum};
use crate::cost::unit_hours;
use crate::lanes::Direction;
use crate::money::Usd;
use crate::prices::{ClassPrices, ReservedPrices, TermPrices};

/// Units that one reservation holds.
pub const BLOCK_UNITS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    OneYear,
    ThreeYears,
}

impl Term {
    pub const ALL: [Self; 2] = [Self::OneYear, Self::ThreeYears];

    /// Of 365 days.
    pub const fn hours(self) -> u64 {
        match self {
            Self::OneYear => 365 * 24,
            Self::ThreeYears => 3 * 365 * 24,
        }
    }
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::OneYear => "1 year",
            Self::ThreeYears => "3 years",
        })
    }
}

/// What 100 reserved units of one direction cost.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    upfront: Usd,
    hour: Usd,
    /// What a unit costs an hour without.
    unit_hour: Usd,
    term: Term,
    direction: Direction,
}

impl Block {
    pub fn of(
        prices: &ClassPrices,
        reserved: &ReservedPrices,
        term: Term,
        direction: Direction,
    ) -> Option<Self> {
        let TermPrices { read_upfront, read_hour, write_upfront, write_hour } = match term {
            Term::OneYear => reserved.one_year?,
            Term::ThreeYears => reserved.three_years?,
        };
        let (upfront, hour, unit_hour) = match direction {
            Direction::Read => (read_upfront, read_hour, prices.read_capacity_hour),
            Direction::Write => (write_upfront, write_hour, prices.write_capacity_hour),
        };
        Some(Self { upfront, hour, unit_hour, term, direction })
    }

    fn upfront_share(&self, blocks: u64, minutes: u64) -> Product {
        Product::of(blocks, "blocks")
            .times(minutes, "min")
            .over(self.term.hours() * 60, "min")
            .times_usd(self.upfront)
    }

    fn hourly(&self, blocks: u64, minutes: u64) -> Product {
        Product::of(blocks, "blocks").times(minutes, "min").over(60, "min/h").times_usd(self.hour)
    }

    fn unreserved(&self, unit_minutes: u64) -> Product {
        unit_hours(unit_minutes, self.direction.capacity_unit()).times_usd(self.unit_hour)
    }

    /// The number of blocks that costs least for the hours (billed units, minutes), and what all of it then costs.
    pub fn best(&self, hours: &[(u64, u64)]) -> Reservation {
        let minutes = hours.iter().map(|(_, minutes)| minutes).sum();
        let price = self.upfront_share(1, minutes).amount() + self.hourly(1, minutes).amount();
        // Each further block is used less than the one before: so those that pay come first.
        let (mut low, mut high) =
            (0, hours.iter().map(|(units, _)| *units).max().unwrap_or(0) / BLOCK_UNITS + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let used = covered(hours, middle + 1) - covered(hours, middle);
            if self.unreserved(used).amount() > price {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let blocks = low;
        let rest = covered(hours, u64::MAX / BLOCK_UNITS) - covered(hours, blocks);
        let name = self.direction;
        let mut arithmetic = vec![];
        let mut cost = Usd::ZERO;
        let mut add = |(amount, line): (Usd, Arithmetic)| {
            cost = cost + amount;
            arithmetic.push(line);
        };
        if blocks > 0 {
            add(self
                .upfront_share(blocks, minutes)
                .dollars(format!("reserved {name} capacity, share of the upfront price")));
            add(self
                .hourly(blocks, minutes)
                .dollars(format!("reserved {name} capacity, by the hour")));
        }
        add(self.unreserved(rest).dollars(format!("{name} capacity beyond")));
        Reservation { blocks, cost, arithmetic }
    }

    pub fn break_even(&self) -> BreakEven {
        let (upfront_hour, upfront_line) = Product::of_usd(self.upfront)
            .over(self.term.hours(), "h")
            .dollars("upfront price, for an hour");
        let (effective, effective_line) = Sum::default()
            .plus(upfront_hour)
            .plus(self.hour)
            .dollars("100 reserved units, for an hour");
        let (full, full_line) = Product::of(BLOCK_UNITS, self.direction.capacity_unit())
            .times_usd(self.unit_hour)
            .dollars("100 units without, for an hour");
        let (saved, saved_line) =
            Sum::default().plus(full).minus(self.hour).dollars("saved by an hour of full use");
        let share_line = Product::of_usd(effective)
            .over_usd(full)
            .times_percent()
            .number("pays from a use of", "%");
        let hours_line = Product::of_usd(self.upfront)
            .over_usd(saved)
            .number("upfront price is back after", "h of full use");
        let hours = u64::try_from(self.upfront.picos().div_euclid(saved.picos().max(1)))
            .unwrap_or(u64::MAX);
        BreakEven {
            term: self.term,
            direction: self.direction,
            use_share: effective.share_of(full),
            full_hours: (saved > Usd::ZERO).then_some(hours),
            arithmetic: vec![
                upfront_line,
                effective_line,
                full_line,
                share_line,
                saved_line,
                hours_line,
            ],
        }
    }
}

/// Unit-minutes that so many blocks cover.
fn covered(hours: &[(u64, u64)], blocks: u64) -> u64 {
    let units_covered = blocks.saturating_mul(BLOCK_UNITS);
    hours.iter().fold(0, |sum: u64, (units, minutes)| {
        sum.saturating_add((*units).min(units_covered).saturating_mul(*minutes))
    })
}

pub(crate) struct Reservation {
    pub blocks: u64,
    pub cost: Usd,
    pub arithmetic: Vec<Arithmetic>,
}

/// From when 100 reserved units cost less than 100 units by the hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BreakEven {
    pub term: Term,
    pub direction: Direction,
    /// Of the term's hours in which the 100 units must be provisioned.
    pub use_share: Share,
    /// Whole hours of full use after which the upfront price is back; `None` if it never is.
    pub full_hours: Option<u64>,
    pub arithmetic: Vec<Arithmetic>,
}
