//! A tenant that moves there and back all the time, while eight writers write, workers are killed, and the network is bad: all that was
//! acknowledged is there, as it was acknowledged last, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use cells_client::{Directory, Mode};

use crate::arena::{Arena, Ended, faulty};
use crate::dynamodb_local::DynamoDbLocal;
use crate::ledger::{Allowed, At, Counter, Ledger, TABLES, TENANT, count};
use crate::mover::{Figures, Mover};
use crate::proxy::{Laid, Proxy};
use crate::scene::{CELLS, Item, LEASE, Scene, partition, text};
use crate::world::Engine;
use crate::writers::{Shared, options, write};

/// How long leases are by default, and a little.
const LONG_LEASES: Duration = Duration::from_millis(5_100);

const WRITERS: usize = 8;

/// Writes that are acknowledged before the tenant moves.
const WARM: u64 = 2000;

/// Items that nobody writes while the tenant moves.
const STILL: usize = 60;

/// Moves there and back, unless the environment says how many.
const ROUNDS: u64 = 50;

/// Tenants that do not move, with names that a prefix could be mistaken for.
const BYSTANDERS: [(&str, &str); 4] =
    [("loa", "cell-a"), ("load#1", "cell-a"), ("load1", "cell-b"), ("other", "cell-longer")];

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_acknowledged_is_lost_while_a_tenant_moves_under_load() {
    let rounds = from_environment("CELLD_TEST_LOAD_ROUNDS").unwrap_or(ROUNDS);
    let seed = from_environment("CELLD_TEST_LOAD_SEED").unwrap_or_else(rand::random);
    println!("CELLD_TEST_LOAD_SEED={seed}");
    let mut scene = Scene::plain(Engine::DynamoDbLocal(DynamoDbLocal::shared())).await;
    let shortened = Instant::now();
    let still = populate(&mut scene).await;
    let before = bystanders(&scene).await;
    let backend = scene.world.engine.endpoint();
    forget_long_leases(&mut scene, shortened).await;
    let arena = Arena::start(&backend, &scene.world.prefix);
    let _ended = Ended(Arc::clone(&arena));
    // The one that made the tables is in nobody's way any more.
    let made = scene.world.server.id().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &made]).status().unwrap().success());

    let shared = Arc::new(Shared::default());
    let began = Instant::now();
    let crowds = [crowd(&arena, &backend).await, crowd(&arena, &backend).await];
    let writers: Vec<_> = (0..WRITERS)
        .map(|name| {
            let data = crowds[name % crowds.len()].data.clone();
            tokio::spawn(write(name, data, Arc::clone(&shared), seed))
        })
        .collect();
    // An engine that has just started is slow for a while.
    while shared.tally.acknowledged() < WARM {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rampage = arena.rampage(seed);
    let mut mover = Mover::new(arena.endpoints(), Arc::clone(&shared), seed);
    while mover.figures.rounds < rounds {
        mover.round().await;
    }
    let lasted = began.elapsed();
    shared.stop.cancel();
    let mut ledger = Ledger::new();
    for writer in writers {
        ledger.append(&mut writer.await.unwrap());
    }
    arena.settle();
    rampage.join().unwrap();
    tell(&mover.figures, &shared, &arena, &crowds, lasted);
    shared.tally.check();
    ledger.extend(still);
    everything_is_as_acknowledged(&scene, &mover.live, &ledger, &shared).await;
    assert_eq!(bystanders(&scene).await, before);
    there_was_load(&mover.figures, &shared, &arena, &crowds);
}

/// Leases were longer before the scene made them short. Replicas that start learn from the settings how long they were, and wait for them
/// before they copy: settings that came after the last of them has run out do not speak of them any more.
async fn forget_long_leases(scene: &mut Scene, shortened: Instant) {
    tokio::time::sleep_until((shortened + LONG_LEASES).into()).await;
    scene.lease(LEASE).await;
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

fn faults(crowds: &[Crowd]) -> usize {
    crowds.iter().flat_map(|crowd| &crowd.faults).map(Laid::fired).sum()
}

fn tell(figures: &Figures, shared: &Shared, arena: &Arena, crowds: &[Crowd], lasted: Duration) {
    let (tally, seconds) = (&shared.tally, lasted.as_secs_f64());
    println!(
        "{} rounds, {} commits in {seconds:.0} s: {} moves begun, {} reversed, {} cancelled; {} kills, {} takeovers; faults: {} at replicas, {} at writers",
        figures.rounds,
        figures.commits,
        figures.begun,
        figures.reversed,
        figures.cancelled,
        arena.kills(),
        figures.takeovers,
        arena.faults(),
        faults(crowds),
    );
    println!(
        "a second: {:.0} acknowledged calls, which wrote {:.0} items; {} direct, {} guarded, {} logged; {} redirects, {} unknown, {} conditions that failed, {} not done, {} reads",
        tally.acknowledged() as f64 / seconds,
        (tally.acknowledged() + count(&tally.more_items)) as f64 / seconds,
        count(&tally.direct),
        count(&tally.guarded),
        count(&tally.logged),
        count(&tally.redirects),
        count(&tally.unknown),
        count(&tally.refused),
        count(&tally.passing),
        count(&tally.reads),
    );
    let (average, longest) = tally.times();
    let mut pauses = figures.pauses.clone();
    pauses.sort();
    println!(
        "a call took {average:?} on average, {longest:?} at most; {} fences, the last of each migration {:?} in the middle, {:?} at most",
        figures.fences,
        pauses.get(pauses.len() / 2),
        pauses.last(),
    );
    println!("items: {:?}; time: {:?}", figures.items, figures.states);
}

/// A run without what it is about shows nothing.
fn there_was_load(figures: &Figures, shared: &Shared, arena: &Arena, crowds: &[Crowd]) {
    let (tally, rounds) = (&shared.tally, usize::try_from(figures.rounds).unwrap());
    assert!(figures.commits >= 2 * figures.rounds);
    // Nothing that a move needs repaired is normal.
    assert_eq!(figures.items["repaired"], 0);
    assert!(arena.kills() >= rounds && figures.takeovers >= figures.rounds / 2);
    assert!(arena.faults() >= 10 * rounds && faults(crowds) >= 10 * rounds);
    assert!(tally.acknowledged() >= 200 * figures.rounds);
    for how in [&tally.direct, &tally.guarded, &tally.logged, &tally.redirects] {
        assert!(count(how) >= figures.rounds);
    }
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
