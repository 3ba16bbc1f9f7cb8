//! What one watcher is sent: a snapshot, then every entry, without a gap and in order.
//!
//! ```text
//!   Snapshot ──all parts──► Changes ◄── resumed
//! ```
//!
//! *The snapshot is taken while changes go on*: a part may hold changes that come after the position that the watch began at, and lack
//! others. All entries after that position follow, in order; whoever applies them on top of the parts, whatever their epochs, has the
//! exact state once he has come as far as the replica was when the last part was read. (A fuzzy checkpoint and its log, as in C. Mohan
//! et al., "ARIES", TODS 17(1), 1992.)
//!
//! Nothing is queued for a watcher: it goes on from its own position when it is asked for more. Only one that once was up to date and has
//! fallen behind what the feed keeps is cut off; one that resumes from further back is served from the table.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::feed::{Later, Position};
use super::memory::Residence;
use super::registry::Registry;
use super::replica::Replica;
use crate::domain::{Cell, CellId, Change, JournalEntry, PartitionKey, Placement};
use crate::store::{Cursor, Store};

/// Placements that a part of a snapshot holds at least, unless it is the last one.
const PART: usize = 1000;

/// Most entries sent at once.
const ENTRIES: usize = 100;

/// How often a watcher hears something, even where nothing changes.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// What to watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Go on after this.
    pub resume: Option<Position>,
    /// Only these. Empty: all.
    pub cells: BTreeSet<CellId>,
    /// No snapshot.
    pub changes_only: bool,
}

/// A piece of what is sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Snapshot { placements: Vec<Placement>, cells: Vec<Arc<Cell>> },
    Changes { entries: Vec<Arc<JournalEntry>>, caught_up: bool },
}

/// Why a watch ends.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WatchEnd {
    /// The journal does not reach back to the position, or is another one.
    #[error("the journal does not hold what follows the position")]
    Expired,
    /// It had been up to date, and did not ask for more in time.
    #[error("the watcher reads too slowly")]
    TooSlow,
    #[error(transparent)]
    Failed(#[from] Error),
}

enum Phase {
    /// From memory, which holds the whole table: the next of its parts.
    Memory(usize),
    /// From the table.
    Table(Option<Cursor>),
    Changes,
}

pub struct Watcher {
    replica: Arc<Replica>,
    store: Store,
    cells: BTreeSet<CellId>,
    phase: Phase,
    /// All entries up to here have been sent, or are in the snapshot.
    position: Position,
    /// The cells have been sent.
    introduced: bool,
    /// It has been told how far it is.
    told: bool,
    /// It has been up to date.
    caught_up: bool,
}

impl Watcher {
    /// # Errors
    /// [`Error::NotReady`] until the registry has been read.
    pub fn new(replica: Arc<Replica>, store: Store, options: WatchOptions) -> Result<Self, Error> {
        replica.registry()?;
        let position = options.resume.unwrap_or_else(|| replica.feed().position());
        let phase = match options.resume.is_some() || options.changes_only {
            true => Phase::Changes,
            false if replica.memory().complete() => Phase::Memory(0),
            false => Phase::Table(None),
        };
        let introduced = matches!(phase, Phase::Changes);
        let cells = options.cells;
        Ok(Self {
            replica,
            store,
            cells,
            phase,
            position,
            introduced,
            told: false,
            caught_up: false,
        })
    }

    /// How far the watcher has come, once it has the whole snapshot.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether the watcher has the whole snapshot.
    pub fn whole(&self) -> bool {
        matches!(self.phase, Phase::Changes)
    }

    /// The next piece. Waits for one where there is none, at most for [`HEARTBEAT`].
    pub async fn next(&mut self) -> Result<Piece, WatchEnd> {
        match &mut self.phase {
            Phase::Memory(next) => {
                let mut part = *next;
                let mut placements = Vec::new();
                let memory = Arc::clone(self.replica.memory());
                while part < memory.parts() && placements.len() < PART {
                    memory.visit(part, |key, residence| {
                        placements.extend(wanted(&self.cells, key, residence));
                    });
                    part += 1;
                }
                self.phase =
                    if part < memory.parts() { Phase::Memory(part) } else { Phase::Changes };
                Ok(self.part(placements))
            }
            Phase::Table(after) => {
                let page = self.store.placements.scan(PART, after.as_ref()).await;
                let page = page.map_err(Error::from)?;
                self.phase = match page.next {
                    Some(next) => Phase::Table(Some(next)),
                    None => Phase::Changes,
                };
                let among = |placement: &Placement| {
                    self.cells.is_empty() || self.cells.contains(&placement.cell)
                };
                Ok(self.part(page.items.into_iter().filter(among).collect()))
            }
            Phase::Changes => self.changes().await,
        }
    }

    fn part(&mut self, placements: Vec<Placement>) -> Piece {
        let mut cells = Vec::new();
        if !std::mem::replace(&mut self.introduced, true) {
            let wanted = |cell: &&Arc<Cell>| self.cells.is_empty() || self.cells.contains(&cell.id);
            let all = |registry: &Registry| registry.cells().filter(wanted).cloned().collect();
            cells = self.replica.peek(all).unwrap_or_default();
        }
        Piece::Snapshot { placements, cells }
    }

    async fn changes(&mut self) -> Result<Piece, WatchEnd> {
        let replica = Arc::clone(&self.replica);
        // Before the look: what comes in between wakes the wait up at once.
        let further = replica.feed().further();
        let entries = match self.replica.feed().after(self.position, ENTRIES) {
            Later::Entries(entries) => entries,
            Later::Nothing => {
                if std::mem::replace(&mut self.told, true) {
                    // Ends when the replica has come further, or after a while; either way there is something to say.
                    let _ = tokio::time::timeout(HEARTBEAT, further).await;
                }
                match self.replica.feed().after(self.position, ENTRIES) {
                    Later::Entries(entries) => entries,
                    Later::Nothing => Vec::new(),
                    Later::Gone => self.read_table().await?,
                    Later::Foreign => return Err(WatchEnd::Expired),
                }
            }
            Later::Gone => self.read_table().await?,
            Later::Foreign => return Err(WatchEnd::Expired),
        };
        if let Some(last) = entries.last() {
            self.position.sequence = last.sequence;
        }
        let present = self.replica.feed().position();
        // One that resumed ahead of this replica is not up to date with it.
        let caught_up = present == self.position;
        self.caught_up |= caught_up;
        self.told = true;
        let entries = entries.iter().filter_map(|entry| self.filtered(entry)).collect();
        Ok(Piece::Changes { entries, caught_up })
    }

    /// The entries after the position, which the feed does not keep.
    async fn read_table(&self) -> Result<Vec<Arc<JournalEntry>>, WatchEnd> {
        if self.caught_up {
            return Err(WatchEnd::TooSlow);
        }
        let entries = self.store.journal.entries(self.position.sequence, ENTRIES).await;
        let entries = entries.map_err(Error::from)?;
        match entries.first() {
            Some(first) if first.sequence == self.position.sequence.next() => {
                // No further than this replica has come: the rest is for the feed to tell.
                let present = self.replica.feed().position();
                if present.journal != self.position.journal {
                    return Err(WatchEnd::Expired);
                }
                let known = |entry: &JournalEntry| entry.sequence <= present.sequence;
                Ok(entries.into_iter().filter(known).map(Arc::new).collect())
            }
            _ => Err(WatchEnd::Expired),
        }
    }

    /// What of an entry is wanted.
    fn filtered(&self, entry: &Arc<JournalEntry>) -> Option<Arc<JournalEntry>> {
        if self.cells.is_empty() {
            return Some(Arc::clone(entry));
        }
        let wanted = |change: &&Change| match change {
            Change::Placed { placement, replaced } => {
                self.cells.contains(&placement.cell)
                    || replaced.as_ref().is_some_and(|cell| self.cells.contains(cell))
            }
            Change::Vacated { placement } => self.cells.contains(&placement.cell),
            Change::CellCreated { cell } | Change::CellUpdated { cell } => {
                self.cells.contains(&cell.id)
            }
            Change::CellDeleted { cell } => self.cells.contains(cell),
            Change::ClusterUpdated { .. } => false,
        };
        let changes: Vec<_> = entry.changes.iter().filter(wanted).cloned().collect();
        (!changes.is_empty()).then(|| {
            let JournalEntry { sequence, nonce, written, .. } = **entry;
            Arc::new(JournalEntry { sequence, nonce, written, changes })
        })
    }
}

fn wanted(cells: &BTreeSet<CellId>, key: &str, residence: Residence) -> Option<Placement> {
    if !cells.is_empty() && !cells.contains(residence.cell.id()) {
        return None;
    }
    // Whatever is held has a key that was one when it came in.
    PartitionKey::new(key).ok().map(|key| residence.placement(key))
}
