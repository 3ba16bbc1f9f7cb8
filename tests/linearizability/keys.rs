//! The keys that all clients work on: few at a time, so that clients meet, and replaced one by one, so that no key's history grows too
//! long to be checked.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

/// Keys at a time.
const WORKING_SET: usize = 8;

pub struct Keys(Mutex<State>);

struct State {
    present: Vec<String>,
    /// Every key that ever was, and the highest epoch that anybody was told of.
    known: BTreeMap<String, u64>,
}

impl Keys {
    pub fn new() -> Self {
        let keys = Self(Mutex::new(State { present: Vec::new(), known: BTreeMap::new() }));
        for at in 0..WORKING_SET {
            keys.0.lock().place_new(at);
        }
        keys
    }

    /// A key to work on: the first ones more often than the last ones.
    pub fn some(&self, random: &mut StdRng) -> String {
        let mut draw = || random.random_range(0..WORKING_SET);
        let at = draw().min(draw());
        self.0.lock().present[at].clone()
    }

    /// Puts a new key in the place of some other.
    pub fn turn(&self, random: &mut StdRng) {
        self.0.lock().place_new(random.random_range(0..WORKING_SET));
    }

    /// The highest epoch that anybody was told of.
    pub fn known(&self, key: &str) -> u64 {
        self.0.lock().known.get(key).copied().unwrap_or(0)
    }

    pub fn learn(&self, key: &str, epoch: u64) {
        let mut state = self.0.lock();
        let known = state.known.entry(key.to_owned()).or_default();
        *known = epoch.max(*known);
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().known.keys().cloned().collect()
    }
}

impl State {
    fn place_new(&mut self, at: usize) {
        let key = format!("tenant-{:04}", self.known.len());
        self.known.insert(key.clone(), 0);
        if at < self.present.len() {
            self.present[at] = key;
        } else {
            self.present.push(key);
        }
    }
}
