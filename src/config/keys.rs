//! Every configuration key, defined once: name, type, default, bounds and help text.
//!
//! A field of [`Config`] *is* the key: its name is the TOML key, in kebab-case the flag, in upper case with `CELLD_` in
//! front the environment variable, and its doc comment the help text. The layers (`layers.rs`) learn what a key
//! accepts from the value parser given here, so that no layer can be laxer than another.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, FromArgMatches, ValueEnum};

use super::sinks::EventSink;

/// Lowest and highest value of each bounded key; both ends are allowed.
pub mod bound {
    use std::ops::RangeInclusive;
    use std::time::Duration;

    use crate::migration::bounds;

    type Span = RangeInclusive<Duration>;

    const MS: Duration = Duration::from_millis(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(60 * 60);

    const fn days(days: u64) -> Duration {
        Duration::from_secs(days * 24 * 60 * 60)
    }

    pub const LOOKUP_BUDGET: Span = Duration::from_millis(10)..=MINUTE;
    pub const READ_TIMEOUT: Span = MS..=MINUTE;
    pub const COMMIT_TIMEOUT: Span = MS..=MINUTE;
    pub const COMMIT_BUDGET: Span = MS..=Duration::from_secs(5 * 60);
    pub const RETRY_BACKOFF: Span = MS..=MINUTE;
    pub const JOURNAL_POLL_INTERVAL: Span = Duration::from_millis(10)..=MINUTE;
    pub const SWEEP_INTERVAL: Span = Duration::from_millis(10)..=HOUR;
    pub const EXPIRY_GRACE: Span = HOUR..=days(365);
    pub const BACKUPS_INTERVAL: Span = Duration::from_millis(10)..=HOUR;
    pub const DRILL_PAGES_PER_SECOND: RangeInclusive<u32> = 1..=1000;
    pub const GUARDS_INTERVAL: Span = Duration::from_millis(10)..=HOUR;
    pub const MIGRATION_INTERVAL: Span = Duration::from_millis(10)..=Duration::from_secs(5);
    pub const MIGRATION_TAKEOVER: Span = Duration::from_secs(1)..=HOUR;
    pub const MIGRATION_LEASE_MARGIN: Span = Duration::ZERO..=MINUTE;
    pub const MIGRATION_SOAK: Span = bounds::SOAK;
    pub const MIGRATION_PAUSE_BUDGET: Span = bounds::PAUSE_BUDGET;
    pub const MIGRATION_CONCURRENCY: RangeInclusive<u32> = 1..=64;
    pub const MIGRATION_WRITE_UNITS: RangeInclusive<u32> = 0..=bounds::MAX_RATE;
    pub const MIGRATION_FREEZE_TIMEOUT: Span = Duration::from_millis(100)..=MINUTE;
    pub const MIGRATION_FREEZE_SETTLE: Span = Duration::ZERO..=Duration::from_secs(5 * 60);
    pub const MIGRATION_FREEZE_BUDGET: Span = Duration::from_secs(1)..=HOUR;
    pub const MIGRATION_GUARD_SHARDS: RangeInclusive<u32> = 1..=16;
    pub const OPERATIONS_INTERVAL: Span = Duration::from_millis(10)..=MINUTE;
    pub const OPERATIONS_TAKEOVER: Span = Duration::from_secs(2)..=HOUR;
    pub const LOAD_INTERVAL: Span = Duration::from_millis(100)..=HOUR;
    pub const LOAD_SPARE_FROM: RangeInclusive<f64> = 0.0..=1.0;
    pub const LOAD_LIMIT: RangeInclusive<f64> = 0.0..=10.0;
    pub const EVENTS_LEASE: Span = Duration::from_secs(1)..=Duration::from_secs(10 * 60);
    pub const JOURNAL_RETENTION: Span = MINUTE..=days(30);
    pub const SNAPSHOT_INTERVAL: Span = Duration::ZERO..=days(1);
    /// Never below the ten minutes for which DynamoDB itself keeps a client request token.
    pub const REQUEST_ID_RETENTION: Span = Duration::from_secs(10 * 60)..=days(90);
    pub const DRAIN_TIMEOUT: Span = Duration::ZERO..=HOUR;
    pub const DRAIN_DELAY: Span = Duration::ZERO..=Duration::from_secs(5 * 60);
    pub const HANDSHAKE_TIMEOUT: Span = Duration::from_millis(10)..=MINUTE;
    pub const IDLE_TIMEOUT: Span = Duration::from_millis(100)..=days(1);
    pub const MAX_CONNECTION_AGE: Span = Duration::from_millis(100)..=days(365);
    pub const CONNECTION_GRACE: Span = Duration::ZERO..=HOUR;
    pub const KEEPALIVE_INTERVAL: Span = Duration::from_millis(100)..=HOUR;
    pub const KEEPALIVE_TIMEOUT: Span = Duration::from_millis(100)..=MINUTE;
    pub const MAX_QUEUE_DELAY: Span = MS..=MINUTE;
    pub const MAX_REFUSAL_HOLD: Span = Duration::ZERO..=Duration::from_secs(10);
    pub const OTLP_TIMEOUT: Span = Duration::from_millis(10)..=MINUTE;
    /// One attempt at a delivery to a sink.
    pub const SINK_TIMEOUT: Span = Duration::from_millis(10)..=MINUTE;
    pub const METRICS_INTERVAL: Span = Duration::from_millis(100)..=Duration::from_secs(10 * 60);

    pub const RETRY_ATTEMPTS: RangeInclusive<u32> = 1..=10;
    pub const RETRY_BUDGET_RATIO: RangeInclusive<f32> = 0.0..=1.0;
    pub const RETRY_BUDGET_FLOOR: RangeInclusive<u32> = 0..=10_000;
    pub const MEMORY_PLACEMENTS: RangeInclusive<u64> = 1_000..=100_000_000;
    pub const BATCH_CONCURRENCY: RangeInclusive<u32> = 1..=1024;
    pub const MAX_MESSAGE_BYTES: RangeInclusive<u32> = 1024..=67_108_864;
    pub const MAX_CONCURRENT_STREAMS: RangeInclusive<u32> = 1..=100_000;
    pub const SERVE_THREADS: RangeInclusive<u32> = 0..=1024;
    pub const MAX_CONNECTIONS: RangeInclusive<u32> = 1..=1_000_000;
    pub const MAX_HEADER_BYTES: RangeInclusive<u32> = 1024..=1_048_576;
    pub const MAX_IN_FLIGHT: RangeInclusive<u32> = 4..=1_000_000;
    pub const TRACE_SAMPLE_RATIO: RangeInclusive<f64> = 0.0..=1.0;

    /// Characters of a table prefix. DynamoDB allows 255 for the whole name; the rest is for our names and cell ids.
    pub const TABLE_PREFIX_CHARS: usize = 64;
    /// Characters of a cell id; the domain's own limit.
    pub const CELL_ID_CHARS: usize = 63;
    /// Characters of a Region, as the domain has it for cells.
    pub const REGION_CHARS: usize = 32;
    /// Fewer characters than this could be guessed, and with them every hashed tenant.
    pub const TENANT_HASH_KEY_MIN_CHARS: usize = 16;
}

/// The effective configuration of one `celld` process: typed, each value within its bounds, and consistent as a whole
/// (see [`super::parse`] for the rules that span keys).
// The comments below are the help texts.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[group(skip)]
pub struct Config {
    /// Address on which to serve gRPC, as IP:PORT (port 0 picks a free one); beyond loopback it takes TLS or --insecure
    #[arg(long, default_value = "127.0.0.1:50051", value_parser = address)]
    pub listen: SocketAddr,

    /// Allow plaintext gRPC on an address beyond loopback, for networks that encrypt by themselves, such as a mesh
    #[arg(long, default_value = "false", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub insecure: bool,

    /// PEM file with the server's certificate chain; goes with --tls-key (absent: plaintext)
    #[arg(long)]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert
    #[arg(long)]
    pub tls_key: Option<PathBuf>,

    /// Put before the name of every table, at most 64 characters of A-Z a-z 0-9 _ . - (default: nothing)
    #[arg(long, default_value = "", value_parser = table_prefix)]
    pub table_prefix: String,

    /// DynamoDB endpoint for `serve` and `tables`, an http or https URL (absent: that of AWS in the region)
    #[arg(long, value_parser = url)]
    pub dynamodb_endpoint: Option<HttpUrl>,

    /// AWS Region of the directory's own tables (absent: whatever the AWS default chain finds)
    #[arg(long, value_parser = region)]
    pub region: Option<String>,

    /// Directory of the snapshot, which holds what is in memory for the next start, and of the embedded database of `dev`; made
    /// if missing (absent: ./data for `dev`, and no snapshot for `serve`)
    #[arg(long)]
    pub data_dir: Option<PathBuf>,

    /// Time between two snapshots to --data-dir, of which there is a last one at shutdown, 0s to 1d (0s: none, and none is read)
    #[arg(long, default_value = "1m", value_parser = duration(bound::SNAPSHOT_INTERVAL))]
    pub snapshot_interval: Duration,

    /// Loopback address on which `dev` serves its embedded DynamoDB, as IP:PORT
    #[arg(long, default_value = "127.0.0.1:50052", value_parser = loopback_address)]
    pub dev_dynamodb_listen: SocketAddr,

    /// Cell to answer when neither memory nor the table can (absent: such lookups are UNAVAILABLE)
    #[arg(long, value_parser = cell_id)]
    pub default_cell: Option<String>,

    /// How a new tenant's cell is chosen
    #[arg(long, value_enum, default_value = "rendezvous")]
    pub assignment_policy: AssignmentPolicy,

    /// Longest time a lookup may take, retries included, 10ms to 1m
    #[arg(long, default_value = "1s", value_parser = duration(bound::LOOKUP_BUDGET))]
    pub lookup_budget: Duration,

    /// Longest time one attempt at a table read may take, 1ms to 1m; the lookup budget cuts it shorter
    #[arg(long, default_value = "300ms", value_parser = duration(bound::READ_TIMEOUT))]
    pub read_timeout: Duration,

    /// Longest time one attempt at a transaction may take, 1ms to 1m
    #[arg(long, default_value = "1s", value_parser = duration(bound::COMMIT_TIMEOUT))]
    pub commit_timeout: Duration,

    /// Longest time a change may take, retries and read-backs included, 1ms to 5m; at least --commit-timeout
    #[arg(long, default_value = "5s", value_parser = duration(bound::COMMIT_BUDGET))]
    pub commit_budget: Duration,

    /// Attempts at one table request, the first included, 1 to 10
    #[arg(long, default_value = "3", value_parser = number(bound::RETRY_ATTEMPTS))]
    pub retry_attempts: u32,

    /// Shortest wait before a retry, 1ms to 1m
    #[arg(long, default_value = "5ms", value_parser = duration(bound::RETRY_BACKOFF))]
    pub retry_backoff_min: Duration,

    /// Longest wait before a retry, 1ms to 1m; at least --retry-backoff-min
    #[arg(long, default_value = "100ms", value_parser = duration(bound::RETRY_BACKOFF))]
    pub retry_backoff_max: Duration,

    /// Extra requests that retries may add, as a share of all requests, 0 to 1
    #[arg(long, default_value = "0.2", value_parser = number(bound::RETRY_BUDGET_RATIO))]
    pub retry_budget_ratio: f32,

    /// Retries per second that are allowed however few requests there are, 0 to 10000
    #[arg(long, default_value = "10", value_parser = number(bound::RETRY_BUDGET_FLOOR))]
    pub retry_budget_floor: u32,

    /// How much of the routing table is kept in memory
    #[arg(long, value_enum, default_value = "whole")]
    pub memory_mode: MemoryMode,

    /// Placements kept in memory with memory_mode bounded, 1000 to 100000000
    #[arg(long, default_value = "1000000", value_parser = number(bound::MEMORY_PLACEMENTS))]
    pub memory_placements: u64,

    /// Time between two polls of the journal, 10ms to 1m
    #[arg(long, default_value = "250ms", value_parser = duration(bound::JOURNAL_POLL_INTERVAL))]
    pub journal_poll_interval: Duration,

    /// Time between two sweeps for expired placements, 10ms to 1h
    #[arg(long, default_value = "1s", value_parser = duration(bound::SWEEP_INTERVAL))]
    pub sweep_interval: Duration,

    /// Time for which entries stay in the journal, 1m to 30d; a replica or a watch that was away for longer reads everything anew;
    /// at least --commit-budget
    #[arg(long, default_value = "24h", value_parser = duration(bound::JOURNAL_RETENTION))]
    pub journal_retention: Duration,

    /// Pause between two looks at the operations that provision and remove cells' tables, 10ms to 1m
    #[arg(long, default_value = "2s", value_parser = duration(bound::OPERATIONS_INTERVAL))]
    pub operations_interval: Duration,

    /// Time without a sign of life after which another replica goes on with an operation, 2s to 1h; at least --operations-interval
    #[arg(long, default_value = "60s", value_parser = duration(bound::OPERATIONS_TAKEOVER))]
    pub operations_takeover: Duration,

    /// Pause between two looks for tenants without a guard, in cells where not all were seen to have one, 10ms to 1h
    #[arg(long, default_value = "30s", value_parser = duration(bound::GUARDS_INTERVAL))]
    pub guards_interval: Duration,

    /// Pause between two looks for migrations that nobody works on, 10ms to 5s
    #[arg(long, default_value = "1s", value_parser = duration(bound::MIGRATION_INTERVAL))]
    pub migration_interval: Duration,

    /// Time without a sign of life after which another replica goes on with a migration, 1s to 1h; at least --migration-interval
    #[arg(long, default_value = "6s", value_parser = duration(bound::MIGRATION_TAKEOVER))]
    pub migration_takeover: Duration,

    /// What is waited longer than leases last before a copy begins, for clocks that run at different rates, 0s to 1m
    #[arg(long, default_value = "1s", value_parser = duration(bound::MIGRATION_LEASE_MARGIN))]
    pub migration_lease_margin: Duration,

    /// How long a tenant that was moved can go back without a copy, where a migration does not say, 0s to 30d
    #[arg(long, default_value = "15m", value_parser = duration(bound::MIGRATION_SOAK))]
    pub migration_soak: Duration,

    /// Longest time in which a tenant cannot write, where a migration does not say, 50ms to 1m
    #[arg(long, default_value = "1s", value_parser = duration(bound::MIGRATION_PAUSE_BUDGET))]
    pub migration_pause_budget: Duration,

    /// Migrations under way in a replica until it begins no new one, and pages that it copies at the same time, 1 to 64. Soaks and pauses do not
    /// count, and what another replica began is taken over in any case
    #[arg(long, default_value = "4", value_parser = number(bound::MIGRATION_CONCURRENCY))]
    pub migration_concurrency: u32,

    /// Write capacity units a second that a migration consumes at most, where it does not say, 0 to 1000000; 0: no limit
    #[arg(long, default_value = "0", value_parser = number(bound::MIGRATION_WRITE_UNITS))]
    pub migration_write_units: u32,

    /// Items of a tenant's guard while it moves, of which each write checks one, 1 to 16
    #[arg(long, default_value = "8", value_parser = number(bound::MIGRATION_GUARD_SHARDS))]
    pub migration_guard_shards: u32,

    /// URL of the hook that stops writers which know nothing of guards, and lets them go on, for migrations that ask for FROZEN
    /// (absent: none can)
    #[arg(long, value_parser = url)]
    pub migration_freeze_url: Option<HttpUrl>,

    /// Bearer token for the hook of --migration-freeze-url; prefer the environment or the file, since other users of the
    /// host can read flags (absent: none is sent)
    #[arg(long, value_parser = secret)]
    pub migration_freeze_token: Option<Secret>,

    /// AWS profile with the permissions of the writers that the hook stops, by which a freeze is probed until it holds
    /// (absent: the hook's answer is taken for it)
    #[arg(long, value_parser = profile)]
    pub migration_freeze_probe_profile: Option<String>,

    /// Longest wait for one answer of the hook, 100ms to 1m
    #[arg(long, default_value = "10s", value_parser = duration(bound::MIGRATION_FREEZE_TIMEOUT))]
    pub migration_freeze_timeout: Duration,

    /// How long a freeze has to have held without a break until it counts, 0s to 5m
    #[arg(long, default_value = "5s", value_parser = duration(bound::MIGRATION_FREEZE_SETTLE))]
    pub migration_freeze_settle: Duration,

    /// Longest time that writers are frozen before the fence; after that, they go on and it is tried again, 1s to 1h; at least
    /// twice --migration-freeze-settle
    #[arg(long, default_value = "1m", value_parser = duration(bound::MIGRATION_FREEZE_BUDGET))]
    pub migration_freeze_budget: Duration,

    /// Pause between two looks for scheduled backups that are due, 10ms to 1h
    #[arg(long, default_value = "1m", value_parser = duration(bound::BACKUPS_INTERVAL))]
    pub backups_interval: Duration,

    /// Pages of up to 1 MB that a recovery drill reads in a second, of the cell's tables and the restored ones together, 1 to 1000
    #[arg(long, default_value = "10", value_parser = number(bound::DRILL_PAGES_PER_SECOND))]
    pub drill_pages_per_second: u32,

    /// Time without a sign of life after which another consumer of a group takes over a shard of a table's stream, 1s to 10m
    #[arg(long, default_value = "15s", value_parser = duration(bound::EVENTS_LEASE))]
    pub events_lease: Duration,

    /// What CloudWatch is used for: asked how busy cells are, told metrics of cells, too, or nothing; it bills both
    #[arg(long, value_enum, default_value = "auto")]
    pub cloudwatch_metrics: CloudWatchMetrics,

    /// Time between two measurements of how busy cells are, which the replicas take turns in, 100ms to 1h
    #[arg(long, default_value = "5m", value_parser = duration(bound::LOAD_INTERVAL))]
    pub load_interval: Duration,

    /// Utilisation of a cell's tables from which its share of new tenants falls, 0 to 1
    #[arg(long, default_value = "0.75", value_parser = number(bound::LOAD_SPARE_FROM))]
    pub load_spare_from: f64,

    /// Utilisation at which a cell gets new tenants only where no other cell can take them, 0 to 10; at least --load-spare-from
    #[arg(long, default_value = "0.9", value_parser = number(bound::LOAD_LIMIT))]
    pub load_limit: f64,

    /// Time from a placement's expiry until DynamoDB's own TTL may delete the item, 1h to 365d
    #[arg(long, default_value = "30d", value_parser = duration(bound::EXPIRY_GRACE))]
    pub expiry_grace: Duration,

    /// Time for which a request_id is remembered, so that a repeated call has one effect, 10m to 90d
    #[arg(long, default_value = "24h", value_parser = duration(bound::REQUEST_ID_RETENTION))]
    pub request_id_retention: Duration,

    /// Keys of one batch call that are worked on at the same time, 1 to 1024
    #[arg(long, default_value = "64", value_parser = number(bound::BATCH_CONCURRENCY))]
    pub batch_concurrency: u32,

    /// Largest gRPC message accepted, in bytes, 1024 to 67108864
    #[arg(long, default_value = "4194304", value_parser = number(bound::MAX_MESSAGE_BYTES))]
    pub max_message_bytes: u32,

    /// Threads that serve connections, each connection on one of them, 0 to 1024; 0: as many as there are processors
    #[arg(long, default_value = "0", value_parser = number(bound::SERVE_THREADS))]
    pub serve_threads: u32,

    /// Calls open at the same time on one HTTP/2 connection, 1 to 100000
    #[arg(long, default_value = "128", value_parser = number(bound::MAX_CONCURRENT_STREAMS))]
    pub max_concurrent_streams: u32,

    /// Largest headers of a call accepted, in bytes as HTTP/2 counts them, 1024 to 1048576
    #[arg(long, default_value = "16384", value_parser = number(bound::MAX_HEADER_BYTES))]
    pub max_header_bytes: u32,

    /// Connections open at the same time; further ones are closed at once, 1 to 1000000
    #[arg(long, default_value = "10000", value_parser = number(bound::MAX_CONNECTIONS))]
    pub max_connections: u32,

    /// Time a new connection has until its TLS and HTTP/2 handshakes are done, 10ms to 1m
    #[arg(long, default_value = "10s", value_parser = duration(bound::HANDSHAKE_TIMEOUT))]
    pub handshake_timeout: Duration,

    /// Time after which a connection without a call is ended, 100ms to 1d; at most a quarter more
    #[arg(long, default_value = "30m", value_parser = duration(bound::IDLE_TIMEOUT))]
    pub idle_timeout: Duration,

    /// Age at which a connection is ended so that its client connects anew, 100ms to 365d; differs by up to a tenth
    #[arg(long, default_value = "1h", value_parser = duration(bound::MAX_CONNECTION_AGE))]
    pub max_connection_age: Duration,

    /// Time that open calls get to finish on a connection that is ended for its age, 0s to 1h
    #[arg(long, default_value = "1m", value_parser = duration(bound::CONNECTION_GRACE))]
    pub connection_grace: Duration,

    /// Time between two HTTP/2 pings to a client, 100ms to 1h
    #[arg(long, default_value = "30s", value_parser = duration(bound::KEEPALIVE_INTERVAL))]
    pub keepalive_interval: Duration,

    /// Time that a client has to answer a ping before its connection is cut, 100ms to 1m
    #[arg(long, default_value = "10s", value_parser = duration(bound::KEEPALIVE_TIMEOUT))]
    pub keepalive_timeout: Duration,

    /// Time for which calls may wait for a processor, 1ms to 1m: a queue that stands above it sheds resolves, above three
    /// quarters of it changes, above half of it lists
    #[arg(long, default_value = "3ms", value_parser = duration(bound::MAX_QUEUE_DELAY))]
    pub max_queue_delay: Duration,

    /// Calls that wait for the table at the same time, 4 to 1000000: resolves may take all, changes three quarters,
    /// lists half
    #[arg(long, default_value = "4096", value_parser = number(bound::MAX_IN_FLIGHT))]
    pub max_in_flight: u32,

    /// Longest time for which a refusal is held back while refusals are many, 0s to 10s
    #[arg(long, default_value = "1s", value_parser = duration(bound::MAX_REFUSAL_HOLD))]
    pub max_refusal_hold: Duration,

    /// Time for which a server that is told to stop goes on taking calls, its health NOT_SERVING, so that balancers turn
    /// away first, 0s to 5m
    #[arg(long, default_value = "500ms", value_parser = duration(bound::DRAIN_DELAY))]
    pub drain_delay: Duration,

    /// Time that open calls get to finish at shutdown, after the drain delay, 0s to 1h
    #[arg(long, default_value = "30s", value_parser = duration(bound::DRAIN_TIMEOUT))]
    pub drain_timeout: Duration,

    /// OTLP/gRPC collector for traces and metrics, an http or https URL (absent: nothing is exported)
    #[arg(long, value_parser = url)]
    pub otlp_endpoint: Option<HttpUrl>,

    /// Longest time one export may take, 10ms to 1m
    #[arg(long, default_value = "5s", value_parser = duration(bound::OTLP_TIMEOUT))]
    pub otlp_timeout: Duration,

    /// Share of new traces that are recorded, 0 to 1; a sampled parent is followed, failures are always recorded
    #[arg(long, default_value = "0.01", value_parser = number(bound::TRACE_SAMPLE_RATIO))]
    pub trace_sample_ratio: f64,

    /// Time between two exports of metrics, 100ms to 10m
    #[arg(long, default_value = "10s", value_parser = duration(bound::METRICS_INTERVAL))]
    pub metrics_interval: Duration,

    /// Form of log lines
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// What to log, in tracing's filter syntax, such as info,cell_directory=debug
    // The embedded engine warns of every answer that is an error, which a condition that does not hold is, too.
    #[arg(long, default_value = "info,dynoxide=error", value_parser = log_filter)]
    pub log_filter: String,

    /// Write tenants in clear to spans and logs, instead of a keyed hash
    #[arg(long, default_value = "false", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub clear_tenants: bool,

    /// Key under which tenants are hashed in spans and logs, at least 16 characters; prefer the environment or the
    /// file, since other users of the host can read flags (absent: a random key for each process)
    #[arg(long, value_parser = secret)]
    pub tenant_hash_key: Option<Secret>,

    /// Where changes of items are sent; in the file alone (see [`super::sinks`])
    #[arg(skip)]
    pub event_sinks: Vec<EventSink>,
}

impl Default for Config {
    /// What an empty command line, environment and file give.
    fn default() -> Self {
        let command = <Config as clap::Args>::augment_args(
            clap::Command::new("defaults").no_binary_name(true),
        );
        command
            .try_get_matches_from(std::iter::empty::<&str>())
            .and_then(|matches| Config::from_arg_matches(&matches))
            .expect("the defaults are literals in this file, and a test parses them")
    }
}

/// How a new tenant's cell is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AssignmentPolicy {
    /// Weighted rendezvous hashing: needs no state, and moves the least when the cells change
    Rendezvous,
    /// The cell with the most free capacity
    LeastLoaded,
}

/// What CloudWatch is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CloudWatchMetrics {
    /// `read` where DynamoDB is AWS's own, `off` on emulators
    Auto,
    /// Nothing is asked and nothing told: how busy cells are is not known
    Off,
    /// How busy cells are is asked, and new tenants are assigned by it
    Read,
    /// The same, and metrics are put to the namespace CellBasedArchitecture/DynamoDB
    Publish,
}

/// How much of the routing table is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryMode {
    /// All of it: some 64 bytes a placement, and its key. New tenants are assigned without a read
    Whole,
    /// The placements that are asked for most
    Bounded,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event
    Text,
    /// One JSON object an event
    Json,
}

/// An absolute `http` or `https` URL, kept as it was written. It holds no user, password, query or fragment, so that it
/// can be shown and logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl(String);

impl HttpUrl {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that neither `Debug` nor `config show` may reveal; it has no `Display` on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(set)")
    }
}

// ---- value parsers: each error says what is expected, since the caller adds the key, the layer and the value ----

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected IP:PORT, such as 127.0.0.1:50051 or [::1]:50051".to_owned())
}

/// Whether only this host can reach the address; an IPv4 address in IPv6 clothes counts as what it is.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// The embedded DynamoDB has no access control at all, hence no way to open it to others.
fn loopback_address(text: &str) -> Result<SocketAddr, String> {
    address(text).ok().filter(is_loopback).ok_or_else(|| {
        "expected IP:PORT with a loopback IP, such as 127.0.0.1:50052, because it serves without any access control"
            .to_owned()
    })
}

pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        humantime::parse_duration(text).ok().filter(|value| range.contains(value)).ok_or_else(
            || {
                format!(
                    "expected a duration from {} to {}, such as 250ms or 2h",
                    short(*range.start()),
                    short(*range.end())
                )
            },
        )
    }
}

/// A duration in the largest unit that holds it without a remainder (`90s`, not `1m 30s`), in a form that parses again.
pub(super) fn short(duration: Duration) -> String {
    const UNITS: [(u128, &str); 7] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let nanos = duration.as_nanos();
    match UNITS.iter().find(|(unit, _)| nanos > 0 && nanos.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", nanos / unit),
        None => "0s".to_owned(),
    }
}

fn number<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + fmt::Display + Clone + Send + Sync + 'static,
{
    // NaN is in no range, so it is refused with the rest
    move |text| {
        text.parse()
            .ok()
            .filter(|value| range.contains(value))
            .ok_or_else(|| format!("expected a number from {} to {}", range.start(), range.end()))
    }
}

pub(super) fn url(text: &str) -> Result<HttpUrl, String> {
    let well_formed = |uri: &http::Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && !text.contains(['?', '#'])
    };
    match text.parse::<http::Uri>() {
        Ok(uri) if well_formed(&uri) => Ok(HttpUrl(text.to_owned())),
        _ => Err("expected a URL such as http://localhost:8000, without user, password and query"
            .to_owned()),
    }
}

fn table_prefix(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if text.len() <= bound::TABLE_PREFIX_CHARS && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "expected at most {} characters of A-Z a-z 0-9 _ . -",
            bound::TABLE_PREFIX_CHARS
        ))
    }
}

/// `[a-z0-9][a-z0-9-]*` of at most `max` characters. A Region is held to no list: new ones open, and test doubles have
/// their own.
fn is_name(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len())
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

pub(super) fn cell_id(text: &str) -> Result<String, String> {
    if is_name(text, bound::CELL_ID_CHARS) {
        Ok(text.to_owned())
    } else {
        Err("expected a cell id: 1 to 63 characters of a-z 0-9 -, the first not -".to_owned())
    }
}

fn region(text: &str) -> Result<String, String> {
    if is_name(text, bound::REGION_CHARS) {
        Ok(text.to_owned())
    } else {
        Err("expected an AWS Region, such as eu-west-1".to_owned())
    }
}

fn profile(text: &str) -> Result<String, String> {
    let well_formed = (1..=128).contains(&text.chars().count())
        && !text.chars().any(|c| c.is_control() || matches!(c, '[' | ']'));
    match well_formed {
        true => Ok(text.to_owned()),
        false => Err("expected the name of an AWS profile, of 1 to 128 characters".to_owned()),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => {
            Err("expected a tracing filter, such as info or info,cell_directory=debug".to_owned())
        }
    }
}

/// Accepts anything: clap repeats a refused value in its message, so the length is checked later, by us.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret(text.to_owned()))
}

#[cfg(test)]
mod tests;
