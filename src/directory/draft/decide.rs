//! What a command comes to on a given registry: refused, nothing to do, or a change with its writes. Pure.

use std::sync::Arc;

use cells_guard::StoredGuard;

use super::{Action, Addition, CellPatch, Destination, NewCell, Outcome, Step};
use crate::directory::error::Refused;
use crate::directory::policy::{AssignmentPolicy, Candidate, Newcomer, choose};
use crate::directory::registry::Registry;
use crate::domain::{
    Cell, CellId, CellState, Change, Cluster, Epoch, HistoryRecord, LeaseDuration, Loads, Mapping,
    PartitionKey, Placement, PlacementEvent, Sequence, Timestamp, WriteMode,
};
use crate::store::{Expected, GuardEffect, GuardWrite, Write};

/// Where and when a command is decided.
pub(super) struct Decision<'a> {
    pub policy: &'a dyn AssignmentPolicy,
    pub now: Timestamp,
    pub registry: &'a Registry,
    pub loads: &'a Loads,
}

impl Decision<'_> {
    /// `Ok(Err(outcome))`: nothing to do, and this is the answer.
    pub(super) fn decide(&self, action: &Action) -> Result<Result<Addition, Outcome>, Refused> {
        match action {
            Action::Place { key, assumed, destination, since, expires } => {
                self.place(key, assumed, destination, *since, *expires)
            }
            Action::Vacate { key, assumed, epoch, event } => {
                self.vacate(key, assumed, *epoch, *event).map(Ok)
            }
            Action::Move(step) => self.step(step).map(Ok),
            Action::CreateCell { cell, placements } => self.create_cell(cell, *placements).map(Ok),
            Action::UpdateCell { cell, patch, etag } => {
                self.update_cell(cell, patch, etag.as_deref()).map(Ok)
            }
            Action::DeleteCell { cell, etag } => self.delete_cell(cell, etag.as_deref()).map(Ok),
            Action::UpdateCluster { lease, longest, etag } => {
                self.update_cluster(*lease, *longest, etag.as_deref()).map(Ok)
            }
        }
    }

    fn place(
        &self,
        key: &PartitionKey,
        assumed: &Mapping,
        destination: &Destination,
        since: Option<Timestamp>,
        expires: Option<Timestamp>,
    ) -> Result<Result<Addition, Outcome>, Refused> {
        let expired = match assumed {
            Mapping::Placed(existing) if !existing.expired(self.now) => {
                return destination.settle_existing(existing).map(Err);
            }
            Mapping::Placed(expired) => Some(expired),
            Mapping::Absent | Mapping::Vacated(_) => None,
        };
        if let Destination::Best { only_at: Some(epoch), .. } = destination
            && assumed.next_epoch() != *epoch
        {
            return Err(Refused::Contended);
        }
        if let Some(migration) = expired.and_then(|expired| expired.migration) {
            return Err(Refused::Moving { migration });
        }
        let (cell, event, candidates) = self.destination(key, destination)?;
        let placement = Placement {
            key: key.clone(),
            cell: cell.clone(),
            epoch: assumed.next_epoch(),
            write_mode: WriteMode::Direct,
            began_by: event,
            created: Some(since.unwrap_or(self.now)),
            updated: Some(self.now),
            expires,
            migration: None,
        };
        let mut writes =
            vec![Write::Place { placement: placement.clone(), expect: Expected::from(assumed) }];
        writes.extend(
            expired.map(|old| Write::AddHistory(ended(old, PlacementEvent::Expired, self.now))),
        );
        writes.extend(self.open_guard(&placement));
        let left = expired.filter(|old| old.cell != cell);
        writes.extend(left.and_then(|old| self.drop_guard(old)));
        Ok(Ok(Addition {
            change: Change::Placed {
                placement: placement.clone(),
                replaced: expired.map(|old| old.cell.clone()),
            },
            writes,
            outcome: Outcome::Placed { placement: Arc::new(placement), created: true, candidates },
        }))
    }

    /// The cell that a tenant without one gets.
    fn destination(
        &self,
        key: &PartitionKey,
        destination: &Destination,
    ) -> Result<(CellId, PlacementEvent, Vec<Candidate>), Refused> {
        let known = |id: &CellId| {
            let cell = self.registry.cell(id);
            cell.ok_or_else(|| Refused::CellNotFound { cell: id.clone() })
        };
        match destination {
            Destination::Best { constraints, entropy, .. } => {
                let newcomer = Newcomer { key, constraints, entropy: *entropy };
                let candidates = choose(self.policy, newcomer, self.registry.cells(), self.loads);
                match candidates.first() {
                    Some(best) if best.eligible() => {
                        Ok((best.cell.clone(), PlacementEvent::Assigned, candidates))
                    }
                    _ => Err(Refused::NoEligibleCell { candidates }),
                }
            }
            Destination::Pinned(id) => match known(id)?.refuses_new_tenants() {
                None => Ok((id.clone(), PlacementEvent::Pinned, Vec::new())),
                Some(why) => Err(Refused::CellNotEligible { cell: id.clone(), why }),
            },
            Destination::Imported(id) if known(id)?.state == CellState::Retired => {
                let why = "is RETIRED".to_owned();
                Err(Refused::CellNotEligible { cell: id.clone(), why })
            }
            Destination::Imported(id) => Ok((id.clone(), PlacementEvent::Imported, Vec::new())),
        }
    }

    fn vacate(
        &self,
        key: &PartitionKey,
        assumed: &Mapping,
        epoch: Option<Epoch>,
        event: PlacementEvent,
    ) -> Result<Addition, Refused> {
        let Mapping::Placed(placement) = assumed else {
            return Err(Refused::PlacementNotFound);
        };
        if epoch.is_some_and(|epoch| epoch != placement.epoch) {
            return Err(Refused::EpochMismatch { present: placement.epoch });
        }
        // The sweeper read it as expired; it may have been replaced since.
        if event == PlacementEvent::Expired && !placement.expired(self.now) {
            return Err(Refused::PlacementNotFound);
        }
        if let Some(migration) = placement.migration {
            return Err(Refused::Moving { migration });
        }
        let mut writes = vec![
            Write::Vacate {
                key: key.clone(),
                epoch: placement.epoch,
                expect: Expected::from(assumed),
            },
            Write::AddHistory(ended(placement, event, self.now)),
        ];
        writes.extend(self.drop_guard(placement));
        Ok(Addition {
            change: Change::Vacated { placement: placement.clone() },
            writes,
            outcome: Outcome::Vacated(placement.clone()),
        })
    }

    /// What a migration does to a placement, its guards and its own record.
    fn step(&self, step: &Step) -> Result<Addition, Refused> {
        if step.assumed != Mapping::Placed(step.before.clone()) {
            return Err(Refused::Superseded);
        }
        let Step { before, after, gained, lost, .. } = step;
        let expect = Expected::from(&step.assumed);
        // Into the target, and so never on a way back: there both cells count the tenant all the while.
        if let Some(id) = gained {
            let cell = self.registry.cell(id);
            let cell = cell.ok_or_else(|| Refused::CellNotFound { cell: id.clone() })?;
            if let Some(why) = cell.refuses_new_tenants() {
                return Err(Refused::CellNotEligible { cell: id.clone(), why });
            }
        }
        let mut after = after.clone();
        let mut writes = step.writes.clone();
        if after.cell != before.cell {
            if self.registry.cell(&after.cell).is_none() {
                return Err(Refused::CellNotFound { cell: after.cell });
            }
            after.updated = Some(self.now);
            writes.push(Write::AddHistory(ended(before, PlacementEvent::Moved, self.now)));
        }
        writes.push(Write::Place { placement: after.clone(), expect });
        Ok(Addition {
            change: Change::Moved {
                placement: after.clone(),
                from: before.cell.clone(),
                gained: gained.clone(),
                lost: lost.clone(),
            },
            writes,
            outcome: Outcome::Moved(Arc::new(after)),
        })
    }

    /// The guard of a new tenant, in the same transaction as its placement: no cell but the tenant's own has an open one. No check is
    /// needed: that the tenant had no cell says that nobody holds a guard of it, and a former stay's marker gives way.
    fn open_guard(&self, placement: &Placement) -> Option<Write> {
        let guard = StoredGuard::open(placement.cell.as_str(), placement.epoch.get());
        self.guard(placement, GuardEffect::Set(guard))
    }

    fn drop_guard(&self, placement: &Placement) -> Option<Write> {
        self.guard(placement, GuardEffect::Remove)
    }

    /// `None`: the cell has no guards, or none that the same transaction reaches.
    fn guard(&self, placement: &Placement, effect: GuardEffect) -> Option<Write> {
        let table = self.registry.cell(&placement.cell)?.tables.as_ref()?.reachable_guards()?;
        let (cell, tenant) = (placement.cell.clone(), placement.key.clone());
        Some(Write::Guard(GuardWrite { table, cell, tenant, shard: 0, check: None, effect }))
    }

    fn create_cell(&self, new: &NewCell, placements: u64) -> Result<Addition, Refused> {
        if self.registry.cell(&new.id).is_some() {
            return Err(Refused::CellExists { cell: new.id.clone() });
        }
        let sequence = self.registry.applied().next();
        let cell = Cell {
            id: new.id.clone(),
            region: new.region.clone(),
            endpoint: new.endpoint.clone(),
            labels: new.labels.clone(),
            weight: new.weight,
            capacity: new.capacity,
            state: new.state,
            created: self.now,
            updated: self.now,
            revision: sequence,
            placements,
            counted_at: sequence,
            tables: None,
        };
        Ok(Addition {
            change: Change::CellCreated { cell: cell.clone() },
            writes: vec![Write::PutCell { cell: cell.clone(), set_count: true }],
            outcome: Outcome::Cell(cell),
        })
    }

    fn update_cell(
        &self,
        id: &CellId,
        patch: &CellPatch,
        etag: Option<&str>,
    ) -> Result<Addition, Refused> {
        let known = self.known(id, etag)?;
        let state = patch.state.unwrap_or(known.state);
        if known.state == CellState::Retired && state != CellState::Retired {
            return Err(Refused::StateChangeNotAllowed {
                cell: id.clone(),
                from: known.state,
                to: state,
            });
        }
        if state == CellState::Retired && known.placements > 0 {
            return Err(Refused::CellNotEmpty { cell: id.clone() });
        }
        // Without its tables a cell has no guards, and with them its tenants would lose theirs.
        if patch.tables == Some(None) && known.placements > 0 {
            return Err(Refused::CellNotEmpty { cell: id.clone() });
        }
        let patch = patch.clone();
        let cell = Cell {
            tables: patch.tables.unwrap_or_else(|| known.tables.clone()),
            endpoint: patch.endpoint.unwrap_or_else(|| known.endpoint.clone()),
            labels: patch.labels.unwrap_or_else(|| known.labels.clone()),
            weight: patch.weight.unwrap_or(known.weight),
            capacity: patch.capacity.unwrap_or(known.capacity),
            state,
            updated: self.now,
            revision: self.registry.applied().next(),
            ..Cell::clone(known)
        };
        Ok(Addition {
            change: Change::CellUpdated { cell: cell.clone() },
            writes: vec![Write::PutCell { cell: cell.clone(), set_count: false }],
            outcome: Outcome::Cell(cell),
        })
    }

    fn delete_cell(&self, id: &CellId, etag: Option<&str>) -> Result<Addition, Refused> {
        if self.known(id, etag)?.placements > 0 {
            return Err(Refused::CellNotEmpty { cell: id.clone() });
        }
        Ok(Addition {
            change: Change::CellDeleted { cell: id.clone() },
            writes: vec![Write::RemoveCell(id.clone())],
            outcome: Outcome::CellDeleted,
        })
    }

    fn update_cluster(
        &self,
        lease: LeaseDuration,
        (revision, longest): (Sequence, LeaseDuration),
        etag: Option<&str>,
    ) -> Result<Addition, Refused> {
        let present = self.registry.cluster();
        if etag.is_some_and(|etag| etag != present.etag()) {
            return Err(Refused::EtagMismatch { present: present.etag() });
        }
        // Changed meanwhile: what was about when they were is still as long as can be.
        let longest = if revision == present.revision { longest } else { present.longest };
        let cluster = Cluster {
            lease,
            longest: longest.max(present.lease),
            updated: Some(self.now),
            revision: self.registry.applied().next(),
        };
        Ok(Addition {
            change: Change::ClusterUpdated { cluster: cluster.clone() },
            writes: vec![Write::PutCluster(cluster.clone())],
            outcome: Outcome::Cluster(cluster),
        })
    }

    fn known(&self, id: &CellId, etag: Option<&str>) -> Result<&Arc<Cell>, Refused> {
        let cell = self.registry.cell(id);
        let cell = cell.ok_or_else(|| Refused::CellNotFound { cell: id.clone() })?;
        if etag.is_some_and(|etag| etag != cell.etag()) {
            return Err(Refused::EtagMismatch { present: cell.etag() });
        }
        Ok(cell)
    }
}

impl Destination {
    /// The answer where the tenant has a cell already.
    fn settle_existing(&self, existing: &Placement) -> Result<Outcome, Refused> {
        match self {
            Destination::Pinned(cell) | Destination::Imported(cell) if *cell != existing.cell => {
                Err(Refused::PlacementExists { existing: Box::new(existing.clone()) })
            }
            _ => Ok(Outcome::Placed {
                placement: Arc::new(existing.clone()),
                created: false,
                candidates: Vec::new(),
            }),
        }
    }
}

fn ended(placement: &Placement, event: PlacementEvent, now: Timestamp) -> HistoryRecord {
    HistoryRecord {
        key: placement.key.clone(),
        epoch: placement.epoch,
        cell: placement.cell.clone(),
        began_by: placement.began_by,
        began: placement.updated.or(placement.created),
        ended_by: event,
        ended: now,
    }
}
