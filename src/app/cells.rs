//! What serves and works on cells' tables: clients of their own, so that what they are denied is not the routing table's.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::AppError;
use super::settings::{table_names, tenant_label};
use crate::cells::data::CellData;
use crate::cells::events::CellEvents;
use crate::cells::events::sinks::EventSinks;
use crate::cells::{
    AwsCloud, CellRecords, Cloud, Home, Regions, Registrar, Scheduler, SchedulerSettings, Worker,
    WorkerSettings,
};
use crate::config::Config;
use crate::directory::{Clock, Directory, Randomness};
use crate::grpc::{Items, Services};
use crate::migration::bulk::{
    BulkApi, BulkParts, BulkRecords, BulkSettings, BulkShared, BulkWorker, Bulks,
};
use crate::migration::driver::{DriverSettings, Shared};
use crate::migration::freeze::Freeze;
use crate::migration::guards::Guards;
use crate::migration::{
    Defaults, MigrationApi, MigrationRecords, MigrationWorker, Migrations,
    WorkerSettings as MigrationWorkerSettings,
};
use crate::tasks::Tasks;
use crate::telemetry::Telemetry;

/// What it is made of.
pub struct Cells {
    pub aws: Arc<AwsCloud>,
    pub regions: Regions,
    pub home: Home,
    pub migrations: Arc<dyn MigrationRecords>,
    pub bulks: Arc<dyn BulkRecords>,
    /// How writers that know nothing of guards are stopped.
    pub freeze: Option<Arc<Freeze>>,
    pub records: Arc<dyn CellRecords>,
    /// For `CellControl`.
    pub control: aws_sdk_dynamodb::Client,
}

impl Cells {
    /// Starts the worker and the event sinks, and answers what RPCs are served by.
    pub fn start(
        self,
        config: &Config,
        directory: &Directory,
        telemetry: &Telemetry,
        tasks: &Tasks,
    ) -> Result<(Registrar, Services), AppError> {
        let Self { aws, regions, home, migrations, bulks, freeze, records, control } = self;
        let regions = Arc::new(regions);
        let cloud: Arc<dyn Cloud> = aws.clone();
        let prefix = config.table_prefix.clone();
        let worker = Worker {
            cells: Arc::new(directory.clone()),
            records: records.clone(),
            cloud: cloud.clone(),
            prefix: prefix.clone(),
            home: home.clone(),
            clock: Clock::system(),
            settings: WorkerSettings {
                interval: config.operations_interval,
                takeover: config.operations_takeover,
                page_pause: Duration::from_secs(1) / config.drill_pages_per_second.max(1),
            },
        };
        tasks.spawn("operations", |stop| worker.run(stop));
        let scheduler = Scheduler {
            records: records.clone(),
            clock: Clock::system(),
            settings: SchedulerSettings { interval: config.backups_interval },
        };
        tasks.spawn("backups", |stop| scheduler.run(stop));
        let guards = Guards {
            directory: directory.clone(),
            cells: records.clone(),
            records: migrations,
            regions: regions.clone(),
            prefix: prefix.clone(),
            cloud: cloud.clone(),
            home,
        };
        let (keeper, interval) = (guards.clone(), config.guards_interval);
        tasks.spawn("guards", move |stop| keeper.keep(interval, stop));
        let migration_records = Arc::clone(&guards.records);
        let migrations = moves(guards, freeze, config, directory, tasks);
        let running = Arc::clone(&migration_records);
        let parts = BulkParts {
            directory: directory.clone(),
            records: bulks,
            migrations: migration_records,
            accounts: aws.clone(),
            randomness: Randomness::system(),
        };
        let bulks = bulk_moves(parts, &migrations, config, tasks);
        let data = CellData::new(directory.clone(), records.clone(), regions, prefix.clone())
            .watched(Arc::new(telemetry.write_metrics()));
        let table = table_names(config)?.control().to_owned();
        let events = CellEvents::new(data.clone(), control, table, config.events_lease);
        if !config.event_sinks.is_empty() {
            let sinks = EventSinks {
                events: events.clone(),
                directory: directory.clone(),
                sinks: config.event_sinks.clone(),
                collector: config.otlp_endpoint.as_ref().map(ToString::to_string),
                tenants: tenant_label(config),
                metrics: telemetry.event_metrics(),
            };
            tasks.spawn("event sinks", |stop| sinks.run(stop));
        }
        let registrar = Registrar {
            directory: directory.clone(),
            records,
            cloud,
            accounts: aws,
            migrations: Some(running),
            prefix,
            randomness: Randomness::system(),
        };
        let migrations = Arc::new(migrations) as Arc<dyn MigrationApi>;
        let items = Some(Items { data, events });
        Ok((registrar, Services { items, migrations: Some(migrations), bulks: Some(bulks) }))
    }
}

/// Starts the worker of migrations, and answers what is asked of them.
fn moves(
    guards: Guards,
    freeze: Option<Arc<Freeze>>,
    config: &Config,
    directory: &Directory,
    tasks: &Tasks,
) -> Migrations {
    let concurrency = config.migration_concurrency as usize;
    let settings = DriverSettings {
        interval: config.migration_interval.min(Duration::from_secs(1)),
        lease_margin: config.migration_lease_margin,
        ..DriverSettings::default()
    };
    let shared = Shared {
        directory: directory.clone(),
        records: Arc::clone(&guards.records),
        regions: Arc::clone(&guards.regions),
        settings,
        pages: Arc::new(Semaphore::new(concurrency)),
        freeze: freeze.clone(),
    };
    let worker = MigrationWorker {
        shared: Arc::new(shared),
        settings: MigrationWorkerSettings {
            interval: config.migration_interval,
            takeover: config.migration_takeover,
            concurrency,
        },
    };
    tasks.spawn("migrations", |stop| worker.run(stop));
    let defaults = Defaults {
        soak: config.migration_soak,
        pause_budget: config.migration_pause_budget,
        rate_limit: NonZeroU32::new(config.migration_write_units),
        guard_shards: u8::try_from(config.migration_guard_shards).unwrap_or(1),
        lease_margin: config.migration_lease_margin,
    };
    Migrations::new(guards, freeze, Randomness::system(), defaults)
}

/// Between two looks of a bulk at a migration that soaks or is parked, in intervals between looks at others.
const SLOW_LOOK: u32 = 5;

/// Starts the worker of drains and rebalances, and answers what is asked of them.
fn bulk_moves(
    parts: BulkParts,
    migrations: &Migrations,
    config: &Config,
    tasks: &Tasks,
) -> Arc<dyn BulkApi> {
    let worker = BulkWorker {
        shared: BulkShared {
            records: Arc::clone(&parts.records),
            moves: Arc::new(migrations.clone()),
            clock: Clock::system(),
            slow_look: config.migration_interval * SLOW_LOOK,
        },
        settings: BulkSettings {
            interval: config.migration_interval,
            takeover: config.migration_takeover,
        },
    };
    tasks.spawn("bulks", |stop| worker.run(stop));
    Arc::new(Bulks::new(parts))
}
