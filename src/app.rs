//! The composition root: what is made of what, in which order it starts, and in which it stops.

mod cells;
mod demo;
mod metering;
mod settings;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::cells::{AwsCloud, CellRecords, Home, Regions, Registrar};
use crate::config::{self, Command, Config, Invocation, TablesCommand};
use crate::directory::keeper::{Keep, KeepSettings};
use crate::directory::{self, Clock, Directory, Ingredients, Randomness};
use crate::domain::{Invalid, Region};
use crate::embedded::{Embedded, EmbeddedError};
use crate::grpc::{BoundServer, ServeError, Services};
use crate::metering::Consumption;
use crate::migration::freeze::InvalidFreeze;
use crate::store::dynamodb::client::of_aws;
use crate::store::dynamodb::{self, DynamoDbStore, StoreSettings, TableNames, tables};
use crate::store::{Store, StoreError};
use crate::tasks::Tasks;
use crate::telemetry::{self, Telemetry, TelemetryError};

use demo::{DEMO_CELLS, greeting, register_demo_cells};
use settings::{connect, options, policy_of, settings, table_names};
pub use settings::{memory_mode, server_settings, telemetry_config};

/// How long the start waits for a look at the tables. One that hangs must not keep a replica from answering that it is not ready.
const TABLES_VERIFYING: Duration = Duration::from_secs(2);

/// Pause between two looks at tables that do not answer.
const TABLES_LOOKING: Duration = Duration::from_secs(5);

/// Where `dev` keeps its data by default.
const DEV_DATA: &str = "./data";

/// How long background tasks may take to end.
const TASKS_STOPPING: Duration = Duration::from_secs(10);

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("{0}")]
    Tables(#[from] StoreError),
    #[error("table_prefix {0}")]
    TablePrefix(Invalid),
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("no AWS Region is known; set region, or AWS_REGION")]
    NoRegion,
    #[error("default_cell {0}")]
    DefaultCell(Invalid),
    #[error("cannot register the demo cells: {0}")]
    DemoCells(directory::Error),
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    #[error(
        "this deletes every placement: repeat the table prefix to confirm: --confirm-prefix {0:?}"
    )]
    NotConfirmed(String),
    #[error(transparent)]
    Freeze(#[from] InvalidFreeze),
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error("a background task failed; the log says which")]
    TaskFailed,
}

/// Does what was asked for. The process's exit code.
pub fn main(invocation: Invocation) -> ExitCode {
    match run(invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("celld: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(invocation: Invocation) -> Result<(), AppError> {
    if invocation.command == Command::ConfigShow {
        return say(&config::show(&invocation));
    }
    let config = invocation.config;
    let telemetry = telemetry::init(&telemetry_config(&config), &instance_id())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let ended = match invocation.command {
        Command::Dev => dev(&config, &telemetry, &runtime),
        Command::Serve => {
            let endpoint = config.dynamodb_endpoint.as_ref().map(ToString::to_string);
            runtime.block_on(async {
                let served = Served::start(&config, endpoint, &telemetry).await?;
                let listening = format!("celld serves gRPC on {}\n", served.address());
                served.run(&config, &telemetry, async |_| say(&listening)).await
            })
        }
        Command::Tables(command) => runtime.block_on(run_tables(&config, command)),
        Command::ConfigShow => Ok(()),
    };
    runtime.shutdown_timeout(Duration::from_secs(1));
    telemetry.shutdown();
    ended
}

fn dev(
    config: &Config,
    telemetry: &Telemetry,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), AppError> {
    // Dropped last: it outlives everything that calls it.
    let mut config = config.clone();
    let data = config.data_dir.get_or_insert_with(|| PathBuf::from(DEV_DATA)).clone();
    let embedded = Embedded::start(&data, config.dev_dynamodb_listen)?;
    let endpoint = embedded.endpoint();
    config.default_cell.get_or_insert_with(|| DEMO_CELLS[0].0.to_owned());
    runtime.block_on(async {
        let client = connect(&config, Some(endpoint.clone())).await;
        tables::create(&client, &table_names(&config)?).await?;
        let served = Served::start(&config, Some(endpoint.clone()), telemetry).await?;
        let address = served.address();
        let started = async |directory: &Directory| {
            register_demo_cells(directory).await?;
            say(&greeting(address, &endpoint, &data, &config))
        };
        served.run(&config, telemetry, started).await
    })
}

/// A directory whose tasks run, and a server that is bound.
struct Served {
    directory: Directory,
    cells: Registrar,
    services: Services,
    server: BoundServer,
    tasks: Tasks,
}

impl Served {
    async fn start(
        config: &Config,
        endpoint: Option<String>,
        telemetry: &Telemetry,
    ) -> Result<Self, AppError> {
        // Bound first: a second celld on the same address fails before it touches anything.
        let server = BoundServer::bind(config.listen).await?;
        // Clients of their own, so that what they are denied is not the routing table's.
        let consumption = Consumption::default();
        let options = options(config, endpoint.clone(), consumption.clone());
        let shared = dynamodb::client::shared_config(&options).await;
        let aws = Arc::new(AwsCloud::new(shared.clone(), endpoint.clone(), consumption.clone()));
        let regions = Regions::new(shared.clone(), endpoint.clone(), consumption.clone());
        let freeze = settings::freeze(config, &shared, endpoint.clone(), &consumption)?;
        let control_client = dynamodb::connect(&options).await;
        let emulated = endpoint.as_deref().is_some_and(|endpoint| !of_aws(endpoint));
        let region = shared.region().and_then(|region| Region::new(region.as_ref()).ok());
        let region = region.ok_or(AppError::NoRegion)?;
        let home = Home { region, emulated };
        let client = dynamodb::connect(&options).await;
        let names = table_names(config)?;
        let keep = keep(config, &client).await?;
        let tasks = Tasks::new();
        // With a snapshot there is something to answer already.
        let recalled = keep.as_ref().is_some_and(Keep::recalled);
        if recalled || !looked_at(&client, &names).await? {
            let (client, names) = (client.clone(), names.clone());
            tasks.spawn("tables", move |stop| look_at_tables(client, names, recalled, stop));
        }
        let store_settings =
            StoreSettings { commit_timeout: config.commit_timeout, ttl_grace: config.expiry_grace };
        let store = Arc::new(DynamoDbStore::new(client, names.clone(), store_settings.clone()));
        // Migrations have a client of their own: what they are denied is not the routing table's.
        let migrations =
            Arc::new(DynamoDbStore::new(control_client.clone(), names, store_settings));
        let bulks = migrations.clone();
        let records: Arc<dyn CellRecords> = store.clone();
        let metering = metering::Metering {
            consumption,
            aws: aws.clone(),
            loads: store.clone(),
            records: records.clone(),
            endpoint,
        };
        let directory = directory_with(Store::of(store), config, telemetry, keep, &tasks)?;
        metering.start(config, telemetry, &directory, &tasks)?;
        let control = control_client;
        let cells =
            cells::Cells { aws, regions, home, migrations, bulks, freeze, records, control };
        let (registrar, services) = cells.start(config, &directory, telemetry, &tasks)?;
        Ok(Self { directory, cells: registrar, services, server, tasks })
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Serves until a signal comes or a task fails. Stops in order: no new calls, calls under way, background tasks.
    async fn run(
        self,
        config: &Config,
        telemetry: &Telemetry,
        started: impl AsyncFnOnce(&Directory) -> Result<(), AppError>,
    ) -> Result<(), AppError> {
        let Self { directory, cells, services, server, tasks } = self;
        let events = services.items.as_ref().map(|items| items.events.clone());
        let stop = CancellationToken::new();
        let settings = server_settings(config, telemetry)?;
        let serving = server.serve(directory.clone(), cells, services, settings, stop.clone());
        let guarding = async {
            let ended = tokio::select! {
                signal = signalled() => signal,
                () = tasks.failure() => Err(AppError::TaskFailed),
                Err(error) = started(&directory) => Err(error),
            };
            stop.cancel();
            ended
        };
        let (served, guarded) = tokio::join!(
            async {
                let served = serving.await;
                // A server that ends by itself must not leave the other half waiting for a signal.
                stop.cancel();
                served
            },
            async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Ok(()),
                    ended = guarding => ended,
                }
            }
        );
        // Their calls have ended; so that others need not wait for their leases to run out.
        if let Some(events) = events {
            let _ = tokio::time::timeout(TASKS_STOPPING, events.finish()).await;
        }
        if !tasks.stop(TASKS_STOPPING).await {
            tracing::warn!("background tasks did not end in time");
        }
        served?;
        guarded
    }
}

/// Opens the directory for snapshots, where there is to be one.
async fn keep(
    config: &Config,
    client: &aws_sdk_dynamodb::Client,
) -> Result<Option<Keep>, AppError> {
    let Some(directory) = config.data_dir.clone().filter(|_| !config.snapshot_interval.is_zero())
    else {
        return Ok(None);
    };
    // Not the endpoint: the same tables can be reached by several.
    let region = client.config().region().map(|region| region.as_ref()).unwrap_or_default();
    let settings = KeepSettings {
        directory,
        interval: config.snapshot_interval,
        tables: format!("{region}/{}", config.table_prefix),
    };
    let mode = memory_mode(config);
    let open = move || Keep::open(settings, mode, &Clock::system());
    match tokio::task::spawn_blocking(open).await {
        Ok(keep) => Ok(Some(keep)),
        Err(_) => Err(AppError::TaskFailed),
    }
}

/// Looks at the tables once. `false`: they do not answer for now. Nothing is known yet then, and answers say so.
async fn looked_at(
    client: &aws_sdk_dynamodb::Client,
    names: &TableNames,
) -> Result<bool, AppError> {
    let verified = tokio::time::timeout(TABLES_VERIFYING, tables::verify(client, names)).await;
    match verified.unwrap_or(Err(StoreError::Timeout)) {
        Ok(()) => Ok(true),
        Err(error) if error.transient() => {
            tracing::warn!(%error, "the tables cannot be looked at yet");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Looks at the tables until they answer. What is out of order is reported: a replica that can answer from what it knows goes on, any
/// other one ends.
async fn look_at_tables(
    client: aws_sdk_dynamodb::Client,
    names: TableNames,
    recalled: bool,
    stop: CancellationToken,
) {
    let look = async {
        loop {
            match tables::verify(&client, &names).await {
                Ok(()) => return true,
                Err(error) if error.transient() => {
                    tracing::warn!(%error, "the tables cannot be looked at yet");
                }
                Err(error) if recalled => {
                    tracing::error!(%error, "the tables are out of order: only what the snapshot holds can be answered");
                    return true;
                }
                Err(error) => {
                    tracing::error!(%error, "the tables are out of order");
                    return false;
                }
            }
            tokio::time::sleep(TABLES_LOOKING).await;
        }
    };
    let serves = tokio::select! {
        () = stop.cancelled() => return,
        serves = look => serves,
    };
    if serves {
        stop.cancelled().await;
    }
}

/// A directory on a store, its tasks started. It saves no snapshots.
pub fn directory(
    store: Store,
    config: &Config,
    telemetry: &Telemetry,
    tasks: &Tasks,
) -> Result<Directory, AppError> {
    directory_with(store, config, telemetry, None, tasks)
}

/// The same, which saves snapshots and begins with one.
pub fn directory_with(
    store: Store,
    config: &Config,
    telemetry: &Telemetry,
    keep: Option<Keep>,
    tasks: &Tasks,
) -> Result<Directory, AppError> {
    let ingredients = Ingredients {
        store,
        policy: policy_of(config.assignment_policy),
        clock: Clock::system(),
        randomness: Randomness::system(),
        metrics: telemetry.decision_metrics(),
        settings: settings(config)?,
        keep,
    };
    Ok(Directory::start(ingredients, tasks))
}

async fn run_tables(config: &Config, command: TablesCommand) -> Result<(), AppError> {
    let endpoint = config.dynamodb_endpoint.as_ref().map(ToString::to_string);
    let client = connect(config, endpoint).await;
    let names = table_names(config)?;
    let reports = match command {
        TablesCommand::Create => tables::create(&client, &names).await?,
        TablesCommand::Describe => tables::describe(&client, &names).await?,
        TablesCommand::Delete { confirm_prefix } => {
            if confirm_prefix.as_ref() != Some(&config.table_prefix) {
                return Err(AppError::NotConfirmed(config.table_prefix.clone()));
            }
            tables::delete(&client, &names).await?
        }
    };
    let lines: Vec<_> = reports.iter().map(ToString::to_string).collect();
    say(&format!("{}\n", lines.join("\n")))
}

async fn signalled() -> Result<(), AppError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(AppError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AppError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Standard output is for people and scripts; logs go to standard error.
fn say(text: &str) -> Result<(), AppError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(AppError::Output)
}

/// Tells this process from other replicas in telemetry: random, as nothing else is sure to differ.
fn instance_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}
