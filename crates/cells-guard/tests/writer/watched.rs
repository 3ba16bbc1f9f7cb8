//! Of each call it is told once how it was made and how it ended.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cells_guard::writer::{Call, Ended, Ending, How, Options, Watch, Writer};
use cells_migration::{GuardState, WriteMode};
use tokio::time::Instant;

use crate::faults::{Fault, hook};
use crate::world::{
    MOVE, Of, Outcome, TENANT, World, add, held, moved, only_if, open, put, set_guard,
};

#[derive(Default)]
struct Seen(Mutex<Vec<Ended>>);

impl Watch for Seen {
    fn ended(&self, ended: Ended) {
        self.0.lock().unwrap().push(ended);
    }
}

impl Seen {
    /// What was told since the last look.
    fn take(&self) -> Vec<(How, Ending)> {
        let told = std::mem::take(&mut *self.0.lock().unwrap());
        assert!(told.iter().all(|ended| ended.took < Duration::from_secs(60)));
        told.into_iter().map(|ended| (ended.how, ended.ending)).collect()
    }
}

/// A world with a writer whose calls are told of.
async fn watched() -> (World, Writer<Of>, Arc<Seen>) {
    let world = World::new().await;
    let seen = Arc::new(Seen::default());
    let writer = world.another_writer().watched(seen.clone());
    (world, writer, seen)
}

async fn write(writer: &Writer<Of>, write: cells_guard::writer::Write) -> Outcome {
    writer.write(TENANT, write, Call::default()).await
}

#[tokio::test]
async fn what_is_done_at_once_is_told_with_its_mode() {
    let (world, writer, seen) = watched().await;
    write(&writer, put("1", "a")).await.unwrap();
    write(&writer, only_if(put("1", "b"), "attribute_not_exists(PK)")).await.unwrap_err();
    assert_eq!(seen.take(), [(How::Direct, Ending::Done), (How::Direct, Ending::Condition)]);
    world.no_lease();
    write(&writer, put("1", "a")).await.unwrap();
    world.guard(&held("cell-a", GuardState::Open, 1, MOVE)).await;
    world.said("cell-a", Some(1), WriteMode::Logged);
    write(&writer, put("1", "a")).await.unwrap();
    let writes = [put("1", "b"), add("2")];
    writer.transact(TENANT, &writes, Call::default()).await.unwrap();
    write(&writer, only_if(put("1", "b"), "attribute_not_exists(PK)")).await.unwrap_err();
    let due = [
        (How::Guarded, Ending::Done),
        (How::Logged, Ending::Done),
        (How::Logged, Ending::Done),
        (How::Logged, Ending::Condition),
    ];
    assert_eq!(seen.take(), due);
}

#[tokio::test]
async fn what_is_busy_or_behind_is_told_as_done_again() {
    let (world, writer, seen) = watched().await;
    world.faults.throttle("PutItem");
    write(&writer, put("1", "a")).await.unwrap();
    assert_eq!(seen.take(), [(How::Direct, Ending::Retried)]);
    world.no_lease();
    world.faults.throttle("TransactWriteItems");
    write(&writer, put("1", "a")).await.unwrap();
    assert_eq!(seen.take(), [(How::Guarded, Ending::Retried)]);
    // The directory does not know yet that a move has begun.
    world.guard(&held("cell-a", GuardState::Open, 1, MOVE)).await;
    write(&writer, put("1", "a")).await.unwrap();
    assert_eq!(seen.take(), [(How::Logged, Ending::Retried)]);
    for _ in 0..Options::default().attempts {
        world.faults.throttle("TransactWriteItems");
    }
    write(&writer, put("1", "a")).await.unwrap_err();
    assert_eq!(seen.take(), [(How::Logged, Ending::Busy)]);
}

#[tokio::test]
async fn a_tenant_that_has_moved_is_followed_and_told_of() {
    let (world, writer, seen) = watched().await;
    world.no_lease();
    world.guard(&moved("cell-a", 2, "cell-b")).await;
    world.guard(&open("cell-b", 2)).await;
    assert_eq!(&*write(&writer, put("1", "a")).await.unwrap().cell, "cell-b");
    assert_eq!(seen.take(), [(How::Guarded, Ending::Redirected)]);
    // It is known by then.
    write(&writer, put("1", "a")).await.unwrap();
    assert_eq!(seen.take(), [(How::Guarded, Ending::Done)]);
}

#[tokio::test]
async fn a_lost_answer_is_settled_or_unknown() {
    let (world, writer, seen) = watched().await;
    world.faults.next("PutItem", Fault::LoseReply);
    write(&writer, put("1", "a")).await.unwrap();
    assert_eq!(seen.take(), [(How::Guarded, Ending::Settled)]);
    world.faults.next("UpdateItem", Fault::LoseReply);
    write(&writer, add("1")).await.unwrap_err();
    assert_eq!(seen.take(), [(How::Direct, Ending::Unknown)]);
    world.no_lease();
    world.faults.next("TransactWriteItems", Fault::LoseRequest);
    write(&writer, add("1")).await.unwrap();
    assert_eq!(seen.take(), [(How::Guarded, Ending::Settled)]);
}

#[tokio::test]
async fn what_is_not_written_is_told_with_its_reason() {
    let (world, writer, seen) = watched().await;
    world.no_lease();
    world.guard(&held("cell-a", GuardState::Fenced, 1, MOVE)).await;
    let soon =
        || Call { deadline: Some(Instant::now() + Duration::from_millis(200)), ..Call::default() };
    writer.write(TENANT, put("1", "a"), soon()).await.unwrap_err();
    assert_eq!(seen.take(), [(How::Guarded, Ending::Moving)]);
    // The fence is lifted while the write waits.
    let client = world.client.clone();
    let lifts = hook(move || async move {
        set_guard(&client, &held("cell-a", GuardState::Open, 1, MOVE)).await;
    });
    world.faults.next("GetItem", Fault::After(lifts));
    write(&writer, put("1", "a")).await.unwrap();
    assert_eq!(seen.take(), [(How::Logged, Ending::Retried)]);
    let table = crate::world::guard_table("cell-a");
    let key = cells_guard::guard::key(&table, TENANT, 0);
    let delete = world.client.delete_item().table_name(&table.table_name).set_key(Some(key));
    delete.send().await.unwrap();
    let writer = world.another_writer().watched(seen.clone());
    write(&writer, put("1", "a")).await.unwrap_err();
    assert_eq!(seen.take(), [(How::Guarded, Ending::Refused)]);
    // Nothing is told of what was never begun.
    let mut nowhere = put("1", "a");
    nowhere.table = "Nothing".to_owned();
    write(&writer, nowhere).await.unwrap_err();
    world.said("cell-a", None, WriteMode::Direct);
    writer.transact(TENANT, &[], Call::default()).await.unwrap_err();
    assert_eq!(seen.take(), []);
}
