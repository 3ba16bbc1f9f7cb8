//! DynamoDB stops answering for a minute: first it hangs, then it fails, then nobody listens. In each memory mode one replica goes on, and one
//! is ended in the middle of it and started again on its data. All of them are called all the while.
//!
//! What is known is answered, every call of it and with its true age; the 99th percentile of its latency is at most twice the normal one; and
//! DynamoDB is called no more than before: during the outage but for what the retry budget allows, and afterwards at most 1.2 times.
//!
//! Normal is what the same callers saw before, or what those of another replica see meanwhile whose DynamoDB goes on: on a machine that
//! others use, a minute is not like the next.

use std::time::{Duration, Instant};

use crate::alone;
use crate::figures::{Sample, between, milliseconds, p99};
use crate::load::{Dark, Load, Orders, known};
use crate::misses::Misses;
use crate::proxy::{Fault, Rule};
use crate::world::{MODES, Replica, World};

const TENANTS: usize = 1000;

/// Calls a second to a replica. The build under test is not optimized, and shares its processors with all the others.
const RATE: u32 = 80;

const LENGTH: Duration = Duration::from_secs(60);

/// How long good times are looked at, and what comes before them left out.
const NORMAL: Duration = Duration::from_secs(20);
const WARMING: Duration = Duration::from_secs(5);

/// After the outage: the retries and reloads that there may be would come in the first of these.
const RECOVERY: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(10)];

/// Slower than usual by this much at most.
const SLOWER: f64 = 2.0;

/// More calls to DynamoDB than usual by this much at most, once it answers again.
const MORE_CALLS: f64 = 1.2;

/// A run is none in which the replica in the light stood still, too: it would show nothing.
const LEAST_CALLS: f64 = 0.5;
const SLOWEST_NORMAL: f64 = 1000.0;

/// What the retry budget allows by default: a share of all requests, and so many a second however few requests there are.
const RETRY_RATIO: f64 = 0.2;
const RETRY_FLOOR: f64 = 10.0;

/// What the committer adds, whose attempts are no part of that budget: it is at one entry at a time, and pauses longer and longer.
const COMMIT_ATTEMPTS: f64 = 15.0;

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

    fn p99_of(&self, samples: &[Sample]) -> f64 {
        milliseconds(p99(&between(samples, self.0, self.1)))
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

async fn replicas(world: &World, modes: &[&'static str]) -> Vec<Replica> {
    let mut replicas = Vec::new();
    for mode in modes {
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
    async fn start(replica: &Replica, dark: &Dark, misses: bool) -> Self {
        let orders = Orders { tenants: TENANTS, rate: RATE, dark: dark.clone(), unleased: false };
        let load = Load::start(replica.celld(), &orders).await;
        let misses = if misses { Some(Misses::start(replica.celld()).await) } else { None };
        Self { orders, load, misses, samples: Vec::new() }
    }

    /// Ends the replica and starts it on its data. The same callers turn to it as soon as it says that it can answer.
    async fn restart(self, replica: &mut Replica, orderly: bool) -> Self {
        let samples = self.load.end().await;
        replica.end(orderly).await;
        replica.start();
        replica.celld().ready().await;
        let orders = Orders { unleased: true, ..self.orders };
        let load = Load::start(replica.celld(), &orders).await;
        Self { load, samples, orders, ..self }
    }

    async fn end(self) -> Vec<Sample> {
        if let Some(misses) = self.misses {
            misses.end().await;
        }
        [self.samples, self.load.end().await].concat()
    }
}

/// The replicas that go on, one of each mode, those that are restarted, and the one that stays in the light.
const REPLICAS: [&str; 5] = [MODES[0], MODES[1], MODES[0], MODES[1], MODES[0]];
const GOING_ON: usize = MODES.len();
const CONTROL: usize = REPLICAS.len() - 1;

/// What one run shows.
struct Run {
    before: Stretch,
    /// As long as all were dark, and from when the restarted ones were back.
    during: Stretch,
    restarted: Instant,
    /// Calls to DynamoDB, a second and of each replica.
    steady: Vec<f64>,
    outage: Vec<(&'static str, Vec<f64>)>,
    recovery: Vec<Vec<f64>>,
}

async fn run(replicas: &mut [Replica], called: &mut Vec<Called>, dark: &Dark) -> Run {
    pass(WARMING, replicas).await;
    let (before, steady) = pass(NORMAL, replicas).await;
    let third = length() / 3;
    let outage = Outage::begin(&replicas[..CONTROL], dark);
    let (_, hanging) = pass(third / 2, replicas).await;
    for (number, replica) in replicas[..CONTROL].iter_mut().enumerate().skip(GOING_ON) {
        // One of them has no time to save anything.
        let orderly = number > GOING_ON;
        let again = called.remove(GOING_ON).restart(replica, orderly).await;
        called.push(again);
    }
    let restarted = Instant::now();
    let (_, hanging_on) = pass(third / 2, replicas).await;
    outage.fail(&replicas[..CONTROL]);
    let (_, failing) = pass(third, replicas).await;
    outage.refuse(&replicas[..CONTROL]).await;
    pass(third, replicas).await;
    let during = Stretch(outage.since, Instant::now());
    outage.end(&replicas[..CONTROL]).await;
    let mut recovery = Vec::new();
    for length in RECOVERY {
        recovery.push(pass(length, replicas).await.1);
    }
    let outage = vec![("hangs", hanging), ("hangs on", hanging_on), ("fails", failing)];
    Run { before, during, restarted, steady, outage, recovery }
}

impl Run {
    /// Calls to DynamoDB by one replica.
    fn check_calls(&self, number: usize) {
        let steady = self.steady[number];
        for (what, calls) in &self.outage {
            let calls = calls[number];
            println!("   DynamoDB {what}: {calls:.1} calls a second to it, {steady:.1} before");
            let most = steady * (1.0 + RETRY_RATIO) + RETRY_FLOOR + COMMIT_ATTEMPTS;
            assert!(calls <= most, "{calls:.1} calls a second, at most {most:.1} are allowed");
        }
        for calls in self.recovery.iter().map(|calls| calls[number]) {
            println!("   afterwards: {calls:.1} calls a second, {:.2} times", calls / steady);
        }
        for calls in &self.recovery {
            // Who calls and who polls can be late on a busy machine, and then catch up.
            let others = calls[CONTROL] / self.steady[CONTROL];
            assert!(others >= LEAST_CALLS, "the machine is too busy for this test");
            let most = steady * others.max(1.0) * MORE_CALLS;
            assert!(
                calls[number] <= most,
                "{:.1} calls a second, {most:.1} at most",
                calls[number]
            );
        }
    }

    /// The latency of what is known at one replica, against its own before and that of the control.
    fn check_latency(&self, number: usize, samples: &[Sample], control: &[Sample]) {
        let since = if number < GOING_ON { self.during.0 } else { self.restarted };
        let during = Stretch(since, self.during.1);
        let [before, dark] = [self.before, during].map(|it| it.p99_of(samples));
        let light = during.p99_of(control);
        println!(
            "   p99 {before:.1} ms before, {dark:.1} ms in the dark, {light:.1} ms meanwhile in the light"
        );
        let normal = before.max(light);
        assert!(normal <= SLOWEST_NORMAL, "the machine is too busy for this test");
        assert!(dark <= normal * SLOWER, "p99 is {dark:.1} ms, and {normal:.1} ms normally");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_outlasts_dynamodb() {
    let _alone = alone().await;
    let world = World::with("outage", TENANTS).await;
    let mut replicas = replicas(&world, &REPLICAS).await;
    let (dark, light) = (Dark::default(), Dark::default());
    let control = Called::start(&replicas[CONTROL], &light, true).await;
    let mut called = Vec::new();
    for (number, replica) in replicas[..CONTROL].iter().enumerate() {
        called.push(Called::start(replica, &dark, number < GOING_ON).await);
    }
    let run = run(&mut replicas, &mut called, &dark).await;
    let mut timed = Vec::new();
    for called in called {
        timed.push(called.end().await);
    }
    let control = control.end().await;
    for (number, samples) in timed.iter().enumerate() {
        let what = if number < GOING_ON { "goes on" } else { "is restarted" };
        println!("memory {}, {what}: {} calls, all answered", REPLICAS[number], samples.len());
        run.check_calls(number);
        run.check_latency(number, samples, &control);
    }
}
