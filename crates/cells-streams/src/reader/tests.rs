//! What the reader does where a stream could not be brought to show it.

use super::*;
use crate::event::{ChangeKind, Item, Record};
use crate::lease::{LeaseEpoch, Stamp};
use crate::{GroupName, SequenceNumber, StreamArn};

const HELD: Standing = Standing { lost: false, held_until: Duration::MAX, stopping: false };

fn reader(position: Position) -> Reader {
    let arn = "arn:aws:dynamodb:us-east-1:1:table/Orders-cell-a/stream/now";
    let source = Source {
        group: GroupName::new("reader").unwrap(),
        stream: StreamArn::new(arn).unwrap(),
        cell: "cell-a".into(),
    };
    let lease = Lease {
        shard: ShardId::new("shard"),
        parents: Vec::new(),
        position,
        since_secs: None,
        owner: None,
        stamp: Stamp { epoch: LeaseEpoch::NEVER_TAKEN, counter: 0 },
    };
    Reader::new(Duration::ZERO, Arc::new(source), &lease, &Options::default(), 1)
}

fn number(n: u64) -> SequenceNumber {
    SequenceNumber::new(n.to_string()).unwrap()
}

fn page(sequences: &[u64], open: bool) -> Result<RecordPage, StreamsError> {
    let of = |n: &u64| Record {
        id: String::new(),
        kind: ChangeKind::Insert,
        sequence: number(*n),
        created_secs: Some(1000),
        keys: Item::new(),
        old: None,
        new: None,
        expired: false,
    };
    let next = open.then(|| ShardIterator::new("next"));
    Ok(RecordPage { records: sequences.iter().map(of).collect(), next })
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn at_first_page(position: Position) -> Reader {
    let mut reader = reader(position);
    reader.got_iterator(secs(1), 1000, Ok(ShardIterator::new("first")), None);
    reader.got_records(secs(2), 1000, page(&[5, 6], true));
    reader
}

#[test]
fn no_delivery_begins_when_the_lease_may_be_over() {
    let reader = at_first_page(Position::Horizon);
    let until = |held_until| Standing { held_until, ..HELD };
    assert!(matches!(reader.next(secs(3), until(secs(4))), Step::Deliver(_)));
    assert_eq!(reader.next(secs(4), until(secs(4))), Step::Renew);
    let lost = Standing { lost: true, ..HELD };
    assert_eq!(reader.next(secs(3), lost), Step::Over(Ended::Lost));
}

#[test]
fn a_position_is_saved_only_once_the_sink_accepted() {
    let mut reader = at_first_page(Position::Horizon);
    reader.delivered(secs(3), false);
    assert!(matches!(reader.next(secs(3), HELD), Step::Wait(_)));
    assert!(matches!(reader.next(secs(60), HELD), Step::Deliver(_)));
    reader.delivered(secs(60), true);
    assert_eq!(reader.next(secs(60), HELD), Step::Checkpoint(Position::After(number(6))));
    // What came of it is not known: again, and nothing is read before.
    reader.checkpointed(secs(60), None);
    assert_eq!(reader.next(secs(120), HELD), Step::Checkpoint(Position::After(number(6))));
    reader.checkpointed(secs(120), Some(Claimed::Held));
    assert_eq!(reader.next(secs(120), HELD), Step::Records(ShardIterator::new("next")));
    // An iterator that expired: on after the last accepted record.
    reader.got_records(secs(121), 1000, Err(StreamsError::ExpiredIterator));
    assert_eq!(reader.next(secs(121), HELD), Step::Iterator(ReadFrom::After(number(6))));
}

#[test]
fn a_batch_at_hand_is_finished_before_a_stop() {
    let stopping = Standing { stopping: true, ..HELD };
    let mut reader = at_first_page(Position::Horizon);
    assert!(matches!(reader.next(secs(3), stopping), Step::Deliver(_)));
    reader.delivered(secs(3), true);
    assert!(matches!(reader.next(secs(3), stopping), Step::Checkpoint(_)));
    reader.checkpointed(secs(3), Some(Claimed::Held));
    assert_eq!(reader.next(secs(3), stopping), Step::Over(Ended::Stopped));
    let mut refused = at_first_page(Position::Horizon);
    refused.delivered(secs(3), false);
    assert_eq!(refused.next(secs(3), stopping), Step::Over(Ended::Stopped));
}

#[test]
fn a_shard_that_cannot_be_found_is_gone_only_if_a_later_listing_says_so() {
    let mut reader = reader(Position::After(number(6)));
    for (now, listed) in [
        (10, None),
        (20, Some(Listed { at: secs(5), shard: false })),
        (30, Some(Listed { at: secs(25), shard: true })),
    ] {
        reader.got_iterator(secs(now), 1000, Err(StreamsError::NotFound), listed);
        assert!(matches!(reader.next(secs(now), HELD), Step::Wait(_)), "{now}");
    }
    let listed = Some(Listed { at: secs(35), shard: false });
    reader.got_iterator(secs(40), 1000, Err(StreamsError::NotFound), listed);
    let Step::Deliver(delivery) = reader.next(secs(60), HELD) else { panic!("no gap") };
    let Delivery::Gap(gap) = &*delivery else { panic!("no gap") };
    assert_eq!((gap.cause, &gap.after), (GapCause::ShardGone, &Some(number(6))));
    reader.delivered(secs(60), true);
    assert_eq!(reader.next(secs(60), HELD), Step::Checkpoint(Position::LostEnd));
}
