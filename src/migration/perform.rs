//! Does what the machine asks, one action at a time, and says what came of it. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use cells_migration::{
    Action, Cursor, Event, GuardCheck, Marker, Phase, Record, Side, Transaction, Wish,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::Span;

use super::copier::Copier;
use super::driver::Shared;
use super::error::Obstacle;
use super::model::{Progress, Spec, Writers};
use super::outsiders::{Followed, Outsiders};
use super::pulse::Pulse;
use super::records::Order;
use super::steps::{self, Cells};
use super::verify::Comparison;
use super::{preflight, stream, trace};
use crate::directory::{Error, Refused};
use crate::domain::Placement;
use crate::store::StoreError;

/// What performs the actions of one migration.
pub struct Performer {
    pub shared: Arc<Shared>,
    pub spec: Spec,
    pub cells: Cells,
    /// Where there are writers that do not cooperate.
    pub outsiders: Option<Outsiders>,
    pub pulse: Arc<Pulse>,
    /// When more capacity may be consumed.
    pub ready_at: Instant,
    /// Of the present phase.
    pub span: Span,
}

/// What came of an action.
pub enum Outcome {
    Event(Event),
    /// It was not done. To be tried again.
    Failed(StoreError),
    /// The same, for a reason outside of the store, as operators are told. Never given up.
    Held(String),
}

impl Performer {
    /// `record`: the migration's, as its worker knows it.
    pub async fn perform(&mut self, action: Action, record: &Record) -> Outcome {
        if let Some(outsiders) = &self.outsiders {
            outsiders.under(record);
        }
        match action {
            Action::Read => self.read_again().await,
            Action::Transact(transaction) => self.transact(*transaction).await,
            Action::Copy { from, fence, cursor } => {
                let _turn = self.turn().await;
                match self.copier().copy(from, &fence, &cursor).await {
                    Ok(None) => Outcome::Event(Event::Refused),
                    Ok(Some(done)) => {
                        trace::event(&self.span, "copied", done.items);
                        self.tell_progress(|progress| {
                            progress.items_copied += done.items;
                            progress.bytes_copied += done.bytes;
                            progress.write_units += done.units.ceil() as u64;
                        });
                        self.consumed(done.units);
                        Outcome::Event(Event::Copied { next: done.next })
                    }
                    Err(error) => failed(error),
                }
            }
            Action::Drain { from, fence } => self.drain(from, &fence, record).await,
            Action::Compare { from, fence, cursor } => {
                self.compare(from, &fence, &cursor, record).await
            }
            Action::Purge { from, fence, cursor } => {
                let _turn = self.turn().await;
                match self.copier().purge(from, &fence, &cursor).await {
                    Ok(None) => Outcome::Event(Event::Refused),
                    Ok(Some(done)) => {
                        trace::event(&self.span, "purged", done.items);
                        self.tell_progress(|progress| progress.items_purged += done.items);
                        self.consumed(done.units);
                        Outcome::Event(Event::Purged { next: done.next })
                    }
                    Err(error) => failed(error),
                }
            }
            Action::DropLog { from } => match self.copier().drop_log(from).await {
                Ok(found) => Outcome::Event(Event::Drained { found }),
                Err(error) => failed(error),
            },
            Action::Listen { .. }
            | Action::Follow { .. }
            | Action::Mark { .. }
            | Action::Freeze { .. }
            | Action::Thaw { .. } => match &self.outsiders {
                Some(outsiders) => self.meet(outsiders, action, record).await,
                // Asked for where there are such writers alone.
                None => Outcome::Failed(StoreError::Rejected {
                    detail: "the migration follows no streams".to_owned(),
                }),
            },
        }
    }

    /// What concerns writers that do not cooperate.
    async fn meet(&self, outsiders: &Outsiders, action: Action, record: &Record) -> Outcome {
        match action {
            Action::Listen { from } => match outsiders.listen(from, self.seconds()).await {
                Ok(position) => Outcome::Event(Event::Listening { position }),
                Err(error) => Outcome::Failed(error),
            },
            Action::Follow { from, fence, position, past } => {
                self.follow(outsiders, (from, &fence), &position, past, record).await
            }
            Action::Mark { from, marker } => match outsiders.mark(from, marker).await {
                Ok(()) => Outcome::Event(Event::Marked),
                Err(error) => Outcome::Failed(error),
            },
            Action::Freeze { from, holder } => {
                let patience = match record.phase {
                    // Other writers wait.
                    Phase::Fenced => self.spec.pause_budget,
                    _ => Duration::MAX,
                };
                let frozen = outsiders.freeze(&self.spec, from, holder, patience).await;
                Outcome::Event(Event::Frozen {
                    holds: frozen.unwrap_or_else(|why| {
                        self.pulse.tale().trouble = Some(why);
                        false
                    }),
                })
            }
            Action::Thaw { live, holder } => match outsiders.thaw(&self.spec, live, holder).await {
                Ok(()) => Outcome::Event(Event::Thawed),
                Err(why) => Outcome::Held(why),
            },
            _ => Outcome::Failed(StoreError::Rejected { detail: "not asked for".to_owned() }),
        }
    }

    async fn follow(
        &self,
        outsiders: &Outsiders,
        (from, fence): (Side, &GuardCheck),
        position: &Cursor,
        past: Option<Marker>,
        record: &Record,
    ) -> Outcome {
        let now = self.seconds();
        let followed = outsiders.follow(&self.copier(), (from, fence), position, past, now).await;
        let followed = match followed {
            Ok(Some(followed)) => followed,
            Ok(None) => return Outcome::Event(Event::Refused),
            Err(stream::Failure::Trimmed) => {
                let why = "something is missing in a table's stream; it is copied again";
                self.pulse.tale().trouble = Some(why.to_owned());
                return Outcome::Event(Event::Trimmed);
            }
            Err(stream::Failure::Store(error)) => return failed(error),
        };
        self.tell_progress(|progress| progress.stream_applied += followed.applied);
        if followed.applied > 0 {
            trace::event(&self.span, "followed", followed.applied);
        }
        // As with the log: under the fence, and with all writers stopped, nothing changes any more.
        let still = record.phase == Phase::Fenced && self.spec.writers == Writers::Frozen;
        if still && !followed.touched.is_empty() {
            match self.comparison(from, fence, record).recheck(&followed.touched).await {
                Ok(true) => {}
                Ok(false) => return Outcome::Event(Event::Refused),
                Err(error) => return failed(error),
            }
        }
        let Followed { found, next, past, .. } = followed;
        Outcome::Event(Event::Followed { found, next, past })
    }

    fn seconds(&self) -> i64 {
        self.shared.directory.now().seconds()
    }

    pub async fn read(&self) -> Outcome {
        match self.shared.records.migration(self.pulse.id).await {
            Ok(Some(migration)) => Outcome::Event(Event::Read(migration.record)),
            Ok(None) => gone(),
            Err(error) => Outcome::Failed(error),
        }
    }

    /// After a doubt: what was found counts only as far as the record's cursor.
    async fn read_again(&self) -> Outcome {
        match self.shared.records.migration(self.pulse.id).await {
            Ok(Some(migration)) => {
                self.pulse.tale().findings = migration.findings;
                Outcome::Event(Event::Read(migration.record))
            }
            Ok(None) => gone(),
            Err(error) => Outcome::Failed(error),
        }
    }

    async fn transact(&self, transaction: Transaction) -> Outcome {
        if (transaction.check.phase, transaction.record.phase) == (Phase::Planned, Phase::Logging) {
            match self.why_not().await {
                Ok(None) => {}
                Ok(Some(why)) => return self.give_up(why).await,
                Err(error) => return Outcome::Failed(error),
            }
        }
        if transaction.record.phase.ended() {
            // Whoever sees the end is to see how it came to it, and after it no other worker would tell that in this one's stead.
            self.pulse.tell(&self.shared).await;
        }
        let done = match transaction.placement {
            None => {
                let findings = self.pulse.tale().findings.clone();
                let writes =
                    steps::writes(&self.spec, &self.cells, &transaction, findings.as_ref());
                let now = self.shared.directory.now();
                self.shared.records.write(&writes, now).await
            }
            Some(_) => self.step(&transaction).await,
        };
        match done {
            Ok(true) => Outcome::Event(Event::Done(transaction.record)),
            Ok(false) => Outcome::Event(Event::Refused),
            Err(error) => failed(error),
        }
    }

    /// Why it cannot be after all, if so: looked at once more before anything is changed, with all items read.
    async fn why_not(&self) -> Result<Option<String>, StoreError> {
        let placement = match self.shared.directory.placement(&self.spec.tenant).await {
            Ok(placement) if placement.cell == self.spec.source => placement,
            // A migration that has only been planned keeps nobody from deleting the tenant.
            Ok(_) | Err(Error::Refused(_)) => {
                return Ok(Some(format!("the tenant is not in {} any more", self.spec.source)));
            }
            Err(error) => return Err(as_store_error(error)),
        };
        let why = self.obstacles(&placement).await?;
        let why: Vec<_> = why.iter().map(ToString::to_string).collect();
        Ok((!why.is_empty()).then(|| why.join("; ")))
    }

    async fn obstacles(&self, placement: &Placement) -> Result<Vec<Obstacle>, StoreError> {
        let registry = self.shared.directory.registry().await.map_err(as_store_error)?;
        let mut obstacles = preflight::still(&registry, &self.cells);
        if !obstacles.is_empty() {
            return Ok(obstacles);
        }
        obstacles.extend(preflight::look(&self.cells, placement).await?);
        if self.outsiders.is_some() {
            obstacles.extend(preflight::streams(&self.cells).await?);
        }
        let measured = preflight::measure(&self.cells, &self.spec.tenant).await?;
        if measured.too_large > 0 {
            let (cell, items) = (self.spec.target.clone(), measured.too_large);
            obstacles.push(Obstacle::ItemsTooLarge { cell, items });
        }
        self.tell_progress(|progress| {
            (progress.items_estimated, progress.bytes_estimated) = (measured.items, measured.bytes);
        });
        Ok(obstacles)
    }

    /// Ends a migration that cannot be, with nothing changed, and says why.
    async fn give_up(&self, why: String) -> Outcome {
        self.pulse.tale().trouble = Some(why);
        let cancel = Order::Wish(Wish::Cancel);
        match self.shared.records.order(self.pulse.id, cancel, self.shared.directory.now()).await {
            Ok(_) => self.read().await,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// A transaction that changes the placement, and so goes through the journal.
    async fn step(&self, transaction: &Transaction) -> Result<bool, StoreError> {
        let present = match self.shared.directory.placement(&self.spec.tenant).await {
            Ok(present) => present,
            Err(Error::Refused(_)) => return Ok(false),
            Err(error) => return Err(as_store_error(error)),
        };
        let findings = self.pulse.tale().findings.clone();
        let step = steps::step(&self.spec, &self.cells, transaction, findings.as_ref(), present);
        let Some(step) = step else {
            return Ok(false);
        };
        match self.shared.directory.step(step).await {
            Ok(_) => Ok(true),
            Err(Error::Refused(Refused::Superseded)) => Ok(false),
            Err(Error::Refused(refused)) => {
                Err(StoreError::Rejected { detail: refused.to_string() })
            }
            Err(error) => Err(as_store_error(error)),
        }
    }

    async fn drain(&mut self, from: Side, fence: &GuardCheck, record: &Record) -> Outcome {
        match self.drained(from, fence, record).await {
            Ok(Some(found)) => Outcome::Event(Event::Drained { found }),
            Ok(None) => Outcome::Event(Event::Refused),
            Err(error) => failed(error),
        }
    }

    /// How many records there were. `None`: the guard does not let it.
    async fn drained(
        &mut self,
        from: Side,
        fence: &GuardCheck,
        record: &Record,
    ) -> Result<Option<u64>, StoreError> {
        let log = self.copier().log(from).await?;
        let Some(units) = self.copier().carry(from, fence, &log.touched).await? else {
            return Ok(None);
        };
        self.consumed(units);
        // What was written last has to be the same now, and is in the log until that was seen: the log is not dry before.
        let still = record.phase == Phase::Fenced && !log.touched.is_empty();
        if still && !self.comparison(from, fence, record).recheck(&log.touched).await? {
            return Ok(None);
        }
        let records = log.records();
        self.copier().remove(from, log).await?;
        self.tell_progress(|progress| {
            progress.log_applied += records;
            progress.log_backlog = Some(records);
        });
        if records > 0 {
            trace::event(&self.span, "applied", records);
        }
        Ok(Some(records))
    }

    fn comparison<'a>(
        &'a self,
        from: Side,
        fence: &'a GuardCheck,
        record: &'a Record,
    ) -> Comparison<'a> {
        let (pulse, directory, span) = (&*self.pulse, &self.shared.directory, &self.span);
        let outsiders = self.outsiders.as_ref().zip(record.stream.as_ref());
        let (copier, still) = (self.copier(), record.phase == Phase::Fenced);
        Comparison { copier, from, fence, still, outsiders, pulse, directory, span }
    }

    fn copier(&self) -> Copier<'_> {
        let migration = self.pulse.id.into();
        let page_items = self.shared.settings.page_items;
        Copier { spec: &self.spec, cells: &self.cells, migration, page_items }
    }

    /// Whether an action has to wait until [`Self::ready_at`], for what was consumed already. The log is drained at once: it grows as
    /// long as it is not.
    pub fn waits(&self, action: &Action) -> bool {
        let limited = matches!(action, Action::Copy { .. } | Action::Purge { .. });
        limited && Instant::now() < self.ready_at
    }

    /// The right to one page, in the order in which migrations asked.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.shared.pages).acquire_owned().await.ok()
    }

    fn consumed(&mut self, units: f64) {
        if let Some(limit) = self.spec.rate_limit {
            let owed = Duration::from_secs_f64(units / f64::from(limit.get()));
            self.ready_at = self.ready_at.max(Instant::now()) + owed;
        }
    }

    fn tell_progress(&self, tell: impl FnOnce(&mut Progress)) {
        tell(&mut self.pulse.tale().progress);
    }

    async fn compare(
        &self,
        from: Side,
        fence: &GuardCheck,
        cursor: &Cursor,
        record: &Record,
    ) -> Outcome {
        match self.comparison(from, fence, record).page(cursor).await {
            Ok(Some(next)) => Outcome::Event(Event::Compared { next }),
            Ok(None) => Outcome::Event(Event::Refused),
            Err(error) => failed(error),
        }
    }
}

fn gone() -> Outcome {
    Outcome::Failed(StoreError::Rejected { detail: "the migration's record is gone".to_owned() })
}

/// What a failure comes to: one that may have had an effect is for the machine to know.
fn failed(error: StoreError) -> Outcome {
    match error.ambiguous() {
        true => Outcome::Event(Event::Unknown),
        false => Outcome::Failed(error),
    }
}

fn as_store_error(error: Error) -> StoreError {
    match error {
        Error::Store(error) => error,
        Error::OutcomeUnknown => StoreError::Failed,
        Error::Overloaded | Error::NotReady => StoreError::Throttled,
        Error::Refused(refused) => StoreError::Rejected { detail: refused.to_string() },
    }
}
