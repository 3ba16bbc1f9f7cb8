//! The words of the Cell Directory as types: no I/O, no clock, no transport.
//!
//! A value of one of these types is valid by construction; requests and stored records are parsed into them once, at the
//! edge. Time and randomness come in as arguments.

mod cell;
mod cluster;
mod id;
mod journal;
mod load;
mod placement;
mod time;

pub use cell::{Capacity, Cell, CellState, Endpoint, Labels, Region, Weight};
pub use cluster::{Cluster, LeaseDuration};
pub use id::{
    CellId, Epoch, Invalid, JournalId, MigrationId, Nonce, PartitionKey, RequestId, Sequence,
    digest128,
};
pub use journal::{Change, JournalEntry};
pub use load::{CellLoad, LEAST_SHARE, LoadTerms, Loads, TableLoad};
pub use placement::{
    Constraints, HistoryRecord, Mapping, Placement, PlacementEvent, RequestRecord, StoredOutcome,
    WriteMode,
};
pub use time::Timestamp;
