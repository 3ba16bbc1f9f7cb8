//! One migration under way: asks the machine, has its actions done ([`perform`](super::perform)), and tells it what came of them.
//!
//! What fails for a passing reason and was surely not done is done again after a pause. Where it may have been done, the machine is
//! told so. What fails for good is told to operators, and the migration is parked.

use std::sync::Arc;
use std::time::Duration;

use cells_migration::{Action, Event, Machine, Next, Parked, Phase};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::access::CellAccess;
use super::copier::PAGE_ITEMS;
use super::freeze::Freeze;
use super::model::{Migration, Verification, Writers};
use super::outsiders::Outsiders;
use super::perform::{Outcome, Performer};
use super::pulse::{self, Pulse};
use super::records::MigrationRecords;
use super::steps::Cells;
use super::trace;
use crate::cells::Regions;
use crate::directory::Directory;

/// Failures of one action in a row after which a migration that cannot get on is parked, where they are not of the passing kind: 6 s.
const MAX_FAILURES: u32 = 8;

/// Checks in a row that do not hold, until it takes its time.
const MANY_REFUSALS: u32 = 3;

/// Pause after a first failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    /// Pages that are under way at the same time, of more migrations than that where some were taken over. Waiters get theirs in the order
    /// in which they came, so no migration is passed over.
    pub pages: Arc<Semaphore>,
    /// How writers that know nothing of guards are stopped; `None`: they are not.
    pub freeze: Option<Arc<Freeze>>,
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

/// A worker of one migration.
pub struct Driver {
    machine: Machine,
    performer: Performer,
    began: Instant,
    /// When writers were fenced.
    fenced: Option<Instant>,
    /// The phase and the worker's number of the last look, by which changes are seen.
    seen: (Phase, u64),
    /// The call that began the migration.
    caller: Option<String>,
}

impl Driver {
    /// `None`: one of the cells is gone, or has no tables that a migration can work on.
    pub fn new(shared: Arc<Shared>, migration: Migration) -> Option<Self> {
        let spec = migration.spec.clone();
        let cell = |id| shared.directory.peek(|registry| registry.cell(id).cloned()).flatten();
        let (source, target) = (cell(&spec.source)?, cell(&spec.target)?);
        let access = |cell| CellAccess::of(cell, &shared.regions);
        let cells = Cells { source: access(&source)?, target: access(&target)? };
        let outsiders = (spec.writers != Writers::Cooperative).then(|| {
            let (id, freeze) = (migration.record.id, shared.freeze.clone());
            Outsiders::new(&cells, [&source, &target], &shared.regions, id, freeze)
        });
        let settings = cells_migration::Settings {
            // Told when it is known; until then as long as can be.
            leases_end: u64::MAX,
            pause_budget: millis(spec.pause_budget),
            soak: millis(spec.soak),
            little: shared.settings.little,
            soak_interval: millis(shared.settings.soak_interval),
            strict: spec.verification == Verification::Strict,
            writers: spec.writers.into(),
            freeze_budget: millis(
                shared.freeze.as_ref().map_or(Duration::ZERO, |freeze| freeze.budget),
            ),
            max_fences: shared.settings.max_fences,
        };
        let began = Instant::now();
        let pulse = Arc::new(Pulse::new(&migration));
        let seen = (migration.record.phase, 0);
        let caller = migration.caller.clone();
        let machine = Machine::new(settings, migration.record, 0);
        let span = Span::none();
        let performer = Performer { shared, spec, cells, outsiders, pulse, ready_at: began, span };
        Some(Self { machine, performer, began, fenced: None, seen, caller })
    }

    /// Works until the migration has ended, or another worker has it, or it cannot get on, or `stop`.
    pub async fn run(mut self, stop: CancellationToken) -> Left {
        let beating = stop.child_token();
        // Whoever drops this, or a panic: what works no more must not look alive.
        let _still = beating.clone().drop_guard();
        let (shared, pulse) = (self.shared(), self.pulse());
        let beat = pulse::beat(Arc::clone(shared), Arc::clone(pulse), beating.clone());
        let beat = tokio::spawn(beat);
        let left = tokio::select! {
            () = stop.cancelled() => Left::Stopped,
            left = self.work() => left,
        };
        beating.cancel();
        let _ = beat.await;
        if left != Left::Lost {
            self.pulse().tell(self.shared()).await;
        }
        left
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.performer.shared
    }

    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.performer.pulse
    }

    fn now(&self) -> u64 {
        millis(self.began.elapsed())
    }

    async fn work(&mut self) -> Left {
        let (mut failures, mut refusals, mut looked) = (0, 0, Instant::now());
        loop {
            if self.seen.1 > 0 && looked.elapsed() >= self.shared().settings.interval {
                looked = Instant::now();
                if let Outcome::Event(event) = self.performer.read().await {
                    self.tell_machine(event).await;
                }
            }
            let wait = |until: Option<u64>| {
                let now = self.now();
                let until = until.map(|at| Duration::from_millis(at.saturating_sub(now)));
                until.unwrap_or(Duration::MAX).min(self.shared().settings.interval)
            };
            match self.machine.next(self.now()) {
                Next::Do(action) if self.performer.waits(&action) => {
                    // Not to its end: an operator is heard meanwhile.
                    let end = Instant::now() + wait(None);
                    tokio::time::sleep_until(end.min(self.performer.ready_at)).await;
                }
                Next::Do(action) => match self.traced(action).await {
                    Outcome::Event(Event::Refused) if self.seen.1 == 0 => return Left::Lost,
                    Outcome::Event(event) => {
                        failures = 0;
                        refusals = match event {
                            Event::Refused => refusals + 1,
                            // After each refusal.
                            Event::Read(_) => refusals,
                            _ => 0,
                        };
                        self.tell_machine(event).await;
                        if refusals >= MANY_REFUSALS {
                            let why = "what it has to change is not as it has to be for that";
                            self.rest(why.to_owned(), refusals).await;
                        }
                    }
                    Outcome::Failed(error) => {
                        failures += 1;
                        // As long as writers wait, time will let them go on first.
                        let parks = !error.transient() && !self.machine.stops_writers();
                        if parks && failures >= MAX_FAILURES {
                            return self.park(format!("it cannot get on: {}", error.told()));
                        }
                        self.rest(error.told(), failures).await;
                    }
                    Outcome::Held(why) => {
                        failures += 1;
                        self.rest(why, failures).await;
                    }
                },
                Next::WaitUntil(at) => tokio::time::sleep(wait(Some(at))).await,
                Next::Pause => tokio::time::sleep(wait(None)).await,
                Next::Park(why) => return self.park(gave_up(why)),
                Next::Leave if self.machine.record().phase.ended() => return Left::Ended,
                Next::Leave => return Left::Lost,
            }
        }
    }

    fn park(&self, why: String) -> Left {
        tracing::warn!(migration = %self.pulse().id, why, "a migration is parked");
        self.pulse().tale().parked = Some(why);
        Left::Parked
    }

    /// Waits after a failure, and says of what.
    async fn rest(&self, why: String, failures: u32) {
        tracing::debug!(migration = %self.pulse().id, why, failures, "an action failed");
        self.pulse().tale().trouble = Some(why);
        tokio::time::sleep(pause_after(failures)).await;
    }

    /// Tells the machine, and what follows from a new phase or a new number to whom it concerns.
    async fn tell_machine(&mut self, event: Event) {
        let told = Instant::now();
        self.machine.on(event, self.now());
        let record = self.machine.record();
        self.pulse().set_rests(record.phase == Phase::Soaking || record.paused);
        let now_seen = (record.phase, record.worker);
        if now_seen == self.seen {
            return;
        }
        let ((phase, _), worker) = (self.seen, record.worker);
        self.pulse().held_by(worker);
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
            if self.shared().directory.registry().await.is_ok() {
                wait = self.shared().directory.lease_wait(Instant::now().into_std());
                break;
            }
            tokio::time::sleep(pause_after(failures + 1)).await;
        }
        let wait = seen.elapsed() + wait + self.shared().settings.lease_margin;
        self.machine.set_leases_end(millis(wait));
    }

    fn new_span(&mut self) {
        let record = self.machine.record();
        let next =
            trace::begin(self.pulse().id, &self.performer.spec, record, self.caller.as_deref());
        let last = std::mem::replace(&mut self.performer.span, next);
        trace::end(last, &self.pulse().tale().progress);
    }

    fn phase_changed(&mut self, before: Phase) {
        let phase = self.machine.record().phase;
        let again = phase == Phase::Copying && before != Phase::Logging;
        tracing::info!(
            migration = %self.pulse().id,
            from = before.name(),
            to = phase.name(),
            "a migration goes on"
        );
        let mut tale = self.performer.pulse.tale();
        // Of what has ended, and of what is done again, it says why.
        if !phase.ended() && !again {
            tale.trouble = None;
        }
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
    }

    async fn traced(&mut self, action: Action) -> Outcome {
        let (span, record) = (self.performer.span.clone(), self.machine.record());
        self.performer.perform(action, record).instrument(span).await
    }
}

/// Pause after so many failures in a row, at least one.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_PAUSE)
}

/// What operators are told where a worker gave up.
fn gave_up(why: Parked) -> String {
    let what = match why {
        Parked::LogNotDrained { .. } => {
            "what was written was not applied within the pause budget; the tenant is written to faster, or the budget is too short"
        }
        Parked::NotCompared { .. } => {
            "not all was compared within the pause budget, as strict verification asks"
        }
        Parked::NotFrozen { .. } => {
            "writers that know nothing of guards were not known to be stopped within migration_freeze_budget; trouble says what was missing last"
        }
    };
    format!("{what} ({why:?})")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
