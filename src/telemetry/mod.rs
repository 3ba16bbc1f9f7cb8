//! Telemetry: spans and metrics by OTLP, logs to standard error.
//!
//! Two promises shape it. *Every* request may be counted and timed for well under a microsecond, so nothing on the hit path
//! makes a span, allocates, or looks attributes up. And a collector that is absent, slow or dead costs nothing but
//! telemetry, so every queue is bounded and nobody waits for an export.
//!
//! ```text
//! request ─ propagation::extract ─ HeadSampler::decide ─┬─ no ── fast path: RpcMetrics, DecisionMetrics only
//!                                                       ├─ yes ─ span, propagation::attach(.., true)
//!                                                       └─ no, but a slow path or an error:
//!                                                                span, propagation::attach(.., false), or LateSpans
//! span ─▶ tracing layer ─▶ SDK, RecordingSampler ─▶ TailProcessor ─▶ batch (bounded) ─▶ Watched exporter ─▶ collector
//! ```
//!
//! Spans are exported if their target begins with [`names::SPAN_TARGET_PREFIX`] and their level is `INFO` or graver:
//! `info_span!(target: "cells::rpc", ..)`.

pub mod cells;
pub mod decisions;
pub mod events;
pub mod export;
pub mod late;
pub mod metrics;
pub mod names;
pub mod overload;
mod pipeline;
pub mod propagation;
pub mod rpc;
pub mod sampling;
mod subscriber;
pub mod tail;
pub mod tenant;
pub mod writes;

use std::fmt;
use std::io;
use std::time::Duration;

use opentelemetry::metrics::noop::NoopMeterProvider;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_otlp::ExporterBuildError;
use tracing::Dispatch;

pub use cells::{CellGauges, CellMetrics, LoadGauges};
pub use decisions::DecisionMetrics;
pub use events::EventMetrics;
pub use late::{LateSpan, LateSpans};
pub use metrics::{RpcMethod, RpcMetrics};
pub use overload::OverloadMetrics;
pub use pipeline::FLUSH_TIMEOUT;
pub(crate) use pipeline::channel as collector;
pub use sampling::HeadSampler;
pub use tenant::TenantLabel;
pub use writes::WriteMetrics;

use export::ExportHealth;
use pipeline::Pipeline;
use tail::TailCounts;

/// What an operator can choose.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// The collector's OTLP/gRPC endpoint, `http://host:port` or `https://host:port`. Without one neither spans nor
    /// metrics are made.
    pub otlp_endpoint: Option<String>,
    /// Bound on connecting, on each request, and on the retries of one export.
    pub otlp_timeout: Duration,
    /// Probability, 0 to 1, that a request without a remote parent is sampled.
    pub trace_sample_ratio: f64,
    /// Time between two exports of the metrics.
    pub metrics_interval: Duration,
    /// Format of the log.
    pub log_format: LogFormat,
    /// What is logged, as directives of `tracing_subscriber::EnvFilter`, such as `info,cell_directory=debug`.
    pub log_filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            otlp_timeout: Duration::from_secs(3),
            trace_sample_ratio: 0.01,
            metrics_interval: Duration::from_secs(10),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
        }
    }
}

/// Format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Why telemetry could not be set up. None of these depends on the collector: that it is absent is no error.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter cannot be parsed.
    #[error("log_filter {filter:?} is not valid: {reason}")]
    LogFilter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The endpoint is not one.
    #[error("otlp_endpoint {endpoint:?} is not valid: {reason}")]
    Endpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The ratio is outside 0 to 1.
    #[error("trace_sample_ratio {0} is not valid: expected a number from 0 to 1")]
    SampleRatio(f64),
    /// A duration is zero.
    #[error("{0} must be longer than zero")]
    ZeroDuration(&'static str),
    /// An exporter cannot be built.
    #[error("the otlp exporter cannot be built: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The exporters' runtime cannot be started.
    #[error("the telemetry runtime cannot be started: {0}")]
    Runtime(#[source] io::Error),
    /// `init` was called before, or somebody else set a `tracing` subscriber.
    #[error("telemetry is already initialised in this process")]
    AlreadyInitialised,
}

/// The process's telemetry: hands out what layers need, and is shut down last.
pub struct Telemetry {
    head: HeadSampler,
    meter: Meter,
    late: LateSpans,
    pipeline: Option<Pipeline>,
}

/// Sets up telemetry for this process and installs its `tracing` subscriber. Once per process.
///
/// `service_instance_id` tells replicas apart (`service.instance.id`). Works inside and outside of a tokio runtime.
///
/// # Errors
/// A setting that is not valid, a thread that cannot be started, or a second call.
pub fn init(cfg: &TelemetryConfig, service_instance_id: &str) -> Result<Telemetry, TelemetryError> {
    let (telemetry, dispatch) = build(cfg, service_instance_id)?;
    tracing::dispatcher::set_global_default(dispatch)
        .map_err(|_| TelemetryError::AlreadyInitialised)?;
    Ok(telemetry)
}

/// Like [`init`], but leaves it to the caller to install the subscriber; for tests, which need more than one.
///
/// # Errors
/// As [`init`], except for a second call.
pub fn build(
    cfg: &TelemetryConfig,
    service_instance_id: &str,
) -> Result<(Telemetry, Dispatch), TelemetryError> {
    let head = HeadSampler::new(cfg.trace_sample_ratio)
        .ok_or(TelemetryError::SampleRatio(cfg.trace_sample_ratio))?;
    for (name, duration) in
        [("otlp_timeout", cfg.otlp_timeout), ("metrics_interval", cfg.metrics_interval)]
    {
        if duration.is_zero() {
            return Err(TelemetryError::ZeroDuration(name));
        }
    }
    let Some(endpoint) = &cfg.otlp_endpoint else {
        return Ok((Telemetry::noop(), subscriber::dispatch(cfg, None)?));
    };
    let pipeline = Pipeline::new(endpoint, cfg, service_instance_id)?;
    let dispatch = subscriber::dispatch(cfg, Some(pipeline.tracer()))?;
    let telemetry = Telemetry {
        head,
        meter: pipeline.meter(),
        late: LateSpans(Some(pipeline.tracer())),
        pipeline: Some(pipeline),
    };
    Ok((telemetry, dispatch))
}

impl Telemetry {
    /// Telemetry that records nothing, for tests and for processes without a collector. Installs no subscriber.
    pub fn noop() -> Self {
        Self {
            head: HeadSampler::never(),
            meter: NoopMeterProvider::new().meter("noop"),
            late: LateSpans(None),
            pipeline: None,
        }
    }

    /// Whether spans and metrics are exported.
    pub fn is_exporting(&self) -> bool {
        self.pipeline.is_some()
    }

    /// The head decision; each layer keeps its copy.
    pub fn head_sampler(&self) -> HeadSampler {
        self.head
    }

    /// For spans that are made after the fact.
    pub fn late_spans(&self) -> LateSpans {
        self.late.clone()
    }

    /// The RPC metrics of a server with these methods, each named `package.Service/Method`.
    pub fn rpc_metrics<I>(&self, methods: I) -> RpcMetrics
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        RpcMetrics::new(&self.meter, methods)
    }

    /// The metrics of routing decisions. To be made once and cloned, so that there is one set of cell labels.
    pub fn decision_metrics(&self) -> DecisionMetrics {
        DecisionMetrics::new(&self.meter)
    }

    /// The metrics of admission and of connections.
    pub fn overload_metrics(&self) -> OverloadMetrics {
        OverloadMetrics::new(&self.meter)
    }

    /// The metrics of cells. To be made once and cloned, so that there is one set of table labels.
    pub fn cell_metrics(&self) -> CellMetrics {
        CellMetrics::new(&self.meter)
    }

    /// The metrics of sinks of changes.
    pub fn event_metrics(&self) -> EventMetrics {
        EventMetrics::new(&self.meter)
    }

    /// The metrics of writes of tenants' items.
    pub fn write_metrics(&self) -> WriteMetrics {
        WriteMetrics::new(&self.meter)
    }

    /// For further instruments.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What became of recorded but unsampled spans, if spans are exported.
    pub fn tail_counts(&self) -> Option<&TailCounts> {
        self.pipeline.as_ref().map(|pipeline| &*pipeline.watch().tail)
    }

    /// The health of the exports of (traces, metrics), if there are any.
    pub fn export_health(&self) -> Option<(&ExportHealth, &ExportHealth)> {
        self.pipeline.as_ref().map(|pipeline| {
            let watch = pipeline.watch();
            (&*watch.traces, &*watch.metrics)
        })
    }

    /// Sends what waits and stops; whether all was sent. Blocks for at most [`FLUSH_TIMEOUT`], so from async code call
    /// it in `spawn_blocking` or after the runtime has ended. Dropping does the same.
    pub fn shutdown(mut self) -> bool {
        self.pipeline.as_mut().is_none_or(Pipeline::close)
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("exporting", &self.is_exporting()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
