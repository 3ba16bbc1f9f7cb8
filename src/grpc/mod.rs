//! The gRPC edge: parses requests into domain types, asks the directory, translates answers and errors. Decides nothing.

mod admin;
mod admission;
mod analysis;
mod connections;
mod controller;
mod convert;
mod data;
mod deadline;
mod directory;
mod events;
mod export;
mod migration;
mod page;
mod parse;
mod recovery;
mod rpc;
mod status;
mod tables;
mod threads;
mod tls;
mod watch;

pub use admission::AdmissionSettings;
pub use connections::ConnectionSettings;
pub use status::{DOMAIN, Reason};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;

use crate::cells::Registrar;
use crate::cells::data::CellData;
use crate::cells::events::CellEvents;
use crate::directory::Directory;
use crate::migration::MigrationApi;
use crate::migration::bulk::BulkApi;
use crate::proto::v1::cell_admin_server::CellAdminServer;
use crate::proto::v1::cell_data_server::CellDataServer;
use crate::proto::v1::cell_directory_server::{CellDirectory, CellDirectoryServer};
use crate::proto::v1::cell_events_server::CellEventsServer;
use crate::proto::v1::cell_recovery_server::CellRecoveryServer;
use crate::proto::v1::migration_service_server::MigrationServiceServer;
use crate::telemetry::OverloadMetrics;
use crate::telemetry::rpc::RpcTracer;
use admission::{Admission, AdmissionLayer};
use threads::Threads;

/// `cells.v1.CellDirectory` on a directory, without layers and without a server: for whoever brings a transport of his own.
pub fn service(
    directory: Directory,
    admission: AdmissionSettings,
    draining: CancellationToken,
) -> impl CellDirectory<WatchStream = watch::WatchStream> {
    directory::DirectoryService { directory, admission: Admission::new(admission), draining }
}

type Directories = CellDirectoryServer<directory::DirectoryService>;
type Admins = CellAdminServer<admin::AdminService>;

/// What is served beside the directory and the administration of its cells.
#[derive(Default)]
pub struct Services {
    pub items: Option<Items>,
    pub migrations: Option<Arc<dyn MigrationApi>>,
    /// Drains and rebalances, where there are migrations.
    pub bulks: Option<Arc<dyn BulkApi>>,
}

/// What is there where cells have tables.
pub struct Items {
    pub data: CellData,
    pub events: CellEvents,
}

/// How to serve.
pub struct ServerSettings {
    /// Certificate chain and private key, PEM.
    pub tls: Option<(Vec<u8>, Vec<u8>)>,
    pub max_message_bytes: usize,
    /// Threads that serve connections.
    pub threads: usize,
    pub connections: ConnectionSettings,
    pub admission: AdmissionSettings,
    /// How long a replica that is about to stop goes on serving, flagged NOT_SERVING, so that load balancers turn away first.
    pub drain_delay: Duration,
    /// How long calls under way may take after that.
    pub drain_timeout: Duration,
    /// Cancelled by the server after the drain delay, when it turns callers away: answers that stream end then, in order, with whatever
    /// lets the caller go on elsewhere.
    pub draining: CancellationToken,
    pub overload: OverloadMetrics,
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
    Tls(#[from] tls::TlsError),
    #[error("cannot start the threads that serve: {0}; raise the limits on threads and open files")]
    Threads(std::io::Error),
    #[error("cannot serve: the task that watches for overload has ended")]
    Unwatched,
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
        cells: Registrar,
        services: Services,
        settings: ServerSettings,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        // First, before anything is waited for: nobody is told that this serves if it cannot.
        let tls = match &settings.tls {
            Some((certificate, key)) => Some(tls::server(certificate, key)?),
            None => None,
        };
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let admission = Admission::new(settings.admission);
        let limit = settings.max_message_bytes;
        let directories = CellDirectoryServer::new(directory::DirectoryService {
            directory: directory.clone(),
            admission: admission.clone(),
            draining: settings.draining.clone(),
        });
        let recoveries =
            CellRecoveryServer::new(recovery::RecoveryService { cells: cells.clone() });
        let admins =
            CellAdminServer::new(admin::AdminService { directory: directory.clone(), cells });
        let mut routes = Routes::new(health_service)
            .add_service(reflection()?.build_v1()?)
            .add_service(reflection()?.build_v1alpha()?)
            .add_service(directories.max_decoding_message_size(limit))
            .add_service(admins.max_decoding_message_size(limit))
            .add_service(recoveries.max_decoding_message_size(limit));
        if let Some(Items { data, events }) = services.items {
            let draining = settings.draining.clone();
            let data = CellDataServer::new(data::DataService { data, draining: draining.clone() });
            let events = CellEventsServer::new(events::EventsService { events, draining });
            routes = routes
                .add_service(data.max_decoding_message_size(limit))
                .add_service(events.max_decoding_message_size(limit));
        }
        if let Some(migrations) = services.migrations {
            let (clock, draining) = (directory.clock().clone(), settings.draining.clone());
            let service = migration::MigrationService::new(migrations, clock, draining)
                .with_bulks(services.bulks);
            let service = MigrationServiceServer::new(service);
            routes = routes.add_service(service.max_decoding_message_size(limit));
        }
        let stack = ServiceBuilder::new()
            // Sees every call and its final status, those that the layers below refuse included.
            .layer(rpc::RpcLayer::new(settings.tracer, settings.traced))
            // Ends calls whose caller no longer waits.
            .layer(deadline::DeadlineLayer)
            // Refuses what is too much, before any of it is read.
            .layer(AdmissionLayer(admission.clone()))
            .service(routes.prepare());

        let threads = Threads::start(settings.threads).map_err(ServeError::Threads)?;
        // A task of its own, so that it waits for a processor as the calls do.
        let watching = admission.run(settings.overload.clone());
        let watching = AbortOnDropHandle::new(threads.any().spawn(watching));
        let draining = settings.draining;
        let serving = connections::serve(
            self.listener,
            &threads,
            tls,
            stack,
            settings.connections,
            draining.clone(),
            settings.overload,
        );
        let drain = async {
            directory.ready(&stop).await;
            if !stop.is_cancelled() {
                set_health(&health, ServingStatus::Serving).await;
            }
            stop.cancelled().await;
            tracing::info!("draining: taking no new calls soon, finishing those under way");
            set_health(&health, ServingStatus::NotServing).await;
            tokio::time::sleep(settings.drain_delay).await;
            // Watchers of health would keep their connections open for ever.
            clear_health(health).await;
            draining.cancel();
            tokio::time::sleep(settings.drain_timeout).await;
        };
        tokio::select! {
            () = serving => Ok(()),
            () = drain => {
                tracing::warn!("calls were still under way at the end of the drain timeout");
                Ok(())
            }
            _ = watching => Err(ServeError::Unwatched),
        }
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
const SERVICES: [&str; 7] = [
    "",
    <Directories as NamedService>::NAME,
    <Admins as NamedService>::NAME,
    <CellRecoveryServer<recovery::RecoveryService> as NamedService>::NAME,
    <CellDataServer<data::DataService> as NamedService>::NAME,
    <CellEventsServer<events::EventsService> as NamedService>::NAME,
    <MigrationServiceServer<migration::MigrationService> as NamedService>::NAME,
];

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
        assert_eq!(methods.len(), 2 + 10 + 16 + 6 + 1 + 7 + 12 + 9);
    }
}
