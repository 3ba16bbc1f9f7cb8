//! What goes wrong, and when: three lanes side by side, each one fault after the other, each fault on one replica for a while.
//!
//! A lane goes through its faults like through a shuffled deck of cards, so that none is left out for long. Faults of one lane exclude
//! each other: a process that is stopped is not killed, and a proxy is not revived twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, REPLICAS, WRITE};
use crate::proxy::{Fault, Rule};
use crate::record::Recorder;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evil {
    /// `kill -9`, and another process in its place.
    Kill,
    /// SIGSTOP, and SIGCONT.
    Pause,
    /// No connection to the tables.
    Cut,
    /// Everything at the tables takes longer.
    Slow,
    /// The tables take requests and never answer.
    Hang,
    /// Replies to writes are lost.
    LoseReplies,
    /// Replies to writes never come.
    HoldReplies,
    /// Requests are lost.
    LoseRequests,
    /// Writes arrive when everybody has given up.
    Late,
    /// The tables answer errors.
    Fail,
    Throttle,
}

/// The lanes: what is done to processes, to all traffic, and to single requests.
const LANES: [&[Evil]; 3] = [
    &[Evil::Kill, Evil::Pause],
    &[Evil::Cut, Evil::Slow, Evil::Hang],
    &[
        Evil::LoseReplies,
        Evil::HoldReplies,
        Evil::LoseRequests,
        Evil::Late,
        Evil::Fail,
        Evil::Throttle,
    ],
];

pub fn kinds() -> impl Iterator<Item = Evil> {
    LANES.iter().flat_map(|lane| lane.iter().copied())
}

/// How long a lane rests between two faults.
const REST: [std::ops::Range<u64>; 3] = [300..900, 200..800, 50..400];

pub struct Nemesis {
    cluster: Arc<Cluster>,
    recorder: Arc<Recorder>,
    /// How often each was done.
    done: Mutex<BTreeMap<Evil, usize>>,
}

impl Nemesis {
    pub fn new(cluster: &Arc<Cluster>, recorder: &Arc<Recorder>) -> Arc<Self> {
        let (cluster, recorder) = (Arc::clone(cluster), Arc::clone(recorder));
        Arc::new(Self { cluster, recorder, done: Mutex::default() })
    }

    pub fn done(&self) -> BTreeMap<Evil, usize> {
        self.done.lock().clone()
    }

    /// Works until the time is up, and leaves nothing broken behind.
    pub async fn work(self: Arc<Self>, seed: u64, until: Instant) {
        let lanes = (0..LANES.len()).map(|lane| self.lane(lane, seed, until));
        futures::future::join_all(lanes).await;
    }

    async fn lane(&self, lane: usize, seed: u64, until: Instant) {
        let mut random = StdRng::seed_from_u64(seed ^ ((lane as u64 + 1) << 48));
        let mut deck = Vec::new();
        loop {
            sleep(Duration::from_millis(random.random_range(REST[lane].clone()))).await;
            if Instant::now() >= until {
                return;
            }
            if deck.is_empty() {
                deck.extend(LANES[lane]);
                deck.shuffle(&mut random);
            }
            let evil = deck.pop().expect("filled");
            let at = random.random_range(0..REPLICAS);
            let from = self.recorder.now();
            self.inflict(evil, at, &mut random).await;
            self.recorder.fault(format!("{evil:?} {at}"), from);
            *self.done.lock().entry(evil).or_default() += 1;
        }
    }

    /// One fault from beginning to end.
    async fn inflict(&self, evil: Evil, at: usize, random: &mut StdRng) {
        let mut lasting =
            |millis: std::ops::Range<u64>| Duration::from_millis(random.random_range(millis));
        let proxy = self.cluster.proxy(at);
        let (rule, time) = match evil {
            Evil::Kill => {
                self.cluster.kill(at);
                sleep(lasting(20..400)).await;
                return self.cluster.start(at).await;
            }
            Evil::Pause => {
                self.cluster.signal(at, "STOP");
                sleep(lasting(150..1500)).await;
                return self.cluster.signal(at, "CONT");
            }
            Evil::Cut => {
                proxy.die().await;
                sleep(lasting(150..1000)).await;
                return proxy.revive().await;
            }
            Evil::Late => {
                let gate = CancellationToken::new();
                let times = random.random_range(1..4);
                let late = proxy.lay(Rule::on(WRITE, Fault::Late(gate.clone())).times(times));
                sleep(Duration::from_millis(random.random_range(200..1500))).await;
                late.lift();
                return gate.cancel();
            }
            Evil::Slow => (Rule::all(Fault::Slow(lasting(10..120))), lasting(200..1000)),
            Evil::Hang => (Rule::all(Fault::Hang), lasting(150..900)),
            Evil::LoseReplies => (Rule::on(WRITE, Fault::LoseReply).every(2), lasting(200..800)),
            Evil::HoldReplies => (Rule::on(WRITE, Fault::HangReply).every(2), lasting(200..800)),
            Evil::LoseRequests => (Rule::all(Fault::LoseRequest).every(3), lasting(200..800)),
            Evil::Fail => (Rule::all(Fault::INTERNAL).every(2), lasting(200..800)),
            Evil::Throttle => (Rule::all(Fault::THROUGHPUT).every(2), lasting(200..800)),
        };
        let laid = proxy.lay(rule);
        sleep(time).await;
        laid.lift();
    }
}
