//! Takes as many calls as the server can serve, whatever connection they come on, and refuses the rest before any work is done.
//!
//! Two things run out. **The processor**: a call that is answered from memory never waits for anything else, so a count of calls under way
//! sees nothing of it; the queue is that of the runtime. It is measured where it is: each call notes how long it took from the moment its
//! headers were decoded to its first poll, and a probe task how late its timer wakes it. The [`Controller`] makes of the mean a bound
//! of how many may wait, for each class. **The table**: calls that wait for it are counted, all connections together ([`Slots`]), and each class has
//! a part of the places. A Resolve takes a place only once it turns out not to be in memory, so that what is known keeps resolving when
//! the table hangs and every place is taken.
//!
//! Health checks are never refused. A refused call has changed nothing: its body is not even read.
//!
//! The cost to a call that is taken: a few comparisons of its path, a load, two clock reads and three atomic additions. No lock, no allocation.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::controller::{CLASSES, Class, Controller, Sample, TICK, UNBOUNDED, Verdict};
use super::deadline::Deadline;
use super::status::{Fault, Reason};
use crate::telemetry::OverloadMetrics;

/// Refusals that are held at the same time; beyond that they are sent at once.
const MAX_HELD: u32 = 16_384;

/// How long callers are told to wait: spread evenly between these, in so many steps, so that they do not come back together.
const SHORTEST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(2);
const RETRY_STEPS: u32 = 16;

/// What the server takes.
#[derive(Debug, Clone)]
pub struct AdmissionSettings {
    /// The time for which calls may wait for a processor before the most important are shed; others are at one half and three
    /// quarters of it.
    pub max_queue_delay: Duration,
    /// Calls that wait for the table at the same time; the less important classes have one half and three quarters of it.
    pub max_in_flight: u32,
    /// The longest time a refusal is held back.
    pub max_refusal_hold: Duration,
    /// The size of a call's headers, counted as HTTP/2 does.
    pub max_header_bytes: u32,
}

/// What a call to this path is worth. `None` is always served.
fn class(path: &str) -> Option<Class> {
    let (service, method) = path.strip_prefix('/').and_then(|path| path.split_once('/'))?;
    match (service, method) {
        ("cells.v1.CellDirectory", "Resolve" | "BatchResolve" | "Watch" | "Sync") => {
            Some(Class::Critical)
        }
        ("cells.v1.CellDirectory", "ListPlacements" | "GetPlacementHistory")
        | (
            "cells.v1.CellAdmin",
            "GetCell" | "ListCells" | "GetCluster" | "GetTableSet" | "ListTableSets" | "PlanCell"
            | "AnalyzeCell" | "GetOperation" | "ListOperations",
        )
        | (
            "cells.v1.CellRecovery",
            "GetRecoveryStatus" | "ListBackups" | "GetRecoveryDrill" | "ListRecoveryDrills",
        )
        | (
            "cells.v1.MigrationService",
            "GetMigration" | "ListMigrations" | "WatchMigration" | "VerifyTenant"
            | "GetGuardCoverage" | "PlanDrain" | "PlanRebalance" | "GetBulk" | "ListBulks",
        )
        | ("cells.v1.CellData", "ExportTenant")
        | ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => {
            Some(Class::Low)
        }
        ("grpc.health.v1.Health", _) => None,
        _ => Some(Class::Normal),
    }
}

/// The places of those who wait for the table. Clones share them.
#[derive(Debug, Clone)]
pub struct Slots {
    taken: Arc<AtomicU32>,
    limit: u32,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub struct Slot(Arc<AtomicU32>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slots {
    pub fn new(limit: u32) -> Self {
        Self { taken: Arc::default(), limit }
    }

    fn limit(&self, class: Class) -> u32 {
        (self.limit / 4).saturating_mul(class.quarters()).max(1)
    }

    /// Whether there is no place left for this class.
    pub fn full(&self, class: Class) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.limit(class)
    }

    /// Takes a place, if there is one left for this class.
    fn take(&self, class: Class) -> Option<Slot> {
        let slot = self.take_anyway();
        // Those taken before this one.
        (self.taken.load(Ordering::Relaxed) <= self.limit(class)).then_some(slot)
    }

    /// Takes a place even where there is none, for a call that is under way already and was looked at with [`Slots::full`] just before. Not
    /// more calls come above the limit that way than there are threads.
    pub fn take_anyway(&self) -> Slot {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Slot(Arc::clone(&self.taken))
    }

    fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Delay = 0,
    InFlight = 1,
}

const CAUSES: [(Cause, &str); 2] = [(Cause::Delay, "delay"), (Cause::InFlight, "in_flight")];

/// Shared by all calls of a server. Clones are the same.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: AdmissionSettings,
    slots: Slots,
    /// How many calls may wait when one of each class comes.
    bounds: [AtomicU32; CLASSES],
    /// Calls that wait for their first poll.
    waiting: AtomicU32,
    waits: Waits,
    /// Since the last tick, by class and cause.
    sheds: [[AtomicU64; CAUSES.len()]; CLASSES],
    hold_micros: AtomicU64,
    held: AtomicU32,
    /// The headers of all refusals, ready to be sent.
    refusals: Vec<HeaderMap>,
}

/// Calls that were begun since the last look, and how long they waited in sum: both in one number, so that one addition does.
#[derive(Debug, Default)]
struct Waits(AtomicU64);

/// Bits of the count; the microseconds are above. A tick's 2^24 calls are beyond any machine, and so are its 2^40 microseconds.
const COUNT_BITS: u32 = 24;

impl Waits {
    fn add(&self, wait: Duration) {
        // A call that waited for a second is as bad as one that waited for ever.
        let micros = wait.as_micros().min(1_000_000) as u64;
        self.0.fetch_add((micros << COUNT_BITS) | 1, Ordering::Relaxed);
    }

    /// The calls and their mean, and begins anew.
    fn take(&self) -> (u64, Duration) {
        let both = self.0.swap(0, Ordering::Relaxed);
        let (micros, count) = (both >> COUNT_BITS, both & ((1 << COUNT_BITS) - 1));
        (count, Duration::from_micros(micros.checked_div(count).unwrap_or_default()))
    }
}

impl Admission {
    pub fn new(settings: AdmissionSettings) -> Self {
        let step = (LONGEST_RETRY - SHORTEST_RETRY) / (RETRY_STEPS - 1);
        let refusals =
            (0..RETRY_STEPS).map(|at| refusal(Fault::overloaded(SHORTEST_RETRY + step * at)));
        Self(Arc::new(Shared {
            slots: Slots::new(settings.max_in_flight),
            bounds: [const { AtomicU32::new(UNBOUNDED) }; CLASSES],
            waiting: AtomicU32::new(0),
            waits: Waits::default(),
            sheds: [const { [const { AtomicU64::new(0) }; CAUSES.len()] }; CLASSES],
            hold_micros: AtomicU64::new(0),
            held: AtomicU32::new(0),
            refusals: refusals.collect(),
            settings,
        }))
    }

    /// The places, for the handlers of calls that take one late.
    pub fn slots(&self) -> &Slots {
        &self.0.slots
    }

    /// A refusal for a call that was let in and finds no place. Counted as the others are.
    pub fn refuse(&self, class: Class) -> Fault {
        self.0.sheds[class as usize][Cause::InFlight as usize].fetch_add(1, Ordering::Relaxed);
        let spread = LONGEST_RETRY - SHORTEST_RETRY;
        Fault::overloaded(SHORTEST_RETRY + spread.mul_f64(rand::random::<f64>()))
    }

    fn admit(&self, class: Class) -> Result<Option<Slot>, Cause> {
        let shared = &*self.0;
        let bound = shared.bounds[class as usize].load(Ordering::Relaxed);
        if bound != UNBOUNDED && shared.waiting.load(Ordering::Relaxed) >= bound {
            return Err(Cause::Delay);
        }
        match class {
            // Takes one late, if at all.
            Class::Critical => Ok(None),
            Class::Low | Class::Normal => shared.slots.take(class).map(Some).ok_or(Cause::InFlight),
        }
    }

    /// Does as the controller says.
    fn follow(&self, verdict: &Verdict) {
        for (bound, decided) in self.0.bounds.iter().zip(verdict.bounds) {
            bound.store(decided, Ordering::Relaxed);
        }
        let micros = verdict.hold.as_micros() as u64;
        self.0.hold_micros.store(micros, Ordering::Relaxed);
    }

    /// Looks at how things go, and decides, for as long as it is polled. To be run as a task of the runtime that serves: its own lateness is a
    /// part of the signal, and the only one while no call gets through.
    pub async fn run(self, metrics: OverloadMetrics) {
        let shared = &*self.0;
        let settings = &shared.settings;
        let mut controller = Controller::new(settings.max_queue_delay, settings.max_refusal_hold);
        let mut shedding = false;
        loop {
            let slept = Instant::now();
            tokio::time::sleep(TICK).await;
            let late = slept.elapsed().saturating_sub(TICK);
            let (admitted, wait) = shared.waits.take();
            let mut shed = 0;
            for class in Class::ALL {
                for (cause, name) in CAUSES {
                    let calls =
                        shared.sheds[class as usize][cause as usize].swap(0, Ordering::Relaxed);
                    if calls > 0 {
                        metrics.shed(class.as_str(), name, calls);
                    }
                    shed += calls;
                }
            }
            let delay = wait.max(late);
            let verdict = controller.tick(Sample { delay, admitted, shed });
            self.follow(&verdict);
            metrics.queue_delay(delay.as_secs_f64());
            metrics.in_flight(shared.slots.taken().into());
            for class in Class::ALL {
                metrics.queue_bound(class.as_str(), verdict.bounds[class as usize]);
            }
            let now = verdict.bounds.iter().any(|bound| *bound < UNBOUNDED);
            if now != shedding {
                shedding = now;
                match now {
                    true => tracing::warn!(
                        ?delay,
                        "overloaded: refusing calls, the least important first"
                    ),
                    false => tracing::info!("no longer overloaded: taking all calls"),
                }
            }
        }
    }
}

/// The size of a call's headers as HTTP/2 counts it: name, value, and 32 for each (RFC 9113, section 6.5.2), without the pseudo-headers.
fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// The headers of an answer that is nothing but a refusal.
fn refusal(fault: Fault) -> HeaderMap {
    Status::from(fault).into_http::<()>().into_parts().0.headers
}

#[derive(Debug, Clone)]
pub struct AdmissionLayer(pub Admission);

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.0.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S, B> Service<Request<B>> for Admitted<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = AdmissionFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let admission = &self.admission;
        if size(request.headers()) > admission.0.settings.max_header_bytes as usize {
            let fault = Fault::new(
                Reason::HeadersTooLarge,
                "the headers are larger than the server takes; send less metadata",
            );
            return AdmissionFuture::Refused { headers: Some(refusal(fault)), held: None };
        }
        let Some(class) = class(request.uri().path()) else {
            return AdmissionFuture::Always { inner: self.inner.call(request) };
        };
        match admission.admit(class) {
            Ok(slot) => AdmissionFuture::Taken {
                inner: self.inner.call(request),
                arrival: Some(Arrival::new(admission.clone())),
                slot,
            },
            Err(cause) => {
                admission.0.sheds[class as usize][cause as usize].fetch_add(1, Ordering::Relaxed);
                let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
                let refusals = &admission.0.refusals;
                let drawn = rand::random::<u32>() as usize % refusals.len().max(1);
                AdmissionFuture::Refused {
                    headers: refusals.get(drawn).cloned(),
                    held: admission.hold(deadline),
                }
            }
        }
    }
}

/// A call that waits for its first poll.
pub struct Arrival {
    at: Instant,
    admission: Admission,
}

impl Arrival {
    fn new(admission: Admission) -> Self {
        admission.0.waiting.fetch_add(1, Ordering::Relaxed);
        Self { at: Instant::now(), admission }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.admission.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A refusal that is held.
pub struct Held {
    sleep: Pin<Box<Sleep>>,
    admission: Admission,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.admission.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// Holds a refusal, if refusals are to be held, there is room, and the caller waits for that long.
    fn hold(&self, deadline: Option<Instant>) -> Option<Held> {
        let micros = self.0.hold_micros.load(Ordering::Relaxed);
        if micros == 0 {
            return None;
        }
        // Each its own time, so that those that were refused together do not come back together.
        let mut hold = Duration::from_micros(rand::random_range(micros / 4 * 3..=micros));
        if let Some(deadline) = deadline {
            // So that the caller learns why.
            hold = hold.min(deadline.saturating_duration_since(Instant::now()) / 2);
        }
        let before = self.0.held.fetch_add(1, Ordering::Relaxed);
        let held = Held { sleep: Box::pin(tokio::time::sleep(hold)), admission: self.clone() };
        (before < MAX_HELD).then_some(held)
    }
}

pin_project! {
    /// The answer to a call, or the refusal.
    #[project = Projected]
    pub enum AdmissionFuture<F> {
        Always { #[pin] inner: F },
        Taken {
            #[pin]
            inner: F,
            // `None` after the first poll.
            arrival: Option<Arrival>,
            slot: Option<Slot>,
        },
        Refused { headers: Option<HeaderMap>, held: Option<Held> },
    }
}

impl<F, E> Future for AdmissionFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Always { inner } => inner.poll(cx),
            Projected::Taken { inner, arrival, slot } => {
                if let Some(arrival) = arrival.take() {
                    arrival.admission.0.waits.add(arrival.at.elapsed());
                }
                let answer = ready!(inner.poll(cx));
                *slot = None;
                Poll::Ready(answer)
            }
            Projected::Refused { headers, held } => {
                if let Some(held) = held {
                    ready!(held.sleep.as_mut().poll(cx));
                }
                *held = None;
                let mut answer = Response::new(Body::empty());
                *answer.headers_mut() = headers.take().unwrap_or_default();
                Poll::Ready(Ok(answer))
            }
        }
    }
}

#[cfg(test)]
mod tests;
