//! DynamoDB stops answering for a minute: first it hangs, then it fails, then nobody listens. In each memory mode one replica goes on, and one
//! is ended in the middle of it and started again on its data. All of them are called all the while.
//!
//! What is known is answered, every call of it and with its true age; the 99th percentile of its latency is at most twice that of the
//! same callers in good times; and DynamoDB is called no more than before, during the outage but for what the retry budget allows, and
//! afterwards at most 1.2 times.

use std::time::{Duration, Instant};

use crate::alone;
use crate::figures::{Sample, between, milliseconds, p99};
use crate::load::{Dark, Load, Orders, known};
use crate::misses::Misses;
use crate::proxy::{Fault, Rule};
use crate::world::{MODES, Replica, World};

const TENANTS: usize = 2000;

/// Calls a second to a replica that goes on, and to one that is restarted.
const RATES: [u32; 2] = [160, 80];

const LENGTH: Duration = Duration::from_secs(60);

/// How long good times are looked at, before and after.
const NORMAL: Duration = Duration::from_secs(20);

/// After the outage: the retries and reloads that there may be would come in the first of these.
const RECOVERY: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(10)];

/// Slower than usual by this much at most.
const SLOWER: f64 = 2.0;

/// More calls to DynamoDB than usual by this much at most, once it answers again.
const MORE_CALLS: f64 = 1.2;

/// What the retry budget allows by default: a share of all requests, and so many a second however few requests there are.
const RETRY_RATIO: f64 = 0.2;
const RETRY_FLOOR: f64 = 10.0;

/// Nothing is refused because the machine is busy: that is another test's.
const FLAGS: &[&str] = &["--drain-delay=200ms", "--max-queue-delay=1m"];

fn length() -> Duration {
    match std::env::var("CELLD_TEST_OUTAGE_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse().expect("a number of seconds")),
        Err(_) => LENGTH,
    }
}

/// A stretch of the run.
#[derive(Clone, Copy)]
struct Stretch(Instant, Instant);

impl Stretch {
    fn seconds(&self) -> f64 {
        (self.1 - self.0).as_secs_f64()
    }

    fn p99_of(&self, samples: &[Sample]) -> Duration {
        p99(&between(samples, self.0, self.1))
    }
}

/// Waits, and answers what went by: the stretch, and how many calls DynamoDB got from each replica in it.
async fn pass(length: Duration, replicas: &[Replica]) -> (Stretch, Vec<f64>) {
    let received = || replicas.iter().map(|it| it.proxy.received()).collect::<Vec<_>>();
    let (from, before) = (Instant::now(), received());
    tokio::time::sleep(length).await;
    let stretch = Stretch(from, Instant::now());
    let calls = received().into_iter().zip(before).map(|(after, before)| after - before);
    (stretch, calls.map(|calls| calls as f64 / stretch.seconds()).collect())
}

/// Ways of not answering, one after the other, without a moment between them in which it does.
struct Outage {
    dark: Dark,
    since: Instant,
}

impl Outage {
    fn begin(replicas: &[Replica], dark: &Dark) -> Self {
        lay(replicas, &Fault::Hang);
        // Whatever was asked after this was not answered.
        let since = Instant::now();
        dark.set(Some(since));
        Self { dark: dark.clone(), since }
    }

    fn fail(&self, replicas: &[Replica]) {
        lay(replicas, &Fault::INTERNAL);
    }

    async fn refuse(&self, replicas: &[Replica]) {
        for replica in replicas {
            replica.proxy.die().await;
            replica.proxy.clear();
        }
    }

    async fn end(self, replicas: &[Replica]) {
        self.dark.set(None);
        for replica in replicas {
            replica.proxy.revive().await;
        }
    }
}

/// The last rule counts.
fn lay(replicas: &[Replica], fault: &Fault) {
    for replica in replicas {
        replica.proxy.replace(Rule::all(fault.clone()));
    }
}

/// The replicas that go on come first.
async fn replicas(world: &World) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for mode in [MODES, MODES].concat() {
        let replica = world.replica(mode, FLAGS);
        replica.celld().ready().await;
        known(replica.celld(), world.tenants).await;
        replica.saved().await;
        replicas.push(replica);
    }
    replicas
}

/// A replica under load.
struct Called {
    orders: Orders,
    load: Load,
    misses: Option<Misses>,
    /// What was timed before it was ended and started again.
    samples: Vec<Sample>,
}

impl Called {
    async fn start(replica: &Replica, orders: Orders, misses: bool) -> Self {
        let load = Load::start(replica.celld(), &orders).await;
        let misses = if misses { Some(Misses::start(replica.celld()).await) } else { None };
        Self { orders, load, misses, samples: Vec::new() }
    }

    /// Ends the replica and starts it on its data. The same callers turn to it as soon as it says that it can answer.
    async fn restart(mut self, replica: &mut Replica, orderly: bool) -> Self {
        let samples = self.load.end().await;
        replica.end(orderly).await;
        replica.start();
        replica.celld().ready().await;
        self.orders.unleased = true;
        let load = Load::start(replica.celld(), &self.orders).await;
        Self { load, samples, ..self }
    }

    async fn end(self) -> Vec<Sample> {
        if let Some(misses) = self.misses {
            misses.end().await;
        }
        [self.samples, self.load.end().await].concat()
    }
}

/// What DynamoDB was called by one replica, a second.
fn of(calls: &[f64], replica: usize) -> f64 {
    calls[replica]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_outlasts_dynamodb() {
    let _alone = alone().await;
    let world = World::with("outage", TENANTS).await;
    let mut replicas = replicas(&world).await;
    let dark = Dark::default();
    let mut called = Vec::new();
    for (number, replica) in replicas.iter().enumerate() {
        let (rate, dark) = (RATES[number / MODES.len()], dark.clone());
        let orders = Orders { tenants: TENANTS, rate, dark, unleased: false };
        called.push(Called::start(replica, orders, number < MODES.len()).await);
    }
    pass(WARMING, &replicas).await;
    let (before, steady) = pass(NORMAL, &replicas).await;

    let third = length() / 3;
    let outage = Outage::begin(&replicas, &dark);
    let (_, hanging) = pass(third / 2, &replicas).await;
    // One of them has no time to save anything.
    for (number, orderly) in [(2, false), (3, true)] {
        let restarted = called.remove(2).restart(&mut replicas[number], orderly).await;
        called.push(restarted);
    }
    let restarted = Instant::now();
    let (_, hanging_on) = pass(third / 2, &replicas).await;
    outage.fail(&replicas);
    let (_, failing) = pass(third, &replicas).await;
    outage.refuse(&replicas).await;
    pass(third, &replicas).await;
    let during = [Stretch(outage.since, Instant::now()), Stretch(restarted, Instant::now())];
    outage.end(&replicas).await;
    let mut recovery = Vec::new();
    for length in RECOVERY {
        recovery.push(pass(length, &replicas).await);
    }
    let after = recovery[RECOVERY.len() - 1].0;

    for (number, called) in called.into_iter().enumerate() {
        let name = ["goes on", "restarted"][number / MODES.len()];
        let name = format!("{}, {name}", replicas[number].mode);
        let samples = called.end().await;
        let dark = during[number / MODES.len()];
        for (what, stretch) in [("before", before), ("during", dark), ("after", after)] {
            let part = between(&samples, stretch.0, stretch.1);
            if part.len() < 400 { continue; }
            println!("{name} {what}: {} calls, p99 {:.2} ms", part.len(), milliseconds(p99(&part)));
            let slices: Vec<_> = slices(&samples, stretch)
                .iter()
                .map(|it| format!("{:.1}", milliseconds(*it)))
                .collect();
            println!("   {slices:?}");
        }
        let calls = |calls: &[f64]| of(calls, number);
        println!(
            "   steady {:.1}, hanging {:.1} {:.1}, failing {:.1}",
            calls(&steady),
            calls(&hanging),
            calls(&hanging_on),
            calls(&failing)
        );
        for (_, it) in &recovery {
            println!("   recovery {:.1}", calls(it));
        }
    }
}

fn slices(samples: &[Sample], stretch: Stretch) -> Vec<Duration> {
    let mut all = Vec::new();
    let mut at = stretch.0;
    while at + SLICE <= stretch.1 {
        all.push(p99(&between(samples, at, at + SLICE)));
        at += SLICE;
    }
    all
}
const SLICE: Duration = Duration::from_secs(10);
const WARMING: Duration = Duration::from_secs(5);
