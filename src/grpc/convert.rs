//! Domain types into messages.

use std::time::{Duration, Instant};

use cells_guard::{CellTable, CellTables};

use crate::directory::policy::{Candidate, Standing};
use crate::directory::{
    Clock, FallbackReason, Home, Registry, Residence, Routed, Source, Standing as Stand, Step,
};
use crate::domain::{
    Cell, CellState, Cluster, HistoryRecord, JournalId, Loads, Placement, PlacementEvent, Sequence,
    Timestamp, WriteMode,
};
use crate::proto::v1;

/// A placement with its cell's address, where the cell is registered.
pub fn placement(
    placement: &Placement,
    registry: Option<&Registry>,
    now: Timestamp,
) -> v1::Placement {
    let cell = registry.and_then(|registry| registry.cell(&placement.cell));
    v1::Placement {
        endpoint: cell.map_or_else(String::new, |cell| cell.endpoint.as_str().to_owned()),
        region: cell.map_or_else(String::new, |cell| cell.region.as_str().to_owned()),
        ..unaddressed(placement, now)
    }
}

/// A placement without its cell's address.
pub fn unaddressed(placement: &Placement, now: Timestamp) -> v1::Placement {
    v1::Placement {
        partition_key: placement.key.as_str().to_owned(),
        migration_id: placement.migration.map(|id| id.to_string()).unwrap_or_default(),
        ..bare_placement(&Residence::from(placement), || now)
    }
}

/// A placement without what a batch says once for all: key and address. `now` is asked only where the placement expires.
pub fn bare_placement(placement: &Residence, now: impl FnOnce() -> Timestamp) -> v1::Placement {
    let expired = placement.expires.is_some() && placement.expired(now());
    let state = match expired {
        true => v1::PlacementState::Expired,
        false => v1::PlacementState::Active,
    };
    v1::Placement {
        cell_id: placement.cell.as_str().to_owned(),
        epoch: placement.epoch.get(),
        write_mode: write_mode(placement.write_mode).into(),
        state: state.into(),
        create_time: placement.created.map(timestamp),
        update_time: placement.updated.map(timestamp),
        expire_time: placement.expires.map(timestamp),
        ..v1::Placement::default()
    }
}

/// What Resolve answers.
pub fn resolved(
    routed: &Routed,
    key: String,
    registry: Option<&Registry>,
    clock: &Clock,
) -> v1::ResolveResponse {
    let cell = registry.and_then(|registry| registry.cell(routed.cell()));
    let bare = match &routed.home {
        Home::Placed(placement) => bare_placement(placement, || clock.now()),
        Home::Default(cell) => guess(cell.as_str()),
    };
    v1::ResolveResponse {
        placement: Some(v1::Placement {
            partition_key: key,
            endpoint: cell.map_or_else(String::new, |cell| cell.endpoint.as_str().to_owned()),
            region: cell.map_or_else(String::new, |cell| cell.region.as_str().to_owned()),
            ..bare
        }),
        decision: Some(decision(routed, clock)),
    }
}

/// What BatchResolve answers for one key. What it says once for all is in [`Oldest`].
pub fn batch_result(routed: &Routed, now: impl FnOnce() -> Timestamp) -> v1::BatchResolveResult {
    let bare = match &routed.home {
        Home::Placed(placement) => bare_placement(placement, now),
        Home::Default(cell) => guess(cell.as_str()),
    };
    let (source, fallback_reason) = source(routed.source);
    v1::BatchResolveResult {
        outcome: Some(v1::batch_resolve_result::Outcome::Placement(bare)),
        decision: Some(v1::Decision {
            source: source.into(),
            authoritative: matches!(routed.home, Home::Placed(_)),
            fallback_reason: fallback_reason.into(),
            ..v1::Decision::default()
        }),
    }
}

/// The oldest of a batch's authoritative answers.
#[derive(Default)]
pub struct Oldest(Option<(Instant, Sequence, Option<Instant>)>);

impl Oldest {
    pub fn take(&mut self, routed: &Routed) {
        if matches!(routed.home, Home::Default(_)) {
            return;
        }
        let Routed { as_of, sequence, lease_until, .. } = *routed;
        self.0 = Some(match self.0 {
            None => (as_of, sequence, lease_until),
            // The least of all; no lease is less than any.
            Some(oldest) => {
                (as_of.min(oldest.0), sequence.min(oldest.1), lease_until.min(oldest.2))
            }
        });
    }

    /// Notes what the batch says once for all.
    pub fn note(self, response: &mut v1::BatchResolveResponse, clock: &Clock) {
        if let Some((as_of, sequence, lease_until)) = self.0 {
            let now = clock.instant();
            response.age = Some(duration(now.saturating_duration_since(as_of)));
            response.lease = lease_until.map(|end| duration(end.saturating_duration_since(now)));
            response.sequence = sequence.get();
        }
    }
}

fn guess(cell: &str) -> v1::Placement {
    v1::Placement { cell_id: cell.to_owned(), ..v1::Placement::default() }
}

fn decision(routed: &Routed, clock: &Clock) -> v1::Decision {
    let (source, reason) = source(routed.source);
    let bare = v1::Decision {
        source: source.into(),
        fallback_reason: reason.into(),
        steps: routed.steps.iter().map(step).collect(),
        ..v1::Decision::default()
    };
    if matches!(routed.home, Home::Default(_)) {
        return bare;
    }
    let now = clock.instant();
    let age = now.saturating_duration_since(routed.as_of);
    let left = |end: Instant| duration(end.saturating_duration_since(now));
    v1::Decision {
        authoritative: true,
        age: Some(duration(age)),
        lease: routed.lease_until.map(left),
        sequence: routed.sequence.get(),
        ..bare
    }
}

fn source(source: Source) -> (v1::DecisionSource, v1::FallbackReason) {
    match source {
        Source::Memory => (v1::DecisionSource::Memory, v1::FallbackReason::Unspecified),
        Source::Table => (v1::DecisionSource::Table, v1::FallbackReason::Unspecified),
        Source::Assigned => (v1::DecisionSource::Assigned, v1::FallbackReason::Unspecified),
        Source::Fallback(reason) => (v1::DecisionSource::Fallback, fallback_reason(reason)),
    }
}

fn fallback_reason(reason: FallbackReason) -> v1::FallbackReason {
    match reason {
        FallbackReason::Timeout => v1::FallbackReason::Timeout,
        FallbackReason::Throttled => v1::FallbackReason::Throttled,
        FallbackReason::Unavailable => v1::FallbackReason::Unavailable,
        FallbackReason::NotReady => v1::FallbackReason::NotReady,
    }
}

fn step(step: &Step) -> v1::DecisionStep {
    let chosen = step.candidates.first();
    let candidates = step.candidates.iter().map(|candidate| v1::Candidate {
        cell_id: candidate.cell.as_str().to_owned(),
        eligible: candidate.eligible(),
        reason: reason(candidate, chosen.is_some_and(|chosen| chosen == candidate)),
        score: match candidate.standing {
            Standing::Ranked { score, .. } => Some(score),
            Standing::NotDrawn | Standing::Ineligible { .. } => None,
        },
    });
    v1::DecisionStep {
        name: step.name.to_owned(),
        outcome: step.outcome.clone(),
        candidates: candidates.collect(),
    }
}

fn reason(candidate: &Candidate, chosen: bool) -> String {
    match &candidate.standing {
        Standing::Ranked { why, .. } if chosen => format!("chosen: {why}, the highest"),
        Standing::Ranked { why, .. } => why.clone(),
        Standing::NotDrawn => "not among the two cells drawn".to_owned(),
        Standing::Ineligible { why } => why.clone(),
    }
}

/// What Sync answers.
pub fn synced(standing: &Stand) -> v1::SyncResponse {
    v1::SyncResponse {
        sequence: standing.position.sequence.get(),
        age: Some(duration(standing.age)),
        lease: Some(duration(standing.lease)),
        journal_id: standing.position.journal.to_string(),
    }
}

pub fn cluster(cluster: &Cluster, journal: JournalId) -> v1::Cluster {
    v1::Cluster {
        lease_duration: Some(duration(cluster.lease.get())),
        etag: cluster.etag(),
        update_time: cluster.updated.map(timestamp),
        journal_id: journal.to_string(),
    }
}

pub fn cell(cell: &Cell) -> v1::Cell {
    let labels = cell.labels.iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    v1::Cell {
        cell_id: cell.id.as_str().to_owned(),
        region: cell.region.as_str().to_owned(),
        endpoint: cell.endpoint.as_str().to_owned(),
        labels: labels.collect(),
        weight: Some(cell.weight.get()),
        capacity: Some(cell.capacity.map_or(0, |capacity| capacity.get())),
        state: cell_state(cell.state).into(),
        etag: cell.etag(),
        create_time: Some(timestamp(cell.created)),
        update_time: Some(timestamp(cell.updated)),
        placement_count: cell.placements,
        load: None,
        tables: cell.tables.as_deref().map(cell_tables),
    }
}

pub fn cell_tables(tables: &CellTables) -> v1::CellTables {
    let table = |table: &CellTable| v1::CellTable {
        name: table.name.clone(),
        table_name: table.table_name.clone(),
        partition_key: table.partition_key.clone(),
        sort_key: table.sort_key.as_ref().map(|(name, _)| name.clone()).unwrap_or_default(),
        sort_key_type: table
            .sort_key
            .as_ref()
            .map(|(_, of)| of.as_str().into())
            .unwrap_or_default(),
        tenant_keys: table.tenant_keys.clone(),
        ttl_attribute: table.ttl_attribute.clone().unwrap_or_default(),
    };
    v1::CellTables {
        table_set_id: tables.set.clone(),
        version: tables.version,
        tables: tables.tables.iter().map(table).collect(),
        guards: tables.guards.clone().unwrap_or_default(),
        together: tables.together,
    }
}

/// A cell, and how busy it is as far as that is known.
pub fn cell_with_load(cell: &Cell, loads: &Loads) -> v1::Cell {
    let load = loads.get(&cell.id).map(|load| v1::CellLoad {
        measure_time: Some(timestamp(load.at)),
        utilisation: load.utilisation,
        throttled_per_minute: load.throttled_per_minute,
        item_count: load.items(),
        size_bytes: load.bytes(),
        overloaded: loads.overloaded(&cell.id).is_some(),
    });
    v1::Cell { load, ..self::cell(cell) }
}

fn cell_state(state: CellState) -> v1::CellState {
    match state {
        CellState::Active => v1::CellState::Active,
        CellState::Cordoned => v1::CellState::Cordoned,
        CellState::Draining => v1::CellState::Draining,
        CellState::Quarantined => v1::CellState::Quarantined,
        CellState::Retired => v1::CellState::Retired,
    }
}

/// The present placement, as the first entry of a history.
pub fn present(placement: &Placement) -> v1::PlacementHistoryEntry {
    v1::PlacementHistoryEntry {
        epoch: placement.epoch.get(),
        cell_id: placement.cell.as_str().to_owned(),
        began_by: event(placement.began_by).into(),
        begin_time: placement.updated.or(placement.created).map(timestamp),
        ended_by: v1::PlacementEvent::Unspecified.into(),
        end_time: None,
    }
}

pub fn past(record: &HistoryRecord) -> v1::PlacementHistoryEntry {
    v1::PlacementHistoryEntry {
        epoch: record.epoch.get(),
        cell_id: record.cell.as_str().to_owned(),
        began_by: event(record.began_by).into(),
        begin_time: record.began.map(timestamp),
        ended_by: event(record.ended_by).into(),
        end_time: Some(timestamp(record.ended)),
    }
}

fn event(event: PlacementEvent) -> v1::PlacementEvent {
    match event {
        PlacementEvent::Assigned => v1::PlacementEvent::Assigned,
        PlacementEvent::Pinned => v1::PlacementEvent::Pinned,
        PlacementEvent::Imported => v1::PlacementEvent::Imported,
        PlacementEvent::Adopted => v1::PlacementEvent::Adopted,
        PlacementEvent::Deleted => v1::PlacementEvent::Deleted,
        PlacementEvent::Expired => v1::PlacementEvent::Expired,
        PlacementEvent::Moved => v1::PlacementEvent::Moved,
    }
}

fn write_mode(mode: WriteMode) -> v1::WriteMode {
    match mode {
        WriteMode::Direct => v1::WriteMode::Direct,
        WriteMode::Logged => v1::WriteMode::Logged,
    }
}

pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.millis().rem_euclid(1000) * 1_000_000;
    prost_types::Timestamp {
        seconds: time.seconds(),
        // Below 1,000,000,000.
        nanos: i32::try_from(nanos).unwrap_or(0),
    }
}

/// 0 where the second comes before the first.
pub fn duration_between(from: Timestamp, to: Timestamp) -> prost_types::Duration {
    duration(to.since(from))
}

pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Below 1,000,000,000.
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}
