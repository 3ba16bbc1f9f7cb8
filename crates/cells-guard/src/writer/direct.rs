//! Plain writes under a lease.

use super::error::Error;
use super::guarded::Form;
use super::identity::Identity;
use super::route::Route;
use super::send::Sent;
use super::{How, Job, Routes, Writer, Written};
use crate::Item;
use cells_migration::{GuardState, WriteMode};

/// How the direct part of a call ended.
pub(super) enum Ended {
    Written(Written),
    /// It goes on guarded.
    Guarded,
}

impl<R: Routes> Writer<R> {
    pub(super) async fn direct(
        &self,
        job: &mut Job<'_>,
        route: &Route<R::Lease>,
        lease: R::Lease,
    ) -> Result<Ended, Error<R::Error>> {
        loop {
            let sent = match job.writes {
                [write] if job.single => {
                    let table = super::write::table(&route.home, &write.table)?;
                    job.send_single(&route.home, write, table).await
                }
                _ => job.send_plain::<R>(&route.home).await?,
            };
            // An answer counts from when it is looked at: no earlier moment is known to be before the lease's end.
            let inside = !self.routes.left(&lease).is_zero();
            match sent {
                Sent::Done(item) if inside => return Ok(Ended::Written(job.direct(route, item))),
                Sent::Done(item) => {
                    job.open = true;
                    if self.confirm(job, route).await {
                        return Ok(Ended::Written(job.direct(route, item)));
                    }
                    return job.guarded_or_unknown();
                }
                Sent::Condition(write) if inside => {
                    return Err(job.failed(Error::ConditionFailed { write }));
                }
                // The tenant may have left, and its items may be gone.
                Sent::Condition(_) if !job.open => {
                    job.again = true;
                    job.identity.cancelled();
                    return Ok(Ended::Guarded);
                }
                Sent::Open if job.single => {
                    job.open = true;
                    return job.guarded_or_unknown();
                }
                Sent::Open => {
                    job.open = true;
                    if !self.goes_on(job, &lease).await {
                        return Ok(Ended::Guarded);
                    }
                }
                Sent::Busy(busy) => {
                    job.again = true;
                    if !self.goes_on(job, &lease).await {
                        let over = self.routes.left(&lease) <= self.options.least_lease;
                        return match over {
                            true => Ok(Ended::Guarded),
                            false => Err(job.failed(Error::Busy(busy))),
                        };
                    }
                }
                Sent::TokenUsed if !job.open => return Err(Error::IdUsed),
                Sent::Invalid(write) => return Err(job.failed(job.invalid(write))),
                Sent::Refused(failure) => return Err(job.failed(Error::Refused(failure))),
                Sent::Condition(_) | Sent::TokenUsed | Sent::Guard(_) | Sent::Recorded => {
                    return Err(Error::Unknown);
                }
            }
        }
    }

    /// Waits before another direct attempt. `false`: there is none, or the lease is too short for it.
    async fn goes_on(&self, job: &mut Job<'_>, lease: &R::Lease) -> bool {
        job.pace.again().await && self.routes.left(lease) > self.options.least_lease
    }

    /// Whether a direct write that is known to be done is good though its lease is over.
    async fn confirm(&self, job: &mut Job<'_>, route: &Route<R::Lease>) -> bool {
        let home = &route.home;
        let Some(table) = home.tables.guard_table() else { return false };
        // The record is a transaction of its own.
        let identity = Identity::new(None, job.tenant, &[]);
        loop {
            let stored = match self.read_guard(job, home, &table).await {
                Ok(Some(stored)) if *stored.cell == *home.cell => stored,
                _ => return false,
            };
            if Some(stored.guard.epoch) != route.epoch {
                return false;
            }
            match (stored.guard.state, stored.guard.mode) {
                // No move had begun, or an earlier one has come to nothing.
                (GuardState::Open, WriteMode::Direct) => return true,
                (GuardState::Open, WriteMode::Logged) => {
                    let Ok(form) = Form::of(home, &table, &stored, &identity) else {
                        return false;
                    };
                    match self.send_form(job, &form, &identity, &[]).await {
                        Ok(Sent::Done(()) | Sent::Recorded) => return true,
                        Ok(Sent::Guard(_)) => {}
                        Ok(Sent::Busy(_) | Sent::Open) => {
                            if !job.pace.again().await {
                                return false;
                            }
                        }
                        _ => return false,
                    }
                }
                // The move may be given up yet.
                (GuardState::Fenced, _) => {
                    if !job.pace.look().await {
                        return false;
                    }
                }
                (GuardState::Incoming | GuardState::Moved, _) => return false,
            }
        }
    }
}

impl Job<'_> {
    fn direct<L>(&self, route: &Route<L>, item: Option<Item>) -> Written {
        Written {
            cell: route.home.cell.clone(),
            epoch: route.epoch.unwrap_or_default(),
            how: How::Direct,
            redirects: 0,
            item: item.filter(|item| !item.is_empty()),
        }
    }

    /// The outcome is open: it is done again if it may be.
    fn guarded_or_unknown<E>(&self) -> Result<Ended, Error<E>> {
        match self.repeatable() {
            true => Ok(Ended::Guarded),
            false => Err(Error::Unknown),
        }
    }

    pub(super) fn invalid<E>(&self, write: Option<usize>) -> Error<E> {
        let of = |at: usize| self.writes.get(at).map(|write| write.field.as_str());
        let field = match write.and_then(of) {
            Some(field) => field,
            None if self.single => "write",
            None => "writes",
        };
        Error::invalid(
            field,
            "is not valid: look at the expressions, at the types of key and values, and at the item's size (400 KB)",
        )
    }
}
