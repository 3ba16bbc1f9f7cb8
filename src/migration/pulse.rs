//! What a worker tells of its migration: how far it is, and that it is alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::driver::Shared;
use super::model::{Findings, Migration, Progress};
use super::records::Told;
use crate::domain::MigrationId;

/// What is told of a migration while it is under way.
#[derive(Default)]
pub struct Tale {
    pub progress: Progress,
    pub findings: Option<Findings>,
    pub trouble: Option<String>,
    pub parked: Option<String>,
}

/// What a worker tells, and the count of its signs of life.
pub struct Pulse {
    pub id: MigrationId,
    /// 0: not held yet.
    worker: AtomicU64,
    beat: AtomicU64,
    rests: AtomicBool,
    tale: Mutex<Tale>,
}

impl Pulse {
    pub fn new(migration: &Migration) -> Self {
        let tale = Tale {
            progress: migration.progress.clone(),
            findings: migration.findings.clone(),
            trouble: migration.trouble.clone(),
            parked: None,
        };
        Self {
            id: migration.id(),
            worker: AtomicU64::new(0),
            beat: AtomicU64::new(migration.beat),
            rests: AtomicBool::new(false),
            tale: Mutex::new(tale),
        }
    }

    /// From here on it is told under this number.
    pub fn held_by(&self, worker: u64) {
        self.worker.store(worker, Ordering::Release);
    }

    /// Whether there is next to nothing to do for now: it soaks, or is paused.
    pub fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    pub fn set_rests(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    pub fn tale(&self) -> MutexGuard<'_, Tale> {
        self.tale.lock()
    }

    /// Tells how far it is, by which others see that somebody works on it. `false`: that was not told.
    pub async fn tell(&self, shared: &Shared) -> bool {
        let worker = self.worker.load(Ordering::Acquire);
        if worker == 0 {
            return false;
        }
        let told = {
            let tale = self.tale();
            Told {
                beat: self.beat.fetch_add(1, Ordering::Relaxed) + 1,
                progress: tale.progress.clone(),
                trouble: tale.trouble.clone(),
                parked: tale.parked.clone(),
            }
        };
        let told = shared.records.tell(self.id, worker, &told, shared.directory.now()).await;
        told.unwrap_or(false)
    }
}

/// Tells of a migration once an interval, whatever its worker waits for.
pub async fn beat(shared: Arc<Shared>, pulse: Arc<Pulse>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(shared.settings.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        pulse.tell(&shared).await;
    }
}
