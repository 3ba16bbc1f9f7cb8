//! Group commit: what is grouped, what becomes of lost replies and lost races, and who is answered what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;

use super::draft::{Action, CellPatch, Outcome};
use super::error::{Error, Refused};
use super::fixtures::stage::{
    COMMIT_BUDGET, Stage, assert_converged, assign, audit, cell_id, command, create, import, named,
    pin, placed_in, register, remove, update,
};
use super::fixtures::{Call, Fault, Faulty, commit_now, entry, now, placement};
use crate::domain::{
    CellState, Change, Mapping, Placement, PlacementEvent, RequestId, RequestRecord, StoredOutcome,
};
use crate::store::memory::MemoryStore;
use crate::store::{Commit, CommitOutcome, Expected, Journal, StoreError, Write};

/// Somebody else's entry: places a tenant.
fn rival(store: &MemoryStore, name: &str, cell: &str) {
    let head = store.head().now_or_never().unwrap().unwrap().sequence.get();
    let placement = placement(name, cell, 1);
    let change = Change::Placed { placement: placement.clone(), replaced: None };
    let writes = vec![
        Write::Place { placement, expect: Expected::Absent },
        Write::AddToCount { cell: cell_id(cell), delta: 1 },
    ];
    let commit = Commit { entry: entry(head + 1, vec![change]), writes };
    assert_eq!(commit_now(store, &commit), CommitOutcome::Committed);
}

fn failures(error: StoreError, times: usize) -> Vec<Option<Fault>> {
    vec![Some(Fault::Fail(error)); times]
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_is_committed_together() {
    let stage = Stage::new().await;
    let (gate, before, after) = Fault::gate();
    stage.store.next(Call::Commit, [Some(gate)]);
    let first = stage.begin(assign("first"));
    tokio::task::yield_now().await;
    let waiting: Vec<_> = (0..64).map(|n| stage.begin(assign(&format!("k{n}")))).collect();
    tokio::task::yield_now().await;
    before.add_permits(1);
    after.add_permits(1);
    assert!(placed_in(&first.await.unwrap().unwrap()).1);
    for answer in join_all(waiting).await {
        assert!(placed_in(&answer.unwrap().unwrap()).1);
    }
    // Two entries for the cells, one for who came first, one for all who came meanwhile.
    assert_eq!(stage.head().await, 4);
    audit(&stage.store.inner).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn more_than_an_entry_holds_takes_as_many_entries_as_it_must() {
    let stage = Stage::new().await;
    let many = (0..1000).map(|n| stage.begin(assign(&format!("k{n}"))));
    for answer in join_all(many.collect::<Vec<_>>()).await {
        assert!(placed_in(&answer.unwrap().unwrap()).1);
    }
    let entries = stage.head().await - 2;
    assert!((11..=14).contains(&entries), "{entries} entries");
    let truth = audit(&stage.store.inner).await;
    assert_converged(&stage, &truth).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_success_once() {
    for error in [StoreError::Timeout, StoreError::Failed] {
        for losses in 1..4 {
            let stage = Stage::new().await;
            let lost = vec![Some(Fault::Lose(error.clone())); losses.min(1)];
            stage.store.next(Call::Commit, lost);
            // The repeats fail without an answer, too, and so does the look into the journal.
            stage.store.next(Call::Commit, failures(error.clone(), losses - 1));
            stage.store.next(Call::Entries, failures(error.clone(), losses - 1));
            let outcome = stage.submit(assign("k")).await.unwrap();
            assert!(placed_in(&outcome).1, "it is this command that placed it");
            assert_eq!(stage.head().await, 3, "one entry");
            let truth = audit(&stage.store.inner).await;
            assert_converged(&stage, &truth).await;
            assert!(stage.replica.memory().get("k").is_some(), "and it is held at once");
            stage.end().await;
        }
    }
}

/// The attempt whose reply is lost was not done, and a rival takes its place in the journal.
#[tokio::test(start_paused = true)]
async fn a_lost_attempt_is_not_taken_for_a_rivals_entry() {
    for rivals_key in ["k", "other"] {
        let stage = Stage::new().await;
        let rivals = Fault::after(move |store| rival(store, rivals_key, "a"));
        stage.store.next(Call::Commit, [Some(Fault::Fail(StoreError::Timeout)), Some(rivals)]);
        let outcome = stage.submit(pin("k", "a")).await.unwrap();
        assert_eq!(placed_in(&outcome).1, rivals_key == "other");
        assert_eq!(stage.head().await, if rivals_key == "other" { 4 } else { 3 });
        audit(&stage.store.inner).await;
        stage.end().await;
    }
}

/// An entry whose fate the journal does not tell is unknown, not undone.
#[tokio::test(start_paused = true)]
async fn a_place_in_the_journal_that_cannot_be_read_leaves_the_outcome_unknown() {
    let stage = Stage::new().await;
    stage.store.next(Call::Commit, [Some(Fault::Lose(StoreError::Timeout))]);
    stage.store.next(Call::Entries, failures(StoreError::Unreadable { detail: "x".into() }, 1));
    assert_eq!(stage.submit(assign("k")).await, Err(Error::OutcomeUnknown));
    assert!(stage.mapping("k").await.placement().is_some());
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_rival_who_comes_first_is_read_and_all_is_decided_anew() {
    let stage = Stage::new().await;
    stage.store.next(Call::Commit, [Some(Fault::after(|store| rival(store, "k", "b")))]);
    let both = [stage.begin(pin("k", "a")), stage.begin(pin("other", "a"))];
    let [lost, won] = join_all(both).await.try_into().unwrap();
    let refused = lost.unwrap().unwrap_err();
    let Error::Refused(Refused::PlacementExists { existing }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(existing.cell, cell_id("b"));
    assert!(placed_in(&won.unwrap().unwrap()).1);
    // The rival's answer is the loser's, where the loser asked for the best cell.
    let answer = stage.submit(assign("k")).await.unwrap();
    assert_eq!((placed_in(&answer).0.cell.clone(), placed_in(&answer).1), (cell_id("b"), false));
    let truth = audit(&stage.store.inner).await;
    assert_converged(&stage, &truth).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_store_is_told_from_an_unknown_outcome() {
    for (error, unknown) in [
        (StoreError::Throttled, false),
        (StoreError::Unreachable, false),
        (StoreError::Timeout, true),
        (StoreError::Failed, true),
        (StoreError::Rejected { detail: "no".into() }, false),
    ] {
        let stage = Stage::new().await;
        stage.store.die(error.clone());
        let began = tokio::time::Instant::now();
        let answer = stage.submit(assign("k")).await.unwrap_err();
        let expected = match unknown {
            true => Error::OutcomeUnknown,
            false => Error::Store(error.clone()),
        };
        assert_eq!(answer, expected);
        let took = began.elapsed();
        match error.transient() {
            true => assert!(took <= COMMIT_BUDGET && took > COMMIT_BUDGET / 2, "{took:?}"),
            false => assert_eq!(stage.store.count(Call::Commit), 1),
        }
        stage.store.heal();
        assert!(stage.submit(assign("k")).await.is_ok(), "all is well again");
        audit(&stage.store.inner).await;
        stage.end().await;
    }
}

/// One ambiguous attempt is enough, whatever the later ones say.
#[tokio::test(start_paused = true)]
async fn doubt_does_not_go_away() {
    let stage = Stage::new().await;
    stage.store.next(Call::Commit, failures(StoreError::Timeout, 1));
    stage.store.always(Call::Commit, Fault::Fail(StoreError::Throttled));
    assert_eq!(stage.submit(assign("k")).await, Err(Error::OutcomeUnknown));
    stage.store.next(Call::Commit, failures(StoreError::Timeout, 1));
    stage.store.always(Call::Commit, Fault::Fail(StoreError::Rejected { detail: "no".into() }));
    assert_eq!(stage.submit(assign("k")).await, Err(Error::OutcomeUnknown));
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_holds_nobody_longer_than_the_budget() {
    let stage = Stage::new().await;
    stage.store.next(Call::Commit, [Some(Fault::Hang)]);
    let began = tokio::time::Instant::now();
    assert_eq!(stage.submit(assign("k")).await, Err(Error::OutcomeUnknown));
    assert_eq!(began.elapsed(), COMMIT_BUDGET);
    assert!(stage.submit(assign("k")).await.is_ok());
    stage.end().await;
}

/// A poll of the journal that takes its time does not keep a commit from being answered.
#[tokio::test(start_paused = true)]
async fn a_slow_poll_holds_up_no_commit() {
    let stage = Stage::new().await;
    for call in [Call::Head, Call::Entries] {
        rival(&stage.store.inner, &format!("{call:?}"), "a");
        stage.store.next(call, [Some(Fault::Hang)]);
        let replica = stage.replica.clone();
        let poll = tokio::spawn(async move { replica.catch_up().await });
        tokio::task::yield_now().await;
        let began = tokio::time::Instant::now();
        assert!(stage.submit(assign(&format!("k-{call:?}"))).await.is_ok());
        assert_eq!(began.elapsed(), Duration::ZERO);
        poll.abort();
    }
    stage.end().await;
}

/// A cell that another replica made is seen before anybody is told that it does not exist.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_checked_against_the_registry_as_it_is() {
    let stage = Stage::new().await;
    register(&stage.store.inner, "new", 3);
    assert!(placed_in(&stage.submit(pin("k", "new")).await.unwrap()).1);
    let taken = stage.submit(create("new")).await.unwrap_err();
    assert_eq!(taken, Refused::CellExists { cell: cell_id("new") }.into());

    let other = Stage::on(stage.store.clone()).await;
    other.submit(update("b", state(CellState::Cordoned))).await.unwrap();
    other.submit(update("b", state(CellState::Active))).await.unwrap();
    // This replica still takes it for the first version.
    let etag = Some("r5".into());
    let patch = state(CellState::Draining);
    let fresh = command(Action::UpdateCell { cell: cell_id("b"), patch, etag });
    assert!(stage.submit(fresh).await.is_err(), "r6 by now");
    let missing = stage.submit(pin("l", "nowhere")).await.unwrap_err();
    assert_eq!(missing, Refused::CellNotFound { cell: cell_id("nowhere") }.into());
    // Where that cannot be checked, nobody is refused.
    stage.store.next(Call::Head, failures(StoreError::Timeout, 1));
    let unchecked = stage.submit(pin("l", "nowhere")).await.unwrap_err();
    assert_eq!(unchecked, Error::Store(StoreError::Timeout));
    stage.end().await;
    other.end().await;
}

fn state(state: CellState) -> CellPatch {
    CellPatch { state: Some(state), ..CellPatch::default() }
}

/// Nobody is refused for the sake of a change that may come to nothing.
#[tokio::test(start_paused = true)]
async fn a_refusal_rests_on_nothing_that_is_only_drafted() {
    let stage = Stage::new().await;
    let (gate, before, after) = Fault::gate();
    stage.store.next(Call::Commit, [Some(gate)]);
    let first = stage.begin(assign("first"));
    tokio::task::yield_now().await;
    // Drafted together: the removal is never done, so the cell is there.
    let removes: fn(&Commit) -> bool =
        |commit| commit.writes.iter().any(|write| matches!(write, Write::RemoveCell(_)));
    let no = StoreError::Rejected { detail: "not this one".into() };
    stage.store.always(Call::Commit, Fault::FailIf(Arc::new(removes), no.clone()));
    let removal = stage.begin(remove("b"));
    let pinned = stage.begin(pin("k", "b"));
    tokio::task::yield_now().await;
    before.add_permits(1);
    after.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(removal.await.unwrap(), Err(Error::Store(no)));
    assert!(placed_in(&pinned.await.unwrap().unwrap()).1);
    audit(&stage.store.inner).await;
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_refused_command_does_not_fail_those_beside_it() {
    let stage = Stage::new().await;
    rival(&stage.store.inner, "taken", "b");
    stage.replica.catch_up().await.unwrap();
    let request = RequestRecord {
        id: RequestId::new("used").unwrap(),
        method: "Method".into(),
        digest: "d".into(),
        outcome: StoredOutcome::CellDeleted,
        forget_after: now().plus(Duration::from_secs(60)),
    };
    let change = Change::CellUpdated { cell: super::fixtures::cell("a", 4) };
    let cell = super::fixtures::cell("a", 4);
    let writes = vec![Write::PutRequest(request), Write::PutCell { cell, set_count: false }];
    let commit = Commit { entry: entry(4, vec![change]), writes };
    assert_eq!(commit_now(&stage.store.inner, &commit), CommitOutcome::Committed);
    stage.replica.catch_up().await.unwrap();

    let (gate, before, after) = Fault::gate();
    stage.store.next(Call::Commit, [Some(gate)]);
    let first = stage.begin(assign("first"));
    tokio::task::yield_now().await;
    let commits = stage.store.count(Call::Commit);
    let waiting = [
        stage.begin(assign("x")),
        stage.begin(pin("taken", "a")),
        stage.begin(assign("taken")),
        stage.begin(named(assign("y"), "used", "d")),
        stage.begin(named(assign("z"), "used", "another")),
        stage.begin(assign("w")),
    ];
    tokio::task::yield_now().await;
    before.add_permits(1);
    after.add_permits(1);
    first.await.unwrap().unwrap();
    let [x, taken, there, repeat, reused, w] = join_all(waiting).await.try_into().unwrap();
    assert!(placed_in(&x.unwrap().unwrap()).1);
    assert!(placed_in(&w.unwrap().unwrap()).1);
    let existing = Box::new(placement("taken", "b", 1));
    assert_eq!(taken.unwrap(), Err(Refused::PlacementExists { existing }.into()));
    assert_eq!(placed_in(&there.unwrap().unwrap()).0.cell, cell_id("b"));
    assert_eq!(repeat.unwrap(), Ok(Outcome::CellDeleted));
    assert_eq!(reused.unwrap(), Err(Refused::RequestIdReused.into()));
    for absent in ["y", "z"] {
        assert_eq!(stage.mapping(absent).await, Mapping::Absent);
    }
    assert!(stage.store.count(Call::Commit) - commits <= 4);
    audit(&stage.store.inner).await;
    stage.end().await;
}

/// A tenant whose record cannot be read, or whose change the store will not have, harms nobody else.
#[tokio::test(start_paused = true)]
async fn one_command_that_the_store_turns_down_does_not_fail_those_beside_it() {
    for error in [
        StoreError::Unreadable { detail: "the table, the attribute".into() },
        StoreError::Rejected { detail: "too large".into() },
    ] {
        let stage = Stage::new().await;
        let bad: fn(&Commit) -> bool = |commit| {
            let key = |change: &Change| change.key().is_some_and(|k| k.as_str().contains("bad"));
            commit.entry.changes.iter().any(key)
        };
        stage.store.always(Call::Commit, Fault::FailIf(Arc::new(bad), error.clone()));
        let names: Vec<_> = (0..150)
            .map(|n| if n == 17 || n == 40 { format!("bad{n}") } else { format!("k{n}") })
            .collect();
        let answers = join_all(names.iter().map(|name| stage.begin(assign(name)))).await;
        for (name, answer) in names.iter().zip(answers) {
            match answer.unwrap() {
                Ok(outcome) => assert!(placed_in(&outcome).1 && name.starts_with('k')),
                Err(answer) => {
                    assert!(name.starts_with("bad"), "{name}");
                    assert_eq!(answer, Error::Store(error.clone()));
                }
            }
        }
        let commits = stage.store.count(Call::Commit);
        assert!(commits < 40, "{commits} attempts");
        audit(&stage.store.inner).await;

        // A store that turns down everything is not asked for each.
        stage.store.die(error.clone());
        let commits = stage.store.count(Call::Commit);
        let answers = join_all((0..150).map(|n| stage.begin(assign(&format!("l{n}"))))).await;
        assert!(answers.into_iter().all(|a| a.unwrap() == Err(Error::Store(error.clone()))));
        let commits = stage.store.count(Call::Commit) - commits;
        assert!(commits < 40, "{commits} attempts");
        stage.end().await;
    }
}

/// Many who want the same tenant, and one who has nothing to do with it.
#[tokio::test(start_paused = true)]
async fn a_crowd_on_one_key_starves_nobody() {
    let stage = Stage::new().await;
    rival(&stage.store.inner, "hot", "b");
    stage.replica.catch_up().await.unwrap();
    let crowd: Vec<_> = (0..200).map(|_| stage.begin(assign("hot"))).collect();
    let bystander = stage.begin(assign("cold"));
    for answer in join_all(crowd).await {
        let outcome = answer.unwrap().unwrap();
        assert_eq!(placed_in(&outcome), (&placement("hot", "b", 1), false));
    }
    assert!(placed_in(&bystander.await.unwrap().unwrap()).1);
    let commits = stage.store.count(Call::Commit);
    assert!(commits <= 4, "{commits} commits: one tells all what the table says");
    stage.end().await;
}

/// Commands that assume wrongly keep coming, as from an import of what is there already.
#[tokio::test(start_paused = true)]
async fn a_stream_of_wrong_assumptions_starves_nobody() {
    let stage = Stage::new().await;
    for n in 0..400 {
        rival(&stage.store.inner, &format!("old{n}"), "b");
    }
    stage.replica.catch_up().await.unwrap();
    stage.store.always(Call::Commit, Fault::Slow(Duration::from_millis(5)));
    let done = Arc::new(AtomicBool::new(false));
    let importing = {
        let (changes, done) = (stage.changes.clone(), done.clone());
        tokio::spawn(async move {
            let mut waiting = Vec::new();
            for n in 0..400 {
                let changes = changes.clone();
                let old = async move { changes.submit(import(&format!("old{n}"), "b")).await };
                waiting.push(tokio::spawn(old));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(!done.load(Ordering::SeqCst) || waiting.len() == 400);
            join_all(waiting).await
        })
    };
    for n in 0..20 {
        let began = tokio::time::Instant::now();
        assert!(placed_in(&stage.submit(assign(&format!("k{n}"))).await.unwrap()).1);
        let took = began.elapsed();
        assert!(took <= Duration::from_millis(50), "{took:?}");
    }
    for answer in importing.await.unwrap() {
        assert!(!placed_in(&answer.unwrap().unwrap()).1);
    }
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_answers_all_who_wait_and_takes_no_more() {
    let stage = Stage::new().await;
    let waiting: Vec<_> = (0..500).map(|n| stage.begin(assign(&format!("k{n}")))).collect();
    tokio::task::yield_now().await;
    stage.stop.cancel();
    for answer in join_all(waiting).await {
        assert!(placed_in(&answer.unwrap().unwrap()).1);
    }
    let (changes, store) = (stage.changes.clone(), stage.store.clone());
    stage.end().await;
    assert_eq!(changes.submit(assign("late")).await, Err(Error::NotReady));
    audit(&store.inner).await;
}

/// Callers who never stop asking, and more of them than an entry holds, do not put off the end.
#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_pause_in_the_load() {
    let stage = Stage::new().await;
    stage.store.always(Call::Commit, Fault::Slow(Duration::from_millis(1)));
    let asking: Vec<_> = (0..300)
        .map(|who| {
            let changes = stage.changes.clone();
            tokio::spawn(async move {
                for n in 0.. {
                    match changes.submit(assign(&format!("{who}-{n}"))).await {
                        Ok(_) => {}
                        Err(error) => return (n, error),
                    }
                }
                unreachable!()
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stage.end().await;
    for who in join_all(asking).await {
        let (done, error) = who.unwrap();
        assert!(done > 3);
        assert_eq!(error, Error::NotReady);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_said_to_be_full() {
    let stage = Stage::new().await;
    let (gate, before, after) = Fault::gate();
    stage.store.next(Call::Commit, [Some(gate)]);
    let first = stage.begin(assign("first"));
    tokio::task::yield_now().await;
    let waiting: Vec<_> = (0..4196).map(|n| stage.begin(assign(&format!("k{n}")))).collect();
    tokio::task::yield_now().await;
    before.add_permits(1);
    after.add_permits(1);
    first.await.unwrap().unwrap();
    let (mut done, mut turned_away) = (0, 0);
    for answer in join_all(waiting).await {
        match answer.unwrap() {
            Ok(_) => done += 1,
            Err(error) => {
                assert_eq!(error, Error::Overloaded);
                turned_away += 1;
            }
        }
    }
    assert_eq!((done, turned_away), (4096, 100));
    assert_eq!(audit(&stage.store.inner).await.mappings.len(), 4097);
    stage.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_has_gone_is_not_served() {
    let stage = Stage::new().await;
    let (gate, before, after) = Fault::gate();
    stage.store.next(Call::Commit, [Some(gate)]);
    let first = stage.begin(assign("first"));
    tokio::task::yield_now().await;
    let gone = stage.begin(assign("gone"));
    tokio::task::yield_now().await;
    gone.abort();
    before.add_permits(1);
    after.add_permits(1);
    first.await.unwrap().unwrap();
    stage.submit(assign("next")).await.unwrap();
    assert_eq!(stage.mapping("gone").await, Mapping::Absent);
    stage.end().await;
}

/// Another transaction at work on the same items is waited out.
#[tokio::test(start_paused = true)]
async fn contention_is_waited_out() {
    let stage = Stage::new().await;
    let contended = Some(Fault::Answer(CommitOutcome::Contended));
    stage.store.next(Call::Commit, vec![contended.clone(); 5]);
    assert!(placed_in(&stage.submit(assign("k")).await.unwrap()).1);
    assert_eq!(stage.store.count(Call::Commit), 6);
    stage.store.always(Call::Commit, Fault::Answer(CommitOutcome::Contended));
    let answer = stage.submit(assign("l")).await;
    assert_eq!(answer, Err(Error::Store(StoreError::Throttled)), "and nothing was done");
    stage.end().await;
}

/// A lost attempt that was not done, and then somebody else's router writes the tenant without an entry.
#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_lost_attempt_is_a_refusal() {
    let stage = Stage::new().await;
    let foreign = Placement { began_by: PlacementEvent::Adopted, ..placement("k", "elsewhere", 1) };
    let adopted = foreign.clone();
    let writes = Fault::after(move |store| store.adopt(adopted.clone()));
    stage.store.next(Call::Commit, [Some(Fault::Fail(StoreError::Timeout)), Some(writes)]);
    let both = [stage.begin(assign("k")), stage.begin(assign("l"))];
    let [k, l] = join_all(both).await.try_into().unwrap();
    assert_eq!(placed_in(&k.unwrap().unwrap()), (&foreign, false));
    assert!(placed_in(&l.unwrap().unwrap()).1);
    stage.end().await;
}

/// A replica that is always busy does not keep another one from ever getting its turn. A commit takes 10 ms, a read 8 ms.
#[tokio::test(start_paused = true)]
async fn a_busy_replica_leaves_others_their_turn() {
    let inner = Arc::new(MemoryStore::new());
    for (at, id) in (1..).zip(["a", "b"]) {
        register(&inner, id, at);
    }
    let slow = |call| match call {
        Call::Commit => Some(Fault::Slow(Duration::from_millis(5))),
        _ => Some(Fault::Slow(Duration::from_millis(4))),
    };
    let mut stages = Vec::new();
    for _ in 0..2 {
        let store = Faulty::on(inner.clone());
        let stage = Stage::on(store).await;
        stage.store.ask(slow);
        stages.push(stage);
    }
    let mut asking = Vec::new();
    for (replica, stage) in stages.iter().enumerate() {
        for who in 0..16 {
            let changes = stage.changes.clone();
            asking.push(tokio::spawn(async move {
                let (mut answers, mut longest) = (0u32, Duration::ZERO);
                let ends = tokio::time::Instant::now() + Duration::from_secs(10);
                while tokio::time::Instant::now() < ends {
                    let began = tokio::time::Instant::now();
                    let name = format!("{replica}-{who}-{answers}");
                    changes.submit(assign(&name)).await.unwrap();
                    longest = longest.max(began.elapsed());
                    answers += 1;
                }
                (replica, answers, longest)
            }));
        }
    }
    let mut done = [0; 2];
    let mut longest = Duration::ZERO;
    for who in join_all(asking).await {
        let (replica, answers, waited) = who.unwrap();
        done[replica] += answers;
        longest = longest.max(waited);
    }
    assert!(done[0].min(done[1]) * 2 > done[0].max(done[1]), "{done:?}");
    // Until each knows of the other, luck decides.
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    audit(&inner).await;
    for stage in stages {
        stage.end().await;
    }
}
