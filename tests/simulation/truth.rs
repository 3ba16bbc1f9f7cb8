//! What is true, and since when: kept by the one who sees every commit at the moment when it is done.

use std::collections::BTreeMap;
use std::time::Duration;

use cell_directory::domain::{Change, JournalEntry, Placement, Sequence, WriteMode};

/// What a key's placement is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub cell: String,
    pub epoch: u64,
    pub direct: bool,
}

impl From<&Placement> for Home {
    fn from(placement: &Placement) -> Self {
        Self {
            cell: placement.cell.as_str().to_owned(),
            epoch: placement.epoch.get(),
            direct: placement.write_mode == WriteMode::Direct,
        }
    }
}

pub type State = BTreeMap<String, Home>;

/// A time for which a key had a home.
#[derive(Debug)]
struct Spell {
    home: Home,
    until: Option<Duration>,
}

#[derive(Debug, Default)]
pub struct Truth {
    entries: Vec<JournalEntry>,
    /// When each entry was committed.
    times: Vec<Duration>,
    /// After each entry; the first is before all.
    states: Vec<State>,
    spells: BTreeMap<String, Vec<Spell>>,
}

impl Truth {
    pub fn committed(&mut self, now: Duration, entry: &JournalEntry) {
        assert_eq!(entry.sequence.get(), self.entries.len() as u64 + 1, "the store lost its order");
        let mut state = self.state(self.head()).clone();
        apply(&mut state, &entry.changes);
        for key in entry.changes.iter().filter_map(Change::key) {
            let spells = self.spells.entry(key.as_str().to_owned()).or_default();
            let present = state.get(key.as_str());
            let open = spells.last_mut().filter(|spell| spell.until.is_none());
            match open {
                Some(spell) if Some(&spell.home) == present => continue,
                Some(spell) => spell.until = Some(now),
                None => {}
            }
            spells.extend(present.map(|home| Spell { home: home.clone(), until: None }));
        }
        self.entries.push(entry.clone());
        self.times.push(now);
        if self.states.is_empty() {
            self.states.push(State::new());
        }
        self.states.push(state);
    }

    pub fn head(&self) -> u64 {
        self.entries.len() as u64
    }

    /// All placements as of an entry.
    pub fn state(&self, sequence: u64) -> &State {
        static NONE: State = State::new();
        self.states.get(usize::try_from(sequence).unwrap()).unwrap_or(&NONE)
    }

    pub fn present(&self, key: &str) -> Option<&Home> {
        self.state(self.head()).get(key)
    }

    pub fn entry(&self, sequence: Sequence) -> Option<&JournalEntry> {
        self.entries.get(usize::try_from(sequence.get()).unwrap().checked_sub(1)?)
    }

    /// Whether this was the key's home at `since` or later.
    pub fn was(&self, key: &str, home: &Home, since: Duration) -> bool {
        let mut spells = self.spells.get(key).into_iter().flatten().rev();
        spells.any(|spell| spell.home == *home && spell.until.is_none_or(|until| until >= since))
    }

    /// The last entry that was committed at `at` or before.
    pub fn head_at(&self, at: Duration) -> u64 {
        self.times.partition_point(|time| *time <= at) as u64
    }
}

/// Takes in what an entry changes, whatever the epochs.
pub fn apply(state: &mut State, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Placed { placement, .. } | Change::Moved { placement, .. } => {
                state.insert(placement.key.as_str().to_owned(), Home::from(placement));
            }
            Change::Vacated { placement } => {
                state.remove(placement.key.as_str());
            }
            _ => {}
        }
    }
}
