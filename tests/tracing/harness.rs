//! A `celld` that exports to a receiver, and callers with trace contexts of their own.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tempfile::NamedTempFile;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::celld::{Celld, command};
use crate::otlp::{OtlpReceiver, Span, Spans};

/// How long telemetry may be on its way: the batch delay of a second, and a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

pub type Directory = CellDirectoryClient<Channel>;

/// A `celld` whose log is kept.
pub struct Traced {
    pub celld: Celld,
    log: NamedTempFile,
}

impl Traced {
    fn start(arguments: &[&str], collector: &str, more: &[&str]) -> Self {
        let log = NamedTempFile::new().unwrap();
        let mut celld = command(arguments);
        celld.args(["--listen", "127.0.0.1:0", "--otlp-endpoint", collector]);
        // Bounded memory reads the table for a tenant that it does not hold: the longest way that a decision takes.
        celld.args(["--metrics-interval", "200ms", "--drain-timeout", "2s"]);
        celld.args(["--memory-mode", "bounded", "--snapshot-interval", "0s"]).args(more);
        celld.stderr(Stdio::from(log.reopen().unwrap()));
        Self { celld: Celld::start(celld), log }
    }

    /// `celld dev`.
    pub fn dev(data: &Path, collector: &str, more: &[&str]) -> Self {
        let dev =
            ["dev", "--dev-dynamodb-listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
        Self::start(&dev, collector, more)
    }

    /// `celld serve` on tables that need not be there, with `cell-z` as its guess.
    pub fn serve(dynamodb: &str, collector: &str, more: &[&str]) -> Self {
        let serve = ["serve", "--dynamodb-endpoint", dynamodb, "--default-cell", "cell-z"];
        Self::start(&serve, collector, more)
    }

    pub async fn directory(&self) -> Directory {
        self.celld.directory().await
    }

    /// Ends it in order and hands back its log.
    pub fn end(self) -> String {
        let status = self.celld.terminate();
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        assert!(status.success(), "{status}: {log}");
        log
    }
}

/// A caller's span, as `traceparent` names it.
pub struct Caller {
    pub trace_id: String,
    pub span_id: String,
    sampled: bool,
}

impl Caller {
    fn new(sampled: bool) -> Self {
        let (trace, span): (u128, u64) = (rand::random(), rand::random());
        Self { trace_id: format!("{trace:032x}"), span_id: format!("{span:016x}"), sampled }
    }

    pub fn sampled() -> Self {
        Self::new(true)
    }

    pub fn unsampled() -> Self {
        Self::new(false)
    }

    /// A request under this caller's span.
    pub fn asks<T>(&self, message: T) -> Request<T> {
        let flags = if self.sampled { "01" } else { "00" };
        let parent = format!("00-{}-{}-{flags}", self.trace_id, self.span_id);
        let mut request = Request::new(message);
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        request
    }

    /// Waits until this caller's trace holds `count` spans, and for none after them.
    #[track_caller]
    pub fn trace<'a>(
        &'a self,
        receiver: &'a OtlpReceiver,
        count: usize,
    ) -> impl Future<Output = Spans> + 'a {
        let enough = move |spans: &Spans| spans.in_trace(&self.trace_id).0.len() >= count;
        let received = receiver.wait_for_spans(enough, SOON);
        async move {
            let spans = received.await.in_trace(&self.trace_id);
            assert_eq!(spans.0.len(), count, "{spans}");
            spans
        }
    }
}

pub fn ask(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { partition_key: key.to_owned(), ..Default::default() }
}

pub fn ask_without_fallback(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { fallback: v1::FallbackPolicy::Refuse.into(), ..ask(key) }
}

/// Resolves and answers the cell and where the decision came from.
pub async fn resolve(
    directory: &mut Directory,
    request: Request<v1::ResolveRequest>,
) -> Result<(String, v1::DecisionSource), Status> {
    let answer = directory.resolve(request).await?.into_inner();
    Ok((answer.placement.unwrap().cell_id, answer.decision.unwrap().source()))
}

/// Asserts that these are all of a span's attributes, by name.
#[track_caller]
pub fn assert_attributes(span: &Span, names: &[&str]) {
    let mut names = names.to_vec();
    names.sort_unstable();
    let there: Vec<_> = span.attributes.keys().map(String::as_str).collect();
    assert_eq!(there, names, "{}", span.name);
}

/// An engine whose tables are made, behind a relay that can be cut, and a `celld` on it that knows one cell.
pub struct Cuttable {
    pub traced: Traced,
    pub relay: crate::relay::Relay,
    /// Outlives what talks to it.
    pub engine: crate::embedded::Embedded,
}

impl Cuttable {
    pub async fn start(collector: &str, more: &[&str]) -> Self {
        let engine = crate::embedded::Embedded::temporary();
        let tables = ["--dynamodb-endpoint", engine.endpoint()];
        let created = command(&["tables", "create"]).args(tables).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        let target = engine.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
        let relay = crate::relay::Relay::to(target).await;
        let traced = Traced::serve(&relay.endpoint(), collector, more);
        ready(&traced).await;
        traced.celld.create_cells(&["cell-a"]).await;
        Self { traced, relay, engine }
    }
}

/// Waits until the replica knows the cells. By its health, for any other call would fail before and be recorded.
async fn ready(traced: &Traced) {
    let mut health = HealthClient::new(traced.celld.channel().await);
    let deadline = Instant::now() + SOON;
    loop {
        let all = HealthCheckRequest { service: String::new() };
        let status = health.check(all).await.unwrap().into_inner().status();
        if status == ServingStatus::Serving {
            return;
        }
        assert!(Instant::now() < deadline, "still {status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
