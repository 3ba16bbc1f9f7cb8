//! The way of spans and metrics to the collector, and the proof that it cannot hurt anybody who is not on it.
//!
//! - The SDK's batch processor and periodic reader run on threads of their own; their gRPC client runs on a runtime of its
//!   own, so that neither a busy server delays an export nor an export the server, and so that a flush works while (and
//!   after) the server's runtime goes down.
//! - Callers hand over by `try_send` into a bounded queue. What does not fit is lost.
//! - Connecting and each request have a timeout; a failed export is retried within the same time, then lost.
//! - Shutdown is bounded by [`FLUSH_TIMEOUT`] over all, whatever the threads are waiting for.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider,
};
use opentelemetry_semantic_conventions::attribute::{SERVICE_INSTANCE_ID, SERVICE_VERSION};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};

use super::export::{ExportHealth, Watched};
use super::sampling::RecordingSampler;
use super::tail::{TailCounts, TailProcessor};
use super::{TelemetryConfig, TelemetryError};

/// `service.name`, and the name of our instrumentation scope.
const SERVICE: &str = "celld";
/// Spans that may wait for their export; about 1 KiB each.
const MAX_QUEUED_SPANS: usize = 8_192;
/// Spans of one export.
const MAX_BATCH_SPANS: usize = 512;
/// A span waits at most this long for others to be exported with.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// A shutdown waits at most this long for the last export.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that has to be shut down.
pub(super) struct Pipeline {
    traces: SdkTracerProvider,
    metrics: SdkMeterProvider,
    watch: Arc<Watch>,
    runtime: Option<Runtime>,
}

/// What the pipeline knows of itself.
pub(super) struct Watch {
    pub(super) tail: Arc<TailCounts>,
    pub(super) traces: Arc<ExportHealth>,
    pub(super) metrics: Arc<ExportHealth>,
}

impl Pipeline {
    pub(super) fn new(
        endpoint: &str,
        cfg: &TelemetryConfig,
        instance_id: &str,
    ) -> Result<Self, TelemetryError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("celld-telemetry")
            .enable_all()
            .build()
            .map_err(TelemetryError::Runtime)?;
        // The client spawns its connection when it is built.
        let context = runtime.enter();
        let channel = channel(endpoint, cfg.otlp_timeout)?;
        let resource = Resource::builder()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new(SERVICE_VERSION, env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new(SERVICE_INSTANCE_ID, instance_id.to_owned()))
            .build();

        let (trace_health, metric_health) =
            (ExportHealth::new("traces"), ExportHealth::new("metrics"));
        let spans = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel.clone())
            .with_timeout(cfg.otlp_timeout)
            .build()?;
        let batch = BatchSpanProcessor::builder(Watched::new(spans, trace_health.clone()))
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(MAX_QUEUED_SPANS)
                    .with_max_export_batch_size(MAX_BATCH_SPANS)
                    .with_scheduled_delay(BATCH_DELAY)
                    .build(),
            )
            .build();
        let tail = TailProcessor::new(batch);
        let watch = Arc::new(Watch {
            tail: tail.counts(),
            traces: trace_health,
            metrics: metric_health.clone(),
        });
        let traces = SdkTracerProvider::builder()
            .with_sampler(RecordingSampler)
            .with_span_processor(tail)
            .with_resource(resource.clone())
            .build();

        let points = MetricExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(cfg.otlp_timeout)
            .build()?;
        let reader = PeriodicReader::builder(Watched::new(points, metric_health))
            .with_interval(cfg.metrics_interval)
            .build();
        let metrics =
            SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();

        drop(context);
        let pipeline = Self { traces, metrics, watch, runtime: Some(runtime) };
        watch_itself(&pipeline.meter(), &pipeline.watch);
        Ok(pipeline)
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.traces.tracer_with_scope(scope())
    }

    pub(super) fn meter(&self) -> Meter {
        self.metrics.meter_with_scope(scope())
    }

    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Sends what waits, for at most [`FLUSH_TIMEOUT`]; whether all of it was sent. Blocks the caller.
    pub(super) fn close(&mut self) -> bool {
        let Some(runtime) = self.runtime.take() else {
            return true;
        };
        self.watch.traces.close();
        self.watch.metrics.close();
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let (done, results) = mpsc::channel();
        let (traces, metrics) = (self.traces.clone(), self.metrics.clone());
        // On threads of their own, because the metric reader's shutdown takes no timeout.
        flush("traces", done.clone(), move || traces.shutdown_with_timeout(FLUSH_TIMEOUT));
        flush("metrics", done, move || metrics.shutdown_with_timeout(FLUSH_TIMEOUT));
        let mut answered = 0;
        let mut complete = true;
        while let Ok(ok) = results.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            answered += 1;
            complete &= ok;
        }
        if answered == 2 {
            runtime.shutdown_background();
        } else {
            // An export is still waiting on one of the SDK's threads, and a timer whose runtime is gone panics.
            std::mem::forget(runtime);
        }
        complete && answered == 2
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.close();
    }
}

/// One connection, made when it is first needed. An `https` endpoint is verified by the system's roots.
pub(crate) fn channel(endpoint: &str, timeout: Duration) -> Result<Channel, TelemetryError> {
    let refused =
        |reason: String| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), reason };
    let uri: http::Uri =
        endpoint.parse().map_err(|error: http::uri::InvalidUri| refused(error.to_string()))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
        return Err(refused("expected http://host:port or https://host:port".to_owned()));
    }
    Ok(Endpoint::new(uri)
        .map_err(|error| refused(error.to_string()))?
        .connect_timeout(timeout)
        .timeout(timeout)
        .connect_lazy())
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(SERVICE).with_version(env!("CARGO_PKG_VERSION")).build()
}

fn flush(
    signal: &str,
    done: mpsc::Sender<bool>,
    shutdown: impl FnOnce() -> OTelSdkResult + Send + 'static,
) {
    // Without a thread there is no flush, and the missing answer says so.
    let _ = thread::Builder::new()
        .name(format!("celld-flush-{signal}"))
        .spawn(move || done.send(shutdown().is_ok()));
}

/// Metrics of the telemetry itself: what was lost has to be visible where it is missed.
fn watch_itself(meter: &Meter, watch: &Arc<Watch>) {
    let of = watch.clone();
    meter
        .u64_observable_counter("cells.telemetry.tail.spans")
        .with_unit("{span}")
        .with_description("Spans that were recorded but not sampled, by what became of them")
        .with_callback(move |counter| {
            let observe =
                |count, outcome| counter.observe(count, &[KeyValue::new("outcome", outcome)]);
            observe(of.tail.kept(), "kept");
            observe(of.tail.uninteresting(), "uninteresting");
            observe(of.tail.over_limit(), "over_limit");
        })
        .build();
    let of = watch.clone();
    meter
        .u64_observable_counter("cells.telemetry.exports")
        .with_unit("{export}")
        .with_description("Exports to the collector, by signal and outcome")
        .with_callback(move |counter| {
            for (signal, health) in [("traces", &of.traces), ("metrics", &of.metrics)] {
                for (outcome, count) in [("ok", health.succeeded()), ("failed", health.failed())] {
                    let attributes =
                        [KeyValue::new("signal", signal), KeyValue::new("outcome", outcome)];
                    counter.observe(count, &attributes);
                }
            }
        })
        .build();
}
