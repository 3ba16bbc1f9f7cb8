//! Writes that the store refuses, and writes whose outcome cannot be known: an answer never promises more than is true.

use cell_directory::proto::v1;
use cell_directory::proto::v1::{DecisionSource, FallbackReason};
use futures::future::join_all;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::proxy::{Fault, Rule};
use crate::world::{
    PATIENT, READ, Replica, WRITE, World, eventually, refused, request, says_nothing_of_aws,
};

/// Gives up on a commit long before it gives up on a lookup.
const SHORT_COMMITS: [&str; 6] = [
    "--lookup-budget=20s",
    "--read-timeout=500ms",
    "--commit-timeout=500ms",
    "--commit-budget=1200ms",
    "--retry-attempts=2",
    "--journal-poll-interval=50ms",
];

/// Gives up on a lookup while its commit is still being tried.
const SHORT_LOOKUPS: [&str; 5] = [
    "--lookup-budget=1s",
    "--read-timeout=500ms",
    "--commit-timeout=500ms",
    "--commit-budget=2s",
    "--journal-poll-interval=50ms",
];

/// What passes is waited out, whatever it is called.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_refused_for_now_succeeds_later() {
    let (world, replica) = World::with_cells("throttled", &PATIENT).await;
    let faults = [
        ("throughput", Fault::THROUGHPUT),
        ("throttling", Fault::THROTTLING),
        ("limit", Fault::Error(400, "RequestLimitExceeded")),
        ("conflict", Fault::CONFLICT),
        ("cancelled-throttling", Fault::Cancelled("ThrottlingError")),
        ("cancelled-throughput", Fault::Cancelled("ProvisionedThroughputExceeded")),
        ("in-progress", Fault::Error(400, "TransactionInProgressException")),
        ("internal", Fault::INTERNAL),
        ("unavailable", Fault::UNAVAILABLE),
        ("lost", Fault::LoseRequest),
    ];
    for (name, fault) in faults {
        let refusal = world.proxy.lay(Rule::on(WRITE, fault).times(5));
        let assigned = replica.resolve_surely(name).await.unwrap();
        assigned.is_assigned();
        assert_eq!(refusal.fired(), 5, "{name}");
        world.tables.ledger().await.placed_once(name, assigned.cell());
    }
    assert_eq!(replica.cells().await.unwrap(), world.tables.ledger().await.counts);
}

/// What does not pass is said by its name, and `UNAVAILABLE` keeps its promise that nothing was changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_always_refused_changes_nothing() {
    let faults = [
        (Fault::THROUGHPUT, "STORE_THROTTLED", true),
        (Fault::CONFLICT, "STORE_THROTTLED", true),
        (Fault::DENIED, "STORE_REJECTED", false),
        (Fault::Error(400, "ResourceNotFoundException"), "STORE_REJECTED", false),
        (Fault::Cancelled("ItemCollectionSizeLimitExceeded"), "STORE_REJECTED", false),
    ];
    let refusals =
        faults.map(|(fault, reason, try_again)| always_refused(fault, reason, try_again));
    join_all(refusals).await;
}

async fn always_refused(fault: Fault, reason: &str, try_again: bool) {
    // Time for the last attempt to end: one that is cut off would rightly leave the outcome open.
    let flags = ["--lookup-budget=20s", "--commit-timeout=2s", "--commit-budget=2s"];
    let flags = [&flags[..], &["--read-timeout=2s", "--retry-attempts=2"]].concat();
    let (world, replica) = World::with_cells("refused", &flags).await;
    replica.pin("resident", "cell-a").await.unwrap();
    let before = world.tables.ledger().await;
    let unavailable = |answer: Result<(), Status>| {
        refused(answer, Code::Unavailable, reason, try_again);
    };
    world.proxy.lay(Rule::on(WRITE, fault));
    unavailable(replica.resolve_surely("tenant").await.map(drop));
    unavailable(replica.pin("tenant", "cell-a").await.map(drop));
    unavailable(replica.delete("resident").await.map(drop));
    unavailable(replica.create_cell("cell-c").await.map(drop));
    world.proxy.clear();
    assert_eq!(world.tables.ledger().await, before);
    // None of it stuck.
    replica.resolve_surely("tenant").await.unwrap().is_assigned();
}

/// How the store is after it has done the write.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// The connection breaks, and no new one is made.
    Refuses,
    /// Nothing is answered any more.
    Hangs,
    /// Everything fails.
    Fails,
    /// Everything is throttled.
    Throttles,
}

const DEATHS: [Death; 4] = [Death::Refuses, Death::Hangs, Death::Fails, Death::Throttles];

impl Death {
    /// Lets the next write be done, and nothing after it.
    fn strike_after_a_write(self, world: &World) {
        let (last, then) = match self {
            Death::Refuses => (Fault::LoseReplyAndDie, None),
            Death::Hangs => (Fault::HangReply, Some(Fault::Hang)),
            Death::Fails => (Fault::LoseReply, Some(Fault::INTERNAL)),
            Death::Throttles => (Fault::LoseReply, Some(Fault::THROUGHPUT)),
        };
        let last = world.proxy.lay(Rule::on(WRITE, last).times(1));
        if let Some(then) = then {
            world.proxy.lay(Rule::all(then).once_fired(&last));
        }
    }
}

/// Brings the store back, and waits until what was under way is over: changes are made in the order in which they come.
async fn recover(world: &World, replica: &Replica) {
    world.proxy.clear();
    world.proxy.revive().await;
    eventually("a change succeeds again", async || {
        replica.pin("bystander", "cell-b").await.is_ok()
            && replica.delete("bystander").await.is_ok()
    })
    .await;
}

/// The reply was lost and the store stays away: the change may have been made, so nothing may be promised.
async fn nothing_is_promised(death: Death, flags: &[&str]) {
    let (world, replica) = World::with_cells("unknown", flags).await;
    let unknown = |answer: Result<(), Status>| {
        refused(answer, Code::DeadlineExceeded, "OUTCOME_UNKNOWN", true);
    };

    death.strike_after_a_write(&world);
    unknown(replica.resolve_surely("assigned").await.map(drop));
    recover(&world, &replica).await;
    // The truth: it was made, once.
    let found = replica.resolve_surely("assigned").await.unwrap();
    let source = found.decision.source();
    assert!(matches!(source, DecisionSource::Table | DecisionSource::Memory), "{found:?}");
    found.is(source, 1);

    death.strike_after_a_write(&world);
    unknown(batch_of_one(&replica, "batch").await);
    recover(&world, &replica).await;

    death.strike_after_a_write(&world);
    let guess = replica.resolve("guess").await.unwrap();
    guess.is_guess(FallbackReason::Timeout);
    recover(&world, &replica).await;

    death.strike_after_a_write(&world);
    unknown(replica.pin("pinned", "cell-b").await.map(drop));
    recover(&world, &replica).await;
    assert_eq!(replica.pin("pinned", "cell-b").await.unwrap().epoch, 1);

    death.strike_after_a_write(&world);
    unknown(replica.delete("pinned").await.map(drop));
    recover(&world, &replica).await;
    refused(replica.delete("pinned").await, Code::NotFound, "PLACEMENT_NOT_FOUND", false);

    death.strike_after_a_write(&world);
    unknown(replica.create_cell("cell-c").await.map(drop));
    recover(&world, &replica).await;
    refused(replica.create_cell("cell-c").await, Code::AlreadyExists, "CELL_EXISTS", false);

    // A later call is told the truth about the guess, too.
    let known = replica.resolve_surely("guess").await.unwrap();
    let ledger = world.tables.ledger().await;
    ledger.placed_once("assigned", found.cell());
    ledger.placed_once("guess", known.cell());
    assert_eq!(ledger.changes_of("batch"), [("placed", 1)]);
    assert_eq!(ledger.changes_of("pinned"), [("placed", 1), ("vacated", 1)]);
    assert_eq!(ledger.changes_of("cell-c"), [("cell_created", 0)]);
    assert_eq!(replica.cells().await.unwrap(), ledger.counts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_promised_when_the_commit_gives_up_first() {
    join_all(DEATHS.map(|death| nothing_is_promised(death, &SHORT_COMMITS))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_promised_when_the_lookup_gives_up_first() {
    join_all(DEATHS.map(|death| nothing_is_promised(death, &SHORT_LOOKUPS))).await;
}

/// BatchResolve of a key, as Resolve would answer it.
async fn batch_of_one(replica: &Replica, key: &str) -> Result<(), Status> {
    let request = v1::BatchResolveRequest {
        partition_keys: vec![key.to_owned()],
        fallback: v1::FallbackPolicy::Refuse.into(),
        ..Default::default()
    };
    let answer = replica.directory.clone().batch_resolve(request).await?.into_inner();
    let outcome = answer.results.into_iter().next().unwrap().outcome.unwrap();
    let v1::batch_resolve_result::Outcome::Error(error) = outcome else { return Ok(()) };
    let mut details = ErrorDetails::with_error_info(error.reason, "cells.v1", []);
    details.set_retry_info(error.retry_delay.map(|delay| delay.try_into().unwrap()));
    Err(Status::with_error_details(error.code.into(), error.message, details))
}

/// A caller who goes away while the write is under way neither takes it back nor, coming again, makes it twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_goes_away_takes_nothing_back() {
    let (world, replica) = World::with_cells("gone", &SHORT_COMMITS).await;
    let hang = world.proxy.lay(Rule::on(WRITE, Fault::HangReply));
    tokio::select! {
        answer = replica.pin("tenant", "cell-a") => panic!("{answer:?}"),
        () = hang.has_landed(1) => {}
    }
    world.proxy.clear();
    let again = replica.pin("tenant", "cell-a").await.unwrap();
    assert_eq!((again.cell_id.as_str(), again.epoch), ("cell-a", 1));
    world.tables.ledger().await.placed_once("tenant", "cell-a");
}

/// Nothing that the store says of itself gets out, wherever it is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_of_the_store_reaches_a_caller() {
    let flags = ["--commit-timeout=300ms", "--commit-budget=300ms", "--retry-attempts=1"];
    let (world, replica) = World::with_cells("texts", &flags).await;
    let operations: [&[&str]; 4] = [READ, &["Query"], &["Scan"], WRITE];
    for (round, operation) in operations.into_iter().enumerate() {
        let faults = [Fault::DENIED, Fault::INTERNAL, Fault::THROUGHPUT];
        for (turn, fault) in faults.into_iter().enumerate() {
            let name = |what: &str| format!("{what}-{round}-{turn}");
            world.tables.adopt(&name("adopted"), "cell-a").await;
            world.proxy.lay(Rule::on(operation, fault));
            let mut failures = Vec::new();
            let mut note = |answer: Result<(), Status>| failures.extend(answer.err());
            note(replica.resolve_surely(&name("new")).await.map(drop));
            note(replica.pin(&name("pinned"), "cell-a").await.map(drop));
            note(replica.delete(&name("adopted")).await.map(drop));
            note(replica.cells().await.map(drop));
            note(replica.create_cell(&name("cell")).await.map(drop));
            let explained = v1::ResolveRequest { explain: true, ..request(&name("explained")) };
            let answer = replica.ask(explained).await;
            let told = format!("{:?}", answer.as_ref().map(|answer| &answer.decision));
            assert!(!told.contains("arn:") && !told.contains("Exception"), "{told}");
            note(answer.map(drop));
            world.proxy.clear();
            for status in &failures {
                says_nothing_of_aws(status);
                assert_ne!(status.code(), Code::Internal, "{status:?}");
                assert_ne!(status.code(), Code::Unknown, "{status:?}");
            }
            let stricken = |status: &Status| {
                matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
            };
            // Only the sweeper scans.
            let expected = operation != ["Scan"];
            assert_eq!(failures.iter().any(stricken), expected, "{operation:?}: {failures:?}");
        }
    }
}
