//! A collector that is absent, slow or dead costs nothing but telemetry.

use std::time::{Duration, Instant};

use cell_directory::proto::v1::DecisionSource;
use tonic::Request;

use crate::harness::{SOON, Traced, ask, resolve};
use crate::otlp::{OtlpReceiver, Spans};
use crate::relay::{Mute, closed_port};

const KEYS: usize = 60;
const ROUNDS: usize = 10;

/// What 99 of 100 calls must stay below: far above what a call takes, far below any timeout on the way to the collector.
const P99: Duration = Duration::from_millis(250);

/// The drain's notice, the last export (at most 2 s), and a busy machine.
const ENDING: Duration = Duration::from_secs(8);

/// Resolves each key for the first time and then again and again, all of it sampled; answers the cells.
async fn exercise(collector: &str) -> Vec<String> {
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), collector, &["--trace-sample-ratio", "1"]);
    let mut directory = traced.directory().await;
    let mut cells = Vec::new();
    let mut latencies = Vec::new();
    for round in 0..ROUNDS {
        for number in 0..KEYS {
            let began = Instant::now();
            let request = Request::new(ask(&format!("customer-{number}")));
            let (cell, source) = resolve(&mut directory, request).await.unwrap();
            latencies.push(began.elapsed());
            if round == 0 {
                assert_eq!(source, DecisionSource::Assigned);
                cells.push(cell);
            } else {
                assert_eq!((&cell, source), (&cells[number], DecisionSource::Memory));
            }
        }
    }
    latencies.sort();
    let p99 = latencies[latencies.len() * 99 / 100];
    assert!(p99 < P99, "p99 is {p99:?} with the collector {collector}");
    let began = Instant::now();
    let log = traced.end();
    assert!(began.elapsed() < ENDING, "ended after {:?}: {log}", began.elapsed());
    assert!(log.lines().count() < 50, "the log is flooded: {log}");
    cells
}

/// What is answered where nothing is wrong. The policy is a pure function of key and cells, so it is the same each time.
async fn healthy() -> Vec<String> {
    let (collector, receiver) = OtlpReceiver::start().await;
    let cells = exercise(&collector).await;
    let spans = receiver.spans();
    assert_eq!(spans.named("cell.route").len(), KEYS * ROUNDS, "all is exported before it ends");
    cells
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_collector_changes_no_answer() {
    assert_eq!(exercise(&closed_port()).await, healthy().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_changes_no_answer() {
    let mute = Mute::start().await;
    assert_eq!(exercise(&mute.endpoint()).await, healthy().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_collector_changes_no_answer() {
    let (collector, receiver) = OtlpReceiver::start_slow(Duration::from_secs(2)).await;
    assert_eq!(exercise(&collector).await, healthy().await);
    // It did get something, late as its answers are.
    let some = |spans: &Spans| !spans.named("cell.route").is_empty();
    receiver.wait_for_spans(some, SOON).await;
}
