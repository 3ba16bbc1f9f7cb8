//! The contract of those who write a tenant's items (DESIGN: "Writers' contract"), kept in one place for all of them.
//!
//! ```text
//! lease left ──► direct ──┬─ answered inside the lease ──────────────► done, or its condition failed
//!                         ├─ answered after it ──► confirm ──┬───────► done
//!                         └─ not answered                    │
//!                               │  write that may be done twice? ◄───┘
//!                               ├─ no ─────────────────────────────► unknown
//!                               ▼ yes
//! no lease ─────────────► guarded ──┬─ done, or its condition failed
//!                         ▲  ▲      ├─ not answered: the same again, under the same token
//!                         │  └──────┤ guard is open otherwise: so again
//!                         │         ├─ fenced, incoming: wait, look again
//!                         └─────────┴─ moved: to the next cell
//! ```
//! - **Direct**: as the caller would write himself. It counts as done if the answer came inside the lease.
//! - **Guarded**: one transaction of a check of the tenant's guard and the writes; where writes are logged, of a log record, too.
//! - **Confirm**: a direct write that is known to be done, but was answered after the lease, is good if the guard, read after that, is
//!   open as it was: no move had begun. If a move has begun and the tenant is still here, a record in its log makes it good: what is
//!   there is read again before the tenant leaves.
//!
//! What is repeated and what is not, after an answer was lost:
//!
//! | write | repeated |
//! | --- | --- |
//! | in a transaction, direct or guarded | the same under the same token, which DynamoDB does once within ten minutes |
//! | in a direct transaction whose lease is over | guarded, under the same token as well: DynamoDB refuses it if it has seen the first, and the first if it comes after it |
//! | in a guarded one whose guard is not open as it was any more | the log may have its record. If not, it is repeated only if it [may be done twice](Write::repeatable) |
//! | put, delete, or an update that [may be done twice](Write::repeatable), each by itself | guarded. A condition that fails then may have been made to fail by the first attempt: the outcome is unknown |
//! | any other update by itself | never: the outcome is unknown |
//!
//! Two clocks: `tokio`'s for waiting, and the owner's for leases ([`Routes::left`]). No wall clock takes part.

mod direct;
mod error;
mod guarded;
mod identity;
mod known;
mod pace;
mod read;
mod route;
mod send;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use error::{Busy, Error};
pub use known::KnownGuards;
pub use read::{Found, Query, Reads};
pub use route::{Home, Route, Routes};
pub use watch::{Ended, Ending, Watch};
pub use write::{Action, CELL_ID, Expression, MAX_WRITES, Write};

use identity::Identity;
use pace::Pace;

/// How patient a writer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Least lease that a direct write is begun under.
    pub least_lease: Duration,
    /// How long a call takes that names no deadline.
    pub patience: Duration,
    /// Longest wait for one answer of DynamoDB's, if its client does not keep a shorter one.
    pub attempt: Duration,
    /// How often one call is sent at most, where DynamoDB is busy, cannot be reached, or does not answer.
    pub attempts: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            least_lease: Duration::from_millis(250),
            patience: Duration::from_secs(5),
            attempt: Duration::from_secs(1),
            attempts: 8,
        }
    }
}

/// What a call asks beside its writes.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// When the caller gives up. `None`: as [`Options::patience`] says.
    pub deadline: Option<Instant>,
    /// Of a transaction: the same id with the same writes has one effect for ten minutes.
    pub id: Option<String>,
}

/// How a write was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Plainly, under a lease.
    Direct,
    /// With a check of the guard.
    Guarded,
    /// And with a record in the log of a move.
    Logged,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    pub cell: Arc<str>,
    /// The tenant's epoch in that cell.
    pub epoch: u64,
    pub how: How,
    /// How often the tenant had moved on from the cell that was written to first.
    pub redirects: u32,
    /// Of a direct put or delete what was there, of a direct update what is there now. Transactions answer no items, so of guarded writes
    /// it is `None`.
    pub item: Option<crate::Item>,
}

/// Writes and reads tenants' items in the tenants' cells.
pub struct Writer<R: Routes> {
    routes: R,
    options: Options,
    known: Arc<KnownGuards>,
    watch: Option<Arc<dyn Watch>>,
}

/// One call under way.
struct Job<'a> {
    tenant: &'a str,
    writes: &'a [Write],
    /// One write, not in a transaction.
    single: bool,
    pace: Pace,
    identity: Identity,
    /// As it was tried last.
    how: How,
    /// Some attempt did nothing, and another was made.
    again: bool,
    /// Of some attempt it is not known whether it was done.
    open: bool,
    /// The last open attempt, and the name of the record that it would have left.
    recorded: Option<(guarded::Form, u128)>,
    /// The cell whose guard it waits for.
    waits: Option<Arc<str>>,
    /// How often a guard was not as it was asked for.
    refusals: u32,
    redirects: u32,
}

impl<R: Routes> Writer<R> {
    /// `known`: what is kept from call to call, for all writers of a process.
    pub fn new(routes: R, options: Options, known: Arc<KnownGuards>) -> Self {
        Self { routes, options, known, watch: None }
    }

    /// The same, of whose calls this is told.
    pub fn watched(self, watch: Arc<dyn Watch>) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Does one write.
    ///
    /// # Errors
    /// Only after [`Error::Unknown`] may it have been done.
    pub async fn write(
        &self,
        tenant: &str,
        write: Write,
        call: Call,
    ) -> Result<Written, Error<R::Error>> {
        if matches!(write.action, Action::Check(_)) {
            return Err(Error::invalid(write.field, "is a check alone: nothing to write"));
        }
        self.run(tenant, &[write], true, call).await
    }

    /// Does all writes, or none: 1 to [`MAX_WRITES`], each of another item.
    ///
    /// # Errors
    /// As of [`Writer::write`].
    pub async fn transact(
        &self,
        tenant: &str,
        writes: &[Write],
        call: Call,
    ) -> Result<Written, Error<R::Error>> {
        if !(1..=MAX_WRITES).contains(&writes.len()) {
            let problem = format!(
                "holds {} writes; 1 to {MAX_WRITES} are allowed: DynamoDB takes 100, of which the tenant's guard and its log take one each",
                writes.len()
            );
            return Err(Error::invalid("writes", problem));
        }
        self.run(tenant, writes, false, call).await
    }

    async fn run(
        &self,
        tenant: &str,
        writes: &[Write],
        single: bool,
        call: Call,
    ) -> Result<Written, Error<R::Error>> {
        let mut job = Job::new(tenant, writes, single, self.pace(&call), call.id.as_deref());
        let route = self.routes.route(tenant, None).await.map_err(Error::Route)?;
        // What is wrong with the request is told before anything is sent.
        job.place(&route.home)?;
        let began = Instant::now();
        let outcome = self.routed(&mut job, route).await;
        if let Some(watch) = &self.watch {
            let ending = job.ending(&outcome);
            watch.ended(Ended { how: job.how, ending, took: began.elapsed() });
        }
        outcome
    }

    async fn routed(
        &self,
        job: &mut Job<'_>,
        route: Route<R::Lease>,
    ) -> Result<Written, Error<R::Error>> {
        if let Some(lease) = self.leased(job.tenant, &route) {
            match self.direct(job, &route, lease).await? {
                direct::Ended::Written(written) => return Ok(written),
                direct::Ended::Guarded => {}
            }
        }
        job.how = How::Guarded;
        self.guarded(job, route).await
    }

    fn pace(&self, call: &Call) -> Pace {
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + self.options.patience);
        Pace::new(deadline, self.options.attempt, self.options.attempts)
    }

    /// A lease that is long enough to begin something under.
    fn leased(&self, tenant: &str, route: &Route<R::Lease>) -> Option<R::Lease> {
        let lease = route.lease.filter(|_| route.mode == cells_migration::WriteMode::Direct)?;
        let epoch = route.epoch?;
        // A guard said that the tenant has moved on.
        let overtaken = self.known.epoch(tenant).is_some_and(|known| known > epoch);
        (!overtaken && self.routes.left(&lease) > self.options.least_lease).then_some(lease)
    }
}

impl<'a> Job<'a> {
    fn new(
        tenant: &'a str,
        writes: &'a [Write],
        single: bool,
        pace: Pace,
        id: Option<&str>,
    ) -> Self {
        Self {
            tenant,
            writes,
            single,
            pace,
            identity: Identity::new(id, tenant, writes),
            how: How::Direct,
            again: false,
            open: false,
            recorded: None,
            waits: None,
            refusals: 0,
            redirects: 0,
        }
    }

    /// An error that leaves nothing written, or none if an attempt is still open.
    fn failed<E>(&self, error: Error<E>) -> Error<E> {
        if self.open { Error::Unknown } else { error }
    }

    /// Whether all of it may be done twice.
    fn repeatable(&self) -> bool {
        self.writes.iter().all(Write::repeatable)
    }
}
