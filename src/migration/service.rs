//! What operators ask of moves.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cells_cost::PriceTable;
use cells_guard::Touched;
use cells_migration::{Record, Wish};
use cells_verify::{Census, Differing, Verifier};

use super::access::CellAccess;
use super::api::{Filter, MigrationApi, TenantVerification};
use super::bulk::Part;
use super::error::{MigrationError, Obstacle};
use super::freeze::Freeze;
use super::guards::{GuardCount, Guards};
use super::instruction::Instruction;
use super::model::{Ask, Estimate, Findings, Migration, Progress, Spec, TargetCell, Writers};
use super::preflight::{self, Measured};
use super::records::{Begun, MigrationRecords, Order};
use super::steps::Cells;
use super::verify;
use crate::cells::{CellsError, TableRef, TableSetId};
use crate::directory::{Directory, Error, Randomness, Refused, Registry, Request};
use crate::domain::{Cell, CellId, MigrationId, PartitionKey, Placement};
use crate::store::{Cursor, Page};

/// Write units a second that one partition takes at most, by which a move without a limit is estimated.
const PARTITION_UNITS: u64 = 1000;

/// Bytes that one read unit reads consistently.
const READ_UNIT: u64 = 4096;

/// How often what differs is looked at again, and after how long: a worker applies what was written within half a second.
const RECHECKS: u32 = 5;
const RECHECK_PAUSE: Duration = Duration::from_millis(400);

/// Past placements whose cells are looked at.
const MAX_FORMER: usize = 100;

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
            TargetCell::Choose => {
                let fits = |cell: &Cell| {
                    cell.id != source.id && preflight::between(&source, cell).is_empty()
                };
                let entropy = self.randomness.draw();
                let best = self.directory.best_cell(&registry, &ask.tenant, entropy, fits)?;
                known(&registry, &best)?
            }
        };
        if let Some(why) = target.refuses_new_tenants() {
            return Err(Obstacle::NotEligible { cell: target.id.clone(), why }.into());
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

    fn estimate(&self, spec: Spec, source: &Cell, measured: &Measured) -> Estimate {
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
        let cost_micros = cost_micros(source.region.as_str(), read_units, write_units);
        Estimate { spec, items, bytes, read_units, write_units, cost_micros, duration }
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
        Ok(self.estimate(spec, &source, &measured))
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
        let placement = self.directory.placement(tenant).await?;
        let registry = self.directory.registry().await?;
        let home = known(&registry, &placement.cell)?;
        let home = CellAccess::of(&home, &self.guards.regions)
            .ok_or_else(|| Obstacle::NoTables { cell: placement.cell.clone() })?;
        let mut findings = Findings::default();
        let (mut cells, mut leftovers) = (Vec::new(), 0);
        // While it moves the other cell is to hold the same.
        let other = match placement.migration {
            None => None,
            Some(id) => {
                let migration = self.get(id).await?;
                let both = self.live(&registry, &migration)?;
                Some(both.of(migration.record.live().other()).clone())
            }
        };
        match &other {
            Some(other) => {
                findings = self.compared(&home, other, tenant).await?;
                cells.push((home.cell.clone(), findings.source_items));
                cells.push((other.cell.clone(), findings.target_items));
            }
            None => {
                findings.source_items = self.census(&home, tenant.as_str()).await?;
                cells.push((home.cell.clone(), findings.source_items));
            }
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
}

impl Migrations {
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

fn incompatible(error: cells_verify::Incompatible) -> MigrationError {
    let why = format!("cannot be compared: {error}");
    Obstacle::SchemasDiffer { table: "set".to_owned(), why }.into()
}
