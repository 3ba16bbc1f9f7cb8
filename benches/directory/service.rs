//! The directory as `celld` puts it together, in this process.

use std::net::SocketAddr;
use std::sync::Arc;

use cell_directory::cells::Registrar;
use cell_directory::config::Config;
use cell_directory::directory::Directory;
use cell_directory::store::Store;
use cell_directory::telemetry::{self, Telemetry};
use cell_directory::{app, tasks::Tasks};
use tokio_util::sync::CancellationToken;

/// A running service.
pub struct Service {
    pub directory: Directory,
    pub address: SocketAddr,
}

/// Starts a service on a store, with telemetry.
pub async fn start(store: Store, config: &Config, telemetry: &Telemetry) -> Service {
    let tasks = Tasks::new();
    let directory = app::directory(store, config, telemetry, &tasks).unwrap();
    let server = cell_directory::grpc::BoundServer::bind(config.listen).await.unwrap();
    let address = server.address();
    let settings = app::server_settings(config, telemetry).unwrap();
    let stop = CancellationToken::new();
    let cells = Registrar::without_cloud(directory.clone());
    let serving =
        server.serve(directory.clone(), cells, Default::default(), settings, stop.clone());
    tokio::spawn(async move {
        // The tasks live as long as the server.
        let _tasks = tasks;
        serving.await.unwrap();
    });
    directory.ready(&stop).await;
    Service { directory, address }
}

/// Telemetry to a collector that takes everything, at the default sampling of 1 %.
pub fn telemetry(collector: &str) -> Telemetry {
    let config = telemetry::TelemetryConfig {
        otlp_endpoint: Some(collector.to_owned()),
        ..app::telemetry_config(&Config::default())
    };
    telemetry::init(&config, "bench").unwrap()
}

/// The configuration of a measurement: a free port, and room in memory for all placements.
pub fn config(placements: usize) -> Config {
    Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        memory_placements: (placements + placements / 4).max(10_000) as u64,
        ..Config::default()
    }
}

/// Both halves of one store.
pub fn store<S>(store: S) -> Store
where
    S: cell_directory::store::Placements + cell_directory::store::Journal,
{
    Store::of(Arc::new(store))
}
