//! A client: one operation after the other, each on some key of the working set and some replica, each recorded.
//!
//! What an error allows to conclude is decided in [`hear`], and nowhere else:
//!
//! | error | means |
//! | --- | --- |
//! | a refusal that says what is (`PLACEMENT_EXISTS`, …) | an outcome, which the model checks |
//! | `UNAVAILABLE` and others of ours that promise that nothing was changed | no effect: the history does not hold the operation, and is wrong if it had one |
//! | no connection could be made | no effect |
//! | everything else, such as a broken connection | may take effect at any later time, or never |

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::cluster::{CELLS, Cluster, REPLICAS};
use crate::keys::Keys;
use crate::record::{End, Kind, Op, Outcome, Recorder};

/// How often an operation with a request id is tried.
const ATTEMPTS: usize = 4;

/// Longest pause between two operations.
const THINK: Duration = Duration::from_millis(12);

/// How much longer than the deadline that it sends a client waits.
const GRACE: Duration = Duration::from_millis(200);

/// One answer.
pub enum Heard {
    Placed(Box<(v1::Placement, Option<v1::Decision>)>),
    /// `age`: how long ago what it says was known, in nanoseconds.
    Refused {
        age: u64,
        outcome: Outcome,
        cell: String,
        epoch: u64,
    },
    /// With the words of the promise.
    Nothing(String),
    NotSent(String),
    Unknown,
    Unexpected(String),
}

type Connection = (String, CellDirectoryClient<Channel>);

pub struct Client {
    id: usize,
    random: StdRng,
    cluster: Arc<Cluster>,
    keys: Arc<Keys>,
    recorder: Arc<Recorder>,
    connections: [Option<Connection>; REPLICAS],
    /// Whom it asks as long as that goes well.
    home: usize,
}

impl Client {
    pub fn new(
        id: usize,
        seed: u64,
        cluster: &Arc<Cluster>,
        keys: &Arc<Keys>,
        recorder: &Arc<Recorder>,
    ) -> Self {
        Self {
            id,
            random: StdRng::seed_from_u64(seed ^ ((id as u64 + 1) << 32)),
            cluster: Arc::clone(cluster),
            keys: Arc::clone(keys),
            recorder: Arc::clone(recorder),
            connections: Default::default(),
            home: id % REPLICAS,
        }
    }

    /// Works until the time is up.
    pub async fn work(mut self, until: tokio::time::Instant) {
        while tokio::time::Instant::now() < until {
            let key = self.keys.some(&mut self.random);
            let kind = match self.random.random_range(0..100) {
                0..25 => Kind::Resolve,
                25..45 => Kind::Lookup,
                45..58 => Kind::Get,
                58..78 => Kind::Pin,
                _ => Kind::Delete,
            };
            let op = self.question(&key, kind);
            let attempts = if op.repeatable { ATTEMPTS } else { 1 };
            self.perform(op, attempts).await;
            tokio::time::sleep(self.random.random_range(Duration::ZERO..THINK)).await;
        }
    }

    /// Reads keys at the end, when nothing goes wrong any more: consistently, and from memory.
    pub async fn review(mut self, keys: &[String]) {
        for (at, key) in keys.iter().enumerate() {
            self.home = at % REPLICAS;
            for kind in [Kind::Get, Kind::Lookup] {
                let call = self.recorder.now();
                self.perform(Op::new(self.id, key, kind, call), 1).await;
            }
        }
    }

    /// An operation with all that it asks.
    fn question(&mut self, key: &str, kind: Kind) -> Op {
        let mut op = Op::new(self.id, key, kind, 0);
        let known = self.keys.known(key);
        let chance: u32 = self.random.random_range(0..100);
        match kind {
            // An epoch that somebody was told of: whoever answers must be at least as far.
            Kind::Resolve | Kind::Lookup if chance < 50 => op.epoch = known,
            Kind::Pin => {
                op.cell = CELLS[self.random.random_range(0..CELLS.len())].to_owned();
                op.repeatable = chance < 25;
            }
            Kind::Delete => {
                op.epoch = if chance.is_multiple_of(2) { known } else { 0 };
                op.repeatable = chance < 25;
            }
            _ => {}
        }
        op
    }

    /// Asks, on one replica after the other where that makes sense, and records what is heard.
    ///
    /// Attempts with one request id have one effect together. A refusal of a later attempt says what is, but not what becomes of an
    /// earlier one that is still on its way.
    async fn perform(&mut self, op: Op, attempts: usize) {
        let first = self.recorder.now();
        let request_id = match op.repeatable {
            true => format!("{:032x}", self.random.random::<u128>()),
            false => String::new(),
        };
        let deadline = self.patience();
        let mut open = false;
        let mut end = End::NotSent;
        let mut replica = String::new();
        for _ in 0..attempts {
            let call = self.recorder.now();
            let heard = self.ask(&op, &request_id, deadline, &mut replica).await;
            let back = Some(self.recorder.now());
            let asked = Op { replica: replica.clone(), call, back, ..op.clone() };
            match heard {
                Heard::Placed(answer) => {
                    let (placement, decision) = *answer;
                    let call = if open { first } else { call };
                    self.placed(Op { call, ..asked }, placement, decision);
                    return;
                }
                Heard::Refused { age, outcome, cell, epoch } => {
                    self.keys.learn(&op.key, epoch);
                    let got = Op { age, outcome, got_cell: cell, got_epoch: epoch, ..asked };
                    self.recorder.op(got);
                    end = if open { End::Unknown } else { End::Known };
                    break;
                }
                Heard::Unexpected(what) => {
                    self.recorder.unexpected(format!("{what} to {asked:?}"));
                    open = true;
                }
                Heard::Unknown => open = true,
                Heard::Nothing(why) => {
                    self.recorder.nothing(asked, why);
                    end = End::Nothing;
                }
                Heard::NotSent(why) => self.recorder.nothing(asked, why),
            }
            self.home = self.random.random_range(0..REPLICAS);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if open {
            end = End::Unknown;
        }
        if open && op.op.writes() {
            self.recorder.op(Op { replica, call: first, ..op.clone() });
        }
        self.recorder.end(op.op, end);
    }

    fn placed(&self, asked: Op, placement: v1::Placement, decision: Option<v1::Decision>) {
        self.keys.learn(&asked.key, placement.epoch);
        let mut op = Op {
            outcome: Outcome::Ok,
            got_cell: placement.cell_id,
            got_epoch: placement.epoch,
            ..asked
        };
        let mut end = End::Known;
        if let Some(decision) = decision {
            let age = decision.age.and_then(|age| Duration::try_from(age).ok());
            op.age = age.map_or(0, |age| age.as_nanos().try_into().unwrap_or(u64::MAX));
            op.source = match decision.source() {
                v1::DecisionSource::Memory => "memory",
                v1::DecisionSource::Table => "table",
                v1::DecisionSource::Assigned => "assigned",
                _ => "unexpected",
            };
            if op.source == "memory" {
                end = End::Remembered;
            }
            if !decision.authoritative || age.is_none() || op.source == "unexpected" {
                self.recorder.unexpected(format!("{decision:?} to {op:?}"));
            }
        }
        if placement.partition_key != op.key {
            self.recorder.unexpected(format!("{:?} to {op:?}", placement.partition_key));
        }
        self.recorder.end(op.op, end);
        self.recorder.op(op);
    }

    /// How long to wait for an answer: mostly for as long as the service may take, sometimes hardly at all.
    fn patience(&mut self) -> Duration {
        let millis = match self.random.random_range(0..100) {
            0..6 => self.random.random_range(3..40),
            6..25 => self.random.random_range(60..300),
            _ => 1200,
        };
        Duration::from_millis(millis)
    }

    async fn ask(
        &mut self,
        op: &Op,
        request_id: &str,
        deadline: Duration,
        replica: &mut String,
    ) -> Heard {
        let at = match self.random.random_range(0..100) {
            0..70 => self.home,
            _ => self.random.random_range(0..REPLICAS),
        };
        let Some((name, address)) = self.cluster.at(at) else {
            return Heard::NotSent("no such process".to_owned());
        };
        replica.clone_from(&name);
        let known = self.connections[at].as_ref().filter(|(process, _)| *process == name);
        let mut directory = match known {
            Some((_, directory)) => directory.clone(),
            None => {
                let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
                let directory = CellDirectoryClient::new(endpoint.connect_lazy());
                self.connections[at] = Some((name, directory.clone()));
                directory
            }
        };
        let call = call(&mut directory, op, request_id, deadline);
        match tokio::time::timeout(deadline + GRACE, call).await {
            Ok(Ok(answer)) => Heard::Placed(Box::new(answer)),
            Ok(Err(status)) => hear(&status),
            Err(_elapsed) => Heard::Unknown,
        }
    }
}

type Answer = Result<(v1::Placement, Option<v1::Decision>), Status>;

async fn call(
    directory: &mut CellDirectoryClient<Channel>,
    op: &Op,
    request_id: &str,
    deadline: Duration,
) -> Answer {
    let (partition_key, epoch) = (op.key.clone(), op.epoch);
    let request_id = request_id.to_owned();
    let resolve = |mode: v1::ResolveMode| v1::ResolveRequest {
        partition_key: op.key.clone(),
        mode: mode.into(),
        min_epoch: epoch,
        fallback: v1::FallbackPolicy::Refuse.into(),
        ..Default::default()
    };
    let (placement, decision) = match op.op {
        Kind::Resolve | Kind::Lookup => {
            let mode = match op.op {
                Kind::Resolve => v1::ResolveMode::AssignIfMissing,
                _ => v1::ResolveMode::LookupOnly,
            };
            let answer = directory.resolve(within(deadline, resolve(mode))).await?.into_inner();
            (answer.placement, answer.decision)
        }
        Kind::Get | Kind::Final => {
            let request = v1::GetPlacementRequest { partition_key };
            let answer = directory.get_placement(within(deadline, request)).await?;
            (answer.into_inner().placement, None)
        }
        Kind::Pin => {
            let cell_id = op.cell.clone();
            let request = v1::PinPlacementRequest {
                partition_key,
                cell_id,
                request_id,
                ..Default::default()
            };
            let answer = directory.pin_placement(within(deadline, request)).await?;
            (answer.into_inner().placement, None)
        }
        Kind::Delete => {
            let request = v1::DeletePlacementRequest {
                partition_key,
                epoch,
                request_id,
                ..Default::default()
            };
            let answer = directory.delete_placement(within(deadline, request)).await?;
            (answer.into_inner().placement, None)
        }
    };
    Ok((placement.expect("an answer holds a placement"), decision))
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// What an error means.
fn hear(status: &Status) -> Heard {
    let unexpected = || Heard::Unexpected(format!("{status:?}"));
    let Some(info) = status.get_details_error_info() else {
        return match status.code() {
            // The transport's own words.
            Code::Unavailable | Code::Unknown if never_connected(status) => {
                Heard::NotSent(format!("{status:?}"))
            }
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal => Heard::Unknown,
            _ => unexpected(),
        };
    };
    let told = |name: &str| info.metadata.get(name).cloned().unwrap_or_default();
    let refused = |outcome| Heard::Refused {
        age: 0,
        outcome,
        cell: told("cell_id"),
        epoch: told("epoch").parse().unwrap_or(0),
    };
    match (info.reason.as_str(), status.code()) {
        ("PLACEMENT_NOT_FOUND", Code::NotFound) => Heard::Refused {
            // Where memory says so.
            age: told("age_ms").parse().map_or(0, |age: u64| age * 1_000_000),
            outcome: Outcome::NotFound,
            cell: String::new(),
            epoch: 0,
        },
        ("PLACEMENT_EXISTS", Code::AlreadyExists) => refused(Outcome::Exists),
        ("EPOCH_MISMATCH", Code::Aborted) => refused(Outcome::EpochMismatch),
        ("EPOCH_NOT_REACHED", Code::FailedPrecondition) => refused(Outcome::EpochNotReached),
        ("CONTENDED", Code::Aborted) | ("TOO_MANY_CHANGES", Code::ResourceExhausted) => {
            Heard::Nothing(info.reason)
        }
        // Whatever the reason: the code promises it.
        (_, Code::Unavailable) => Heard::Nothing(format!("{}: {}", info.reason, status.message())),
        ("OUTCOME_UNKNOWN" | "DEADLINE_EXCEEDED", Code::DeadlineExceeded)
        | ("CANCELLED", Code::Cancelled) => Heard::Unknown,
        _ => unexpected(),
    }
}

/// Whether there was nobody to send the request to.
fn never_connected(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}
