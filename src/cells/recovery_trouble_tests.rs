//! Backups and drills where AWS refuses, is busy, or holds what was there before, and where others work meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::cloud::Cloud;
use super::operation::{Goal, Operation, OperationId, OperationState};
use super::plan::Wanted;
use super::records::CellRecords;
use super::recovery::{DrillOutcome, Origin, Recovery, drill_table, scheduled_backup};
use super::recovery_tests::{
    HOUR, ORDERS, back_up, begin_for, drill, provisioned, restore, scheduled, scheduler, slots,
    tables,
};
use super::table_set::TableSet;
use super::worker_tests::{MIDNIGHT, SETTINGS, Stage, TABLE};
use crate::cells::cloud::TableRef;
use crate::cells::fixtures::table;
use crate::directory::Clock;
use crate::domain::CellId;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The cell's first table, by where it is.
fn first_table(stage: &Stage) -> TableRef {
    TableRef::from(&Wanted::of(&stage.set, "p-", &stage.cell.0.lock())[0])
}

fn scheduled_goal(stage: &Stage, day: i64, keep_days: u32) -> Goal {
    let (set, version) = (stage.set.id.clone(), stage.set.version);
    let cell = CellId::new("cell-a").unwrap();
    let backup = scheduled_backup(&cell, MIDNIGHT + day * 24 * 3600);
    Goal::BackUp { set, version, backup, keep_days: Some(keep_days) }
}

/// A request id was used before, and its operation has been forgotten: what it made then is not taken for what is asked for now.
#[tokio::test(start_paused = true)]
async fn a_former_backup_of_the_same_name_does_not_count() {
    let stage = provisioned().await;
    let table = first_table(&stage);
    for name in ["final-remove", "b1"] {
        stage.cloud.create_backup(&table, name).await.unwrap();
    }
    for _ in 0..5 {
        stage.cloud.backups(&table).await.unwrap();
    }
    tokio::time::advance(DAY * 100).await;
    stage.cloud.put_item(TABLE, "late", 9);
    let of_name = |name: &str| {
        let backups = stage.cloud.backups.lock();
        let named = backups[&table].iter().filter(|one| one.name == name);
        named.map(|one| one.items.len()).collect::<Vec<_>>()
    };
    let done = stage.done("back-up", back_up(&stage, "b1")).await;
    assert_eq!((done.state, of_name("b1")), (OperationState::Succeeded, vec![5, 6]));
    let done = stage.done("remove", stage.deprovision(true)).await;
    assert_eq!((done.state, of_name("final-remove")), (OperationState::Succeeded, vec![5, 6]));
    assert!(stage.cloud.observed().is_empty());
}

/// The list of operations grows old while a look at one of them takes its time.
#[tokio::test(start_paused = true)]
async fn what_another_worker_ended_meanwhile_is_not_worked_on() {
    let stage = provisioned().await;
    let id = begin_for(&stage, "cell-b", "make-b", stage.provision()).await;
    stage.work(&id).await.unwrap();
    stage.cloud.stop_at(None);
    let other = begin_for(&stage, "cell-b", "back-up-b", back_up(&stage, "b1")).await;
    let first = stage.begin("back-up-a", back_up(&stage, "b1")).await;
    // The first call of the second round, which is about cell-a.
    let (records, id, clock) = (stage.records.clone(), other.clone(), stage.clock.clone());
    let end = move || {
        let now = || records.operation(&id).now_or_never().unwrap().unwrap().unwrap();
        let mut taken = Operation { worker_epoch: 2, ..now() };
        assert!(records.save(&taken, true).now_or_never().unwrap().unwrap());
        taken.end(Err("by somebody else".to_owned()), clock.now());
        assert!(records.save(&taken, false).now_or_never().unwrap().unwrap());
    };
    *stage.cloud.meanwhile.lock() = Some((4, Box::new(end)));
    assert_eq!(stage.work(&first).await.unwrap().state, OperationState::Succeeded);
    let ended = stage.records.operation(&other).await.unwrap().unwrap();
    assert_eq!((ended.worker_epoch, ended.error.as_deref()), (2, Some("by somebody else")));
    let names: BTreeSet<_> = stage.cloud.backup_names().into_iter().map(|(of, _)| of).collect();
    assert_eq!(names, BTreeSet::from([TABLE, ORDERS].map(str::to_owned)));
}

/// Each takes much memory.
#[tokio::test(start_paused = true)]
async fn one_comparison_is_under_way_at_a_time() {
    let stage = provisioned().await;
    let id = begin_for(&stage, "cell-b", "make-b", stage.provision()).await;
    stage.work(&id).await.unwrap();
    for number in 0..800 {
        for name in [TABLE, "p-CustomerData-cell-b"] {
            stage.cloud.put_item(name, &format!("{number:04}"), 1);
        }
    }
    let a = stage.begin("drill-a", drill(&stage, Origin::Latest)).await;
    let b = begin_for(&stage, "cell-b", "drill-b", drill(&stage, Origin::Latest)).await;
    let worker = tokio::spawn(stage.worker().run(CancellationToken::new()));
    for id in [a, b] {
        let done = until(&stage, &id, Operation::ended).await;
        assert_eq!(done.drill_outcome(), DrillOutcome::Matched);
    }
    worker.abort();
    let mut paged = stage.cloud.paged.lock().clone();
    paged.dedup();
    assert_eq!(paged.len(), 8, "two tables of two cells and what they were restored to: {paged:?}");
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_takes_too_long_ends_the_drill() {
    let stage = provisioned().await;
    let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
    let mut operation = stage.records.operation(&id).await.unwrap().unwrap();
    let usable = Some(stage.clock.now());
    operation.recovery = Some(Recovery { usable, ..Recovery::default() });
    assert!(stage.records.save(&operation, false).await.unwrap());
    tokio::time::advance(DAY * 3 + HOUR).await;
    let done = stage.work(&id).await.unwrap();
    assert_eq!(done.drill_outcome(), DrillOutcome::Failed);
    assert!(done.error.unwrap().contains("not compared within 72 hours"));
}

/// Our own clock is a month ahead: nothing that is a day old goes.
#[tokio::test(start_paused = true)]
async fn retention_goes_by_the_times_of_aws() {
    let mut stage = scheduled(24, 7).await;
    stage.done("day-0", scheduled_goal(&stage, 0, 7)).await;
    tokio::time::advance(DAY).await;
    let (true_clock, instants) = (stage.clock.clone(), stage.clock.clone());
    stage.clock = Clock::from_fn(move || true_clock.now().plus(DAY * 30))
        .with_instant(move || instants.instant());
    stage.done("day-31", scheduled_goal(&stage, 31, 7)).await;
    assert_eq!(slots(&stage), [0, 31 * 24]);
    tokio::time::advance(DAY * 6 + HOUR).await;
    stage.done("day-38", scheduled_goal(&stage, 38, 7)).await;
    assert_eq!(
        slots(&stage),
        [31 * 24, 38 * 24],
        "more than seven days lie between the first and the last"
    );
}

/// More than one look deletes, and more than a record could tell of.
#[tokio::test(start_paused = true)]
async fn old_backups_go_by_and_by_and_those_that_must_not_are_told_in_short() {
    let with_old = async || {
        let stage = scheduled(24, 1).await;
        let cell = CellId::new("cell-a").unwrap();
        let wanted = Wanted::of(&stage.set, "p-", &stage.cell.0.lock());
        for wanted in wanted {
            for hour in 0..45 {
                let name = scheduled_backup(&cell, MIDNIGHT + hour * 3600);
                stage.cloud.create_backup(&TableRef::from(&wanted), &name).await.unwrap();
            }
            for _ in 0..5 {
                stage.cloud.backups(&TableRef::from(&wanted)).await.unwrap();
            }
        }
        tokio::time::advance(DAY * 5).await;
        stage
    };
    let stage = with_old().await;
    let done = stage.done("day-5", scheduled_goal(&stage, 5, 1)).await;
    assert_eq!((done.state, done.notes.len()), (OperationState::Succeeded, 0), "{done:?}");
    assert_eq!(slots(&stage), [5 * 24]);
    assert!(done.beat >= 5, "20 in a look, not more: {}", done.beat);
    let stage = with_old().await;
    stage.cloud.keeping.store(true, Ordering::SeqCst);
    let done = stage.done("day-5", scheduled_goal(&stage, 5, 1)).await;
    assert_eq!(done.state, OperationState::Succeeded, "{done:?}");
    let note = |name: &str| {
        format!("{name}: old backups stay, AWS refused to delete 45 with AccessDeniedException")
    };
    assert_eq!(done.notes, [note(TABLE), note(ORDERS)]);
    assert_eq!(slots(&stage).len(), 46);
}

/// Only every third call gets through, and so never those for both tables in one look.
#[tokio::test(start_paused = true)]
async fn a_throttled_list_does_not_undo_what_the_others_showed() {
    let stage = provisioned().await;
    stage.cloud.throttled_lists.store(3, Ordering::SeqCst);
    let done = stage.done("back-up", back_up(&stage, "b1")).await;
    assert_eq!((done.state, done.steps_done), (OperationState::Succeeded, 2), "{done:?}");
    assert_eq!(stage.cloud.backup_names().len(), 2);
}

/// Lets a drill get on until its record shows something.
async fn until(stage: &Stage, id: &OperationId, shows: impl Fn(&Operation) -> bool) -> Operation {
    for _ in 0..60_000 {
        let operation = stage.records.operation(id).await.unwrap().unwrap();
        if shows(&operation) {
            return operation;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never comes to that");
}

/// The one table goes though the other is protected, and AWS refuses to lift that.
#[tokio::test(start_paused = true)]
async fn a_refused_step_of_a_clean_up_is_told_with_its_table() {
    let stage = provisioned().await;
    let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
    let kept = drill_table(TABLE, &id);
    *stage.cloud.unchangeable.lock() = Some(kept.clone());
    let worker = tokio::spawn(stage.worker().run(CancellationToken::new()));
    until(&stage, &id, |_| stage.cloud.observed().contains_key(&kept)).await;
    stage.cloud.meddle(&kept, |table| table.deletion_protection = true);
    let done = until(&stage, &id, Operation::ended).await;
    worker.abort();
    assert_eq!((done.state, done.drill_outcome()), (OperationState::Failed, DrillOutcome::Matched));
    let left = done.recovery.unwrap().left;
    assert_eq!(left, [format!("{kept}: AWS refused to delete it with AccessDeniedException")]);
    let expected = [TABLE, ORDERS, &kept].map(str::to_owned);
    assert_eq!(tables(&stage.cloud), BTreeSet::from(expected), "the other one is gone");
}

#[tokio::test(start_paused = true)]
async fn a_clean_up_does_not_last_for_ever() {
    let stage = provisioned().await;
    stage.cloud.stuck.store(true, Ordering::SeqCst);
    let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
    let worker = tokio::spawn(stage.worker().run(CancellationToken::new()));
    let cleaning = |operation: &Operation| {
        operation.recovery.as_ref().is_some_and(|recovery| recovery.cleaning.is_some())
    };
    until(&stage, &id, cleaning).await;
    tokio::time::advance(HOUR * 23).await;
    tokio::time::sleep(SETTINGS.interval * 5).await;
    let is = stage.records.operation(&id).await.unwrap().unwrap();
    assert!(!is.ended(), "{is:?}");
    tokio::time::advance(HOUR).await;
    let done = until(&stage, &id, Operation::ended).await;
    worker.abort();
    let left = done.recovery.clone().unwrap().left;
    let named = |name: &str| format!("{}: AWS was busy with", drill_table(name, &id));
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].starts_with(&named(TABLE)) && left[1].starts_with(&named(ORDERS)), "{left:?}");
    assert_eq!((done.state, done.drill_outcome()), (OperationState::Failed, DrillOutcome::Matched));
}

/// Nobody looks for a while: the latest time is the one of the first look, and nothing of the wait is gained.
#[tokio::test(start_paused = true)]
async fn a_drill_that_waited_tells_what_would_have_been_lost() {
    let stage = provisioned().await;
    let id = stage.begin("drill", drill(&stage, Origin::Latest)).await;
    tokio::time::advance(HOUR).await;
    let done = stage.work(&id).await.unwrap();
    let point = done.recovery.clone().unwrap().point.unwrap();
    assert!(point > done.created);
    assert_eq!(done.lost_at().millis() - point.millis(), 60_000);
}

/// A cell got another table in the middle of a slot: it is backed up, and the others are not again.
#[tokio::test(start_paused = true)]
async fn a_slot_is_made_whole_for_a_new_version() {
    let stage = scheduled(24, 7).await;
    let due = async || {
        scheduler(&stage).round().await.unwrap();
        let operations = stage.records.operations().await.unwrap();
        operations.into_iter().find(|operation| !operation.ended())
    };
    stage.work(&due().await.unwrap().id).await.unwrap();
    assert_eq!(due().await, None);
    let tables = [stage.set.tables.clone(), vec![table("Invoices")]].concat();
    stage
        .records
        .put_table_set(&TableSet { version: 3, tables, ..stage.set.clone() })
        .await
        .unwrap();
    let goal = Goal::Provision { set: stage.set.id.clone(), version: 3 };
    stage.done("more", goal).await;
    let id = due().await.unwrap().id;
    assert_eq!(stage.work(&id).await.unwrap().steps_done, 1);
    assert_eq!(due().await, None);
    assert_eq!(stage.cloud.backup_names().len(), 3);
    assert_eq!(slots(&stage), [0], "all tables have it");
}

/// Names are not unique.
#[tokio::test(start_paused = true)]
async fn the_newest_whole_backup_of_a_name_is_restored() {
    let stage = provisioned().await;
    stage.done("back-up", back_up(&stage, "b1")).await;
    tokio::time::advance(HOUR).await;
    stage.cloud.put_item(TABLE, "late", 9);
    stage.done("again", back_up(&stage, "b1")).await;
    assert_eq!(stage.cloud.backup_names().len(), 4);
    tokio::time::advance(HOUR).await;
    // One that is not whole yet.
    stage.cloud.put_item(TABLE, "later", 9);
    stage.cloud.create_backup(&first_table(&stage), "b1").await.unwrap();
    let goal = restore(&stage, Origin::Backup("b1".to_owned()));
    let id = begin_for(&stage, "cell-b", "restore", goal).await;
    let done = stage.work(&id).await.unwrap();
    assert_eq!(done.state, OperationState::Succeeded, "{done:?}");
    assert_eq!(stage.cloud.items("p-CustomerData-cell-b").len(), 6);
}
