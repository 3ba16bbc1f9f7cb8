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
use tokio_util::sync::CancellationToken;

use super::beats::Beats;
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

/// Migrations that somebody else has.
type Watched = Beats<MigrationId>;

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
                    Ok((id, left)) => tracing::debug!(migration = %id, ?left, "left a migration"),
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
        watched.keep(|id| moving.iter().any(|(_, moving)| moving == id));
        moving.retain(|(_, id)| !held.contains_key(id));
        let mut wanted = Vec::new();
        for (_, id) in moving {
            if wanted.len() >= room {
                break;
            }
            let Some(migration) = self.shared.records.migration(id).await? else { continue };
            if is_free(&migration, watched, self.settings.takeover) {
                wanted.push(migration);
            }
        }
        Ok(wanted)
    }
}

/// Whether nobody works on a migration, as far as is known here: its worker's beat has stood still for as long as `takeover`.
fn is_free(migration: &Migration, watched: &mut Watched, takeover: Duration) -> bool {
    let record = &migration.record;
    // What is parked waits for an operator, who may also give it up.
    let waits = migration.parked.is_some() && record.wish != Some(Wish::Cancel);
    if waits || record.phase.ended() {
        return false;
    }
    let beat = (record.worker, migration.beat);
    record.worker == 0 || watched.stands_still(migration.id(), beat, takeover)
}

#[cfg(test)]
mod tests {
    use cells_migration::Phase;
    use tokio::time::advance;

    use super::*;
    use crate::migration::fake;

    const TAKEOVER: Duration = Duration::from_secs(10);

    /// One that worker 3 has, in the middle of its way.
    fn held() -> Migration {
        let mut migration = fake::migration(1);
        (migration.record.worker, migration.record.phase) = (3, Phase::Copying);
        migration.beat = 20;
        migration
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_nobody_has_is_taken_at_once() {
        assert!(is_free(&fake::migration(1), &mut Watched::new(), TAKEOVER));
    }

    /// Not at the first look, however old the beat may be: no two clocks are compared.
    #[tokio::test(start_paused = true)]
    async fn a_worker_is_dead_when_its_beat_stands_still_for_long_enough() {
        let (migration, mut watched) = (held(), Watched::new());
        assert!(!is_free(&migration, &mut watched, TAKEOVER));
        advance(TAKEOVER - Duration::from_millis(1)).await;
        assert!(!is_free(&migration, &mut watched, TAKEOVER));
        advance(Duration::from_millis(1)).await;
        assert!(is_free(&migration, &mut watched, TAKEOVER));
    }

    #[tokio::test(start_paused = true)]
    async fn each_beat_and_each_new_worker_count_anew() {
        let (mut migration, mut watched) = (held(), Watched::new());
        let changes: [fn(&mut Migration); 3] = [
            |migration| migration.beat += 1,
            |migration| migration.record.worker += 1,
            // Somebody who restarted counts its beats from where the record stood.
            |migration| migration.beat = 1,
        ];
        assert!(!is_free(&migration, &mut watched, TAKEOVER));
        for change in changes {
            advance(TAKEOVER - Duration::from_millis(1)).await;
            change(&mut migration);
            assert!(!is_free(&migration, &mut watched, TAKEOVER));
        }
        advance(TAKEOVER).await;
        assert!(is_free(&migration, &mut watched, TAKEOVER));
    }

    /// One migration's beat says nothing of another's.
    #[tokio::test(start_paused = true)]
    async fn migrations_are_watched_one_by_one() {
        let (migration, mut watched) = (held(), Watched::new());
        let mut other = held();
        other.record.id = fake::migration(2).record.id;
        assert!(!is_free(&migration, &mut watched, TAKEOVER));
        advance(TAKEOVER).await;
        assert!(!is_free(&other, &mut watched, TAKEOVER));
        assert!(is_free(&migration, &mut watched, TAKEOVER));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_parked_or_over_is_left_alone() {
        let mut parked = held();
        parked.parked = Some("why".to_owned());
        let mut watched = Watched::new();
        assert!(!is_free(&parked, &mut watched, TAKEOVER));
        advance(TAKEOVER * 2).await;
        assert!(!is_free(&parked, &mut watched, TAKEOVER));
        // But to give it up somebody has to work on it.
        parked.record.wish = Some(Wish::Cancel);
        assert!(!is_free(&parked, &mut watched, TAKEOVER));
        advance(TAKEOVER).await;
        assert!(is_free(&parked, &mut watched, TAKEOVER));
        for phase in [Phase::Done, Phase::Aborted] {
            let mut over = fake::migration(4);
            over.record.phase = phase;
            assert!(!is_free(&over, &mut watched, TAKEOVER), "{phase:?}");
        }
    }
}
