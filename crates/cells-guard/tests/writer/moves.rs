//! A tenant that moves while it is written to.

use std::time::Duration;

use cells_guard::writer::{Call, Error, How, Options};
use cells_migration::{GuardState, WriteMode};
use tokio::time::Instant;

use crate::world::{MOVE, TENANT, World, add, held, moved, open, put};

async fn unleased() -> World {
    let world = World::new().await;
    world.no_lease();
    world
}

/// By the guard alone: the directory need not be asked, nor be up.
#[tokio::test]
async fn a_moved_guard_leads_to_the_next_cell() {
    let world = unleased().await;
    world.guard(&moved("cell-a", 2, "cell-b")).await;
    world.guard(&held("cell-b", GuardState::Open, 2, MOVE)).await;
    let written = world.write(add("1")).await.unwrap();
    assert_eq!((&*written.cell, written.epoch, written.redirects), ("cell-b", 2, 1));
    assert_eq!(written.how, How::Logged);
    assert_eq!(world.directory.asked.lock().unwrap()[..], [None]);
    let first = ["TransactWriteItems", "GetItem", "TransactWriteItems"];
    assert_eq!(world.faults.seen(), first);
    // It is remembered for as long as the route is behind.
    let written = world.write(add("1")).await.unwrap();
    assert_eq!((written.epoch, written.redirects), (2, 0));
    assert_eq!(world.faults.seen(), ["TransactWriteItems"]);
    assert_eq!(world.number("cell-b", "1").await.as_deref(), Some("2"));
    assert_eq!(world.number("cell-a", "1").await, None);
    assert_eq!(world.log("cell-b", MOVE, 1).await.len(), 2);
}

/// What a guard said counts for more than a lease on what was before it.
#[tokio::test]
async fn a_route_that_is_behind_has_no_lease() {
    let world = unleased().await;
    world.guard(&moved("cell-a", 2, "cell-b")).await;
    world.guard(&open("cell-b", 2)).await;
    world.write(put("1", "a")).await.unwrap();
    world.lease.store(60_000, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(&*world.write(put("2", "a")).await.unwrap().cell, "cell-b");
}

/// Where the next cell is not known, the directory is asked for the epoch at least that the guard names.
#[tokio::test]
async fn an_unknown_next_cell_is_asked_for() {
    let world = unleased().await;
    world.forget_cells();
    world.guard(&moved("cell-a", 2, "cell-b")).await;
    world.guard(&open("cell-b", 2)).await;
    assert_eq!(world.write(add("1")).await.unwrap_err(), Error::Route(crate::world::Down));
    assert_eq!(world.directory.asked.lock().unwrap()[..], [None, Some(2)]);
    assert_eq!(world.number("cell-b", "1").await, None);
}

/// Two guards that name each other: a tenant is not followed forever.
#[tokio::test]
async fn a_circle_of_moves_ends() {
    let world = unleased().await;
    world.guard(&moved("cell-a", 2, "cell-b")).await;
    world.guard(&moved("cell-b", 2, "cell-a")).await;
    assert_eq!(world.write(add("1")).await.unwrap_err(), Error::Moving);
}

/// A writer waits while a move commits, and goes on where the tenant is then: there, or where it was.
#[tokio::test]
async fn a_fence_is_waited_for() {
    for committed in [true, false] {
        let world = unleased().await;
        world.guard(&held("cell-a", GuardState::Fenced, 1, MOVE)).await;
        world.guard(&held("cell-b", GuardState::Incoming, 2, MOVE)).await;
        let writer = world.writer.clone();
        let write =
            tokio::spawn(async move { writer.write(TENANT, add("1"), Call::default()).await });
        // It has met with the fence, and looks again.
        while world.faults.count("GetItem") < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!write.is_finished());
        if committed {
            world.guard(&held("cell-b", GuardState::Open, 2, MOVE)).await;
            world.guard(&moved("cell-a", 2, "cell-b")).await;
        } else {
            world.guard(&held("cell-a", GuardState::Open, 1, MOVE)).await;
        }
        let written = write.await.unwrap().unwrap();
        let cell = if committed { "cell-b" } else { "cell-a" };
        assert_eq!(&*written.cell, cell);
        assert_eq!(world.number(cell, "1").await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_fence_that_stays_ends_at_the_deadline() {
    let world = unleased().await;
    world.guard(&held("cell-a", GuardState::Fenced, 1, MOVE)).await;
    let deadline = Some(Instant::now() + Duration::from_secs(2));
    let call = Call { deadline, ..Call::default() };
    let error = world.writer.write(TENANT, add("1"), call).await.unwrap_err();
    assert_eq!(error, Error::Fenced { cell: "cell-a".to_owned() });
    let patient = World::with(Options { patience: Duration::ZERO, ..Options::default() }).await;
    patient.no_lease();
    patient.guard(&held("cell-a", GuardState::Fenced, 1, MOVE)).await;
    assert!(patient.write(add("1")).await.is_err());
    assert_eq!(patient.number("cell-a", "1").await, None);
}

/// A route that is far behind leads to a cell to which the tenant is on its way back: it is still in the other one.
#[tokio::test]
async fn a_guard_that_waits_for_its_tenant_is_no_home() {
    let world = unleased().await;
    world.guard(&held("cell-a", GuardState::Incoming, 3, MOVE)).await;
    world.guard(&held("cell-b", GuardState::Open, 2, MOVE)).await;
    world.said("cell-b", Some(2), WriteMode::Logged);
    let behind = world.writer.clone();
    world.said("cell-a", Some(1), WriteMode::Direct);
    let write = tokio::spawn(async move { behind.write(TENANT, add("1"), Call::default()).await });
    while world.faults.count("GetItem") < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.said("cell-b", Some(2), WriteMode::Logged);
    let written = write.await.unwrap().unwrap();
    assert_eq!((&*written.cell, written.epoch), ("cell-b", 2));
    assert!(world.directory.asked.lock().unwrap().contains(&Some(2)));
}

/// A guess has no epoch: the guard tells it, and a wrong guess is refused by it.
#[tokio::test]
async fn a_guess_is_held_against_the_guard() {
    let world = unleased().await;
    world.guard(&open("cell-a", 5)).await;
    world.said("cell-a", None, WriteMode::Direct);
    let written = world.write(add("1")).await.unwrap();
    assert_eq!((&*written.cell, written.epoch), ("cell-a", 5));
    // Even with a lease, which is not a guess's to have.
    world.lease.store(60_000, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(world.write(add("1")).await.unwrap().how, How::Guarded);
    let wrong = unleased().await;
    wrong.said("cell-b", None, WriteMode::Direct);
    let missing = Error::GuardMissing { cell: "cell-b".to_owned() };
    assert_eq!(wrong.write(add("1")).await.unwrap_err(), missing);
    wrong.guard(&moved("cell-b", 1, "cell-a")).await;
    assert_eq!(&*wrong.write(add("1")).await.unwrap().cell, "cell-a");
}
