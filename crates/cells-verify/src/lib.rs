//! Whether a tenant's items are the same in two cells, while both are being written.
//!
//! It exists because a copier that judges its own work repeats its own mistakes. So nothing here is shared with what copies, drains or
//! restores: order, canonical form, digest, expiry and paging are written anew, and read both cells through a trait of their own.
//!
//! ```text
//!                 asks for pages                      suspects
//!  Verifier ──► Comparison (pure) ◄── pages of both ──────────► the owner drains its log, then
//!      │            merges in the order of sort keys            Verifier::recheck ──► what differs still ──► repair, Findings
//!      └── Cursor: survives the process
//! ```
//!
//! What holds:
//! - **Nothing that differs is missed** among items that no one writes from the beginning of the run to its end: each side is read
//!   consistently, each of its keys passes once, and keys meet in order.
//! - **A suspect is no finding.** Both cells are read at slightly different moments, and a write may not have been applied at the target
//!   yet. What still differs after the owner's log was drained is one.
//! - An item whose expiry has passed counts as absent, at both sides ([`expiry`]).
//! - `CellId` has to name the cell that the item is in: at the target exactly; what it says at the source is not compared, for a copy
//!   cannot repeat it ([`canon`]).
//! - No tenant's partition but this one's is ever read, whatever keys are handed in.
//! - Memory is bounded by one page of each side, of which hashes and keys alone are kept. A step reads at most one page of each side, so
//!   where pages of both do not end at the same key a rest is read again by the next step.
//! - No clock: `now` comes in as an argument, in seconds since 1970.

#![forbid(unsafe_code)]

pub mod canon;
pub mod census;
pub mod comparison;
pub mod cursor;
pub mod digest;
pub mod expiry;
pub mod findings;
pub mod key;
mod lane;
pub mod number;
pub mod plan;
pub mod reader;
pub mod verifier;

pub use census::Census;
pub use comparison::{Comparison, Suspect};
pub use cursor::{BadCursor, Cursor, Place};
pub use digest::{Digest, Tally};
pub use findings::{Findings, MAX_EXAMPLES, Mismatch, MismatchKind};
pub use lane::{BadAnswer, View};
pub use plan::Incompatible;
pub use reader::{CellSide, Page, Reader};
pub use verifier::{Compared, Differing, Rechecked, Verifier, VerifyError};

/// An item, or its key.
pub type Item = cells_guard::Item;

/// One of the two cells. What the target should be is what the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Source,
    Target,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}
