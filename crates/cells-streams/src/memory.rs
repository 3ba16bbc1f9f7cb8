//! Leases in memory: for tests and for consumers that live and die with their process.

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::lease::{
    Claim, Claimed, Group, Lease, LeaseEpoch, LeaseError, Leases, NewLease, Position, Stamp, Taken,
};
use crate::{OwnerId, ShardId};

/// The records of one group for one stream, in this process.
#[derive(Debug, Default)]
pub struct MemoryLeases {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    group: Option<Group>,
    leases: BTreeMap<ShardId, Lease>,
}

impl MemoryLeases {
    pub fn new() -> Self {
        Self::default()
    }

    fn claimed(&self, claim: &Claim, change: impl FnOnce(&mut Lease)) -> Claimed {
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(&claim.shard) else { return Claimed::Lost };
        if lease.owner.as_ref() != Some(&claim.owner) || lease.stamp.epoch != claim.epoch {
            return Claimed::Lost;
        }
        change(lease);
        lease.stamp.counter += 1;
        Claimed::Held
    }
}

#[async_trait]
impl Leases for MemoryLeases {
    async fn begin(&self, since_secs: Option<i64>) -> Result<Group, LeaseError> {
        let fresh = Group { since_secs, initialised: false };
        Ok(*self.state.lock().group.get_or_insert(fresh))
    }

    async fn initialised(&self) -> Result<(), LeaseError> {
        match &mut self.state.lock().group {
            Some(group) => group.initialised = true,
            None => return Err(LeaseError("the group has not begun".into())),
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Lease>, LeaseError> {
        Ok(self.state.lock().leases.values().cloned().collect())
    }

    async fn create(&self, lease: &NewLease) -> Result<(), LeaseError> {
        let NewLease { shard, parents, position, since_secs } = lease.clone();
        let stamp = Stamp { epoch: LeaseEpoch::NEVER_TAKEN, counter: 0 };
        let lease =
            Lease { shard: shard.clone(), parents, position, since_secs, owner: None, stamp };
        self.state.lock().leases.entry(shard).or_insert(lease);
        Ok(())
    }

    async fn take(
        &self,
        shard: &ShardId,
        seen: Stamp,
        owner: &OwnerId,
    ) -> Result<Taken, LeaseError> {
        let mut state = self.state.lock();
        let Some(lease) = state.leases.get_mut(shard) else { return Ok(Taken::Lost) };
        if lease.stamp == seen {
            lease.owner = Some(owner.clone());
            lease.stamp = Stamp { epoch: seen.epoch.next(), counter: seen.counter + 1 };
        } else if lease.owner.as_ref() != Some(owner) || lease.stamp.epoch != seen.epoch.next() {
            return Ok(Taken::Lost);
        }
        Ok(Taken::Won(lease.clone()))
    }

    async fn renew(&self, claim: &Claim) -> Result<Claimed, LeaseError> {
        Ok(self.claimed(claim, |_| {}))
    }

    async fn checkpoint(&self, claim: &Claim, position: &Position) -> Result<Claimed, LeaseError> {
        Ok(self.claimed(claim, |lease| lease.position = position.clone()))
    }

    async fn release(&self, claim: &Claim) -> Result<Claimed, LeaseError> {
        Ok(self.claimed(claim, |lease| lease.owner = None))
    }

    async fn forget(&self, shard: &ShardId) -> Result<(), LeaseError> {
        let mut state = self.state.lock();
        if state.leases.get(shard).is_some_and(|lease| lease.position.is_end()) {
            state.leases.remove(shard);
        }
        Ok(())
    }
}
