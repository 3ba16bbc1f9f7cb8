//! Over a socket, behind all layers of the server.

use std::time::Duration;

use prost_types::Duration as Wire;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::app;
use crate::cells::Registrar;
use crate::config::Config;
use crate::grpc::{BoundServer, Services};
use crate::migration::MigrationApi;
use crate::proto::v1::migration_service_client::MigrationServiceClient;
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;

struct Server {
    channel: Channel,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    tasks: Tasks,
}

impl Server {
    async fn start(migrations: Option<Arc<dyn MigrationApi>>) -> Self {
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(10),
            max_queue_delay: Duration::from_secs(60),
            ..Config::default()
        };
        let (tasks, telemetry) = (Tasks::new(), Telemetry::noop());
        let store = Store::of(Arc::new(MemoryStore::new()));
        let directory = app::directory(store, &config, &telemetry, &tasks).unwrap();
        let server = BoundServer::bind(config.listen).await.unwrap();
        let endpoint = format!("http://{}", server.address());
        let stop = CancellationToken::new();
        let settings = app::server_settings(&config, &telemetry).unwrap();
        let services = Services { items: None, migrations, bulks: None };
        let cells = Registrar::without_cloud(directory.clone());
        let serving = server.serve(directory.clone(), cells, services, settings, stop.clone());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        directory.ready(&stop).await;
        let channel = Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
        Self { channel, stop, serving, tasks }
    }

    fn client(&self) -> MigrationServiceClient<Channel> {
        MigrationServiceClient::new(self.channel.clone())
    }

    async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
        assert!(self.tasks.stop(Duration::from_secs(10)).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_is_begun_steered_watched_and_refused_over_a_socket() {
    let fake = Arc::new(FakeMigrations::default());
    let server = Server::start(Some(fake.clone())).await;
    let mut client = server.client();
    let begun = client.start_migration(start()).await.unwrap().into_inner().migration.unwrap();
    let migration_id = begun.migration_id.clone();

    let wrong = v1::StartMigrationRequest { verification: 77, ..start() };
    refused(client.start_migration(wrong).await, "verification", "UNKNOWN_ENUM_VALUE");
    let wrong = v1::StartMigrationRequest {
        pause_budget: Some(Wire { seconds: i64::MIN, nanos: i32::MIN }),
        ..start()
    };
    refused(client.start_migration(wrong).await, "pause_budget", "INVALID_DURATION");
    let again = client.start_migration(start()).await.unwrap_err();
    assert_eq!(reason(&again), "MIGRATION_RUNNING");

    let watch = v1::WatchMigrationRequest { migration_id: migration_id.clone() };
    let mut stream = client.watch_migration(watch).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().migration.unwrap();
    assert_eq!((&first.migration_id, first.paused), (&migration_id, false));
    let pause = v1::PauseMigrationRequest { migration_id: migration_id.clone() };
    client.pause_migration(pause).await.unwrap();
    let second = stream.message().await.unwrap().unwrap().migration.unwrap();
    assert!(second.paused);

    // Streams keep nobody from stopping.
    server.stop.cancel();
    let status = stream.message().await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    drop((client, stream));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_know_the_service_and_without_migrations_there_is_none() {
    let server = Server::start(None).await;
    let get = v1::GetMigrationRequest { migration_id: id(1) };
    let status = server.client().get_migration(get).await.unwrap_err();
    let expected = (Code::Unimplemented, "METHOD_NOT_FOUND");
    assert_eq!((status.code(), reason(&status).as_str()), expected);
    let mut health = HealthClient::new(server.channel.clone());
    let service = "cells.v1.MigrationService".to_owned();
    assert!(health.check(HealthCheckRequest { service }).await.is_ok());
    let methods = crate::grpc::methods();
    for method in ["StartMigration", "WatchMigration", "GetGuardCoverage"] {
        let due = format!("cells.v1.MigrationService/{method}");
        assert!(methods.contains(&due), "{methods:?}");
    }
    server.end().await;
}
