//! What AWS billed for a cell, by Cost Explorer and the tag that a cell's tables carry.

use aws_sdk_costexplorer::types::{
    DateInterval, Dimension, DimensionValues, Expression, Granularity, TagValues,
};
use cells_cost::Usd;

use super::{Regions, cloud_error};
use crate::cells::capacity::share::Billed;
use crate::cells::cloud::CloudError;
use crate::domain::{CellId, Timestamp};

/// As Cost Explorer names it.
const SERVICE: &str = "Amazon DynamoDB";
/// The tag of tables that names their cell.
const TAG: &str = "cell";
const METRIC: &str = "UnblendedCost";
const CURRENCY: &str = "USD";

/// Answers to one question, each of which costs a cent.
const MAX_PAGES: usize = 4;

/// Asks for whole days, in UTC, from the first to before the last.
pub(super) async fn billed(regions: &Regions, cell: &CellId, from: i64, until: i64) -> Billed {
    match ask(regions, cell, from, until).await {
        Ok(billed) => billed,
        Err(CloudError::Unsupported) => unreachable("the endpoint does not know it"),
        // What AWS says beside the code names accounts and users.
        Err(CloudError::Busy { code } | CloudError::Refused { code, .. }) => unreachable(&code),
    }
}

fn unreachable(code: &str) -> Billed {
    Billed::Unreachable { code: code.to_owned() }
}

async fn ask(
    regions: &Regions,
    cell: &CellId,
    from: i64,
    until: i64,
) -> Result<Billed, CloudError> {
    let (Some(start), Some(end)) = (day(from), day(until)) else {
        return Ok(unreachable("no such day"));
    };
    let client = regions.cost_explorer();
    let days = DateInterval::builder().start(start).end(end).build();
    let days = days.map_err(|_| CloudError::Busy { code: "no days".to_owned() })?;
    let tag = TagValues::builder().key(TAG).values(cell.as_str()).build();
    let service = DimensionValues::builder().key(Dimension::Service).values(SERVICE).build();
    let filter = Expression::builder()
        .and(Expression::builder().tags(tag).build())
        .and(Expression::builder().dimensions(service).build())
        .build();
    let (mut total, mut preliminary, mut next) = (Usd::ZERO, false, None);
    for _ in 0..MAX_PAGES {
        let page = client
            .get_cost_and_usage()
            .time_period(days.clone())
            .granularity(Granularity::Daily)
            .metrics(METRIC)
            .filter(filter.clone())
            .set_next_page_token(next)
            .send()
            .await
            .map_err(|error| cloud_error(&error))?;
        for day in page.results_by_time() {
            preliminary |= day.estimated();
            let Some(cost) = day.total().and_then(|total| total.get(METRIC)) else { continue };
            let amount = cost.amount().and_then(usd);
            match (amount, cost.unit()) {
                (Some(amount), Some(CURRENCY)) => total = total + amount,
                _ => return Ok(unreachable("an amount that is not in USD")),
            }
        }
        next = page.next_page_token;
        if next.is_none() {
            return Ok(match total == Usd::ZERO {
                true => Billed::NoData,
                false => Billed::Amount { amount: total, preliminary },
            });
        }
    }
    Ok(unreachable("more pages than are paid for"))
}

/// Such as `2026-01-31`.
fn day(seconds: i64) -> Option<String> {
    let text = Timestamp::from_seconds(seconds)?.to_string();
    text.get(..10).map(str::to_owned)
}

/// Cost Explorer writes more digits than a picodollar has, and small amounts with an exponent.
fn usd(text: &str) -> Option<Usd> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let cut = format!("{whole}.{}", decimals.get(..12).unwrap_or(decimals));
    let exact = cut.trim_end_matches('.').parse().ok().filter(|_| !text.contains(['e', 'E']));
    exact.or_else(|| {
        let picos = text.parse::<f64>().ok().filter(|amount| amount.is_finite())? * 1e12;
        // Saturates, far beyond any bill.
        Some(Usd::from_picos(picos.round() as i128))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_days_are_read_as_cost_explorer_writes_them() {
        for (text, picos) in [
            ("0.0101516483", 10_151_648_300),
            ("1.23456789012345678", 1_234_567_890_123),
            ("12", 12_000_000_000_000),
            ("2.5E-6", 2_500_000),
            ("-0.5", -500_000_000_000),
        ] {
            assert_eq!(usd(text), Some(Usd::from_picos(picos)), "{text}");
        }
        for bad in ["", "x", "NaN", "inf"] {
            assert_eq!(usd(bad), None, "{bad}");
        }
        assert_eq!(day(86_400).as_deref(), Some("1970-01-02"));
    }
}
