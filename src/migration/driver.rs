//! One migration under way: does what the machine asks, and tells it what came of it. Decides nothing.
//!
//! What fails for a passing reason and was surely not done is done again after a pause. Where it may have been done, the machine is
//! told so. What fails for good is told to operators, and the migration is parked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cells_migration::{
    Action, Cursor, Event, GuardCheck, Machine, Next, Phase, Side, Transaction, Wish,
};
use cells_verify::Verifier;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::access::CellAccess;
use super::copier::{Copier, PAGE_ITEMS};
use super::error::Obstacle;
use super::model::{Findings, Migration, Progress, Spec};
use super::preflight;
use super::records::{MigrationRecords, Order, Told};
use super::steps::{self, Cells};
use super::{trace, verify};
use crate::cells::Regions;
use crate::directory::{Directory, Error, Refused};
use crate::domain::MigrationId;
use crate::store::StoreError;

/// Failures of one action in a row after which a migration that cannot get on is parked, where they are not of the passing kind.
const MAX_FAILURES: u32 = 5;

/// Pause after a first failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often what differs is looked at again after a drain of the log, until it counts as a finding.
const MAX_RECHECKS: u32 = 5;

#[derive(Debug, Clone)]
pub struct DriverSettings {
    /// Between two looks at the record, and two signs of life.
    pub interval: Duration,
    /// Waited in addition until leases have run out.
    pub lease_margin: Duration,
    /// Records of the log that are few enough to be drained under the fence.
    pub little: u64,
    /// Between two looks at the log in the soak.
    pub soak_interval: Duration,
    /// How often in a row writers are fenced in vain.
    pub max_fences: u32,
    /// Most items of a page that is copied or removed, at least 1.
    pub page_items: i32,
}

impl Default for DriverSettings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            lease_margin: Duration::from_secs(1),
            little: 100,
            soak_interval: Duration::from_millis(500),
            max_fences: 10,
            page_items: PAGE_ITEMS,
        }
    }
}

/// What all migrations of a replica share.
pub struct Shared {
    pub directory: Directory,
    pub records: Arc<dyn MigrationRecords>,
    pub regions: Arc<Regions>,
    pub settings: DriverSettings,
    /// Pages that are under way at the same time. Waiters get theirs in the order in which they came, so no migration is passed over.
    pub pages: Arc<Semaphore>,
}

/// How a worker left a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Ended,
    /// Another worker has it.
    Lost,
    Parked,
    /// This process stops.
    Stopped,
}

/// What is told of a migration while it is under way.
#[derive(Default)]
struct Tale {
    progress: Progress,
    findings: Option<Findings>,
    trouble: Option<String>,
    parked: Option<String>,
}

/// What the driver and its pulse share.
struct Pulse {
    id: MigrationId,
    /// 0: not held yet.
    worker: AtomicU64,
    beat: AtomicU64,
    tale: Mutex<Tale>,
    /// What is told has changed.
    changed: AtomicBool,
}

/// A worker of one migration.
pub struct Driver {
    shared: Arc<Shared>,
    spec: Spec,
    cells: Cells,
    machine: Machine,
    pulse: Arc<Pulse>,
    began: Instant,
    /// When writers were fenced.
    fenced: Option<Instant>,
    /// The phase and the worker's number of the last look, by which changes are seen.
    seen: (Phase, u64),
    /// When more capacity may be consumed.
    ready_at: Instant,
    /// The call that began the migration, and the span of the present phase.
    caller: Option<String>,
    span: Span,
}

/// What came of an action.
enum Outcome {
    Event(Event),
    /// It was not done. To be tried again.
    Failed(StoreError),
}

impl Driver {
    /// `None`: one of the cells is gone, or has no tables that a migration can work on.
    pub fn new(shared: Arc<Shared>, migration: Migration) -> Option<Self> {
        let spec = migration.spec.clone();
        let access = |id| {
            let cell = shared.directory.peek(|registry| registry.cell(id).cloned()).flatten()?;
            CellAccess::of(&cell, &shared.regions)
        };
        let cells = Cells { source: access(&spec.source)?, target: access(&spec.target)? };
        let settings = cells_migration::Settings {
            // Told when it is known; until then as long as can be.
            leases_end: u64::MAX,
            pause_budget: millis(spec.pause_budget),
            soak: millis(spec.soak),
            little: shared.settings.little,
            soak_interval: millis(shared.settings.soak_interval),
            strict: spec.verification == super::model::Verification::Strict,
            writers: cells_migration::Writers::Cooperative,
            freeze_budget: millis(spec.pause_budget),
            max_fences: shared.settings.max_fences,
        };
        let began = Instant::now();
        let tale = Tale {
            progress: migration.progress.clone(),
            findings: migration.findings.clone(),
            ..Tale::default()
        };
        let pulse = Arc::new(Pulse {
            id: migration.id(),
            worker: AtomicU64::new(0),
            beat: AtomicU64::new(migration.beat),
            tale: Mutex::new(tale),
            changed: AtomicBool::new(false),
        });
        let seen = (migration.record.phase, 0);
        let caller = migration.caller.clone();
        let machine = Machine::new(settings, migration.record, 0);
        Some(Self {
            shared,
            spec,
            cells,
            machine,
            pulse,
            began,
            fenced: None,
            seen,
            ready_at: began,
            caller,
            span: Span::none(),
        })
    }

    /// Works until the migration has ended, or another worker has it, or it cannot get on, or `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Left {
        let beating = stop.child_token();
        // Whoever drops this, or a panic: what works no more must not look alive.
        let _still = beating.clone().drop_guard();
        let pulse = beat(Arc::clone(&self.shared), Arc::clone(&self.pulse), beating.clone());
        let pulse = tokio::spawn(pulse);
        let left = tokio::select! {
            () = stop.cancelled() => Left::Stopped,
            left = self.work() => left,
        };
        beating.cancel();
        let _ = pulse.await;
        if left != Left::Lost {
            self.pulse.tell(&self.shared).await;
        }
        left
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    async fn work(&mut self) -> Left {
        let (mut failures, mut looked) = (0, Instant::now());
        loop {
            if self.seen.1 > 0 && looked.elapsed() >= self.shared.settings.interval {
                looked = Instant::now();
                if let Outcome::Event(event) = self.read().await {
                    self.tell_machine(event).await;
                }
            }
            let wait = |until: Option<u64>| {
                let now = self.now();
                let until = until.map(|at| Duration::from_millis(at.saturating_sub(now)));
                until.unwrap_or(Duration::MAX).min(self.shared.settings.interval)
            };
            match self.machine.next(self.now()) {
                Next::Do(action) => match self.traced(action).await {
                    Outcome::Event(Event::Refused) if self.seen.1 == 0 => return Left::Lost,
                    Outcome::Event(event) => {
                        failures = 0;
                        self.tell_machine(event).await;
                    }
                    Outcome::Failed(error) => {
                        failures += 1;
                        if !error.transient() && failures >= MAX_FAILURES {
                            return self.park(format!("it cannot get on: {}", said(&error)));
                        }
                        self.rest(&error, failures).await;
                    }
                },
                Next::WaitUntil(at) => tokio::time::sleep(wait(Some(at))).await,
                Next::Pause => tokio::time::sleep(wait(None)).await,
                Next::Park(why) => return self.park(format!("{why:?}")),
                Next::Leave if self.machine.record().phase.ended() => return Left::Ended,
                Next::Leave => return Left::Lost,
            }
        }
    }

    fn park(&self, why: String) -> Left {
        tracing::warn!(migration = %self.pulse.id, why, "a migration is parked");
        self.pulse.tale.lock().parked = Some(why);
        Left::Parked
    }

    /// Waits after a failure, and says of what.
    async fn rest(&self, error: &StoreError, failures: u32) {
        tracing::debug!(migration = %self.pulse.id, %error, failures, "an action failed");
        self.pulse.tale.lock().trouble = Some(said(error));
        self.pulse.changed.store(true, Ordering::Relaxed);
        tokio::time::sleep(pause_after(failures)).await;
    }

    /// Tells the machine, and what follows from a new phase or a new number to whom it concerns.
    async fn tell_machine(&mut self, event: Event) {
        let told = Instant::now();
        self.machine.on(event, self.now());
        let record = self.machine.record();
        let now_seen = (record.phase, record.worker);
        if now_seen == self.seen {
            return;
        }
        let ((phase, _), worker) = (self.seen, record.worker);
        self.pulse.worker.store(worker, Ordering::Release);
        self.new_span();
        if now_seen.0 == Phase::Logging {
            self.leases(told).await;
        }
        if self.machine.record().phase != phase {
            self.phase_changed(phase);
        }
        self.seen = now_seen;
    }

    /// How long leases last that were given before writers were told to log. `seen`: when the machine was told, from when it waits.
    async fn leases(&mut self, seen: Instant) {
        // Only who has applied the entry knows what was granted before it.
        let mut wait = crate::domain::LeaseDuration::MAX.get();
        for failures in 0..MAX_FAILURES {
            if self.shared.directory.registry().await.is_ok() {
                wait = self.shared.directory.lease_wait(Instant::now().into_std());
                break;
            }
            tokio::time::sleep(pause_after(failures + 1)).await;
        }
        let wait = seen.elapsed() + wait + self.shared.settings.lease_margin;
        self.machine.set_leases_end(millis(wait));
    }

    fn new_span(&mut self) {
        let record = self.machine.record();
        let next = trace::begin(self.pulse.id, &self.spec, record, self.caller.as_deref());
        let last = std::mem::replace(&mut self.span, next);
        trace::end(last, &self.pulse.tale.lock().progress);
    }

    fn phase_changed(&mut self, before: Phase) {
        let phase = self.machine.record().phase;
        tracing::info!(
            migration = %self.pulse.id,
            from = crate::store::dynamodb::phase_name(before),
            to = crate::store::dynamodb::phase_name(phase),
            "a migration goes on"
        );
        let mut tale = self.pulse.tale.lock();
        if !phase.ended() {
            tale.trouble = None;
        }
        tale.progress.phase_since = Some(self.shared.directory.now());
        match phase {
            Phase::Fenced => {
                self.fenced = Some(Instant::now());
                tale.progress.fences += 1;
            }
            _ => {
                if let Some(fenced) = self.fenced.take() {
                    let pause = fenced.elapsed();
                    tale.progress.last_pause = Some(pause);
                    tale.progress.total_pause += pause;
                }
            }
        }
        self.pulse.changed.store(true, Ordering::Relaxed);
    }

    async fn traced(&mut self, action: Action) -> Outcome {
        let span = self.span.clone();
        self.perform(action).instrument(span).await
    }

    async fn perform(&mut self, action: Action) -> Outcome {
        match action {
            Action::Read => self.read_again().await,
            Action::Transact(transaction) => self.transact(*transaction).await,
            Action::Copy { from, fence, cursor } => {
                let _turn = self.turn().await;
                match self.copier().copy(from, &fence, &cursor).await {
                    Ok(None) => Outcome::Event(Event::Refused),
                    Ok(Some(done)) => {
                        trace::event(&self.span, "copied", done.items);
                        self.tell_progress(|progress| {
                            progress.items_copied += done.items;
                            progress.bytes_copied += done.bytes;
                            progress.write_units += done.units.ceil() as u64;
                        });
                        self.consumed(done.units);
                        Outcome::Event(Event::Copied { next: done.next })
                    }
                    Err(error) => failed(error),
                }
            }
            Action::Drain { from, fence } => self.drain(from, &fence).await,
            Action::Compare { from, fence, cursor } => self.compare(from, &fence, &cursor).await,
            Action::Purge { from, fence, cursor } => {
                let _turn = self.turn().await;
                match self.copier().purge(from, &fence, &cursor).await {
                    Ok(None) => Outcome::Event(Event::Refused),
                    Ok(Some(done)) => {
                        trace::event(&self.span, "purged", done.items);
                        self.tell_progress(|progress| progress.items_purged += done.items);
                        self.consumed(done.units);
                        Outcome::Event(Event::Purged { next: done.next })
                    }
                    Err(error) => failed(error),
                }
            }
            Action::DropLog { from } => match self.copier().drop_log(from).await {
                Ok(found) => Outcome::Event(Event::Drained { found }),
                Err(error) => failed(error),
            },
            // Asked for where writers do not cooperate, which nothing here does.
            Action::Listen { .. }
            | Action::Follow { .. }
            | Action::Mark { .. }
            | Action::Freeze { .. }
            | Action::Thaw { .. } => Outcome::Failed(StoreError::Rejected {
                detail: "streams are not followed by migrations".to_owned(),
            }),
        }
    }

    async fn read(&self) -> Outcome {
        match self.shared.records.migration(self.pulse.id).await {
            Ok(Some(migration)) => Outcome::Event(Event::Read(migration.record)),
            Ok(None) => gone(),
            Err(error) => Outcome::Failed(error),
        }
    }

    /// After a doubt: what was found counts only as far as the record's cursor.
    async fn read_again(&self) -> Outcome {
        match self.shared.records.migration(self.pulse.id).await {
            Ok(Some(migration)) => {
                self.pulse.tale.lock().findings = migration.findings;
                Outcome::Event(Event::Read(migration.record))
            }
            Ok(None) => gone(),
            Err(error) => Outcome::Failed(error),
        }
    }

    async fn transact(&self, transaction: Transaction) -> Outcome {
        if (transaction.check.phase, transaction.record.phase) == (Phase::Planned, Phase::Logging) {
            match self.obstacles().await {
                Ok(obstacles) if obstacles.is_empty() => {}
                Ok(obstacles) => return self.give_up(&obstacles).await,
                Err(error) => return Outcome::Failed(error),
            }
        }
        let done = match transaction.placement {
            None => {
                let findings = self.pulse.tale.lock().findings.clone();
                let writes =
                    steps::writes(&self.spec, &self.cells, &transaction, findings.as_ref());
                let now = self.shared.directory.now();
                self.shared.records.write(&writes, now).await
            }
            Some(_) => self.step(&transaction).await,
        };
        match done {
            Ok(true) => Outcome::Event(Event::Done(transaction.record)),
            Ok(false) => Outcome::Event(Event::Refused),
            Err(error) => failed(error),
        }
    }

    /// What stands in the way, looked at once more before anything is changed, with all items read.
    async fn obstacles(&self) -> Result<Vec<Obstacle>, StoreError> {
        let tenant = &self.spec.tenant;
        let placement = match self.shared.directory.placement(tenant).await {
            Ok(placement) => placement,
            // The transaction itself says so.
            Err(Error::Refused(_)) => return Ok(Vec::new()),
            Err(error) => return Err(as_store_error(error)),
        };
        let mut obstacles = preflight::look(&self.cells, &placement).await?;
        let measured = preflight::measure(&self.cells, tenant).await?;
        if measured.too_large > 0 {
            let (cell, items) = (self.spec.target.clone(), measured.too_large);
            obstacles.push(Obstacle::ItemsTooLarge { cell, items });
        }
        self.tell_progress(|progress| {
            (progress.items_estimated, progress.bytes_estimated) = (measured.items, measured.bytes);
        });
        Ok(obstacles)
    }

    /// Ends a migration that cannot be, with nothing changed, and says why.
    async fn give_up(&self, obstacles: &[Obstacle]) -> Outcome {
        let why: Vec<_> = obstacles.iter().map(ToString::to_string).collect();
        self.pulse.tale.lock().trouble = Some(why.join("; "));
        let cancel = Order::Wish(Wish::Cancel);
        match self.shared.records.order(self.pulse.id, cancel, self.shared.directory.now()).await {
            Ok(_) => self.read().await,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// A transaction that changes the placement, and so goes through the journal.
    async fn step(&self, transaction: &Transaction) -> Result<bool, StoreError> {
        let present = match self.shared.directory.placement(&self.spec.tenant).await {
            Ok(present) => present,
            Err(Error::Refused(_)) => return Ok(false),
            Err(error) => return Err(as_store_error(error)),
        };
        let findings = self.pulse.tale.lock().findings.clone();
        let step = steps::step(&self.spec, &self.cells, transaction, findings.as_ref(), present);
        let Some(step) = step else {
            return Ok(false);
        };
        match self.shared.directory.step(step).await {
            Ok(_) => Ok(true),
            Err(Error::Refused(Refused::Superseded)) => Ok(false),
            Err(Error::Refused(refused)) => {
                Err(StoreError::Rejected { detail: refused.to_string() })
            }
            Err(error) => Err(as_store_error(error)),
        }
    }

    async fn drain(&self, from: Side, fence: &GuardCheck) -> Outcome {
        let drained = match self.copier().drain(from, fence).await {
            Ok(Some(drained)) => drained,
            Ok(None) => return Outcome::Event(Event::Refused),
            Err(error) => return failed(error),
        };
        self.tell_progress(|progress| {
            progress.log_applied += drained.records;
            progress.log_backlog = Some(drained.records);
        });
        if drained.records > 0 {
            trace::event(&self.span, "applied", drained.records);
        }
        // Under the fence nothing changes any more, so what was written last has to be the same now.
        if self.machine.record().phase == Phase::Fenced && !drained.touched.is_empty() {
            match self.recheck(from, fence, &drained.touched).await {
                Ok(true) => {}
                Ok(false) => return Outcome::Event(Event::Refused),
                Err(error) => return failed(error),
            }
        }
        Outcome::Event(Event::Drained { found: drained.records })
    }

    fn copier(&self) -> Copier<'_> {
        let migration = self.pulse.id.into();
        let page_items = self.shared.settings.page_items;
        Copier { spec: &self.spec, cells: &self.cells, migration, page_items }
    }

    /// The right to one page, in the order in which migrations asked; and when this one may consume more.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        tokio::time::sleep_until(self.ready_at).await;
        // The semaphore is never closed.
        Arc::clone(&self.shared.pages).acquire_owned().await.ok()
    }

    fn consumed(&mut self, units: f64) {
        if let Some(limit) = self.spec.rate_limit {
            let owed = Duration::from_secs_f64(units / f64::from(limit.get()));
            self.ready_at = self.ready_at.max(Instant::now()) + owed;
        }
    }

    fn tell_progress(&self, tell: impl FnOnce(&mut Progress)) {
        tell(&mut self.pulse.tale.lock().progress);
        self.pulse.changed.store(true, Ordering::Relaxed);
    }

    async fn compare(&self, from: Side, fence: &GuardCheck, cursor: &Cursor) -> Outcome {
        match self.compare_page(from, fence, cursor).await {
            Ok(Some(next)) => Outcome::Event(Event::Compared { next }),
            Ok(None) => Outcome::Event(Event::Refused),
            Err(error) => failed(error),
        }
    }

    fn verifier(&self, from: Side) -> Result<Verifier<CellAccess, CellAccess>, StoreError> {
        let side = |side| verify::side(self.cells.of(side));
        Verifier::new(side(from), side(from.other()), self.spec.tenant.as_str())
            .map_err(|error| StoreError::Rejected { detail: error.to_string() })
    }

    /// Compares a page, and mends what differs though the log was drained. `Ok(None)`: the guard does not let it.
    async fn compare_page(
        &self,
        from: Side,
        fence: &GuardCheck,
        cursor: &Cursor,
    ) -> Result<Option<Option<Cursor>>, StoreError> {
        let verifier = self.verifier(from)?;
        let begins = cursor.0.is_empty();
        let place = match begins {
            true => verifier.start(),
            // One that this plan did not make is of tables that have changed: from the beginning, then.
            false => cells_verify::Cursor::decode(&cursor.0).unwrap_or_else(|_| verifier.start()),
        };
        let now = self.seconds();
        let compared = verifier.compare_page(&place, now).await.map_err(verify::store_error)?;
        {
            let mut tale = self.pulse.tale.lock();
            if begins {
                tale.findings = None;
            }
            trace::event(&self.span, "compared", compared.source.items);
            tale.progress.items_compared += compared.source.items;
            tale.findings.get_or_insert_default().count(&compared);
        }
        let suspects: Vec<_> = compared.suspects.iter().map(|suspect| suspect.at.clone()).collect();
        if !suspects.is_empty() && !self.recheck(from, fence, &suspects).await? {
            return Ok(None);
        }
        let next = compared.next.map(|next| Cursor(next.encode()));
        if next.is_none()
            && let Some(findings) = &mut self.pulse.tale.lock().findings
        {
            findings.ended = Some(self.shared.directory.now());
        }
        self.pulse.changed.store(true, Ordering::Relaxed);
        Ok(Some(next))
    }

    fn seconds(&self) -> u64 {
        u64::try_from(self.shared.directory.now().seconds()).unwrap_or(0)
    }

    /// Looks at keys again after the log was drained, and writes what differs still as it is where the tenant lives. `false`: the guard
    /// does not let it.
    async fn recheck(
        &self,
        from: Side,
        fence: &GuardCheck,
        keys: &[cells_guard::Touched],
    ) -> Result<bool, StoreError> {
        let verifier = self.verifier(from)?;
        let mut keys = keys.to_vec();
        for round in 0..=MAX_RECHECKS {
            let checked =
                verifier.recheck(&keys, self.seconds()).await.map_err(verify::store_error)?;
            if checked.differing.is_empty() {
                return Ok(true);
            }
            keys = checked.differing.iter().map(|differing| differing.at.clone()).collect();
            if round == MAX_RECHECKS {
                return self.mend(from, fence, &checked.differing, &keys).await;
            }
            // A write that is not applied yet is no fault: its record tells of it.
            if self.copier().drain(from, fence).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn mend(
        &self,
        from: Side,
        fence: &GuardCheck,
        differing: &[cells_verify::Differing],
        keys: &[cells_guard::Touched],
    ) -> Result<bool, StoreError> {
        let mended = self.copier().rewrite(from, fence, keys).await?;
        let mut tale = self.pulse.tale.lock();
        let findings = tale.findings.get_or_insert_default();
        differing.iter().for_each(|one| findings.add(one, mended));
        tracing::warn!(migration = %self.pulse.id, items = differing.len(), "items differed and were written again");
        Ok(mended)
    }
}

impl Pulse {
    /// Tells how far it is, by which others see that somebody works on it. `false`: that was not told.
    async fn tell(&self, shared: &Shared) -> bool {
        let worker = self.worker.load(Ordering::Acquire);
        if worker == 0 {
            return false;
        }
        let told = {
            let tale = self.tale.lock();
            Told {
                beat: self.beat.fetch_add(1, Ordering::Relaxed) + 1,
                progress: tale.progress.clone(),
                trouble: tale.trouble.clone(),
                parked: tale.parked.clone(),
            }
        };
        self.changed.store(false, Ordering::Relaxed);
        let told = shared.records.tell(self.id, worker, &told, shared.directory.now()).await;
        told.unwrap_or(false)
    }
}

/// Tells of a migration once an interval, whatever its worker waits for.
async fn beat(shared: Arc<Shared>, pulse: Arc<Pulse>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(shared.settings.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        pulse.tell(&shared).await;
    }
}

/// Pause after so many failures in a row, at least one.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_PAUSE)
}

fn gone() -> Outcome {
    Outcome::Failed(StoreError::Rejected { detail: "the migration's record is gone".to_owned() })
}

/// What a failure comes to: one that may have had an effect is for the machine to know.
fn failed(error: StoreError) -> Outcome {
    match error.ambiguous() {
        true => Outcome::Event(Event::Unknown),
        false => Outcome::Failed(error),
    }
}

fn as_store_error(error: Error) -> StoreError {
    match error {
        Error::Store(error) => error,
        Error::OutcomeUnknown => StoreError::Failed,
        Error::Overloaded | Error::NotReady => StoreError::Throttled,
        Error::Refused(refused) => StoreError::Rejected { detail: refused.to_string() },
    }
}

/// What operators are told of a failure: no text of AWS.
fn said(error: &StoreError) -> String {
    match error {
        StoreError::Rejected { detail } => {
            tracing::warn!(detail, "the store rejected a migration's request");
            "the store rejected a request; the log says why".to_owned()
        }
        other => other.to_string(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
