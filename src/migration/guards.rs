//! Sees to it that every tenant of a cell with tables has a guard there.
//!
//! Whoever is placed after the cell's tables were registered gets a guard with the placement. Those from before, and those whom somebody
//! else's router placed, get theirs here: in a transaction that checks the placement, so that a tenant who moves or goes meanwhile
//! leaves none behind.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cells_guard::{CellTables, StoredGuard, guard};
use cells_migration::{Guard, GuardCheck, GuardState};
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use super::access::CellAccess;
use super::records::MigrationRecords;
use crate::cells::{CellRecords, Cells, Cloud, Home, Regions};
use crate::directory::{Directory, Error, Refused};
use crate::domain::{Cell, CellId, Mapping, Placement, Timestamp};
use crate::store::{Expected, GuardEffect, GuardWrite, MAX_KEYS, StoreError, Write};

/// Passes in a row without a missing guard after which a cell is taken to be done. More than one: which tenants a cell has may be known
/// late.
const CLEAN_PASSES: u32 = 2;

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
            let access = CellAccess::of(cell, &self.regions);
            let Some(access) = access.filter(|access| !access.tables.guarded) else { continue };
            let (mut placements, mut missing) = (0, 0);
            let mut pages = pin!(self.directory.pages(&cell.id, MAX_KEYS));
            while let Some(page) = pages.try_next().await? {
                placements += page.len();
                for (placement, found) in missing_of(&access, page).await? {
                    missing += 1;
                    self.write(&placement, &access, found.as_ref()).await?;
                }
            }
            tracing::info!(cell = cell.id.as_str(), placements, missing, "looked at guards");
            let passes = clean.entry(cell.id.clone()).or_default();
            *passes = if missing == 0 { *passes + 1 } else { 0 };
            if *passes >= CLEAN_PASSES {
                let tables = CellTables { guarded: true, ..CellTables::clone(&access.tables) };
                self.directory.set_tables(&cell.id, Some(tables)).await?;
            }
        }
        Ok(())
    }

    /// Registers tables that were provisioned before there were guards.
    async fn register_tables(&self) -> Result<(), Error> {
        let records = self.cells.all_cell_tables().await?;
        let registry = self.directory.registry().await?;
        for record in records {
            let (Some((set, version)), None) = (&record.tables, &record.operation) else {
                continue;
            };
            let Some(cell) = registry.cell(&record.cell) else { continue };
            let known = cell.tables.as_ref();
            if known.is_some_and(|known| known.set == set.as_str() && known.version == *version) {
                continue;
            }
            if let Some(set) = self.cells.table_set_at(set, *version).await? {
                let tables = self.home.tables_of(&*self.cloud, &set, &self.prefix, cell).await;
                // Looked at again in the next round.
                let Ok(tables) = tables else { continue };
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
        let access = CellAccess::of(cell, &self.regions);
        let (mut placements, mut missing) = (0, 0);
        let mut pages = pin!(self.directory.pages(id, MAX_KEYS));
        while let Some(page) = pages.try_next().await? {
            placements += page.len() as u64;
            missing += match &access {
                Some(access) => missing_of(access, page).await?.len() as u64,
                None => page.len() as u64,
            };
        }
        Ok(GuardCount { placements, missing, counted_at: self.directory.now() })
    }

    /// Writes a tenant's guard where it is missing. `false`: the tenant moved or went meanwhile.
    pub async fn ensure(&self, cell: &Cell, placement: &Placement) -> Result<bool, Error> {
        let Some(access) = CellAccess::of(cell, &self.regions) else { return Ok(false) };
        let missing = missing_of(&access, vec![placement.clone()]).await?;
        match missing.first() {
            None => Ok(true),
            Some((placement, found)) => Ok(self.write(placement, &access, found.as_ref()).await?),
        }
    }

    async fn write(
        &self,
        placement: &Placement,
        access: &CellAccess,
        found: Option<&StoredGuard>,
    ) -> Result<bool, StoreError> {
        let (cell, tenant) = (placement.cell.clone(), placement.key.clone());
        let stored = StoredGuard::open(cell.as_str(), placement.epoch.get());
        let check = match found.map(|found| &found.guard) {
            // Of a stay that ended without taking it away.
            Some(Guard { state: GuardState::Open, epoch, .. }) => {
                GuardCheck::Idle { epoch: *epoch }
            }
            _ => GuardCheck::Vacant,
        };
        let expect = Expected::from(&Mapping::Placed(placement.clone()));
        let effect = GuardEffect::Set(stored);
        let table = access.guards.clone();
        let writes = [
            Write::CheckPlacement { key: tenant.clone(), expect },
            Write::Guard(GuardWrite { table, cell, tenant, shard: 0, check: Some(check), effect }),
        ];
        self.records.write(&writes, self.directory.now()).await
    }
}

/// Those of the placements that have no guard of their epoch, with the guard that they have. Whoever moves has one.
async fn missing_of(
    access: &CellAccess,
    mut placements: Vec<Placement>,
) -> Result<Vec<(Placement, Option<StoredGuard>)>, StoreError> {
    placements.retain(|placement| placement.migration.is_none());
    let mut guards = access.guards(placements.iter().map(|placement| &placement.key)).await?;
    let missing = placements.into_iter().filter_map(|placement| {
        let stored = guards.remove(&guard::partition(placement.key.as_str(), 0));
        let ours = stored.filter(|stored| stored.cell == access.cell.as_str());
        let check = GuardCheck::Idle { epoch: placement.epoch.get() };
        let fits = ours.as_ref().is_some_and(|stored| {
            // One that a migration has taken since the placement was read is no less of a guard.
            check.holds(Some(&stored.guard)) || stored.guard.holder.is_some()
        });
        (!fits).then_some((placement, ours))
    });
    Ok(missing.collect())
}
