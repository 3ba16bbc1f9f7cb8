//! Sees to it that every tenant of a cell with tables has a guard there.
//!
//! Whoever is placed after the cell's tables were registered gets a guard with the placement. Those from before, and those whom somebody
//! else's router placed, get theirs here: in a transaction that checks the placement, so that a tenant who moves or goes meanwhile
//! leaves none behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::KeysAndAttributes;
use cells_guard::{CellTables, GuardTable, Item, StoredGuard, guard};
use cells_migration::{Guard, GuardCheck, GuardState, WriteMode};
use tokio_util::sync::CancellationToken;

use super::records::MigrationRecords;
use crate::cells::{CellRecords, Cells, Cloud, Home, Regions};
use crate::directory::{Directory, Error, Refused};
use crate::domain::{Cell, CellId, Mapping, Placement, Timestamp};
use crate::store::dynamodb::from_sdk;
use crate::store::{Expected, GuardEffect, GuardWrite, MAX_KEYS, StoreError, Write};

/// Passes in a row without a missing guard after which a cell is taken to be done. More than one: which tenants a cell has may be known
/// late.
const CLEAN_PASSES: u32 = 2;

/// How often keys that a batch left over are asked for again.
const MAX_BATCHES: u32 = 8;

/// Writes guards, and counts those that are missing.
#[derive(Clone)]
pub struct Guards {
    pub directory: Directory,
    pub cells: Arc<dyn CellRecords>,
    pub records: Arc<dyn MigrationRecords>,
    pub regions: Arc<Regions>,
    pub prefix: String,
    /// Tables as AWS has them.
    pub cloud: Arc<dyn Cloud>,
    pub home: Home,
}

/// How many tenants of a cell have no guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardCount {
    pub placements: u64,
    pub missing: u64,
    pub counted_at: Timestamp,
}

impl Guards {
    /// Fills in what is missing, a round each `interval`, until `stop`.
    pub async fn keep(self, interval: Duration, stop: CancellationToken) {
        let mut clean = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let round = self.round(&mut clean);
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = round => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "guards cannot be looked at");
            }
        }
    }

    async fn round(&self, clean: &mut HashMap<CellId, u32>) -> Result<(), Error> {
        self.register_tables().await?;
        let registry = self.directory.registry().await?;
        for cell in registry.cells() {
            let Some(tables) = &cell.tables else { continue };
            let Some(table) = guard_table(tables).filter(|_| !tables.guarded) else { continue };
            let (mut placements, mut missing) = (0, 0);
            let mut cursor = None;
            loop {
                let page = self.directory.list(Some(&cell.id), MAX_KEYS, cursor.as_ref()).await?;
                placements += page.items.len();
                for (placement, found) in self.missing(cell, &table, page.items).await? {
                    missing += 1;
                    self.write(&placement, &table, found.as_ref()).await?;
                }
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            tracing::info!(cell = cell.id.as_str(), placements, missing, "looked at guards");
            let passes = clean.entry(cell.id.clone()).or_default();
            *passes = if missing == 0 { *passes + 1 } else { 0 };
            if *passes >= CLEAN_PASSES {
                let tables = CellTables { guarded: true, ..CellTables::clone(tables) };
                self.directory.set_tables(&cell.id, Some(tables)).await?;
            }
        }
        Ok(())
    }

    /// Registers tables that were provisioned before there were guards.
    async fn register_tables(&self) -> Result<(), Error> {
        for record in self.cells.all_cell_tables().await? {
            let (Some((set, version)), None) = (&record.tables, &record.operation) else {
                continue;
            };
            let registry = self.directory.registry().await?;
            let Some(cell) = registry.cell(&record.cell) else { continue };
            let known = cell.tables.as_ref();
            if known.is_some_and(|known| known.set == set.as_str() && known.version == *version) {
                continue;
            }
            if let Some(set) = self.cells.table_set_at(set, *version).await? {
                let first = set.tables.first().map(|spec| spec.table_name(&self.prefix, &cell.id));
                let Some(first) = first else { continue };
                // Looked at again in the next round.
                let reaches = self.home.reaches(&*self.cloud, cell, &first).await;
                let Ok(together) = reaches else { continue };
                let tables = set.cell_tables(&self.prefix, cell, together);
                self.directory.set_tables(&cell.id, Some(tables)).await?;
            }
        }
        Ok(())
    }

    /// How many tenants of a cell have no guard that lets them write. Reads them all.
    ///
    /// # Errors
    /// [`Refused::CellNotFound`].
    pub async fn count(&self, id: &CellId) -> Result<GuardCount, Error> {
        let registry = self.directory.registry().await?;
        let cell = registry.cell(id).ok_or_else(|| Refused::CellNotFound { cell: id.clone() })?;
        let table = cell.tables.as_deref().and_then(guard_table);
        let (mut placements, mut missing) = (0, 0);
        let mut cursor = None;
        loop {
            let page = self.directory.list(Some(id), MAX_KEYS, cursor.as_ref()).await?;
            placements += page.items.len() as u64;
            missing += match &table {
                Some(table) => self.missing(cell, table, page.items).await?.len() as u64,
                None => page.items.len() as u64,
            };
            cursor = page.next;
            if cursor.is_none() {
                return Ok(GuardCount { placements, missing, counted_at: self.directory.now() });
            }
        }
    }

    /// Writes a tenant's guard where it is missing. `false`: the tenant moved or went meanwhile.
    pub async fn ensure(&self, cell: &Cell, placement: &Placement) -> Result<bool, Error> {
        let Some(table) = cell.tables.as_deref().and_then(guard_table) else { return Ok(false) };
        let missing = self.missing(cell, &table, vec![placement.clone()]).await?;
        match missing.first() {
            None => Ok(true),
            Some((placement, found)) => Ok(self.write(placement, &table, found.as_ref()).await?),
        }
    }

    /// Those of the placements that have no guard of their epoch, with the guard that they have. Whoever moves has one.
    async fn missing(
        &self,
        cell: &Cell,
        table: &GuardTable,
        placements: Vec<Placement>,
    ) -> Result<Vec<(Placement, Option<StoredGuard>)>, Error> {
        let mut still: Vec<_> = placements.into_iter().filter(|p| p.migration.is_none()).collect();
        let keys = still.iter().map(|placement| guard::key(table, placement.key.as_str(), 0));
        let found = self.read(cell, table, keys.collect()).await?;
        let guard_of = |placement: &Placement| {
            let key = guard::partition(placement.key.as_str(), 0);
            found.get(&key).filter(|stored| stored.cell == cell.id.as_str()).cloned()
        };
        let fits = |placement: &Placement, stored: &StoredGuard| {
            let check = GuardCheck::Idle { epoch: placement.epoch.get() };
            // One that a migration has taken since the placement was read is no less of a guard.
            check.holds(Some(&stored.guard)) || stored.guard.holder.is_some()
        };
        let missing = still.drain(..).filter_map(|placement| {
            let stored = guard_of(&placement);
            let fits = stored.as_ref().is_some_and(|stored| fits(&placement, stored));
            (!fits).then_some((placement, stored))
        });
        Ok(missing.collect())
    }

    /// Guards by their partitions.
    async fn read(
        &self,
        cell: &Cell,
        table: &GuardTable,
        keys: Vec<Item>,
    ) -> Result<HashMap<String, StoredGuard>, StoreError> {
        let client = self.regions.dynamodb(&cell.region);
        let mut found = HashMap::new();
        let mut keys = keys;
        for _ in 0..MAX_BATCHES {
            if keys.is_empty() {
                return Ok(found);
            }
            let wanted = KeysAndAttributes::builder().set_keys(Some(keys)).consistent_read(true);
            let wanted = wanted.build().map_err(|error| rejected(error.to_string()))?;
            let request = client.batch_get_item().request_items(&table.table_name, wanted);
            let answer = request.send().await.map_err(|error| from_sdk(&error))?;
            for item in answer.responses.into_iter().flatten().flat_map(|(_, items)| items) {
                let key = item.get(&table.partition_key).and_then(|key| key.as_s().ok());
                let stored = guard::read(&item).map_err(|error| StoreError::Unreadable {
                    detail: format!("{}: {error}", table.table_name),
                })?;
                found.extend(key.map(|key| (key.clone(), stored)));
            }
            let left = answer.unprocessed_keys.unwrap_or_default().remove(&table.table_name);
            keys = left.map(|left| left.keys).unwrap_or_default();
        }
        Err(StoreError::Throttled)
    }

    async fn write(
        &self,
        placement: &Placement,
        table: &GuardTable,
        found: Option<&StoredGuard>,
    ) -> Result<bool, StoreError> {
        let (cell, tenant) = (placement.cell.clone(), placement.key.clone());
        let epoch = placement.epoch.get();
        let open = Guard { state: GuardState::Open, epoch, mode: WriteMode::Direct, holder: None };
        let stored =
            StoredGuard { guard: open, cell: cell.as_str().to_owned(), shards: 1, next: None };
        let check = match found.map(|found| &found.guard) {
            // Of a stay that ended without taking it away.
            Some(Guard { state: GuardState::Open, epoch, .. }) => {
                GuardCheck::Idle { epoch: *epoch }
            }
            _ => GuardCheck::Vacant,
        };
        let expect = Expected::from(&Mapping::Placed(placement.clone()));
        let effect = GuardEffect::Set(stored);
        let table = table.clone();
        let writes = [
            Write::CheckPlacement { key: tenant.clone(), expect },
            Write::Guard(GuardWrite { table, cell, tenant, shard: 0, check: Some(check), effect }),
        ];
        self.records.write(&writes, self.directory.now()).await
    }
}

/// The table for guards, where a transaction reaches it from the directory's.
fn guard_table(tables: &CellTables) -> Option<GuardTable> {
    tables.guard_table().filter(|_| tables.together)
}

fn rejected(detail: String) -> StoreError {
    StoreError::Rejected { detail }
}
