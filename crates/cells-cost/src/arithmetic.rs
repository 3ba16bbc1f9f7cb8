//! Calculations that show themselves: the text and the result come from the same numbers.
//!
//! A figure that an operator cannot check is a figure that nobody acts on. So a figure is built as a [`Product`] or a [`Sum`] of
//! labelled numbers, and its [`Arithmetic`] carries both the formula with the numbers put in and what came out of it:
//! `720 h × 100 WCU × $0.00065 = $46.80`. The numbers are shown with every digit; a result that is shown rounded says `≈`.

use std::fmt;

use serde::Serialize;

use crate::money::{DECIMALS, Usd, divide_rounding};
use crate::series::Units;

/// A calculation that was made. `Display` gives `what: formula = result`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arithmetic {
    /// What is calculated.
    pub what: String,
    /// The numbers and the signs between them, such as `720 h × 100 WCU × $0.00065`.
    pub formula: String,
    pub result: Outcome,
    /// Whether the result is all of it, not rounded.
    pub exact: bool,
}

/// What a calculation came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Usd(Usd),
    /// A number in thousandths of `unit`.
    Number {
        thousandths: i128,
        unit: String,
    },
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, formula, result, exact } = self;
        let sign = |shown_exactly: bool| if *exact && shown_exactly { '=' } else { '≈' };
        match result {
            Outcome::Usd(usd) => {
                write!(f, "{what}: {formula} {} {usd}", sign(usd.shown_exactly()))
            }
            Outcome::Number { thousandths, unit } => {
                write!(f, "{what}: {formula} {} {} {unit}", sign(true), decimal(*thousandths, 3))
            }
        }
    }
}

/// `value` × 10^-`decimals`, without needless zeros.
pub(crate) fn decimal(value: i128, decimals: u32) -> String {
    let unit = 10u128.pow(decimals);
    let sign = if value < 0 { "-" } else { "" };
    let (whole, part) = (value.unsigned_abs() / unit, value.unsigned_abs() % unit);
    if part == 0 {
        return format!("{sign}{whole}");
    }
    let part = format!("{part:0width$}", width = decimals as usize);
    format!("{sign}{whole}.{}", part.trim_end_matches('0'))
}

/// Numbers multiplied with and divided by each other, kept as a reduced fraction.
pub(crate) struct Product {
    text: String,
    numerator: i128,
    denominator: i128,
    /// Whether the fraction is one of picodollars.
    usd: bool,
}

impl Product {
    pub fn of(value: u64, unit: &str) -> Self {
        Self {
            text: format!("{value} {unit}"),
            numerator: value.into(),
            denominator: 1,
            usd: false,
        }
    }

    pub fn of_units(value: Units, unit: &str) -> Self {
        let mut product = Self {
            text: format!("{value} {unit}"),
            numerator: value.milli().into(),
            denominator: 1,
            usd: false,
        };
        product.divide(1000);
        product
    }

    pub fn of_usd(amount: Usd) -> Self {
        Self { text: format!("{amount:#}"), numerator: amount.picos(), denominator: 1, usd: true }
    }

    pub fn times(mut self, value: u64, unit: &str) -> Self {
        self.text += &format!(" × {value} {unit}");
        self.multiply(value.into());
        self
    }

    pub fn times_usd(mut self, price: Usd) -> Self {
        self.text += &format!(" × {price:#}");
        self.usd = true;
        self.multiply(price.picos());
        self
    }

    /// Division by nothing gives nothing, so that no input can end a report.
    pub fn over(mut self, value: u64, unit: &str) -> Self {
        self.text += &format!(" ÷ {value} {unit}");
        self.divide(value.into());
        self
    }

    /// A share of dollars in dollars: a number.
    pub fn over_usd(mut self, amount: Usd) -> Self {
        self.text += &format!(" ÷ {amount:#}");
        self.usd = false;
        self.divide(amount.picos());
        self
    }

    /// A fraction as percent.
    pub fn times_percent(self) -> Self {
        self.times(100, "%")
    }

    /// Reduces before it multiplies; saturates, which the limits on inputs rule out.
    fn multiply(&mut self, value: i128) {
        let common = gcd(value, self.denominator);
        self.denominator /= common;
        self.numerator = self.numerator.saturating_mul(value / common);
    }

    fn divide(&mut self, value: i128) {
        if value <= 0 {
            self.numerator = 0;
            return;
        }
        let common = gcd(self.numerator, value);
        self.numerator /= common;
        self.denominator = self.denominator.saturating_mul(value / common);
    }

    /// The amount, rounded once, to the picodollar.
    pub fn amount(&self) -> Usd {
        debug_assert!(self.usd, "a product of dollars");
        Usd::from_picos(divide_rounding(self.numerator, self.denominator))
    }

    pub fn dollars(self, what: impl Into<String>) -> (Usd, Arithmetic) {
        let amount = self.amount();
        let exact = self.numerator % self.denominator == 0;
        let result = Outcome::Usd(amount);
        (amount, Arithmetic { what: what.into(), formula: self.text, result, exact })
    }

    pub fn number(self, what: impl Into<String>, unit: &str) -> Arithmetic {
        let numerator = self.numerator.saturating_mul(1000);
        let thousandths = divide_rounding(numerator, self.denominator);
        let exact = numerator % self.denominator == 0;
        let result = Outcome::Number { thousandths, unit: unit.to_owned() };
        Arithmetic { what: what.into(), formula: self.text, result, exact }
    }
}

/// Dollars added up and taken away.
#[derive(Default)]
pub(crate) struct Sum {
    text: String,
    total: Usd,
}

impl Sum {
    pub fn plus(mut self, amount: Usd) -> Self {
        let sign = if self.text.is_empty() { "" } else { " + " };
        self.text += &format!("{sign}{amount:#}");
        self.total = self.total + amount;
        self
    }

    pub fn minus(mut self, amount: Usd) -> Self {
        self.text += &format!(" − {amount:#}");
        self.total = self.total - amount;
        self
    }

    pub fn dollars(self, what: impl Into<String>) -> (Usd, Arithmetic) {
        let formula = if self.text.is_empty() { "$0.00".to_owned() } else { self.text };
        let result = Outcome::Usd(self.total);
        (self.total, Arithmetic { what: what.into(), formula, result, exact: true })
    }
}

/// A sum with the arithmetic of it.
pub(crate) fn total(what: &str, amounts: impl IntoIterator<Item = Usd>) -> (Usd, Arithmetic) {
    amounts.into_iter().fold(Sum::default(), Sum::plus).dollars(what)
}

/// At least 1; of magnitudes.
fn gcd(a: i128, b: i128) -> i128 {
    let (mut a, mut b) = (a.unsigned_abs(), b.unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    i128::try_from(a.max(1)).unwrap_or(1)
}

/// A part of a whole in millionths: a utilisation, a saving. May exceed one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Share(i64);

impl Share {
    pub const fn from_millionths(millionths: i64) -> Self {
        Self(millionths)
    }

    pub const fn from_percent(percent: i64) -> Self {
        Self(percent * 10_000)
    }

    /// `part` of `whole`, rounded to the nearest millionth; zero of nothing. Saturates.
    pub fn of(part: i128, whole: i128) -> Self {
        if whole <= 0 {
            return Self(0);
        }
        // A whole of more than 10^32 loses digits that no millionth shows.
        let shrink = if part.unsigned_abs().max(whole.unsigned_abs()) > 10u128.pow(32) {
            10i128.pow(6)
        } else {
            1
        };
        let scaled = (part / shrink).saturating_mul(1_000_000);
        let millionths = divide_rounding(scaled, (whole / shrink).max(1));
        Self(i64::try_from(millionths).unwrap_or(if part < 0 { i64::MIN } else { i64::MAX }))
    }

    pub const fn millionths(self) -> i64 {
        self.0
    }

    /// 1 is all of it.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} %", decimal(divide_rounding(self.0.into(), 1000), 1)))
    }
}

// Amounts and prices have as many decimals as picodollars do.
const _: () = assert!(DECIMALS == 12);
