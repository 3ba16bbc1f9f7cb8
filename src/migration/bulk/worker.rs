//! Takes bulks up, and over from workers that are dead: by their beat, as migrations are.
//!
//! Who takes over raises the worker's number, on which every write of a bulk is conditional, so it does no harm to take over from a worker
//! that lives.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::model::BulkId;
use super::runner::{BulkShared, Pulse, Runner, Turned};
use crate::migration::beats::Beats;
use crate::store::StoreError;

/// Bulks that a replica works on at the same time; the others wait, or go to other replicas.
const MAX_HELD: usize = 16;

/// Between two signs of life while a turn takes long. The shortest time of a takeover is 2 s.
const PULSE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone)]
pub struct BulkSettings {
    /// Between two looks.
    pub interval: Duration,
    /// How long a beat stands still until its worker is taken to be dead.
    pub takeover: Duration,
}

pub struct BulkWorker {
    pub shared: BulkShared,
    pub settings: BulkSettings,
}

/// Bulks that somebody else has.
type Watched = Beats<BulkId>;

impl BulkWorker {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut runners: JoinSet<()> = JoinSet::new();
        let mut held: HashMap<BulkId, AbortHandle> = HashMap::new();
        let mut watched = Watched::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            while let Some(ended) = runners.try_join_next() {
                if let Err(error) = ended {
                    tracing::error!(%error, "a worker of a bulk failed");
                }
            }
            held.retain(|_, handle| !handle.is_finished());
            match self.take(&held, &mut watched).await {
                Ok(taken) => {
                    for (id, worker) in taken {
                        tracing::info!(bulk = %id, worker, "took up a bulk");
                        let runner = Runner::new(self.shared.clone(), id, worker);
                        let (interval, stop) = (self.settings.interval, stop.clone());
                        held.insert(id, runners.spawn(run(runner, id, interval, stop)));
                    }
                }
                Err(error) => tracing::debug!(%error, "bulks cannot be read"),
            }
        }
        while runners.join_next().await.is_some() {}
    }

    /// Takes those that nobody works on.
    async fn take(
        &self,
        held: &HashMap<BulkId, AbortHandle>,
        watched: &mut Watched,
    ) -> Result<Vec<(BulkId, u64)>, StoreError> {
        let records = &self.shared.records;
        let active = records.active_bulks().await?;
        watched.keep(|id| active.contains(id) && !held.contains_key(id));
        let mut taken = Vec::new();
        for id in active.into_iter().filter(|id| !held.contains_key(id)) {
            if held.len() + taken.len() >= MAX_HELD {
                break;
            }
            let Some(record) = records.bulk(id).await? else { continue };
            let (beat, takeover) = ((record.worker, record.beat), self.settings.takeover);
            let free = record.worker == 0 || watched.stands_still(id, beat, takeover);
            if free && let Some(worker) = records.take_bulk(id, record.worker).await? {
                taken.push((id, worker));
            }
        }
        Ok(taken)
    }
}

/// Works on one bulk until it has ended or is lost, or until `stop`.
async fn run(mut runner: Runner, id: BulkId, interval: Duration, stop: CancellationToken) {
    let pulse = runner.pulse();
    loop {
        let turned = tokio::select! {
            () = stop.cancelled() => return,
            () = beats(&pulse) => Ok(Turned::Lost),
            turned = runner.turn() => turned,
        };
        match turned {
            Ok(Turned::Again) => continue,
            Ok(Turned::Wait) => {}
            Ok(Turned::Lost) => {
                tracing::info!(bulk = %id, "another worker has taken a bulk over");
                return;
            }
            Ok(Turned::Ended) => {
                tracing::info!(bulk = %id, "a bulk has ended");
                return;
            }
            Err(error) => tracing::debug!(bulk = %id, %error, "a bulk cannot get on yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Gives signs of life until another worker has the bulk.
async fn beats(pulse: &Pulse) {
    loop {
        tokio::time::sleep(PULSE).await;
        if !pulse.beat().await {
            return;
        }
    }
}
