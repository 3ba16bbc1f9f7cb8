//! Placements are linearizable: whatever is killed, stopped, cut off and lost, all answers fit one order of events.
//!
//! Three `celld serve` run on one set of tables, each behind a fault proxy of its own. 16 clients work on a small set of keys, and
//! a nemesis kills, stops, cuts and delays ([`nemesis`]). What each client asked and heard, and when, is the history ([`record`]). A
//! checker in Go (`checker/`) says whether there is an order of all operations that explains it, by Porcupine. A write without an
//! outcome may take effect at any later time, or never; "nothing was changed" is taken at its word, and an answer is as old as it says.
//!
//! A history in which too little happened is invalid: it proves nothing and does not count ([`verdict`]). And a checker that never rejects anything
//! proves nothing: it has to reject histories made by hand ([`checker_tests`]) and builds of the service that are wrong on purpose
//! (`src/mutants.rs`).
//!
//! `scripts/test` runs 20 histories. For more, longer ones, or one again (it asks and breaks the same, but time is never the same):
//!
//! ```text
//! scripts/install-test-tools
//! CELLD_LINEARIZABILITY_HISTORIES=200 CELLD_LINEARIZABILITY_SECONDS=20 CELLD_LINEARIZABILITY_SEED=7 \
//!   cargo test --test linearizability histories -- --nocapture
//! ```
//!
//! History `n` of a run has the seed `SEED + n`. A history that fails is kept, with the processes' logs and pictures of the keys that
//! went wrong; the failure says where.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
mod checker_tests;
mod client;
mod cluster;
#[path = "../support/dynamodb_local.rs"]
mod dynamodb_local;
mod keys;
mod mutants;
mod nemesis;
#[path = "../support/proxy.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod proxy;
mod record;
mod tables;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use client::Client;
use cluster::{Build, Cluster, REPLICAS};
use dynamodb_local::DynamoDbLocal;
use keys::Keys;
use nemesis::{Evil, Nemesis};
use record::{Recorder, Totals};
use verdict::Report;

const CLIENTS: usize = 16;

/// Histories of one run, and how long each is, unless the environment says otherwise.
const HISTORIES: u64 = 20;
const SECONDS: u64 = 7;

/// An invalid history counts for nothing: another takes its place. One in so many may be invalid, for a machine has other things to do,
/// too; with more, the run is.
const MOST_INVALID: u64 = 4;

/// How often a key gives way to a new one.
const TURN: Duration = Duration::from_millis(200);

/// Longest time from the end of all faults until all replicas answer again.
const RECOVERY: Duration = Duration::from_secs(20);

/// Histories take all of the machine; two at a time would make each other slow.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A history and what is known of it.
pub struct Ran {
    pub seed: u64,
    pub totals: Totals,
    pub evils: BTreeMap<Evil, usize>,
    pub report: Report,
    /// Where it is kept.
    pub folder: PathBuf,
}

impl Ran {
    pub fn describe(&self) -> String {
        let Report { operations, keys, slowest_key_ms, .. } = &self.report;
        format!(
            "seed {}: {:.0} operations/s, {:.1} % of the writes ambiguous; {operations} operations on {keys} keys, slowest key {slowest_key_ms} ms; {:?}",
            self.seed,
            self.totals.rate(),
            self.totals.ambiguous() * 100.0,
            self.evils,
        )
    }

    /// All that is wrong with it, for people.
    pub fn wrongs(&self) -> Vec<String> {
        let problems = self.report.problems().iter().map(|problem| {
            let verdict::Problem { check, key, detail, picture } = problem;
            format!("{check}: {key}: {detail} {picture}")
        });
        let unexpected = self.totals.unexpected.iter().map(|what| format!("unexpected: {what}"));
        unexpected.chain(problems).take(20).collect()
    }
}

/// Makes a history and has it checked.
pub async fn run(build: Build, seed: u64, seconds: u64) -> Ran {
    let name = match &build {
        Build::Celld => format!("{seed}"),
        Build::Mutant { name, .. } => format!("{name}-{seed}"),
    };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("linearizability").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let cluster = Cluster::new(build, &folder).await;
    cluster.ready().await;
    let (keys, recorder) = (Arc::new(Keys::new()), Arc::new(Recorder::new()));
    cluster.lose_some_replies();
    for at in 0..REPLICAS {
        // DynamoDB knows a repeated transaction by its token, for ten minutes. In every second history that time is over at once.
        cluster.proxy(at).forget_tokens(seed.is_multiple_of(2));
    }

    let time = Duration::from_secs(seconds);
    let until = tokio::time::Instant::now() + time;
    let nemesis = Nemesis::new(&cluster, &recorder);
    let turning = async {
        let mut random = StdRng::seed_from_u64(seed);
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(TURN).await;
            keys.turn(&mut random);
        }
    };
    let client = |id| Client::new(id, seed, &cluster, &keys, &recorder);
    let clients: Vec<_> = (0..CLIENTS).map(|id| tokio::spawn(client(id).work(until))).collect();
    let (worked, ..) = tokio::join!(
        futures::future::join_all(clients),
        Arc::clone(&nemesis).work(seed, until),
        turning
    );
    worked.into_iter().for_each(|worked| worked.unwrap());
    let totals = recorder.totals(time);

    // Everything is well again: all say what is, and then nobody writes any more.
    for at in 0..REPLICAS {
        cluster.proxy(at).clear();
    }
    tokio::time::timeout(RECOVERY, cluster.ready()).await.expect("all replicas get well");
    let all = keys.all();
    client(CLIENTS).review(&all).await;
    for at in 0..REPLICAS {
        cluster.kill(at);
    }
    // What a process had handed to its proxy is done, or will not be.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let backend = DynamoDbLocal::shared().endpoint();
    tables::read(&backend, &cluster.prefix, &all, &recorder).await;

    let path = folder.join("history.ndjson");
    recorder.write(seed, &path);
    let checked = folder.clone();
    let report = tokio::task::spawn_blocking(move || verdict::check(&path, &checked));
    let report = report.await.unwrap();
    Ran { seed, totals, evils: nemesis.done(), report, folder }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(format!("CELLD_LINEARIZABILITY_{name}")).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("CELLD_LINEARIZABILITY_{name} is not a number")))
}

/// The first history's seed.
pub fn first_seed() -> u64 {
    // Short enough to be typed.
    setting("SEED").unwrap_or_else(|| rand::random_range(0..1_000_000_000))
}

pub fn seconds() -> u64 {
    setting("SECONDS").unwrap_or(SECONDS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_are_linearizable() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (first, wanted) = (first_seed(), setting("HISTORIES").unwrap_or(HISTORIES));
    let mut evils: BTreeMap<Evil, usize> = BTreeMap::new();
    let (mut valid, mut invalid, mut failures) = (0, Vec::new(), Vec::new());
    for seed in first.. {
        if valid + failures.len() as u64 == wanted {
            break;
        }
        let ran = run(Build::Celld, seed, seconds()).await;
        println!("{}", ran.describe());
        let wrongs = ran.wrongs();
        if !wrongs.is_empty() {
            println!("FAILED: {wrongs:#?}");
            failures.push(format!("seed {seed}, kept in {}: {wrongs:#?}", ran.folder.display()));
            continue;
        }
        std::fs::remove_dir_all(&ran.folder).unwrap();
        if let Some(why) = verdict::invalid(&ran.totals) {
            println!("INVALID: {why}");
            invalid.push(why);
            assert!(invalid.len() as u64 <= wanted / MOST_INVALID, "INVALID: {invalid:?}");
            continue;
        }
        valid += 1;
        ran.evils.iter().for_each(|(evil, times)| *evils.entry(*evil).or_default() += times);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let missing: Vec<_> = nemesis::kinds().filter(|evil| !evils.contains_key(evil)).collect();
    assert!(missing.is_empty(), "INVALID: the nemesis never did {missing:?}");
}
