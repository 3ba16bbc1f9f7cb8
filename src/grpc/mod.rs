//! The gRPC edge: parses requests into domain types, asks the directory, translates answers and errors. Decides nothing.

mod admin;
mod convert;
mod deadline;
mod directory;
mod page;
mod parse;
mod rpc;
mod status;
mod watch;

pub use status::{DOMAIN, Reason};

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::directory::Directory;
use crate::proto::v1::cell_admin_server::CellAdminServer;
use crate::proto::v1::cell_directory_server::CellDirectoryServer;
use crate::telemetry::rpc::RpcTracer;

/// Connections that say nothing are asked for a sign of life this often, and dropped without one.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest header list taken, in bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// How long a replica that is about to stop goes on serving, flagged NOT_SERVING, so that load balancers turn away first.
const NOTICE: Duration = Duration::from_millis(500);

type Directories = CellDirectoryServer<directory::DirectoryService>;
type Admins = CellAdminServer<admin::AdminService>;

/// How to serve.
pub struct ServerSettings {
    /// Certificate chain and private key, PEM.
    pub tls: Option<(Vec<u8>, Vec<u8>)>,
    pub max_message_bytes: usize,
    pub max_concurrent_streams: u32,
    pub drain_timeout: Duration,
    pub tracer: RpcTracer,
    /// Spans are exported.
    pub traced: bool,
}

/// Why the server cannot serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}; choose another --listen address")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "cannot use the certificate and its key: {0}; check the files of --tls-cert and --tls-key"
    )]
    Tls(String),
    #[error("cannot serve: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("cannot describe the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A server that is bound to its address and not serving yet.
pub struct BoundServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl BoundServer {
    pub async fn bind(address: SocketAddr) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that was given where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then drains: health says NOT_SERVING, no new calls are taken, those under way are finished, at most for the
    /// drain timeout. `ready`: the directory can answer.
    pub async fn serve(
        self,
        directory: Directory,
        settings: ServerSettings,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        // First, before anything is waited for: nobody is told that this serves if it cannot.
        let mut server = Server::builder();
        if let Some((certificate, key)) = &settings.tls {
            let identity = Identity::from_pem(certificate, key);
            let tls = ServerTlsConfig::new().identity(identity);
            server = server.tls_config(tls).map_err(|error| ServeError::Tls(innermost(&error)))?;
        }
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let limit = settings.max_message_bytes;
        let drained = CancellationToken::new();
        let service =
            directory::DirectoryService { directory: directory.clone(), draining: drained.clone() };
        let directories = CellDirectoryServer::new(service).max_decoding_message_size(limit);
        let admins = CellAdminServer::new(admin::AdminService { directory: directory.clone() })
            .max_decoding_message_size(limit);

        let serving = server
            .max_concurrent_streams(settings.max_concurrent_streams)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            // Sees every call and its final status, those that the layers below refuse included.
            .layer(rpc::RpcLayer::new(settings.tracer, settings.traced))
            // Ends calls whose caller no longer waits.
            .layer(deadline::DeadlineLayer)
            .add_service(health_service)
            .add_service(reflection()?.build_v1()?)
            .add_service(reflection()?.build_v1alpha()?)
            .add_service(directories)
            .add_service(admins)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(self.listener).with_nodelay(Some(true)),
                drained.clone().cancelled_owned(),
            );
        let draining = async {
            directory.ready(&stop).await;
            if !stop.is_cancelled() {
                set_health(&health, ServingStatus::Serving).await;
            }
            stop.cancelled().await;
            tracing::info!("draining: taking no new calls soon, finishing those under way");
            set_health(&health, ServingStatus::NotServing).await;
            tokio::time::sleep(NOTICE.min(settings.drain_timeout)).await;
            // Watchers of health would keep their connections open for ever.
            clear_health(health).await;
            drained.cancel();
            tokio::time::sleep(settings.drain_timeout).await;
        };
        tokio::select! {
            ended = serving => Ok(ended?),
            () = draining => {
                tracing::warn!("calls were still under way at the end of the drain timeout");
                Ok(())
            }
        }
    }
}

/// What is at the bottom of an error: tonic's own says only which part of it failed.
fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

fn reflection() -> Result<tonic_reflection::server::Builder<'static>, ServeError> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // So that grpcurl can show an error's details.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET))
}

/// The services whose health is told apart; the empty name is the server as a whole.
const SERVICES: [&str; 3] =
    ["", <Directories as NamedService>::NAME, <Admins as NamedService>::NAME];

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

async fn clear_health(mut health: HealthReporter) {
    for service in SERVICES {
        health.clear_service_status(service).await;
    }
}

/// Every method that is served, `package.Service/Method`, for the labels of metrics.
pub fn methods() -> Vec<String> {
    use prost::Message;
    let Ok(files) = prost_types::FileDescriptorSet::decode(crate::proto::DESCRIPTORS) else {
        return Vec::new();
    };
    let mut methods =
        vec!["grpc.health.v1.Health/Check".to_owned(), "grpc.health.v1.Health/Watch".to_owned()];
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!("{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    #[test]
    fn metrics_know_every_method() {
        let methods = super::methods();
        for method in ["cells.v1.CellDirectory/Resolve", "cells.v1.CellAdmin/DeleteCell"] {
            assert!(methods.iter().any(|m| m == method), "{methods:?}");
        }
        assert_eq!(methods.len(), 2 + 10 + 7);
    }
}
