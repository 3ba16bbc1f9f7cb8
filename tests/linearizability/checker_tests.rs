//! The checker rejects what is wrong and nothing else, shown on histories made by hand.

use std::collections::BTreeMap;

use crate::record::{Change, Entry, Kind, Op, Outcome, Recorder, Tables};
use crate::verdict;

/// A history of the key `k`, in milliseconds.
#[derive(Clone, Default)]
struct Story {
    ops: Vec<Op>,
    /// What the journal holds: whether placed, the cell and the epoch.
    journal: Vec<(bool, &'static str, u64)>,
}

const MS: u64 = 1_000_000;

fn op(kind: Kind, call: u64, back: u64) -> Op {
    let back = Some(back * MS);
    Op { back, replica: "0.1".to_owned(), ..Op::new(0, "k", kind, call * MS) }
}

fn ok(kind: Kind, call: u64, back: u64, cell: &str, epoch: u64) -> Op {
    let mut op = op(kind, call, back);
    if kind == Kind::Pin {
        op.cell = cell.to_owned();
    }
    Op { outcome: Outcome::Ok, got_cell: cell.to_owned(), got_epoch: epoch, ..op }
}

fn unknown(kind: Kind, call: u64, cell: &str) -> Op {
    Op { back: None, cell: cell.to_owned(), ..op(kind, call, call) }
}

fn not_found(kind: Kind, call: u64, back: u64) -> Op {
    Op { outcome: Outcome::NotFound, ..op(kind, call, back) }
}

fn remembered(call: u64, back: u64, age: u64, cell: &str, epoch: u64) -> Op {
    Op { source: "memory", age: age * MS, ..ok(Kind::Lookup, call, back, cell, epoch) }
}

fn assigned(call: u64, back: u64, cell: &str, epoch: u64) -> Op {
    let age = (back - call) * MS;
    Op { source: "assigned", age, ..ok(Kind::Resolve, call, back, cell, epoch) }
}

impl Story {
    fn new(ops: impl IntoIterator<Item = Op>, journal: &[(bool, &'static str, u64)]) -> Self {
        Self { ops: ops.into_iter().collect(), journal: journal.to_vec() }
    }

    fn recorder(&self) -> Recorder {
        let recorder = Recorder::new();
        for op in &self.ops {
            recorder.op(op.clone());
        }
        let change = |(at, (placed, cell, epoch)): (usize, &(bool, &str, u64))| Change {
            sequence: at as u64 + 1,
            change: if *placed { "placed" } else { "vacated" }.to_owned(),
            key: "k".to_owned(),
            cell: (*cell).to_owned(),
            epoch: *epoch,
        };
        let changes: Vec<_> = self.journal.iter().enumerate().map(change).collect();
        let entry = |change: &Change| {
            let sequence = change.sequence;
            Entry { sequence, nonce: sequence.to_string() }
        };
        let entries: Vec<_> = changes.iter().map(entry).collect();
        let mut counts: BTreeMap<String, u64> = ["a", "b"].map(|cell| (cell.to_owned(), 0)).into();
        let mut last = Op { outcome: Outcome::Vacated, ..op(Kind::Final, 10_000, 10_001) };
        if let Some((placed, cell, epoch)) = self.journal.last() {
            last.got_epoch = *epoch;
            if *placed {
                *counts.get_mut(*cell).unwrap() += 1;
                last.outcome = Outcome::Ok;
                last.got_cell = (*cell).to_owned();
            }
        }
        recorder.op(last);
        let head = entries.len() as u64;
        recorder.tables(Tables { head, counts, entries }, changes);
        recorder
    }

    /// The checks that fail.
    fn failed(&self) -> Vec<String> {
        failed(&self.recorder())
    }
}

fn failed(recorder: &Recorder) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.ndjson");
    recorder.write(0, &path);
    let report = verdict::check(&path, folder.path());
    report.failed().into_iter().map(str::to_owned).collect()
}

#[track_caller]
fn right(ops: impl IntoIterator<Item = Op>, journal: &[(bool, &'static str, u64)]) {
    assert_eq!(Story::new(ops, journal).failed(), [""; 0]);
}

#[track_caller]
fn wrong(check: &str, ops: impl IntoIterator<Item = Op>, journal: &[(bool, &'static str, u64)]) {
    assert_eq!(Story::new(ops, journal).failed(), [check]);
}

const LIN: &str = "linearizability";

#[test]
fn a_life_of_a_placement_is_right() {
    let ops = [
        not_found(Kind::Get, 0, 1),
        assigned(2, 5, "a", 1),
        ok(Kind::Get, 6, 7, "a", 1),
        ok(Kind::Pin, 6, 7, "a", 1),
        Op { cell: "b".into(), outcome: Outcome::Exists, ..ok(Kind::Pin, 8, 9, "a", 1) },
        Op { epoch: 7, outcome: Outcome::EpochMismatch, got_epoch: 1, ..op(Kind::Delete, 8, 9) },
        ok(Kind::Delete, 10, 11, "a", 1),
        not_found(Kind::Delete, 12, 13),
        not_found(Kind::Lookup, 12, 13),
        ok(Kind::Pin, 14, 15, "b", 2),
    ];
    right(ops, &[(true, "a", 1), (false, "a", 1), (true, "b", 2)]);
}

#[test]
fn what_was_acknowledged_must_not_be_lost() {
    wrong(LIN, [ok(Kind::Pin, 0, 1, "a", 1), not_found(Kind::Get, 2, 3)], &[(true, "a", 1)]);
    let deleted = [ok(Kind::Pin, 0, 1, "a", 1), ok(Kind::Delete, 2, 3, "a", 1)];
    let seen = [ok(Kind::Get, 4, 5, "a", 1)];
    wrong(LIN, [&deleted[..], &seen].concat(), &[(true, "a", 1), (false, "a", 1)]);
}

#[test]
fn an_epoch_is_given_once() {
    let journal = [(true, "a", 1)];
    // Two cells at one epoch. The journal knows nothing of the second.
    let twice = [ok(Kind::Pin, 0, 5, "a", 1), ok(Kind::Pin, 0, 5, "b", 1)];
    assert_eq!(Story::new(twice, &journal).failed(), ["journal", LIN]);
    // A tenant who returns starts above.
    let again =
        [ok(Kind::Pin, 0, 1, "a", 1), ok(Kind::Delete, 2, 3, "a", 1), ok(Kind::Pin, 4, 5, "a", 1)];
    let journal = [(true, "a", 1), (false, "a", 1), (true, "a", 1)];
    assert_eq!(Story::new(again, &journal).failed(), ["journal", LIN]);
}

#[test]
fn an_errored_write_may_take_effect_at_any_later_time_or_never() {
    let open = unknown(Kind::Pin, 0, "a");
    right([open.clone(), not_found(Kind::Get, 1, 2)], &[]);
    right([open.clone(), not_found(Kind::Get, 1, 2)], &[(true, "a", 1)]);
    right(
        [open.clone(), not_found(Kind::Get, 1, 2), ok(Kind::Get, 5000, 5001, "a", 1)],
        &[(true, "a", 1)],
    );
    // But once at most, ...
    let undone = [open.clone(), ok(Kind::Get, 3, 4, "a", 1), ok(Kind::Delete, 5, 6, "a", 1)];
    let back = [ok(Kind::Get, 8, 9, "a", 2)];
    let journal = [(true, "a", 1), (false, "a", 1), (true, "a", 2)];
    wrong(LIN, [&undone[..], &back].concat(), &journal);
    // ... not before it was asked for, ...
    wrong(LIN, [unknown(Kind::Pin, 5, "a"), ok(Kind::Get, 1, 2, "a", 1)], &journal[..1]);
    // ... and nothing else.
    wrong(LIN, [open, ok(Kind::Get, 1, 2, "b", 1)], &[(true, "b", 1)]);
}

#[test]
fn an_assignment_that_nobody_heard_of_chose_one_cell() {
    let open = unknown(Kind::Resolve, 0, "");
    right([open.clone(), ok(Kind::Get, 1, 2, "a", 1)], &[(true, "a", 1)]);
    let both = [open, ok(Kind::Get, 1, 2, "a", 1), ok(Kind::Get, 3, 4, "b", 1)];
    assert_eq!(Story::new(both, &[(true, "a", 1)]).failed(), ["journal", LIN]);
}

/// A call that placed a tenant and lost the reply finds the tenant placed. But memory places nobody, nor does a lookup.
#[test]
fn an_assignment_whose_reply_was_lost_is_found() {
    let journal = [(true, "a", 1)];
    let found = Op { source: "table", ..assigned(0, 5, "a", 1) };
    right([found.clone(), ok(Kind::Get, 6, 7, "a", 1)], &journal);
    wrong(LIN, [Op { source: "memory", ..found.clone() }], &journal);
    wrong(LIN, [Op { op: Kind::Lookup, ..found }], &journal);
}

/// What promised that nothing was changed is not in the history.
#[test]
fn a_change_that_nobody_asked_for_is_found() {
    wrong(LIN, [not_found(Kind::Get, 0, 1)], &[(true, "a", 1)]);
}

#[test]
fn an_answer_is_no_older_than_it_says() {
    let ops = |age| {
        let (placed, deleted) = (ok(Kind::Pin, 0, 1, "a", 1), ok(Kind::Delete, 100, 101, "a", 1));
        // By another process: this one knows that it deleted.
        let late = Op { replica: "1.1".into(), ..remembered(150, 151, age, "a", 1) };
        [placed, deleted, late]
    };
    let journal = [(true, "a", 1), (false, "a", 1)];
    right(ops(60), &journal);
    wrong(LIN, ops(40), &journal);
    wrong(LIN, ops(0), &journal);
}

#[test]
fn no_answer_is_below_the_epoch_asked_for() {
    let asked = |epoch| Op { epoch, ..remembered(2, 3, 1, "a", 1) };
    let journal = [(true, "a", 1)];
    right([ok(Kind::Pin, 0, 1, "a", 1), asked(1)], &journal);
    wrong(LIN, [ok(Kind::Pin, 0, 1, "a", 1), asked(2)], &journal);
}

#[test]
fn a_process_does_not_go_back() {
    let by = |replica: &str, op: Op| Op { replica: replica.to_owned(), ..op };
    let journal = [(true, "a", 1), (false, "a", 1), (true, "b", 2)];
    let before = [
        ok(Kind::Pin, 0, 1, "a", 1),
        by("2.1", ok(Kind::Delete, 2, 3, "a", 1)),
        by("2.1", assigned(4, 5, "b", 2)),
    ];
    let ops = |replica: &str, call| {
        let newer = by("0.1", remembered(10, 12, 1, "b", 2));
        let older = by(replica, remembered(call, 21, 20, "a", 1));
        [&before[..], &[newer, older]].concat()
    };
    wrong("epochs", ops("0.1", 20), &journal);
    // At the same time, or by another process, it may be.
    right(ops("0.1", 11), &journal);
    right(ops("1.1", 20), &journal);
    right(ops("0.2", 20), &journal);
    // Who removed a placement does not answer it any more.
    let removed = [&before[..], &[by("2.1", remembered(4, 5, 4, "a", 1))]].concat();
    wrong("epochs", removed, &journal);
}

#[test]
fn one_process_places_a_tenant() {
    let other = Op { replica: "1.1".to_owned(), ..assigned(0, 5, "a", 1) };
    let journal = [(true, "a", 1)];
    right([assigned(0, 5, "a", 1), assigned(0, 5, "a", 1)], &journal);
    wrong("assigned twice", [assigned(0, 5, "a", 1), other], &journal);
}

#[test]
fn tables_that_do_not_agree_are_found() {
    let story = Story::new([ok(Kind::Pin, 0, 1, "a", 1)], &[(true, "a", 1)]);
    let told = |head, count, sequence: u64, epoch| {
        let recorder = story.recorder();
        let counts = [("a", count), ("b", 0)].map(|(cell, count)| (cell.to_owned(), count)).into();
        let entries = vec![Entry { sequence, nonce: "1".to_owned() }];
        let change = ("placed".to_owned(), "k".to_owned(), "a".to_owned());
        let (change, key, cell) = change;
        let changes = vec![Change { sequence, change, key, cell, epoch }];
        recorder.tables(Tables { head, counts, entries }, changes);
        failed(&recorder)
    };
    assert_eq!(told(1, 1, 1, 1), [""; 0]);
    for (what, failed) in [
        ("a head without an entry", told(2, 1, 1, 1)),
        ("a wrong count", told(1, 2, 1, 1)),
        ("a gap", told(1, 1, 2, 1)),
        ("an epoch left out", told(1, 1, 1, 2)),
    ] {
        assert_eq!(failed, ["journal"], "{what}");
    }
}
