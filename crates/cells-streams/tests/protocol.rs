//! Amazon's client against answers of the shape that DynamoDB Streams gives (JSON 1.0), over a real connection.

#[path = "support/aws.rs"]
mod aws;
#[path = "support/http.rs"]
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cells_streams::sink::channel;
use cells_streams::{
    ChangeKind, Consumer, Delivery, GapCause, GroupName, MemoryLeases, Options, OwnerId,
    SdkStreams, Source, StreamArn,
};
use http::{Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const ARN: &str =
    "arn:aws:dynamodb:us-east-1:123456789012:table/Orders-cell-a/stream/2026-01-01T00:00:00.000";
const PARENT: &str = "shardId-00000001795435642287-a12ebc4e";
const LEFT: &str = "shardId-00000001795435642999-0000aaaa";
const RIGHT: &str = "shardId-00000001795435642999-ffffbbbb";
/// Longest wait for a delivery.
const PATIENCE: Duration = Duration::from_secs(60);

fn record(sequence: u64, event: &str, pk: &str, identity: Option<Value>) -> Value {
    let mut record = json!({
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_700_000_000,
            "Keys": {"PK": {"S": pk}, "SK": {"S": "ORDER"}},
            "SequenceNumber": sequence.to_string(),
            "SizeBytes": 41,
            "StreamViewType": "NEW_AND_OLD_IMAGES"
        },
        "eventID": format!("id-{sequence}"),
        "eventName": event,
        "eventSource": "aws:dynamodb",
        "eventVersion": "1.1"
    });
    let image = json!({
        "PK": {"S": pk}, "SK": {"S": "ORDER"}, "EntityType": {"S": "Order"},
        "Total": {"N": "12.50"}, "Blob": {"B": "AQID"}, "Paid": {"BOOL": true},
        "Gone": {"NULL": true}, "Tags": {"SS": ["a", "b"]},
        "Lines": {"L": [{"M": {"Sku": {"S": "x"}, "Counts": {"NS": ["1", "2"]}}}]}
    });
    let which = if event == "REMOVE" { "OldImage" } else { "NewImage" };
    record["dynamodb"][which] = image;
    if let Some(identity) = identity {
        record["userIdentity"] = identity;
    }
    record
}

fn answer(body: Value) -> Response<Full<Bytes>> {
    let answer = Response::builder().header("content-type", "application/x-amz-json-1.0");
    answer.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

fn refusal(status: u16, code: &str) -> Response<Full<Bytes>> {
    let body = json!({
        "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"),
        "message": "as the service says it"
    });
    let mut answer = answer(body);
    *answer.status_mut() = status.try_into().unwrap();
    answer
}

/// How often each call was made.
type Calls = Mutex<BTreeMap<String, usize>>;

/// A parent that was split after 103, of which a call gets 101 and 102 first. On the way: throttling, a fault, an expired iterator, a
/// trimmed position in the left child, a deletion by time to live in the right one.
fn service(calls: &Calls, request: &Request<Bytes>) -> Response<Full<Bytes>> {
    let target = request.headers()["x-amz-target"].to_str().unwrap();
    let operation = target.strip_prefix("DynamoDBStreams_20120810.").expect("the service's prefix");
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let call = match operation {
        "DescribeStream" => format!("describe {}", text("ExclusiveStartShardId")),
        "GetShardIterator" => {
            format!("{} {} {}", text("ShardId"), text("ShardIteratorType"), text("SequenceNumber"))
        }
        _ => text("ShardIterator"),
    };
    let nth = {
        let mut calls = calls.lock();
        let count = calls.entry(call.trim().to_owned()).or_default();
        *count += 1;
        *count
    };
    // In the spelling of the API; what Lambda passes on begins with small letters.
    let ttl = json!({"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"});
    let page = |records: Vec<Value>, next: Option<&str>| {
        let mut page = json!({ "Records": records });
        if let Some(next) = next {
            page["NextShardIterator"] = json!(next);
        }
        answer(page)
    };
    match (operation, call.trim(), nth) {
        ("DescribeStream", "describe", 1) => refusal(400, "LimitExceededException"),
        // A child comes before its parent, and on another page.
        ("DescribeStream", "describe", _) => describe(
            json!([{"ShardId": LEFT, "ParentShardId": PARENT, "SequenceNumberRange": {"StartingSequenceNumber": "200"}}]),
            Some(LEFT),
        ),
        ("DescribeStream", _, _) => describe(
            json!([
                {"ShardId": PARENT, "ParentShardId": "shardId-long-gone",
                 "SequenceNumberRange": {"StartingSequenceNumber": "100", "EndingSequenceNumber": "110"}},
                {"ShardId": RIGHT, "ParentShardId": PARENT,
                 "SequenceNumberRange": {"StartingSequenceNumber": "200"}}
            ]),
            None,
        ),
        ("GetShardIterator", "shardId-long-gone TRIM_HORIZON", _) => {
            refusal(400, "ResourceNotFoundException")
        }
        ("GetShardIterator", call, nth) => {
            // The position of the left child is too old once it has to be sought again.
            match (call.strip_prefix(LEFT).map(str::trim), nth) {
                (Some("AFTER_SEQUENCE_NUMBER 201"), _) => {
                    refusal(400, "TrimmedDataAccessException")
                }
                _ => answer(json!({ "ShardIterator": format!("{call}/{nth}") })),
            }
        }
        (_, call, nth) => match (call, nth) {
            (call, 1) if call == format!("{PARENT} TRIM_HORIZON/1") => {
                refusal(400, "ProvisionedThroughputExceededException")
            }
            (call, 2) if call == format!("{PARENT} TRIM_HORIZON/1") => {
                refusal(500, "InternalServerError")
            }
            (call, _) if call == format!("{PARENT} TRIM_HORIZON/1") => page(
                vec![
                    record(101, "INSERT", "CUSTOMER#a", None),
                    record(102, "MODIFY", "CUSTOMER#a", None),
                ],
                Some("expired"),
            ),
            ("expired", _) => refusal(400, "ExpiredIteratorException"),
            (call, _) if call == format!("{PARENT} AFTER_SEQUENCE_NUMBER 102/1") => {
                page(vec![record(103, "MODIFY", "CUSTOMER#b", None)], None)
            }
            (call, _) if call == format!("{LEFT} TRIM_HORIZON/1") => {
                page(vec![record(201, "MODIFY", "CUSTOMER#a", None)], Some("expired"))
            }
            (call, _) if call == format!("{LEFT} TRIM_HORIZON/2") => {
                page(vec![record(250, "MODIFY", "CUSTOMER#a", None)], Some("idle"))
            }
            (call, _) if call == format!("{RIGHT} TRIM_HORIZON/1") => page(
                vec![
                    record(202, "REMOVE", "CUSTOMER#b", Some(ttl)),
                    record(203, "REMOVE", "CUSTOMER#c", None),
                ],
                Some("idle"),
            ),
            ("idle", _) => page(vec![], Some("idle")),
            (call, _) => panic!("an iterator that was not given: {call}"),
        },
    }
}

fn describe(shards: Value, last: Option<&str>) -> Response<Full<Bytes>> {
    let mut description = json!({
        "StreamArn": ARN, "StreamStatus": "ENABLED", "StreamViewType": "NEW_AND_OLD_IMAGES",
        "StreamLabel": "2026-01-01T00:00:00.000", "TableName": "Orders-cell-a",
        "CreationRequestDateTime": 1.7e9, "Shards": shards,
        "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}]
    });
    if let Some(last) = last {
        description["LastEvaluatedShardId"] = json!(last);
    }
    answer(json!({ "StreamDescription": description }))
}

/// What a delivery is, in short.
fn short(delivery: &Delivery) -> Vec<String> {
    match delivery {
        Delivery::Gap(gap) => {
            assert_eq!(gap.cause, GapCause::Trimmed);
            vec![format!("gap after {}", gap.after.as_ref().unwrap())]
        }
        Delivery::Events(batch) => {
            let of = |event: &cells_streams::Event| {
                let record = &event.record;
                let expired = if record.expired { " expired" } else { "" };
                format!("{} {}{expired}", record.sequence, record.kind.as_str())
            };
            batch.events.iter().map(of).collect()
        }
    }
}

#[tokio::test]
async fn a_split_with_everything_that_can_go_wrong() {
    let calls: Arc<Calls> = Arc::default();
    let counted = calls.clone();
    let address = server::serve(Arc::new(move |request| service(&counted, &request))).await;
    let streams = SdkStreams::new(aws::streams(&format!("http://{address}")));
    let source = Source {
        group: GroupName::new("protocol").unwrap(),
        stream: StreamArn::new(ARN).unwrap(),
        cell: "cell-a".into(),
    };
    // The records' time: nothing is old.
    let options = Options {
        tick: Duration::from_millis(100),
        discover_interval: Duration::from_millis(500),
        backoff_max: Duration::from_millis(500),
        wall_secs: || 1_700_000_100,
        ..Options::default()
    };
    let (sink, mut received) = channel(1);
    let leases = Arc::new(MemoryLeases::new());
    let me = OwnerId::unique("test");
    let consumer =
        Consumer::new(source, me, options, Arc::new(streams), leases, Arc::new(sink)).unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(consumer.run(stop.clone()));
    let mut came: Vec<(String, String)> = Vec::new();
    while came.len() < 8 {
        let next = tokio::time::timeout(PATIENCE, received.recv()).await.expect("a delivery");
        let delivery = next.unwrap().accept();
        if let Delivery::Events(batch) = &*delivery {
            let event = &batch.events[0];
            assert_eq!(event.entity_type(), Some("Order"));
            assert_eq!(event.record.created_secs, Some(1_700_000_000));
            let image = match event.record.kind {
                ChangeKind::Remove => event.record.old.as_ref(),
                _ => event.record.new.as_ref(),
            };
            let typed = cells_streams::json::item(image.expect("an image"));
            assert_eq!(typed["Lines"]["L"][0]["M"]["Counts"], json!({"NS": ["1", "2"]}));
            assert_eq!(typed["Blob"], json!({"B": "AQID"}));
            assert_eq!(typed["Total"], json!({"N": "12.50"}));
        }
        let shard = delivery.shard().as_str().to_owned();
        came.extend(short(&delivery).into_iter().map(|what| (shard.clone(), what)));
    }
    stop.cancel();
    task.await.unwrap();
    let of = |shard: &str| -> Vec<&str> {
        let here = came.iter().filter(|(at, _)| at == shard);
        here.map(|(_, what)| what.as_str()).collect()
    };
    // After the iterator expired it went on after 102, not at the horizon and not at the latest.
    assert_eq!(of(PARENT), ["101 INSERT", "102 MODIFY", "103 MODIFY"]);
    assert_eq!(of(LEFT), ["201 MODIFY", "gap after 201", "250 MODIFY"]);
    assert_eq!(of(RIGHT), ["202 REMOVE expired", "203 REMOVE"]);
    assert!(came[..3].iter().all(|(shard, _)| shard == PARENT), "a child came first: {came:?}");
    assert!(calls.lock().keys().all(|call| !call.contains("LATEST")));
}
