//! Numbers as bytes that compare as the numbers do, one form for each value: `1`, `1.0` and `10E-1` are the same bytes.
//!
//! Exact for any number of digits; DynamoDB has 38 of them, and magnitudes from 1E-130 to 9.99…E+125.
//!
//! | | first byte | then |
//! | --- | --- | --- |
//! | below zero | 0 | all bits turned: the exponent, the digits; and at last `0xFF` |
//! | zero, with either sign | 1 | nothing |
//! | above zero | 2 | the exponent, the digits |
//!
//! The value is `0.d₁d₂d₃… × 10^exponent` with `d₁ ≠ 0` and no zero at the end; the exponent is four bytes, moved up so that none is
//! below zero. Where one number's digits begin another's, the shorter is the smaller above zero, and below it the larger: there the
//! last byte, larger than any turned digit, says so.

const BELOW_ZERO: u8 = 0;
const ZERO: u8 = 1;
const ABOVE_ZERO: u8 = 2;
const END_BELOW_ZERO: u8 = 0xFF;

/// `None`: it is no decimal number.
pub fn ordered(text: &str) -> Option<Vec<u8>> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let (mantissa, power) = match unsigned.find(['e', 'E']) {
        Some(at) => (unsigned.get(..at)?, unsigned.get(at + 1..)?.parse::<i32>().ok()?),
        None => (unsigned, 0),
    };
    let point = mantissa.find('.').unwrap_or(mantissa.len());
    let mut digits: Vec<u8> = mantissa.bytes().collect();
    if point < digits.len() {
        digits.remove(point);
    }
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    while digits.last() == Some(&b'0') {
        digits.pop();
    }
    let Some(leading) = digits.iter().position(|digit| *digit != b'0') else {
        return Some(vec![ZERO]);
    };
    let place = i64::try_from(point).ok()? - i64::try_from(leading).ok()?;
    let exponent = i32::try_from(place + i64::from(power)).ok()?;
    let raised = exponent.cast_unsigned() ^ (1 << 31);
    let magnitude = raised.to_be_bytes().into_iter().chain(digits.into_iter().skip(leading));
    Some(match negative {
        false => std::iter::once(ABOVE_ZERO).chain(magnitude).collect(),
        true => {
            let turned = magnitude.map(|byte| !byte);
            std::iter::once(BELOW_ZERO).chain(turned).chain([END_BELOW_ZERO]).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_in_the_order_of_their_values() {
        let nines = "9".repeat(38);
        let sorted = [
            format!("-{}E+125", "9.9999999999999999999999999999999999999"),
            format!("-{nines}"),
            "-1E+30".to_owned(),
            "-1234".to_owned(),
            "-123.00000000000000000000000000000000001".to_owned(),
            "-123".to_owned(),
            "-12".to_owned(),
            "-1.5".to_owned(),
            "-1".to_owned(),
            "-0.99".to_owned(),
            "-1E-130".to_owned(),
            "-0.0".to_owned(),
            "1E-130".to_owned(),
            "1.1E-130".to_owned(),
            "0.00099".to_owned(),
            "0.001".to_owned(),
            "0.9".to_owned(),
            "1".to_owned(),
            "9".to_owned(),
            "10".to_owned(),
            "10.1".to_owned(),
            "12".to_owned(),
            "100".to_owned(),
            "12345678901234567890123456789012345677".to_owned(),
            "12345678901234567890123456789012345678".to_owned(),
            nines,
            "1E+38".to_owned(),
            "9.9999999999999999999999999999999999999E+125".to_owned(),
        ];
        for (at, one) in sorted.iter().enumerate() {
            for (other_at, other) in sorted.iter().enumerate() {
                let (a, b) = (ordered(one).unwrap(), ordered(other).unwrap());
                assert_eq!(a.cmp(&b), at.cmp(&other_at), "{one} {other}");
            }
        }
    }

    #[test]
    fn one_value_has_one_form() {
        for same in [
            &["100", "1E+2", "1e2", "0.1E3", "100.000", "+100", "00100"][..],
            &["0", "-0", "0.00", "-0E+7", "0e-130"],
            &["-12.50", "-1250E-2", "-0.125e2", "-012.5"],
            &["1", "1.0", "1.", "10E-1", "1E0"],
            &["0.5", ".5", "5E-1"],
        ] {
            for one in same {
                assert_eq!(ordered(one).unwrap(), ordered(same[0]).unwrap(), "{one}");
            }
        }
    }

    #[test]
    fn what_is_no_number_has_none() {
        for none in [
            "",
            "-",
            "+",
            ".",
            "e5",
            "1e",
            "NaN",
            "0x1",
            "1e99999999999",
            "--1",
            "1.2.3",
            "1 ",
            "١",
        ] {
            assert_eq!(ordered(none), None, "{none}");
        }
    }

    /// `units` × 10^-4, written in one of several ways.
    fn written(units: i64, way: u8) -> String {
        let sign = if units < 0 { "-" } else { "" };
        let size = units.unsigned_abs();
        match way % 4 {
            0 => format!("{sign}{}.{:04}", size / 10_000, size % 10_000),
            1 => format!("{sign}{size}E-4"),
            2 => format!("{sign}000{size}00e-6"),
            _ => format!("{sign}0.{size:020}E+16"),
        }
    }

    proptest! {
        #[test]
        fn order_is_that_of_integers(
            a in -10_000_000_i64..10_000_000, near in -30_i64..30, far in any::<i32>(),
            wide in any::<bool>(), ways in any::<(u8, u8)>(),
        ) {
            let b = if wide { i64::from(far) } else { a + near };
            let (one, other) = (written(a, ways.0), written(b, ways.1));
            prop_assert_eq!(ordered(&one).unwrap().cmp(&ordered(&other).unwrap()), a.cmp(&b), "{} {}", one, other);
        }

        #[test]
        fn all_38_digits_count(digits in "[1-9][0-9]{36}", last in 1_u8..9, power in -130_i32..88) {
            let one = ordered(&format!("{digits}{last}E{power}")).unwrap();
            let more = ordered(&format!("{digits}{}E{power}", last + 1)).unwrap();
            prop_assert!(one < more);
            let below = ordered(&format!("-{digits}{last}E{power}")).unwrap();
            let least = ordered(&format!("-{digits}{}E{power}", last + 1)).unwrap();
            prop_assert!(least < below);
        }
    }
}
