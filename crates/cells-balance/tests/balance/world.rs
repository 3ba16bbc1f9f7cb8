//! Cells and tenants to plan for. Loads are whole thousandths of a cell, so that applying a plan makes no rounding errors.

use std::collections::BTreeMap;

use cells_balance::*;
use proptest::prelude::*;

pub fn cell(id: &str, utilisation: f64) -> CellView {
    CellView {
        id: id.into(),
        region: "eu-west-1".into(),
        labels: BTreeMap::new(),
        state: CellState::Active,
        placements: 10,
        capacity: None,
        weight: 100,
        utilisation: Some(utilisation),
        size: 1.0,
        bytes: Some(1_000),
        schema_group: "one".into(),
        together: true,
    }
}

pub fn tenant(key: &str, cell: &str, load_share: f64, bytes: u64) -> TenantView {
    TenantView {
        key: key.into(),
        cell: cell.into(),
        bytes: Some(bytes),
        load_share: Some(load_share),
        ..TenantView::default()
    }
}

pub fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

pub fn ways(plan: &Plan) -> Vec<(&str, &str, &str)> {
    let moves = plan.moves.iter();
    moves.map(|one| (one.tenant.as_str(), one.source.as_str(), one.target.as_str())).collect()
}

/// A world whose loads are known to the thousandth. What the planner gets is made of it.
#[derive(Debug, Clone)]
pub struct World {
    pub cells: Vec<CellView>,
    /// Load of a cell that no tenant makes.
    pub background: Vec<u64>,
    pub tenants: Vec<TenantView>,
    /// The load of each tenant; its share follows from it.
    pub loads: Vec<u64>,
}

impl World {
    pub fn place(&self, cell: &str) -> usize {
        self.cells.iter().position(|one| one.id == cell).unwrap()
    }

    /// The load of a cell, in thousandths.
    pub fn level(&self, cell: usize) -> u64 {
        let own = |at: &usize| self.tenants[*at].cell == self.cells[cell].id;
        let tenants = (0..self.tenants.len()).filter(own).map(|at| self.loads[at]);
        self.background[cell] + tenants.sum::<u64>()
    }

    /// Sets what is measured: utilisation, shares and placements. What was not known stays so.
    pub fn measure(mut self) -> Self {
        for at in 0..self.cells.len() {
            let id = self.cells[at].id.clone();
            let placements = self.tenants.iter().filter(|tenant| tenant.cell == id).count();
            self.cells[at].placements = placements as u64;
            let known = self.cells[at].utilisation.is_some() || placements == 0;
            self.cells[at].utilisation = known.then_some(self.level(at) as f64 / 1e3);
        }
        for at in 0..self.tenants.len() {
            let level = self.level(self.place(&self.tenants[at].cell));
            let share = if level == 0 { 0.0 } else { self.loads[at] as f64 / level as f64 };
            self.tenants[at].load_share = self.tenants[at].load_share.map(|_| share);
        }
        self
    }

    /// The world after some moves.
    pub fn after<'a>(&self, moves: impl IntoIterator<Item = &'a Move>) -> Self {
        let mut world = self.clone();
        for one in moves {
            let tenant = world.tenants.iter_mut().find(|tenant| tenant.key == one.tenant).unwrap();
            assert_eq!(tenant.cell, one.source, "moved out of a cell that it is not in");
            tenant.cell = one.target.clone();
        }
        world.measure()
    }
}

/// Whether a cell can take a tenant of another, whatever room it has. Said in other words than the planner's.
pub fn could_take(
    source: &CellView,
    tenant: &TenantView,
    target: &CellView,
    residency: Residency,
) -> bool {
    let new_tenants = target.state == CellState::Active && target.weight > 0;
    let alike = target.schema_group == source.schema_group && target.together && source.together;
    let near = source.region == target.region || residency == Residency::OtherRegions;
    let allowed =
        tenant.allowed_regions.is_empty() || tenant.allowed_regions.contains(&target.region);
    let labelled = tenant
        .required_labels
        .iter()
        .all(|(name, value)| target.labels.get(name).is_some_and(|has| has == value));
    source.id != target.id && new_tenants && alike && near && allowed && labelled
}

fn a_state() -> impl Strategy<Value = CellState> {
    prop_oneof![
        8 => Just(CellState::Active),
        1 => Just(CellState::Cordoned),
        1 => Just(CellState::Draining),
        1 => Just(CellState::Quarantined),
        1 => Just(CellState::Retired),
    ]
}

fn a_cell(at: usize) -> impl Strategy<Value = (CellView, u64)> {
    let places = (
        a_state(),
        prop::option::weighted(0.3, 1u64..8),
        prop_oneof![9 => 1u32..100, 1 => Just(0)],
    );
    let where_it_is = (
        prop::sample::select(vec!["eu-west-1", "eu-west-1", "eu-west-1", "eu-central-1"]),
        prop::sample::select(vec!["one", "one", "one", "one", "two"]),
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.5),
    );
    let measured =
        (0u64..300, prop::bool::weighted(0.9), prop::option::weighted(0.8, 0u64..10_000));
    (places, where_it_is, measured).prop_map(move |(places, where_it_is, measured)| {
        let (state, capacity, weight) = places;
        let (region, group, together, gold) = where_it_is;
        let (background, known, bytes) = measured;
        let view = CellView {
            region: region.into(),
            labels: if gold { labels(&[("tier", "gold")]) } else { BTreeMap::new() },
            state,
            capacity,
            weight,
            utilisation: known.then_some(0.0),
            bytes,
            schema_group: group.into(),
            together,
            ..cell(&format!("cell-{at}"), 0.0)
        };
        (view, background)
    })
}

fn a_tenant(at: usize, cells: usize) -> impl Strategy<Value = (TenantView, u64)> {
    let size = (prop::option::weighted(0.9, 0u64..5_000), prop::option::of(0u64..50), 0u64..250);
    let flags = (
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    );
    (size, flags, 0..cells).prop_map(move |((bytes, items, load), flags, cell)| {
        let (moving, expires_soon, known, gold, local) = flags;
        let view = TenantView {
            key: format!("t{at}"),
            cell: format!("cell-{cell}"),
            bytes,
            items,
            load_share: known.then_some(0.0),
            required_labels: if gold { labels(&[("tier", "gold")]) } else { BTreeMap::new() },
            allowed_regions: if local { vec!["eu-west-1".into()] } else { vec![] },
            moving,
            expires_soon,
        };
        (view, load)
    })
}

/// Anything that can be there. In every other world nothing but loads rules a move out, so that many are made.
pub fn a_world() -> impl Strategy<Value = World> {
    (2usize..7, 0usize..30, any::<bool>()).prop_flat_map(|(cells, tenants, plain)| {
        let all_cells: Vec<_> = (0..cells).map(a_cell).collect();
        let all_tenants: Vec<_> = (0..tenants).map(|at| a_tenant(at, cells)).collect();
        (all_cells, all_tenants).prop_map(move |(cells, tenants)| {
            let (mut cells, background): (Vec<CellView>, _) = cells.into_iter().unzip();
            let (mut tenants, loads): (Vec<TenantView>, _) = tenants.into_iter().unzip();
            if plain {
                cells.iter_mut().for_each(|one| *one = cell(&one.id, 0.0));
                let plainly = |one: &TenantView| {
                    let bytes = one.bytes.unwrap_or_default();
                    tenant(&one.key, &one.cell, 0.0, bytes)
                };
                tenants.iter_mut().for_each(|one| *one = plainly(one));
            }
            World { cells, background, tenants, loads }.measure()
        })
    })
}

pub fn a_residency() -> impl Strategy<Value = Residency> {
    prop_oneof![Just(Residency::SameRegion), Just(Residency::OtherRegions)]
}
