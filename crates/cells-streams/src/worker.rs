//! Drives the reader of one shard: performs its steps and renews its lease meanwhile. Decides nothing.
//!
//! Why the renewal runs beside the steps: a sink may take longer than a lease. Why nothing is cut off: a sink's call that was dropped
//! half-way could leave half a batch behind, so a lost lease or a stop is noticed between steps.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::event::Source;
use crate::lease::{Claim, Claimed, Lease, LeaseError, Leases};
use crate::reader::{Ended, Listed, Reader, Standing, Step};
use crate::sink::Sink;
use crate::streams::{Shard, Streams, StreamsError};
use crate::{Options, ShardId};

/// What all workers of a consumer share.
pub struct Shared {
    pub source: Arc<Source>,
    pub streams: Arc<dyn Streams>,
    pub leases: Arc<dyn Leases>,
    pub sink: Arc<dyn Sink>,
    pub options: Options,
    /// The zero of this consumer's clock.
    pub started: Instant,
    /// The last complete listing, and when it was begun.
    pub listing: RwLock<Option<(Duration, Vec<Shard>)>>,
    /// Brings the next listing forward.
    pub relist: Notify,
}

impl Shared {
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn listed(&self, shard: &ShardId) -> Option<Listed> {
        let listing = self.listing.read();
        let (at, shards) = listing.as_ref()?;
        Some(Listed { at: *at, shard: shards.iter().any(|listed| listed.id == *shard) })
    }

    /// A call to the stream, for as long as a call may take.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, StreamsError>>,
    ) -> Result<T, StreamsError> {
        let late = |_| Err(StreamsError::Failed("no answer in time".into()));
        timeout(self.options.call_timeout, call).await.unwrap_or_else(late)
    }

    /// A call to the leases, for as long as a call may take.
    pub async fn lease_call<T>(
        &self,
        call: impl Future<Output = Result<T, LeaseError>>,
    ) -> Result<T, LeaseError> {
        let late = |_| Err(LeaseError("no answer in time".into()));
        timeout(self.options.call_timeout, call).await.unwrap_or_else(late)
    }
}

/// The lease as its renewal left it.
struct Tenure {
    state: Mutex<(bool, Duration)>,
    changed: Notify,
}

impl Tenure {
    /// A lease is good from when its change was *sent*: whoever saw the change saw it later.
    fn settle(&self, sent: Duration, outcome: Claimed, lease_use: Duration) {
        let mut state = self.state.lock();
        match outcome {
            Claimed::Held => state.1 = state.1.max(sent + lease_use),
            Claimed::Lost => state.0 = true,
        }
        drop(state);
        self.changed.notify_one();
    }

    fn standing(&self, stopping: bool) -> Standing {
        let (lost, held_until) = *self.state.lock();
        Standing { lost, held_until, stopping }
    }
}

pub struct Worker {
    shared: Arc<Shared>,
    claim: Claim,
    reader: Reader,
    tenure: Tenure,
    stop: CancellationToken,
}

impl Worker {
    /// `held_since`: when the request that won the lease was sent; `None` if that is not known.
    pub fn new(
        shared: Arc<Shared>,
        lease: &Lease,
        claim: Claim,
        held_since: Option<Duration>,
        stop: CancellationToken,
        seed: u64,
    ) -> Self {
        let reader = Reader::new(shared.now(), shared.source.clone(), lease, &shared.options, seed);
        let held_until = held_since.map_or(Duration::ZERO, |at| at + shared.options.lease_use());
        let tenure = Tenure { state: Mutex::new((false, held_until)), changed: Notify::new() };
        Self { shared, claim, reader, tenure, stop }
    }

    /// Reads until the shard ends, the lease is lost, or it is asked to stop; in the last case the lease is released.
    pub async fn run(mut self) -> Ended {
        let ended = {
            let renewal = renew(&self.shared, &self.claim, &self.tenure);
            let reading =
                read(&self.shared, &self.claim, &self.tenure, &self.stop, &mut self.reader);
            tokio::select! {
                ended = reading => ended,
                never = renewal => match never {},
            }
        };
        match ended {
            Ended::Finished => self.shared.relist.notify_one(),
            Ended::Lost => tracing::info!(shard = %self.claim.shard, "lease lost"),
            Ended::Stopped => {
                let release = self.shared.leases.release(&self.claim);
                if let Err(error) = self.shared.lease_call(release).await {
                    tracing::warn!(shard = %self.claim.shard, %error, "lease not released, it will expire");
                }
            }
        }
        ended
    }
}

async fn renew(shared: &Shared, claim: &Claim, tenure: &Tenure) -> std::convert::Infallible {
    let interval = shared.options.lease / 3;
    loop {
        sleep(interval).await;
        let sent = shared.now();
        match shared.lease_call(shared.leases.renew(claim)).await {
            Ok(outcome) => tenure.settle(sent, outcome, shared.options.lease_use()),
            Err(error) => {
                tracing::warn!(shard = %claim.shard, %error, "lease not renewed, trying again")
            }
        }
    }
}

async fn read(
    shared: &Shared,
    claim: &Claim,
    tenure: &Tenure,
    stop: &CancellationToken,
    reader: &mut Reader,
) -> Ended {
    let shard = &claim.shard;
    let mut page: Option<OwnedSemaphorePermit> = None;
    loop {
        let stopping = stop.is_cancelled();
        match reader.next(shared.now(), tenure.standing(stopping)) {
            Step::Over(ended) => return ended,
            Step::Wait(until) => tokio::select! {
                () = sleep_until(shared.started + until) => {}
                () = tenure.changed.notified() => {}
                () = stop.cancelled(), if !stopping => {}
            },
            Step::Iterator(from) => {
                let call = shared.streams.iterator(&shared.source.stream, shard, &from);
                let answer = shared.call(call).await;
                note(shard, "iterator", answer.as_ref().err());
                if matches!(answer, Err(StreamsError::NotFound)) {
                    shared.relist.notify_one();
                }
                reader.got_iterator(
                    shared.now(),
                    (shared.options.wall_secs)(),
                    answer,
                    shared.listed(shard),
                );
            }
            Step::Records(iterator) => {
                if page.is_none()
                    && let Some(pages) =
                        shared.options.pages.as_ref().filter(|pages| !pages.is_closed())
                {
                    tokio::select! {
                        turn = pages.clone().acquire_owned() => page = turn.ok(),
                        () = tenure.changed.notified() => {}
                        () = stop.cancelled(), if !stopping => {}
                    }
                    // What changed meanwhile is looked at first.
                    continue;
                }
                // Before the call: nothing that is younger was seen by it.
                let wall_secs = (shared.options.wall_secs)();
                let answer = shared.call(shared.streams.records(&iterator)).await;
                note(shard, "records", answer.as_ref().err());
                reader.got_records(shared.now(), wall_secs, answer);
                page = page.filter(|_| reader.holds_delivery());
            }
            Step::Deliver(delivery) => {
                let outcome = shared.sink.deliver(&delivery).await;
                if let Err(error) = &outcome {
                    tracing::warn!(%shard, %error, "batch not accepted, trying again");
                }
                drop(delivery);
                reader.delivered(shared.now(), outcome.is_ok());
                page = page.filter(|_| reader.holds_delivery());
            }
            Step::Checkpoint(position) => {
                let sent = shared.now();
                let call = shared.leases.checkpoint(claim, &position);
                let outcome = shared.lease_call(call).await;
                if let Err(error) = &outcome {
                    tracing::warn!(%shard, %error, "checkpoint not made, trying again");
                }
                let outcome = outcome.ok();
                if let Some(outcome) = outcome {
                    tenure.settle(sent, outcome, shared.options.lease_use());
                }
                reader.checkpointed(shared.now(), outcome);
            }
            Step::Renew => {
                let sent = shared.now();
                match shared.lease_call(shared.leases.renew(claim)).await {
                    Ok(outcome) => tenure.settle(sent, outcome, shared.options.lease_use()),
                    Err(_) => reader.renewal_failed(shared.now()),
                }
            }
        }
    }
}

fn note(shard: &ShardId, call: &'static str, error: Option<&StreamsError>) {
    match error {
        None => {}
        Some(error @ StreamsError::Rejected(_)) => {
            tracing::error!(%shard, call, %error, "stream cannot be read");
        }
        Some(error) => tracing::debug!(%shard, call, %error, "stream call failed"),
    }
}
