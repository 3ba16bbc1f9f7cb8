//! Keeps the caller's deadline (`grpc-timeout`), for unary calls and streams alike.
//!
//! tonic's own timer answers CANCELLED and does not cut a call that streams. This one answers DEADLINE_EXCEEDED, and hands the deadline
//! on to the handlers, so that a guess can be sent shortly before it. A timer is only set for a call that is not answered at once.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::status::{Fault, Reason, refine};

/// When the caller gives up. In the request's extensions where the caller said so.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// Waits until the caller gives up, if it ever does, for what the call ends with then.
pub async fn exceeded(deadline: Option<Instant>) -> Status {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
    refine(Status::deadline_exceeded(""))
}

/// Longest timeout that is kept as a timer; a longer one is as good as none.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Clone, Copy, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadlines<S>;

    fn layer(&self, inner: S) -> Deadlines<S> {
        Deadlines { inner }
    }
}

#[derive(Debug, Clone)]
pub struct Deadlines<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Deadlines<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let timeout = match timeout(request.headers()) {
            Ok(timeout) => timeout.filter(|timeout| *timeout <= MAX_TIMEOUT),
            Err(fault) => {
                return DeadlineFuture {
                    inner: None,
                    deadline: None,
                    timer: None,
                    refused: Some(fault.into()),
                    begun: false,
                };
            }
        };
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
            // tonic would set a timer of its own.
            request.headers_mut().remove(GRPC_TIMEOUT);
        }
        DeadlineFuture {
            inner: Some(self.inner.call(request)),
            deadline,
            timer: None,
            refused: None,
            begun: false,
        }
    }
}

pin_project! {
    pub struct DeadlineFuture<F> {
        // `None`: the call is not made.
        #[pin]
        inner: Option<F>,
        deadline: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
        refused: Option<Status>,
        begun: bool,
    }
}

impl<F, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Some(refused) = this.refused.take() {
            return Poll::Ready(Ok(refused.into_http()));
        }
        let Some(inner) = this.inner.as_pin_mut() else {
            return Poll::Pending;
        };
        // Looked at before the call begins: one that came too late must not change anything any more.
        if !*this.begun && this.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Poll::Ready(Ok(refine(Status::deadline_exceeded("")).into_http()));
        }
        *this.begun = true;
        if let Poll::Ready(answer) = inner.poll(cx) {
            return Poll::Ready(answer);
        }
        let Some(deadline) = *this.deadline else {
            return Poll::Pending;
        };
        let timer =
            this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                let exceeded = refine(Status::deadline_exceeded(""));
                Poll::Ready(Ok(exceeded.into_http()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Reads `grpc-timeout`: at most 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Fault> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let well_formed =
            (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let amount: u64 = well_formed.then(|| digits.parse().ok()).flatten()?;
        match unit {
            "H" => Some(Duration::from_secs(amount * 3600)),
            "M" => Some(Duration::from_secs(amount * 60)),
            "S" => Some(Duration::from_secs(amount)),
            "m" => Some(Duration::from_millis(amount)),
            "u" => Some(Duration::from_micros(amount)),
            "n" => Some(Duration::from_nanos(amount)),
            _ => None,
        }
    });
    match parsed {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Fault::field(
            Reason::MalformedMessage,
            GRPC_TIMEOUT,
            "is not a timeout of at most 8 digits and a unit of H, M, S, m, u or n",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Duration>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, text.parse().unwrap());
        timeout(&headers).map_err(|_| ())
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse("1S"), Ok(Some(Duration::from_secs(1))));
        assert_eq!(parse("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        assert_eq!(parse("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(parse("7u"), Ok(Some(Duration::from_micros(7))));
        assert_eq!(parse("0n"), Ok(Some(Duration::ZERO)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", " 1S"] {
            assert_eq!(parse(bad), Err(()), "{bad:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }
}
