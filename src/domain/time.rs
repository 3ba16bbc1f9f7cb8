//! Wall-clock times, as stored and shown. No wall clock takes part in safety.

use serde::{Deserialize, Serialize};

/// A moment in milliseconds since 1970-01-01T00:00:00Z. Between the years 1 and 9999, so that every value can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999Z: what protobuf allows, and what many write for "never".
const MIN_MILLIS: i64 = -62_135_596_800_000;
const MAX_MILLIS: i64 = 253_402_300_799_999;

/// Times are read and written as civil times of UTC: the calendar library's own timestamps end a day before the year 9999 does.
const EPOCH: jiff::civil::DateTime = jiff::civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

impl Timestamp {
    /// `None` outside of the years 1 to 9999.
    pub fn from_millis(millis: i64) -> Option<Self> {
        (MIN_MILLIS..=MAX_MILLIS).contains(&millis).then_some(Self(millis))
    }

    pub fn from_seconds(seconds: i64) -> Option<Self> {
        seconds.checked_mul(1000).and_then(Self::from_millis)
    }

    /// The system clock's time. Only the composition root calls this; everything else is handed a time.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    pub fn millis(self) -> i64 {
        self.0
    }

    /// Whole seconds, rounded down.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Whole seconds as what expires is compared with: 0 before 1970.
    pub fn unix_seconds(self) -> u64 {
        u64::try_from(self.seconds()).unwrap_or(0)
    }

    /// The time since another one; none where that comes later, as clocks may go back.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        let millis = self.0.saturating_sub(earlier.0);
        std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// Saturates at the end of the year 9999.
    pub fn plus(self, duration: std::time::Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis).min(MAX_MILLIS))
    }

    /// Reads ISO 8601 as other people's routers write it: with `Z`, with an offset, or without a zone, which is taken as UTC.
    /// `None` where it is not a time.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let millis = match text.parse::<jiff::Timestamp>() {
            Ok(zoned) => zoned.as_millisecond(),
            Err(_) => {
                let civil = text.strip_suffix(['Z', 'z']).unwrap_or(text);
                let civil = civil.parse::<jiff::civil::DateTime>().ok()?;
                i64::try_from(civil.duration_since(EPOCH).as_millis()).ok()?
            }
        };
        Self::from_millis(millis)
    }
}

impl std::fmt::Display for Timestamp {
    /// ISO 8601 in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match EPOCH.checked_add(jiff::SignedDuration::from_millis(self.0)) {
            Ok(civil) => write!(f, "{civil:.3}Z"),
            // Unreachable: the constructors keep within what the calendar library can write.
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn reads_times_with_and_without_a_zone() {
        let expected = Timestamp::from_millis(1_769_860_800_123);
        for text in [
            "2026-01-31T12:00:00.123Z",
            "2026-01-31T12:00:00.123",
            "2026-01-31T12:00:00.123456",
            "2026-01-31 12:00:00.123",
            "2026-01-31T12:00:00.123+00:00",
            "2026-01-31T14:00:00.123+02:00",
        ] {
            assert_eq!(Timestamp::parse(text), expected, "{text}");
        }
        for text in ["", "yesterday", "2026-13-01T00:00:00Z", "1769860800"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for millis in [0, -1, 1_769_860_800_123, super::MIN_MILLIS, super::MAX_MILLIS] {
            let time = Timestamp::from_millis(millis).unwrap();
            assert_eq!(Timestamp::parse(&time.to_string()), Some(time), "{time}");
        }
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn no_time_passes_where_a_clock_goes_back() {
        let [early, late] = [-1, 1500].map(|millis| Timestamp::from_millis(millis).unwrap());
        assert_eq!(late.since(early), std::time::Duration::from_millis(1501));
        assert!(early.since(late).is_zero());
        assert_eq!((early.unix_seconds(), late.unix_seconds()), (0, 1));
    }

    #[test]
    fn addition_saturates() {
        let late = Timestamp::from_millis(super::MAX_MILLIS).unwrap();
        assert_eq!(late.plus(std::time::Duration::MAX), late);
    }
}
