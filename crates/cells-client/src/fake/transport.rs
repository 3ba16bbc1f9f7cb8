//! How a client reaches the fake's replicas.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::unfold;
use tokio::sync::watch;

use super::World;
use super::replica::Replica;
use crate::error::{Failure, FailureKind};
use crate::proto;
use crate::proto::placement_change::Change;
use crate::proto::watch_response::Event as Piece;
use crate::transport::{BoxFuture, Transport, WatchStream};

/// Placements of a part of a snapshot: few, so that small tests see several parts.
const PART: usize = 100;
/// Entries of a message of changes.
const ENTRIES: usize = 64;
/// A sign of life on an idle stream.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub(crate) struct FakeTransport {
    pub world: Arc<World>,
}

fn gone() -> Failure {
    Failure::passing("the replica is disconnected")
}

/// A stream: what it has told so far.
struct Stream {
    world: Arc<World>,
    changed: watch::Receiver<u64>,
    replica: usize,
    connection: u64,
    journal_id: String,
    /// The snapshot goes on behind this key. `None`: there is none, or it is whole.
    snapshot: Option<String>,
    first: bool,
    sequence: u64,
}

/// What a stream does next.
enum Next {
    Tell(proto::WatchResponse),
    Fail,
    Wait,
}

impl Stream {
    fn next(&mut self) -> Next {
        let state = self.world.state.lock();
        let Some(replica) = state.replicas.get(self.replica) else { return Next::Fail };
        if replica.disconnected || replica.connection != self.connection {
            return Next::Fail;
        }
        if replica.silent {
            return Next::Wait;
        }
        let was_snapshot = self.snapshot.is_some();
        if let Some(behind) = self.snapshot.take() {
            let part = part(replica, &behind, self.first);
            self.snapshot = part.placements.last().map(|placement| placement.partition_key.clone());
            if self.snapshot.is_some() || self.first {
                self.first = false;
                self.snapshot = self.snapshot.take().or(Some(String::from("\u{10FFFF}")));
                return Next::Tell(self.message(Piece::Snapshot(part), String::new(), false));
            }
        }
        if replica.position <= self.sequence && !self.first && !was_snapshot {
            return Next::Wait;
        }
        self.first = false;
        let from = self.sequence as usize;
        let to = (replica.position as usize).max(from).min(from + ENTRIES);
        let entries = state.journal.get(from..to).unwrap_or_default();
        let changes = entries.iter().zip(from as u64 + 1..).flat_map(|(changes, sequence)| {
            changes.iter().map(move |change| proto::PlacementChange {
                sequence,
                change: Some(change.clone()),
            })
        });
        let changes = proto::Changes { changes: changes.collect() };
        let caught_up = to as u64 >= replica.position;
        drop(state);
        self.sequence = to as u64;
        let token = format!("{}:{}", self.journal_id, self.sequence);
        Next::Tell(self.message(Piece::Changes(changes), token, caught_up))
    }

    fn message(&self, event: Piece, resume_token: String, caught_up: bool) -> proto::WatchResponse {
        let (sequence, journal_id) = (self.sequence, self.journal_id.clone());
        proto::WatchResponse { event: Some(event), resume_token, sequence, caught_up, journal_id }
    }

    async fn tell(mut self) -> Option<(Result<proto::WatchResponse, Failure>, Option<Self>)> {
        let heartbeat = tokio::time::Instant::now() + HEARTBEAT;
        loop {
            self.changed.mark_unchanged();
            match self.next() {
                Next::Tell(message) => return Some((Ok(message), Some(self))),
                Next::Fail => return Some((Err(gone()), None)),
                Next::Wait => {}
            }
            let waited = tokio::time::timeout_at(heartbeat, self.changed.changed()).await;
            if waited.is_err() && self.is_silent() {
                // Until it is cut off, or told to speak again.
                let _ = self.changed.changed().await;
            } else if waited.is_err() {
                // Nothing has changed, but the stream is alive.
                let token = format!("{}:{}", self.journal_id, self.sequence);
                let message = self.message(Piece::Changes(proto::Changes::default()), token, true);
                return Some((Ok(message), Some(self)));
            }
        }
    }

    fn is_silent(&self) -> bool {
        self.world.state.lock().replicas.get(self.replica).is_some_and(|replica| replica.silent)
    }
}

/// The placements behind a key, as they are now: a snapshot is taken while changes go on.
fn part(replica: &Replica, behind: &str, first: bool) -> proto::SnapshotPart {
    let placements = replica.placements.range(behind.to_owned()..).map(|(_, placement)| placement);
    let placements = placements.filter(|placement| placement.partition_key != behind).take(PART);
    let cells = if first { replica.cells.values().cloned().collect() } else { Vec::new() };
    proto::SnapshotPart { placements: placements.cloned().collect(), cells }
}

impl FakeTransport {
    /// A stream that begins as the request says.
    fn begin(&self, endpoint: usize, request: &proto::WatchRequest) -> Result<Stream, Failure> {
        let changed = self.world.changed.subscribe();
        let state = self.world.state.lock();
        let replica = state
            .replicas
            .get(endpoint)
            .filter(|replica| !replica.disconnected)
            .ok_or_else(gone)?;
        let journal_id = replica.journal_id.clone().unwrap_or_else(|| "fake-1".to_owned());
        let begins = !request.resume_token.is_empty();
        let sequence = if begins {
            let token =
                request.resume_token.rsplit_once(':').filter(|(journal, _)| *journal == journal_id);
            let sequence = token.and_then(|(_, sequence)| sequence.parse::<u64>().ok());
            sequence.filter(|sequence| *sequence >= state.oldest).ok_or_else(|| Failure {
                kind: FailureKind::ResumeTokenExpired,
                ..Failure::passing("the token has expired")
            })?
        } else {
            replica.position
        };
        Ok(Stream {
            world: self.world.clone(),
            changed,
            replica: endpoint,
            connection: replica.connection,
            journal_id,
            snapshot: (!begins && !request.changes_only).then(String::new),
            first: true,
            sequence,
        })
    }

    /// Waits as long as the replica is slow; then hands it over with the rest of the world.
    fn call<R: Send + 'static>(
        &self,
        endpoint: usize,
        f: impl FnOnce(&mut super::State) -> Result<R, Failure> + Send + 'static,
    ) -> BoxFuture<Result<R, Failure>> {
        let world = self.world.clone();
        Box::pin(async move {
            let delay = world.state.lock().replicas.get(endpoint).map(|replica| replica.delay);
            if let Some(delay) = delay.filter(|delay| !delay.is_zero()) {
                tokio::time::sleep(delay).await;
            }
            world.change(|state| {
                state.calls += 1;
                match state.replicas.get(endpoint) {
                    Some(replica) if !replica.disconnected && !replica.silent => f(state),
                    Some(_) | None => Err(gone()),
                }
            })
        })
    }
}

impl Transport for FakeTransport {
    fn endpoints(&self) -> usize {
        self.world.state.lock().replicas.len()
    }

    fn watch(
        &self,
        endpoint: usize,
        request: proto::WatchRequest,
    ) -> BoxFuture<Result<WatchStream, Failure>> {
        let stream = self.begin(endpoint, &request);
        Box::pin(async move {
            let stream = stream?;
            Ok(unfold(Some(stream), |stream| async move { stream?.tell().await }).boxed())
        })
    }

    fn sync(&self, endpoint: usize) -> BoxFuture<Result<proto::SyncResponse, Failure>> {
        self.call(endpoint, move |state| {
            let lease = if state.leases_paused { Duration::ZERO } else { state.lease };
            let replica = state.replicas.get(endpoint).ok_or_else(gone)?;
            let (lease, age) = replica.lease(lease);
            Ok(proto::SyncResponse {
                sequence: replica.position,
                age: prost_types::Duration::try_from(age).ok(),
                lease: prost_types::Duration::try_from(lease).ok(),
                journal_id: replica.journal_id.clone().unwrap_or_else(|| "fake-1".to_owned()),
            })
        })
    }

    fn resolve(
        &self,
        endpoint: usize,
        request: proto::ResolveRequest,
    ) -> BoxFuture<Result<proto::ResolveResponse, Failure>> {
        self.call(endpoint, move |state| resolve(state, endpoint, &request))
    }

    fn batch_resolve(
        &self,
        endpoint: usize,
        request: proto::BatchResolveRequest,
    ) -> BoxFuture<Result<proto::BatchResolveResponse, Failure>> {
        self.call(endpoint, move |state| batch(state, endpoint, &request))
    }
}

/// As a replica does: from its memory, or else from the table; places who has no cell.
fn resolve(
    state: &mut super::State,
    endpoint: usize,
    request: &proto::ResolveRequest,
) -> Result<proto::ResolveResponse, Failure> {
    let key = &request.partition_key;
    let lookup_only = request.mode() == proto::ResolveMode::LookupOnly;
    let refused = |kind, reason: &str| Failure {
        kind,
        reason: reason.to_owned(),
        ..Failure::passing(reason)
    };
    let replica = state.replicas.get(endpoint).ok_or_else(gone)?;
    let at_least = |placement: &&proto::Placement| placement.epoch >= request.min_epoch;
    let known = replica.placements.get(key).filter(at_least).cloned();
    let (position, full) =
        (replica.position, if state.leases_paused { Duration::ZERO } else { state.lease });
    let (memory_lease, memory_age) = replica.lease(full);
    let from_memory = known.is_some();
    let (placement, source) = match (known, state.placements.get(key).cloned()) {
        (Some(placement), _) => (placement, proto::DecisionSource::Memory),
        (None, Some(placement)) if placement.epoch >= request.min_epoch => {
            (placement, proto::DecisionSource::Table)
        }
        (None, Some(_)) => return Err(refused(FailureKind::EpochNotReached, "EPOCH_NOT_REACHED")),
        (None, None) if lookup_only => {
            return Err(refused(FailureKind::NotFound, "PLACEMENT_NOT_FOUND"));
        }
        (None, None) => {
            let fewest = |cell: &&String| {
                (
                    state
                        .placements
                        .values()
                        .filter(|placement| placement.cell_id == **cell)
                        .count(),
                    (*cell).clone(),
                )
            };
            let cell = state.cells.keys().min_by_key(fewest).cloned();
            let cell = cell.ok_or_else(|| refused(FailureKind::Final, "NO_ELIGIBLE_CELL"))?;
            let placement = state.next_placement(key, &cell);
            state.commit(vec![Change::Placed(placement.clone())]);
            (placement, proto::DecisionSource::Assigned)
        }
    };
    let (lease, age) =
        if from_memory { (memory_lease, memory_age) } else { (full, Duration::ZERO) };
    let cell = state.cells.get(&placement.cell_id);
    let placement = proto::Placement {
        endpoint: cell.map(|cell| cell.endpoint.clone()).unwrap_or_default(),
        region: cell.map(|cell| cell.region.clone()).unwrap_or_default(),
        ..placement
    };
    let decision = proto::Decision {
        source: source.into(),
        authoritative: true,
        age: prost_types::Duration::try_from(age).ok(),
        lease: prost_types::Duration::try_from(lease).ok(),
        sequence: position,
        ..proto::Decision::default()
    };
    Ok(proto::ResolveResponse { placement: Some(placement), decision: Some(decision) })
}

fn batch(
    state: &mut super::State,
    endpoint: usize,
    request: &proto::BatchResolveRequest,
) -> Result<proto::BatchResolveResponse, Failure> {
    use proto::batch_resolve_result::Outcome;
    let mut answer = proto::BatchResolveResponse { sequence: u64::MAX, ..Default::default() };
    for key in &request.partition_keys {
        let one = proto::ResolveRequest {
            partition_key: key.clone(),
            mode: request.mode,
            constraints: request.constraints.clone(),
            fallback: request.fallback,
            ..proto::ResolveRequest::default()
        };
        let result = match resolve(state, endpoint, &one) {
            Ok(proto::ResolveResponse { placement: Some(placement), decision: Some(decision) }) => {
                answer.sequence = answer.sequence.min(decision.sequence);
                answer.age = pick(answer.age, decision.age, |one, other| one > other);
                answer.lease = pick(answer.lease, decision.lease, |one, other| one < other);
                let address = proto::CellAddress {
                    endpoint: placement.endpoint.clone(),
                    region: placement.region.clone(),
                    tables: None,
                };
                answer.cells.insert(placement.cell_id.clone(), address);
                let decision = proto::Decision { age: None, lease: None, sequence: 0, ..decision };
                proto::BatchResolveResult {
                    outcome: Some(Outcome::Placement(placement)),
                    decision: Some(decision),
                }
            }
            Ok(_) => return Err(Failure::passing("no placement")),
            Err(failure) => {
                let code = if failure.kind == FailureKind::NotFound { 5 } else { 14 };
                let error = proto::KeyError {
                    code,
                    reason: failure.reason,
                    message: failure.message,
                    retry_delay: None,
                };
                proto::BatchResolveResult { outcome: Some(Outcome::Error(error)), decision: None }
            }
        };
        answer.results.push(result);
    }
    Ok(answer)
}

/// The one of two durations that `better` says; the only one where one is missing.
fn pick(
    one: Option<prost_types::Duration>,
    other: Option<prost_types::Duration>,
    better: impl Fn((i64, i32), (i64, i32)) -> bool,
) -> Option<prost_types::Duration> {
    match (one, other) {
        (Some(one), Some(other))
            if better((one.seconds, one.nanos), (other.seconds, other.nanos)) =>
        {
            Some(one)
        }
        (one, other) => other.or(one),
    }
}
