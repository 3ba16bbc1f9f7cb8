//! What stands in the way of a move, and what it will take: looked at before anything is changed.

use cells_guard::writer::CELL_ID;
use cells_guard::{CellTable, CellTables};
use cells_migration::GuardCheck;

use super::access::{CellAccess, MAX_BYTES};
use super::error::Obstacle;
use super::steps::Cells;
use crate::cells::Regions;
use crate::cells::data::item_bytes;
use crate::directory::Registry;
use crate::domain::{Cell, PartitionKey, Placement};
use crate::store::StoreError;

/// DynamoDB's limit of an item.
const MAX_ITEM: u64 = 400 * 1024;

/// Items of a page of a measurement.
const PAGE_ITEMS: i32 = 1000;

/// Keys at the target that are counted at most.
const MAX_FOUND: u64 = 1000;

/// What a tenant has in a cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    pub items: u64,
    pub bytes: u64,
    /// Transactions that a copy takes.
    pub transactions: u64,
    /// Write units of a copy: twice those of plain writes.
    pub write_units: u64,
    /// Items that are too large once they say which cell they are in.
    pub too_large: u64,
}

/// Why the target takes no tenant. The same rule has the last word where the target begins to count it.
pub fn eligible(target: &Cell) -> Option<Obstacle> {
    let why = target.refuses_new_tenants()?;
    Some(Obstacle::NotEligible { cell: target.id.clone(), why })
}

/// What of the cells' registrations stands in the way of a move that was begun on former ones.
pub fn still(registry: &Registry, cells: &Cells) -> Vec<Obstacle> {
    let known = |access: &CellAccess| {
        let gone = || Obstacle::NoTables { cell: access.cell.clone() };
        registry.cell(&access.cell).ok_or_else(gone)
    };
    match (known(&cells.source), known(&cells.target)) {
        (Ok(source), Ok(target)) => {
            eligible(target).into_iter().chain(between(source, target)).collect()
        }
        (source, target) => source.err().into_iter().chain(target.err()).collect(),
    }
}

/// The cells of a move as they are reached, or why they are not.
pub fn cells(source: &Cell, target: &Cell, regions: &Regions) -> Result<Cells, Vec<Obstacle>> {
    let obstacles = between(source, target);
    match (CellAccess::of(source, regions), CellAccess::of(target, regions)) {
        (Some(source), Some(target)) if obstacles.is_empty() => Ok(Cells { source, target }),
        _ => Err(obstacles),
    }
}

/// What of the cells' registrations stands in the way of a move between them.
pub fn between(source: &Cell, target: &Cell) -> Vec<Obstacle> {
    let mut obstacles: Vec<_> = [source, target].into_iter().filter_map(unreachable).collect();
    if let (Some(source), Some(target)) = (&source.tables, &target.tables) {
        obstacles.extend(differences(source, target));
    }
    obstacles
}

fn unreachable(cell: &Cell) -> Option<Obstacle> {
    let id = || cell.id.clone();
    match &cell.tables {
        None => Some(Obstacle::NoTables { cell: id() }),
        Some(tables) if tables.guard_table().is_none() => {
            Some(Obstacle::NoGuardTable { cell: id() })
        }
        Some(tables) if !tables.together => Some(Obstacle::NotTogether { cell: id() }),
        Some(_) => None,
    }
}

/// Tables that a tenant's items cannot be carried over: every table of the source must be at the target, with the same keys.
fn differences(source: &CellTables, target: &CellTables) -> Vec<Obstacle> {
    let why = |table: &CellTable| match target.table(&table.name) {
        None => Some("does not exist in the target cell"),
        Some(other) if other.partition_key != table.partition_key => {
            Some("has another partition key in the target cell")
        }
        Some(other) if other.sort_key != table.sort_key => {
            Some("has another sort key in the target cell")
        }
        Some(other) if other.tenant_keys != table.tenant_keys => {
            Some("has other key templates in the target cell")
        }
        Some(_) => None,
    };
    let differ = source.tables.iter().filter_map(|table| {
        let why = why(table)?.to_owned();
        Some(Obstacle::SchemasDiffer { table: table.name.clone(), why })
    });
    differ.collect()
}

/// What stands in the way in the cells' tables: guards that are not as they should be, and items at the target.
pub async fn look(cells: &Cells, placement: &Placement) -> Result<Vec<Obstacle>, StoreError> {
    let tenant = &placement.key;
    let mut obstacles = Vec::new();
    let guard = cells.source.guard(tenant).await?;
    let ours = guard.filter(|stored| stored.cell == cells.source.cell.as_str());
    let idle = GuardCheck::Idle { epoch: placement.epoch.get() };
    if !idle.holds(ours.as_ref().map(|stored| &stored.guard)) {
        obstacles.push(Obstacle::GuardMissing { cell: cells.source.cell.clone() });
    }
    let items = count(&cells.target, tenant).await?;
    if items > 0 {
        obstacles.push(Obstacle::TargetNotEmpty { cell: cells.target.cell.clone(), items });
    }
    Ok(obstacles)
}

/// Tables without a stream: what is written there past all guards would not be known. In the target, too, for the way back.
pub async fn streams(cells: &Cells) -> Result<Vec<Obstacle>, StoreError> {
    let mut obstacles = Vec::new();
    for cell in [&cells.source, &cells.target] {
        for table in &cell.tables.tables {
            if cell.stream(&table.name).await?.is_none() {
                obstacles.push(Obstacle::NoStream { table: table.table_name.clone() });
            }
        }
    }
    Ok(obstacles)
}

/// The tenant's items in a cell, of each partition at most [`MAX_FOUND`].
pub async fn count(cell: &CellAccess, tenant: &PartitionKey) -> Result<u64, StoreError> {
    let mut items = 0;
    for table in &cell.tables.tables {
        for partition in table.partitions(tenant.as_str()) {
            let limit = i32::try_from(MAX_FOUND).unwrap_or(i32::MAX);
            let (keys, _) = cell.page(table, &partition, None, limit, true).await?;
            items += keys.len() as u64;
        }
    }
    Ok(items)
}

/// Reads all that the tenant has at the source.
pub async fn measure(cells: &Cells, tenant: &PartitionKey) -> Result<Measured, StoreError> {
    let (source, target) = (&cells.source, cells.target.cell.as_str().len() as u64);
    let mut measured = Measured::default();
    let (mut changes, mut bytes) = (0, 0);
    for table in &source.tables.tables {
        for partition in table.partitions(tenant.as_str()) {
            let mut after = None;
            loop {
                let (items, next) =
                    source.page(table, &partition, after, PAGE_ITEMS, false).await?;
                for item in &items {
                    let size = item_bytes(item);
                    let named = item.get(CELL_ID).and_then(|id| id.as_s().ok());
                    let grown = size + target
                        - named.map_or(target, |id| id.len() as u64).min(size + target);
                    measured.items += 1;
                    measured.bytes += size;
                    measured.write_units += 2 * grown.div_ceil(1024).max(1);
                    measured.too_large += u64::from(grown > MAX_ITEM);
                    (changes, bytes) = (changes + 1, bytes + grown);
                    if changes > super::access::MAX_CHANGES || bytes > MAX_BYTES {
                        measured.transactions += 1;
                        (changes, bytes) = (1, grown);
                    }
                }
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
    }
    measured.transactions += u64::from(changes > 0);
    // Each transaction checks a guard, of less than a kilobyte.
    measured.write_units += 2 * measured.transactions;
    Ok(measured)
}
