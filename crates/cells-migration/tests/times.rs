//! When the machine waits, and for how long: what the model, which knows only now and later, does not show.

use cells_migration::{
    Action, Event, Machine, MigrationId, Next, Phase, Record, Settings, Side, Wish,
};

const SETTINGS: Settings = Settings {
    leases_end: 6_000,
    pause_budget: 1_000,
    little: 10,
    soak: 60_000,
    soak_interval: 500,
};

/// Does what the machine asks for, as if every transaction were done and every page the last, until it waits or leaves, or a phase
/// begins.
fn go_on(machine: &mut Machine, now: u64, until: Phase) -> Next {
    for _ in 0..100 {
        if machine.record().phase == until {
            break;
        }
        match machine.next(now) {
            Next::Do(action) => machine.on(done(action, machine.record()), now),
            next => return next,
        }
    }
    machine.next(now)
}

fn done(action: Action, record: &Record) -> Event {
    match action {
        Action::Read => Event::Read(record.clone()),
        Action::Transact(transaction) => Event::Done(transaction.record),
        Action::Copy { .. } => Event::Copied { next: None },
        Action::Compare { .. } => Event::Compared { next: None },
        Action::Purge { .. } => Event::Purged { next: None },
        Action::Drain { .. } | Action::DropLog { .. } => Event::Drained { found: 0 },
    }
}

fn begun(now: u64) -> Machine {
    Machine::new(SETTINGS, Record::new(MigrationId(1), 7), now)
}

#[test]
fn leases_run_out_before_anything_is_copied_and_anew_after_a_takeover() {
    let mut machine = begun(1_000);
    assert_eq!(go_on(&mut machine, 1_000, Phase::Logging), Next::WaitUntil(7_000));
    assert_eq!(machine.next(6_999), Next::WaitUntil(7_000));
    // Who takes over does not know when the phase began, and has a clock of its own.
    let mut other = Machine::new(SETTINGS, machine.record().clone(), 50);
    assert_eq!(go_on(&mut other, 50, Phase::Copying), Next::WaitUntil(6_050));
    assert!(matches!(go_on(&mut machine, 7_000, Phase::Copying), Next::Do(Action::Copy { .. })));
}

#[test]
fn a_fence_that_lasts_too_long_is_lifted_and_the_comparison_is_not_repeated() {
    let mut machine = begun(0);
    go_on(&mut machine, 0, Phase::Logging);
    go_on(&mut machine, 6_000, Phase::Fenced);
    let drain = machine.next(6_999);
    assert!(matches!(drain, Next::Do(Action::Drain { from: Side::Source, .. })), "{drain:?}");
    machine.on(Event::Drained { found: 3 }, 6_999);
    assert_eq!(machine.next(6_999), drain, "what was found may not be all");
    let Next::Do(Action::Transact(unfence)) = machine.next(7_000) else { panic!("still fenced") };
    assert_eq!(unfence.record.phase, Phase::Verifying);
    machine.on(Event::Done(unfence.record), 7_000);
    let next = machine.next(7_000);
    assert!(matches!(next, Next::Do(Action::Drain { .. })), "{next:?}");
    // Within the budget an empty log is enough, however late it is.
    machine.on(Event::Drained { found: 10 }, 7_100);
    go_on(&mut machine, 7_100, Phase::Fenced);
    machine.on(Event::Drained { found: 0 }, 9_000);
    let Next::Do(Action::Transact(commit)) = machine.next(9_000) else { panic!("no commit") };
    assert_eq!((commit.record.phase, commit.record.epoch), (Phase::Committed, 8));
}

#[test]
fn the_soak_looks_at_the_log_now_and_then_and_has_an_end() {
    let mut machine = begun(0);
    go_on(&mut machine, 0, Phase::Logging);
    go_on(&mut machine, 10_000, Phase::Soaking);
    let next = machine.next(10_000);
    assert!(matches!(next, Next::Do(Action::Drain { from: Side::Target, .. })), "{next:?}");
    machine.on(Event::Drained { found: 0 }, 10_000);
    assert_eq!(machine.next(10_001), Next::WaitUntil(10_500));
    assert_eq!(machine.next(10_500), next);
    machine.on(Event::Drained { found: 4 }, 10_500);
    assert_eq!(machine.next(10_501), next, "there may be more");
    machine.on(Event::Drained { found: 0 }, 69_900);
    assert_eq!(machine.next(69_901), Next::WaitUntil(70_000), "no longer than the soak");
    assert_eq!(go_on(&mut machine, 70_000, Phase::Done), Next::Leave);
}

#[test]
fn a_wish_that_comes_unasked_is_heard_and_one_that_comes_too_late_is_not() {
    for (wish, next, last) in [
        (Wish::Complete, Phase::Cleaning, Phase::Done),
        (Wish::Reverse, Phase::Verifying, Phase::Done),
        (Wish::Cancel, Phase::Soaking, Phase::Soaking),
    ] {
        let mut machine = begun(0);
        go_on(&mut machine, 0, Phase::Logging);
        go_on(&mut machine, 10_000, Phase::Soaking);
        machine.on(Event::Read(Record { wish: Some(wish), ..machine.record().clone() }), 10_000);
        if wish != Wish::Cancel {
            let Next::Do(Action::Transact(transaction)) = machine.next(10_000) else {
                panic!("{wish:?}")
            };
            assert_eq!(transaction.record.phase, next);
            assert_eq!(go_on(&mut machine, 10_000, last), Next::Leave);
            let there = if wish == Wish::Reverse { (Side::Source, 9) } else { (Side::Target, 8) };
            assert_eq!((machine.record().live(), machine.record().epoch), there);
        } else {
            let next = machine.next(10_000);
            assert!(matches!(next, Next::Do(Action::Drain { .. })), "{next:?}");
        }
    }
}
