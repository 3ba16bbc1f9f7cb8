//! The process's `tracing` subscriber: our spans go to the collector, everybody's events go to standard error.
//!
//! The two see different things on purpose. Spans of libraries (h2, hyper, the AWS SDK) would bury ours, and spans in log
//! lines would cost their formatting on every request; each layer has its own filter.

use std::io::{IsTerminal, stderr};

use opentelemetry_sdk::trace::SdkTracer;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use super::names::SPAN_TARGET_PREFIX;
use super::{LogFormat, TelemetryConfig, TelemetryError};

pub(super) fn dispatch(
    cfg: &TelemetryConfig,
    tracer: Option<SdkTracer>,
) -> Result<Dispatch, TelemetryError> {
    // Two stacks and no `Option<Layer>`: a layer that is `None` enables every span for the registry.
    let Some(tracer) = tracer else {
        return Ok(Dispatch::new(Registry::default().with(logs(cfg)?)));
    };
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        // The hint keeps the trace-level callsites of libraries switched off where they are, at no cost.
        .with_filter(filter_fn(is_exported).with_max_level_hint(LevelFilter::INFO));
    // The exporting layer comes first: it has to sit on the registry itself.
    Ok(Dispatch::new(Registry::default().with(spans).with(logs(cfg)?)))
}

fn logs<S>(cfg: &TelemetryConfig) -> Result<impl Layer<S> + Send + Sync + 'static, TelemetryError>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    // Without its hint the second filter would enable the trace-level callsites of everybody.
    let not_our_spans = filter_fn(|meta| !(meta.is_span() && is_ours(meta)))
        .with_max_level_hint(LevelFilter::TRACE);
    let filter = log_filter(&cfg.log_filter)?.and(not_our_spans);
    let logs = fmt::layer().with_writer(stderr);
    let logs = match cfg.log_format {
        LogFormat::Text => logs.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => {
            logs.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
    };
    Ok(logs.with_filter(filter))
}

fn is_ours(meta: &Metadata<'_>) -> bool {
    meta.target().starts_with(SPAN_TARGET_PREFIX)
}

fn is_exported(meta: &Metadata<'_>) -> bool {
    is_ours(meta) && *meta.level() <= Level::INFO
}

/// The operator's filter. The SDK's own messages, which no one bounds, stay off unless the operator names them; what
/// matters of them is said by [`super::export`].
fn log_filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    let with_default = if directives.contains("opentelemetry") {
        directives.to_owned()
    } else {
        format!("{directives},opentelemetry=off")
    };
    EnvFilter::try_new(with_default).map_err(|error| TelemetryError::LogFilter {
        filter: directives.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::{Span, debug_span, info_span};

    fn cfg(log_filter: &str) -> TelemetryConfig {
        TelemetryConfig { log_filter: log_filter.to_owned(), ..TelemetryConfig::default() }
    }

    /// Whether the subscriber ever wants such a span. Asked of it directly, because the answer that `tracing` caches is
    /// the sum over the subscribers of all tests.
    fn wants(subscriber: &Dispatch, span: fn() -> Span) -> bool {
        let span = tracing::subscriber::with_default(Registry::default(), span);
        !subscriber.register_callsite(span.metadata().unwrap()).is_never()
    }

    #[test]
    fn without_an_exporter_our_spans_do_not_exist() {
        let subscriber = dispatch(&cfg("trace"), None).unwrap();
        assert!(!wants(&subscriber, || info_span!(target: "cells::rpc", "ours")));
    }

    #[test]
    fn only_our_spans_are_exported() {
        let tracer = SdkTracerProvider::default().tracer("test");
        let subscriber = dispatch(&cfg("off"), Some(tracer)).unwrap();
        assert!(wants(&subscriber, || info_span!(target: "cells::rpc", "ours")));
        assert!(!wants(&subscriber, || debug_span!(target: "cells::rpc", "ours, but a detail")));
        assert!(!wants(&subscriber, || info_span!(target: "h2::client", "a library's")));
        assert!(!wants(&subscriber, || info_span!("by module path")));
    }

    fn hint(directives: &str, log_format: LogFormat) -> Option<LevelFilter> {
        let cfg = TelemetryConfig { log_format, ..cfg(directives) };
        Layer::<Registry>::max_level_hint(&logs::<Registry>(&cfg).unwrap())
    }

    #[test]
    fn callsites_below_the_log_filter_are_off() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(hint("warn", format), Some(LevelFilter::WARN));
            assert_eq!(hint("info,h2=debug", format), Some(LevelFilter::DEBUG));
        }
    }
}
