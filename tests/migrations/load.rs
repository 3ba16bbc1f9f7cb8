//! A tenant that moves there and back all the time, while eight writers write, workers are killed, and the network is bad: all that was
//! acknowledged is there, as it was acknowledged last, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use cell_directory::proto::v1;
use cell_directory::proto::v1::migration_service_client::MigrationServiceClient;
use cells_client::{Directory, Mode};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::arena::{Arena, Ended, faulty};
use crate::dynamodb_local::DynamoDbLocal;
use crate::ledger::{Allowed, At, Counter, Ledger, TABLES, TENANT, count, number};
use crate::proxy::{Laid, Proxy};
use crate::scene::{CELLS, Item, Scene, partition, text};
use crate::world::Engine;
use crate::writers::{Shared, Writer, options};

const WRITERS: usize = 8;

/// Items that nobody writes while the tenant moves.
const STILL: usize = 150;

/// Commits there or back, unless the environment says how many.
const ROUNDS: u64 = 50;

/// Longest wait for one move to get on, whatever happens.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tenants that do not move, with names that a prefix could be mistaken for.
const BYSTANDERS: [(&str, &str); 4] =
    [("loa", "cell-a"), ("load#1", "cell-a"), ("load1", "cell-b"), ("other", "cell-longer")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_while_a_tenant_moves_under_load() {
    let rounds = std::env::var("CELLD_TEST_MOVE_ROUNDS").map(|text| text.parse().unwrap());
    let rounds = rounds.unwrap_or(ROUNDS);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut scene = Scene::new(Engine::DynamoDbLocal(DynamoDbLocal::shared())).await;
    let still = populate(&mut scene).await;
    let before = bystanders(&scene).await;
    let backend = scene.world.engine.endpoint();
    leases_were_always_short(&scene).await;
    let arena = Arena::start(&backend, &scene.world.prefix);
    let _ended = Ended(Arc::clone(&arena));
    // The one that made the tables is in nobody's way any more.
    let made = scene.world.server.id().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &made]).status().unwrap().success());

    let shared = Arc::new(Shared::default());
    let crowds = [crowd(&arena, &backend).await, crowd(&arena, &backend).await];
    let writers: Vec<_> = (0..WRITERS)
        .map(|name| {
            let data = crowds[name % crowds.len()].data.clone();
            tokio::spawn(Writer::new(name, data, Arc::clone(&shared), seed).run())
        })
        .collect();
    let rampage = arena.rampage(seed);
    let began = Instant::now();
    let mut mover = Mover::new(arena.endpoints(), Arc::clone(&shared), seed);
    while mover.commits < rounds {
        mover.move_on().await;
        println!("{:?}: {} commits", began.elapsed(), mover.commits);
    }
    let lasted = began.elapsed();
    shared.stop.cancel();
    let mut ledger = Ledger::new();
    for writer in writers {
        ledger.append(&mut writer.await.unwrap());
    }
    arena.settle();
    rampage.join().unwrap();
    tell(&mover, &shared, &arena, &crowds, lasted);
    shared.tally.check();
    ledger.extend(still);
    everything_is_as_acknowledged(&scene, &mover.live, &ledger, &shared).await;
    assert_eq!(bystanders(&scene).await, before);
}

/// A replica that has just started takes leases to have been as long as can be, a minute, if they were ever changed: it would wait that
/// minute before it copies, and is not left alone for so long here. So it is made to look as if they had never been changed.
async fn leases_were_always_short(scene: &Scene) {
    let settings = scene
        .tables
        .update_item()
        .table_name(format!("{}CellControl", scene.world.prefix))
        .key("PK", text("CLUSTER"))
        .key("SK", text("SETTINGS"))
        .update_expression("SET Revision = :never")
        .expression_attribute_values(":never", number(0))
        .condition_expression("attribute_exists(PK)");
    settings.send().await.unwrap();
}

/// What several writers share: their directory, and their bad network.
struct Crowd {
    data: cells_client::data::Data,
    faults: Vec<Laid>,
    _proxy: Proxy,
}

async fn crowd(arena: &Arena, backend: &str) -> Crowd {
    let directory = Directory::builder(arena.endpoints())
        .mode(Mode::Whole)
        .sync_interval(Duration::from_millis(100))
        .backoff_max(Duration::from_millis(300))
        .stale_after(Duration::from_secs(1))
        .connect()
        .await
        .unwrap();
    let (proxy, faults) = faulty(backend, 1);
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new("local", "local", None, None, "tests"))
        .endpoint_url(proxy.endpoint())
        .build();
    Crowd { data: directory.data_with(config, options()).unwrap(), faults, _proxy: proxy }
}

/// Places all tenants and writes what will not be written any more.
async fn populate(scene: &mut Scene) -> Ledger {
    scene.pin(TENANT, "cell-a").await;
    let mut still = Ledger::new();
    for number in 0..STILL {
        let at = At::new(TABLES[number % TABLES.len()], format!("STILL#{number:03}"));
        let mut item = at.item(number as u64);
        item.insert("CellId".to_owned(), text("cell-a"));
        scene.write(at.table, "cell-a", item).await;
        let mut allowed = Allowed::default();
        allowed.acknowledged(Some(number as u64));
        still.insert(at, allowed);
    }
    for (tenant, cell) in BYSTANDERS {
        scene.pin(tenant, cell).await;
        for (number, table) in TABLES.iter().cycle().take(20).enumerate() {
            let of = if *table == "Journeys" { "TRAVELLER#" } else { "CUSTOMER#" };
            let item = Item::from([
                ("PK".to_owned(), text(&format!("{of}{tenant}"))),
                ("SK".to_owned(), text(&format!("W0#{number}"))),
                ("CellId".to_owned(), text(cell)),
                ("V".to_owned(), text(&rand::random::<u64>().to_string())),
            ]);
            scene.write(table, cell, item).await;
        }
    }
    still
}

/// Whether a partition is the tenant's that moves.
fn moves(item: &Item) -> bool {
    let name = item["PK"].as_s().unwrap();
    *name == partition(TENANT) || *name == format!("TRAVELLER#{TENANT}")
}

/// All that tenants have who do not move, in every cell.
async fn bystanders(scene: &Scene) -> BTreeMap<String, Item> {
    let mut all = BTreeMap::new();
    for cell in CELLS {
        for table in TABLES {
            let items = scene.items(table, cell).await.into_iter();
            let theirs = items.filter(|(_, item)| !moves(item));
            all.extend(theirs.map(|(key, item)| (format!("{cell} {table} {key}"), item)));
        }
    }
    assert_eq!(all.len(), BYSTANDERS.len() * 20);
    all
}

/// Moves the tenant on, by whatever replica answers.
struct Mover {
    endpoints: Vec<String>,
    shared: Arc<Shared>,
    random: StdRng,
    live: String,
    commits: u64,
    begun: usize,
    reversed: usize,
    cancelled: usize,
    pauses: Vec<Duration>,
    repaired: i64,
}

impl Mover {
    fn new(endpoints: Vec<String>, shared: Arc<Shared>, seed: u64) -> Self {
        Self {
            endpoints,
            shared,
            random: StdRng::seed_from_u64(seed),
            live: "cell-a".to_owned(),
            commits: 0,
            begun: 0,
            reversed: 0,
            cancelled: 0,
            pauses: Vec::new(),
            repaired: 0,
        }
    }

    /// One move to its end: there, there and back, or given up.
    async fn move_on(&mut self) {
        let others = CELLS.iter().filter(|cell| **cell != self.live);
        let to = others.copied().nth(self.random.random_range(0..CELLS.len() - 1)).unwrap();
        let kind = self.random.random_range(0..10);
        self.begun += 1;
        let soak = if kind < 4 { 3600 } else { 0 };
        let verification = match kind {
            9 => v1::MigrationVerification::Strict,
            _ => v1::MigrationVerification::LogDrain,
        };
        let request = v1::StartMigrationRequest {
            partition_key: TENANT.to_owned(),
            target: Some(v1::start_migration_request::Target::TargetCellId(to.to_owned())),
            verification: verification.into(),
            soak_duration: Some(prost_types::Duration { seconds: soak, nanos: 0 }),
            request_id: format!("move-{}", self.begun),
            ..Default::default()
        };
        let begun =
            self.call(&request, async |mut api, request| api.start_migration(request).await);
        let id = begun.await.migration.unwrap().migration_id;
        match kind {
            0..3 => {
                self.until(&id, v1::MigrationState::Soaking).await;
                self.linger(400).await;
                let reverse = v1::ReverseMigrationRequest { migration_id: id.clone() };
                self.ask(&reverse, async |mut api, ask| api.reverse_migration(ask).await).await;
                self.reversed += 1;
            }
            3 => {
                self.until(&id, v1::MigrationState::Soaking).await;
                self.linger(400).await;
                let complete = v1::CompleteMigrationRequest { migration_id: id.clone() };
                self.ask(&complete, async |mut api, ask| api.complete_migration(ask).await).await;
            }
            4 => {
                self.linger(1500).await;
                let cancel = v1::CancelMigrationRequest { migration_id: id.clone() };
                self.ask(&cancel, async |mut api, ask| api.cancel_migration(ask).await).await;
                self.cancelled += 1;
            }
            _ => {}
        }
        let ended = self.until(&id, v1::MigrationState::Done).await;
        self.live = ended.live_cell_id;
        self.commits = ended.epoch - 1;
        let progress = ended.progress.unwrap_or_default();
        self.pauses.extend(progress.last_pause.map(|pause| Duration::try_from(pause).unwrap()));
        self.repaired += ended.report.map_or(0, |report| report.repaired);
    }

    async fn linger(&mut self, millis: u64) {
        let millis = self.random.random_range(0..millis);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Waits until a migration is in a state, or has been given up.
    async fn until(&mut self, id: &str, state: v1::MigrationState) -> v1::Migration {
        let deadline = Instant::now() + PATIENCE;
        let get = v1::GetMigrationRequest { migration_id: id.to_owned() };
        let mut seen = v1::MigrationState::Unspecified;
        loop {
            self.shared.tally.check();
            let got = self.call(&get, async |mut api, get| api.get_migration(get).await).await;
            let migration = got.migration.unwrap();
            if std::mem::replace(&mut seen, migration.state()) != seen {
                println!(
                    "{seen:?}, worker {}, {} acknowledged",
                    migration.worker,
                    self.shared.tally.acknowledged()
                );
            }
            if [state, v1::MigrationState::Aborted].contains(&migration.state()) {
                return migration;
            }
            assert_eq!(migration.parked_reason, "", "{migration:#?}");
            assert!(Instant::now() < deadline, "not {state:?}: {migration:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A wish that may come too late.
    async fn ask<A: Clone, B>(
        &mut self,
        request: &A,
        ask: impl AsyncFn(MigrationServiceClient<Channel>, A) -> Result<tonic::Response<B>, Status>,
    ) {
        self.tried(request, ask, &[Code::FailedPrecondition]).await;
    }

    async fn call<A: Clone, B>(
        &mut self,
        request: &A,
        call: impl AsyncFn(MigrationServiceClient<Channel>, A) -> Result<tonic::Response<B>, Status>,
    ) -> B {
        self.tried(request, call, &[]).await.unwrap()
    }

    /// By one replica after the other, until one answers. `None`: it was refused with one of these codes.
    async fn tried<A: Clone, B>(
        &mut self,
        request: &A,
        call: impl AsyncFn(MigrationServiceClient<Channel>, A) -> Result<tonic::Response<B>, Status>,
        refusals: &[Code],
    ) -> Option<B> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let endpoint = &self.endpoints[self.random.random_range(0..self.endpoints.len())];
            let endpoint = tonic::transport::Endpoint::from_shared(endpoint.clone()).unwrap();
            let endpoint = endpoint.timeout(Duration::from_secs(10));
            let answer = match endpoint.connect().await {
                Ok(channel) => call(MigrationServiceClient::new(channel), request.clone()).await,
                Err(_) => Err(Status::unavailable("nobody is there")),
            };
            match answer {
                Ok(answer) => return Some(answer.into_inner()),
                Err(status) if refusals.contains(&status.code()) => return None,
                Err(status) => {
                    let passing = [
                        Code::Unavailable,
                        Code::DeadlineExceeded,
                        Code::Aborted,
                        Code::Cancelled,
                        Code::Unknown,
                        Code::Internal,
                        Code::ResourceExhausted,
                    ];
                    assert!(passing.contains(&status.code()), "{status:?}");
                    assert!(Instant::now() < deadline, "{status:?}");
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn tell(mover: &Mover, shared: &Shared, arena: &Arena, crowds: &[Crowd], lasted: Duration) {
    let (tally, seconds) = (&shared.tally, lasted.as_secs_f64());
    let mut pauses = mover.pauses.clone();
    pauses.sort();
    let faults: usize = crowds.iter().flat_map(|crowd| &crowd.faults).map(Laid::fired).sum();
    println!(
        "{} commits in {seconds:.0} s: {} moves begun, {} reversed, {} cancelled; {} kills; faults: {} at replicas, {faults} at writers",
        mover.commits,
        mover.begun,
        mover.reversed,
        mover.cancelled,
        arena.kills(),
        arena.faults(),
    );
    println!(
        "{:.0} acknowledged writes a second: {} direct, {} guarded, {} logged; {} redirects, {} unknown, {} conditions that failed, {} not done, {} reads",
        tally.acknowledged() as f64 / seconds,
        count(&tally.direct),
        count(&tally.guarded),
        count(&tally.logged),
        count(&tally.redirects),
        count(&tally.unknown),
        count(&tally.refused),
        count(&tally.passing),
        count(&tally.reads),
    );
    println!(
        "a call took {} ms at most; the last pause of a migration was {:?} in the middle, {:?} at most; {} items repaired",
        count(&tally.longest_millis),
        pauses.get(pauses.len() / 2),
        pauses.last(),
        mover.repaired,
    );
}

/// The tenant's items in its cell are those of the ledger, and in no other cell there are any.
async fn everything_is_as_acknowledged(scene: &Scene, live: &str, all: &Ledger, shared: &Shared) {
    let mut ledger: BTreeMap<&At, &Allowed> = all.iter().collect();
    let counters: Vec<_> = (0..shared.counters.len()).map(Counter::at).collect();
    for cell in CELLS {
        for table in TABLES {
            for (key, item) in scene.items(table, cell).await {
                if !moves(&item) {
                    continue;
                }
                assert_eq!(cell, live, "{key} was left behind, or came back");
                if let Some(stamp) = item.get("CellId") {
                    assert_eq!(*stamp, text(live), "{key}");
                }
                let at = At::new(table, item["SK"].as_s().unwrap().clone());
                if let Some(number) = counters.iter().position(|counter| *counter == at) {
                    let counter = &shared.counters[number];
                    let found: u64 = item["N"].as_n().unwrap().parse().unwrap();
                    let least = count(&counter.acknowledged);
                    let most = least + count(&counter.unknown);
                    assert!((least..=most).contains(&found), "{at:?}: {found}, not {least}-{most}");
                    continue;
                }
                let allowed = ledger.remove(&at).unwrap_or_else(|| panic!("{at:?} is nobody's"));
                let value = at.value(item).unwrap();
                assert!(allowed.has(Some(value)), "{at:?} is {value}, not one of {allowed:?}");
            }
        }
        // One guard a tenant, and no log.
        for (key, record) in scene.records(cell).await {
            assert!(record.contains_key("GuardState"), "{cell} {key}: {record:?}");
        }
    }
    for (at, allowed) in ledger {
        assert!(allowed.has(None), "{at:?} is not there: {allowed:?}");
    }
}
