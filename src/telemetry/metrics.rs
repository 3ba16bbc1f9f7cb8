//! RPC server metrics, by OpenTelemetry's conventions for RPC.
//!
//! Every request passes here, so instruments are *bound*: the attributes of a (method, status) pair are resolved the first
//! time it occurs, after that a record is an array index, one atomic add and one uncontended lock.
//!
//! Cardinality is closed: methods are the ones named at the start, everything else is `_OTHER`, and codes are gRPC's 17.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Histogram, Meter};
use opentelemetry::{KeyValue, StringValue};
use opentelemetry_semantic_conventions::attribute::{
    ERROR_TYPE, RPC_METHOD, RPC_RESPONSE_STATUS_CODE, RPC_SYSTEM_NAME,
};
use opentelemetry_semantic_conventions::metric::RPC_SERVER_CALL_DURATION;
use tonic::Code;

pub use super::decisions::DecisionMetrics;

/// Calls that were answered. OpenTelemetry defines none, the count of the duration histogram being the same number; it
/// is here for those who want the rate without a histogram.
pub const RPC_SERVER_CALLS: &str = "rpc.server.calls";
/// The method of calls to a path that this server does not have, as OpenTelemetry prescribes.
pub const OTHER_METHOD: &str = "_OTHER";
/// `rpc.system.name` of what we serve.
pub const RPC_SYSTEM_GRPC: &str = "grpc";

/// Upper bounds of the duration buckets, in seconds: 10 µs to 10 s, three a decade.
pub const DURATION_BOUNDS: [f64; 19] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 10.0,
];

/// gRPC has the codes 0 to 16.
const CODES: usize = 17;

/// A method that metrics know, found by [`RpcMetrics::method`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RpcMethod(usize);

impl RpcMethod {
    /// Stands for every path that is not served.
    pub const OTHER: Self = Self(0);
}

/// Counts and times the calls of this server. Clones share everything.
#[derive(Clone, Debug)]
pub struct RpcMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    duration: Histogram<f64>,
    calls: Counter<u64>,
    /// The first is [`RpcMethod::OTHER`].
    methods: Vec<Method>,
    by_path: HashMap<Box<str>, RpcMethod>,
}

#[derive(Debug)]
struct Method {
    name: Arc<str>,
    by_code: [OnceLock<Bound>; CODES],
}

#[derive(Debug)]
struct Bound {
    duration: BoundHistogram<f64>,
    calls: BoundCounter<u64>,
}

impl RpcMetrics {
    /// Metrics for `methods`, each named `package.Service/Method`.
    pub fn new<I>(meter: &Meter, methods: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut inner = Inner {
            duration: meter
                .f64_histogram(RPC_SERVER_CALL_DURATION)
                .with_unit("s")
                .with_description("Duration of incoming calls")
                .with_boundaries(DURATION_BOUNDS.to_vec())
                .build(),
            calls: meter
                .u64_counter(RPC_SERVER_CALLS)
                .with_unit("{call}")
                .with_description("Incoming calls that were answered")
                .build(),
            methods: vec![Method::new(OTHER_METHOD)],
            by_path: HashMap::new(),
        };
        for method in methods {
            let name = method.as_ref().trim_start_matches('/');
            let index = RpcMethod(inner.methods.len());
            inner.methods.push(Method::new(name));
            inner.by_path.insert(format!("/{name}").into(), index);
        }
        Self(Arc::new(inner))
    }

    /// The method at a request's path (`/package.Service/Method`); [`RpcMethod::OTHER`] if it is none of ours.
    #[inline]
    pub fn method(&self, path: &str) -> RpcMethod {
        self.0.by_path.get(path).copied().unwrap_or(RpcMethod::OTHER)
    }

    /// The method's name as in `rpc.method`; serves as the span's name too.
    pub fn name(&self, method: RpcMethod) -> &str {
        self.0.methods.get(method.0).map_or(OTHER_METHOD, |method| &method.name)
    }

    /// Records one answered call.
    #[inline]
    pub fn record(&self, method: RpcMethod, code: Code, elapsed: Duration) {
        let inner = &*self.0;
        let Some(method) = inner.methods.get(method.0) else {
            return;
        };
        // `Code` is a fieldless enum of 0 to 16, so there always is a slot.
        if let Some(slot) = method.by_code.get(code as usize) {
            let bound = slot.get_or_init(|| inner.bind(&method.name, code));
            bound.duration.record(elapsed.as_secs_f64());
            bound.calls.add(1);
        }
    }
}

impl Inner {
    #[cold]
    fn bind(&self, method: &Arc<str>, code: Code) -> Bound {
        let mut attributes = vec![
            KeyValue::new(RPC_SYSTEM_NAME, RPC_SYSTEM_GRPC),
            KeyValue::new(RPC_METHOD, StringValue::from(method.clone())),
            KeyValue::new(RPC_RESPONSE_STATUS_CODE, code_name(code)),
        ];
        if is_server_error(code) {
            attributes.push(KeyValue::new(ERROR_TYPE, code_name(code)));
        }
        Bound { duration: self.duration.bind(&attributes), calls: self.calls.bind(&attributes) }
    }
}

impl Method {
    fn new(name: &str) -> Self {
        Self { name: name.into(), by_code: [const { OnceLock::new() }; CODES] }
    }
}

/// The code's name as in `rpc.response.status_code`.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a *server* span or metric with this code counts as failed. What the caller did wrong does not.
/// Source: <https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>.
pub const fn is_server_error(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::SdkMeterProvider;

    fn metrics() -> RpcMetrics {
        let meter = SdkMeterProvider::builder().build().meter("test");
        RpcMetrics::new(
            &meter,
            ["cells.v1.CellDirectory/Resolve", "/cells.v1.CellDirectory/BatchResolve"],
        )
    }

    #[test]
    fn unknown_paths_share_one_method() {
        let metrics = metrics();
        for path in
            ["", "/", "/cells.v1.CellDirectory/Nope", "cells.v1.CellDirectory/Resolve", "/../../x"]
        {
            assert_eq!(metrics.method(path), RpcMethod::OTHER, "{path}");
        }
        assert_eq!(metrics.name(RpcMethod::OTHER), "_OTHER");
    }

    #[test]
    fn known_paths_have_their_name() {
        let metrics = metrics();
        for name in ["cells.v1.CellDirectory/Resolve", "cells.v1.CellDirectory/BatchResolve"] {
            assert_eq!(metrics.name(metrics.method(&format!("/{name}"))), name);
        }
    }

    #[test]
    fn every_code_has_a_slot_and_its_own_name() {
        let names: std::collections::HashSet<_> =
            (0..CODES as i32).map(|code| code_name(Code::from_i32(code))).collect();
        assert_eq!(names.len(), CODES);
        assert_eq!(Code::Unauthenticated as usize, CODES - 1);
    }
}
