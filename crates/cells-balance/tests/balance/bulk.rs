//! A bulk, step by step.

use std::collections::HashMap;
use std::num::NonZeroU32;

use cells_balance::bulk::*;
use cells_balance::{Bulk, Move};

pub fn of(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

pub fn limits(running: u32, per_source: u32, per_target: u32) -> Limits {
    Limits {
        running: of(running),
        per_source: of(per_source),
        per_target: of(per_target),
        attempts: of(2),
        ..Limits::default()
    }
}

pub fn one(tenant: &str, source: &str, target: &str) -> Move {
    Move {
        tenant: tenant.into(),
        source: source.into(),
        target: target.into(),
        bytes: Some(100),
        relieves: None,
    }
}

pub fn id(bulk: &str, tenant: &str, attempt: u32) -> String {
    format!("{bulk}_{tenant}_{attempt}")
}

fn bulk(moves: &[(&str, &str, &str)], limits: Limits) -> Bulk {
    let moves = moves.iter().map(|(tenant, source, target)| one(tenant, source, target)).collect();
    Bulk::new("b", Purpose::Rebalance { low: 0.3, high: 0.7 }, moves, limits).unwrap()
}

/// Asks, and applies.
fn turn(bulk: &mut Bulk, observed: &[(&str, Observed)]) -> Vec<Step> {
    let observed: HashMap<_, _> =
        observed.iter().map(|(id, observed)| ((*id).to_owned(), observed.clone())).collect();
    let steps = bulk.next(&observed, &id);
    steps.iter().for_each(|step| bulk.apply(step).unwrap());
    steps
}

fn started(steps: &[Step]) -> Vec<&str> {
    let mut started = vec![];
    for step in steps {
        if let Step::Start(start) = step {
            started.push(start.migration.as_str());
        }
    }
    started
}

fn failed(reason: &str) -> Observed {
    Observed::Failed { reason: reason.into() }
}

const RUNNING: Observed = Observed::Running { committed: false };

#[test]
fn sources_take_turns_and_limits_are_kept() {
    let moves = [
        ("a1", "a", "x"),
        ("a2", "a", "x"),
        ("a3", "a", "y"),
        ("a4", "a", "y"),
        ("b1", "b", "x"),
        ("c1", "c", "x"),
        ("c2", "c", "y"),
    ];
    let mut all = bulk(&moves, limits(3, 2, 2));
    assert_eq!(started(&turn(&mut all, &[])), ["b_a1_1", "b_b1_1", "b_c2_1"]);
    assert_eq!(turn(&mut all, &[]), []);
    let mut more = bulk(&moves, limits(9, 2, 2));
    // Two of each source and two into each target at most.
    assert_eq!(started(&turn(&mut more, &[])), ["b_a1_1", "b_b1_1", "b_c2_1", "b_a3_1"]);
    // `x` is free again: `c` is next, since it had one as `b` had, and `b` has nobody left.
    assert_eq!(started(&turn(&mut more, &[("b_b1_1", Observed::Done)])), ["b_c1_1"]);
}

#[test]
fn a_tenant_that_fails_is_tried_again_after_all_others_and_stops_nobody() {
    let mut bulk = bulk(&[("t1", "a", "x"), ("t2", "a", "x"), ("t3", "a", "x")], limits(1, 1, 1));
    assert_eq!(started(&turn(&mut bulk, &[])), ["b_t1_1"]);
    assert_eq!(started(&turn(&mut bulk, &[("b_t1_1", failed("no room"))])), ["b_t2_1"]);
    assert_eq!(bulk.summary().to_retry, Count { tenants: 1, bytes: 100 });
    assert_eq!(started(&turn(&mut bulk, &[("b_t2_1", Observed::Done)])), ["b_t3_1"]);
    assert_eq!(started(&turn(&mut bulk, &[("b_t3_1", Observed::Done)])), ["b_t1_2"]);
    let steps = turn(&mut bulk, &[("b_t1_2", failed("no room\nstill"))]);
    let state = State::Failed { reason: "no room still".into(), retry: true };
    assert_eq!(steps, [Step::Note { item: 0, state }]);
    assert_eq!(turn(&mut bulk, &[]), [Step::Finish(End::Finished)]);
    assert_eq!(turn(&mut bulk, &[]), []);
    let summary = bulk.summary();
    assert_eq!((summary.done.tenants, summary.failed.tenants, summary.to_retry.tenants), (2, 1, 0));
}

#[test]
fn who_failed_waits_for_those_who_cannot_start_yet() {
    let moves = [("t1", "a", "x"), ("t2", "a", "y"), ("t3", "a", "y")];
    let mut bulk = bulk(&moves, limits(3, 3, 1));
    assert_eq!(started(&turn(&mut bulk, &[])), ["b_t1_1", "b_t2_1"]);
    let failed = [("b_t1_1", failed("x")), ("b_t2_1", RUNNING)];
    turn(&mut bulk, &failed);
    assert_eq!(turn(&mut bulk, &[("b_t2_1", RUNNING)]), [], "t3 waits for a place in y");
    assert_eq!(started(&turn(&mut bulk, &[("b_t2_1", Observed::Done)])), ["b_t3_1", "b_t1_2"]);
}

#[test]
fn limits_of_a_source_are_kept() {
    let moves = [("t1", "a", "x"), ("t2", "a", "y"), ("t3", "a", "z"), ("t4", "b", "z")];
    let mut bulk = bulk(&moves, limits(9, 2, 9));
    assert_eq!(started(&turn(&mut bulk, &[])), ["b_t1_1", "b_t4_1", "b_t2_1"]);
}

#[test]
fn a_start_that_was_stored_and_not_made_is_made_again_by_the_same_name() {
    let mut bulk = bulk(&[("t1", "a", "x"), ("t2", "a", "x")], limits(1, 1, 1));
    let first = turn(&mut bulk, &[]);
    assert_eq!(turn(&mut bulk, &[("b_t1_1", Observed::Absent)]), first);
    assert_eq!(bulk.items()[0].attempts, 1);
    assert_eq!(turn(&mut bulk, &[("b_t1_1", RUNNING)]), []);
    bulk.pause().unwrap();
    assert_eq!(turn(&mut bulk, &[("b_t1_1", Observed::Absent)]), [], "no start in a pause");
    bulk.resume().unwrap();
    assert_eq!(turn(&mut bulk, &[("b_t1_1", Observed::Absent)]), first);
    bulk.cancel(Cancel::LetRun).unwrap();
    turn(&mut bulk, &[("b_t1_1", Observed::Absent)]);
    assert_eq!(bulk.summary().skipped.tenants, 2);
}

#[test]
fn a_pause_stops_new_starts_only() {
    let mut bulk = bulk(&[("t1", "a", "x"), ("t2", "a", "x")], limits(1, 1, 1));
    turn(&mut bulk, &[]);
    bulk.pause().unwrap();
    assert_eq!(
        turn(&mut bulk, &[("b_t1_1", Observed::Done)]),
        [Step::Note { item: 0, state: State::Done }]
    );
    assert_eq!(turn(&mut bulk, &[]), [], "it does not end, either");
    bulk.resume().unwrap();
    assert_eq!(started(&turn(&mut bulk, &[])), ["b_t2_1"]);
}

#[test]
fn a_cancel_stops_new_starts_and_those_who_run_where_it_is_asked_for() {
    let moves = [("t1", "a", "x"), ("t2", "a", "x"), ("t3", "a", "x"), ("t4", "a", "x")];
    let mut bulk = bulk(&moves, limits(3, 3, 3));
    turn(&mut bulk, &[]);
    turn(&mut bulk, &[("b_t3_1", failed("x"))]);
    bulk.cancel(Cancel::LetRun).unwrap();
    assert_eq!(bulk.pause(), Err(BulkError::Cancelled));
    let committed = Observed::Running { committed: true };
    let running = [("b_t1_1", RUNNING), ("b_t2_1", committed)];
    let steps = turn(&mut bulk, &running);
    let skipped = State::Skipped { reason: "the bulk was cancelled".into() };
    assert_eq!(steps, [], "all four were started, or are not tried again");
    bulk.cancel(Cancel::Running).unwrap();
    bulk.cancel(Cancel::LetRun).unwrap();
    let cancel = Step::Cancel { item: 0, migration: "b_t1_1".into() };
    assert_eq!(turn(&mut bulk, &running), std::slice::from_ref(&cancel));
    assert_eq!(turn(&mut bulk, &running), [cancel], "until it has ended");
    let ended =
        [("b_t1_1", Observed::TakenBack), ("b_t2_1", Observed::Done), ("b_t4_1", Observed::Absent)];
    assert_eq!(turn(&mut bulk, &ended).len(), 3);
    assert_eq!(bulk.items()[3].state, skipped);
    assert_eq!(turn(&mut bulk, &[]), [Step::Finish(End::Cancelled)]);
    let summary = bulk.summary();
    assert_eq!((summary.done.tenants, summary.skipped.tenants, summary.failed.tenants), (1, 2, 1));
    assert_eq!(bulk.cancel(Cancel::Running), Err(BulkError::Ended));
    assert_eq!(bulk.resume(), Err(BulkError::Ended));
}

#[test]
fn a_soak_is_open_and_does_not_keep_others_from_running() {
    let moves = [("t1", "a", "x"), ("t2", "a", "x"), ("t3", "a", "x")];
    let mut bulk = bulk(&moves, Limits { open: of(2), ..limits(1, 1, 1) });
    turn(&mut bulk, &[]);
    assert_eq!(started(&turn(&mut bulk, &[("b_t1_1", Observed::Soaking)])), ["b_t2_1"]);
    let soaking = [("b_t1_1", Observed::Soaking), ("b_t2_1", Observed::Soaking)];
    assert_eq!(turn(&mut bulk, &soaking), [], "two are open");
    let one_left = [("b_t1_1", Observed::Done), ("b_t2_1", Observed::Soaking)];
    assert_eq!(started(&turn(&mut bulk, &one_left)), ["b_t3_1"]);
}

#[test]
fn a_parked_migration_frees_its_place_and_may_come_back() {
    let mut bulk = bulk(&[("t1", "a", "x"), ("t2", "a", "x")], limits(1, 1, 1));
    turn(&mut bulk, &[]);
    let parked = Observed::Parked { reason: "access denied".into() };
    let steps = turn(&mut bulk, &[("b_t1_1", parked.clone())]);
    assert_eq!(started(&steps), ["b_t2_1"]);
    assert_eq!(bulk.to_observe(&id), ["b_t1_1", "b_t2_1"]);
    assert_eq!(turn(&mut bulk, &[("b_t1_1", parked)]), [], "no second migration beside it");
    let running = State::Running { migration: "b_t1_1".into() };
    assert_eq!(turn(&mut bulk, &[("b_t1_1", RUNNING)]), [Step::Note { item: 0, state: running }]);
    turn(&mut bulk, &[("b_t1_1", Observed::Done), ("b_t2_1", Observed::Done)]);
    assert_eq!((bulk.summary().done.tenants, bulk.items()[0].attempts), (2, 1));
}

#[test]
fn who_cannot_be_started_is_noted_and_who_was_taken_back_is_left_there() {
    let mut bulk = bulk(&[("t1", "a", "x"), ("t2", "a", "x"), ("t3", "a", "x")], limits(3, 3, 3));
    assert!(bulk.refused(0, "it is not running yet", false).is_err());
    turn(&mut bulk, &[]);
    bulk.refused(0, "the tenant was deleted", false).unwrap();
    bulk.refused(1, "it is moving already", true).unwrap();
    let steps = turn(&mut bulk, &[("b_t3_1", Observed::TakenBack)]);
    assert_eq!(started(&steps), ["b_t2_2"]);
    let reason = "its migration was cancelled or reversed".into();
    assert_eq!(bulk.items()[2].state, State::Skipped { reason });
    assert!(matches!(bulk.items()[0].state, State::Failed { retry: false, .. }));
}

#[test]
fn units_of_a_cell_are_divided() {
    let units = |units, limits: Limits| {
        let limits = Limits { units_per_cell: Some(of(units)), ..limits };
        let moves = [("t1", "a", "x"), ("t2", "a", "x"), ("t3", "a", "x"), ("t4", "a", "x")];
        let steps = turn(&mut bulk(&moves, limits), &[]);
        let start = |step: &Step| match step {
            Step::Start(start) => start.units.unwrap().get(),
            other => panic!("{other:?}"),
        };
        steps.iter().map(start).collect::<Vec<_>>()
    };
    assert_eq!(units(100, limits(9, 3, 2)), [33, 33]);
    // No more at once than there are units.
    assert_eq!(units(1, limits(9, 3, 2)), [1]);
}

#[test]
fn steps_of_another_version_are_refused_and_repeated_ones_are_not() {
    let mut bulk = bulk(&[("t1", "a", "x")], limits(1, 1, 1));
    let steps = turn(&mut bulk, &[]);
    bulk.take_changes();
    bulk.apply(&steps[0]).unwrap();
    assert!(bulk.changed().1.is_empty(), "nothing changed");
    let note = |item, state| Step::Note { item, state };
    bulk.apply(&note(0, State::Done)).unwrap();
    let illegal = |is, becomes| Err(BulkError::Illegal { item: 0, is, becomes });
    assert_eq!(bulk.apply(&steps[0]), illegal("DONE", "RUNNING"));
    assert_eq!(bulk.apply(&note(0, State::Waiting)), illegal("DONE", "WAITING"));
    assert_eq!(bulk.apply(&note(1, State::Done)), Err(BulkError::NoItem(1)));
}

#[test]
fn what_is_no_bulk_is_refused() {
    let new = |id: &str, moves: &[Move], limits: Limits| {
        let purpose = Purpose::Drain { cell: "a".into() };
        Bulk::new(id, purpose, moves.to_vec(), limits).unwrap_err().to_string()
    };
    let good = || one("t1", "a", "x");
    let with = |change: fn(&mut Move)| {
        let mut one = good();
        change(&mut one);
        new("b", &[one], Limits::default())
    };
    assert!(new("", &[good()], Limits::default()).starts_with("id must be"));
    assert!(with(|one| one.tenant.clear()).contains("the key of tenant 0"));
    assert!(with(|one| one.tenant = "x".repeat(1_025)).contains("the key of tenant 0"));
    assert!(with(|one| one.tenant = "a\nb".into()).contains("the key of tenant 0"));
    assert!(with(|one| one.source = "a\"".into()).starts_with("source must be"));
    assert!(with(|one| one.target = "x".repeat(65)).starts_with("target must be"));
    assert!(with(|one| one.target = "a".into()).contains("same source and target"));
    assert!(new("b", &[good(), good()], Limits::default()).contains("\"t1\" is there twice"));
    let turned = one("t2", "x", "y");
    assert!(
        new("b", &[good(), turned], Limits::default()).contains("\"x\" is a source and a target")
    );
    let many = Limits { running: of(1_001), ..Limits::default() };
    assert_eq!(new("b", &[good()], many), "limits.running is 1001; at most 1000 is allowed");
    let band = Purpose::Rebalance { low: 0.1, high: f64::NAN };
    assert!(Bulk::new("b", band, vec![], Limits::default()).is_err());
}

#[test]
fn an_empty_bulk_ends_at_once() {
    let mut bulk = bulk(&[], Limits::default());
    let changes = bulk.take_changes();
    assert_eq!((changes.header.is_some(), changes.chunks.len()), (true, 0));
    assert_eq!(turn(&mut bulk, &[]), [Step::Finish(End::Finished)]);
    assert_eq!(Bulk::load(changes.header.unwrap(), vec![]).unwrap().items(), []);
}

/// The longest that each part of an item can be.
#[test]
fn no_stored_part_comes_near_the_limit_of_an_item() {
    let longest = |at: usize| Move {
        bytes: Some(u64::MAX),
        ..one(&format!("{}{at:04}", "\"".repeat(1_020)), &"s".repeat(64), &"x".repeat(64))
    };
    let purpose = Purpose::Drain { cell: "s".repeat(64) };
    let moves = (0..130).map(longest).collect();
    let mut bulk = Bulk::new(&"b".repeat(64), purpose, moves, limits(130, 130, 130)).unwrap();
    let long = |_: &str, tenant: &str, _: u32| format!("{:0>64}", tenant.trim_start_matches('"'));
    let steps = bulk.next(&HashMap::new(), &long);
    assert_eq!(steps.len(), 130);
    steps.iter().for_each(|step| bulk.apply(step).unwrap());
    let running = bulk.take_changes();
    (0..130).for_each(|at| bulk.refused(at, &"\"".repeat(1_000), true).unwrap());
    let failed = bulk.take_changes();
    assert_eq!(failed.chunks.len(), 3);
    for chunk in running.chunks.iter().chain(&failed.chunks) {
        let length = serde_json::to_vec(chunk).unwrap().len();
        assert!(length < 200_000, "{length}");
    }
    assert!(serde_json::to_vec(&running.header.unwrap()).unwrap().len() < 1_000);
    let State::Failed { reason, .. } = &bulk.items()[0].state else { panic!() };
    assert_eq!(reason.len(), MAX_REASON_BYTES);
}

#[test]
fn only_what_changed_is_written_and_what_is_read_must_be_all() {
    let names: Vec<String> = (0..200).map(|at| format!("t{at}")).collect();
    let moves: Vec<_> = names.iter().map(|name| (name.as_str(), "a", "x")).collect();
    let mut bulk = bulk(&moves, limits(1, 1, 1));
    assert_eq!(bulk.changed().1.len(), 4);
    let first = bulk.take_changes();
    assert_eq!(
        first.chunks.iter().map(|chunk| chunk.items.len()).collect::<Vec<_>>(),
        [64, 64, 64, 8]
    );
    assert_eq!(bulk.take_changes(), Changes::default());
    bulk.pause().unwrap();
    bulk.pause().unwrap();
    let paused = bulk.take_changes();
    assert_eq!((paused.header.unwrap().revision, paused.chunks.len()), (2, 0), "the header alone");
    bulk.resume().unwrap();
    bulk.take_changes();
    turn(&mut bulk, &[]);
    let started = bulk.take_changes();
    assert_eq!(started.header, None, "a worker leaves the header to operators");
    let [chunk] = &started.chunks[..] else { panic!() };
    assert_eq!((chunk.number, chunk.revision), (0, 2));

    let header = || bulk.header().clone();
    let mut chunks = first.chunks.clone();
    chunks[0] = chunk.clone();
    chunks.reverse();
    assert_eq!(Bulk::load(header(), chunks.clone()).unwrap(), bulk);
    let load = |chunks: Vec<Chunk>| Bulk::load(header(), chunks).unwrap_err();
    let without = |at| {
        let mut chunks = chunks.clone();
        chunks.remove(at);
        chunks
    };
    assert_eq!(load(without(3)), LoadError::Missing(0));
    assert_eq!(load(without(1)), LoadError::Missing(2));
    assert_eq!(load(without(0)), LoadError::Missing(3));
    let twice = [chunks.clone(), vec![chunks[2].clone()]].concat();
    assert_eq!(load(twice), LoadError::Extra(1));
    let mut other = chunks.clone();
    other[0].bulk = "c".into();
    assert!(matches!(load(other), LoadError::OtherBulk { number: 3, .. }));
    let mut short = chunks.clone();
    short[1].items.pop();
    assert_eq!(load(short), LoadError::Length { number: 2, got: 63, wanted: 64 });
}

#[test]
fn many_steps_come_in_parts() {
    let names: Vec<String> = (0..2_500).map(|at| format!("t{at}")).collect();
    let moves: Vec<_> = names.iter().map(|name| (name.as_str(), "a", "x")).collect();
    let mut bulk = bulk(&moves, limits(1_000, 1_000, 1_000));
    assert_eq!(turn(&mut bulk, &[]).len(), 1_000);
    bulk.cancel(Cancel::Running).unwrap();
    let observed: HashMap<String, Observed> =
        bulk.to_observe(&id).into_iter().map(|id| (id, RUNNING)).collect();
    // Cancels are said again and again, and keep nothing else from being said.
    for notes in [1_000, 500] {
        let steps = bulk.next(&observed, &id);
        assert_eq!(steps.len(), MAX_STEPS);
        assert_eq!(steps.iter().filter(|step| matches!(step, Step::Note { .. })).count(), notes);
        steps.iter().for_each(|step| bulk.apply(step).unwrap());
    }
    assert_eq!(bulk.summary().skipped.tenants, 1_500);
}
