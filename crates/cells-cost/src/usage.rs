//! What a cell's tables did over a window, as the caller measured it.
//!
//! Everything comes in here and is checked once, so that the analysis need not doubt it. The limits keep every product of the
//! arithmetic far within 128 bits; an error names the field.

use serde::{Deserialize, Serialize};

use crate::money::Usd;
use crate::series::{MAX_UNITS, Units, Window};

/// Longest window: CloudWatch keeps points of five minutes for 63 days.
pub const MAX_WINDOW_MINUTES: u64 = 93 * 24 * 60;
/// Most minutes of all lanes (reads or writes of a table or index) together: a month of 230 lanes, 80 MB, some seconds of work.
pub const MAX_LANE_MINUTES: u64 = 10_000_000;
/// Most tables of a cell.
pub const MAX_TABLES: usize = 1_000;
/// Most global secondary indexes of a table.
pub const MAX_INDEXES: usize = 100;
/// Most replicas of a table in other Regions.
pub const MAX_REPLICAS: usize = 50;
/// Most tenants that a cell's cost is shared among in one report, over all tables.
pub const MAX_TENANTS: usize = 100_000;
/// Most bytes of anything: 256 PiB.
pub const MAX_BYTES: u64 = 1 << 58;
/// Most capacity units of one table or index.
pub const MAX_CAPACITY: u64 = 10_000_000;
/// Longest name of anything, in bytes.
const MAX_NAME_BYTES: usize = 1_024;

/// Why usage was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct UsageError {
    /// Such as `tables[0].indexes[1].bytes`.
    pub field: String,
    pub problem: String,
}

/// All that is known about a cell for one window.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CellUsage {
    pub cell: String,
    pub window: Window,
    pub tables: Vec<TableUsage>,
    /// Empty: nothing is shared out.
    #[serde(default)]
    pub tenants: Vec<TenantUsage>,
    /// Where the tenants' units come from.
    #[serde(default)]
    pub tenant_units: TenantUnits,
    /// What Cost Explorer reports for the cell's tables and this window, before tax and discounts.
    #[serde(default)]
    pub reported: Option<Reported>,
    #[serde(default)]
    pub quota: Quota,
}

/// Where it comes from what a tenant reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantUnits {
    /// They were metered.
    #[default]
    Metered,
    /// They were taken to be in proportion to stored bytes.
    ByStoredBytes,
}

/// An amount from Cost Explorer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Reported {
    pub amount: Usd,
}

/// The account's quota for one on-demand table or index, in units a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    pub read: u64,
    pub write: u64,
}

/// AWS's default.
impl Default for Quota {
    fn default() -> Self {
        Self { read: 40_000, write: 40_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableClass {
    Standard,
    StandardIa,
}

impl std::fmt::Display for TableClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Standard => "Standard",
            Self::StandardIa => "Standard-IA",
        })
    }
}

/// How a table is paid for. An index of a provisioned table has its own throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Billing {
    OnDemand,
    Provisioned(Throughput),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Throughput {
    pub read: Capacity,
    pub write: Capacity,
}

/// Capacity units: at the window's start, if they scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    pub units: u64,
    #[serde(default)]
    pub autoscaling: Option<Autoscaling>,
}

/// Target tracking. `target_percent` is 20 to 90, as AWS allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Autoscaling {
    pub min: u64,
    pub max: u64,
    pub target_percent: u8,
}

/// CloudWatch's sums for each period. A point that is missing is `None`, which counts as no use but is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    pub reads: Vec<Option<Units>>,
    pub writes: Vec<Option<Units>>,
    /// Requests; empty if there were none at all.
    #[serde(default)]
    pub throttled_reads: Vec<u64>,
    #[serde(default)]
    pub throttled_writes: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct IndexUsage {
    pub index: String,
    pub item_count: u64,
    pub bytes: u64,
    /// Given if, and only if, the table is provisioned.
    #[serde(default)]
    pub throughput: Option<Throughput>,
    pub load: Load,
}

/// A table without its indexes: `load`, `bytes` and `item_count` are its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TableUsage {
    pub table: String,
    pub region: String,
    pub billing: Billing,
    pub class: TableClass,
    pub item_count: u64,
    pub bytes: u64,
    pub load: Load,
    #[serde(default)]
    pub indexes: Vec<IndexUsage>,
    #[serde(default)]
    pub pitr: bool,
    /// On-demand backups held over the window.
    #[serde(default)]
    pub backup_bytes: u64,
    /// Restored in the window.
    #[serde(default)]
    pub restored_bytes: u64,
    /// `GetRecords` calls in the window, Lambda's not counted: they are free.
    #[serde(default)]
    pub streams_reads: u64,
    /// Other Regions that the table is replicated to.
    #[serde(default)]
    pub replicas: Vec<String>,
}

/// What a tenant has in, and did to, one table and its indexes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TenantUsage {
    pub tenant: String,
    pub table: String,
    pub item_count: u64,
    pub bytes: u64,
    pub reads: Units,
    pub writes: Units,
}

impl CellUsage {
    /// Whether the usage can be analysed. Errors name the field.
    pub fn check(&self) -> Result<(), UsageError> {
        check_name("cell", &self.cell)?;
        self.window.check()?;
        check_count("tables", self.tables.len(), MAX_TABLES)?;
        check_count("tenants", self.tenants.len(), MAX_TENANTS)?;
        for (at, units) in [("quota.read", self.quota.read), ("quota.write", self.quota.write)] {
            check_between(at, units, 1, MAX_CAPACITY)?;
        }
        let lanes: u64 = self.tables.iter().map(|table| 2 + 2 * table.indexes.len() as u64).sum();
        let minutes = lanes.saturating_mul(self.window.minutes());
        if minutes > MAX_LANE_MINUTES {
            let problem = format!(
                "have {minutes} minutes in {lanes} lanes, at most {MAX_LANE_MINUTES} are taken; use a shorter window"
            );
            return Err(wrong("tables", problem));
        }
        let mut names = std::collections::BTreeSet::new();
        for (i, table) in self.tables.iter().enumerate() {
            table.check(&format!("tables[{i}]"), &self.window)?;
            if !names.insert(table.table.as_str()) {
                return Err(wrong(
                    &format!("tables[{i}].table"),
                    format!("{:?} is there twice", table.table),
                ));
            }
        }
        let mut pairs = std::collections::BTreeSet::new();
        for (i, tenant) in self.tenants.iter().enumerate() {
            let at = format!("tenants[{i}]");
            tenant.check(&at)?;
            if !names.contains(tenant.table.as_str()) {
                return Err(wrong(
                    &format!("{at}.table"),
                    format!("{:?} is none of the tables", tenant.table),
                ));
            }
            if !pairs.insert((&tenant.tenant, &tenant.table)) {
                return Err(wrong(&at, format!("{:?} is there twice for a table", tenant.tenant)));
            }
        }
        Ok(())
    }
}

impl Window {
    fn check(&self) -> Result<(), UsageError> {
        let period = u64::from(self.period_seconds);
        if !period.is_multiple_of(60) {
            return Err(wrong(
                "window.period_seconds",
                format!("{period} is no whole number of minutes"),
            ));
        }
        check_between("window.period_seconds", period, 60, 3600)?;
        check_between("window.points", self.points.into(), 1, MAX_WINDOW_MINUTES * 60 / period)?;
        // Between the years 1970 and 9999, so that every time in a report can be written.
        if !(0..=253_000_000_000).contains(&self.start) || self.start % 60 != 0 {
            return Err(wrong(
                "window.start",
                format!("{} is no whole minute since 1970", self.start),
            ));
        }
        Ok(())
    }
}

impl TableUsage {
    fn check(&self, at: &str, window: &Window) -> Result<(), UsageError> {
        let field = |name: &str| format!("{at}.{name}");
        check_name(&field("table"), &self.table)?;
        check_name(&field("region"), &self.region)?;
        if let Billing::Provisioned(throughput) = &self.billing {
            throughput.check(&field("billing"))?;
        }
        for (name, bytes) in [
            ("bytes", self.bytes),
            ("backup_bytes", self.backup_bytes),
            ("restored_bytes", self.restored_bytes),
        ] {
            check_between(&field(name), bytes, 0, MAX_BYTES)?;
        }
        check_between(&field("streams_reads"), self.streams_reads, 0, MAX_UNITS)?;
        self.load.check(&field("load"), window)?;
        check_count(&field("indexes"), self.indexes.len(), MAX_INDEXES)?;
        check_count(&field("replicas"), self.replicas.len(), MAX_REPLICAS)?;
        let mut regions = vec![&self.region];
        for (i, replica) in self.replicas.iter().enumerate() {
            check_name(&field(&format!("replicas[{i}]")), replica)?;
            if regions.contains(&replica) {
                let problem = format!("{replica:?} is there twice, or the table's own Region");
                return Err(wrong(&field(&format!("replicas[{i}]")), problem));
            }
            regions.push(replica);
        }
        let provisioned = matches!(self.billing, Billing::Provisioned(_));
        for (i, index) in self.indexes.iter().enumerate() {
            index.check(&field(&format!("indexes[{i}]")), provisioned, window)?;
        }
        Ok(())
    }
}

impl IndexUsage {
    fn check(&self, at: &str, provisioned: bool, window: &Window) -> Result<(), UsageError> {
        check_name(&format!("{at}.index"), &self.index)?;
        check_between(&format!("{at}.bytes"), self.bytes, 0, MAX_BYTES)?;
        let throughput = format!("{at}.throughput");
        match &self.throughput {
            Some(given) if provisioned => given.check(&throughput)?,
            Some(_) => {
                return Err(wrong(&throughput, "is given, but the table is on demand".into()));
            }
            None if provisioned => {
                return Err(wrong(&throughput, "is missing: the table is provisioned".into()));
            }
            None => {}
        }
        self.load.check(&format!("{at}.load"), window)
    }
}

impl Load {
    fn check(&self, at: &str, window: &Window) -> Result<(), UsageError> {
        let points = window.points as usize;
        for (name, series) in [("reads", &self.reads), ("writes", &self.writes)] {
            if series.len() != points {
                return Err(wrong(
                    &format!("{at}.{name}"),
                    format!("has {} points, the window {points}", series.len()),
                ));
            }
            for (i, units) in series.iter().enumerate() {
                let milli = units.map_or(0, Units::milli);
                check_between(&format!("{at}.{name}[{i}]"), milli / 1000, 0, MAX_CAPACITY * 3600)?;
            }
        }
        for (name, series) in [
            ("throttled_reads", &self.throttled_reads),
            ("throttled_writes", &self.throttled_writes),
        ] {
            if !series.is_empty() && series.len() != points {
                return Err(wrong(
                    &format!("{at}.{name}"),
                    format!("has {} points, the window {points}", series.len()),
                ));
            }
            for (i, requests) in series.iter().enumerate() {
                check_between(&format!("{at}.{name}[{i}]"), *requests, 0, MAX_CAPACITY * 3600)?;
            }
        }
        Ok(())
    }
}

impl Throughput {
    fn check(&self, at: &str) -> Result<(), UsageError> {
        self.read.check(&format!("{at}.read"))?;
        self.write.check(&format!("{at}.write"))
    }
}

impl Capacity {
    fn check(&self, at: &str) -> Result<(), UsageError> {
        check_between(&format!("{at}.units"), self.units, 1, MAX_CAPACITY)?;
        let Some(scaling) = &self.autoscaling else { return Ok(()) };
        let at = format!("{at}.autoscaling");
        check_between(&format!("{at}.max"), scaling.max, 1, MAX_CAPACITY)?;
        check_between(&format!("{at}.min"), scaling.min, 1, scaling.max)?;
        check_between(&format!("{at}.target_percent"), scaling.target_percent.into(), 20, 90)
    }
}

impl TenantUsage {
    fn check(&self, at: &str) -> Result<(), UsageError> {
        check_name(&format!("{at}.tenant"), &self.tenant)?;
        check_between(&format!("{at}.bytes"), self.bytes, 0, MAX_BYTES)?;
        for (name, units) in [("reads", self.reads), ("writes", self.writes)] {
            check_between(&format!("{at}.{name}"), units.milli() / 1000, 0, MAX_UNITS)?;
        }
        Ok(())
    }
}

fn wrong(field: &str, problem: String) -> UsageError {
    UsageError { field: field.to_owned(), problem }
}

fn check_between(field: &str, value: u64, min: u64, max: u64) -> Result<(), UsageError> {
    if !(min..=max).contains(&value) {
        return Err(wrong(field, format!("is {value}, which must be {min} to {max}")));
    }
    Ok(())
}

fn check_count(field: &str, count: usize, max: usize) -> Result<(), UsageError> {
    if count > max {
        return Err(wrong(field, format!("has {count} entries, at most {max} are taken")));
    }
    Ok(())
}

fn check_name(field: &str, name: &str) -> Result<(), UsageError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(wrong(
            field,
            format!("must have 1 to {MAX_NAME_BYTES} bytes and no control character"),
        ));
    }
    Ok(())
}
