//! Collectors that take less at once than a delivery is.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use cells_streams::{
    Batch, ChangeKind, GroupName, Item, Record, SequenceNumber, ShardId, StreamArn,
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;
use tonic::transport::Server;

use super::*;
use crate::cells::fixtures;
use crate::telemetry::{Telemetry, collector};

/// Answers exports of more than so many records with a status.
#[derive(Clone)]
struct Collector {
    most: usize,
    above: Status,
    /// The sequence numbers of each export that was taken.
    taken: Arc<Mutex<Vec<Vec<String>>>>,
    refused: Arc<Mutex<usize>>,
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let records = &request.get_ref().resource_logs[0].scope_logs[0].log_records;
        if records.len() > self.most {
            *self.refused.lock() += 1;
            return Err(self.above.clone());
        }
        self.taken.lock().push(records.iter().map(sequence).collect());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

fn sequence(record: &LogRecord) -> String {
    let attributes = record.attributes.iter();
    let mut found = attributes.filter(|attribute| attribute.key == names::EVENT_SEQUENCE);
    match found.next().unwrap().value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        other => panic!("{other:?}"),
    }
}

impl Collector {
    /// With gRPC's own limit of 4 MiB.
    async fn start(most: usize, above: Status) -> (Self, OtlpSink) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let this = Self { most, above, taken: Arc::default(), refused: Arc::default() };
        let server = Server::builder().add_service(LogsServiceServer::new(this.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let timeout = Duration::from_secs(60);
        let metrics = Telemetry::noop().event_metrics().table("g", "cell-a", "Orders");
        let sink = OtlpSink {
            channel: collector(&endpoint, timeout).unwrap(),
            timeout,
            headers: MetadataMap::new(),
            spec: fixtures::table("Orders"),
            tenants: TenantLabel::random(),
            images: true,
            metrics: Arc::new(metrics),
        };
        (this, sink)
    }

    fn taken(&self) -> Vec<Vec<String>> {
        self.taken.lock().clone()
    }
}

/// Changes with as many bytes in each.
fn events(count: usize, bytes: usize) -> Arc<Delivery> {
    let stream = StreamArn::new("arn:aws:dynamodb:r:1:table/Orders-cell-a/stream/now").unwrap();
    let group = GroupName::new("g").unwrap();
    let source = Arc::new(Source { group, stream, cell: "cell-a".into() });
    let shard = ShardId::new("shard");
    let image = Item::from([("V".to_owned(), AttributeValue::S("x".repeat(bytes)))]);
    let event = |sequence: usize| Event {
        source: source.clone(),
        shard: shard.clone(),
        record: Record {
            id: String::new(),
            kind: ChangeKind::Insert,
            sequence: SequenceNumber::new(sequence.to_string()).unwrap(),
            created_secs: None,
            keys: HashMap::new(),
            old: None,
            new: Some(image.clone()),
            expired: false,
        },
    };
    let events = (1..=count).map(event).collect();
    Arc::new(Delivery::Events(Batch { source: source.clone(), shard: shard.clone(), events }))
}

#[tokio::test]
async fn a_delivery_above_the_limit_of_grpc_is_exported_in_parts() {
    let (collector, sink) = Collector::start(usize::MAX, Status::ok("")).await;
    sink.deliver(&events(5, 1_000_000)).await.unwrap();
    assert_eq!(collector.taken(), [vec!["1", "2"], vec!["3", "4"], vec!["5"]]);
}

#[tokio::test]
async fn what_a_collector_finds_too_large_is_halved_down_to_one_change() {
    let (collector, sink) = Collector::start(1, Status::resource_exhausted("too large")).await;
    sink.deliver(&events(3, 1)).await.unwrap();
    assert_eq!(
        (collector.taken(), *collector.refused.lock()),
        (vec![vec!["1".to_owned()], vec!["2".to_owned()], vec!["3".to_owned()]], 2)
    );
    let (collector, sink) = Collector::start(0, Status::out_of_range("too large")).await;
    sink.deliver(&events(4, 1)).await.unwrap_err();
    assert_eq!(*collector.refused.lock(), 3);
}

#[tokio::test]
async fn a_collector_that_is_busy_is_not_asked_for_less() {
    let above = Status::with_details(Code::ResourceExhausted, "busy", vec![1].into());
    let (collector, sink) = Collector::start(0, above).await;
    sink.deliver(&events(4, 1)).await.unwrap_err();
    assert_eq!(*collector.refused.lock(), 1);
}
