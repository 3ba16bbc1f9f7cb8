//! `cells.v1.CellEvents`: deliveries out, acknowledgements in.

use std::collections::VecDeque;
use std::pin::Pin;

use cells_streams::sink::Received;
use cells_streams::{ChangeKind, Delivery, Event, GroupName};
use futures::Stream;
use futures::stream::unfold;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::parse;
use super::status::{Fault, Reason};
use crate::cells::data::json;
use crate::cells::events::{CellEvents, Following, Subscription};
use crate::proto::v1;
use crate::proto::v1::cell_events_server::CellEvents as Service;
use crate::proto::v1::consume_request::Request as Asked;

/// Deliveries that were sent and not acknowledged.
const MAX_OPEN: usize = 16;

pub struct EventsService {
    pub events: CellEvents,
    pub draining: CancellationToken,
}

type Deliveries = Pin<Box<dyn Stream<Item = Result<v1::ConsumeResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for EventsService {
    type ConsumeStream = Deliveries;

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Deliveries>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.request);
        let Some(Asked::Start(start)) = first else {
            return Err(parse::missing("start").into());
        };
        let table = start.table;
        let group = GroupName::new(start.group).map_err(|_| {
            Fault::field(Reason::InvalidItem, "start.group", "is not 1-64 of [A-Za-z0-9_.-]")
        })?;
        let subscription = Subscription {
            group,
            cell: parse::cell_id("start.cell_id", &start.cell_id)?,
            table: table.clone(),
            latest: start.latest,
        };
        let following = self.events.follow(subscription).await.map_err(Fault::from)?;
        let consuming = Consuming {
            requests,
            following,
            table,
            open: VecDeque::new(),
            sent: 0,
            draining: self.draining.clone(),
        };
        // Ends after the first error.
        let stream = unfold(Some(consuming), async |consuming| {
            let mut consuming = consuming?;
            match consuming.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(consuming))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// A call under way.
struct Consuming {
    requests: Streaming<v1::ConsumeRequest>,
    following: Following,
    table: String,
    /// Sent and not acknowledged, oldest first.
    open: VecDeque<(u64, Received)>,
    sent: u64,
    draining: CancellationToken,
}

impl Consuming {
    /// The next delivery; `None`: the caller has closed its side.
    async fn next(&mut self) -> Result<Option<v1::ConsumeResponse>, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.draining.cancelled() => {
                    let message = "this replica shuts down; call another one: what is not acknowledged is delivered there";
                    return Err(Fault::new(Reason::ShuttingDown, message).into());
                }
                request = self.requests.message() => {
                    let Some(request) = request? else { return Ok(None) };
                    self.acknowledge(request)?;
                }
                received = self.following.deliveries.recv(), if self.open.len() < MAX_OPEN => {
                    // The consumer ends only when it is told to.
                    let Some(received) = received else { return Ok(None) };
                    self.sent += 1;
                    let response = self.response(&received.delivery);
                    self.open.push_back((self.sent, received));
                    return Ok(Some(response));
                }
            }
        }
    }

    fn acknowledge(&mut self, request: v1::ConsumeRequest) -> Result<(), Fault> {
        let Some(Asked::Ack(number)) = request.request else {
            return Err(Fault::field(
                Reason::InvalidAck,
                "start",
                "is for the first request alone",
            ));
        };
        if number > self.sent {
            let problem = format!("is {number}, and {} deliveries were sent", self.sent);
            return Err(Fault::field(Reason::InvalidAck, "ack", problem));
        }
        while let Some((sent, received)) = self.open.pop_front() {
            if sent > number {
                self.open.push_front((sent, received));
                break;
            }
            received.accept();
        }
        Ok(())
    }

    fn response(&self, delivery: &Delivery) -> v1::ConsumeResponse {
        let (events, gap) = match delivery {
            Delivery::Events(batch) => {
                (batch.events.iter().map(|event| self.event(event)).collect(), None)
            }
            Delivery::Gap(gap) => {
                let after = gap.after.as_ref().map(ToString::to_string);
                let gap = v1::EventGap {
                    shard_id: gap.shard.to_string(),
                    after_sequence_number: after.unwrap_or_default(),
                    cause: gap.cause.as_str().to_owned(),
                };
                (Vec::new(), Some(gap))
            }
        };
        v1::ConsumeResponse { delivery: self.sent, events, gap }
    }

    fn event(&self, event: &Event) -> v1::CellEvent {
        let record = &event.record;
        let tenant = self.following.tenant(event);
        v1::CellEvent {
            r#type: match record.kind {
                ChangeKind::Insert => v1::ChangeType::Insert,
                ChangeKind::Modify => v1::ChangeType::Modify,
                ChangeKind::Remove => v1::ChangeType::Remove,
            }
            .into(),
            cell_id: event.source.cell.clone(),
            table: self.table.clone(),
            partition_key: tenant.map(String::from).unwrap_or_default(),
            entity_type: event.entity_type().unwrap_or_default().to_owned(),
            key: Some(json::message(&record.keys)),
            old_item: record.old.as_ref().map(json::message),
            new_item: record.new.as_ref().map(json::message),
            expired: record.expired,
            shard_id: event.shard.to_string(),
            sequence_number: record.sequence.to_string(),
            create_time: record
                .created_secs
                .map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
        }
    }
}
