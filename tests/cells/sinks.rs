//! Changes of items, sent to the sinks that the file declares: all of them, in order for each item, whoever is killed or does not answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::{AttributeValue, StreamSpecification, StreamViewType};
use bytes::Bytes;
use cell_directory::proto::v1;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::celld::Celld;
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::otlp::OtlpReceiver;
use crate::streams_proxy::StreamsProxy;
use crate::world::{Engine, World, table};

/// Longest wait for what has to come, a lease that has to run out and a busy machine included.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a writer does to every item.
const KINDS: [&str; 3] = ["INSERT", "MODIFY", "REMOVE"];

fn local() -> Engine {
    Engine::DynamoDbLocal(DynamoDbLocal::shared())
}

/// A server with the sinks of a file.
async fn serve(world: &World, config: &Path, more: &[&str]) -> Celld {
    let config = config.display().to_string();
    let flags = ["--config", &config, "--events-lease=2s", "--read-timeout=20s"];
    let flags: Vec<_> = flags.iter().chain(more).copied().collect();
    let server = Celld::serve(&world.engine.endpoint(), &world.prefix, &flags);
    server.ready().await;
    server
}

async fn write(dynamodb: &aws_sdk_dynamodb::Client, table: &str, sort: &str) {
    let key = [("PK", format!("CUSTOMER#{}", tenant(sort))), ("SK", sort.to_owned())];
    for version in ["1", "2"] {
        let mut put = dynamodb.put_item().table_name(table);
        for (name, value) in key.clone() {
            put = put.item(name, AttributeValue::S(value));
        }
        put = put.item("EntityType", AttributeValue::S("Order".into()));
        put.item("V", AttributeValue::N(version.into())).send().await.unwrap();
    }
    let mut delete = dynamodb.delete_item().table_name(table);
    for (name, value) in key {
        delete = delete.key(name, AttributeValue::S(value));
    }
    delete.send().await.unwrap();
}

fn tenant(sort: &str) -> &str {
    sort.split('/').next().unwrap()
}

async fn until(what: impl Fn() -> bool, told: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "{}", told());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn lines(text: &str) -> Vec<Value> {
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read(file: &Path) -> Vec<Value> {
    lines(&std::fs::read_to_string(file).unwrap_or_default())
}

/// What was told of each item: cell and sort key, and the kinds in the order in which they were told for the first time.
fn told(lines: &[Value]) -> BTreeMap<(String, String), Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut told: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in lines {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        assert_ne!(line["type"], "GAP", "{line}");
        if seen.insert((text(&line["table"]), text(&line["shard"]), text(&line["sequence"]))) {
            let key = (text(&line["cell"]), text(&line["keys"]["SK"]["S"]));
            assert_eq!(line["tenant"], tenant(&key.1), "{line}");
            assert_eq!((&line["expired"], &line["entity_type"]), (&false.into(), &"Order".into()));
            told.entry(key).or_default().push(text(&line["type"]));
        }
    }
    told
}

/// Two replicas with the same sink, each with a file of its own, one of them killed and started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_have_every_change_though_a_server_is_killed() {
    const ITEMS: usize = 240;
    let cells = ["cell-a", "cell-b", "cell-c"];
    let mut world = World::new(local(), &cells).await;
    let silent = v1::TableSpec { stream: 0, ..table("Still") };
    world.put_set(vec![table("CustomerData"), silent]).await;
    for cell in cells {
        world.provision(cell).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let files = [1, 2].map(|number| folder.path().join(format!("{number}.ndjson")));
    let configs = [1, 2].map(|number| folder.path().join(format!("{number}.toml")));
    for (file, config) in files.iter().zip(&configs) {
        let sink = format!(
            "[[event_sinks]]\ngroup = 'archive'\nkind = 'ndjson'\nfile = '{}'\nimages = true\n",
            file.display()
        );
        std::fs::write(config, sink).unwrap();
    }
    let first = serve(&world, &configs[0], &["--log-filter=error"]).await;
    let second = serve(&world, &configs[1], &["--log-filter=error"]).await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let writers = (0..4).map(|writer| {
        let dynamodb = dynamodb.clone();
        let names = cells.map(|cell| world.table("CustomerData", cell));
        tokio::spawn(async move {
            for number in (writer..ITEMS).step_by(4) {
                write(&dynamodb, &names[number % 3], &format!("t{}/{number}", number % 7)).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let all = || files.iter().flat_map(|file| read(file)).collect::<Vec<_>>();
    // In the midst of it, with something of its own in the file.
    until(|| all().len() > ITEMS / 2, || format!("{} lines came", all().len())).await;
    first.kill();
    let first = serve(&world, &configs[0], &["--log-filter=error"]).await;
    for writer in writers {
        writer.await.unwrap();
    }
    let complete = || told(&all()).values().filter(|kinds| kinds.len() == 3).count();
    until(|| complete() == ITEMS, || format!("{} of {ITEMS} items are complete", complete())).await;

    let came = all();
    assert_eq!(told(&came).len(), ITEMS, "and nothing else");
    assert!(came.len() < 2 * 3 * ITEMS, "{} lines: it began anew", came.len());
    for file in &files {
        // In each file the order of changes is theirs: INSERT before MODIFY before REMOVE.
        for (key, kinds) in told(&read(file)) {
            let expected: Vec<_> =
                KINDS.iter().filter(|kind| kinds.iter().any(|k| k == *kind)).collect();
            assert_eq!(kinds.iter().collect::<Vec<_>>(), expected, "{key:?}");
        }
    }
    let modified = came.iter().find(|line| line["type"] == "MODIFY").unwrap();
    let versions = (&modified["old"]["V"]["N"], &modified["new"]["V"]["N"]);
    assert_eq!(versions, (&"1".into(), &"2".into()));

    // Stopped in order, it leaves its position behind: nothing comes twice.
    assert!(first.terminate().success() && second.terminate().success());
    let before = all().len();
    let again = serve(&world, &configs[0], &["--log-filter=error"]).await;
    write(&dynamodb, &world.table("CustomerData", "cell-a"), "last/1").await;
    until(|| all().len() >= before + 3, || "the last changes do not come".to_owned()).await;
    let sorts: Vec<_> = read(&files[0])
        .iter()
        .rev()
        .take(all().len() - before)
        .map(|line| line["keys"]["SK"]["S"].clone())
        .collect();
    assert_eq!(sorts, ["last/1"; 3]);
    drop(again);
}

/// A webhook on the loopback that fails at first.
struct Hook {
    address: String,
    /// Body and `authorization` of each request that was answered well.
    taken: Arc<Mutex<Vec<(String, String)>>>,
    failed: Arc<Mutex<usize>>,
}

async fn hook(failures: usize) -> Hook {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/hook", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<_>>> = Arc::default();
    let failed = Arc::new(Mutex::new(0));
    let (takes, fails) = (taken.clone(), failed.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (takes, fails) = (takes.clone(), fails.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (takes, fails) = (takes.clone(), fails.clone());
                async move {
                    let header = request.headers().get("authorization");
                    let header = header.map(|value| value.to_str().unwrap().to_owned());
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let mut failed = fails.lock();
                    let status = if *failed < failures {
                        *failed += 1;
                        StatusCode::SERVICE_UNAVAILABLE
                    } else {
                        let body = String::from_utf8(body.to_vec()).unwrap();
                        takes.lock().push((body, header.unwrap_or_default()));
                        StatusCode::NO_CONTENT
                    };
                    let response = Response::builder().status(status);
                    Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
                }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    Hook { address, taken, failed }
}

/// Only the cell that is named, although it gets its tables when the server runs already; without images.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_fails_gets_everything_in_order() {
    let mut world = World::new(local(), &["cell-a", "cell-b"]).await;
    world.put_set(vec![table("CustomerData"), table("Orders")]).await;
    world.provision("cell-b").await;
    let hook = hook(4).await;
    let config = tempfile::NamedTempFile::new().unwrap();
    let sink = format!(
        "[[event_sinks]]\ngroup = 'hook'\nkind = 'webhook'\nurl = '{}'\ncells = ['cell-a']\n\
         tables = ['Orders']\nheaders = {{ authorization = 'Bearer t0ken' }}\n",
        hook.address
    );
    std::fs::write(config.path(), sink).unwrap();
    let server = serve(&world, config.path(), &["--log-filter=error"]).await;
    world.provision("cell-a").await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    for (table, cell) in [("Orders", "cell-b"), ("CustomerData", "cell-a"), ("Orders", "cell-a")] {
        for number in 0..10 {
            write(&dynamodb, &world.table(table, cell), &format!("t/{number}")).await;
        }
    }
    let came = || {
        let taken = hook.taken.lock();
        taken.iter().flat_map(|(body, _)| lines(body)).collect::<Vec<_>>()
    };
    let complete = || told(&came()).values().filter(|kinds| kinds[..] == KINDS).count();
    until(|| complete() == 10, || format!("{} of 10 items are complete", complete())).await;
    assert_eq!(*hook.failed.lock(), 4, "the failures were tried again");
    for line in came() {
        let of = (line["cell"].as_str().unwrap(), line["table"].as_str().unwrap());
        assert_eq!(of, ("cell-a", world.table("Orders", "cell-a").as_str()));
        assert!(line.get("old").is_none() && line.get("new").is_none(), "{line}");
    }
    assert!(hook.taken.lock().iter().all(|(_, header)| header == "Bearer t0ken"));
    drop(server);
}

/// Log records and metrics as a collector gets them; removals by the storage are told apart, and no tenant is told at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_log_records_that_name_no_tenant() {
    const TENANT: &str = "customer-of-renown";
    let embedded = Arc::new(Embedded::temporary());
    let proxy = Arc::new(StreamsProxy::start(embedded.endpoint().to_owned()).await);
    let mut world = World::new(Engine::Streams(proxy), &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let (endpoint, receiver) = OtlpReceiver::start().await;
    receiver.refuse_logs(2);
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "[[event_sinks]]\ngroup = 'audit'\nkind = 'otlp'\n").unwrap();
    let collector = format!("--otlp-endpoint={endpoint}");
    let more = [&collector, "--metrics-interval=100ms", "--log-filter=error"];
    let server = serve(&world, config.path(), &more).await;

    let name = world.table("CustomerData", "cell-a");
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    write(&dynamodb, &name, &format!("{TENANT}/1")).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let passing = HashMap::from([
        ("PK".to_owned(), AttributeValue::S(format!("CUSTOMER#{TENANT}"))),
        ("SK".to_owned(), AttributeValue::S("passing".into())),
        ("TTL".to_owned(), AttributeValue::N((now - 60).to_string())),
    ]);
    dynamodb.put_item().table_name(&name).set_item(Some(passing)).send().await.unwrap();
    assert_eq!(embedded.sweep(), 1);

    let kinds = || {
        let logs = receiver.logs();
        let kind =
            |log: &crate::otlp::Log| (log.text("cell.event.kind"), log.text("cell.event.expired"));
        logs.iter().map(kind).collect::<Vec<_>>()
    };
    until(|| kinds().len() >= 5, || format!("{:?} came", kinds())).await;
    let expected = [
        ("INSERT", "false"),
        ("MODIFY", "false"),
        ("REMOVE", "false"),
        ("INSERT", "false"),
        ("REMOVE", "true"),
    ];
    assert_eq!(kinds(), expected.map(|(kind, expired)| (kind.to_owned(), expired.to_owned())));
    let logs = receiver.logs();
    for log in &logs {
        for (name, value) in
            [("cell.id", "cell-a"), ("cell.table", "CustomerData"), ("cell.event.group", "audit")]
        {
            assert_eq!(log.text(name), value);
        }
        assert_eq!((log.text("cell.tenant.hash").len(), log.severity), (16, 9), "{log:?}");
        assert_eq!(log.text("cell.tenant.hash"), logs[0].text("cell.tenant.hash"));
        assert!(!log.text("cell.event.sequence_number").is_empty() && log.time_secs > 0);
        assert_eq!(log.resource["service.name"], "celld".into());
    }
    assert_eq!(logs[0].text("cell.event.entity_type"), "Order");
    assert!(!receiver.ever_received(TENANT));

    let labels =
        [("cell.id", "cell-a"), ("cell.table", "CustomerData"), ("cell.event.group", "audit")];
    for (metric, least) in [
        ("cell.events.delivered", 5.0),
        ("cell.events.retries", 2.0),
        ("cell.events.newest_age", 0.0),
    ] {
        let points = receiver
            .wait_for_points(metric, |points| points.iter().any(|p| p.count() >= least), PATIENCE)
            .await;
        assert!(
            points.iter().all(|point| point.has(&labels) && point.attributes.len() == 3),
            "{points:?}"
        );
    }
    drop(server);
}

/// What was trimmed before it was read is told as a line of its own, after which the reading goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_a_line_of_its_own() {
    let proxy = Arc::new(StreamsProxy::start(DynamoDbLocal::shared().endpoint()).await);
    let mut world = World::new(Engine::Streams(proxy.clone()), &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let folder = tempfile::tempdir().unwrap();
    let (file, config) = (folder.path().join("events"), folder.path().join("config"));
    let sink =
        format!("[[event_sinks]]\ngroup = 'g'\nkind = 'ndjson'\nfile = '{}'\n", file.display());
    std::fs::write(&config, sink).unwrap();
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let name = world.table("CustomerData", "cell-a");
    let server = serve(&world, &config, &["--log-filter=error"]).await;
    write(&dynamodb, &name, "t/1").await;
    until(|| read(&file).len() == 3, || format!("{:?}", read(&file))).await;
    assert!(server.terminate().success());
    let last = read(&file)[2]["sequence"].clone();
    proxy.trim();
    let server = serve(&world, &config, &["--log-filter=error"]).await;
    until(|| read(&file).len() > 6, || format!("{:?}", read(&file))).await;
    let gap = &read(&file)[3];
    assert_eq!(
        (&gap["type"], &gap["after"], &gap["cause"]),
        (&"GAP".into(), &last, &"TRIMMED".into())
    );
    assert_eq!((&gap["cell"], &gap["group"]), (&"cell-a".into(), &"g".into()));
    // From the trim horizon on, which is the beginning here.
    let kinds: Vec<_> = read(&file)[4..7].iter().map(|line| line["type"].clone()).collect();
    assert_eq!(kinds, KINDS);
    drop(server);
}

/// A table whose stream is switched off and on has another one, while the former still answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_replaced_is_followed_anew() {
    let mut world = World::new(local(), &["cell-a"]).await;
    world.put_set(vec![table("CustomerData")]).await;
    world.provision("cell-a").await;
    let folder = tempfile::tempdir().unwrap();
    let (file, config) = (folder.path().join("events"), folder.path().join("config"));
    let sink =
        format!("[[event_sinks]]\ngroup = 'g'\nkind = 'ndjson'\nfile = '{}'\n", file.display());
    std::fs::write(&config, sink).unwrap();
    let dynamodb = aws_sdk_dynamodb::Client::new(&world.sdk().await);
    let name = world.table("CustomerData", "cell-a");
    let server = serve(&world, &config, &["--log-filter=error"]).await;
    write(&dynamodb, &name, "t/1").await;
    until(|| read(&file).len() == 3, || format!("{:?}", read(&file))).await;
    let view = StreamViewType::NewAndOldImages;
    for stream in [
        StreamSpecification::builder().stream_enabled(false),
        StreamSpecification::builder().stream_enabled(true).stream_view_type(view),
    ] {
        let update = dynamodb.update_table().table_name(&name);
        update.stream_specification(stream.build().unwrap()).send().await.unwrap();
    }
    write(&dynamodb, &name, "t/2").await;
    let second = || {
        let lines = read(&file).into_iter().filter(|line| line["keys"]["SK"]["S"] == "t/2");
        lines.map(|line| line["type"].clone()).collect::<Vec<_>>()
    };
    until(|| second().len() >= 3, || format!("{:?}", read(&file))).await;
    assert_eq!(second(), KINDS);
    drop(server);
}
