//! How full a cell's tables are, what they cost, and what would be cheaper: usage gathered here, judged by `cells-cost`.

pub mod share;

use std::time::Duration;

use async_trait::async_trait;
use cells_cost::{
    Autoscaling, Billing, Capacity, CellUsage, IndexUsage, Load, PriceTable, Report, Reported,
    TableClass, TableUsage, TenantUnits, Throughput, Units, Window,
};

use share::{Billed, MAX_PAGES, Stored, TenantShare};

use super::cloud::{CloudError, TableRef};
use super::error::CellsError;
use super::plan::{Dimension, Feature, Observed, Wanted};
use super::registrar::Registrar;
use super::table_set;
use crate::domain::{CellId, PartitionKey, Timestamp};

/// Days that are looked at: at most as many, and where nothing is said.
pub const MAX_DAYS: u32 = 30;
pub const DEFAULT_DAYS: u32 = 7;

/// Days of which CloudWatch still has every minute, with a day to spare; above that, every five minutes.
const DAYS_OF_MINUTES: u32 = 14;

const MINUTE: Duration = Duration::from_secs(60);

/// What CloudWatch counts of a table or an index: sums for each period, in the order of the periods. A period of which it tells
/// nothing is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metered {
    pub reads: Vec<(i64, f64)>,
    pub writes: Vec<(i64, f64)>,
    pub throttled_reads: Vec<(i64, f64)>,
    pub throttled_writes: Vec<(i64, f64)>,
}

/// What is counted about tables by whoever serves them.
#[async_trait]
pub trait Meters: Send + Sync + 'static {
    /// Of the table itself, and of each of these indexes, in their order: seconds of a period's start, and its sum.
    async fn metered(
        &self,
        table: &TableRef,
        indexes: &[String],
        window: &Window,
    ) -> Result<Vec<Metered>, CloudError>;
}

/// What tables are billed by: what tenants have in them, and what was paid.
#[async_trait]
pub trait Accounts: Meters {
    /// What a partition of a table holds, by reading at most so many pages of it. `key`: the attribute that is the partition key.
    async fn stored(
        &self,
        table: &TableRef,
        key: &str,
        partition: &str,
        pages: usize,
    ) -> Result<Stored, CloudError>;

    /// What was billed for a cell's tables on the days from one second of the Unix epoch to another. Each question costs a cent.
    async fn billed(&self, cell: &CellId, from: i64, until: i64) -> Billed;
}

/// What to find out about a cell.
#[derive(Debug, Clone)]
pub struct Question {
    /// How far back, 1 to [`MAX_DAYS`].
    pub days: u32,
    /// Tenants whose share is wanted, each once, at most [`share::MAX_TENANTS`].
    pub tenants: Vec<PartitionKey>,
    /// Ask Cost Explorer, for whole days.
    pub compare: bool,
}

/// What was found out.
#[derive(Debug)]
pub struct Analysis {
    pub report: Report,
    /// In the order of the question.
    pub tenants: Vec<TenantShare>,
    /// What measuring the tenants took.
    pub read_units: f64,
    /// `None`: not asked for.
    pub billed: Option<Billed>,
}

impl Registrar {
    /// What a cell's tables were used for in the last days, and what follows.
    ///
    /// # Errors
    /// [`CellsError::NotProvisioned`]; [`CloudError::Unsupported`] where nothing is metered.
    pub async fn analyze(
        &self,
        cell: &CellId,
        question: &Question,
    ) -> Result<Analysis, CellsError> {
        let cell = self.cell(cell).await?;
        let record = self.records.cell_tables(&cell.id).await?.and_then(|record| record.tables);
        let not_provisioned = || CellsError::NotProvisioned { cell: cell.id.clone() };
        let (set, version) = record.ok_or_else(not_provisioned)?;
        let set = self.records.table_set_at(&set, version).await?.ok_or_else(not_provisioned)?;
        let window = match question.compare {
            true => whole_days(question.days, self.directory.now()),
            false => window(question.days, self.directory.now()),
        };
        let mut tables = Vec::new();
        let mut stored = vec![Stored::default(); question.tenants.len()];
        let mut tenants = Vec::new();
        for wanted in Wanted::of(&set, &self.prefix, &cell) {
            let table = TableRef::from(&wanted);
            let Some(observed) = self.cloud.observe(&table).await? else { continue };
            let indexes: Vec<_> =
                observed.indexes.iter().map(|index| index.spec.name.clone()).collect();
            let metered = self.accounts.metered(&table, &indexes, &window).await?;
            let usage = usage(&table, &observed, &metered, &window);
            let pages: Vec<_> =
                stored.iter().map(|stored| MAX_PAGES.saturating_sub(stored.pages)).collect();
            let found =
                share::measure(&*self.accounts, &table, &wanted.spec, &question.tenants, &pages);
            let found = found.await?;
            tenants.extend(share::usages(&usage, &question.tenants, &found));
            stored.iter_mut().zip(&found).for_each(|(all, one)| all.add(one));
            tables.push(usage);
        }
        let billed = match question.compare {
            true => Some(self.accounts.billed(&cell.id, window.start, end(&window)).await),
            false => None,
        };
        let reported = match billed {
            Some(Billed::Amount { amount, .. }) => Some(Reported { amount }),
            _ => None,
        };
        let usage = CellUsage {
            cell: cell.id.as_str().to_owned(),
            window,
            tables,
            tenants,
            tenant_units: TenantUnits::ByStoredBytes,
            reported,
            quota: cells_cost::Quota::default(),
        };
        // Simulates every minute of every table: not on a thread that serves calls.
        let report = tokio::task::spawn_blocking(move || {
            let prices = PriceTable::bundled().map_err(|error| error.to_string())?;
            cells_cost::analyze(&prices, &usage).map_err(|error| error.to_string())
        });
        let mut report = match report.await {
            Ok(Ok(report)) => report,
            Ok(Err(problem)) => return Err(CellsError::NotAnalyzed { problem }),
            Err(_) => {
                return Err(CellsError::NotAnalyzed { problem: "the analysis failed".to_owned() });
            }
        };
        let tenants = share::shares(&report, &question.tenants, &stored);
        let read_units = stored.iter().map(|stored| stored.read_units).sum();
        report.warnings.extend(share::notes(&tenants, read_units, billed.as_ref()));
        Ok(Analysis { report, tenants, read_units, billed })
    }
}

/// Days as they are billed: in UTC, up to the last midnight.
fn whole_days(days: u32, now: Timestamp) -> Window {
    const DAY: i64 = 24 * 3600;
    let midnight = now.seconds() - now.seconds().rem_euclid(DAY);
    let shape = window(days, now);
    Window { start: midnight - i64::from(days) * DAY, ..shape }
}

fn end(window: &Window) -> i64 {
    window.start.saturating_add(i64::try_from(window.seconds()).unwrap_or(i64::MAX))
}

/// Whole periods up to the last whole one.
fn window(days: u32, now: Timestamp) -> Window {
    let seconds = if days <= DAYS_OF_MINUTES { 60 } else { 300 };
    let points = days * (24 * 3600 / seconds);
    let end = now.seconds() - now.seconds().rem_euclid(i64::from(seconds));
    let start = end - i64::from(points) * i64::from(seconds);
    Window { start, period_seconds: seconds, points }
}

fn usage(
    table: &TableRef,
    observed: &Observed,
    metered: &[Metered],
    window: &Window,
) -> TableUsage {
    let mut loads = metered.iter().map(|metered| load(metered, window, observed.created));
    let own = loads.next().unwrap_or_default();
    let indexes = observed.indexes.iter().zip(loads).map(|(index, load)| IndexUsage {
        index: index.spec.name.clone(),
        item_count: index.items,
        bytes: index.bytes,
        throughput: throughput(observed, &index.spec.name),
        load,
    });
    TableUsage {
        table: table.name.clone(),
        region: table.region.as_str().to_owned(),
        billing: throughput(observed, "").map_or(Billing::OnDemand, Billing::Provisioned),
        class: match observed.class {
            table_set::TableClass::Standard => TableClass::Standard,
            table_set::TableClass::InfrequentAccess => TableClass::StandardIa,
        },
        item_count: observed.items,
        bytes: observed.bytes,
        load: own,
        indexes: indexes.collect(),
        pitr: matches!(observed.recovery_days, Feature::Known(Some(_))),
        backup_bytes: 0,
        restored_bytes: 0,
        streams_reads: 0,
        replicas: observed.replicas.keys().map(|region| region.as_str().to_owned()).collect(),
    }
}

fn throughput(observed: &Observed, resource: &str) -> Option<Throughput> {
    let (read, write) = observed.units.as_ref()?.get(resource).copied()?;
    let capacity = |units: u64, dimension: Dimension| {
        let scaling = observed.scaling.known();
        let scaling = scaling.and_then(|all| all.get(&(resource.to_owned(), dimension)));
        let autoscaling = scaling.map(|scaling| Autoscaling {
            min: scaling.min,
            max: scaling.max,
            target_percent: scaling.target_percent,
        });
        Capacity { units, autoscaling }
    };
    Some(Throughput {
        read: capacity(read, Dimension::Read),
        write: capacity(write, Dimension::Write),
    })
}

/// CloudWatch tells nothing of a period in which nothing happened, so what is absent is zero, once the table was there; before that it
/// is not known.
fn load(metered: &Metered, window: &Window, created: Option<i64>) -> Load {
    let count = usize::try_from(window.points).unwrap_or(0);
    let period = i64::from(window.period_seconds);
    let since = created.map_or(i64::MIN, |created| created - MINUTE.as_secs().cast_signed());
    let starts = |at: usize| window.start + i64::try_from(at).unwrap_or(i64::MAX) * period;
    let at = |start: i64| usize::try_from((start - window.start).div_euclid(period)).ok();
    let units = |series: &[(i64, f64)]| {
        let known = |at: usize| (starts(at) >= since).then_some(Units::default());
        let mut points: Vec<_> = (0..count).map(known).collect();
        for (start, sum) in series {
            if let Some(point) = at(*start).and_then(|at| points.get_mut(at)) {
                *point = Units::from_f64(*sum);
            }
        }
        points
    };
    let requests = |series: &[(i64, f64)]| {
        let mut points = vec![0; count];
        for (start, sum) in series {
            if let Some(point) = at(*start).and_then(|at| points.get_mut(at)) {
                *point = Units::from_f64(*sum).map_or(0, |units| units.milli() / 1000);
            }
        }
        if series.is_empty() { Vec::new() } else { points }
    };
    Load {
        reads: units(&metered.reads),
        writes: units(&metered.writes),
        throttled_reads: requests(&metered.throttled_reads),
        throttled_writes: requests(&metered.throttled_writes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_whole_periods_and_what_is_absent_is_zero_from_the_tables_start() {
        let now = Timestamp::from_seconds(1_000_000_059).unwrap();
        let minutes = window(1, now);
        assert_eq!((minutes.start, minutes.points), (1_000_000_020 - 86_400, 1440));
        let whole = whole_days(2, now);
        assert_eq!((whole.start % 86_400, whole.seconds()), (0, 2 * 86_400));
        assert!((0..86_400).contains(&(now.seconds() - end(&whole))));
        assert_eq!((window(30, now).period_seconds, window(30, now).points), (300, 8640));
        let start = minutes.start;
        let metered = Metered {
            reads: vec![(start + 120, 2.5), (start - 60, 9.0), (start + 86_400, 9.0)],
            throttled_writes: vec![(start + 60, 3.0)],
            ..Metered::default()
        };
        let load = load(&metered, &minutes, Some(start + 100));
        let milli: Vec<_> = load.reads[..4].iter().map(|p| p.map(|units| units.milli())).collect();
        assert_eq!(milli, [None, Some(0), Some(2500), Some(0)]);
        assert_eq!(load.reads.len(), 1440);
        assert_eq!((load.throttled_writes[1], load.throttled_writes[2]), (3, 0));
        assert_eq!(load.throttled_reads, Vec::<u64>::new());
    }
}
