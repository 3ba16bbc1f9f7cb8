//! What tells how cells are used, and by that how they are assigned.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::AppError;
use super::settings::table_names;
use crate::cells::{AwsCloud, CellRecords};
use crate::config::{CloudWatchMetrics, Config};
use crate::directory::Directory;
use crate::domain::LoadTerms;
use crate::metering::{Consumption, LoadRecords, Measurer, Names, Outbox, Reporter, Sets, Tally};
use crate::store::dynamodb::client::of_aws;
use crate::tasks::Tasks;
use crate::telemetry::{CellGauges, CellMetrics, LoadGauges, Telemetry};

/// Loads that are older are not known, unless turns are further apart.
const LOAD_MAX_AGE: Duration = Duration::from_secs(600);

/// A datum a metric a minute.
const MINUTE: Duration = Duration::from_secs(60);

/// What it is made of.
pub struct Metering {
    pub consumption: Consumption,
    pub aws: Arc<AwsCloud>,
    pub loads: Arc<dyn LoadRecords>,
    pub records: Arc<dyn CellRecords>,
    /// DynamoDB's endpoint, if not AWS's own.
    pub endpoint: Option<String>,
}

impl Metering {
    /// Starts the tasks.
    pub fn start(
        self,
        config: &Config,
        telemetry: &Telemetry,
        directory: &Directory,
        tasks: &Tasks,
    ) -> Result<(), AppError> {
        let metrics = telemetry.cell_metrics();
        let mode = self.mode(config);
        let publishing = mode == CloudWatchMetrics::Publish;
        let outbox = publishing.then(|| Outbox::new(metrics.clone()));
        if telemetry.is_exporting() {
            show(&metrics, directory);
        }
        if publishing || telemetry.is_exporting() {
            let interval = match publishing {
                true => config.load_interval.min(MINUTE),
                false => config.metrics_interval,
            };
            let reporter = Reporter {
                tally: Tally::of(self.consumption),
                names: Names { control: table_names(config)?, prefix: config.table_prefix.clone() },
                directory: directory.clone(),
                metrics,
                outbox: outbox.clone(),
                interval,
            };
            // What is reported last is still sent.
            let reported = CancellationToken::new();
            if let Some(outbox) = outbox.clone() {
                let (board, reported) = (Arc::new(self.aws.board()), reported.clone());
                tasks.spawn("cloudwatch", |_| outbox.run(board, reported));
            }
            tasks.spawn("consumption", |stop| reporter.run(stop, reported));
        }
        if mode != CloudWatchMetrics::Off {
            let measurer = Measurer {
                directory: directory.clone(),
                loads: self.loads,
                records: self.records,
                meters: self.aws.clone(),
                sizes: self.aws,
                prefix: config.table_prefix.clone(),
                outbox,
                interval: config.load_interval,
                terms: LoadTerms {
                    spare_from: config.load_spare_from,
                    limit: config.load_limit,
                    max_age: LOAD_MAX_AGE.max(config.load_interval * 3),
                },
                sets: Sets::default(),
            };
            tasks.spawn("loads", |stop| measurer.run(stop));
        }
        Ok(())
    }

    /// Emulators count nothing, so that nobody is asked unless that is wanted.
    fn mode(&self, config: &Config) -> CloudWatchMetrics {
        let emulated = self.endpoint.as_deref().is_some_and(|endpoint| !of_aws(endpoint));
        match config.cloudwatch_metrics {
            CloudWatchMetrics::Auto if emulated => CloudWatchMetrics::Off,
            CloudWatchMetrics::Auto => CloudWatchMetrics::Read,
            chosen => chosen,
        }
    }
}

/// Has every export of metrics look at the cells.
fn show(metrics: &CellMetrics, directory: &Directory) {
    let directory = directory.clone();
    metrics.show(move || {
        let (loads, now) = (directory.loads(), directory.now());
        let gauges = |cell: &Arc<crate::domain::Cell>| CellGauges {
            cell: cell.id.as_str().to_owned(),
            placements: cell.placements,
            load: loads.get(&cell.id).map(|load| LoadGauges {
                utilisation: load.utilisation,
                throttled_per_minute: load.throttled_per_minute,
                age_seconds: load.age(now).unwrap_or_default().as_secs_f64(),
                tables: load
                    .tables
                    .iter()
                    .map(|table| (table.table.clone(), table.items, table.bytes))
                    .collect(),
            }),
        };
        directory.peek(|registry| registry.cells().map(gauges).collect()).unwrap_or_default()
    });
}
