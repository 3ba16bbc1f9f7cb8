//! Many moves as one durable thing: what is asked, how far each tenant is, and what is to be done next.
//!
//! ```text
//!                    Start                        observed
//!   WAITING ───────────────────────► RUNNING ────────────────► DONE
//!      │                              │   │ ▲
//!      │ cancelled     cancelled,     │   │ │ Start of the next attempt, when nobody waits any more
//!      ▼               taken back     ▼   ▼ │
//!   SKIPPED ◄──────────────────────── ·  FAILED
//! ```
//!
//! **How it is driven.** One worker at a time loads the bulk, looks at the migrations of its running tenants, asks [`Bulk::next`], applies
//! each step, stores what [`Bulk::take_changes`] answers, and only then acts: the intent is stored first. A migration's id is made of the
//! bulk's, the tenant and the attempt by a function of the caller, so a `Start` that is repeated after a crash names the same
//! migration, and starting one that exists has to be no error. Nothing else is remembered between two calls of `next`.
//!
//! A worker that was taken over from can still act on what it stored. To exclude that, let a start be conditional on the revision with which the
//! tenant's chunk was just stored. Without it a migration may start after its tenant was noted as skipped, since the bulk was
//! cancelled: it runs to its end as any other, only the bulk does not tell of it.
//!
//! **How it is stored.** A [`Header`] and [`Chunk`]s of [`ITEMS_PER_CHUNK`] tenants, each as JSON far below the 400 KB of a DynamoDB item
//! whatever the keys and reasons are. Operators (pause, resume, cancel) change the header alone. A worker changes chunks, and the header at
//! the end only. Each has a revision, which is the condition on which the next one is written. Chunks need not be written together.

mod next;
mod stored;
mod summary;

use std::collections::{BTreeSet, HashSet};
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::Move;
pub use next::{MAX_STEPS, Observed, Start, Step};
pub use stored::{Changes, Chunk, ITEMS_PER_CHUNK, LoadError};
pub use summary::{Count, Summary};

/// Tenants of one bulk.
pub const MAX_ITEMS: usize = 1_000_000;
/// Of a tenant's key in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1_024;
/// Of the bulk's, a cell's and a migration's id.
pub const MAX_ID_BYTES: usize = 64;
/// Of a reason; what is longer is cut.
pub const MAX_REASON_BYTES: usize = 256;
/// Migrations of a bulk that write at once.
pub const MAX_RUNNING: u32 = 1_000;
/// Migrations of a bulk that have not ended, those that only wait for the end of their soak included.
pub const MAX_OPEN: u32 = 100_000;
/// How often a tenant is tried.
pub const MAX_ATTEMPTS: u32 = 10;

/// Why a bulk cannot be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BulkError {
    #[error("{field} must be 1 to {most} of [a-zA-Z0-9_-]; got {got:?}")]
    Id { field: &'static str, most: usize, got: String },
    #[error(
        "the key of tenant {0} must have 1 to 1,024 bytes and no control characters; send it as it is placed"
    )]
    Key(usize),
    #[error("tenant {0:?} is there twice; send every tenant once")]
    TenantTwice(String),
    #[error("tenant {0:?} has the same source and target; leave it out")]
    NoMove(String),
    #[error("cell {0:?} is a source and a target; make two bulks")]
    BothWays(String),
    #[error("purpose: low must be at least 0 and below high; got {low:?} to {high:?}")]
    Band { low: String, high: String },
    #[error("{0} moves are more than the 1,000,000 of a bulk; make several bulks")]
    TooMany(usize),
    #[error("limits.{field} is {got}; at most {most} is allowed")]
    Limit { field: &'static str, got: u32, most: u32 },
    #[error("the bulk has ended; make a new one for what is left")]
    Ended,
    #[error("the bulk is cancelled; make a new one for what is left")]
    Cancelled,
    #[error("the bulk has no tenant {0}; load it again")]
    NoItem(usize),
    #[error("tenant {item} is {is}, and does not become {becomes}; load the bulk again")]
    Illegal { item: usize, is: &'static str, becomes: &'static str },
}

/// What the bulk is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Purpose {
    Drain { cell: String },
    Rebalance { low: f64, high: f64 },
}

/// How much is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Migrations that write, all cells together; [`MAX_RUNNING`] at most.
    pub running: NonZeroU32,
    /// Of those, out of one cell.
    pub per_source: NonZeroU32,
    /// Of those, into one cell.
    pub per_target: NonZeroU32,
    /// Migrations that have not ended, those that soak included; [`MAX_OPEN`] at most.
    pub open: NonZeroU32,
    /// Write capacity units a second that the running migrations of the bulk together may use of one cell; `None`: no limit. What is
    /// cleaned up after a soak comes when it comes, so it may be above that, though each migration keeps to its part.
    pub units_per_cell: Option<NonZeroU32>,
    /// How often a tenant is tried; [`MAX_ATTEMPTS`] at most.
    pub attempts: NonZeroU32,
}

impl Default for Limits {
    fn default() -> Self {
        let of = |value| NonZeroU32::new(value).unwrap_or(NonZeroU32::MIN);
        Self {
            running: of(8),
            per_source: of(4),
            per_target: of(4),
            open: of(1_000),
            units_per_cell: None,
            attempts: of(3),
        }
    }
}

impl Limits {
    fn check(&self) -> Result<(), BulkError> {
        let all = [
            ("running", self.running, MAX_RUNNING),
            ("open", self.open, MAX_OPEN),
            ("attempts", self.attempts, MAX_ATTEMPTS),
        ];
        match all.into_iter().find(|(_, got, most)| got.get() > *most) {
            Some((field, got, most)) => Err(BulkError::Limit { field, got: got.get(), most }),
            None => Ok(()),
        }
    }

    /// Out of and into one cell: no more than there are units for, since each migration needs one a second.
    fn per_cell(&self) -> (u32, u32) {
        let units = self.units_per_cell.map_or(u32::MAX, NonZeroU32::get);
        (self.per_source.get().min(units), self.per_target.get().min(units))
    }

    /// Write capacity units a second of one migration: an equal part of the cell's, whether others run or not.
    fn units_each(&self) -> Option<NonZeroU32> {
        let units = self.units_per_cell?;
        let (out, into) = self.per_cell();
        Some(NonZeroU32::new(units.get() / out.max(into).max(1)).unwrap_or(NonZeroU32::MIN))
    }
}

/// What becomes of the migrations under way when the bulk is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Cancel {
    /// They go on to their ends.
    LetRun,
    /// They are cancelled, too, as long as they are not committed.
    Running,
}

/// How a bulk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum End {
    /// Every tenant was tried. Whether all of them moved, the summary tells.
    Finished,
    Cancelled,
}

/// What is kept of a bulk beside its tenants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub id: String,
    pub purpose: Purpose,
    pub limits: Limits,
    #[serde(default)]
    pub paused: bool,
    #[serde(default)]
    pub cancelled: Option<Cancel>,
    #[serde(default)]
    pub ended: Option<End>,
    /// Tenants of all chunks.
    pub items: u64,
    /// Rises by one with each stored change; 0: not stored yet.
    pub revision: u64,
}

/// How far a tenant is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    Waiting,
    /// Its migration is to run. Whether it was started already, is observed.
    Running {
        migration: String,
    },
    Done,
    Failed {
        reason: String,
        /// It is tried again if attempts are left.
        retry: bool,
    },
    Skipped {
        reason: String,
    },
}

impl State {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "WAITING",
            Self::Running { .. } => "RUNNING",
            Self::Done => "DONE",
            Self::Failed { .. } => "FAILED",
            Self::Skipped { .. } => "SKIPPED",
        }
    }

    /// With a reason that is short enough to be stored, and in one line.
    fn bounded(self) -> Self {
        match self {
            Self::Failed { reason, retry } => Self::Failed { reason: short(&reason), retry },
            Self::Skipped { reason } => Self::Skipped { reason: short(&reason) },
            other => other,
        }
    }
}

fn short(reason: &str) -> String {
    let mut short = String::new();
    for character in reason.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if short.len() + character.len_utf8() > MAX_REASON_BYTES {
            break;
        }
        short.push(character);
    }
    short
}

/// One tenant of a bulk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    pub tenant: String,
    pub source: String,
    pub target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Migrations that were begun for it.
    #[serde(default)]
    pub attempts: u32,
    pub state: State,
}

/// A bulk in memory, all of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bulk {
    header: Header,
    items: Vec<Item>,
    /// Of each chunk, as last stored.
    revisions: Vec<u64>,
    header_changed: bool,
    chunks_changed: BTreeSet<usize>,
}

impl Bulk {
    /// A bulk of these moves, in their order; all of it is yet to be stored.
    ///
    /// # Errors
    /// Where an argument is not as it has to be.
    pub fn new(
        id: &str,
        purpose: Purpose,
        moves: Vec<Move>,
        limits: Limits,
    ) -> Result<Self, BulkError> {
        check_id("id", id)?;
        limits.check()?;
        check_moves(&moves)?;
        check_purpose(&purpose)?;
        let item = |one: Move| Item {
            tenant: one.tenant,
            source: one.source,
            target: one.target,
            bytes: one.bytes,
            attempts: 0,
            state: State::Waiting,
        };
        let items: Vec<Item> = moves.into_iter().map(item).collect();
        let chunks = items.len().div_ceil(ITEMS_PER_CHUNK);
        let header = Header {
            id: id.to_owned(),
            purpose,
            limits,
            paused: false,
            cancelled: None,
            ended: None,
            items: items.len() as u64,
            revision: 0,
        };
        Ok(Self {
            header,
            items,
            revisions: vec![0; chunks],
            header_changed: true,
            chunks_changed: (0..chunks).collect(),
        })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// All tenants in the order of the plan.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// No migration is started until it is resumed; those under way go on.
    ///
    /// # Errors
    /// Where it was cancelled or has ended.
    pub fn pause(&mut self) -> Result<(), BulkError> {
        self.set_paused(true)
    }

    /// # Errors
    /// Where it was cancelled or has ended.
    pub fn resume(&mut self) -> Result<(), BulkError> {
        self.set_paused(false)
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), BulkError> {
        self.not_ended()?;
        if self.header.cancelled.is_some() {
            return Err(BulkError::Cancelled);
        }
        self.header_changed |= self.header.paused != paused;
        self.header.paused = paused;
        Ok(())
    }

    /// No migration is started any more. To cancel those under way can be asked for later, too; it is not taken back.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn cancel(&mut self, how: Cancel) -> Result<(), BulkError> {
        self.not_ended()?;
        if self.header.cancelled != Some(Cancel::Running) {
            self.header_changed |= self.header.cancelled != Some(how);
            self.header.cancelled = Some(how);
        }
        Ok(())
    }

    fn not_ended(&self) -> Result<(), BulkError> {
        if self.header.ended.is_some() { Err(BulkError::Ended) } else { Ok(()) }
    }

    /// Writes a step down, before it is acted upon. A step that was applied already changes nothing.
    ///
    /// # Errors
    /// Where the step does not fit: it was made from another version of the bulk.
    pub fn apply(&mut self, step: &Step) -> Result<(), BulkError> {
        match step {
            Step::Start(start) => {
                check_id("migration", &start.migration)?;
                let state = State::Running { migration: start.migration.clone() };
                self.set(start.item, state, Some(start.attempt))
            }
            Step::Note { item, state } => self.set(*item, state.clone(), None),
            Step::Cancel { .. } => Ok(()),
            Step::Finish(end) => {
                self.header_changed |= self.header.ended != Some(*end);
                self.header.ended = Some(*end);
                Ok(())
            }
        }
    }

    /// What became of a tenant that could not be started, such as one that was deleted since.
    ///
    /// # Errors
    /// Where the tenant is not running.
    pub fn refused(&mut self, item: usize, reason: &str, retry: bool) -> Result<(), BulkError> {
        self.set(item, State::Failed { reason: reason.to_owned(), retry }, None)
    }

    fn set(&mut self, at: usize, state: State, attempt: Option<u32>) -> Result<(), BulkError> {
        let item = self.items.get_mut(at).ok_or(BulkError::NoItem(at))?;
        let (state, attempts) = (state.bounded(), attempt.unwrap_or(item.attempts));
        if item.state == state && item.attempts == attempts {
            return Ok(());
        }
        if !follows(item, &state, attempts) {
            let (is, becomes) = (item.state.as_str(), state.as_str());
            return Err(BulkError::Illegal { item: at, is, becomes });
        }
        (item.state, item.attempts) = (state, attempts);
        self.chunks_changed.insert(at / ITEMS_PER_CHUNK);
        Ok(())
    }
}

/// Whether a tenant's next state may be this one. DONE and SKIPPED are final. A tenant that failed and is not tried again may turn out to
/// run on, since somebody retried its migration.
fn follows(item: &Item, next: &State, attempts: u32) -> bool {
    use State::*;
    let another = attempts == item.attempts + 1;
    match (&item.state, next) {
        (Waiting | Failed { retry: true, .. }, Running { .. }) => another,
        (Failed { retry: false, .. }, Running { .. } | Done | Skipped { .. }) => {
            !another && item.attempts > 0
        }
        (Waiting, Skipped { .. }) => !another,
        (Running { .. }, Done | Failed { .. } | Skipped { .. }) => !another,
        _ => false,
    }
}

fn check_id(field: &'static str, id: &str) -> Result<(), BulkError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(plain) {
        return Ok(());
    }
    let got = id.chars().take(MAX_ID_BYTES).collect();
    Err(BulkError::Id { field, most: MAX_ID_BYTES, got })
}

fn check_purpose(purpose: &Purpose) -> Result<(), BulkError> {
    match purpose {
        Purpose::Drain { cell } => check_id("cell", cell),
        // JSON has no infinity.
        Purpose::Rebalance { low, high } if *low >= 0.0 && low < high && high.is_finite() => Ok(()),
        Purpose::Rebalance { low, high } => {
            Err(BulkError::Band { low: low.to_string(), high: high.to_string() })
        }
    }
}

fn check_moves(moves: &[Move]) -> Result<(), BulkError> {
    if moves.len() > MAX_ITEMS {
        return Err(BulkError::TooMany(moves.len()));
    }
    let mut seen = HashSet::with_capacity(moves.len());
    let sources: HashSet<&str> = moves.iter().map(|one| one.source.as_str()).collect();
    for (at, one) in moves.iter().enumerate() {
        let fits = (1..=MAX_KEY_BYTES).contains(&one.tenant.len());
        if !fits || one.tenant.chars().any(char::is_control) {
            return Err(BulkError::Key(at));
        }
        check_id("source", &one.source)?;
        check_id("target", &one.target)?;
        if one.source == one.target {
            return Err(BulkError::NoMove(one.tenant.clone()));
        }
        if sources.contains(one.target.as_str()) {
            return Err(BulkError::BothWays(one.target.clone()));
        }
        if !seen.insert(one.tenant.as_str()) {
            return Err(BulkError::TenantTwice(one.tenant.clone()));
        }
    }
    Ok(())
}
