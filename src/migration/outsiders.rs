//! Writers that know nothing of guards, as a worker of a migration deals with them: it follows the streams of the tables that they write,
//! and has them frozen before the fence.

use std::sync::Arc;
use std::time::Duration;

use cells_guard::Touched;
use cells_migration::{
    Action as Asked, Cursor, GuardCheck, Holder, Marker, Orders, Phase, Record, Side,
};
use cells_streams::SdkStreams;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::copier::Copier;
use super::freeze::{Action, Freeze, Order};
use super::model::Spec;
use super::steps::Cells;
use super::stream::{Failure, Tail};
use crate::cells::Regions;
use crate::domain::Cell;
use crate::store::StoreError;

/// Keys that are written at once: as many as the copier reads of a log.
const BATCH: usize = 100;

/// Pause after a look at the stream that a comparison asks for: what was just written takes a moment to show in it.
const SHOWING: Duration = Duration::from_millis(200);

const HOOKLESS: &str = "this replica has no freeze hook";

/// What was followed.
#[derive(Debug, PartialEq)]
pub struct Followed {
    /// As [`Read::found`](super::stream::Read::found) says.
    pub found: u64,
    /// Records of the tenant.
    pub applied: u64,
    pub touched: Vec<Touched>,
    pub next: Cursor,
    pub past: bool,
}

pub struct Outsiders {
    source: Tail,
    target: Tail,
    freeze: Option<Arc<Freeze>>,
    /// The cells under the applications' permissions.
    probing: Option<Cells>,
    known: Mutex<Known>,
}

/// What one worker knows under one number.
#[derive(Default)]
struct Known {
    worker: u64,
    /// By this phase.
    phase: Option<Phase>,
    /// A comparison has applied the stream further than the machine knows: from the first position to the second.
    ahead: Option<(Cursor, Cursor)>,
    /// The last marker, and when it was left.
    marked: Option<(Marker, Instant)>,
    /// What the hook was told, and confirmed.
    orders: Orders,
    /// Since when the freeze that it confirmed holds, without a break.
    holds_since: Option<Instant>,
}

/// Why an order to the hook is not known to be done, in words for operators.
pub type Why = String;

impl Outsiders {
    /// `both`: the cells, source first, as they are registered.
    pub fn new(
        cells: &Cells,
        both: [&Cell; 2],
        regions: &Regions,
        migration: cells_migration::MigrationId,
        freeze: Option<Arc<Freeze>>,
    ) -> Self {
        let tail = |side, cell: &Cell| {
            let streams = Arc::new(SdkStreams::new(regions.streams(&cell.region)));
            Tail::new(cells.of(side).clone(), migration, streams)
        };
        let [source, target] = both;
        let probing = freeze.as_ref().and_then(|freeze| {
            let regions = freeze.probe.as_ref()?;
            Some(Cells {
                source: super::access::CellAccess::of(source, regions)?,
                target: super::access::CellAccess::of(target, regions)?,
            })
        });
        Self {
            source: tail(Side::Source, source),
            target: tail(Side::Target, target),
            freeze,
            probing,
            known: Mutex::default(),
        }
    }

    fn tail(&self, side: Side) -> &Tail {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// What was known under another number says nothing under this one.
    pub fn under(&self, record: &Record) {
        let mut known = self.known.lock();
        if known.worker != record.worker {
            *known = Known { worker: record.worker, ..Known::default() };
        }
        if known.phase != Some(record.phase) {
            known.phase = Some(record.phase);
            known.ahead = None;
        }
    }

    pub async fn listen(&self, from: Side, now: i64) -> Result<Cursor, StoreError> {
        self.tail(from).listen(now).await.map_err(harmless)
    }

    pub async fn mark(&self, from: Side, marker: Marker) -> Result<(), StoreError> {
        self.tail(from).mark(marker).await.map_err(harmless)?;
        self.known.lock().marked = Some((marker, Instant::now()));
        Ok(())
    }

    /// Applies some of the stream. `Ok(None)`: the guard does not let it.
    pub async fn follow(
        &self,
        copier: &Copier<'_>,
        (from, fence): (Side, &GuardCheck),
        position: &Cursor,
        past: Option<Marker>,
        now: i64,
    ) -> Result<Option<Followed>, Failure> {
        let (begin, marked) = {
            let known = self.known.lock();
            let ahead = known.ahead.as_ref().filter(|(of, _)| of == position);
            (ahead.map_or(position, |(_, to)| to).clone(), known.marked)
        };
        // One that somebody else left, or that was left before this worker began, was left by now.
        let past = past.map(|marker| match marked {
            Some((last, at)) if last == marker => (marker, at),
            _ => (marker, Instant::now()),
        });
        let ours = |touched: &Touched| copier.is_ours(touched);
        let read = self.tail(from).read(&begin, past, now, ours).await;
        let read = read.map_err(|failure| match failure {
            Failure::Store(error) => Failure::Store(harmless(error)),
            Failure::Trimmed => failure,
        })?;
        // Read at the source after the records were.
        for keys in read.touched.chunks(BATCH) {
            if !copier.rewrite(from, fence, keys).await? {
                return Ok(None);
            }
        }
        let (found, applied) = (read.found, read.ours);
        let (touched, next, past) = (read.touched, read.next, read.past);
        Ok(Some(Followed { found, applied, touched, next, past }))
    }

    /// The same on behalf of a comparison: what is not applied yet is no fault. `false`: the guard does not let it.
    pub async fn catch_up(
        &self,
        copier: &Copier<'_>,
        (from, fence): (Side, &GuardCheck),
        position: &Cursor,
        now: i64,
    ) -> Result<bool, StoreError> {
        tokio::time::sleep(SHOWING).await;
        match self.follow(copier, (from, fence), position, None, now).await {
            Ok(Some(followed)) => {
                self.known.lock().ahead = Some((position.clone(), followed.next));
                Ok(true)
            }
            Ok(None) => Ok(false),
            // The machine will come across it.
            Err(Failure::Trimmed) => Ok(true),
            Err(Failure::Store(error)) => Err(error),
        }
    }

    /// Has writers stopped, or asks whether they are. `Ok(false)`: not for long enough, or not any more.
    pub async fn freeze(
        &self,
        spec: &Spec,
        from: Side,
        holder: Holder,
        patience: Duration,
    ) -> Result<bool, Why> {
        let freeze = self.freeze.as_ref().ok_or(HOOKLESS)?;
        let order = (Action::Freeze, from, holder);
        if !self.known.lock().orders.stands(&asked(order)) {
            self.tell(freeze, spec, order, patience).await?;
        }
        let (refused, why) = match &self.probing {
            None => (true, String::new()),
            Some(cells) => match cells.of(from).probe(&spec.tenant).await {
                Ok(probed) => (probed.let_through == 0, "writes are still let through".to_owned()),
                Err(error) => (false, format!("the probe of the freeze failed: {}", error.told())),
            },
        };
        let mut known = self.known.lock();
        if !refused {
            if known.holds_since.take().is_some() {
                known.orders.broke();
            }
            return Err(why);
        }
        let since = *known.holds_since.get_or_insert_with(Instant::now);
        Ok(since.elapsed() >= freeze.settle)
    }

    /// Lets writers go on where the tenant lives.
    pub async fn thaw(&self, spec: &Spec, live: Side, holder: Holder) -> Result<(), Why> {
        let freeze = self.freeze.as_ref().ok_or(HOOKLESS)?;
        self.tell(freeze, spec, (Action::Thaw, live, holder), Duration::MAX).await?;
        let Some(cells) = &self.probing else { return Ok(()) };
        match cells.of(live).probe(&spec.tenant).await {
            Ok(probed) if probed.refused == 0 => Ok(()),
            Ok(_) => Err("writes are still refused after the freeze was lifted".to_owned()),
            Err(error) => Err(format!("the probe of the freeze failed: {}", error.told())),
        }
    }

    /// Gives the hook an order, until it has it.
    async fn tell(
        &self,
        freeze: &Freeze,
        spec: &Spec,
        order: (Action, Side, Holder),
        patience: Duration,
    ) -> Result<(), Why> {
        let number = {
            let mut known = self.known.lock();
            known.holds_since = None;
            known.orders.give(&asked(order))
        };
        let (action, side, holder) = order;
        let order = Order {
            action,
            migration: holder.migration.into(),
            number: holder.worker,
            order: number,
            tenant: &spec.tenant,
            cell: match side {
                Side::Source => &spec.source,
                Side::Target => &spec.target,
            },
            source: &spec.source,
            target: &spec.target,
        };
        freeze.tell(&order, patience).await?;
        self.known.lock().orders.answered();
        Ok(())
    }
}

/// What the machine asked for to come to this order.
fn asked((action, side, holder): (Action, Side, Holder)) -> Asked {
    match action {
        Action::Freeze => Asked::Freeze { from: side, holder },
        Action::Thaw => Asked::Thaw { live: side, holder },
    }
}

/// Of what is read, or written where it says nothing, it does not matter whether it was done.
fn harmless(error: StoreError) -> StoreError {
    match error.ambiguous() {
        true => StoreError::Unreachable,
        false => error,
    }
}
