//! What is exported: what the caller samples, the configured share of the rest, and in any case what went wrong.

use std::time::Duration;

use cell_directory::proto::v1;
use tonic::{Code, Request};

use crate::harness::{
    Caller, Cuttable, Directory, SOON, Traced, ask, ask_without_fallback, resolve,
};
use crate::otlp::{OtlpReceiver, Spans};

const RESOLVE: &str = "cells.v1.CellDirectory/Resolve";
const ATTEMPTS: [&str; 4] = ["--retry-attempts", "2", "--lookup-budget", "300ms"];

/// A call whose trace is exported and ends after all calls before it: when it is there, so is whatever they exported.
async fn marker(directory: &mut Directory, receiver: &OtlpReceiver) -> Spans {
    let marker = Caller::sampled();
    resolve(directory, marker.asks(ask("held"))).await.unwrap();
    let there = |spans: &Spans| !spans.in_trace(&marker.trace_id).named(RESOLVE).is_empty();
    let mut spans = receiver.wait_for_spans(there, SOON).await;
    spans.0.retain(|span| span.trace_id != marker.trace_id);
    spans
}

/// The whole local tree of a decision that could not read the table.
#[track_caller]
fn assert_failed_tree(spans: &Spans, parent: Option<&str>, code: &str) {
    let (server, decision) = (spans.one(RESOLVE), spans.one("cell.route"));
    assert_eq!(server.parent_span_id.as_deref(), parent, "{spans}");
    assert_eq!(server.str("rpc.response.status_code"), Some(code));
    assert_eq!(spans.children(server), [decision]);
    let reads = spans.children(decision);
    assert_eq!(reads.len(), 2, "{spans}");
    assert!(reads.iter().all(|read| read.name.starts_with("GetItem") && read.is_error), "{spans}");
    // The background tasks fail, too, in traces of their own.
    assert_eq!(spans.in_trace(&server.trace_id).0.len(), 4, "{spans}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_being_sampled_only_failures_are_exported_and_those_whole() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let more = [ATTEMPTS.as_slice(), &["--trace-sample-ratio", "0"]].concat();
    let cuttable = Cuttable::start(&collector, &more).await;
    let mut directory = cuttable.traced.directory().await;
    let unsampled = |message| Caller::unsampled().asks(message);

    // Assignments, reads and hits, under an unsampled caller and under none: nothing.
    for (request, source) in [
        (Request::new(ask("held")), v1::DecisionSource::Assigned),
        (unsampled(ask("held too")), v1::DecisionSource::Assigned),
        (Request::new(ask("held")), v1::DecisionSource::Memory),
        (unsampled(ask("held")), v1::DecisionSource::Memory),
    ] {
        let (_, answered) = resolve(&mut directory, request).await.unwrap();
        assert_eq!(answered, source);
    }
    // Nor is a caller's own mistake a failure of ours.
    let mistaken = directory.resolve(unsampled(ask(""))).await.unwrap_err();
    assert_eq!(mistaken.code(), Code::InvalidArgument);
    let absent = v1::GetPlacementRequest { partition_key: "absent".to_owned() };
    let absent = directory.get_placement(Request::new(absent)).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    let spans = marker(&mut directory, &receiver).await;
    assert!(spans.0.is_empty(), "{spans}");

    let Cuttable { traced, relay, engine: _engine } = cuttable;
    relay.cut().await;
    for parented in [true, false] {
        let caller = Caller::unsampled();
        let asks = |message| if parented { caller.asks(message) } else { Request::new(message) };
        let parent = parented.then_some(caller.span_id.as_str());
        let (_, source) = resolve(&mut directory, asks(ask("held"))).await.unwrap();
        assert_eq!(source, v1::DecisionSource::Memory, "memory goes on answering");
        receiver.clear();

        let (_, source) = resolve(&mut directory, asks(ask("new"))).await.unwrap();
        assert_eq!(source, v1::DecisionSource::Fallback);
        let spans = marker(&mut directory, &receiver).await;
        assert_failed_tree(&spans, parent, "OK");
        let guess = spans.one("cell.route");
        assert_eq!(guess.str("cell.route.source"), Some("fallback"));
        assert_eq!(guess.trace_id == caller.trace_id, parented);
        receiver.clear();

        let refused = directory.resolve(asks(ask_without_fallback("new"))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        let spans = marker(&mut directory, &receiver).await;
        assert_failed_tree(&spans, parent, "UNAVAILABLE");
        let server = spans.one(RESOLVE);
        assert!(server.is_error, "{spans}");
        assert_eq!(server.str("error.type"), Some("UNAVAILABLE"));
        let decision = spans.one("cell.route");
        assert!(decision.is_error && decision.attr("cell.id").is_none(), "{spans}");
        assert_eq!(decision.str("error.type"), Some("store"));
        assert_eq!(server.trace_id == caller.trace_id, parented);
        receiver.clear();
    }
    traced.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_on_the_fast_path_gets_a_span_after_the_fact() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), &collector, &["--trace-sample-ratio", "0"]);
    // Answered by the server's own layer: a path that is not served.
    let channel = traced.celld.channel().await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let caller = Caller::unsampled();
    let codec = tonic_prost::ProstCodec::<v1::ResolveRequest, v1::ResolveResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/cells.v1.CellDirectory/Nope");
    let refused = client.unary(caller.asks(ask("customer-1")), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let spans = caller.trace(&receiver, 1).await;
    let late = spans.one("_OTHER");
    assert_eq!(late.parent_span_id.as_ref(), Some(&caller.span_id));
    assert_eq!(late.str("rpc.method"), Some("_OTHER"));
    assert_eq!(late.str("rpc.system.name"), Some("grpc"));
    assert_eq!(late.str("rpc.response.status_code"), Some("UNIMPLEMENTED"));
    assert_eq!(late.str("error.type"), Some("UNIMPLEMENTED"));
    assert!(late.is_error);
    traced.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ratio_is_for_callers_without_a_trace() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let data = tempfile::tempdir().unwrap();
    let traced = Traced::dev(data.path(), &collector, &["--trace-sample-ratio", "1"]);
    let mut directory = traced.directory().await;
    resolve(&mut directory, Request::new(ask("held"))).await.unwrap();
    let before = marker(&mut directory, &receiver).await;
    assert_eq!(before.named("cell.route").len(), 1, "{before}");
    assert_eq!(before.one(RESOLVE).parent_span_id, None);
    receiver.clear();
    for _ in 0..20 {
        resolve(&mut directory, Request::new(ask("held"))).await.unwrap();
        // A caller that does not sample is followed, whatever the ratio.
        resolve(&mut directory, Caller::unsampled().asks(ask("held"))).await.unwrap();
    }
    let spans = marker(&mut directory, &receiver).await;
    let servers = spans.named(RESOLVE);
    assert_eq!(servers.len(), 20, "{spans}");
    for server in servers {
        assert_eq!(server.parent_span_id, None);
        let [decision] = spans.children(server)[..] else { panic!("{spans}") };
        assert_eq!(decision.str("cell.route.source"), Some("memory"));
    }
    traced.end();
}

/// A guess for a caller that is out of patience: nothing has failed yet, so only the guess itself is what is worth keeping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guess_shortly_before_the_deadline_is_exported() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let mute = crate::relay::Mute::start().await;
    let patient = ["--trace-sample-ratio", "0", "--lookup-budget", "30s", "--read-timeout", "20s"];
    let traced = Traced::serve(&mute.endpoint(), &collector, &patient);
    let mut directory = traced.directory().await;
    let caller = Caller::unsampled();
    let mut request = caller.asks(ask("customer-1"));
    request.set_timeout(Duration::from_millis(500));
    let (_, source) = resolve(&mut directory, request).await.unwrap();
    assert_eq!(source, v1::DecisionSource::Fallback);
    let spans = caller.trace(&receiver, 3).await;
    let (server, guess) = (spans.one(RESOLVE), spans.one("cell.route"));
    assert_eq!(server.parent_span_id.as_ref(), Some(&caller.span_id), "{spans}");
    assert_eq!(spans.children(server), [guess]);
    assert_eq!(guess.str("cell.route.source"), Some("fallback"));
    assert_eq!(guess.str("cell.route.fallback_reason"), Some("timeout"));
    let [read] = spans.children(guess)[..] else { panic!("{spans}") };
    assert!(read.name.starts_with("GetItem"), "{spans}");
    assert!(spans.0.iter().all(|span| !span.is_error), "{spans}");
    // What was given up does not keep the caller's spans open.
    assert!(server.duration() < Duration::from_secs(5), "{:?}", server.duration());
    traced.end();
}
