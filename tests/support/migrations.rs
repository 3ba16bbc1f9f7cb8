//! Migrations in memory that nobody works on: they stand still until a test changes them. What the edge of `MigrationService` is
//! tested against, where no cell has a table.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use async_trait::async_trait;
use cell_directory::directory::{Refused, Request};
use cell_directory::domain::{CellId, MigrationId, PartitionKey, RequestId, Timestamp};
use cell_directory::migration::{
    Ask, Estimate, Filter, Findings, GuardCount, Instruction, Migration, MigrationApi,
    MigrationError, Progress, Spec, TargetCell, TenantVerification,
};
use cell_directory::store::{Cursor, Page, StoreError};
use cells_migration::{Phase, Record, Wish};
use parking_lot::Mutex;

/// Where every tenant lives.
pub const SOURCE: &str = "cell-0";

/// Cells that there are: `cell-0` to `cell-7`.
const CELLS: usize = 8;

#[derive(Default)]
pub struct FakeMigrations(Mutex<State>);

#[derive(Default)]
pub struct State {
    pub migrations: BTreeMap<MigrationId, Migration>,
    requests: HashMap<RequestId, (String, MigrationId)>,
    /// What every call is refused with; so many times, or for ever.
    pub refusal: Option<(MigrationError, Option<u32>)>,
    /// What was asked to be moved, last.
    pub asked: Option<Ask>,
    pub reads: usize,
}

/// A migration of a tenant from `cell-0` to `cell-1`, just begun.
pub fn migration(number: u128) -> Migration {
    let id = MigrationId::new(number);
    let at = Timestamp::from_millis(1_700_000_000_000).unwrap();
    Migration {
        record: Record::new(id.into(), 7),
        spec: Spec {
            tenant: PartitionKey::new(format!("tenant-{number}")).unwrap(),
            source: CellId::new(SOURCE).unwrap(),
            target: CellId::new("cell-1").unwrap(),
            verification: Default::default(),
            writers: Default::default(),
            soak: Duration::from_secs(3600),
            pause_budget: Duration::from_secs(2),
            rate_limit: None,
            guard_shards: 1,
        },
        progress: Progress::default(),
        findings: None,
        parked: None,
        trouble: None,
        created: at,
        updated: at,
        phase_since: at,
        digest: String::new(),
        caller: None,
        bulk: None,
        beat: 0,
    }
}

/// Each phase has a number of its own, 0 to 11.
pub fn numbered_phase(number: u128) -> Phase {
    use Phase::*;
    let phases = [
        Planned, Logging, Copying, CatchingUp, Verifying, Fenced, Committed, Soaking, Cleaning,
        Done, Aborting, Aborted,
    ];
    phases[number as usize % phases.len()]
}

impl FakeMigrations {
    /// With these, which keep their numbers.
    pub fn with(numbers: impl IntoIterator<Item = u128>) -> Self {
        let fake = Self::default();
        for number in numbers {
            fake.change(number, |_| {});
        }
        fake
    }

    /// Changes one, which is made first where there is none.
    pub fn change(&self, number: u128, change: impl FnOnce(&mut Migration)) {
        let mut state = self.0.lock();
        change(
            state.migrations.entry(MigrationId::new(number)).or_insert_with(|| migration(number)),
        );
    }

    pub fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock())
    }

    /// The state, unless the call is to be refused.
    fn enter(&self) -> Result<parking_lot::MutexGuard<'_, State>, MigrationError> {
        let mut state = self.0.lock();
        match &mut state.refusal {
            None | Some((_, Some(0))) => Ok(state),
            Some((error, left)) => {
                *left = left.map(|left| left - 1);
                Err(error.clone())
            }
        }
    }
}

fn spec(ask: &Ask) -> Result<Spec, MigrationError> {
    let target = match &ask.target {
        TargetCell::Cell(cell) => cell.clone(),
        TargetCell::Choose(_) => CellId::new("cell-2").unwrap(),
    };
    if !(0..CELLS).any(|number| format!("cell-{number}") == target.as_str()) {
        return Err(Refused::CellNotFound { cell: target }.into());
    }
    if target.as_str() == SOURCE {
        return Err(MigrationError::SameCell(target));
    }
    Ok(Spec {
        tenant: ask.tenant.clone(),
        source: CellId::new(SOURCE).unwrap(),
        target,
        verification: ask.verification,
        writers: ask.writers,
        soak: ask.soak.unwrap_or(Duration::from_secs(3600)),
        pause_budget: ask.pause_budget.unwrap_or(Duration::from_secs(2)),
        rate_limit: ask.rate_limit,
        guard_shards: 1,
    })
}

#[async_trait]
impl MigrationApi for FakeMigrations {
    async fn plan(&self, ask: Ask) -> Result<Estimate, MigrationError> {
        let mut state = self.enter()?;
        let spec = spec(&ask)?;
        state.asked = Some(ask);
        Ok(Estimate {
            spec,
            items: 100,
            bytes: 40_000,
            read_units: 300,
            write_units: 400,
            cost_micros: Some(625),
            duration: Duration::from_secs(12),
        })
    }

    async fn start(
        &self,
        ask: Ask,
        request: Option<Request>,
        caller: Option<String>,
    ) -> Result<Migration, MigrationError> {
        let mut state = self.enter()?;
        if let Some(request) = &request
            && let Some((digest, id)) = state.requests.get(&request.id)
        {
            return match *digest == request.digest {
                true => Ok(state.migrations[id].clone()),
                false => Err(Refused::RequestIdReused.into()),
            };
        }
        let spec = spec(&ask)?;
        let moving =
            |other: &&Migration| other.spec.tenant == spec.tenant && !other.record.phase.ended();
        if let Some(other) = state.migrations.values().find(moving) {
            let target = other.spec.target.clone();
            return Err(MigrationError::AlreadyMoving { migration: other.id(), target });
        }
        let id = MigrationId::new(1000 + state.migrations.len() as u128);
        let digest = request.as_ref().map_or_else(String::new, |request| request.digest.clone());
        let begun = Migration { spec, caller, digest, ..migration(id.get()) };
        state.requests.extend(request.map(|request| (request.id, (request.digest, id))));
        state.migrations.insert(id, begun.clone());
        state.asked = Some(ask);
        Ok(begun)
    }

    async fn get(&self, id: MigrationId) -> Result<Migration, MigrationError> {
        let mut state = self.enter()?;
        state.reads += 1;
        state.migrations.get(&id).cloned().ok_or(MigrationError::NotFound(id))
    }

    async fn list(
        &self,
        filter: Filter,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Migration>, MigrationError> {
        let state = self.enter()?;
        let after = after.map(|Cursor(id)| MigrationId::parse(id)).transpose();
        let after = after.map_err(|_| StoreError::ForeignCursor)?;
        let later = state.migrations.values().filter(|one| Some(one.id()) > after);
        let mut items: Vec<_> =
            later.filter(|one| filter.fits(one)).take(limit + 1).cloned().collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| Cursor(last.id().to_string()));
        Ok(Page { items, next })
    }

    async fn ask(&self, id: MigrationId, wish: Instruction) -> Result<Migration, MigrationError> {
        let mut state = self.enter()?;
        let migration = state.migrations.get_mut(&id).ok_or(MigrationError::NotFound(id))?;
        wish.allowed(migration)?;
        match wish {
            Instruction::Cancel => migration.record.wish = Some(Wish::Cancel),
            Instruction::Reverse => migration.record.wish = Some(Wish::Reverse),
            Instruction::Complete => migration.record.wish = Some(Wish::Complete),
            Instruction::Pause => migration.record.paused = true,
            Instruction::Resume => migration.record.paused = false,
            Instruction::Retry => migration.parked = None,
        }
        Ok(migration.clone())
    }

    async fn guards(&self, cell: &CellId) -> Result<GuardCount, MigrationError> {
        let _state = self.enter()?;
        match cell.as_str() {
            SOURCE => Ok(GuardCount {
                placements: 40,
                missing: 3,
                counted_at: Timestamp::from_millis(1_700_000_000_000).unwrap(),
            }),
            _ => Err(Refused::CellNotFound { cell: cell.clone() }.into()),
        }
    }

    async fn verify(&self, tenant: &PartitionKey) -> Result<TenantVerification, MigrationError> {
        let _state = self.enter()?;
        if !tenant.as_str().starts_with("tenant-") {
            return Err(Refused::PlacementNotFound.into());
        }
        Ok(TenantVerification {
            findings: Findings { source_items: 100, target_items: 100, ..Findings::default() },
            cells: vec![(CellId::new(SOURCE).unwrap(), 100), (CellId::new("cell-1").unwrap(), 2)],
            leftovers: 2,
        })
    }
}
