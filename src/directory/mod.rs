//! The directory: knows where each tenant lives and decides where new ones go.
//!
//! ```text
//!   route ─► stack: trace ► metrics ► fallback ► cache ► coalesce ► timeout ► retry ► table ─► Placements
//!                                                  │                                    │
//!                                               Memory ◄──── Replica ◄── follower       │ assign
//!                                                               ▲           │           ▼
//!   pin, delete, import, cells ─────────────────────────────► Committer ────┴──────► Journal
//! ```
//!
//! Everything that changes goes through the [`committer`] into the journal, and everything that is held in memory comes from the journal or
//! from a read of the table that no entry overtook. See `docs/architecture.md`.

mod clock;
mod commit_span;
mod committer;
#[cfg(test)]
mod committer_tests;
mod draft;
mod error;
#[cfg(test)]
mod facade_tests;
mod feed;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod keeper;
mod leases;
mod loader;
#[cfg(test)]
mod loader_tests;
mod memory;
mod pauses;
pub mod policy;
#[cfg(test)]
mod race_tests;
mod randomness;
mod reader;
mod registry;
mod replica;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod stack;
mod sweeper;
mod trimmer;
mod watcher;
#[cfg(test)]
mod watcher_tests;

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, Stream, try_unfold};
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tower::Service;

pub use clock::Clock;
pub use committer::CommitterSettings;
pub use draft::{CellPatch, NewCell, Outcome, Request, Step as MoveStep};
pub use error::{Error, Refused};
pub use feed::{Later, Position};
pub use memory::{CellName, Memory, Mode as MemoryMode, Residence};
pub use pauses::Pauses;
pub use randomness::Randomness;
pub use registry::Registry;
pub use stack::{
    DecisionTrace, FallbackReason, Home, RouteOptions, RouteRequest, Routed, Source, StackSettings,
    Step,
};
pub use watcher::{HEARTBEAT, Piece, WatchEnd, WatchOptions, Watcher};

use crate::domain::{
    Cell, CellId, Epoch, HistoryRecord, LeaseDuration, Loads, Mapping, PartitionKey, Placement,
    PlacementEvent, Timestamp,
};
use crate::store::{Cursor, Page, Store};
use crate::tasks::Tasks;
use crate::telemetry::DecisionMetrics;
use committer::{Changes, Committer};
use draft::{Action, Command, Destination, Draft, Drafted};
use policy::{AssignmentPolicy, Newcomer, choose};
use reader::Reads;
use replica::Replica;
use stack::RouteService;

#[derive(Debug, Clone)]
pub struct Settings {
    pub stack: StackSettings,
    pub committer: CommitterSettings,
    pub memory: MemoryMode,
    pub journal_poll_interval: Duration,
    pub sweep_interval: Duration,
    /// How long entries stay in the journal.
    pub journal_retention: Duration,
    /// Decisions of one batch that wait for the table at the same time.
    pub batch_concurrency: usize,
}

/// What a directory is made of.
pub struct Ingredients {
    pub store: Store,
    pub policy: Arc<dyn AssignmentPolicy>,
    pub clock: Clock,
    pub randomness: Randomness,
    pub metrics: DecisionMetrics,
    pub settings: Settings,
    /// Where what is held is saved, and what was found there. `None`: nowhere.
    pub keep: Option<keeper::Keep>,
}

/// The directory. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    stack: RouteService,
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    policy: Arc<dyn AssignmentPolicy>,
    clock: Clock,
    replica: Arc<Replica>,
    changes: Changes,
    settings: Settings,
}

/// How far a replica has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub position: Position,
    /// How old all that the replica holds can be.
    pub age: Duration,
    /// What is left of its lease.
    pub lease: Duration,
}

/// A tenant to place where an operator says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placing {
    pub key: PartitionKey,
    pub cell: CellId,
    pub since: Option<Timestamp>,
    pub expires: Option<Timestamp>,
}

impl Directory {
    /// Makes a directory and starts its tasks, which end when `tasks` are stopped. Nothing is read yet: see [`Directory::ready`].
    pub fn start(ingredients: Ingredients, tasks: &Tasks) -> Self {
        let Ingredients { store, policy, clock, randomness, metrics, settings, keep } = ingredients;
        let replica = replica(&store, &settings, &clock, &randomness, keep, tasks);
        if settings.memory == MemoryMode::Whole {
            let loader = loader::Loader {
                replica: Arc::clone(&replica),
                placements: Arc::clone(&store.placements),
                pauses: settings.stack.pauses,
                randomness: randomness.clone(),
            };
            tasks.spawn("loader", |stop| loader.run(stop));
        }
        let (changes, queue) = Committer::queue();
        let committer = Committer {
            replica: Arc::clone(&replica),
            journal: Arc::clone(&store.journal),
            policy: Arc::clone(&policy),
            clock: clock.clone(),
            randomness: randomness.clone(),
            pauses: settings.stack.pauses,
            settings: settings.committer.clone(),
        };
        tasks.spawn("committer", |stop| committer.run(queue, stop));
        let interval = settings.journal_poll_interval;
        let following = Arc::clone(&replica);
        tasks.spawn("follower", move |stop| replica::follow(following, interval, stop));
        let sweeper = sweeper::Sweeper {
            placements: Arc::clone(&store.placements),
            changes: changes.clone(),
            clock: clock.clone(),
            interval: settings.sweep_interval,
        };
        tasks.spawn("sweeper", |stop| sweeper.run(stop));
        let trimmer = trimmer::Trimmer {
            journal: Arc::clone(&store.journal),
            clock: clock.clone(),
            interval: settings.sweep_interval,
            retention: settings.journal_retention,
        };
        tasks.spawn("trimmer", |stop| trimmer.run(stop));
        let (reads, wanted) = Reads::queue();
        let placements = Arc::clone(&store.placements);
        tasks.spawn("reader", |stop| reader::run(placements, wanted, stop));
        let stack = stack::stack(stack::Parts {
            reads,
            replica: Arc::clone(&replica),
            changes: changes.clone(),
            clock: clock.clone(),
            randomness,
            metrics,
            settings: settings.stack.clone(),
        });
        let shared = Shared { store, policy, clock, replica, changes, settings };
        Self { stack, shared: Arc::new(shared) }
    }

    /// Waits until the registry of cells has been read, or `stop`.
    pub async fn ready(&self, stop: &CancellationToken) {
        while self.shared.replica.registry().is_err() && !stop.is_cancelled() {
            // The follower does the reading.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// How far this replica has come, and how current all that it holds is.
    ///
    /// # Errors
    /// [`Error::NotReady`] until the registry of cells has been read.
    pub fn standing(&self) -> Result<Standing, Error> {
        let replica = &self.shared.replica;
        // The proof comes first. It speaks of all entries that there were when it was made, so with a position from before it, somebody
        // who is there would take for proven what he has not seen.
        let as_of = replica.memory().last_proof();
        let lease_until = replica.memory().lease_until();
        // Nor may the lease be one that a later entry made longer: so not the feed's position, which comes a moment after the lease.
        let registry = replica.registry()?;
        let position = Position { journal: registry.journal(), sequence: registry.applied() };
        let now = self.shared.clock.instant();
        let (age, lease) =
            (now.saturating_duration_since(as_of), lease_until.saturating_duration_since(now));
        Ok(Standing { position, age, lease })
    }

    /// Begins a watch of placements and cells.
    ///
    /// # Errors
    /// [`Error::NotReady`] until the registry of cells has been read.
    pub fn watch(&self, options: WatchOptions) -> Result<Watcher, Error> {
        let Shared { replica, store, .. } = &*self.shared;
        Watcher::new(Arc::clone(replica), store.clone(), options)
    }

    /// How long to wait until no lease can be left, anywhere, on what stood before an entry. `committed`: some moment after this
    /// replica committed or applied the entry. Says nothing of how far clocks may drift apart.
    pub fn lease_wait(&self, committed: Instant) -> Duration {
        let end = self.shared.replica.leases_run_out(committed);
        end.saturating_duration_since(self.shared.clock.instant())
    }

    /// Routes a tenant.
    pub fn route(
        &self,
        request: RouteRequest,
    ) -> impl Future<Output = Result<Routed, Error>> + Send + Unpin + use<> {
        // Every layer is always ready: none of them limits.
        self.stack.clone().call(request)
    }

    /// Routes many tenants and makes something of each answer; the results are in the order of the requests. Those that are not in
    /// memory are routed side by side.
    pub async fn route_all<T>(
        &self,
        requests: impl Iterator<Item = RouteRequest>,
        mut make: impl FnMut(Result<Routed, Error>) -> T,
    ) -> Vec<T> {
        let mut stack = self.stack.clone();
        let mut results: Vec<Option<T>> = Vec::with_capacity(requests.size_hint().0);
        let mut waiting = FuturesUnordered::new();
        for (at, request) in requests.enumerate() {
            let mut answer = stack.call(request);
            match futures::poll!(&mut answer) {
                Poll::Ready(answer) => results.push(Some(make(answer))),
                Poll::Pending => {
                    results.push(None);
                    waiting.push(answer.map(move |answer| (at, answer)));
                }
            }
            if waiting.len() >= self.shared.settings.batch_concurrency
                && let Some((at, answer)) = waiting.next().await
            {
                results[at] = Some(make(answer));
            }
        }
        while let Some((at, answer)) = waiting.next().await {
            results[at] = Some(make(answer));
        }
        // Every place is filled: each request was answered at once or waited for.
        results.into_iter().flatten().collect()
    }

    /// Runs `look` on the registry of cells as this replica knows it. `None` until it has been read.
    pub fn peek<T>(&self, look: impl FnOnce(&Registry) -> T) -> Option<T> {
        self.shared.replica.peek(look)
    }

    /// How busy cells are, as far as that is known here.
    pub fn loads(&self) -> Arc<Loads> {
        self.shared.replica.loads()
    }

    /// From now on, new tenants' cells are chosen by these loads.
    pub fn set_loads(&self, loads: Loads) {
        self.shared.replica.set_loads(loads);
    }

    /// The registry of cells as it stands in the table.
    pub async fn registry(&self) -> Result<Arc<Registry>, Error> {
        self.shared.replica.catch_up().await?;
        self.shared.replica.registry()
    }

    /// A tenant's placement as it stands in the table, expired or not.
    pub async fn placement(&self, key: &PartitionKey) -> Result<Placement, Error> {
        match self.shared.store.placements.mapping(key).await? {
            Mapping::Placed(placement) => Ok(placement),
            Mapping::Absent | Mapping::Vacated(_) => Err(Refused::PlacementNotFound.into()),
        }
    }

    pub async fn list(
        &self,
        cell: Option<&CellId>,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, Error> {
        Ok(self.shared.store.placements.list(cell, limit, after).await?)
    }

    /// All placements of a cell, in pages of at most `limit`.
    pub fn pages(
        &self,
        cell: &CellId,
        limit: usize,
    ) -> impl Stream<Item = Result<Vec<Placement>, Error>> {
        try_unfold(Some(None), move |from: Option<Option<Cursor>>| async move {
            let Some(after) = from else { return Ok(None) };
            let page = self.list(Some(cell), limit, after.as_ref()).await?;
            Ok(Some((page.items, page.next.map(Some))))
        })
    }

    /// A tenant's past placements, newest first.
    pub async fn history(
        &self,
        key: &PartitionKey,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<HistoryRecord>, Error> {
        Ok(self.shared.store.placements.history(key, limit, after).await?)
    }

    /// What the table says of a key.
    pub async fn mapping(&self, key: &PartitionKey) -> Result<Mapping, Error> {
        Ok(self.shared.store.placements.mapping(key).await?)
    }

    /// Places a new tenant in a given cell. A tenant who lives there already stays as is.
    pub async fn pin(&self, placing: Placing, how: Mutation) -> Result<Outcome, Error> {
        if let Some(repeat) = self.repeat(&how).await? {
            return Ok(repeat);
        }
        let assumed = self.mapping(&placing.key).await?;
        let destination = Destination::Pinned(placing.cell.clone());
        self.place(placing, assumed, destination, how).await
    }

    /// Records where a tenant lives already.
    pub async fn import(&self, placing: Placing, validate_only: bool) -> Result<Outcome, Error> {
        // A commit that assumes wrongly is told what the table says, so only a preview has to ask.
        let assumed = match validate_only {
            true => self.mapping(&placing.key).await?,
            false => Mapping::Absent,
        };
        let destination = Destination::Imported(placing.cell.clone());
        let how = Mutation { request: None, validate_only };
        self.place(placing, assumed, destination, how).await
    }

    async fn place(
        &self,
        placing: Placing,
        assumed: Mapping,
        destination: Destination,
        how: Mutation,
    ) -> Result<Outcome, Error> {
        let action = Action::Place {
            key: placing.key,
            assumed,
            destination,
            since: placing.since,
            expires: placing.expires,
        };
        self.change(action, how).await
    }

    /// Removes a placement; with `epoch`, only at that epoch.
    pub async fn delete(
        &self,
        key: PartitionKey,
        epoch: Option<Epoch>,
        how: Mutation,
    ) -> Result<Outcome, Error> {
        if let Some(repeat) = self.repeat(&how).await? {
            return Ok(repeat);
        }
        let assumed = self.mapping(&key).await?;
        let event = PlacementEvent::Deleted;
        self.change(Action::Vacate { key, assumed, epoch, event }, how).await
    }

    /// The best cell by the policy for a tenant who lives in another one, of those that `fits` lets pass and that meet the constraints.
    ///
    /// # Errors
    /// [`Refused::NoEligibleCell`].
    pub fn best_cell(
        &self,
        registry: &Registry,
        newcomer: Newcomer<'_>,
        fits: impl Fn(&Cell) -> bool,
    ) -> Result<CellId, Error> {
        let cells = registry.cells().filter(|cell| fits(cell));
        let candidates = choose(&*self.shared.policy, newcomer, cells, &self.loads());
        match candidates.first() {
            Some(best) if best.eligible() => Ok(best.cell.clone()),
            _ => Err(Refused::NoEligibleCell { candidates }.into()),
        }
    }

    /// Does a step of a migration, where the tenant is as it says.
    ///
    /// # Errors
    /// [`Refused::Superseded`] where it is not; only after [`Error::OutcomeUnknown`] may it have been done.
    pub async fn step(&self, step: MoveStep) -> Result<Arc<Placement>, Error> {
        let action = Action::Move(Box::new(step));
        match self.shared.changes.submit(Command { action, request: None }).await? {
            Outcome::Moved(placement) => Ok(placement),
            // Of no other action.
            _ => Err(Error::OutcomeUnknown),
        }
    }

    pub async fn create_cell(&self, cell: NewCell, how: Mutation) -> Result<Outcome, Error> {
        if let Some(repeat) = self.repeat(&how).await? {
            return Ok(repeat);
        }
        // An adopted table may hold placements in the cell already.
        let placements = self.shared.store.placements.count(&cell.id).await?;
        self.change(Action::CreateCell { cell, placements }, how).await
    }

    pub async fn update_cell(
        &self,
        cell: CellId,
        patch: CellPatch,
        etag: Option<String>,
        how: Mutation,
    ) -> Result<Outcome, Error> {
        if let Some(repeat) = self.repeat(&how).await? {
            return Ok(repeat);
        }
        self.change(Action::UpdateCell { cell, patch, etag }, how).await
    }

    /// Unregisters a cell that holds no placements: neither by its count, which is exact for all that went through the journal, nor by the
    /// index, which knows of adopted items.
    pub async fn delete_cell(
        &self,
        cell: CellId,
        etag: Option<String>,
        how: Mutation,
    ) -> Result<Outcome, Error> {
        if let Some(repeat) = self.repeat(&how).await? {
            return Ok(repeat);
        }
        let registered = self.registry().await?.cell(&cell).is_some();
        if registered && self.shared.store.placements.count(&cell).await? > 0 {
            return Err(Refused::CellNotEmpty { cell }.into());
        }
        self.change(Action::DeleteCell { cell, etag }, how).await
    }

    pub async fn update_cluster(
        &self,
        lease: LeaseDuration,
        etag: Option<String>,
        how: Mutation,
    ) -> Result<Outcome, Error> {
        if let Some(repeat) = self.repeat(&how).await? {
            return Ok(repeat);
        }
        let longest = self.shared.replica.longest_lease();
        self.change(Action::UpdateCluster { lease, longest, etag }, how).await
    }

    /// What a repeated request was answered the first time.
    async fn repeat(&self, how: &Mutation) -> Result<Option<Outcome>, Error> {
        let Some(request) = &how.request else {
            return Ok(None);
        };
        let record = self.shared.store.journal.request(&request.id).await?;
        let record = record.filter(|record| record.counts(self.now()));
        Ok(record.map(|record| request.repeat_of(record)).transpose()?)
    }

    async fn change(&self, action: Action, how: Mutation) -> Result<Outcome, Error> {
        let command = Command { action, request: how.request };
        if !how.validate_only {
            return self.shared.changes.submit(command).await;
        }
        let registry = self.registry().await?;
        let retention = self.shared.settings.committer.request_retention;
        let mut draft = Draft::new(&*self.shared.policy, &registry, self.now(), retention)
            .with_loads(self.loads());
        match draft.add(&command) {
            Drafted::Included(outcome) => Ok(outcome),
            Drafted::Settled(answer) => Ok(answer?),
            // Unreachable: the first command of a draft always fits.
            Drafted::Deferred => Err(Error::NotReady),
        }
    }
}

/// A replica that begins with what was saved, or with nothing, and whoever saves it again.
fn replica(
    store: &Store,
    settings: &Settings,
    clock: &Clock,
    randomness: &Randomness,
    keep: Option<keeper::Keep>,
    tasks: &Tasks,
) -> Arc<Replica> {
    let (files, recalled) = keep.map(keeper::Keep::into_parts).unwrap_or_default();
    let (memory, registry) = match recalled {
        Some(recalled) => (recalled.memory, Some(recalled.registry)),
        None => (Memory::new(settings.memory, clock.clone(), randomness), None),
    };
    let journal = Arc::clone(&store.journal);
    let replica = Replica::new(journal, Arc::new(memory), clock.clone());
    let replica = Arc::new(replica.with_randomness(randomness.clone()));
    let whole_of = registry.as_ref().map(Registry::journal).filter(|_| replica.memory().complete());
    if let Some(registry) = registry {
        replica.begin_with(registry);
    }
    if let Some(files) = files {
        let keeper = keeper::Keeper::new(Arc::clone(&replica), files, whole_of);
        tasks.spawn("keeper", |stop| keeper.run(stop));
    }
    replica
}

/// How a change is asked for.
#[derive(Debug, Clone, Default)]
pub struct Mutation {
    /// Makes it safe to repeat.
    pub request: Option<Request>,
    /// Only say what would be.
    pub validate_only: bool,
}
