//! A declared sink, opened when it is first needed and then shared by all tables that are sent to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cells_streams::Delivery;
use cells_streams::json::Json;
use cells_streams::sink::{FileSink, Fsync, Sink, SinkError, WebhookOptions, WebhookSink};
use tokio::sync::Semaphore;
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::Channel;

use super::otlp::OtlpSink;
use super::tenant;
use crate::cells::table_set::TableSpec;
use crate::config::{EventSink, Secret, SinkTarget};
use crate::domain::CellId;
use crate::telemetry::events::TableEventMetrics;
use crate::telemetry::{TenantLabel, collector};

/// Pages of records that one sink's consumers hold together, 1 MB each at most.
const PAGES: usize = 64;

/// A sink, and how it is reached.
pub struct Output {
    pub sink: EventSink,
    pub pages: Arc<Semaphore>,
    open: Option<Open>,
}

#[derive(Clone)]
enum Open {
    File(FileSink),
    Webhook(Arc<WebhookSink>),
    Otlp { channel: Channel, headers: MetadataMap, timeout: Duration },
}

impl Output {
    pub fn new(sink: EventSink) -> Self {
        Self { sink, pages: Arc::new(Semaphore::new(PAGES)), open: None }
    }

    pub fn wants_cell(&self, cell: &CellId) -> bool {
        self.sink.cells.as_ref().is_none_or(|cells| cells.iter().any(|name| name == cell.as_str()))
    }

    pub fn wants_table(&self, table: &str) -> bool {
        self.sink.tables.as_ref().is_none_or(|tables| tables.iter().any(|name| name == table))
    }

    /// The sink for one table. `shared`: the collector of sinks that name none.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub fn table(
        &mut self,
        spec: TableSpec,
        shared: Option<&str>,
        tenants: &TenantLabel,
        metrics: Arc<TableEventMetrics>,
    ) -> Result<Arc<dyn Sink>, String> {
        let images = self.sink.images;
        let json = |spec: TableSpec| {
            let tenant_of = move |event: &_| tenant(&spec, event).map(String::from);
            let json = Json::with_tenant(Arc::new(tenant_of));
            if images { json } else { json.without_images() }
        };
        let inner: Arc<dyn Sink> = match self.open(shared)? {
            Open::File(file) => Arc::new(file.writing(json(spec))),
            Open::Webhook(webhook) => Arc::new(webhook.posting(json(spec))),
            Open::Otlp { channel, headers, timeout } => {
                let (tenants, metrics) = (tenants.clone(), metrics.clone());
                Arc::new(OtlpSink { channel, timeout, headers, spec, tenants, images, metrics })
            }
        };
        Ok(Arc::new(Metered { inner, metrics }))
    }

    fn open(&mut self, shared: Option<&str>) -> Result<Open, String> {
        if let Some(open) = &self.open {
            return Ok(open.clone());
        }
        let open = match &self.sink.target {
            SinkTarget::Ndjson { file } => {
                let opened = FileSink::open(file, Fsync::EachDelivery, Json::new());
                Open::File(opened.map_err(|error| format!("{}: {error}", file.display()))?)
            }
            SinkTarget::Webhook { url, headers, timeout } => {
                let options = WebhookOptions {
                    timeout: *timeout,
                    headers: http_headers(headers),
                    // Those after the first are the consumer's, which are counted, and between which it can stop.
                    attempts: 1,
                    ..WebhookOptions::default()
                };
                let sink = WebhookSink::new(url.as_str(), options, Json::new());
                Open::Webhook(Arc::new(sink.map_err(|error| error.to_string())?))
            }
            SinkTarget::Otlp { endpoint, headers, timeout } => {
                let endpoint = endpoint.as_ref().map(|url| url.as_str()).or(shared);
                let endpoint = endpoint.ok_or("there is no otlp_endpoint")?;
                let channel = collector(endpoint, *timeout).map_err(|error| error.to_string())?;
                Open::Otlp { channel, headers: metadata(headers), timeout: *timeout }
            }
        };
        self.open = Some(open.clone());
        Ok(open)
    }
}

fn http_headers(headers: &BTreeMap<String, Secret>) -> http::HeaderMap {
    let parsed = headers.iter().filter_map(|(name, value)| {
        let mut value = http::HeaderValue::from_str(value.expose()).ok()?;
        value.set_sensitive(true);
        Some((name.parse::<http::HeaderName>().ok()?, value))
    });
    parsed.collect()
}

fn metadata(headers: &BTreeMap<String, Secret>) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = MetadataKey::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value.expose().parse()) {
            metadata.insert(name, value);
        }
    }
    metadata
}

/// A sink whose outcomes are counted, and whose gaps are logged.
struct Metered {
    inner: Arc<dyn Sink>,
    metrics: Arc<TableEventMetrics>,
}

#[async_trait]
impl Sink for Metered {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let outcome = self.inner.deliver(delivery).await;
        match (&outcome, &**delivery) {
            (Err(_), _) => self.metrics.retry(),
            (Ok(()), Delivery::Events(batch)) => {
                let made = batch.events.iter().filter_map(|event| event.record.created_secs);
                let changes = u64::try_from(batch.events.len()).unwrap_or(u64::MAX);
                self.metrics.delivered(changes, made.max());
            }
            (Ok(()), Delivery::Gap(gap)) => {
                self.metrics.gap();
                tracing::warn!(
                    group = %gap.source.group,
                    cell = gap.source.cell,
                    table = gap.source.stream.table(),
                    shard = %gap.shard,
                    cause = gap.cause.as_str(),
                    after = gap.after.as_ref().map(|after| after.as_str()),
                    "changes were gone before they were read; make anew what is derived from them"
                );
            }
        }
        outcome
    }
}
