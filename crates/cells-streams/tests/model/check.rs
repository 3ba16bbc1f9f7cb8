//! What must hold of every run.

use std::collections::{BTreeMap, BTreeSet};

use cells_streams::{Delivery, GapCause, Position, ShardId};
use tokio::time::Duration;

use super::world::World;

/// A gap that was reported.
struct Reported {
    shard: ShardId,
    after: u64,
    cause: GapCause,
    /// What was trimmed of the shard when it was reported.
    trimmed: u64,
    /// The first record of the shard that came afterwards, from beyond what was trimmed: there the gap ends.
    until: Option<u64>,
}

#[derive(Default)]
pub struct Checker {
    /// Sequence numbers that were delivered.
    delivered: BTreeSet<u64>,
    /// The latest version of each item that was delivered.
    latest: BTreeMap<u64, u64>,
    gaps: Vec<Reported>,
    positions: BTreeMap<ShardId, Position>,
    /// Nothing created earlier may be delivered.
    pub since_secs: Option<i64>,
    pub deliveries: usize,
    pub repeats: usize,
    /// Gaps that may be none.
    pub stale: usize,
    pub faults: Vec<String>,
}

impl Checker {
    fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    pub fn gaps(&self) -> usize {
        self.gaps.len()
    }

    pub fn read_after(&mut self, since: Duration) {
        // A shard that a process loses and takes again within that time is read by a new reader.
        if since < Duration::from_millis(200) {
            self.fault(format!("a shard was read {since:?} after the last time"));
        }
    }

    /// Positions only rise, but for the step behind a gap.
    pub fn checkpoint(&mut self, shard: &ShardId, position: &Position) {
        let rank = |position: &Position| match position {
            Position::Orphan => (0, 0),
            Position::Horizon => (1, 0),
            Position::Fresh { .. } | Position::Lost => (2, 0),
            Position::After(at) => (3, at.as_str().parse::<u64>().unwrap()),
            Position::End { .. } | Position::LostEnd => (4, 0),
        };
        let before = self.positions.insert(shard.clone(), position.clone());
        if let Some(before) = before
            && rank(&before) > rank(position)
            && *position != Position::Lost
        {
            self.fault(format!("{shard} went back from {before:?} to {position:?}"));
        }
    }

    pub fn delivered(&mut self, world: &World, delivery: &Delivery) {
        self.deliveries += 1;
        let batch = match delivery {
            Delivery::Gap(gap) => {
                let after = gap.after.as_ref().map_or(0, |at| at.as_str().parse().unwrap());
                let shard = &world.shards[&gap.shard];
                let so = match gap.cause {
                    GapCause::Trimmed => shard.gone || shard.trimmed >= after.max(shard.start),
                    GapCause::ShardGone => shard.gone,
                    GapCause::ParentsGone => {
                        // Something above was lost, or reported so.
                        let above = world.ancestors(&gap.shard);
                        let reported = |id: &ShardId| self.gaps.iter().any(|gap| gap.shard == *id);
                        let lost =
                            |id: &ShardId| world.shards[id].gone || world.shards[id].trimmed > 0;
                        above.iter().any(|id| lost(id) || reported(id))
                    }
                    // Says only that nothing shows the contrary.
                    GapCause::Stale => true,
                };
                if !so {
                    self.fault(format!(
                        "gap {:?} in {} where nothing is lost",
                        gap.cause, gap.shard
                    ));
                }
                let (shard, trimmed) = (gap.shard.clone(), shard.trimmed);
                self.stale += usize::from(gap.cause == GapCause::Stale);
                self.gaps.push(Reported { shard, after, cause: gap.cause, trimmed, until: None });
                return;
            }
            Delivery::Events(batch) => batch,
        };
        let first = batch.events.first().is_some_and(|event| {
            !self.delivered.contains(&event.record.sequence.as_str().parse().unwrap())
        });
        if first {
            self.parents_first(world, &batch.shard);
        }
        let shard = &world.shards[&batch.shard];
        for event in &batch.events {
            let sequence: u64 = event.record.sequence.as_str().parse().unwrap();
            let written = shard.records.iter().find(|written| written.sequence == sequence);
            let Some(written) = written else {
                self.fault(format!("{sequence} is no record of {}", batch.shard));
                continue;
            };
            if self.since_secs.is_some_and(|since| written.created_secs < since) {
                self.fault(format!("{sequence} is older than the group's start"));
            }
            let open = self.gaps.iter_mut().filter(|gap| {
                gap.shard == batch.shard && gap.until.is_none() && sequence > gap.trimmed
            });
            open.for_each(|gap| gap.until = Some(sequence));
            if !self.delivered.insert(sequence) {
                self.repeats += 1;
                continue;
            }
            let latest = self.latest.entry(written.item).or_default();
            let late = *latest > written.version;
            let (item, version, newest) = (written.item, written.version, *latest);
            *latest = newest.max(version);
            if late && !self.covered(world, &batch.shard, sequence) {
                self.fault(format!("item {item}: version {version} first came after {newest}"));
            }
        }
    }

    fn parents_first(&mut self, world: &World, child: &ShardId) {
        for parent in &world.shards[child].parents {
            let missing = self.missing(world, parent);
            if let Some(sequence) = missing.first() {
                self.fault(format!("{child} began while {sequence} of {parent} had not come"));
            }
        }
    }

    /// Records of a shard that neither came nor are covered by a gap.
    fn missing(&self, world: &World, shard: &ShardId) -> Vec<u64> {
        let records = world.shards[shard].records.iter();
        records
            .filter(|written| self.since_secs.is_none_or(|since| written.created_secs >= since))
            .map(|written| written.sequence)
            .filter(|sequence| !self.delivered.contains(sequence))
            .filter(|sequence| !self.covered(world, shard, *sequence))
            .collect()
    }

    fn covered(&self, world: &World, shard: &ShardId, sequence: u64) -> bool {
        let lost = world.shards[shard].gone || sequence <= world.shards[shard].trimmed;
        self.gaps.iter().any(|gap| {
            let here = gap.shard == *shard
                && gap.after < sequence
                && gap.until.is_none_or(|until| sequence < until);
            let above = gap.cause == GapCause::ParentsGone
                && world.shards[shard].gone
                && world.ancestors(&gap.shard).contains(shard);
            lost && (here || above)
        })
    }

    /// At the end: everything came or is covered.
    pub fn complete(&mut self, world: &World) {
        for shard in world.shards.keys() {
            let missing = self.missing(world, shard);
            if !missing.is_empty() {
                let position = self.positions.get(shard);
                self.fault(format!("{shard}, at {position:?}, lost silently: {missing:?}"));
            }
        }
    }

    /// Whether everything came by now.
    pub fn is_complete(&self, world: &World) -> bool {
        world.shards.keys().all(|shard| self.missing(world, shard).is_empty())
    }
}
