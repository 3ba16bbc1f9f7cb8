//! The store in memory: a real implementation, which passes the suite that the others pass, and loses all with its process.
//!
//! Invariant: everything is under one lock, so each call sees and leaves a state between two commits, and all reads are strongly
//! consistent, those of the index included. A commit checks all of its conditions before it writes anything.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use cells_guard::StoredGuard;
use cells_migration::{GuardCheck, Record, Wish};
use parking_lot::Mutex;

use super::{
    Commit, CommitOutcome, Cursor, Expected, Found, GuardEffect, GuardWrite, Head, Journal, Page,
    Placements, Refusal, StoreError, Write,
};
use crate::domain::{
    Cell, CellId, Cluster, Epoch, HistoryRecord, JournalEntry, JournalId, Mapping, MigrationId,
    PartitionKey, Placement, RequestId, RequestRecord, Sequence, Timestamp,
};
use crate::migration::bulk::Part;
use crate::migration::{Begun, Migration, MigrationRecords, Order, Told};

/// Placements and journal in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    head: Sequence,
    trimmed: Sequence,
    journal: JournalId,
    cluster: Cluster,
    entries: BTreeMap<Sequence, JournalEntry>,
    /// Never [`Mapping::Absent`].
    mappings: BTreeMap<PartitionKey, Mapping>,
    /// Settings; what they say of the count does not count.
    cells: BTreeMap<CellId, Cell>,
    /// May fall below zero for placements that were there before their cell was registered.
    counts: BTreeMap<CellId, (i64, Sequence)>,
    history: BTreeMap<(PartitionKey, Epoch), HistoryRecord>,
    requests: BTreeMap<RequestId, RequestRecord>,
    guards: BTreeMap<GuardKey, StoredGuard>,
    migrations: BTreeMap<MigrationId, Migration>,
    moving: BTreeMap<PartitionKey, MigrationId>,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store whose journal's head is at `head`, as if older entries had been forgotten.
    pub fn starting_at(head: Sequence) -> Self {
        let store = Self::default();
        let mut state = store.state.lock();
        (state.head, state.trimmed) = (head, head);
        drop(state);
        store
    }

    /// The first shards of all guards, by their tenants.
    pub fn guards(&self) -> Vec<(PartitionKey, StoredGuard)> {
        let state = self.state.lock();
        let first = state.guards.iter().filter(|((_, _, shard), _)| *shard == 0);
        first.map(|((_, tenant, _), guard)| (tenant.clone(), guard.clone())).collect()
    }

    /// Writes a placement as somebody else's router would: without condition and without a journal entry. What it says of epoch,
    /// mode and origin is for it to say ([`Placement::adopted`]).
    pub fn adopt(&self, placement: Placement) {
        let mut state = self.state.lock();
        let key = placement.key.clone();
        state.mappings.insert(key, Mapping::Placed(placement));
    }
}

#[async_trait]
impl Placements for MemoryStore {
    async fn mapping(&self, key: &PartitionKey) -> Result<Mapping, StoreError> {
        Ok(self.state.lock().mapping(key))
    }

    async fn mappings(&self, keys: &[PartitionKey]) -> Vec<Result<Mapping, StoreError>> {
        let state = self.state.lock();
        keys.iter().map(|key| Ok(state.mapping(key))).collect()
    }

    async fn list(
        &self,
        cell: Option<&CellId>,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let wanted = |placement: &Placement| cell.is_none_or(|cell| placement.cell == *cell);
        // Unlike a table's scan, a page examines as many items as it takes to fill it.
        self.state.lock().page(limit, usize::MAX, after, wanted)
    }

    async fn count(&self, cell: &CellId) -> Result<u64, StoreError> {
        let state = self.state.lock();
        let placed = state.mappings.values().filter_map(Mapping::placement);
        let count = placed.filter(|placement| placement.cell == *cell).count();
        Ok(u64::try_from(count).unwrap_or(u64::MAX))
    }

    async fn expired(
        &self,
        now: Timestamp,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let wanted = |placement: &Placement| placement.expired(now);
        self.state.lock().page(limit, limit, after, wanted)
    }

    async fn scan(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        self.state.lock().page(limit, limit, after, |_| true)
    }

    async fn history(
        &self,
        key: &PartitionKey,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<HistoryRecord>, StoreError> {
        let before = match after {
            // An epoch saturates at its largest value, so that is included.
            None => Bound::Included((key.clone(), Epoch::new(u64::MAX).unwrap_or(Epoch::FIRST))),
            Some(Cursor(text)) => {
                let epoch = text.parse().ok().and_then(Epoch::new);
                Bound::Excluded((key.clone(), epoch.ok_or_else(invalid_cursor)?))
            }
        };
        if before == Bound::Excluded((key.clone(), Epoch::FIRST)) {
            return Ok(Page { items: Vec::new(), next: None });
        }
        let state = self.state.lock();
        let first = Bound::Included((key.clone(), Epoch::FIRST));
        let records = state.history.range((first, before)).rev();
        let records = records.take(limit.max(1).saturating_add(1));
        let mut items: Vec<_> = records.map(|(_, record)| record.clone()).collect();
        let more = items.len() > limit.max(1);
        items.truncate(limit.max(1));
        let last = items.last().filter(|_| more);
        let next = last.map(|record| Cursor(record.epoch.to_string()));
        Ok(Page { items, next })
    }
}

#[async_trait]
impl Journal for MemoryStore {
    async fn head(&self) -> Result<Head, StoreError> {
        let state = self.state.lock();
        Ok(Head { sequence: state.head, journal: state.journal })
    }

    async fn entries(
        &self,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let state = self.state.lock();
        if after < state.trimmed {
            return Ok(Vec::new());
        }
        let entries = state.entries.range((Bound::Excluded(after), Bound::Unbounded));
        Ok(entries.take(limit).map(|(_, entry)| entry.clone()).collect())
    }

    async fn trimmed(&self) -> Result<Sequence, StoreError> {
        Ok(self.state.lock().trimmed)
    }

    async fn trim(&self, last: Sequence) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        if last >= state.head {
            return Err(StoreError::Rejected { detail: "the head cannot be trimmed".into() });
        }
        state.trimmed = state.trimmed.max(last);
        let first = state.trimmed.next();
        let kept = state.entries.split_off(&first);
        state.entries = kept;
        Ok(())
    }

    async fn rename(&self, head: Head, id: JournalId) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        let as_given = (state.head, state.journal) == (head.sequence, head.journal);
        if as_given {
            state.journal = id;
        }
        Ok(as_given)
    }

    async fn cluster(&self) -> Result<Cluster, StoreError> {
        Ok(self.state.lock().cluster.clone())
    }

    async fn cells(&self) -> Result<Vec<Cell>, StoreError> {
        let state = self.state.lock();
        let cell = |settings: &Cell| {
            let count = state.counts.get(&settings.id);
            let (placements, at) = count.copied().unwrap_or((0, settings.revision));
            Cell {
                placements: u64::try_from(placements).unwrap_or(0),
                counted_at: at,
                ..settings.clone()
            }
        };
        Ok(state.cells.values().map(cell).collect())
    }

    async fn request(&self, id: &RequestId) -> Result<Option<RequestRecord>, StoreError> {
        Ok(self.state.lock().requests.get(id).cloned())
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome, StoreError> {
        if let Some(problem) = commit.malformed() {
            return Err(StoreError::Rejected { detail: problem.into() });
        }
        let mut state = self.state.lock();
        if state.head.next() != commit.entry.sequence {
            return Ok(CommitOutcome::HeadMoved);
        }
        let refusals = state.refusals(commit);
        if !refusals.is_empty() {
            return Ok(CommitOutcome::Refused(refusals));
        }
        for write in &commit.writes {
            state.apply(write, commit.entry.sequence, commit.entry.written);
        }
        state.head = commit.entry.sequence;
        let entry = commit.entry.clone();
        state.entries.insert(entry.sequence, entry);
        Ok(CommitOutcome::Committed)
    }
}

#[async_trait]
impl MigrationRecords for MemoryStore {
    async fn begin(
        &self,
        migration: &Migration,
        _part: Option<&Part>,
    ) -> Result<Begun, StoreError> {
        let mut state = self.state.lock();
        if let Some(existing) = state.migrations.get(&migration.id()) {
            return Ok(Begun::Exists(Box::new(existing.clone())));
        }
        if let Some(other) = state.moving.get(&migration.spec.tenant) {
            return Ok(Begun::Moving(*other));
        }
        state.moving.insert(migration.spec.tenant.clone(), migration.id());
        state.migrations.insert(migration.id(), migration.clone());
        Ok(Begun::Begun)
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError> {
        Ok(self.state.lock().migrations.get(&id).cloned())
    }

    async fn moving(&self) -> Result<Vec<(PartitionKey, MigrationId)>, StoreError> {
        let state = self.state.lock();
        Ok(state.moving.iter().map(|(tenant, id)| (tenant.clone(), *id)).collect())
    }

    async fn migrations(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Migration>, StoreError> {
        let place = |migration: &Migration| {
            format!("{:020}#{}", migration.created.millis(), migration.id())
        };
        let mut all: Vec<_> = self.state.lock().migrations.values().cloned().collect();
        all.sort_by_key(|migration| std::cmp::Reverse(place(migration)));
        all.retain(|migration| after.is_none_or(|after| place(migration) < after.0));
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(|last| Cursor(place(last)));
        Ok(Page { items: all, next })
    }

    async fn write(&self, writes: &[Write], now: Timestamp) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        if writes.iter().any(|write| state.in_the_way_of(write, now).is_some()) {
            return Ok(false);
        }
        let head = state.head;
        writes.iter().for_each(|write| state.apply(write, head, now));
        Ok(true)
    }

    async fn tell(
        &self,
        id: MigrationId,
        worker: u64,
        told: &Told,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        let kept = state.migrations.get_mut(&id).filter(|kept| kept.record.worker == worker);
        let Some(kept) = kept else { return Ok(false) };
        let Told { beat, progress, trouble, parked } = told.clone();
        *kept = Migration { beat, progress, trouble, parked, updated: now, ..kept.clone() };
        Ok(true)
    }

    async fn order(
        &self,
        id: MigrationId,
        order: Order,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut state = self.state.lock();
        let Some(kept) = state.migrations.get_mut(&id) else { return Ok(false) };
        kept.updated = now;
        match order {
            Order::Wish(wish) => {
                kept.record.wish = Some(wish);
                kept.record.paused &= wish != Wish::Cancel;
            }
            Order::Pause(paused) => kept.record.paused = paused,
            Order::Unpark => kept.parked = None,
        }
        Ok(true)
    }
}

impl State {
    fn mapping(&self, key: &PartitionKey) -> Mapping {
        self.mappings.get(key).cloned().unwrap_or(Mapping::Absent)
    }

    /// At most `limit` placements of those wanted, from at most `examine` keys after the cursor.
    fn page(
        &self,
        limit: usize,
        examine: usize,
        after: Option<&Cursor>,
        wanted: impl Fn(&Placement) -> bool,
    ) -> Result<Page<Placement>, StoreError> {
        let after = match after {
            None => Bound::Unbounded,
            Some(Cursor(text)) => {
                Bound::Excluded(PartitionKey::new(text.as_str()).map_err(|_| invalid_cursor())?)
            }
        };
        let mut items = Vec::new();
        let mut last = None;
        let mut rest = self.mappings.range((after, Bound::Unbounded)).peekable();
        for (key, mapping) in rest.by_ref().take(examine.max(1)) {
            last = Some(key);
            items.extend(mapping.placement().filter(|p| wanted(p)).cloned());
            if items.len() >= limit.max(1) {
                break;
            }
        }
        let last = last.filter(|_| rest.peek().is_some());
        let next = last.map(|key| Cursor(key.as_str().to_owned()));
        Ok(Page { items, next })
    }

    fn refusals(&self, commit: &Commit) -> Vec<Refusal> {
        let now = commit.entry.written;
        let writes = commit.writes.iter().enumerate();
        let refused = writes.filter_map(|(write, what)| {
            let found = self.in_the_way_of(what, now)?;
            Some(Refusal { write, found })
        });
        refused.collect()
    }

    fn in_the_way_of(&self, write: &Write, now: Timestamp) -> Option<Found> {
        match write {
            Write::Place { placement, expect } => self.unexpected(&placement.key, expect),
            Write::Vacate { key, expect, .. } | Write::CheckPlacement { key, expect } => {
                self.unexpected(key, expect)
            }
            Write::PutRequest(record) => {
                let taken = self.requests.get(&record.id);
                let taken = taken.filter(|taken| taken.forget_after > now);
                taken.cloned().map(Found::Request)
            }
            Write::Guard(guard) => {
                let holds = guard.check.is_none_or(|check| self.guard_holds(guard, &check));
                (!holds).then_some(Found::Superseded)
            }
            Write::PutMigration { check, .. } => {
                let kept = self.migrations.get(&check.id.into());
                let holds = kept.is_some_and(|kept| check.holds(&kept.record));
                (!holds).then_some(Found::Superseded)
            }
            Write::EndMigration { tenant, migration } => {
                let holds = self.moving.get(tenant) == Some(migration);
                (!holds).then_some(Found::Superseded)
            }
            Write::AddHistory(_)
            | Write::PutCell { .. }
            | Write::RemoveCell(_)
            | Write::AddToCount { .. }
            | Write::PutCluster(_) => None,
        }
    }

    fn unexpected(&self, key: &PartitionKey, expect: &Expected) -> Option<Found> {
        let present = self.mapping(key);
        let met = match (expect, &present) {
            (Expected::Absent, Mapping::Absent) => true,
            (Expected::Vacated(epoch), Mapping::Vacated(present)) => epoch == present,
            (Expected::Placed { cell, epoch, adopted, migration }, Mapping::Placed(present)) => {
                let same = *cell == present.cell && *adopted == present.adopted();
                let same = same && *migration == present.migration;
                // An adopted item has no epoch to compare.
                same && (*adopted || *epoch == present.epoch)
            }
            _ => false,
        };
        (!met).then_some(Found::Mapping(present))
    }

    fn apply(&mut self, write: &Write, sequence: Sequence, now: Timestamp) {
        match write.clone() {
            Write::Place { placement, .. } => {
                let key = placement.key.clone();
                self.mappings.insert(key, Mapping::Placed(placement));
            }
            Write::Vacate { key, epoch, .. } => {
                self.mappings.insert(key, Mapping::Vacated(epoch));
            }
            Write::CheckPlacement { .. } => {}
            Write::AddHistory(record) => {
                self.history.insert((record.key.clone(), record.epoch), record);
            }
            Write::PutCell { cell, set_count } => {
                if set_count {
                    let count = i64::try_from(cell.placements).unwrap_or(i64::MAX);
                    self.counts.insert(cell.id.clone(), (count, cell.counted_at));
                }
                self.cells.insert(cell.id.clone(), cell);
            }
            Write::RemoveCell(id) => {
                self.cells.remove(&id);
                self.counts.remove(&id);
            }
            Write::AddToCount { cell, delta } => {
                let count = self.counts.entry(cell).or_insert((0, sequence));
                *count = (count.0.saturating_add(delta), sequence);
            }
            Write::PutRequest(record) => {
                self.requests.insert(record.id.clone(), record);
            }
            Write::PutCluster(cluster) => self.cluster = cluster,
            Write::Guard(guard) => self.change_guard(guard),
            Write::PutMigration { record, findings, .. } => {
                if let Some(kept) = self.migrations.get_mut(&record.id.into()) {
                    let Record { wish, paused, phase, .. } = kept.record;
                    if record.phase != phase {
                        kept.phase_since = now;
                    }
                    kept.record = Record { wish, paused, ..record };
                    kept.findings = findings;
                }
            }
            Write::EndMigration { tenant, .. } => {
                self.moving.remove(&tenant);
            }
        }
    }

    fn guard_holds(&self, write: &GuardWrite, check: &GuardCheck) -> bool {
        let stored = self.guards.get(&guard_key(write));
        // Another cell's, in a copy of its table, counts as none.
        let ours = stored.filter(|stored| stored.cell == write.cell.as_str());
        check.holds(ours.map(|stored| &stored.guard))
    }

    fn change_guard(&mut self, write: GuardWrite) {
        let key = guard_key(&write);
        match write.effect {
            GuardEffect::Set(guard) => {
                self.guards.insert(key, guard);
            }
            GuardEffect::Hold(holder) => {
                if let Some(stored) = self.guards.get_mut(&key) {
                    stored.guard.holder = Some(holder);
                }
            }
            GuardEffect::Remove => {
                self.guards.remove(&key);
            }
        }
    }
}

/// The name of its table, the tenant, and the shard.
type GuardKey = (String, PartitionKey, u8);

fn guard_key(write: &GuardWrite) -> GuardKey {
    (write.table.table_name.clone(), write.tenant.clone(), write.shard)
}

fn invalid_cursor() -> StoreError {
    StoreError::ForeignCursor
}
