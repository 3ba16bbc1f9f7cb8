//! A write was done, and its reply lost: whoever asked gets their own success, once, and the tables hold it once.
//!
//! DynamoDB knows a repeated transaction by its token, for ten minutes. So that this is not all that stands between a caller and a
//! false conflict, each test also runs with the tokens taken out of the requests; then only reading back can tell.

use std::collections::{BTreeMap, BTreeSet};

use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::proxy::{Fault, Laid, Proxy, Rule};
use crate::world::{DEFAULT_CELL, PATIENT, Replica, WRITE, World, refused};

/// Every kind of change, under lost replies: once, and several times in a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_made_a_change_is_told_so() {
    let (world, replica) = World::with_cells("lost", &PATIENT).await;
    for (tokens, losses) in [("kept", 1), ("forgotten", 1), ("kept", 4), ("forgotten", 4)] {
        world.proxy.forget_tokens(tokens == "forgotten");
        let name = |what: &str| format!("{what}-{tokens}-{losses}");
        let lose = || world.proxy.lay(Rule::on(WRITE, Fault::LoseReply).times(losses));

        let loss = lose();
        let assigned = replica.resolve_surely(&name("assign")).await.unwrap();
        assigned.is_assigned();
        assert_eq!(loss.fired(), losses);

        let loss = lose();
        let pinned = replica.pin(&name("pin"), "cell-b").await.unwrap();
        assert_eq!((pinned.cell_id.as_str(), pinned.epoch), ("cell-b", 1));
        assert_eq!(loss.fired(), losses);

        let loss = lose();
        assert_eq!(import(&replica, &name("import")).await, (1, 0, 0));
        assert_eq!(loss.fired(), losses);

        let loss = lose();
        let cell = replica.create_cell(&name("cell")).await.unwrap();
        assert_eq!((cell.cell_id, cell.placement_count), (name("cell"), 0));
        assert_eq!(loss.fired(), losses);

        let ledger = world.tables.ledger().await;
        ledger.placed_once(&name("assign"), assigned.cell());
        ledger.placed_once(&name("pin"), "cell-b");
        ledger.placed_once(&name("import"), "cell-a");
        assert_eq!(ledger.changes_of(&name("cell")), [("cell_created", 0)]);
        assert_eq!(replica.cells().await.unwrap(), ledger.counts);

        let loss = lose();
        let removed = replica.delete(&name("assign")).await.unwrap();
        assert_eq!((removed.cell_id.as_str(), removed.epoch), (assigned.cell(), 1));
        assert_eq!(loss.fired(), losses);

        let loss = lose();
        replica.delete_cell(&name("cell")).await.unwrap();
        assert_eq!(loss.fired(), losses);

        let ledger = world.tables.ledger().await;
        assert_eq!(ledger.changes_of(&name("assign")), [("placed", 1), ("vacated", 1)]);
        assert_eq!(ledger.mappings.get(&name("assign")), None);
        let changes = [("cell_created", 0), ("cell_deleted", 0)];
        assert_eq!(ledger.changes_of(&name("cell")), changes);
        assert_eq!(replica.cells().await.unwrap(), ledger.counts);
    }
}

async fn import(replica: &Replica, key: &str) -> (u64, u64, u64) {
    let (partition_key, cell_id) = (key.to_owned(), "cell-a".to_owned());
    let placement = v1::PlacementImport { partition_key, cell_id, ..Default::default() };
    let portion = v1::ImportPlacementsRequest { placements: vec![placement], ..Default::default() };
    let portions = futures::stream::iter([portion]);
    let answer = replica.directory.clone().import_placements(portions).await.unwrap().into_inner();
    (answer.created, answer.unchanged, answer.failed)
}

/// A request id is recorded with its change, so a lost reply does not use it up either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_survives_a_lost_reply() {
    let (world, replica) = World::with_cells("lost-id", &PATIENT).await;
    for tokens_forgotten in [false, true] {
        world.proxy.forget_tokens(tokens_forgotten);
        let key = format!("tenant-{tokens_forgotten}");
        let request = v1::PinPlacementRequest {
            partition_key: key.clone(),
            cell_id: "cell-a".to_owned(),
            request_id: format!("request-{tokens_forgotten}"),
            ..Default::default()
        };
        let loss = world.proxy.lay(Rule::on(WRITE, Fault::LoseReply).times(2));
        let mut answers = Vec::new();
        for _ in 0..3 {
            let answer = replica.directory.clone().pin_placement(request.clone()).await.unwrap();
            answers.push(answer.into_inner().placement.unwrap());
        }
        assert_eq!(loss.fired(), 2);
        assert_eq!((answers[0].cell_id.as_str(), answers[0].epoch), ("cell-a", 1));
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        world.tables.ledger().await.placed_once(&key, "cell-a");
    }
}

/// Makes the first write meet with a fault, and keeps its repeats away from the table until [`Held::go_on`].
struct Held {
    fault: Laid,
    throttle: Laid,
}

impl Held {
    async fn lay(proxy: &Proxy, replica: &Replica, fault: Fault) -> Self {
        // Reads the journal to its end, so that the next write is on top of it and is done.
        replica.cells().await.unwrap();
        let fault = proxy.lay(Rule::on(WRITE, fault).times(1));
        let throttle = proxy.lay(Rule::on(WRITE, Fault::THROTTLING));
        Self { fault, throttle }
    }

    /// The fault is over, and a repeat was kept away.
    async fn until_in_doubt(&self) {
        self.fault.has_fired(1).await;
        self.throttle.has_fired(1).await;
    }

    fn go_on(self) {
        self.throttle.lift();
    }
}

/// The reply is lost, and before the writer can ask, another replica moves the journal's head and undoes what was done: still the
/// writer's own success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_success_stays_one_though_the_head_moved_and_all_was_undone() {
    let (world, replica) = World::with_cells("lost-moved", &PATIENT).await;
    let other = world.other_replica().await;
    for tokens_forgotten in [true, false] {
        world.proxy.forget_tokens(tokens_forgotten);
        let [assign, pin, cell] =
            ["assign", "pin", "cell"].map(|what| format!("{what}-{tokens_forgotten}"));

        let held = Held::lay(&world.proxy, &replica, Fault::LoseReply).await;
        let (assigned, ()) = tokio::join!(replica.resolve_surely(&assign), async {
            held.until_in_doubt().await;
            // To the others it is there, and they may do with it what they like.
            let seen = other.look_up(&assign).await.unwrap();
            assert_eq!(seen.placement.epoch, 1);
            assert_eq!(other.delete(&assign).await.unwrap().epoch, 1);
            held.go_on();
        });
        assigned.unwrap().is_assigned();

        let held = Held::lay(&world.proxy, &replica, Fault::LoseReply).await;
        let (pinned, ()) = tokio::join!(replica.pin(&pin, "cell-a"), async {
            held.until_in_doubt().await;
            other.delete(&pin).await.unwrap();
            assert_eq!(other.pin(&pin, "cell-b").await.unwrap().epoch, 2);
            held.go_on();
        });
        let pinned = pinned.unwrap();
        assert_eq!((pinned.cell_id.as_str(), pinned.epoch), ("cell-a", 1));

        let held = Held::lay(&world.proxy, &replica, Fault::LoseReply).await;
        let (removed, ()) = tokio::join!(replica.delete(&pin), async {
            held.until_in_doubt().await;
            assert_eq!(other.pin(&pin, "cell-a").await.unwrap().epoch, 3);
            held.go_on();
        });
        let removed = removed.unwrap();
        assert_eq!((removed.cell_id.as_str(), removed.epoch), ("cell-b", 2));

        let held = Held::lay(&world.proxy, &replica, Fault::LoseReply).await;
        let (created, ()) = tokio::join!(replica.create_cell(&cell), async {
            held.until_in_doubt().await;
            other.delete_cell(&cell).await.unwrap();
            held.go_on();
        });
        assert_eq!(created.unwrap().cell_id, cell);

        let ledger = world.tables.ledger().await;
        assert_eq!(ledger.changes_of(&assign), [("placed", 1), ("vacated", 1)]);
        assert_eq!(
            ledger.changes_of(&pin),
            [("placed", 1), ("vacated", 1), ("placed", 2), ("vacated", 2), ("placed", 3)]
        );
        let changes = [("cell_created", 0), ("cell_deleted", 0)];
        assert_eq!(ledger.changes_of(&cell), changes);
        assert_eq!(replica.cells().await.unwrap(), ledger.counts);
        // That call read the journal to its end: what came after its own change holds in its memory too.
        replica.look_up(&pin).await.unwrap().is(DecisionSource::Memory, 3);
        refused(replica.look_up(&assign).await, Code::NotFound, "PLACEMENT_NOT_FOUND", false);
    }
}

/// The request was lost, not the reply, and meanwhile another replica made the same change: the writer must not take the other's entry
/// for its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_somebody_elses_is_not_taken_for_ones_own() {
    let (world, replica) = World::with_cells("lost-request", &PATIENT).await;
    let other = world.other_replica().await;

    let held = Held::lay(&world.proxy, &replica, Fault::LoseRequest).await;
    let (resolved, cell) = tokio::join!(replica.resolve_surely("assign"), async {
        held.until_in_doubt().await;
        let resolved = other.resolve_surely("assign").await.unwrap();
        resolved.is_assigned();
        held.go_on();
        resolved.placement.cell_id
    });
    let resolved = resolved.unwrap();
    assert_eq!(resolved.is(DecisionSource::Table, 1).cell(), cell);

    let held = Held::lay(&world.proxy, &replica, Fault::LoseRequest).await;
    let (pinned, ()) = tokio::join!(replica.pin("pin", "cell-a"), async {
        held.until_in_doubt().await;
        other.pin("pin", "cell-b").await.unwrap();
        held.go_on();
    });
    refused(pinned, Code::AlreadyExists, "PLACEMENT_EXISTS", false);

    let held = Held::lay(&world.proxy, &replica, Fault::LoseRequest).await;
    let (removed, ()) = tokio::join!(replica.delete("pin"), async {
        held.until_in_doubt().await;
        other.delete("pin").await.unwrap();
        held.go_on();
    });
    refused(removed, Code::NotFound, "PLACEMENT_NOT_FOUND", false);

    let held = Held::lay(&world.proxy, &replica, Fault::LoseRequest).await;
    let (created, ()) = tokio::join!(replica.create_cell("cell-c"), async {
        held.until_in_doubt().await;
        other.create_cell("cell-c").await.unwrap();
        held.go_on();
    });
    refused(created, Code::AlreadyExists, "CELL_EXISTS", false);

    // And where the other did something else, the change is made after it.
    let held = Held::lay(&world.proxy, &replica, Fault::LoseRequest).await;
    let (assigned, ()) = tokio::join!(replica.resolve_surely("late"), async {
        held.until_in_doubt().await;
        other.pin("elsewhere", "cell-b").await.unwrap();
        held.go_on();
    });
    let assigned = assigned.unwrap();
    assigned.is_assigned();

    let ledger = world.tables.ledger().await;
    ledger.placed_once("assign", &cell);
    ledger.placed_once("late", assigned.cell());
    assert_eq!(ledger.changes_of("pin"), [("placed", 1), ("vacated", 1)]);
    assert_eq!(ledger.changes_of("cell-c"), [("cell_created", 0)]);
    assert_eq!(replica.cells().await.unwrap(), ledger.counts);
    assert_eq!(other.cells().await.unwrap(), ledger.counts);
}

/// A write that is thought lost arrives after all, when its repeat has long been done and undone: it changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_arrives_late_changes_nothing() {
    let flags = ["--lookup-budget=30s", "--commit-timeout=300ms", "--commit-budget=25s"];
    let (world, replica) = World::with_cells("late", &flags).await;
    for tokens_forgotten in [true, false] {
        world.proxy.forget_tokens(tokens_forgotten);
        let key = format!("tenant-{tokens_forgotten}");
        let gate = CancellationToken::new();
        let late = world.proxy.lay(Rule::on(WRITE, Fault::Late(gate.clone())).times(1));
        replica.resolve_surely(&key).await.unwrap().is_assigned();
        assert_eq!(late.fired(), 1);
        replica.delete(&key).await.unwrap();
        let before = world.tables.ledger().await;
        assert_eq!(before.changes_of(&key), [("placed", 1), ("vacated", 1)]);

        gate.cancel();
        late.has_landed(1).await;
        assert_eq!(world.tables.ledger().await, before);
        refused(replica.look_up(&key).await, Code::NotFound, "PLACEMENT_NOT_FOUND", false);
    }
}

/// Callers at a time.
const CALLERS: usize = 64;
/// Keys that all callers ask for.
const SHARED_KEYS: usize = 8;
/// Keys that only one caller asks for, one after the other.
const OWN_KEYS: usize = 8;

/// 64 callers on two replicas while one reply in five is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_assigners_agree_whatever_is_lost() {
    for tokens_forgotten in [true, false] {
        let (world, replica) = World::with_cells("crowd", &PATIENT).await;
        let replicas = [replica, world.replica(&PATIENT).await.ready().await];
        world.proxy.forget_tokens(tokens_forgotten);
        let loss = world.proxy.lay(Rule::on(WRITE, Fault::LoseReply).every(5));
        let callers = (0..CALLERS).map(|caller| ask_for_many(caller, &replicas));
        let answers: Vec<_> = join_all(callers).await.into_iter().flatten().collect();
        assert!(loss.fired() >= 4, "{}", loss.fired());
        world.proxy.clear();

        let ledger = world.tables.ledger().await;
        assert_eq!(ledger.mappings.len(), SHARED_KEYS + CALLERS * OWN_KEYS);
        let mut makers: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
        for (key, answer, at) in &answers {
            ledger.placed_once(key, answer.cell());
            assert_ne!(answer.cell(), DEFAULT_CELL);
            match answer.decision.source() {
                DecisionSource::Assigned => _ = makers.entry(key).or_default().insert(*at),
                DecisionSource::Table | DecisionSource::Memory => {}
                _ => panic!("{answer:?}"),
            }
            assert!(answer.decision.authoritative && answer.placement.epoch == 1, "{answer:?}");
        }
        // Each key was placed by just one of the replicas, which knows that it was.
        for key in ledger.mappings.keys() {
            let makers = makers.get(key.as_str()).map_or(0, BTreeSet::len);
            assert_eq!(makers, 1, "{key}");
        }
        for replica in &replicas {
            assert_eq!(replica.cells().await.unwrap(), ledger.counts);
        }
    }
}

async fn ask_for_many(
    caller: usize,
    replicas: &[Replica; 2],
) -> Vec<(String, crate::world::Resolved, usize)> {
    let shared = (0..SHARED_KEYS).map(|key| format!("shared-{}", (key + caller) % SHARED_KEYS));
    let own = (0..OWN_KEYS).map(|key| format!("own-{caller}-{key}"));
    let mut answers = Vec::new();
    for (turn, key) in shared.chain(own).enumerate() {
        let at = (caller + turn) % replicas.len();
        let answer = replicas[at].resolve_surely(&key).await.unwrap();
        answers.push((key, answer, at));
    }
    answers
}
