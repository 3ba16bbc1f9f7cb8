//! Watches the exporters, so that a dead collector is told once a minute and not once per export.
//!
//! The SDK's own messages about failed exports are compiled out (its feature `internal-logs` is off): they come without
//! bound. What an operator has to know is said here instead: that exports fail and why, and that they work again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;

/// At most one message about failing exports per signal in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Longer reasons are cut, in characters.
const MAX_REASON: usize = 300;

/// The health of one signal's exports.
#[derive(Debug)]
pub struct ExportHealth {
    signal: &'static str,
    succeeded: AtomicU64,
    failed: AtomicU64,
    closing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the last export failed.
    failing: bool,
    /// Whether a failure was told and its end was not.
    told: bool,
    last_told: Option<Instant>,
}

#[derive(Debug, PartialEq)]
enum Notice {
    Failing,
    Recovered,
}

impl ExportHealth {
    pub(super) fn new(signal: &'static str) -> Arc<Self> {
        Arc::new(Self {
            signal,
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            state: Mutex::new(State::default()),
        })
    }

    /// Exports that the collector took.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// Exports that were lost.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// From here on nothing is sent to a collector that failed the last time: a shutdown does not wait for it again.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn give_up(&self) -> bool {
        self.closing.load(Ordering::Relaxed) && self.state.lock().failing
    }

    fn observe(&self, result: &OTelSdkResult) {
        let notice = self.judge(result.is_ok(), Instant::now());
        match (notice, result) {
            (Some(Notice::Failing), Err(error)) => {
                let reason: String = error.to_string().chars().take(MAX_REASON).collect();
                tracing::warn!(
                    signal = self.signal,
                    failed = self.failed(),
                    reason,
                    "telemetry is being lost, check the collector and otlp_endpoint"
                );
            }
            (Some(Notice::Recovered), _) => {
                tracing::info!(
                    signal = self.signal,
                    failed = self.failed(),
                    "telemetry is exported again"
                );
            }
            _ => {}
        }
    }

    fn judge(&self, ok: bool, now: Instant) -> Option<Notice> {
        let counter = if ok { &self.succeeded } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.failing = !ok;
        if ok {
            // One recovery per failure that was told, so a collector that comes and goes cannot fill the log either.
            return std::mem::take(&mut state.told).then_some(Notice::Recovered);
        }
        let due =
            state.last_told.is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL);
        if due {
            state.last_told = Some(now);
            state.told = true;
        }
        due.then_some(Notice::Failing)
    }
}

/// An exporter whose results are watched.
pub(super) struct Watched<E> {
    exporter: E,
    health: Arc<ExportHealth>,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, health: Arc<ExportHealth>) -> Self {
        Self { exporter, health }
    }

    async fn watch(&self, export: impl Future<Output = OTelSdkResult>) -> OTelSdkResult {
        if self.health.give_up() {
            return Err(OTelSdkError::InternalFailure("the collector does not answer".to_owned()));
        }
        let result = export.await;
        self.health.observe(&result);
        result
    }
}

impl<E> fmt::Debug for Watched<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("signal", &self.health.signal).finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.watch(self.exporter.export(batch)).await
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.watch(self.exporter.export(metrics)).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_collector_is_told_once_per_interval() {
        let (health, start) = (ExportHealth::new("traces"), Instant::now());
        let told: Vec<u64> = (0..3_600)
            .filter(|&second| health.judge(false, start + Duration::from_secs(second)).is_some())
            .collect();
        assert_eq!(told.len(), 60);
        assert_eq!((told[0], told[1]), (0, 60));
        assert_eq!((health.failed(), health.succeeded()), (3_600, 0));
    }

    #[test]
    fn recovery_is_told_once_and_health_never() {
        let (health, start) = (ExportHealth::new("traces"), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert_eq!(health.judge(true, at(0)), None);
        assert_eq!(health.judge(false, at(1)), Some(Notice::Failing));
        assert_eq!(health.judge(true, at(2)), Some(Notice::Recovered));
        assert_eq!(health.judge(true, at(200)), None);
    }

    #[test]
    fn a_collector_that_comes_and_goes_is_not_noisy_either() {
        let (health, start) = (ExportHealth::new("traces"), Instant::now());
        let told = (0..600)
            .filter(|&second| {
                health.judge(second % 2 == 0, start + Duration::from_secs(second)).is_some()
            })
            .count();
        assert!(told <= 20, "{told}");
    }

    #[test]
    fn only_a_failing_collector_is_given_up_at_shutdown() {
        let health = ExportHealth::new("traces");
        health.judge(true, Instant::now());
        health.close();
        assert!(!health.give_up());
        health.judge(false, Instant::now());
        assert!(health.give_up());
    }
}
