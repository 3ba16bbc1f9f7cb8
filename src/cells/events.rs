//! Changes of items, by way of `cells-streams`: which stream, for whom, and whose change it is.

mod applications;
mod otlp;
mod output;
pub mod sinks;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use cells_streams::sink::{Received, Sink, channel};
use cells_streams::{
    Consumer, DynamoDbLeases, Event, GroupName, Options, OwnerId, SdkStreams, Source, StartAt,
    StreamArn,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::data::{CellData, DataError};
use super::table_set::TableSpec;
use crate::domain::{CellId, PartitionKey};

/// Deliveries that wait for whoever reads them, a page of records each at most.
const WAITING: usize = 2;

/// Follows tables of cells.
#[derive(Clone)]
pub struct CellEvents {
    data: CellData,
    /// For leases and checkpoints, in `CellControl`.
    control: Client,
    control_table: String,
    lease: Duration,
    consumers: TaskTracker,
}

/// What to follow.
#[derive(Debug, Clone)]
pub struct Subscription {
    pub group: GroupName,
    pub cell: CellId,
    pub table: String,
    /// Where a new group begins.
    pub latest: bool,
}

/// A table being followed. The consumer stops when this is dropped.
pub struct Following {
    pub deliveries: mpsc::Receiver<Received>,
    spec: TableSpec,
    _stop: DropGuard,
}

impl Following {
    /// Whose change it is.
    pub fn tenant(&self, event: &Event) -> Option<PartitionKey> {
        tenant(&self.spec, event)
    }
}

/// A table with a stream.
struct Found {
    spec: TableSpec,
    stream: StreamArn,
    streams: aws_sdk_dynamodbstreams::Client,
}

/// Whose change it is; `None`: nobody's by the table's templates.
fn tenant(spec: &TableSpec, event: &Event) -> Option<PartitionKey> {
    let key = event.record.keys.get(&spec.partition_key.name)?.as_s().ok()?;
    spec.tenant_keys.iter().find_map(|template| template.tenant(key))
}

impl CellEvents {
    /// `lease`: how long a consumer without a sign of life keeps others out, at least 300 ms.
    pub fn new(data: CellData, control: Client, control_table: String, lease: Duration) -> Self {
        Self { data, control, control_table, lease, consumers: TaskTracker::new() }
    }

    /// Begins to follow a table.
    pub async fn follow(&self, subscription: Subscription) -> Result<Following, DataError> {
        let found = self.found(&subscription.cell, &subscription.table).await?;
        let spec = found.spec.clone();
        let (sink, deliveries) = channel(WAITING);
        let consumer = self.consumer(subscription, found, Arc::new(sink), Options::default())?;
        let stop = CancellationToken::new();
        self.consumers.spawn(consumer.run(stop.clone()));
        Ok(Following { deliveries, spec, _stop: stop.drop_guard() })
    }

    /// A table and its stream.
    async fn found(&self, cell: &CellId, table: &str) -> Result<Found, DataError> {
        let found = self.data.stream(cell, table).await?;
        let arn = found.arn.and_then(|arn| StreamArn::new(arn).ok());
        let Some(stream) = arn else {
            let problem = "has no stream; declare one in its table set, and provision the cell";
            return Err(DataError::Invalid {
                field: "start.table".into(),
                problem: problem.into(),
            });
        };
        Ok(Found { spec: found.spec, stream, streams: found.streams })
    }

    /// A consumer that is not started yet.
    fn consumer(
        &self,
        subscription: Subscription,
        found: Found,
        sink: Arc<dyn Sink>,
        options: Options,
    ) -> Result<Consumer, DataError> {
        let Subscription { group, cell, latest, .. } = subscription;
        let options = Options {
            start: if latest { StartAt::Latest } else { StartAt::TrimHorizon },
            lease: self.lease,
            tick: self.lease / 5,
            call_timeout: self.lease / 3,
            ..options
        };
        let leases = DynamoDbLeases::new(
            self.control.clone(),
            self.control_table.clone(),
            group.clone(),
            &found.stream,
        );
        let source = Source { group, stream: found.stream, cell: cell.as_str().to_owned() };
        let partition_key = found.spec.partition_key.name;
        let sink = Arc::new(applications::Applications { inner: sink, partition_key });
        let consumer = Consumer::new(
            source,
            OwnerId::unique("celld"),
            options,
            Arc::new(SdkStreams::new(found.streams)),
            Arc::new(leases),
            sink,
        );
        consumer.map_err(|error| DataError::Invalid {
            field: "events_lease".into(),
            problem: error.to_string(),
        })
    }

    /// Waits until the consumers, whose calls have ended, have given back their leases.
    pub async fn finish(&self) {
        self.consumers.close();
        self.consumers.wait().await;
    }
}
