//! The service on a real socket, on the store in memory, in this process: so that what it holds can be looked at.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cell_directory::app;
use cell_directory::cells::Registrar;
use cell_directory::config::Config;
use cell_directory::directory::{Directory, Mutation, NewCell, Placing};
use cell_directory::domain::{
    Cell, CellId, CellState, Endpoint, Labels, MigrationId, PartitionKey, Placement, Region,
    Sequence, Weight,
};
use cell_directory::grpc::{BoundServer, Services};
use cell_directory::migration::Migration;
use cell_directory::migration::bulk::{BulkId, BulkRecord};
use cell_directory::store::memory::MemoryStore;
use cell_directory::store::{Journal, Placements, Store};
use cell_directory::tasks::Tasks;
use cell_directory::telemetry::Telemetry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bulks::FakeBulks;
use crate::migrations::{FakeMigrations, numbered_phase};

/// Cells and tenants that are there from the start; more come and go.
pub const CELLS: usize = 8;
pub const TENANTS: usize = 40;
/// Migrations that are there from the start, of tenants of their own, one in each phase.
pub const MIGRATIONS: u128 = 12;
/// Drains that are there from the start.
pub const BULKS: u128 = 6;

/// Panics of any thread of this process since the start, those of tests left out.
static PANICS: AtomicUsize = AtomicUsize::new(0);

pub struct Server {
    address: SocketAddr,
    store: Arc<MemoryStore>,
    pub directory: Directory,
    migrations: Arc<FakeMigrations>,
    bulks: Arc<FakeBulks>,
    tasks: Tasks,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    panics_before: usize,
}

/// All that the store holds and shows.
#[derive(Debug, PartialEq)]
pub struct State {
    head: Sequence,
    cells: Vec<Cell>,
    placements: Vec<Placement>,
    migrations: BTreeMap<MigrationId, Migration>,
    bulks: BTreeMap<BulkId, BulkRecord>,
}

impl Server {
    pub async fn start() -> Self {
        count_panics();
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_millis(100),
            // What is tested is what is answered on a busy machine.
            max_queue_delay: Duration::from_secs(60),
            ..Config::default()
        };
        let store = Arc::new(MemoryStore::new());
        let (tasks, telemetry) = (Tasks::new(), Telemetry::noop());
        let directory =
            app::directory(Store::of(store.clone()), &config, &telemetry, &tasks).unwrap();
        let server = BoundServer::bind(config.listen).await.unwrap();
        let (address, stop) = (server.address(), CancellationToken::new());
        let settings = app::server_settings(&config, &telemetry).unwrap();
        let cells = Registrar::without_cloud(directory.clone());
        let migrations = Arc::new(FakeMigrations::with(0..MIGRATIONS));
        for number in 0..MIGRATIONS {
            migrations.change(number, |one| one.record.phase = numbered_phase(number));
        }
        let bulks = Arc::new(FakeBulks::with(0..BULKS));
        let services = Services {
            items: None,
            migrations: Some(migrations.clone()),
            bulks: Some(bulks.clone()),
        };
        let serving = server.serve(directory.clone(), cells, services, settings, stop.clone());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        directory.ready(&stop).await;
        let panics_before = PANICS.load(Ordering::SeqCst);
        let server = Self {
            address,
            store,
            directory,
            migrations,
            bulks,
            tasks,
            stop,
            serving,
            panics_before,
        };
        server.furnish().await;
        server
    }

    /// Registers the cells and places half of the tenants, some of them moved before so that they have a history.
    async fn furnish(&self) {
        for number in 0..CELLS {
            let cell = NewCell {
                id: CellId::new(format!("cell-{number}")).unwrap(),
                region: Region::new("eu-west-1").unwrap(),
                endpoint: Endpoint::new("https://example.com").unwrap(),
                labels: Labels::new([("tier-0".to_owned(), "standard".to_owned())].into()).unwrap(),
                weight: Weight::DEFAULT,
                capacity: None,
                state: CellState::Active,
            };
            self.directory.create_cell(cell, Mutation::default()).await.unwrap();
        }
        for number in 0..TENANTS / 2 {
            let key = PartitionKey::new(format!("tenant-{number}")).unwrap();
            for cell in 0..=number % 3 {
                let cell = CellId::new(format!("cell-{cell}")).unwrap();
                let _ = self.directory.delete(key.clone(), None, Mutation::default()).await;
                let placing = Placing { key: key.clone(), cell, since: None, expires: None };
                self.directory.pin(placing, Mutation::default()).await.unwrap();
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub async fn state(&self) -> State {
        let placements = self.store.list(None, usize::MAX - 1, None).await.unwrap();
        assert!(placements.next.is_none());
        State {
            head: self.store.head().await.unwrap().sequence,
            cells: self.store.cells().await.unwrap(),
            placements: placements.items,
            migrations: self.migrations.state(|state| state.migrations.clone()),
            bulks: self.bulks.bulks(),
        }
    }

    /// Ends it in order; fails if anything in it panicked or a task gave up.
    pub async fn end(self) {
        let failed = tokio::time::timeout(Duration::ZERO, self.tasks.failure()).await.is_ok();
        assert!(!failed, "a background task failed");
        assert_eq!(PANICS.load(Ordering::SeqCst), self.panics_before, "something panicked");
        self.stop.cancel();
        self.serving.await.unwrap();
        assert!(self.tasks.stop(Duration::from_secs(10)).await);
    }
}

fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A test that fails is no failure of the server of another.
            if !info.location().is_some_and(|at| at.file().starts_with("tests/")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            hook(info);
        }));
    });
}
