//! Single stories: an event after the other, and what must follow.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::super::{Action, Event, Fetched, Follower, Settled};
use crate::answer::Source;
use crate::cells::CellTable;
use crate::clock::{Moment, SystemClock};
use crate::error::{Failure, FailureKind};
use crate::floors::Floors;
use crate::held::Held;
use crate::memory::{Memory, UNATTACHED};
use crate::options::{Mode, Options};
use crate::picture::{Picture, Shared};
use crate::proto;
use crate::proto::placement_change::Change;
use crate::proto::watch_response::Event as Piece;

const SECOND: Duration = Duration::from_secs(1);

struct Story {
    follower: Follower,
    shared: Arc<Shared>,
    now: Moment,
}

fn placement(key: &str, cell: &str, epoch: u64) -> proto::Placement {
    proto::Placement {
        partition_key: key.to_owned(),
        cell_id: cell.to_owned(),
        epoch,
        write_mode: proto::WriteMode::Direct.into(),
        state: proto::PlacementState::Active.into(),
        ..Default::default()
    }
}

fn placed(sequence: u64, key: &str, cell: &str, epoch: u64) -> proto::PlacementChange {
    proto::PlacementChange { sequence, change: Some(Change::Placed(placement(key, cell, epoch))) }
}

fn vacated(sequence: u64, key: &str, cell: &str, epoch: u64) -> proto::PlacementChange {
    proto::PlacementChange { sequence, change: Some(Change::Vacated(placement(key, cell, epoch))) }
}

impl Story {
    fn new(mode: Mode, endpoints: usize) -> Self {
        let floors = Arc::new(Floors::new());
        let memory = match mode {
            Mode::Whole => Memory::whole(None),
            Mode::Bounded { capacity } => Memory::bounded(capacity, floors.clone(), Some(1)),
        };
        let shared = Arc::new(Shared {
            picture: ArcSwap::from_pointee(Picture::new(Arc::new(memory), UNATTACHED, None)),
            cells: CellTable::new(),
            floors,
            clock: Arc::new(SystemClock::new()),
            stale_after: 10 * SECOND,
        });
        let options = Options { mode, seed: Some(1), clock_drift_ppm: 0, ..Options::default() };
        let follower = Follower::new(options, shared.clone(), endpoints);
        let mut story = Self { follower, shared, now: Moment::from_bits(1 << 62) };
        assert!(matches!(story.event(Event::Tick)[..], [Action::OpenWatch { .. }]));
        story
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        self.follower.on_event(self.now, event)
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        self.now = self.now.after(time);
        self.event(Event::Tick)
    }

    fn message(
        &mut self,
        journal: &str,
        event: Piece,
        sequence: u64,
        caught_up: bool,
    ) -> Vec<Action> {
        let resume_token = match event {
            Piece::Changes(_) => format!("{journal}:{sequence}"),
            Piece::Snapshot(_) => String::new(),
        };
        let journal_id = journal.to_owned();
        let message = proto::WatchResponse {
            event: Some(event),
            resume_token,
            sequence,
            caught_up,
            journal_id,
        };
        self.event(Event::Watch(Box::new(message)))
    }

    fn changes(&mut self, sequence: u64, changes: Vec<proto::PlacementChange>) -> Vec<Action> {
        self.message("j", Piece::Changes(proto::Changes { changes }), sequence, true)
    }

    fn snapshot(&mut self, sequence: u64, placements: Vec<proto::Placement>) -> Vec<Action> {
        let part = proto::SnapshotPart { placements, cells: Vec::new() };
        self.message("j", Piece::Snapshot(part), sequence, false)
    }

    fn synced(&mut self, journal: &str, sequence: u64) -> Vec<Action> {
        let five = prost_types::Duration { seconds: 5, nanos: 0 };
        let zero = prost_types::Duration::default();
        self.event(Event::Synced(Ok(proto::SyncResponse {
            sequence,
            age: Some(zero),
            lease: Some(five),
            journal_id: journal.to_owned(),
        })))
    }

    /// The present answer: epoch, and what is left of its lease.
    fn answer(&self, key: &str) -> Option<(u64, Duration)> {
        let resolved = self.shared.picture.load().resolve(key)?;
        Some((resolved.held.epoch, resolved.lease_until.since(self.now)))
    }

    fn fetched(&self, cell: &str, epoch: u64, sequence: u64) -> Fetched {
        Fetched {
            held: Held::from_proto(&placement("", cell, epoch), &self.shared.cells).unwrap(),
            source: Source::Fetched,
            sent: self.now,
            sequence,
            age: Some(Duration::ZERO),
            lease: Duration::ZERO,
        }
    }

    fn end_watch(&mut self, kind: FailureKind) {
        self.event(Event::WatchEnded(Failure { kind, ..Failure::passing("ended") }));
    }
}

fn watch_request(actions: &[Action]) -> Option<&proto::WatchRequest> {
    actions.iter().find_map(|action| match action {
        Action::OpenWatch { request, .. } => Some(request),
        _ => None,
    })
}

#[test]
fn a_snapshot_is_answered_from_once_it_is_whole() {
    let mut story = Story::new(Mode::Whole, 1);
    story.snapshot(7, vec![placement("t", "a", 1)]);
    assert_eq!(story.answer("t"), None);
    // Caught up is what makes it whole, not the first changes.
    story.message(
        "j",
        Piece::Changes(proto::Changes { changes: vec![placed(8, "t", "b", 2)] }),
        8,
        false,
    );
    assert_eq!(story.answer("t"), None);
    let actions = story.changes(9, vec![]);
    assert_eq!(story.answer("t"), Some((2, Duration::ZERO)));
    assert!(matches!(actions[..], [Action::Sync { .. }]), "the first renewal is asked for at once");
}

#[test]
fn a_renewal_counts_from_its_sending_and_waits_for_its_position() {
    let mut story = Story::new(Mode::Whole, 1);
    story.snapshot(7, vec![placement("t", "a", 1)]);
    story.changes(7, vec![]);
    story.pass(2 * SECOND / 10);
    story.synced("j", 9);
    assert_eq!(story.answer("t"), Some((1, Duration::ZERO)), "entries 8 and 9 are not applied");
    story.pass(SECOND / 10);
    story.changes(8, vec![]);
    assert_eq!(story.answer("t"), Some((1, Duration::ZERO)), "entry 9 is not applied");
    story.changes(9, vec![placed(9, "t", "b", 2)]);
    assert_eq!(
        story.answer("t"),
        Some((2, 47 * SECOND / 10)),
        "three tenths of a second since it was sent"
    );
}

#[test]
fn an_answer_older_than_what_the_watch_told_is_not_kept() {
    let mut story = Story::new(Mode::Bounded { capacity: 10 }, 1);
    story.changes(7, vec![]);
    // (b) The watch has told of a move that the client had no reason to note.
    story.changes(8, vec![placed(8, "t", "b", 2)]);
    let ticket = story.follower.begin("t");
    let late = story.fetched("a", 1, 7);
    assert!(matches!(story.follower.settle(story.now, &ticket, &late, false), Settled::Answer(_)));
    story.follower.end(&ticket);
    story.synced("j", 8);
    assert_eq!(
        story.answer("t"),
        Some((1, Duration::ZERO)),
        "a renewal covers what is exact and nothing else"
    );
    // One that is up to date is kept and covered.
    let ticket = story.follower.begin("t");
    let fresh = story.fetched("b", 2, 8);
    story.follower.settle(story.now, &ticket, &fresh, false);
    assert_eq!(story.answer("t"), Some((2, 5 * SECOND)));
}

#[test]
fn a_change_that_overtakes_a_question_wins() {
    let mut story = Story::new(Mode::Bounded { capacity: 10 }, 1);
    story.changes(7, vec![]);
    let ticket = story.follower.begin("t");
    let late = story.fetched("a", 1, 7);
    // (a) While the answer is under way the tenant moves.
    story.changes(8, vec![placed(8, "t", "b", 2)]);
    let settled = story.follower.settle(story.now, &ticket, &late, false);
    assert!(
        matches!(settled, Settled::Answer(resolved) if resolved.held.epoch == 2),
        "{settled:?}"
    );
    // And leaves.
    let ticket = story.follower.begin("u");
    let late = story.fetched("a", 4, 8);
    story.changes(9, vec![vacated(9, "u", "a", 4)]);
    assert!(matches!(
        story.follower.settle(story.now, &ticket, &late, false),
        Settled::Over { epoch: 4 }
    ));
    assert_eq!(story.answer("u"), None);
}

#[test]
fn a_lower_epoch_than_was_told_is_doubted() {
    let mut story = Story::new(Mode::Bounded { capacity: 1 }, 1);
    story.changes(7, vec![]);
    let ticket = story.follower.begin("t");
    let fresh = story.fetched("b", 5, 7);
    story.follower.settle(story.now, &ticket, &fresh, false);
    for n in 0..20 {
        let key = format!("other-{n}");
        let ticket = story.follower.begin(&key);
        let other = story.fetched("a", 1, 7);
        story.follower.settle(story.now, &ticket, &other, true);
    }
    assert_eq!(story.answer("t"), None, "evicted");
    let ticket = story.follower.begin("t");
    let old = story.fetched("a", 4, 7);
    assert!(matches!(
        story.follower.settle(story.now, &ticket, &old, false),
        Settled::Doubtful { epoch: 4 }
    ));
}

#[test]
fn a_broken_watch_goes_on_elsewhere_from_its_token() {
    let mut story = Story::new(Mode::Whole, 2);
    story.snapshot(7, vec![placement("t", "a", 1)]);
    story.changes(7, vec![]);
    let first = story.follower.alive().unwrap();
    story.end_watch(FailureKind::Passing);
    assert_eq!(story.answer("t").unwrap().0, 1);
    let actions = story.pass(SECOND);
    assert_eq!(watch_request(&actions).unwrap().resume_token, "j:7");
    // The other replica lags: what it tells again is known.
    story.changes(5, vec![placed(5, "t", "b", 9)]);
    assert_ne!(story.follower.alive().unwrap(), first);
    assert_eq!(story.answer("t").unwrap().0, 1);
    assert_eq!(story.follower.position().applied, 7);
    assert_eq!(story.follower.position().token, "j:7");
}

#[test]
fn silence_is_a_broken_watch() {
    let mut story = Story::new(Mode::Whole, 2);
    story.snapshot(7, vec![]);
    story.changes(7, vec![]);
    let silence = Options::default().watch_silence;
    story.pass(silence - SECOND / 1000);
    assert!(story.follower.alive().is_some());
    let actions = story.pass(SECOND / 1000);
    assert!(actions.iter().any(|action| matches!(action, Action::CloseWatch)));
    assert_eq!(story.follower.alive(), None);
}

#[test]
fn an_expired_token_begins_anew_and_loses_nothing_meanwhile() {
    let mut story = Story::new(Mode::Whole, 1);
    story.snapshot(7, vec![placement("t", "a", 1), placement("gone", "a", 3)]);
    story.changes(7, vec![]);
    story.synced("j", 7);
    story.end_watch(FailureKind::ResumeTokenExpired);
    let actions = story.pass(SECOND);
    assert_eq!(watch_request(&actions).unwrap().resume_token, "");
    story.snapshot(20, vec![placement("t", "b", 4)]);
    assert_eq!(story.answer("t").unwrap().0, 1, "the old picture answers");
    assert_eq!(story.answer("gone").unwrap().0, 3);
    // A lagging replica's snapshot must catch up with us first.
    story.changes(20, vec![]);
    assert_eq!(story.answer("t").unwrap().0, 4);
    assert_eq!(story.answer("gone"), None);
    assert_eq!(story.shared.floors.floor("gone"), 3);
}

#[test]
fn a_snapshot_from_behind_is_not_put_in_place() {
    let mut story = Story::new(Mode::Whole, 1);
    story.snapshot(6, vec![placement("t", "b", 2), placement("gone", "a", 4)]);
    story.changes(6, vec![]);
    story.changes(7, vec![vacated(7, "gone", "a", 4)]);
    story.synced("j", 7);
    story.end_watch(FailureKind::ResumeTokenExpired);
    story.pass(SECOND);
    story.snapshot(5, vec![placement("t", "a", 1), placement("gone", "b", 3)]);
    story.changes(5, vec![]);
    assert_eq!(story.answer("t").unwrap().0, 2);
    assert_eq!(
        story.answer("gone"),
        None,
        "what is over does not come back, and with the lease of position 7"
    );
    story.changes(7, vec![placed(6, "t", "b", 2), vacated(7, "gone", "a", 4)]);
    story.changes(8, vec![placed(8, "t", "c", 3)]);
    assert_eq!(story.answer("t").unwrap().0, 3);
}

#[test]
fn another_journal_ends_every_lease_and_begins_anew() {
    let mut story = Story::new(Mode::Whole, 1);
    story.snapshot(7, vec![placement("t", "a", 5)]);
    story.changes(7, vec![]);
    story.synced("j", 7);
    assert!(!story.answer("t").unwrap().1.is_zero());
    story.pass(SECOND);
    let actions = story.synced("k", 3);
    assert!(matches!(actions[..], [Action::CloseWatch]));
    assert_eq!(story.answer("t"), Some((5, Duration::ZERO)));
    story.pass(SECOND);
    story.end_watch(FailureKind::ResumeTokenExpired);
    story.pass(SECOND);
    let part = proto::SnapshotPart { placements: vec![placement("t", "b", 2)], cells: Vec::new() };
    story.message("k", Piece::Snapshot(part), 3, false);
    story.message("k", Piece::Changes(proto::Changes::default()), 3, true);
    assert_eq!(story.answer("t").unwrap().0, 2, "the restored table is the truth");
    // A replica that has not noticed yet must not sneak in what it remembers.
    let ticket = story.follower.begin("u");
    let old = story.fetched("a", 9, 7);
    story.follower.settle(story.now, &ticket, &old, false);
    story.pass(SECOND);
    story.synced("k", 3);
    assert_eq!(story.answer("t"), Some((2, 5 * SECOND)));
    assert_eq!(story.answer("u").unwrap().1, Duration::ZERO);
}

#[test]
fn a_bounded_memory_asks_again_for_what_it_holds_after_a_gap() {
    let mut story = Story::new(Mode::Bounded { capacity: 10 }, 1);
    story.changes(7, vec![]);
    let ticket = story.follower.begin("t");
    let fresh = story.fetched("a", 1, 7);
    story.follower.settle(story.now, &ticket, &fresh, false);
    story.synced("j", 7);
    assert!(!story.answer("t").unwrap().1.is_zero());
    story.end_watch(FailureKind::ResumeTokenExpired);
    story.pass(SECOND);
    let actions = story.changes(20, vec![]);
    let request = actions.iter().find_map(|action| match action {
        Action::Refresh { request, .. } => Some(request),
        _ => None,
    });
    assert_eq!(request.unwrap().partition_keys, ["t"]);
    story.synced("j", 20);
    assert_eq!(story.answer("t"), Some((1, Duration::ZERO)));
    let result = proto::BatchResolveResult {
        outcome: Some(proto::batch_resolve_result::Outcome::Placement(placement("", "b", 2))),
        decision: Some(proto::Decision { authoritative: true, ..Default::default() }),
    };
    let answer =
        proto::BatchResolveResponse { results: vec![result], sequence: 20, ..Default::default() };
    story.event(Event::Refreshed(Ok(answer)));
    story.pass(SECOND);
    story.synced("j", 20);
    assert_eq!(story.answer("t").map(|(epoch, lease)| (epoch, lease.is_zero())), Some((2, false)));
}

#[test]
fn a_stream_that_goes_backwards_is_dropped() {
    let mut story = Story::new(Mode::Whole, 1);
    story.snapshot(7, vec![]);
    story.changes(7, vec![]);
    let actions = story.changes(6, vec![]);
    assert!(matches!(actions[..], [Action::CloseWatch]));
}
