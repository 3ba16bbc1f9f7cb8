//! A start from a snapshot while the table does not answer: how long until the first answer.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cell_directory::app;
use cell_directory::config::Config;
use cell_directory::directory::keeper::{Keep, KeepSettings};
use cell_directory::directory::{
    Clock, DecisionTrace, Directory, RouteOptions, RouteRequest, Source,
};
use cell_directory::domain::{
    Cell, CellId, Cluster, HistoryRecord, JournalEntry, JournalId, Mapping, PartitionKey,
    Placement, RequestId, RequestRecord, Sequence, Timestamp,
};
use cell_directory::store::memory::MemoryStore;
use cell_directory::store::{
    Commit, CommitOutcome, Cursor, Head, Journal, Page, Placements, Store, StoreError,
};
use cell_directory::tasks::Tasks;
use cell_directory::telemetry::{self, Telemetry};

use crate::{Options, load, median, resolve, service};

pub fn run(options: &Options) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let telemetry = telemetry::init(&app::telemetry_config(&Config::default()), "bench").unwrap();
    let config = service::config(options.placements);
    let folder = std::env::temp_dir().join(format!("cold-start-{}", std::process::id()));
    eprintln!("saving a snapshot of {} placements", options.placements);
    runtime.block_on(save(&folder, &config, &telemetry, options.placements));
    let bytes = std::fs::metadata(folder.join("snapshot")).unwrap().len();
    println!("{} placements, {:.1} MB on disk", options.placements, bytes as f64 / 1e6);
    let (mut loads, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (load, answer) = runtime.block_on(start(&folder, &config, &telemetry, options));
        println!("loaded after {load:.3?}, first answer after {answer:.3?}");
        loads.push(load.as_secs_f64());
        answers.push(answer.as_secs_f64());
    }
    println!("median: loaded {:.3} s, first answer {:.3} s", median(loads), median(answers));
    std::fs::remove_dir_all(folder).unwrap();
}

fn open(folder: &Path, config: &Config) -> Keep {
    let settings = KeepSettings {
        directory: folder.to_owned(),
        interval: Duration::from_secs(3600),
        tables: "bench".into(),
    };
    Keep::open(settings, app::memory_mode(config), &Clock::system())
}

/// Fills a directory and stops it, which saves what it holds.
async fn save(folder: &Path, config: &Config, telemetry: &Telemetry, placements: usize) {
    let (tasks, keep) = (Tasks::new(), Some(open(folder, config)));
    let store = service::store(MemoryStore::default());
    let directory = app::directory_with(store, config, telemetry, keep, &tasks).unwrap();
    directory.ready(tasks.stopping()).await;
    resolve::fill(&directory, placements).await;
    // One poll more, so that all of it is proven.
    tokio::time::sleep(config.journal_poll_interval * 4).await;
    assert!(tasks.stop(Duration::from_secs(60)).await);
}

async fn start(
    folder: &Path,
    config: &Config,
    telemetry: &Telemetry,
    options: &Options,
) -> (Duration, Duration) {
    let began = Instant::now();
    let keep = open(folder, config);
    assert!(keep.recalled());
    let loaded = began.elapsed();
    let tasks = Tasks::new();
    let store = Store::of(Arc::new(Silent));
    let directory = app::directory_with(store, config, telemetry, Some(keep), &tasks).unwrap();
    ask(&directory, options.placements as u64 / 2).await;
    let answered = began.elapsed();
    for number in (0..options.placements as u64).step_by(options.placements / 1000 + 1) {
        ask(&directory, number).await;
    }
    // Those that wait for the store do not end; the one that holds the folder does.
    tasks.stop(Duration::from_millis(200)).await;
    (loaded, answered)
}

async fn ask(directory: &Directory, number: u64) {
    let key = PartitionKey::new(load::key(number)).unwrap();
    let options = Arc::new(RouteOptions::default());
    let routed = directory.route(RouteRequest::new(key, options, DecisionTrace::default())).await;
    assert_eq!(routed.unwrap().source, Source::Memory);
}

/// A store that never answers.
struct Silent;

async fn never<T>() -> T {
    std::future::pending().await
}

#[async_trait]
impl Placements for Silent {
    async fn mapping(&self, _: &PartitionKey) -> Result<Mapping, StoreError> {
        never().await
    }
    async fn mappings(&self, _: &[PartitionKey]) -> Vec<Result<Mapping, StoreError>> {
        never().await
    }
    async fn list(
        &self,
        _: Option<&CellId>,
        _: usize,
        _: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        never().await
    }
    async fn count(&self, _: &CellId) -> Result<u64, StoreError> {
        never().await
    }
    async fn expired(
        &self,
        _: Timestamp,
        _: usize,
        _: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        never().await
    }
    async fn scan(&self, _: usize, _: Option<&Cursor>) -> Result<Page<Placement>, StoreError> {
        never().await
    }
    async fn history(
        &self,
        _: &PartitionKey,
        _: usize,
        _: Option<&Cursor>,
    ) -> Result<Page<HistoryRecord>, StoreError> {
        never().await
    }
}

#[async_trait]
impl Journal for Silent {
    async fn head(&self) -> Result<Head, StoreError> {
        never().await
    }
    async fn entries(&self, _: Sequence, _: usize) -> Result<Vec<JournalEntry>, StoreError> {
        never().await
    }
    async fn trimmed(&self) -> Result<Sequence, StoreError> {
        never().await
    }
    async fn trim(&self, _: Sequence) -> Result<(), StoreError> {
        never().await
    }
    async fn rename(&self, _: Head, _: JournalId) -> Result<bool, StoreError> {
        never().await
    }
    async fn cells(&self) -> Result<Vec<Cell>, StoreError> {
        never().await
    }
    async fn cluster(&self) -> Result<Cluster, StoreError> {
        never().await
    }
    async fn request(&self, _: &RequestId) -> Result<Option<RequestRecord>, StoreError> {
        never().await
    }
    async fn commit(&self, _: &Commit) -> Result<CommitOutcome, StoreError> {
        never().await
    }
}
