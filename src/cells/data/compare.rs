//! Sort keys in DynamoDB's order: strings and bytes by their bytes, numbers by value, exactly.

use std::cmp::Ordering;

use aws_sdk_dynamodb::types::AttributeValue;

/// Values of different types, which one table's keys never are, are equal.
pub fn sort_keys(a: &AttributeValue, b: &AttributeValue) -> Ordering {
    match (a, b) {
        (AttributeValue::S(a), AttributeValue::S(b)) => a.as_bytes().cmp(b.as_bytes()),
        (AttributeValue::B(a), AttributeValue::B(b)) => a.as_ref().cmp(b.as_ref()),
        (AttributeValue::N(a), AttributeValue::N(b)) => numbers(a, b),
        _ => Ordering::Equal,
    }
}

/// A decimal of up to 38 digits: no machine number holds it.
struct Decimal {
    negative: bool,
    /// The place of the first digit: its power of ten.
    exponent: i64,
    /// Without zeros at either end.
    digits: Vec<u8>,
}

fn numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (decimal(a), decimal(b));
    let size = |a: &Decimal, b: &Decimal| match (a.digits.is_empty(), b.digits.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.exponent.cmp(&b.exponent).then_with(|| a.digits.cmp(&b.digits)),
    };
    match (a.negative, b.negative) {
        (false, false) => size(&a, &b),
        (true, true) => size(&b, &a),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    }
}

fn decimal(text: &str) -> Decimal {
    let (mantissa, power) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let power: i64 = power.parse().unwrap_or(0);
    let unsigned = mantissa.trim_start_matches(['+', '-']);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let all: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let zeros = all.iter().take_while(|digit| **digit == b'0').count();
    let mut digits = all[zeros..].to_vec();
    while digits.last() == Some(&b'0') {
        digits.pop();
    }
    let place = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    Decimal {
        negative: mantissa.starts_with('-') && !digits.is_empty(),
        exponent: place(whole.len()) - place(zeros) + power,
        digits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_their_order() {
        let sorted = [
            "-1e10",
            "-123.5",
            "-123.45",
            "-1",
            "-0.001",
            "0",
            "1e-5",
            "0.5",
            "1",
            "9",
            "10",
            "10.01",
            "123456789012345678901234567890123456.78",
            "123456789012345678901234567890123456.79",
            "1E37",
        ];
        for (at, a) in sorted.iter().enumerate() {
            for (other, b) in sorted.iter().enumerate() {
                assert_eq!(numbers(a, b), at.cmp(&other), "{a} {b}");
            }
        }
        for (a, b) in [("1", "1.0"), ("100", "1e2"), ("-0", "0"), ("0.0", "0"), ("007", "7")] {
            assert_eq!(numbers(a, b), Ordering::Equal, "{a} {b}");
        }
    }
}
