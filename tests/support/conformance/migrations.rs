//! Records of migrations.

use std::time::Duration;

use cell_directory::domain::{CellId, MigrationId, PartitionKey, Timestamp};
use cell_directory::migration::{
    Begun, Migration, Order, Progress, Spec, Told, Verification, Writers,
};
use cell_directory::store::Write;
use cells_migration::{Phase, Record, RecordCheck, Wish};

use super::{Engine, at};

fn migration(number: u128, tenant: &str) -> Migration {
    let id = MigrationId::new(number);
    Migration {
        record: Record::new(id.into(), 1),
        spec: Spec {
            tenant: PartitionKey::new(tenant).unwrap(),
            source: CellId::new("cell-a").unwrap(),
            target: CellId::new("cell-b").unwrap(),
            verification: Verification::Strict,
            soak: Duration::from_secs(60),
            pause_budget: Duration::from_millis(1500),
            rate_limit: None,
            guard_shards: 2,
            writers: Writers::Cooperative,
        },
        progress: Progress { items_copied: 7, ..Progress::default() },
        findings: None,
        parked: None,
        trouble: None,
        created: at(1),
        updated: at(1),
        phase_since: at(1),
        digest: "digest".to_owned(),
        caller: None,
        bulk: None,
        beat: 0,
    }
}

/// The write that turns a record into another, where it is as it was.
fn put(from: &Record, to: &Record) -> [Write; 1] {
    [Write::PutMigration { check: RecordCheck::of(from), record: to.clone(), findings: None }]
}

pub async fn a_migration_is_read_as_it_was_begun_and_its_tenant_moves_once(engine: &impl Engine) {
    let records = engine.fresh_records().await;
    let (first, second) = (migration(1, "customer-1"), migration(2, "customer-1"));
    assert_eq!(records.begin(&first, None).await, Ok(Begun::Begun));
    assert_eq!(records.migration(first.id()).await, Ok(Some(first.clone())));
    assert_eq!(records.begin(&first, None).await, Ok(Begun::Exists(Box::new(first.clone()))));
    assert_eq!(records.begin(&second, None).await, Ok(Begun::Moving(first.id())));
    assert_eq!(records.migration(second.id()).await, Ok(None));
    assert_eq!(records.moving().await, Ok(vec![(first.spec.tenant.clone(), first.id())]));
    let end = Write::EndMigration { tenant: first.spec.tenant.clone(), migration: second.id() };
    assert_eq!(records.write(&[end], at(2)).await, Ok(false));
    let end = Write::EndMigration { tenant: first.spec.tenant.clone(), migration: first.id() };
    assert_eq!(records.write(&[end], at(2)).await, Ok(true));
    assert_eq!(records.begin(&second, None).await, Ok(Begun::Begun));
    let page = records.migrations(10, None).await.unwrap();
    let ids: Vec<_> = page.items.iter().map(Migration::id).collect();
    assert_eq!(ids, [second.id(), first.id()]);
}

/// And not by what a worker tells later, which may be dead by then.
pub async fn a_phases_time_is_that_of_the_write_that_began_it(engine: &impl Engine) {
    let records = engine.fresh_records().await;
    let begun = migration(1, "customer-1");
    assert_eq!(records.begin(&begun, None).await, Ok(Begun::Begun));
    let since = async || {
        let migration = records.migration(begun.id()).await.unwrap().unwrap();
        (migration.record.phase, migration.record.worker, migration.phase_since)
    };
    let held = Record { worker: 1, ..begun.record.clone() };
    assert_eq!(records.write(&put(&begun.record, &held), at(2)).await, Ok(true));
    assert_eq!(since().await, (Phase::Planned, 1, at(1)));
    let logging = Record { phase: Phase::Logging, ..held.clone() };
    assert_eq!(records.write(&put(&held, &logging), at(3)).await, Ok(true));
    assert_eq!(since().await, (Phase::Logging, 1, at(3)));
    let told = Told { beat: 5, progress: Progress::default(), trouble: None, parked: None };
    assert_eq!(records.tell(begun.id(), 1, &told, at(4)).await, Ok(true));
    assert_eq!(since().await, (Phase::Logging, 1, at(3)));
    // Somebody who was passed over changes nothing.
    assert_eq!(records.write(&put(&held, &logging), at(5)).await, Ok(false));
    assert_eq!(since().await, (Phase::Logging, 1, at(3)));
}

pub async fn only_the_worker_that_holds_a_migration_tells_of_it(engine: &impl Engine) {
    let records = engine.fresh_records().await;
    let begun = migration(1, "customer-1");
    assert_eq!(records.begin(&begun, None).await, Ok(Begun::Begun));
    let held = Record { worker: 2, ..begun.record.clone() };
    assert_eq!(records.write(&put(&begun.record, &held), at(2)).await, Ok(true));
    let progress = Progress { items_copied: 40, fences: 1, ..Progress::default() };
    let trouble = Some("a reason".to_owned());
    let told = Told { beat: 9, progress, trouble, parked: Some("parked".to_owned()) };
    assert_eq!(records.tell(begun.id(), 1, &told, at(3)).await, Ok(false));
    assert_eq!(records.tell(begun.id(), 2, &told, at(4)).await, Ok(true));
    let Told { beat, progress, trouble, parked } = told;
    let expected = Migration {
        record: held,
        beat,
        progress,
        trouble,
        parked,
        updated: at(4),
        ..begun.clone()
    };
    assert_eq!(records.migration(begun.id()).await, Ok(Some(expected)));
}

/// What an operator asks is kept by the workers' own writes.
pub async fn what_operators_ask_stands_beside_what_workers_write(engine: &impl Engine) {
    let records = engine.fresh_records().await;
    let begun = migration(1, "customer-1");
    let order = async |order, now: Timestamp| records.order(begun.id(), order, now).await;
    assert_eq!(order(Order::Pause(true), at(2)).await, Ok(false));
    assert_eq!(records.migration(begun.id()).await, Ok(None));
    assert_eq!(records.begin(&begun, None).await, Ok(Begun::Begun));
    assert_eq!(order(Order::Pause(true), at(2)).await, Ok(true));
    let held = Record { worker: 1, ..begun.record.clone() };
    assert_eq!(records.write(&put(&begun.record, &held), at(3)).await, Ok(true));
    let asked = async || {
        let migration = records.migration(begun.id()).await.unwrap().unwrap();
        (migration.record.paused, migration.record.wish)
    };
    assert_eq!(asked().await, (true, None));
    // A cancelled one is not paused: what was copied is to be removed.
    assert_eq!(order(Order::Wish(Wish::Cancel), at(4)).await, Ok(true));
    assert_eq!(asked().await, (false, Some(Wish::Cancel)));
}
