//! Backups, restores and drills in the model: killed before and after every call, and gone on with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fixtures::{FakeCloud, Stop, table};
use super::operation::{Goal, Operation, OperationId, OperationState};
use super::plan::{Feature, Wanted, plan};
use super::records::CellRecords;
use super::recovery::{
    DrillOutcome, Origin, Scheduler, SchedulerSettings, drill_table, scheduled_backup,
};
use super::table_set::{BackupSchedule, TableSet};
use super::worker::{Worker, WorkerSettings};
use super::worker_tests::{MIDNIGHT, SETTINGS, Stage, TABLE};
use crate::domain::{Cell, CellId};

pub const ORDERS: &str = "p-Orders-cell-a";
pub const HOUR: Duration = Duration::from_secs(3600);

/// A cell with tables and items in one of them.
pub(super) async fn provisioned() -> Stage {
    let stage = Stage::new().await;
    stage.done("make", stage.provision()).await;
    for (key, value) in [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)] {
        stage.cloud.put_item(TABLE, key, value);
    }
    stage.cloud.stop_at(None);
    stage
}

pub(super) fn back_up(stage: &Stage, name: &str) -> Goal {
    let set = stage.set.id.clone();
    Goal::BackUp { set, version: 1, backup: name.to_owned(), keep_days: None }
}

pub(super) fn restore(stage: &Stage, from: Origin) -> Goal {
    let (set, source) = (stage.set.id.clone(), CellId::new("cell-a").unwrap());
    Goal::Restore { set, version: 1, source, from }
}

pub(super) fn drill(stage: &Stage, from: Origin) -> Goal {
    Goal::Drill { set: stage.set.id.clone(), version: 1, from }
}

/// As an operation of another cell.
pub(super) async fn begin_for(stage: &Stage, cell: &str, id: &str, goal: Goal) -> OperationId {
    let (id, cell) = (OperationId::new(id).unwrap(), CellId::new(cell).unwrap());
    let operation = Operation::new(id.clone(), cell, goal, String::new(), stage.clock.now());
    stage.records.start(&operation).await.unwrap();
    id
}

pub(super) fn tables(cloud: &FakeCloud) -> BTreeSet<String> {
    cloud.observed().into_keys().collect()
}

/// Each place where the world can stop.
fn stops(calls: usize) -> impl Iterator<Item = Stop> {
    (0..calls).flat_map(|number| [Stop::Before(number), Stop::After(number)])
}

#[tokio::test(start_paused = true)]
async fn a_backup_is_made_once_whoever_is_killed() {
    let stage = provisioned().await;
    let done = stage.done("back-up", back_up(&stage, "b1")).await;
    assert_eq!((done.state, done.steps_done), (OperationState::Succeeded, 2), "{done:?}");
    let expected = [(TABLE.to_owned(), "b1".to_owned()), (ORDERS.to_owned(), "b1".to_owned())];
    assert_eq!(stage.cloud.backup_names(), expected);
    let kept = stage.records.cell_tables(&done.cell).await.unwrap().unwrap();
    assert_eq!(kept.tables, Some((stage.set.id.clone(), 1)), "the cell has what it had");
    let calls = stage.cloud.calls();
    assert!(calls > 6, "{calls}");
    for stop in stops(calls) {
        let stage = provisioned().await;
        stage.cloud.stop_at(Some(stop));
        let id = stage.begin("back-up", back_up(&stage, "b1")).await;
        assert_eq!(stage.work(&id).await, None, "{stop:?}");
        stage.cloud.stop_at(None);
        let done = stage.work(&id).await.unwrap();
        assert_eq!(done.state, OperationState::Succeeded, "{stop:?}: {done:?}");
        assert_eq!(stage.cloud.backup_names(), expected, "{stop:?}");
    }
}

fn wanted_of(stage: &Stage, cell: &str) -> Vec<Wanted> {
    let id = CellId::new(cell).unwrap();
    Wanted::of(&stage.set, "p-", &Cell { id, ..stage.cell.0.lock().clone() })
}

/// With all that DynamoDB does not restore, and with the items.
#[tokio::test(start_paused = true)]
async fn a_restore_ends_with_the_declared_tables_whoever_is_killed() {
    let backed_up = async || {
        let stage = provisioned().await;
        stage.done("back-up", back_up(&stage, "b1")).await;
        stage.cloud.put_item(TABLE, "late", 9);
        stage.cloud.stop_at(None);
        stage
    };
    let check = async |stage: &Stage, done: &Operation, stop: Option<Stop>| {
        assert_eq!(done.state, OperationState::Succeeded, "{stop:?}: {done:?}");
        let observed = stage.cloud.observed();
        for wanted in wanted_of(stage, "cell-b") {
            let is = observed.get(&wanted.name);
            assert_eq!(plan(&wanted, is).changes, [], "{stop:?}");
        }
        assert_eq!(stage.cloud.items("p-CustomerData-cell-b").len(), 5, "{stop:?}");
        assert_eq!(stage.cloud.restored.load(Ordering::SeqCst), 2, "{stop:?}");
        assert_eq!(stage.cloud.created.load(Ordering::SeqCst), 2, "none was made empty");
        let record = stage.records.cell_tables(&done.cell).await.unwrap().unwrap();
        assert_eq!(record.tables, Some((stage.set.id.clone(), 1)));
    };
    let from = || Origin::Backup("b1".to_owned());
    let stage = backed_up().await;
    let id = begin_for(&stage, "cell-b", "restore", restore(&stage, from())).await;
    let done = stage.work(&id).await.unwrap();
    check(&stage, &done, None).await;
    let calls = stage.cloud.calls();
    assert!(calls > 40, "{calls}");
    for stop in stops(calls) {
        let stage = backed_up().await;
        stage.cloud.stop_at(Some(stop));
        let id = begin_for(&stage, "cell-b", "restore", restore(&stage, from())).await;
        assert_eq!(stage.work(&id).await, None, "{stop:?}");
        stage.cloud.stop_at(None);
        check(&stage, &stage.work(&id).await.unwrap(), Some(stop)).await;
    }
}

/// A table that is no restored one is not taken for one, and is left alone.
#[tokio::test(start_paused = true)]
async fn a_restore_takes_no_foreign_table() {
    let stage = provisioned().await;
    let provision = stage.provision();
    let id = begin_for(&stage, "cell-b", "make-b", provision).await;
    stage.work(&id).await.unwrap();
    let before = stage.cloud.observed();
    let id = begin_for(&stage, "cell-b", "restore", restore(&stage, Origin::Latest)).await;
    let done = stage.work(&id).await.unwrap();
    assert_eq!(done.state, OperationState::Failed);
    assert!(done.error.unwrap().contains("was there before"));
    assert_eq!(stage.cloud.observed(), before);
}

/// Somebody deletes a table while it is mended, between any two calls: it is restored again, and never made empty.
#[tokio::test(start_paused = true)]
async fn a_restored_table_that_goes_is_restored_again() {
    let target = "p-CustomerData-cell-b";
    let mut again = 0;
    for number in 4..60 {
        let stage = provisioned().await;
        *stage.cloud.vanishing.lock() = Some((number, target.to_owned()));
        let id = begin_for(&stage, "cell-b", "restore", restore(&stage, Origin::Latest)).await;
        let done = stage.work(&id).await.unwrap();
        assert_eq!(done.state, OperationState::Succeeded, "{number}: {done:?}");
        assert_eq!(stage.cloud.created.load(Ordering::SeqCst), 2, "{number}: one was made empty");
        assert_eq!(stage.cloud.items(target).len(), 5, "{number}");
        again += usize::from(stage.cloud.restored.load(Ordering::SeqCst) == 3);
    }
    assert!(again > 40, "{again}");
}

#[tokio::test(start_paused = true)]
async fn a_drill_of_a_quiet_cell_matches_and_leaves_nothing_whoever_is_killed() {
    let stage = provisioned().await;
    let before = stage.cloud.observed();
    let done = stage.done("drill", drill(&stage, Origin::Latest)).await;
    assert_eq!(done.drill_outcome(), DrillOutcome::Matched, "{done:?}");
    assert_eq!((done.state, done.error.clone()), (OperationState::Succeeded, None));
    let recovery = done.recovery.clone().unwrap();
    // A minute before the drill began; usable some looks after.
    let behind = done.created.millis() - recovery.point.unwrap().millis();
    assert!((59_000..=60_000).contains(&behind), "{behind}");
    let took = recovery.usable.unwrap().millis() - done.created.millis();
    assert!((200..=2_000).contains(&took), "{took}");
    assert_eq!(recovery.compared[TABLE].source.items, 5);
    assert_eq!(recovery.compared[ORDERS].restored.items, 0);
    assert_eq!(stage.cloud.observed(), before, "the temporary tables, and only those, are gone");
    let listed = stage.records.drills(&done.cell).await.unwrap();
    assert_eq!(listed.len(), 1);
    let calls = stage.cloud.calls();
    assert!(calls > 25, "{calls}");
    for stop in stops(calls) {
        let stage = provisioned().await;
        stage.cloud.stop_at(Some(stop));
        let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
        assert_eq!(stage.work(&id).await, None, "{stop:?}");
        let protected = stage.cloud.observed().into_iter();
        let protected =
            protected.filter(|(name, is)| name.contains("-drill-") && is.deletion_protection);
        assert_eq!(protected.count(), 0, "{stop:?}");
        stage.cloud.stop_at(None);
        let done = stage.work(&id).await.unwrap();
        assert_eq!(done.drill_outcome(), DrillOutcome::Matched, "{stop:?}: {done:?}");
        assert_eq!(stage.cloud.observed(), before, "{stop:?}");
        assert_eq!(stage.cloud.restored.load(Ordering::SeqCst), 2, "{stop:?}");
    }
}

/// What was written after the backup shows, exactly.
#[tokio::test(start_paused = true)]
async fn a_drill_counts_what_differs() {
    let stage = provisioned().await;
    stage.done("back-up", back_up(&stage, "b1")).await;
    tokio::time::advance(HOUR).await;
    for key in ["new-1", "new-2", "new-3"] {
        stage.cloud.put_item(TABLE, key, 7);
    }
    stage.cloud.put_item(TABLE, "b", 7);
    stage.cloud.remove_item(TABLE, "c");
    stage.cloud.remove_item(TABLE, "d");
    let done = stage.done("drill", drill(&stage, Origin::Backup("b1".to_owned()))).await;
    assert_eq!(done.drill_outcome(), DrillOutcome::Different);
    assert_eq!(done.state, OperationState::Succeeded, "{done:?}");
    let recovery = done.recovery.unwrap();
    let compared = &recovery.compared[TABLE];
    let differences = compared.differences.unwrap();
    assert_eq!((differences.missing, differences.extra, differences.differing), (3, 2, 1));
    assert_eq!((compared.source.items, compared.restored.items), (6, 5));
    assert!(recovery.compared[ORDERS].matched);
    let behind = done.created.millis() - recovery.point.unwrap().millis();
    assert!((3_600_000..3_602_000).contains(&behind), "{behind}");
    assert_eq!(tables(&stage.cloud).len(), 2, "the temporary tables are gone");
}

/// A drill that fails half-way cleans up, and says why it failed; killed anywhere, too.
#[tokio::test(start_paused = true)]
async fn a_drill_that_fails_cleans_up() {
    let failing = async || {
        let stage = provisioned().await;
        stage.cloud.unrestorable.store(true, Ordering::SeqCst);
        stage
    };
    let stage = failing().await;
    let done = stage.done("drill", drill(&stage, Origin::Latest)).await;
    assert_eq!(done.drill_outcome(), DrillOutcome::Failed);
    assert!(done.error.as_ref().unwrap().contains("AccessDeniedException"), "{done:?}");
    assert_eq!(tables(&stage.cloud).len(), 2);
    for stop in stops(stage.cloud.calls()) {
        let stage = failing().await;
        stage.cloud.stop_at(Some(stop));
        let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
        assert_eq!(stage.work(&id).await, None, "{stop:?}");
        stage.cloud.stop_at(None);
        let done = stage.work(&id).await.unwrap();
        assert_eq!(done.drill_outcome(), DrillOutcome::Failed, "{stop:?}: {done:?}");
        assert_eq!(tables(&stage.cloud).len(), 2, "{stop:?}");
    }
}

/// Should AWS ever restore the protection, or somebody set it, the temporary tables go all the same.
#[tokio::test(start_paused = true)]
async fn a_protected_temporary_table_goes_too() {
    let stage = provisioned().await;
    let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
    let worker = tokio::spawn(stage.worker().run(tokio_util::sync::CancellationToken::new()));
    let name = drill_table(TABLE, &id);
    while !stage.cloud.observed().contains_key(&name) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stage.cloud.meddle(&name, |table| table.deletion_protection = true);
    while !stage.records.operation(&id).await.unwrap().unwrap().ended() {
        tokio::time::sleep(SETTINGS.interval).await;
    }
    assert_eq!(tables(&stage.cloud).len(), 2);
    let all = stage.cloud.observed();
    assert!(all.values().all(|table| table.deletion_protection), "the cell's own keep theirs");
    worker.abort();
}

/// What is shown is kept though the clean-up fails, and what is left is told.
#[tokio::test(start_paused = true)]
async fn a_clean_up_that_fails_is_told() {
    let stage = provisioned().await;
    let kept = drill_table(TABLE, &OperationId::new("drill").unwrap());
    *stage.cloud.undeletable.lock() = Some(kept.clone());
    let done = stage.done("drill", drill(&stage, Origin::Latest)).await;
    assert_eq!((done.state, done.drill_outcome()), (OperationState::Failed, DrillOutcome::Matched));
    let left = done.recovery.unwrap().left;
    assert!(left.len() == 1 && left[0].contains(&kept), "{left:?}");
    assert!(done.error.unwrap().contains("delete them by hand"));
    let expected = [TABLE, ORDERS, &kept].map(str::to_owned);
    assert_eq!(tables(&stage.cloud), BTreeSet::from(expected), "the other one is gone");
    // The cell is free for the next operation.
    assert_eq!(stage.done("again", stage.provision()).await.state, OperationState::Succeeded);
}

/// A table of the drill's name that is none of its own is not touched.
#[tokio::test(start_paused = true)]
async fn a_drill_deletes_nothing_that_it_did_not_restore() {
    let stage = provisioned().await;
    let name = drill_table(TABLE, &OperationId::new("drill").unwrap());
    let suffix = name.strip_prefix("p-CustomerData-").unwrap().to_owned();
    let id = begin_for(&stage, &suffix, "make-it", stage.provision()).await;
    stage.work(&id).await.unwrap();
    let before = stage.cloud.observed();
    assert!(before.contains_key(&name), "{before:?}");
    let done = stage.done("drill", drill(&stage, Origin::Latest)).await;
    assert_eq!(done.drill_outcome(), DrillOutcome::Failed);
    assert!(done.error.unwrap().contains("was there before"));
    assert_eq!(stage.cloud.observed(), before);
}

#[tokio::test(start_paused = true)]
async fn a_table_without_recovery_cannot_be_drilled() {
    let stage = provisioned().await;
    stage.cloud.meddle(ORDERS, |table| table.recovery_days = Feature::Known(None));
    let done = stage.done("drill", drill(&stage, Origin::Latest)).await;
    let error = done.error.unwrap();
    assert!(error.contains("p-Orders-cell-a has no point-in-time recovery"), "{error}");
    assert_eq!(stage.cloud.restored.load(Ordering::SeqCst), 0);
}

/// A stage whose cell is backed up by a schedule.
pub(super) async fn scheduled(every_hours: u32, keep_days: u32) -> Stage {
    let mut stage = Stage::new().await;
    let backups = Some(BackupSchedule { every_hours, keep_days });
    let set = TableSet { version: 2, backups, ..stage.set.clone() };
    stage.records.put_table_set(&set).await.unwrap();
    stage.set = set;
    let goal = Goal::Provision { set: stage.set.id.clone(), version: 2 };
    stage.done("make", goal).await;
    stage
}

pub(super) fn scheduler(stage: &Stage) -> Scheduler {
    Scheduler {
        records: stage.records.clone(),
        clock: stage.clock.clone(),
        settings: SchedulerSettings { interval: Duration::from_secs(60) },
    }
}

/// The slots, in hours after midnight, of the backups that each table has.
pub(super) fn slots(stage: &Stage) -> Vec<i64> {
    let cell = CellId::new("cell-a").unwrap();
    let mut by_table: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (table, name) in stage.cloud.backup_names() {
        let slot = (-9999..9999)
            .find(|hour| scheduled_backup(&cell, MIDNIGHT + hour * 3600) == name)
            .unwrap_or_else(|| panic!("{name}"));
        by_table.entry(table).or_default().push(slot);
    }
    let all: BTreeSet<_> = by_table.values().cloned().collect();
    assert!(all.len() <= 1, "{by_table:?}");
    all.into_iter().next().unwrap_or_default()
}

/// Two replicas with workers and schedulers of their own, for days.
#[tokio::test(start_paused = true)]
async fn each_slot_has_one_backup_and_old_ones_go() {
    let stage = scheduled(5, 1).await;
    let stop = tokio_util::sync::CancellationToken::new();
    for _ in 0..2 {
        // Looks are rare, for the days are long.
        let (interval, takeover) = (Duration::from_secs(20), Duration::from_secs(60));
        let settings = WorkerSettings { interval, takeover, ..SETTINGS };
        tokio::spawn(Worker { settings, ..stage.worker() }.run(stop.clone()));
        tokio::spawn(scheduler(&stage).run(stop.clone()));
    }
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(slots(&stage), [0], "at once, for the slot that is under way");
    tokio::time::sleep(HOUR * 20).await;
    assert_eq!(slots(&stage), [0, 5, 10, 15, 20]);
    tokio::time::sleep(HOUR * 5).await;
    assert_eq!(
        slots(&stage),
        [5, 10, 15, 20, 25],
        "the first was older than a day as the last was made"
    );
    tokio::time::sleep(HOUR * 5).await;
    assert_eq!(slots(&stage), [10, 15, 20, 25, 30]);
    stop.cancel();
    // Nobody runs for two days: what was missed is not made, and the last ones stay until there is a new one.
    tokio::time::sleep(HOUR * 48).await;
    assert_eq!(slots(&stage), [10, 15, 20, 25, 30]);
    scheduler(&stage).round().await.unwrap();
    let running: Vec<_> = stage.records.operations().await.unwrap();
    let running = running.iter().find(|operation| !operation.ended()).unwrap();
    stage.work(&running.id).await.unwrap();
    assert_eq!(slots(&stage), [75]);
}

/// What others made stays, however old, and so do a schedule's own while the newest is not whole.
#[tokio::test(start_paused = true)]
async fn retention_deletes_a_schedules_own_backups_alone_and_only_for_a_newer_whole_one() {
    let stage = scheduled(24, 1).await;
    let goal = |name: &str, keep_days| {
        let (set, backup) = (stage.set.id.clone(), name.to_owned());
        Goal::BackUp { set, version: 2, backup, keep_days }
    };
    let day = |day: i64| format!("celld-cell-a-{}", MIDNIGHT + day * 24 * 3600);
    for name in ["by-hand", "celld-cell-a-op-1", "celld-cell-b-1600000000", "celld-cell-a-x"] {
        stage.done(&name.replace("celld-", "asked-"), goal(name, None)).await;
    }
    stage.done("day-0", goal(&day(0), Some(1))).await;
    tokio::time::advance(HOUR * 24 * 9).await;
    let names = || {
        let names = stage.cloud.backup_names().into_iter();
        names.filter(|(table, _)| table == TABLE).map(|(_, name)| name).collect::<BTreeSet<_>>()
    };
    // The new one is begun, and never becomes whole for one of the tables.
    let calls = {
        let calls = stage.cloud.calls();
        stage.cloud.stop_at(Some(Stop::After(4)));
        calls
    };
    assert!(calls > 0);
    let id = stage.begin("day-9", goal(&day(9), Some(1))).await;
    assert_eq!(stage.work(&id).await, None);
    assert!(names().contains(&day(0)), "{:?}", names());
    stage.cloud.stop_at(None);
    let done = stage.work(&id).await.unwrap();
    assert_eq!(done.state, OperationState::Succeeded);
    let others = ["by-hand", "celld-cell-a-op-1", "celld-cell-b-1600000000", "celld-cell-a-x"];
    let mut expected: BTreeSet<String> = others.map(str::to_owned).into();
    expected.insert(day(9));
    assert_eq!(names(), expected);
}

/// A backup that failed is begun again later, under the same name; one that ended well is not.
#[tokio::test(start_paused = true)]
async fn a_scheduled_backup_that_failed_is_tried_again() {
    let stage = scheduled(24, 7).await;
    let scheduler = scheduler(&stage);
    let running = async || {
        let operations = stage.records.operations().await.unwrap();
        operations.into_iter().find(|operation| !operation.ended())
    };
    scheduler.round().await.unwrap();
    let mut failed = running().await.unwrap();
    failed.end(Err("on purpose".to_owned()), stage.clock.now());
    assert!(stage.records.save(&failed, false).await.unwrap());
    scheduler.round().await.unwrap();
    assert_eq!(running().await, None, "not at once");
    tokio::time::advance(Duration::from_secs(16 * 60)).await;
    scheduler.round().await.unwrap();
    let again = running().await.unwrap();
    assert_eq!((again.id != failed.id, &again.goal), (true, &failed.goal));
    stage.work(&again.id).await.unwrap();
    tokio::time::advance(HOUR).await;
    scheduler.round().await.unwrap();
    assert_eq!(running().await, None, "once is enough");
    assert_eq!(slots(&stage), [0]);
}

#[test]
fn a_set_that_was_stored_before_there_were_schedules_is_read_and_one_without_is_the_same() {
    let set = super::fixtures::table_set(vec![table("CustomerData")]);
    let mut json = serde_json::to_value(&set).unwrap();
    json.as_object_mut().unwrap().remove("backups").unwrap();
    assert_eq!(serde_json::from_value::<TableSet>(json).unwrap(), set);
}

#[test]
fn what_a_schedule_may_be() {
    for (every_hours, keep_days, field) in [
        (0, 7, Some("every_hours")),
        (721, 60, Some("every_hours")),
        (24, 0, Some("keep_days")),
        (24, 3651, Some("keep_days")),
        (720, 29, Some("keep_days")),
        (1, 42, Some("keep_days")),
        (1, 41, None),
        (24, 1, None),
        (720, 30, None),
        (720, 3650, None),
    ] {
        let backups = Some(BackupSchedule { every_hours, keep_days });
        let set = TableSet { backups, ..super::fixtures::table_set(vec![table("D")]) };
        let violations = super::check::table_set(&set);
        let fields: Vec<_> = violations.iter().map(|violation| violation.field.as_str()).collect();
        let expected: Vec<_> =
            field.iter().map(|field| format!("table_set.backups.{field}")).collect();
        assert_eq!(fields, expected, "{every_hours} {keep_days}");
    }
}
