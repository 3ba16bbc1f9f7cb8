//! The way of a routing decision: a stack of tower layers, a file each, put together in one function.
//!
//! What is in memory is answered by a future that is ready at once and allocates nothing below the layers; everything slower goes
//! through one boxed future, made by the cache layer on a miss.

mod cache;
mod coalesce;
mod fallback;
mod metrics;
#[cfg(test)]
mod order_tests;
mod retry;
mod table;
#[cfg(test)]
mod testing;
mod timeout;
mod trace;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tower::ServiceBuilder;
use tower::retry::Retry;

pub use fallback::FallbackReason;
pub use trace::DecisionTrace;

use super::clock::Clock;
use super::committer::Changes;
use super::error::Error;
use super::memory::Residence;
use super::pauses::Pauses;
use super::policy::Candidate;
use super::randomness::Randomness;
use super::reader::Reads;
use super::replica::Replica;
use crate::domain::{CellId, Constraints, Epoch, Mapping, PartitionKey, Sequence};
use crate::telemetry::{DecisionMetrics, names};

/// A tenant to route.
#[derive(Debug, Clone)]
pub struct RouteRequest {
    pub key: PartitionKey,
    pub options: Arc<RouteOptions>,
    pub trace: DecisionTrace,
    /// Set as soon as an assignment is handed to the committer: from then on, giving up leaves the outcome unknown.
    pub writing: Writing,
    /// Which reads of the table it may share; set by the cache layer.
    round: u64,
    /// The entry up to which a read of the table that begins now takes everything in; set by the cache layer.
    sequence: Sequence,
    /// When a lease on what is read ends.
    lease_until: Option<Instant>,
    /// What the table is taken to say, where that need not be read: a commit that assumes wrongly is refused by the storage. Set by the
    /// cache layer.
    assumed: Option<Mapping>,
}

impl RouteRequest {
    pub fn new(key: PartitionKey, options: Arc<RouteOptions>, trace: DecisionTrace) -> Self {
        Self {
            key,
            options,
            trace,
            writing: Writing::default(),
            round: 0,
            sequence: Sequence::START,
            lease_until: None,
            assumed: None,
        }
    }
}

/// How to route. One value serves all keys of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RouteOptions {
    pub assign: bool,
    pub constraints: Arc<Constraints>,
    /// The lowest epoch to take.
    pub min_epoch: Option<Epoch>,
    /// Whether a guess is welcome.
    pub fallback: bool,
    pub explain: bool,
    /// When the caller gives up.
    pub deadline: Option<Instant>,
}

/// Whether a flight may have written what it does not know of, and at which epoch; 0: it has not. Shared between the layer that starts
/// the flight and those below it, through all attempts; a request that is answered from memory has none.
#[derive(Debug, Clone, Default)]
pub struct Writing(Option<Arc<AtomicU64>>);

impl Writing {
    fn shared() -> Self {
        Self(Some(Arc::default()))
    }

    /// Notes that an assignment at this epoch is handed to the committer. Until [`Writing::settle`] it may have been made.
    fn begin(&self, epoch: Epoch) {
        if let Some(open) = &self.0 {
            open.store(epoch.get(), Ordering::Release);
        }
    }

    /// Notes that the committer knows what became of the assignment.
    fn settle(&self) {
        if let Some(open) = &self.0 {
            open.store(0, Ordering::Release);
        }
    }

    /// The epoch at which an assignment may have been made.
    fn open(&self) -> Option<Epoch> {
        self.0.as_ref().and_then(|open| Epoch::new(open.load(Ordering::Acquire)))
    }
}

/// Where a decision comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Memory,
    Table,
    Assigned,
    Fallback(FallbackReason),
}

impl Source {
    /// As telemetry names it.
    fn as_str(self) -> &'static str {
        match self {
            Source::Memory => names::SOURCE_MEMORY,
            Source::Table => "table",
            Source::Assigned => "assigned",
            Source::Fallback(_) => names::SOURCE_FALLBACK,
        }
    }

    fn fallback_reason(self) -> Option<FallbackReason> {
        match self {
            Source::Fallback(reason) => Some(reason),
            Source::Memory | Source::Table | Source::Assigned => None,
        }
    }
}

/// A decision.
#[derive(Debug, Clone)]
pub struct Routed {
    pub home: Home,
    pub source: Source,
    /// The call placed the tenant, or may have: a reply was lost, and a placement was found that may be its own.
    pub written: bool,
    /// The table said so at this moment or later. Meaningless for a fallback.
    pub as_of: Instant,
    /// Every change of the tenant up to this entry is taken in.
    pub sequence: Sequence,
    /// When the lease ends. None for a guess, nor for what the journal does not vouch for.
    pub lease_until: Option<Instant>,
    /// With `explain`: every step, in order.
    pub steps: Vec<Step>,
}

/// Where the tenant is sent.
#[derive(Debug, Clone)]
pub enum Home {
    Placed(Residence),
    /// A guess.
    Default(CellId),
}

impl Routed {
    pub fn cell(&self) -> &CellId {
        match &self.home {
            Home::Placed(residence) => residence.cell.id(),
            Home::Default(cell) => cell,
        }
    }
}

/// One step on the way to a decision, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub name: &'static str,
    pub outcome: String,
    pub candidates: Vec<Candidate>,
}

impl Step {
    fn new(name: &'static str, outcome: impl Into<String>) -> Self {
        Self { name, outcome: outcome.into(), candidates: Vec::new() }
    }
}

type Answer = Result<Routed, Error>;
type SlowAnswer = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What the layers need.
pub struct Parts {
    pub reads: Reads,
    pub replica: Arc<Replica>,
    pub changes: Changes,
    pub clock: Clock,
    pub randomness: Randomness,
    pub metrics: DecisionMetrics,
    pub settings: StackSettings,
}

#[derive(Debug, Clone)]
pub struct StackSettings {
    pub default_cell: Option<CellId>,
    /// How long a tenant that is not held waits for the table to be read as a whole, where that is under way.
    pub load_patience: Duration,
    /// How long the table may take, all attempts together.
    pub lookup_budget: Duration,
    /// Attempts at most, the first included.
    pub attempts: u32,
    pub pauses: Pauses,
    /// Retries as a share of requests, above `retry_floor` a second.
    pub retry_ratio: f32,
    pub retry_floor: u32,
}

/// The stack's type, outermost layer first.
pub type RouteService = trace::Trace<
    metrics::Metrics<
        fallback::Fallback<
            cache::Cached<
                coalesce::Coalesce<timeout::Timeout<Retry<retry::RetryPolicy, table::Table>>>,
            >,
        >,
    >,
>;

/// Stacks the layers. A request meets them from top to bottom.
pub fn stack(parts: Parts) -> RouteService {
    let Parts { reads, replica, changes, clock, randomness, metrics, settings } = parts;
    let memory = Arc::clone(replica.memory());
    ServiceBuilder::new()
        // Sees every decision, guesses included, and is under the caller's trace.
        .layer(trace::TraceLayer)
        // Counts what the caller gets, after fallback.
        .layer(metrics::MetricsLayer::new(metrics))
        // Turns failures of all that is below into the default cell, where that is welcome.
        .layer(fallback::FallbackLayer::new(settings.default_cell))
        // Answers from memory. Above coalescing, so that a hit takes no lock.
        .layer(cache::CacheLayer::new(memory, clock.clone(), settings.load_patience))
        // One flight to the table for all who ask the same at the same time.
        .layer(coalesce::CoalesceLayer::default())
        // Bounds a flight as a whole, retries and pauses included.
        .layer(timeout::TimeoutLayer::new(settings.lookup_budget))
        // The only place that repeats calls: the SDK's own retries are off.
        .layer(retry::layer(
            settings.pauses,
            randomness.clone(),
            settings.attempts,
            settings.retry_ratio,
            settings.retry_floor,
        ))
        .service(table::Table::new(reads, changes, clock, randomness))
}
