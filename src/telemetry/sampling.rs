//! Head sampling, decided by us before any span exists.
//!
//! A hit answered from memory costs a few microseconds, a span about as much. So the decision is one random number taken
//! first, and an unsampled hit makes no span at all. A span that is made although the head decision was "no" (a miss, a
//! write, an error) is *recorded but not sampled*; [`super::tail`] decides about it when its local trace has ended.
//!
//! ```text
//! remote parent sampled ───────────────────────────────┐
//! no remote parent, random number under the ratio ─────┴─▶ sampled: span made, exported at once
//! else, fast path ───────────────────────────────────────▶ no span
//! else, slow path ───────────────────────────────────────▶ recorded only: kept by the tail if fallback or error
//! ```
//!
//! The decision travels to the SDK as a value in the parent `Context` (see [`super::propagation::attach`]), so nothing
//! internal shows up among a span's attributes; from there on every child follows its parent's sampled flag.

use opentelemetry::trace::{Link, SpanContext, SpanKind, TraceContextExt, TraceId};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// One more than the largest `u32`: a ratio of 1 has to let every random number through.
const ALWAYS: u64 = 1 << 32;

/// The parent-based head decision. `Copy`, so that every layer can hold its own.
#[derive(Clone, Copy, Debug)]
pub struct HeadSampler {
    /// A root is sampled when a random `u32` is below this; `None` samples nothing, not even under a sampled parent.
    threshold: Option<u64>,
}

impl HeadSampler {
    /// A sampler of roots with probability `ratio`, from 0 to 1 inclusive; `None` if it is outside or not a number.
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..=1.0)
            .contains(&ratio)
            .then_some(Self { threshold: Some((ratio * ALWAYS as f64) as u64) })
    }

    /// A sampler that never asks for a span; used where nothing exports spans.
    pub const fn never() -> Self {
        Self { threshold: None }
    }

    /// Whether this request is sampled: as its remote parent was, or by the ratio if it has none.
    /// Costs some nanoseconds and allocates nothing.
    #[inline]
    pub fn decide(&self, remote_parent: Option<&SpanContext>) -> bool {
        let Some(threshold) = self.threshold else {
            return false;
        };
        match remote_parent {
            Some(parent) => parent.is_sampled(),
            None => u64::from(rand::random::<u32>()) < threshold,
        }
    }
}

/// The positive head decision, as a value in the parent context of a local root.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadSampled;

/// The sampler given to the SDK. It never drops: whoever made a span had a reason to.
#[derive(Clone, Debug)]
pub(super) struct RecordingSampler;

impl ShouldSample for RecordingSampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        _trace_id: TraceId,
        _name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        let sampled = parent.is_some_and(|cx| {
            cx.span().span_context().is_sampled() || cx.get::<HeadSampled>().is_some()
        });
        SamplingResult {
            decision: if sampled {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::RecordOnly
            },
            attributes: Vec::new(),
            trace_state: parent
                .map(|cx| cx.span().span_context().trace_state().clone())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanId, TraceFlags, TraceState};

    fn remote(sampled: bool) -> SpanContext {
        SpanContext::new(
            TraceId::from(7),
            SpanId::from(8),
            TraceFlags::default().with_sampled(sampled),
            true,
            TraceState::NONE,
        )
    }

    fn decision(parent: &Context) -> SamplingDecision {
        RecordingSampler
            .should_sample(Some(parent), TraceId::from(1), "s", &SpanKind::Server, &[], &[])
            .decision
    }

    #[test]
    fn the_ratio_is_kept_within_five_standard_deviations() {
        let (n, p) = (400_000_u32, 0.01);
        let sampler = HeadSampler::new(p).unwrap();
        let hits = (0..n).filter(|_| sampler.decide(None)).count() as f64;
        let (mean, sigma) = (f64::from(n) * p, (f64::from(n) * p * (1.0 - p)).sqrt());
        assert!((hits - mean).abs() < 5.0 * sigma, "{hits} of {n}");
    }

    #[test]
    fn zero_and_one_are_exact() {
        let (none, all) = (HeadSampler::new(0.0).unwrap(), HeadSampler::new(1.0).unwrap());
        assert!((0..10_000).all(|_| !none.decide(None) && all.decide(None)));
    }

    #[test]
    fn a_remote_parent_decides_whatever_the_ratio() {
        for ratio in [0.0, 1.0] {
            let sampler = HeadSampler::new(ratio).unwrap();
            assert!(sampler.decide(Some(&remote(true))));
            assert!(!sampler.decide(Some(&remote(false))));
        }
        assert!(!HeadSampler::never().decide(Some(&remote(true))));
    }

    #[test]
    fn a_ratio_outside_zero_to_one_is_refused() {
        for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert!(HeadSampler::new(ratio).is_none(), "{ratio}");
        }
    }

    #[test]
    fn the_sdk_sampler_follows_the_parent_or_the_head_decision() {
        let cx = Context::new();
        assert_eq!(decision(&cx), SamplingDecision::RecordOnly);
        assert_eq!(decision(&cx.with_value(HeadSampled)), SamplingDecision::RecordAndSample);
        assert_eq!(
            decision(&cx.with_remote_span_context(remote(false))),
            SamplingDecision::RecordOnly
        );
        assert_eq!(
            decision(&cx.with_remote_span_context(remote(true))),
            SamplingDecision::RecordAndSample
        );
    }
}
