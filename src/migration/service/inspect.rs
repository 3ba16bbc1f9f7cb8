//! VerifyTenant: what cells hold of a tenant, whenever that is asked. Changes nothing.

use std::collections::HashSet;
use std::time::Duration;

use cells_guard::Touched;
use cells_migration::Phase;
use cells_verify::{Census, Differing, Verifier};

use super::{Migrations, known};
use crate::directory::Registry;
use crate::domain::{PartitionKey, Placement};
use crate::migration::access::CellAccess;
use crate::migration::api::{MigrationApi, TenantVerification};
use crate::migration::error::{MigrationError, Obstacle};
use crate::migration::model::{Findings, Migration, Spec};
use crate::migration::steps::Cells;
use crate::migration::{preflight, verify};

/// How often what differs is looked at again, and after how long: a worker applies what was written within half a second.
const RECHECKS: u32 = 5;
const RECHECK_PAUSE: Duration = Duration::from_millis(400);

/// Past placements whose cells are looked at.
const MAX_FORMER: usize = 100;

impl Migrations {
    pub(super) async fn inspect(
        &self,
        tenant: &PartitionKey,
    ) -> Result<TenantVerification, MigrationError> {
        let placement = self.directory.placement(tenant).await?;
        let registry = self.directory.registry().await?;
        let home = known(&registry, &placement.cell)?;
        let home = CellAccess::of(&home, &self.guards.regions)
            .ok_or_else(|| Obstacle::NoTables { cell: placement.cell.clone() })?;
        let (mut other, mut compared) = (None, None);
        if let Some(id) = placement.migration {
            let migration = self.get(id).await?;
            let both = self.live(&registry, &migration)?;
            let there = both.of(migration.record.live().other()).clone();
            // It may have been committed since the placement was read.
            if there.cell != home.cell {
                if alike(migration.record.phase) {
                    let findings = self.compared(&home, &there, tenant).await?;
                    // What was removed meanwhile would seem to differ.
                    compared = alike(self.get(id).await?.record.phase).then_some(findings);
                }
                other = Some(there);
            }
        }
        let (alone, mut leftovers) = (compared.is_none(), 0);
        let mut findings = compared.unwrap_or_default();
        if alone {
            findings.source_items = self.census(&home, tenant.as_str()).await?;
        }
        let mut cells = vec![(home.cell.clone(), findings.source_items)];
        if let Some(other) = &other {
            let items = match alone {
                true => self.census(other, tenant.as_str()).await?,
                false => findings.target_items,
            };
            cells.push((other.cell.clone(), items));
        }
        for former in self.former(&registry, &placement).await? {
            if other.as_ref().is_some_and(|other| other.cell == former.cell) {
                continue;
            }
            let items = self.census(&former, tenant.as_str()).await?;
            leftovers += items;
            cells.push((former.cell.clone(), items));
        }
        findings.ended = Some(self.directory.now());
        Ok(TenantVerification { findings, cells, leftovers })
    }

    fn live(&self, registry: &Registry, migration: &Migration) -> Result<Cells, MigrationError> {
        let Spec { source, target, .. } = &migration.spec;
        let (source, target) = (known(registry, source)?, known(registry, target)?);
        preflight::cells(&source, &target, &self.guards.regions).map_err(MigrationError::Obstructed)
    }

    /// Cells where the tenant lived before, that are registered and have tables.
    async fn former(
        &self,
        registry: &Registry,
        placement: &Placement,
    ) -> Result<Vec<CellAccess>, MigrationError> {
        let history = self.directory.history(&placement.key, MAX_FORMER, None).await?;
        let mut seen = HashSet::from([placement.cell.clone()]);
        let cells = history.items.into_iter().filter_map(|past| {
            let cell = registry.cell(&past.cell).filter(|cell| seen.insert(cell.id.clone()))?;
            CellAccess::of(cell, &self.guards.regions)
        });
        Ok(cells.collect())
    }

    async fn census(&self, cell: &CellAccess, tenant: &str) -> Result<u64, MigrationError> {
        let census = Census::new(verify::side(cell), tenant).map_err(incompatible)?;
        let tally = census
            .one_cell(self.directory.now().unix_seconds())
            .await
            .map_err(verify::store_error)?;
        Ok(tally.items)
    }

    /// What differs still after the worker had some time to apply what was written.
    async fn rechecked(
        &self,
        verifier: &Verifier<CellAccess, CellAccess>,
        mut keys: Vec<Touched>,
    ) -> Result<Vec<Differing>, MigrationError> {
        for _ in 0..RECHECKS {
            let checked = verifier.recheck(&keys, self.directory.now().unix_seconds()).await;
            let differing = checked.map_err(verify::store_error)?.differing;
            if differing.is_empty() {
                return Ok(differing);
            }
            keys = differing.into_iter().map(|one| one.at).collect();
            tokio::time::sleep(RECHECK_PAUSE).await;
        }
        let checked = verifier.recheck(&keys, self.directory.now().unix_seconds()).await;
        Ok(checked.map_err(verify::store_error)?.differing)
    }

    /// Compares two cells and changes nothing. What is being written all the while can show as differing.
    async fn compared(
        &self,
        home: &CellAccess,
        other: &CellAccess,
        tenant: &PartitionKey,
    ) -> Result<Findings, MigrationError> {
        let verifier = Verifier::new(verify::side(home), verify::side(other), tenant.as_str());
        let verifier = verifier.map_err(incompatible)?;
        let mut findings = Findings::default();
        let mut place = verifier.start();
        loop {
            let now = self.directory.now().unix_seconds();
            let page = verifier.compare_page(&place, now).await.map_err(verify::store_error)?;
            findings.count(&page);
            let suspects: Vec<_> = page.suspects.iter().map(|one| one.at.clone()).collect();
            let differing = self.rechecked(&verifier, suspects).await?;
            differing.iter().for_each(|one| findings.add(one, false));
            match page.next {
                Some(next) => place = next,
                None => return Ok(findings),
            }
        }
    }
}

/// Whether both cells of a migration hold the same: all was copied, and nothing is being removed.
fn alike(phase: Phase) -> bool {
    matches!(phase, Phase::Verifying | Phase::Fenced | Phase::Committed | Phase::Soaking)
}

fn incompatible(error: cells_verify::Incompatible) -> MigrationError {
    let why = format!("cannot be compared: {error}");
    Obstacle::SchemasDiffer { table: "set".to_owned(), why }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In all others one of the cells lacks what is not copied yet, or is removed already.
    #[test]
    fn cells_are_compared_while_both_hold_all() {
        use Phase::*;
        let phases = [
            Planned, Logging, Copying, CatchingUp, Verifying, Fenced, Committed, Soaking, Cleaning,
            Done, Aborting, Aborted,
        ];
        let compared: Vec<_> = phases.into_iter().filter(|phase| alike(*phase)).collect();
        assert_eq!(compared, [Verifying, Fenced, Committed, Soaking]);
    }
}
