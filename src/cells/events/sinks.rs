//! Sends changes of items to the sinks that the configuration declares.
//!
//! One task looks every [`LOOK_INTERVAL`] which tables there are, and keeps a consumer for each table and sink: new ones are started,
//! those of tables that went are let go, one that failed is started anew after a wait, one whose table has another stream by now follows
//! that. Replicas with the same sinks share the shards by the leases in `CellControl`.
//!
//! Invariant: serving does not depend on it. What fails is logged, counted and tried again; the pages in memory are bounded for each
//! sink; at shutdown deliveries at hand get [`STOP_WITHIN`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cells_streams::{Options, Status, StreamArn};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::output::Output;
use super::{CellEvents, Found, Subscription};
use crate::cells::table_set::TableSpec;
use crate::config::EventSink;
use crate::directory::Directory;
use crate::domain::CellId;
use crate::telemetry::TenantLabel;
use crate::telemetry::events::EventMetrics;

/// Pause between two looks at which tables there are. As a cell's tables are remembered for five seconds, a new table is followed, and one
/// that went is let go, within some 15 s.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Looks between two of which each asks which stream a table has that is followed without trouble. A stream that was replaced answers for
/// another day, so that it shows in nothing else.
const LOOKS_A_CHECK: usize = 3;

/// Tables that are followed at the same time, each once a sink. More are left out, and the log says so.
const MAX_FOLLOWED: usize = 2_000;

/// Shards of one table that a replica reads for one sink.
const MAX_SHARDS: usize = 1_000;

/// How long deliveries at hand may take at shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Waits before a consumer that could not be started, or failed, is started again: doubled up to the longest, and then until the next look.
const RESTART_MIN: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(120);

/// Number of the sink, cell and table.
type Key = (usize, CellId, String);

/// What it is made of.
pub struct EventSinks {
    pub events: CellEvents,
    pub directory: Directory,
    pub sinks: Vec<EventSink>,
    /// For sinks that name no collector of their own.
    pub collector: Option<String>,
    pub tenants: TenantLabel,
    pub metrics: EventMetrics,
}

impl EventSinks {
    /// Follows and sends until `stop` is cancelled; then finishes what is at hand.
    pub async fn run(mut self, stop: CancellationToken) {
        let outputs = std::mem::take(&mut self.sinks).into_iter().map(Output::new).collect();
        let mut supervisor = Supervisor {
            parts: self,
            outputs,
            followed: HashMap::new(),
            failures: HashMap::new(),
            tasks: JoinSet::new(),
            keys: HashMap::new(),
            looks: 0,
        };
        supervisor.parts.directory.ready(&stop).await;
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = supervisor.tasks.join_next_with_id() => supervisor.ended(ended),
                () = tokio::time::sleep_until(look_at) => {
                    // A look may be dropped at any await: the next one finds what is undone.
                    tokio::select! {
                        () = supervisor.look() => {}
                        () = stop.cancelled() => break,
                    }
                    look_at = Instant::now() + LOOK_INTERVAL;
                }
            }
        }
        for followed in supervisor.followed.values() {
            followed.stop.cancel();
        }
        while supervisor.tasks.join_next().await.is_some() {}
    }
}

/// A table that is followed for a sink.
struct Followed {
    stream: StreamArn,
    spec: TableSpec,
    stop: CancellationToken,
    status: watch::Receiver<Status>,
}

struct Supervisor {
    parts: EventSinks,
    outputs: Vec<Output>,
    followed: HashMap<Key, Followed>,
    /// How often in a row starting failed, and when it is tried again.
    failures: HashMap<Key, (u32, Instant)>,
    tasks: JoinSet<()>,
    keys: HashMap<Id, Key>,
    looks: usize,
}

impl Supervisor {
    /// One look at all cells, and what follows from it.
    async fn look(&mut self) {
        let ids = |registry: &crate::directory::Registry| {
            registry.cells().map(|cell| cell.id.clone()).collect::<Vec<_>>()
        };
        // None: the directory is not ready yet.
        let Some(cells) = self.parts.directory.peek(ids) else { return };
        let mut wanted = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        for cell in cells {
            if !self.outputs.iter().any(|output| output.wants_cell(&cell)) {
                continue;
            }
            match self.parts.events.data.tables(&cell).await {
                Ok(tables) => self.add(&cell, tables, &mut wanted),
                Err(error) => {
                    tracing::warn!(%cell, %error, "the cell's tables are not known, trying again");
                    unknown.insert(cell);
                }
            }
        }
        self.followed.retain(|key, followed| {
            let stays = wanted.contains_key(key) || unknown.contains(&key.1);
            if !stays {
                followed.stop.cancel();
            }
            stays
        });
        self.failures.retain(|key, _| wanted.contains_key(key));
        if wanted.len() > MAX_FOLLOWED {
            let left_out = wanted.len() - MAX_FOLLOWED;
            tracing::error!(
                left_out,
                "too many tables for event_sinks, name fewer cells or tables"
            );
        }
        self.looks = self.looks.wrapping_add(1);
        for (number, (key, spec)) in wanted.into_iter().take(MAX_FOLLOWED).enumerate() {
            // Not all in the same look.
            let check = self.looks.wrapping_add(number) % LOOKS_A_CHECK == 0;
            self.look_after(key, spec, check).await;
        }
    }

    fn add(&self, cell: &CellId, tables: Vec<TableSpec>, wanted: &mut BTreeMap<Key, TableSpec>) {
        for spec in tables.into_iter().filter(|spec| spec.stream.is_some()) {
            for (number, output) in self.outputs.iter().enumerate() {
                if output.wants_cell(cell) && output.wants_table(&spec.name) {
                    wanted.insert((number, cell.clone(), spec.name.clone()), spec.clone());
                }
            }
        }
    }

    /// Starts a consumer where there is none, or where the one that there is follows a stream that was replaced, or a table that is declared
    /// otherwise by now. `check`: asks though there is no sign of that.
    async fn look_after(&mut self, key: Key, spec: TableSpec, check: bool) {
        if self.failures.get(&key).is_some_and(|(_, again)| Instant::now() < *again) {
            return;
        }
        let same = |followed: &Followed| followed.spec == spec;
        let well = |followed: &Followed| followed.status.borrow().problem.is_none();
        let well = self.followed.get(&key).map(|followed| same(followed) && well(followed));
        if well == Some(true) && !check {
            return;
        }
        let found = match self.parts.events.found(&key.1, &key.2).await {
            Ok(found) => found,
            // Asked again at the next check.
            Err(_) if well == Some(true) => return,
            Err(error) => return self.failed(key, &error.to_string()),
        };
        if self.followed.get(&key).is_some_and(|old| same(old) && old.stream == found.stream) {
            // If it has trouble, it tries again by itself.
            return;
        }
        if let Some(old) = self.followed.remove(&key) {
            old.stop.cancel();
        }
        match self.start(&key, spec, found) {
            Ok(()) => drop(self.failures.remove(&key)),
            Err(error) => self.failed(key, &error),
        }
    }

    fn start(&mut self, key: &Key, spec: TableSpec, found: Found) -> Result<(), String> {
        let (number, cell, table) = key;
        let Some(output) = self.outputs.get_mut(*number) else { return Ok(()) };
        let (group, latest) = (output.sink.group.clone(), output.sink.latest);
        let metrics = self.parts.metrics.table(group.as_str(), cell.as_str(), table);
        let shared = self.parts.collector.as_deref();
        let sink = output.table(spec.clone(), shared, &self.parts.tenants, Arc::new(metrics))?;
        let options = Options {
            pages: Some(output.pages.clone()),
            max_shards: MAX_SHARDS,
            stop_within: STOP_WITHIN,
            ..Options::default()
        };
        tracing::info!(%group, %cell, table, "following the changes of a table");
        let subscription = Subscription { group, cell: cell.clone(), table: table.clone(), latest };
        let stream = found.stream.clone();
        let consumer = self.parts.events.consumer(subscription, found, sink, options);
        let consumer = consumer.map_err(|error| error.to_string())?;
        let (stop, status) = (CancellationToken::new(), consumer.status());
        let task = self.tasks.spawn(consumer.run(stop.clone())).id();
        self.keys.insert(task, key.clone());
        self.followed.insert(key.clone(), Followed { stream, spec, stop, status });
        Ok(())
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let (id, failed) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error.to_string())),
        };
        let key = self.keys.remove(&id);
        // One that was told to end has ended. One that failed is started again.
        if let (Some(key), Some(error)) = (key, failed) {
            self.followed.remove(&key);
            self.failed(key, &error);
        }
    }

    fn failed(&mut self, key: Key, error: &str) {
        let failures = self.failures.get(&key).map_or(0, |(failures, _)| *failures) + 1;
        let wait = RESTART_MIN.saturating_mul(1 << failures.min(16)).min(RESTART_MAX);
        let group = self.outputs.get(key.0).map(|output| output.sink.group.to_string());
        tracing::warn!(
            group,
            cell = %key.1,
            table = key.2,
            error,
            again_in_secs = wait.as_secs(),
            "the changes of a table are not followed, trying again"
        );
        self.failures.insert(key, (failures, Instant::now() + wait));
    }
}
