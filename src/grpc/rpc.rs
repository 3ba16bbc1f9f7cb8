//! Counts, times and traces every call, and gives tonic's own errors the details that ours have. Outermost of the server's layers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::status::refine;
use crate::telemetry::metrics::RpcMethod;
use crate::telemetry::rpc::{RpcTrace, RpcTracer};

/// Calls that are usually answered from memory: they get a span only if something slow happens under them.
const FAST: [&str; 2] = ["/cells.v1.CellDirectory/Resolve", "/cells.v1.CellDirectory/BatchResolve"];

#[derive(Debug, Clone)]
pub struct RpcLayer {
    tracer: RpcTracer,
    /// Spans are exported.
    traced: bool,
}

impl RpcLayer {
    pub fn new(tracer: RpcTracer, traced: bool) -> Self {
        Self { tracer, traced }
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc { inner, layer: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub struct Rpc<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S, B> Service<Request<B>> for Rpc<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = RpcFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let began = Instant::now();
        let tracer = &self.layer.tracer;
        let path = request.uri().path();
        let method = tracer.metrics.method(path);
        let trace = self.layer.traced.then(|| {
            let eager = method != RpcMethod::OTHER && !FAST.contains(&path);
            RpcTrace::begin(tracer, method, request.headers(), eager)
        });
        if let Some(trace) = &trace {
            request.extensions_mut().insert(trace.clone());
        }
        RpcFuture {
            inner: self.inner.call(request),
            call: Call { tracer: tracer.clone(), method, began, trace },
        }
    }
}

struct Call {
    tracer: RpcTracer,
    method: RpcMethod,
    began: Instant,
    trace: Option<RpcTrace>,
}

pin_project! {
    pub struct RpcFuture<F> {
        #[pin]
        inner: F,
        call: Call,
    }
}

impl<F, E> Future for RpcFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let call = this.call;
        let answer = {
            let span = call.trace.as_ref().and_then(RpcTrace::made).cloned();
            let _entered = span.as_ref().map(tracing::Span::enter);
            ready!(this.inner.poll(cx))
        };
        let answer = answer.map(refine_response);
        let code = match &answer {
            Ok(response) => code_of(response),
            Err(_) => Code::Unknown,
        };
        let elapsed = call.began.elapsed();
        call.tracer.metrics.record(call.method, code, elapsed);
        if let Some(trace) = call.trace.take() {
            trace.end(code, elapsed);
        }
        Poll::Ready(answer)
    }
}

/// The call's code. A call that failed says so in its headers; one that does not succeeded as far as its unary answer goes.
fn code_of(response: &Response<Body>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

fn refine_response(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let plain =
        headers.contains_key("grpc-status") && !headers.contains_key("grpc-status-details-bin");
    match plain.then(|| Status::from_header_map(headers)).flatten() {
        Some(status) if status.code() != Code::Ok => refine(status).into_http(),
        _ => response,
    }
}
