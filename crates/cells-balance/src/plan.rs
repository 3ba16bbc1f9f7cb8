//! What a plan says.

use std::fmt;

use thiserror::Error;

use crate::view::CellState;

/// Entries of each list of a plan, but for the moves and the cells: of the rest there is the number.
pub const MAX_LISTED: usize = 1_000;
/// Cells of which it is said why a tenant cannot go there.
pub const MAX_REFUSALS: usize = 16;

/// Why no plan could be made.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanError {
    #[error("cell {0:?} is not among the cells; name one that is registered")]
    UnknownCell(String),
    #[error("cells: {0:?} is there twice; send every cell once")]
    CellTwice(String),
    #[error(
        "cells[{0:?}].utilisation is not between 0 and 1,000; leave it out where it is not known"
    )]
    Utilisation(String),
    #[error(
        "cells[{0:?}].size is not between 0.001 and 1,000,000; send 1 where all cells are alike"
    )]
    Size(String),
    #[error("tenants: {0:?} is there twice; send every tenant once")]
    TenantTwice(String),
    #[error("tenants[{0:?}].cell is {1:?}, which is not among the cells; send that cell, too")]
    CellOfTenant(String, String),
    #[error("tenants[{0:?}].load_share is not between 0 and 1; leave it out where it is not known")]
    LoadShare(String),
    #[error(
        "band: low must be at least 0 and below high, and high at most 1,000; got {low} to {high}"
    )]
    Band { low: f64, high: f64 },
    #[error("options.hotspot_share must be above 0 and at most 1; got {0}")]
    HotspotShare(f64),
    #[error("options.ceiling must be above 0 and at most 1,000; got {0}")]
    Ceiling(f64),
    #[error(
        "options.ceiling cannot be kept, since the utilisation of {0:?} is not known; leave the ceiling out, or measure first"
    )]
    CeilingUnknown(String),
}

/// One tenant's way.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    pub tenant: String,
    pub source: String,
    pub target: String,
    /// `None`: not known.
    pub bytes: Option<u64>,
    /// By how much the source's utilisation falls; `None`: not known.
    pub relieves: Option<f64>,
}

/// Why a cell cannot take a tenant.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    State(CellState),
    NoWeight,
    OtherSchema,
    NotTogether,
    OtherRegion,
    RegionNotAllowed,
    /// The first label that it lacks.
    Label {
        name: String,
        value: String,
    },
    /// With the moves that were planned before.
    Full {
        placements: u64,
        capacity: u64,
    },
    UtilisationUnknown,
    /// What its utilisation would be.
    AboveCeiling {
        utilisation: f64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "is {}", state.as_str()),
            Self::NoWeight => f.write_str("has weight 0"),
            Self::OtherSchema => f.write_str("its tables are declared otherwise"),
            Self::NotTogether => f.write_str("no one transaction reaches both cells"),
            Self::OtherRegion => f.write_str("is in another region"),
            Self::RegionNotAllowed => f.write_str("is in a region that the tenant does not allow"),
            Self::Label { name, value } => write!(f, "lacks the label {name}={value}"),
            Self::Full { placements, capacity } => {
                write!(f, "is full: {placements} of {capacity}, with what is planned")
            }
            Self::UtilisationUnknown => f.write_str("its utilisation is not known"),
            Self::AboveCeiling { utilisation } => {
                write!(f, "its utilisation would be {utilisation:.2}, above the ceiling")
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    pub cell: String,
    pub why: Refusal,
}

/// A tenant that no cell can take.
#[derive(Debug, Clone, PartialEq)]
pub struct Unplaced {
    pub tenant: String,
    /// The first [`MAX_REFUSALS`], in the order of the cells' ids.
    pub refused: Vec<Refused>,
    /// Cells that are not listed.
    pub more: u64,
}

/// Why a tenant was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftAlone {
    Moving,
    ExpiresSoon,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    pub tenant: String,
    pub why: LeftAlone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotspotCause {
    /// It is more of its cell's load than the options allow to be moved.
    Share,
    /// No cell that could take it has room for it within the band.
    Room,
}

/// A tenant that is itself what keeps a cell above the band: moving it would move the trouble.
#[derive(Debug, Clone, PartialEq)]
pub struct Hotspot {
    pub tenant: String,
    pub cell: String,
    /// Its part of the cell's utilisation.
    pub share: f64,
    pub cause: HotspotCause,
}

/// By what tenants of a drained cell are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpreadBy {
    /// Utilisation of the targets.
    Utilisation,
    /// Bytes of the targets by their weight.
    Bytes,
    /// Placements of the targets by their weight.
    Placements,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    InBand,
    Above,
    Below,
    /// Its utilisation is not known, so it neither gives nor takes.
    Unknown,
    /// Its state keeps it out: it is draining, in quarantine or retired.
    LeftAlone,
}

/// Why the tenants of a cell that stays above the band stay: numbers of tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stuck {
    pub hotspots: u64,
    pub moving: u64,
    pub expiring: u64,
    pub moved_lately: u64,
    pub load_unknown: u64,
    /// No cell could take them whatever room it has.
    pub no_target: u64,
    /// No cell has room left within the band and its capacity, or the cell that they are in took tenants lately.
    pub no_room: u64,
}

/// A cell before and after the moves.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    pub cell: String,
    pub placements: u64,
    pub placements_after: u64,
    /// `None`: not known.
    pub utilisation: Option<f64>,
    pub utilisation_after: Option<f64>,
    /// Of a rebalance: how it stands after the moves.
    pub standing: Option<Standing>,
    /// Of a rebalance, where it stays above the band.
    pub stuck: Option<Stuck>,
}

/// The moves, and what there is to know before they are made.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// No tenant twice. Those that weigh most come first.
    pub moves: Vec<Move>,
    /// Bytes to be moved, where a tenant's are not known by the best guess.
    pub bytes: u64,
    /// Moves of tenants whose bytes are a guess.
    pub bytes_guessed: u64,
    /// Of a rebalance: no plan that relieves and fills cells as far as this one moves fewer bytes than that, of tenants whose load is
    /// known and who may be moved now. The ratio of [`Plan::bytes`] to it is how much better a plan could be at the very most.
    pub bytes_at_least: Option<u64>,
    /// Of a drain: by what tenants are spread.
    pub spread_by: Option<SpreadBy>,
    /// Of a drain: tenants that no cell can take, the first [`MAX_LISTED`] and how many they are.
    pub unplaced: Vec<Unplaced>,
    pub unplaced_total: u64,
    /// Tenants that were not looked at, the first [`MAX_LISTED`] and how many they are.
    pub left: Vec<Left>,
    pub left_total: u64,
    /// Of a rebalance: the first [`MAX_LISTED`] and how many they are.
    pub hotspots: Vec<Hotspot>,
    pub hotspots_total: u64,
    /// All cells, in the order of their ids.
    pub cells: Vec<Forecast>,
}

impl Plan {
    pub(crate) fn leave(&mut self, tenant: &str, why: LeftAlone) {
        self.left_total += 1;
        if self.left.len() < MAX_LISTED {
            self.left.push(Left { tenant: tenant.to_owned(), why });
        }
    }

    pub(crate) fn add_hotspot(&mut self, hotspot: Hotspot) {
        self.hotspots_total += 1;
        if self.hotspots.len() < MAX_LISTED {
            self.hotspots.push(hotspot);
        }
    }

    pub(crate) fn add_move(&mut self, one: Move, likely_bytes: u64) {
        self.bytes = self.bytes.saturating_add(likely_bytes);
        self.bytes_guessed += u64::from(one.bytes.is_none());
        self.moves.push(one);
    }
}
