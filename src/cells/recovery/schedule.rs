//! Begins the backups that are due. Every replica runs one: the operation's id is made of the slot, so that it is begun once.
//!
//! Slots are counted from 1970: with a backup every six hours, at 0, 6, 12 and 18 o'clock UTC. What was missed while nobody ran is not made up
//! for; the present slot is, and again where the cell has got another version of its tables since: what is whole already counts. A backup that failed is begun again a while later, under the same name, so that what is whole of it counts.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::scheduled_backup;
use crate::cells::error::CellsError;
use crate::cells::operation::{Goal, Operation, OperationId, OperationState};
use crate::cells::records::{CellRecords, CellTablesRecord, Started};
use crate::cells::table_set::TableSetId;
use crate::directory::Clock;
use crate::domain::CellId;

/// How often the backup of a slot is begun at most.
const MAX_ATTEMPTS: u32 = 4;

/// From the end of one that failed to the next.
const PAUSE_MILLIS: i64 = 15 * 60 * 1000;

#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Between two looks.
    pub interval: Duration,
}

pub struct Scheduler {
    pub records: Arc<dyn CellRecords>,
    pub clock: Clock,
    pub settings: SchedulerSettings,
}

impl Scheduler {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.settings.interval) => {}
            }
            if let Err(error) = self.round().await {
                tracing::debug!(%error, "schedules cannot be read");
            }
        }
    }

    /// Looks at every cell once.
    pub async fn round(&self) -> Result<(), CellsError> {
        for record in self.records.all_cell_tables().await? {
            // Something is at work on the cell: after it.
            if record.operation.is_none()
                && let Err(error) = self.look(&record).await
            {
                let cell = record.cell.as_str();
                tracing::warn!(%error, cell, "a scheduled backup cannot be begun");
            }
        }
        Ok(())
    }

    async fn look(&self, record: &CellTablesRecord) -> Result<(), CellsError> {
        let Some((id, version)) = &record.tables else { return Ok(()) };
        let Some(set) = self.records.table_set_at(id, *version).await? else { return Ok(()) };
        let Some(schedule) = set.backups else { return Ok(()) };
        let now = self.clock.now();
        let every = i64::from(schedule.every_hours.max(1)) * 3600;
        let slot = now.seconds().div_euclid(every) * every;
        for attempt in 0..MAX_ATTEMPTS {
            let Some(operation_id) = operation_id(&record.cell, slot, (id, *version), attempt)
            else {
                return Ok(());
            };
            match self.records.operation(&operation_id).await? {
                None => {
                    let goal = Goal::BackUp {
                        set: id.clone(),
                        version: *version,
                        backup: scheduled_backup(&record.cell, slot),
                        keep_days: Some(schedule.keep_days),
                    };
                    let cell = record.cell.clone();
                    let operation = Operation::new(operation_id, cell, goal, String::new(), now);
                    // Others may be first, with this or with something else.
                    if let Started::Started = self.records.start(&operation).await? {
                        tracing::info!(cell = record.cell.as_str(), slot, "began a backup");
                    }
                    return Ok(());
                }
                Some(failed) if failed.state == OperationState::Failed => {
                    let ended = failed.updated.millis();
                    if now.millis().saturating_sub(ended) < PAUSE_MILLIS {
                        return Ok(());
                    }
                }
                Some(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Of a cell, a slot and what tables the cell has, hashed: a cell's name and a number are too long for an operation's.
fn operation_id(
    cell: &CellId,
    slot: i64,
    (set, version): (&TableSetId, u64),
    attempt: u32,
) -> Option<OperationId> {
    let hash = Sha256::digest(format!("{cell}/{slot}/{}/{version}/{attempt}", set.as_str()));
    let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    OperationId::new(format!("scheduled-{hash}")).ok()
}
