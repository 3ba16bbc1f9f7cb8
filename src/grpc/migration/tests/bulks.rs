//! Drains and rebalances at the edge: what is asked arrives, what is wrong is told by its field, and how a bulk is told.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use cells_balance::bulk::{Cancel, Count, End, Header, Item, Limits, Purpose, State, Summary};
use cells_balance::{Band, Forecast, Hotspot, HotspotCause, Left, LeftAlone, Move, Plan, Standing};
use parking_lot::Mutex;

use super::*;
use crate::domain::{CellId, CellState};
use crate::migration::Verification;
use crate::migration::bulk::{
    BulkError, BulkId, BulkPage, BulkProgress, BulkRecord, DrainAsk, How, Planned, RebalanceAsk,
    Targets, Terms,
};
use crate::store::{Cursor, Page};

#[derive(Debug, Clone, PartialEq)]
enum Asked {
    Drain(DrainAsk, Option<How>),
    Rebalance(RebalanceAsk, Option<How>),
    Pause(bool),
    Cancel(Cancel),
}

#[derive(Default)]
struct FakeBulks {
    asked: Mutex<Option<Asked>>,
    refusal: Mutex<Option<BulkError>>,
}

impl FakeBulks {
    fn note(&self, asked: Asked) -> Result<(), BulkError> {
        *self.asked.lock() = Some(asked);
        self.refusal.lock().take().map_or(Ok(()), Err)
    }
}

fn record(header: Header) -> BulkRecord {
    let at = Timestamp::from_millis(1_700_000_000_000).unwrap();
    let of = |tenants| Count { tenants, bytes: 10 * tenants };
    let summary = Summary {
        waiting: of(1),
        running: of(2),
        done: of(3),
        to_retry: of(4),
        failed: of(5),
        skipped: of(6),
    };
    BulkRecord {
        id: BulkId::new(9),
        header,
        planned: Planned {
            terms: Terms { soak: Some(Duration::from_secs(60)), ..Terms::default() },
            generation: 1,
            staying: 8,
            created: at,
            digest: String::new(),
            caller: None,
        },
        progress: BulkProgress { summary, trouble: Some("throttled".into()) },
        updated: at,
        worker: 3,
        beat: 4,
    }
}

fn header() -> Header {
    Header {
        id: BulkId::new(9).to_string(),
        purpose: Purpose::Drain { cell: "cell-a".into() },
        limits: Limits::default(),
        paused: false,
        cancelled: None,
        ended: None,
        items: 21,
        revision: 1,
    }
}

fn page() -> BulkPage {
    let problem = Item {
        tenant: "tenant-1".into(),
        source: "cell-a".into(),
        target: "cell-b".into(),
        bytes: None,
        attempts: 2,
        state: State::Failed { reason: "in the way".into(), retry: false },
    };
    BulkPage { record: record(header()), problems: vec![problem] }
}

fn plan() -> Plan {
    Plan {
        moves: vec![Move {
            tenant: "tenant-1".into(),
            source: "cell-a".into(),
            target: "cell-b".into(),
            bytes: Some(0),
            relieves: None,
        }],
        bytes: 7,
        bytes_at_least: Some(5),
        left: vec![Left { tenant: "tenant-2".into(), why: LeftAlone::Moving }],
        left_total: 2000,
        hotspots: vec![Hotspot {
            tenant: "tenant-3".into(),
            cell: "cell-a".into(),
            share: 0.75,
            cause: HotspotCause::Share,
        }],
        hotspots_total: 1,
        cells: vec![Forecast {
            cell: "cell-a".into(),
            placements: 3,
            placements_after: 2,
            utilisation: Some(0.5),
            utilisation_after: None,
            standing: Some(Standing::Above),
            stuck: None,
        }],
        ..Plan::default()
    }
}

#[async_trait]
impl BulkApi for FakeBulks {
    async fn plan_drain(&self, ask: DrainAsk) -> Result<Plan, BulkError> {
        self.note(Asked::Drain(ask, None)).map(|()| plan())
    }

    async fn start_drain(&self, ask: DrainAsk, how: How) -> Result<BulkPage, BulkError> {
        self.note(Asked::Drain(ask, Some(how))).map(|()| page())
    }

    async fn plan_rebalance(&self, ask: RebalanceAsk) -> Result<Plan, BulkError> {
        self.note(Asked::Rebalance(ask, None)).map(|()| plan())
    }

    async fn start_rebalance(&self, ask: RebalanceAsk, how: How) -> Result<BulkPage, BulkError> {
        self.note(Asked::Rebalance(ask, Some(how))).map(|()| page())
    }

    async fn get(&self, _: BulkId) -> Result<BulkPage, BulkError> {
        Ok(page())
    }

    async fn list(&self, _: usize, _: Option<&Cursor>) -> Result<Page<BulkRecord>, BulkError> {
        let next = Some(Cursor("further".into()));
        Ok(Page { items: vec![record(header())], next })
    }

    async fn pause(&self, _: BulkId, paused: bool) -> Result<BulkPage, BulkError> {
        self.note(Asked::Pause(paused)).map(|()| page())
    }

    async fn cancel(&self, _: BulkId, how: Cancel) -> Result<BulkPage, BulkError> {
        self.note(Asked::Cancel(how)).map(|()| page())
    }
}

fn served() -> (MigrationService, Arc<FakeBulks>) {
    let bulks = Arc::new(FakeBulks::default());
    let service = service(&Arc::new(FakeMigrations::default()));
    (service.with_bulks(Some(bulks.clone())), bulks)
}

fn drain() -> v1::StartDrainRequest {
    v1::StartDrainRequest { cell_id: "cell-a".to_owned(), ..Default::default() }
}

fn rebalance() -> v1::StartRebalanceRequest {
    v1::StartRebalanceRequest { low: 0.2, high: 0.7, ..Default::default() }
}

#[tokio::test]
async fn a_plain_drain_is_by_the_defaults_and_another_as_it_says() {
    let (service, bulks) = served();
    service.start_drain(Request::new(drain())).await.unwrap();
    let cell = CellId::new("cell-a").unwrap();
    let ask = DrainAsk { cell, targets: Targets::default(), ceiling: None };
    assert_eq!(bulks.asked.lock().take(), Some(Asked::Drain(ask.clone(), Some(How::default()))));

    let all = v1::StartDrainRequest {
        targets: Some(v1::BulkTargets { other_regions: true, keep_labels: vec!["tier".into()] }),
        max_utilisation: 0.8,
        limits: Some(v1::BulkLimits {
            running: 1000,
            per_source: 2,
            per_target: 3,
            open: 100_000,
            units_per_cell: 1_000_000,
            attempts: 10,
        }),
        terms: Some(v1::BulkTerms {
            verification: v1::MigrationVerification::Strict.into(),
            soak_duration: Some(prost_types::Duration::default()),
            pause_budget: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        }),
        request_id: "once".to_owned(),
        ..drain()
    };
    service.start_drain(Request::new(all)).await.unwrap();
    let Some(Asked::Drain(ask, Some(how))) = bulks.asked.lock().take() else { panic!() };
    assert_eq!(
        (ask.ceiling, ask.targets),
        (Some(0.8), Targets { other_regions: true, keep_labels: vec!["tier".into()] })
    );
    let of = |value| NonZeroU32::new(value).unwrap();
    let limits = Limits {
        running: of(1000),
        per_source: of(2),
        per_target: of(3),
        open: of(100_000),
        units_per_cell: Some(of(1_000_000)),
        attempts: of(10),
    };
    assert_eq!(how.limits, limits);
    let terms = Terms {
        verification: Verification::Strict,
        soak: Some(Duration::ZERO),
        pause_budget: Some(Duration::from_secs(60)),
    };
    assert_eq!((how.terms, how.request.unwrap().id.as_str()), (terms, "once"));
}

#[tokio::test]
async fn a_rebalance_and_what_steers_arrive_as_they_were_asked() {
    let (service, bulks) = served();
    service.start_rebalance(Request::new(rebalance())).await.unwrap();
    let band = Band { low: 0.2, high: 0.7 };
    let ask = RebalanceAsk { band, targets: Targets::default(), hotspot_share: 0.5 };
    assert_eq!(bulks.asked.lock().take(), Some(Asked::Rebalance(ask, Some(How::default()))));
    let bulk_id = || id(9);
    service.pause_bulk(Request::new(v1::PauseBulkRequest { bulk_id: bulk_id() })).await.unwrap();
    assert_eq!(bulks.asked.lock().take(), Some(Asked::Pause(true)));
    service.resume_bulk(Request::new(v1::ResumeBulkRequest { bulk_id: bulk_id() })).await.unwrap();
    assert_eq!(bulks.asked.lock().take(), Some(Asked::Pause(false)));
    for (migrations, how) in [(false, Cancel::LetRun), (true, Cancel::Running)] {
        let cancel = v1::CancelBulkRequest { bulk_id: bulk_id(), migrations };
        service.cancel_bulk(Request::new(cancel)).await.unwrap();
        assert_eq!(bulks.asked.lock().take(), Some(Asked::Cancel(how)));
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_by_its_field_and_nothing_is_asked() {
    let (service, bulks) = served();
    type Change = fn(&mut v1::StartDrainRequest);
    fn limit(set: fn(&mut v1::BulkLimits)) -> Option<v1::BulkLimits> {
        let mut limits = v1::BulkLimits::default();
        set(&mut limits);
        Some(limits)
    }
    let wrong: [(&str, &str, Change); 14] = [
        ("cell_id", "INVALID_CELL_ID", |r| r.cell_id.clear()),
        ("max_utilisation", "INVALID_UTILISATION", |r| r.max_utilisation = -0.1),
        ("max_utilisation", "INVALID_UTILISATION", |r| r.max_utilisation = f64::NAN),
        ("targets.keep_labels", "INVALID_LABELS", |r| {
            r.targets =
                Some(v1::BulkTargets { keep_labels: vec!["A".into()], ..Default::default() });
        }),
        ("limits.running", "INVALID_LIMIT", |r| r.limits = limit(|l| l.running = 1001)),
        ("limits.per_source", "INVALID_LIMIT", |r| r.limits = limit(|l| l.per_source = 1001)),
        ("limits.per_target", "INVALID_LIMIT", |r| r.limits = limit(|l| l.per_target = 1001)),
        ("limits.open", "INVALID_LIMIT", |r| r.limits = limit(|l| l.open = 100_001)),
        ("limits.units_per_cell", "INVALID_LIMIT", |r| {
            r.limits = limit(|l| l.units_per_cell = 1_000_001);
        }),
        ("limits.attempts", "INVALID_LIMIT", |r| r.limits = limit(|l| l.attempts = 11)),
        ("terms.verification", "UNKNOWN_ENUM_VALUE", |r| {
            r.terms = Some(v1::BulkTerms { verification: 9, ..Default::default() });
        }),
        ("terms.soak_duration", "INVALID_DURATION", |r| {
            let soak_duration = Some(prost_types::Duration { seconds: -1, nanos: 0 });
            r.terms = Some(v1::BulkTerms { soak_duration, ..Default::default() });
        }),
        ("terms.pause_budget", "INVALID_DURATION", |r| {
            let pause_budget = Some(prost_types::Duration::default());
            r.terms = Some(v1::BulkTerms { pause_budget, ..Default::default() });
        }),
        ("request_id", "INVALID_REQUEST_ID", |r| r.request_id = "a b".into()),
    ];
    for (field, why, change) in wrong {
        let mut request = drain();
        change(&mut request);
        refused(service.start_drain(Request::new(request)).await, field, why);
    }
    let bands = [
        ("low", -0.1, 0.7, 0.0),
        ("low", f64::NAN, 0.7, 0.0),
        ("high", 0.7, 0.7, 0.0),
        ("high", 0.2, 1000.5, 0.0),
        ("high", 0.2, f64::NAN, 0.0),
        ("hotspot_share", 0.2, 0.7, 1.1),
        ("hotspot_share", 0.2, 0.7, f64::NAN),
    ];
    for (field, low, high, hotspot_share) in bands {
        let asked = v1::PlanRebalanceRequest { low, high, hotspot_share, targets: None };
        let answer = service.plan_rebalance(Request::new(asked)).await;
        refused(answer, field, "INVALID_UTILISATION");
    }
    let get = v1::GetBulkRequest { bulk_id: "9".to_owned() };
    refused(service.get_bulk(Request::new(get)).await, "bulk_id", "INVALID_BULK_ID");
    let list = v1::ListBulksRequest { page_token: "x".to_owned(), page_size: 0 };
    refused(service.list_bulks(Request::new(list)).await, "page_token", "INVALID_PAGE_TOKEN");
    assert_eq!(bulks.asked.lock().take(), None);
}

#[tokio::test]
async fn a_bulk_is_told_with_its_counts_and_its_problems() {
    let (service, _) = served();
    let get = v1::GetBulkRequest { bulk_id: id(9) };
    let bulk = service.get_bulk(Request::new(get)).await.unwrap().into_inner().bulk.unwrap();
    let counts = bulk.counts.unwrap();
    let all = [counts.waiting, counts.running, counts.done, counts.to_retry, counts.failed];
    assert_eq!((all, counts.skipped), ([1, 2, 3, 4, 5], 6));
    assert_eq!((bulk.staying_total, bulk.worker, bulk.trouble.as_str()), (8, 3, "throttled"));
    assert_eq!(bulk.terms.unwrap().soak_duration.unwrap().seconds, 60);
    let [problem] = &bulk.problems[..] else { panic!("{:?}", bulk.problems) };
    assert_eq!((problem.state.as_str(), problem.reason.as_str()), ("FAILED", "in the way"));
    let second = crate::migration::bulk::migration_id(&id(9), "tenant-1", 2).to_string();
    assert_eq!(problem.migration_id, second);
    let list = service.list_bulks(Request::new(v1::ListBulksRequest::default())).await.unwrap();
    let list = list.into_inner();
    assert!(list.bulks[0].problems.is_empty() && !list.next_page_token.is_empty());
}

#[test]
fn a_bulk_is_in_one_state_at_a_time() {
    use v1::BulkState::*;
    let state = |paused, cancelled, ended| {
        let told = super::super::bulk_message::bulk(&record(Header {
            paused,
            cancelled,
            ended,
            ..header()
        }));
        (told.state(), told.end_time.is_some())
    };
    assert_eq!(state(false, None, None), (Running, false));
    assert_eq!(state(true, None, None), (Paused, false));
    assert_eq!(state(true, Some(Cancel::LetRun), None), (Cancelling, false));
    assert_eq!(state(false, Some(Cancel::Running), Some(End::Cancelled)), (Cancelled, true));
    assert_eq!(state(false, None, Some(End::Finished)), (Finished, true));
}

#[tokio::test]
async fn a_plan_is_told_with_who_stays_and_how_many() {
    let (service, _) = served();
    let ask = v1::PlanDrainRequest { cell_id: "cell-a".to_owned(), ..Default::default() };
    let plan = service.plan_drain(Request::new(ask)).await.unwrap().into_inner().plan.unwrap();
    // None is not nothing.
    assert_eq!((plan.moves[0].size_bytes, plan.moves[0].relieves), (Some(0), None));
    assert_eq!((plan.size_bytes, plan.size_bytes_at_least), (7, Some(5)));
    assert_eq!((plan.staying.len(), plan.staying_total), (1, 2000));
    assert_eq!(plan.staying[0].reason, "is being moved already");
    assert_eq!((plan.hotspots[0].share, plan.hotspots_total), (0.75, 1));
    let cell = &plan.cells[0];
    assert_eq!((cell.utilisation, cell.utilisation_after), (Some(0.5), None));
    assert_eq!((cell.standing.as_str(), cell.placements_after), ("ABOVE", 2));
}

#[tokio::test]
async fn why_a_bulk_is_not_begun_is_told_with_what_to_do_next() {
    let (service, bulks) = served();
    let cell = CellId::new("cell-a").unwrap();
    let errors = [
        (BulkError::TakesTenants { cell, state: CellState::Active }, "CELL_TAKES_TENANTS"),
        (BulkError::Running(BulkId::new(3)), "BULK_RUNNING"),
        (BulkError::NothingToMove { staying: 4 }, "NOTHING_TO_MOVE"),
        (BulkError::NotNow { bulk: BulkId::new(3), why: "has ended" }, "INSTRUCTION_NOT_ALLOWED"),
    ];
    for (error, why) in errors {
        *bulks.refusal.lock() = Some(error);
        let status = service.start_drain(Request::new(drain())).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, why));
        assert!(status.message().contains("; "), "{status:?}");
    }
    *bulks.refusal.lock() = Some(BulkError::NotFound(BulkId::new(3)));
    let status = service.start_drain(Request::new(drain())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "BULK_NOT_FOUND"));
    let plain = super::service(&Arc::new(FakeMigrations::default()));
    let status = plain.start_drain(Request::new(drain())).await.unwrap_err();
    let due = (Code::Unimplemented, "METHOD_NOT_FOUND");
    assert_eq!((status.code(), reason(&status).as_str()), due);
}
