//! The transport over gRPC: what tonic's types are turned into, and how dead connections are found out.

use std::time::Duration;

use futures::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::error::{Error, Failure, FailureKind};
use crate::options::Options;
use crate::proto;
use crate::proto::cell_directory_client::CellDirectoryClient;
use crate::transport::{BoxFuture, Transport, WatchStream};

/// The largest message that is taken: a part of a snapshot, or of changes.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A connection on which nothing comes is asked for a sign of life so often.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// And is given up after this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What `https://` endpoints need.
#[derive(Clone, Default)]
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
pub(crate) struct Tls {
    pub ca: Option<Vec<u8>>,
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// The connections to one endpoint: a snapshot on the one must not delay an answer on the other.
struct Connections {
    watch: CellDirectoryClient<Channel>,
    calls: CellDirectoryClient<Channel>,
}

pub(crate) struct Grpc(Vec<Connections>);

impl Grpc {
    /// Connections are made when they are first needed, and again when they are lost.
    pub fn new(endpoints: &[String], tls: &Tls, options: &Options) -> Result<Self, Error> {
        endpoints
            .iter()
            .map(|uri| connections(uri, tls, options))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn connections(uri: &str, tls: &Tls, options: &Options) -> Result<Connections, Error> {
    let invalid = |problem: String| Error::InvalidOption { option: "endpoints", problem };
    let endpoint = Endpoint::from_shared(uri.to_owned())
        .map_err(|error| invalid(format!("{uri}: {error}")))?;
    let endpoint = endpoint
        .connect_timeout(options.attempt_timeout.max(Duration::from_secs(1)))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let endpoint = match endpoint.uri().scheme_str() {
        Some("http") => endpoint,
        Some("https") => secured(endpoint, tls).map_err(invalid)?,
        _ => return Err(invalid(format!("{uri}: write http://host:port or https://host:port"))),
    };
    let client =
        |channel| CellDirectoryClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    Ok(Connections {
        watch: client(endpoint.connect_lazy()),
        calls: client(endpoint.connect_lazy()),
    })
}

#[cfg(feature = "tls")]
fn secured(endpoint: Endpoint, tls: &Tls) -> Result<Endpoint, String> {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};
    let config = match &tls.ca {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    let config = match &tls.identity {
        Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
        None => config,
    };
    endpoint.tls_config(config).map_err(|error| error.to_string())
}

#[cfg(not(feature = "tls"))]
fn secured(_: Endpoint, _: &Tls) -> Result<Endpoint, String> {
    Err("https:// needs the feature tls of cells-client".to_owned())
}

impl Transport for Grpc {
    fn endpoints(&self) -> usize {
        self.0.len()
    }

    fn watch(
        &self,
        endpoint: usize,
        request: proto::WatchRequest,
    ) -> BoxFuture<Result<WatchStream, Failure>> {
        let client = self.0.get(endpoint).map(|connections| connections.watch.clone());
        Box::pin(async move {
            let messages =
                client.ok_or_else(no_endpoint)?.watch(request).await.map_err(failure)?.into_inner();
            Ok(messages.map(|message| message.map_err(failure)).boxed())
        })
    }

    fn sync(&self, endpoint: usize) -> BoxFuture<Result<proto::SyncResponse, Failure>> {
        let client = self.0.get(endpoint).map(|connections| connections.calls.clone());
        Box::pin(async move {
            let answer = client.ok_or_else(no_endpoint)?.sync(proto::SyncRequest {}).await;
            answer.map(tonic::Response::into_inner).map_err(failure)
        })
    }

    fn resolve(
        &self,
        endpoint: usize,
        request: proto::ResolveRequest,
    ) -> BoxFuture<Result<proto::ResolveResponse, Failure>> {
        let client = self.0.get(endpoint).map(|connections| connections.calls.clone());
        Box::pin(async move {
            let answer = client.ok_or_else(no_endpoint)?.resolve(request).await;
            answer.map(tonic::Response::into_inner).map_err(failure)
        })
    }

    fn batch_resolve(
        &self,
        endpoint: usize,
        request: proto::BatchResolveRequest,
    ) -> BoxFuture<Result<proto::BatchResolveResponse, Failure>> {
        let client = self.0.get(endpoint).map(|connections| connections.calls.clone());
        Box::pin(async move {
            let answer = client.ok_or_else(no_endpoint)?.batch_resolve(request).await;
            answer.map(tonic::Response::into_inner).map_err(failure)
        })
    }
}

fn no_endpoint() -> Failure {
    Failure::passing("no such endpoint")
}

/// The one place where a status is judged.
#[allow(clippy::needless_pass_by_value)]
pub fn failure(status: Status) -> Failure {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let kind = match (status.code(), reason.as_str()) {
        (Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED") => FailureKind::ResumeTokenExpired,
        (Code::FailedPrecondition, "EPOCH_NOT_REACHED") => FailureKind::EpochNotReached,
        (Code::NotFound, _) => FailureKind::NotFound,
        (
            Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::OutOfRange
            | Code::AlreadyExists,
            _,
        ) => FailureKind::Final,
        // The rest may pass. An outcome that is unknown too: asking again for the same tenant changes nothing more.
        _ => FailureKind::Passing,
    };
    let retry_after = details.retry_info().and_then(|info| info.retry_delay);
    Failure { kind, reason, message: status.message().to_owned(), retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn statuses_are_judged_by_code_and_reason() {
        let of = |code, reason: &str| {
            failure(Status::with_error_details(
                code,
                "m",
                ErrorDetails::with_error_info(reason, "cells.v1", std::collections::HashMap::new()),
            ))
        };
        assert_eq!(
            of(Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED").kind,
            FailureKind::ResumeTokenExpired
        );
        assert_eq!(
            of(Code::FailedPrecondition, "EPOCH_NOT_REACHED").kind,
            FailureKind::EpochNotReached
        );
        assert_eq!(of(Code::FailedPrecondition, "NO_CELL").kind, FailureKind::Final);
        assert_eq!(of(Code::NotFound, "").kind, FailureKind::NotFound);
        for code in [
            Code::Unavailable,
            Code::Aborted,
            Code::Internal,
            Code::Unknown,
            Code::ResourceExhausted,
        ] {
            assert_eq!(of(code, "").kind, FailureKind::Passing);
        }
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_secs(3)));
        let quiet = failure(Status::with_error_details(Code::Unavailable, "m", details));
        assert_eq!(quiet.retry_after, Some(Duration::from_secs(3)));
    }
}
