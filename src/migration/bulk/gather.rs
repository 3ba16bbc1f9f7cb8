//! What plans are made from: cells with what is known of them, and tenants with what they store.
//!
//! What a tenant stores is measured by reading it, for a few seconds at most; its part of the cell's load is then taken to be its part of the bytes,
//! as in `AnalyzeCell`. Of tenants that are not reached nothing is said.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cells_balance::{CellView, LastMove, TenantView};
use cells_migration::{Leg, Phase};
use futures::{StreamExt, TryStreamExt};

use super::api::Targets;
use super::error::BulkError;
use crate::cells::TableRef;
use crate::cells::capacity::{Accounts, share::MAX_PAGES};
use crate::directory::{Directory, Registry};
use crate::domain::{Cell, Loads, PartitionKey, Placement};
use crate::migration::MigrationRecords;

/// How long tenants are measured in all.
const MEASURING: Duration = Duration::from_secs(5);

/// Tenants that are measured at the same time.
const CONCURRENCY: usize = 16;

/// A placement that expires within this time is not moved.
const EXPIRES_SOON: Duration = Duration::from_secs(3600);

/// While measurements may still show a tenant's load where it was.
const LATELY: Duration = Duration::from_secs(15 * 60);

/// Migrations that are looked through for those of late.
const MAX_LATE: usize = 1000;

/// Placements of a page.
const PAGE: usize = 1000;

/// Items and bytes of tenants.
type Stored = HashMap<PartitionKey, (u64, u64)>;

/// What reads the world for plans.
#[derive(Clone)]
pub struct Gather {
    pub directory: Directory,
    pub accounts: Arc<dyn Accounts>,
    pub migrations: Arc<dyn MigrationRecords>,
}

/// Of some cells, all tenants.
pub struct Gathered {
    pub cells: Vec<CellView>,
    pub tenants: Vec<TenantView>,
}

impl Gather {
    /// All cells, and the tenants of those that are `wanted`, the fullest first.
    pub async fn gather(
        &self,
        registry: &Registry,
        targets: &Targets,
        wanted: impl Fn(&CellView) -> bool,
    ) -> Result<Gathered, BulkError> {
        let loads = self.directory.loads();
        let cells: Vec<CellView> = registry.cells().map(|cell| view(cell, &loads)).collect();
        let mut of: Vec<&CellView> = cells.iter().filter(|cell| wanted(cell)).collect();
        of.sort_by(|a, b| {
            let full = |cell: &CellView| cell.utilisation.unwrap_or(0.0);
            full(b).total_cmp(&full(a)).then_with(|| a.id.cmp(&b.id))
        });
        let (mut tenants, mut seen) = (Vec::new(), BTreeSet::new());
        let until = tokio::time::Instant::now() + MEASURING;
        for view in of {
            let Some(cell) = registry.cell_named(&view.id) else { continue };
            let mut placements = self.directory.pages(&cell.id, PAGE).try_concat().await?;
            // Whoever moves between two cells while they are listed could be in both.
            placements.retain(|placement| seen.insert(placement.key.clone()));
            let stored = self.measure(cell, &placements, until).await;
            tenants.extend(self.views(cell, view, targets, placements, &stored));
        }
        Ok(Gathered { cells, tenants })
    }

    /// Items and bytes of tenants, as far as there is time; of a large tenant, of its first megabytes.
    async fn measure(
        &self,
        cell: &Cell,
        placements: &[Placement],
        until: tokio::time::Instant,
    ) -> Stored {
        let keys: Vec<PartitionKey> = placements.iter().map(|one| one.key.clone()).collect();
        let look = |key: PartitionKey| async move {
            let stored = tokio::time::timeout_at(until, self.stored(cell, &key)).await;
            stored.ok().flatten().map(|stored| (key, stored))
        };
        let stored = futures::stream::iter(keys.into_iter().map(look));
        let stored: Vec<_> = stored.buffer_unordered(CONCURRENCY).collect().await;
        stored.into_iter().flatten().collect()
    }

    /// `None`: it cannot be read.
    async fn stored(&self, cell: &Cell, tenant: &PartitionKey) -> Option<(u64, u64)> {
        let tables = cell.tables.as_ref()?;
        let (mut items, mut bytes, mut pages) = (0, 0, MAX_PAGES);
        for table in &tables.tables {
            let of = TableRef { region: cell.region.clone(), name: table.table_name.clone() };
            for partition in table.partitions(tenant.as_str()) {
                if pages == 0 {
                    return Some((items, bytes));
                }
                let key = &table.partition_key;
                let one = self.accounts.stored(&of, key, &partition, pages).await.ok()?;
                items += one.items;
                bytes += one.bytes;
                pages = pages.saturating_sub(one.pages);
            }
        }
        Some((items, bytes))
    }

    fn views(
        &self,
        cell: &Cell,
        view: &CellView,
        targets: &Targets,
        placements: Vec<Placement>,
        stored: &Stored,
    ) -> Vec<TenantView> {
        let required = required(cell, targets);
        let soon = self.directory.now().plus(EXPIRES_SOON);
        let whole = whole(view.bytes, placements.len(), stored);
        let tenant = |placement: Placement| {
            let stored = stored.get(&placement.key);
            let bytes = stored.map(|(_, bytes)| *bytes);
            TenantView {
                key: placement.key.as_str().to_owned(),
                cell: view.id.clone(),
                bytes,
                items: stored.map(|(items, _)| *items),
                load_share: bytes.zip(whole).map(|(bytes, whole)| bytes as f64 / whole as f64),
                required_labels: required.clone(),
                allowed_regions: Vec::new(),
                moving: placement.migration.is_some(),
                expires_soon: placement.expires.is_some_and(|expires| expires <= soon),
            }
        };
        placements.into_iter().map(tenant).collect()
    }

    /// Who was moved lately.
    pub async fn last_moves(&self) -> Result<Vec<LastMove>, BulkError> {
        let (mut late, mut cursor, mut seen) = (Vec::new(), None, 0);
        let since = self.directory.now();
        loop {
            let page = self.migrations.migrations(100, cursor.as_ref()).await?;
            seen += page.items.len();
            late.extend(page.items.into_iter().filter(|migration| {
                let recent = migration.updated.plus(LATELY) >= since;
                let moved = matches!(
                    migration.record.phase,
                    Phase::Committed | Phase::Soaking | Phase::Cleaning | Phase::Done
                );
                recent && moved && migration.record.leg == Leg::Forward
            }));
            cursor = page.next;
            if cursor.is_none() || seen >= MAX_LATE {
                break;
            }
        }
        let last = |spec: crate::migration::Spec| LastMove {
            tenant: spec.tenant.as_str().to_owned(),
            source: spec.source.as_str().to_owned(),
            target: spec.target.as_str().to_owned(),
        };
        Ok(late.into_iter().map(|migration| last(migration.spec)).collect())
    }
}

/// All bytes of a cell, of which a tenant's are a part. `None`: without what DescribeTable said, and without all tenants measured, nothing
/// is known of a part.
fn whole(reported: Option<u64>, placements: usize, stored: &Stored) -> Option<u64> {
    let known = reported.is_some() || stored.len() == placements;
    let measured: u64 = stored.values().map(|(_, bytes)| bytes).sum();
    // What DescribeTable says is hours old.
    Some(reported.unwrap_or(0).max(measured)).filter(|whole| known && *whole > 0)
}

/// The labels that a target must share with the cell that is left.
fn required(cell: &Cell, targets: &Targets) -> BTreeMap<String, String> {
    let kept = targets.keep_labels.iter().filter_map(|name| {
        let value = cell.labels.get(name)?;
        Some((name.clone(), value.to_owned()))
    });
    kept.collect()
}

fn view(cell: &Cell, loads: &Loads) -> CellView {
    let load = loads.get(&cell.id);
    let labels = cell.labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let tables = cell.tables.as_ref();
    CellView {
        id: cell.id.as_str().to_owned(),
        region: cell.region.as_str().to_owned(),
        labels: labels.collect(),
        state: cell.state,
        placements: cell.placements,
        capacity: cell.capacity.map(std::num::NonZeroU64::get),
        weight: cell.weight.get(),
        utilisation: load.map(|load| load.utilisation.clamp(0.0, 1000.0)),
        size: 1.0,
        // Of tenants items are measured, and those of indexes are not carried over.
        bytes: load.map(|load| load.item_bytes()),
        schema_group: schema_group(cell),
        together: tables.is_some_and(|tables| tables.reachable_guards().is_some()),
    }
}

/// The same of cells between which items can be carried over.
fn schema_group(cell: &Cell) -> String {
    let Some(tables) = &cell.tables else {
        // Of nobody else.
        return format!("none of {}", cell.id);
    };
    let declared = tables.tables.iter().map(|table| {
        format!("{:?}", (&table.name, &table.partition_key, &table.sort_key, &table.tenant_keys))
    });
    declared.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A measurement that was cut off tells of no part: of two tenants of three each would seem to be half of the cell.
    #[test]
    fn parts_are_of_all_that_a_cell_holds_or_not_known() {
        let stored = |bytes: &[u64]| {
            let tenant = |n| PartitionKey::new(format!("tenant-{n}")).unwrap();
            bytes.iter().enumerate().map(|(n, bytes)| (tenant(n), (1, *bytes))).collect::<Stored>()
        };
        assert_eq!(whole(None, 3, &stored(&[10, 10])), None);
        assert_eq!(whole(None, 3, &stored(&[10, 10, 20])), Some(40));
        assert_eq!(whole(Some(100), 3, &stored(&[10, 10])), Some(100));
        // More was measured than was there hours ago.
        assert_eq!(whole(Some(5), 3, &stored(&[10, 10])), Some(20));
        assert_eq!(whole(Some(0), 3, &stored(&[])), None);
        assert_eq!(whole(None, 0, &stored(&[])), None);
    }
}
