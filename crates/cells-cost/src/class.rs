//! Standard or Standard-IA: storage against throughput.

use serde::Serialize;

use crate::arithmetic::{Arithmetic, Share, Sum};
use crate::cost::table_cost;
use crate::lanes::Lane;
use crate::modes::{MIN_SAVING, not_priced, too_little};
use crate::money::Usd;
use crate::prices::PriceTable;
use crate::series::Window;
use crate::usage::{TableClass, TableUsage};

/// Changes of a table's class that AWS allows within 30 days.
pub const MAX_CLASS_CHANGES: u32 = 2;

/// What the table would cost in its other class, used as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassFinding {
    pub present: TableClass,
    pub other: TableClass,
    /// `None` where no price is known.
    pub other_month: Option<Usd>,
    pub change: bool,
    pub why: String,
    pub notes: Vec<String>,
    pub arithmetic: Vec<Arithmetic>,
}

pub(crate) fn finding(
    prices: &PriceTable,
    window: &Window,
    table: &TableUsage,
    lanes: &[Lane<'_>],
) -> ClassFinding {
    let present = table.class;
    let other = match present {
        TableClass::Standard => TableClass::StandardIa,
        TableClass::StandardIa => TableClass::Standard,
    };
    let mut finding = ClassFinding {
        present,
        other,
        other_month: None,
        change: false,
        why: format!("no prices of {other} are known for {}", table.region),
        notes: vec![
            format!("AWS allows at most {MAX_CLASS_CHANGES} changes of class in 30 days"),
            "reserved capacity does not cover Standard-IA".into(),
        ],
        arithmetic: vec![],
    };
    let costs = table_cost(prices, window, table, lanes, present)
        .zip(table_cost(prices, window, table, lanes, other));
    let Some((here, there)) = costs else { return finding };
    finding.other_month = Some(there.month);
    finding.arithmetic.extend(there.lines.into_iter().map(|line| line.arithmetic));
    finding.arithmetic.extend([there.arithmetic, there.month_arithmetic]);
    let (saved, line) =
        Sum::default().plus(here.month).minus(there.month).dollars("saving in 30 days");
    finding.arithmetic.push(line);
    let saving = saved.share_of(here.month);
    finding.why = if let Some(why) = too_little(window, lanes) {
        why
    } else if let Some(why) =
        not_priced(prices, table, present).or_else(|| not_priced(prices, table, other))
    {
        why
    } else if saved < Usd::ZERO {
        format!("{other} costs {} more", Share::from_millionths(-saving.millionths()))
    } else if saving < MIN_SAVING {
        format!("{other} saves {saving}, less than {MIN_SAVING}")
    } else {
        finding.change = true;
        format!("{other} saves {saving}")
    };
    finding
}
