//! A bulk whose workers die: before and after every call that they make, and with every answer lost. Whoever takes over, each tenant is moved
//! once, and what was given up is not begun.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cells_balance::bulk::{Cancel, Changes, Chunk, End, Header, Limits, Purpose, State};
use cells_balance::{Bulk, Move};
use cells_migration::{Phase, Wish};
use parking_lot::Mutex;

use super::model::{BulkId, BulkProgress, BulkRecord, Planned, Terms, migration_id};
use super::moves::{Moves, NotStarted, Order};
use super::records::{BulkBegun, BulkRecords};
use super::runner::{BulkShared, Runner, Turned};
use crate::directory::Clock;
use crate::domain::{MigrationId, Timestamp};
use crate::migration::{Migration, fake};
use crate::store::{Cursor, Page, StoreError};

mod takeover;

const TENANTS: usize = 6;
/// Above what any of these bulks takes.
const MAX_TURNS: usize = 400;

/// What a call meets with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Crash {
    /// The process dies before the call arrives.
    Before,
    /// The process dies when it is done, without an answer.
    After,
}

#[derive(Default)]
struct World {
    head: Option<BulkRecord>,
    chunks: BTreeMap<u64, Chunk>,
    migrations: BTreeMap<MigrationId, Migration>,
    /// Those that were begun, in their order.
    begun: Vec<String>,
    /// Tenants that cannot be moved, and whether to try again helps.
    refused: BTreeMap<String, bool>,
    /// Tenants whose migrations are aborted, and what the worker says of it.
    aborted: BTreeMap<String, Option<&'static str>>,
    calls: usize,
    /// What the store says while it will do nothing.
    rejects: Option<&'static str>,
    /// At which call, and how.
    crash: Option<(usize, Crash)>,
    crashed: bool,
    /// Most migrations that were under way at the same time.
    most: usize,
}

#[derive(Default, Clone)]
struct Fake(Arc<Mutex<World>>);

impl Fake {
    /// A call: what it does is done, or not, or done and not heard of.
    fn call<T>(&self, does: impl FnOnce(&mut World) -> T) -> Result<T, StoreError> {
        let mut world = self.0.lock();
        if world.crashed {
            return Err(StoreError::Unreachable);
        }
        if let Some(detail) = world.rejects {
            return Err(StoreError::Rejected { detail: detail.into() });
        }
        world.calls += 1;
        match world.crash.filter(|(at, _)| *at == world.calls) {
            None => Ok(does(&mut world)),
            Some((_, Crash::Before)) => {
                world.crashed = true;
                Err(StoreError::Unreachable)
            }
            Some((_, Crash::After)) => {
                does(&mut world);
                world.crashed = true;
                Err(StoreError::Timeout)
            }
        }
    }

    fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.0.lock())
    }
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_700_000_000_000).unwrap()
}

#[async_trait]
impl BulkRecords for Fake {
    async fn begin_bulk(&self, _: &BulkRecord, _: &[Chunk]) -> Result<BulkBegun, StoreError> {
        Ok(BulkBegun::Begun)
    }

    async fn bulk(&self, _: BulkId) -> Result<Option<BulkRecord>, StoreError> {
        self.call(|world| world.head.clone())
    }

    async fn chunks(&self, _: &BulkRecord) -> Result<Vec<Chunk>, StoreError> {
        self.call(|world| world.chunks.values().cloned().collect())
    }

    async fn active_bulks(&self) -> Result<Vec<BulkId>, StoreError> {
        let active = |head: &&BulkRecord| head.ended().is_none();
        self.call(|world| world.head.iter().filter(active).map(|head| head.id).collect())
    }

    async fn bulks(&self, _: usize, _: Option<&Cursor>) -> Result<Page<BulkRecord>, StoreError> {
        Ok(Page { items: Vec::new(), next: None })
    }

    async fn take_bulk(&self, _: BulkId, worker: u64) -> Result<Option<u64>, StoreError> {
        self.call(|world| {
            let head = world.head.as_mut().filter(|head| head.worker == worker)?;
            head.worker += 1;
            Some(head.worker)
        })
    }

    async fn beat_bulk(
        &self,
        _: BulkId,
        worker: u64,
        progress: &BulkProgress,
        _: Timestamp,
    ) -> Result<Option<BulkRecord>, StoreError> {
        self.call(|world| {
            let head = world.head.as_mut().filter(|head| head.worker == worker)?;
            (head.beat, head.progress) = (head.beat + 1, progress.clone());
            Some(head.clone())
        })
    }

    async fn save_bulk(
        &self,
        record: &BulkRecord,
        changes: &Changes,
        _: Timestamp,
    ) -> Result<bool, StoreError> {
        self.call(|world| {
            let head = world.head.as_mut().unwrap();
            if head.worker != record.worker {
                return false;
            }
            for chunk in &changes.chunks {
                if world.chunks[&chunk.number].revision + 1 != chunk.revision {
                    return false;
                }
                world.chunks.insert(chunk.number, chunk.clone());
            }
            if let Some(header) = &changes.header {
                if head.header.revision + 1 != header.revision {
                    return false;
                }
                head.header = header.clone();
            }
            true
        })
    }

    async fn steer_bulk(&self, _: BulkId, _: &Header, _: Timestamp) -> Result<bool, StoreError> {
        Ok(false)
    }
}

#[async_trait]
impl Moves for Fake {
    async fn start(&self, order: Order) -> Result<(), NotStarted> {
        let begin = |world: &mut World| {
            let id = MigrationId::parse(&order.start.migration).unwrap();
            if world.migrations.contains_key(&id) {
                return Ok(());
            }
            if let Some(retry) = world.refused.get(&order.start.tenant) {
                return Err(NotStarted::Refused { reason: "in the way".into(), retry: *retry });
            }
            if world.chunks[&order.part.chunk].revision != order.part.revision {
                return Err(NotStarted::Superseded);
            }
            let mut begun = fake::migration(id.get());
            if let Some(trouble) = world.aborted.get(&order.start.tenant) {
                begun.record.wish = Some(Wish::Cancel);
                begun.trouble = trouble.map(str::to_owned);
            }
            world.migrations.insert(id, begun);
            world.begun.push(order.start.tenant.clone());
            let open = world.migrations.values().filter(|one| !one.record.phase.ended());
            world.most = world.most.max(open.count());
            Ok(())
        };
        self.call(begin).unwrap_or_else(|error| Err(NotStarted::Passing(error.to_string())))
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError> {
        self.call(|world| world.migrations.get(&id).cloned())
    }

    async fn cancel(&self, id: MigrationId) -> Result<(), StoreError> {
        self.call(|world| {
            let migration = world.migrations.get_mut(&id).unwrap();
            migration.record.wish = Some(Wish::Cancel);
        })
    }
}

fn limits() -> Limits {
    let of = |value| std::num::NonZeroU32::new(value).unwrap();
    Limits { running: of(2), attempts: of(2), ..Limits::default() }
}

/// A drain of six tenants that was begun, and that nobody works on.
fn begun() -> Fake {
    let moves = (0..TENANTS).map(|n| Move {
        tenant: format!("tenant-{n}"),
        source: "cell-a".into(),
        target: "cell-b".into(),
        bytes: None,
        relieves: None,
    });
    let id = BulkId::new(7);
    let purpose = Purpose::Drain { cell: "cell-a".into() };
    let mut bulk = Bulk::new(&id.to_string(), purpose, moves.collect(), limits()).unwrap();
    let changes = bulk.take_changes();
    let planned = Planned {
        terms: Terms::default(),
        generation: 1,
        staying: 0,
        created: now(),
        digest: String::new(),
        caller: None,
    };
    let (header, progress) = (bulk.header().clone(), BulkProgress::default());
    let head = BulkRecord { id, header, planned, progress, updated: now(), worker: 0, beat: 0 };
    let fake = Fake::default();
    fake.world(|world| {
        world.head = Some(head);
        world.chunks = changes.chunks.into_iter().map(|chunk| (chunk.number, chunk)).collect();
    });
    fake
}

async fn taken(fake: &Fake) -> Option<Runner> {
    let id = BulkId::new(7);
    let worker = fake.bulk(id).await.ok()??.worker;
    let worker = fake.take_bulk(id, worker).await.ok()??;
    let (records, moves) = (Arc::new(fake.clone()), Arc::new(fake.clone()));
    let clock = Clock::from_fn(now);
    Some(Runner::new(BulkShared { records, moves, clock, slow_look: Duration::ZERO }, id, worker))
}

/// What migrations do meanwhile: the one that began first ends, as it is wished.
fn pass(world: &mut World) {
    let mut open = world.migrations.values_mut().filter(|one| !one.record.phase.ended());
    if let Some(migration) = open.next() {
        migration.record.phase = match migration.record.wish {
            Some(Wish::Cancel) => Phase::Aborted,
            _ => Phase::Done,
        };
    }
}

/// Runs a bulk to its end, with another worker after each death.
async fn run(fake: &Fake, mut between: impl FnMut(&mut World)) -> End {
    let mut runner = None;
    for _ in 0..MAX_TURNS {
        let crashed = fake.world(|world| std::mem::take(&mut world.crashed));
        if runner.is_none() || crashed {
            runner = taken(fake).await;
        }
        let Some(worker) = &mut runner else { continue };
        match worker.turn().await {
            Ok(Turned::Ended) => {
                return fake.world(|world| world.head.clone()).unwrap().ended().unwrap();
            }
            Ok(Turned::Wait | Turned::Again) | Err(_) => {}
            Ok(Turned::Lost) => panic!("nobody else took it"),
        }
        fake.world(|world| {
            pass(world);
            between(world);
        });
    }
    panic!("no end: {:?}", fake.world(|world| world.chunks.clone()));
}

fn states(fake: &Fake) -> Vec<&'static str> {
    let chunks = fake.world(|world| world.chunks.clone());
    chunks.values().flat_map(|chunk| &chunk.items).map(|item| item.state.as_str()).collect()
}

/// Runs a bulk once without and then with each crash at each call; `check` is told of each end.
async fn through_crashes(
    prepare: impl Fn(&mut World),
    between: impl Fn(&mut World),
    check: impl Fn(&Fake, End, &str),
) {
    let calm = begun();
    calm.world(&prepare);
    let end = run(&calm, &between).await;
    check(&calm, end, "calm");
    let calls = calm.world(|world| world.calls);
    assert!(calls > 10, "{calls}");
    for at in 1..=calls {
        for how in [Crash::Before, Crash::After] {
            let fake = begun();
            fake.world(|world| {
                prepare(world);
                world.crash = Some((at, how));
            });
            let end = run(&fake, &between).await;
            check(&fake, end, &format!("{how:?} call {at}"));
        }
    }
}

#[tokio::test]
async fn each_tenant_is_moved_once_wherever_a_worker_dies() {
    let check = |fake: &Fake, end: End, at: &str| {
        assert_eq!((end, states(fake)), (End::Finished, vec!["DONE"; TENANTS]), "{at}");
        fake.world(|world| {
            let each: BTreeSet<_> = world.begun.iter().collect();
            assert_eq!((world.begun.len(), each.len()), (TENANTS, TENANTS), "{at}");
            assert!(world.most <= 2, "{at}: {} at once", world.most);
        });
    };
    through_crashes(|_| {}, |_| {}, check).await;
}

#[tokio::test]
async fn who_cannot_be_moved_stops_nobody_and_is_tried_as_often_as_is_said() {
    let prepare = |world: &mut World| {
        world.refused = [("tenant-1".to_owned(), true), ("tenant-3".to_owned(), false)].into();
    };
    let check = |fake: &Fake, end: End, at: &str| {
        let due = ["DONE", "FAILED", "DONE", "FAILED", "DONE", "DONE"];
        assert_eq!((end, states(fake)), (End::Finished, due.to_vec()), "{at}");
        let attempts = fake.world(|world| world.chunks[&0].items.clone());
        assert_eq!((attempts[1].attempts, attempts[3].attempts), (2, 1), "{at}");
    };
    through_crashes(prepare, |_| {}, check).await;
}

/// A worker that gives a tenant up cancels its migration as an operator does, but says why.
#[tokio::test]
async fn who_is_given_up_fails_with_the_reason_and_who_is_cancelled_is_skipped() {
    const WHY: &str = "1 items are too large";
    let prepare = |world: &mut World| {
        world.aborted = [("tenant-1".to_owned(), Some(WHY)), ("tenant-3".to_owned(), None)].into();
    };
    let check = |fake: &Fake, end: End, at: &str| {
        let due = ["DONE", "FAILED", "DONE", "SKIPPED", "DONE", "DONE"];
        assert_eq!((end, states(fake)), (End::Finished, due.to_vec()), "{at}");
        let items = fake.world(|world| world.chunks[&0].items.clone());
        assert_eq!((items[1].attempts, items[3].attempts), (2, 1), "{at}");
        assert!(
            matches!(&items[1].state, State::Failed { reason, .. } if reason == WHY),
            "{at}: {:?}",
            items[1]
        );
    };
    through_crashes(prepare, |_| {}, check).await;
}

#[tokio::test]
async fn what_is_cancelled_is_not_begun_wherever_a_worker_dies() {
    // When two have been begun, it is cancelled with them.
    let cancel = |world: &mut World| {
        let head = world.head.as_mut().unwrap();
        if world.begun.len() >= 2 && head.header.cancelled.is_none() {
            head.header.cancelled = Some(Cancel::Running);
            head.header.revision += 1;
        }
    };
    let check = |fake: &Fake, end: End, at: &str| {
        assert_eq!(end, End::Cancelled, "{at}");
        let items = fake.world(|world| world.chunks[&0].items.clone());
        let head = fake.world(|world| world.head.clone()).unwrap();
        for item in &items {
            let id = migration_id(&head.id.to_string(), &item.tenant, 1);
            let migration = fake.world(|world| world.migrations.get(&id).cloned());
            let due = match migration.as_ref().map(|one| one.record.phase) {
                Some(Phase::Done) => "DONE",
                // Skipped, and nothing of it is under way.
                Some(Phase::Aborted) | None => "SKIPPED",
                other => panic!("{at}: {other:?}"),
            };
            assert_eq!(item.state.as_str(), due, "{at}: {}", item.tenant);
        }
        assert!(items.iter().any(|item| matches!(item.state, State::Skipped { .. })), "{at}");
    };
    through_crashes(|_| {}, cancel, check).await;
}

#[tokio::test]
async fn a_worker_that_was_taken_over_from_begins_nothing() {
    let fake = begun();
    let mut first = taken(&fake).await.unwrap();
    assert_eq!(first.turn().await, Ok(Turned::Again));
    let begun = fake.world(|world| world.begun.len());
    let mut second = taken(&fake).await.unwrap();
    fake.world(|world| {
        world.migrations.values_mut().for_each(|one| one.record.phase = Phase::Done)
    });
    assert_eq!(first.turn().await, Ok(Turned::Lost));
    assert_eq!(fake.world(|world| world.begun.len()), begun);
    assert_eq!(second.turn().await, Ok(Turned::Again));
    assert!(states(&fake).contains(&"DONE"));
}

#[tokio::test]
async fn a_start_that_comes_late_is_refused_by_what_is_stored() {
    // The worker dies with a start on its way; the bulk is cancelled, and another one notes that.
    let fake = begun();
    let late = Order::new(
        cells_balance::bulk::Start {
            item: 0,
            tenant: "tenant-0".into(),
            source: "cell-a".into(),
            target: "cell-b".into(),
            attempt: 1,
            migration: migration_id(&BulkId::new(7).to_string(), "tenant-0", 1).to_string(),
            units: None,
        },
        0,
        2,
        &fake.world(|world| world.head.clone()).unwrap(),
    );
    fake.world(|world| {
        world.head.as_mut().unwrap().header.cancelled = Some(Cancel::LetRun);
        world.chunks.get_mut(&0).unwrap().revision = 3;
    });
    assert_eq!(Moves::start(&fake, late).await, Err(NotStarted::Superseded));
}

#[tokio::test]
async fn what_soaks_makes_room_for_others_up_to_the_limit_of_those_that_are_open() {
    let fake = begun();
    let mut worker = taken(&fake).await.unwrap();
    for _ in 0..20 {
        worker.turn().await.unwrap();
        fake.world(|world| {
            world.migrations.values_mut().for_each(|one| one.record.phase = Phase::Soaking);
        });
    }
    assert_eq!(states(&fake), vec!["RUNNING"; TENANTS]);
    fake.world(|world| {
        assert_eq!(world.begun.len(), TENANTS);
        let first = world.migrations.values_mut().next().unwrap();
        first.parked = Some("a key is disabled".into());
        first.record.phase = Phase::Cleaning;
    });
    worker.turn().await.unwrap();
    let failed = fake.world(|world| world.chunks[&0].items.clone());
    let reasons: Vec<_> = failed.iter().filter(|item| item.state.as_str() == "FAILED").collect();
    assert_eq!(reasons.len(), 1);
    assert!(
        matches!(&reasons[0].state, State::Failed { reason, retry: false } if reason == "a key is disabled")
    );
}

/// Whoever may look at a bulk is not shown what AWS says of accounts and roles.
#[tokio::test]
async fn what_aws_says_is_not_told_of_a_bulk() {
    let fake = begun();
    let mut runner = taken(&fake).await.unwrap();
    fake.world(|world| world.rejects = Some("AccessDeniedException: arn:aws:iam::123456789012"));
    runner.turn().await.unwrap_err();
    fake.world(|world| world.rejects = None);
    // Its next sign of life tells of it.
    runner.turn().await.unwrap();
    let trouble = fake.world(|world| world.head.clone()).unwrap().progress.trouble.unwrap();
    assert!(trouble.starts_with("the store rejected a request"), "{trouble}");
    assert!(!trouble.contains("arn:"), "{trouble}");
}
