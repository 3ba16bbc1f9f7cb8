//! Drafts of journal entries: what a batch of commands changes, decided on the state as of the journal's head. Pure.
//!
//! A command is drafted against the registry as the commands before it leave it, and against what it assumes the table to say of
//! its key. Both are preconditions of the commit: the first by the journal's head, the second by the write's own condition. Where the
//! table says otherwise the commit is refused with what it says, and the command is drafted again with that.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::error::Refused;
use super::policy::{AssignmentPolicy, Candidate, Newcomer, choose};
use super::registry::{Registry, total_deltas};
use crate::domain::{
    Capacity, Cell, CellId, CellState, Change, Constraints, Endpoint, Epoch, HistoryRecord,
    JournalEntry, Labels, Mapping, Nonce, PartitionKey, Placement, PlacementEvent, Region,
    RequestId, RequestRecord, StoredOutcome, Timestamp, Weight, WriteMode,
};
use crate::store::{self, Commit, Expected, MAX_ENTRY_BYTES, MAX_WRITES, Write};

/// A change that is asked for.
#[derive(Debug, Clone)]
pub struct Command {
    pub action: Action,
    /// Makes the command safe to repeat.
    pub request: Option<Request>,
}

/// A request's name and what it asks, by which a repeat is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub id: RequestId,
    pub method: String,
    pub digest: String,
}

impl Request {
    /// What the request is answered, given what its id was used for.
    ///
    /// # Errors
    /// [`Refused::RequestIdReused`] where it was used for something else.
    pub fn repeat_of(&self, record: RequestRecord) -> Result<Outcome, Refused> {
        if record.method == self.method && record.digest == self.digest {
            Ok(Outcome::from_stored(record.outcome))
        } else {
            Err(Refused::RequestIdReused)
        }
    }
}

#[derive(Debug, Clone)]
pub enum Action {
    /// Give a tenant a cell. `assumed` is what the table is taken to say of it.
    Place {
        key: PartitionKey,
        assumed: Mapping,
        destination: Destination,
        since: Option<Timestamp>,
        expires: Option<Timestamp>,
    },
    /// Take a tenant's cell away, by [`PlacementEvent::Deleted`] or [`PlacementEvent::Expired`].
    Vacate {
        key: PartitionKey,
        assumed: Mapping,
        /// Only at this epoch.
        epoch: Option<Epoch>,
        event: PlacementEvent,
    },
    CreateCell {
        cell: NewCell,
        /// Placements that an adopted table has in the cell already.
        placements: u64,
    },
    UpdateCell {
        cell: CellId,
        patch: CellPatch,
        etag: Option<String>,
    },
    DeleteCell {
        cell: CellId,
        etag: Option<String>,
    },
}

/// Which cell a tenant gets.
#[derive(Debug, Clone)]
pub enum Destination {
    /// The best by the policy.
    Best { constraints: Arc<Constraints>, entropy: u64 },
    /// This one, if it takes new tenants.
    Pinned(CellId),
    /// This one, where the tenant lives already.
    Imported(CellId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCell {
    pub id: CellId,
    pub region: Region,
    pub endpoint: Endpoint,
    pub labels: Labels,
    pub weight: Weight,
    pub capacity: Capacity,
    pub state: CellState,
}

/// What to change of a cell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CellPatch {
    pub endpoint: Option<Endpoint>,
    pub labels: Option<Labels>,
    pub weight: Option<Weight>,
    pub capacity: Option<Capacity>,
    pub state: Option<CellState>,
}

/// What a command comes to, once its entry is committed.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The tenant has a cell: `created` by this command, or it had it before.
    Placed {
        placement: Arc<Placement>,
        created: bool,
        candidates: Vec<Candidate>,
    },
    Vacated(Placement),
    Cell(Cell),
    CellDeleted,
}

/// What drafting a command came to.
#[derive(Debug)]
pub enum Drafted {
    /// It is part of the draft.
    Included(Outcome),
    /// There is nothing to commit for it.
    Settled(Result<Outcome, Refused>),
    /// It does not fit in this entry: it touches what the entry changes already, or the entry is full.
    Deferred,
}

/// An entry being put together.
pub struct Draft<'a> {
    policy: &'a dyn AssignmentPolicy,
    now: Timestamp,
    request_retention: std::time::Duration,
    registry: Registry,
    changes: Vec<Change>,
    writes: Vec<Write>,
    /// For each write, the command (by the order of inclusion) that it belongs to.
    owners: Vec<usize>,
    touched: HashSet<Item>,
    items: usize,
    bytes: usize,
}

/// An item that a draft changes. A transaction may name an item only once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Mapping(PartitionKey),
    Cell(CellId),
    Request(RequestId),
}

/// What one command adds to a draft.
struct Addition {
    change: Change,
    writes: Vec<Write>,
    outcome: Outcome,
}

impl<'a> Draft<'a> {
    /// Starts an entry on top of `registry`.
    pub fn new(
        policy: &'a dyn AssignmentPolicy,
        registry: &Registry,
        now: Timestamp,
        request_retention: std::time::Duration,
    ) -> Self {
        Self {
            policy,
            now,
            request_retention,
            registry: registry.clone(),
            changes: Vec::new(),
            writes: Vec::new(),
            owners: Vec::new(),
            touched: HashSet::new(),
            items: 0,
            bytes: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Drafts a command.
    pub fn add(&mut self, command: &Command) -> Drafted {
        if self.touches(command) {
            return Drafted::Deferred;
        }
        let addition = match self.decide(&command.action) {
            Ok(Ok(addition)) => addition,
            Ok(Err(outcome)) => return Drafted::Settled(Ok(outcome)),
            Err(refused) => return Drafted::Settled(Err(refused)),
        };
        self.include(command, addition)
    }

    /// The finished entry and, for each of its writes but the counts at the end, the command (by the order of inclusion) that it
    /// belongs to.
    pub fn finish(self, nonce: Nonce) -> (Commit, Vec<usize>) {
        let mut writes = self.writes;
        let counts = total_deltas(&self.changes);
        writes.extend(
            counts
                .into_iter()
                .filter(|(cell, delta)| *delta != 0 && self.registry.cell(cell).is_some())
                .map(|(cell, delta)| Write::AddToCount { cell: cell.clone(), delta }),
        );
        let entry = JournalEntry {
            sequence: self.registry.applied().next(),
            nonce,
            written: self.now,
            changes: self.changes,
        };
        (Commit { entry, writes }, self.owners)
    }

    fn touches(&self, command: &Command) -> bool {
        let request = command.request.as_ref();
        request.is_some_and(|r| self.touched.contains(&Item::Request(r.id.clone())))
            || self.touched.contains(&command.action.item())
    }

    /// Adds to the draft if it fits.
    fn include(&mut self, command: &Command, addition: Addition) -> Drafted {
        let Addition { change, mut writes, outcome } = addition;
        if let Some(request) = &command.request {
            writes.push(Write::PutRequest(RequestRecord {
                id: request.id.clone(),
                method: request.method.clone(),
                digest: request.digest.clone(),
                outcome: outcome.stored(),
                forget_after: self.now.plus(self.request_retention),
            }));
        }
        // A placement's change may bring a count with it that no write of the draft has yet; one for each cell is enough, and
        // allowing for two errs on the safe side.
        let count_items = self.counted_cells(&change);
        let count_touched =
            change.deltas().any(|(cell, _)| self.touched.contains(&Item::Cell(cell.clone())));
        let items = writes.iter().map(Write::items).sum::<usize>() + count_items;
        let bytes = store::encoded_len(&change);
        let full = self.items + items > MAX_WRITES || self.bytes + bytes > MAX_ENTRY_BYTES;
        if count_touched || (full && !self.is_empty()) {
            return Drafted::Deferred;
        }
        self.items += items;
        self.bytes += bytes;
        self.touched.insert(command.action.item());
        if let Some(request) = &command.request {
            self.touched.insert(Item::Request(request.id.clone()));
        }
        self.registry.anticipate(&change);
        // One change a command: its position is the command's.
        self.owners.resize(self.owners.len() + writes.len(), self.changes.len());
        self.changes.push(change);
        self.writes.append(&mut writes);
        Drafted::Included(outcome)
    }

    /// How many cells' counts a change moves that the draft has not moved yet.
    fn counted_cells(&self, change: &Change) -> usize {
        let moved: BTreeMap<_, _> = total_deltas(&self.changes);
        change.deltas().filter(|(cell, _)| !moved.contains_key(cell)).count()
    }

    /// `Ok(Err(outcome))`: nothing to do, and this is the answer.
    fn decide(&self, action: &Action) -> Result<Result<Addition, Outcome>, Refused> {
        match action {
            Action::Place { key, assumed, destination, since, expires } => {
                self.place(key, assumed, destination, *since, *expires)
            }
            Action::Vacate { key, assumed, epoch, event } => {
                self.vacate(key, assumed, *epoch, *event).map(Ok)
            }
            Action::CreateCell { cell, placements } => self.create_cell(cell, *placements).map(Ok),
            Action::UpdateCell { cell, patch, etag } => {
                self.update_cell(cell, patch, etag.as_deref()).map(Ok)
            }
            Action::DeleteCell { cell, etag } => self.delete_cell(cell, etag.as_deref()).map(Ok),
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
        let (cell, event, candidates) = self.destination(key, destination)?;
        let placement = Placement {
            key: key.clone(),
            cell,
            epoch: assumed.next_epoch(),
            write_mode: WriteMode::Direct,
            began_by: event,
            created: Some(since.unwrap_or(self.now)),
            updated: Some(self.now),
            expires,
        };
        let mut writes =
            vec![Write::Place { placement: placement.clone(), expect: Expected::from(assumed) }];
        writes.extend(
            expired.map(|old| Write::AddHistory(ended(old, PlacementEvent::Expired, self.now))),
        );
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
            Destination::Best { constraints, entropy } => {
                let newcomer = Newcomer { key, constraints, entropy: *entropy };
                let candidates = choose(self.policy, newcomer, self.registry.cells());
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
        Ok(Addition {
            change: Change::Vacated { placement: placement.clone() },
            writes: vec![
                Write::Vacate {
                    key: key.clone(),
                    epoch: placement.epoch,
                    expect: Expected::from(assumed),
                },
                Write::AddHistory(ended(placement, event, self.now)),
            ],
            outcome: Outcome::Vacated(placement.clone()),
        })
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
        let patch = patch.clone();
        let cell = Cell {
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

    fn known(&self, id: &CellId, etag: Option<&str>) -> Result<&Arc<Cell>, Refused> {
        let cell = self.registry.cell(id);
        let cell = cell.ok_or_else(|| Refused::CellNotFound { cell: id.clone() })?;
        if etag.is_some_and(|etag| etag != cell.etag()) {
            return Err(Refused::EtagMismatch { present: cell.etag() });
        }
        Ok(cell)
    }
}

impl Action {
    fn item(&self) -> Item {
        match self {
            Action::Place { key, .. } | Action::Vacate { key, .. } => Item::Mapping(key.clone()),
            Action::CreateCell { cell, .. } => Item::Cell(cell.id.clone()),
            Action::UpdateCell { cell, .. } | Action::DeleteCell { cell, .. } => {
                Item::Cell(cell.clone())
            }
        }
    }

    /// Replaces what the action takes the table to say of its key.
    pub fn assume(&mut self, mapping: Mapping) {
        match self {
            Action::Place { assumed, .. } | Action::Vacate { assumed, .. } => *assumed = mapping,
            Action::CreateCell { .. } | Action::UpdateCell { .. } | Action::DeleteCell { .. } => {}
        }
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

impl Outcome {
    /// What a repeat of the request is answered.
    fn stored(&self) -> StoredOutcome {
        match self {
            Outcome::Placed { placement, .. } => StoredOutcome::Placed(Placement::clone(placement)),
            Outcome::Vacated(placement) => StoredOutcome::Vacated(placement.clone()),
            Outcome::Cell(cell) => StoredOutcome::Cell(cell.clone()),
            Outcome::CellDeleted => StoredOutcome::CellDeleted,
        }
    }

    /// The answer to a repeat.
    pub fn from_stored(stored: StoredOutcome) -> Self {
        match stored {
            StoredOutcome::Placed(placement) => Outcome::Placed {
                placement: Arc::new(placement),
                created: false,
                candidates: Vec::new(),
            },
            StoredOutcome::Vacated(placement) => Outcome::Vacated(placement),
            StoredOutcome::Cell(cell) => Outcome::Cell(cell),
            StoredOutcome::CellDeleted => Outcome::CellDeleted,
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
