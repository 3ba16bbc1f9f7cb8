//! Amounts of money, exact.
//!
//! A request unit costs $0.000000125, and a bill is the sum of millions of them: an amount is a whole number of picodollars
//! (10⁻¹² $), never a float. Sums saturate; the limits of `usage` and `prices` keep every real sum far below that.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Decimals of a picodollar.
pub(crate) const DECIMALS: u32 = 12;
/// The decimals that a rounded amount is shown with.
const SHOWN_DECIMALS: u32 = 4;
/// The most digits that an amount in text may have before the point.
const MAX_WHOLE_DIGITS: usize = 12;

/// US dollars, in whole picodollars (10⁻¹² $).
///
/// `{}` shows four decimals at most (more for less than a cent), `{:#}` every digit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(i128);

/// Text that is no amount of dollars.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an amount of dollars: write digits with at most 12 after the point, such as \"0.00065\""
)]
pub struct NotAnAmount(String);

impl Usd {
    pub const ZERO: Self = Self(0);

    pub const fn from_picos(picos: i128) -> Self {
        Self(picos)
    }

    pub const fn picos(self) -> i128 {
        self.0
    }

    /// Whether `{}` shows every digit.
    pub fn shown_exactly(self) -> bool {
        self.shown_picos() == self.0
    }

    /// How much of `whole` this is; zero of nothing.
    pub fn share_of(self, whole: Self) -> crate::Share {
        crate::Share::of(self.0, whole.0)
    }

    /// What `{}` shows: half a unit of the last decimal rounds away from zero. Less than a cent is shown in full.
    fn shown_picos(self) -> i128 {
        let unit = 10i128.pow(DECIMALS - SHOWN_DECIMALS);
        if self.0.unsigned_abs() < 10u128.pow(DECIMALS - 2) {
            return self.0;
        }
        divide_rounding(self.0, unit).saturating_mul(unit)
    }
}

/// The quotient rounded to the nearest, halves away from zero. `divisor` is positive.
pub(crate) fn divide_rounding(value: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (value / divisor, value % divisor);
    if rest.unsigned_abs() >= divisor.unsigned_abs() - rest.unsigned_abs() {
        quotient + value.signum()
    } else {
        quotient
    }
}

impl Add for Usd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Usd {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Neg for Usd {
    type Output = Self;

    fn neg(self) -> Self {
        Self(self.0.saturating_neg())
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let picos = if f.alternate() { self.0 } else { self.shown_picos() };
        let sign = if picos < 0 { "-" } else { "" };
        let unit = 10u128.pow(DECIMALS);
        let decimals = format!("{:012}", picos.unsigned_abs() % unit);
        let used = decimals.trim_end_matches('0').len().max(2);
        let text = format!("{sign}${}.{}", picos.unsigned_abs() / unit, &decimals[..used]);
        f.pad(&text)
    }
}

impl FromStr for Usd {
    type Err = NotAnAmount;

    /// Reads digits, and a point with 1 to 12 digits after it. No sign, no exponent, no currency.
    fn from_str(text: &str) -> Result<Self, NotAnAmount> {
        let refuse = || NotAnAmount(text.chars().take(40).collect());
        let (whole, decimals) = match text.split_once('.') {
            Some((_, "")) => return Err(refuse()),
            Some(parts) => parts,
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let fits = (1..=MAX_WHOLE_DIGITS).contains(&whole.len()) && decimals.len() <= 12;
        if !(fits && digits(whole) && digits(decimals)) {
            return Err(refuse());
        }
        let picos = format!("{whole}{decimals:0<12}").parse().map_err(|_| refuse())?;
        Ok(Self(picos))
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// As text with every digit: a reader's floats would lose some.
impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(text: &str) -> Usd {
        text.parse().unwrap()
    }

    #[test]
    fn reads_exactly_and_shows_what_an_operator_wants() {
        for (text, shown, exact) in [
            ("46.8", "$46.80", "$46.80"),
            ("0.000000125", "$0.000000125", "$0.000000125"),
            ("12.34565", "$12.3457", "$12.34565"),
            ("0.01", "$0.01", "$0.01"),
            ("0", "$0.00", "$0.00"),
            ("999999999999.999999999999", "$1000000000000.00", "$999999999999.999999999999"),
        ] {
            assert_eq!(
                (format!("{}", usd(text)), format!("{:#}", usd(text))),
                (shown.into(), exact.into())
            );
        }
        assert_eq!((-usd("1.5")).to_string(), "-$1.50");
        assert_eq!((-usd("12.34565")).to_string(), "-$12.3457");
    }

    #[test]
    fn refuses_what_is_no_amount() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "$1",
            "1,5",
            "0.0000000000001",
            "1234567890123",
            "١",
        ] {
            assert!(text.parse::<Usd>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sums_saturate() {
        assert_eq!(Usd(i128::MAX) + Usd(1), Usd(i128::MAX));
        assert_eq!(-Usd(i128::MIN), Usd(i128::MAX));
        assert!(Usd(i128::MIN).to_string().starts_with("-$"));
    }
}
