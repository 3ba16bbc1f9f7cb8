//! How far each cell is from the ends of the band, and who may give or take what.
//!
//! Loads are whole numbers, so that what is added and taken away again comes out even.

use crate::view::{CellState, CellView};

/// Of a utilisation of 1 in a cell of size 1.
const UNITS: f64 = 1e9;

/// Utilisation in a cell of that size as load that can be compared between cells.
pub(crate) fn load(utilisation: f64, size: f64) -> i64 {
    // At most 1,000 × 1,000,000 × 1e9, which is in the range.
    (utilisation * size * UNITS).round() as i64
}

pub(crate) fn utilisation(load: i64, size: f64) -> f64 {
    load as f64 / UNITS / size
}

/// One cell's account.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// Load with the moves so far; `None`: not known, so the cell takes no part.
    pub level: Option<i64>,
    /// The ends of the band for this cell.
    pub low: i64,
    pub high: i64,
    /// By its state.
    gives: bool,
    takes: bool,
    places_left: u64,
    /// Tenants by the moves so far.
    pub given: u64,
    pub taken: u64,
    /// It gave or took tenants lately.
    pub gave_lately: bool,
    pub took_lately: bool,
}

impl Account {
    pub fn new(cell: &CellView, low: f64, high: f64) -> Self {
        let takes = cell.state == CellState::Active;
        Self {
            level: cell.known_utilisation().map(|value| load(value, cell.size)),
            low: load(low, cell.size),
            high: load(high, cell.size),
            gives: takes || cell.state == CellState::Cordoned,
            takes: takes && cell.weight > 0,
            places_left: cell.places_left(),
            given: 0,
            taken: 0,
            gave_lately: false,
            took_lately: false,
        }
    }

    /// What it can still give without leaving the band.
    pub fn spare(&self) -> i64 {
        let may = self.gives && self.taken == 0 && !self.took_lately;
        self.level.filter(|_| may).map_or(0, |level| level - self.low)
    }

    /// What it can still take without leaving the band.
    pub fn room(&self) -> i64 {
        let may =
            self.takes && self.given == 0 && !self.gave_lately && self.taken < self.places_left;
        self.level.filter(|_| may).map_or(0, |level| self.high - level)
    }

    /// What the band leaves above it, whether it may be used or not. `None`: not known.
    pub fn headroom(&self) -> Option<i64> {
        self.level.map(|level| self.high - level)
    }

    pub fn above(&self) -> i64 {
        self.level.map_or(0, |level| level - self.high).max(0)
    }

    pub fn below(&self) -> i64 {
        self.level.map_or(0, |level| self.low - level).max(0)
    }
}

/// A tenant that could be moved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    pub tenant: usize,
    pub giver: usize,
    /// Above 0.
    pub load: i64,
    pub bytes: u64,
}

/// All accounts.
#[derive(Debug, Clone)]
pub(crate) struct Books(pub Vec<Account>);

impl Books {
    pub fn fits(&self, candidate: &Candidate, taker: usize) -> bool {
        candidate.giver != taker
            && self.0[candidate.giver].spare() >= candidate.load
            && self.0[taker].room() >= candidate.load
    }

    pub fn book(&mut self, candidate: &Candidate, taker: usize) {
        self.shift(candidate, taker, candidate.load);
        self.0[candidate.giver].given += 1;
        self.0[taker].taken += 1;
    }

    pub fn unbook(&mut self, candidate: &Candidate, taker: usize) {
        self.shift(candidate, taker, -candidate.load);
        self.0[candidate.giver].given -= 1;
        self.0[taker].taken -= 1;
    }

    fn shift(&mut self, candidate: &Candidate, taker: usize, load: i64) {
        let giver = &mut self.0[candidate.giver].level;
        *giver = giver.map(|level| level - load);
        let taker = &mut self.0[taker].level;
        *taker = taker.map(|level| level + load);
    }
}
