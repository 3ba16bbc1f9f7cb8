//! The price table: a dated file that says what AWS asked for when.
//!
//! Prices are data, not code: they change without a release, and a report has to say how old they were. A table is read once and
//! checked as a whole. Invariants of one that was read: every price is positive and within bounds; where a Region has
//! Standard-IA, its storage is cheaper and its requests are dearer than Standard's, so a slip between the two is found; reserved
//! capacity is cheaper per hour than what it replaces. A price that is not known is absent, never a guess.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::money::Usd;

/// The table in the repository.
const BUNDLED: &str = include_str!("../../../prices/aws-dynamodb-2026-10-04.toml");

/// The largest file that is read.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// More than any unit of DynamoDB costs: $10.
const MAX_PRICE: Usd = Usd::from_picos(10_000_000_000_000);
/// More than 100 reserved units cost upfront: $100,000.
const MAX_UPFRONT: Usd = Usd::from_picos(100_000_000_000_000_000);

/// Why a price table was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    #[error("price table has {0} bytes, at most {MAX_FILE_BYTES} are read")]
    TooLarge(usize),
    /// Not TOML, an unknown or missing field, or a value of another kind; the text names the field and the line.
    #[error("price table does not parse: {0}")]
    Syntax(String),
    #[error("price table: {field}: {problem}")]
    Field { field: String, problem: String },
}

/// Prices by Region, as of a date.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    as_of: String,
    currency: String,
    free_tier: FreeTier,
    regions: BTreeMap<String, RegionPrices>,
}

/// What AWS does not charge for once in a payer account and Region. Noted, not deducted: it is no one cell's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FreeTier {
    pub storage_gb: u32,
    pub provisioned_read_units: u32,
    pub provisioned_write_units: u32,
}

/// A Region's prices. An absent one is not known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPrices {
    as_of: String,
    source: String,
    pub(crate) standard: ClassPrices,
    pub(crate) standard_ia: Option<ClassPrices>,
    pub(crate) reserved: Option<ReservedPrices>,
    pub(crate) pitr_gb_month: Option<Usd>,
    pub(crate) backup_gb_month: Option<Usd>,
    pub(crate) restore_gb: Option<Usd>,
    pub(crate) streams_read_request: Option<Usd>,
}

impl RegionPrices {
    /// What so many read and write request units cost on demand, in a table of the standard class.
    pub fn requests(&self, read_units: u64, write_units: u64) -> Usd {
        let times = |price: Usd, units: u64| price.picos().saturating_mul(i128::from(units));
        let reads = times(self.standard.read_request, read_units);
        Usd::from_picos(reads.saturating_add(times(self.standard.write_request, write_units)))
    }
}

/// What a table class costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClassPrices {
    pub storage_gb_month: Usd,
    pub read_request: Usd,
    pub write_request: Usd,
    pub replicated_write_request: Usd,
    pub read_capacity_hour: Usd,
    pub write_capacity_hour: Usd,
    pub replicated_write_capacity_hour: Usd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReservedPrices {
    pub one_year: Option<TermPrices>,
    pub three_years: Option<TermPrices>,
}

/// For 100 units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TermPrices {
    pub read_upfront: Usd,
    pub read_hour: Usd,
    pub write_upfront: Usd,
    pub write_hour: Usd,
}

impl PriceTable {
    /// The table that this build came with.
    pub fn bundled() -> Result<Self, PriceError> {
        Self::parse(BUNDLED)
    }

    /// Reads and checks a table. Errors name the field.
    pub fn parse(text: &str) -> Result<Self, PriceError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(PriceError::TooLarge(text.len()));
        }
        let table: Self = toml::from_str(text)
            .map_err(|e| PriceError::Syntax(e.to_string().trim().to_owned()))?;
        table.check()?;
        Ok(table)
    }

    /// The date (`YYYY-MM-DD`) that the prices are known as of.
    pub fn as_of(&self) -> &str {
        &self.as_of
    }

    pub fn free_tier(&self) -> FreeTier {
        self.free_tier
    }

    pub fn regions(&self) -> impl Iterator<Item = &str> {
        self.regions.keys().map(String::as_str)
    }

    pub fn region(&self, region: &str) -> Option<&RegionPrices> {
        self.regions.get(region)
    }

    fn check(&self) -> Result<(), PriceError> {
        check_date("as_of", &self.as_of)?;
        if self.currency != "USD" {
            return Err(wrong(
                "currency",
                format!("is {:?}; only USD is understood", self.currency),
            ));
        }
        if self.regions.is_empty() {
            return Err(wrong("regions", "has no Region".into()));
        }
        for (name, region) in &self.regions {
            let at = format!("regions.{name}");
            region.check(&at)?;
            if region.as_of > self.as_of {
                let problem = format!("is {}, after the table's {}", region.as_of, self.as_of);
                return Err(wrong(&format!("{at}.as_of"), problem));
            }
        }
        Ok(())
    }
}

impl RegionPrices {
    pub fn as_of(&self) -> &str {
        &self.as_of
    }

    /// Where the Region's prices come from and how sure they are, in words.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn class(&self, class: crate::TableClass) -> Option<&ClassPrices> {
        match class {
            crate::TableClass::Standard => Some(&self.standard),
            crate::TableClass::StandardIa => self.standard_ia.as_ref(),
        }
    }

    fn check(&self, at: &str) -> Result<(), PriceError> {
        check_date(&format!("{at}.as_of"), &self.as_of)?;
        if self.source.trim().is_empty() {
            return Err(wrong(
                &format!("{at}.source"),
                "is empty; say where the prices come from".into(),
            ));
        }
        for (field, price) in [
            ("pitr_gb_month", self.pitr_gb_month),
            ("backup_gb_month", self.backup_gb_month),
            ("restore_gb", self.restore_gb),
            ("streams_read_request", self.streams_read_request),
        ] {
            if let Some(price) = price {
                check_price(&format!("{at}.{field}"), price, MAX_PRICE)?;
            }
        }
        self.standard.check(&format!("{at}.standard"))?;
        if let Some(ia) = &self.standard_ia {
            ia.check(&format!("{at}.standard_ia"))?;
            ia.check_against(&self.standard, &format!("{at}.standard_ia"))?;
        }
        if let Some(reserved) = &self.reserved {
            for (term, prices) in
                [("one_year", &reserved.one_year), ("three_years", &reserved.three_years)]
            {
                if let Some(prices) = prices {
                    prices.check(&self.standard, &format!("{at}.reserved.{term}"))?;
                }
            }
        }
        Ok(())
    }
}

impl ClassPrices {
    fn named(&self) -> [(&'static str, Usd); 7] {
        [
            ("storage_gb_month", self.storage_gb_month),
            ("read_request", self.read_request),
            ("write_request", self.write_request),
            ("replicated_write_request", self.replicated_write_request),
            ("read_capacity_hour", self.read_capacity_hour),
            ("write_capacity_hour", self.write_capacity_hour),
            ("replicated_write_capacity_hour", self.replicated_write_capacity_hour),
        ]
    }

    fn check(&self, at: &str) -> Result<(), PriceError> {
        for (field, price) in self.named() {
            check_price(&format!("{at}.{field}"), price, MAX_PRICE)?;
        }
        Ok(())
    }

    /// Infrequent access: storage is cheaper, everything else is dearer.
    fn check_against(&self, standard: &Self, at: &str) -> Result<(), PriceError> {
        for ((field, ia), (_, standard)) in self.named().into_iter().zip(standard.named()) {
            let (fits, must) = match field {
                "storage_gb_month" => (ia < standard, "less"),
                _ => (ia > standard, "more"),
            };
            if !fits {
                let problem =
                    format!("is {ia:#}, which must be {must} than Standard's {standard:#}");
                return Err(wrong(&format!("{at}.{field}"), problem));
            }
        }
        Ok(())
    }
}

impl TermPrices {
    fn check(&self, standard: &ClassPrices, at: &str) -> Result<(), PriceError> {
        for (field, price, max) in [
            ("read_upfront", self.read_upfront, MAX_UPFRONT),
            ("read_hour", self.read_hour, hundred(standard.read_capacity_hour)),
            ("write_upfront", self.write_upfront, MAX_UPFRONT),
            ("write_hour", self.write_hour, hundred(standard.write_capacity_hour)),
        ] {
            check_price(&format!("{at}.{field}"), price, max)?;
        }
        Ok(())
    }
}

fn hundred(price: Usd) -> Usd {
    Usd::from_picos(price.picos().saturating_mul(100))
}

fn wrong(field: &str, problem: String) -> PriceError {
    PriceError::Field { field: field.to_owned(), problem }
}

fn check_price(field: &str, price: Usd, max: Usd) -> Result<(), PriceError> {
    if price <= Usd::ZERO || price > max {
        return Err(wrong(
            field,
            format!("is {price:#}, which must be above $0.00 and at most {max:#}"),
        ));
    }
    Ok(())
}

fn check_date(field: &str, date: &str) -> Result<(), PriceError> {
    let shaped = date.len() == 10 && date.parse::<jiff::civil::Date>().is_ok();
    if !shaped {
        return Err(wrong(field, format!("is {date:?}, which is no date such as 2026-10-04")));
    }
    Ok(())
}
