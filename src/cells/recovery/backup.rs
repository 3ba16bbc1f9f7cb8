//! How backups get on, look by look, and which of them go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::slot_of;
use super::work::gone;
use crate::cells::cloud::{Backup, CloudError, TableRef};
use crate::cells::error::CellsError;
use crate::cells::operation::Operation;
use crate::cells::worker::{Look, MAX_UNSEEN, Watched, Worker};
use crate::domain::CellId;

const DAY_MILLIS: i64 = 24 * 3600 * 1000;

/// Backups that are deleted in one look at most, so that other operations get on.
const MAX_DELETIONS: usize = 20;

/// How far a backup is, in memory alone: who takes over looks at all tables anew.
#[derive(Default)]
pub(in crate::cells) struct BackedUp {
    /// Tables whose backup is whole. They are not asked for again: a few such calls a second are let through.
    whole: BTreeSet<String>,
    /// What has been kept for long enough.
    old: VecDeque<(TableRef, Backup)>,
    /// By table how many of them AWS refused to delete, and the first code.
    refused: BTreeMap<String, (u64, String)>,
}

impl Operation {
    /// Which of a table's backups this operation made, by the name that it gives them. `None`: which ones had that name before is noted
    /// as of now, and nothing may be begun until this is written.
    ///
    /// A name alone does not do: a request id whose operation has been forgotten gives the same again. No times are compared, for they
    /// would be those of two clocks.
    pub(in crate::cells) fn own_backups<'a>(
        &mut self,
        table: &str,
        name: &str,
        backups: &'a [Backup],
    ) -> Option<Vec<&'a Backup>> {
        let named = backups.iter().filter(|one| one.name == name);
        if slot_of(&self.cell, name).is_some() {
            // There is one operation at a time for a slot, and what an earlier one made of it counts.
            return Some(named.collect());
        }
        if let Some(former) = self.former_backups.get(table) {
            return Some(named.filter(|one| !former.contains(&one.arn)).collect());
        }
        let former = named.map(|one| one.arn.clone()).collect();
        self.former_backups.insert(table.to_owned(), former);
        None
    }
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
        let mut left = 0;
        for wanted in &wanted {
            if watch.backed_up.whole.contains(&wanted.name) {
                continue;
            }
            let table = TableRef::from(wanted);
            let backups = match self.cloud.backups(&table).await {
                Err(CloudError::Unsupported) => {
                    let error = format!("table {}: this endpoint makes no backups", wanted.name);
                    return Ok(Look::Ended(Err(error)));
                }
                // Few such calls are let through in a second: what the others showed is not thrown away.
                Err(CloudError::Busy { code }) => {
                    tracing::debug!(code, table = wanted.name, "AWS is busy");
                    left += 1;
                    continue;
                }
                backups => backups?,
            };
            let Some(ours) = operation.own_backups(&wanted.name, backup, &backups) else {
                left += 1;
                continue;
            };
            if ours.is_empty() && watch.asked_again(&wanted.name, MAX_UNSEEN) {
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
            let whole = ours.into_iter().filter(|one| one.available);
            let Some(newest) = whole.max_by_key(|one| one.created) else {
                left += 1;
                continue;
            };
            let expired = |one: &&Backup| expired(&operation.cell, one, newest, keep_days);
            let old = backups.iter().filter(expired).map(|one| (table.clone(), one.clone()));
            watch.backed_up.old.extend(old);
            watch.backed_up.whole.insert(wanted.name.clone());
        }
        operation.steps_left = left;
        if left > 0 {
            return Ok(Look::Working);
        }
        // Only now that there is a newer one, which is whole.
        Ok(match self.retire(operation, &mut watch.backed_up).await {
            true => Look::Ended(Ok(())),
            false => Look::Working,
        })
    }

    /// Deletes backups, as far as one look goes. Answers whether that was all: those that AWS refuses to delete are left to the next
    /// operation, and told in a note for each table.
    async fn retire(&self, operation: &mut Operation, backed_up: &mut BackedUp) -> bool {
        for _ in 0..MAX_DELETIONS {
            let Some((table, one)) = backed_up.old.front() else { break };
            let code = match self.cloud.delete_backup(table, one).await {
                Ok(()) => {
                    let step = format!("delete the backup {}", one.name);
                    operation.done(&table.name, step, self.clock.now());
                    None
                }
                Err(CloudError::Busy { code }) => {
                    tracing::debug!(code, table = table.name, "AWS is busy");
                    return false;
                }
                Err(CloudError::Refused { code, detail }) => {
                    tracing::warn!(code, detail, backup = one.arn, "AWS refused a deletion");
                    Some(code)
                }
                Err(CloudError::Unsupported) => Some("no such call".to_owned()),
            };
            if let Some(code) = code {
                backed_up.refused.entry(table.name.clone()).or_insert((0, code)).0 += 1;
            }
            backed_up.old.pop_front();
        }
        let note = |(table, (count, code)): (&String, &(u64, String))| {
            format!("{table}: old backups stay, AWS refused to delete {count} with {code}")
        };
        operation.notes = backed_up.refused.iter().map(note).collect();
        backed_up.old.is_empty()
    }
}

/// Whether a schedule of this cell made a backup, an older one than `newest`, and it was kept for long enough when that was begun. Both
/// times are AWS's: our own clock may be wrong.
fn expired(cell: &CellId, one: &Backup, newest: &Backup, keep_days: Option<u32>) -> bool {
    let (Some(slot), Some(newest_slot), Some(days)) =
        (slot_of(cell, &one.name), slot_of(cell, &newest.name), keep_days)
    else {
        return false;
    };
    let age = newest.created.millis().saturating_sub(one.created.millis());
    one.available && slot < newest_slot && age > i64::from(days) * DAY_MILLIS
}
