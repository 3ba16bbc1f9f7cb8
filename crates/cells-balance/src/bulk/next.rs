//! What is to be done next.
//!
//! Who is started: of the cells that tenants leave, the one with the fewest running, then the one that fewest were started of: a round robin
//! that remembers nothing and so survives every crash. In it, the target with the fewest running, and of that way the tenant that comes first in
//! the plan. Tenants that failed come after all others.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;

use super::{Bulk, Cancel, End, Item, State};

/// Steps of one answer. Apply them, and ask again.
pub const MAX_STEPS: usize = 1_000;

/// How a migration is, as just read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Looked for with a consistent read, and not there.
    Absent,
    /// Before its commit, or cleaning up.
    Running {
        committed: bool,
    },
    /// Committed, and waits for the end of its soak: it writes little, and counts as open only.
    Soaking,
    Done,
    /// Ended with the tenant in the source, since somebody wanted that.
    TakenBack,
    /// Ended with the tenant in the source.
    Failed {
        reason: String,
    },
    /// Nobody works on it until somebody retries it: the bulk goes on without it.
    Parked {
        reason: String,
    },
}

/// A migration to be started. To start one that exists already has to be no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The place of the tenant among [`Bulk::items`].
    pub item: usize,
    pub tenant: String,
    pub source: String,
    pub target: String,
    /// From 1 on.
    pub attempt: u32,
    pub migration: String,
    /// Write capacity units a second at most; `None`: no limit.
    pub units: Option<NonZeroU32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Start(Start),
    /// To be stored; there is nothing else to do.
    Note {
        item: usize,
        state: State,
    },
    /// A migration is to be cancelled unless it is committed. It is said again until the migration has ended.
    Cancel {
        item: usize,
        migration: String,
    },
    Finish(End),
}

const CANCELLED: &str = "the bulk was cancelled";
const TAKEN_BACK: &str = "its migration was cancelled or reversed";

impl Bulk {
    /// The steps that follow from what is stored and what is observed: at most [`MAX_STEPS`], none where there is nothing to do but wait. Asked
    /// twice, it answers the same.
    ///
    /// `observed` has the migrations of the running tenants by their ids ([`Bulk::to_observe`]); one that is not in it was not
    /// looked at, and counts as running. `migration_id` makes an id of the bulk's id, the tenant and the attempt: the same of the
    /// same, and never the same of others.
    pub fn next(
        &self,
        observed: &HashMap<String, Observed>,
        migration_id: &dyn Fn(&str, &str, u32) -> String,
    ) -> Vec<Step> {
        if self.header.ended.is_some() {
            return Vec::new();
        }
        let mut turn = Turn::new(self, migration_id);
        for (at, item) in self.items.iter().enumerate() {
            turn.look(at, item, observed);
        }
        if !self.header.paused && self.header.cancelled.is_none() {
            turn.start();
        }
        if turn.at_an_end && turn.steps.is_empty() {
            let end = self.header.cancelled.map_or(End::Finished, |_| End::Cancelled);
            return vec![Step::Finish(end)];
        }
        let left = MAX_STEPS.saturating_sub(turn.steps.len());
        turn.steps.extend(turn.cancels.into_iter().take(left));
        turn.steps
    }

    /// The migrations that [`Bulk::next`] wants to know of: those of tenants that run, or that are parked.
    pub fn to_observe(&self, migration_id: &dyn Fn(&str, &str, u32) -> String) -> Vec<String> {
        let id = |item: &Item| match &item.state {
            State::Running { migration } => Some(migration.clone()),
            State::Failed { retry: false, .. } if item.attempts > 0 => {
                Some(migration_id(&self.header.id, &item.tenant, item.attempts))
            }
            _ => None,
        };
        self.items.iter().filter_map(id).collect()
    }

    /// Whether a tenant that failed is tried again.
    pub(super) fn is_tried_again(&self, item: &Item) -> bool {
        matches!(item.state, State::Failed { retry: true, .. })
            && item.attempts < self.header.limits.attempts.get()
            && self.header.cancelled.is_none()
    }
}

/// A cell on one side of the moves.
#[derive(Default)]
struct Lane {
    running: u32,
    started: u32,
}

/// Those who wait, by source and target.
type Queues<'a> = BTreeMap<&'a str, BTreeMap<&'a str, VecDeque<usize>>>;

struct Turn<'a> {
    bulk: &'a Bulk,
    migration_id: &'a dyn Fn(&str, &str, u32) -> String,
    /// [`MAX_STEPS`] at most.
    steps: Vec<Step>,
    /// They are said again and again, so they come last: nothing waits for them.
    cancels: Vec<Step>,
    /// Nobody waits, runs, or is to be tried again.
    at_an_end: bool,
    running: u32,
    open: u32,
    sources: BTreeMap<&'a str, Lane>,
    targets: BTreeMap<&'a str, Lane>,
    waiting: Queues<'a>,
    failed: Queues<'a>,
}

impl<'a> Turn<'a> {
    fn new(bulk: &'a Bulk, migration_id: &'a dyn Fn(&str, &str, u32) -> String) -> Self {
        Self {
            bulk,
            migration_id,
            steps: Vec::new(),
            cancels: Vec::new(),
            at_an_end: true,
            running: 0,
            open: 0,
            sources: BTreeMap::new(),
            targets: BTreeMap::new(),
            waiting: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    fn id(&self, item: &Item, attempt: u32) -> String {
        (self.migration_id)(&self.bulk.header.id, &item.tenant, attempt)
    }

    fn look(&mut self, at: usize, item: &'a Item, observed: &HashMap<String, Observed>) {
        self.sources.entry(&item.source).or_default().started += u32::from(item.attempts > 0);
        self.targets.entry(&item.target).or_default().started += u32::from(item.attempts > 0);
        match &item.state {
            State::Waiting if self.bulk.header.cancelled.is_some() => self.skip(at, CANCELLED),
            State::Waiting => {
                self.at_an_end = false;
                queue(&mut self.waiting, at, item);
            }
            State::Running { migration } => {
                self.at_an_end = false;
                self.look_at_running(at, item, migration, observed.get(migration));
            }
            State::Failed { .. } if self.bulk.is_tried_again(item) => {
                self.at_an_end = false;
                queue(&mut self.failed, at, item);
            }
            State::Failed { retry: false, .. } if item.attempts > 0 => {
                let migration = self.id(item, item.attempts);
                self.look_at_parked(at, item, observed.get(&migration), migration);
            }
            State::Failed { .. } | State::Done | State::Skipped { .. } => {}
        }
    }

    fn look_at_running(
        &mut self,
        at: usize,
        item: &'a Item,
        migration: &str,
        observed: Option<&Observed>,
    ) {
        let cancelled = self.bulk.header.cancelled;
        match observed {
            None => self.occupy(item),
            // The intent was stored, and then there was a crash.
            Some(Observed::Absent) if cancelled.is_some() => self.skip(at, CANCELLED),
            Some(Observed::Absent) => {
                self.occupy(item);
                if !self.bulk.header.paused {
                    self.push_start(at, item, item.attempts, migration.to_owned());
                }
            }
            Some(Observed::Running { committed }) => {
                self.occupy(item);
                if cancelled == Some(Cancel::Running) && !committed {
                    self.cancels.push(Step::Cancel { item: at, migration: migration.to_owned() });
                }
            }
            Some(Observed::Soaking) => self.open += 1,
            Some(Observed::Done) => self.note(at, State::Done),
            Some(Observed::TakenBack) => self.skip(at, TAKEN_BACK),
            Some(Observed::Failed { reason }) => {
                self.note(at, State::Failed { reason: reason.clone(), retry: true });
            }
            Some(Observed::Parked { reason }) => {
                self.note(at, State::Failed { reason: reason.clone(), retry: false });
            }
        }
    }

    /// Somebody may have retried it.
    fn look_at_parked(
        &mut self,
        at: usize,
        item: &'a Item,
        observed: Option<&Observed>,
        migration: String,
    ) {
        match observed {
            Some(Observed::Soaking) => {
                self.open += 1;
                self.note(at, State::Running { migration });
            }
            Some(Observed::Running { .. }) => {
                self.occupy(item);
                self.note(at, State::Running { migration });
            }
            Some(Observed::Done) => self.note(at, State::Done),
            Some(Observed::TakenBack) => self.skip(at, TAKEN_BACK),
            None | Some(Observed::Absent | Observed::Failed { .. } | Observed::Parked { .. }) => {}
        }
    }

    fn note(&mut self, item: usize, state: State) {
        self.push(|| Step::Note { item, state: state.bounded() });
    }

    /// What there is no place for is said when it is asked again.
    fn push(&mut self, step: impl FnOnce() -> Step) {
        if self.steps.len() < MAX_STEPS {
            self.steps.push(step());
        }
    }

    fn skip(&mut self, item: usize, reason: &str) {
        self.note(item, State::Skipped { reason: reason.to_owned() });
    }

    fn occupy(&mut self, item: &'a Item) {
        self.running += 1;
        self.open += 1;
        self.sources.entry(&item.source).or_default().running += 1;
        self.targets.entry(&item.target).or_default().running += 1;
    }

    fn push_start(&mut self, at: usize, item: &Item, attempt: u32, migration: String) {
        let units = self.bulk.header.limits.units_each();
        self.push(|| {
            Step::Start(Start {
                item: at,
                tenant: item.tenant.clone(),
                source: item.source.clone(),
                target: item.target.clone(),
                attempt,
                migration,
                units,
            })
        });
    }

    fn start(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut failed = std::mem::take(&mut self.failed);
        self.start_of(&mut waiting);
        if waiting.is_empty() {
            self.start_of(&mut failed);
        }
    }

    /// Starts until a limit is met, or nobody is left in the queues.
    fn start_of(&mut self, queues: &mut Queues<'a>) {
        let limits = self.bulk.header.limits;
        while self.running < limits.running.get()
            && self.open < limits.open.get()
            && self.steps.len() < MAX_STEPS
        {
            let Some(at) = self.pick(queues) else { return };
            let Some(item) = self.bulk.items.get(at) else { return };
            self.occupy(item);
            self.sources.entry(&item.source).or_default().started += 1;
            self.targets.entry(&item.target).or_default().started += 1;
            let attempt = item.attempts + 1;
            self.push_start(at, item, attempt, self.id(item, attempt));
        }
    }

    /// Takes out of its queue who is next.
    fn pick(&self, queues: &mut Queues<'a>) -> Option<usize> {
        let (per_source, per_target) = self.bulk.header.limits.per_cell();
        let order = |lane: Option<&Lane>| lane.map_or((0, 0), |lane| (lane.running, lane.started));
        let source_order = |id: &str| order(self.sources.get(id));
        let target_order = |id: &str| order(self.targets.get(id));
        let ways = queues
            .iter()
            .filter(|(source, _)| source_order(source).0 < per_source)
            .filter_map(|(source, targets)| {
                let free = targets.keys().filter(|target| target_order(target).0 < per_target);
                Some((*source, *free.min_by_key(|target| target_order(target))?))
            });
        let (source, target) = ways.min_by_key(|(source, _)| source_order(source))?;
        let targets = queues.get_mut(source)?;
        let queue = targets.get_mut(target)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            targets.remove(target);
        }
        if targets.is_empty() {
            queues.remove(source);
        }
        first
    }
}

fn queue<'a>(queues: &mut Queues<'a>, at: usize, item: &'a Item) {
    queues.entry(&item.source).or_default().entry(&item.target).or_default().push_back(at);
}
