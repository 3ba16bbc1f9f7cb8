//! How drills get on, look by look.

use std::time::Duration;

use super::work::{Pair, Stop, gone};
use super::{Comparison, Origin, Side, drill_table};
use crate::cells::cloud::{CloudError, TableRef};
use crate::cells::error::CellsError;
use crate::cells::operation::Operation;
use crate::cells::plan::{Change, Wanted};
use crate::cells::worker::{Look, Watched, Worker};

/// How long a look goes on comparing, at most, and at most this part of the time to a taking over. Short, so that other operations get
/// on meanwhile and the beat is seen.
const COMPARING: Duration = Duration::from_secs(5);
const PART_OF_TAKEOVER: u32 = 4;

/// Looks in a row that find no temporary table, until a drill that failed takes them for gone: a restore that a dead worker asked for may
/// show late. As often is asked before a table is left that AWS refuses to delete.
const QUIET_LOOKS: u32 = 3;

const HOUR_MILLIS: i64 = 3600 * 1000;

/// How long a drill waits until what it restores is usable, and how long until all of it is compared.
const MAX_RESTORING_MILLIS: i64 = 72 * HOUR_MILLIS;
const MAX_COMPARING_MILLIS: i64 = 72 * HOUR_MILLIS;

/// How long temporary tables are waited for that do not go.
const MAX_CLEANING_MILLIS: i64 = 24 * HOUR_MILLIS;

/// How a temporary table's removal stands.
enum Cleared {
    Gone,
    Going,
    /// It is none of the drill's.
    Foreign,
}

impl Worker {
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
        let Some(usable) = recovery.usable else {
            if now.millis().saturating_sub(operation.created.millis()) > MAX_RESTORING_MILLIS {
                return Err(Stop::Failed("the tables were not usable within 72 hours".to_owned()));
            }
            if self.restored(operation, pairs, from, true).await? {
                operation.recovery.get_or_insert_default().usable = Some(self.clock.now());
            }
            return Ok(());
        };
        let comparing = now.millis().saturating_sub(usable.millis());
        if comparing > MAX_COMPARING_MILLIS {
            return Err(Stop::Failed("the tables were not compared within 72 hours".to_owned()));
        }
        // Each takes memory: one at a time, and meanwhile others only show that somebody is at work.
        if !watch.may_compare {
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

    /// Deletes the temporary tables, and ends the drill when they are gone, or will not go.
    async fn clean_up(
        &self,
        operation: &mut Operation,
        watch: &mut Watched,
        wanted: &[Wanted],
        pairs: &[Pair],
    ) -> Result<Look, CellsError> {
        watch.comparison = None;
        let now = self.clock.now();
        let recovery = operation.recovery.get_or_insert_default();
        let since = *recovery.cleaning.get_or_insert(now);
        let (mut going, mut left) = (Vec::new(), Vec::new());
        for (wanted, pair) in wanted.iter().zip(pairs) {
            let name = &pair.target.name;
            match self.clear(operation, wanted, pair).await {
                Ok(Cleared::Gone) => {}
                Ok(Cleared::Going) => going.push(format!("{name}: it was not gone in time")),
                Ok(Cleared::Foreign) => {
                    left.push(format!("{name}: it was not restored by this drill"));
                }
                Err(CloudError::Busy { code }) => {
                    going.push(format!("{name}: AWS was busy with {code}"));
                }
                Err(CloudError::Refused { code, detail }) => {
                    tracing::warn!(code, detail, table = name, "AWS refused a deletion");
                    left.push(format!("{name}: AWS refused to delete it with {code}"));
                }
                Err(CloudError::Unsupported) => {
                    left.push(format!("{name}: this endpoint cannot delete it"));
                }
            }
        }
        watch.quiet = if going.is_empty() { watch.quiet + 1 } else { 0 };
        operation.steps_left = going.len() as u64;
        let recovery = operation.recovery.get_or_insert_default();
        let careful = recovery.failure.is_some() || !left.is_empty();
        let looks = if careful { QUIET_LOOKS } else { 1 };
        let in_time = now.millis().saturating_sub(since.millis()) <= MAX_CLEANING_MILLIS;
        if watch.quiet < looks && in_time {
            return Ok(Look::Working);
        }
        left.extend(going);
        recovery.left = left;
        let mut errors: Vec<_> = recovery.failure.iter().cloned().collect();
        if !recovery.left.is_empty() {
            let left = recovery.left.join(", ");
            errors.push(format!("temporary tables are left, delete them by hand: {left}"));
        }
        Ok(Look::Ended(if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }))
    }

    /// The next step of a temporary table's removal.
    async fn clear(
        &self,
        operation: &mut Operation,
        wanted: &Wanted,
        Pair { source, target }: &Pair,
    ) -> Result<Cleared, CloudError> {
        let Some(is) = self.cloud.observe(target).await? else { return Ok(Cleared::Gone) };
        if is.restored_from.as_deref() != Some(source.name.as_str()) {
            return Ok(Cleared::Foreign);
        }
        match is.status.as_str() {
            // Neither takes a deletion.
            "DELETING" | "CREATING" | "UPDATING" => {}
            // Not that we ever protect one.
            _ if is.deletion_protection => {
                let target = Wanted { name: target.name.clone(), ..wanted.clone() };
                self.cloud.apply(&target, &Change::SetDeletionProtection(false)).await?;
            }
            _ => {
                self.cloud.delete(target).await?;
                let step = "delete the temporary table".to_owned();
                operation.done(&target.name, step, self.clock.now());
            }
        }
        Ok(Cleared::Going)
    }
}
