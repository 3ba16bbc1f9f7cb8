//! What can be asked of a migration, by a call or in the configuration.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Both cells are kept current through the soak: every write costs twice, and more.
pub const SOAK: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(30 * 24 * 3600);

/// A fence has to be seen by whoever writes, and drained: below this, none would ever be short enough.
pub const PAUSE_BUDGET: RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(60);

/// Write capacity units a second.
pub const MAX_RATE: u32 = 1_000_000;
