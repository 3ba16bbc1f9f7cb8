//! One bulk under way: looks at its migrations, asks what is next, stores it, and only then does it. Decides nothing.
//!
//! Nothing but what is stored is needed to go on: a worker that takes over begins with [`Runner::turn`] as the one before did.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cells_balance::Bulk;
use cells_balance::bulk::{Chunk, ITEMS_PER_CHUNK, Observed, State, Step};
use cells_migration::{Leg, Phase, Wish};
use futures::StreamExt;
use parking_lot::Mutex;

use super::model::{BulkId, BulkProgress, BulkRecord, migration_id};
use super::moves::{Moves, NotStarted, Order};
use super::records::BulkRecords;
use crate::directory::Clock;
use crate::domain::MigrationId;
use crate::migration::Migration;
use crate::store::StoreError;

/// Migrations that are looked at, or begun, at the same time.
const CONCURRENCY: usize = 8;

/// What all bulks of a replica share.
#[derive(Clone)]
pub struct BulkShared {
    pub records: Arc<dyn BulkRecords>,
    pub moves: Arc<dyn Moves>,
    pub clock: Clock,
    /// Between two looks at a migration that soaks or is parked: it changes seldom, and there may be many.
    pub slow_look: Duration,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// There is nothing to do but wait.
    Wait,
    /// There is more to do.
    Again,
    /// Another worker has the bulk.
    Lost,
    Ended,
}

/// Signs of life beside the turns, which may take long where the storage is slow.
pub struct Pulse {
    shared: BulkShared,
    id: BulkId,
    worker: u64,
    progress: Arc<Mutex<BulkProgress>>,
}

impl Pulse {
    /// `false`: another worker has the bulk.
    pub async fn beat(&self) -> bool {
        let (now, progress) = (self.shared.clock.now(), self.progress.lock().clone());
        let beat = self.shared.records.beat_bulk(self.id, self.worker, &progress, now).await;
        !matches!(beat, Ok(None))
    }
}

/// The bulk as this worker last stored or read it.
struct Held {
    record: BulkRecord,
    bulk: Bulk,
    /// Of each chunk, as stored.
    revisions: Vec<u64>,
}

/// A worker of one bulk.
pub struct Runner {
    shared: BulkShared,
    id: BulkId,
    worker: u64,
    held: Option<Held>,
    /// As it was told last.
    progress: Arc<Mutex<BulkProgress>>,
    /// Migrations that change seldom, and when they were looked at.
    slow: HashMap<String, (Observed, Instant)>,
}

fn text_id(bulk: &str, tenant: &str, attempt: u32) -> String {
    migration_id(bulk, tenant, attempt).to_string()
}

impl Runner {
    /// `worker`: the number under which the bulk was taken.
    pub fn new(shared: BulkShared, id: BulkId, worker: u64) -> Self {
        let (progress, slow) = (Arc::default(), HashMap::new());
        Self { shared, id, worker, held: None, progress, slow }
    }

    pub fn pulse(&self) -> Pulse {
        let (shared, progress) = (self.shared.clone(), Arc::clone(&self.progress));
        Pulse { shared, id: self.id, worker: self.worker, progress }
    }

    /// Gives a sign of life, and does what is to be done.
    ///
    /// # Errors
    /// Of the store. The next turn begins with what is stored then.
    pub async fn turn(&mut self) -> Result<Turned, StoreError> {
        let turned = self.try_turn().await;
        if let Err(error) = &turned {
            self.held = None;
            self.progress.lock().trouble = Some(error.told());
        }
        turned
    }

    async fn try_turn(&mut self) -> Result<Turned, StoreError> {
        let Some(mut held) = self.hold().await? else { return Ok(Turned::Lost) };
        if held.record.ended().is_some() {
            return Ok(Turned::Ended);
        }
        let observed = self.observe(&held.bulk).await?;
        let steps = held.bulk.next(&observed, &text_id);
        if steps.is_empty() {
            self.told(&held.bulk, None);
            self.held = Some(held);
            return Ok(Turned::Wait);
        }
        for step in &steps {
            held.bulk.apply(step).map_err(unfit)?;
        }
        if !self.store(&mut held).await? {
            return Ok(Turned::Again);
        }
        if held.record.ended().is_some() {
            return Ok(Turned::Ended);
        }
        let trouble = self.act(&mut held, steps).await?;
        if !self.store(&mut held).await? {
            return Ok(Turned::Again);
        }
        let turned = if trouble.is_some() { Turned::Wait } else { Turned::Again };
        self.told(&held.bulk, trouble);
        self.held = Some(held);
        Ok(turned)
    }

    fn told(&self, bulk: &Bulk, trouble: Option<String>) {
        *self.progress.lock() = BulkProgress { summary: bulk.summary(), trouble };
    }

    /// The bulk as it is, if this worker has it still.
    async fn hold(&mut self) -> Result<Option<Held>, StoreError> {
        let (records, now) = (&self.shared.records, self.shared.clock.now());
        if self.held.is_none() {
            // Not told as far as nothing, where another worker was before.
            if let Some(record) = records.bulk(self.id).await? {
                let mut progress = self.progress.lock();
                progress.summary = record.progress.summary;
            }
        }
        let progress = self.progress.lock().clone();
        let beat = records.beat_bulk(self.id, self.worker, &progress, now).await?;
        let Some(record) = beat else { return Ok(None) };
        if let Some(held) = self.held.take()
            && held.record.header.revision == record.header.revision
        {
            return Ok(Some(Held { record, ..held }));
        }
        let chunks = records.chunks(&record).await?;
        let revisions = chunks.iter().map(|chunk| chunk.revision).collect();
        let bulk = Bulk::load(record.header.clone(), chunks)
            .map_err(|error| StoreError::Unreadable { detail: error.to_string() })?;
        Ok(Some(Held { record, bulk, revisions }))
    }

    /// `false`: somebody else has changed it, and it has to be read again.
    async fn store(&self, held: &mut Held) -> Result<bool, StoreError> {
        let changes = held.bulk.take_changes();
        if changes.header.is_none() && changes.chunks.is_empty() {
            return Ok(true);
        }
        let now = self.shared.clock.now();
        if !self.shared.records.save_bulk(&held.record, &changes, now).await? {
            return Ok(false);
        }
        for Chunk { number, revision, .. } in &changes.chunks {
            let stored = usize::try_from(*number).ok().and_then(|at| held.revisions.get_mut(at));
            stored.into_iter().for_each(|stored| *stored = *revision);
        }
        if let Some(header) = changes.header {
            held.record.header = header;
        }
        Ok(true)
    }

    async fn observe(&mut self, bulk: &Bulk) -> Result<HashMap<String, Observed>, StoreError> {
        let (now, slow_look) = (Instant::now(), self.shared.slow_look);
        let wanted = bulk.to_observe(&text_id);
        self.slow.retain(|_, (_, at)| now.duration_since(*at) < slow_look);
        let moves = &self.shared.moves;
        let slow = &self.slow;
        let looks = wanted.into_iter().map(|id| async move {
            if let Some((observed, _)) = slow.get(&id) {
                return Ok((id, observed.clone(), false));
            }
            let parsed = MigrationId::parse(&id)
                .map_err(|invalid| StoreError::Unreadable { detail: invalid.problem })?;
            let migration = moves.migration(parsed).await?;
            let observed = migration.as_ref().map_or(Observed::Absent, observed);
            Ok::<_, StoreError>((id, observed, true))
        });
        let looked: Vec<_> =
            futures::stream::iter(looks).buffer_unordered(CONCURRENCY).collect().await;
        let mut found = HashMap::with_capacity(looked.len());
        for look in looked {
            let (id, observed, fresh) = look?;
            if fresh && matches!(observed, Observed::Soaking | Observed::Parked { .. }) {
                self.slow.insert(id.clone(), (observed.clone(), now));
            }
            found.insert(id, observed);
        }
        Ok(found)
    }

    /// Does what was stored. What went wrong and is tried again, is answered.
    async fn act(&self, held: &mut Held, steps: Vec<Step>) -> Result<Option<String>, StoreError> {
        let mut orders = Vec::new();
        for step in steps {
            match step {
                Step::Start(start) => {
                    let chunk = start.item / ITEMS_PER_CHUNK;
                    let revision = held.revisions.get(chunk).copied().unwrap_or(0);
                    let order = Order::new(start, chunk as u64, revision, &held.record);
                    orders.push(order);
                }
                Step::Cancel { migration, .. } => {
                    let id = MigrationId::parse(&migration);
                    let id =
                        id.map_err(|invalid| StoreError::Unreadable { detail: invalid.problem })?;
                    self.shared.moves.cancel(id).await?;
                }
                Step::Note { .. } | Step::Finish(_) => {}
            }
        }
        let moves = &self.shared.moves;
        let begin = |order: Order| async move { (order.start.item, moves.start(order).await) };
        let begun = futures::stream::iter(orders).map(begin).buffer_unordered(CONCURRENCY);
        let begun: Vec<_> = begun.collect().await;
        let mut trouble = None;
        for (item, begun) in begun {
            match begun {
                Ok(()) => {}
                Err(NotStarted::There) => {
                    held.bulk.apply(&Step::Note { item, state: State::Done }).map_err(unfit)?;
                }
                Err(NotStarted::Refused { reason, retry }) => {
                    held.bulk.refused(item, &reason, retry).map_err(unfit)?;
                }
                // What is stored is read again with the next turn.
                Err(NotStarted::Superseded) => return Err(StoreError::Throttled),
                Err(NotStarted::Passing(reason)) => trouble = Some(reason),
            }
        }
        Ok(trouble)
    }
}

/// Not of what another version has stored: the steps are this bulk's own.
fn unfit(error: cells_balance::bulk::BulkError) -> StoreError {
    StoreError::Unreadable { detail: error.to_string() }
}

/// How a migration is, in the words of a bulk.
fn observed(migration: &Migration) -> Observed {
    let record = &migration.record;
    let back = record.leg == Leg::Back;
    match record.phase {
        Phase::Done if back => Observed::TakenBack,
        Phase::Done => Observed::Done,
        Phase::Aborted => match &migration.trouble {
            // Given up by its worker, before anything was changed. That has the wish of an operator's cancel, but says why.
            Some(why) if migration.progress.items_copied == 0 => {
                Observed::Failed { reason: why.clone() }
            }
            _ if record.wish == Some(Wish::Cancel) => Observed::TakenBack,
            _ => Observed::Failed { reason: "its migration was aborted".into() },
        },
        phase => match &migration.parked {
            Some(reason) => Observed::Parked { reason: reason.clone() },
            None if phase == Phase::Soaking && !back => Observed::Soaking,
            None => Observed::Running {
                committed: back || matches!(phase, Phase::Committed | Phase::Cleaning),
            },
        },
    }
}
