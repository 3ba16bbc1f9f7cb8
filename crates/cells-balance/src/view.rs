//! What plans are made from.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::plan::PlanError;

/// Bytes that an item is taken to have where a tenant's items were counted and its bytes were not.
pub const ASSUMED_ITEM_BYTES: u64 = 1024;

/// Of a utilisation; 1 is all of a cell.
const MAX_UTILISATION: f64 = 1_000.0;
const MIN_SIZE: f64 = 1e-3;
const MAX_SIZE: f64 = 1e6;

/// What a cell may be used for. RETIRED is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CellState {
    Active,
    Cordoned,
    Draining,
    Quarantined,
    Retired,
}

impl CellState {
    pub const ALL: [Self; 5] =
        [Self::Active, Self::Cordoned, Self::Draining, Self::Quarantined, Self::Retired];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Cordoned => "CORDONED",
            Self::Draining => "DRAINING",
            Self::Quarantined => "QUARANTINED",
            Self::Retired => "RETIRED",
        }
    }

    /// `None` for a text that is no state.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A cell, as far as a plan looks at it.
#[derive(Debug, Clone, PartialEq)]
pub struct CellView {
    pub id: String,
    pub region: String,
    pub labels: BTreeMap<String, String>,
    pub state: CellState,
    /// Tenants in the cell.
    pub placements: u64,
    /// How many tenants it can take; `None`: no limit.
    pub capacity: Option<u64>,
    /// Its share of new tenants; with 0 it takes none.
    pub weight: u32,
    /// How much of its throughput is used, 1 is all; 1,000 at most. `None`: not known.
    pub utilisation: Option<f64>,
    /// The throughput that a utilisation of 1 stands for, compared to other cells; 1 where all are alike. 0.001 to 1,000,000.
    pub size: f64,
    /// Bytes in its tables; `None`: not known.
    pub bytes: Option<u64>,
    /// Cells with the same text have tables of the same declaration, between which tenants can move.
    pub schema_group: String,
    /// Whether one transaction reaches its tables together with the routing table: the same account and Region.
    pub together: bool,
}

impl CellView {
    /// An empty cell is not busy, whether anybody measured it or not.
    pub(crate) fn known_utilisation(&self) -> Option<f64> {
        self.utilisation.or((self.placements == 0).then_some(0.0))
    }

    pub(crate) fn known_bytes(&self) -> Option<u64> {
        self.bytes.or((self.placements == 0).then_some(0))
    }

    /// How many more tenants it can take.
    pub(crate) fn places_left(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.placements))
    }
}

/// A tenant, as far as a plan looks at it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TenantView {
    /// Its partition key, 1 to 1,024 bytes.
    pub key: String,
    /// Where it lives.
    pub cell: String,
    /// `None`: not known.
    pub bytes: Option<u64>,
    /// `None`: not counted.
    pub items: Option<u64>,
    /// Its part of the cell's utilisation, 0 to 1. `None`: not known.
    pub load_share: Option<f64>,
    /// A cell must have all of these.
    pub required_labels: BTreeMap<String, String>,
    /// Regions where it may live; empty: no Region is ruled out.
    pub allowed_regions: Vec<String>,
    /// A migration of it is under way.
    pub moving: bool,
    /// It goes by itself before a move would pay.
    pub expires_soon: bool,
}

impl TenantView {
    /// Its bytes, or the best guess at them: by its items, or the average of its cell.
    pub(crate) fn likely_bytes(&self, cell: &CellView) -> u64 {
        self.bytes
            .or_else(|| Some(self.items?.saturating_mul(ASSUMED_ITEM_BYTES)))
            .or_else(|| cell.bytes?.checked_div(cell.placements))
            .unwrap_or(ASSUMED_ITEM_BYTES)
    }
}

/// Whether tenants may leave the Region of their cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residency {
    /// No tenant leaves the Region that it is in.
    #[default]
    SameRegion,
    /// A tenant may go to any Region, or to those that it allows where it names some.
    OtherRegions,
}

/// Cells by their ids.
pub(crate) type Index<'a> = HashMap<&'a str, usize>;

/// # Errors
/// Names the field that is not as it has to be.
pub(crate) fn check_cells(cells: &[CellView]) -> Result<Index<'_>, PlanError> {
    let mut index = Index::with_capacity(cells.len());
    for (at, cell) in cells.iter().enumerate() {
        if index.insert(cell.id.as_str(), at).is_some() {
            return Err(PlanError::CellTwice(cell.id.clone()));
        }
        if cell.utilisation.is_some_and(|value| !(0.0..=MAX_UTILISATION).contains(&value)) {
            return Err(PlanError::Utilisation(cell.id.clone()));
        }
        if !(MIN_SIZE..=MAX_SIZE).contains(&cell.size) {
            return Err(PlanError::Size(cell.id.clone()));
        }
    }
    Ok(index)
}

/// # Errors
/// Names the field that is not as it has to be.
pub(crate) fn check_tenants(tenants: &[TenantView], index: &Index<'_>) -> Result<(), PlanError> {
    let mut seen = HashSet::with_capacity(tenants.len());
    for tenant in tenants {
        if !seen.insert(tenant.key.as_str()) {
            return Err(PlanError::TenantTwice(tenant.key.clone()));
        }
        if !index.contains_key(tenant.cell.as_str()) {
            return Err(PlanError::CellOfTenant(tenant.key.clone(), tenant.cell.clone()));
        }
        if tenant.load_share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(PlanError::LoadShare(tenant.key.clone()));
        }
    }
    Ok(())
}
