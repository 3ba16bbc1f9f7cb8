//! The directory as its callers see it, on a store in memory: what each call does, what a preview leaves alone, and what a repeat gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;

use super::fixtures::stage::{
    COMMIT_BUDGET, PAUSES, Time, audit, cell_id, named, new_cell, placed_in,
};
use super::fixtures::{Call, Fault, Faulty, entry, key, placement};
use super::policy::{Constrained, Rendezvous};
use super::stack::Home;
use super::*;
use crate::domain::{CellState, Change, Cluster, Sequence};
use crate::store::{Commit, CommitOutcome, Journal, Placements, StoreError, Write};

struct Rig {
    store: Arc<Faulty>,
    directory: Directory,
    tasks: Tasks,
    time: Time,
}

impl Rig {
    /// A directory with the cells `a` and `b`.
    async fn new() -> Self {
        let (store, tasks, time) = (Faulty::new(), Tasks::new(), Time::new());
        let directory = Directory::start(ingredients(&store, &time), &tasks);
        directory.ready(tasks.stopping()).await;
        let rig = Self { store, directory, tasks, time };
        for id in ["a", "b"] {
            rig.directory.create_cell(new_cell(id), Mutation::default()).await.unwrap();
        }
        rig
    }

    async fn head(&self) -> u64 {
        self.store.inner.head().await.unwrap().sequence.get()
    }

    async fn end(self) {
        audit(&self.store.inner).await;
        assert!(self.tasks.stop(Duration::from_secs(60)).await);
    }
}

pub fn ingredients(store: &Arc<Faulty>, time: &Time) -> Ingredients {
    Ingredients {
        store: store.store(),
        policy: Arc::new(Constrained(Rendezvous)),
        clock: time.clock(),
        randomness: Randomness::system(),
        metrics: DecisionMetrics::new(&SdkMeterProvider::builder().build().meter("test")),
        settings: Settings {
            stack: StackSettings {
                load_patience: Duration::ZERO,
                default_cell: Some(cell_id("default")),
                lookup_budget: Duration::from_millis(500),
                attempts: 3,
                pauses: PAUSES,
                retry_ratio: 0.2,
                retry_floor: 10,
            },
            committer: CommitterSettings {
                commit_budget: COMMIT_BUDGET,
                request_retention: Duration::from_secs(3600),
            },
            memory: MemoryMode::Bounded(1000),
            journal_poll_interval: Duration::from_millis(500),
            sweep_interval: Duration::from_secs(10),
            journal_retention: Duration::from_secs(86_400),
            batch_concurrency: 8,
        },
        keep: None,
    }
}

fn options(assign: bool) -> Arc<RouteOptions> {
    Arc::new(RouteOptions { assign, fallback: true, ..RouteOptions::default() })
}

fn ask(name: &str, assign: bool) -> RouteRequest {
    RouteRequest::new(key(name), options(assign), DecisionTrace::default())
}

fn placing(name: &str, cell: &str) -> Placing {
    Placing { key: key(name), cell: cell_id(cell), since: None, expires: None }
}

fn once(id: &str, digest: &str) -> Mutation {
    let request = named(super::fixtures::stage::assign("x"), id, digest).request;
    Mutation { request, validate_only: false }
}

fn preview() -> Mutation {
    Mutation { request: None, validate_only: true }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_answered_in_its_order() {
    let rig = Rig::new().await;
    for n in (0..100).step_by(2) {
        let cell = ["a", "b"][n / 2 % 2];
        rig.directory.pin(placing(&format!("k{n}"), cell), Mutation::default()).await.unwrap();
    }
    rig.store.always(Call::Mapping, Fault::Slow(Duration::from_millis(2)));
    rig.store.always(Call::Mappings, Fault::Slow(Duration::from_millis(2)));
    // Held, absent, and some of them twice.
    let names: Vec<_> = (0..300).map(|n| format!("k{}", n % 150)).collect();
    let told = |answer: Result<Routed, Error>| match answer.map(|routed| routed.home) {
        Ok(Home::Placed(residence)) => residence.cell.as_str().to_owned(),
        Ok(Home::Default(_)) => "a guess".to_owned(),
        Err(error) => error.to_string(),
    };
    let answers = rig.directory.route_all(names.iter().map(|name| ask(name, false)), told).await;
    for (name, answer) in names.iter().zip(&answers) {
        let number: usize = name[1..].parse().unwrap();
        match number < 100 && number.is_multiple_of(2) {
            true => assert_eq!(answer, ["a", "b"][number / 2 % 2]),
            // The second time it is known.
            false => assert!(answer.starts_with("the tenant ha"), "{answer}"),
        }
    }
    assert_eq!(answers.len(), names.len());
    let answers = rig.directory.route_all(names.iter().map(|name| ask(name, true)), told).await;
    for (name, answer) in names.iter().zip(&answers) {
        let mapping = rig.store.inner.mapping(&key(name)).await.unwrap();
        assert_eq!(Some(answer.as_str()), mapping.placement().map(|p| p.cell.as_str()));
    }
    assert!(rig.directory.route_all(std::iter::empty(), told).await.is_empty());
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_preview_says_what_would_be_and_changes_nothing() {
    let rig = Rig::new().await;
    let directory = &rig.directory;
    directory.pin(placing("k", "a"), Mutation::default()).await.unwrap();
    let head = rig.head().await;
    let pinned = directory.pin(placing("l", "b"), preview()).await.unwrap();
    assert_eq!(
        placed_in(&pinned),
        (&Placement { began_by: PlacementEvent::Pinned, ..placement("l", "b", 1) }, true)
    );
    let there = directory.import(placing("k", "a"), true).await.unwrap();
    assert!(!placed_in(&there).1);
    let elsewhere = directory.import(placing("k", "b"), true).await.unwrap_err();
    assert!(matches!(elsewhere, Error::Refused(Refused::PlacementExists { .. })));
    assert!(matches!(directory.delete(key("k"), None, preview()).await, Ok(Outcome::Vacated(_))));
    assert!(matches!(directory.create_cell(new_cell("c"), preview()).await, Ok(Outcome::Cell(_))));
    let patch = CellPatch { state: Some(CellState::Cordoned), ..CellPatch::default() };
    let updated = directory.update_cell(cell_id("a"), patch, None, preview()).await;
    let Ok(Outcome::Cell(cell)) = updated else { panic!("{updated:?}") };
    assert_eq!(cell.state, CellState::Cordoned);
    let removed = directory.delete_cell(cell_id("b"), None, preview()).await;
    assert_eq!(removed, Ok(Outcome::CellDeleted));
    let not_empty = Refused::CellNotEmpty { cell: cell_id("a") };
    let removed = directory.delete_cell(cell_id("a"), None, preview()).await;
    assert_eq!(removed, Err(not_empty.into()));
    assert_eq!(rig.head().await, head);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_gets_the_first_answer() {
    let rig = Rig::new().await;
    let directory = &rig.directory;
    let first = directory.pin(placing("k", "a"), once("r", "d")).await.unwrap();
    directory.delete(key("k"), None, Mutation::default()).await.unwrap();
    let head = rig.head().await;
    let again = directory.pin(placing("k", "a"), once("r", "d")).await.unwrap();
    assert_eq!(placed_in(&again).0, placed_in(&first).0);
    let reused = directory.pin(placing("l", "a"), once("r", "another")).await;
    assert_eq!(reused, Err(Refused::RequestIdReused.into()));
    // The same at the same time, before the record can be read.
    let both = futures::join!(
        directory.pin(placing("m", "a"), once("s", "d")),
        directory.pin(placing("m", "a"), once("s", "d")),
    );
    assert_eq!(placed_in(&both.0.unwrap()).0, placed_in(&both.1.unwrap()).0);
    assert_eq!(rig.head().await, head + 1, "done once");
    // Forgotten in time.
    rig.time.pass(Duration::from_secs(3601));
    let anew = directory.pin(placing("k", "a"), once("r", "d")).await.unwrap();
    assert_eq!(placed_in(&anew).0.epoch.get(), 2);
    rig.end().await;
}

/// One who had no effect is remembered, too: a late repeat must not have one.
#[tokio::test(start_paused = true)]
async fn a_late_repeat_of_a_request_without_effect_has_none() {
    let rig = Rig::new().await;
    let directory = &rig.directory;
    directory.pin(placing("k", "a"), Mutation::default()).await.unwrap();
    assert!(!placed_in(&directory.pin(placing("k", "a"), once("r", "d")).await.unwrap()).1);
    directory.delete(key("k"), None, Mutation::default()).await.unwrap();
    assert!(!placed_in(&directory.pin(placing("k", "a"), once("r", "d")).await.unwrap()).1);
    assert_eq!(directory.mapping(&key("k")).await, Ok(Mapping::Vacated(Epoch::FIRST)));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_tenant_comes_goes_and_comes_back() {
    let rig = Rig::new().await;
    let directory = &rig.directory;
    for epoch in 1..5 {
        let routed = directory.route(ask("k", true)).await.unwrap();
        assert_eq!(routed.source, Source::Assigned);
        let placement = directory.placement(&key("k")).await.unwrap();
        assert_eq!(placement.epoch.get(), epoch);
        assert_eq!(directory.route(ask("k", false)).await.unwrap().source, Source::Memory);
        let wrong = directory.delete(key("k"), Epoch::new(epoch + 1), Mutation::default()).await;
        assert_eq!(wrong, Err(Refused::EpochMismatch { present: placement.epoch }.into()));
        directory.delete(key("k"), Epoch::new(epoch), Mutation::default()).await.unwrap();
        // Gone at once, from memory as well.
        let gone = directory.route(ask("k", false)).await.unwrap_err();
        assert_eq!(gone, Refused::PlacementNotFound.into());
        assert_eq!(directory.placement(&key("k")).await, Err(Refused::PlacementNotFound.into()));
    }
    let epochs: Vec<_> = directory.history(&key("k"), 10, None).await.unwrap().items;
    let epochs: Vec<_> = epochs.iter().map(|record| record.epoch.get()).collect();
    assert_eq!(epochs, [4, 3, 2, 1]);
    rig.end().await;
}

/// Everything known keeps resolving when the store is down; what is not known is a guess.
#[tokio::test(start_paused = true)]
async fn what_is_known_resolves_without_the_store() {
    let rig = Rig::new().await;
    rig.directory.pin(placing("k", "b"), Mutation::default()).await.unwrap();
    rig.store.die(StoreError::Unreachable);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let known = rig.directory.route(ask("k", true)).await.unwrap();
    assert_eq!((known.cell(), known.source), (&cell_id("b"), Source::Memory));
    let guess = rig.directory.route(ask("l", true)).await.unwrap();
    assert_eq!(guess.source, Source::Fallback(FallbackReason::Unavailable));
    assert!(rig.directory.peek(|registry| registry.cells().count()) == Some(2));
    let registry = rig.directory.registry().await.unwrap_err();
    assert_eq!(
        registry,
        Error::Store(StoreError::Unreachable),
        "as it stands in the table: nobody knows"
    );
    rig.store.heal();
    assert_eq!(rig.directory.route(ask("l", true)).await.unwrap().source, Source::Assigned);
    rig.end().await;
}

/// A directory whose registry was never read says so, and gets over it.
#[tokio::test(start_paused = true)]
async fn a_start_without_the_store_is_made_up_for() {
    let (store, tasks, time) = (Faulty::new(), Tasks::new(), Time::new());
    store.die(StoreError::Timeout);
    let directory = Directory::start(ingredients(&store, &time), &tasks);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(directory.peek(|_| ()), None);
    let created = directory.create_cell(new_cell("a"), Mutation::default()).await;
    assert_eq!(created, Err(Error::Store(StoreError::Timeout)));
    store.heal();
    store.always(Call::Head, Fault::Fail(StoreError::Timeout));
    let created = directory.create_cell(new_cell("a"), Mutation::default()).await;
    assert_eq!(created, Err(Error::NotReady));
    store.heal();
    directory.ready(tasks.stopping()).await;
    directory.create_cell(new_cell("a"), Mutation::default()).await.unwrap();
    assert!(tasks.stop(Duration::from_secs(60)).await);
    // After the end, nobody waits for an answer that does not come.
    assert_eq!(
        directory.create_cell(new_cell("b"), Mutation::default()).await,
        Err(Error::NotReady)
    );
    let guess = directory.route(ask("k", true)).await.unwrap();
    assert_eq!(guess.source, Source::Fallback(FallbackReason::NotReady));
}

/// What a replica says of its own standing is put together from three things that change on their own. Here they do so all the time,
/// while more threads than there are processors look: some are interrupted between one and the next.
///
/// Time passes with the entries alone: the one numbered `n` is committed at `2n` microseconds and makes leases longer, and the poll that
/// finds it begins one microsecond later. So each answer tells which proof and which lease it is made from.
#[tokio::test]
async fn a_standing_never_claims_a_proof_or_a_lease_of_entries_beyond_it() {
    const LAST: u64 = 50_000;
    /// What readers take for the present: after all proofs, before the end of all leases.
    const READ_AT: Duration = Duration::from_secs(1);
    thread_local! { static READS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) } }
    let lease = |n: u64| Duration::from_millis(5_000 + n);
    let committed = |n: u64| Duration::from_micros(2 * n);

    let passed = Arc::new(AtomicU64::new(0));
    let (base, ticks) = (Instant::now(), passed.clone());
    let clock = Clock::system().with_instant(move || {
        let ticks = Duration::from_micros(ticks.load(Ordering::SeqCst));
        base + if READS.get() { READ_AT } else { ticks }
    });
    let (store, tasks) = (Faulty::new(), Tasks::new());
    let ingredients = Ingredients { clock, ..ingredients(&store, &Time::new()) };
    let directory = Directory::start(ingredients, &tasks);
    directory.ready(tasks.stopping()).await;

    let over = Arc::new(AtomicBool::new(false));
    let look = || {
        let (directory, over) = (directory.clone(), over.clone());
        std::thread::spawn(move || {
            READS.set(true);
            let mut positions = 0;
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                let Standing { position, age, lease: left } = directory.standing().unwrap();
                let come = position.sequence.get();
                let (proof, until) = (READ_AT - age, READ_AT + left);
                assert!(
                    proof <= committed(come + 1),
                    "at {come}, with a proof from {proof:?}, when more was there"
                );
                // A proof from before the next entry, and the length as of this one at most.
                assert!(
                    until <= committed(come + 1) + lease(come),
                    "at {come}, with a lease until {until:?}"
                );
                positions += u64::from(come != last);
                last = come;
            }
            positions
        })
    };
    let readers: Vec<_> = (0..6).map(|_| look()).collect();
    let began = std::time::Instant::now();
    for n in 1..=LAST {
        passed.store(2 * n, Ordering::SeqCst);
        let lease = LeaseDuration::new(lease(n)).unwrap();
        let cluster = Cluster { lease, revision: Sequence::new(n), ..Cluster::default() };
        let changes = vec![Change::ClusterUpdated { cluster: cluster.clone() }];
        let commit = Commit { entry: entry(n, changes), writes: vec![Write::PutCluster(cluster)] };
        assert_eq!(store.inner.commit(&commit).await, Ok(CommitOutcome::Committed));
        passed.store(2 * n + 1, Ordering::SeqCst);
        directory.shared.replica.catch_up().await.unwrap();
        if began.elapsed() > Duration::from_secs(3) {
            break;
        }
    }
    over.store(true, Ordering::Relaxed);
    let positions: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    assert!(positions > 50, "only {positions} positions were seen");
    assert!(tasks.stop(Duration::from_secs(60)).await);
}
