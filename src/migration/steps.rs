//! The protocol's transactions as writes of the store.
//!
//! A guard that a migration holds has as many items as the migration says, and one that nobody holds has one, number 0. All items of a
//! guard change together and say the same, so a check of any of them is a check of the guard.

use cells_guard::StoredGuard;
use cells_migration::{
    Guard, GuardChange, GuardCheck, GuardEffect as Effect, GuardState, Phase, Placement as Placed,
    Side, Transaction, WriteMode,
};

use super::access::CellAccess;
use super::model::{Findings, Spec};
use crate::directory::MoveStep;
use crate::domain::{self, CellId, Epoch, Mapping, Placement, PlacementEvent};
use crate::store::{GuardEffect, GuardWrite, Write};

/// The two cells of a migration.
#[derive(Clone)]
pub struct Cells {
    pub source: CellAccess,
    pub target: CellAccess,
}

impl Cells {
    pub fn of(&self, side: Side) -> &CellAccess {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

/// The writes of a transaction but for the placement's.
pub fn writes(
    spec: &Spec,
    cells: &Cells,
    transaction: &Transaction,
    findings: Option<&Findings>,
) -> Vec<Write> {
    let mut writes = record_writes(spec, transaction, findings);
    let guards = &transaction.guards;
    writes.extend(guards.iter().flat_map(|change| guard_writes(spec, cells, change)));
    writes
}

/// Those of a migration's own record.
pub fn record_writes(
    spec: &Spec,
    transaction: &Transaction,
    findings: Option<&Findings>,
) -> Vec<Write> {
    let Transaction { check, record, .. } = transaction;
    let (record, findings) = (record.clone(), findings.cloned());
    let mut writes = vec![Write::PutMigration { check: *check, record: record.clone(), findings }];
    if record.phase.ended() {
        let migration = record.id.into();
        writes.push(Write::EndMigration { tenant: spec.tenant.clone(), migration });
    }
    writes
}

fn guard_writes(spec: &Spec, cells: &Cells, change: &GuardChange) -> Vec<Write> {
    let cell = cells.of(change.side);
    let write = |shard: u8, check, effect| {
        Write::Guard(GuardWrite {
            table: cell.guards.clone(),
            cell: cell.cell.clone(),
            tenant: spec.tenant.clone(),
            shard,
            check,
            effect,
        })
    };
    // Of a guard that nobody holds there is one item to be checked.
    let free = matches!(change.check, GuardCheck::Vacant | GuardCheck::Idle { .. });
    let check = |shard: u8| (shard == 0 || !free).then_some(change.check);
    let effect = |shard: u8| match change.effect {
        Effect::Hold(holder) => GuardEffect::Hold(holder),
        Effect::Remove => GuardEffect::Remove,
        Effect::Set(guard) if guard.holder.is_none() && shard > 0 => GuardEffect::Remove,
        Effect::Set(guard) => GuardEffect::Set(stored(spec, cells, change.side, guard)),
    };
    (0..spec.guard_shards).map(|shard| write(shard, check(shard), effect(shard))).collect()
}

fn stored(spec: &Spec, cells: &Cells, side: Side, guard: Guard) -> StoredGuard {
    let moved = guard.state == GuardState::Moved;
    StoredGuard {
        guard,
        cell: cells.of(side).cell.as_str().to_owned(),
        shards: if guard.holder.is_some() { spec.guard_shards } else { 1 },
        next: moved.then(|| cells.of(side.other()).cell.as_str().to_owned()),
    }
}

/// The step of the directory that a transaction is which changes the placement. `None`: the placement is not as it asks.
pub fn step(
    spec: &Spec,
    cells: &Cells,
    transaction: &Transaction,
    findings: Option<&Findings>,
    present: Placement,
) -> Option<MoveStep> {
    let (before, after) = transaction.placement?;
    if !is(&present, cells, &before) {
        return None;
    }
    let cell = cells.of(after.side).cell.clone();
    let moves = cell != present.cell;
    let after = Placement {
        cell,
        epoch: Epoch::new(after.epoch)?,
        write_mode: mode(after.mode),
        migration: after.migration.map(Into::into),
        began_by: match (moves, present.began_by) {
            (true, _) => PlacementEvent::Moved,
            // What somebody else's router wrote becomes ours with our first change.
            (false, PlacementEvent::Adopted) => PlacementEvent::Imported,
            (false, began_by) => began_by,
        },
        ..present.clone()
    };
    let (gained, lost) = counted(cells, transaction);
    let writes = writes(spec, cells, transaction, findings);
    let assumed = Mapping::Placed(present.clone());
    Some(MoveStep { assumed, before: present, after, gained, lost, writes })
}

fn is(present: &Placement, cells: &Cells, asked: &Placed) -> bool {
    present.cell == cells.of(asked.side).cell
        && present.epoch.get() == asked.epoch
        && present.write_mode == mode(asked.mode)
        && present.migration == asked.migration.map(Into::into)
}

/// Both cells count the tenant while it moves: there is room for it in either.
fn counted(cells: &Cells, transaction: &Transaction) -> (Option<CellId>, Option<CellId>) {
    let record = &transaction.record;
    let cell = |side| Some(cells.of(side).cell.clone());
    match (transaction.check.phase, record.phase) {
        (Phase::Planned, Phase::Logging) => (cell(Side::Target), None),
        (_, Phase::Done) => (None, cell(record.live().other())),
        (_, Phase::Aborted) => (None, cell(Side::Target)),
        _ => (None, None),
    }
}

fn mode(mode: WriteMode) -> domain::WriteMode {
    match mode {
        WriteMode::Direct => domain::WriteMode::Direct,
        WriteMode::Logged => domain::WriteMode::Logged,
    }
}
