//! Provisioning and its opposite, with the worker killed before and after every call, in its way through a cloud that takes its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::fixtures::{FakeCloud, OneCell, Stop, cell, key, table, table_set};
use super::home::Home;
use super::memory::MemoryRecords;
use super::operation::{FinalBackup, Goal, Operation, OperationId, OperationState};
use super::plan::{Change, Feature, Wanted, plan};
use super::records::{CellRecords, CellTablesRecord, Started};
use super::table_set::{Billing, TableSet, TableSetId};
use super::worker::{Worker, WorkerSettings};
use crate::directory::Clock;
use crate::domain::{CellId, CellState, Timestamp};
use crate::store::StoreError;

pub const SETTINGS: WorkerSettings = WorkerSettings {
    interval: Duration::from_millis(100),
    takeover: Duration::from_secs(1),
    page_pause: Duration::from_millis(1),
};

pub struct Stage {
    pub cloud: Arc<FakeCloud>,
    pub records: Arc<MemoryRecords>,
    pub cell: Arc<OneCell>,
    pub set: TableSet,
    /// Follows the test's time, from a midnight on.
    pub clock: Clock,
}

/// 2023-11-14T00:00:00Z.
pub const MIDNIGHT: i64 = 1_699_920_000;

impl Stage {
    pub async fn new() -> Self {
        let set = table_set(vec![table("CustomerData"), table("Orders")]);
        let records = Arc::new(MemoryRecords::default());
        records.put_table_set(&set).await.unwrap();
        let cell = Arc::new(OneCell(Mutex::new(cell(CellState::Cordoned, 0))));
        let (base, origin) = (std::time::Instant::now(), tokio::time::Instant::now());
        let midnight = Timestamp::from_seconds(MIDNIGHT).unwrap();
        let clock = Clock::from_fn(move || midnight.plus(origin.elapsed()))
            .with_instant(move || base + origin.elapsed());
        let cloud = Arc::new(FakeCloud::default());
        *cloud.clock.lock() = Some(clock.clone());
        Self { cloud, records, cell, set, clock }
    }

    pub async fn begin(&self, id: &str, goal: Goal) -> OperationId {
        let id = OperationId::new(id).unwrap();
        let cell = self.cell.0.lock().id.clone();
        let now = self.clock.now();
        let operation = Operation::new(id.clone(), cell, goal, String::new(), now);
        self.records.start(&operation).await.unwrap();
        id
    }

    pub fn provision(&self) -> Goal {
        Goal::Provision { set: self.set.id.clone(), version: 1 }
    }

    pub fn deprovision(&self, delete_data: bool) -> Goal {
        let (set, final_backup) = (self.set.id.clone(), FinalBackup::Required);
        Goal::Deprovision { set, version: 1, delete_data, final_backup }
    }

    /// A worker with a clock that follows the test's time.
    pub fn worker(&self) -> Worker {
        let region = cell(CellState::Active, 0).region;
        Worker {
            home: Home { region, emulated: false },
            cells: self.cell.clone(),
            records: self.records.clone(),
            cloud: self.cloud.clone(),
            prefix: "p-".to_owned(),
            clock: self.clock.clone(),
            settings: SETTINGS,
        }
    }

    /// Lets a worker run until the operation has ended or the world has stopped; then it is killed. The operation if it ended.
    pub async fn work(&self, id: &OperationId) -> Option<Operation> {
        let stopped = self.cloud.stopped.lock().clone();
        let running = tokio::spawn(self.worker().run(CancellationToken::new()));
        let ended = async {
            loop {
                let operation = self.records.operation(id).await.unwrap().unwrap();
                if operation.ended() {
                    return operation;
                }
                tokio::time::sleep(SETTINGS.interval).await;
            }
        };
        let result = tokio::select! {
            operation = ended => Some(operation),
            () = stopped.cancelled() => None,
            () = tokio::time::sleep(Duration::from_secs(600)) => panic!("it never ends"),
        };
        running.abort();
        let _ = running.await;
        result
    }

    pub async fn done(&self, id: &str, goal: Goal) -> Operation {
        let id = self.begin(id, goal).await;
        self.work(&id).await.unwrap()
    }

    pub fn planned(&self) -> Vec<Change> {
        let observed = self.cloud.observed();
        let wanted = Wanted::of(&self.set, "p-", &self.cell.0.lock());
        wanted.iter().flat_map(|wanted| plan(wanted, observed.get(&wanted.name)).changes).collect()
    }
}

pub const TABLE: &str = "p-CustomerData-cell-a";

#[tokio::test(start_paused = true)]
async fn tables_come_to_be_as_declared() {
    let stage = Stage::new().await;
    let operation = stage.done("op", stage.provision()).await;
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    assert_eq!(stage.planned(), []);
    assert_eq!((operation.steps_left, operation.worker_epoch), (0, 1));
    assert_eq!(operation.steps_done as usize, operation.steps.len());
    let record = stage.records.cell_tables(&operation.cell).await.unwrap().unwrap();
    assert_eq!(record.tables, Some((stage.set.id.clone(), 1)));
    // Again: nothing is left to do.
    let again = stage.done("again", stage.provision()).await;
    assert_eq!((again.state, again.steps_done), (OperationState::Succeeded, 0));
}

/// Killed before and after every single call, and gone on with by another worker: the same tables, each made once.
#[tokio::test(start_paused = true)]
async fn whoever_goes_on_after_a_kill_ends_with_the_same() {
    let stage = Stage::new().await;
    stage.done("op", stage.provision()).await;
    let (expected, calls) = (stage.cloud.observed(), stage.cloud.calls());
    assert!(calls > 30, "{calls}");
    for stop in (0..calls).flat_map(|number| [Stop::Before(number), Stop::After(number)]) {
        let stage = Stage::new().await;
        stage.cloud.stop_at(Some(stop));
        let id = stage.begin("op", stage.provision()).await;
        assert_eq!(stage.work(&id).await, None, "{stop:?}");
        stage.cloud.stop_at(None);
        let operation = stage.work(&id).await.unwrap();
        assert_eq!(operation.state, OperationState::Succeeded, "{stop:?}: {operation:?}");
        assert!(operation.worker_epoch <= 2);
        assert_eq!(stage.cloud.observed(), expected, "{stop:?}");
        assert_eq!(stage.cloud.created.load(Ordering::SeqCst), 2, "{stop:?}");
    }
}

/// The same for a removal: no table goes without its backup, and none stays.
#[tokio::test(start_paused = true)]
async fn a_removal_goes_on_after_a_kill() {
    let filled = async || {
        let stage = Stage::new().await;
        stage.done("make", stage.provision()).await;
        stage.cloud.put_data(TABLE);
        stage.cloud.stop_at(None);
        stage
    };
    let stage = filled().await;
    stage.done("remove", stage.deprovision(true)).await;
    let calls = stage.cloud.calls();
    for stop in (0..calls).flat_map(|number| [Stop::Before(number), Stop::After(number)]) {
        let stage = filled().await;
        stage.cloud.stop_at(Some(stop));
        let id = stage.begin("remove", stage.deprovision(true)).await;
        assert_eq!(stage.work(&id).await, None, "{stop:?}");
        let whole = stage.cloud.observed().contains_key(TABLE);
        assert!(whole || !stage.cloud.backups.lock().is_empty(), "{stop:?}");
        stage.cloud.stop_at(None);
        let operation = stage.work(&id).await.unwrap();
        assert_eq!(operation.state, OperationState::Succeeded, "{stop:?}: {operation:?}");
        assert!(stage.cloud.observed().is_empty());
        let backups = stage.cloud.backup_names();
        let expected = [(TABLE.to_owned(), "final-remove".to_owned())];
        assert_eq!(backups, expected, "one, of the table that held items");
    }
}

#[tokio::test(start_paused = true)]
async fn drift_is_found_and_mended() {
    let stage = Stage::new().await;
    stage.done("op", stage.provision()).await;
    let as_declared = stage.cloud.observed();
    stage.cloud.meddle(TABLE, |table| {
        table.recovery_days = Feature::Known(None);
        table.deletion_protection = false;
        table.stream = None;
        if let Feature::Known(tags) = &mut table.tags {
            tags.remove("environment");
        }
        if let Feature::Known(scaling) = &mut table.scaling {
            scaling.pop_first();
        }
    });
    assert_eq!(stage.planned().len(), 5, "{:?}", stage.planned());
    let operation = stage.done("mend", stage.provision()).await;
    assert_eq!((operation.state, operation.steps_done), (OperationState::Succeeded, 5));
    assert_eq!(stage.cloud.observed(), as_declared);
}

/// What would lose data is not done, and said.
#[tokio::test(start_paused = true)]
async fn a_foreign_key_is_a_conflict_and_nothing_is_changed() {
    let stage = Stage::new().await;
    stage.done("op", stage.provision()).await;
    stage.cloud.meddle(TABLE, |table| {
        table.sort_key = Some(key("Other"));
        table.recovery_days = Feature::Known(None);
    });
    let before = stage.cloud.observed();
    let operation = stage.done("mend", stage.provision()).await;
    assert_eq!(operation.state, OperationState::Failed);
    assert!(operation.error.unwrap().contains("a key cannot be changed"));
    assert_eq!(stage.cloud.observed(), before);
}

/// Capacity that autoscaling has moved is not drift; capacity out of its bounds is.
#[tokio::test(start_paused = true)]
async fn scaled_capacity_is_left_alone() {
    let stage = Stage::new().await;
    stage.done("op", stage.provision()).await;
    let set = |units: u64| {
        stage.cloud.meddle(TABLE, |table| {
            table.units.as_mut().unwrap().insert(String::new(), (units, 5));
        });
    };
    set(37);
    assert_eq!(stage.planned(), []);
    set(90);
    assert_eq!(stage.planned(), [Change::SetUnits(String::new(), 50, 5)]);
    stage.cloud.meddle(TABLE, |table| table.units = None);
    assert!(matches!(&stage.planned()[..], [Change::SetBilling(Billing::Provisioned(_))]));
}

#[tokio::test(start_paused = true)]
async fn a_busy_cloud_and_a_table_half_gone_are_waited_for() {
    let stage = Stage::new().await;
    stage.cloud.throttled.store(7, Ordering::SeqCst);
    let operation = stage.done("op", stage.provision()).await;
    assert_eq!(operation.state, OperationState::Succeeded);
    assert_eq!(stage.cloud.throttled.load(Ordering::SeqCst), 0);
    stage.cloud.begin_deleting(TABLE, 5);
    let operation = stage.done("again", stage.provision()).await;
    assert_eq!((operation.state, stage.planned()), (OperationState::Succeeded, vec![]));
    assert_eq!(stage.cloud.created.load(Ordering::SeqCst), 3, "made anew");
}

/// A holder that is alive keeps its operation; one that is taken for dead and comes back changes nothing.
#[tokio::test(start_paused = true)]
async fn one_worker_holds_an_operation() {
    let stage = Stage::new().await;
    let calls = {
        stage.done("op", stage.provision()).await;
        stage.cloud.calls()
    };
    let stage = Stage::new().await;
    stage.cloud.stop_at(Some(Stop::After(calls / 2)));
    let id = stage.begin("op", stage.provision()).await;
    let (first, second) = (stage.worker(), stage.worker());
    let first = tokio::spawn(first.run(CancellationToken::new()));
    let stopped = stage.cloud.stopped.lock().clone();
    stopped.cancelled().await;
    let held = stage.records.operation(&id).await.unwrap().unwrap();
    let second = tokio::spawn(second.run(CancellationToken::new()));
    tokio::time::sleep(SETTINGS.takeover - SETTINGS.interval * 2).await;
    assert_eq!(stage.records.operation(&id).await.unwrap().unwrap(), held, "too early");
    tokio::time::sleep(SETTINGS.takeover).await;
    let taken = stage.records.operation(&id).await.unwrap().unwrap();
    assert_eq!(taken.worker_epoch, 2);
    // The first one wakes up and wants to write what it did.
    let zombie = Operation { beat: 99, ..held };
    assert!(!stage.records.save(&zombie, false).await.unwrap());
    first.abort();
    second.abort();
}

/// Records whose every third write is answered by an error, done or not.
struct Unreliable(Arc<MemoryRecords>, AtomicUsize);

#[async_trait]
impl CellRecords for Unreliable {
    async fn table_set(&self, id: &TableSetId) -> Result<Option<TableSet>, StoreError> {
        self.0.table_set(id).await
    }

    async fn table_set_at(
        &self,
        id: &TableSetId,
        version: u64,
    ) -> Result<Option<TableSet>, StoreError> {
        self.0.table_set_at(id, version).await
    }

    async fn table_sets(&self) -> Result<Vec<TableSet>, StoreError> {
        self.0.table_sets().await
    }

    async fn put_table_set(&self, set: &TableSet) -> Result<bool, StoreError> {
        self.0.put_table_set(set).await
    }

    async fn cell_tables(&self, cell: &CellId) -> Result<Option<CellTablesRecord>, StoreError> {
        self.0.cell_tables(cell).await
    }

    async fn all_cell_tables(&self) -> Result<Vec<CellTablesRecord>, StoreError> {
        self.0.all_cell_tables().await
    }

    async fn drills(&self, cell: &CellId) -> Result<Vec<Operation>, StoreError> {
        self.0.drills(cell).await
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        self.0.operation(id).await
    }

    async fn operations(&self) -> Result<Vec<Operation>, StoreError> {
        // Those that have ended are many: nobody who works reads them.
        Err(StoreError::Rejected { detail: "all operations are read".to_owned() })
    }

    async fn start(&self, operation: &Operation) -> Result<Started, StoreError> {
        self.0.start(operation).await
    }

    async fn save(&self, operation: &Operation, taking_over: bool) -> Result<bool, StoreError> {
        match self.1.fetch_add(1, Ordering::SeqCst) % 6 {
            2 => Err(StoreError::Throttled),
            5 => {
                self.0.save(operation, taking_over).await?;
                Err(StoreError::Timeout)
            }
            _ => self.0.save(operation, taking_over).await,
        }
    }
}

/// A write that fails, or of which nobody knows, does not make a worker wait for itself to be taken over.
#[tokio::test(start_paused = true)]
async fn a_worker_goes_on_though_its_writes_fail() {
    let stage = Stage::new().await;
    let began = tokio::time::Instant::now();
    stage.done("op", stage.provision()).await;
    let smooth = began.elapsed();
    let stage = Stage::new().await;
    let id = stage.begin("op", stage.provision()).await;
    let records = Arc::new(Unreliable(stage.records.clone(), AtomicUsize::new(0)));
    let worker = Worker { records, ..stage.worker() };
    let began = tokio::time::Instant::now();
    let running = tokio::spawn(worker.run(CancellationToken::new()));
    while !stage.records.operation(&id).await.unwrap().unwrap().ended() {
        tokio::time::sleep(SETTINGS.interval).await;
        assert!(began.elapsed() < Duration::from_secs(600), "it never ends");
    }
    assert!(
        began.elapsed() < smooth * 2 + SETTINGS.interval * 2,
        "{:?} {smooth:?}",
        began.elapsed()
    );
    assert_eq!(stage.planned(), []);
    running.abort();
}

/// Neither data nor tenants go by mistake, not even those that came after the operation began.
#[tokio::test(start_paused = true)]
async fn a_removal_stops_where_it_would_lose_something() {
    let stage = Stage::new().await;
    stage.done("op", stage.provision()).await;
    let before = stage.cloud.observed();
    for (id, why, state, placements) in [
        ("tenants", "tenants live", CellState::Cordoned, 3),
        ("active", "is ACTIVE", CellState::Active, 0),
        ("data", "holds items", CellState::Cordoned, 0),
    ] {
        *stage.cell.0.lock() = cell(state, placements);
        if id == "data" {
            stage.cloud.put_data(TABLE);
        }
        let operation = stage.done(id, stage.deprovision(false)).await;
        assert_eq!(operation.state, OperationState::Failed);
        let error = operation.error.unwrap();
        assert!(error.contains(why), "{error}");
        assert_eq!(stage.cloud.observed(), before);
    }
}
