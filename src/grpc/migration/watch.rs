//! WatchMigration: a migration as it changes, by looking at it again and again, and how such a stream ends.
//!
//! A migration is written a few times a second at most, and watched by few: to look at it costs less than to tell everybody of every change.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, StreamExt, once, unfold};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::message;
use crate::directory::{Clock, Error};
use crate::domain::MigrationId;
use crate::grpc::deadline::exceeded;
use crate::grpc::status::{Fault, Reason};
use crate::migration::{Migration, MigrationApi, MigrationError};
use crate::proto::v1;

/// How often a migration is looked at, and so the shortest time between two messages.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);

/// Looks in a row that the store may not answer, before the stream ends with the reason.
pub(super) const MAX_MISSES: u32 = 20;

/// Streams of a replica at the same time: each costs two small reads a second.
pub(super) const MAX_WATCHES: usize = 100;

/// When a caller who found no place is to come again.
const FULL: Duration = Duration::from_secs(2);

pub type WatchStream = BoxStream<'static, Result<v1::WatchMigrationResponse, Status>>;

/// The places of those who watch.
pub struct Watches(Arc<Semaphore>);

impl Default for Watches {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_WATCHES)))
    }
}

impl Watches {
    pub fn begin(&self) -> Result<OwnedSemaphorePermit, Fault> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| Fault::overloaded(FULL))
    }
}

/// A stream under way.
pub struct Watching {
    /// Given back when the stream ends, or its caller goes.
    pub _place: OwnedSemaphorePermit,
    pub migrations: Arc<dyn MigrationApi>,
    pub clock: Clock,
    pub id: MigrationId,
    pub deadline: Option<Instant>,
    pub draining: CancellationToken,
}

impl Watching {
    /// Looks for the first time, so that what is wrong with the request is the call's status and not the end of a stream.
    pub async fn stream(self) -> Result<WatchStream, Fault> {
        let first = self.migrations.get(self.id).await?;
        let message = self.response(&first);
        let next = (!first.record.phase.ended()).then_some((self, first));
        let rest = unfold(next, |watching| async {
            let (mut watching, last) = watching?;
            match watching.changed(last).await {
                Ok(now) => {
                    let message = watching.response(&now);
                    let next = (!now.record.phase.ended()).then_some((watching, now));
                    Some((Ok(message), next))
                }
                // Ends after the first error.
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(once(std::future::ready(Ok(message))).chain(rest).boxed())
    }

    /// The migration, once it is another than it was.
    async fn changed(&mut self, last: Migration) -> Result<Migration, Status> {
        let mut misses = 0;
        loop {
            self.pause().await?;
            match self.migrations.get(self.id).await {
                Ok(now) if differs(&last, &now) => return Ok(now),
                Ok(_) => misses = 0,
                // What is not answered now may be soon.
                Err(error) if misses < MAX_MISSES && passing(&error) => {
                    misses += 1;
                    tracing::debug!(%error, "a watched migration could not be read");
                }
                Err(error) => return Err(Fault::from(error).into()),
            }
        }
    }

    /// Waits until it is time for the next look.
    async fn pause(&self) -> Result<(), Status> {
        tokio::select! {
            biased;
            () = self.draining.cancelled() => Err(shutting_down().into()),
            status = exceeded(self.deadline) => Err(status),
            () = tokio::time::sleep(INTERVAL) => Ok(()),
        }
    }

    fn response(&self, migration: &Migration) -> v1::WatchMigrationResponse {
        let migration = Some(message::migration(migration, self.clock.now()));
        v1::WatchMigrationResponse { migration }
    }
}

/// Whether there is something to tell. That its worker is alive is nothing.
fn differs(last: &Migration, now: &Migration) -> bool {
    let alike = Migration { beat: now.beat, updated: now.updated, ..last.clone() };
    alike != *now
}

fn passing(error: &MigrationError) -> bool {
    match error {
        MigrationError::Store(error) | MigrationError::Directory(Error::Store(error)) => {
            error.transient()
        }
        _ => false,
    }
}

fn shutting_down() -> Fault {
    let message = "this replica shuts down; watch the migration again at another one";
    Fault::new(Reason::ShuttingDown, message)
}
