//! Retires placements whose expiry has passed, through the journal, long before the storage's own TTL removes the item.
//!
//! Walks the table at a constant rate, a page an interval. Correctness does not wait for it: an expired placement resolves as absent
//! from the moment of its expiry. Several replicas may sweep at once; a placement is retired once.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::committer::Changes;
use super::draft::{Action, Command};
use super::error::Error;
use crate::domain::{Mapping, Placement, PlacementEvent};
use crate::store::Placements;

/// Items examined an interval.
const PAGE: usize = 200;

pub struct Sweeper {
    pub placements: Arc<dyn Placements>,
    pub changes: Changes,
    pub clock: Clock,
    pub interval: Duration,
}

impl Sweeper {
    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut at = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.placements.expired(self.clock.now(), PAGE, at.as_ref()).await {
                Ok(page) => {
                    at = page.next;
                    futures::future::join_all(page.items.into_iter().map(|p| self.retire(p))).await;
                }
                Err(error) if at.is_some() && !error.transient() => {
                    tracing::warn!(%error, "the sweep cannot go on from where it stands and starts over");
                    at = None;
                }
                // The next tick goes on where this one stood.
                Err(error) => tracing::debug!(%error, "the sweep did not get an answer"),
            }
        }
    }

    async fn retire(&self, placement: Placement) {
        let action = Action::Vacate {
            key: placement.key.clone(),
            epoch: Some(placement.epoch),
            assumed: Mapping::Placed(placement),
            event: PlacementEvent::Expired,
        };
        match self.changes.submit(Command { action, request: None }).await {
            // Refused: somebody changed it first.
            Ok(_) | Err(Error::Refused(_)) => {}
            Err(error) => tracing::debug!(%error, "an expired placement waits for the next sweep"),
        }
    }
}
