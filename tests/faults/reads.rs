//! Reads of the routing table that fail: what passes is retried, what does not becomes a guess that says so or an honest error, and
//! nothing of it is remembered.

use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::{DecisionSource, FallbackReason};
use futures::StreamExt;
use futures::future::join_all;
use tonic::Code;

use crate::proxy::{Fault, Rule};
use crate::world::{PATIENT, READ, TOLERANCE, World, eventually, refused, request};

/// Reads of the routing table. The follower's polls, which read another one, are left alone.
fn lookups(fault: Fault) -> Rule {
    Rule::on(READ, fault).in_table("CellMappings")
}

const BUDGET: Duration = Duration::from_millis(1200);

/// A lookup gives up after [`BUDGET`], a read much earlier. The retry budget is never in the way.
const SHORT_READS: [&str; 6] = [
    "--lookup-budget=1200ms",
    "--read-timeout=250ms",
    "--retry-attempts=3",
    "--retry-budget-floor=1000",
    "--commit-timeout=900ms",
    "--journal-poll-interval=50ms",
];

/// One bad answer, or two, are not seen by anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_fails_for_now_is_retried() {
    let flags = ["--lookup-budget=30s", "--read-timeout=300ms", "--retry-budget-floor=1000"];
    let (world, replica) = World::with_cells("retried", &flags).await;
    let faults = [
        ("throughput", Fault::THROUGHPUT),
        ("throttling", Fault::THROTTLING),
        ("internal", Fault::INTERNAL),
        ("unavailable", Fault::UNAVAILABLE),
        ("lost-request", Fault::LoseRequest),
        ("lost-reply", Fault::LoseReply),
        ("hang", Fault::Hang),
        ("slow", Fault::Slow(Duration::from_secs(5))),
    ];
    for (name, fault) in faults {
        for times in [1, 2] {
            let key = format!("new-{name}-{times}");
            let failure = world.proxy.lay(lookups(fault.clone()).times(times));
            replica.resolve(&key).await.unwrap().is_assigned();
            assert_eq!(failure.fired(), times, "{key}");
            assert_eq!(world.reads_of(&key), times + 1, "{key}");

            let key = format!("adopted-{name}-{times}");
            world.tables.adopt(&key, "cell-a").await;
            let failure = world.proxy.lay(lookups(fault.clone()).times(times));
            let found = replica.look_up(&key).await.unwrap();
            assert_eq!(found.is(DecisionSource::Table, 1).cell(), "cell-a");
            assert_eq!(failure.fired(), times, "{key}");
        }
    }
}

/// What does not pass is a guess, flagged, in time; or, to who wants no guess, `UNAVAILABLE` with a reason and when to try again.
/// When it is over, the same key is answered as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_always_fails_becomes_a_guess_that_nobody_remembers() {
    let (world, replica) = World::with_cells("guess", &SHORT_READS).await;
    let faults = [
        ("throughput", Fault::THROUGHPUT, FallbackReason::Throttled, "STORE_THROTTLED"),
        ("throttling", Fault::THROTTLING, FallbackReason::Throttled, "STORE_THROTTLED"),
        ("internal", Fault::INTERNAL, FallbackReason::Unavailable, "STORE_UNAVAILABLE"),
        ("unavailable", Fault::UNAVAILABLE, FallbackReason::Unavailable, "STORE_UNAVAILABLE"),
        ("lost", Fault::LoseReply, FallbackReason::Unavailable, "STORE_UNAVAILABLE"),
        ("hang", Fault::Hang, FallbackReason::Timeout, "STORE_TIMEOUT"),
        ("slow", Fault::Slow(Duration::from_secs(3)), FallbackReason::Timeout, "STORE_TIMEOUT"),
        ("denied", Fault::DENIED, FallbackReason::Unavailable, "STORE_REJECTED"),
    ];
    for (name, fault, reason, error) in faults {
        let (unknown, adopted) = (format!("new-{name}"), format!("adopted-{name}"));
        world.tables.adopt(&adopted, "cell-a").await;
        world.proxy.lay(lookups(fault));
        for key in [&unknown, &adopted] {
            let began = Instant::now();
            replica.resolve(key).await.unwrap().is_guess(reason);
            let lookup_only = v1::ResolveMode::LookupOnly.into();
            let guess = v1::ResolveRequest { mode: lookup_only, ..request(key) };
            replica.ask(guess).await.unwrap().is_guess(reason);
            let try_again = error != "STORE_REJECTED";
            refused(replica.look_up(key).await, Code::Unavailable, error, try_again);
            refused(replica.resolve_surely(key).await, Code::Unavailable, error, try_again);
            assert!(began.elapsed() < BUDGET * 4 + TOLERANCE, "{name}: {:?}", began.elapsed());
        }
        // Another answer than "not found" is due from here on, and at once.
        world.proxy.clear();
        let found = replica.look_up(&adopted).await.unwrap();
        assert_eq!(found.is(DecisionSource::Table, 1).cell(), "cell-a");
        refused(replica.look_up(&unknown).await, Code::NotFound, "PLACEMENT_NOT_FOUND", false);
        replica.resolve(&unknown).await.unwrap().is_assigned();
    }
    // No guess left a trace.
    let ledger = world.tables.ledger().await;
    assert!(ledger.entries.iter().all(|entry| entry.changes.len() == 1));
    assert_eq!(ledger.counts[crate::world::DEFAULT_CELL], 0);
}

/// The budget bounds a lookup however long one read may take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_takes_no_longer_than_its_budget() {
    let flags = ["--lookup-budget=400ms", "--read-timeout=20s"];
    let (world, replica) = World::with_cells("budget", &flags).await;
    world.proxy.lay(lookups(Fault::Hang));
    let began = Instant::now();
    replica.resolve("tenant").await.unwrap().is_guess(FallbackReason::Timeout);
    let guessed = began.elapsed();
    assert!(guessed >= Duration::from_millis(390), "{guessed:?}: gave up early");
    assert!(guessed < Duration::from_millis(400) + TOLERANCE, "{guessed:?}");
    refused(replica.resolve_surely("tenant").await, Code::Unavailable, "STORE_TIMEOUT", true);
    world.proxy.clear();
    replica.resolve("tenant").await.unwrap().is_assigned();
}

/// Reads that hang, and that nobody waits for any more, keep no later one from the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_were_given_up_are_in_nobodys_way() {
    let flags = ["--lookup-budget=400ms", "--read-timeout=60s"];
    let flags = [&flags[..], &["--commit-budget=2s", "--retry-attempts=1"]].concat();
    let (world, replica) = World::with_cells("given-up", &flags).await;
    let hang = world.proxy.lay(lookups(Fault::Hang));
    let began = Instant::now();
    for _ in 0..2 {
        let keys = (0..200).map(|n| format!("tenant-{n}"));
        for answer in join_all(keys.map(async |key| replica.resolve(&key).await)).await {
            answer.unwrap().is_guess(FallbackReason::Timeout);
        }
    }
    assert!(began.elapsed() < Duration::from_millis(800) + TOLERANCE * 2, "{:?}", began.elapsed());
    assert!(hang.fired() > 0);
    world.proxy.clear();
    // As the first call after the outage: no "eventually".
    replica.resolve("tenant-0").await.unwrap().is_assigned();
}

/// A caller with less time than the budget gets the guess while it can still use it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_a_short_deadline_gets_the_guess_before_it() {
    let flags = ["--lookup-budget=20s", "--read-timeout=10s"];
    let (world, replica) = World::with_cells("deadline", &flags).await;
    world.tables.adopt("adopted", "cell-a").await;
    world.proxy.lay(lookups(Fault::Hang));
    let deadline = Duration::from_secs(1);
    let callers = (0..10).map(|n| {
        let mut request =
            tonic::Request::new(request(if n % 2 == 0 { "tenant" } else { "adopted" }));
        // The client keeps this deadline too: an answer that comes is one that came in time.
        request.set_timeout(deadline);
        let mut directory = replica.directory.clone();
        async move { directory.resolve(request).await }
    });
    let began = Instant::now();
    let answers = join_all(callers).await;
    assert!(began.elapsed() < deadline + TOLERANCE, "{:?}", began.elapsed());
    let (mut guesses, mut late) = (0, 0);
    for answer in answers {
        match answer {
            Ok(answer) => {
                let decision = answer.into_inner().decision.unwrap();
                assert_eq!(decision.source(), DecisionSource::Fallback);
                assert_eq!(decision.fallback_reason(), FallbackReason::Timeout);
                assert!(!decision.authoritative);
                guesses += 1;
            }
            // On a machine that has other things to do, one of ten may come late.
            Err(status) => {
                assert!(
                    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
                    "{status:?}"
                );
                late += 1;
            }
        }
    }
    assert!(guesses > late, "{guesses} in time, {late} late");
    world.proxy.clear();
    replica.look_up("adopted").await.unwrap().is(DecisionSource::Table, 1);
    replica.resolve("tenant").await.unwrap().is_assigned();
}

/// Distinct keys of the retry storm.
const STORM: usize = 300;

/// With the table failing, retries add their budget to the load, and not a multiple of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_stay_within_their_budget() {
    const FLOOR: usize = 3;
    const RATIO: f64 = 0.2;
    /// Seconds over which the budget reckons (`directory::stack::retry`).
    const WINDOW: f64 = 10.0;
    let flags = [
        "--retry-attempts=5",
        "--retry-budget-floor=3",
        "--retry-budget-ratio=0.2",
        "--lookup-budget=10s",
    ];
    let (world, replica) = World::with_cells("storm", &flags).await;
    // What succeeds earns retries; this much it may have earned before the storm.
    let calm = 20;
    for n in 0..calm {
        replica.resolve(&format!("calm-{n}")).await.unwrap().is_assigned();
    }
    world.proxy.lay(lookups(Fault::INTERNAL));
    let began = Instant::now();
    let answers = futures::stream::iter((0..STORM).map(|n| format!("storm-{n}")))
        .map(|key| {
            let replica = &replica;
            async move { replica.resolve(&key).await }
        })
        .buffer_unordered(32);
    answers.for_each(async |answer| answer.unwrap().is_guess(FallbackReason::Unavailable)).await;
    let windows = 1.0 + began.elapsed().as_secs_f64() / WINDOW;
    let by_floor = FLOOR as f64 * WINDOW * windows;
    let by_ratio = RATIO * f64::from(calm);
    let asked: usize = (0..STORM).map(|n| world.reads_of(&format!("storm-{n}"))).sum();
    let retries = asked - STORM;
    assert!(retries as f64 <= by_floor + by_ratio, "{retries} retries in {windows} windows");
    // It is the budget that bounds them: there was more to retry, and some of it was.
    assert!(retries >= FLOOR * 5, "{retries}");
    assert!(retries < STORM, "{retries}");
}

/// Keys that are read together fail together, and each recovers by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_read_together_are_retried_too() {
    let flags = ["--lookup-budget=30s", "--read-timeout=2s", "--retry-budget-floor=1000"];
    let (world, replica) = World::with_cells("together", &flags).await;
    for n in 0..100 {
        world.tables.adopt(&format!("tenant-{n}"), "cell-b").await;
    }
    let faults = [Fault::Unprocessed, Fault::INTERNAL, Fault::THROUGHPUT, Fault::LoseReply];
    for (round, fault) in faults.into_iter().enumerate() {
        // Those that are read alone take their time, so that the others come together.
        let slow = Rule::on(&["GetItem"], Fault::Slow(Duration::from_millis(300)));
        world.proxy.lay(slow.in_table("CellMappings"));
        let failure = world.proxy.lay(Rule::on(&["BatchGetItem"], fault).times(2));
        let keys = (0..25).map(|n| format!("tenant-{}", round * 25 + n));
        let answers = join_all(keys.map(async |key| replica.look_up(&key).await)).await;
        for answer in answers {
            assert_eq!(answer.unwrap().is(DecisionSource::Table, 1).cell(), "cell-b");
        }
        let absent = (0..25).map(|n| format!("absent-{round}-{n}"));
        for answer in join_all(absent.map(async |key| replica.look_up(&key).await)).await {
            refused(answer, Code::NotFound, "PLACEMENT_NOT_FOUND", false);
        }
        assert_eq!(failure.fired(), 2);
        world.proxy.clear();
    }
}

/// All who ask for a cold key at the same time wait for one read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_lookups_of_a_cold_key_are_one_read() {
    let (world, replica) = World::with_cells("cold", &PATIENT).await;
    let mut reads = Vec::new();
    // A machine that stands still for seconds makes a read time out, and be repeated: not three times in a row.
    for (adopted, new) in [("adopted-1", "new-1"), ("adopted-2", "new-2"), ("adopted-3", "new-3")] {
        world.tables.adopt(adopted, "cell-a").await;
        // Long enough for all to have come, and they come while it lasts.
        let slow = world.proxy.lay(lookups(Fault::Slow(Duration::from_secs(2))));
        let all = |key: &'static str| join_all((0..200).map(|_| replica.resolve(key)));
        let (found, placed) = tokio::join!(all(adopted), all(new));
        for answer in &found {
            let source = answer.as_ref().unwrap().decision.source();
            assert!(matches!(source, DecisionSource::Table | DecisionSource::Memory), "{source:?}");
            assert_eq!(answer.as_ref().unwrap().is(source, 1).cell(), "cell-a");
        }
        let cell = placed[0].as_ref().unwrap().cell();
        for answer in &placed {
            assert_eq!(answer.as_ref().unwrap().cell(), cell);
        }
        world.tables.ledger().await.placed_once(new, cell);
        reads.push((world.reads_of(adopted), world.reads_of(new)));
        if reads.last() == Some(&(1, 1)) && slow.fired() <= 2 {
            return;
        }
        slow.lift();
    }
    panic!("reads of adopted and of new tenants: {reads:?}");
}

/// What is shared is one flight, not one failure: each that asks later asks anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_failure_is_shared_only_while_it_lasts() {
    let flags = ["--lookup-budget=20s", "--read-timeout=10s", "--retry-attempts=1"];
    let (world, replica) = World::with_cells("shared", &flags).await;
    world.tables.adopt("tenant", "cell-a").await;
    let hang = world.proxy.lay(lookups(Fault::Hang).times(1));
    let waiting = join_all((0..20).map(|_| replica.look_up("tenant")));
    let broken = async {
        hang.has_fired(1).await;
        // The others join the flight that hangs, or find it broken and ask again.
        world.proxy.die().await;
        world.proxy.revive().await;
    };
    let (answers, ()) = tokio::join!(waiting, broken);
    for answer in answers {
        match answer {
            Ok(found) => assert_eq!(found.cell(), "cell-a"),
            Err(_) => refused(answer, Code::Unavailable, "STORE_UNAVAILABLE", true),
        }
    }
    eventually("the tenant is found", async || replica.look_up("tenant").await.is_ok()).await;
}
