//! Where the tenants of one cell go.

use crate::plan::{
    Forecast, LeftAlone, MAX_LISTED, MAX_REFUSALS, Move, Plan, PlanError, Refusal, Refused,
    SpreadBy, Unplaced,
};
use crate::reach::{Reach, refusal};
use crate::view::{CellView, Index, Residency, TenantView, check_cells, check_tenants};

#[derive(Debug, Clone, PartialEq, Default)]
pub struct DrainOptions {
    pub residency: Residency,
    /// No cell's utilisation is to rise above that. Cells of which it is not known then take no tenants.
    pub ceiling: Option<f64>,
}

/// A target for every tenant of a cell. Tenants of other cells are passed over.
///
/// **LPT**, longest processing time first (R. L. Graham, *Bounds on Multiprocessing Timing Anomalies*, SIAM J. Appl. Math. 17, 1969): the tenants
/// in descending order of weight, each to the cell that is least full with it. What is weighed is utilisation where it is known of
/// the cell and of all possible targets, else bytes, else each tenant is 1 ([`SpreadBy`]); bytes and placements are divided by
/// the target's weight.
///
/// Targets are not empty at the start. For that case, without capacities, labels or a ceiling and with targets of one size, the fullest target
/// is at most 3/2 − 1/(2m) as full as with the best of all plans for m targets (C.-Y. Lee, *Parallel machines scheduling with
/// nonsimultaneous machine available time*, Discrete Applied Mathematics 30, 1991). With them nothing is promised of the ratio; and
/// since nobody is moved twice, a tenant can stay unplaced although another plan would place it.
///
/// Takes time in proportion to tenants × targets.
///
/// # Errors
/// Where an argument is not as it has to be.
pub fn plan_drain(
    cell: &str,
    tenants: &[TenantView],
    cells: &[CellView],
    options: &DrainOptions,
) -> Result<Plan, PlanError> {
    let index = check_cells(cells)?;
    check_tenants(tenants, &index)?;
    let source = *index.get(cell).ok_or_else(|| PlanError::UnknownCell(cell.to_owned()))?;
    if let Some(ceiling) = options.ceiling {
        if !(ceiling > 0.0 && ceiling <= 1_000.0) {
            return Err(PlanError::Ceiling(ceiling));
        }
        if cells[source].known_utilisation().is_none() {
            return Err(PlanError::CeilingUnknown(cell.to_owned()));
        }
    }
    Ok(Drain::new(source, tenants, cells, &index, options).plan())
}

/// A tenant that is to go, by its place among all tenants.
struct Leaving {
    tenant: usize,
    /// In the measure that tenants are spread by.
    amount: f64,
    bytes: u64,
}

struct Drain<'a> {
    source: usize,
    tenants: &'a [TenantView],
    cells: &'a [CellView],
    options: &'a DrainOptions,
    reach: Reach,
    spread_by: SpreadBy,
    /// Of each cell, what is in it with the moves so far, and what that is divided by.
    levels: Vec<f64>,
    scales: Vec<f64>,
    /// Tenants that each cell was given.
    arrived: Vec<u64>,
    /// Utilisation of the source that each tenant stands for.
    loads: Vec<f64>,
    plan: Plan,
}

impl<'a> Drain<'a> {
    fn new(
        source: usize,
        tenants: &'a [TenantView],
        cells: &'a [CellView],
        index: &Index<'_>,
        options: &'a DrainOptions,
    ) -> Self {
        let homes: Vec<usize> = tenants.iter().map(|tenant| index[tenant.cell.as_str()]).collect();
        let reach = Reach::new(cells, tenants, &homes, options.residency);
        let leaves = |at: usize| homes[at] == source;
        let mut taker = vec![false; cells.len()];
        for at in (0..tenants.len()).filter(|&at| leaves(at)) {
            reach.of(at).iter().for_each(|&cell| taker[cell] = true);
        }
        taker[source] = false;
        let spread_by = spread_by(source, cells, &taker, options);
        let measure = |cell: &CellView| match spread_by {
            SpreadBy::Utilisation => {
                (cell.known_utilisation().unwrap_or(0.0) * cell.size, cell.size)
            }
            SpreadBy::Bytes => (cell.known_bytes().unwrap_or(0) as f64, f64::from(cell.weight)),
            SpreadBy::Placements => (cell.placements as f64, f64::from(cell.weight)),
        };
        let (levels, scales) = cells.iter().map(measure).unzip();
        let plan = Plan { spread_by: Some(spread_by), ..Plan::default() };
        let arrived = vec![0; cells.len()];
        let loads = loads(&cells[source], tenants);
        Self {
            source,
            tenants,
            cells,
            options,
            reach,
            spread_by,
            levels,
            scales,
            arrived,
            loads,
            plan,
        }
    }

    fn plan(mut self) -> Plan {
        for leaving in self.leaving() {
            match self.target(&leaving) {
                Some(target) => self.send(&leaving, target),
                None => self.unplaced(&leaving),
            }
        }
        self.forecast();
        self.plan
    }

    /// Who is to go, those that weigh most first.
    fn leaving(&mut self) -> Vec<Leaving> {
        let cell = &self.cells[self.source];
        let mut leaving = Vec::new();
        for (at, tenant) in self.tenants.iter().enumerate().filter(|(_, t)| t.cell == cell.id) {
            if tenant.moving {
                self.plan.leave(&tenant.key, LeftAlone::Moving);
            } else if tenant.expires_soon {
                self.plan.leave(&tenant.key, LeftAlone::ExpiresSoon);
            } else {
                let bytes = tenant.likely_bytes(cell);
                let amount = match self.spread_by {
                    SpreadBy::Utilisation => self.loads[at] * cell.size,
                    SpreadBy::Bytes => bytes as f64,
                    SpreadBy::Placements => 1.0,
                };
                leaving.push(Leaving { tenant: at, amount, bytes });
            }
        }
        leaving.sort_by(|a, b| {
            b.amount
                .total_cmp(&a.amount)
                .then(b.bytes.cmp(&a.bytes))
                .then_with(|| self.tenants[a.tenant].key.cmp(&self.tenants[b.tenant].key))
        });
        leaving
    }

    fn fill_with(&self, cell: usize, amount: f64) -> f64 {
        (self.levels[cell] + amount) / self.scales[cell]
    }

    /// The cell that is least full with the tenant; of equals the one whose id comes first.
    fn target(&self, leaving: &Leaving) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for &at in self.reach.of(leaving.tenant) {
            if at == self.source || self.no_room(at, leaving).is_some() {
                continue;
            }
            let fill = self.fill_with(at, leaving.amount);
            let better = best.is_none_or(|(least, cell)| {
                fill < least || (fill == least && self.cells[at].id < self.cells[cell].id)
            });
            if better {
                best = Some((fill, at));
            }
        }
        best.map(|(_, at)| at)
    }

    /// Why a cell that could take a tenant has no room for it now.
    fn no_room(&self, at: usize, leaving: &Leaving) -> Option<Refusal> {
        let (cell, arrived) = (&self.cells[at], self.arrived[at]);
        if arrived >= cell.places_left() {
            let placements = cell.placements.saturating_add(arrived);
            return Some(Refusal::Full {
                placements,
                capacity: cell.capacity.unwrap_or(placements),
            });
        }
        let ceiling = self.options.ceiling?;
        if cell.known_utilisation().is_none() {
            return Some(Refusal::UtilisationUnknown);
        }
        let utilisation = self.fill_with(at, leaving.amount);
        (utilisation > ceiling).then_some(Refusal::AboveCeiling { utilisation })
    }

    fn send(&mut self, leaving: &Leaving, target: usize) {
        self.levels[target] += leaving.amount;
        self.arrived[target] += 1;
        let tenant = &self.tenants[leaving.tenant];
        let source = &self.cells[self.source];
        let one = Move {
            tenant: tenant.key.clone(),
            source: source.id.clone(),
            target: self.cells[target].id.clone(),
            bytes: tenant.bytes,
            relieves: source.utilisation.zip(tenant.load_share).map(|(all, share)| all * share),
        };
        self.plan.add_move(one, leaving.bytes);
    }

    fn unplaced(&mut self, leaving: &Leaving) {
        self.plan.unplaced_total += 1;
        if self.plan.unplaced.len() >= MAX_LISTED {
            return;
        }
        let (source, tenant) = (&self.cells[self.source], &self.tenants[leaving.tenant]);
        let mut others: Vec<usize> =
            (0..self.cells.len()).filter(|&at| at != self.source).collect();
        others.sort_by(|&a, &b| self.cells[a].id.cmp(&self.cells[b].id));
        let why = |at: &usize| {
            let cell = &self.cells[*at];
            let why = refusal(source, tenant, cell, self.options.residency)
                .or_else(|| self.no_room(*at, leaving))?;
            Some(Refused { cell: cell.id.clone(), why })
        };
        let refused: Vec<Refused> = others.iter().filter_map(why).take(MAX_REFUSALS).collect();
        let more = others.len().saturating_sub(refused.len()) as u64;
        self.plan.unplaced.push(Unplaced { tenant: tenant.key.clone(), refused, more });
    }

    fn forecast(&mut self) {
        let left = self.plan.moves.len() as u64;
        let relieved: f64 = self.plan.moves.iter().filter_map(|one| one.relieves).sum();
        for (at, cell) in self.cells.iter().enumerate() {
            let gives = at == self.source;
            let utilisation_after = match self.spread_by {
                _ if gives => cell.utilisation.map(|value| (value - relieved).max(0.0)),
                SpreadBy::Utilisation if cell.known_utilisation().is_some() => {
                    Some(self.levels[at] / self.scales[at])
                }
                _ => None,
            };
            self.plan.cells.push(Forecast {
                cell: cell.id.clone(),
                placements: cell.placements,
                placements_after: if gives {
                    cell.placements.saturating_sub(left)
                } else {
                    cell.placements.saturating_add(self.arrived[at])
                },
                utilisation: cell.utilisation,
                utilisation_after,
                standing: None,
                stuck: None,
            });
        }
        self.plan.cells.sort_by(|a, b| a.cell.cmp(&b.cell));
    }
}

/// One measure for all targets: a cell cannot be compared by utilisation with one of which that is not known.
fn spread_by(
    source: usize,
    cells: &[CellView],
    taker: &[bool],
    options: &DrainOptions,
) -> SpreadBy {
    let takers = || cells.iter().zip(taker).filter(|(_, takes)| **takes).map(|(cell, _)| cell);
    let all_known = || takers().all(|cell| cell.known_utilisation().is_some());
    if options.ceiling.is_some() || (cells[source].known_utilisation().is_some() && all_known()) {
        SpreadBy::Utilisation
    } else if takers().all(|cell| cell.known_bytes().is_some()) {
        SpreadBy::Bytes
    } else {
        SpreadBy::Placements
    }
}

/// What of the cell's utilisation each of its tenants stands for. What is left by those of which that is known is taken to be spread
/// evenly over the others.
fn loads(cell: &CellView, tenants: &[TenantView]) -> Vec<f64> {
    let all = cell.known_utilisation().unwrap_or(0.0);
    let own = || tenants.iter().filter(|tenant| tenant.cell == cell.id);
    let known: f64 = own().filter_map(|tenant| tenant.load_share).sum();
    let unknown = own().filter(|tenant| tenant.load_share.is_none()).count();
    let even = (1.0 - known).max(0.0) / (unknown.max(1) as f64);
    tenants.iter().map(|tenant| all * tenant.load_share.unwrap_or(even)).collect()
}
