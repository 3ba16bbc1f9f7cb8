//! Decides what one consumer does about the shards: which to record, to take, to forget. Pure: time comes in, actions go out.
//!
//! Why by itself: everything that is delicate about sharing a stream is here, and can be tried here without a stream.
//!
//! Invariants:
//! - A shard gets a record only after all of its parents have one, or are known to be gone.
//! - A shard is taken only if all of its parents' records say that they were read to the end. Its own record must have been there
//!   already in an earlier listing of leases: then a parent's, made before it, cannot have been missed.
//! - A lease of another is taken if its stamp stayed the same for a lease's duration by this observer's clock, or to balance:
//!   one at a time, from the owner with most, only where that owner keeps at least as many as the taker then has.
//! - What a listing does not show is not thereby gone: a shard that is missing is asked for by name, before its children begin without
//!   it and before its record is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::lease::{Group, Lease, NewLease, Position, Stamp};
use crate::streams::Shard;
use crate::{Options, OwnerId, ShardId};

/// What to do next, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for an iterator of this shard: whether it is gone.
    Probe(ShardId),
    Create(NewLease),
    /// Record that all shards of the group's start have records.
    Initialised,
    /// Read on with a lease that is this consumer's without its reading it: the reply to its taking was lost.
    Adopt(Lease),
    Take {
        shard: ShardId,
        seen: Stamp,
    },
    Forget(ShardId),
}

/// What the stream said last.
#[derive(Debug, Clone)]
struct Listing {
    at: Duration,
    shards: BTreeMap<ShardId, Shard>,
    complete: bool,
}

/// Since when a lease is as it is.
#[derive(Debug, Clone, Copy)]
struct Seen {
    stamp: Stamp,
    since: Duration,
    /// In how many listings of leases it was so far.
    listings: u32,
}

/// What one consumer has observed.
#[derive(Debug)]
pub struct Planner {
    me: OwnerId,
    lease: Duration,
    forget_after: Duration,
    parent_patience: Duration,
    listing_good_for: Duration,
    max_shards: usize,
    listing: Option<Listing>,
    leases: BTreeMap<ShardId, Lease>,
    seen: BTreeMap<ShardId, Seen>,
    /// Shards with a record that complete listings do not show, since when.
    unlisted: BTreeMap<ShardId, Duration>,
    /// Parents that are named and neither listed nor recorded, since when.
    awaited: BTreeMap<ShardId, Duration>,
    /// Shards that were asked for by name and do not exist any longer.
    gone: BTreeSet<ShardId>,
}

impl Planner {
    pub fn new(me: OwnerId, options: &Options) -> Self {
        Self {
            me,
            lease: options.lease,
            forget_after: options.forget_after,
            parent_patience: options.parent_patience,
            listing_good_for: options.forget_after / 2,
            max_shards: options.max_shards,
            listing: None,
            leases: BTreeMap::new(),
            seen: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            awaited: BTreeMap::new(),
            gone: BTreeSet::new(),
        }
    }

    /// Takes note of the stream's shards. `complete`: the listing came to its end. What an incomplete one does not show stays known.
    pub fn saw_shards(&mut self, now: Duration, shards: Vec<Shard>, complete: bool) {
        let fresh = shards.into_iter().map(|shard| (shard.id.clone(), shard));
        match &mut self.listing {
            Some(listing) if !complete => listing.shards.extend(fresh),
            listing => *listing = Some(Listing { at: now, shards: fresh.collect(), complete }),
        }
        if !complete {
            return;
        }
        let listing = self.listing.as_ref();
        let lists = |id: &ShardId| listing.is_some_and(|listing| listing.shards.contains_key(id));
        self.unlisted.retain(|id, _| !lists(id));
        for id in self.leases.keys().filter(|id| !lists(id)) {
            self.unlisted.entry(id.clone()).or_insert(now);
        }
    }

    /// Takes note of the leases. `now`: after the answer came.
    pub fn saw_leases(&mut self, now: Duration, leases: Vec<Lease>) {
        self.leases = leases.into_iter().map(|lease| (lease.shard.clone(), lease)).collect();
        self.seen.retain(|id, _| self.leases.contains_key(id));
        self.unlisted.retain(|id, _| self.leases.contains_key(id));
        for (id, lease) in &self.leases {
            let fresh = Seen { stamp: lease.stamp, since: now, listings: 0 };
            let seen = self.seen.entry(id.clone()).or_insert(fresh);
            if seen.stamp != lease.stamp {
                (seen.stamp, seen.since) = (lease.stamp, now);
            }
            seen.listings = seen.listings.saturating_add(1);
        }
    }

    /// Takes note that a shard was asked for by name, and whether it exists.
    pub fn probed(&mut self, now: Duration, shard: &ShardId, exists: bool) {
        let since = *self.awaited.entry(shard.clone()).or_insert(now);
        // One that gives iterators but is never listed must not hold up its children for ever.
        let given_up =
            !self.leases.contains_key(shard) && now.saturating_sub(since) >= self.parent_patience;
        if !exists || given_up {
            self.awaited.remove(shard);
            self.gone.insert(shard.clone());
        }
    }

    /// What to do. `running`: the shards that this consumer reads at the moment. `wall_secs`: the second of the Unix epoch, for what a
    /// new record says of its age.
    pub fn plan(
        &self,
        now: Duration,
        wall_secs: i64,
        group: &Group,
        running: &BTreeSet<ShardId>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(listing) = &self.listing
            && now.saturating_sub(listing.at) <= self.listing_good_for
        {
            self.record(listing, wall_secs, group, &mut actions);
        }
        self.take(now, running, &mut actions);
        self.forget(now, &mut actions);
        actions
    }

    /// Records for listed shards that have none, parents first.
    fn record(&self, listing: &Listing, wall_secs: i64, group: &Group, actions: &mut Vec<Action>) {
        let missing =
            || listing.shards.values().filter(|shard| !self.leases.contains_key(&shard.id));
        let mut made: BTreeSet<&ShardId> = BTreeSet::new();
        let mut probes: BTreeSet<&ShardId> = BTreeSet::new();
        loop {
            let before = made.len();
            for shard in missing() {
                if made.contains(&shard.id) {
                    continue;
                }
                let recorded = |id| self.leases.contains_key(id) || made.contains(id);
                let unseen: Vec<&ShardId> =
                    shard.parents.iter().filter(|id| !recorded(*id)).collect();
                let lists = |id: &ShardId| listing.shards.contains_key(id);
                probes.extend(unseen.iter().filter(|id| !lists(id) && !self.gone.contains(**id)));
                if unseen.iter().all(|id| !lists(id) && self.gone.contains(*id)) {
                    let orphan = !unseen.is_empty();
                    let position = first_position(shard, wall_secs, group, orphan);
                    actions.push(Action::Create(new_lease(shard, group, position)));
                    made.insert(&shard.id);
                }
            }
            if made.len() == before {
                break;
            }
        }
        actions.splice(0..0, probes.into_iter().cloned().map(Action::Probe));
        if !group.initialised && listing.complete && missing().next().is_none() {
            actions.push(Action::Initialised);
        }
    }

    /// Leases to take: those that nobody has up to a fair share, else one of the owner with most.
    fn take(&self, now: Duration, running: &BTreeSet<ShardId>, actions: &mut Vec<Action>) {
        let live: Vec<&Lease> = self.leases.values().filter(|lease| self.readable(lease)).collect();
        let mut shares: BTreeMap<&OwnerId, Vec<&Lease>> = BTreeMap::from([(&self.me, Vec::new())]);
        let mut free = Vec::new();
        for lease in &live {
            match &lease.owner {
                Some(owner) if *owner == self.me || !self.expired(now, lease) => {
                    shares.entry(owner).or_default().push(lease);
                }
                _ => free.push(*lease),
            }
        }
        let mine = shares.remove(&self.me).unwrap_or_default();
        let orphaned = mine.iter().filter(|lease| !running.contains(&lease.shard));
        actions.extend(orphaned.map(|lease| Action::Adopt((*lease).clone())));
        let fair = live.len().div_ceil(shares.len() + 1).min(self.max_shards);
        let room = fair.saturating_sub(mine.len());
        // A reader of ours that lost the shard and does not know yet must not get company.
        free.retain(|lease| !running.contains(&lease.shard));
        let take = |lease: &Lease| Action::Take { shard: lease.shard.clone(), seen: lease.stamp };
        if !free.is_empty() {
            // Consumers that look at the same time start at different places.
            let offset = hash(self.me.as_str()) as usize % free.len();
            free.rotate_left(offset);
            actions.extend(free.into_iter().take(room).map(take));
        } else if room > 0
            && let Some(most) = shares.values().max_by_key(|leases| leases.len())
            && most.len() >= mine.len() + 2
        {
            let stolen = most.iter().rfind(|lease| !running.contains(&lease.shard));
            actions.extend(stolen.map(|lease| take(lease)));
        }
    }

    /// Where the reader of a lease begins. An unread shard is as young as the ends of its parents are; where one of them ended in a gap,
    /// the gap may reach into the shard.
    pub fn begins(&self, lease: &Lease) -> Position {
        let Position::Fresh { as_of_secs } = lease.position else { return lease.position.clone() };
        let parents = lease.parents.iter().filter_map(|id| self.leases.get(id));
        let ends = parents.map(|parent| match parent.position {
            Position::End { as_of_secs } => Some(as_of_secs),
            _ => None,
        });
        match ends.collect::<Option<Vec<i64>>>() {
            None => Position::Orphan,
            Some(ends) => {
                let oldest = ends.into_iter().min().unwrap_or(as_of_secs);
                Position::Fresh { as_of_secs: oldest.max(as_of_secs) }
            }
        }
    }

    /// Whether a shard is not finished and its parents are.
    fn readable(&self, lease: &Lease) -> bool {
        let ended = |id| self.leases.get(id).is_none_or(|lease| lease.position.is_end());
        !lease.position.is_end()
            && self.seen.get(&lease.shard).is_some_and(|seen| seen.listings >= 2)
            && lease.parents.iter().all(ended)
    }

    fn expired(&self, now: Duration, lease: &Lease) -> bool {
        let since = self.seen.get(&lease.shard).map_or(now, |seen| seen.since);
        now.saturating_sub(since) >= self.lease
    }

    /// Finished shards that the stream has not listed for long, oldest first. One that no record names as its parent stays: its
    /// children may not be recorded yet, and would then be taken for orphans.
    fn forget(&self, now: Duration, actions: &mut Vec<Action>) {
        let forgotten = self.unlisted.iter().filter(|(id, since)| {
            let Some(lease) = self.leases.get(*id) else { return false };
            lease.position.is_end()
                && now.saturating_sub(**since) >= self.forget_after
                && !lease.parents.iter().any(|parent| self.leases.contains_key(parent))
                && self.leases.values().any(|child| child.parents.contains(id))
                && !self.leases.values().any(|child| child.parents.contains(id) && is_unread(child))
        });
        actions.extend(forgotten.map(|(id, _)| match self.gone.contains(id) {
            true => Action::Forget(id.clone()),
            // Two listings with a hole at the same place are no proof.
            false => Action::Probe(id.clone()),
        }));
    }
}

/// Where a shard is read from that has no record yet. `orphan`: some parent was gone before it had a record.
fn first_position(shard: &Shard, wall_secs: i64, group: &Group, orphan: bool) -> Position {
    if !group.initialised {
        // A closed shard has nothing that is yet to come.
        let over = group.since_secs.is_some() && shard.end.is_some();
        return if over { Position::End { as_of_secs: wall_secs } } else { Position::Horizon };
    }
    match shard.parents.is_empty() {
        _ if orphan => Position::Orphan,
        true => Position::Fresh { as_of_secs: wall_secs },
        // How its parents end will say.
        false => Position::Fresh { as_of_secs: 0 },
    }
}

/// Whether nothing of a shard was accepted yet, so that its parents' ends still matter.
fn is_unread(lease: &Lease) -> bool {
    matches!(lease.position, Position::Fresh { .. } | Position::Orphan)
}

fn new_lease(shard: &Shard, group: &Group, position: Position) -> NewLease {
    NewLease {
        shard: shard.id.clone(),
        parents: shard.parents.clone(),
        position,
        since_secs: group.since_secs.filter(|_| !group.initialised),
    }
}

/// FNV-1a: the same in every build, which the standard library's hash does not promise.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests;
