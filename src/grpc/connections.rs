//! Accepts connections, bounds them in number and in every phase of their life, and ends them in order.
//!
//! ```text
//!   accept ─► GREETING ─────────────────► SERVING ───────────────────────────► CLOSING ─────► gone
//!     │          │ TLS, preface, SETTINGS    │ age (with jitter), idle, drain    │ GOAWAY; calls under way are finished
//!     ▼          ▼ handshake timeout         ▼ no answer to a ping               ▼ grace
//!   refused     cut                         cut                                 cut
//! ```
//!
//! Why not tonic's server: it has no limit on the number of connections, no timeout for the HTTP/2 handshake and none for idle connections;
//! its maximum age has no jitter, and given a grace it cuts the connection without having sent a GOAWAY. So hyper is driven here, which
//! tonic would do the same way.
//!
//! **No call is lost when a connection ends.** A GOAWAY is sent in two steps (hyper does that): the first still lets all streams in that
//! the client opened before it read it, the second comes after a round trip and names the last one. What a client sends after that, because it
//! answered the ping first, was not looked at, and gRPC has its clients send it again elsewhere. A drain takes the connections that wait
//! in the listener's backlog too: their clients may have sent a call already.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use super::threads::Threads;
use crate::telemetry::OverloadMetrics;

/// How long to wait after the system refused a connection for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections of the backlog that are still taken at a drain.
const MAX_BACKLOG: usize = 4096;

/// Bytes that a client sends before anything else: the preface, and a SETTINGS frame's head (RFC 9113, section 3.4).
const GREETING_BYTES: u64 = 24 + 9;

/// The age at which a connection is ended differs by at most this share, so that clients that came together do not leave together.
const AGE_JITTER: f64 = 0.1;

/// Looks at idleness in each idle timeout: a connection is ended when it was idle at all of them in a row.
const IDLE_LOOKS: u32 = 4;

/// What connections are bounded by.
#[derive(Debug, Clone)]
pub struct ConnectionSettings {
    /// Connections that are open at the same time.
    pub max_connections: u32,
    /// From the accept to the end of the HTTP/2 handshake, TLS included.
    pub handshake_timeout: Duration,
    /// Without a call for that long, a connection is ended.
    pub idle_timeout: Duration,
    pub max_age: Duration,
    /// How long a connection that is ended may take to finish its calls.
    pub age_grace: Duration,
    /// How often a client that says nothing is asked for a sign of life, and how long it may take to give it.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub max_concurrent_streams: u32,
    /// The size of a call's headers beyond which it is refused by HTTP/2 itself.
    pub max_header_list: u32,
}

/// What all connections share.
struct Shared<S> {
    service: S,
    settings: ConnectionSettings,
    tls: Option<TlsAcceptor>,
    drain: CancellationToken,
    metrics: OverloadMetrics,
}

/// Serves connections until `drain`, and then until the last one has ended.
pub async fn serve<S>(
    listener: TcpListener,
    threads: &Threads,
    tls: Option<Arc<ServerConfig>>,
    service: S,
    settings: ConnectionSettings,
    drain: CancellationToken,
    metrics: OverloadMetrics,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let places = Arc::new(Semaphore::new(settings.max_connections as usize));
    let tls = tls.map(TlsAcceptor::from);
    let shared = Arc::new(Shared { service, settings, tls, drain, metrics });
    // Refused by being dropped, which closes it; those that are open do not notice.
    let begin = |stream: std::net::TcpStream| match Arc::clone(&places).try_acquire_owned() {
        Ok(place) => {
            let shared = Arc::clone(&shared);
            threads.spawn(move || async move {
                // Fails for want of memory only: the system's reactor was there before.
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connection(stream, place, shared).await;
                }
            });
        }
        Err(_) => shared.metrics.connection_ended("limit"),
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.drain.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => begin(stream),
            Err(error) if of_the_client(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections; raise the limit on open files, or lower max_connections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if let Ok(listener) = listener.into_std() {
        for _ in 0..MAX_BACKLOG {
            let Ok((stream, _)) = listener.accept() else { break };
            if stream.set_nonblocking(true).is_ok() {
                begin(stream);
            }
        }
    }
    threads.finish().await;
}

/// A connection that went away before it was accepted is no reason to pause.
fn of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// Counts a connection for as long as it lives.
struct Open<'a>(&'a OverloadMetrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a OverloadMetrics) -> Self {
        metrics.connections(1);
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections(-1);
    }
}

async fn connection<S>(stream: TcpStream, _place: OwnedSemaphorePermit, shared: Arc<Shared<S>>)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let _open = Open::new(&shared.metrics);
    let peer = stream.peer_addr().ok();
    let greeted_by = Instant::now() + shared.settings.handshake_timeout;
    // Without it small answers wait for each other. Fails only for a connection that is gone.
    let _ = stream.set_nodelay(true);
    let ended = match &shared.tls {
        None => drive(stream, greeted_by, &shared).await,
        Some(tls) => match tokio::time::timeout_at(greeted_by, tls.accept(stream)).await {
            Ok(Ok(stream)) => drive(stream, greeted_by, &shared).await,
            Ok(Err(error)) => {
                tracing::debug!(?peer, %error, "tls handshake failed");
                None
            }
            Err(_elapsed) => Some("handshake"),
        },
    };
    if let Some(cause) = ended {
        shared.metrics.connection_ended(cause);
        tracing::debug!(?peer, cause, "ended a connection");
    }
}

/// Serves one connection to its end. Answers why the server ended it, if it did.
async fn drive<S, IO>(io: IO, greeted_by: Instant, shared: &Shared<S>) -> Option<&'static str>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = &shared.settings;
    let traffic = Arc::new(Traffic::default());
    let io = TokioIo::new(Watched { io, traffic: Arc::clone(&traffic) });
    let service = Calls { service: shared.service.clone(), traffic: Arc::clone(&traffic) };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_header_list_size(settings.max_header_list)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout);
    let mut connection = pin!(builder.serve_connection(io, service));

    let jitter = 1.0 + AGE_JITTER * (2.0 * rand::random::<f64>() - 1.0);
    let mut handshake = pin!(sleep_until(greeted_by));
    let mut age = pin!(sleep(settings.max_age.mul_f64(jitter)));
    let mut look = pin!(sleep(settings.idle_timeout / IDLE_LOOKS));
    let mut grace = pin!(sleep(Duration::ZERO));
    let (mut greeted, mut idleness) = (false, Idleness::default());
    // Why it is closing.
    let mut closing: Option<&'static str> = None;
    let mut draining = false;
    loop {
        let cause = tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection failed");
                }
                return closing;
            }
            () = &mut handshake, if !greeted => {
                greeted = traffic.read.load(Ordering::Relaxed) >= GREETING_BYTES;
                match greeted {
                    true => continue,
                    false => return Some("handshake"),
                }
            }
            // The server as a whole waits for the end of a drain, and knows for how long.
            () = shared.drain.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            () = &mut age, if closing.is_none() => "age",
            () = &mut look, if closing.is_none() => {
                look.as_mut().reset(Instant::now() + settings.idle_timeout / IDLE_LOOKS);
                if idleness.look(&traffic) < IDLE_LOOKS {
                    continue;
                }
                "idle"
            }
            () = &mut grace, if closing.is_some() => return Some("grace"),
        };
        closing = Some(cause);
        connection.as_mut().graceful_shutdown();
        grace.as_mut().reset(Instant::now() + settings.age_grace);
    }
}

/// What goes on on one connection.
#[derive(Debug, Default)]
struct Traffic {
    /// Bytes read.
    read: AtomicU64,
    /// Calls that were begun.
    begun: AtomicU64,
    /// Calls whose answer is complete, or that were given up.
    ended: AtomicU64,
}

/// For how many looks in a row there was no call. Needs no clock on the way of a call.
#[derive(Debug, Default)]
struct Idleness {
    begun: u64,
    looks: u32,
}

impl Idleness {
    fn look(&mut self, traffic: &Traffic) -> u32 {
        // In this order: what ended was begun, so that a call in between is seen as under way.
        let ended = traffic.ended.load(Ordering::Acquire);
        let begun = traffic.begun.load(Ordering::Acquire);
        self.looks = match ended == begun && begun == self.begun {
            true => self.looks + 1,
            false => 0,
        };
        self.begun = begun;
        self.looks
    }
}

/// Counts the bytes read.
#[derive(Debug)]
struct Watched<IO> {
    io: IO,
    traffic: Arc<Traffic>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        self.traffic.read.fetch_add(read, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The service as one connection sees it: counts the calls. Calls the layers as soon as the headers are decoded, not when the call's task is
/// first polled, so that a layer can tell the two apart.
#[derive(Debug, Clone)]
struct Calls<S> {
    service: S,
    traffic: Arc<Traffic>,
}

impl<S> hyper::service::Service<Request<Incoming>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<CallBody>;
    type Error = Infallible;
    type Future = CallFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.traffic.begun.fetch_add(1, Ordering::Release);
        let call = UnderWay(Arc::clone(&self.traffic));
        // Every layer is always ready: none of them makes calls wait.
        let answer = self.service.clone().call(request.map(Body::new));
        CallFuture { answer, call: Some(call) }
    }
}

/// A call, until its answer is complete.
struct UnderWay(Arc<Traffic>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

pin_project! {
    struct CallFuture<F> {
        #[pin]
        answer: F,
        call: Option<UnderWay>,
    }
}

impl<F> Future for CallFuture<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<Response<CallBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx))?;
        let call = this.call.take();
        Poll::Ready(Ok(answer.map(|body| CallBody { body, _call: call })))
    }
}

pin_project! {
    /// An answer's body; the call lasts as long as it.
    struct CallBody {
        #[pin]
        body: Body,
        _call: Option<UnderWay>,
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_when_no_call_was_there_at_any_look() {
        let traffic = Arc::new(Traffic::default());
        let mut idleness = Idleness::default();
        assert_eq!([idleness.look(&traffic), idleness.look(&traffic)], [1, 2]);
        // One that came and went between two looks.
        traffic.begun.fetch_add(1, Ordering::Release);
        drop(UnderWay(Arc::clone(&traffic)));
        assert_eq!([idleness.look(&traffic), idleness.look(&traffic)], [0, 1]);
        // One that is under way for long.
        traffic.begun.fetch_add(1, Ordering::Release);
        let call = UnderWay(Arc::clone(&traffic));
        for _ in 0..10 {
            assert_eq!(idleness.look(&traffic), 0);
        }
        drop(call);
        assert_eq!([idleness.look(&traffic), idleness.look(&traffic)], [1, 2]);
    }
}
