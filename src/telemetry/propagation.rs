//! W3C Trace Context: from a request's headers to the parent of our spans.
//!
//! Parsed here and not by the SDK's propagator, because every request passes here, sampled or not: one header look-up and
//! no allocation where there is no `traceparent` (nor, without a `tracestate`, where there is one).
//! Format: <https://www.w3.org/TR/trace-context/>.

use std::str::FromStr;

use http::{HeaderMap, HeaderName};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::sampling::HeadSampled;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Length of a version-00 `traceparent`, in bytes.
const TRACEPARENT_LEN: usize = 55;
/// A longer `tracestate`, in bytes over all its headers, is ignored (the specification asks for at least 512).
const MAX_TRACESTATE_LEN: usize = 4096;

/// The caller's span, if the headers name a valid one. A malformed or repeated `traceparent` counts as absent; a
/// malformed `tracestate` is dropped alone, as the specification asks.
pub fn extract(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    let (trace_id, span_id, flags) = parse_traceparent(value.as_bytes())?;
    Some(SpanContext::new(trace_id, span_id, flags, true, trace_state(headers)))
}

/// The parent context of a local root: the caller's span, if any, and our head decision.
pub fn parent_context(remote: Option<SpanContext>, head_sampled: bool) -> Context {
    let cx = match remote {
        Some(remote) => Context::new().with_remote_span_context(remote),
        None => Context::new(),
    };
    if head_sampled { cx.with_value(HeadSampled) } else { cx }
}

/// Makes `span` a local root under the caller's span, sampled or only recorded. Has to be called before the span is
/// entered. Does nothing where spans are not exported.
pub fn attach(span: &tracing::Span, remote: Option<SpanContext>, head_sampled: bool) {
    if span.is_disabled() {
        return;
    }
    // Fails when there is no exporting layer, and then there is nothing to attach to.
    let _ = span.set_parent(parent_context(remote, head_sampled));
}

/// The ids of the span that is entered, for work that another task does on its behalf. `None` where nothing is traced.
pub fn current() -> Option<SpanContext> {
    context_of(&tracing::Span::current())
}

/// The ids of a span. `None` where it is not traced.
pub fn context_of(span: &tracing::Span) -> Option<SpanContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context().span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Puts `span` under a span of this process that another task holds. Has to be called before it is entered.
pub fn attach_local(span: &tracing::Span, parent: SpanContext) {
    // Fails when there is no exporting layer, and then there is nothing to attach to.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

/// Puts `span`, which stands for work done for several callers at once, under one of them and links it to all others. A sampled caller
/// comes first: its trace is the one that is looked at. Has to be called before the span is entered.
pub fn serve(span: &tracing::Span, callers: impl Iterator<Item = SpanContext>) {
    if span.is_disabled() {
        return;
    }
    let mut callers: Vec<_> = callers.collect();
    // Stable: among equals, who came first.
    callers.sort_by_key(|caller| !caller.is_sampled());
    let mut callers = callers.into_iter();
    if let Some(first) = callers.next() {
        attach_local(span, first);
    }
    callers.for_each(|caller| span.add_link(caller));
}

/// A span's ids as a version-00 `traceparent`.
pub fn traceparent(context: &SpanContext) -> String {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), flags.to_u8())
}

/// A caller's span by what [`traceparent`] wrote, for a link to it.
pub fn read_traceparent(text: &str) -> Option<SpanContext> {
    let (trace_id, span_id, flags) = parse_traceparent(text.as_bytes())?;
    Some(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`, lower-case hex; a later version may append fields.
fn parse_traceparent(value: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    let (head, rest) = value.split_at_checked(TRACEPARENT_LEN)?;
    if head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
        return None;
    }
    match hex(&head[..2])? {
        0xff => return None,
        0 if !rest.is_empty() => return None,
        _ if rest.first().is_some_and(|&b| b != b'-') => return None,
        _ => {}
    }
    let trace_id = TraceId::from(hex(&head[3..35])?);
    let span_id = SpanId::from(hex(&head[36..52])? as u64);
    // Flags that we do not know are not passed on.
    let flags = TraceFlags::new(hex(&head[53..])? as u8) & TraceFlags::SAMPLED;
    (trace_id != TraceId::INVALID && span_id != SpanId::INVALID)
        .then_some((trace_id, span_id, flags))
}

/// At most 32 lower-case hex digits as a number.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

fn trace_state(headers: &HeaderMap) -> TraceState {
    let mut values = headers.get_all(&TRACESTATE).iter();
    let Some(first) = values.next() else {
        return TraceState::NONE;
    };
    let mut joined = first.as_bytes().to_vec();
    for value in values {
        if joined.len() > MAX_TRACESTATE_LEN {
            break;
        }
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    if joined.len() > MAX_TRACESTATE_LEN {
        return TraceState::NONE;
    }
    std::str::from_utf8(&joined)
        .ok()
        .and_then(|joined| TraceState::from_str(joined).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn a_valid_parent_is_remote_and_keeps_its_ids() {
        let parent = extract(&headers(&[("traceparent", VALID)])).unwrap();
        assert_eq!(parent.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.span_id().to_string(), "00f067aa0ba902b7");
        assert!(parent.is_remote() && parent.is_sampled());
        assert_eq!(extract(&HeaderMap::new()), None);
    }

    #[test]
    fn only_the_sampled_flag_is_read() {
        for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("ff", true)] {
            let value = format!("{}{flags}", &VALID[..53]);
            let parent = extract(&headers(&[("traceparent", &value)])).unwrap();
            assert_eq!(parent.trace_flags().to_u8(), u8::from(sampled));
        }
    }

    #[test]
    fn malformed_parents_count_as_absent() {
        let zero_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let zero_span = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let cases = [
            "",
            "00",
            "x",
            &VALID[..54],
            &VALID.to_uppercase(),
            &VALID.replace('4', "+"),
            &VALID.replacen('-', "_", 1),
            zero_trace,
            zero_span,
            &format!("{VALID}-"),
            &format!("{VALID}0"),
            &VALID.replacen("00", "ff", 1),
            &format!("{}0", VALID.replacen("00", "01", 1)),
            &format!("{}é", &VALID[..53]),
        ];
        for case in cases {
            assert_eq!(extract(&headers(&[("traceparent", case)])), None, "{case}");
        }
        assert_eq!(extract(&headers(&[("traceparent", VALID), ("traceparent", VALID)])), None);
    }

    #[test]
    fn a_later_version_may_append_fields() {
        let later = format!("{}-what-ever", VALID.replacen("00", "cc", 1));
        assert!(extract(&headers(&[("traceparent", &later)])).is_some());
    }

    #[test]
    fn trace_state_is_joined_and_a_bad_one_is_dropped_alone() {
        let state = |pairs: &[(&'static str, &str)]| {
            let mut all = vec![("traceparent", VALID)];
            all.extend_from_slice(pairs);
            extract(&headers(&all)).unwrap().trace_state().header()
        };
        assert_eq!(state(&[("tracestate", "a=1"), ("tracestate", "b=2, c=3")]), "a=1,b=2,c=3");
        assert_eq!(state(&[("tracestate", "A=1")]), "");
        assert_eq!(state(&[("tracestate", "é=1")]), "");
        assert_eq!(state(&[("tracestate", &format!("a={}", "x".repeat(MAX_TRACESTATE_LEN)))]), "");
    }
}
