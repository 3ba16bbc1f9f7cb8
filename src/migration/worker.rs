//! Takes migrations up, and over from workers that are dead.
//!
//! Whether a worker is alive is judged by its beat: one that does not change for as long as this replica's own clock says is taken over. No
//! two clocks are compared. Who takes over raises the worker's number in the record and in both guards, so it does no harm to take over
//! from a worker that lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cells_migration::Wish;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::driver::{Driver, Left, Shared};
use super::model::Migration;
use crate::domain::MigrationId;
use crate::store::StoreError;

#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Between two looks.
    pub interval: Duration,
    /// How long a beat stands still until its worker is taken to be dead.
    pub takeover: Duration,
    /// Migrations worked on at the same time.
    pub concurrency: usize,
}

pub struct MigrationWorker {
    pub shared: Arc<Shared>,
    pub settings: WorkerSettings,
}

/// The worker's number and beat of a migration that somebody else has, and since when they are so.
type Watched = HashMap<MigrationId, ((u64, u64), Instant)>;

impl MigrationWorker {
    /// Works until `stop`, and until those under way have left off.
    pub async fn run(self, stop: CancellationToken) {
        let mut drivers: JoinSet<(MigrationId, Left)> = JoinSet::new();
        let mut held = HashMap::new();
        let mut watched = Watched::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            while let Some(ended) = drivers.try_join_next() {
                match ended {
                    Ok((id, left)) => {
                        tracing::debug!(migration = %id, ?left, "left a migration");
                        held.remove(&id);
                    }
                    // Which one it was is known by what is not held any more.
                    Err(error) => tracing::error!(%error, "a worker of a migration failed"),
                }
            }
            held.retain(|_, handle: &mut tokio::task::AbortHandle| !handle.is_finished());
            match self.wanted(&held, &mut watched).await {
                Ok(wanted) => {
                    for migration in wanted {
                        let id = migration.id();
                        let Some(driver) = Driver::new(Arc::clone(&self.shared), migration) else {
                            tracing::warn!(migration = %id, "a cell of a migration has no tables");
                            continue;
                        };
                        let stop = stop.clone();
                        let handle = drivers.spawn(async move { (id, driver.run(stop).await) });
                        held.insert(id, handle);
                    }
                }
                Err(error) => tracing::debug!(%error, "migrations cannot be read"),
            }
        }
        while drivers.join_next().await.is_some() {}
    }

    /// Migrations that nobody works on, at most as many as there is room for.
    async fn wanted(
        &self,
        held: &HashMap<MigrationId, tokio::task::AbortHandle>,
        watched: &mut Watched,
    ) -> Result<Vec<Migration>, StoreError> {
        let room = self.settings.concurrency.saturating_sub(held.len());
        if room == 0 {
            return Ok(Vec::new());
        }
        let mut moving = self.shared.records.moving().await?;
        watched.retain(|id, _| moving.iter().any(|(_, moving)| moving == id));
        moving.retain(|(_, id)| !held.contains_key(id));
        let mut wanted = Vec::new();
        for (_, id) in moving {
            if wanted.len() >= room {
                break;
            }
            let Some(migration) = self.shared.records.migration(id).await? else { continue };
            if self.is_free(&migration, watched) {
                wanted.push(migration);
            }
        }
        Ok(wanted)
    }

    fn is_free(&self, migration: &Migration, watched: &mut Watched) -> bool {
        let record = &migration.record;
        // What is parked waits for an operator, who may also give it up.
        let waits = migration.parked.is_some() && record.wish != Some(Wish::Cancel);
        if waits || record.phase.ended() {
            return false;
        }
        if record.worker == 0 {
            return true;
        }
        let (now, beat) = (Instant::now(), (record.worker, migration.beat));
        let (seen, since) = watched.entry(migration.id()).or_insert((beat, now));
        if *seen != beat {
            (*seen, *since) = (beat, now);
        }
        now.duration_since(*since) >= self.settings.takeover
    }
}
