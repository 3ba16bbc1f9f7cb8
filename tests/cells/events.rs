//! Changes of items, delivered to groups of callers: everything, at least once, in order for each item, whoever is killed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_events_client::CellEventsClient;
use cell_directory::proto::v1::consume_request::Request as Asked;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::celld::Celld;
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::streams_proxy::StreamsProxy;
use crate::world::{Engine, World, fault, table};

const CELLS: [&str; 3] = ["cell-a", "cell-b", "cell-c"];

/// Longest wait for everything to be delivered, a lease that has to run out and a busy machine included.
const PATIENCE: Duration = Duration::from_secs(120);

fn start(group: &str, cell: &str) -> v1::ConsumeRequest {
    let start = v1::ConsumeStart {
        group: group.to_owned(),
        cell_id: cell.to_owned(),
        table: "CustomerData".to_owned(),
        latest: false,
    };
    v1::ConsumeRequest { request: Some(Asked::Start(start)) }
}

struct Call {
    asks: mpsc::Sender<v1::ConsumeRequest>,
    deliveries: Streaming<v1::ConsumeResponse>,
}

impl Call {
    async fn begin(channel: Channel, first: v1::ConsumeRequest) -> Result<Self, Status> {
        let (asks, requests) = mpsc::channel(16);
        asks.send(first).await.unwrap();
        let mut client = CellEventsClient::new(channel);
        let deliveries = client.consume(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { asks, deliveries })
    }

    async fn next(&mut self) -> Result<Option<v1::ConsumeResponse>, Status> {
        self.deliveries.message().await
    }

    async fn ack(&self, delivery: u64) {
        let _ = self.asks.send(v1::ConsumeRequest { request: Some(Asked::Ack(delivery)) }).await;
    }
}

/// Text or number of an attribute of a typed JSON item.
fn attribute(item: &prost_types::Struct, name: &str) -> Option<String> {
    use prost_types::value::Kind;
    let Some(Kind::StructValue(typed)) = &item.fields.get(name)?.kind else { return None };
    match typed.fields.values().next()?.kind.clone()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// What was told of each item, in the order in which it was told. A removal is told as the version after the last.
#[derive(Default)]
struct Told(Mutex<HashMap<(String, String), Vec<u64>>>);

impl Told {
    fn hear(&self, event: &v1::CellEvent) {
        let sort = attribute(event.key.as_ref().unwrap(), "SK").unwrap();
        let version = |item: &Option<prost_types::Struct>| {
            item.as_ref().and_then(|item| attribute(item, "V")).map(|text| text.parse().unwrap())
        };
        let version = match event.r#type() {
            v1::ChangeType::Remove => version(&event.old_item).map(|old: u64| old + 1),
            _ => version(&event.new_item),
        };
        assert_eq!(event.partition_key, sort.split('/').next().unwrap(), "{event:?}");
        let key = (event.cell_id.clone(), sort);
        self.0.lock().entry(key).or_default().push(version.unwrap());
    }

    /// Whether all versions of all items were told.
    fn missing(&self, expected: &BTreeMap<(String, String), u64>) -> usize {
        let told = self.0.lock();
        let missing = expected.iter().filter(|(key, last)| {
            let versions: BTreeSet<_> = told.get(*key).into_iter().flatten().copied().collect();
            !(1..=**last).all(|version| versions.contains(&version))
        });
        missing.count()
    }

    /// Repeats are allowed; a version told for the first time after a later one is not.
    fn assert_in_order(&self) {
        for (key, versions) in self.0.lock().iter() {
            let mut highest = 0;
            for version in versions {
                assert!(*version <= highest + 1, "{key:?}: {versions:?}");
                highest = highest.max(*version);
            }
        }
    }
}

/// Follows a cell for a group, acknowledging all that it hears, until the server is gone or the test is over.
async fn follow(channel: Channel, cell: &'static str, told: Arc<Told>) {
    let Ok(mut call) = Call::begin(channel, start("audit", cell)).await else { return };
    while let Ok(Some(delivery)) = call.next().await {
        assert_eq!(delivery.gap, None, "nothing was trimmed");
        delivery.events.iter().for_each(|event| told.hear(event));
        call.ack(delivery.delivery).await;
    }
}

fn put(tenant: &str, sort: &str, version: u64) -> HashMap<String, AttributeValue> {
    let text = |value: String| AttributeValue::S(value);
    [
        ("PK".to_owned(), text(format!("CUSTOMER#{tenant}"))),
        ("SK".to_owned(), text(sort.to_owned())),
        ("EntityType".to_owned(), text("Order".to_owned())),
        ("V".to_owned(), AttributeValue::N(version.to_string())),
    ]
    .into()
}

/// Eight writers over three cells, two processes that consume, one of them killed.
async fn everything_is_delivered_in_order(engine: Engine, items: usize) {
    let mut world = World::new(engine, &CELLS).await;
    world.put_set(vec![table("CustomerData")]).await;
    for cell in CELLS {
        world.provision(cell).await;
    }
    let flags =
        ["--events-lease=2s", "--read-timeout=20s", "--log-filter=error", "--drain-timeout=1s"];
    let servers = [(); 2].map(|()| Celld::serve(&world.engine.endpoint(), &world.prefix, &flags));
    let told = Arc::new(Told::default());
    let mut consumers = Vec::new();
    for server in &servers {
        server.ready().await;
        for cell in CELLS {
            consumers.push(tokio::spawn(follow(server.channel().await, cell, told.clone())));
        }
    }

    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let writers = (0..8).map(|writer| {
        let (dynamodb, names) =
            (dynamodb.clone(), CELLS.map(|cell| world.table("CustomerData", cell)));
        tokio::spawn(async move {
            let mut last = BTreeMap::new();
            for number in (writer..items).step_by(8) {
                let (cell, tenant) = (number % 3, format!("t{}", number % 97));
                let sort = format!("{tenant}/{number:06}");
                // Some are changed, and some of these removed.
                let versions = if number % 5 == 0 { 3 } else { 1 };
                for version in 1..=versions {
                    let item = put(&tenant, &sort, version);
                    dynamodb
                        .put_item()
                        .table_name(&names[cell])
                        .set_item(Some(item))
                        .send()
                        .await
                        .unwrap();
                }
                let removed = number % 10 == 0;
                if removed {
                    let mut key = put(&tenant, &sort, 0);
                    key.retain(|name, _| name == "PK" || name == "SK");
                    dynamodb
                        .delete_item()
                        .table_name(&names[cell])
                        .set_key(Some(key))
                        .send()
                        .await
                        .unwrap();
                }
                last.insert((CELLS[cell].to_owned(), sort), versions + u64::from(removed));
            }
            last
        })
    });
    let writers: Vec<_> = writers.collect();
    let [first, second] = servers;
    // In the midst of it.
    while told.0.lock().len() < items / 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.kill();
    let mut expected = BTreeMap::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    assert_eq!(expected.len(), items);
    let deadline = Instant::now() + PATIENCE;
    while told.missing(&expected) > 0 {
        assert!(
            Instant::now() < deadline,
            "{} items are not told in full",
            told.missing(&expected)
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    told.assert_in_order();
    assert_eq!(told.0.lock().len(), items, "and nothing else");
    drop(second);
    for consumer in consumers {
        consumer.abort();
        assert!(consumer.await.map_or_else(|error| error.is_cancelled(), |()| true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_delivered_in_order_dynamodb_local() {
    everything_is_delivered_in_order(Engine::DynamoDbLocal(DynamoDbLocal::shared()), 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_delivered_in_order_embedded() {
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    everything_is_delivered_in_order(engine, 600).await;
}

/// What was not acknowledged comes again; what was does not. Other groups have everything for themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_comes_again() {
    let engine = Engine::DynamoDbLocal(DynamoDbLocal::shared());
    let mut world = World::new(engine, &["cell-a"]).await;
    world.put_set(vec![table("CustomerData"), v1::TableSpec { stream: 0, ..table("Still") }]).await;
    world.provision("cell-a").await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let name = world.table("CustomerData", "cell-a");
    let write = async |sort: &str| {
        let item = put("t", sort, 1);
        dynamodb.put_item().table_name(&name).set_item(Some(item)).send().await.unwrap();
    };
    let sorts = |delivery: &v1::ConsumeResponse| -> Vec<_> {
        delivery.events.iter().map(|e| attribute(e.key.as_ref().unwrap(), "SK").unwrap()).collect()
    };
    write("t/1").await;
    let channel = world.server.channel().await;
    let mut call = Call::begin(channel.clone(), start("one", "cell-a")).await.unwrap();
    let first = call.next().await.unwrap().unwrap();
    assert_eq!((first.delivery, sorts(&first)), (1, vec!["t/1".to_owned()]));
    assert_eq!(first.events[0].entity_type, "Order");
    call.ack(1).await;
    write("t/2").await;
    let second = call.next().await.unwrap().unwrap();
    assert_eq!((second.delivery, sorts(&second)), (2, vec!["t/2".to_owned()]));
    // Closed without an acknowledgement of the second.
    drop(call);
    let mut again = Call::begin(channel.clone(), start("one", "cell-a")).await.unwrap();
    let repeated = again.next().await.unwrap().unwrap();
    assert_eq!(sorts(&repeated), ["t/2"]);
    let mut other = Call::begin(channel.clone(), start("two", "cell-a")).await.unwrap();
    let mut all = Vec::new();
    while all.len() < 2 {
        let delivery = other.next().await.unwrap().unwrap();
        all.extend(sorts(&delivery));
    }
    assert_eq!(all, ["t/1", "t/2"]);

    other.ack(99).await;
    let status = loop {
        match other.next().await {
            Ok(delivery) => assert!(delivery.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (fault(&status).1, fault(&status).2),
        ("INVALID_ACK".to_owned(), vec!["ack".to_owned()])
    );
    let bad = |spoil: fn(&mut v1::ConsumeStart)| {
        let mut request = start("one", "cell-a");
        let Some(Asked::Start(start)) = &mut request.request else { unreachable!() };
        spoil(start);
        request
    };
    for (request, field) in [
        (v1::ConsumeRequest { request: Some(Asked::Ack(1)) }, "start"),
        (bad(|start| start.group = "a b".to_owned()), "start.group"),
        (bad(|start| start.cell_id = "A".to_owned()), "start.cell_id"),
        (bad(|start| start.table = "Still".to_owned()), "start.table"),
    ] {
        let status = Call::begin(channel.clone(), request).await.err().unwrap();
        assert_eq!(fault(&status).2, [field], "{status:?}");
    }
}

/// What was trimmed before it was read is told on the call, and has to be acknowledged like everything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_told_on_the_call() {
    let proxy = Arc::new(StreamsProxy::start(DynamoDbLocal::shared().endpoint()).await);
    let mut world = World::new(Engine::Streams(proxy.clone()), &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let name = world.table("CustomerData", "cell-a");
    let item = put("t", "t/1", 1);
    dynamodb.put_item().table_name(&name).set_item(Some(item)).send().await.unwrap();
    let channel = world.server.channel().await;
    let mut call = Call::begin(channel.clone(), start("one", "cell-a")).await.unwrap();
    let first = call.next().await.unwrap().unwrap();
    assert_eq!((first.events.len(), first.gap.clone()), (1, None));
    call.ack(1).await;
    // The consumer goes on only when the position is recorded, so the second delivery says that the first one's is.
    let item = put("t", "t/2", 1);
    dynamodb.put_item().table_name(&name).set_item(Some(item)).send().await.unwrap();
    assert_eq!(call.next().await.unwrap().unwrap().delivery, 2);
    drop(call);
    proxy.trim();
    for _ in 0..2 {
        // Not acknowledged, it comes again.
        let mut again = Call::begin(channel.clone(), start("one", "cell-a")).await.unwrap();
        let told = again.next().await.unwrap().unwrap();
        let gap = told.gap.expect("a gap");
        assert_eq!(told.events, []);
        assert_eq!(gap.after_sequence_number, first.events[0].sequence_number);
        assert_eq!(
            (gap.cause.as_str(), gap.shard_id),
            ("TRIMMED", first.events[0].shard_id.clone())
        );
    }
    let mut last = Call::begin(channel, start("one", "cell-a")).await.unwrap();
    assert!(last.next().await.unwrap().unwrap().gap.is_some());
    last.ack(1).await;
    let mut sorts = Vec::new();
    while sorts.len() < 2 {
        let delivery = last.next().await.unwrap().unwrap();
        sorts.extend(
            delivery.events.iter().map(|e| attribute(e.key.as_ref().unwrap(), "SK").unwrap()),
        );
    }
    assert_eq!(sorts, ["t/1", "t/2"], "reading goes on at the oldest change that there is");
}
