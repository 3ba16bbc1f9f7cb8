//! Watch: whoever applies what it sends has the table, at every server, across ends and resumptions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cell_directory::domain::Sequence;
use cell_directory::proto::v1::placement_change::Change;
use cell_directory::proto::v1::watch_response::Event;
use cell_directory::proto::v1::{self, WatchRequest};
use cell_directory::store::Journal;
use tonic::{Code, Status, Streaming};

use crate::celld::cell;
use crate::checks::{invalid, refusal};
use crate::world::{Engine, SOON, Server, World, def, pin};

on_both_engines!(
    a_snapshot_and_what_follows_is_the_table,
    a_bounded_server_sends_its_snapshot_from_the_table,
    a_watch_resumes_at_every_server,
    what_the_journal_has_lost_is_not_resumed,
    a_watch_of_some_cells,
    cells_are_sent_and_followed,
    what_cannot_be_watched,
    an_idle_watch_is_alive,
    a_watch_ends_with_its_deadline,
    who_hangs_up_is_forgotten,
    a_server_that_ends_says_so_at_once,
    a_change_is_seen_at_the_other_server_within_a_few_polls,
);

/// What a caller of Watch holds who follows the rules of the proto, and nothing else.
#[derive(Debug, Default, Clone)]
pub struct Picture {
    pub placements: BTreeMap<String, v1::Placement>,
    pub cells: BTreeMap<String, v1::Cell>,
    pub sequence: u64,
    pub journal: String,
    pub token: String,
    pub caught_up: bool,
    /// How many snapshot parts came.
    pub parts: usize,
    /// How many changes came.
    pub changes: usize,
    last_change: u64,
}

impl Picture {
    /// Applies a message, and holds it against what the proto says of the order.
    pub fn apply(&mut self, message: v1::WatchResponse) {
        assert!(message.sequence >= self.sequence, "the sequence fell");
        assert!(self.journal.is_empty() || self.journal == message.journal_id);
        match message.event.expect("an event") {
            Event::Snapshot(part) => {
                assert_eq!(self.changes, 0, "a part after changes");
                assert!(!message.caught_up);
                assert!(part.cells.is_empty() || self.parts == 0, "cells in a later part");
                self.parts += 1;
                for placement in part.placements {
                    let before = self.placements.insert(placement.partition_key.clone(), placement);
                    assert!(before.is_none(), "told twice: {before:?}");
                }
                let cells = part.cells.into_iter().map(|cell| (cell.cell_id.clone(), cell));
                self.cells.extend(cells);
            }
            Event::Changes(changes) => {
                assert!(!message.resume_token.is_empty());
                for change in changes.changes {
                    assert!(change.sequence > self.sequence, "an entry that was sent before");
                    assert!(change.sequence >= self.last_change, "out of order");
                    assert!(change.sequence <= message.sequence);
                    self.last_change = change.sequence;
                    self.changes += 1;
                    self.change(change.change.expect("a change"));
                }
            }
        }
        self.sequence = message.sequence;
        self.caught_up = message.caught_up;
        self.journal = message.journal_id;
        self.token = message.resume_token;
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Placed(placement) => {
                assert!(placement.endpoint.is_empty() && placement.region.is_empty());
                self.placements.insert(placement.partition_key.clone(), placement);
            }
            Change::Vacated(placement) => {
                self.placements.remove(&placement.partition_key);
            }
            Change::Cell(cell) => {
                self.cells.insert(cell.cell_id.clone(), cell);
            }
            Change::CellDeleted(id) => {
                self.cells.remove(&id);
            }
        }
    }

    /// Key, cell and epoch of each placement.
    fn gist(&self) -> BTreeMap<String, (String, u64)> {
        let gist =
            |(key, p): (&String, &v1::Placement)| (key.clone(), (p.cell_id.clone(), p.epoch));
        self.placements.iter().map(gist).collect()
    }
}

/// A stream and what was made of it.
pub struct Watching {
    pub stream: Streaming<v1::WatchResponse>,
    pub picture: Picture,
}

impl Watching {
    pub async fn begin(server: &Server, request: WatchRequest) -> Self {
        let stream = server.directory.clone().watch(request).await.unwrap().into_inner();
        Self { stream, picture: Picture::default() }
    }

    /// Goes on with a picture at a server.
    pub async fn resume(server: &Server, picture: Picture) -> Self {
        let request = WatchRequest { resume_token: picture.token.clone(), ..def() };
        Self { picture, ..Self::begin(server, request).await }
    }

    pub async fn step(&mut self) -> Result<(), Status> {
        let message = tokio::time::timeout(SOON, self.stream.message()).await;
        let message = message.expect("a message in time")?;
        self.picture.apply(message.expect("the stream goes on"));
        Ok(())
    }

    /// Reads until it is up to date at this entry or later.
    pub async fn until(&mut self, sequence: u64) -> &Picture {
        while !(self.picture.caught_up && self.picture.sequence >= sequence) {
            self.step().await.unwrap();
        }
        &self.picture
    }

    pub async fn end(mut self) -> Status {
        let deadline = Instant::now() + SOON;
        loop {
            if let Err(status) = self.step().await {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on");
        }
    }
}

/// What the tables say: key, cell and epoch of all who have a cell.
async fn table(world: &World) -> BTreeMap<String, (String, u64)> {
    let placed = world.scan(&world.mappings()).await.into_iter().filter_map(|item| {
        let text = |name: &str| item.get(name).map(|value| value.as_s().unwrap().clone());
        let epoch = item["Epoch"].as_n().unwrap().parse().unwrap();
        Some((text("PartitionKey")?, (text("CellId")?, epoch)))
    });
    placed.collect()
}

async fn head(world: &World) -> u64 {
    world.journal().await.len() as u64
}

/// 64 tasks who place and delete at two servers, each a tenant of its own and one of all, for so many rounds.
async fn commotion(servers: [&Server; 2], rounds: usize) {
    let tasks = (0..64).map(|task: usize| {
        let server = servers[task % 2];
        async move {
            for round in 0..rounds {
                let key = match round % 3 {
                    0 => format!("shared-{}", task % 4),
                    _ => format!("own-{task}-{round}"),
                };
                let cell = ["cell-a", "cell-b"][(task + round) % 2];
                // Who comes second finds it done, or done otherwise: no matter.
                let _ = server.pin(pin(&key, cell)).await;
                if (task + round).is_multiple_of(2) {
                    let _ = server.delete(&key).await;
                }
            }
        }
    });
    futures::future::join_all(tasks).await;
}

async fn follows_a_commotion(engine: Engine, flags: &[&str]) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let other = world.serve(flags).await;
    for n in 0..40 {
        server.pin(pin(&format!("before-{n}"), "cell-a")).await.unwrap();
    }
    let ((), late) = tokio::join!(commotion([&server, &other], 6), async {
        let mut watches = Vec::new();
        for n in 0..6 {
            watches.push(Watching::begin([&other, &server][n % 2], def()).await);
            tokio::time::sleep(Duration::from_millis(30)).await;
            for watch in &mut watches {
                watch.step().await.unwrap();
            }
        }
        watches
    });
    let (head, table) = (head(&world).await, table(&world).await);
    for mut watch in late {
        let picture = watch.until(head).await;
        assert!(picture.parts > 0);
        assert_eq!(picture.sequence, head);
        assert_eq!(picture.gist(), table);
        assert_eq!(picture.cells.len(), 2);
    }
}

async fn a_snapshot_and_what_follows_is_the_table(engine: Engine) {
    // Nothing is there at first.
    let world = World::new(engine.clone()).await;
    let server = world.serve(&[]).await;
    let mut watch = Watching::begin(&server, def()).await;
    let picture = watch.until(0).await;
    assert_eq!((picture.parts, picture.changes, picture.sequence), (1, 0, 0));
    server.create_cell(cell("cell-a")).await.unwrap();
    let placed = server.pin(pin("tenant", "cell-a")).await.unwrap();
    let picture = watch.until(2).await;
    let told = &picture.placements["tenant"];
    assert_eq!((told.epoch, &told.cell_id), (1, &placed.cell_id));
    assert_eq!((&told.create_time, told.state()), (&placed.create_time, placed.state()));
    drop(watch);

    follows_a_commotion(engine, &[]).await;
}

async fn a_bounded_server_sends_its_snapshot_from_the_table(engine: Engine) {
    let bounded = ["--memory-mode=bounded", "--memory-placements=1000"];
    follows_a_commotion(engine, &bounded).await;
}

async fn a_watch_resumes_at_every_server(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let other = world.serve(&[]).await;
    server.pin(pin("stays", "cell-a")).await.unwrap();
    let mut watch = Watching::begin(&server, def()).await;
    let first = watch.until(3).await.clone();
    drop(watch);
    commotion([&server, &other], 3).await;
    let head_then = head(&world).await;
    // One that has seen nothing of it: its own feed begins behind it, and the journal tells.
    let fresh = world.serve(&[]).await;
    let mut ends = Vec::new();
    for server in [&server, &other, &fresh] {
        let mut watch = Watching::resume(server, first.clone()).await;
        ends.push(watch.until(head_then).await.clone());
        assert_eq!(watch.picture.parts, first.parts, "no second snapshot");
        assert_eq!(watch.picture.gist(), table(&world).await);
    }
    assert!(ends.iter().all(|end| end.changes == ends[0].changes));
    // From one to the next, a piece at a time.
    commotion([&server, &other], 2).await;
    let head_now = head(&world).await;
    let mut picture = ends.remove(0);
    let mut turns = [&fresh, &other, &server].into_iter().cycle();
    while picture.sequence < head_now {
        let mut watch = Watching::resume(turns.next().unwrap(), picture).await;
        watch.step().await.unwrap();
        picture = watch.picture;
    }
    assert_eq!(picture.gist(), table(&world).await);

    // Only what comes.
    let request = WatchRequest { changes_only: true, ..def() };
    let mut watch = Watching::begin(&other, request).await;
    watch.step().await.unwrap();
    assert!(watch.picture.parts == 0 && watch.picture.placements.is_empty());
    other.pin(pin("last", "cell-b")).await.unwrap();
    watch.until(head_now + 1).await;
    assert_eq!(watch.picture.placements.keys().collect::<Vec<_>>(), ["last"]);
}

async fn what_the_journal_has_lost_is_not_resumed(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let mut watch = Watching::begin(&server, def()).await;
    let picture = watch.until(1).await.clone();
    for n in 0..5 {
        server.pin(pin(&format!("tenant-{n}"), "cell-a")).await.unwrap();
    }
    world.store().trim(Sequence::new(3)).await.unwrap();
    let fresh = world.serve(&[]).await;
    let status = Watching::resume(&fresh, picture.clone()).await.end().await;
    refusal(&status, Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED");
    // The server that was there keeps it in memory.
    assert_eq!(Watching::resume(&server, picture.clone()).await.until(6).await.placements.len(), 5);

    // A token of another journal.
    let other = World::new(world.engine()).await;
    let elsewhere = other.serve(&[]).await;
    let status = Watching::resume(&elsewhere, picture).await.end().await;
    refusal(&status, Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED");
}

async fn a_watch_of_some_cells(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    let other = world.serve(&["--memory-mode=bounded"]).await;
    server.pin(pin("a-1", "cell-a")).await.unwrap();
    server.pin(pin("b-1", "cell-b")).await.unwrap();
    server.pin(pin("c-1", "cell-c")).await.unwrap();
    for server in [&server, &other] {
        // In any order, and named twice.
        let cell_ids = ["cell-c", "cell-a", "cell-c"].map(str::to_owned).to_vec();
        let mut watch = Watching::begin(server, WatchRequest { cell_ids, ..def() }).await;
        let seen = watch.until(6).await.clone();
        assert_eq!(seen.placements.keys().collect::<Vec<_>>(), ["a-1", "c-1"]);
        assert_eq!(seen.cells.keys().collect::<Vec<_>>(), ["cell-a", "cell-c"]);
        // Its token is for the same cells.
        for cell_ids in [vec![], vec!["cell-a".to_owned()]] {
            let resume_token = seen.token.clone();
            let request = WatchRequest { resume_token, cell_ids, ..def() };
            let answer = server.directory.clone().watch(request).await;
            invalid(answer.map(|_| ()), "INVALID_RESUME_TOKEN", "resume_token");
        }
        let request = WatchRequest {
            resume_token: seen.token.clone(),
            cell_ids: ["cell-a", "cell-c"].map(str::to_owned).to_vec(),
            ..def()
        };
        let mut resumed = Watching::begin(server, request).await;
        resumed.until(seen.sequence).await;
    }
    let cell_ids = vec!["cell-a".to_owned()];
    let mut watch = Watching::begin(&other, WatchRequest { cell_ids, ..def() }).await;
    watch.until(6).await;
    server.delete("a-1").await.unwrap();
    server.pin(pin("a-1", "cell-b")).await.unwrap();
    server.pin(pin("b-2", "cell-b")).await.unwrap();
    server.pin(pin("a-2", "cell-a")).await.unwrap();
    server.delete("b-1").await.unwrap();
    let picture = watch.until(head(&world).await).await;
    assert_eq!(picture.placements.keys().collect::<Vec<_>>(), ["a-2"]);
    assert_eq!(picture.changes, 2, "the tenant who left, and the one who came");
}

async fn cells_are_sent_and_followed(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let mut watch = Watching::begin(&server, def()).await;
    let sent = watch.until(2).await.cells["cell-a"].clone();
    assert_eq!(sent, server.cell("cell-a").await.unwrap());
    let moved = v1::Cell { endpoint: "https://moved.example.com".into(), ..cell("cell-a") };
    server.update_cell(moved, &["endpoint"]).await.unwrap();
    server.delete_cell("cell-b").await.unwrap();
    server.create_cell(cell("cell-c")).await.unwrap();
    let cells = &watch.until(5).await.cells;
    assert_eq!(cells.keys().collect::<Vec<_>>(), ["cell-a", "cell-c"]);
    assert_eq!(cells["cell-a"].endpoint, "https://moved.example.com");
}

async fn what_cannot_be_watched(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    let watch =
        async |request: WatchRequest| server.directory.clone().watch(request).await.map(|_| ());
    for token in ["x", "AAAA", "not a token", &"x".repeat(2000)] {
        let request = WatchRequest { resume_token: token.into(), ..def() };
        invalid(watch(request).await, "INVALID_RESUME_TOKEN", "resume_token");
    }
    // A token of another method.
    server.pin(pin("a", "cell-a")).await.unwrap();
    server.pin(pin("b", "cell-a")).await.unwrap();
    let list = v1::ListPlacementsRequest { page_size: 1, ..def() };
    let page = server.directory.clone().list_placements(list).await.unwrap().into_inner();
    let request = WatchRequest { resume_token: page.next_page_token, ..def() };
    invalid(watch(request).await, "INVALID_RESUME_TOKEN", "resume_token");

    let cell_ids = (0..101).map(|n| format!("cell-{n}")).collect();
    let request = WatchRequest { cell_ids, ..def() };
    invalid(watch(request).await, "INVALID_BATCH_SIZE", "cell_ids");
    let cell_ids = vec!["cell-a".into(), "Not A Cell".into()];
    let request = WatchRequest { cell_ids, ..def() };
    invalid(watch(request).await, "INVALID_CELL_ID", "cell_ids[1]");
    // One that is not registered has no tenants; it may be one day.
    let cell_ids = vec!["cell-z".into()];
    let mut watch = Watching::begin(&server, WatchRequest { cell_ids, ..def() }).await;
    assert!(watch.until(0).await.placements.is_empty());
}

async fn an_idle_watch_is_alive(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    let mut watch = Watching::begin(&server, def()).await;
    watch.until(1).await;
    let began = Instant::now();
    for _ in 0..2 {
        watch.step().await.unwrap();
        assert!(watch.picture.caught_up && watch.picture.sequence == 1);
    }
    assert!(began.elapsed() >= Duration::from_secs(1), "heard too often of nothing");
}

async fn a_watch_ends_with_its_deadline(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a"]).await;
    let mut request = tonic::Request::new(WatchRequest::default());
    request.set_timeout(Duration::from_millis(700));
    let began = Instant::now();
    let stream = server.directory.clone().watch(request).await.unwrap().into_inner();
    let status = Watching { stream, picture: Picture::default() }.end().await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() >= Duration::from_millis(650) && began.elapsed() < SOON / 2);
}

async fn who_hangs_up_is_forgotten(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    // More than a connection may have open: none of them is left open.
    for _ in 0..20 {
        let watches = (0..30).map(|_| async {
            let mut watch = Watching::begin(&server, def()).await;
            watch.step().await.unwrap();
        });
        futures::future::join_all(watches).await;
    }
    server.resolve("tenant").await;
    drop(world);
}

async fn a_server_that_ends_says_so_at_once(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&[]).await;
    let mut watch = Watching::begin(&server, def()).await;
    watch.until(1).await;
    let mut watches = vec![watch];
    for _ in 0..10 {
        let mut watch =
            Watching::begin(&server, WatchRequest { changes_only: true, ..def() }).await;
        watch.step().await.unwrap();
        watches.push(watch);
    }
    let (began, picture) = (Instant::now(), watches[0].picture.clone());
    let Server { process, .. } = server;
    let ended = tokio::task::spawn_blocking(|| process.terminate());
    for watch in watches {
        let status = watch.end().await;
        let details = refusal(&status, Code::Unavailable, "SHUTTING_DOWN");
        let token = details.error_info().unwrap().metadata.get("resume_token").cloned();
        assert_eq!(token, Some(picture.token.clone()));
    }
    assert!(ended.await.unwrap().success());
    // The drain timeout of the servers here is 20 s.
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    other.pin(pin("tenant", "cell-a")).await.unwrap();
    assert_eq!(Watching::resume(&other, picture).await.until(2).await.placements.len(), 1);
}

async fn a_change_is_seen_at_the_other_server_within_a_few_polls(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&[]).await;
    let mut watch = Watching::begin(&other, def()).await;
    watch.until(1).await;
    for n in 0..10 {
        let key = format!("tenant-{n}");
        server.pin(pin(&key, "cell-a")).await.unwrap();
        let began = Instant::now();
        while !watch.picture.placements.contains_key(&key) {
            watch.step().await.unwrap();
        }
        // Polls are 50 ms apart; this is for a busy machine.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
