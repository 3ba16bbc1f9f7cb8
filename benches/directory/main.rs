//! Measures the directory against bare baselines, in one run, and prints both and the ratio.
//!
//! ```text
//! cargo bench --bench directory -- resolve     gRPC hits against a bare tonic echo of the same messages
//! cargo bench --bench directory -- peers       the same against etcd and Redis, where they are installed
//! cargo bench --bench directory -- assign      new keys against single conditional puts, on each engine
//! cargo bench --bench directory -- cold-start  a start from a snapshot, the table out of reach: time to the first answer
//! cargo bench --bench directory -- overload    ten times the calls that can be served, for 60 seconds, and what is still served
//! cargo bench --bench directory -- propagation a change at one replica until it is told to those who watch the other
//! ```
//!
//! Options: `--rounds N` (default 5 pairs), `--seconds N` a measurement (default 2, 60 for `overload`), `--placements N` (default 1,000,000),
//! `--engine embedded|dynamodb-local|both` for `assign`, `--connections N` (default 8) for `overload`. Baseline and directory take turns, and the ratio is the median of the pairs', so
//! that a machine whose speed drifts does not decide it.

mod assign;
mod cold_start;
mod collector;
#[path = "../../tests/support/dynamodb_local.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod dynamodb_local;
mod echo;
mod lean;
mod load;
mod overload;
mod peers;
mod propagation;
mod resolve;
mod service;

use std::time::Duration;

/// As in `celld`; the baseline has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: usize,
    pub duration: Duration,
    pub placements: usize,
    pub engines: Vec<assign::Engine>,
    /// Of `overload`.
    pub connections: usize,
    pub max_queue_delay: Option<Duration>,
    pub max_concurrent_streams: Option<u32>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name: &str, default: usize| {
        option(name).map_or(default, |text| {
            text.parse().unwrap_or_else(|_| panic!("{name} takes a number, not {text:?}"))
        })
    };
    let which = arguments.first().map(String::as_str);
    let seconds = if which == Some("overload") { 60 } else { 2 };
    let options = Options {
        rounds: number("--rounds", 5),
        duration: Duration::from_secs(number("--seconds", seconds) as u64),
        placements: number("--placements", 1_000_000),
        connections: number("--connections", 8),
        max_concurrent_streams: option("--max-concurrent-streams")
            .map(|_| number("--max-concurrent-streams", 0) as u32),
        max_queue_delay: option("--max-queue-delay-us")
            .map(|_| Duration::from_micros(number("--max-queue-delay-us", 0) as u64)),
        engines: match option("--engine").as_deref() {
            Some("embedded") => vec![assign::Engine::Embedded],
            Some("dynamodb-local") => vec![assign::Engine::DynamoDbLocal],
            Some("both") | None => vec![assign::Engine::Embedded, assign::Engine::DynamoDbLocal],
            Some(other) => panic!("--engine takes embedded, dynamodb-local or both, not {other:?}"),
        },
    };
    match which {
        Some("resolve") => resolve::run(&options),
        Some("peers") => peers::run(&options),
        Some("assign") => assign::run(&options),
        Some("overload") => overload::run(&options),
        Some("cold-start") => cold_start::run(&options),
        Some("propagation") => propagation::run(),
        _ => {
            eprintln!(
                "usage: cargo bench --bench directory -- resolve|peers|assign|overload|cold-start|propagation [options]"
            );
            std::process::exit(2);
        }
    }
}

/// The middle of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
