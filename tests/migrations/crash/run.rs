//! One run of a migration, from its first store call to its end: what breaks in it, who writes meanwhile, and what must hold after it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cell_directory::cells::Regions;
use cell_directory::domain::{CellId, Change, MigrationId, PartitionKey, Sequence, WriteMode};
use cell_directory::metering::Consumption;
use cell_directory::migration::driver::{Driver, DriverSettings, Left, Shared};
use cell_directory::migration::{Migration, MigrationRecords, Verification};
use cell_directory::store::{Journal, Placements};
use cells_migration::{Leg, Phase};
use dynoxide::Database;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::engine::{ENDPOINT, Fault, Line, Wire, ask, config, perform};
use super::tables::{self, CELLS, CONTROL, MIGRATION, TENANT, contents};
use super::writer::Writer;

/// What is asked of the migration, and when: its wish, as soon as it is in a phase.
pub type Asked = Option<(&'static str, &'static str)>;

/// A course that a migration takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    pub name: &'static str,
    pub asked: Asked,
    pub strict: bool,
    /// How it may end.
    pub ends: &'static [(Phase, Leg)],
}

/// Longest way of a run. One that goes on for longer goes on for ever.
const MAX_CALLS: usize = 6_000;

/// Workers that one run may wear out.
const MAX_WORKERS: usize = 10;

pub struct Run {
    pub database: Database,
    state: Mutex<State>,
}

struct State {
    writer: Writer,
    calls: usize,
    faults: BTreeMap<usize, Fault>,
    late: Vec<(usize, String, String)>,
    asked: Asked,
    phase: String,
    trail: Vec<(String, String)>,
}

/// A run that ended well.
pub struct Ended {
    /// The phase in which each call was made, and what it was.
    pub trail: Vec<(String, String)>,
    pub end: (Phase, Leg),
    pub workers: usize,
    /// Writes that were acknowledged, and those of them that were plain.
    pub writes: (u64, u64),
}

impl Run {
    /// A call of a worker begins: what is late lands, the application writes, and perhaps the call is to break.
    pub fn begins(&self, operation: &str) -> Option<Fault> {
        let mut state = self.state.lock();
        state.calls += 1;
        let calls = state.calls;
        assert!(calls < MAX_CALLS, "the migration does not end: {:?}", state.phase);
        let (due, late) = std::mem::take(&mut state.late).into_iter().partition(|l| l.0 <= calls);
        state.late = late;
        self.land(due);
        state.writer.step(&self.database);
        let phase = state.phase.clone();
        state.trail.push((phase, operation.to_owned()));
        state.faults.remove(&calls)
    }

    /// Perhaps the migration is in another phase now.
    pub fn looks(&self) {
        let key = record_key();
        let request = json!({ "TableName": CONTROL, "Key": key, "ConsistentRead": true });
        let answer = ask(&self.database, "GetItem", &request);
        let phase = answer["Item"]["Phase"]["S"].as_str().unwrap().to_owned();
        let mut state = self.state.lock();
        if let Some((_, wish)) = state.asked.take_if(|(at, _)| *at == phase) {
            let order = json!({
                "TableName": CONTROL, "Key": key, "UpdateExpression": "SET Wish = :wish",
                "ExpressionAttributeValues": { ":wish": { "S": wish } },
            });
            ask(&self.database, "UpdateItem", &order);
        }
        state.phase = phase;
    }

    pub fn lands(&self, after: usize, operation: String, body: String) {
        let mut state = self.state.lock();
        let due = state.calls.saturating_add(after);
        state.late.push((due, operation, body));
    }

    fn land(&self, late: Vec<(usize, String, String)>) {
        for (_, operation, body) in late {
            // Nobody hears whether it was refused.
            let _ = perform(&self.database, &operation, &body);
        }
    }
}

/// The key of the migration's record.
fn record_key() -> Value {
    json!({ "PK": { "S": format!("MIGRATION#{MIGRATION:032x}") }, "SK": { "S": "MIGRATION" } })
}

/// Runs a migration to its end, with these calls broken, and holds what it left to what must hold.
pub async fn run(
    template: &Path,
    course: Course,
    seed: u64,
    faults: impl IntoIterator<Item = (usize, Fault)>,
) -> Ended {
    let database = Database::memory().unwrap();
    database.restore_from(template.to_str().unwrap()).unwrap();
    let plain = Wire::Plain(database.clone());
    let before = CELLS.map(|cell| contents(&database, cell));
    let state = State {
        writer: Writer::new(seed, before[0].ours.clone()),
        calls: 0,
        faults: faults.into_iter().collect(),
        late: Vec::new(),
        asked: course.asked,
        phase: String::new(),
        trail: Vec::new(),
    };
    let run = Arc::new(Run { database: database.clone(), state: Mutex::new(state) });
    if course.strict {
        let spec = tables::migration(Verification::Strict).spec;
        let spec = serde_json::to_string(&spec).unwrap();
        let key = record_key();
        let change = json!({
            "TableName": CONTROL, "Key": key, "UpdateExpression": "SET Spec = :spec",
            "ExpressionAttributeValues": { ":spec": { "S": spec } },
        });
        ask(&database, "UpdateItem", &change);
    }
    run.looks();
    let records = tables::store(&plain);
    let mut workers = 0;
    let migration = loop {
        let migration = records.migration(MigrationId::new(MIGRATION)).await.unwrap().unwrap();
        if migration.record.phase.ended() {
            break migration;
        }
        workers += 1;
        assert!(workers <= MAX_WORKERS, "one worker after the other fails");
        match work(&run, migration, seed + workers as u64).await {
            None | Some(Left::Ended) => {}
            Some(left) => {
                let migration =
                    records.migration(MigrationId::new(MIGRATION)).await.unwrap().unwrap();
                panic!("a worker left: {left:?}, {migration:#?}");
            }
        }
    };
    let late = std::mem::take(&mut run.state.lock().late);
    run.land(late);
    check(&run, &plain, course, &migration, &before).await;
    let mut state = run.state.lock();
    Ended {
        trail: std::mem::take(&mut state.trail),
        end: (migration.record.phase, migration.record.leg),
        workers,
        writes: (state.writer.done, state.writer.plain),
    }
}

/// One worker's life. `None`: it died.
async fn work(run: &Arc<Run>, migration: Migration, seed: u64) -> Option<Left> {
    let line = Line::new(Arc::clone(run));
    let wire = Wire::Worker(line.clone());
    let (directory, tasks) = tables::directory(&wire, seed).await;
    let settings = DriverSettings {
        interval: Duration::from_millis(15),
        lease_margin: Duration::from_millis(5),
        little: 5,
        soak_interval: Duration::from_millis(15),
        max_fences: 10,
        page_items: 3,
    };
    let regions =
        Regions::new(config(wire.clone()), Some(ENDPOINT.to_owned()), Consumption::default());
    let shared = Shared {
        directory,
        records: tables::store(&wire),
        regions: Arc::new(regions),
        settings,
        pages: Arc::new(Semaphore::new(1)),
        freeze: None,
    };
    let driver = Driver::new(Arc::new(shared), migration).unwrap();
    line.arm();
    let left = tokio::select! {
        biased;
        () = line.dead.cancelled() => None,
        left = Box::pin(driver.run(CancellationToken::new())) => Some(left),
    };
    line.dead.cancel();
    tasks.stopping().cancel();
    left
}

async fn check(
    run: &Run,
    plain: &Wire,
    course: Course,
    migration: &Migration,
    before: &[tables::Contents; 2],
) {
    let record = &migration.record;
    let end = (record.phase, record.leg);
    assert!(course.ends.contains(&end), "it ended as {end:?}, {migration:#?}");
    let mismatches = migration.findings.as_ref().map_or(0, |findings| findings.mismatches);
    assert_eq!(mismatches, 0, "items had to be written again: {:#?}", migration.findings);
    let (live, moved) = match end {
        (Phase::Done, Leg::Forward) => (1, true),
        (Phase::Done, Leg::Back) => (0, true),
        _ => (0, false),
    };
    // Whoever writes with what it was told long ago gets through.
    assert!(run.state.lock().writer.write(&run.database), "a writer waits, though it is over");
    let now = CELLS.map(|cell| contents(&run.database, cell));
    let mut model = run.state.lock().writer.model.clone();
    for item in model.values_mut() {
        item.insert("CellId".to_owned(), json!({ "S": CELLS[live] }));
    }
    assert_eq!(now[live].ours, model, "the tenant's items are not those that were acknowledged");
    assert_eq!(now[1 - live].ours, BTreeMap::new(), "items were left behind");
    for (now, before) in now.iter().zip(before) {
        assert_eq!(now.logs, Vec::new(), "records of the log were left behind");
        assert_eq!(now.others, before.others, "somebody else's items were changed");
    }
    let guards =
        |cell: usize| now[cell].guards.iter().map(|guard| guard["GuardState"]["S"].clone());
    assert_eq!(guards(live).collect::<Vec<_>>(), ["OPEN"], "{:?}", now[live].guards);
    let marker: &[&str] = if moved { &["MOVED"] } else { &[] };
    assert_eq!(guards(1 - live).collect::<Vec<_>>(), marker, "{:?}", now[1 - live].guards);
    for guard in now.iter().flat_map(|cell| &cell.guards) {
        assert!(!guard.contains_key("GuardMigration"), "{guard:?}");
    }
    check_directory(plain, end, live).await;
}

/// That the placement, the counts of cells, the history and the journal say the same.
async fn check_directory(plain: &Wire, end: (Phase, Leg), live: usize) {
    let (epoch, steps) = match end {
        (Phase::Done, Leg::Forward) => (2, 4..=4),
        (Phase::Done, Leg::Back) => (3, 5..=5),
        // Cancelled before it was begun there is nothing to be undone.
        _ => (1, 0..=3),
    };
    let (directory, tasks) = tables::directory(plain, 0).await;
    let tenant = PartitionKey::new(TENANT).unwrap();
    let placement = directory.placement(&tenant).await.unwrap();
    assert_eq!((placement.cell.as_str(), placement.epoch.get()), (CELLS[live], epoch));
    assert_eq!((placement.write_mode, placement.migration), (WriteMode::Direct, None));
    let registry = directory.registry().await.unwrap();
    let counts = CELLS.map(|cell| registry.cell(&CellId::new(cell).unwrap()).unwrap().placements);
    let mut expected = [1, 2];
    expected[live] += 1;
    assert_eq!(counts, expected, "placements of the cells");
    let store = tables::store(plain);
    for (cell, count) in CELLS.into_iter().zip(expected) {
        assert_eq!(store.count(&CellId::new(cell).unwrap()).await.unwrap(), count, "{cell}");
    }
    let history = directory.history(&tenant, 10, None).await.unwrap().items;
    let epochs: Vec<_> = history.iter().map(|past| past.epoch.get()).collect();
    assert_eq!(epochs, (1..epoch).rev().collect::<Vec<_>>(), "the history");
    let entries = store.entries(Sequence::START, 100).await.unwrap();
    let sequences: Vec<_> = entries.iter().map(|entry| entry.sequence.get()).collect();
    let head = store.head().await.unwrap().sequence.get();
    assert_eq!(sequences, (1..=head).collect::<Vec<_>>(), "the journal");
    let moved = |change: &&Change| matches!(change, Change::Moved { .. });
    let moved = entries.iter().flat_map(|entry| &entry.changes).filter(moved).count();
    assert!(steps.contains(&moved) && (end.0 == Phase::Done || moved != 1 && moved != 2));
    assert_eq!(store.moving().await.unwrap(), [], "somebody moves");
    tasks.stopping().cancel();
}
