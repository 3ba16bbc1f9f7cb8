//! Which cells could take a tenant, whatever room they have.

use std::collections::{BTreeMap, HashMap};

use crate::plan::Refusal;
use crate::view::{CellState, CellView, Residency, TenantView};

/// Why a cell cannot take a tenant of another cell, whatever room it has.
pub(crate) fn refusal(
    source: &CellView,
    tenant: &TenantView,
    target: &CellView,
    residency: Residency,
) -> Option<Refusal> {
    if target.state != CellState::Active {
        return Some(Refusal::State(target.state));
    }
    if target.weight == 0 {
        return Some(Refusal::NoWeight);
    }
    if target.schema_group != source.schema_group {
        return Some(Refusal::OtherSchema);
    }
    if !(source.together && target.together) {
        return Some(Refusal::NotTogether);
    }
    if residency == Residency::SameRegion && target.region != source.region {
        return Some(Refusal::OtherRegion);
    }
    if !tenant.allowed_regions.is_empty() && !tenant.allowed_regions.contains(&target.region) {
        return Some(Refusal::RegionNotAllowed);
    }
    let lacks = |(name, value): &(&String, &String)| target.labels.get(*name) != Some(*value);
    tenant
        .required_labels
        .iter()
        .find(lacks)
        .map(|(name, value)| Refusal::Label { name: name.clone(), value: value.clone() })
}

/// All that [`refusal`] looks at but for the target: tenants with the same have the same cells.
#[derive(PartialEq, Eq, Hash)]
struct Need<'a> {
    region: &'a str,
    schema_group: &'a str,
    together: bool,
    labels: &'a BTreeMap<String, String>,
    regions: &'a [String],
}

/// For each tenant the cells that could take it.
pub(crate) struct Reach {
    /// For each tenant, its place in `lists`.
    needs: Vec<usize>,
    /// Cells in ascending order of their places.
    lists: Vec<Vec<usize>>,
}

impl Reach {
    /// `homes` has the place of each tenant's cell.
    pub fn new(
        cells: &[CellView],
        tenants: &[TenantView],
        homes: &[usize],
        residency: Residency,
    ) -> Self {
        let mut known: HashMap<Need<'_>, usize> = HashMap::new();
        let mut lists = Vec::new();
        let mut needs = Vec::with_capacity(tenants.len());
        for (tenant, &home) in tenants.iter().zip(homes) {
            let source = &cells[home];
            let need = Need {
                region: &source.region,
                schema_group: &source.schema_group,
                together: source.together,
                labels: &tenant.required_labels,
                regions: &tenant.allowed_regions,
            };
            let list = *known.entry(need).or_insert_with(|| {
                let takes = |at: &usize| refusal(source, tenant, &cells[*at], residency).is_none();
                lists.push((0..cells.len()).filter(takes).collect());
                lists.len() - 1
            });
            needs.push(list);
        }
        Self { needs, lists }
    }

    /// The cells that could take a tenant. The one that it is in may be among them.
    pub fn of(&self, tenant: usize) -> &[usize] {
        &self.lists[self.needs[tenant]]
    }

    pub fn reaches(&self, tenant: usize, cell: usize) -> bool {
        self.of(tenant).binary_search(&cell).is_ok()
    }
}
