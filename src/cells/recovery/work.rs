//! How backups, restores and drills get on, look by look.

use std::time::Duration;

use super::{Comparison, Origin, Recovery, Side, drill_table, slot_of};
use crate::cells::cloud::{CloudError, Restorable, Restoration, RestoreFrom, TableRef};
use crate::cells::error::CellsError;
use crate::cells::operation::{Goal, Operation};
use crate::cells::plan::{Change, Wanted};
use crate::cells::worker::{Look, MAX_UNSEEN, Watched, Worker};
use crate::domain::{Cell, CellId, Timestamp};

const DAY_MILLIS: i64 = 24 * 3600 * 1000;

/// How long a look goes on comparing, at most, and at most this part of the time to a taking over. Short, so that other operations get
/// on meanwhile and the beat is seen.
const COMPARING: Duration = Duration::from_secs(5);
const PART_OF_TAKEOVER: u32 = 4;

/// Looks in a row that find no temporary table, until a drill that failed takes them for gone: a restore that a dead worker asked for may
/// show late.
const QUIET_LOOKS: u32 = 3;

/// How long a drill waits until what it restores is usable.
const MAX_RESTORING_MILLIS: i64 = 72 * 3600 * 1000;

/// Why a restore cannot go on, or that AWS could not be asked.
enum Stop {
    Failed(String),
    Error(CellsError),
}

impl From<CloudError> for Stop {
    fn from(error: CloudError) -> Self {
        match error {
            CloudError::Refused { code, detail } => {
                tracing::warn!(code, detail, "AWS refused a call of a restore");
                Stop::Failed(format!("AWS refused a call with {code}"))
            }
            CloudError::Unsupported => {
                Stop::Failed("this endpoint knows no backups and no restores".to_owned())
            }
            busy @ CloudError::Busy { .. } => Stop::Error(busy.into()),
        }
    }
}

/// A table and the one that it is restored into.
struct Pair {
    source: TableRef,
    target: TableRef,
}

impl Worker {
    pub(in crate::cells) async fn back_up(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        backup: &str,
        keep_days: Option<u32>,
    ) -> Result<Look, CellsError> {
        let Some(wanted) = self.wanted(operation).await? else { return Ok(gone()) };
        let (mut left, mut old, mut notes) = (0, Vec::new(), Vec::new());
        for wanted in &wanted {
            let table = TableRef::from(wanted);
            let backups = match self.cloud.backups(&table).await {
                Err(CloudError::Unsupported) => {
                    let error = format!("table {}: this endpoint makes no backups", wanted.name);
                    return Ok(Look::Ended(Err(error)));
                }
                backups => backups?,
            };
            let ours = backups.iter().find(|one| one.name == backup);
            if ours.is_none_or(|ours| !ours.available) {
                left += 1;
            }
            if ours.is_none() && watch.asked_again(&wanted.name, MAX_UNSEEN) {
                match self.cloud.create_backup(&table, backup).await {
                    Ok(()) => {
                        let step = format!("make the backup {backup}");
                        operation.done(&wanted.name, step, self.clock.now());
                    }
                    Err(CloudError::Busy { code }) => {
                        watch.unseen.remove(&wanted.name);
                        tracing::debug!(code, table = wanted.name, "AWS is busy");
                    }
                    Err(refused) => return Err(refused.into()),
                }
            }
            let expired = backups.into_iter().filter(|one| {
                one.available && self.expired(&operation.cell, &one.name, backup, keep_days)
            });
            old.extend(expired.map(|one| (table.clone(), one)));
        }
        operation.steps_left = left;
        if left > 0 {
            return Ok(Look::Working);
        }
        // Only now that there is a newer one, which is whole.
        let mut busy = false;
        for (table, one) in &old {
            match self.cloud.delete_backup(table, one).await {
                Ok(()) => {
                    let step = format!("delete the backup {}", one.name);
                    operation.done(&table.name, step, self.clock.now());
                }
                Err(CloudError::Busy { .. }) => busy = true,
                Err(error) => {
                    notes.push(format!("{}: the backup {} stays: {error}", table.name, one.name));
                }
            }
        }
        operation.notes = notes;
        Ok(if busy { Look::Working } else { Look::Ended(Ok(())) })
    }

    /// Whether a schedule of this cell made a backup, an older one than `newest`, and it has been kept for long enough.
    fn expired(&self, cell: &CellId, backup: &str, newest: &str, keep_days: Option<u32>) -> bool {
        let (Some(slot), Some(newest), Some(days)) =
            (slot_of(cell, backup), slot_of(cell, newest), keep_days)
        else {
            return false;
        };
        let age = self.clock.now().millis().saturating_sub(slot.saturating_mul(1000));
        slot < newest && age > i64::from(days) * DAY_MILLIS
    }

    pub(in crate::cells) async fn restore(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        source: &CellId,
        from: &Origin,
    ) -> Result<Look, CellsError> {
        let Some(targets) = self.wanted(operation).await? else { return Ok(gone()) };
        let Some(sources) = self.wanted_as(operation, source).await? else { return Ok(gone()) };
        let pairs: Vec<_> = sources
            .iter()
            .zip(&targets)
            .map(|(source, target)| Pair { source: source.into(), target: target.into() })
            .collect();
        match self.restored(operation, &pairs, from, false).await {
            // What DynamoDB does not restore is drift from what is declared.
            Ok(true) => self.provision(operation, watch).await,
            Ok(false) => Ok(Look::Working),
            Err(Stop::Failed(error)) => Ok(Look::Ended(Err(error))),
            Err(Stop::Error(error)) => Err(error),
        }
    }

    pub(in crate::cells) async fn drill(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        from: &Origin,
    ) -> Result<Look, CellsError> {
        let Some(wanted) = self.wanted(operation).await? else { return Ok(gone()) };
        let pair = |wanted: &Wanted| Pair {
            source: wanted.into(),
            target: TableRef {
                region: wanted.region.clone(),
                name: drill_table(&wanted.name, &operation.id),
            },
        };
        let pairs: Vec<_> = wanted.iter().map(pair).collect();
        let recovery = operation.recovery.get_or_insert_default();
        if recovery.failure.is_some() || recovery.compared.len() == pairs.len() {
            return self.clean_up(operation, watch, &wanted, &pairs).await;
        }
        // What it comes to is written before anything else is done.
        match self.rehearse(operation, watch, &wanted, &pairs, from).await {
            Ok(()) => {}
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Failed(error)) => {
                operation.recovery.get_or_insert_default().failure = Some(error);
                operation.updated = self.clock.now();
            }
        }
        Ok(Look::Working)
    }

    /// Restores and compares, as far as one look goes.
    async fn rehearse(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        wanted: &[Wanted],
        pairs: &[Pair],
        from: &Origin,
    ) -> Result<(), Stop> {
        let now = self.clock.now();
        let recovery = operation.recovery.get_or_insert_default();
        if recovery.usable.is_none() {
            if now.millis().saturating_sub(operation.created.millis()) > MAX_RESTORING_MILLIS {
                return Err(Stop::Failed("the tables were not usable within 72 hours".to_owned()));
            }
            if self.restored(operation, pairs, from, true).await? {
                operation.recovery.get_or_insert_default().usable = Some(self.clock.now());
            }
            return Ok(());
        }
        let next = wanted
            .iter()
            .zip(pairs)
            .find(|(wanted, _)| !recovery.compared.contains_key(&wanted.name));
        let Some((wanted, pair)) = next else { return Ok(()) };
        self.compare(operation, watch, wanted, pair).await
    }

    /// Reads on for a while. Where it was is in memory alone: who takes over begins the table anew.
    async fn compare(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        wanted: &Wanted,
        pair: &Pair,
    ) -> Result<(), Stop> {
        let names = || {
            let sort = wanted.spec.sort_key.as_ref();
            [Some(&wanted.spec.partition_key), sort].into_iter().flatten()
        };
        if watch.comparison.as_ref().is_none_or(|(table, _)| *table != wanted.name) {
            let comparison = Comparison::new(names().map(|key| key.name.clone()).collect());
            watch.comparison = Some((wanted.name.clone(), comparison));
        }
        let Some((_, comparison)) = watch.comparison.as_mut() else { return Ok(()) };
        let began = tokio::time::Instant::now();
        let enough = COMPARING.min(self.settings.takeover / PART_OF_TAKEOVER);
        while let Some((side, from)) = comparison.next() {
            let table = match side {
                Side::Source => &pair.source,
                Side::Restored => &pair.target,
            };
            let page = self.cloud.page(table, from).await?;
            comparison.take(page);
            tokio::time::sleep(self.settings.page_pause).await;
            if began.elapsed() > enough {
                break;
            }
        }
        if let Some(result) = comparison.result(self.clock.now()) {
            watch.comparison = None;
            let step = match result.matched {
                true => format!("compare it with {}: the same", pair.target.name),
                false => format!("compare it with {}: different", pair.target.name),
            };
            operation.done(&wanted.name, step, self.clock.now());
            let recovery = operation.recovery.get_or_insert_default();
            recovery.compared.insert(wanted.name.clone(), result);
        }
        Ok(())
    }

    /// Begins what is missing of a restore. Answers whether all of it is there and settled.
    async fn restored(
        &self,
        operation: &mut Operation,
        pairs: &[Pair],
        from: &Origin,
        on_demand: bool,
    ) -> Result<bool, Stop> {
        let recovery = operation.recovery.get_or_insert_with(Recovery::default);
        let Some(point) = recovery.point else {
            // Written before the first table is begun.
            recovery.point = Some(self.point(pairs, from).await?);
            return Ok(false);
        };
        let mut left = 0;
        for Pair { source, target } in pairs {
            let Some(is) = self.cloud.observe(target).await? else {
                left += 1;
                let from = self.origin(source, from, point).await?;
                let source = source.clone();
                let restoration =
                    Restoration { source, target: target.name.clone(), from, on_demand };
                match self.cloud.restore(&restoration).await {
                    Ok(()) => {
                        let step = format!("restore it from {}", restoration.source.name);
                        operation.done(&target.name, step, self.clock.now());
                    }
                    Err(CloudError::Busy { code }) => {
                        tracing::debug!(code, table = target.name, "AWS is busy");
                    }
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            if is.restored_from.as_deref() != Some(source.name.as_str()) {
                return Err(Stop::Failed(format!(
                    "table {} was there before, and was not restored from {}; it is left alone",
                    target.name, source.name
                )));
            }
            if is.status.starts_with("INACCESSIBLE") {
                let error = format!("table {} cannot be used: {}", target.name, is.status);
                return Err(Stop::Failed(error));
            }
            left += u64::from(!is.settled());
        }
        operation.steps_left = left;
        Ok(left == 0)
    }

    /// As of when the restored data will be.
    async fn point(&self, pairs: &[Pair], from: &Origin) -> Result<Timestamp, Stop> {
        if let Origin::PointInTime(point) = from {
            return Ok(*point);
        }
        let mut earliest = None;
        for Pair { source, .. } in pairs {
            let of_table = match from {
                Origin::Backup(name) => {
                    let backups = self.cloud.backups(source).await?;
                    let found = backups.iter().find(|one| one.name == *name && one.available);
                    found.map(|one| one.created).ok_or_else(|| no_backup(source, name))?
                }
                Origin::Latest | Origin::PointInTime(_) => {
                    match self.cloud.restorable(source).await? {
                        Restorable::Between { latest, .. } => latest,
                        Restorable::Off | Restorable::NoTable => {
                            let table = &source.name;
                            let error = format!("table {table} has no point-in-time recovery");
                            return Err(Stop::Failed(error));
                        }
                    }
                }
            };
            earliest = Some(earliest.map_or(of_table, |other: Timestamp| other.min(of_table)));
        }
        earliest.ok_or_else(|| Stop::Failed("the table set has no tables".to_owned()))
    }

    async fn origin(
        &self,
        source: &TableRef,
        from: &Origin,
        point: Timestamp,
    ) -> Result<RestoreFrom, Stop> {
        let Origin::Backup(name) = from else { return Ok(RestoreFrom::PointInTime(point)) };
        let backups = self.cloud.backups(source).await?;
        let found = backups.into_iter().find(|one| one.name == *name && one.available);
        found.map(|one| RestoreFrom::Backup(one.arn)).ok_or_else(|| no_backup(source, name))
    }

    /// Deletes the temporary tables, and ends the drill when they are gone.
    async fn clean_up(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        wanted: &[Wanted],
        pairs: &[Pair],
    ) -> Result<Look, CellsError> {
        let (mut going, mut left) = (0, Vec::new());
        for (wanted, Pair { source, target }) in wanted.iter().zip(pairs) {
            let Some(is) = self.cloud.observe(target).await? else { continue };
            if is.restored_from.as_deref() != Some(source.name.as_str()) {
                left.push(format!("{}: it was not restored by this drill", target.name));
                continue;
            }
            match is.status.as_str() {
                // Neither takes a deletion.
                "DELETING" | "CREATING" | "UPDATING" => going += 1,
                // Not that we ever protect one.
                _ if is.deletion_protection => {
                    going += 1;
                    let target = Wanted { name: target.name.clone(), ..wanted.clone() };
                    self.cloud.apply(&target, &Change::SetDeletionProtection(false)).await?;
                }
                _ => match self.cloud.delete(target).await {
                    Ok(()) => {
                        going += 1;
                        let step = "delete the temporary table".to_owned();
                        operation.done(&target.name, step, self.clock.now());
                    }
                    Err(CloudError::Refused { code, detail }) => {
                        tracing::warn!(code, detail, table = target.name, "AWS refused a deletion");
                        left.push(format!("{}: AWS refused to delete it with {code}", target.name));
                    }
                    Err(error) => return Err(error.into()),
                },
            }
        }
        watch.quiet = if going > 0 { 0 } else { watch.quiet + 1 };
        operation.steps_left = going;
        let recovery = operation.recovery.get_or_insert_default();
        let looks = if recovery.failure.is_some() { QUIET_LOOKS } else { 1 };
        if watch.quiet < looks {
            return Ok(Look::Working);
        }
        recovery.left = left;
        let mut errors: Vec<_> = recovery.failure.iter().cloned().collect();
        if !recovery.left.is_empty() {
            let left = recovery.left.join(", ");
            errors.push(format!("temporary tables are left, delete them by hand: {left}"));
        }
        Ok(Look::Ended(if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }))
    }

    /// What an operation's cell wants, as if it were another cell's.
    async fn wanted_as(
        &self,
        operation: &Operation,
        cell: &CellId,
    ) -> Result<Option<Vec<Wanted>>, CellsError> {
        let (set, version) = operation.goal.set();
        let Some(set) = self.records.table_set_at(set, version).await? else { return Ok(None) };
        let Some(target) = self.cells.cell(&operation.cell).await? else { return Ok(None) };
        // The source may have been unregistered: its name is what its tables and backups are found by.
        let source = Cell { id: cell.clone(), ..(*target).clone() };
        Ok(Some(Wanted::of(&set, &self.prefix, &source)))
    }
}

impl Goal {
    /// Whether a table that is not there may be made empty.
    pub(in crate::cells) fn makes_empty_tables(&self) -> bool {
        matches!(self, Goal::Provision { .. })
    }
}

fn gone() -> Look {
    Look::Ended(Err("the cell or its table set is gone".to_owned()))
}

fn no_backup(table: &TableRef, name: &str) -> Stop {
    Stop::Failed(format!("table {} has no whole backup {name}", table.name))
}
