//! The same with writers that do not cooperate: positions, freezes that take their time, streams that are late.

use cells_migration::{
    Action, Cursor, Event, Machine, Next, Parked, Phase, Record, Settings, Side, Writers,
};

use crate::{SETTINGS, done, go_on, set, told, transaction};

const FROZEN: Settings = Settings { writers: Writers::Frozen, ..SETTINGS };

fn action(machine: &Machine, now: u64) -> Action {
    match machine.next(now) {
        Next::Do(action) => action,
        next => panic!("nothing to do: {next:?}"),
    }
}

/// Goes on until it asks for what `is` says.
fn until(machine: &mut Machine, now: u64, is: fn(&Action) -> bool) -> Action {
    for _ in 0..100 {
        let action = action(machine, now);
        if is(&action) {
            return action;
        }
        machine.on(done(action, machine.record()), now);
    }
    panic!("never asked for: {:?}", machine.next(now))
}

fn freezes(action: &Action) -> bool {
    matches!(action, Action::Freeze { from: Side::Source, .. })
}

fn thaws(next: &Next) -> bool {
    matches!(next, Next::Do(Action::Thaw { live: Side::Source, .. }))
}

#[test]
fn a_position_is_kept_before_the_first_item_is_copied() {
    let mut machine = set(FROZEN, 0);
    go_on(&mut machine, 0, Phase::Logging);
    until(&mut machine, 6_000, |action| matches!(action, Action::Listen { .. }));
    machine.on(Event::Listening { position: Cursor(vec![5]) }, 6_000);
    let save = transaction(&machine, 6_000);
    assert_eq!(
        (save.record.phase, save.record.stream.clone()),
        (Phase::Copying, Some(Cursor(vec![5])))
    );
    // The position that another worker found is the one that counts.
    let mut other = Machine::new(FROZEN, save.record, 0);
    until(&mut other, 0, |action| matches!(action, Action::Copy { .. }));
    let Action::Follow { position, past, .. } =
        until(&mut other, 0, |action| matches!(action, Action::Follow { .. }))
    else {
        panic!()
    };
    assert_eq!((position, past), (Cursor(vec![5]), None));
}

#[test]
fn a_freeze_is_probed_until_it_holds_and_followed_past_its_marker_before_the_fence() {
    let mut machine = set(FROZEN, 0);
    go_on(&mut machine, 0, Phase::Logging);
    let freeze = until(&mut machine, 6_000, freezes);
    machine.on(Event::Frozen { holds: false }, 6_000);
    assert_eq!(machine.next(6_000), Next::WaitUntil(6_500));
    assert_eq!(action(&machine, 6_500), freeze);
    machine.on(Event::Frozen { holds: true }, 6_500);
    let Action::Mark { from: Side::Source, marker } = action(&machine, 6_500) else { panic!() };
    assert_eq!((marker.holder, marker.number), (machine.record().holder(), 1));
    machine.on(Event::Marked, 6_600);
    for (found, at) in [(9, 6_600), (0, 6_700)] {
        let next = machine.next(at);
        let Next::Do(Action::Follow { position, past, .. }) = next else { panic!("{next:?}") };
        assert_eq!(past, Some(marker));
        machine.on(Event::Followed { found, next: position, past: false }, at);
    }
    assert_eq!(machine.next(6_700), Next::WaitUntil(7_200), "the stream is late");
    let Action::Follow { .. } = action(&machine, 7_200) else { panic!() };
    machine.on(Event::Followed { found: 1, next: Cursor(vec![9]), past: true }, 7_200);
    machine.on(Event::Done(transaction(&machine, 7_200).record), 7_200);
    assert_eq!(transaction(&machine, 7_200).record.phase, Phase::Fenced);
    assert_eq!(go_on(&mut machine, 7_200, Phase::Committed), machine.next(7_200));
    let next = machine.next(7_200);
    assert!(matches!(next, Next::Do(Action::Thaw { live: Side::Target, .. })), "{next:?}");
}

#[test]
fn a_freeze_that_does_not_hold_is_lifted_and_given_up_in_the_end() {
    let mut machine = set(Settings { max_fences: 2, ..FROZEN }, 0);
    go_on(&mut machine, 0, Phase::Logging);
    until(&mut machine, 6_000, freezes);
    machine.on(Event::Frozen { holds: false }, 6_000);
    assert!(freezes(&action(&machine, 35_999)));
    assert!(thaws(&machine.next(36_000)));
    machine.on(Event::Thawed, 36_000);
    let mut now = 36_000;
    until(&mut machine, now, |action| matches!(action, Action::Follow { .. }));
    machine.on(Event::Followed { found: 0, next: Cursor(vec![1]), past: false }, now);
    loop {
        match machine.next(now) {
            Next::WaitUntil(until) => now = until,
            Next::Do(action) if freezes(&action) => break,
            Next::Do(action) => machine.on(done(action, machine.record()), now),
            next => panic!("{next:?}"),
        }
    }
    assert_eq!(now, 66_000, "they had as long to themselves as they were frozen");
    machine.on(Event::Frozen { holds: true }, now);
    machine.on(Event::Marked, now);
    assert!(thaws(&machine.next(now + 30_000)), "the marker was not seen");
    machine.on(Event::Thawed, now + 30_000);
    assert_eq!(machine.next(now + 30_000), Next::Park(Parked::NotFrozen { fences: 2 }));
}

#[test]
fn a_marker_that_may_have_been_left_is_not_that_of_the_next_freeze() {
    let mut machine = set(FROZEN, 0);
    go_on(&mut machine, 0, Phase::Logging);
    until(&mut machine, 6_000, freezes);
    machine.on(Event::Frozen { holds: true }, 6_000);
    let Action::Mark { marker: first, .. } = action(&machine, 6_000) else { panic!() };
    // It fails, in some tables, until the freeze has lasted too long.
    assert!(thaws(&machine.next(36_000)));
    machine.on(Event::Thawed, 36_000);
    until(&mut machine, 66_000, freezes);
    machine.on(Event::Frozen { holds: true }, 66_000);
    let Action::Mark { marker, .. } = action(&machine, 66_000) else { panic!() };
    assert_eq!((first.number, marker.number), (1, 2));
}

#[test]
fn nobody_is_frozen_in_a_pause_and_who_takes_over_thaws_or_freezes_again() {
    let mut machine = set(FROZEN, 0);
    go_on(&mut machine, 0, Phase::Logging);
    until(&mut machine, 6_000, freezes);
    machine.on(Event::Frozen { holds: true }, 6_000);
    let mut other = Machine::new(FROZEN, machine.record().clone(), 0);
    other.on(Event::Done(transaction(&other, 0).record), 0);
    assert!(thaws(&other.next(0)));
    let mut fenced = machine.clone();
    go_on(&mut fenced, 6_000, Phase::Fenced);
    let mut other = Machine::new(FROZEN, fenced.record().clone(), 0);
    other.on(Event::Done(transaction(&other, 0).record), 0);
    assert!(freezes(&action(&other, 0)), "that they are frozen it has to hear itself");
    told(&mut machine, 6_000, |record| record.paused = true);
    assert!(thaws(&machine.next(6_000)));
    machine.on(Event::Thawed, 6_000);
    assert_eq!(machine.next(6_000), Next::Pause);
    told(&mut machine, 6_100, |record| record.paused = false);
    until(&mut machine, 6_100, freezes);
}

#[test]
fn what_was_trimmed_is_copied_again_and_not_gone_on_with() {
    for fenced in [false, true] {
        let mut machine = set(FROZEN, 0);
        go_on(&mut machine, 0, Phase::Logging);
        until(&mut machine, 6_000, |action| matches!(action, Action::Follow { .. }));
        if fenced {
            go_on(&mut machine, 6_000, Phase::Fenced);
        }
        machine.on(Event::Trimmed, 6_000);
        let again = transaction(&machine, 6_000);
        let Record { phase, cursor, stream, .. } = again.record.clone();
        assert_eq!((phase, cursor, stream), (Phase::Copying, Cursor::default(), None));
        assert_eq!(again.guards.len(), usize::from(fenced), "the guard is opened again");
        machine.on(Event::Done(again.record), 6_000);
        assert_eq!(thaws(&machine.next(6_000)), fenced);
        until(&mut machine, 6_000, |action| matches!(action, Action::Listen { .. }));
    }
}

#[test]
fn best_effort_asks_nobody_to_stop_and_marks_under_the_fence() {
    let mut machine = set(Settings { writers: Writers::BestEffort, ..SETTINGS }, 0);
    go_on(&mut machine, 0, Phase::Logging);
    until(&mut machine, 6_000, |action| {
        assert!(!matches!(action, Action::Freeze { .. } | Action::Thaw { .. }));
        matches!(action, Action::Mark { .. })
    });
    assert_eq!(machine.record().phase, Phase::Fenced);
    go_on(&mut machine, 6_000, Phase::Committed);
    assert_eq!(transaction(&machine, 6_000).record.phase, Phase::Soaking);
}
