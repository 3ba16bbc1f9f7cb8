//! Two replicas change the same tenants and cells on one store that loses replies, does things late, fails and dawdles. Whatever
//! happens: the journal is gapless, one key has one winner, every answer is true, and both replicas come to the same state.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::draft::{Action, CellPatch, Command, Destination, Outcome};
use super::error::Error;
use super::fixtures::stage::{
    Stage, assert_converged, audit, best, cell_id, command, create, named, register, remove, update,
};
use super::fixtures::{Call, Fault, Faulty, key, now};
use crate::domain::{CellState, Change, Mapping, PlacementEvent, Sequence, Timestamp};
use crate::store::memory::MemoryStore;
use crate::store::{Journal, Placements, StoreError};

const SEEDS: u64 = 40;
const CALLERS: usize = 12;
const COMMANDS: usize = 12;
const TENANTS: u32 = 9;

/// What a caller asked and was told. Commands that place are known in the journal by the time that they give for the placement's
/// creation, which no two share.
struct Told {
    mark: Option<Timestamp>,
    answer: Result<Outcome, Error>,
}

fn misfortune(random: &mut impl Rng, call: Call) -> Option<Fault> {
    let millis = |random: &mut _| Duration::from_millis(RngExt::random_range(random, 1..40));
    let error = match random.random_range(0..3) {
        0 => StoreError::Timeout,
        1 => StoreError::Failed,
        _ => StoreError::Throttled,
    };
    let lost = [StoreError::Timeout, StoreError::Failed][random.random_range(0..2)].clone();
    match (random.random_range(0..100), call) {
        (0..8, _) => Some(Fault::Fail(error)),
        (8..16, Call::Commit) => Some(Fault::Lose(lost)),
        (16..24, Call::Commit) => Some(Fault::Late(millis(random))),
        (24..70, _) => Some(Fault::Slow(millis(random))),
        _ => None,
    }
}

/// A command, and its mark where it places.
async fn draw(random: &mut StdRng, store: &MemoryStore, mark: i64) -> (Command, Option<Timestamp>) {
    let name = format!("tenant{}", random.random_range(0..TENANTS));
    let assumed = match random.random_bool(0.5) {
        true => store.mapping(&key(&name)).await.unwrap(),
        false => Mapping::Absent,
    };
    let cell = ["a", "b", "c"][random.random_range(0..3)];
    let destination = match random.random_range(0..8) {
        0..3 => best(),
        3..5 => Destination::Pinned(cell_id(cell)),
        5 => Destination::Imported(cell_id(cell)),
        6 => match random.random_range(0..3) {
            0 => return (create("c"), None),
            1 => return (remove("c"), None),
            _ => {
                let states = [CellState::Active, CellState::Cordoned, CellState::Draining];
                let state = Some(states[random.random_range(0..3)]);
                let patch = CellPatch { state, ..CellPatch::default() };
                return (update(["b", "c"][random.random_range(0..2)], patch), None);
            }
        },
        _ => {
            let event = PlacementEvent::Deleted;
            let assumed = store.mapping(&key(&name)).await.unwrap();
            return (
                command(Action::Vacate { key: key(&name), assumed, epoch: None, event }),
                None,
            );
        }
    };
    let since = Timestamp::from_millis(mark);
    // Some expire at once.
    let expires = random.random_bool(0.2).then(now);
    let action = Action::Place { key: key(&name), assumed, destination, since, expires };
    let place = command(action);
    match random.random_bool(0.3) {
        true => (named(place, &format!("request-{mark}"), "digest"), since),
        false => (place, since),
    }
}

async fn race(seed: u64) {
    let inner = Arc::new(MemoryStore::new());
    for (at, id) in (1..).zip(["a", "b"]) {
        register(&inner, id, at);
    }
    let mut stages = Vec::new();
    for replica in 0..2 {
        let stage = Stage::on(Faulty::on(inner.clone())).await;
        let random = Mutex::new(StdRng::seed_from_u64(seed * 2 + replica));
        stage.store.ask(move |call| misfortune(&mut *random.lock(), call));
        stages.push(Arc::new(stage));
    }
    let told: Arc<Mutex<Vec<Told>>> = Arc::default();
    let callers = (0..CALLERS).map(|who| {
        let (stages, told, inner) = (stages.clone(), told.clone(), inner.clone());
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed * 1000 + who as u64);
            for n in 0..COMMANDS {
                let mark = (who * COMMANDS + n) as i64;
                let (command, mark) = draw(&mut random, &inner, mark).await;
                // A request with an id may come twice, to different replicas.
                let twice = command.request.is_some() && random.random_bool(0.5);
                let first = stages[who % 2].submit(command.clone());
                let answers = match twice {
                    false => vec![first.await],
                    true => {
                        let (first, second) =
                            futures::join!(first, stages[(who + 1) % 2].submit(command));
                        vec![first, second]
                    }
                };
                told.lock().extend(answers.into_iter().map(|answer| Told { mark, answer }));
            }
        })
    });
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    for stage in &stages {
        stage.store.heal();
    }
    // What is done late has been done by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let truth = audit(&inner).await;
    for stage in &stages {
        assert_converged(stage, &truth).await;
    }
    let told = std::mem::take(&mut *told.lock());
    check_answers(&inner, &told).await;
    for stage in stages {
        Arc::into_inner(stage).unwrap().end().await;
    }
}

async fn check_answers(store: &MemoryStore, told: &[Told]) {
    let entries = store.entries(Sequence::START, usize::MAX).await.unwrap();
    let changes: Vec<&Change> = entries.iter().flat_map(|entry| &entry.changes).collect();
    let mut placed = HashMap::new();
    for change in &changes {
        if let Change::Placed { placement, .. } = change {
            *placed.entry(placement.created).or_insert(0) += 1;
        }
    }
    assert!(placed.values().all(|times| *times == 1), "a command was done twice");
    let mut vacated = Vec::new();
    for Told { mark, answer } in told {
        let by_this = mark.is_some() && placed.contains_key(mark);
        match answer {
            Ok(Outcome::Placed { placement, created, .. }) => {
                let change = changes.iter().find(|change| match change {
                    Change::Placed { placement: there, .. } => *there == **placement,
                    _ => false,
                });
                assert!(change.is_some(), "an answer that was never true: {placement:?}");
                if *created {
                    assert_eq!(placement.created, *mark, "somebody else's placement");
                }
            }
            Ok(Outcome::Vacated(placement)) => {
                assert!(changes.contains(&&Change::Vacated { placement: placement.clone() }));
                assert!(!vacated.contains(&placement), "taken away twice");
                vacated.push(placement);
            }
            Ok(Outcome::Moved(placement)) => panic!("nobody moves: {placement:?}"),
            Ok(Outcome::Cell(cell)) => {
                let revision = |change: &&&Change| match change {
                    Change::CellCreated { cell: there } | Change::CellUpdated { cell: there } => {
                        there.revision == cell.revision
                    }
                    _ => false,
                };
                assert!(changes.iter().any(|change| revision(&change)));
            }
            Ok(Outcome::CellDeleted | Outcome::Cluster(_)) | Err(Error::OutcomeUnknown) => {}
            // Nothing was changed, unless by the same request at the other replica.
            Err(error) => {
                let elsewhere = told.iter().filter(|told| told.mark == *mark).count() > 1;
                assert!(!by_this || elsewhere, "done, and said not to be: {error:?}");
            }
        }
    }
    let done = told.iter().filter(|told| told.answer.is_ok()).count();
    assert!(done * 3 > told.len(), "only {done} of {} were done", told.len());
}

#[tokio::test(start_paused = true)]
async fn two_replicas_and_a_store_that_fails() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        race(seed).await;
    }
}
