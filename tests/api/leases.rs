//! Leases and ages: how long an answer may be used, and what a renewal proves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use futures::StreamExt;

use crate::cluster::set_lease;
use crate::valve::Valve;
use crate::watch::Watching;
use crate::world::{Engine, Server, World, def, pin, resolve, until};

on_both_engines!(
    every_answer_but_a_guess_has_a_lease,
    a_batch_says_it_once_for_all,
    without_the_table_leases_run_out,
    a_renewal_takes_in_what_was_acknowledged_before_it,
    a_server_that_does_not_hear_of_a_shorter_lease_grants_none_for_long,
);

const DEFAULT: Duration = Duration::from_secs(5);

fn time(duration: Option<prost_types::Duration>) -> Duration {
    Duration::try_from(duration.expect("a duration")).unwrap()
}

async fn sync(server: &Server) -> v1::SyncResponse {
    server.directory.clone().sync(v1::SyncRequest {}).await.unwrap().into_inner()
}

/// What every answer that the table stands behind must say.
#[track_caller]
fn vouched(decision: &v1::Decision, source: v1::DecisionSource) {
    assert_eq!((decision.source(), decision.authoritative), (source, true), "{decision:?}");
    let (age, lease) = (time(decision.age), time(decision.lease));
    assert!(age + lease <= DEFAULT + Duration::from_micros(2), "{decision:?}");
    assert!(decision.sequence > 0);
}

/// A server that guesses where its store, which can be shut off, does not answer.
async fn behind_a_valve(engine: Engine) -> (World, Valve, Server) {
    let world = World::new(engine).await;
    let valve = Valve::before(&world.endpoint());
    let server = world
        .serve_through(&valve.endpoint(), &["--default-cell=cell-z", "--lookup-budget=300ms"])
        .await;
    server.process.create_cells(&["cell-a"]).await;
    (world, valve, server)
}

async fn every_answer_but_a_guess_has_a_lease(engine: Engine) {
    let (world, valve, server) = behind_a_valve(engine).await;
    let other = world.serve(&["--memory-mode=bounded", "--journal-poll-interval=1m"]).await;
    let assigned = until(
        async || {
            let key = format!("new-{}", rand::random::<u32>());
            server.resolve(&key).await.decision.unwrap()
        },
        |decision| decision.source() == v1::DecisionSource::Assigned,
    );
    vouched(&assigned.await, v1::DecisionSource::Assigned);
    let placed = server.pin(pin("tenant", "cell-a")).await.unwrap();
    let known = until(
        async || server.resolve("tenant").await.decision.unwrap(),
        |decision| !time(decision.lease).is_zero(),
    );
    vouched(&known.await, v1::DecisionSource::Memory);
    // Where it is not in memory.
    let read = other.resolve("tenant").await;
    vouched(&read.decision.unwrap(), v1::DecisionSource::Table);
    assert_eq!(read.placement.unwrap(), placed);

    valve.shut();
    let guess = server.resolve("nobody knows").await.decision.unwrap();
    assert_eq!(guess.source(), v1::DecisionSource::Fallback);
    assert_eq!((guess.lease, guess.age, guess.sequence), (None, None, 0));
    valve.open();
}

async fn a_batch_says_it_once_for_all(engine: Engine) {
    let (_world, valve, server) = behind_a_valve(engine).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    let batch = async |keys: &[&str]| {
        let partition_keys = keys.iter().map(|&key| key.to_owned()).collect();
        let request = v1::BatchResolveRequest { partition_keys, ..def() };
        server.directory.clone().batch_resolve(request).await.unwrap().into_inner()
    };
    let answer = until(
        async || batch(&["tenant", "tenant"]).await,
        |answer| answer.lease.is_some_and(|lease| !time(Some(lease)).is_zero()),
    )
    .await;
    assert!(time(answer.age) + time(answer.lease) <= DEFAULT + Duration::from_micros(2));
    assert!(answer.sequence > 0);
    for result in answer.results {
        let decision = result.decision.unwrap();
        assert_eq!((decision.age, decision.lease, decision.sequence), (None, None, 0));
    }
    valve.shut();
    let answer = batch(&["stranger", "other stranger"]).await;
    assert_eq!((answer.age, answer.lease, answer.sequence), (None, None, 0));
    // One that is known is enough.
    let answer = batch(&["stranger", "tenant"]).await;
    assert!(answer.age.is_some() && answer.lease.is_some() && answer.sequence > 0);
    valve.open();
}

async fn without_the_table_leases_run_out(engine: Engine) {
    let world = World::new(engine).await;
    let valve = Valve::before(&world.endpoint());
    let server = world.serve_through(&valve.endpoint(), &["--read-timeout=1s"]).await;
    server.process.create_cells(&["cell-a"]).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    set_lease(&server, 1_500).await;
    until(async || sync(&server).await, |answer| !time(answer.lease).is_zero()).await;
    valve.shut();
    let shut = Instant::now();
    let mut leased = true;
    while leased || shut.elapsed() < Duration::from_secs(3) {
        let answer = sync(&server).await;
        let (age, lease) = (time(answer.age), time(answer.lease));
        assert!(age + lease <= Duration::from_millis(1_500).max(age), "{age:?} {lease:?}");
        if shut.elapsed() > Duration::from_millis(1_600) {
            assert!(
                lease.is_zero(),
                "{lease:?} of a lease {:?} after the last poll",
                shut.elapsed()
            );
        }
        leased = !lease.is_zero();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What is known goes on being answered, with its age.
    let known = server.resolve("tenant").await.decision.unwrap();
    assert_eq!(known.source(), v1::DecisionSource::Memory);
    assert!(time(known.lease).is_zero() && time(known.age) > Duration::from_secs(1));
    valve.open();
    until(async || sync(&server).await, |answer| !time(answer.lease).is_zero()).await;
}

/// The poll that a renewal is made of began after the write was acknowledged: then the renewal speaks of the write, too. And who follows the
/// Watch up to there has it.
async fn a_renewal_takes_in_what_was_acknowledged_before_it(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&["--journal-poll-interval=20ms"]).await;
    let stop = AtomicBool::new(false);
    let writes = async {
        let write = |n: usize| {
            let server = &server;
            async move {
                let key = format!("tenant-{n}");
                server.pin(pin(&key, "cell-a")).await.unwrap();
                (key, Instant::now())
            }
        };
        let acknowledged: Vec<_> =
            futures::stream::iter(0..400).map(write).buffer_unordered(8).collect().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::SeqCst);
        acknowledged
    };
    let syncs = async {
        let mut proofs = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            let sent = Instant::now();
            let answer = sync(&other).await;
            // The proof is no earlier: the age is of a moment after this one.
            proofs.push((sent.checked_sub(time(answer.age)).unwrap(), answer));
        }
        proofs
    };
    let watch = async {
        let mut watch = Watching::begin(&other, def()).await;
        while !stop.load(Ordering::SeqCst) {
            watch.step().await.unwrap();
        }
        watch
    };
    let (acknowledged, proofs, mut watch) = tokio::join!(writes, syncs, watch);
    let journal = world.journal().await;
    let entry_of = |key: &str| {
        let of = |change: &cell_directory::domain::Change| {
            change.key().is_some_and(|changed| changed.as_str() == key)
        };
        journal.iter().position(|changes| changes.iter().any(of)).unwrap() as u64 + 1
    };
    let mut spoken = 0;
    for (key, at) in &acknowledged {
        let entry = entry_of(key);
        for (proof, answer) in proofs.iter().filter(|(proof, _)| proof > at) {
            spoken += 1;
            assert!(answer.sequence >= entry, "{key}: {entry}, {proof:?}, {answer:?}");
        }
    }
    assert!(spoken > 100, "too few renewals to say anything: {spoken}");
    let head = journal.len() as u64;
    assert_eq!(watch.until(head).await.placements.len(), 400);
}

/// Reads of the table work, the journal cannot be read: a lease on a read counts from the last poll, because how long leases are is
/// not known any better.
async fn a_server_that_does_not_hear_of_a_shorter_lease_grants_none_for_long(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    set_lease(&server, 2_000).await;
    let deaf = world.serve(&["--memory-mode=bounded", "--journal-poll-interval=1m"]).await;
    server.pin(pin("tenant", "cell-a")).await.unwrap();
    let first = deaf.resolve("tenant").await.decision.unwrap();
    assert!(time(first.lease) <= Duration::from_secs(2));
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    set_lease(&server, 100).await;
    server.pin(pin("later", "cell-a")).await.unwrap();
    let read = deaf.try_resolve(resolve("later")).await.unwrap().decision.unwrap();
    assert_eq!(read.source(), v1::DecisionSource::Table);
    assert!(time(read.lease).is_zero(), "{read:?}");
}
