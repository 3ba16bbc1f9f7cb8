//! The Rust client against real servers: what it promises of answers, with `celld` processes on real sockets, on the embedded engine.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod celld;
#[path = "../support/embedded.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod embedded;

mod data;

use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cells_client::{Builder, Directory, Mode, Question, Source};
use tonic::transport::Channel;

use crate::celld::{Celld, unique};
use crate::embedded::Embedded;

/// Longest wait for something that must come about, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

const MODES: [Mode; 2] = [Mode::Whole, Mode::Bounded { capacity: 1000 }];

/// Servers on the same tables.
struct World {
    engine: Embedded,
    prefix: String,
}

impl World {
    fn new() -> Self {
        Self { engine: Embedded::temporary(), prefix: unique("client") }
    }

    async fn serve(&self) -> Celld {
        let flags = ["--journal-poll-interval=50ms", "--drain-delay=0s", "--log-filter=error"];
        let server = Celld::serve(self.engine.endpoint(), &self.prefix, &flags);
        server.ready().await;
        server
    }

    async fn pair(&self) -> [Celld; 2] {
        let servers = [self.serve().await, self.serve().await];
        servers[0].create_cells(&["cell-a", "cell-b"]).await;
        servers
    }
}

fn client(servers: &[Celld; 2], mode: Mode) -> Builder {
    let endpoints = servers.each_ref().map(|server| format!("http://{}", server.address));
    Directory::builder(endpoints)
        .mode(mode)
        .sync_interval(Duration::from_millis(100))
        .backoff_max(Duration::from_millis(300))
        .stale_after(Duration::from_secs(1))
}

async fn place(server: &mut CellDirectoryClient<Channel>, key: &str, cell: &str) {
    let delete = v1::DeletePlacementRequest { partition_key: key.into(), ..Default::default() };
    let _ = server.delete_placement(delete).await;
    let pin = v1::PinPlacementRequest {
        partition_key: key.into(),
        cell_id: cell.into(),
        ..Default::default()
    };
    server.pin_placement(pin).await.unwrap();
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The cell and epoch that memory says.
fn known(directory: &Directory, key: &str) -> Option<(String, u64)> {
    directory.resolve(key).map(|answer| (answer.cell_id().to_owned(), answer.epoch()))
}

/// Asks until a tenant lives there. A bounded memory forgets who has no cell for a moment, so this is not only for what memory says.
async fn located(directory: &Directory, key: &str, wanted: (&str, u64)) {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = directory.locate(key).await;
        let found = answer.as_ref().map(|answer| (answer.cell_id(), answer.epoch()));
        if found == Ok(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{answer:?} is not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_follows_renews_and_fails_over() {
    for mode in MODES {
        let world = World::new();
        let servers = world.pair().await;
        let mut apis = [servers[0].directory().await, servers[1].directory().await];
        place(&mut apis[0], "tenant", "cell-a").await;
        let directory = client(&servers, mode).connect().await.unwrap();
        let first = directory.locate("tenant").await.unwrap();
        assert_eq!((first.cell_id(), first.epoch()), ("cell-a", 1));
        assert_eq!(first.endpoint(), "https://cell-a.example.com");
        let new = directory.locate("new").await.unwrap();
        assert_eq!(new.epoch(), 1);
        let nobody = directory.locate_with("nobody", &Question::new().lookup_only()).await;
        assert_eq!(nobody.unwrap_err(), cells_client::Error::NotFound);

        // What the server that is not watched is told, the client hears of.
        let watched = directory.status().watching.expect("a watch");
        place(&mut apis[1 - watched], "tenant", "cell-b").await;
        located(&directory, "tenant", ("cell-b", 2)).await;
        assert_eq!(directory.resolve("tenant").unwrap().source(), Source::Memory);

        // A lease, for longer than one lasts.
        until("a lease", || directory.resolve("tenant").unwrap().may_write_directly()).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(6) {
            let lease = directory.resolve("tenant").unwrap().lease();
            assert!(lease > Duration::ZERO && lease <= Duration::from_secs(5), "{lease:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        // The watched server dies.
        let mut servers: Vec<_> = servers.into_iter().collect();
        let watched = directory.status().watching.expect("a watch");
        servers.remove(watched).kill();
        place(&mut apis[1 - watched], "tenant", "cell-a").await;
        located(&directory, "tenant", ("cell-a", 3)).await;
        until("a lease from the other", || !directory.status().lease.is_zero()).await;
        assert_eq!(directory.locate("newer").await.unwrap().epoch(), 1);
        directory.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_client_answers_with_all_servers_down() {
    let (world, folder) = (World::new(), tempfile::tempdir().unwrap());
    let servers = world.pair().await;
    let mut api = servers[0].directory().await;
    for n in 0..50 {
        place(&mut api, &format!("tenant-{n}"), ["cell-a", "cell-b"][n % 2]).await;
    }
    let endpoints = servers.each_ref().map(|server| format!("http://{}", server.address));
    let file = folder.path().join("cells.snapshot");
    let directory = client(&servers, Mode::Whole).snapshot(&file).connect().await.unwrap();
    until("all tenants", || known(&directory, "tenant-49").is_some()).await;
    directory.close().await;
    servers.into_iter().for_each(Celld::kill);

    let again = Directory::builder(endpoints).snapshot(&file).connect_lazily();
    let again = again.connect().await.unwrap();
    for n in 0..50 {
        let answer = again.resolve(&format!("tenant-{n}")).expect("known");
        assert_eq!(answer.cell_id(), ["cell-a", "cell-b"][n % 2]);
        assert_eq!(answer.endpoint(), format!("https://{}.example.com", answer.cell_id()));
        assert!(answer.is_stale() && answer.lease().is_zero() && !answer.may_write_directly());
        assert_eq!(answer.source(), Source::SnapshotFile);
        assert!(answer.is_authoritative());
    }
    let unknown = again.locate("unknown").await;
    assert!(matches!(unknown, Err(cells_client::Error::Unavailable { .. })), "{unknown:?}");
    again.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_loses_its_clients_without_a_gap() {
    let world = World::new();
    let servers = world.pair().await;
    let directory = client(&servers, Mode::Whole).connect().await.unwrap();
    let watched = directory.status().watching.expect("a watch");
    let mut api = servers[1 - watched].directory().await;
    let mut servers: Vec<_> = servers.into_iter().collect();
    let leaving = servers.remove(watched);
    let ended = tokio::task::spawn_blocking(|| leaving.terminate());
    for n in 0..40 {
        place(&mut api, &format!("tenant-{n}"), "cell-a").await;
    }
    assert!(ended.await.unwrap().success());
    until("all changes", || (0..40).all(|n| known(&directory, &format!("tenant-{n}")).is_some()))
        .await;
    directory.close().await;
}
