//! Three `celld serve` on one set of tables, each behind a proxy of its own, so that faults hit them one by one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::celld::{Celld, command, program, unique};
use crate::dynamodb_local::DynamoDbLocal;
use crate::proxy::{Fault, Proxy, Rule};

pub const REPLICAS: usize = 3;

/// The cells. All take new tenants at any time.
pub const CELLS: [&str; 3] = ["cell-a", "cell-b", "cell-c"];

/// Changes of the tables.
pub const WRITE: &[&str] = &["TransactWriteItems"];

/// One reply in so many is lost at any time, whatever else goes wrong.
const ALWAYS_LOST: usize = 15;

/// Gives up fast, so that much stays open; and is seldom told of what others do, so that memory is old.
const SETTINGS: [&str; 9] = [
    // Not what is tested here, and the machine may be busy.
    "--max-queue-delay=1m",
    "--lookup-budget=1s",
    "--read-timeout=200ms",
    "--commit-timeout=200ms",
    "--commit-budget=400ms",
    "--journal-poll-interval=100ms",
    "--sweep-interval=1h",
    "--drain-timeout=0s",
    "--log-filter=info",
];

/// For who makes the cells: nothing is tested yet, and the engine may be slow to begin with.
const PATIENT: [&str; 5] = [
    "--lookup-budget=30s",
    "--read-timeout=10s",
    "--commit-timeout=10s",
    "--commit-budget=30s",
    "--log-filter=off",
];

/// Which build is tested.
#[derive(Debug, Clone)]
pub enum Build {
    Celld,
    Mutant { program: PathBuf, name: &'static str },
}

impl Build {
    fn command(&self, arguments: &[&str]) -> Command {
        match self {
            Build::Celld => command(arguments),
            Build::Mutant { program: path, name } => {
                let mut command = program(path, arguments);
                command.env("CELLD_MUTANT", name);
                command
            }
        }
    }
}

/// A process that runs.
struct Life {
    celld: Celld,
    name: String,
}

/// A replica's place, in which one process follows the other.
struct Place {
    proxy: Proxy,
    life: Mutex<Option<Life>>,
    lives: Mutex<usize>,
}

pub struct Cluster {
    build: Build,
    pub prefix: String,
    places: [Place; REPLICAS],
    /// Where the processes log.
    folder: PathBuf,
}

impl Cluster {
    /// Fresh tables with the cells, and nobody to serve them yet.
    pub async fn new(build: Build, folder: &Path) -> Arc<Self> {
        let backend = DynamoDbLocal::shared().endpoint();
        let prefix = unique("lin");
        {
            let served = Celld::serve(&backend, &prefix, &PATIENT);
            served.create_cells(&CELLS).await;
            served.kill();
        }
        let places = std::array::from_fn(|_| {
            let proxy = Proxy::start(&backend);
            Place { proxy, life: Mutex::default(), lives: Mutex::default() }
        });
        let cluster = Arc::new(Self { build, prefix, places, folder: folder.to_owned() });
        for at in 0..REPLICAS {
            cluster.start(at).await;
        }
        cluster
    }

    /// Has a place's process started, behind its proxy.
    pub async fn start(self: &Arc<Self>, at: usize) {
        let cluster = Arc::clone(self);
        let started = tokio::task::spawn_blocking(move || cluster.start_blocking(at));
        started.await.unwrap();
    }

    fn start_blocking(&self, at: usize) {
        let place = &self.places[at];
        let number = {
            let mut lives = place.lives.lock();
            *lives += 1;
            *lives
        };
        let name = format!("{at}.{number}");
        let mut serve = self.build.command(&["serve", "--listen", "127.0.0.1:0"]);
        serve.args(["--dynamodb-endpoint", &place.proxy.endpoint()]);
        serve.args(["--table-prefix", &self.prefix]).args(SETTINGS);
        // Both kinds of memory side by side.
        serve.args(["--memory-mode", ["whole", "bounded"][at % 2]]);
        serve.stderr(File::create(self.folder.join(format!("{name}.log"))).unwrap());
        let celld = Celld::start(serve);
        *place.life.lock() = Some(Life { celld, name });
    }

    /// Waits until all can answer.
    pub async fn ready(&self) {
        for place in &self.places {
            let address = place.life.lock().as_ref().unwrap().celld.address.clone();
            crate::celld::ready(&address).await;
        }
    }

    /// Who is to be asked at a place, and where, unless nobody is there.
    pub fn at(&self, at: usize) -> Option<(String, String)> {
        let life = self.places[at].life.lock();
        life.as_ref().map(|life| (life.name.clone(), life.celld.address.clone()))
    }

    pub fn proxy(&self, at: usize) -> &Proxy {
        &self.places[at].proxy
    }

    /// What always goes wrong.
    pub fn lose_some_replies(&self) {
        for place in &self.places {
            place.proxy.lay(Rule::on(WRITE, Fault::LoseReply).every(ALWAYS_LOST));
        }
    }

    /// `kill -9`.
    pub fn kill(&self, at: usize) {
        let life = self.places[at].life.lock().take();
        if let Some(life) = life {
            life.celld.kill();
        }
    }

    /// Sends a signal to the process at a place: `STOP` or `CONT`.
    pub fn signal(&self, at: usize, signal: &str) {
        let life = self.places[at].life.lock();
        if let Some(life) = life.as_ref() {
            let id = life.celld.id().to_string();
            let sent = Command::new("kill").args([&format!("-{signal}"), &id]).status();
            assert!(sent.unwrap().success(), "kill -{signal} {id}");
        }
    }
}
