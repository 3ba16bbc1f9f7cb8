//! Goes on with operations: looks at what there is, does the first change that is missing of each table, and looks again.
//!
//! Every replica runs one. It looks at all operations under way at a constant rate, and holds those that nobody holds, or whose holder's beat
//! has stood still for too long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::cloud::{Cloud, CloudError, TableRef};
use super::error::CellsError;
use super::home::Home;
use super::operation::{FinalBackup, Goal, Operation, OperationId};
use super::plan::{Change, Observed, Wanted, plan};
use super::records::{CellRecords, Cells};
use super::recovery::{BackedUp, Comparison};
use super::registrar::obstacles;
use crate::directory::{Clock, Error, Refused};

/// How often the same change is done again because it did not show, until it is taken to have no effect.
const MAX_REPEATS: u32 = 60;

/// Looks for which a backup that was begun may not be listed yet, until another one is begun.
pub(super) const MAX_UNSEEN: u32 = 30;

#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Between two looks.
    pub interval: Duration,
    /// How long a holder's beat stands still until it is taken to be dead. Longer than any look takes: a holder that is taken over
    /// while it lives changes nothing more in the record, but a call of it that is on its way still arrives.
    pub takeover: Duration,
    /// After each page that a drill reads.
    pub page_pause: Duration,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            takeover: Duration::from_secs(60),
            page_pause: Duration::from_millis(100),
        }
    }
}

pub struct Worker {
    pub cells: Arc<dyn Cells>,
    pub records: Arc<dyn CellRecords>,
    pub cloud: Arc<dyn Cloud>,
    pub prefix: String,
    pub home: Home,
    pub clock: Clock,
    pub settings: WorkerSettings,
}

/// What this worker knows of an operation beside its record.
pub(super) struct Watched {
    /// The holder's number and beat, and since when they are so.
    seen: (u64, u64),
    since: Instant,
    held: bool,
    /// Of each table the change that was done last, and how often in a row.
    repeats: HashMap<String, (Change, u32)>,
    /// Of each table the looks since a backup of it was begun that is not listed yet.
    pub(super) unseen: HashMap<String, u32>,
    pub(super) backed_up: BackedUp,
    /// The table that a drill compares, and how far it is.
    pub(super) comparison: Option<(String, Comparison)>,
    /// Nothing else is compared at the moment.
    pub(super) may_compare: bool,
    /// Looks in a row that found no temporary table of a drill.
    pub(super) quiet: u32,
}

impl Watched {
    fn new(seen: (u64, u64), since: Instant) -> Self {
        Self {
            seen,
            since,
            held: false,
            repeats: HashMap::new(),
            unseen: HashMap::new(),
            backed_up: BackedUp::default(),
            comparison: None,
            may_compare: false,
            quiet: 0,
        }
    }

    /// Whether something that does not show is to be asked for: the first time, and after so many looks again.
    pub(super) fn asked_again(&mut self, table: &str, looks: u32) -> bool {
        match self.unseen.get_mut(table) {
            Some(since) if *since < looks => {
                *since += 1;
                false
            }
            _ => {
                self.unseen.insert(table.to_owned(), 0);
                true
            }
        }
    }
}

/// How an operation stands after a look.
pub(super) enum Look {
    Working,
    Ended(Result<(), String>),
}

impl Worker {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut watched = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            // A look is not cut off: it is bounded by its calls' deadlines, and a call under way would be done all the same.
            if let Err(error) = self.round(&mut watched).await {
                tracing::debug!(%error, "operations cannot be read");
            }
        }
    }

    async fn round(&self, watched: &mut HashMap<OperationId, Watched>) -> Result<(), CellsError> {
        let cells = self.records.all_cell_tables().await?;
        let running: Vec<_> = cells.into_iter().filter_map(|record| record.operation).collect();
        watched.retain(|id, _| running.contains(id));
        for id in running {
            if let Err(error) = self.look(&id, watched).await {
                tracing::warn!(%error, operation = id.as_str(), "an operation does not get on");
            }
        }
        Ok(())
    }

    /// Looks at one operation, as it is now: the looks at those before it may have taken long, and others work meanwhile.
    async fn look(
        &self,
        id: &OperationId,
        watched: &mut HashMap<OperationId, Watched>,
    ) -> Result<(), CellsError> {
        let running = self.records.operation(id).await?.filter(|operation| !operation.ended());
        let Some(operation) = running else {
            watched.remove(id);
            return Ok(());
        };
        let Some(mut operation) = self.hold(operation, watched).await? else { return Ok(()) };
        let compares = |(other, watch): (&OperationId, &Watched)| {
            other != id && watch.held && watch.comparison.is_some()
        };
        let may_compare = !watched.iter().any(compares);
        let Some(watch) = watched.get_mut(id) else { return Ok(()) };
        watch.may_compare = may_compare;
        self.advance(&mut operation, watch).await
    }

    /// The operation, if this worker holds it or takes it over.
    async fn hold(
        &self,
        mut operation: Operation,
        watched: &mut HashMap<OperationId, Watched>,
    ) -> Result<Option<Operation>, CellsError> {
        let (now, seen) = (self.clock.instant(), (operation.worker_epoch, operation.beat));
        let watch = watched.entry(operation.id.clone()).or_insert_with(|| Watched::new(seen, now));
        // Nobody else writes under this number, whatever became of the last write.
        if watch.held && watch.seen.0 == operation.worker_epoch {
            return Ok(Some(operation));
        }
        if watch.seen != seen {
            *watch = Watched::new(seen, now);
        }
        let free = operation.worker_epoch == 0;
        if !free && now.saturating_duration_since(watch.since) < self.settings.takeover {
            return Ok(None);
        }
        operation.worker_epoch += 1;
        if !self.records.save(&operation, true).await? {
            return Ok(None);
        }
        watch.seen = (operation.worker_epoch, operation.beat);
        watch.held = true;
        tracing::info!(
            operation = operation.id.as_str(),
            worker_epoch = operation.worker_epoch,
            "took an operation"
        );
        Ok(Some(operation))
    }

    /// One look, and what comes of it.
    async fn advance(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
    ) -> Result<(), CellsError> {
        let look = match operation.goal.clone() {
            Goal::Provision { .. } => self.provision(operation, watch).await,
            Goal::Deprovision { delete_data, final_backup, .. } => {
                self.deprovision(operation, watch, delete_data, final_backup).await
            }
            Goal::BackUp { backup, keep_days, .. } => {
                self.back_up(operation, watch, &backup, keep_days).await
            }
            Goal::Restore { source, from, .. } => {
                self.restore(operation, watch, &source, &from).await
            }
            Goal::Drill { from, .. } => self.drill(operation, watch, &from).await,
        };
        let look = match look {
            Ok(Look::Ended(Ok(()))) => self.register(operation).await,
            look => look,
        };
        match look {
            Ok(Look::Working) => {}
            Ok(Look::Ended(result)) => operation.end(result, self.clock.now()),
            Err(CellsError::Cloud(CloudError::Refused { code, detail })) => {
                tracing::warn!(
                    operation = operation.id.as_str(),
                    code,
                    detail,
                    "AWS refused a call"
                );
                operation.end(Err(format!("AWS refused a call with {code}")), self.clock.now());
            }
            // Tried again at the next look. The beat says that somebody is at work.
            Err(error) => {
                tracing::debug!(%error, operation = operation.id.as_str(), "a look failed")
            }
        }
        operation.beat += 1;
        watch.seen = (operation.worker_epoch, operation.beat);
        if !self.records.save(operation, false).await? {
            (watch.held, watch.comparison) = (false, None);
        }
        Ok(())
    }

    pub(super) async fn wanted(
        &self,
        operation: &Operation,
    ) -> Result<Option<Vec<Wanted>>, CellsError> {
        let Some(cell) = self.cells.cell(&operation.cell).await? else { return Ok(None) };
        let (set, version) = operation.goal.set();
        let Some(set) = self.records.table_set_at(set, version).await? else { return Ok(None) };
        Ok(Some(Wanted::of(&set, &self.prefix, &cell)))
    }

    /// Registers the tables that an operation has brought about with their cell.
    async fn register(&self, operation: &Operation) -> Result<Look, CellsError> {
        if let Some(Some((set, version))) = operation.goal.leaves() {
            let cell = self.cells.cell(&operation.cell).await?;
            let set = self.records.table_set_at(set, version).await?;
            if let (Some(cell), Some(set)) = (cell, set) {
                let tables = self.home.tables_of(&*self.cloud, &set, &self.prefix, &cell).await?;
                self.cells.set_tables(&cell.id, Some(tables)).await?;
            }
        }
        Ok(Look::Ended(Ok(())))
    }

    pub(super) async fn provision(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
    ) -> Result<Look, CellsError> {
        let Some(wanted) = self.wanted(operation).await? else {
            return Ok(Look::Ended(Err("the cell or its table set is gone".to_owned())));
        };
        let (mut left, mut waiting) = (0, false);
        let mut notes = Vec::new();
        for wanted in &wanted {
            let observed = self.cloud.observe(&TableRef::from(wanted)).await?;
            let plan = plan(wanted, observed.as_ref());
            if let Some(conflict) = plan.conflicts.first() {
                return Ok(Look::Ended(Err(format!("table {} {conflict}", wanted.name))));
            }
            notes.extend(plan.notes.iter().map(|note| format!("{}: {note}", wanted.name)));
            left += plan.changes.len() as u64;
            let settled = observed.as_ref().is_none_or(Observed::settled);
            waiting |= !settled;
            let (Some(change), true) = (plan.changes.first(), settled) else { continue };
            if *change == Change::CreateTable && !operation.goal.makes_empty_tables() {
                // It went since the last look: the next one restores it.
                continue;
            }
            match self.cloud.apply(wanted, change).await {
                Ok(()) => {
                    if repeated(watch, &wanted.name, change) == 1 {
                        operation.done(&wanted.name, change.to_string(), self.clock.now());
                    } else if repeated_too_often(watch, &wanted.name) {
                        let error = format!("table {}: to {change} has no effect", wanted.name);
                        return Ok(Look::Ended(Err(error)));
                    }
                }
                Err(CloudError::Busy { code }) => {
                    tracing::debug!(code, table = wanted.name, %change, "AWS is busy");
                }
                Err(CloudError::Unsupported) => {
                    let error = format!("table {}: this endpoint cannot {change}", wanted.name);
                    return Ok(Look::Ended(Err(error)));
                }
                Err(CloudError::Refused { code, detail }) => {
                    tracing::warn!(code, detail, table = wanted.name, %change, "AWS refused a change");
                    let error =
                        format!("table {}: AWS refused to {change} with {code}", wanted.name);
                    return Ok(Look::Ended(Err(error)));
                }
            }
        }
        operation.steps_left = left;
        operation.notes = notes;
        Ok(if left == 0 && !waiting { Look::Ended(Ok(())) } else { Look::Working })
    }

    async fn deprovision(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        delete_data: bool,
        backup: FinalBackup,
    ) -> Result<Look, CellsError> {
        let Some(wanted) = self.wanted(operation).await? else {
            return Ok(Look::Ended(Err("the cell or its table set is gone".to_owned())));
        };
        // From here on nobody is placed with a guard in tables that go.
        match self.cells.set_tables(&operation.cell, None).await {
            Err(Error::Refused(Refused::CellNotEmpty { .. })) => {
                return Ok(Look::Ended(
                    Err("the tables stay: tenants live in the cell".to_owned()),
                ));
            }
            registered => registered?,
        }
        let mut left = 0;
        for wanted in &wanted {
            let table = TableRef::from(wanted);
            let Some(observed) = self.cloud.observe(&table).await? else { continue };
            left += 1;
            if observed.status == "DELETING" || !observed.settled() {
                continue;
            }
            // Looked at before every single table: a tenant may have come since the operation began.
            let obstacles = self.cells.cell(&operation.cell).await?.map(|cell| obstacles(&cell));
            if let Some(obstacle) = obstacles.unwrap_or_default().first() {
                return Ok(Look::Ended(Err(format!("table {} stays: {obstacle}", wanted.name))));
            }
            let data = self.cloud.holds_data(&table).await?;
            if data && !delete_data {
                return Ok(Look::Ended(Err(format!(
                    "table {} stays: it holds items",
                    wanted.name
                ))));
            }
            let lift = observed
                .deletion_protection
                .then_some(Change::SetDeletionProtection(false))
                .or_else(|| observed.replicas.keys().next().cloned().map(Change::RemoveReplica));
            let step = self.remove(operation, watch, wanted, data, backup, lift).await;
            match step {
                Ok(Some(step)) => operation.done(&wanted.name, step, self.clock.now()),
                Ok(None) | Err(CloudError::Busy { .. }) => {}
                Err(CloudError::Unsupported) => {
                    return Ok(Look::Ended(Err(format!(
                        "table {} stays: this endpoint makes no backups; ask for none, or export the data first",
                        wanted.name
                    ))));
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        operation.steps_left = left;
        Ok(if left == 0 { Look::Ended(Ok(())) } else { Look::Working })
    }

    /// The next step of a table's removal; `None`: it takes time.
    async fn remove(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        wanted: &Wanted,
        data: bool,
        backup: FinalBackup,
        lift: Option<Change>,
    ) -> Result<Option<String>, CloudError> {
        let table = TableRef::from(wanted);
        // The backup first: whatever else goes wrong, it is there.
        let name = format!("final-{}", operation.id.as_str());
        if data && backup == FinalBackup::Required {
            let backups = self.cloud.backups(&table).await?;
            let Some(ours) = operation.own_backups(&wanted.name, &name, &backups) else {
                return Ok(None);
            };
            if ours.is_empty() && watch.asked_again(&wanted.name, MAX_UNSEEN) {
                let begun = self.cloud.create_backup(&table, &name).await;
                begun.inspect_err(|_| _ = watch.unseen.remove(&wanted.name))?;
            }
            if !ours.iter().any(|one| one.available) {
                return Ok(None);
            }
        }
        if let Some(change) = lift {
            self.cloud.apply(wanted, &change).await?;
            return Ok(Some(change.to_string()));
        }
        self.cloud.delete(&table).await?;
        Ok(Some(match data && backup == FinalBackup::Required {
            true => format!("delete the table; its backup is {name}"),
            false => "delete the table".to_owned(),
        }))
    }
}

/// Counts how often a change was done in a row.
fn repeated(watch: &mut Watched, table: &str, change: &Change) -> u32 {
    let (last, times) = watch.repeats.entry(table.to_owned()).or_insert((change.clone(), 0));
    if last != change {
        (*last, *times) = (change.clone(), 0);
    }
    *times += 1;
    *times
}

fn repeated_too_often(watch: &Watched, table: &str) -> bool {
    watch.repeats.get(table).is_some_and(|(_, times)| *times > MAX_REPEATS)
}
