//! Whether others who work on something are alive, judged by their beats.
//!
//! One that does not change for as long as this replica's own clock says is of a worker that is dead. No two clocks are compared.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// Of what others work on: the worker's number and beat, and since when they are so.
#[derive(Debug)]
pub struct Beats<Id>(HashMap<Id, ((u64, u64), Instant)>);

impl<Id: Eq + Hash> Beats<Id> {
    pub fn new() -> Self {
        Self(HashMap::new())
    }

    /// Forgets all others.
    pub fn keep(&mut self, keep: impl Fn(&Id) -> bool) {
        self.0.retain(|id, _| keep(id));
    }

    /// Whether a worker's number and beat have stood still for as long as `takeover`. Never at the first look.
    pub fn stands_still(&mut self, id: Id, beat: (u64, u64), takeover: Duration) -> bool {
        let now = Instant::now();
        let (seen, since) = self.0.entry(id).or_insert((beat, now));
        if *seen != beat {
            (*seen, *since) = (beat, now);
        }
        now.duration_since(*since) >= takeover
    }
}
