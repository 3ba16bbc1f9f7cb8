//! What operators ask of drains and rebalances.

use std::sync::Arc;

use async_trait::async_trait;
use cells_balance::bulk::{Cancel, Header, Item, Purpose, State};
use cells_balance::{
    Bulk, DrainOptions, Plan, RebalanceOptions, Residency, plan_drain, plan_rebalance,
};

use super::api::{BulkApi, BulkPage, DrainAsk, How, MAX_PROBLEMS, RebalanceAsk, Targets};
use super::error::BulkError;
use super::gather::Gather;
use super::model::{BulkId, BulkProgress, BulkRecord, Planned};
use super::records::{BulkBegun, BulkRecords};
use crate::cells::capacity::Accounts;
use crate::directory::{Directory, Error, Randomness, Refused, Registry, Request};
use crate::domain::CellState;
use crate::migration::MigrationRecords;
use crate::store::{Cursor, Page};

/// How often a change of a header is tried while others change it.
const MAX_TRIES: u32 = 8;

/// What it is made of.
pub struct BulkParts {
    pub directory: Directory,
    pub records: Arc<dyn BulkRecords>,
    pub migrations: Arc<dyn MigrationRecords>,
    /// By which tenants are measured.
    pub accounts: Arc<dyn Accounts>,
    pub randomness: Randomness,
}

/// Drains and rebalances of the directory's cells. Cheap to clone.
#[derive(Clone)]
pub struct Bulks {
    directory: Directory,
    records: Arc<dyn BulkRecords>,
    gather: Gather,
    randomness: Randomness,
}

fn residency(targets: &Targets) -> Residency {
    match targets.other_regions {
        true => Residency::OtherRegions,
        false => Residency::SameRegion,
    }
}

impl Bulks {
    pub fn new(parts: BulkParts) -> Self {
        let BulkParts { directory, records, migrations, accounts, randomness } = parts;
        let gather = Gather { directory: directory.clone(), accounts, migrations };
        Self { directory, records, gather, randomness }
    }

    /// The bulk that a request has begun already.
    async fn repeat(&self, request: Option<&Request>) -> Result<Option<BulkPage>, BulkError> {
        let Some(request) = request else { return Ok(None) };
        match self.records.bulk(BulkId::new(request.begins())).await? {
            None => Ok(None),
            Some(begun) => self.again(begun, &request.digest).await.map(Some),
        }
    }

    async fn again(&self, begun: BulkRecord, digest: &str) -> Result<BulkPage, BulkError> {
        if begun.planned.digest != digest {
            return Err(Refused::RequestIdReused.into());
        }
        self.page(begun).await
    }

    async fn begin(&self, purpose: Purpose, plan: Plan, how: How) -> Result<BulkPage, BulkError> {
        let staying = plan.unplaced_total + plan.left_total + plan.hotspots_total;
        if plan.moves.is_empty() {
            return Err(BulkError::NothingToMove { staying });
        }
        let id = match &how.request {
            Some(request) => BulkId::new(request.begins()),
            None => BulkId::new(self.randomness.draw()),
        };
        let now = self.directory.now();
        let mut bulk = Bulk::new(&id.to_string(), purpose, plan.moves, how.limits)?;
        let changes = bulk.take_changes();
        let record = BulkRecord {
            id,
            header: bulk.header().clone(),
            planned: Planned {
                terms: how.terms,
                generation: self.randomness.draw(),
                staying,
                created: now,
                digest: how.request.map(|request| request.digest).unwrap_or_default(),
                caller: how.caller,
            },
            progress: BulkProgress { summary: bulk.summary(), trouble: None },
            updated: now,
            worker: 0,
            beat: 0,
        };
        match self.records.begin_bulk(&record, &changes.chunks).await.map_err(Error::of_write)? {
            BulkBegun::Begun => Ok(BulkPage { record, problems: Vec::new() }),
            BulkBegun::Exists(begun) => {
                let digest = record.planned.digest;
                self.again(*begun, &digest).await
            }
            BulkBegun::Running(other) => Err(BulkError::Running(other)),
        }
    }

    async fn page(&self, record: BulkRecord) -> Result<BulkPage, BulkError> {
        let summary = &record.progress.summary;
        let troubled = summary.failed.tenants + summary.skipped.tenants + summary.to_retry.tenants;
        let mut problems = Vec::new();
        // Most bulks have none, and many chunks.
        if troubled > 0 || record.ended().is_some() {
            let chunks = self.records.chunks(&record).await?;
            let items = chunks.into_iter().flat_map(|chunk| chunk.items);
            let bad =
                |item: &Item| matches!(item.state, State::Failed { .. } | State::Skipped { .. });
            problems = items.filter(bad).take(MAX_PROBLEMS).collect();
        }
        Ok(BulkPage { record, problems })
    }

    /// Changes a header, whatever else changes it meanwhile.
    async fn steer(
        &self,
        id: BulkId,
        change: impl Fn(&mut Header) -> Result<(), BulkError>,
    ) -> Result<BulkPage, BulkError> {
        for _ in 0..MAX_TRIES {
            let record = self.records.bulk(id).await?.ok_or(BulkError::NotFound(id))?;
            let mut header = record.header.clone();
            change(&mut header)?;
            if header == record.header {
                return self.page(record).await;
            }
            header.revision += 1;
            let now = self.directory.now();
            if self.records.steer_bulk(id, &header, now).await.map_err(Error::of_write)? {
                return self.page(BulkRecord { header, updated: now, ..record }).await;
            }
        }
        Err(Refused::Contended.into())
    }

    async fn drain(&self, registry: &Registry, ask: &DrainAsk) -> Result<Plan, BulkError> {
        if registry.cell(&ask.cell).is_none() {
            return Err(Refused::CellNotFound { cell: ask.cell.clone() }.into());
        }
        let cell = ask.cell.as_str();
        let gathered = self.gather.gather(registry, &ask.targets, |view| view.id == cell).await?;
        let options = DrainOptions { residency: residency(&ask.targets), ceiling: ask.ceiling };
        Ok(plan_drain(cell, &gathered.tenants, &gathered.cells, &options)?)
    }
}

#[async_trait]
impl BulkApi for Bulks {
    async fn plan_drain(&self, ask: DrainAsk) -> Result<Plan, BulkError> {
        self.drain(&*self.directory.registry().await?, &ask).await
    }

    async fn start_drain(&self, ask: DrainAsk, how: How) -> Result<BulkPage, BulkError> {
        if let Some(begun) = self.repeat(how.request.as_ref()).await? {
            return Ok(begun);
        }
        let registry = self.directory.registry().await?;
        let cell = registry.cell(&ask.cell);
        let state = cell.ok_or_else(|| Refused::CellNotFound { cell: ask.cell.clone() })?.state;
        if !matches!(state, CellState::Cordoned | CellState::Draining) {
            return Err(BulkError::TakesTenants { cell: ask.cell, state });
        }
        let plan = self.drain(&registry, &ask).await?;
        let purpose = Purpose::Drain { cell: ask.cell.as_str().to_owned() };
        self.begin(purpose, plan, how).await
    }

    async fn plan_rebalance(&self, ask: RebalanceAsk) -> Result<Plan, BulkError> {
        let takes_part =
            |view: &cells_balance::CellView| view.utilisation.is_some() && view.placements > 0;
        let registry = self.directory.registry().await?;
        let gathered = self.gather.gather(&registry, &ask.targets, takes_part).await?;
        let last = self.gather.last_moves().await?;
        let options = RebalanceOptions {
            residency: residency(&ask.targets),
            hotspot_share: ask.hotspot_share,
        };
        Ok(plan_rebalance(&gathered.cells, &gathered.tenants, ask.band, &last, &options)?)
    }

    async fn start_rebalance(&self, ask: RebalanceAsk, how: How) -> Result<BulkPage, BulkError> {
        if let Some(begun) = self.repeat(how.request.as_ref()).await? {
            return Ok(begun);
        }
        let purpose = Purpose::Rebalance { low: ask.band.low, high: ask.band.high };
        let plan = self.plan_rebalance(ask).await?;
        self.begin(purpose, plan, how).await
    }

    async fn get(&self, id: BulkId) -> Result<BulkPage, BulkError> {
        let record = self.records.bulk(id).await?.ok_or(BulkError::NotFound(id))?;
        self.page(record).await
    }

    async fn list(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<BulkRecord>, BulkError> {
        Ok(self.records.bulks(limit, after).await?)
    }

    async fn pause(&self, id: BulkId, paused: bool) -> Result<BulkPage, BulkError> {
        let set = |header: &mut Header| {
            in_time(id, header)?;
            if header.cancelled.is_some() {
                return Err(BulkError::NotNow { bulk: id, why: "was cancelled" });
            }
            header.paused = paused;
            Ok(())
        };
        self.steer(id, set).await
    }

    async fn cancel(&self, id: BulkId, how: Cancel) -> Result<BulkPage, BulkError> {
        let set = |header: &mut Header| {
            // To cancel again what was cancelled is harmless.
            if header.cancelled.is_some() && header.ended.is_some() {
                return Ok(());
            }
            in_time(id, header)?;
            if header.cancelled != Some(Cancel::Running) {
                header.cancelled = Some(how);
            }
            Ok(())
        };
        self.steer(id, set).await
    }
}

fn in_time(bulk: BulkId, header: &Header) -> Result<(), BulkError> {
    match header.ended {
        None => Ok(()),
        Some(_) => Err(BulkError::NotNow { bulk, why: "has ended" }),
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
