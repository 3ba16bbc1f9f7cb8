//! What one watcher is sent: a snapshot, then every entry, without a gap and in order.
//!
//! ```text
//!   Snapshot ──all parts──► Changes ◄── resumed
//! ```
//!
//! *The snapshot is taken while changes go on*: a part may hold changes that come after the position that the watch began at, and lack
//! others. All entries after that position follow, in order; whoever applies them on top of the parts, whatever their epochs, has the
//! exact state once he has come as far as the journal was when the last part was read. (A fuzzy checkpoint and its log, as in C. Mohan
//! et al., "ARIES", TODS 17(1), 1992.) The table may be ahead of this replica; so after a snapshot that was read from the table, nobody is
//! called up to date until a poll has begun after the last page.
//!
//! Nothing is queued for a watcher: it goes on from its own position when it is asked for more. Only one that once was up to date and has
//! fallen behind what the feed keeps is cut off; one that resumes from further back is served from the table.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// About as many bytes as a piece holds at most; one entry may be more. Below what gRPC's clients take by default, 4 MiB.
const BYTES: usize = 1 << 20;

/// More than any cell takes with all its labels.
const CELL_BYTES: usize = 8_192;

/// Most cells in a part of a snapshot.
const CELLS: usize = BYTES / CELL_BYTES;

/// How often a poll is looked out for that would make a snapshot whole.
const LOOK_OUT: Duration = Duration::from_millis(20);

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
    Memory {
        next: usize,
        read: VecDeque<Placement>,
    },
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
    /// How far the replica had come at the last look.
    seen: Position,
    /// The cells that are still to be sent; `None`: nobody has looked which there are.
    introducing: Option<VecDeque<Arc<Cell>>>,
    /// It has been told how far it is.
    told: bool,
    /// It has been up to date.
    caught_up: bool,
    /// When the last page of the table was read; until a poll that began later, the snapshot may be ahead of this replica.
    ahead_since: Option<Instant>,
}

impl Watcher {
    /// # Errors
    /// [`Error::NotReady`] until the registry has been read.
    pub fn new(replica: Arc<Replica>, store: Store, options: WatchOptions) -> Result<Self, Error> {
        let journal = replica.registry()?.journal();
        // Another one is just being turned to.
        if replica.feed().position().journal != journal {
            return Err(Error::NotReady);
        }
        let position = options.resume.unwrap_or_else(|| replica.feed().position());
        let phase = match options.resume.is_some() || options.changes_only {
            true => Phase::Changes,
            false if replica.memory().complete() => {
                Phase::Memory { next: 0, read: VecDeque::new() }
            }
            false => Phase::Table(None),
        };
        // Whoever wants changes only is told of no cells.
        let introducing = matches!(phase, Phase::Changes).then(VecDeque::new);
        let cells = options.cells;
        Ok(Self {
            replica,
            store,
            cells,
            phase,
            position,
            seen: position,
            introducing,
            told: false,
            caught_up: false,
            ahead_since: None,
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
        if self.unintroduced().len() > CELLS {
            let cells = self.unintroduced().drain(..CELLS).collect();
            return Ok(Piece::Snapshot { placements: Vec::new(), cells });
        }
        match &mut self.phase {
            Phase::Memory { next, read } => {
                let memory = self.replica.memory();
                while *next < memory.parts() && read.len() < PART {
                    memory.visit(*next, |key, residence| {
                        read.extend(wanted(&self.cells, key, residence));
                    });
                    *next += 1;
                }
                let fitting = fitting(read.iter().map(placement_bytes));
                let placements = read.drain(..fitting).collect();
                if read.is_empty() && *next == memory.parts() {
                    self.phase = Phase::Changes;
                }
                Ok(self.part(placements))
            }
            Phase::Table(after) => {
                let page = self.store.placements.scan(PART, after.as_ref()).await;
                let page = page.map_err(Error::from)?;
                self.phase = match page.next {
                    Some(next) => Phase::Table(Some(next)),
                    None => {
                        self.ahead_since = Some(self.replica.clock().instant());
                        Phase::Changes
                    }
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
        Piece::Snapshot { placements, cells: self.unintroduced().drain(..).collect() }
    }

    /// The cells that are still to be sent.
    fn unintroduced(&mut self) -> &mut VecDeque<Arc<Cell>> {
        let (filter, replica) = (&self.cells, &self.replica);
        self.introducing.get_or_insert_with(|| {
            let wanted = |cell: &&Arc<Cell>| filter.is_empty() || filter.contains(&cell.id);
            let all = |registry: &Registry| registry.cells().filter(wanted).cloned().collect();
            replica.peek(all).unwrap_or_default()
        })
    }

    async fn changes(&mut self) -> Result<Piece, WatchEnd> {
        let mut entries = self.look().await?;
        if entries.is_empty() && std::mem::replace(&mut self.told, true) {
            self.wait().await;
            entries = self.look().await?;
        }
        entries.truncate(fitting(entries.iter().map(entry_bytes)).max(1));
        if let Some(last) = entries.last() {
            self.position.sequence = last.sequence;
        }
        // One that resumed ahead of this replica is not up to date with it.
        let caught_up = self.replica.feed().position() == self.position && self.whole_snapshot();
        self.caught_up |= caught_up;
        self.told = true;
        let entries = entries.iter().filter_map(|entry| self.filtered(entry)).collect();
        Ok(Piece::Changes { entries, caught_up })
    }

    /// What follows the position.
    async fn look(&mut self) -> Result<Vec<Arc<JournalEntry>>, WatchEnd> {
        // Before the look: what comes in after it wakes the wait up at once.
        self.seen = self.replica.feed().position();
        match self.replica.feed().after(self.position, ENTRIES) {
            Later::Entries(entries) => Ok(entries),
            Later::Nothing => Ok(Vec::new()),
            Later::Gone => self.older().await,
            Later::Foreign => Err(WatchEnd::Expired),
        }
    }

    /// Waits until there is something to say: the replica has come further, the snapshot has become whole, or it has been quiet for long.
    async fn wait(&mut self) {
        let heartbeat = tokio::time::Instant::now() + HEARTBEAT;
        while self.ahead_since.is_some() {
            let look_out = heartbeat.min(tokio::time::Instant::now() + LOOK_OUT);
            let moved = tokio::time::timeout_at(look_out, self.moved()).await.is_ok();
            if moved || self.whole_snapshot() || look_out == heartbeat {
                return;
            }
        }
        let _ = tokio::time::timeout_at(heartbeat, self.moved()).await;
    }

    /// Ends when this replica has come further than at the last look.
    async fn moved(&self) {
        let feed = self.replica.feed();
        loop {
            let further = feed.further();
            if feed.position() != self.seen {
                return;
            }
            further.await;
        }
    }

    /// Whether a poll has shown this replica to be as far as the snapshot.
    fn whole_snapshot(&mut self) -> bool {
        let proof = self.replica.memory().last_proof();
        self.ahead_since.take_if(|read| *read <= proof);
        self.ahead_since.is_none()
    }

    /// The entries after the position, which the feed does not keep.
    async fn older(&self) -> Result<Vec<Arc<JournalEntry>>, WatchEnd> {
        if self.caught_up {
            return Err(WatchEnd::TooSlow);
        }
        let entries = self.store.journal.entries(self.position.sequence, ENTRIES).await;
        let entries = entries.map_err(Error::from)?;
        // The tables may have been restored a moment ago.
        let head = self.store.journal.head().await.map_err(Error::from)?;
        if head.journal != self.position.journal {
            return Err(WatchEnd::Expired);
        }
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
            Change::Moved { placement, from, .. } => {
                self.cells.contains(&placement.cell) || self.cells.contains(from)
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

/// How many of these sizes fit into a piece.
fn fitting(sizes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = 0;
    let fits = |size: &usize| {
        bytes += size;
        bytes <= BYTES
    };
    sizes.take_while(fits).count()
}

fn placement_bytes(placement: &Placement) -> usize {
    /// Times, numbers and tags.
    const REST: usize = 80;
    placement.key.as_str().len() + placement.cell.as_str().len() + REST
}

fn entry_bytes(entry: &Arc<JournalEntry>) -> usize {
    let change = |change: &Change| match change {
        Change::Placed { placement, .. }
        | Change::Moved { placement, .. }
        | Change::Vacated { placement } => placement_bytes(placement),
        _ => CELL_BYTES,
    };
    entry.changes.iter().map(change).sum()
}

fn wanted(cells: &BTreeSet<CellId>, key: &str, residence: Residence) -> Option<Placement> {
    if !cells.is_empty() && !cells.contains(residence.cell.id()) {
        return None;
    }
    // Whatever is held has a key that was one when it came in.
    PartitionKey::new(key).ok().map(|key| residence.placement(key))
}
