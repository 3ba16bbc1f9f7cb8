//! Tables with tenants on DynamoDB Local, and replicas, each behind a proxy of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cell_directory::proto::v1;

use crate::celld::{Celld, command, unique};
use crate::dynamodb_local::DynamoDbLocal;
use crate::proxy::Proxy;

/// Longest wait for something that must come about, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

pub const CELLS: [&str; 2] = ["cell-a", "cell-b"];

/// Most placements of a message of an import.
const PORTION: usize = 1000;

/// How a replica holds what it knows; room for all tenants in any case.
pub const MODES: [&str; 2] = ["whole", "bounded"];

pub struct World {
    backend: String,
    prefix: String,
    pub tenants: usize,
}

pub fn key(tenant: usize) -> String {
    format!("tenant-{tenant}")
}

/// Where a tenant lives.
pub fn cell(tenant: usize) -> &'static str {
    CELLS[tenant % CELLS.len()]
}

impl World {
    /// Fresh tables with two cells and so many tenants.
    pub async fn with(name: &str, tenants: usize) -> Self {
        let backend = DynamoDbLocal::shared().endpoint();
        let prefix = unique(name);
        let world = Self { backend, prefix, tenants };
        // By a replica that nothing stands in the way of, and that is gone when the test begins.
        let patient = ["--commit-timeout=10s", "--commit-budget=30s", "--log-filter=error"];
        let scribe = Celld::serve(&world.backend, &world.prefix, &patient);
        scribe.create_cells(&CELLS).await;
        let placement = |tenant| v1::PlacementImport {
            partition_key: key(tenant),
            cell_id: cell(tenant).to_owned(),
            ..Default::default()
        };
        let all: Vec<_> = (0..tenants).map(placement).collect();
        let portions: Vec<_> = all
            .chunks(PORTION)
            .map(|portion| v1::ImportPlacementsRequest {
                placements: portion.to_vec(),
                ..Default::default()
            })
            .collect();
        let import = scribe.directory().await.import_placements(tokio_stream::iter(portions)).await;
        assert_eq!(import.unwrap().into_inner().created, tenants as u64);
        world
    }

    pub fn mappings(&self) -> String {
        format!("{}CellMappings", self.prefix)
    }

    /// A replica behind a new proxy. It listens, but may not be ready.
    pub fn replica(&self, mode: &'static str, flags: &'static [&'static str]) -> Replica {
        let folder = tempfile::tempdir().unwrap();
        let mut replica = Replica {
            proxy: Proxy::start(&self.backend),
            mode,
            flags,
            prefix: self.prefix.clone(),
            folder,
            celld: None,
        };
        replica.start();
        replica
    }
}

/// A `celld` that can be ended and started again on its data.
pub struct Replica {
    pub proxy: Proxy,
    pub mode: &'static str,
    flags: &'static [&'static str],
    prefix: String,
    folder: tempfile::TempDir,
    celld: Option<Celld>,
}

impl Replica {
    pub fn start(&mut self) {
        let mut serve = command(&["serve", "--listen=127.0.0.1:0", "--region=eu-west-1"]);
        serve.args(["--log-filter=error", "--snapshot-interval=1s", "--memory-mode", self.mode]);
        serve.args(["--dynamodb-endpoint", &self.proxy.endpoint()]);
        serve.args(["--table-prefix", &self.prefix]);
        serve.arg("--data-dir").arg(self.data()).args(self.flags);
        self.celld = Some(Celld::start(serve));
    }

    pub fn celld(&self) -> &Celld {
        self.celld.as_ref().expect("it was started")
    }

    /// Ends the process: by SIGTERM, or by `kill -9`.
    pub async fn end(&mut self, orderly: bool) {
        let celld = self.celld.take().expect("it was started");
        let ended = tokio::task::spawn_blocking(move || match orderly {
            true => assert!(celld.terminate().success()),
            false => celld.kill(),
        });
        ended.await.unwrap();
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Waits until a snapshot is written that was begun after now.
    pub async fn saved(&self) {
        let file = self.data().join("snapshot");
        let deadline = Instant::now() + SOON;
        for _ in 0..2 {
            let before = written(&file);
            while written(&file) == before {
                assert!(Instant::now() < deadline, "no snapshot is written");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn written(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|file| file.modified()).ok()
}
