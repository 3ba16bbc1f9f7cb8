//! New keys: assignments, journal included, against a bare loop of single conditional puts on the same engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::directory::Mutation;
use cell_directory::embedded::Embedded;
use cell_directory::proto::v1;
use cell_directory::store::dynamodb::{
    DynamoDbOptions, DynamoDbStore, StoreSettings, TableNames, connect, tables,
};
use cell_directory::telemetry::Telemetry;

use crate::dynamodb_local::{DynamoDbLocal, Storage};
use crate::{Options, load, median, resolve, service};

/// Callers at the same time, on either side.
const CALLERS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Embedded,
    DynamoDbLocal,
}

pub fn run(options: &Options) {
    println!(
        "new keys, {CALLERS} callers: single conditional puts, and assignments through gRPC with their journal"
    );
    println!(
        "{:<28} {:>10} {:>14} {:>7}   cpu of each, assignments an entry",
        "", "puts/s", "assignments/s", "ratio"
    );
    for engine in &options.engines {
        let directory = tempfile::tempdir().unwrap();
        match engine {
            Engine::Embedded => {
                let address = "127.0.0.1:0".parse().unwrap();
                let embedded = Embedded::start(directory.path(), address).unwrap();
                compare(options, "embedded, on disk", embedded.endpoint());
            }
            Engine::DynamoDbLocal => {
                let local = DynamoDbLocal::start(Storage::Disk(directory.path()));
                compare(options, "DynamoDB Local, on disk", local.endpoint());
            }
        }
    }
}

fn compare(options: &Options, name: &str, endpoint: String) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = connect(&DynamoDbOptions {
            endpoint: Some(endpoint),
            read_timeout: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(10),
            ..DynamoDbOptions::default()
        })
        .await;
        // Two sets of tables, so that neither side meets the other's items.
        let bare = TableNames::with_prefix("bare-").unwrap();
        let ours = TableNames::with_prefix("ours-").unwrap();
        tables::create(&client, &bare).await.unwrap();
        tables::create(&client, &ours).await.unwrap();

        let settings =
            StoreSettings { commit_timeout: Duration::from_secs(10), ..Default::default() };
        let store = service::store(DynamoDbStore::new(client.clone(), ours, settings));
        let mut config = service::config(0);
        config.lookup_budget = Duration::from_secs(10);
        let service = service::start(store, &config, &Telemetry::noop()).await;
        for id in ["cell-a", "cell-b", "cell-c"] {
            service.directory.create_cell(resolve::cell(id), Mutation::default()).await.unwrap();
        }
        let next = Arc::new(AtomicU64::new(0));
        let clients = load::connect(service.address, 4).await;
        let mut pairs = Vec::new();
        // The first pair warms up.
        for round in 0..=options.rounds {
            let puts = put(&client, bare.mappings(), &next, options.duration).await;
            let before = service.directory.standing().unwrap().position.sequence.get();
            let counter = Arc::clone(&next);
            let assign = move |mut client: load::Client, _| {
                let number = counter.fetch_add(1, Ordering::Relaxed);
                async move {
                    let request = v1::ResolveRequest {
                        partition_key: load::key(number),
                        fallback: v1::FallbackPolicy::Refuse.into(),
                        ..Default::default()
                    };
                    let answer = client.resolve(request).await.unwrap().into_inner();
                    let source = answer.decision.unwrap().source();
                    assert_eq!(source, v1::DecisionSource::Assigned);
                }
            };
            let streams = CALLERS / clients.len();
            let figures = load::measure(&clients, streams, options.duration, assign).await;
            let entries =
                (service.directory.standing().unwrap().position.sequence.get() - before) as f64;
            if round > 0 {
                pairs.push((puts, figures, figures.calls as f64 / entries));
            }
        }
        let middle = |pick: fn(&(load::Figures, load::Figures, f64)) -> f64| {
            median(pairs.iter().map(pick).collect())
        };
        println!(
            "{name:<28} {:>10.0} {:>14.0} {:>7.2}   {:.0} us, {:.0} us, {:.1}",
            middle(|pair| pair.0.per_second),
            middle(|pair| pair.1.per_second),
            middle(|pair| pair.1.per_second / pair.0.per_second),
            middle(|pair| pair.0.cpu.as_secs_f64() * 1e6),
            middle(|pair| pair.1.cpu.as_secs_f64() * 1e6),
            middle(|pair| pair.2),
        );
    });
}

/// Single conditional puts of items like ours.
async fn put(
    client: &Client,
    table: &str,
    next: &Arc<AtomicU64>,
    duration: Duration,
) -> load::Figures {
    let (client, table, next) = (client.clone(), table.to_owned(), Arc::clone(next));
    let put = move |_| {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let key = load::key(next.fetch_add(1, Ordering::Relaxed));
        let put = client
            .put_item()
            .table_name(&table)
            .item("PartitionKey", text(&key))
            .item("CellId", text("cell-a"))
            .item("CreatedAt", text("2026-01-01T00:00:00.000Z"))
            .item("LastUpdated", text("2026-01-01T00:00:00.000Z"))
            .item("Epoch", AttributeValue::N("1".to_owned()))
            .item("WriteMode", text("DIRECT"))
            .item("BegunBy", text("ASSIGNED"))
            .condition_expression("attribute_not_exists(PartitionKey)");
        async move {
            put.send().await.unwrap();
        }
    };
    load::repeat(std::iter::repeat_n(put, CALLERS), duration).await
}
