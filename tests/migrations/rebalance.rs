//! Cells are brought into a band of utilisation by what was measured: with few bytes, where tenants may go, and past who cannot be moved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use cell_directory::proto::v1;

use crate::celld::cell;
use crate::cloudwatch::CloudWatch;
use crate::dynamodb_local::DynamoDbLocal;
use crate::scene::{Item, Scene, partition, text};
use crate::world::{Engine, fault};

const SOON: Duration = Duration::from_secs(120);

/// What each item is taken to use of its cell.
const LOAD: f64 = 0.008;

/// Write units a second that are all of a table on demand.
const ALL: f64 = 40_000.0;

const LOW: f64 = 0.19;
const HIGH: f64 = 0.604;

const HOME: &str = "cell-a";

/// A label that tenants keep, and cells that have it or not, in the Region of the others or elsewhere.
fn cells() -> Vec<v1::Cell> {
    let of = |id: &str, region: &str, tier: &str| v1::Cell {
        region: region.to_owned(),
        labels: [("tier".to_owned(), tier.to_owned())].into(),
        ..cell(id)
    };
    vec![
        of(HOME, "eu-west-1", "standard"),
        of("cell-b", "eu-west-1", "standard"),
        of("cell-far", "eu-central-1", "standard"),
        of("cell-gold", "eu-west-1", "gold"),
        of("cell-low", "eu-west-1", "standard"),
    ]
}

/// Tenants with their items: a cell far above the band, in which one is more than half of all; one below it, and some within.
const TENANTS: [(&str, &str, usize); 14] = [
    ("hotspot", HOME, 55),
    ("tenant-0", HOME, 13),
    ("tenant-1", HOME, 9),
    ("tenant-2", HOME, 7),
    ("tenant-3", HOME, 5),
    ("tenant-4", HOME, 4),
    ("tenant-5", HOME, 3),
    ("tenant-6", HOME, 2),
    ("tenant-7", HOME, 1),
    ("tenant-8", HOME, 1),
    ("there-b", "cell-b", 45),
    ("there-low", "cell-low", 12),
    // Those have the most room.
    ("there-far", "cell-far", 25),
    ("there-gold", "cell-gold", 25),
];

/// Fewest items that have to leave [`HOME`].
const LEAST: usize = 25;

struct Loaded {
    scene: Scene,
    cloudwatch: Arc<CloudWatch>,
}

impl Loaded {
    async fn new() -> Self {
        let engine = DynamoDbLocal::shared().endpoint();
        let cloudwatch = Arc::new(CloudWatch::before(engine).await);
        let engine = Engine::CloudWatch(cloudwatch.clone());
        let flags = ["--cloudwatch-metrics=read", "--load-interval=300ms"];
        let mut scene = Scene::with_cells(engine, cells(), &flags).await;
        for (tenant, cell, items) in TENANTS {
            scene.pin(tenant, cell).await;
            for n in 0..items {
                scene.write("CustomerData", cell, item(tenant, n, cell)).await;
            }
        }
        Self { scene, cloudwatch }
    }

    /// Has CloudWatch count what the items that are in the cells use, and waits until that is known.
    async fn measure(&mut self) {
        let mut due = BTreeMap::new();
        for cell in cells() {
            let id = cell.cell_id;
            let used = self.items(&id).await.values().sum::<usize>() as f64 * LOAD;
            let table = self.scene.world.table("CustomerData", &id);
            let sums = minutes(used * 60.0 * ALL);
            self.cloudwatch.count("ConsumedWriteCapacityUnits", &table, None, sums);
            due.insert(id, used);
        }
        let deadline = Instant::now() + SOON;
        loop {
            let request = v1::ListCellsRequest::default();
            let listed = self.scene.world.admin.list_cells(request).await.unwrap().into_inner();
            let measured = |cell: &v1::Cell| {
                let load = cell.load.as_ref().map(|load| load.utilisation);
                load.is_some_and(|load| (load - due[&cell.cell_id]).abs() < 1e-6)
            };
            if listed.cells.iter().all(measured) {
                return;
            }
            assert!(Instant::now() < deadline, "not {due:?}: {:?}", listed.cells);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Items of each tenant that has some in a cell.
    async fn items(&self, cell: &str) -> BTreeMap<String, usize> {
        let mut held = BTreeMap::new();
        for item in self.scene.items("CustomerData", cell).await.into_values() {
            let (_, tenant) = item["PK"].as_s().unwrap().split_once('#').unwrap();
            *held.entry(tenant.to_owned()).or_default() += 1;
        }
        held
    }

    async fn plan(&mut self, keep: &[&str]) -> v1::BulkPlan {
        let request = v1::PlanRebalanceRequest {
            low: LOW,
            high: HIGH,
            targets: targets(keep),
            ..Default::default()
        };
        let answer = self.scene.moves.plan_rebalance(request).await.unwrap().into_inner();
        answer.plan.unwrap()
    }

    async fn start(&mut self) -> Result<v1::Bulk, tonic::Status> {
        let terms = v1::BulkTerms {
            soak_duration: Some(prost_types::Duration::default()),
            ..Default::default()
        };
        let request = v1::StartRebalanceRequest {
            low: LOW,
            high: HIGH,
            targets: targets(&["tier"]),
            terms: Some(terms),
            ..Default::default()
        };
        Ok(self.scene.moves.start_rebalance(request).await?.into_inner().bulk.unwrap())
    }

    async fn finished(&mut self, id: &str) -> v1::Bulk {
        let deadline = Instant::now() + SOON;
        loop {
            let request = v1::GetBulkRequest { bulk_id: id.to_owned() };
            let bulk = self.scene.moves.get_bulk(request).await.unwrap().into_inner().bulk.unwrap();
            if bulk.state() == v1::BulkState::Finished {
                return bulk;
            }
            assert!(Instant::now() < deadline, "{bulk:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Asserts that a tenant lives in a cell with all that it had, and has nothing elsewhere.
    async fn assert_in(&mut self, tenant: &str, home: &str) {
        let (_, _, due) = TENANTS.into_iter().find(|(name, ..)| *name == tenant).unwrap();
        let placement = self.scene.placement(tenant).await;
        assert_eq!((placement.cell_id.as_str(), placement.migration_id.as_str()), (home, ""));
        for cell in cells() {
            let held = self.items(&cell.cell_id).await.get(tenant).copied();
            assert_eq!(held, (cell.cell_id == home).then_some(due), "{tenant} in {}", cell.cell_id);
        }
    }
}

fn targets(keep: &[&str]) -> Option<v1::BulkTargets> {
    let keep_labels = keep.iter().map(|name| (*name).to_owned()).collect();
    Some(v1::BulkTargets { other_regions: false, keep_labels })
}

/// Large, so that guards are nothing beside it.
fn item(tenant: &str, number: usize, cell: &str) -> Item {
    Item::from([
        ("PK".to_owned(), text(&partition(tenant))),
        ("SK".to_owned(), text(&format!("ITEM#{number:03}"))),
        ("CellId".to_owned(), text(cell)),
        ("Body".to_owned(), text(&"x".repeat(8 * 1024))),
    ])
}

/// The same sum in each of the last minutes, and of the next ones, so that it stays as it is while the test runs.
fn minutes(sum: f64) -> Vec<(i64, f64)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now - now % 60).unwrap();
    (-20..40).rev().map(|minute| (now - minute * 60, sum)).collect()
}

fn size(tenant: &str) -> usize {
    TENANTS.into_iter().find(|(name, ..)| *name == tenant).unwrap().2
}

/// As many bytes as the tenants have, and at most twice the fewest that would do.
fn few_bytes(plan: &v1::BulkPlan) {
    let each = plan.moves.iter().map(v1::BulkPlannedMove::size_bytes);
    assert_eq!(each.sum::<i64>(), plan.size_bytes, "{plan:#?}");
    let least = plan.size_bytes_at_least();
    assert!(least > 0 && (least..=2 * least).contains(&plan.size_bytes), "{plan:#?}");
}

/// Cells by how they stand after a plan.
fn standings(plan: &v1::BulkPlan) -> BTreeMap<&str, &str> {
    plan.cells.iter().map(|cell| (cell.cell_id.as_str(), cell.standing.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cells_come_into_a_band_with_few_bytes_and_past_hotspots_and_failures() {
    let mut loaded = Loaded::new().await;
    loaded.measure().await;

    // Without the label, tenants would go to the cell with the most room.
    let free = loaded.plan(&[]).await;
    let takers: BTreeSet<_> = free.moves.iter().map(|one| one.target_cell_id.as_str()).collect();
    assert!(takers.contains("cell-gold"), "{free:#?}");
    let plan = loaded.plan(&["tier"]).await;
    assert_eq!(plan.hotspots_total, 1, "{plan:#?}");
    let hotspot = &plan.hotspots[0];
    assert_eq!((hotspot.partition_key.as_str(), hotspot.cell_id.as_str()), ("hotspot", HOME));
    assert!((hotspot.share - 0.55).abs() < 0.02, "{hotspot:?}");
    let moved: usize = plan.moves.iter().map(|one| size(&one.partition_key)).sum();
    assert!((LEAST..2 * LEAST).contains(&moved), "{plan:#?}");
    few_bytes(&plan);
    for one in &plan.moves {
        assert_eq!(one.source_cell_id, HOME, "{one:?}");
        assert!(["cell-b", "cell-low"].contains(&&*one.target_cell_id), "{one:?}");
        assert_ne!(one.partition_key, "hotspot");
    }
    assert!(standings(&plan).values().all(|standing| *standing == "IN_BAND"), "{plan:#?}");

    // One of them cannot be moved: what it left behind, once.
    let bad = plan.moves[0].clone();
    let (tenant, target) = (bad.partition_key.as_str(), bad.target_cell_id.as_str());
    let left = item(tenant, 999, target);
    loaded.scene.write("CustomerData", target, left.clone()).await;
    let id = loaded.start().await.unwrap().bulk_id;
    let ended = loaded.finished(&id).await;
    let counts = ended.counts.unwrap();
    assert_eq!((counts.done, counts.failed), (plan.moves_total - 1, 1), "{ended:#?}");
    assert_eq!(ended.problems.len(), 1);
    assert_eq!(ended.problems[0].partition_key, tenant);
    assert!(ended.problems[0].reason.contains("holds 1 items of the tenant"), "{ended:#?}");
    let delete = loaded.scene.tables.delete_item();
    let delete = delete.table_name(loaded.scene.world.table("CustomerData", target));
    let delete = delete.key("PK", left["PK"].clone()).key("SK", left["SK"].clone());
    delete.send().await.unwrap();
    // All as planned but for the one, and nobody else was touched.
    let planned = |moves: &[v1::BulkPlannedMove]| -> BTreeMap<String, String> {
        let each = moves.iter().filter(|one| one.partition_key != bad.partition_key);
        each.map(|one| (one.partition_key.clone(), one.target_cell_id.clone())).collect()
    };
    let mut homes = planned(&plan.moves);
    for (tenant, cell, _) in TENANTS {
        let home = homes.entry(tenant.to_owned()).or_insert_with(|| cell.to_owned());
        loaded.assert_in(tenant, home).await;
    }

    // The rest of the way, by what is measured then.
    loaded.measure().await;
    let rest = loaded.plan(&["tier"]).await;
    few_bytes(&rest);
    let again: Vec<_> = rest.moves.iter().filter(|one| homes[&one.partition_key] != HOME).collect();
    assert!(again.is_empty(), "who was moved stays: {again:?}");
    let id = loaded.start().await.unwrap().bulk_id;
    let ended = loaded.finished(&id).await;
    assert_eq!(ended.counts.unwrap().done, rest.moves_total, "{ended:#?}");
    homes.extend(rest.moves.into_iter().map(|one| (one.partition_key, one.target_cell_id)));
    for (tenant, home) in &homes {
        loaded.assert_in(tenant, home).await;
    }
    loaded.measure().await;
    let after = loaded.plan(&["tier"]).await;
    for cell in &after.cells {
        assert_eq!((cell.standing.as_str(), cell.placements), ("IN_BAND", cell.placements_after));
        assert!((LOW..=HIGH).contains(&cell.utilisation()), "{cell:?}");
    }
    assert_eq!(after.hotspots_total, 0, "nobody is in the way any more: {after:#?}");
    assert_eq!(fault(&loaded.start().await.unwrap_err()).1, "NOTHING_TO_MOVE");
}
