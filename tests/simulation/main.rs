//! A deterministic simulation of replicas, clients and the journal over the store in memory, in virtual time.
//!
//! A seed decides everything: what is late, what is lost, who is cut off, who dies, and how fast each clock runs. In every run
//! - epochs never fall, for no client and at no replica;
//! - a lease never outlives the truth: nobody may write directly under a placement that was changed and waited out;
//! - answers and replicas are no older than they say;
//! - a watch is gapless and in order, and what it tells adds up to the journal;
//! - once all is healed, everybody comes to know what is true.
//!
//! `CELLD_SIMULATION_SEEDS` runs that many seeds instead of 500, `CELLD_SIMULATION_SEED` only the given one. The trace of a seed
//! that fails is written to the temporary directory of the build.

mod network;
mod replicas;
mod truth;
mod wire;
mod workload;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use world::{CLIENTS, Counts, REPLICAS, World};

const SEEDS: u64 = 500;
const THREADS: usize = 2;

/// For how long things are done and break, and how long everybody then has to come to terms. Virtual time.
const UNREST: Duration = Duration::from_secs(20);
const PEACE: Duration = Duration::from_secs(8);

/// What a run did, and whether all held.
struct Run {
    verdict: Result<(), String>,
    trace: String,
    counts: Counts,
}

fn run(seed: u64) -> Run {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let world = World::new(seed);
        workload::prepare(&world).await;
        for replica in 0..REPLICAS {
            tokio::spawn(replicas::keep(Arc::clone(&world), replica));
            tokio::spawn(replicas::watch(Arc::clone(&world)));
        }
        for client in 0..CLIENTS {
            tokio::spawn(workload::client(Arc::clone(&world), client));
        }
        tokio::spawn(workload::operate(Arc::clone(&world)));
        tokio::spawn(workload::break_things(Arc::clone(&world)));
        tokio::time::sleep(UNREST).await;
        world.heal();
        tokio::time::sleep(PEACE).await;
        replicas::converged(&world).await;
        let counts = *world.counts.lock();
        world.log(format_args!("{counts:?}"));
        let lively = counts.answers > 2_000
            && counts.direct > 500
            && counts.fetched > 5
            && counts.changes > 15
            && counts.moves > 0
            && counts.watched > 50;
        let verdict = world.verdict().and(match lively {
            true => Ok(()),
            false => Err(format!("not enough happened: {counts:?}")),
        });
        Run { verdict, trace: world.trace(), counts }
    })
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn report(seed: u64, run: &Run, problem: &str) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simulation-{seed}.trace"));
    std::fs::write(&file, &run.trace).unwrap();
    let file = file.display();
    format!("seed {seed}: {problem}\nits trace: {file}\nagain: CELLD_SIMULATION_SEED={seed}")
}

#[test]
fn whatever_breaks_the_invariants_hold() {
    let (first, last) = match setting("CELLD_SIMULATION_SEED") {
        Some(seed) => (seed, seed),
        None => (1, setting("CELLD_SIMULATION_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let failed = Mutex::new(Vec::new());
    let total = Mutex::new(Counts::default());
    let work = || {
        while failed.lock().is_empty() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last {
                return;
            }
            let run = run(seed);
            total.lock().add(&run.counts);
            if let Err(problem) = &run.verdict {
                failed.lock().push(report(seed, &run, problem));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
    });
    println!("seeds {first} to {last}: {:?}", total.lock());
    let failed = failed.into_inner();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// Without this, a seed would say nothing.
#[test]
fn the_same_seed_makes_the_same_trace() {
    for seed in 1..=6 {
        let (first, second) = (run(seed).trace, run(seed).trace);
        if first != second {
            let differs = first.lines().zip(second.lines()).enumerate().find(|(_, (a, b))| a != b);
            panic!("seed {seed}: the traces part at line {differs:?}");
        }
        assert!(first.lines().count() > 1_000, "the trace tells of everything");
    }
    assert_ne!(run(1).trace, run(2).trace);
}
