//! The entries that this replica has applied lately, for those who watch.
//!
//! One copy for all watchers, each of whom goes on from its own position at its own pace: a slow one costs nothing, until it has
//! fallen behind what is kept.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::domain::{JournalEntry, JournalId, Sequence};

/// Most changes that are kept: some seconds' worth at the highest rate of one journal.
const MAX_CHANGES: usize = 65_536;

/// A place in a journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    pub journal: JournalId,
    /// The last entry before the place.
    pub sequence: Sequence,
}

/// What a watcher finds after its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Later {
    /// The entries that follow, at least one.
    Entries(Vec<Arc<JournalEntry>>),
    /// Nothing yet.
    Nothing,
    /// Entries that are not kept here: they may be in the table.
    Gone,
    /// The position is one of another journal.
    Foreign,
}

#[derive(Debug)]
pub struct Feed {
    position: RwLock<Position>,
    /// Wakes those who wait in the order in which they came.
    moved: Notify,
    recent: Mutex<Recent>,
    /// Most changes that are kept.
    limit: usize,
}

#[derive(Debug, Default)]
struct Recent {
    /// Without a gap, up to the position.
    entries: VecDeque<Arc<JournalEntry>>,
    changes: usize,
}

impl Default for Feed {
    fn default() -> Self {
        Self::keeping(MAX_CHANGES)
    }
}

impl Feed {
    /// `limit`: how many changes are kept at most.
    pub fn keeping(limit: usize) -> Self {
        Self { position: RwLock::default(), moved: Notify::new(), recent: Mutex::default(), limit }
    }

    /// Adds an entry, which becomes visible with [`Feed::moved`].
    pub fn push(&self, entry: JournalEntry) {
        let mut recent = self.recent.lock();
        recent.changes += entry.changes.len() + 1;
        recent.entries.push_back(Arc::new(entry));
        while recent.changes > self.limit
            && let Some(oldest) = recent.entries.pop_front()
        {
            recent.changes -= oldest.changes.len() + 1;
        }
    }

    /// Forgets what is kept: what follows does not join on to it.
    pub fn clear(&self) {
        *self.recent.lock() = Recent::default();
    }

    /// Tells all watchers how far this replica has come.
    pub fn moved(&self, position: Position) {
        let former = std::mem::replace(&mut *self.position.write(), position);
        if former != position {
            self.moved.notify_waiters();
        }
    }

    /// How far this replica has come.
    pub fn position(&self) -> Position {
        *self.position.read()
    }

    /// Ends when this replica has come further than it had when this was called.
    pub fn further(&self) -> Notified<'_> {
        self.moved.notified()
    }

    /// At most `limit` entries after `after`.
    pub fn after(&self, after: Position, limit: usize) -> Later {
        // The lock comes first: what is pushed for another journal is pushed after the position has moved to it.
        let recent = self.recent.lock();
        let position = self.position();
        if position.journal != after.journal {
            return Later::Foreign;
        }
        if position.sequence <= after.sequence {
            return Later::Nothing;
        }
        let Some(first) = recent.entries.front() else {
            return Later::Gone;
        };
        let Some(skipped) = after.sequence.next().get().checked_sub(first.sequence.get()) else {
            return Later::Gone;
        };
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        // What is pushed and not yet told of is left for the next time.
        let told = |entry: &&Arc<JournalEntry>| entry.sequence <= position.sequence;
        let entries = recent.entries.iter().skip(skipped).take(limit).take_while(told);
        let entries: Vec<_> = entries.cloned().collect();
        match entries.is_empty() {
            true => Later::Gone,
            false => Later::Entries(entries),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::{entry, placed};

    fn at(sequence: u64) -> Position {
        Position { journal: JournalId::new(7), sequence: Sequence::new(sequence) }
    }

    fn sequences(later: Later) -> Vec<u64> {
        let Later::Entries(entries) = later else { panic!("{later:?}") };
        entries.iter().map(|entry| entry.sequence.get()).collect()
    }

    #[test]
    fn a_watcher_goes_on_where_it_is() {
        let feed = Feed::default();
        for n in 4..=9 {
            feed.push(entry(n, vec![placed("k", "a", None)]));
        }
        feed.moved(at(8));
        assert_eq!(sequences(feed.after(at(3), 100)), [4, 5, 6, 7, 8]);
        assert_eq!(sequences(feed.after(at(6), 1)), [7]);
        assert_eq!(feed.after(at(8), 100), Later::Nothing);
        assert_eq!(feed.after(at(12), 100), Later::Nothing, "ahead of this replica");
        assert_eq!(feed.after(at(2), 100), Later::Gone);
        let other = Position { journal: JournalId::new(8), ..at(5) };
        assert_eq!(feed.after(other, 100), Later::Foreign);
        feed.clear();
        feed.moved(at(20));
        assert_eq!(feed.after(at(8), 100), Later::Gone);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let feed = Feed::default();
        for n in 1..=MAX_CHANGES as u64 {
            feed.push(entry(n, vec![placed("k", "a", None)]));
        }
        feed.moved(at(MAX_CHANGES as u64));
        let kept = feed.recent.lock().entries.len();
        assert_eq!(kept, MAX_CHANGES / 2);
        assert_eq!(feed.after(at(10), 1), Later::Gone);
        assert_eq!(sequences(feed.after(at(MAX_CHANGES as u64 - 1), 10)), [MAX_CHANGES as u64]);
    }
}
