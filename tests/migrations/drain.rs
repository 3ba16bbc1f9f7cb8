//! A cell is drained while its tenants are routed: workers die, tables throttle, and others want the same tenants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cell_directory::proto::v1::migration_service_client::MigrationServiceClient;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

use crate::celld::Celld;
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::proxy::{Fault, Proxy, Rule};
use crate::scene::{FLAGS, Item, Scene, partition, request, text};
use crate::world::{Engine, fault};

/// Longest wait for a drain, on a busy machine.
const SOON: Duration = Duration::from_secs(400);

const TABLES: [&str; 3] = ["CustomerData", "Journeys", "Carts"];

fn embedded() -> Engine {
    Engine::Embedded(Arc::new(Embedded::temporary()))
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("tenant-{n:03}")).collect()
}

impl Scene {
    /// Tenants in a cell, each with a few items.
    async fn settle(&mut self, tenants: &[String], cell: &str) {
        for tenant in tenants {
            self.pin(tenant, cell).await;
            for n in 0..3 {
                self.write("CustomerData", cell, item(&partition(tenant), Some(n), cell)).await;
            }
            let traveller = format!("TRAVELLER#{tenant}");
            self.write("Journeys", cell, item(&traveller, Some(0), cell)).await;
            self.write("Carts", cell, item(&partition(tenant), None, cell)).await;
        }
    }

    async fn drain(&mut self, cell: &str, how: v1::StartDrainRequest) -> v1::Bulk {
        let terms = v1::BulkTerms {
            soak_duration: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let request = v1::StartDrainRequest { cell_id: cell.to_owned(), terms: Some(terms), ..how };
        self.moves.start_drain(request).await.unwrap().into_inner().bulk.unwrap()
    }

    async fn bulk(&mut self, id: &str) -> v1::Bulk {
        let request = v1::GetBulkRequest { bulk_id: id.to_owned() };
        self.moves.get_bulk(request).await.unwrap().into_inner().bulk.unwrap()
    }

    async fn bulk_until(&mut self, id: &str, enough: impl Fn(&v1::Bulk) -> bool) -> v1::Bulk {
        let deadline = Instant::now() + SOON;
        loop {
            let bulk = self.bulk(id).await;
            if enough(&bulk) {
                return bulk;
            }
            assert!(Instant::now() < deadline, "{bulk:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// From now on, another server is asked. The one before is killed.
    async fn ask(&mut self, server: Celld) {
        let channel = server.channel().await;
        self.world.admin = server.admin().await;
        self.moves = MigrationServiceClient::new(channel.clone());
        self.directory = CellDirectoryClient::new(channel);
        std::mem::replace(&mut self.world.server, server).kill();
    }

    /// Asserts that each of these tenants is in another cell with all that it had in this one, and that nothing is left here.
    async fn assert_left(&mut self, tenants: &[String], cell: &str) -> BTreeMap<String, usize> {
        let mut homes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for tenant in tenants {
            let placement = self.placement(tenant).await;
            assert_ne!(placement.cell_id, cell, "{tenant}");
            assert_eq!((placement.epoch, placement.migration_id.as_str()), (2, ""), "{tenant}");
            homes.entry(placement.cell_id).or_default().insert(tenant.clone());
        }
        for (home, tenants) in &homes {
            for (table, due) in TABLES.iter().zip([3, 1, 1]) {
                let items = self.items(table, home).await;
                assert!(items.values().all(|item| item["CellId"] == text(home)), "{items:?}");
                let mut held = BTreeMap::new();
                for item in items.values() {
                    let (_, tenant) = item["PK"].as_s().unwrap().split_once('#').unwrap();
                    *held.entry(tenant.to_owned()).or_insert(0) += 1;
                }
                let due = tenants.iter().map(|tenant| (tenant.clone(), due)).collect();
                assert_eq!(held, due, "{table} of {home}");
            }
        }
        for table in TABLES {
            assert_eq!(self.items(table, cell).await, BTreeMap::new(), "{table}");
        }
        assert_eq!(self.placements(cell).await, 0);
        homes.into_iter().map(|(home, tenants)| (home, tenants.len())).collect()
    }

    /// A tenant's items in each of a cell's tables.
    async fn held(&self, tenant: &str, cell: &str) -> [usize; 3] {
        let mut held = [0; 3];
        for (table, held) in TABLES.iter().zip(&mut held) {
            let ours = [partition(tenant), format!("TRAVELLER#{tenant}")];
            let items = self.items(table, cell).await;
            let of = |item: &&Item| ours.iter().any(|pk| *pk == *item["PK"].as_s().unwrap());
            *held = items.values().filter(of).count();
        }
        held
    }

    async fn placements(&mut self, cell: &str) -> i64 {
        let request = v1::GetCellRequest { cell_id: cell.to_owned() };
        let answer = self.world.admin.get_cell(request).await.unwrap().into_inner();
        i64::try_from(answer.cell.unwrap().placement_count).unwrap()
    }
}

fn item(pk: &str, sk: Option<usize>, cell: &str) -> Item {
    let mut item = Item::from([("PK".to_owned(), text(pk)), ("CellId".to_owned(), text(cell))]);
    if let Some(sk) = sk {
        item.insert("SK".to_owned(), text(&format!("ITEM#{sk}")));
    }
    item
}

/// Somebody who routes all tenants all the time.
struct Caller {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
    answered: Arc<AtomicUsize>,
}

impl Caller {
    fn start(mut directory: CellDirectoryClient<Channel>, tenants: Vec<String>) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), answered.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                for tenant in &tenants {
                    let request =
                        v1::ResolveRequest { partition_key: tenant.clone(), ..Default::default() };
                    let answer = directory.resolve(request).await;
                    assert!(answer.is_ok(), "{tenant}: {answer:?}");
                    count.fetch_add(1, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { stop, task, answered }
    }

    /// Asserts that every call was answered, and that there were some.
    async fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        assert!(self.answered.load(Ordering::SeqCst) > 0);
    }
}

async fn a_cell_is_emptied_though_half_of_its_workers_die(mut scene: Scene, count: i64) {
    let tenants = names(usize::try_from(count).unwrap());
    scene.settle(&tenants, "cell-a").await;
    let refused = v1::StartDrainRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let refused = scene.moves.start_drain(refused).await.unwrap_err();
    let due = (Code::FailedPrecondition, "CELL_TAKES_TENANTS".to_owned(), vec![]);
    assert_eq!(fault(&refused), due);
    scene.world.cordon("cell-a").await;
    let plan = v1::PlanDrainRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let plan = scene.moves.plan_drain(plan).await.unwrap().into_inner().plan.unwrap();
    assert_eq!((plan.moves_total, plan.staying_total), (count, 0), "{plan:?}");

    let named = || v1::StartDrainRequest {
        request_id: "drain-1".to_owned(),
        limits: Some(v1::BulkLimits {
            running: 16,
            per_source: 16,
            per_target: 8,
            ..Default::default()
        }),
        ..Default::default()
    };
    let begun = scene.drain("cell-a", named()).await;
    let id = begun.bulk_id.clone();
    assert_eq!(scene.drain("cell-a", named()).await.bulk_id, id);
    let second = v1::StartDrainRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let second = scene.moves.start_drain(second).await.unwrap_err();
    assert_eq!(fault(&second).1, "BULK_RUNNING");
    assert_eq!(second.get_details_error_info().unwrap().metadata["bulk_id"], id);
    // The first server has taken the bulk, so that its worker is one of those that die.
    scene.bulk_until(&id, |bulk| bulk.worker == 1).await;
    let others = [
        scene.world.join(&FLAGS).await,
        scene.world.join(&FLAGS).await,
        scene.world.join(&FLAGS).await,
    ];
    let [asked, survives, dies] = others;
    let caller = Caller::start(survives.directory().await, tenants.clone());
    let progress = scene.bulk_until(&id, |bulk| bulk.counts.unwrap().done >= count / 10).await;
    assert!(
        progress.counts.unwrap().done < count * 4 / 5,
        "too late to kill anybody: {progress:?}"
    );
    scene.ask(asked).await;
    dies.kill();

    let ended = scene.bulk_until(&id, |bulk| bulk.state() == v1::BulkState::Finished).await;
    caller.end().await;
    assert_eq!(ended.counts.unwrap().done, count, "{ended:#?}");
    assert!(ended.worker >= 2 && ended.end_time.is_some(), "{ended:?}");
    let homes = scene.assert_left(&tenants, "cell-a").await;
    assert_eq!(homes.values().copied().collect::<Vec<_>>(), [tenants.len() / 2; 2]);
    // Over: the cell can be drained again, and there is nothing to do.
    let again = v1::StartDrainRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let again = scene.moves.start_drain(again).await.unwrap_err();
    assert_eq!(fault(&again).1, "NOTHING_TO_MOVE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_is_emptied_though_half_of_its_workers_die_embedded() {
    let scene = Scene::new(embedded()).await;
    a_cell_is_emptied_though_half_of_its_workers_die(scene, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_is_emptied_though_half_of_its_workers_die_dynamodb_local() {
    let scene = Scene::new(Engine::DynamoDbLocal(DynamoDbLocal::shared())).await;
    a_cell_is_emptied_though_half_of_its_workers_die(scene, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_stands_still_in_a_pause_and_a_cancelled_one_leaves_the_rest_where_it_is() {
    let mut scene = Scene::new(embedded()).await;
    let tenants = names(12);
    scene.settle(&tenants, "cell-a").await;
    scene.world.cordon("cell-a").await;
    let one = v1::StartDrainRequest {
        limits: Some(v1::BulkLimits { running: 1, ..Default::default() }),
        ..Default::default()
    };
    let id = scene.drain("cell-a", one).await.bulk_id;
    let bulk_id = || id.clone();
    scene.bulk_until(&id, |bulk| bulk.counts.unwrap().done >= 1).await;
    let paused = scene.moves.pause_bulk(v1::PauseBulkRequest { bulk_id: bulk_id() }).await;
    let paused = paused.unwrap().into_inner().bulk.unwrap();
    assert_eq!(paused.state(), v1::BulkState::Paused);
    let still = scene.bulk_until(&id, |bulk| bulk.counts.unwrap().running == 0).await;
    // Looks go on, and nobody is started.
    let looks = scene.bulk_until(&id, |bulk| bulk.update_time != still.update_time).await;
    assert_eq!(looks.counts, still.counts);
    let done = still.counts.unwrap().done;
    assert!(done < 12, "{still:?}");
    let resumed = scene.moves.resume_bulk(v1::ResumeBulkRequest { bulk_id: bulk_id() }).await;
    assert_eq!(resumed.unwrap().into_inner().bulk.unwrap().state(), v1::BulkState::Running);
    scene.bulk_until(&id, |bulk| bulk.counts.unwrap().done > done).await;

    let cancel = v1::CancelBulkRequest { bulk_id: bulk_id(), migrations: true };
    scene.moves.cancel_bulk(cancel.clone()).await.unwrap();
    let ended = scene.bulk_until(&id, |bulk| bulk.state() == v1::BulkState::Cancelled).await;
    let counts = ended.counts.unwrap();
    assert!(counts.skipped > 0 && counts.done + counts.skipped == 12, "{ended:?}");
    assert_eq!(ended.problems.len() as i64, counts.skipped);
    let mut left = 0;
    for tenant in &tenants {
        let placement = scene.placement(tenant).await;
        left += i64::from(placement.cell_id == "cell-a");
        assert_eq!(placement.migration_id, "");
        let home = placement.cell_id;
        assert_eq!(scene.held(tenant, &home).await, [3, 1, 1], "{tenant} in {home}");
    }
    assert_eq!((left, scene.placements("cell-a").await), (counts.skipped, counts.skipped));
    // To cancel it once more is harmless; to resume it is too late.
    scene.moves.cancel_bulk(cancel).await.unwrap();
    let late = scene.moves.resume_bulk(v1::ResumeBulkRequest { bulk_id: bulk_id() }).await;
    assert_eq!(fault(&late.unwrap_err()).1, "INSTRUCTION_NOT_ALLOWED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_cells_are_drained_at_once_and_a_tenant_in_the_way_stops_nobody() {
    let mut scene = Scene::new(embedded()).await;
    let all = names(13);
    let (first, second) = all.split_at(7);
    scene.settle(first, "cell-a").await;
    scene.settle(second, "cell-b").await;
    // What a tenant left behind, once: it cannot be moved there.
    scene.write("Carts", "cell-longer", item(&partition(&first[0]), None, "cell-longer")).await;
    scene.world.cordon("cell-a").await;
    scene.world.cordon("cell-b").await;
    let begun = [
        scene.drain("cell-a", Default::default()).await,
        scene.drain("cell-b", Default::default()).await,
    ];
    let listed = scene.moves.list_bulks(v1::ListBulksRequest::default()).await.unwrap();
    let listed: BTreeSet<_> =
        listed.into_inner().bulks.into_iter().map(|bulk| bulk.bulk_id).collect();
    assert_eq!(listed, begun.iter().map(|bulk| bulk.bulk_id.clone()).collect());
    let finished = |bulk: &v1::Bulk| bulk.state() == v1::BulkState::Finished;
    let a = scene.bulk_until(&begun[0].bulk_id, finished).await;
    let b = scene.bulk_until(&begun[1].bulk_id, finished).await;
    assert_eq!((a.counts.unwrap().done, a.counts.unwrap().failed), (6, 1), "{a:#?}");
    assert_eq!(b.counts.unwrap().done, 6, "{b:#?}");
    let [problem] = &a.problems[..] else { panic!("{a:#?}") };
    assert_eq!((&problem.partition_key, problem.attempts), (&first[0], 3));
    assert!(problem.reason.contains("holds 1 items of the tenant already"), "{problem:?}");
    // Nothing came of the tenant in the way.
    assert_eq!(scene.placement(&first[0]).await.epoch, 1);
    assert_eq!(scene.held(&first[0], "cell-a").await, [3, 1, 1]);
    assert_eq!(scene.placements("cell-a").await, 1);
    for tenant in first[1..].iter().chain(second) {
        assert_eq!(scene.placement(tenant).await.cell_id, "cell-longer");
        assert_eq!(scene.held(tenant, "cell-longer").await, [3, 1, 1], "{tenant}");
    }
    assert_eq!(scene.placements("cell-b").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opposing_moves_pass_each_other_and_of_two_moves_of_a_tenant_one_wins() {
    let mut scene = Scene::new(embedded()).await;
    let other = scene.world.join(&FLAGS).await;
    let mut elsewhere = MigrationServiceClient::new(other.channel().await);
    let all = names(9);
    let (there, rest) = all.split_at(4);
    let (back, contested) = rest.split_at(4);
    scene.settle(there, "cell-a").await;
    scene.settle(back, "cell-b").await;
    scene.settle(contested, "cell-a").await;
    let at_once = |tenant: &str, to: &str| v1::StartMigrationRequest {
        soak_duration: Some(prost_types::Duration::default()),
        ..request(tenant, to)
    };
    let mut begun = Vec::new();
    for (one, two) in there.iter().zip(back) {
        begun.push((one, "cell-b", scene.start_with(at_once(one, "cell-b")).await.unwrap()));
        begun.push((two, "cell-a", scene.start_with(at_once(two, "cell-a")).await.unwrap()));
    }
    let contested = &contested[0];
    let mut here = scene.moves.clone();
    let (one, two) = tokio::join!(
        here.start_migration(at_once(contested, "cell-b")),
        elsewhere.start_migration(at_once(contested, "cell-longer")),
    );
    let (won, lost, loser) = match (one, two) {
        (Ok(won), Err(lost)) => (won, lost, "cell-longer"),
        (Err(lost), Ok(won)) => (won, lost, "cell-b"),
        both => panic!("{both:?}"),
    };
    let won = won.into_inner().migration.unwrap();
    let target = won.spec.clone().unwrap().target_cell_id;
    let due = (Code::FailedPrecondition, "MIGRATION_RUNNING".to_owned(), vec![]);
    assert_eq!(fault(&lost), due);
    let info = lost.get_details_error_info().unwrap().metadata;
    assert_eq!((&info["migration_id"], &info["target_cell_id"]), (&won.migration_id, &target));

    for (tenant, target, migration) in &begun {
        scene.until(&migration.migration_id, v1::MigrationState::Done).await;
        let placement = scene.placement(tenant).await;
        assert_eq!((placement.cell_id.as_str(), placement.epoch), (*target, 2), "{tenant}");
        assert_eq!(scene.held(tenant, target).await, [3, 1, 1], "{tenant}");
        let source = if *target == "cell-a" { "cell-b" } else { "cell-a" };
        assert_eq!(scene.held(tenant, source).await, [0; 3], "{tenant}");
    }
    scene.until(&won.migration_id, v1::MigrationState::Done).await;
    assert_eq!(scene.placement(contested).await.cell_id, target);
    assert_eq!(scene.held(contested, &target).await, [3, 1, 1]);
    // Of the one that lost there is nothing: no item, no guard, no log.
    assert_eq!(scene.held(contested, loser).await, [0; 3]);
    let records = scene.records(loser).await;
    let of = |name: &&String| name.contains(contested.as_str());
    assert_eq!(records.keys().filter(of).count(), 0, "{records:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_throttles_delays_a_drain_and_no_caller() {
    let mut scene = Scene::new(embedded()).await;
    let tenants = names(10);
    scene.settle(&tenants, "cell-a").await;
    scene.world.cordon("cell-a").await;
    let proxy = Proxy::start(&scene.world.engine.endpoint());
    let flags = [crate::world::FLAGS.as_slice(), &FLAGS].concat();
    let behind = Celld::serve(&proxy.endpoint(), &scene.world.prefix, &flags);
    behind.ready().await;
    // From here on everything passes the proxy.
    scene.ask(behind).await;
    let throttled = Fault::Cancelled("ProvisionedThroughputExceeded");
    let rules = ["cell-b", "cell-longer"].map(|cell| {
        let rule = Rule::on(&["TransactWriteItems"], throttled.clone());
        proxy.lay(rule.in_table(&scene.world.table("CustomerData", cell)).every(3))
    });
    let caller = Caller::start(scene.directory.clone(), tenants.clone());
    let id = scene.drain("cell-a", Default::default()).await.bulk_id;
    let ended = scene.bulk_until(&id, |bulk| bulk.state() == v1::BulkState::Finished).await;
    caller.end().await;
    assert_eq!(ended.counts.unwrap().done, 10, "{ended:#?}");
    for rule in rules {
        assert!(rule.fired() >= 5, "{}", rule.fired());
    }
    scene.assert_left(&tenants, "cell-a").await;
}
