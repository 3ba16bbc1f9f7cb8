//! The shipped sinks, each on what it writes to.

#[path = "support/http.rs"]
mod server;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use cells_streams::json::Json;
use cells_streams::sink::{FileSink, Fsync, WebhookOptions, WebhookSink, channel};
use cells_streams::{
    Batch, ChangeKind, Delivery, Event, Gap, GapCause, GroupName, Item, Record, SequenceNumber,
    ShardId, Sink, Source, StreamArn,
};
use http::{Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::{Value, json};

fn source() -> Arc<Source> {
    let arn = "arn:aws:dynamodb:us-east-1:1:table/Orders-cell-a/stream/now";
    Arc::new(Source {
        group: GroupName::new("sinks").unwrap(),
        stream: StreamArn::new(arn).unwrap(),
        cell: "cell-a".into(),
    })
}

fn events(sequences: std::ops::Range<u64>) -> Arc<Delivery> {
    let (source, shard) = (source(), ShardId::new("shard-1"));
    let of = |sequence: u64| Event {
        source: source.clone(),
        shard: shard.clone(),
        record: Record {
            id: format!("id-{sequence}"),
            kind: ChangeKind::Insert,
            sequence: SequenceNumber::new(sequence.to_string()).unwrap(),
            created_secs: Some(1_700_000_000),
            keys: Item::from([("PK".into(), AttributeValue::S("CUSTOMER#a\n".into()))]),
            old: None,
            new: Some(Item::from([("EntityType".into(), AttributeValue::S("Order".into()))])),
            expired: false,
        },
    };
    let events = sequences.map(of).collect();
    Arc::new(Delivery::Events(Batch { source: source.clone(), shard: shard.clone(), events }))
}

fn gap() -> Arc<Delivery> {
    let after = Some(SequenceNumber::new("7").unwrap());
    let shard = ShardId::new("shard-1");
    Arc::new(Delivery::Gap(Gap { source: source(), shard, after, cause: GapCause::Trimmed }))
}

fn lines(text: &[u8]) -> Vec<Value> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("a whole line")).collect()
}

#[tokio::test]
async fn a_delivery_in_the_channel_is_accepted_only_by_its_receiver() {
    let (sink, mut received) = channel(1);
    let delivering = {
        let sink = sink.clone();
        tokio::spawn(async move { sink.deliver(&events(1..3)).await })
    };
    let first = received.recv().await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!delivering.is_finished(), "accepted by lying in the channel");
    assert_eq!(first.accept(), events(1..3));
    assert_eq!(delivering.await.unwrap(), Ok(()));
    let dropped = tokio::spawn(async move { sink.deliver(&events(1..3)).await });
    drop(received.recv().await);
    assert!(dropped.await.unwrap().is_err());
}

#[tokio::test]
async fn a_file_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("changes.ndjson");
    let first = FileSink::open(&path, Fsync::Never, Json::new()).unwrap();
    first.deliver(&events(1..3)).await.unwrap();
    let again = first.writing(Json::new());
    drop(first);
    let refused = FileSink::open(&path, Fsync::Never, Json::new()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock, "{refused}");
    again.deliver(&events(3..4)).await.unwrap();
    drop(again);
    let second = FileSink::open(&path, Fsync::Never, Json::new()).unwrap();
    second.deliver(&events(4..5)).await.unwrap();
    assert_eq!(lines(&std::fs::read(&path).unwrap()).len(), 4);
}

#[tokio::test]
async fn a_file_keeps_whole_lines_over_torn_ones() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("changes.ndjson");
    let tenant = Json::with_tenant(Arc::new(|event| {
        event.pk().and_then(|pk| pk.strip_prefix("CUSTOMER#")).map(|key| key.trim().to_owned())
    }));
    let sink = FileSink::open(&path, Fsync::EachDelivery, tenant.clone()).unwrap();
    sink.deliver(&events(1..3)).await.unwrap();
    drop(sink);
    // A crash in the midst of a line longer than what is read at a time.
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(format!("{{\"torn\":\"{}", "x".repeat(100_000)).as_bytes()).unwrap();
    drop(file);
    let sink = FileSink::open(&path, Fsync::Never, tenant).unwrap();
    sink.deliver(&gap()).await.unwrap();
    sink.deliver(&events(3..4)).await.unwrap();
    let lines = lines(&std::fs::read(&path).unwrap());
    let sequences: Vec<_> = lines.iter().map(|line| line["sequence"].as_str()).collect();
    assert_eq!(sequences, [Some("1"), Some("2"), None, Some("3")]);
    assert_eq!(
        lines[0],
        json!({
            "type": "INSERT", "group": "sinks", "table": "Orders-cell-a", "cell": "cell-a",
            "shard": "shard-1", "sequence": "1", "created": 1_700_000_000, "id": "id-1",
            "expired": false, "entity_type": "Order", "tenant": "a",
            "keys": {"PK": {"S": "CUSTOMER#a\n"}}, "new": {"EntityType": {"S": "Order"}}
        })
    );
    assert_eq!((&lines[2]["type"], &lines[2]["after"]), (&json!("GAP"), &json!("7")));
}

/// A receiver that answers with these statuses in turn, and what it was sent.
async fn receiver(statuses: &[u16]) -> (String, Arc<Mutex<Vec<Request<Bytes>>>>) {
    let seen: Arc<Mutex<Vec<Request<Bytes>>>> = Arc::default();
    let (requests, statuses) = (seen.clone(), statuses.to_vec());
    let answer = move |request| {
        let mut requests = requests.lock();
        let status = statuses.get(requests.len()).copied().unwrap_or(200);
        requests.push(request);
        Response::builder().status(status).body(Full::default()).unwrap()
    };
    let address = server::serve(Arc::new(answer)).await;
    (format!("http://{address}/changes"), seen)
}

fn webhook(uri: &str, attempts: u32) -> WebhookSink {
    let options = WebhookOptions {
        attempts,
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..WebhookOptions::default()
    };
    WebhookSink::new(uri, options, Json::new()).unwrap()
}

#[tokio::test]
async fn a_webhook_is_tried_again_under_the_same_key() {
    let (uri, seen) = receiver(&[503, 429]).await;
    let sink = webhook(&uri, 5);
    sink.deliver(&events(1..4)).await.unwrap();
    sink.deliver(&events(4..5)).await.unwrap();
    sink.deliver(&gap()).await.unwrap();
    let seen = seen.lock();
    assert_eq!(seen.len(), 5);
    let keys: Vec<_> = seen.iter().map(|request| &request.headers()["idempotency-key"]).collect();
    assert!(keys[0] == keys[1] && keys[1] == keys[2]);
    assert!(keys[3] != keys[0] && keys[4] != keys[0] && keys[4] != keys[3]);
    assert_eq!(lines(seen[2].body()).len(), 3);
    assert_eq!(seen[2].headers()["content-type"], "application/x-ndjson");
}

/// What was posted: the sequence numbers of each request, in their order.
fn posted(seen: &[Request<Bytes>]) -> Vec<Vec<u64>> {
    let sequence = |line: Value| line["sequence"].as_str().unwrap().parse().unwrap();
    let of = |request: &Request<Bytes>| lines(request.body()).into_iter().map(sequence).collect();
    seen.iter().map(of).collect()
}

#[tokio::test]
async fn a_large_delivery_is_posted_in_parts() {
    let (uri, seen) = receiver(&[200, 503, 200, 500]).await;
    let line = Json::new().lines(&events(1..2)).len();
    let max_body = 2 * line + 1;
    let options = WebhookOptions {
        max_body,
        attempts: 2,
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..WebhookOptions::default()
    };
    let sink = WebhookSink::new(&uri, options, Json::new()).unwrap();
    sink.deliver(&events(1..6)).await.unwrap();
    let seen = seen.lock();
    assert_eq!(posted(&seen), [vec![1, 2], vec![3, 4], vec![3, 4], vec![5], vec![5]]);
    assert!(seen.iter().all(|request| request.body().len() <= max_body));
    let keys: Vec<_> = seen.iter().map(|request| &request.headers()["idempotency-key"]).collect();
    assert!(keys[1] == keys[2] && keys[3] == keys[4]);
    assert!(keys[0] != keys[1] && keys[1] != keys[3] && keys[0] != keys[3]);
}

#[tokio::test]
async fn what_a_webhook_finds_too_large_is_halved_down_to_one_change() {
    let (uri, seen) = receiver(&[413, 413, 200, 200, 200]).await;
    webhook(&uri, 1).deliver(&events(1..5)).await.unwrap();
    assert_eq!(posted(&seen.lock()), [vec![1, 2, 3, 4], vec![1, 2], vec![1], vec![2], vec![3, 4]]);
    let (uri, seen) = receiver(&[413; 9]).await;
    let refused = webhook(&uri, 1).deliver(&events(1..5)).await.unwrap_err();
    assert!(refused.to_string().contains("413"), "{refused}");
    assert_eq!(posted(&seen.lock()), [vec![1, 2, 3, 4], vec![1, 2], vec![1]]);
}

#[tokio::test]
async fn a_webhook_that_refuses_has_not_accepted() {
    let (uri, seen) = receiver(&[400, 503, 503, 302]).await;
    // What will not change by itself is not tried again at once.
    assert!(webhook(&uri, 5).deliver(&events(1..2)).await.is_err());
    assert_eq!(seen.lock().len(), 1);
    assert!(webhook(&uri, 2).deliver(&events(1..2)).await.is_err());
    assert_eq!(seen.lock().len(), 3);
    // Not followed: a receiver that moved has not taken anything.
    assert!(webhook(&uri, 1).deliver(&events(1..2)).await.is_err());
    let nobody = webhook("http://127.0.0.1:1/", 2);
    assert!(nobody.deliver(&events(1..2)).await.is_err());
    for bad in ["", "ftp://host/", "/path"] {
        assert!(WebhookSink::new(bad, WebhookOptions::default(), Json::new()).is_err(), "{bad}");
    }
}
