//! The server, and what it keeps.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
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
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::attributes::attrs;
use super::logs::{Log, logs};
use super::metrics::{MetricPoint, values};
use super::spans::{Span, Spans, span};

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    points: Vec<MetricPoint>,
    logs: Vec<Log>,
    /// Exports of logs that are refused before one is taken.
    refuse_logs: usize,
    /// All requests as they came, one after the other.
    raw: Vec<u8>,
}

#[derive(Default)]
struct Store {
    /// How long an answer takes.
    delay: Duration,
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
        (format!("http://{address}"), Self::serve(listener, Duration::ZERO))
    }

    /// A receiver that answers each request late.
    pub async fn start_slow(delay: Duration) -> (String, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        (format!("http://{address}"), Self::serve(listener, delay))
    }

    /// Starts a receiver at an address that is known before: a collector that comes late.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::serve(
            TcpListener::bind(address).await.expect("the port is still free"),
            Duration::ZERO,
        )
    }

    fn serve(listener: TcpListener, delay: Duration) -> Self {
        let store = Arc::new(Store { delay, ..Store::default() });
        let (stop, stopped) = oneshot::channel();
        let router = Server::builder()
            .add_service(TraceServiceServer::from_arc(store.clone()))
            .add_service(MetricsServiceServer::from_arc(store.clone()))
            .add_service(LogsServiceServer::from_arc(store.clone()));
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

    /// The log records taken so far, in the order in which they came.
    pub fn logs(&self) -> Vec<Log> {
        self.store.update(|received| received.logs.clone())
    }

    /// Refuses that many exports of logs from now on.
    pub fn refuse_logs(&self, exports: usize) {
        self.store.update(|received| received.refuse_logs = exports);
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

    /// Whether a text occurs anywhere in what was received: names, attributes, events, links, messages, resources.
    pub fn ever_received(&self, text: &str) -> bool {
        let text = text.as_bytes();
        self.store.update(|received| received.raw.windows(text.len()).any(|part| part == text))
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
        let request = request.into_inner();
        self.update(|received| received.raw.append(&mut request.encode_to_vec()));
        for of_resource in request.resource_spans {
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
        tokio::time::sleep(self.delay).await;
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
        let request = request.into_inner();
        self.update(|received| received.raw.append(&mut request.encode_to_vec()));
        for of_resource in request.resource_metrics {
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
        tokio::time::sleep(self.delay).await;
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Store {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let request = request.into_inner();
        let refused = self.update(|received| {
            let left = received.refuse_logs;
            received.refuse_logs = left.saturating_sub(1);
            if left == 0 {
                received.raw.append(&mut request.encode_to_vec());
                received.logs.extend(logs(request));
            }
            left > 0
        });
        if refused {
            return Err(Status::unavailable("full"));
        }
        self.arrived.notify_waiters();
        tokio::time::sleep(self.delay).await;
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}
