//! Without a lease: one transaction with the check of the guard.

use std::sync::atomic::Ordering;

use cells_guard::writer::{Action, Busy, Call, Error, How, MAX_WRITES};
use cells_guard::{StoredGuard, Unreadable};
use cells_migration::{GuardState, MigrationId, WriteMode};

use crate::faults::Fault;
use crate::world::{MOVE, TENANT, World, add, held, key, moved, only_if, open, put, text, write};

async fn unleased() -> World {
    let world = World::new().await;
    world.no_lease();
    world
}

#[tokio::test]
async fn without_a_lease_the_guard_is_checked() {
    let world = unleased().await;
    let written = world.write(put("1", "a")).await.unwrap();
    assert_eq!((&*written.cell, written.epoch, written.how), ("cell-a", 1, How::Guarded));
    assert_eq!(world.faults.seen(), ["TransactWriteItems"], "and not read");
    assert_eq!(world.value("cell-a", "1", "CellId").await, Some(text("cell-a")));
    world.write(add("1")).await.unwrap();
    world.transact(&[add("1"), write(Action::Delete(key("2")))], None).await.unwrap();
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("2"));
    world.write(write(Action::Delete(key("1")))).await.unwrap();
    assert_eq!(world.text("cell-a", "1").await, None);
}

/// A placement that was made before the guard knows, or after: the guard is believed.
#[tokio::test]
async fn an_open_guard_is_taken_at_its_word() {
    let world = unleased().await;
    for (stored, epoch, how) in [
        (open("cell-a", 3), 3, How::Guarded),
        (held("cell-a", GuardState::Open, 3, MOVE), 3, How::Logged),
        (held("cell-a", GuardState::Open, 3, MigrationId(8)), 3, How::Logged),
        (open("cell-a", 3), 3, How::Guarded),
    ] {
        world.guard(&stored).await;
        let written = world.write(add("1")).await.unwrap();
        assert_eq!((written.epoch, written.how), (epoch, how));
    }
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("4"), "each once");
    assert_eq!(world.log("cell-a", MOVE, 1).await.len(), 1);
    assert_eq!(world.log("cell-a", MigrationId(8), 1).await.len(), 1);
}

/// Where writes are logged a record goes with each, and names what was touched and nothing that was only looked at.
#[tokio::test]
async fn a_logged_write_leaves_its_record() {
    let world = unleased().await;
    let stored = StoredGuard { shards: 4, ..held("cell-a", GuardState::Open, 1, MOVE) };
    world.guard(&stored).await;
    world.said("cell-a", Some(1), WriteMode::Logged);
    let writes = [put("1", "a"), add("2"), write(Action::Delete(key("3")))];
    let look = only_if(write(Action::Check(key("4"))), "attribute_not_exists(PK)");
    let all: Vec<_> = writes.into_iter().chain([look]).collect();
    assert_eq!(world.transact(&all, None).await.unwrap().how, How::Logged);
    assert_eq!(world.faults.seen(), ["GetItem", "TransactWriteItems"]);
    let [record] = &world.log("cell-a", MOVE, 4).await[..] else { panic!("one record") };
    let touched: Vec<_> = record.touched.iter().map(|touched| touched.key.clone()).collect();
    assert_eq!(touched, [key("1"), key("2"), key("3")]);
    assert!(record.touched.iter().all(|touched| touched.table == "Orders"));

    for sort in 10..60 {
        world.write(put(&sort.to_string(), "a")).await.unwrap();
    }
    assert_eq!(world.faults.seen(), ["TransactWriteItems"; 50], "the guard is not read again");
    assert_eq!(world.log("cell-a", MOVE, 4).await.len(), 51);
    let one = world.log("cell-a", MOVE, 1).await.len();
    assert!(one < 51, "all shards are used");

    // One that fails leaves none.
    world.write(only_if(put("1", "b"), "attribute_not_exists(PK)")).await.unwrap_err();
    assert_eq!(world.log("cell-a", MOVE, 4).await.len(), 51);
}

#[tokio::test]
async fn a_transaction_has_room_for_guard_and_log() {
    let world = unleased().await;
    world.guard(&held("cell-a", GuardState::Open, 1, MOVE)).await;
    let writes: Vec<_> = (0..=MAX_WRITES).map(|sort| put(&sort.to_string(), "a")).collect();
    world.transact(&writes[1..], None).await.unwrap();
    for leased in [true, false] {
        world.lease.store(if leased { 60_000 } else { 0 }, Ordering::SeqCst);
        let error = world.transact(&writes, None).await.unwrap_err();
        assert!(error.to_string().starts_with("writes holds 99 writes; 1 to 98"), "{error}");
    }
    assert_eq!(world.text("cell-a", "0").await, None);
}

/// The answer of a guarded write is lost: the same again, and it is done once.
#[tokio::test]
async fn a_guarded_write_is_done_once_whatever_is_lost() {
    let world = unleased().await;
    for stored in [open("cell-a", 1), held("cell-a", GuardState::Open, 1, MOVE)] {
        world.guard(&stored).await;
        for fault in [Fault::LoseReply, Fault::LoseRequest] {
            let before = world.number("cell-a", "1").await.unwrap_or_default();
            world.write(add("2")).await.unwrap();
            world.faults.next("TransactWriteItems", fault);
            world.write(add("1")).await.unwrap();
            let after = world.number("cell-a", "1").await.unwrap();
            let count = |text: &str| text.parse::<u32>().unwrap_or_default();
            assert_eq!(count(&after), count(&before) + 1);
        }
    }
    assert_eq!(world.log("cell-a", MOVE, 1).await.len(), 4);
}

/// It was done, its answer lost, and then the guard closed. The log knows of it; where there is none, it is unknown and not done twice.
#[tokio::test]
async fn an_open_outcome_is_settled_by_the_log() {
    for logged in [true, false] {
        let world = unleased().await;
        let stored = match logged {
            true => held("cell-a", GuardState::Open, 1, MOVE),
            false => open("cell-a", 1),
        };
        world.guard(&stored).await;
        world.guard(&open("cell-b", 2)).await;
        world.write(put("0", "a")).await.unwrap();
        let client = world.client.clone();
        let moves = crate::faults::hook(move || async move {
            crate::world::set_guard(&client, &moved("cell-a", 2, "cell-b")).await;
        });
        world.faults.next("TransactWriteItems", Fault::LoseReplyAnd(moves));
        // As if DynamoDB had forgotten the token.
        world.faults.forget_tokens();
        let outcome = world.write(add("1")).await;
        match logged {
            true => assert_eq!(&*outcome.unwrap().cell, "cell-a"),
            false => assert_eq!(outcome.unwrap_err(), Error::Unknown),
        }
        assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"));
        assert_eq!(world.number("cell-b", "1").await, None);
    }
}

/// Every answer is lost: where there is a log, it is read.
#[tokio::test]
async fn a_write_of_which_nobody_tells_is_looked_for_in_the_log() {
    for (stored, settled) in
        [(open("cell-a", 1), false), (held("cell-a", GuardState::Open, 1, MOVE), true)]
    {
        let world = unleased().await;
        world.guard(&stored).await;
        world.write(put("0", "a")).await.unwrap();
        world.faults.next("TransactWriteItems", Fault::LoseReply);
        (1..8).for_each(|_| world.faults.next("TransactWriteItems", Fault::LoseRequest));
        let outcome = world.write(add("1")).await;
        match settled {
            true => assert_eq!(outcome.unwrap().how, How::Logged),
            false => assert_eq!(outcome.unwrap_err(), Error::Unknown),
        }
        assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"));
    }
}

/// Nothing is repeated that may have been done: a condition that fails after an open attempt proves nothing.
#[tokio::test]
async fn a_condition_that_fails_after_an_open_attempt_is_unknown() {
    let world = unleased().await;
    world.write(put("1", "a")).await.unwrap();
    world.faults.next("TransactWriteItems", Fault::LoseRequest);
    let error = world.write(only_if(put("1", "b"), "attribute_not_exists(PK)")).await.unwrap_err();
    assert_eq!(error, Error::Unknown);
}

#[tokio::test]
async fn a_call_with_an_id_has_one_effect() {
    for stored in [open("cell-a", 1), held("cell-a", GuardState::Open, 1, MOVE)] {
        let world = unleased().await;
        let stored = StoredGuard { shards: 3, ..stored };
        world.guard(&stored).await;
        for _ in 0..3 {
            world.transact(&[add("1")], Some("id")).await.unwrap();
        }
        world.transact(&[add("1")], Some("other id")).await.unwrap();
        assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("2"));
        // A move has begun since. Who asks as before is told that it was done; in another form it is refused, and so are other writes.
        world.guard(&held("cell-a", GuardState::Open, 1, MigrationId(9))).await;
        world.transact(&[add("1")], Some("id")).await.unwrap();
        world.said("cell-a", Some(1), WriteMode::Logged);
        let other = world.another_writer();
        for writes in [[add("1")], [add("2")]] {
            let call = Call { id: Some("id".to_owned()), ..Call::default() };
            let error = other.transact(TENANT, &writes, call).await.unwrap_err();
            assert_eq!(error, Error::IdUsed);
        }
        assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("2"));
        assert_eq!(world.number("cell-a", "2").await, None);
    }
}

/// A move began between the route and the write: the id's first form is cancelled by the guard, the next one done, and once.
#[tokio::test]
async fn a_call_with_an_id_takes_another_form_once() {
    let world = unleased().await;
    world.guard(&held("cell-a", GuardState::Open, 1, MOVE)).await;
    for _ in 0..2 {
        world.transact(&[add("1")], Some("id")).await.unwrap();
    }
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_missing_guard_is_named() {
    let world = unleased().await;
    let missing = Error::GuardMissing { cell: "cell-a".to_owned() };
    let table = crate::world::guard_table("cell-a");
    let delete = world.client.delete_item().table_name("Orders-cell-a");
    let guard = cells_guard::guard::key(&table, crate::world::TENANT, 0);
    delete.set_key(Some(guard.clone())).send().await.unwrap();
    assert_eq!(world.write(put("1", "a")).await.unwrap_err(), missing);
    // Another cell's guard, in a copy of its table.
    let item = cells_guard::guard::item(&table, crate::world::TENANT, 0, &open("cell-b", 1));
    let copy = world.client.put_item().table_name("Orders-cell-a").set_item(Some(item));
    copy.send().await.unwrap();
    assert_eq!(world.write(put("1", "a")).await.unwrap_err(), missing);
    let broken = world.client.put_item().table_name("Orders-cell-a").set_item(Some(guard));
    broken.send().await.unwrap();
    let error = world.write(put("1", "a")).await.unwrap_err();
    let unreadable = Unreadable { attribute: "GuardShards", problem: "is missing" };
    assert_eq!(error, Error::Unreadable(unreadable));
    assert_eq!(world.text("cell-a", "1").await, None);
}

/// Other transactions on the same items: nothing is done, and it is tried again.
#[tokio::test]
async fn conflicts_are_tried_again_and_end() {
    let world = unleased().await;
    let conflict = || {
        let body = serde_like(&["TransactionConflict", "None"]);
        Fault::Answer(400, body)
    };
    world.faults.next("TransactWriteItems", conflict());
    world.write(add("1")).await.unwrap();
    assert_eq!(world.faults.seen().len(), 2);
    for _ in 0..8 {
        world.faults.next("TransactWriteItems", conflict());
    }
    let error = world.write(add("1")).await.unwrap_err();
    assert_eq!(error, Error::Busy(Busy::Contended));
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"));
}

/// A cancelled transaction as DynamoDB says it.
fn serde_like(codes: &[&str]) -> String {
    let reasons: Vec<_> = codes.iter().map(|code| format!("{{\"Code\":\"{code}\"}}")).collect();
    format!(
        "{{\"__type\":\"com.amazonaws.dynamodb.v20120810#TransactionCanceledException\",\"Message\":\"m\",\"CancellationReasons\":[{}]}}",
        reasons.join(",")
    )
}

/// What is wrong with a request is named, and nothing is sent.
#[tokio::test]
async fn what_is_wrong_is_named_before_anything_is_sent() {
    let world = unleased().await;
    let mut foreign = key("1");
    foreign.insert("PK".to_owned(), text("CUSTOMER#other"));
    let mut guard = key("1");
    guard.insert("PK".to_owned(), text("\u{1}guard#0#t"));
    let mut sortless = key("1");
    sortless.remove("SK");
    let mut more = key("1");
    more.insert("V".to_owned(), text("x"));
    for (write, field) in [
        (write(Action::Put(foreign)), "item.PK"),
        (write(Action::Put(guard)), "item.PK"),
        (write(Action::Put(sortless)), "item.SK"),
        (write(Action::Delete(more)), "item"),
        (write(Action::Update(key("1"), "SET CellId = :x".to_owned())), "update"),
        (write(Action::Check(key("1"))), "item"),
    ] {
        match world.write(write).await.unwrap_err() {
            Error::Invalid { field: named, .. } => assert_eq!(named, field),
            other => panic!("{other:?}"),
        }
    }
    let mut nowhere = put("1", "a");
    nowhere.table = "Nothing".to_owned();
    let unknown = Error::UnknownTable { cell: "cell-a".to_owned(), table: "Nothing".to_owned() };
    assert_eq!(world.write(nowhere).await.unwrap_err(), unknown);
    assert_eq!(world.faults.seen(), [""; 0]);
    // What only DynamoDB knows to be wrong.
    let nonsense = write(Action::Update(key("1"), "SET nonsense".to_owned()));
    match world.transact(&[put("2", "a"), nonsense], None).await.unwrap_err() {
        Error::Invalid { .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(world.text("cell-a", "2").await, None);
}
