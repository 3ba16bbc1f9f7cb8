//! Takes migrations up, and over from workers that are dead.
//!
//! Whether a worker is alive is judged by its beat: one that does not change for as long as this replica's own clock says is taken over. No
//! two clocks are compared. Who takes over raises the worker's number in the record and in both guards, so it does no harm to take over
//! from a worker that lives.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cells_migration::{Cursor, Phase, Transaction, Wish};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::beats::Beats;
use super::driver::{Driver, Left, Shared};
use super::model::{Migration, Writers};
use super::pulse::Pulse;
use super::records::Told;
use super::steps;
use crate::domain::MigrationId;
use crate::store::StoreError;

#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Between two looks.
    pub interval: Duration,
    /// How long a beat stands still until its worker is taken to be dead.
    pub takeover: Duration,
    /// Migrations at the same time until no new one is begun. Those that soak or are paused do not count, and what somebody has begun is
    /// taken over in any case: writers may wait for it.
    pub concurrency: usize,
}

pub struct MigrationWorker {
    pub shared: Arc<Shared>,
    pub settings: WorkerSettings,
}

/// Migrations that somebody else has.
type Watched = Beats<MigrationId>;

/// Those that this replica has.
type Held = HashMap<MigrationId, (AbortHandle, Arc<Pulse>)>;

impl MigrationWorker {
    /// Works until `stop`, and until those under way have left off.
    pub async fn run(self, stop: CancellationToken) {
        let mut drivers: JoinSet<(MigrationId, Left)> = JoinSet::new();
        let mut held = Held::new();
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
            held.retain(|_, (handle, _)| !handle.is_finished());
            match self.wanted(&held, &mut watched).await {
                Ok(wanted) => {
                    for migration in wanted {
                        let id = migration.id();
                        let Some(driver) = Driver::new(Arc::clone(&self.shared), migration.clone())
                        else {
                            tracing::warn!(migration = %id, "a cell of a migration has no tables");
                            self.give_up(migration).await;
                            continue;
                        };
                        let (stop, pulse) = (stop.clone(), Arc::clone(driver.pulse()));
                        let handle = drivers.spawn(async move { (id, driver.run(stop).await) });
                        held.insert(id, (handle, pulse));
                    }
                }
                Err(error) => tracing::debug!(%error, "migrations cannot be read"),
            }
        }
        while drivers.join_next().await.is_some() {}
    }

    /// Migrations that nobody works on, and that this replica is to take.
    async fn wanted(
        &self,
        held: &Held,
        watched: &mut Watched,
    ) -> Result<Vec<Migration>, StoreError> {
        let busy = held.values().filter(|(_, pulse)| !pulse.rests()).count();
        let mut room = self.settings.concurrency.saturating_sub(busy);
        let mut moving = self.shared.records.moving().await?;
        watched.keep(|id| moving.iter().any(|(_, moving)| moving == id));
        moving.retain(|(_, id)| !held.contains_key(id));
        let mut wanted = Vec::new();
        for (_, id) in moving {
            let Some(migration) = self.shared.records.migration(id).await? else { continue };
            let able = migration.spec.writers != Writers::Frozen || self.shared.freeze.is_some();
            let free = is_free(&migration, watched, self.settings.takeover);
            if able && free && has_room(&migration, &mut room) {
                wanted.push(migration);
            }
        }
        Ok(wanted)
    }

    /// Ends a migration of which a cell or its tables are gone. Only one that has not begun does not keep them from being removed.
    async fn give_up(&self, migration: Migration) {
        let Shared { directory, records, .. } = &*self.shared;
        if migration.record.phase != Phase::Planned || directory.registry().await.is_err() {
            return;
        }
        // As the registry stands in the table now: it may be that this replica had not heard of a cell yet.
        if Driver::new(Arc::clone(&self.shared), migration.clone()).is_some() {
            return;
        }
        let Migration { record, spec, progress, beat, .. } = migration;
        let trouble = Some("one of its cells is gone, or has no tables any more".to_owned());
        let told = Told { beat: beat + 1, progress, trouble, parked: None };
        let end = Transaction::save(&record, Phase::Aborted, Cursor::default());
        let (now, writes) = (directory.now(), steps::record_writes(&spec, &end, None));
        // What fails is tried again at the next look.
        if let Ok(true) = records.tell(record.id.into(), record.worker, &told, now).await {
            let _ = records.write(&writes, now).await;
        }
    }
}

/// Whether there is room for one that nobody works on. What was begun needs none.
fn has_room(migration: &Migration, room: &mut usize) -> bool {
    if migration.record.worker > 0 {
        return true;
    }
    let left = room.checked_sub(1);
    *room = left.unwrap_or(0);
    left.is_some()
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
    use cells_migration::Record;
    use tokio::sync::Semaphore;
    use tokio::time::advance;

    use super::*;
    use crate::cells::Regions;
    use crate::config::Config;
    use crate::metering::Consumption;
    use crate::migration::{Begun, MigrationRecords, fake};
    use crate::store::Store;
    use crate::store::memory::MemoryStore;
    use crate::tasks::Tasks;
    use crate::telemetry::Telemetry;

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

    /// Nobody is kept from deleting a cell by a migration that has only been planned, in the moment before it is begun.
    #[tokio::test]
    async fn one_whose_cell_is_gone_before_it_began_ends_and_says_why() {
        let (tasks, telemetry) = (Tasks::new(), Telemetry::noop());
        let store = Arc::new(MemoryStore::new());
        let of = Store::of(store.clone());
        let directory = crate::app::directory(of, &Config::default(), &telemetry, &tasks).unwrap();
        directory.ready(&CancellationToken::new()).await;
        let config = aws_config::SdkConfig::builder().build();
        let shared = Shared {
            directory,
            records: store.clone(),
            regions: Arc::new(Regions::new(config, None, Consumption::default())),
            settings: Default::default(),
            pages: Arc::new(Semaphore::new(1)),
            freeze: None,
        };
        let settings = WorkerSettings { interval: TAKEOVER, takeover: TAKEOVER, concurrency: 1 };
        let worker = MigrationWorker { shared: Arc::new(shared), settings };
        let planned = fake::migration(1);
        assert_eq!(store.begin(&planned, None).await, Ok(Begun::Begun));
        worker.give_up(planned.clone()).await;
        let ended = store.migration(planned.id()).await.unwrap().unwrap();
        assert_eq!(ended.record.phase, Phase::Aborted);
        assert!(ended.trouble.unwrap().contains("gone"), "it says why");
        assert_eq!(store.moving().await, Ok(vec![]), "the tenant can be moved again");
        // What was begun has changed guards, and is not given up so.
        let begun = Migration { record: held().record, ..fake::migration(2) };
        let begun = Migration {
            record: Record { id: fake::migration(2).record.id, ..begun.record },
            ..begun
        };
        assert_eq!(store.begin(&begun, None).await, Ok(Begun::Begun));
        worker.give_up(begun.clone()).await;
        let same = store.migration(begun.id()).await.unwrap().unwrap();
        assert_eq!(same.record.phase, Phase::Copying);
        assert!(tasks.stop(TAKEOVER).await);
    }

    #[test]
    fn new_ones_wait_for_room_and_those_that_were_begun_do_not() {
        let (new, begun) = (fake::migration(1), held());
        let mut room = 1;
        let taken = [&new, &new, &begun, &begun].map(|one| has_room(one, &mut room));
        assert_eq!((taken, room), ([true, false, true, true], 0));
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
