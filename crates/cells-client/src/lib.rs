//! Answers in the caller's own process which cell a tenant lives in.
//!
//! A [`Directory`] keeps the routing table in memory, the whole of it or what was asked for of late, and follows its changes. So
//! [`Directory::resolve`] costs what a lookup in a hash map costs: no RPC, no allocation, no waiting. It goes on answering when the
//! directory's replicas, the network or its own connection are down, and every answer says how it was come by, how old it can be
//! and how long it may be used for direct writes.
//!
//! ```no_run
//! # async fn example() -> Result<(), cells_client::Error> {
//! use cells_client::{Directory, Question};
//!
//! let directory = Directory::builder(["http://127.0.0.1:7070", "http://127.0.0.1:7071"])
//!     .snapshot("/var/lib/my-app/cells.snapshot")
//!     .connect()
//!     .await?;
//!
//! // From memory. `None`: the tenant is not in memory.
//! if let Some(answer) = directory.resolve("customer-12345") {
//!     println!("{} at epoch {}, stale: {}", answer.endpoint(), answer.epoch(), answer.is_stale());
//!     if answer.may_write_directly() {
//!         // Plain writes, if their responses arrive within `answer.lease()`; guarded ones otherwise.
//!     }
//! }
//!
//! // From memory, or else from a replica. Places a tenant that has no cell.
//! let answer = directory.locate("customer-67890").await?;
//! println!("{}", answer.cell_id());
//!
//! // A guard's redirect named a higher epoch than ours: nothing below it will do.
//! let answer = directory.locate_with("customer-12345", &Question::new().min_epoch(answer.epoch() + 1)).await?;
//! println!("{}", answer.cell_id());
//!
//! directory.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **What is in memory is answered**, however old it is and whatever is down. [`Answer::is_stale`] and [`Answer::age`] tell.
//! - **An epoch never falls.** For one key, a directory never answers a lower epoch than before: not after a failover to a replica that
//!   lags, not after a new snapshot of the table. Exceptions: a restore of the tables from a backup; a process that was killed may have
//!   been told more than its snapshot file says, until it has caught up with the journal again.
//! - **A lease never outlives the truth.** It counts from the moment that this process *sent* its question, on a clock that goes on
//!   during suspension, shortened by the drift that clocks are allowed ([`Builder::clock_drift_ppm`]). A renewal counts only once every
//!   change up to its position is applied.
//! - **The rate at which replicas are asked is bounded**, whatever fails: pauses grow, with jitter, and a server's wish for quiet is
//!   kept.
//!
//! # Modes
//!
//! [`Mode::Whole`] holds every placement; a miss is a tenant without a cell, or one that was placed a moment ago. [`Mode::Bounded`]
//! holds at most so many of those that were asked for; the Watch keeps just these exact.
//!
//! # Features
//!
//! - `data`: `data::Data` reads and writes tenants' items in the cells where they live, and keeps the writers' contract: plainly under a
//!   lease, else with a check of the tenant's guard, and along with a tenant that moves.
//! - `tls`: `https://` endpoints.
//! - `fake`: `fake::FakeDirectory`, an in-process directory for tests of your own.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod builder;
mod cells;
mod clock;
#[cfg(feature = "data")]
pub mod data;
mod directory;
mod driver;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod fetch;
mod floors;
mod follower;
mod grpc;
mod held;
mod key;
mod memory;
mod options;
mod picture;
#[cfg(not(feature = "testing"))]
mod proto;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod proto;
mod rng;
mod snapshot;
mod transport;

pub use crate::answer::{Answer, Source};
pub use crate::builder::Builder;
pub use crate::cells::{Cell, CellState};
pub use crate::directory::{Directory, Status};
pub use crate::error::Error;
pub use crate::fetch::Question;
pub use crate::held::{PlacementState, WriteMode};
pub use crate::options::{FallbackCell, Hedge, MAX_CAPACITY, MAX_ENDPOINTS, Mode};

/// The seams of the crate, for simulations. No promise of stability.
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing {
    pub use crate::clock::{Clock, SystemClock};
    pub use crate::error::{Failure, FailureKind};
    pub use crate::grpc::failure;
    pub use crate::proto;
    pub use crate::transport::{BoxFuture, Transport, WatchStream};
}
