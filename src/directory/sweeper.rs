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
                biased;
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

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;
    use crate::directory::draft::Destination;
    use crate::directory::fixtures::stage::{Stage, audit, cell_id, command, placed_in};
    use crate::directory::fixtures::{Call, Fault, Faulty, key, now};
    use crate::domain::Timestamp;
    use crate::store::StoreError;

    const INTERVAL: Duration = Duration::from_millis(100);

    fn sweep(stage: &Stage) -> JoinHandle<()> {
        let sweeper = Sweeper {
            placements: stage.store.clone(),
            changes: stage.changes.clone(),
            clock: stage.time.clock(),
            interval: INTERVAL,
        };
        tokio::spawn(sweeper.run(stage.stop.clone()))
    }

    async fn settle(stage: &Stage, name: &str, expires: Option<Timestamp>) {
        let action = Action::Place {
            key: key(name),
            assumed: Mapping::Absent,
            destination: Destination::Pinned(cell_id("a")),
            since: None,
            expires,
        };
        assert!(placed_in(&stage.submit(command(action)).await.unwrap()).1);
    }

    /// 450 tenants, of whom those with an even number expire.
    async fn settled() -> Stage {
        let stage = Stage::new().await;
        let soon = now().plus(Duration::from_secs(60));
        let expiry = |n: usize| n.is_multiple_of(2).then_some(soon);
        let names: Vec<_> = (0..450).map(|n| (format!("k{n:03}"), expiry(n))).collect();
        let settling = names.iter().map(|(name, expires)| settle(&stage, name, *expires));
        futures::future::join_all(settling).await;
        stage
    }

    async fn left(stage: &Stage) -> usize {
        let page = stage.store.inner.list(None, 1000, None).await.unwrap();
        page.items.len()
    }

    /// Each was retired once, and nobody else.
    async fn assert_swept(stage: &Stage) {
        for n in 0..450 {
            let key = key(&format!("k{n:03}"));
            let history = stage.store.inner.history(&key, 10, None).await.unwrap().items;
            let mapping = stage.store.inner.mapping(&key).await.unwrap();
            match n % 2 {
                0 => {
                    assert_eq!(mapping, Mapping::Vacated(crate::domain::Epoch::FIRST));
                    let [record] = history.as_slice() else { panic!("{history:?}") };
                    assert_eq!(record.ended_by, PlacementEvent::Expired);
                }
                _ => assert!(mapping.placement().is_some() && history.is_empty()),
            }
        }
        audit(&stage.store.inner).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_expired_is_retired_once() {
        let stage = settled().await;
        let other = Stage::on(Faulty::on(stage.store.inner.clone())).await;
        other.store.always(Call::Expired, Fault::Slow(Duration::from_millis(3)));
        let sweepers = [sweep(&stage), sweep(&other)];
        tokio::time::sleep(INTERVAL * 10).await;
        assert_eq!(left(&stage).await, 450, "not before its time");
        for stage in [&stage, &other] {
            stage.time.pass(Duration::from_secs(60));
        }
        tokio::time::sleep(INTERVAL * 10).await;
        assert_swept(&stage).await;
        // A page an interval, whatever there is.
        let pages = stage.store.count(Call::Expired);
        assert!((19..=22).contains(&pages), "{pages} pages in 20 intervals");
        stage.end().await;
        other.end().await;
        for sweeper in sweepers {
            sweeper.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_delay_the_sweep_and_do_not_stop_it() {
        let unreadable = StoreError::Unreadable { detail: "x".into() };
        for error in [StoreError::Timeout, unreadable, StoreError::ForeignCursor] {
            let stage = settled().await;
            stage.time.pass(Duration::from_secs(60));
            let fault = Some(Fault::Fail(error));
            stage.store.next(Call::Expired, [fault.clone(), None, fault.clone(), fault, None]);
            // The first retirements fail.
            stage.store.next(Call::Commit, [Some(Fault::Fail(StoreError::Unreachable))]);
            let sweeper = sweep(&stage);
            tokio::time::sleep(INTERVAL * 20).await;
            assert_swept(&stage).await;
            stage.end().await;
            sweeper.await.unwrap();
        }
    }

    /// A failure that passes is no reason to start over, or a long sweep would never end; a cursor that is not taken is.
    #[tokio::test(start_paused = true)]
    async fn the_sweep_goes_on_where_it_stood_while_it_can() {
        for (error, goes_on) in [(StoreError::Throttled, true), (StoreError::ForeignCursor, false)]
        {
            let stage = settled().await;
            stage.store.next(Call::Expired, [None, Some(Fault::Fail(error.clone())), None]);
            let sweeper = sweep(&stage);
            tokio::time::sleep(INTERVAL * 5 / 2).await;
            let sweeps = stage.store.sweeps.lock().clone();
            let [first, second, third] = sweeps.as_slice() else { panic!("{sweeps:?}") };
            assert!(first.is_none() && second.is_some());
            assert_eq!(third, if goes_on { second } else { first }, "{error:?}");
            stage.end().await;
            sweeper.await.unwrap();
        }
    }

    /// Found as expired, and placed anew before it could be retired: the new placement stays.
    #[tokio::test(start_paused = true)]
    async fn who_came_back_in_between_stays() {
        let stage = Stage::new().await;
        settle(&stage, "k", Some(now())).await;
        let (gate, before, after) = Fault::gate();
        stage.store.next(Call::Expired, [Some(gate)]);
        let sweeper = sweep(&stage);
        before.add_permits(1);
        tokio::time::sleep(INTERVAL / 2).await;
        settle(&stage, "k", None).await;
        after.add_permits(1);
        tokio::time::sleep(INTERVAL * 3).await;
        let mapping = stage.mapping("k").await;
        assert_eq!(mapping.placement().unwrap().epoch.get(), 2);
        let history = stage.store.inner.history(&key("k"), 10, None).await.unwrap().items;
        assert_eq!(history.len(), 1);
        audit(&stage.store.inner).await;
        stage.end().await;
        sweeper.await.unwrap();
    }
}
