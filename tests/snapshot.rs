//! A replica that starts while DynamoDB is out of reach serves all that it knew: real `celld serve` processes, one after the other, on one
//! data directory and on an engine behind a valve.

#[path = "support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
#[path = "support/dynamodb_local.rs"]
mod dynamodb_local;
#[path = "support/embedded.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod embedded;
#[path = "api/valve.rs"]
mod valve;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource::{Fallback, Memory};
use celld::{Celld, command, unique};
use dynamodb_local::DynamoDbLocal;
use embedded::Embedded;
use valve::Valve;

/// Longest wait for something that is due within a few polls, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

const TENANTS: usize = 20;

struct World {
    valve: Valve,
    prefix: String,
    folder: tempfile::TempDir,
    _engine: Option<Embedded>,
}

impl World {
    fn before(endpoint: &str, engine: Option<Embedded>) -> Self {
        let valve = Valve::before(endpoint);
        let folder = tempfile::tempdir().unwrap();
        Self { valve, prefix: unique("snapshot"), folder, _engine: engine }
    }

    fn embedded() -> Self {
        let engine = Embedded::temporary();
        let endpoint = engine.endpoint().to_owned();
        Self::before(&endpoint, Some(engine))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// `celld serve` on the tables, which are there already.
    fn serve(&self, data: &Path) -> Celld {
        let endpoint = self.valve.endpoint();
        let mut serve = command(&["serve", "--listen=127.0.0.1:0", "--region=eu-west-1"]);
        serve.args(["--dynamodb-endpoint", &endpoint, "--table-prefix", &self.prefix]);
        serve.args(["--journal-poll-interval=50ms", "--snapshot-interval=100ms"]);
        serve.args(["--lookup-budget=2s", "--default-cell=cell-a", "--drain-delay=0s"]);
        serve.arg("--data-dir").arg(data).stderr(self.stderr());
        Celld::start(serve)
    }

    /// A new log: another server may still write to the last one.
    fn stderr(&self) -> Stdio {
        let path = self.folder.path().join("log");
        drop(std::fs::remove_file(&path));
        std::fs::File::create_new(path).unwrap().into()
    }

    /// A server with tenants in two cells.
    async fn filled(&self) -> Celld {
        let endpoint = self.valve.endpoint();
        let mut create = command(&["tables", "create", "--region=eu-west-1"]);
        create.args(["--dynamodb-endpoint", &endpoint, "--table-prefix", &self.prefix]);
        assert!(create.stdout(Stdio::null()).status().unwrap().success());
        let server = self.serve(&self.data());
        server.create_cells(&["cell-a", "cell-b"]).await;
        let mut directory = server.directory().await;
        for n in 0..TENANTS {
            let request = v1::PinPlacementRequest {
                partition_key: format!("tenant-{n}"),
                cell_id: ["cell-a", "cell-b"][n % 2].into(),
                ..Default::default()
            };
            directory.pin_placement(request).await.unwrap();
        }
        server
    }
}

async fn resolve(server: &Celld, key: &str) -> v1::ResolveResponse {
    let request = v1::ResolveRequest {
        partition_key: key.into(),
        mode: v1::ResolveMode::LookupOnly.into(),
        ..Default::default()
    };
    server.directory().await.resolve(request).await.unwrap().into_inner()
}

fn seconds(duration: &Option<prost_types::Duration>) -> f64 {
    duration.as_ref().map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9)
}

/// All that is known, from memory, no younger than `least`, and without a lease.
async fn known_without_a_lease(server: &Celld, least: Duration) {
    server.ready().await;
    for n in 0..TENANTS {
        let answer = resolve(server, &format!("tenant-{n}")).await;
        let (placement, decision) = (answer.placement.unwrap(), answer.decision.unwrap());
        assert_eq!(placement.cell_id, ["cell-a", "cell-b"][n % 2]);
        assert_eq!(placement.endpoint, format!("https://{}.example.com", placement.cell_id));
        assert_eq!(decision.source(), Memory);
        assert!(decision.authoritative);
        assert!(seconds(&decision.age) >= least.as_secs_f64(), "{decision:?}");
        assert!(seconds(&decision.lease) == 0.0, "{decision:?}");
    }
    let unknown = resolve(server, "unknown").await;
    let decision = unknown.decision.unwrap();
    assert_eq!((decision.source(), decision.authoritative), (Fallback, false));
}

async fn leased(server: &Celld) {
    let deadline = Instant::now() + SOON;
    loop {
        let decision = resolve(server, "tenant-1").await.decision.unwrap();
        if seconds(&decision.lease) > 0.0 {
            return assert!(decision.source() == Memory && seconds(&decision.age) < 5.0);
        }
        assert!(Instant::now() < deadline, "no lease comes back: {decision:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a snapshot is written that was begun after now.
async fn saved(data: &Path) {
    let file = data.join("snapshot");
    let deadline = Instant::now() + SOON;
    let written = || std::fs::metadata(&file).and_then(|file| file.modified()).ok();
    for _ in 0..2 {
        let before = written();
        while written() == before {
            assert!(Instant::now() < deadline, "no snapshot is written");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Starts while the engine does not say a word, and begins with what there is.
async fn started_in_the_dark(world: &World) -> Celld {
    world.valve.shut();
    let since = Instant::now();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let starting = Instant::now();
    let server = world.serve(&world.data());
    server.ready().await;
    // It would wait for two seconds for a look at the tables.
    let took = starting.elapsed();
    assert!(took < Duration::from_millis(1900), "{took:?}");
    known_without_a_lease(&server, starting - since).await;
    server
}

async fn restarts(world: World) {
    let server = world.filled().await;
    leased(&server).await;
    saved(&world.data()).await;
    server.kill();
    let server = started_in_the_dark(&world).await;
    world.valve.open();
    leased(&server).await;

    // What came last is in the file that is written at the end.
    let request = v1::PinPlacementRequest {
        partition_key: "the last one".into(),
        cell_id: "cell-b".into(),
        ..Default::default()
    };
    server.directory().await.pin_placement(request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(server.terminate().success());
    let server = started_in_the_dark(&world).await;
    let last = resolve(&server, "the last one").await.decision.unwrap();
    assert_eq!(last.source(), Memory);
    world.valve.open();
    leased(&server).await;
    assert!(server.terminate().success());

    // A bad file is told of, and everything comes from the table.
    let file = world.data().join("snapshot");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let server = world.serve(&world.data());
    server.ready().await;
    leased(&server).await;
    let log = world.log();
    let told = log.lines().find(|line| line.contains("the snapshot is ignored")).unwrap_or(&log);
    for word in ["WARN", file.to_str().unwrap(), "its checksum does not match"] {
        assert!(told.contains(word), "{word:?} is not in {log}");
    }
    saved(&world.data()).await;
    assert!(server.terminate().success());
    let server = started_in_the_dark(&world).await;
    // Nothing new is known, and the file says so: its age is not that of its writing.
    assert!(server.terminate().success());
    let server = started_in_the_dark(&world).await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_an_outage_serves_what_was_known_embedded() {
    restarts(World::embedded()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_an_outage_serves_what_was_known_dynamodb_local() {
    restarts(World::before(&DynamoDbLocal::shared().endpoint(), None)).await;
}

/// A folder that cannot be used is told of, and costs nothing but the snapshots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_cannot_be_used_is_a_warning() {
    let world = World::embedded();
    let server = world.filled().await;
    leased(&server).await;
    for (data, why) in [
        (world.folder.path().join("log"), "exists"),
        (world.data(), "another celld uses it"),
        (PathBuf::from("/dev/null/data"), ""),
    ] {
        let second = world.serve(&data);
        second.ready().await;
        leased(&second).await;
        let log = world.log();
        assert!(log.contains("no snapshots are saved") && log.contains(why), "{log}");
        assert!(second.terminate().success());
    }
}

/// Without a data directory nothing is written, least of all to wherever the process was started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_unasked() {
    let world = World::embedded();
    drop(world.filled().await);
    for more in [&[][..], &["--data-dir=data", "--snapshot-interval=0s"]] {
        let empty = tempfile::tempdir().unwrap();
        let endpoint = world.valve.endpoint();
        let mut serve = command(&["serve", "--listen=127.0.0.1:0", "--region=eu-west-1"]);
        serve.args(["--dynamodb-endpoint", &endpoint, "--table-prefix", &world.prefix]);
        serve.args(["--drain-delay=0s"]).args(more).current_dir(empty.path());
        let server = Celld::start(serve);
        server.ready().await;
        assert!(server.terminate().success());
        assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    }
}
