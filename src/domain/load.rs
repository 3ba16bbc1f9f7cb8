//! How busy cells are, as far as that is known: measured by one replica at a time, handed to whoever assigns new tenants.
//!
//! What is not known weighs nothing: without loads, tenants are assigned as if there were no such thing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CellId, Timestamp};

/// Least share of its weight that a busy cell keeps: some tenants still go there, and it stays a choice while it is the only one.
pub const LEAST_SHARE: f64 = 0.05;

/// Throttled requests a minute from which a cell is overloaded, however much of its throughput is unused: a hot key is throttled, too.
pub const THROTTLED_PER_MINUTE: f64 = 1.0;

/// How busy a cell's tables were over the last minutes, and what they hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellLoad {
    pub cell: CellId,
    /// When this was measured, by the clock of the replica that did.
    pub at: Timestamp,
    /// The highest of its tables'.
    pub utilisation: f64,
    /// Requests a minute that were throttled, all tables together.
    pub throttled_per_minute: f64,
    pub tables: Vec<TableLoad>,
}

/// The same of one table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableLoad {
    /// The table's whole name.
    pub table: String,
    /// Consumed of what is provisioned, or on demand of the table's limit: the highest of reads and writes, of table and indexes. 1 is all.
    pub utilisation: f64,
    /// As DynamoDB counts them, every six hours or so.
    pub items: u64,
    /// Of the table and its indexes.
    pub bytes: u64,
    /// The indexes' part of that.
    #[serde(default)]
    pub index_bytes: u64,
}

impl CellLoad {
    pub fn items(&self) -> u64 {
        self.tables.iter().map(|table| table.items).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum()
    }

    /// Without indexes: what the items themselves have.
    pub fn item_bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes.saturating_sub(table.index_bytes)).sum()
    }

    /// How long ago it was measured. `None` where that cannot be: later than `now` by more than clocks may differ.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        (self.at.since(now) < CLOCKS_DIFFER).then(|| now.since(self.at))
    }
}

/// By how much the clock of another replica may be ahead.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// From which utilisation on new tenants are kept from a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadTerms {
    /// Above this a cell's share of new tenants falls.
    pub spare_from: f64,
    /// At this it gets new tenants only where no other cell can take them. At least `spare_from`.
    pub limit: f64,
    /// Older than this, a load counts as unknown.
    pub max_age: Duration,
}

impl Default for LoadTerms {
    fn default() -> Self {
        Self { spare_from: 0.75, limit: 0.9, max_age: Duration::from_secs(600) }
    }
}

/// The loads that are known, and on what terms they count.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loads {
    cells: BTreeMap<CellId, CellLoad>,
    /// When the first of them was measured.
    oldest: Option<Timestamp>,
    terms: LoadTerms,
}

impl Loads {
    /// Of these loads, those that are not too old at `now`.
    pub fn at(now: Timestamp, loads: impl IntoIterator<Item = CellLoad>, terms: LoadTerms) -> Self {
        let known = loads.into_iter().filter(|load| {
            load.age(now).is_some_and(|age| age <= terms.max_age)
                && load.utilisation.is_finite()
                && load.throttled_per_minute.is_finite()
        });
        let cells: BTreeMap<_, _> = known.map(|load| (load.cell.clone(), load)).collect();
        Self { oldest: cells.values().map(|load| load.at).min(), cells, terms }
    }

    /// The same without those that have become too old since, such as while a turn of measuring takes long.
    pub fn still(self: Arc<Self>, now: Timestamp) -> Arc<Self> {
        match self.oldest {
            Some(oldest) if now > oldest.plus(self.terms.max_age) => {
                Arc::new(Self::at(now, self.cells.values().cloned(), self.terms))
            }
            _ => self,
        }
    }

    pub fn get(&self, cell: &CellId) -> Option<&CellLoad> {
        self.cells.get(cell)
    }

    pub fn iter(&self) -> impl Iterator<Item = &CellLoad> {
        self.cells.values()
    }

    /// Why a cell should get new tenants only where no other cell can take them; `None`: it should not be kept from them.
    pub fn overloaded(&self, cell: &CellId) -> Option<String> {
        let load = self.get(cell)?;
        if load.throttled_per_minute >= THROTTLED_PER_MINUTE {
            return Some(format!(
                "{:.1} requests a minute are throttled",
                load.throttled_per_minute
            ));
        }
        let limit = self.terms.limit;
        (load.utilisation >= limit)
            .then(|| format!("utilisation {:.2} is not below {limit:.2}", load.utilisation))
    }

    /// What is left of a cell's weight: 1 up to the terms' `spare_from`, then less in proportion, down to [`LEAST_SHARE`] at their
    /// `limit` and above.
    pub fn share(&self, cell: &CellId) -> f64 {
        let Some(load) = self.get(cell) else { return 1.0 };
        let LoadTerms { spare_from, limit, .. } = self.terms;
        let (over, span) = (load.utilisation - spare_from, limit - spare_from);
        if over <= 0.0 {
            1.0
        } else if over >= span {
            LEAST_SHARE
        } else {
            1.0 - (1.0 - LEAST_SHARE) * over / span
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_000_000).unwrap()
    }

    fn load(utilisation: f64, throttled_per_minute: f64, at: i64) -> CellLoad {
        CellLoad {
            cell: CellId::new("a").unwrap(),
            at: Timestamp::from_seconds(at).unwrap(),
            utilisation,
            throttled_per_minute,
            tables: Vec::new(),
        }
    }

    fn known(load: CellLoad) -> bool {
        Loads::at(now(), [load], LoadTerms::default()).iter().count() == 1
    }

    #[test]
    fn what_is_too_old_or_no_number_or_from_the_future_is_not_known() {
        for (at, is_known) in [
            (1_000_000, true),
            (999_400, true),
            (999_399, false),
            (1_000_059, true),
            (1_000_061, false),
        ] {
            assert_eq!(known(load(0.5, 0.0, at)), is_known, "{at}");
        }
        assert!(!known(load(f64::NAN, 0.0, 1_000_000)));
        assert!(!known(load(0.1, f64::INFINITY, 1_000_000)));
    }

    #[test]
    fn what_becomes_too_old_later_is_not_known_then() {
        let other = CellLoad { cell: CellId::new("b").unwrap(), ..load(0.5, 0.0, 999_700) };
        let loads = [load(0.5, 0.0, 1_000_000), other];
        let loads = Arc::new(Loads::at(now(), loads, LoadTerms::default()));
        let left = |after| {
            let still = loads.clone().still(now().plus(Duration::from_secs(after)));
            still.iter().map(|load| load.cell.to_string()).collect::<Vec<_>>()
        };
        assert_eq!((left(300), left(301)), (vec!["a".into(), "b".into()], vec!["a".to_owned()]));
        assert_eq!(left(601), Vec::<String>::new());
    }

    #[test]
    fn throttling_is_overload_however_little_is_used() {
        let a = CellId::new("a").unwrap();
        let of = |u, t| Loads::at(now(), [load(u, t, 1_000_000)], LoadTerms::default());
        assert_eq!(of(0.89, 0.9).overloaded(&a), None);
        assert_eq!(of(0.9, 0.0).overloaded(&a).unwrap(), "utilisation 0.90 is not below 0.90");
        assert_eq!(of(0.0, 1.0).overloaded(&a).unwrap(), "1.0 requests a minute are throttled");
        assert_eq!(Loads::default().overloaded(&a), None);
    }

    proptest! {
        #[test]
        fn a_share_falls_with_utilisation_and_never_to_nothing(
            u in 0.0..3.0, more in 0.0..3.0, spare_from in 0.0..1.0, span in 0.0..1.0,
        ) {
            let a = CellId::new("a").unwrap();
            let terms = LoadTerms { spare_from, limit: spare_from + span, ..LoadTerms::default() };
            let share = |u| Loads::at(now(), [load(u, 0.0, 1_000_000)], terms).share(&a);
            prop_assert!(share(u + more) <= share(u));
            prop_assert!((LEAST_SHARE..=1.0).contains(&share(u)));
            prop_assert!(u > spare_from || share(u) == 1.0);
        }
    }
}
