//! What cells' tables are used for: counted, published, and handed to the assignment of new tenants.
//!
//! ```text
//! every call ── Counting ──► Consumption ── Reporter ──► OTLP ───────────────┐ our own
//!                                              └──────► Outbox ──► CloudWatch ┘
//! CloudWatch, DescribeTable ── Measurer, in turns ─────► Outbox ──► CloudWatch   everybody's
//!                                  └──► CellControl ──► Measurer of every replica ──► Directory ──► policies
//! ```
//! Our own consumption is each replica's to tell, and has a dimension more than everybody's, of which it is a part: the two are never in
//! one metric, so nothing is counted twice.

pub mod consumption;
mod gather;
mod intercept;
mod measure;
mod outbox;
mod owners;
mod records;
mod report;

pub use consumption::{Consumption, Direction, Tally};
pub use gather::{ON_DEMAND_QUOTA, Size};
pub use intercept::Counting;
pub use measure::{Measurer, Sets, Sizes};
pub use outbox::{Board, Datum, NAMESPACE, Outbox, Unit};
pub use owners::Names;
pub use records::{LoadRecord, LoadRecords};
pub use report::Reporter;
