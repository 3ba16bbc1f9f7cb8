//! Measures how busy cells are, one replica at a time, and hands what was measured to the assignment in every replica.
//!
//! Each turn costs a conditional write and a read of all loads in every replica, whatever the load, and in the one whose turn it is, a look
//! at each table. Whose turn it is spares CloudWatch the same questions from all; that no minute is published twice does not
//! rest on it, but on the condition of each cell's record: who replaces it publishes the minutes since. So a replica that dies, or
//! sleeps through its turn and wakes up, loses at most the minutes that it had taken over and not sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::gather::{self, Measured, Size};
use super::outbox::Outbox;
use super::records::{LoadRecord, LoadRecords};
use crate::cells::capacity::Meters;
use crate::cells::{CellRecords, CloudError, TableRef, TableSet, TableSetId, Wanted};
use crate::directory::{Directory, Registry};
use crate::domain::{Cell, LoadTerms, Loads, Timestamp};
use crate::store::StoreError;

/// Cells that are looked at at the same time.
const AT_ONCE: usize = 4;

/// Turns by which another replica's clock may be ahead.
const TURNS_AHEAD: i64 = 2;

/// Longest that a turn may take, unless turns are further apart.
const LONGEST_TURN: Duration = Duration::from_secs(60);

/// Versions of table sets that are kept in memory; they never change.
const SETS_KEPT: usize = 256;

/// What DescribeTable says.
#[async_trait]
pub trait Sizes: Send + Sync + 'static {
    /// A table's limits and size; `None`: there is no such table.
    async fn size(&self, table: &TableRef) -> Result<Option<Size>, CloudError>;
}

pub struct Measurer {
    pub directory: Directory,
    pub loads: Arc<dyn LoadRecords>,
    pub records: Arc<dyn CellRecords>,
    pub meters: Arc<dyn Meters>,
    pub sizes: Arc<dyn Sizes>,
    /// Before every table's name.
    pub prefix: String,
    /// Where what is counted is published, if anywhere.
    pub outbox: Option<Outbox>,
    /// Between two turns.
    pub interval: Duration,
    pub terms: LoadTerms,
    pub sets: Sets,
}

/// Versions of table sets that were read.
pub type Sets = Mutex<HashMap<(TableSetId, u64), Arc<TableSet>>>;

/// Why a cell was not measured.
#[derive(Debug, thiserror::Error)]
enum Unmeasured {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Cloud(#[from] CloudError),
}

impl Measurer {
    /// Takes turns until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        // A turn that is taken before any cell is known measures none, and nobody else does until the next.
        self.directory.ready(&stop).await;
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut held, mut failing) = (Vec::new(), false);
        loop {
            let turn = async {
                ticks.tick().await;
                self.turn(&mut held).await
            };
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = turn => ended,
            };
            match ended {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "loads of cells cannot be measured; without them, new tenants are assigned by weights and capacities alone");
                }
                Err(error) => tracing::debug!(%error, "loads of cells cannot be measured yet"),
            }
        }
    }

    /// Measures where it is this replica's turn, and hands on what is known, also where that turn took too long: or what was known before
    /// would never grow old. `held`: what was known before.
    async fn turn(&self, held: &mut Vec<LoadRecord>) -> Result<(), Unmeasured> {
        let longest = self.interval.max(LONGEST_TURN);
        let measured = timeout(longest, self.take_turn()).await;
        let measured = measured.unwrap_or_else(|_| Err(StoreError::Timeout.into()));
        let read = timeout(longest, self.loads.loads()).await;
        let read = read.unwrap_or(Err(StoreError::Timeout)).map(|loads| *held = loads);
        let now = self.directory.now();
        let loads = held.iter().filter_map(|record| record.load.clone());
        // Also where nothing could be read: what is held grows too old.
        self.directory.set_loads(Loads::at(now, loads, self.terms));
        measured.and(read.map_err(Unmeasured::from))
    }

    async fn take_turn(&self) -> Result<(), Unmeasured> {
        let millis = i64::try_from(self.interval.as_millis()).unwrap_or(i64::MAX).max(1);
        let turn = self.directory.now().millis().div_euclid(millis);
        if !self.loads.take_turn(turn, TURNS_AHEAD).await? {
            return Ok(());
        }
        let cells: Option<Vec<_>> =
            self.directory.peek(|registry: &Registry| registry.cells().cloned().collect());
        let mut cells = cells.unwrap_or_default();
        let first = begin_at(turn, cells.len());
        cells.rotate_left(first);
        let tables = self.records.all_cell_tables().await?;
        let tables: HashMap<_, _> =
            tables.into_iter().filter_map(|record| Some((record.cell, record.tables?))).collect();
        let known = self.loads.loads().await?;
        let known: HashMap<_, _> =
            known.into_iter().map(|record| (record.cell.clone(), record)).collect();
        let measuring = cells.into_iter().map(|cell| {
            let (tables, known) = (tables.get(&cell.id), known.get(&cell.id));
            async move { self.measure(&cell, tables, known).await }
        });
        let mut measuring = stream::iter(measuring).buffer_unordered(AT_ONCE);
        let mut outcome = Ok(());
        while let Some(measured) = measuring.next().await {
            match measured {
                // There is nobody to ask about the other cells, either.
                Err(Unmeasured::Cloud(CloudError::Unsupported)) => return measured,
                Err(_) => outcome = measured,
                Ok(()) => {}
            }
        }
        outcome
    }

    /// Measures a cell, and publishes what was counted since it was measured last.
    async fn measure(
        &self,
        cell: &Cell,
        tables: Option<&(TableSetId, u64)>,
        known: Option<&LoadRecord>,
    ) -> Result<(), Unmeasured> {
        let end = gather::settled(self.directory.now());
        let from = gather::publish_from(known.and_then(|known| known.published), end);
        let set = match tables {
            Some((set, version)) => self.table_set(set, *version).await?,
            None => None,
        };
        let mut measured = Vec::new();
        for wanted in set.iter().flat_map(|set| Wanted::of(set, &self.prefix, cell)) {
            let table = TableRef::from(&wanted);
            let Some(size) = self.sizes.size(&table).await? else { continue };
            let indexes: Vec<_> = size.indexes.iter().map(|(name, _)| name.clone()).collect();
            let window = gather::window(from, end);
            let metered = self.meters.metered(&table, &indexes, &window).await?;
            measured.push(Measured { table, size, metered });
        }
        let at = later(self.directory.now(), known);
        let load = (!measured.is_empty()).then(|| gather::load(cell, &measured, end, at));
        if load.is_none() && self.outbox.is_none() {
            return Ok(());
        }
        let record = LoadRecord {
            cell: cell.id.clone(),
            at,
            load: load.clone(),
            published: match (&self.outbox, known.and_then(|known| known.published)) {
                (Some(_), known) => Some(gather::published_until(known, end)),
                (None, known) => known,
            },
        };
        let ours = self.loads.put_load(&record, known.map(|known| known.at)).await?;
        if let (true, Some(outbox)) = (ours, &self.outbox) {
            outbox.push(gather::data(cell, load.as_ref(), &measured, (from, end)));
        }
        Ok(())
    }

    async fn table_set(
        &self,
        id: &TableSetId,
        version: u64,
    ) -> Result<Option<Arc<TableSet>>, StoreError> {
        let key = (id.clone(), version);
        if let Some(set) = self.sets.lock().get(&key) {
            return Ok(Some(Arc::clone(set)));
        }
        let Some(set) = self.records.table_set_at(id, version).await?.map(Arc::new) else {
            return Ok(None);
        };
        let mut sets = self.sets.lock();
        if sets.len() >= SETS_KEPT {
            sets.clear();
        }
        sets.insert(key, Arc::clone(&set));
        Ok(Some(set))
    }
}

/// The number of the cell that a turn begins at. Where time runs out in every turn, no cell is always too late: multiples of the golden
/// ratio spread the beginnings evenly, in whatever steps turns come.
fn begin_at(turn: i64, cells: usize) -> usize {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let fraction = u128::from(turn.cast_unsigned().wrapping_mul(GOLDEN));
    let cells = u128::try_from(cells).unwrap_or(0);
    usize::try_from((fraction * cells) >> 64).unwrap_or(0)
}

/// A time that no earlier version of the record has.
fn later(now: Timestamp, known: Option<&LoadRecord>) -> Timestamp {
    match known {
        Some(known) if known.at >= now => known.at.plus(Duration::from_millis(1)),
        _ => now,
    }
}

#[cfg(test)]
#[path = "measure_tests.rs"]
mod tests;
