//! The settings of each part, by the configuration.

use std::num::NonZero;
use std::sync::{Arc, LazyLock};

use aws_config::SdkConfig;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_dynamodb::config::SharedCredentialsProvider;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::cells::Regions;
use crate::config::{self, AssignmentPolicy, Config, Secret};
use crate::directory::policy::{self, Constrained, Rendezvous, Sparing, TwoChoices};
use crate::directory::{CommitterSettings, MemoryMode, Pauses, Settings, StackSettings};
use crate::domain::CellId;
use crate::grpc::{self, AdmissionSettings, ConnectionSettings, ServerSettings};
use crate::metering::Consumption;
use crate::migration::freeze::{Freeze, FreezeSettings};
use crate::store::dynamodb::{self, DynamoDbOptions, TableNames};
use crate::telemetry::rpc::RpcTracer;
use crate::telemetry::{self, Telemetry, TelemetryConfig, TenantLabel};

pub(super) async fn connect(config: &Config, endpoint: Option<String>) -> aws_sdk_dynamodb::Client {
    dynamodb::connect(&options(config, endpoint, Consumption::default())).await
}

pub(super) fn options(
    config: &Config,
    endpoint: Option<String>,
    consumption: Consumption,
) -> DynamoDbOptions {
    DynamoDbOptions {
        endpoint,
        consumption,
        region: config.region.clone(),
        read_timeout: config.read_timeout,
        commit_timeout: config.commit_timeout,
        ..DynamoDbOptions::default()
    }
}

/// How writers that know nothing of guards are stopped, where a hook is configured.
pub(super) fn freeze(
    config: &Config,
    aws: &SdkConfig,
    endpoint: Option<String>,
    consumption: &Consumption,
) -> Result<Option<Arc<Freeze>>, AppError> {
    let Some(url) = &config.migration_freeze_url else { return Ok(None) };
    let probe = config.migration_freeze_probe_profile.as_ref().map(|profile| {
        let mut provider = ProviderConfig::without_region().with_region(aws.region().cloned());
        // For profiles that assume a role.
        if let Some(client) = aws.http_client() {
            provider = provider.with_http_client(client);
        }
        let credentials = ProfileFileCredentialsProvider::builder().configure(&provider);
        let credentials = credentials.profile_name(profile).build();
        let credentials = SharedCredentialsProvider::new(credentials);
        let config = aws.to_builder().credentials_provider(credentials).build();
        Arc::new(Regions::new(config, endpoint, consumption.clone()))
    });
    let settings = FreezeSettings {
        url: url.as_str(),
        token: config.migration_freeze_token.as_ref().map(Secret::expose),
        timeout: config.migration_freeze_timeout,
        settle: config.migration_freeze_settle,
        budget: config.migration_freeze_budget,
    };
    Ok(Some(Arc::new(Freeze::new(&settings, probe)?)))
}

pub(super) fn table_names(config: &Config) -> Result<TableNames, AppError> {
    TableNames::with_prefix(&config.table_prefix).map_err(AppError::TablePrefix)
}

pub(super) fn settings(config: &Config) -> Result<Settings, AppError> {
    let default_cell = config.default_cell.clone().map(CellId::new).transpose();
    Ok(Settings {
        stack: StackSettings {
            default_cell: default_cell.map_err(AppError::DefaultCell)?,
            load_patience: config.lookup_budget / 4,
            lookup_budget: config.lookup_budget,
            attempts: config.retry_attempts,
            pauses: Pauses {
                shortest: config.retry_backoff_min,
                longest: config.retry_backoff_max,
            },
            retry_ratio: config.retry_budget_ratio,
            retry_floor: config.retry_budget_floor,
        },
        committer: CommitterSettings {
            commit_budget: config.commit_budget,
            request_retention: config.request_id_retention,
        },
        memory: memory_mode(config),
        journal_poll_interval: config.journal_poll_interval,
        sweep_interval: config.sweep_interval,
        journal_retention: config.journal_retention,
        batch_concurrency: usize::try_from(config.batch_concurrency).unwrap_or(1),
    })
}

/// How much is held in memory, by the configuration.
pub fn memory_mode(config: &Config) -> MemoryMode {
    match config.memory_mode {
        config::MemoryMode::Whole => MemoryMode::Whole,
        config::MemoryMode::Bounded => {
            MemoryMode::Bounded(usize::try_from(config.memory_placements).unwrap_or(usize::MAX))
        }
    }
}

pub(super) fn policy_of(policy: AssignmentPolicy) -> Arc<dyn policy::AssignmentPolicy> {
    match policy {
        AssignmentPolicy::Rendezvous => Arc::new(Constrained(Sparing(Rendezvous))),
        AssignmentPolicy::LeastLoaded => Arc::new(Constrained(Sparing(TwoChoices))),
    }
}

/// How to serve, by the configuration.
pub fn server_settings(config: &Config, telemetry: &Telemetry) -> Result<ServerSettings, AppError> {
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    Ok(ServerSettings {
        tls,
        max_message_bytes: usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX),
        threads: match config.serve_threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            count => count as usize,
        },
        connections: ConnectionSettings {
            max_connections: config.max_connections,
            handshake_timeout: config.handshake_timeout,
            idle_timeout: config.idle_timeout,
            max_age: config.max_connection_age,
            age_grace: config.connection_grace,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            max_concurrent_streams: config.max_concurrent_streams,
            // HTTP/2 refuses without a reason; up to here the admission does, with one.
            max_header_list: config.max_header_bytes.saturating_mul(2),
        },
        admission: AdmissionSettings {
            max_queue_delay: config.max_queue_delay,
            max_in_flight: config.max_in_flight,
            max_refusal_hold: config.max_refusal_hold,
            max_header_bytes: config.max_header_bytes,
        },
        drain_delay: config.drain_delay,
        drain_timeout: config.drain_timeout,
        draining: CancellationToken::new(),
        overload: telemetry.overload_metrics(),
        tracer: RpcTracer {
            head: telemetry.head_sampler(),
            late: telemetry.late_spans(),
            metrics: telemetry.rpc_metrics(grpc::methods()),
            tenants: tenant_label(config),
        },
        traced: telemetry.is_exporting(),
    })
}

/// How tenants are named in spans and logs, the same wherever it is asked for.
pub(super) fn tenant_label(config: &Config) -> TenantLabel {
    static OF_THIS_PROCESS: LazyLock<TenantLabel> = LazyLock::new(TenantLabel::random);
    match (&config.tenant_hash_key, config.clear_tenants) {
        (_, true) => TenantLabel::clear(),
        (Some(key), false) => TenantLabel::keyed(key.expose().as_bytes()),
        (None, false) => OF_THIS_PROCESS.clone(),
    }
}

fn read(file: &std::path::Path) -> Result<Vec<u8>, AppError> {
    let named = |source| AppError::Read { file: file.display().to_string(), source };
    std::fs::read(file).map_err(named)
}

/// What telemetry does, by the configuration.
pub fn telemetry_config(config: &Config) -> TelemetryConfig {
    TelemetryConfig {
        otlp_endpoint: config.otlp_endpoint.as_ref().map(ToString::to_string),
        otlp_timeout: config.otlp_timeout,
        trace_sample_ratio: config.trace_sample_ratio,
        metrics_interval: config.metrics_interval,
        log_format: match config.log_format {
            config::LogFormat::Text => telemetry::LogFormat::Text,
            config::LogFormat::Json => telemetry::LogFormat::Json,
        },
        log_filter: config.log_filter.clone(),
    }
}
