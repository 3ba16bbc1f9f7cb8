//! What a writer must come to by each state of a guard and each thing that goes wrong, whatever language it is in.

use std::collections::HashSet;
use std::time::Duration;

use cells_migration::GuardState::{Fenced, Incoming, Moved, Open};
use cells_migration::WriteMode::{Direct, Logged};
use serde_json::json;

use crate::proxy::{Fault, Rule};
use crate::world::{Case, LONG, NONE, World, guard_of, key_in_log, logged};

const PLAIN: &[&str] = &["PutItem", "UpdateItem", "DeleteItem"];
pub const TRANSACTION: &str = "TransactWriteItems";

/// A lease that is over before an answer that takes as long.
const SHORT: Duration = Duration::from_secs(2);

/// For a call that cannot come to anything.
const SOON: Duration = Duration::from_millis(700);

fn lay(case: &Case<'_>, operations: &'static [&'static str], fault: Fault, times: usize) {
    let rule = Rule::on(operations, fault).containing(&format!("#{}\"", case.tenant)).times(times);
    case.world.proxy.lay(rule);
}

/// The log of a cell has one record for each of the writes, and no other.
async fn logged_once(case: &Case<'_>, cell: usize, writes: &[serde_json::Value]) {
    let mut touched = Vec::new();
    for (_, record) in case.log(cell).await {
        touched.extend(record.touched);
    }
    let name = &case.tenant;
    assert_eq!(touched.len(), writes.len(), "{name}: {touched:?}");
    for write in writes {
        let params = &write["params"];
        let whole =
            key_in_log_of(if params["Key"].is_object() { &params["Key"] } else { &params["Item"] });
        let found = touched.iter().any(|t| t.table == write["table"] && t.key == whole);
        assert!(found, "{name}: {write} is not among {touched:?}");
    }
}

fn key_in_log_of(whole: &serde_json::Value) -> cells_guard::Item {
    let mut key = whole.clone();
    key.as_object_mut().unwrap().retain(|name, _| name == "PK" || name == "SK");
    key_in_log(&key)
}

pub async fn under_a_lease_a_write_is_plain(world: &World) {
    let case = world.case("plain");
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    case.write(&[case.put("a", "1")], "done").await;
    case.write(&[case.put("b", "2")], "done").await;
    case.write(&[case.delete("a")], "done").await;
    assert_eq!((case.value(0, "a").await, case.value(0, "b").await.as_deref()), (None, Some("2")));
    assert_eq!(
        [case.calls(TRANSACTION), case.calls("PutItem"), case.calls("DeleteItem")],
        [0, 2, 1]
    );
}

pub async fn an_answer_after_the_lease_does_not_count(world: &World) {
    let case = world.case("late");
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, SHORT.as_secs_f64())]);
    lay(&case, PLAIN, Fault::Slow(SHORT), 1);
    case.write(&[case.put("a", "1")], "done").await;
    assert_eq!(case.value(0, "a").await.as_deref(), Some("1"));
    assert_eq!([case.calls("PutItem"), case.calls(TRANSACTION)], [1, 1]);
}

pub async fn a_lease_is_counted_from_the_question(world: &World) {
    let time = Duration::from_millis(300);
    let case = world.case("asked-long-ago").resolved_after(time);
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, time.as_secs_f64())]);
    case.write(&[case.put("a", "1")], "done").await;
    assert_eq!([case.calls("PutItem"), case.calls(TRANSACTION)], [0, 1]);
}

/// The tenant has moved by the time that the lease is over, and what a late plain write left behind is not taken for done.
pub async fn a_late_write_is_done_where_the_tenant_is(world: &World) {
    let case = world.case("late-and-moved");
    case.guard(0, &guard_of(0, Moved, 2)).await;
    case.guard(1, &logged(guard_of(1, Open, 2))).await;
    case.routes(&[(0, 1, Direct, SHORT.as_secs_f64()), (1, 2, Logged, NONE)]);
    lay(&case, PLAIN, Fault::Slow(SHORT), 1);
    let asked = case.write(&[case.put("a", "1")], "done").await;
    assert_eq!((asked, case.value(1, "a").await.as_deref()), (vec![0, 2], Some("1")));
    logged_once(&case, 1, &[case.put("a", "1")]).await;
}

pub async fn a_lost_reply_is_asked_for_under_guard(world: &World) {
    let case = world.case("lost-plain");
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    lay(&case, PLAIN, Fault::LoseReply, 1);
    case.write(&[case.put("a", "1")], "done").await;
    // The SDK did not send it again by itself.
    assert_eq!(case.calls("PutItem"), 1);
    logged_once(&case, 0, &[case.put("a", "1")]).await;
}

pub async fn what_cannot_be_repeated_is_never_plain(world: &World) {
    let case = world.case("unrepeatable");
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    lay(&case, &[TRANSACTION], Fault::LoseReply, 1);
    case.write(&[case.count()], "done").await;
    lay(&case, &[TRANSACTION], Fault::LoseReply, 1);
    // Its own first attempt made the condition false.
    case.write(&[case.create("a", "1")], "done").await;
    assert_eq!(
        (case.counted(0).await.as_deref(), case.value(0, "a").await.as_deref()),
        (Some("1"), Some("1"))
    );
    case.write(&[case.create("a", "2"), case.count()], "condition failed").await;
    assert_eq!(
        (case.counted(0).await.as_deref(), case.value(0, "a").await.as_deref()),
        (Some("1"), Some("1"))
    );
    assert_eq!([case.calls("PutItem"), case.calls("UpdateItem")], [0, 0]);
}

pub async fn without_a_lease_a_write_is_checked(world: &World) {
    let case = world.case("checked");
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, NONE)]);
    case.write(&[case.put("a", "1"), case.put("b", "1")], "done").await;
    // The directory is down from here on.
    case.routes(&[]);
    case.write(&[case.put("c", "1")], "done").await;
    for sort in ["a", "b", "c"] {
        assert_eq!(case.value(0, sort).await.as_deref(), Some("1"), "{sort}");
    }
    assert_eq!([case.calls("PutItem"), case.calls(TRANSACTION)], [0, 2]);
    assert!(case.log(0).await.is_empty());
}

pub async fn while_a_tenant_moves_every_write_leaves_a_record(world: &World) {
    let case = world.case("logged");
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    // The directory has not heard of the migration yet; and then it has.
    case.routes(&[(0, 1, Direct, NONE)]);
    let mut writes = vec![case.put("0", "1"), case.count()];
    case.write(&writes, "done").await;
    for n in 1..13 {
        let put = case.put(&n.to_string(), "1");
        case.write(std::slice::from_ref(&put), "done").await;
        writes.push(put);
    }
    logged_once(&case, 0, &writes).await;
    let log = case.log(0).await;
    assert_eq!(log.len(), 13);
    // One record for the two writes of one call.
    assert_eq!(log.iter().filter(|(_, record)| record.touched.len() == 2).count(), 1);
    assert!(log.iter().map(|(shard, _)| *shard).collect::<HashSet<_>>().len() > 1, "{log:?}");
    // What is known of the migration is kept: the first write was refused once, none after it.
    assert_eq!(case.calls(TRANSACTION), 14);
    when_the_migration_ends_its_shards_go(&case).await;
}

/// Most of the times the shard that the writer takes is gone. What is true it learns from the guard alone.
async fn when_the_migration_ends_its_shards_go(case: &Case<'_>) {
    case.routes(&[]);
    let before = case.log(0).await.len();
    for n in 0..6 {
        case.guard(0, &guard_of(0, Open, 1)).await;
        case.write(&[case.put("a", &n.to_string())], "done").await;
        assert_eq!(case.value(0, "a").await, Some(n.to_string()));
        case.guard(0, &logged(guard_of(0, Open, 1))).await;
        case.write(&[case.put("b", &n.to_string())], "done").await;
        assert_eq!(case.log(0).await.len(), before + 1 + n);
    }
}

pub async fn a_directory_that_says_logged_is_asked_no_more(world: &World) {
    let case = world.case("told-logged");
    case.guard(0, &logged(guard_of(0, Open, 5))).await;
    case.routes(&[(0, 5, Logged, LONG)]);
    let writes = [case.put("a", "1"), case.put("b", "1")];
    assert_eq!(case.write(&writes[..1], "done").await, [0]);
    assert_eq!(case.write(&writes[1..], "done").await, [0; 0]);
    // The guard was read before the first, so nothing was refused.
    assert_eq!([case.calls(TRANSACTION), case.calls("PutItem")], [2, 0]);
    logged_once(&case, 0, &writes).await;
}

pub async fn a_lost_reply_leaves_one_record(world: &World) {
    let case = world.case("lost-logged");
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    case.routes(&[(0, 1, Logged, NONE)]);
    lay(&case, &[TRANSACTION], Fault::LoseReply, 2);
    case.write(&[case.count()], "done").await;
    assert_eq!((case.counted(0).await.as_deref(), case.calls(TRANSACTION)), (Some("1"), 3));
    logged_once(&case, 0, &[case.count()]).await;
}

pub async fn a_table_that_is_busy_is_tried_again(world: &World) {
    for (name, fault) in [
        ("conflict", Fault::CONFLICT),
        ("throughput", Fault::Cancelled("ThrottlingError")),
        ("throttled", Fault::THROTTLING),
        ("failing", Fault::INTERNAL),
    ] {
        let case = world.case(name);
        case.guard(0, &logged(guard_of(0, Open, 1))).await;
        case.routes(&[(0, 1, Logged, NONE)]);
        lay(&case, &[TRANSACTION], fault, 2);
        case.write(&[case.count()], "done").await;
        assert_eq!(
            (case.counted(0).await.as_deref(), case.calls(TRANSACTION)),
            (Some("1"), 3),
            "{name}"
        );
        logged_once(&case, 0, &[case.count()]).await;
    }
}

pub async fn what_is_refused_for_another_reason_is_said_at_once(world: &World) {
    let case = world.case("denied");
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    lay(&case, &["PutItem", TRANSACTION], Fault::DENIED, usize::MAX);
    for write in [case.put("a", "1"), case.create("a", "1")] {
        case.begin(&[write]);
        case.comes_to("error").await;
    }
    assert_eq!([case.calls("PutItem"), case.calls(TRANSACTION)], [1, 1]);
}

pub async fn a_fence_is_waited_out(world: &World) {
    let case = world.case("fenced");
    case.guard(0, &logged(guard_of(0, Fenced, 1))).await;
    case.routes(&[(0, 1, Direct, NONE)]);
    case.begin(&[case.put("a", "1")]);
    case.came("GetItem", 2).await;
    assert_eq!((case.value(0, "a").await, case.log(0).await.len()), (None, 0));
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    case.comes_to("done").await;
    assert_eq!(case.value(0, "a").await.as_deref(), Some("1"));
    logged_once(&case, 0, &[case.put("a", "1")]).await;
    // While it waits it reads the guard, which costs less than a transaction that fails.
    assert_eq!(case.calls(TRANSACTION), 2);
}

pub async fn a_fence_that_outlasts_the_deadline_lets_nothing_pass(world: &World) {
    let case = world.case("fenced-for-long").within(SOON);
    case.guard(0, &logged(guard_of(0, Fenced, 1))).await;
    case.routes(&[(0, 1, Logged, NONE)]);
    case.write(&[case.put("a", "1")], "refused").await;
    // A plain write whose reply was lost may have been done before the fence.
    let case = world.case("fenced-after-lost").within(SOON);
    case.guard(0, &logged(guard_of(0, Fenced, 1))).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    lay(&case, PLAIN, Fault::LoseReply, 1);
    case.write(&[case.put("a", "1")], "unknown").await;
    assert!(case.log(0).await.is_empty());
}

pub async fn a_moved_tenant_is_followed(world: &World) {
    let case = world.case("moved");
    case.guard(0, &logged(guard_of(0, Moved, 2))).await;
    case.guard(1, &logged(guard_of(1, Open, 2))).await;
    case.routes(&[(0, 1, Direct, NONE), (1, 2, Logged, NONE)]);
    let asked = case.write(&[case.count()], "done").await;
    // What the guard says is the least that the directory must know.
    assert_eq!(asked, [0, 2]);
    assert_eq!((case.counted(0).await, case.counted(1).await.as_deref()), (None, Some("1")));
    logged_once(&case, 1, &[case.count()]).await;
    assert!(case.log(0).await.is_empty());
    // The next write knows the way.
    assert_eq!(case.write(&[case.count()], "done").await, [0; 0]);
}

/// And the shard that the writer took is gone with the migration.
pub async fn a_tenant_that_moved_long_ago_is_followed(world: &World) {
    let case = world.case("moved-long-ago");
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    case.routes(&[(0, 1, Logged, NONE)]);
    case.write(&[case.put("a", "1")], "done").await;
    case.guard(0, &guard_of(0, Moved, 2)).await;
    case.guard(1, &guard_of(1, Open, 2)).await;
    case.routes(&[(1, 2, Direct, LONG)]);
    for n in 0..4 {
        case.write(&[case.put(&n.to_string(), "2")], "done").await;
        assert_eq!(case.value(1, &n.to_string()).await.as_deref(), Some("2"));
        assert_eq!(case.value(0, &n.to_string()).await, None);
    }
    assert_eq!(case.log(0).await.len(), 1);
}

pub async fn a_tenant_that_moves_on_and_on_is_not_chased(world: &World) {
    let case = world.case("moved-twice");
    case.guard(0, &guard_of(0, Moved, 2)).await;
    case.guard(1, &guard_of(1, Moved, 3)).await;
    case.routes(&[(0, 1, Direct, NONE), (1, 2, Direct, NONE), (0, 3, Direct, NONE)]);
    assert_eq!(case.write(&[case.put("a", "1")], "refused").await, [0, 2]);
    assert_eq!((case.value(0, "a").await, case.value(1, "a").await), (None, None));
}

pub async fn a_cell_without_a_guard_is_not_written_to(world: &World) {
    let old_copy = guard_of(0, Open, 1);
    let of_another_cell = guard_of(1, Open, 2);
    for (name, stored) in
        [("unguarded", None), ("old", Some(old_copy)), ("foreign", Some(of_another_cell))]
    {
        let case = world.case(name);
        if let Some(stored) = stored {
            case.guard(0, &stored).await;
        }
        case.routes(&[(0, 2, Direct, NONE)]);
        case.write(&[case.put("a", "1")], "refused").await;
        assert_eq!(case.value(0, "a").await, None, "{name}");
        case.begin_get("a");
        case.comes_to("refused").await;
    }
}

pub async fn a_cell_that_is_about_to_open_is_waited_for(world: &World) {
    let case = world.case("incoming");
    case.guard(1, &logged(guard_of(1, Incoming, 2))).await;
    case.routes(&[(1, 2, Logged, NONE)]);
    case.begin(&[case.put("a", "1")]);
    case.came("GetItem", 3).await;
    assert_eq!(case.value(1, "a").await, None);
    case.guard(1, &logged(guard_of(1, Open, 2))).await;
    assert_eq!(case.comes_to("done").await.asked, [0]);
    logged_once(&case, 1, &[case.put("a", "1")]).await;
    // Not for one that the tenant left, and is on its way back to.
    let case = world.case("incoming-again");
    case.guard(0, &logged(guard_of(0, Incoming, 3))).await;
    case.guard(1, &logged(guard_of(1, Open, 2))).await;
    case.routes(&[(0, 1, Direct, NONE), (1, 2, Logged, NONE)]);
    assert_eq!(case.write(&[case.put("a", "1")], "done").await, [0, 2]);
    assert_eq!((case.value(0, "a").await, case.value(1, "a").await.as_deref()), (None, Some("1")));
}

pub async fn a_strict_read_is_of_the_cell_that_has_the_tenant(world: &World) {
    let case = world.case("read");
    case.guard(0, &guard_of(0, Open, 1)).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    case.write(&[case.put("a", "old")], "done").await;
    case.begin_get("a");
    assert_eq!(case.comes_to("done").await.item["Value"], json!({ "S": "old" }));
    case.begin_get("none");
    assert!(case.comes_to("done").await.item.is_null());
    // Under the fence it waits, and what it finds then is where the tenant went.
    case.guard(0, &logged(guard_of(0, Fenced, 1))).await;
    case.routes(&[(1, 2, Direct, NONE)]);
    let before = case.calls("GetItem");
    case.begin_get("a");
    case.came("GetItem", before + 3).await;
    case.guard(1, &guard_of(1, Open, 2)).await;
    case.guard(0, &logged(guard_of(0, Moved, 2))).await;
    let answer = case.comes_to("done").await;
    assert_eq!((answer.item.is_null(), answer.asked), (true, vec![2]));
}

pub async fn a_write_that_is_never_answered_is_unknown(world: &World) {
    let case = world.case("never-answered").within(SOON);
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    case.routes(&[(0, 1, Logged, NONE)]);
    lay(&case, &[TRANSACTION], Fault::LoseReply, usize::MAX);
    case.write(&[case.count()], "unknown").await;
    assert!(case.calls(TRANSACTION) > 1);
    assert_eq!(case.counted(0).await.as_deref(), Some("1"));
    logged_once(&case, 0, &[case.count()]).await;
}

/// With an attempt's time so short that it is over before the test is.
pub async fn an_answer_that_does_not_come_is_asked_for_again(world: &World) {
    let case = world.case("hanging");
    case.guard(0, &logged(guard_of(0, Open, 1))).await;
    case.routes(&[(0, 1, Direct, LONG)]);
    lay(&case, PLAIN, Fault::HangReply, 1);
    lay(&case, &[TRANSACTION], Fault::HangReply, 1);
    case.write(&[case.put("a", "1")], "done").await;
    assert_eq!(case.calls("PutItem"), 1);
    logged_once(&case, 0, &[case.put("a", "1")]).await;
}
