//! The span tree of each source, from the caller down to DynamoDB.

use std::collections::BTreeSet;

use cell_directory::proto::v1;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::harness::{Caller, SOON, Traced, ask, assert_attributes, resolve};
use crate::otlp::{OtlpReceiver, Span, Spans};
use crate::relay::{Mute, closed_port};

const RESOLVE: &str = "cells.v1.CellDirectory/Resolve";
const QUIET: [&str; 2] = ["--trace-sample-ratio", "0"];

/// The server's span: the caller's child, and the only one.
#[track_caller]
fn server_span<'a>(spans: &'a Spans, caller: &Caller, method: &str) -> &'a Span {
    let server = spans.one(method);
    assert_eq!(server.kind, SpanKind::Server);
    assert_eq!(server.trace_id, caller.trace_id);
    assert_eq!(server.parent_span_id.as_ref(), Some(&caller.span_id), "{spans}");
    assert_eq!(server.str("rpc.system.name"), Some("grpc"));
    assert_eq!(server.str("rpc.method"), Some(method));
    assert_eq!(server.str("rpc.response.status_code"), Some("OK"));
    assert_attributes(server, &["rpc.system.name", "rpc.method", "rpc.response.status_code"]);
    assert!(!server.is_error);
    for span in &spans.0 {
        assert_eq!(span.flags & 1, 1, "{} is not sampled", span.name);
        assert_eq!(span.resource["service.name"], "celld".into());
        assert!(span.start_unix_nanos >= server.start_unix_nanos, "{spans}");
        assert!(span.end_unix_nanos >= span.start_unix_nanos, "{spans}");
    }
    server
}

/// The decision's span: the server's child, and the only one.
#[track_caller]
fn decision_span<'a>(spans: &'a Spans, server: &Span, source: &str, cell: &str) -> &'a Span {
    let decision = spans.one("cell.route");
    assert_eq!(spans.children(server), [decision], "{spans}");
    assert_eq!(decision.kind, SpanKind::Internal);
    assert_eq!(decision.str("cell.id"), Some(cell));
    assert_eq!(decision.str("cell.route.source"), Some(source));
    let hash = decision.str("cell.tenant.hash").unwrap();
    assert!(hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
    assert!(!decision.is_error);
    decision
}

/// What a decision says that rests on a placement.
#[track_caller]
fn assert_authoritative(decision: &Span, epoch: i64) {
    assert_eq!(decision.int("cell.route.epoch"), Some(epoch));
    assert_eq!(decision.bool("cell.route.authoritative"), Some(true));
    let age: f64 = decision.attr("cell.route.age_ms").unwrap().to_string().parse().unwrap();
    assert!((0.0..60_000.0).contains(&age), "{age}");
    assert_attributes(
        decision,
        &[
            "cell.id",
            "cell.route.source",
            "cell.route.epoch",
            "cell.route.age_ms",
            "cell.route.authoritative",
            "cell.tenant.hash",
        ],
    );
}

/// What a decision says that rests on nothing.
#[track_caller]
fn assert_guess(decision: &Span, reason: &str) {
    assert_eq!(decision.bool("cell.route.authoritative"), Some(false));
    assert_eq!(decision.str("cell.route.fallback_reason"), Some(reason));
    assert_attributes(
        decision,
        &[
            "cell.id",
            "cell.route.source",
            "cell.route.authoritative",
            "cell.route.fallback_reason",
            "cell.tenant.hash",
        ],
    );
}

/// A call to DynamoDB.
#[track_caller]
fn assert_call(span: &Span, operation: &str) {
    assert_eq!(span.kind, SpanKind::Client);
    assert!(span.name.starts_with(operation), "{}", span.name);
    assert_eq!(span.str("db.system.name"), Some("aws.dynamodb"));
    assert_eq!(span.str("db.operation.name"), Some(operation));
    assert!(span.attr("aws.dynamodb.table_names").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assigned_then_memory_then_table() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let key = ["--tenant-hash-key", "a key that all replicas share"];
    let more = [QUIET.as_slice(), &key].concat();
    let first = Traced::dev(data.path(), &collector, &more);
    let mut directory = first.directory().await;

    // Assigned: read, found to be new, and committed.
    let caller = Caller::sampled();
    let answer = resolve(&mut directory, caller.asks(ask("customer-1"))).await.unwrap();
    let (cell, source) = answer;
    assert_eq!(source, v1::DecisionSource::Assigned);
    let spans = caller.trace(&receiver, 5).await;
    let server = server_span(&spans, &caller, RESOLVE);
    let assigned = decision_span(&spans, server, "assigned", &cell);
    assert_authoritative(assigned, 1);
    let [read, commit] = spans.children(assigned)[..] else { panic!("{spans}") };
    assert_call(read, "GetItem");
    assert_eq!(read.str("db.collection.name"), Some("CellMappings"));
    assert_eq!(read.bool("aws.dynamodb.consistent_read"), Some(true));
    assert_eq!((commit.name.as_str(), commit.kind), ("cell.commit", SpanKind::Internal));
    assert_eq!(commit.str("cell.commit.outcome"), Some("committed"));
    assert_eq!(commit.int("cell.commit.commands"), Some(1));
    assert!(commit.int("cell.commit.sequence").unwrap() > 0);
    assert!(commit.links.is_empty(), "{:?}", commit.links);
    let [write] = spans.children(commit)[..] else { panic!("{spans}") };
    assert_call(write, "TransactWriteItems");
    let tenant = assigned.str("cell.tenant.hash").unwrap().to_owned();

    // Memory: nothing is asked of the table.
    let caller = Caller::sampled();
    let answer = resolve(&mut directory, caller.asks(ask("customer-1"))).await.unwrap();
    assert_eq!(answer, (cell.clone(), v1::DecisionSource::Memory));
    let spans = caller.trace(&receiver, 2).await;
    let server = server_span(&spans, &caller, RESOLVE);
    let held = decision_span(&spans, server, "memory", &cell);
    assert_authoritative(held, 1);
    assert_eq!(held.str("cell.tenant.hash"), Some(&*tenant));

    // Another tenant has another hash.
    let caller = Caller::sampled();
    resolve(&mut directory, caller.asks(ask("customer-2"))).await.unwrap();
    let spans = caller.trace(&receiver, 5).await;
    assert_ne!(spans.one("cell.route").str("cell.tenant.hash"), Some(&*tenant));

    // Table: a new process has nothing in memory; with the same key it names the tenant as the first did.
    first.end();
    let second = Traced::dev(data.path(), &collector, &more);
    let mut directory = second.directory().await;
    let caller = Caller::sampled();
    let answer = resolve(&mut directory, caller.asks(ask("customer-1"))).await.unwrap();
    assert_eq!(answer, (cell.clone(), v1::DecisionSource::Table));
    let spans = caller.trace(&receiver, 3).await;
    let server = server_span(&spans, &caller, RESOLVE);
    let found = decision_span(&spans, server, "table", &cell);
    assert_authoritative(found, 1);
    assert_eq!(found.str("cell.tenant.hash"), Some(&*tenant));
    let [read] = spans.children(found)[..] else { panic!("{spans}") };
    assert_call(read, "GetItem");
    second.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fallback_of_a_table_that_is_away_or_hangs() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let mute = Mute::start().await;
    let attempts = ["--retry-attempts", "2", "--lookup-budget", "500ms", "--read-timeout", "150ms"];
    for (endpoint, reason) in [(closed_port(), "unavailable"), (mute.endpoint(), "timeout")] {
        let more = [QUIET.as_slice(), &attempts].concat();
        let traced = Traced::serve(&endpoint, &collector, &more);
        let mut directory = traced.directory().await;
        let caller = Caller::sampled();
        let answer = resolve(&mut directory, caller.asks(ask("customer-1"))).await.unwrap();
        assert_eq!(answer, ("cell-z".to_owned(), v1::DecisionSource::Fallback));
        let spans = caller.trace(&receiver, 4).await;
        let server = server_span(&spans, &caller, RESOLVE);
        let guess = decision_span(&spans, server, "fallback", "cell-z");
        assert_guess(guess, reason);
        let reads = spans.children(guess);
        assert_eq!(reads.len(), 2, "each attempt has a span: {spans}");
        for read in reads {
            assert_call(read, "GetItem");
            assert!(read.is_error, "{spans}");
            let kind = if reason == "timeout" { "timeout" } else { "unreachable" };
            assert_eq!(read.str("error.type"), Some(kind));
        }
        traced.end();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_a_decision_for_each_key() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), &collector, &QUIET);
    let mut directory = traced.directory().await;
    for known in ["known-1", "known-2", "known-3"] {
        resolve(&mut directory, tonic::Request::new(ask(known))).await.unwrap();
    }
    let keys = ["known-1", "new-1", "", "known-2", "new-2", "new-3", "known-3", "new-4"];
    let batch = v1::BatchResolveRequest {
        partition_keys: keys.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let caller = Caller::sampled();
    let answer = directory.batch_resolve(caller.asks(batch)).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), keys.len());

    let method = "cells.v1.CellDirectory/BatchResolve";
    let decided = |spans: &Spans| {
        let spans = spans.in_trace(&caller.trace_id);
        spans.named(method).len() == 1
    };
    // The server's span ends last.
    let spans = receiver.wait_for_spans(decided, crate::harness::SOON).await;
    let spans = spans.in_trace(&caller.trace_id);
    let server = server_span(&spans, &caller, method);
    let decisions = spans.children(server);
    assert_eq!(decisions.len(), 7, "the empty key is refused before it is routed: {spans}");
    assert!(decisions.iter().all(|span| span.name == "cell.route"), "{spans}");
    let tenants: BTreeSet<_> = decisions.iter().map(|span| span.str("cell.tenant.hash")).collect();
    assert_eq!(tenants.len(), 7);
    let of = |source| {
        let chosen = decisions.iter().filter(|span| span.str("cell.route.source") == Some(source));
        chosen.copied().collect::<Vec<_>>()
    };
    let (held, assigned) = (of("memory"), of("assigned"));
    assert_eq!((held.len(), assigned.len()), (3, 4), "{spans}");
    assert!(held.iter().all(|span| spans.children(span).is_empty()), "{spans}");
    assert_read(&spans, &assigned);
    assert_served(&spans, &assigned);
    traced.end();
}

/// A span's trace and its own id.
type Id = (String, String);

fn ids(spans: &[&Span]) -> Vec<Id> {
    let mut ids: Vec<_> =
        spans.iter().map(|span| (span.trace_id.clone(), span.span_id.clone())).collect();
    ids.sort();
    ids
}

/// Those that work for several callers serves: the one that it is under, and those that it is linked to.
fn callers(work: &Span) -> impl Iterator<Item = Id> {
    let parent = (work.trace_id.clone(), work.parent_span_id.clone().unwrap());
    let linked = work.links.iter().map(|link| (link.trace_id.clone(), link.span_id.clone()));
    std::iter::once(parent).chain(linked)
}

/// Asserts that each of these decisions has one read: of its own, or shared with others.
#[track_caller]
fn assert_read(spans: &Spans, decisions: &[&Span]) {
    let mut served: Vec<_> = spans.named("cell.read").into_iter().flat_map(callers).collect();
    for read in spans.0.iter().filter(|span| span.name.starts_with("GetItem")) {
        let parent = spans.parent(read).unwrap();
        if parent.name != "cell.read" {
            served.extend(ids(&[parent]));
        }
    }
    served.sort();
    assert_eq!(served, ids(decisions), "{spans}");
}

/// Asserts that each of these decisions has one commit: as its child, or linked to it.
#[track_caller]
fn assert_served(spans: &Spans, decisions: &[&Span]) {
    let mut served = Vec::new();
    for commit in spans.named("cell.commit") {
        let of_this: Vec<_> = callers(commit).collect();
        assert_eq!(commit.int("cell.commit.commands"), Some(of_this.len() as i64), "{spans}");
        assert_eq!(spans.children(commit).len(), 1, "{spans}");
        if commit.str("cell.commit.outcome") == Some("committed") {
            served.extend(of_this);
        }
    }
    served.sort();
    assert_eq!(served, ids(decisions), "{spans}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_for_many_callers_is_linked_to_each() {
    const CALLERS: usize = 48;
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), &collector, &QUIET);
    let directory = traced.directory().await;
    let calls = (0..CALLERS).map(|number| {
        let mut directory = directory.clone();
        async move {
            let request = Caller::sampled().asks(ask(&format!("customer-{number}")));
            resolve(&mut directory, request).await.unwrap().1
        }
    });
    let sources = futures::future::join_all(calls).await;
    assert_eq!(sources, [v1::DecisionSource::Assigned; CALLERS]);
    let all = |spans: &Spans| spans.named(RESOLVE).len() == CALLERS;
    let spans = receiver.wait_for_spans(all, crate::harness::SOON).await;
    let decisions = spans.named("cell.route");
    assert_eq!(decisions.len(), CALLERS);
    assert_read(&spans, &decisions);
    assert_served(&spans, &decisions);
    let commits = spans.named("cell.commit");
    assert!(commits.len() < CALLERS, "nothing was committed together: {spans}");
    let other = |commit: &&Span| commit.links.iter().any(|link| link.trace_id != commit.trace_id);
    assert!(commits.iter().any(other), "{spans}");
    traced.end();
}

/// Where CellData goes is a decision under the call's span, too. The cell has no tables, which the call says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_route_of_cell_data_is_under_its_call() {
    use cell_directory::proto::v1::cell_data_client::CellDataClient;
    let data = tempfile::tempdir().unwrap();
    let (endpoint, receiver) = OtlpReceiver::start().await;
    let traced = Traced::dev(data.path(), &endpoint, &QUIET);
    traced.celld.ready().await;
    let mut directory = traced.directory().await;
    resolve(&mut directory, Caller::unsampled().asks(ask("a-tenant"))).await.unwrap();
    let caller = Caller::sampled();
    let request = v1::QueryRequest {
        partition_key: "a-tenant".to_owned(),
        table: "CustomerData".to_owned(),
        ..Default::default()
    };
    let mut client = CellDataClient::new(traced.celld.channel().await);
    assert!(client.query(caller.asks(request)).await.is_err());
    let spans = receiver
        .wait_for_spans(
            |spans| !spans.in_trace(&caller.trace_id).named("cell.route").is_empty(),
            SOON,
        )
        .await
        .in_trace(&caller.trace_id);
    let server = spans.one("cells.v1.CellData/Query");
    assert_eq!(server.parent_span_id.as_ref(), Some(&caller.span_id));
    let decision = spans.one("cell.route");
    assert_eq!(decision.parent_span_id.as_ref(), Some(&server.span_id), "{spans}");
    assert!(decision.str("cell.id").is_some_and(|cell| cell.starts_with("cell-")));
}
