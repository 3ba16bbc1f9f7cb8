//! Turns that are slept through, records that others replaced, and a CloudWatch that is not there.

use std::collections::BTreeMap;

use cells_cost::Window;

use super::*;
use crate::cells::capacity::Metered;
use crate::cells::{Goal, MemoryRecords, Operation, OperationId, Started, fixtures};
use crate::config::Config;
use crate::directory::{Mutation, NewCell};
use crate::domain::{CellId, CellLoad, CellState, Endpoint, Labels, Region, Weight};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;

/// What happens while CloudWatch is asked.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    /// Another replica measures the cell, and writes that.
    AnotherIsFaster,
    /// It does not answer.
    Silence,
    /// Nor does it come to an end.
    Endless,
    /// There is none.
    NoCloudWatch,
}

/// `CellControl`, DynamoDB and CloudWatch in one.
struct Surroundings {
    records: Mutex<BTreeMap<CellId, LoadRecord>>,
    turn: Mutex<i64>,
    unreadable: Mutex<bool>,
    meanwhile: Mutex<Meanwhile>,
    asked: Mutex<usize>,
}

fn id() -> CellId {
    CellId::new("cell-a").unwrap()
}

#[async_trait]
impl LoadRecords for Surroundings {
    async fn loads(&self) -> Result<Vec<LoadRecord>, StoreError> {
        match *self.unreadable.lock() {
            true => Err(StoreError::Unreachable),
            false => Ok(self.records.lock().values().cloned().collect()),
        }
    }

    async fn put_load(
        &self,
        record: &LoadRecord,
        replaces: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let mut records = self.records.lock();
        if records.get(&record.cell).map(|present| present.at) != replaces {
            return Ok(false);
        }
        records.insert(record.cell.clone(), record.clone());
        Ok(true)
    }

    async fn take_turn(&self, turn: i64, _: i64) -> Result<bool, StoreError> {
        let mut present = self.turn.lock();
        let ours = turn > *present;
        *present = turn.max(*present);
        Ok(ours)
    }
}

#[async_trait]
impl Sizes for Surroundings {
    async fn size(&self, _: &TableRef) -> Result<Option<Size>, CloudError> {
        let (limits, indexes) = ((10.0, 10.0), Vec::new());
        Ok(Some(Size { items: 3, bytes: 30, index_bytes: 10, limits, indexes }))
    }
}

#[async_trait]
impl Meters for Surroundings {
    async fn metered(
        &self,
        _: &TableRef,
        _: &[String],
        window: &Window,
    ) -> Result<Vec<Metered>, CloudError> {
        *self.asked.lock() += 1;
        let meanwhile = *self.meanwhile.lock();
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::AnotherIsFaster => {
                let at = Timestamp::now().plus(Duration::from_secs(1));
                let theirs = LoadRecord { cell: id(), at, load: None, published: Some(i64::MAX) };
                self.records.lock().insert(id(), theirs);
            }
            Meanwhile::Endless => std::future::pending().await,
            Meanwhile::Silence => return Err(CloudError::Busy { code: "no answer".into() }),
            Meanwhile::NoCloudWatch => return Err(CloudError::Unsupported),
        }
        let minutes = (0..i64::from(window.points)).map(|n| window.start + n * 60);
        // 8 units a second of 10.
        let reads = minutes.map(|minute| (minute, 480.0)).collect();
        Ok(vec![Metered { reads, ..Metered::default() }])
    }
}

struct Rig {
    surroundings: Arc<Surroundings>,
    measurer: Measurer,
    outbox: Outbox,
    held: Vec<LoadRecord>,
    tasks: Tasks,
}

impl Rig {
    async fn new(meanwhile: Meanwhile) -> Self {
        let (tasks, telemetry) = (Tasks::new(), Telemetry::noop());
        let store = Store::of(Arc::new(MemoryStore::new()));
        let directory =
            crate::app::directory(store, &Config::default(), &telemetry, &tasks).unwrap();
        directory.ready(&CancellationToken::new()).await;
        let cell = NewCell {
            id: id(),
            region: Region::new("eu-west-1").unwrap(),
            endpoint: Endpoint::new("https://a").unwrap(),
            labels: Labels::default(),
            weight: Weight::DEFAULT,
            capacity: None,
            state: CellState::Active,
        };
        directory.create_cell(cell, Mutation::default()).await.unwrap();
        let surroundings = Arc::new(Surroundings {
            records: Mutex::default(),
            turn: Mutex::default(),
            unreadable: Mutex::default(),
            meanwhile: Mutex::new(meanwhile),
            asked: Mutex::default(),
        });
        let records = MemoryRecords::default();
        let set = fixtures::table_set(vec![fixtures::table("Orders")]);
        assert!(records.put_table_set(&set).await.unwrap());
        let goal = Goal::Provision { set: set.id, version: set.version };
        let op = OperationId::new("op").unwrap();
        let mut provisioned = Operation::new(op, id(), goal, String::new(), Timestamp::now());
        assert_eq!(records.start(&provisioned).await.unwrap(), Started::Started);
        provisioned.end(Ok(()), Timestamp::now());
        assert!(records.save(&provisioned, false).await.unwrap());
        let outbox = Outbox::new(telemetry.cell_metrics());
        let measurer = Measurer {
            directory,
            loads: surroundings.clone(),
            records: Arc::new(records),
            meters: surroundings.clone(),
            sizes: surroundings.clone(),
            prefix: String::new(),
            outbox: Some(outbox.clone()),
            interval: Duration::from_millis(1),
            terms: LoadTerms::default(),
            sets: Sets::default(),
        };
        Self { surroundings, measurer, outbox, held: Vec::new(), tasks }
    }

    async fn turn(&mut self) -> Result<(), Unmeasured> {
        // So that a turn is another one than that before.
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.measurer.turn(&mut self.held).await
    }

    fn load(&self) -> Option<CellLoad> {
        self.measurer.directory.loads().get(&id()).cloned()
    }

    async fn end(self) {
        assert!(self.tasks.stop(Duration::from_secs(10)).await);
    }
}

#[tokio::test]
async fn what_is_measured_is_handed_on_and_each_minute_published_once() {
    let mut rig = Rig::new(Meanwhile::Nothing).await;
    rig.turn().await.unwrap();
    let load = rig.load().unwrap();
    assert!((load.utilisation - 0.8).abs() < 1e-9, "{load:?}");
    assert_eq!((load.items(), load.bytes()), (3, 30));
    let first = rig.outbox.take_all();
    let reads = |data: &[crate::metering::Datum]| {
        data.iter().filter(|datum| datum.name == "ConsumedReadCapacityUnits").count()
    };
    assert_eq!(reads(&first), 5);
    rig.turn().await.unwrap();
    // At most the one minute that ended meanwhile.
    assert!(reads(&rig.outbox.take_all()) <= 1);
    // Somebody else's turn: nothing is asked, and what they wrote is taken over.
    *rig.surroundings.turn.lock() = i64::MAX;
    let asked = *rig.surroundings.asked.lock();
    rig.surroundings.records.lock().get_mut(&id()).unwrap().load.as_mut().unwrap().utilisation =
        0.1;
    rig.turn().await.unwrap();
    assert_eq!((*rig.surroundings.asked.lock(), rig.load().unwrap().utilisation), (asked, 0.1));
    rig.end().await;
}

#[tokio::test]
async fn who_is_overtaken_publishes_nothing() {
    let mut rig = Rig::new(Meanwhile::AnotherIsFaster).await;
    rig.turn().await.unwrap();
    assert!(rig.outbox.take_all().is_empty());
    assert_eq!(rig.surroundings.records.lock()[&id()].published, Some(i64::MAX), "theirs stays");
    rig.end().await;
}

#[tokio::test]
async fn minutes_that_cloudwatch_did_not_tell_are_published_later() {
    let mut rig = Rig::new(Meanwhile::Silence).await;
    rig.turn().await.unwrap_err();
    assert!(rig.outbox.take_all().is_empty() && rig.load().is_none());
    *rig.surroundings.meanwhile.lock() = Meanwhile::NoCloudWatch;
    rig.turn().await.unwrap_err();
    assert!(rig.surroundings.records.lock().is_empty());
    *rig.surroundings.meanwhile.lock() = Meanwhile::Nothing;
    rig.turn().await.unwrap();
    assert!(rig.outbox.take_all().len() >= 5);
    rig.end().await;
}

#[tokio::test]
async fn a_load_that_cannot_be_read_anew_grows_old_and_is_forgotten() {
    let mut rig = Rig::new(Meanwhile::Nothing).await;
    rig.turn().await.unwrap();
    *rig.surroundings.unreadable.lock() = true;
    rig.turn().await.unwrap_err();
    assert!(rig.load().is_some(), "not older than it may be");
    rig.measurer.terms.max_age = Duration::ZERO;
    rig.turn().await.unwrap_err();
    assert_eq!(rig.load(), None);
    rig.end().await;
}

#[tokio::test]
async fn a_load_grows_old_though_every_turn_runs_out_of_time() {
    let mut rig = Rig::new(Meanwhile::Nothing).await;
    rig.turn().await.unwrap();
    assert!(rig.load().is_some());
    *rig.surroundings.meanwhile.lock() = Meanwhile::Endless;
    rig.measurer.terms.max_age = Duration::ZERO;
    tokio::time::sleep(Duration::from_millis(2)).await;
    tokio::time::pause();
    let turn = rig.measurer.turn(&mut rig.held);
    let ended = tokio::time::timeout(10 * LONGEST_TURN, turn).await.expect("turns end");
    tokio::time::resume();
    assert!(matches!(ended, Err(Unmeasured::Store(StoreError::Timeout))), "{ended:?}");
    assert_eq!(rig.load(), None);
    rig.end().await;
}

#[test]
fn no_cell_is_always_the_last() {
    assert_eq!(begin_at(7, 0), 0);
    for step in [1, 2, 3] {
        // Turns that each measure five of a hundred cells.
        let turns = (0..60).map(|turn| begin_at(29_000_000 + turn * step, 100));
        let measured: std::collections::BTreeSet<_> =
            turns.flat_map(|first| (0..5).map(move |at| (first + at) % 100)).collect();
        assert_eq!(measured.len(), 100, "in steps of {step}");
    }
}
