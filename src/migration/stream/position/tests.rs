use super::*;

const MARKER: (u64, u32) = (3, 1);

fn shard(id: &str, parents: &[&str], closed: bool) -> Shard {
    let number = |text: &str| SequenceNumber::new(text).unwrap();
    Shard {
        id: ShardId::new(id),
        parents: parents.iter().map(|id| ShardId::new(*id)).collect(),
        start: Some(number("100")),
        end: closed.then(|| number("200")),
    }
}

fn names(readable: Vec<(ShardId, At)>) -> Vec<String> {
    readable.into_iter().map(|(id, _)| id.to_string()).collect()
}

fn after(number: &str) -> At {
    At::After(number.to_owned())
}

#[test]
fn what_was_closed_and_has_children_is_left_out_and_everything_else_is_read_from_its_beginning() {
    let listed = [
        shard("old", &[], true),
        shard("open", &["old"], false),
        // Its children are not listed yet, or there is an end to what is no end: it is read to be sure.
        shard("ends", &[], true),
    ];
    let position = TablePosition::listen("arn".to_owned(), &listed);
    let readable = position.readable(&listed);
    assert!(readable.iter().all(|(_, at)| *at == At::Begin));
    assert_eq!(names(readable), ["ends", "open"]);
}

#[test]
fn a_shard_that_came_later_is_read_after_its_parents() {
    let before = [shard("parent", &[], false)];
    let mut position = TablePosition::listen("arn".to_owned(), &before);
    let later = [
        shard("parent", &[], true),
        shard("child", &["parent"], false),
        // Nothing is known of where it comes from, so nothing of it may be missed.
        shard("stranger", &["trimmed"], false),
    ];
    position.learn(&later);
    assert_eq!(names(position.readable(&later)), ["parent", "stranger"]);
    position.reached(&ShardId::new("parent"), At::End, None);
    assert_eq!(names(position.readable(&later)), ["child", "stranger"]);
    // What is known is not forgotten by a listing that shows it again, or does not show it.
    position.reached(&ShardId::new("child"), after("7"), None);
    position.learn(&later);
    assert_eq!(position.readable(&[])[0], (ShardId::new("child"), after("7")));
}

#[test]
fn what_is_over_and_listed_no_more_is_forgotten_once_its_children_are_known() {
    let before = [shard("old", &[], true), shard("a", &["old"], false)];
    let mut position = TablePosition::listen("arn".to_owned(), &before);
    position.reached(&ShardId::new("a"), At::End, None);
    // Nobody has said what came of it.
    position.learn(&[]);
    assert_eq!(position.shards.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(position.without(MARKER, &[]), 1);
    let later = [shard("b", &["a"], false)];
    position.learn(&later);
    assert_eq!(position.shards.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(names(position.readable(&later)), ["b"]);
    assert_eq!(position.without(MARKER, &later), 1);
}

#[test]
fn a_marker_is_passed_when_it_is_before_the_position_in_every_open_shard() {
    let listed = [shard("a", &[], false), shard("b", &[], false)];
    let mut position = TablePosition::listen("arn".to_owned(), &listed);
    assert_eq!(position.without(MARKER, &listed), 2);
    position.reached(&ShardId::new("a"), after("5"), Some(MARKER));
    position.reached(&ShardId::new("b"), after("9"), None);
    assert_eq!(position.without(MARKER, &listed), 1);
    // One of an earlier worker, or an earlier one of this, says nothing.
    for other in [(2, 1), (3, 0)] {
        position.reached(&ShardId::new("b"), after("9"), Some(other));
        assert_eq!(position.without(MARKER, &listed), 1, "{other:?}");
    }
    position.reached(&ShardId::new("b"), after("10"), Some(MARKER));
    // What is read further does not forget it.
    position.reached(&ShardId::new("a"), after("6"), None);
    assert_eq!(position.without(MARKER, &listed), 0);
}

#[test]
fn children_are_behind_a_marker_that_all_of_their_parents_were_read_beyond() {
    let before = [shard("a", &[], false)];
    let mut position = TablePosition::listen("arn".to_owned(), &before);
    let split = [shard("a", &[], true), shard("b", &["a"], true), shard("c", &["b"], false)];
    position.learn(&split);
    position.reached(&ShardId::new("a"), after("5"), Some(MARKER));
    // The parent may hold more.
    assert_eq!(position.without(MARKER, &split), 2);
    position.reached(&ShardId::new("a"), At::End, None);
    // The child as a whole, and what comes of it when it was read.
    assert_eq!(position.without(MARKER, &split), 1);
    position.reached(&ShardId::new("b"), At::End, None);
    assert_eq!(position.without(MARKER, &split), 0);
}

#[test]
fn a_shard_that_ended_without_the_marker_is_asked_for_by_its_children() {
    let before = [shard("a", &[], false)];
    let mut position = TablePosition::listen("arn".to_owned(), &before);
    position.reached(&ShardId::new("a"), At::End, None);
    // Its children are still to be listed: there is something that was not read.
    assert_eq!(position.without(MARKER, &[shard("a", &[], true)]), 1);
    let split = [shard("a", &[], true), shard("b", &["a"], false)];
    position.learn(&split);
    assert_eq!(position.without(MARKER, &split), 1);
    position.reached(&ShardId::new("b"), after("6"), Some(MARKER));
    assert_eq!(position.without(MARKER, &split), 0);
}

#[test]
fn what_may_have_left_the_stream_is_not_trusted() {
    let mut position = Position::new(1_000_000, BTreeMap::new());
    assert!(position.kept(1_000_000 + TRUSTED_SECS - 1));
    assert!(!position.kept(1_000_000 + TRUSTED_SECS));
    // Read to the end ten hours later, as seen a little earlier than that.
    let now = 1_000_000 + 10 * 3600;
    position.current(now);
    assert!(position.kept(now - STEP_SECS + TRUSTED_SECS - 1));
    assert!(!position.kept(now - STEP_SECS + TRUSTED_SECS));
    let before = position.clone();
    position.current(now + STEP_SECS - 1);
    assert_eq!(position, before, "it is not written for so little");
}

#[test]
fn a_position_is_read_as_it_was_written() {
    let listed = [shard("a", &[], true), shard("b", &["a"], false), shard("c", &[], false)];
    let mut table = TablePosition::listen("arn".to_owned(), &listed);
    table.reached(&ShardId::new("c"), after("123456789012345678901234567890"), Some(MARKER));
    let position = Position::new(7, [("Orders".to_owned(), table)].into());
    assert_eq!(Position::read(&position.cursor().unwrap()), Ok(position));
    assert!(Position::read(&Cursor(b"else".to_vec())).is_err());
}
