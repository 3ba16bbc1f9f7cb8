//! The protocol by which a tenant moves between two cells while its applications keep writing. Pure: it calls nothing and knows no
//! clock, so that the same code that runs in production is what the model checker explores (`tests/model`).
//!
//! ```text
//!            next(now)                      perform
//!  Machine ────────────► Action ──────────────────────► store
//!     ▲                  a Transaction: checks and      │
//!     │                  effects, all or nothing;       │
//!     └───────────────── or a page of items  ◄──────────┘
//!            on(Event, now)
//! ```
//! [`Machine`] decides, a driver without decisions performs, and everything that must hold of the store is a check of the same
//! transaction as what depends on it. Every action may be repeated: after an answer that did not come the machine reads the record
//! and goes on from there, as does another worker that takes over.
//!
//! Why nothing that was acknowledged is lost:
//! - A direct write is acknowledged inside its lease alone, and the copy begins after all leases: so it is copied.
//! - Every later acknowledged write leaves a log record in its own transaction, and is applied at the other cell from what is read
//!   there *after* the record was seen; the record goes last.
//! - A log is one migration's own, and a writer's check names the migration: so none drops or misses records of another.
//! - The copy ends before the first record is drained, so an old page never overwrites a newer value.
//! - A fenced guard lets no write pass, the rest of the log is drained under the fence, and both guards and the placement change in
//!   one transaction.
//! - What a worker saw under its number, and under one fence, counts there alone: it looks again under the next.
//! - Writers that do not cooperate are stopped before the fence, and all that their stream says up to a marker from after that is applied.
//!   Without that ([`Writers::BestEffort`]), what they write around the commit is lost.
//! - Writes at the cell that is not live carry a check of its guard, which names the worker: those of a worker that was taken over
//!   from are refused by the storage.

#![forbid(unsafe_code)]

mod action;
mod guard;
mod machine;
mod orders;
mod record;
mod transaction;

pub use action::{
    Action, Cursor, Event, LONGEST_BACKOFF, Marker, Millis, Next, Parked, Settings, Writers,
};
pub use guard::{Guard, GuardCheck, GuardState, Holder, Side, WriteMode};
pub use machine::Machine;
pub use orders::Orders;
pub use record::{Leg, MigrationId, Phase, Record, Wish};
pub use transaction::{
    GuardChange, GuardEffect, Placement, PlacementCheck, RecordCheck, Transaction,
};
