//! A real OTLP/gRPC receiver: what a test asserts is what a collector would have got, over a socket, in protobuf.
//!
//! It depends on nothing of the crate under test, so unit tests and integration tests can both include it.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as ProtoValue};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};
use opentelemetry_proto::tonic::trace::v1::{
    Span as ProtoSpan, span::SpanKind, status::StatusCode,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    Str(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// Arrays, maps and bytes, in their debug form.
    Other(String),
}

impl From<&str> for Attr {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<i64> for Attr {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Attr {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(value) | Self::Other(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
        }
    }
}

/// Attributes by name.
pub type Attrs = BTreeMap<String, Attr>;

/// A span as it was received. Ids are lower-case hex.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub name: String,
    pub kind: SpanKind,
    pub trace_id: String,
    pub span_id: String,
    /// `None` for the root of a trace.
    pub parent_span_id: Option<String>,
    pub trace_state: String,
    /// Bit 0 is the sampled flag; bits 8 and 9 say whether the parent is remote.
    pub flags: u32,
    pub start_unix_nanos: u64,
    pub end_unix_nanos: u64,
    pub attributes: Attrs,
    pub events: Vec<Event>,
    pub links: Vec<Link>,
    pub is_error: bool,
    pub status_message: String,
    pub resource: Attrs,
    pub scope: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub attributes: Attrs,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub trace_id: String,
    pub span_id: String,
    pub attributes: Attrs,
}

impl Span {
    pub fn attr(&self, name: &str) -> Option<&Attr> {
        self.attributes.get(name)
    }

    /// A string attribute.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.attr(name) {
            Some(Attr::Str(value)) => Some(value),
            _ => None,
        }
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name) {
            Some(Attr::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// A boolean attribute.
    pub fn bool(&self, name: &str) -> Option<bool> {
        match self.attr(name) {
            Some(Attr::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end_unix_nanos.saturating_sub(self.start_unix_nanos))
    }
}

/// The spans received so far, to be searched and walked. Printed as trees by `{}`.
#[derive(Clone, Debug, Default)]
pub struct Spans(pub Vec<Span>);

impl Spans {
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    /// The only span of that name.
    #[track_caller]
    pub fn one(&self, name: &str) -> &Span {
        match self.named(name)[..] {
            [span] => span,
            ref found => panic!("expected one span {name:?}, got {}:\n{self}", found.len()),
        }
    }

    pub fn with_attr(&self, name: &str, value: impl Into<Attr>) -> Vec<&Span> {
        let value = value.into();
        self.0.iter().filter(|span| span.attr(name) == Some(&value)).collect()
    }

    pub fn in_trace(&self, trace_id: &str) -> Self {
        Self(self.0.iter().filter(|span| span.trace_id == trace_id).cloned().collect())
    }

    /// The parent, if it was received: a remote parent was not.
    pub fn parent(&self, of: &Span) -> Option<&Span> {
        let parent = of.parent_span_id.as_ref()?;
        self.0.iter().find(|span| span.trace_id == of.trace_id && &span.span_id == parent)
    }

    /// The children, in the order in which they began.
    pub fn children(&self, of: &Span) -> Vec<&Span> {
        let mut children: Vec<_> = self
            .0
            .iter()
            .filter(|span| {
                span.trace_id == of.trace_id && span.parent_span_id.as_ref() == Some(&of.span_id)
            })
            .collect();
        children.sort_by_key(|span| span.start_unix_nanos);
        children
    }

    /// The names from the local root down to `span`.
    pub fn path(&self, span: &Span) -> Vec<&str> {
        let found = self.0.iter().find(|other| *other == span);
        let mut path: Vec<_> = std::iter::successors(found, |span| self.parent(span))
            .map(|span| span.name.as_str())
            .collect();
        path.reverse();
        path
    }

    fn write_tree(&self, f: &mut fmt::Formatter<'_>, span: &Span, depth: usize) -> fmt::Result {
        write!(
            f,
            "{:width$}{} [{}/{}]",
            "",
            span.name,
            span.trace_id,
            span.span_id,
            width = 2 * depth
        )?;
        if span.is_error {
            write!(f, " error={:?}", span.status_message)?;
        }
        for (name, value) in &span.attributes {
            write!(f, " {name}={value}")?;
        }
        writeln!(f)?;
        self.children(span).into_iter().try_for_each(|child| self.write_tree(f, child, depth + 1))
    }
}

impl fmt::Display for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .filter(|span| self.parent(span).is_none())
            .try_for_each(|root| self.write_tree(f, root, 0))
    }
}

/// A data point as it was last received.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricPoint {
    pub name: String,
    pub unit: String,
    pub attributes: Attrs,
    pub resource: Attrs,
    pub value: MetricValue,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    Sum { value: f64, monotonic: bool },
    Gauge(f64),
    Histogram { count: u64, sum: f64, bounds: Vec<f64>, bucket_counts: Vec<u64> },
}

impl MetricPoint {
    /// The value of a sum or gauge, the count of a histogram.
    pub fn count(&self) -> f64 {
        match &self.value {
            MetricValue::Sum { value, .. } | MetricValue::Gauge(value) => *value,
            MetricValue::Histogram { count, .. } => *count as f64,
        }
    }

    /// Whether the point has these attributes, and maybe others.
    pub fn has(&self, attributes: &[(&str, &str)]) -> bool {
        attributes.iter().all(|(name, value)| {
            self.attributes.get(*name).is_some_and(|attr| attr.to_string() == *value)
        })
    }
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    points: Vec<MetricPoint>,
}

#[derive(Default)]
struct Store {
    received: Mutex<Received>,
    arrived: Notify,
}

impl Store {
    fn update<T>(&self, update: impl FnOnce(&mut Received) -> T) -> T {
        update(&mut self.received.lock().expect("no test panics while it holds this"))
    }
}

/// The receiver; it stops when it is dropped.
pub struct OtlpReceiver {
    store: Arc<Store>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl OtlpReceiver {
    /// Starts a receiver on a free port of the loopback; returns its endpoint (`http://127.0.0.1:port`) too.
    pub async fn start() -> (String, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        (format!("http://{address}"), Self::serve(listener))
    }

    /// Starts a receiver at an address that is known before: a collector that comes late.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::serve(TcpListener::bind(address).await.expect("the port is still free"))
    }

    fn serve(listener: TcpListener) -> Self {
        let store = Arc::new(Store::default());
        let (stop, stopped) = oneshot::channel();
        let router = Server::builder()
            .add_service(TraceServiceServer::from_arc(store.clone()))
            .add_service(MetricsServiceServer::from_arc(store.clone()));
        let server = tokio::spawn(async move {
            let until = async {
                let _ = stopped.await;
            };
            let _ =
                router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), until).await;
        });
        Self { store, stop: Some(stop), server }
    }

    /// What was received so far.
    pub fn spans(&self) -> Spans {
        self.store.update(|received| Spans(received.spans.clone()))
    }

    /// Waits until `predicate` holds of the spans.
    ///
    /// # Panics
    /// If it does not within `timeout`; the message shows what was received.
    #[track_caller]
    pub fn wait_for_spans<'a>(
        &'a self,
        predicate: impl Fn(&Spans) -> bool + 'a,
        timeout: Duration,
    ) -> impl Future<Output = Spans> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            self.wait(|| Some(self.spans()).filter(|spans| predicate(spans)), timeout)
                .await
                .unwrap_or_else(|| {
                    panic!("{caller}: not received within {timeout:?}; got:\n{}", self.spans())
                })
        }
    }

    /// Waits for a span of that name and returns all spans.
    #[track_caller]
    pub fn wait_for_span<'a>(
        &'a self,
        name: &'a str,
        timeout: Duration,
    ) -> impl Future<Output = Spans> + 'a {
        self.wait_for_spans(move |spans| !spans.named(name).is_empty(), timeout)
    }

    /// The points of a metric, each attribute set (and resource) once, as last received.
    pub fn metric_points(&self, name: &str) -> Vec<MetricPoint> {
        self.store.update(|received| {
            let named = received.points.iter().filter(|point| point.name == name);
            named.cloned().collect()
        })
    }

    /// The names of all metrics received.
    pub fn metric_names(&self) -> Vec<String> {
        self.store.update(|received| {
            let mut names: Vec<_> =
                received.points.iter().map(|point| point.name.clone()).collect();
            names.sort();
            names.dedup();
            names
        })
    }

    /// Waits until `predicate` holds of the points of a metric.
    ///
    /// # Panics
    /// If it does not within `timeout`; the message shows what was received.
    #[track_caller]
    pub fn wait_for_points<'a>(
        &'a self,
        name: &'a str,
        predicate: impl Fn(&[MetricPoint]) -> bool + 'a,
        timeout: Duration,
    ) -> impl Future<Output = Vec<MetricPoint>> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let points = || Some(self.metric_points(name)).filter(|points| predicate(points));
            self.wait(points, timeout).await.unwrap_or_else(|| {
                let (got, names) = (self.metric_points(name), self.metric_names());
                panic!("{caller}: {name} not as expected within {timeout:?}; got {got:#?}; metrics: {names:?}")
            })
        }
    }

    /// Forgets everything received so far.
    pub fn clear(&self) {
        self.store.update(|received| *received = Received::default());
    }

    /// Stops receiving and waits until the port is closed.
    pub async fn stop(mut self) {
        self.stop.take();
        let _ = (&mut self.server).await;
    }

    async fn wait<T>(&self, found: impl Fn() -> Option<T>, timeout: Duration) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let arrived = self.store.arrived.notified();
            tokio::pin!(arrived);
            // Registered before looking, so that nothing arrives unseen in between.
            arrived.as_mut().enable();
            if let Some(found) = found() {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let _ = tokio::time::timeout(left, arrived).await;
        }
    }
}

impl Drop for OtlpReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tonic::async_trait]
impl TraceService for Store {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = Vec::new();
        for of_resource in request.into_inner().resource_spans {
            let resource =
                attrs(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            for of_scope in of_resource.scope_spans {
                let scope = of_scope.scope.map(|scope| scope.name).unwrap_or_default();
                spans
                    .extend(of_scope.spans.into_iter().map(|proto| span(proto, &resource, &scope)));
            }
        }
        self.update(|received| received.spans.append(&mut spans));
        self.arrived.notify_waiters();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Store {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut new = Vec::new();
        for of_resource in request.into_inner().resource_metrics {
            let resource =
                attrs(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
            for metric in
                of_resource.scope_metrics.into_iter().flat_map(|of_scope| of_scope.metrics)
            {
                let Some(data) = metric.data else { continue };
                new.extend(values(data).into_iter().map(|(attributes, value)| MetricPoint {
                    name: metric.name.clone(),
                    unit: metric.unit.clone(),
                    attributes,
                    resource: resource.clone(),
                    value,
                }));
            }
        }
        self.update(|received| {
            let same = |a: &MetricPoint, b: &MetricPoint| {
                a.name == b.name && a.attributes == b.attributes && a.resource == b.resource
            };
            received.points.retain(|old| !new.iter().any(|point| same(old, point)));
            received.points.append(&mut new);
        });
        self.arrived.notify_waiters();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn span(proto: ProtoSpan, resource: &Attrs, scope: &str) -> Span {
    let status = proto.status.clone().unwrap_or_default();
    Span {
        kind: proto.kind(),
        trace_id: hex(&proto.trace_id),
        span_id: hex(&proto.span_id),
        parent_span_id: (!proto.parent_span_id.is_empty()).then(|| hex(&proto.parent_span_id)),
        trace_state: proto.trace_state,
        flags: proto.flags,
        start_unix_nanos: proto.start_time_unix_nano,
        end_unix_nanos: proto.end_time_unix_nano,
        attributes: attrs(proto.attributes),
        events: proto
            .events
            .into_iter()
            .map(|event| Event { name: event.name, attributes: attrs(event.attributes) })
            .collect(),
        links: proto
            .links
            .into_iter()
            .map(|link| Link {
                trace_id: hex(&link.trace_id),
                span_id: hex(&link.span_id),
                attributes: attrs(link.attributes),
            })
            .collect(),
        is_error: status.code() == StatusCode::Error,
        status_message: status.message,
        name: proto.name,
        resource: resource.clone(),
        scope: scope.to_owned(),
    }
}

fn values(data: Data) -> Vec<(Attrs, MetricValue)> {
    let number = |value: Option<number_data_point::Value>| match value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        None => f64::NAN,
    };
    match data {
        Data::Sum(sum) => {
            let monotonic = sum.is_monotonic;
            let value = |point| MetricValue::Sum { value: number(point), monotonic };
            sum.data_points
                .into_iter()
                .map(|point| (attrs(point.attributes), value(point.value)))
                .collect()
        }
        Data::Gauge(gauge) => {
            let value = |point| MetricValue::Gauge(number(point));
            gauge
                .data_points
                .into_iter()
                .map(|point| (attrs(point.attributes), value(point.value)))
                .collect()
        }
        Data::Histogram(histogram) => histogram
            .data_points
            .into_iter()
            .map(|point| {
                let value = MetricValue::Histogram {
                    count: point.count,
                    sum: point.sum.unwrap_or_default(),
                    bounds: point.explicit_bounds,
                    bucket_counts: point.bucket_counts,
                };
                (attrs(point.attributes), value)
            })
            .collect(),
        Data::ExponentialHistogram(_) | Data::Summary(_) => Vec::new(),
    }
}

fn attrs(attributes: Vec<KeyValue>) -> Attrs {
    attributes
        .into_iter()
        .filter_map(|attribute| Some((attribute.key, attr(attribute.value?.value?))))
        .collect()
}

fn attr(value: ProtoValue) -> Attr {
    match value {
        ProtoValue::StringValue(value) => Attr::Str(value),
        ProtoValue::IntValue(value) => Attr::Int(value),
        ProtoValue::DoubleValue(value) => Attr::Float(value),
        ProtoValue::BoolValue(value) => Attr::Bool(value),
        other => Attr::Other(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
