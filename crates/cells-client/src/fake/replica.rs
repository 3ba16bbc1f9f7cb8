//! A replica of the fake: what it knows of the journal, and how it can be reached.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::proto;
use crate::proto::placement_change::Change;

#[derive(Default)]
pub(super) struct Replica {
    /// Of its own journal, which lags behind a restore while it is held.
    pub position: u64,
    pub journal_id: Option<String>,
    pub placements: BTreeMap<String, proto::Placement>,
    pub cells: BTreeMap<String, proto::Cell>,
    /// Since when it does not follow the journal.
    pub held_since: Option<Instant>,
    pub disconnected: bool,
    /// Streams of an earlier connection are cut.
    pub connection: u64,
    pub delay: Duration,
    pub silent: bool,
}

impl Replica {
    pub fn disconnect(&mut self) {
        self.disconnected = true;
        self.connection += 1;
    }

    pub fn reconnect(&mut self) {
        self.disconnected = false;
        self.silent = false;
    }

    pub fn hold(&mut self) {
        self.held_since = Some(Instant::now());
    }

    pub fn follow(&mut self, journal: &[Vec<Change>]) {
        if self.held_since.is_some() {
            return;
        }
        for changes in journal.get(self.position as usize..).unwrap_or_default() {
            for change in changes {
                apply(&mut self.placements, &mut self.cells, change);
            }
        }
        self.position = journal.len() as u64;
    }

    pub fn begin_anew(&mut self, journal_id: &str, journal: &[Vec<Change>]) {
        if self.held_since.is_some() {
            return;
        }
        self.connection += 1;
        self.journal_id = Some(journal_id.to_owned());
        self.placements.clear();
        self.cells.clear();
        self.position = 0;
        self.follow(journal);
    }

    /// What is left of `lease`, and how old what it knows is.
    pub fn lease(&self, lease: Duration) -> (Duration, Duration) {
        let age = self.held_since.map_or(Duration::ZERO, |since| since.elapsed());
        (lease.saturating_sub(age), age)
    }
}

pub(super) fn apply(
    placements: &mut BTreeMap<String, proto::Placement>,
    cells: &mut BTreeMap<String, proto::Cell>,
    change: &Change,
) {
    match change {
        Change::Placed(placement) => {
            placements.insert(placement.partition_key.clone(), placement.clone());
        }
        Change::Vacated(placement) => {
            placements.remove(&placement.partition_key);
        }
        Change::Cell(cell) => {
            cells.insert(cell.cell_id.clone(), cell.clone());
        }
        Change::CellDeleted(id) => {
            cells.remove(id);
        }
    }
}
