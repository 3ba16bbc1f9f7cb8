//! Under a lease: plain writes, and what becomes of those that the lease does not outlast.

use std::sync::atomic::Ordering;

use cells_guard::writer::{Action, Error, How};
use cells_migration::GuardState;

use crate::faults::{Fault, hook};
use crate::world::{
    MOVE, World, add, held, key, moved, only_if, open, put, set_guard, text, write,
};

/// A lease is a plain write's licence: no guard is asked, and there need not even be one.
#[tokio::test]
async fn under_a_lease_writes_are_plain() {
    let world = World::new().await;
    world.guard(&moved("cell-a", 9, "cell-b")).await;
    let written = world.write(put("1", "a")).await.unwrap();
    assert_eq!((&*written.cell, written.epoch, written.how), ("cell-a", 1, How::Direct));
    assert_eq!(written.item, None);
    let written = world.write(put("1", "b")).await.unwrap();
    assert_eq!(written.item.unwrap()["V"], text("a"), "what was there");
    let written = world.write(add("1")).await.unwrap();
    assert_eq!(written.item.unwrap()["V"], text("b"), "what is there now");
    assert_eq!(world.value("cell-a", "1", "CellId").await, Some(text("cell-a")));
    world.write(write(Action::Delete(key("1")))).await.unwrap();
    let both = [put("2", "x"), put("3", "y")];
    assert_eq!(world.transact(&both, None).await.unwrap().how, How::Direct);
    let seen = world.faults.seen();
    assert_eq!(seen, ["PutItem", "PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems"]);
    assert_eq!(world.text("cell-a", "1").await, None);
    assert_eq!(world.text("cell-a", "3").await.as_deref(), Some("y"));
}

#[tokio::test]
async fn a_condition_that_fails_is_told_with_its_number() {
    let world = World::new().await;
    world.write(put("1", "a")).await.unwrap();
    let twice = only_if(put("1", "b"), "attribute_not_exists(PK)");
    for leased in [true, false] {
        world.lease.store(if leased { 60_000 } else { 0 }, Ordering::SeqCst);
        let error = world.write(twice.clone()).await.unwrap_err();
        assert_eq!(error, Error::ConditionFailed { write: 0 });
        let all = [put("2", "x"), twice.clone(), put("3", "x")];
        let error = world.transact(&all, None).await.unwrap_err();
        assert_eq!(error, Error::ConditionFailed { write: 1 }, "leased: {leased}");
    }
    assert_eq!(world.text("cell-a", "1").await.as_deref(), Some("a"));
    assert_eq!(world.text("cell-a", "2").await, None);
}

/// What DynamoDB surely did not do is sent again.
#[tokio::test]
async fn what_was_not_done_is_tried_again() {
    let world = World::new().await;
    for leased in [true, false] {
        world.lease.store(if leased { 60_000 } else { 0 }, Ordering::SeqCst);
        let operation = if leased { "UpdateItem" } else { "TransactWriteItems" };
        world.faults.throttle(operation);
        world.faults.next(operation, Fault::Unreachable);
        world.write(add("1")).await.unwrap();
        assert_eq!(world.faults.seen(), [operation; 3]);
    }
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("2"));
    for _ in 0..8 {
        world.faults.throttle("TransactWriteItems");
    }
    let error = world.write(add("1")).await.unwrap_err();
    assert_eq!(error, Error::Busy(cells_guard::writer::Busy::Throttled));
    assert_eq!(world.faults.seen().len(), 8, "there is an end to it");
}

/// Nobody knows whether it was done: what may be done twice is, guarded; the rest is said to be unknown and never done twice.
#[tokio::test]
async fn a_lost_answer_is_repeated_only_where_that_is_the_same() {
    for lost in [true, false] {
        let lose = || if lost { Fault::LoseReply } else { Fault::LoseRequest };
        let world = World::new().await;
        world.faults.next("PutItem", lose());
        assert_eq!(world.write(put("1", "a")).await.unwrap().how, How::Guarded);
        assert_eq!(world.text("cell-a", "1").await.as_deref(), Some("a"));

        world.faults.next("DeleteItem", lose());
        world.write(write(Action::Delete(key("1")))).await.unwrap();
        assert_eq!(world.text("cell-a", "1").await, None);

        world.faults.next("UpdateItem", lose());
        assert_eq!(world.write(add("2")).await.unwrap_err(), Error::Unknown);
        assert_eq!(world.number("cell-a", "2").await.is_some(), lost, "not done twice");

        // Its first attempt may be what makes its condition fail.
        world.faults.next("PutItem", lose());
        let once = world.write(only_if(put("3", "a"), "attribute_not_exists(PK)")).await;
        match lost {
            true => assert_eq!(once.unwrap_err(), Error::Unknown),
            false => assert_eq!(once.unwrap().how, How::Guarded),
        }

        // A transaction has a token: it is sent again as it is, and done once.
        world.faults.next("TransactWriteItems", lose());
        let written = world.transact(&[add("4"), put("5", "a")], None).await.unwrap();
        assert_eq!(written.how, How::Direct);
        assert_eq!(world.number("cell-a", "4").await.as_deref(), Some("1"), "lost: {lost}");
    }
}

/// The lease ends while a write is under way. The answer says that it was done; the guard says whether it counts.
#[tokio::test]
async fn an_answer_after_the_lease_counts_if_the_guard_is_as_it_was() {
    for (number, stored, counts) in [
        (1, open("cell-a", 1), true),
        // A move has begun: the record has it copied.
        (2, held("cell-a", GuardState::Open, 1, MOVE), true),
        (3, moved("cell-a", 2, "cell-b"), false),
        (4, open("cell-a", 3), false),
        (5, open("cell-b", 1), false),
    ] {
        let world = World::new().await;
        world.guard(&open("cell-b", 2)).await;
        let (lease, client, late) = (world.lease.clone(), world.client.clone(), stored.clone());
        let ends = hook(move || async move {
            lease.store(0, Ordering::SeqCst);
            if late.cell == "cell-b" {
                // Of another cell, in this cell's table.
                let table = crate::world::guard_table("cell-a");
                let item = cells_guard::guard::item(&table, crate::world::TENANT, 0, &late);
                let put = client.put_item().table_name("Orders-cell-a").set_item(Some(item));
                put.send().await.unwrap();
            } else {
                set_guard(&client, &late).await;
            }
        });
        world.faults.next("UpdateItem", Fault::After(ends));
        let outcome = world.write(add("1")).await;
        match counts {
            true => {
                let written = outcome.unwrap();
                assert_eq!(written.how, How::Direct, "{number}");
                assert!(written.item.is_some(), "what it is now is known");
            }
            false => assert_eq!(outcome.unwrap_err(), Error::Unknown, "{number}"),
        }
        assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"), "{number}");
        let logged = world.log("cell-a", MOVE, 1).await;
        assert_eq!(logged.len(), usize::from(number == 2), "{number}");
        assert!(logged.iter().all(|record| record.touched[0].key == key("1")));
    }
}

/// The same for what may be done twice: it is done in the cell where the tenant is by then.
#[tokio::test]
async fn after_the_lease_a_put_follows_the_tenant() {
    let world = World::new().await;
    world.guard(&open("cell-b", 2)).await;
    let (lease, client) = (world.lease.clone(), world.client.clone());
    let ends = hook(move || async move {
        lease.store(0, Ordering::SeqCst);
        set_guard(&client, &moved("cell-a", 2, "cell-b")).await;
    });
    world.faults.next("PutItem", Fault::After(ends));
    let written = world.write(put("1", "a")).await.unwrap();
    assert_eq!((&*written.cell, written.epoch, written.redirects), ("cell-b", 2, 1));
    assert_eq!(world.value("cell-b", "1", "CellId").await, Some(text("cell-b")));
}

/// A condition that failed after the lease may have failed because the items are gone.
#[tokio::test]
async fn a_condition_that_fails_after_the_lease_is_asked_where_the_tenant_is() {
    let world = World::new().await;
    world.guard(&open("cell-b", 2)).await;
    let there = world.client.put_item().table_name("Orders-cell-b").set_item(Some(key("1")));
    there.send().await.unwrap();
    let (lease, client) = (world.lease.clone(), world.client.clone());
    let ends = hook(move || async move {
        lease.store(0, Ordering::SeqCst);
        set_guard(&client, &moved("cell-a", 2, "cell-b")).await;
    });
    world.faults.next("PutItem", Fault::After(ends));
    let written = world.write(only_if(put("1", "new"), "attribute_exists(PK)")).await.unwrap();
    assert_eq!(&*written.cell, "cell-b");
    assert_eq!(world.text("cell-b", "1").await.as_deref(), Some("new"));
}

/// A direct transaction was done or is on its way still, nobody knows, and the lease is over: it goes on guarded, under the same token,
/// so that one of both forms is done at most.
#[tokio::test]
async fn an_open_transaction_goes_on_under_its_token() {
    let ends = |world: &World| {
        let lease = world.lease.clone();
        hook(move || async move { lease.store(0, Ordering::SeqCst) })
    };
    // It was done: the guarded form is refused.
    let world = World::new().await;
    world.faults.next("TransactWriteItems", Fault::LoseReplyAnd(ends(&world)));
    assert_eq!(world.transact(&[add("1")], None).await.unwrap_err(), Error::Unknown);
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"));
    // Where to do it twice is the same, it is.
    let world = World::new().await;
    world.faults.next("TransactWriteItems", Fault::LoseReplyAnd(ends(&world)));
    assert_eq!(world.transact(&[put("1", "a")], None).await.unwrap().how, How::Guarded);
    assert_eq!(world.faults.seen().len(), 3);

    // It comes late: the guarded form is done, and the late one refused.
    let world = World::new().await;
    let (late, fault) = Fault::late(ends(&world));
    world.faults.next("TransactWriteItems", fault);
    assert_eq!(world.transact(&[add("1")], None).await.unwrap().how, How::Guarded);
    assert_eq!(late.arrive().await, 400);
    assert_eq!(world.number("cell-a", "1").await.as_deref(), Some("1"));
}
