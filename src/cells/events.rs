//! Changes of items, by way of `cells-streams`: which stream, for whom, and whose change it is.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use cells_streams::sink::{Received, channel};
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
        let key = event.record.keys.get(&self.spec.partition_key.name)?.as_s().ok()?;
        self.spec.tenant_keys.iter().find_map(|template| template.tenant(key))
    }
}

impl CellEvents {
    /// `lease`: how long a consumer without a sign of life keeps others out, at least 300 ms.
    pub fn new(data: CellData, control: Client, control_table: String, lease: Duration) -> Self {
        Self { data, control, control_table, lease, consumers: TaskTracker::new() }
    }

    /// Begins to follow a table.
    pub async fn follow(&self, subscription: Subscription) -> Result<Following, DataError> {
        let Subscription { group, cell, table, latest } = subscription;
        let found = self.data.stream(&cell, &table).await?;
        let arn = found.arn.and_then(|arn| StreamArn::new(arn).ok());
        let Some(stream) = arn else {
            let problem = "has no stream; declare one in its table set, and provision the cell";
            return Err(DataError::Invalid {
                field: "start.table".into(),
                problem: problem.into(),
            });
        };
        let options = Options {
            start: if latest { StartAt::Latest } else { StartAt::TrimHorizon },
            lease: self.lease,
            tick: self.lease / 5,
            call_timeout: self.lease / 3,
            ..Options::default()
        };
        let leases = DynamoDbLeases::new(
            self.control.clone(),
            self.control_table.clone(),
            group.clone(),
            &stream,
        );
        let source = Source { group, stream, cell: cell.as_str().to_owned() };
        let (sink, deliveries) = channel(WAITING);
        let consumer = Consumer::new(
            source,
            OwnerId::unique("celld"),
            options,
            Arc::new(SdkStreams::new(found.streams)),
            Arc::new(leases),
            Arc::new(sink),
        );
        let consumer = consumer.map_err(|error| DataError::Invalid {
            field: "events_lease".into(),
            problem: error.to_string(),
        })?;
        let stop = CancellationToken::new();
        self.consumers.spawn(consumer.run(stop.clone()));
        Ok(Following { deliveries, spec: found.spec, _stop: stop.drop_guard() })
    }

    /// Waits until the consumers, whose calls have ended, have given back their leases.
    pub async fn finish(&self) {
        self.consumers.close();
        self.consumers.wait().await;
    }
}
