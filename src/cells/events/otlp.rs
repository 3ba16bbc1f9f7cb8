//! Changes as OpenTelemetry log records, one a change and one a gap.
//!
//! Invariant: a delivery is accepted only after the collector has answered that it took it. The SDK's log pipeline would not do: it
//! answers before anything is sent, and drops what does not fit. So each delivery is one export call with a deadline, or several in order
//! where one would be more than collectors take, and what fails is offered again by the consumer, with its waits.
//!
//! Privacy: the tenant is a keyed hash unless tenants in clear are switched on. Keys and images hold it in clear, so they are left out
//! unless images are switched on for the sink.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use cells_streams::sink::{Parts, Sink, SinkError};
use cells_streams::{Delivery, Event, Gap, Source, json};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cells::table_set::TableSpec;
use crate::telemetry::events::TableEventMetrics;
use crate::telemetry::{TenantLabel, names};

/// `service.name`, and the scope's name.
const SERVICE: &str = "celld";

/// Bytes of records in one export: what gRPC takes where nothing else is set is 4 MiB.
const MAX_EXPORT: usize = 3_000_000;

/// Sends the changes of one table to a collector.
pub struct OtlpSink {
    pub channel: Channel,
    /// Longest wait for the answer to one export.
    pub timeout: Duration,
    /// Sent with each export, such as an `authorization`.
    pub headers: MetadataMap,
    pub spec: TableSpec,
    pub tenants: TenantLabel,
    /// Whether keys and items are sent.
    pub images: bool,
    pub metrics: Arc<TableEventMetrics>,
}

#[async_trait]
impl Sink for OtlpSink {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let records = match &**delivery {
            Delivery::Events(batch) => batch.events.iter().map(|event| self.event(event)).collect(),
            Delivery::Gap(gap) => vec![self.gap(gap)],
        };
        let records: Vec<LogRecord> = records;
        let mut parts = Parts::new(records.iter().map(Message::encoded_len), MAX_EXPORT);
        while let Some(part) = parts.take() {
            let sent = records.get(part.clone()).unwrap_or_default().to_vec();
            match self.send(sent).await? {
                Ok(()) => {}
                Err(status) if too_large(&status) && parts.halve(&part) => {}
                // The code alone: what a collector writes may repeat what it was sent.
                Err(status) => {
                    return Err(SinkError(format!("the collector answered {:?}", status.code())));
                }
            }
        }
        Ok(())
    }
}

/// Whether less at once may be taken. A collector that is only busy says so with details, by which it could be asked again.
fn too_large(status: &Status) -> bool {
    match status.code() {
        Code::ResourceExhausted => status.details().is_empty(),
        // What tonic answers to a message above its limit.
        Code::OutOfRange => true,
        _ => false,
    }
}

impl OtlpSink {
    /// One export.
    async fn send(&self, records: Vec<LogRecord>) -> Result<Result<(), Status>, SinkError> {
        let mut request = Request::new(export(records));
        *request.metadata_mut() = self.headers.clone();
        let mut client = LogsServiceClient::new(self.channel.clone());
        let answer = tokio::time::timeout(self.timeout, client.export(request)).await;
        let answer = answer.map_err(|_| SinkError("the collector: no answer in time".into()))?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return Ok(Err(status)),
        };
        let partial = answer.into_inner().partial_success;
        let rejected = partial.map_or(0, |partial| partial.rejected_log_records);
        if let Ok(rejected @ 1..) = u64::try_from(rejected) {
            // By the protocol, what a collector rejects after it took the request must not be sent again.
            self.metrics.rejected(rejected);
            tracing::error!(rejected, "the collector threw changes away, look at its limits");
        }
        Ok(Ok(()))
    }

    fn event(&self, event: &Event) -> LogRecord {
        let record = &event.record;
        let mut attributes = self.head(record.kind.as_str(), &event.source, event.shard.as_str());
        attributes.push(text(names::EVENT_SEQUENCE, record.sequence.as_str()));
        attributes.push(attribute(names::EVENT_EXPIRED, Value::BoolValue(record.expired)));
        let tenant = super::tenant(&self.spec, event);
        let optional = [
            (names::EVENT_ID, Some(record.id.clone()).filter(|id| !id.is_empty())),
            (names::EVENT_ENTITY_TYPE, event.entity_type().map(str::to_owned)),
            (self.tenants.attribute(), tenant.map(|tenant| self.tenants.of(tenant.as_str()))),
        ];
        let images = [
            (names::EVENT_KEY, Some(&record.keys)),
            (names::EVENT_OLD, record.old.as_ref()),
            (names::EVENT_NEW, record.new.as_ref()),
        ];
        let images = images.into_iter().filter(|_| self.images);
        let images = images.map(|(name, item)| (name, item.map(|i| json::item(i).to_string())));
        let known = optional.into_iter().chain(images);
        attributes.extend(known.filter_map(|(name, value)| Some(text(name, &value?))));
        let made = record.created_secs.and_then(|secs| u64::try_from(secs).ok()).unwrap_or(0);
        LogRecord {
            time_unix_nano: made.saturating_mul(1_000_000_000),
            ..log(SeverityNumber::Info, record.kind.as_str(), attributes)
        }
    }

    fn gap(&self, gap: &Gap) -> LogRecord {
        let mut attributes = self.head("GAP", &gap.source, gap.shard.as_str());
        attributes.push(text(names::EVENT_GAP_CAUSE, gap.cause.as_str()));
        if let Some(after) = &gap.after {
            attributes.push(text(names::EVENT_SEQUENCE, after.as_str()));
        }
        log(SeverityNumber::Warn, "GAP", attributes)
    }

    fn head(&self, kind: &str, source: &Source, shard: &str) -> Vec<KeyValue> {
        vec![
            text(names::EVENT_KIND, kind),
            text(names::EVENT_GROUP, source.group.as_str()),
            text(names::CELL_ID, &source.cell),
            text(names::TABLE, &self.spec.name),
            text(names::EVENT_SHARD, shard),
        ]
    }
}

fn export(log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let scope = InstrumentationScope {
        name: SERVICE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let attributes = vec![text("service.name", SERVICE)];
    let resource = Resource { attributes, ..Default::default() };
    let logs = ScopeLogs { scope: Some(scope), log_records, ..Default::default() };
    let scope_logs = vec![logs];
    let logs = ResourceLogs { resource: Some(resource), scope_logs, ..Default::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }
}

fn log(severity: SeverityNumber, body: &str, attributes: Vec<KeyValue>) -> LogRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LogRecord {
        observed_time_unix_nano: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        severity_number: severity.into(),
        body: Some(AnyValue { value: Some(Value::StringValue(body.to_owned())) }),
        attributes,
        ..Default::default()
    }
}

fn attribute(name: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: name.to_owned(), value, ..Default::default() }
}

fn text(name: &str, value: &str) -> KeyValue {
    attribute(name, Value::StringValue(value.to_owned()))
}

#[cfg(test)]
#[path = "otlp_tests.rs"]
mod tests;
