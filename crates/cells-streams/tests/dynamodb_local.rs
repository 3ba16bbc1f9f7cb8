//! Two consumers follow a real table's stream on Amazon's DynamoDB Local; the one that reads is killed half-way.

#[path = "support/aws.rs"]
mod aws;
#[path = "../../../tests/support/dynamodb_local.rs"]
mod engine;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use cells_streams::sink::{Received, channel};
use cells_streams::{
    ChangeKind, Consumer, Delivery, DynamoDbLeases, Event, GroupName, Options, OwnerId, SdkStreams,
    Source, StartAt, Status, StreamArn,
};
use engine::DynamoDbLocal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const ITEMS: usize = 2000;
/// Writes at a time.
const WRITERS: usize = 8;
/// Longest wait for everything: an engine on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Follower {
    task: JoinHandle<()>,
    stop: CancellationToken,
    received: mpsc::Receiver<Received>,
    status: watch::Receiver<Status>,
}

fn follow(endpoint: &str, stream: &StreamArn, group: &str, name: &str, start: StartAt) -> Follower {
    let group = GroupName::new(group).unwrap();
    let leases =
        DynamoDbLeases::new(aws::dynamodb(endpoint), "StreamControl", group.clone(), stream);
    let source = Source { group, stream: stream.clone(), cell: "cell-a".into() };
    let options = Options {
        start,
        idle_interval: Duration::from_millis(300),
        lease: Duration::from_secs(3),
        tick: Duration::from_millis(500),
        call_timeout: Duration::from_millis(1500),
        ..Options::default()
    };
    let (sink, received) = channel(4);
    let streams = Arc::new(SdkStreams::new(aws::streams(endpoint)));
    let me = OwnerId::unique(name);
    let consumer =
        Consumer::new(source, me, options, streams, Arc::new(leases), Arc::new(sink)).unwrap();
    let (stop, status) = (CancellationToken::new(), consumer.status());
    let task = tokio::spawn(consumer.run(stop.clone()));
    Follower { task, stop, received, status }
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.into())
}

async fn put(client: &aws_sdk_dynamodb::Client, item: usize, version: u32) {
    let put = client
        .put_item()
        .table_name("Orders-cell-a")
        .item("PK", text(&format!("CUSTOMER#{item}")))
        .item("SK", text("ORDER"))
        .item("EntityType", text("Order"))
        .item("Version", AttributeValue::N(version.to_string()));
    put.send().await.expect("a write");
}

/// Every item is written twice and every tenth then deleted.
async fn write_all(client: aws_sdk_dynamodb::Client) {
    let writers = (0..WRITERS).map(|writer| {
        let client = client.clone();
        tokio::spawn(async move {
            for item in (writer..ITEMS).step_by(WRITERS) {
                put(&client, item, 1).await;
                put(&client, item, 2).await;
                if item % 10 == 0 {
                    let delete = client.delete_item().table_name("Orders-cell-a");
                    let delete = delete.key("PK", text(&format!("CUSTOMER#{item}")));
                    delete.key("SK", text("ORDER")).send().await.expect("a deletion");
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// What came so far, repetitions left out.
#[derive(Default)]
struct Came {
    sequences: BTreeSet<cells_streams::SequenceNumber>,
    changes: BTreeMap<String, Vec<(ChangeKind, Option<u32>)>>,
    total: usize,
    repeats: usize,
}

impl Came {
    fn add(&mut self, delivery: &Delivery) {
        let Delivery::Events(batch) = delivery else { panic!("a gap: {delivery:?}") };
        for event in &batch.events {
            if !self.sequences.insert(event.record.sequence.clone()) {
                self.repeats += 1;
                continue;
            }
            assert_eq!(event.entity_type(), Some("Order"));
            assert_eq!((event.table(), event.source.cell.as_str()), ("Orders-cell-a", "cell-a"));
            assert!(!event.record.expired && event.record.created_secs.is_some());
            let pk = event.pk().expect("the key is text").to_owned();
            self.changes.entry(pk).or_default().push((event.record.kind, version(event)));
            self.total += 1;
        }
    }
}

fn version(event: &Event) -> Option<u32> {
    event.record.new.as_ref()?["Version"].as_n().ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_consumer_is_replaced_and_nothing_is_lost() {
    let endpoint = DynamoDbLocal::shared().endpoint();
    let client = aws::dynamodb(&endpoint);
    aws::control_table(&client, "StreamControl").await;
    let stream = StreamArn::new(aws::table(&client, "Orders-cell-a").await).unwrap();
    let mut first = follow(&endpoint, &stream, "rpc", "first", StartAt::TrimHorizon);
    let reading = first.status.wait_for(|status| status.reading > 0);
    tokio::time::timeout(PATIENCE, reading).await.expect("it reads").unwrap();
    let mut second = follow(&endpoint, &stream, "rpc", "second", StartAt::TrimHorizon);
    let writing = tokio::spawn(write_all(client.clone()));

    let (mut came, began) = (Came::default(), Instant::now());
    let total = ITEMS * 2 + ITEMS / 10;
    let mut killed = false;
    while came.total < total {
        assert!(began.elapsed() < PATIENCE, "{} of {total} came", came.total);
        tokio::select! {
            Some(received) = first.received.recv() => {
                came.add(&received.delivery);
                if came.total < total / 3 {
                    received.accept();
                } else {
                    // Killed with a batch that came but was not accepted: it has to come again.
                    first.task.abort();
                    killed = true;
                }
            }
            Some(received) = second.received.recv() => came.add(&received.accept()),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    writing.await.unwrap();
    assert!(killed && came.repeats > 0, "the first one was not killed amid its work");
    use ChangeKind::{Insert, Modify, Remove};
    for item in 0..ITEMS {
        let mut expected = vec![(Insert, Some(1)), (Modify, Some(2))];
        if item % 10 == 0 {
            expected.push((Remove, None));
        }
        assert_eq!(came.changes[&format!("CUSTOMER#{item}")], expected, "item {item}");
    }
    println!("{total} changes, {} repeated, in {:?}", came.repeats, began.elapsed());

    // Stopped in order, it leaves positions behind from which the next one goes on without a repetition.
    second.stop.cancel();
    second.task.await.unwrap();
    let mut third = follow(&endpoint, &stream, "rpc", "third", StartAt::TrimHorizon);
    put(&client, ITEMS, 1).await;
    let next = tokio::time::timeout(PATIENCE, third.received.recv()).await.unwrap().unwrap();
    let Delivery::Events(batch) = &*next.accept() else { panic!("a gap") };
    let pks: Vec<_> = batch.events.iter().filter_map(Event::pk).collect();
    assert_eq!(pks, [format!("CUSTOMER#{ITEMS}")]);

    // Another group has positions of its own; at the latest it gets what comes from now on. Whether it leaves out what was before is
    // for the model to show: the engine rounds records' times to minutes.
    let mut latest = follow(&endpoint, &stream, "webhook", "latest", StartAt::Latest);
    let reading = latest.status.wait_for(|status| status.reading > 0);
    tokio::time::timeout(PATIENCE, reading).await.expect("it reads").unwrap();
    put(&client, ITEMS + 1, 1).await;
    let last = format!("CUSTOMER#{}", ITEMS + 1);
    loop {
        let next = tokio::time::timeout(PATIENCE, latest.received.recv()).await.unwrap().unwrap();
        let Delivery::Events(batch) = &*next.accept() else { panic!("a gap") };
        if batch.events.iter().any(|event| event.pk() == Some(&last)) {
            break;
        }
    }
}
