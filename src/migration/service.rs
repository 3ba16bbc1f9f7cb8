//! What operators ask of moves.

mod inspect;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cells_cost::PriceTable;
use cells_migration::{Record, Wish};

use super::access::CellAccess;
use super::api::{Filter, MigrationApi, TenantVerification};
use super::bulk::Part;
use super::error::{MigrationError, Obstacle};
use super::freeze::Freeze;
use super::guards::{GuardCount, Guards};
use super::instruction::Instruction;
use super::model::{Ask, Estimate, Migration, Progress, Spec, TargetCell, Writers};
use super::preflight::{self, Measured};
use super::records::{Begun, MigrationRecords, Order};
use super::steps::Cells;
use crate::cells::{CellsError, TableRef, TableSetId};
use crate::directory::policy::Newcomer;
use crate::directory::{Directory, Error, Randomness, Refused, Registry, Request};
use crate::domain::{Cell, CellId, MigrationId, PartitionKey, Placement};
use crate::store::{Cursor, Page};

/// Write units a second that one partition takes at most, by which a move without a limit is estimated.
const PARTITION_UNITS: u64 = 1000;

/// Bytes that one read unit reads consistently.
const READ_UNIT: u64 = 4096;

/// What holds where a migration does not say.
#[derive(Debug, Clone)]
pub struct Defaults {
    pub soak: Duration,
    pub pause_budget: Duration,
    /// Write capacity units a second; `None`: no limit.
    pub rate_limit: Option<NonZeroU32>,
    /// Items of each guard while a tenant moves, 1 to [`cells_guard::guard::MAX_SHARDS`].
    pub guard_shards: u8,
    /// Waited beside leases.
    pub lease_margin: Duration,
}

/// Moves of tenants between the directory's cells. Cheap to clone.
#[derive(Clone)]
pub struct Migrations {
    directory: Directory,
    records: Arc<dyn MigrationRecords>,
    guards: Guards,
    /// How writers that know nothing of guards are stopped; `None`: they are not.
    freeze: Option<Arc<Freeze>>,
    randomness: Randomness,
    defaults: Defaults,
}

impl Migrations {
    pub fn new(
        guards: Guards,
        freeze: Option<Arc<Freeze>>,
        randomness: Randomness,
        defaults: Defaults,
    ) -> Self {
        let (directory, records) = (guards.directory.clone(), Arc::clone(&guards.records));
        Self { directory, records, guards, freeze, randomness, defaults }
    }

    /// What is asked taken to mean, and the cells that it is about. Nothing stands in the way of it but what the tables hold.
    async fn specified(&self, ask: &Ask) -> Result<Specified, MigrationError> {
        let placement = self.directory.placement(&ask.tenant).await?;
        if let Some(expired) = placement.expires.filter(|_| placement.expired(self.directory.now()))
        {
            return Err(Refused::PlacementExpired { expired }.into());
        }
        if let Some(migration) = placement.migration {
            return Err(self.moving(migration).await?);
        }
        let registry = self.directory.registry().await?;
        let source = known(&registry, &placement.cell)?;
        let target = match &ask.target {
            TargetCell::Cell(id) if *id == placement.cell => {
                return Err(MigrationError::SameCell(id.clone()));
            }
            TargetCell::Cell(id) => known(&registry, id)?,
            TargetCell::Choose(constraints) => {
                let fits = |cell: &Cell| {
                    cell.id != source.id && preflight::between(&source, cell).is_empty()
                };
                let entropy = self.randomness.draw();
                let newcomer = Newcomer { key: &ask.tenant, constraints, entropy };
                let best = self.directory.best_cell(&registry, newcomer, fits)?;
                known(&registry, &best)?
            }
        };
        if let Some(obstacle) = preflight::eligible(&target) {
            return Err(obstacle.into());
        }
        let cells = preflight::cells(&source, &target, &self.guards.regions);
        let cells = cells.map_err(MigrationError::Obstructed)?;
        let spec = Spec {
            tenant: ask.tenant.clone(),
            source: source.id.clone(),
            target: target.id.clone(),
            verification: ask.verification,
            writers: ask.writers,
            soak: ask.soak.unwrap_or(self.defaults.soak),
            pause_budget: ask.pause_budget.unwrap_or(self.defaults.pause_budget),
            rate_limit: ask.rate_limit.or(self.defaults.rate_limit),
            guard_shards: self.defaults.guard_shards,
        };
        Ok(Specified { spec, placement, source, target, cells })
    }

    /// Why a tenant that moves is not moved.
    async fn moving(&self, id: MigrationId) -> Result<MigrationError, MigrationError> {
        let migration = self.get(id).await?;
        Ok(MigrationError::AlreadyMoving { migration: id, target: migration.spec.target })
    }

    /// Looks at the tables, too, and fills in a guard that is missing.
    async fn cleared(
        &self,
        placement: &Placement,
        source: &Cell,
        cells: &Cells,
        change: bool,
    ) -> Result<(), MigrationError> {
        if change {
            self.guards.ensure(source, placement).await?;
        }
        let mut obstacles = preflight::look(cells, placement).await?;
        // A start would write it.
        obstacles.retain(|obstacle| change || !matches!(obstacle, Obstacle::GuardMissing { .. }));
        clear(obstacles)
    }

    /// That writers which know nothing of guards can be followed, and stopped where they are to be.
    async fn outsiders(&self, spec: &Spec, cells: &Cells) -> Result<(), MigrationError> {
        if spec.writers == Writers::Cooperative {
            return Ok(());
        }
        let mut obstacles = preflight::streams(cells).await?;
        if spec.writers == Writers::Frozen {
            match &self.freeze {
                None => obstacles.push(Obstacle::NoFreeze),
                Some(freeze) => obstacles.extend(self.probed(freeze, spec).await?),
            }
        }
        clear(obstacles)
    }

    /// Whether the probe's writes are refused where the tenant lives, though nobody was stopped: then they would seem to be, always. The
    /// target is not asked: the hook may let nobody write there before the thaw.
    async fn probed(
        &self,
        freeze: &Freeze,
        spec: &Spec,
    ) -> Result<Option<Obstacle>, MigrationError> {
        let Some(regions) = &freeze.probe else { return Ok(None) };
        let (registry, id) = (self.directory.registry().await?, &spec.source);
        let cell = registry.cell(id).and_then(|cell| CellAccess::of(cell, regions));
        let Some(cell) = cell else { return Ok(None) };
        let probed = cell.probe(&spec.tenant).await.inspect_err(|error| {
            tracing::warn!(cell = id.as_str(), %error, "the probe of freezes does not work");
        });
        let refused = probed?.refused > 0;
        Ok(refused.then(|| Obstacle::ProbeRefused { cell: id.clone() }))
    }

    /// That the target's tables can be set back to a point in time, where they are declared to be and the endpoint knows of it.
    async fn recoverable(&self, cell: &Cell) -> Result<(), MigrationError> {
        let Some(tables) = &cell.tables else { return Ok(()) };
        let Ok(set) = TableSetId::new(&tables.set) else { return Ok(()) };
        let set = self.guards.cells.table_set_at(&set, tables.version).await?;
        let mut obstacles = Vec::new();
        for spec in set.iter().flat_map(|set| &set.tables) {
            if spec.recovery_days.is_none() {
                continue;
            }
            let name = spec.table_name(&self.guards.prefix, &cell.id);
            let table = TableRef { region: cell.region.clone(), name };
            let observed = self.guards.cloud.observe(&table).await.map_err(CellsError::from)?;
            let off = observed.as_ref().and_then(|seen| seen.recovery_days.known()) == Some(&None);
            if off {
                obstacles.push(Obstacle::NotRecoverable { table: table.name });
            }
        }
        clear(obstacles)
    }

    fn estimate(&self, spec: Spec, target: &Cell, measured: &Measured) -> Estimate {
        let Measured { items, bytes, transactions, write_units, .. } = *measured;
        // The copy and the two sides of the comparison read everything; the clean-up reads keys, which costs as much.
        let read_units = 4 * bytes.div_ceil(READ_UNIT);
        let write_units = 2 * write_units;
        let rate = spec.rate_limit.map_or(PARTITION_UNITS, |limit| u64::from(limit.get()));
        let seconds = write_units.div_ceil(rate);
        let leases = self.directory.lease_wait(std::time::Instant::now());
        // A round trip of some ten milliseconds for each transaction, of which some are under way at a time.
        let trips = Duration::from_millis(10 * transactions);
        let duration =
            leases + self.defaults.lease_margin + Duration::from_secs(seconds).max(trips);
        let duration = Duration::from_secs(duration.as_millis().div_ceil(1000) as u64);
        let cost_micros = cost_micros(target.region.as_str(), read_units, write_units);
        Estimate { spec, items, bytes, read_units, write_units, cost_micros, duration }
    }
}

/// What is asked for, and what it was taken to mean.
struct Specified {
    spec: Spec,
    placement: Placement,
    source: Arc<Cell>,
    target: Arc<Cell>,
    cells: Cells,
}

/// Where a migration comes from.
pub(super) struct Origin {
    pub id: MigrationId,
    /// Of what asks for it, so that a repeat is known; empty: it cannot be repeated.
    pub digest: String,
    /// The W3C trace context of the call that began it.
    pub caller: Option<String>,
    /// The cell that the tenant has to be in.
    pub source: Option<CellId>,
    /// The part of a bulk that it is begun for.
    pub part: Option<Part>,
}

impl Migrations {
    /// Begins a migration, or answers the one of this id that the same has begun.
    pub(super) async fn begin(
        &self,
        ask: Ask,
        origin: Origin,
    ) -> Result<Migration, MigrationError> {
        let Origin { id, digest, caller, source: due, part } = origin;
        let again = |begun: Migration| match begun.digest == digest {
            true => Ok(begun),
            false => Err(Refused::RequestIdReused.into()),
        };
        if !digest.is_empty()
            && let Some(begun) = self.records.migration(id).await?
        {
            return again(begun);
        }
        let Specified { spec, placement, source, target, cells } = self.specified(&ask).await?;
        if let Some(due) = due.filter(|due| *due != spec.source) {
            return Err(MigrationError::Elsewhere { due, cell: spec.source });
        }
        self.recoverable(&target).await?;
        self.outsiders(&spec, &cells).await?;
        self.cleared(&placement, &source, &cells, true).await?;
        let now = self.directory.now();
        let migration = Migration {
            record: Record::new(id.into(), placement.epoch.get()),
            spec,
            progress: Progress::default(),
            findings: None,
            parked: None,
            trouble: None,
            created: now,
            updated: now,
            phase_since: now,
            digest: digest.clone(),
            caller,
            bulk: part.map(|part| part.bulk.to_string()),
            beat: 0,
        };
        match self.records.begin(&migration, part.as_ref()).await.map_err(Error::of_write)? {
            Begun::Begun => Ok(migration),
            Begun::Exists(begun) => again(*begun),
            Begun::Moving(other) => Err(self.moving(other).await?),
            Begun::Superseded => Err(MigrationError::Superseded),
        }
    }
}

#[async_trait]
impl MigrationApi for Migrations {
    async fn plan(&self, ask: Ask) -> Result<Estimate, MigrationError> {
        let Specified { spec, placement, source, target, cells } = self.specified(&ask).await?;
        self.recoverable(&target).await?;
        self.outsiders(&spec, &cells).await?;
        self.cleared(&placement, &source, &cells, false).await?;
        let measured = preflight::measure(&cells, &spec.tenant).await?;
        if measured.too_large > 0 {
            let (cell, items) = (spec.target, measured.too_large);
            return Err(Obstacle::ItemsTooLarge { cell, items }.into());
        }
        Ok(self.estimate(spec, &target, &measured))
    }

    async fn start(
        &self,
        ask: Ask,
        request: Option<Request>,
        caller: Option<String>,
    ) -> Result<Migration, MigrationError> {
        let id = match &request {
            Some(request) => MigrationId::new(request.begins()),
            None => MigrationId::new(self.randomness.draw()),
        };
        let digest = request.map(|request| request.digest).unwrap_or_default();
        self.begin(ask, Origin { id, digest, caller, source: None, part: None }).await
    }

    async fn get(&self, id: MigrationId) -> Result<Migration, MigrationError> {
        self.records.migration(id).await?.ok_or(MigrationError::NotFound(id))
    }

    async fn list(
        &self,
        filter: Filter,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Migration>, MigrationError> {
        let mut page = self.records.migrations(limit, after).await?;
        page.items.retain(|migration| filter.fits(migration));
        Ok(page)
    }

    async fn ask(&self, id: MigrationId, wish: Instruction) -> Result<Migration, MigrationError> {
        wish.allowed(&self.get(id).await?)?;
        let order = match wish {
            Instruction::Cancel => Order::Wish(Wish::Cancel),
            Instruction::Reverse => Order::Wish(Wish::Reverse),
            Instruction::Complete => Order::Wish(Wish::Complete),
            Instruction::Pause => Order::Pause(true),
            Instruction::Resume => Order::Pause(false),
            Instruction::Retry => Order::Unpark,
        };
        self.records.order(id, order, self.directory.now()).await.map_err(Error::of_write)?;
        self.get(id).await
    }

    async fn guards(&self, cell: &CellId) -> Result<GuardCount, MigrationError> {
        Ok(self.guards.count(cell).await?)
    }

    async fn verify(&self, tenant: &PartitionKey) -> Result<TenantVerification, MigrationError> {
        self.inspect(tenant).await
    }
}

/// On demand, in millionths of a dollar. `None`: no price is known.
fn cost_micros(region: &str, read_units: u64, write_units: u64) -> Option<u64> {
    let prices = PriceTable::bundled().ok()?;
    let cost = prices.region(region)?.requests(read_units, write_units);
    u64::try_from(cost.picos() / 1_000_000).ok()
}

fn known(registry: &Registry, id: &CellId) -> Result<Arc<Cell>, Refused> {
    let cell = registry.cell(id).cloned();
    cell.ok_or_else(|| Refused::CellNotFound { cell: id.clone() })
}

/// Whether nothing stands in the way.
fn clear(obstacles: Vec<Obstacle>) -> Result<(), MigrationError> {
    match obstacles.is_empty() {
        true => Ok(()),
        false => Err(MigrationError::Obstructed(obstacles)),
    }
}
