//! Many moves at once: which tenants go where when a cell is drained or cells are brought into a band of utilisation, and how such a
//! bulk is run to its end. Pure: no I/O, no clock, no chance; what is known of cells and tenants comes in as arguments.
//!
//! ```text
//!  CellView, TenantView ──► plan_drain ─────┐
//!                      └──► plan_rebalance ─┴─► Plan ──► Bulk ──► next(observed) ──► Step: Start, Note, Cancel, Finish
//!                                                         ▲                             │
//!                                                         └──── apply, then store ◄─────┘ then act
//! ```
//!
//! What holds:
//! - **A target is one that takes new tenants**: `ACTIVE`, with a weight, below its capacity with what was planned already; its tables
//!   are declared alike, one transaction reaches it, and labels and Regions of the tenant are honoured ([`Refusal`] has all reasons).
//! - **A rebalance takes no cell out of the band**, in whatever order its moves are made and whichever of them fail: a cell either gives
//!   or takes, never both.
//! - **A tenant is moved once**, and a rebalance leaves alone who was moved lately. Every move brings cells nearer to the band, so
//!   while loads stay as they are no sequence of plans comes back to where it was.
//! - **A tenant that is itself the hotspot stays** and is reported.
//! - **A bulk goes on after a crash** wherever it was: what is to be done follows from what is stored and what is observed alone.
//!
//! How good the plans are, and where that is known from, is said at [`plan_drain`] and [`plan_rebalance`]: both are heuristics for problems
//! that are NP-hard (multiprocessor scheduling, minimum knapsack).

#![forbid(unsafe_code)]

mod books;
pub mod bulk;
mod cover;
mod drain;
mod plan;
mod reach;
mod rebalance;
mod view;

pub use bulk::Bulk;
pub use drain::{DrainOptions, plan_drain};
pub use plan::{
    Forecast, Hotspot, HotspotCause, Left, LeftAlone, MAX_LISTED, MAX_REFUSALS, Move, Plan,
    PlanError, Refusal, Refused, SpreadBy, Standing, Stuck, Unplaced,
};
pub use rebalance::{
    Band, HOTSPOT_LEAST_SHARE, LastMove, RebalanceOptions, TOLERANCE, plan_rebalance,
};
pub use view::{ASSUMED_ITEM_BYTES, CellState, CellView, Residency, TenantView};
