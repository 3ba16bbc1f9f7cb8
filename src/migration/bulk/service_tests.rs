//! Plans of what a directory and its loads say, and bulks that are begun by them.

use std::sync::Arc;

use async_trait::async_trait;
use cells_balance::Band;
use cells_guard::{CellTable, CellTables, KeyType};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cells::capacity::share::{Billed, Stored};
use crate::cells::capacity::{Metered, Meters};
use crate::cells::{Cells, CloudError, TableRef};
use crate::config::Config;
use crate::directory::{Mutation, NewCell, Placing};
use crate::domain::{
    CellId, CellLoad, Endpoint, Labels, LoadTerms, Loads, PartitionKey, Region, RequestId,
    TableLoad, Weight,
};
use crate::migration::bulk::Terms;
use crate::store::memory::MemoryStore;
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;

/// A tenant has as many bytes as the number at its name's end says.
struct Scales;

#[async_trait]
impl Meters for Scales {
    async fn metered(
        &self,
        _: &TableRef,
        _: &[String],
        _: &cells_cost::Window,
    ) -> Result<Vec<Metered>, CloudError> {
        Err(CloudError::Unsupported)
    }
}

#[async_trait]
impl Accounts for Scales {
    async fn stored(
        &self,
        _: &TableRef,
        key: &str,
        partition: &str,
        _: usize,
    ) -> Result<Stored, CloudError> {
        assert_eq!(key, "PK");
        let (_, bytes) = partition.rsplit_once('-').unwrap();
        Ok(Stored { items: 1, bytes: bytes.parse().unwrap(), pages: 1, ..Stored::default() })
    }

    async fn billed(&self, _: &CellId, _: i64, _: i64) -> Billed {
        Billed::NoData
    }
}

/// Bulks in memory that nobody works on.
#[derive(Default)]
struct Kept(Mutex<Vec<(BulkRecord, Vec<cells_balance::bulk::Chunk>)>>);

#[async_trait]
impl BulkRecords for Kept {
    async fn begin_bulk(
        &self,
        record: &BulkRecord,
        chunks: &[cells_balance::bulk::Chunk],
    ) -> Result<BulkBegun, StoreError> {
        let mut kept = self.0.lock();
        let same = |one: &&(BulkRecord, _)| one.0.header.purpose == record.header.purpose;
        if let Some((running, _)) = kept.iter().find(same) {
            return Ok(BulkBegun::Running(running.id));
        }
        kept.push((record.clone(), chunks.to_vec()));
        Ok(BulkBegun::Begun)
    }

    async fn bulk(&self, id: BulkId) -> Result<Option<BulkRecord>, StoreError> {
        Ok(self.0.lock().iter().find(|one| one.0.id == id).map(|one| one.0.clone()))
    }

    async fn chunks(&self, _: &BulkRecord) -> Result<Vec<cells_balance::bulk::Chunk>, StoreError> {
        Ok(Vec::new())
    }

    async fn active_bulks(&self) -> Result<Vec<BulkId>, StoreError> {
        Ok(Vec::new())
    }

    async fn bulks(&self, _: usize, _: Option<&Cursor>) -> Result<Page<BulkRecord>, StoreError> {
        Ok(Page { items: Vec::new(), next: None })
    }

    async fn take_bulk(&self, _: BulkId, _: u64) -> Result<Option<u64>, StoreError> {
        Ok(None)
    }

    async fn beat_bulk(
        &self,
        _: BulkId,
        _: u64,
        _: &BulkProgress,
        _: crate::domain::Timestamp,
    ) -> Result<Option<BulkRecord>, StoreError> {
        Ok(None)
    }

    async fn save_bulk(
        &self,
        _: &BulkRecord,
        _: &cells_balance::bulk::Changes,
        _: crate::domain::Timestamp,
    ) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn steer_bulk(
        &self,
        id: BulkId,
        header: &Header,
        _: crate::domain::Timestamp,
    ) -> Result<bool, StoreError> {
        let mut kept = self.0.lock();
        let one = kept.iter_mut().find(|one| one.0.id == id).unwrap();
        one.0.header = header.clone();
        Ok(true)
    }
}

struct Scene {
    bulks: Bulks,
    directory: Directory,
    _tasks: Tasks,
}

fn cell(id: &str) -> CellId {
    CellId::new(id).unwrap()
}

fn tables(name: &str) -> CellTables {
    let table = CellTable {
        name: name.to_owned(),
        table_name: format!("{name}-of-a-cell"),
        partition_key: "PK".to_owned(),
        sort_key: Some(("SK".to_owned(), KeyType::String)),
        tenant_keys: vec!["CUSTOMER#{partition_key}".to_owned()],
        ttl_attribute: None,
    };
    CellTables {
        set: "default".to_owned(),
        version: 1,
        guards: Some(table.name.clone()),
        tables: vec![table],
        together: true,
        guarded: true,
    }
}

impl Scene {
    /// Cells, each with its state, tier and tenants.
    async fn new(cells: &[(&str, CellState, &str, &[&str])]) -> Self {
        let (tasks, telemetry) = (Tasks::new(), Telemetry::noop());
        let store = Arc::new(MemoryStore::new());
        let of = Store::of(store.clone());
        let directory = crate::app::directory(of, &Config::default(), &telemetry, &tasks).unwrap();
        directory.ready(&CancellationToken::new()).await;
        for (id, state, tier, tenants) in cells {
            let new = NewCell {
                id: cell(id),
                region: Region::new("eu-west-1").unwrap(),
                endpoint: Endpoint::new("https://example.com").unwrap(),
                labels: Labels::new([("tier".to_owned(), (*tier).to_owned())].into()).unwrap(),
                weight: Weight::DEFAULT,
                capacity: None,
                state: CellState::Active,
            };
            directory.create_cell(new, Mutation::default()).await.unwrap();
            for tenant in *tenants {
                let key = PartitionKey::new(*tenant).unwrap();
                let placing = Placing { key, cell: cell(id), since: None, expires: None };
                directory.pin(placing, Mutation::default()).await.unwrap();
            }
            directory.set_tables(&cell(id), Some(tables("CustomerData"))).await.unwrap();
            if *state != CellState::Active {
                let patch =
                    crate::directory::CellPatch { state: Some(*state), ..Default::default() };
                directory.update_cell(cell(id), patch, None, Mutation::default()).await.unwrap();
            }
        }
        let bulks = Bulks::new(BulkParts {
            directory: directory.clone(),
            records: Arc::new(Kept::default()),
            migrations: store,
            accounts: Arc::new(Scales),
            randomness: Randomness::seeded(1),
        });
        Self { bulks, directory, _tasks: tasks }
    }

    /// How busy cells are, and how many bytes they hold.
    fn loads(&self, loads: &[(&str, f64, u64)]) {
        let now = self.directory.now();
        let load = |(id, utilisation, bytes): &(&str, f64, u64)| CellLoad {
            cell: cell(id),
            at: now,
            utilisation: *utilisation,
            throttled_per_minute: 0.0,
            tables: vec![TableLoad {
                table: "t".to_owned(),
                utilisation: *utilisation,
                items: 1,
                // Indexes are no part of what is moved.
                bytes: *bytes * 3,
                index_bytes: *bytes * 2,
            }],
        };
        let loads = Loads::at(now, loads.iter().map(load), LoadTerms::default());
        self.directory.set_loads(loads);
    }
}

fn drain(id: &str, keep: &[&str]) -> DrainAsk {
    let keep_labels = keep.iter().map(|label| (*label).to_owned()).collect();
    let targets = Targets { other_regions: false, keep_labels };
    DrainAsk { cell: cell(id), targets, ceiling: None }
}

fn moves(plan: &Plan) -> Vec<(&str, &str, Option<u64>)> {
    let moves = plan.moves.iter();
    moves.map(|one| (one.tenant.as_str(), one.target.as_str(), one.bytes)).collect()
}

use crate::domain::CellState::{Active, Cordoned};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_keeps_the_labels_that_are_to_be_kept_and_knows_what_tenants_store() {
    let scene = Scene::new(&[
        ("cell-a", Cordoned, "gold", &["t-5", "t-7"]),
        ("cell-b", Active, "tin", &[]),
        ("cell-c", Active, "gold", &["u-1"]),
    ])
    .await;
    let plan = scene.bulks.plan_drain(drain("cell-a", &["tier", "absent"])).await.unwrap();
    assert_eq!(moves(&plan), [("t-7", "cell-c", Some(7)), ("t-5", "cell-c", Some(5))]);
    let plan = scene.bulks.plan_drain(drain("cell-a", &[])).await.unwrap();
    assert!(plan.moves.iter().any(|one| one.target == "cell-b"), "{plan:?}");
    let unknown = scene.bulks.plan_drain(drain("cell-z", &[])).await.unwrap_err();
    assert_eq!(unknown, Refused::CellNotFound { cell: cell("cell-z") }.into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_begun_once_of_a_cell_that_nobody_comes_to() {
    let scene =
        Scene::new(&[("cell-a", Cordoned, "gold", &["t-5"]), ("cell-b", Active, "gold", &["u-1"])])
            .await;
    let open = scene.bulks.start_drain(drain("cell-b", &[]), How::default()).await.unwrap_err();
    assert_eq!(open, BulkError::TakesTenants { cell: cell("cell-b"), state: Active });
    let how = |digest: &str| How {
        request: Some(Request {
            id: RequestId::new("once").unwrap(),
            method: "StartDrain".to_owned(),
            digest: digest.to_owned(),
        }),
        terms: Terms::default(),
        ..How::default()
    };
    let begun = scene.bulks.start_drain(drain("cell-a", &[]), how("1")).await.unwrap();
    let again = scene.bulks.start_drain(drain("cell-a", &[]), how("1")).await.unwrap();
    assert_eq!(again.record.id, begun.record.id);
    let other = scene.bulks.start_drain(drain("cell-a", &[]), how("2")).await.unwrap_err();
    assert_eq!(other, Refused::RequestIdReused.into());
    let second = scene.bulks.start_drain(drain("cell-a", &[]), How::default()).await.unwrap_err();
    assert_eq!(second, BulkError::Running(begun.record.id));

    let id = begun.record.id;
    assert!(scene.bulks.pause(id, true).await.unwrap().record.header.paused);
    let cancelled = scene.bulks.cancel(id, Cancel::Running).await.unwrap();
    // What was asked for more is not taken back by less.
    let again = scene.bulks.cancel(id, Cancel::LetRun).await.unwrap();
    assert_eq!(again.record.header, cancelled.record.header);
    let late = scene.bulks.pause(id, false).await.unwrap_err();
    assert_eq!(late, BulkError::NotNow { bulk: id, why: "was cancelled" });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_moves_little_and_reports_the_hotspot() {
    let scene = Scene::new(&[
        ("cell-a", Active, "gold", &["t-10", "t-20", "t-30", "t-40"]),
        ("cell-b", Active, "gold", &[]),
        ("cell-c", Active, "gold", &["hot-90", "u-10"]),
    ])
    .await;
    let ask = || RebalanceAsk {
        band: Band { low: 0.0, high: 0.7 },
        targets: Targets::default(),
        hotspot_share: 0.5,
    };
    // Nothing is known, so nothing is moved.
    let blind = scene.bulks.start_rebalance(ask(), How::default()).await.unwrap_err();
    assert_eq!(blind, BulkError::NothingToMove { staying: 0 });
    scene.loads(&[("cell-a", 0.8, 100), ("cell-b", 0.0, 0), ("cell-c", 0.9, 100)]);
    let plan = scene.bulks.plan_rebalance(ask()).await.unwrap();
    let of_a: Vec<_> = plan.moves.iter().filter(|one| one.source == "cell-a").collect();
    let bytes: u64 = of_a.iter().filter_map(|one| one.bytes).sum();
    // A tenth of the load would do, if tenants could be cut.
    assert!((13..=20).contains(&bytes), "{plan:?}");
    assert!(plan.moves.iter().all(|one| one.tenant != "hot-90"));
    let hotspots: Vec<_> =
        plan.hotspots.iter().map(|hot| (hot.tenant.as_str(), hot.share)).collect();
    assert_eq!(hotspots, [("hot-90", 0.9)]);
    let begun = scene.bulks.start_rebalance(ask(), How::default()).await.unwrap();
    assert_eq!(begun.record.header.purpose, Purpose::Rebalance { low: 0.0, high: 0.7 });
    assert_eq!(begun.record.planned.staying, 1);
}
