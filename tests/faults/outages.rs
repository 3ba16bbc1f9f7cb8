//! The store dies, stays dead for a while, and comes back: what is known goes on being answered, what is not is never made up, and
//! afterwards everybody knows everything.

use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::{DecisionSource, FallbackReason};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::proxy::{Fault, Rule};
use crate::world::{Replica, World, eventually, refused, request};

const FLAGS: [&str; 6] = [
    "--lookup-budget=900ms",
    "--read-timeout=300ms",
    "--commit-timeout=500ms",
    "--commit-budget=1200ms",
    "--journal-poll-interval=50ms",
    "--sweep-interval=100ms",
];

/// How long a start may take while nothing answers.
const STARTING: Duration = Duration::from_secs(5);

const SERVICES: [&str; 3] = ["", "cells.v1.CellDirectory", "cells.v1.CellAdmin"];

/// Ways of being dead.
const DEATHS: [Option<Fault>; 4] =
    [None, Some(Fault::Hang), Some(Fault::INTERNAL), Some(Fault::LoseRequest)];

/// Kills the store: `None` is a port that nobody listens on.
async fn kill(world: &World, how: &Option<Fault>) {
    match how {
        None => world.proxy.die().await,
        Some(fault) => _ = world.proxy.lay(Rule::all(fault.clone())),
    }
}

async fn bring_back(world: &World) {
    world.proxy.clear();
    world.proxy.revive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_is_answered_while_the_table_is_dead() {
    let (world, replica) = World::with_cells("dead", &FLAGS).await;
    let home = replica.resolve("known").await.unwrap();
    home.is_assigned();
    for (n, death) in DEATHS.iter().enumerate() {
        // In the table, and not in memory.
        let there = format!("there-{n}");
        world.tables.adopt(&there, "cell-b").await;
        kill(&world, death).await;

        // Older than any poll from before, and older each time.
        eventually("the answer ages", async || age_of_known(&replica, home.cell()).await > SECOND)
            .await;
        let mut age = age_of_known(&replica, home.cell()).await;
        for _ in 0..20 {
            let older = age_of_known(&replica, home.cell()).await;
            assert!(older > age, "{older:?} after {age:?}");
            age = older;
        }

        // Nobody knows, and nobody says that there is nothing.
        let unavailable = |answer: Result<_, tonic::Status>| {
            let status = answer.expect_err("the table is dead");
            let reason = status.get_details_error_info().unwrap().reason;
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(matches!(&*reason, "STORE_UNAVAILABLE" | "STORE_TIMEOUT"), "{status:?}");
            assert!(status.get_details_retry_info().is_some(), "{status:?}");
        };
        unavailable(replica.look_up(&there).await.map(drop));
        unavailable(replica.resolve_surely(&there).await.map(drop));
        unavailable(replica.delete(&there).await.map(drop));
        unavailable(get(&replica, &there).await.map(drop));
        unavailable(replica.cells().await.map(drop));
        let mode = v1::ResolveMode::LookupOnly.into();
        let guess = replica.ask(v1::ResolveRequest { mode, ..request(&there) }).await.unwrap();
        guess.is_guess(match death {
            Some(Fault::Hang) => FallbackReason::Timeout,
            _ => FallbackReason::Unavailable,
        });
        // A guess comes with the address to go to: the registry is in memory too.
        assert_eq!(guess.placement.endpoint, "https://cell-default.example.com");
        batch(&replica, &there, home.cell()).await;

        bring_back(&world).await;
        let found = replica.look_up(&there).await.unwrap();
        assert_eq!(found.is(DecisionSource::Table, 1).cell(), "cell-b");
        eventually("the journal is followed again", async || {
            age_of_known(&replica, home.cell()).await < SECOND / 2
        })
        .await;
    }
    world.tables.ledger().await.placed_once("known", home.cell());
}

const SECOND: Duration = Duration::from_secs(1);

async fn age_of_known(replica: &Replica, cell: &str) -> Duration {
    let answer = replica.resolve("known").await.unwrap();
    assert_eq!(answer.is(DecisionSource::Memory, 1).cell(), cell);
    answer.age()
}

async fn get(replica: &Replica, key: &str) -> Result<(), tonic::Status> {
    let request = v1::GetPlacementRequest { partition_key: key.to_owned() };
    replica.directory.clone().get_placement(request).await.map(drop)
}

/// One key that is known and one that is not: each has the result that it would have alone.
async fn batch(replica: &Replica, there: &str, home: &str) {
    let request = v1::BatchResolveRequest {
        partition_keys: vec!["known".to_owned(), there.to_owned()],
        mode: v1::ResolveMode::LookupOnly.into(),
        fallback: v1::FallbackPolicy::Refuse.into(),
        ..Default::default()
    };
    let answer = replica.directory.clone().batch_resolve(request).await.unwrap().into_inner();
    let [known, unknown] = &answer.results[..] else { panic!("{answer:?}") };
    let Some(v1::batch_resolve_result::Outcome::Placement(placement)) = &known.outcome else {
        panic!("{known:?}")
    };
    assert_eq!((placement.cell_id.as_str(), placement.epoch), (home, 1));
    assert_eq!(known.decision.as_ref().unwrap().source(), DecisionSource::Memory);
    let Some(v1::batch_resolve_result::Outcome::Error(error)) = &unknown.outcome else {
        panic!("{unknown:?}")
    };
    assert_eq!(error.code, Code::Unavailable as i32, "{error:?}");
    assert!(error.reason.starts_with("STORE_") && error.retry_delay.is_some(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_starts_while_the_store_is_dead_and_serves_when_it_is_back() {
    let (world, first) = World::with_cells("born", &FLAGS).await;
    let resident = first.resolve("resident").await.unwrap();
    drop(first);
    for (n, death) in DEATHS.iter().enumerate() {
        kill(&world, death).await;
        let began = Instant::now();
        let replica = world.replica(&FLAGS).await;
        assert!(began.elapsed() < STARTING, "{:?}", began.elapsed());
        for service in SERVICES {
            assert_eq!(replica.health(service).await, ServingStatus::NotServing, "{service}");
        }
        let guess = replica.resolve("resident").await.unwrap();
        let reason = guess.decision.fallback_reason();
        guess.is_guess(reason);
        assert!(
            matches!(
                reason,
                FallbackReason::NotReady | FallbackReason::Unavailable | FallbackReason::Timeout
            ),
            "{reason:?}"
        );
        for answer in [
            replica.look_up("resident").await.map(drop),
            replica.resolve_surely("resident").await.map(drop),
            replica.pin("resident", "cell-a").await.map(drop),
            replica.create_cell("cell-c").await.map(drop),
        ] {
            let status = answer.expect_err("the store is dead");
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(status.get_details_retry_info().is_some(), "{status:?}");
        }

        bring_back(&world).await;
        for service in SERVICES {
            eventually("the service is healthy", async || {
                replica.health(service).await == ServingStatus::Serving
            })
            .await;
        }
        let found = replica.resolve("resident").await.unwrap();
        assert_eq!(found.is(DecisionSource::Table, 1).cell(), resident.cell());
        let new = replica.resolve(&format!("new-{n}")).await.unwrap();
        new.is_assigned();
        let ledger = world.tables.ledger().await;
        assert_eq!(replica.cells().await.unwrap(), ledger.counts);
        ledger.placed_once("resident", resident.cell());
        ledger.knows_nothing_of("cell-c");
    }
}

/// The registry can be read and the rest cannot, or the other way round: neither is half ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_its_registry_assigns_nothing() {
    let (world, first) = World::with_cells("unready", &FLAGS).await;
    drop(first);
    // The registry is read by a Query; the routing table by GetItem, which works.
    let unread = world.proxy.lay(Rule::on(&["Query"], Fault::INTERNAL));
    let replica = world.replica(&FLAGS).await;
    unread.has_fired(1).await;
    assert_eq!(replica.health("").await, ServingStatus::NotServing);
    let guess = replica.resolve("tenant").await.unwrap();
    guess.is_guess(FallbackReason::NotReady);
    refused(replica.resolve_surely("tenant").await, Code::Unavailable, "NOT_READY", true);
    // This needs no cells.
    refused(replica.look_up("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND", false);
    world.tables.ledger().await.knows_nothing_of("tenant");
    unread.lift();
    eventually("it serves", async || replica.health("").await == ServingStatus::Serving).await;
    replica.resolve("tenant").await.unwrap().is_assigned();
}

/// More entries than the follower reads at once.
const MISSED: usize = 110;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_goes_on_where_it_stood() {
    let (world, replica) = World::with_cells("follower", &FLAGS).await;
    let other = world.other_replica().await;
    let stays = replica.resolve("stays").await.unwrap();
    replica.resolve("leaves").await.unwrap().is_assigned();
    replica.pin("moves", "cell-a").await.unwrap();
    for death in [None, Some(Fault::Hang)] {
        kill(&world, &death).await;
        let round = format!("{death:?}").to_lowercase();
        // One after the other: an entry each.
        for n in 0..MISSED {
            other.pin(&format!("missed-{round}-{n}"), "cell-b").await.unwrap();
        }
        let epoch = other.delete("moves").await.unwrap().epoch;
        assert_eq!(other.pin("moves", "cell-b").await.unwrap().epoch, epoch + 1);
        other.delete("leaves").await.unwrap();
        // Cut off, it goes on saying what it knew, and how long ago.
        let old = replica.look_up("moves").await.unwrap();
        old.is(DecisionSource::Memory, epoch);
        let aged = old.age();
        assert!(aged > Duration::from_millis(100), "{aged:?}");

        bring_back(&world).await;
        eventually("the tenant's new cell is heard of", async || {
            replica.look_up("moves").await.is_ok_and(|now| now.placement.epoch == epoch + 1)
        })
        .await;
        refused(replica.look_up("leaves").await, Code::NotFound, "PLACEMENT_NOT_FOUND", false);
        let now = replica.look_up("stays").await.unwrap();
        assert_eq!(now.is(DecisionSource::Memory, 1).cell(), stays.cell());
        // All that was missed came with the journal, not by reads of the table.
        for n in 0..MISSED {
            let key = format!("missed-{round}-{n}");
            let now = replica.look_up(&key).await.unwrap();
            assert_eq!(now.is(DecisionSource::Memory, 1).cell(), "cell-b");
            assert_eq!(world.reads_of(&key), 0);
        }
        // And what it writes next comes after it.
        let again = replica.resolve_surely("leaves").await.unwrap();
        assert_eq!(again.decision.source(), DecisionSource::Assigned, "{again:?}");
        assert_eq!(again.placement.epoch, epoch + 1);
        let ledger = world.tables.ledger().await;
        assert_eq!(replica.cells().await.unwrap(), ledger.counts);
        assert_eq!(other.cells().await.unwrap(), ledger.counts);
    }
}
