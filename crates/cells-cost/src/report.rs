//! What comes out: the findings of a cell, and their text for an operator.

use std::fmt;

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Share};
use crate::class::ClassFinding;
use crate::cost::TableCost;
use crate::lanes::LaneFinding;
use crate::modes::{ModeFinding, Verdict};
use crate::money::Usd;
use crate::prices::FreeTier;
use crate::reserved::BreakEven;
use crate::share::{Comparison, Shares};
use crate::usage::Capacity;

/// Tenants that the text lists: the dearest. The struct has all.
const MAX_TENANTS_SHOWN: usize = 20;

/// Everything found about a cell. `Display` is for people; serialized, amounts are text with every digit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub cell: String,
    /// In UTC.
    pub from: String,
    pub until: String,
    pub prices_as_of: String,
    pub free_tier: FreeTier,
    /// The worst of the lanes' utilisations: what an assignment policy should see. Zero without tables.
    pub utilisation: Share,
    pub total: Usd,
    pub month: Usd,
    pub arithmetic: Vec<Arithmetic>,
    pub tables: Vec<TableReport>,
    pub shares: Option<Shares>,
    pub comparison: Option<Comparison>,
    /// What the reader must know about the figures.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableReport {
    pub table: String,
    pub region: String,
    /// Where the Region's prices come from; `None` if there are none, and then no cost either.
    pub prices_source: Option<String>,
    pub lanes: Vec<LaneFinding>,
    pub cost: Option<TableCost>,
    pub mode: Option<ModeFinding>,
    pub class: Option<ClassFinding>,
    /// Empty where nothing can be reserved.
    pub reserved: Vec<BreakEven>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Cell {}: {} to {}", self.cell, self.from, self.until)?;
        writeln!(
            f,
            "  cost         {} in the window, {} in 30 days (list prices as of {})",
            self.total, self.month, self.prices_as_of
        )?;
        writeln!(f, "  utilisation  {}", self.utilisation)?;
        for warning in &self.warnings {
            writeln!(f, "  ! {warning}")?;
        }
        lines(f, "  ", &self.arithmetic)?;
        for table in &self.tables {
            write!(f, "\n{table}")?;
        }
        if let Some(shares) = &self.shares {
            write!(f, "\n{shares}")?;
        }
        if let Some(comparison) = &self.comparison {
            write!(f, "\n{comparison}")?;
        }
        Ok(())
    }
}

fn lines(f: &mut fmt::Formatter<'_>, indent: &str, arithmetic: &[Arithmetic]) -> fmt::Result {
    arithmetic.iter().try_for_each(|line| writeln!(f, "{indent}{line}"))
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Table {} in {}", self.table, self.region)?;
        for lane in &self.lanes {
            write!(f, "{lane}")?;
        }
        match &self.cost {
            None => writeln!(f, "  cost: no prices are known for {}", self.region)?,
            Some(cost) => {
                writeln!(f, "  cost {} in the window, {} in 30 days", cost.total, cost.month)?;
                cost.lines.iter().try_for_each(|line| writeln!(f, "    {}", line.arithmetic))?;
                writeln!(f, "    {}\n    {}", cost.arithmetic, cost.month_arithmetic)?;
                cost.unpriced
                    .iter()
                    .try_for_each(|what| writeln!(f, "    ! not priced: {what}"))?;
            }
        }
        if let Some(mode) = &self.mode {
            write!(f, "{mode}")?;
        }
        if let Some(class) = &self.class {
            let verdict = if class.change { "change to" } else { "no change to" };
            writeln!(f, "  class: {verdict} {}: {}", class.other, class.why)?;
            lines(f, "    ", &class.arithmetic)?;
            class.notes.iter().try_for_each(|note| writeln!(f, "    note: {note}"))?;
        }
        for even in &self.reserved {
            writeln!(
                f,
                "  reserved {} capacity for {} pays from a use of {}",
                even.direction, even.term, even.use_share
            )?;
            lines(f, "    ", &even.arithmetic)?;
        }
        Ok(())
    }
}

impl fmt::Display for LaneFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = &self.rates;
        writeln!(
            f,
            "  {}s of {}: {} of {}/s ({}); mean {}/s, p50 {}/s, p99 {}/s, max {}/s",
            self.direction,
            self.resource,
            self.utilisation,
            self.limit,
            self.limit_is,
            rates.mean,
            rates.p50,
            rates.p99,
            rates.max
        )?;
        if let Some(burst) = self.burst.filter(|burst| burst.minutes_above > 0) {
            let served = if burst.covered {
                "burst credit covers them".to_owned()
            } else {
                format!(
                    "burst credit leaves {} units uncovered in {} min",
                    burst.uncovered, burst.uncovered_minutes
                )
            };
            writeln!(f, "    {} min above capacity: {served}", burst.minutes_above)?;
        }
        if let Some(throttling) = &self.throttling {
            let (requests, periods) = (throttling.requests, throttling.periods);
            writeln!(
                f,
                "    ! {requests} requests throttled in {periods} periods, {} to {}",
                throttling.first, throttling.last
            )?;
            throttling
                .worst
                .iter()
                .try_for_each(|worst| writeln!(f, "      {}  {}", worst.at, worst.requests))?;
        }
        lines(f, "    ", &self.arithmetic)
    }
}

impl fmt::Display for ModeFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Change { to, saving_month, saving } => {
                writeln!(
                    f,
                    "  billing: change to {to}; saves {saving_month} in 30 days, {saving} of throughput"
                )?;
            }
            Verdict::Keep { why } => writeln!(f, "  billing: keep; {why}")?,
            Verdict::TooLittleData { why } | Verdict::NotPriced { why } => {
                writeln!(f, "  billing: no recommendation; {why}")?
            }
        }
        for option in &self.options {
            let note =
                if option.note.is_empty() { String::new() } else { format!("; {}", option.note) };
            writeln!(f, "    {}: {} in 30 days{note}", option.mode, option.month)?;
            for size in &option.sizes {
                writeln!(f, "      {}s of {}: {}", size.direction, size.resource, size.capacity)?;
            }
            if option.reserved_read_blocks + option.reserved_write_blocks > 0 {
                let (read, write) = (option.reserved_read_blocks, option.reserved_write_blocks);
                writeln!(f, "      reserve {read} × 100 RCU and {write} × 100 WCU")?;
            }
            lines(f, "      ", &option.arithmetic)?;
        }
        Ok(())
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.autoscaling {
            None => write!(f, "{} units", self.units),
            Some(s) => write!(
                f,
                "{} to {} units at {} %, now {}",
                s.min, s.max, s.target_percent, self.units
            ),
        }
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Tenants (estimate: {})", self.method)?;
        let mut dearest: Vec<_> = self.tenants.iter().collect();
        dearest.sort_by(|a, b| b.amount.cmp(&a.amount).then_with(|| a.tenant.cmp(&b.tenant)));
        for tenant in dearest.iter().take(MAX_TENANTS_SHOWN) {
            writeln!(f, "  {:>14}  {}", tenant.amount, tenant.tenant)?;
        }
        if dearest.len() > MAX_TENANTS_SHOWN {
            writeln!(f, "  and {} more", dearest.len() - MAX_TENANTS_SHOWN)?;
        }
        writeln!(f, "  {:>14}  not attributed\n  {}", self.residual, self.arithmetic)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Cost Explorer reports {}; the estimate is {}", self.reported, self.estimated)?;
        lines(f, "  ", &self.arithmetic)?;
        self.warning.iter().try_for_each(|warning| writeln!(f, "  ! {warning}"))
    }
}
