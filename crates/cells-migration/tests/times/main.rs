//! When the machine waits, and for how long: what the model, which knows only now and later, does not show.

mod stream;

use cells_migration::{
    Action, Cursor, Event, LONGEST_BACKOFF, Machine, MigrationId, Next, Parked, Phase, Record,
    Settings, Side, Transaction, Wish, Writers,
};

const SETTINGS: Settings = Settings {
    leases_end: 6_000,
    pause_budget: 1_000,
    little: 10,
    soak: 60_000,
    soak_interval: 500,
    strict: false,
    writers: Writers::Cooperative,
    freeze_budget: 30_000,
    max_fences: 10,
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
        Action::Listen { .. } => Event::Listening { position: Cursor(vec![1]) },
        Action::Follow { position, past, .. } => {
            Event::Followed { found: 0, next: position, past: past.is_some() }
        }
        Action::Mark { .. } => Event::Marked,
        Action::Freeze { .. } => Event::Frozen { holds: true },
        Action::Thaw { .. } => Event::Thawed,
    }
}

fn begun(now: u64) -> Machine {
    set(SETTINGS, now)
}

fn set(settings: Settings, now: u64) -> Machine {
    Machine::new(settings, Record::new(MigrationId(1), 7), now)
}

fn transaction(machine: &Machine, now: u64) -> Transaction {
    match machine.next(now) {
        Next::Do(Action::Transact(transaction)) => *transaction,
        next => panic!("no transaction: {next:?}"),
    }
}

fn look(next: &Next) -> bool {
    matches!(next, Next::Do(Action::Drain { .. }))
}

/// Where it goes on to compare.
fn compares(next: &Next) -> Option<&Cursor> {
    match next {
        Next::Do(Action::Compare { cursor, .. }) => Some(cursor),
        _ => None,
    }
}

/// Fences at `now`, finds `found` records of the log, and lifts the fence when it lasted too long; the time then.
fn fence_in_vain(machine: &mut Machine, now: u64, found: u64) -> u64 {
    go_on(machine, now, Phase::Fenced);
    machine.on(Event::Drained { found }, now);
    let end = now + SETTINGS.pause_budget;
    let unfence = transaction(machine, end);
    assert_eq!(unfence.record.phase, Phase::Verifying);
    machine.on(Event::Done(unfence.record), end);
    end
}

fn told(machine: &mut Machine, now: u64, change: impl FnOnce(&mut Record)) {
    let mut record = machine.record().clone();
    change(&mut record);
    machine.on(Event::Read(record), now);
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
    assert!(look(&machine.next(7_000)));
    // Within the budget an empty log is enough, however late it is.
    machine.on(Event::Drained { found: 10 }, 7_100);
    go_on(&mut machine, 8_000, Phase::Fenced);
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

#[test]
fn how_long_leases_last_is_heard_when_logging_begins() {
    let mut machine = begun(0);
    let start = loop {
        let transaction = transaction(&machine, 1_000);
        if transaction.record.phase == Phase::Logging {
            break transaction;
        }
        machine.on(Event::Done(transaction.record), 1_000);
    };
    machine.on(Event::Done(start.record), 1_000);
    machine.set_leases_end(60_000);
    assert_eq!(machine.next(1_000), Next::WaitUntil(61_000));
    // Counted from the beginning of the phase, whenever it is told.
    machine.set_leases_end(2_500);
    assert_eq!(machine.next(3_000), Next::WaitUntil(3_500));
    assert_eq!(transaction(&machine, 3_500).record.phase, Phase::Copying);
    let mut other = Machine::new(SETTINGS, machine.record().clone(), 70);
    go_on(&mut other, 70, Phase::Copying);
    other.set_leases_end(500);
    assert_eq!(other.next(569), Next::WaitUntil(570));
    assert_eq!(transaction(&other, 570).record.phase, Phase::Copying);
}

#[test]
fn who_lifts_the_fence_waits_longer_each_time_and_gives_up_in_the_end() {
    let mut machine = begun(0);
    go_on(&mut machine, 0, Phase::Logging);
    let mut now = fence_in_vain(&mut machine, 6_000, 3);
    let mut waits = Vec::new();
    while waits.len() < 9 {
        // The log is kept short while writers have their time.
        assert!(look(&machine.next(now)), "{:?}", machine.next(now));
        machine.on(Event::Drained { found: 0 }, now);
        assert_eq!(machine.next(now), Next::WaitUntil(now + 500));
        let since = now;
        while let Next::WaitUntil(until) = machine.next(now) {
            now = until;
            if look(&machine.next(now)) {
                machine.on(Event::Drained { found: 0 }, now);
            }
        }
        assert_eq!(transaction(&machine, now).record.phase, Phase::Fenced);
        waits.push(now - since);
        now = fence_in_vain(&mut machine, now, 3);
    }
    let longest = LONGEST_BACKOFF;
    assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, longest, longest, longest]);
    let parked = Next::Park(Parked::LogNotDrained { fences: 10 });
    assert_eq!(machine.next(now), parked);
    assert_eq!(machine.next(now + 1_000_000), parked);
    assert_eq!(machine.record().phase, Phase::Verifying, "nobody is fenced");
    // An operator retries: at once, and as often.
    let mut again = Machine::new(SETTINGS, machine.record().clone(), now);
    assert_eq!(go_on(&mut again, now, Phase::Done), Next::WaitUntil(now + 500), "it soaks");
    told(&mut machine, now, |record| record.wish = Some(Wish::Cancel));
    assert_eq!(transaction(&machine, now).record.phase, Phase::Aborting);
}

#[test]
fn a_long_budget_is_the_shortest_wait_and_no_number_of_fences_is_one() {
    let settings = Settings { pause_budget: 90_000, max_fences: 3, ..SETTINGS };
    let mut machine = set(settings, 0);
    go_on(&mut machine, 0, Phase::Logging);
    go_on(&mut machine, 6_000, Phase::Fenced);
    machine.on(Event::Done(transaction(&machine, 96_000).record), 96_000);
    machine.on(Event::Drained { found: 0 }, 185_900);
    assert_eq!(machine.next(185_900), Next::WaitUntil(186_000));
    let mut machine = set(Settings { max_fences: 0, ..SETTINGS }, 0);
    go_on(&mut machine, 0, Phase::Logging);
    let now = fence_in_vain(&mut machine, 6_000, 1);
    assert_eq!(machine.next(now), Next::Park(Parked::LogNotDrained { fences: 1 }));
}

#[test]
fn strict_compares_everything_again_under_each_fence_and_each_worker() {
    let settings = Settings { strict: true, max_fences: 2, ..SETTINGS };
    let mut machine = set(settings, 0);
    go_on(&mut machine, 0, Phase::Logging);
    go_on(&mut machine, 6_000, Phase::Fenced);
    assert!(look(&machine.next(6_000)), "the log first");
    machine.on(Event::Drained { found: 0 }, 6_000);
    let (beginning, half) = (Cursor::default(), Cursor(vec![7]));
    assert_eq!(compares(&machine.next(6_000)), Some(&beginning));
    machine.on(Event::Compared { next: Some(half.clone()) }, 6_500);
    assert_eq!(compares(&machine.next(6_500)), Some(&half), "nothing is saved in the pause");

    let mut other = Machine::new(settings, machine.record().clone(), 0);
    other.on(Event::Done(transaction(&other, 0).record), 0);
    assert!(look(&other.next(0)), "what another worker saw does not count");
    other.on(Event::Drained { found: 0 }, 0);
    assert_eq!(compares(&other.next(0)), Some(&beginning));
    other.on(Event::Compared { next: None }, 900);
    assert_eq!(transaction(&other, 5_000).record.phase, Phase::Committed);

    machine.on(Event::Done(transaction(&machine, 7_000).record), 7_000);
    machine.on(Event::Drained { found: 0 }, 8_000);
    go_on(&mut machine, 8_000, Phase::Fenced);
    machine.on(Event::Drained { found: 0 }, 8_000);
    assert_eq!(compares(&machine.next(8_000)), Some(&beginning));
    machine.on(Event::Done(transaction(&machine, 9_000).record), 9_000);
    assert_eq!(machine.next(9_000), Next::Park(Parked::NotCompared { fences: 2 }));
}

#[test]
fn what_was_seen_under_one_fence_is_not_believed_under_the_next() {
    let mut machine = begun(0);
    go_on(&mut machine, 0, Phase::Logging);
    go_on(&mut machine, 6_000, Phase::Fenced);
    machine.on(Event::Drained { found: 0 }, 6_100);
    assert_eq!(transaction(&machine, 6_100).record.phase, Phase::Committed);
    machine.on(Event::Unknown, 6_200);
    // Meanwhile another worker took over, lifted the fence, and fenced again: to this one all looks as it was.
    let theirs = Record { worker: machine.record().worker + 1, ..machine.record().clone() };
    machine.on(Event::Read(theirs), 6_900);
    machine.on(Event::Done(transaction(&machine, 6_900).record), 6_900);
    assert!(look(&machine.next(6_900)), "{:?}", machine.next(6_900));
    assert!(look(&machine.next(7_800)), "the pause is counted from then");
}

#[test]
fn a_pause_holds_everything_but_the_fence() {
    let (mut machine, mut seen, mut now) = (begun(0), Vec::new(), 0);
    for _ in 0..1_000 {
        let phase = machine.record().phase;
        if machine.record().worker > 0 && !seen.contains(&phase) {
            seen.push(phase);
            let mut paused = machine.clone();
            told(&mut paused, now, |record| record.paused = true);
            if phase == Phase::Fenced {
                assert_eq!(transaction(&paused, now).record.phase, Phase::Verifying);
                paused.on(Event::Done(transaction(&paused, now).record), now);
            }
            let rest = if phase.ended() { Next::Leave } else { Next::Pause };
            assert_eq!(paused.next(now + 1_000_000), rest, "{phase:?}");
            told(&mut paused, now + 1_000_000, |record| record.paused = false);
            assert_ne!(paused.next(now + 1_000_000), Next::Pause, "{phase:?}");
        }
        match machine.next(now) {
            Next::Do(action) => machine.on(done(action, machine.record()), now),
            Next::WaitUntil(until) => now = until,
            _ => break,
        }
    }
    use Phase::*;
    let all = [Planned, Logging, Copying, CatchingUp, Verifying, Fenced, Committed];
    assert_eq!(seen, [&all[..], &[Soaking, Cleaning, Done]].concat());
}

#[test]
fn a_pause_is_no_fence_in_vain_and_begins_the_soak_anew() {
    let mut machine = set(Settings { max_fences: 1, ..SETTINGS }, 0);
    go_on(&mut machine, 0, Phase::Logging);
    go_on(&mut machine, 6_000, Phase::Fenced);
    told(&mut machine, 6_500, |record| record.paused = true);
    machine.on(Event::Done(transaction(&machine, 6_500).record), 6_500);
    told(&mut machine, 6_600, |record| record.paused = false);
    assert!(look(&machine.next(6_600)), "neither parked nor put off");
    go_on(&mut machine, 6_600, Phase::Soaking);
    told(&mut machine, 50_000, |record| record.paused = true);
    told(&mut machine, 90_000, |record| record.paused = false);
    machine.on(Event::Drained { found: 0 }, 149_900);
    assert_eq!(machine.next(149_900), Next::WaitUntil(150_000));
    assert_eq!(transaction(&machine, 150_000).record.phase, Phase::Cleaning);
}

#[test]
fn in_a_pause_a_cancel_is_heard_and_a_worker_takes_over() {
    let mut machine = begun(0);
    go_on(&mut machine, 0, Phase::Logging);
    let ask = |record: &mut Record| (record.paused, record.wish) = (true, Some(Wish::Cancel));
    told(&mut machine, 0, ask);
    machine.on(Event::Done(transaction(&machine, 0).record), 0);
    assert_eq!((machine.record().phase, machine.next(0)), (Phase::Aborting, Next::Pause));
    let mut other = Machine::new(SETTINGS, machine.record().clone(), 0);
    let taken = transaction(&other, 0);
    assert_eq!(taken.record.worker, machine.record().worker + 1, "what is on its way is refused");
    other.on(Event::Done(taken.record), 0);
    assert_eq!(other.next(0), Next::Pause);
}
