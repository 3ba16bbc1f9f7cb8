//! How long a change takes from one replica to those who watch the other.

use std::time::Duration;

use cell_directory::config::Config;
use cell_directory::directory::{Directory, Mutation, Piece, Placing, WatchOptions};
use cell_directory::domain::{CellId, Change, PartitionKey};
use cell_directory::store::memory::MemoryStore;
use cell_directory::telemetry::Telemetry;
use tokio::time::Instant;

use crate::service;

const CHANGES: usize = 300;

/// Time between polls: shorter than the default, so that a run takes half a minute.
const POLL: Duration = Duration::from_millis(100);

/// Allowed on top of two polls, at the 99th percentile.
const ALLOWANCE: Duration = Duration::from_millis(50);

/// Longest wait for one change.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let telemetry = Telemetry::noop();
    let config = Config { journal_poll_interval: POLL, ..service::config(10_000) };
    let store = service::store(MemoryStore::default());
    let one = service::start(store.clone(), &config, &telemetry).await.directory;
    let other = service::start(store, &config, &telemetry).await.directory;
    crate::resolve::fill(&one, 0).await;
    let mut watcher =
        other.watch(WatchOptions { changes_only: true, ..WatchOptions::default() }).unwrap();
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Piece::Changes { entries, .. }) = watcher.next().await {
            let now = Instant::now();
            for key in entries.iter().flat_map(|entry| &entry.changes).filter_map(Change::key) {
                let _ = seen.send((key.clone(), now));
            }
        }
    });
    let mut times = Vec::new();
    for number in 0..CHANGES {
        // At every point between two polls.
        let share = (number * 7919 % CHANGES) as f64 / CHANGES as f64;
        tokio::time::sleep(config.journal_poll_interval.mul_f64(share)).await;
        times.push(change(&one, number, &mut arrivals).await);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    let bound = config.journal_poll_interval * 2 + ALLOWANCE;
    println!("{CHANGES} changes, polls {:?} apart", config.journal_poll_interval);
    println!("p50 {:.1?}, p99 {:.1?}; the bound for p99 is {bound:?}", at(50), at(99));
    assert!(at(99) <= bound, "seen too late");
}

type Arrivals = tokio::sync::mpsc::UnboundedReceiver<(PartitionKey, Instant)>;

/// From when the change is acknowledged until it is told.
async fn change(directory: &Directory, number: usize, arrivals: &mut Arrivals) -> Duration {
    let key = PartitionKey::new(format!("tenant-{number}")).unwrap();
    let cell = CellId::new("cell-a").unwrap();
    let placing = Placing { key: key.clone(), cell, since: None, expires: None };
    directory.pin(placing, Mutation::default()).await.unwrap();
    let acknowledged = Instant::now();
    let arrival = async {
        loop {
            let (told, at) = arrivals.recv().await.expect("the watch goes on");
            if told == key {
                return at;
            }
        }
    };
    let at = tokio::time::timeout(PATIENCE, arrival).await.expect("a change is told");
    at.saturating_duration_since(acknowledged)
}
