//! Drafts of journal entries: what a batch of commands changes, decided on the state as of the journal's head. Pure.
//!
//! A command is drafted against the registry as the commands before it leave it, and against what it assumes the table to say of
//! its key. Both are preconditions of the commit: the first by the journal's head, the second by the write's own condition. Where the
//! table says otherwise the commit is refused with what it says, and the command is drafted again with that.
//!
//! What is drafted may come to nothing, so nobody is refused for its sake: such a command waits for the next entry.

mod decide;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use super::error::Refused;
use super::policy::{AssignmentPolicy, Candidate};
use super::registry::{Registry, total_deltas};
use cells_guard::CellTables;

use crate::domain::{
    Capacity, Cell, CellId, CellState, Change, Cluster, Constraints, Endpoint, Epoch, JournalEntry,
    Labels, LeaseDuration, Loads, Mapping, Nonce, PartitionKey, Placement, PlacementEvent, Region,
    RequestId, RequestRecord, Sequence, StoredOutcome, Timestamp, Weight, digest128,
};
use crate::store::{self, Commit, MAX_ENTRY_BYTES, MAX_WRITES, Write};
use decide::Decision;

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
    /// Names what the request begins, so that a repeat finds it: 128 bits of a digest.
    pub fn begins(&self) -> u128 {
        digest128(&format!("{}/{}", self.method, self.id))
    }

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
    Move(Box<Step>),
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
    UpdateCluster {
        lease: LeaseDuration,
        /// The longest lease that may be about under the settings of this revision.
        longest: (Sequence, LeaseDuration),
        etag: Option<String>,
    },
}

/// A step of a migration that changes the tenant's placement, and with it guards and the migration's own record: all or nothing. It has
/// an entry of its own, for writers may hold on to a guard for a while, and others are not to wait for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What the table is taken to say.
    pub assumed: Mapping,
    /// What it must say.
    pub before: Placement,
    pub after: Placement,
    /// Cells that count the tenant from now on, and no longer.
    pub gained: Option<CellId>,
    pub lost: Option<CellId>,
    /// Of guards and of the record.
    pub writes: Vec<Write>,
}

/// Which cell a tenant gets.
#[derive(Debug, Clone)]
pub enum Destination {
    /// The best by the policy.
    Best {
        constraints: Arc<Constraints>,
        entropy: u64,
        /// Repeats an attempt at this epoch of which nobody knows whether it was done: done at this one, or not at all.
        only_at: Option<Epoch>,
    },
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
    /// `Some(None)`: it has none any more.
    pub tables: Option<Option<Arc<CellTables>>>,
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
    /// A step of a migration was done.
    Moved(Arc<Placement>),
    Cell(Cell),
    CellDeleted,
    Cluster(Cluster),
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
    /// The registry that the entry goes on top of.
    base: &'a Registry,
    /// The registry with what is drafted.
    registry: Registry,
    /// How busy cells are, as far as that is known.
    loads: Arc<Loads>,
    /// Commands included so far.
    commands: usize,
    changes: Vec<Change>,
    writes: Vec<Write>,
    /// For each write, the command (by the order of inclusion) that it belongs to.
    owners: Vec<usize>,
    touched: HashSet<Item>,
    /// Cells whose counts are moved.
    counted: HashSet<CellId>,
    items: usize,
    bytes: usize,
    /// Nothing more fits, however small.
    closed: bool,
}

/// An item that a draft changes. A transaction may name an item only once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Mapping(PartitionKey),
    Cell(CellId),
    Request(RequestId),
    Cluster,
}

/// What one command adds to a draft.
struct Addition {
    change: Change,
    writes: Vec<Write>,
    outcome: Outcome,
}

/// The same with what concerns the request that asked for it. A request may change nothing and be remembered all the same.
struct Inclusion {
    change: Option<Change>,
    writes: Vec<Write>,
    outcome: Outcome,
}

impl<'a> Draft<'a> {
    /// Starts an entry on top of `registry`.
    pub fn new(
        policy: &'a dyn AssignmentPolicy,
        registry: &'a Registry,
        now: Timestamp,
        request_retention: std::time::Duration,
    ) -> Self {
        Self {
            policy,
            now,
            request_retention,
            base: registry,
            registry: registry.clone(),
            loads: Arc::default(),
            commands: 0,
            changes: Vec::new(),
            writes: Vec::new(),
            owners: Vec::new(),
            touched: HashSet::new(),
            counted: HashSet::new(),
            items: 0,
            bytes: 0,
            closed: false,
        }
    }

    /// The same with loads that new tenants' cells are chosen by, as far as they are not too old.
    pub fn with_loads(self, loads: Arc<Loads>) -> Self {
        Self { loads: loads.still(self.now), ..self }
    }

    pub fn is_empty(&self) -> bool {
        self.commands == 0
    }

    /// Drafts a command.
    pub fn add(&mut self, command: &Command) -> Drafted {
        let alone = matches!(command.action, Action::Move(_));
        if self.closed || (alone && !self.is_empty()) || self.touches(command) {
            return Drafted::Deferred;
        }
        let loads = &*self.loads;
        let on = |registry| Decision { policy: self.policy, now: self.now, registry, loads };
        match on(&self.registry).decide(&command.action) {
            Ok(Ok(Addition { change, writes, outcome })) => {
                self.include(command, Inclusion { change: Some(change), writes, outcome })
            }
            // A repeat is to get this very answer, whatever becomes of the tenant in between.
            Ok(Err(outcome)) if command.request.is_some() => {
                self.include(command, Inclusion { change: None, writes: Vec::new(), outcome })
            }
            Ok(Err(outcome)) => Drafted::Settled(Ok(outcome)),
            Err(_) => match on(self.base).decide(&command.action) {
                Err(refused) => Drafted::Settled(Err(refused)),
                Ok(_) => Drafted::Deferred,
            },
        }
    }

    /// The finished entry and, for each of its writes but the counts at the end, the command (by the order of inclusion) that it
    /// belongs to.
    pub fn finish(self, nonce: Nonce) -> (Commit, Vec<usize>) {
        let mut writes = self.writes;
        let counts = total_deltas(&self.changes).into_iter().filter_map(|(cell, delta)| {
            // A cell that is not registered has no count.
            let counted = self.base.cell(cell)?;
            // Never below zero, as the registry has it: what somebody else's router wrote may leave without having been counted.
            let least = i64::try_from(counted.placements).map_or(i64::MIN, |count| -count);
            let delta = delta.max(least);
            (delta != 0).then(|| Write::AddToCount { cell: cell.clone(), delta })
        });
        writes.extend(counts);
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
    fn include(&mut self, command: &Command, inclusion: Inclusion) -> Drafted {
        let Inclusion { change, mut writes, outcome } = inclusion;
        if let Some(request) = &command.request {
            writes.push(Write::PutRequest(RequestRecord {
                id: request.id.clone(),
                method: request.method.clone(),
                digest: request.digest.clone(),
                outcome: outcome.stored(),
                forget_after: self.now.plus(self.request_retention),
            }));
        }
        // A placement's change brings with it the count of each cell that no change of the draft has moved yet.
        let deltas = change.iter().flat_map(Change::deltas);
        let newly_counted = deltas.filter(|(cell, _)| !self.counted.contains(*cell));
        let newly_counted: HashSet<CellId> = newly_counted.map(|(cell, _)| cell.clone()).collect();
        // A registration may write the count, too: it shares no entry with changes that move it, in either order.
        let count_touched = newly_counted.iter().any(|cell| self.touched_cell(cell))
            || change.iter().filter_map(Change::cell).any(|cell| self.counted.contains(cell));
        let items = writes.iter().map(Write::items).sum::<usize>() + newly_counted.len();
        let bytes = change.iter().map(store::encoded_len).sum::<usize>();
        let full = self.items + items > MAX_WRITES || self.bytes + bytes > MAX_ENTRY_BYTES;
        if count_touched || (full && !self.is_empty()) {
            return Drafted::Deferred;
        }
        self.closed = matches!(command.action, Action::Move(_));
        self.counted.extend(newly_counted);
        self.items += items;
        self.bytes += bytes;
        self.touched.insert(command.action.item());
        if let Some(request) = &command.request {
            self.touched.insert(Item::Request(request.id.clone()));
        }
        self.owners.resize(self.owners.len() + writes.len(), self.commands);
        self.commands += 1;
        if let Some(change) = change {
            self.registry.anticipate(&change);
            self.changes.push(change);
        }
        self.writes.append(&mut writes);
        Drafted::Included(outcome)
    }

    fn touched_cell(&self, cell: &CellId) -> bool {
        self.touched.contains(&Item::Cell(cell.clone()))
    }
}

impl Action {
    /// The tenant that the action is about, if it is about one.
    pub fn key(&self) -> Option<&PartitionKey> {
        match self {
            Action::Place { key, .. } | Action::Vacate { key, .. } => Some(key),
            Action::Move(step) => Some(&step.before.key),
            Action::CreateCell { .. }
            | Action::UpdateCell { .. }
            | Action::DeleteCell { .. }
            | Action::UpdateCluster { .. } => None,
        }
    }

    fn item(&self) -> Item {
        match self {
            Action::Place { key, .. } | Action::Vacate { key, .. } => Item::Mapping(key.clone()),
            Action::Move(step) => Item::Mapping(step.before.key.clone()),
            Action::CreateCell { cell, .. } => Item::Cell(cell.id.clone()),
            Action::UpdateCell { cell, .. } | Action::DeleteCell { cell, .. } => {
                Item::Cell(cell.clone())
            }
            Action::UpdateCluster { .. } => Item::Cluster,
        }
    }

    /// Replaces what the action takes the table to say of its key.
    pub fn assume(&mut self, mapping: Mapping) {
        match self {
            Action::Place { assumed, .. } | Action::Vacate { assumed, .. } => *assumed = mapping,
            Action::Move(step) => step.assumed = mapping,
            Action::CreateCell { .. }
            | Action::UpdateCell { .. }
            | Action::DeleteCell { .. }
            | Action::UpdateCluster { .. } => {}
        }
    }
}

impl Outcome {
    /// What a repeat of the request is answered.
    fn stored(&self) -> StoredOutcome {
        match self {
            Outcome::Placed { placement, .. } => StoredOutcome::Placed(Placement::clone(placement)),
            Outcome::Vacated(placement) => StoredOutcome::Vacated(placement.clone()),
            Outcome::Moved(placement) => StoredOutcome::Placed(Placement::clone(placement)),
            Outcome::Cell(cell) => StoredOutcome::Cell(cell.clone()),
            Outcome::CellDeleted => StoredOutcome::CellDeleted,
            Outcome::Cluster(cluster) => StoredOutcome::Cluster(cluster.clone()),
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
            StoredOutcome::Cluster(cluster) => Outcome::Cluster(cluster),
        }
    }
}
