//! The order of the layers, which [`stack`] promises: by the type of what it makes, and by what callers can tell of each two layers
//! whose order they can tell. The whole stack runs on a store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::testing::{gist, look_up, request};
use super::*;
use crate::directory::error::{Error, Refused};
use crate::directory::fixtures::stage::{PAUSES, Stage, cell_id};
use crate::directory::fixtures::{Call, Fault, commit_now, entry, key, placed, placement};
use crate::directory::reader::{self, Reads};
use crate::domain::{Change, Epoch};
use crate::store::memory::MemoryStore;
use crate::store::{Commit, Expected, StoreError, Write};

const BUDGET: Duration = Duration::from_millis(500);
const ATTEMPTS: u32 = 3;

/// A stack on a store.
struct Rig {
    stage: Stage,
    service: RouteService,
    metrics: Counted,
    provider: SdkMeterProvider,
    /// Stops the reader.
    _stop: tokio_util::sync::DropGuard,
}

impl Rig {
    async fn new() -> Self {
        Self::with(ATTEMPTS).await
    }

    async fn with(attempts: u32) -> Self {
        let stage = Stage::new().await;
        let stop = CancellationToken::new();
        let (reads, wanted) = Reads::queue();
        tokio::spawn(reader::run(stage.store.clone(), wanted, stop.clone()));
        let metrics = Counted::default();
        let provider = SdkMeterProvider::builder()
            .with_reader(PeriodicReader::builder(metrics.clone()).build())
            .build();
        let service = stack(Parts {
            reads,
            replica: stage.replica.clone(),
            changes: stage.changes.clone(),
            clock: stage.time.clock(),
            randomness: Randomness::system(),
            metrics: DecisionMetrics::new(&provider.meter("test")),
            settings: StackSettings {
                default_cell: Some(CellId::new("default").unwrap()),
                load_patience: Duration::ZERO,
                lookup_budget: BUDGET,
                attempts,
                pauses: PAUSES,
                retry_ratio: 1.0,
                retry_floor: 100,
            },
        });
        Self { stage, service, metrics, provider, _stop: stop.drop_guard() }
    }

    async fn route(&self, request: RouteRequest) -> Answer {
        self.service.clone().call(request).await
    }

    fn begin(&self, request: RouteRequest) -> tokio::task::JoinHandle<Answer> {
        tokio::spawn(self.service.clone().call(request))
    }

    fn reads(&self) -> usize {
        self.stage.store.count(Call::Mapping) + self.stage.store.count(Call::Mappings)
    }

    fn fail_reads(&self, fault: Fault) {
        self.stage.store.always(Call::Mapping, fault.clone());
        self.stage.store.always(Call::Mappings, fault);
    }

    /// Places a tenant by another replica.
    async fn placed(&self, name: &str) {
        let store = self.stage.store.inner.clone();
        let elsewhere = Stage::on(crate::directory::fixtures::Faulty::on(store)).await;
        elsewhere.submit(crate::directory::fixtures::stage::pin(name, "a")).await.unwrap();
        elsewhere.end().await;
    }

    /// How often decisions were counted, by source, cell and fallback reason.
    fn counted(&self) -> BTreeMap<String, u64> {
        self.provider.force_flush().unwrap();
        self.metrics.0.lock().clone()
    }
}

/// What the decision counter says.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<BTreeMap<String, u64>>>);

impl PushMetricExporter for Counted {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let metrics = metrics.scope_metrics().flat_map(|scope| scope.metrics());
        for metric in metrics.filter(|metric| metric.name() == "cell.route.decisions") {
            let AggregatedMetrics::U64(MetricData::Sum(sum)) = metric.data() else { panic!() };
            for point in sum.data_points() {
                let mut labels: Vec<_> = point.attributes().map(|l| l.value.to_string()).collect();
                labels.sort();
                self.0.lock().insert(labels.join(" "), point.value());
            }
        }
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn assign() -> RouteOptions {
    RouteOptions { assign: true, ..RouteOptions::default() }
}

fn guess() -> RouteOptions {
    RouteOptions { fallback: true, ..assign() }
}

/// DESIGN §4: trace → metrics → fallback → cache → coalesce → timeout → retry with budget → DynamoDB.
#[tokio::test(start_paused = true)]
async fn the_layers_stand_in_their_order() {
    let rig = Rig::new().await;
    let made = std::any::type_name_of_val(&rig.service);
    let layers = [
        "::trace::Trace<",
        "::metrics::Metrics<",
        "::fallback::Fallback<",
        "::cache::Cached<",
        "::coalesce::Coalesce<",
        "::timeout::Timeout<",
        "::Retry<",
        "::table::Table>",
    ];
    let places: Vec<_> = layers
        .iter()
        .map(|layer| {
            assert_eq!(made.matches(layer).count(), 1, "{layer} in {made}");
            made.find(layer).unwrap()
        })
        .collect();
    assert!(places.is_sorted(), "{made}");
    // Nothing else stands between them.
    assert_eq!(made.matches('<').count(), layers.len() - 1, "{made}");
}

/// Metrics above fallback: a guess is counted as what the caller got.
#[tokio::test(start_paused = true)]
async fn a_guess_is_counted_as_a_guess() {
    let rig = Rig::new().await;
    rig.fail_reads(Fault::Fail(StoreError::Unreachable));
    assert!(rig.route(request("k", guess())).await.is_ok());
    assert!(rig.route(request("k", assign())).await.is_err());
    rig.stage.store.heal();
    assert_eq!(rig.route(request("k", assign())).await.unwrap().source, Source::Assigned);
    let cell = rig.route(request("k", assign())).await.unwrap().cell().clone();
    let expected = [
        ("default fallback unavailable".to_owned(), 1),
        (format!("{cell} assigned"), 1),
        (format!("{cell} memory"), 1),
    ];
    assert_eq!(rig.counted(), BTreeMap::from(expected));
}

/// Fallback above the cache: a guess is not kept, and the table is asked again.
#[tokio::test(start_paused = true)]
async fn a_guess_is_not_kept() {
    let rig = Rig::new().await;
    rig.placed("k").await;
    rig.fail_reads(Fault::Fail(StoreError::Timeout));
    let answer = rig.route(request("k", guess())).await;
    let source = Source::Fallback(FallbackReason::Timeout);
    assert_eq!(gist(&answer), Ok(("default".into(), source, None)));
    assert!(rig.stage.replica.memory().is_empty());
    rig.stage.store.heal();
    let answer = rig.route(request("k", guess())).await;
    assert_eq!(gist(&answer), Ok(("a".into(), Source::Table, Some(1))));
}

/// Fallback above timeout and retry: the guess is the last resort, after all attempts.
#[tokio::test(start_paused = true)]
async fn a_guess_comes_after_all_attempts() {
    let rig = Rig::new().await;
    rig.fail_reads(Fault::Fail(StoreError::Throttled));
    let answer = rig.route(request("k", guess())).await.unwrap();
    assert_eq!(answer.source, Source::Fallback(FallbackReason::Throttled));
    assert_eq!(rig.reads(), ATTEMPTS as usize);
    rig.fail_reads(Fault::Hang);
    let began = Instant::now();
    let answer = rig.route(request("k", guess())).await.unwrap();
    assert_eq!(answer.source, Source::Fallback(FallbackReason::Timeout));
    assert_eq!(began.elapsed(), BUDGET);
}

/// Cache above coalescing: what is held is answered at once, though the same question has a flight that hangs.
#[tokio::test(start_paused = true)]
async fn a_hit_takes_no_flight() {
    let rig = Rig::new().await;
    rig.fail_reads(Fault::Hang);
    let flight = rig.begin(look_up("k"));
    tokio::time::sleep(BUDGET / 2).await;
    assert_eq!(rig.reads(), 1);
    rig.stage.replica.memory().apply(&[placed("k", "a", None)], None);
    let hit = rig.service.clone().call(look_up("k")).now_or_never().expect("at once");
    assert_eq!(gist(&hit), Ok(("a".into(), Source::Memory, Some(1))));
    assert_eq!(rig.reads(), 1);
    // And what memory has learned meanwhile is better than the flight's end.
    assert_eq!(gist(&flight.await.unwrap()), Ok(("a".into(), Source::Memory, Some(1))));
}

/// Cache above coalescing, from the other side: each who shared the flight could keep it, and one did.
#[tokio::test(start_paused = true)]
async fn callers_share_one_read_and_what_it_brings() {
    let rig = Rig::new().await;
    rig.placed("k").await;
    rig.fail_reads(Fault::Slow(Duration::from_millis(10)));
    let answers = join_all((0..64).map(|_| rig.begin(look_up("k")))).await;
    for answer in answers {
        assert_eq!(gist(&answer.unwrap()), Ok(("a".into(), Source::Table, Some(1))));
    }
    assert_eq!(rig.reads(), 1);
    let hit = rig.route(look_up("k")).await.unwrap();
    assert_eq!((hit.source, rig.reads()), (Source::Memory, 1));
}

/// Coalescing above the timeout: the budget is the flight's, so who joins late waits for what is left of it.
#[tokio::test(start_paused = true)]
async fn who_joins_a_flight_shares_its_budget() {
    let rig = Rig::new().await;
    rig.fail_reads(Fault::Hang);
    let first = rig.begin(look_up("k"));
    tokio::time::sleep(BUDGET * 3 / 4).await;
    let joined = Instant::now();
    let timed_out = Error::Store(StoreError::Timeout);
    assert_eq!(rig.route(look_up("k")).await.unwrap_err(), timed_out);
    assert_eq!(joined.elapsed(), BUDGET / 4);
    assert_eq!(first.await.unwrap().unwrap_err(), timed_out);
}

/// Coalescing above retry: a crowd repeats its question as often as one would.
#[tokio::test(start_paused = true)]
async fn a_crowd_shares_one_sequence_of_attempts() {
    let rig = Rig::new().await;
    rig.fail_reads(Fault::Fail(StoreError::Throttled));
    let answers = join_all((0..64).map(|_| rig.begin(look_up("k")))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().unwrap_err(), Error::Store(StoreError::Throttled));
    }
    assert_eq!(rig.reads(), ATTEMPTS as usize);
}

/// Timeout above retry: one budget bounds all attempts and all pauses.
#[tokio::test(start_paused = true)]
async fn the_budget_bounds_all_attempts_together() {
    let rig = Rig::with(1000).await;
    let began = Instant::now();
    rig.fail_reads(Fault::Fail(StoreError::Throttled));
    assert_eq!(rig.route(look_up("k")).await.unwrap_err(), Error::Store(StoreError::Timeout));
    assert_eq!(began.elapsed(), BUDGET);
    assert!((5..50).contains(&rig.reads()), "{} attempts", rig.reads());
}

/// Retry above the table: a repeat begins with the read, which finds what a lost write did.
#[tokio::test(start_paused = true)]
async fn an_assignment_whose_reply_was_lost_is_found() {
    let rig = Rig::new().await;
    // Done, but nobody can tell: not by the reply, and not by the journal.
    rig.stage.store.next(Call::Commit, [Some(Fault::Lose(StoreError::Timeout))]);
    let unreadable = Fault::Fail(StoreError::Unreadable { detail: "x".into() });
    rig.stage.store.next(Call::Entries, [Some(unreadable)]);
    let answer = rig.route(request("k", assign())).await.unwrap();
    assert_eq!(answer.source, Source::Table);
    assert_eq!(rig.reads(), 2);
    assert_eq!(rig.stage.head().await, 3, "assigned once");
    // Where it cannot be found, nothing is promised.
    rig.stage.store.next(Call::Mapping, [None]);
    rig.fail_reads(Fault::Fail(StoreError::Unreachable));
    rig.stage.store.always(Call::Commit, Fault::Fail(StoreError::Timeout));
    let answer = rig.route(request("l", assign())).await;
    assert_eq!(answer.unwrap_err(), Error::OutcomeUnknown);
}

/// Takes away what `k` was given by entry 3, whichever cell that is.
fn remove_first(store: &MemoryStore) {
    for cell in ["a", "b"] {
        let expect = Expected::Placed {
            cell: cell_id(cell),
            epoch: Epoch::FIRST,
            adopted: false,
            migration: None,
        };
        let vacate = Write::Vacate { key: key("k"), epoch: Epoch::FIRST, expect };
        let entry = entry(4, vec![Change::Vacated { placement: placement("k", cell, 1) }]);
        commit_now(store, &Commit { entry, writes: vec![vacate] });
    }
}

/// An assignment whose reply was lost, and which somebody removed before the repeat: one call does not place a tenant twice.
#[tokio::test(start_paused = true)]
async fn an_assignment_that_was_removed_meanwhile_is_not_repeated() {
    let rig = Rig::new().await;
    rig.stage.store.next(Call::Commit, [Some(Fault::Lose(StoreError::Timeout))]);
    let unreadable = Fault::Fail(StoreError::Unreadable { detail: "x".into() });
    rig.stage.store.next(Call::Entries, [Some(unreadable)]);
    let remove = Fault::after(remove_first);
    rig.stage.store.next(Call::Mapping, [None, Some(remove)]);
    let answer = rig.route(request("k", assign())).await;
    assert_eq!(answer.unwrap_err(), Error::OutcomeUnknown);
    assert_eq!(rig.stage.head().await, 4, "assigned once, removed once");
    // Asked again, it is placed again.
    let again = rig.route(request("k", assign())).await.unwrap();
    assert_eq!(again.source, Source::Assigned);
}

/// The same, and somebody placed it anew: that is not the call's answer, which would say nothing of what the call did.
#[tokio::test(start_paused = true)]
async fn another_placement_does_not_hide_an_assignment_that_was_removed() {
    let rig = Rig::new().await;
    rig.stage.store.next(Call::Commit, [Some(Fault::Lose(StoreError::Timeout))]);
    let unreadable = Fault::Fail(StoreError::Unreadable { detail: "x".into() });
    rig.stage.store.next(Call::Entries, [Some(unreadable)]);
    let replace = Fault::after(|store| {
        remove_first(store);
        let placement = placement("k", "b", 2);
        let expect = Expected::Vacated(Epoch::FIRST);
        let place = Write::Place { placement: placement.clone(), expect };
        let entry = entry(5, vec![Change::Placed { placement, replaced: None }]);
        commit_now(store, &Commit { entry, writes: vec![place] });
    });
    rig.stage.store.next(Call::Mapping, [None, Some(replace)]);
    let answer = rig.route(request("k", assign())).await;
    assert_eq!(answer.unwrap_err(), Error::OutcomeUnknown);
    let again = rig.route(request("k", assign())).await.unwrap();
    assert_eq!(again.cell(), &cell_id("b"));
    assert_eq!(rig.stage.head().await, 5);
}

/// The table's own decisions, through the whole stack.
#[tokio::test(start_paused = true)]
async fn the_table_answers_or_assigns() {
    let rig = Rig::new().await;
    let ahead = RouteOptions { min_epoch: Epoch::new(2), ..assign() };
    let answer = rig.route(request("k", ahead.clone())).await.unwrap_err();
    assert_eq!(answer, Refused::EpochNotReached { present: None }.into());
    assert_eq!(rig.stage.head().await, 2, "nothing was assigned");

    let explain = RouteOptions { explain: true, ..assign() };
    let assigned = rig.route(request("k", explain.clone())).await.unwrap();
    assert_eq!(assigned.source, Source::Assigned);
    let names: Vec<_> = assigned.steps.iter().map(|step| step.name).collect();
    assert_eq!(names, ["memory", "table", "assign"]);
    assert_eq!(assigned.steps[2].candidates.len(), 2);
    assert_eq!(assigned.steps[2].candidates[0].cell, *assigned.cell());
    // Known to be absent: the storage is to check it, and no read comes first.
    let absent = rig.route(look_up("l")).await.unwrap_err();
    assert_eq!(absent, Refused::PlacementNotFound.into());
    let reads = rig.reads();
    let assigned = rig.route(request("l", explain)).await.unwrap();
    let names: Vec<_> = assigned.steps.iter().map(|step| step.name).collect();
    assert_eq!((names, rig.reads()), (vec!["memory", "assign"], reads));
    let behind = rig.route(request("k", ahead)).await.unwrap_err();
    let present = Epoch::new(1);
    assert_eq!(behind, Refused::EpochNotReached { present }.into());
}

/// Many who assign the same tenants with different questions, so that not all share a flight: one winner each.
#[tokio::test(start_paused = true)]
async fn concurrent_assigners_agree() {
    let one = Rig::new().await;
    one.fail_reads(Fault::Slow(Duration::from_millis(2)));
    let asking: Vec<_> = (0..640)
        .map(|n| {
            let explain = n % 3 == 0;
            let options = RouteOptions { explain, ..assign() };
            one.begin(request(&format!("k{}", n % 10), options))
        })
        .collect();
    let mut cells = BTreeMap::new();
    let mut assigned = 0;
    for (n, answer) in join_all(asking).await.into_iter().enumerate() {
        let routed = answer.unwrap().unwrap();
        let cell = cells.entry(n % 10).or_insert_with(|| routed.cell().clone());
        assert_eq!(cell, routed.cell());
        assigned += usize::from(routed.source == Source::Assigned);
    }
    assert!(assigned >= 10);
    let truth = crate::directory::fixtures::stage::audit(&one.stage.store.inner).await;
    assert_eq!(truth.mappings.len(), 10);
    for mapping in truth.mappings.values() {
        assert_eq!(mapping.last_epoch(), Epoch::new(1), "one winner");
    }
}
