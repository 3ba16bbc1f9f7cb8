//! How cells come into a band of utilisation.

use std::collections::HashSet;

use crate::books::{Account, Books, Candidate, load, utilisation};
use crate::cover::{Booked, by_density, cover, fractional};
use crate::plan::{
    Forecast, Hotspot, HotspotCause, LeftAlone, Move, Plan, PlanError, Standing, Stuck,
};
use crate::reach::Reach;
use crate::view::{CellState, CellView, Residency, TenantView, check_cells, check_tenants};

/// A cell counts as out of the band when it is by more than that: measurements are not exact.
pub const TOLERANCE: f64 = 1e-6;
/// Least part of its cell's load by which a tenant is a hotspot for want of room: in full cells there is no room for anybody.
pub const HOTSPOT_LEAST_SHARE: f64 = 0.1;

/// Where utilisation is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Band {
    /// At least 0. With 0 no cell is filled up.
    pub low: f64,
    /// Above `low`, at most 1,000.
    pub high: f64,
}

/// A move that ended not long ago: how long, the caller decides. While measurements still show its load where it was, it is lately.
#[derive(Debug, Clone, PartialEq)]
pub struct LastMove {
    pub tenant: String,
    pub source: String,
    pub target: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RebalanceOptions {
    pub residency: Residency,
    /// A tenant that is more than this part of its cell's load is not moved. Above 0, at most 1.
    pub hotspot_share: f64,
}

impl Default for RebalanceOptions {
    fn default() -> Self {
        Self { residency: Residency::default(), hotspot_share: 0.5 }
    }
}

/// Moves that bring cells into the band, of few bytes.
///
/// First cells above the band are relieved, those that are furthest above it first, then cells below it are filled: each by a greedy cover
/// (`cover.rs`: utilisation by byte, best of all last ones). A tenant goes to a cell below the band if it can, and among those to the one
/// with the most room.
///
/// What is promised of it: in any order of its moves, and with any of them left out, no cell leaves the band or gets further from it;
/// and after them, with these moves as `last_moves`, there is nothing more to do. The bytes are at most **twice** the fewest possible
/// among tenants that may be moved, where no cell is below the band, no load is wider than the band, and targets have room for all of it.
///
/// In general nothing is promised of the bytes: in tiny worlds they are a few per cent above the best on average, and many times the best at
/// worst. And a plan may end with cells out of the band that a better one would bring in: finding out is subset sum.
/// [`Plan::bytes_at_least`] says of each plan how far from the best it can be.
///
/// A cell gives or takes, never both, nor the opposite of what it did in one of `last_moves`; and tenants of `last_moves` stay. Tenants and
/// cells whose loads are not known stay out of it, and so do cells that are draining, in quarantine or retired; a cordoned cell gives.
///
/// # Errors
/// Where an argument is not as it has to be.
pub fn plan_rebalance(
    cells: &[CellView],
    tenants: &[TenantView],
    band: Band,
    last_moves: &[LastMove],
    options: &RebalanceOptions,
) -> Result<Plan, PlanError> {
    let index = check_cells(cells)?;
    check_tenants(tenants, &index)?;
    let Band { low, high } = band;
    if !(low >= 0.0 && low < high && high <= 1_000.0) {
        return Err(PlanError::Band { low, high });
    }
    if !(options.hotspot_share > 0.0 && options.hotspot_share <= 1.0) {
        return Err(PlanError::HotspotShare(options.hotspot_share));
    }
    let homes: Vec<usize> = tenants.iter().map(|tenant| index[tenant.cell.as_str()]).collect();
    let mut books = Books(cells.iter().map(|cell| Account::new(cell, low, high)).collect());
    for last in last_moves {
        index.get(last.source.as_str()).iter().for_each(|&&at| books.0[at].gave_lately = true);
        index.get(last.target.as_str()).iter().for_each(|&&at| books.0[at].took_lately = true);
    }
    let lately = last_moves.iter().map(|last| last.tenant.as_str()).collect();
    let reach = Reach::new(cells, tenants, &homes, options.residency);
    let start = books.clone();
    Ok(Rebalance { cells, tenants, homes, lately, reach, options, start, books }.plan())
}

/// Why a tenant is not a candidate.
#[derive(Clone, Copy, PartialEq)]
enum Stays {
    Moving,
    ExpiresSoon,
    MovedLately,
    LoadUnknown,
    /// It makes no load.
    Idle,
    Hotspot(HotspotCause),
}

struct Rebalance<'a> {
    cells: &'a [CellView],
    tenants: &'a [TenantView],
    /// The place of each tenant's cell.
    homes: Vec<usize>,
    lately: HashSet<&'a str>,
    reach: Reach,
    options: &'a RebalanceOptions,
    /// The accounts before any move.
    start: Books,
    books: Books,
}

impl Rebalance<'_> {
    fn plan(mut self) -> Plan {
        let mut plan = Plan::default();
        let stays: Vec<Option<Stays>> =
            (0..self.tenants.len()).map(|tenant| self.stays(tenant)).collect();
        self.tell_who_stays(&stays, &mut plan);
        let mut candidates: Vec<Candidate> = (0..self.tenants.len())
            .filter(|&tenant| stays[tenant].is_none())
            .map(|tenant| self.candidate(tenant))
            .collect();
        candidates.sort_by(|a, b| {
            by_density(a, b).then_with(|| self.key(a.tenant).cmp(self.key(b.tenant)))
        });
        let mut booked = self.relieve(&candidates);
        booked.extend(self.fill(&candidates, &booked));
        plan.bytes_at_least = Some(self.bytes_at_least(&stays));
        booked.sort_by(|a, b| {
            b.candidate
                .bytes
                .cmp(&a.candidate.bytes)
                .then_with(|| self.key(a.candidate.tenant).cmp(self.key(b.candidate.tenant)))
        });
        booked.iter().for_each(|one| plan.add_move(self.movement(one), one.candidate.bytes));
        self.forecast(&stays, &booked, &mut plan);
        plan
    }

    fn key(&self, tenant: usize) -> &str {
        &self.tenants[tenant].key
    }

    /// A tenant's load. 0 where it is not known.
    fn load(&self, tenant: usize) -> i64 {
        let cell = &self.cells[self.homes[tenant]];
        let share = self.tenants[tenant].load_share.unwrap_or(0.0);
        load(share * cell.known_utilisation().unwrap_or(0.0), cell.size)
    }

    fn candidate(&self, tenant: usize) -> Candidate {
        let giver = self.homes[tenant];
        let bytes = self.tenants[tenant].likely_bytes(&self.cells[giver]);
        Candidate { tenant, giver, load: self.load(tenant), bytes }
    }

    fn stays(&self, at: usize) -> Option<Stays> {
        let tenant = &self.tenants[at];
        if tenant.moving {
            return Some(Stays::Moving);
        }
        if tenant.expires_soon {
            return Some(Stays::ExpiresSoon);
        }
        if self.lately.contains(tenant.key.as_str()) {
            return Some(Stays::MovedLately);
        }
        let Some(share) = tenant.load_share else { return Some(Stays::LoadUnknown) };
        if self.load(at) == 0 {
            return Some(Stays::Idle);
        }
        self.hotspot(at, share).map(Stays::Hotspot)
    }

    /// Whether moving the tenant would only move the trouble.
    fn hotspot(&self, tenant: usize, share: f64) -> Option<HotspotCause> {
        if share > self.options.hotspot_share {
            return Some(HotspotCause::Share);
        }
        let home = self.homes[tenant];
        if share < HOTSPOT_LEAST_SHARE || !self.is_above(&self.start, home) {
            return None;
        }
        let others = self.reach.of(tenant).iter().filter(|&&at| at != home);
        let most = others.filter_map(|&at| self.start.0[at].headroom()).max()?;
        (self.load(tenant) > most).then_some(HotspotCause::Room)
    }

    fn is_above(&self, books: &Books, cell: usize) -> bool {
        books.0[cell].above() > load(TOLERANCE, self.cells[cell].size)
    }

    fn is_below(&self, books: &Books, cell: usize) -> bool {
        books.0[cell].below() > load(TOLERANCE, self.cells[cell].size)
    }

    fn takes_part(&self, cell: usize) -> bool {
        matches!(self.cells[cell].state, CellState::Active | CellState::Cordoned)
    }

    fn tell_who_stays(&self, stays: &[Option<Stays>], plan: &mut Plan) {
        for (at, stays) in stays.iter().enumerate() {
            let (tenant, home) = (&self.tenants[at], self.homes[at]);
            match stays {
                Some(Stays::Moving) => plan.leave(&tenant.key, LeftAlone::Moving),
                Some(Stays::ExpiresSoon) => plan.leave(&tenant.key, LeftAlone::ExpiresSoon),
                Some(Stays::Hotspot(cause))
                    if self.takes_part(home) && self.is_above(&self.start, home) =>
                {
                    plan.add_hotspot(Hotspot {
                        tenant: tenant.key.clone(),
                        cell: tenant.cell.clone(),
                        share: tenant.load_share.unwrap_or(0.0),
                        cause: *cause,
                    });
                }
                _ => {}
            }
        }
    }

    /// Cells that `distance` is above 0 for, the furthest first.
    fn furthest(&self, distance: impl Fn(usize) -> i64) -> Vec<usize> {
        let part = |cell: &usize| self.takes_part(*cell) && distance(*cell) > 0;
        let mut cells: Vec<usize> = (0..self.cells.len()).filter(part).collect();
        cells.sort_by(|&a, &b| {
            let order = distance(b).cmp(&distance(a));
            order.then_with(|| self.cells[a].id.cmp(&self.cells[b].id))
        });
        cells
    }

    /// Moves out of the cells above the band.
    fn relieve(&mut self, candidates: &[Candidate]) -> Vec<Booked> {
        let mut of_cell: Vec<Vec<Candidate>> = vec![Vec::new(); self.cells.len()];
        candidates.iter().for_each(|one| of_cell[one.giver].push(*one));
        let above = |cell: usize| match self.is_above(&self.start, cell) {
            true => self.start.0[cell].above(),
            false => 0,
        };
        let mut booked = Vec::new();
        for cell in self.furthest(above) {
            let need = self.books.0[cell].above();
            let reach = &self.reach;
            booked.extend(cover(
                &mut self.books,
                need,
                of_cell[cell].iter().copied(),
                |books, candidate| roomiest(books, reach.of(candidate.tenant), candidate),
            ));
        }
        booked
    }

    /// Moves into the cells that still are below the band.
    fn fill(&mut self, candidates: &[Candidate], moved: &[Booked]) -> Vec<Booked> {
        let mut free = vec![true; self.tenants.len()];
        moved.iter().for_each(|one| free[one.candidate.tenant] = false);
        let below = |cell: usize| match self.is_below(&self.books, cell) {
            true => self.books.0[cell].below(),
            false => 0,
        };
        let mut booked = Vec::new();
        for cell in self.furthest(below) {
            let need = self.books.0[cell].below();
            let reach = &self.reach;
            let fit = candidates.iter().copied().filter(|one| free[one.tenant]);
            let new = cover(&mut self.books, need, fit, |books, candidate| {
                (books.fits(candidate, cell) && reach.reaches(candidate.tenant, cell))
                    .then_some(cell)
            });
            new.iter().for_each(|one| free[one.candidate.tenant] = false);
            booked.extend(new);
        }
        booked
    }

    /// The larger of two bounds: what the cells above the band must give, each out of its own tenants, and what the cells below it must
    /// get, out of all tenants. Hotspots count among them, and that a cell might give and take, so it holds for other planners, too.
    fn bytes_at_least(&self, stays: &[Option<Stays>]) -> u64 {
        let could = |at: &usize| matches!(stays[*at], None | Some(Stays::Hotspot(_)));
        let mut all: Vec<Candidate> = (0..self.tenants.len())
            .filter(could)
            .map(|tenant| self.candidate(tenant))
            .filter(|one| one.load > 0)
            .collect();
        all.sort_by(by_density);
        let mut of_cell: Vec<Vec<Candidate>> = vec![Vec::new(); self.cells.len()];
        all.iter().for_each(|one| of_cell[one.giver].push(*one));
        let (mut relieved, mut wanted) = (0u64, 0i64);
        for ((before, after), own) in self.start.0.iter().zip(&self.books.0).zip(of_cell) {
            let relief = (before.above() - after.above()).max(0);
            relieved = relieved.saturating_add(fractional(relief, own.into_iter()));
            wanted = wanted.saturating_add((before.below() - after.below()).max(0));
        }
        relieved.max(fractional(wanted, all.into_iter()))
    }

    fn movement(&self, booked: &Booked) -> Move {
        let Booked { candidate, taker } = *booked;
        let tenant = &self.tenants[candidate.tenant];
        Move {
            tenant: tenant.key.clone(),
            source: tenant.cell.clone(),
            target: self.cells[taker].id.clone(),
            bytes: tenant.bytes,
            relieves: Some(utilisation(candidate.load, self.cells[candidate.giver].size)),
        }
    }

    fn standing(&self, cell: usize) -> Standing {
        if !self.takes_part(cell) {
            Standing::LeftAlone
        } else if self.books.0[cell].level.is_none() {
            Standing::Unknown
        } else if self.is_above(&self.books, cell) {
            Standing::Above
        } else if self.is_below(&self.books, cell) {
            Standing::Below
        } else {
            Standing::InBand
        }
    }

    fn forecast(&self, stays: &[Option<Stays>], booked: &[Booked], plan: &mut Plan) {
        let mut stuck = self.stuck(stays, booked);
        for (at, cell) in self.cells.iter().enumerate() {
            let account = &self.books.0[at];
            let after = cell.placements.saturating_add(account.taken);
            let standing = self.standing(at);
            plan.cells.push(Forecast {
                cell: cell.id.clone(),
                placements: cell.placements,
                placements_after: after.saturating_sub(account.given),
                utilisation: cell.utilisation,
                utilisation_after: account.level.map(|level| utilisation(level, cell.size)),
                standing: Some(standing),
                stuck: (standing == Standing::Above).then(|| std::mem::take(&mut stuck[at])),
            });
        }
        plan.cells.sort_by(|a, b| a.cell.cmp(&b.cell));
    }

    /// Of each cell, why those who stay in it do.
    fn stuck(&self, stays: &[Option<Stays>], booked: &[Booked]) -> Vec<Stuck> {
        let mut stuck = vec![Stuck::default(); self.cells.len()];
        let moved: HashSet<usize> = booked.iter().map(|one| one.candidate.tenant).collect();
        for (at, stays) in stays.iter().enumerate().filter(|(at, _)| !moved.contains(at)) {
            let home = self.homes[at];
            let stuck = &mut stuck[home];
            match stays {
                Some(Stays::Moving) => stuck.moving += 1,
                Some(Stays::ExpiresSoon) => stuck.expiring += 1,
                Some(Stays::MovedLately) => stuck.moved_lately += 1,
                Some(Stays::LoadUnknown) => stuck.load_unknown += 1,
                Some(Stays::Hotspot(_)) => stuck.hotspots += 1,
                Some(Stays::Idle) => {}
                None if self.reach.of(at).iter().all(|&cell| cell == home) => stuck.no_target += 1,
                None => stuck.no_room += 1,
            }
        }
        stuck
    }
}

/// Of the cells that have room for a candidate one below the band, and of those the one with the most room.
fn roomiest(books: &Books, cells: &[usize], candidate: &Candidate) -> Option<usize> {
    let fit = cells.iter().copied().filter(|&cell| books.fits(candidate, cell));
    fit.max_by_key(|&cell| {
        (books.0[cell].below() > 0, books.0[cell].room(), std::cmp::Reverse(cell))
    })
}
