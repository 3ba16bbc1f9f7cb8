//! What guards said that routes do not say yet: the tenants that are on the move.

use std::collections::HashMap;
use std::sync::Arc;

use cells_migration::{GuardState, WriteMode};
use parking_lot::Mutex;

use super::route::Home;
use crate::StoredGuard;

/// Most tenants that are remembered; beyond that, all are forgotten and learnt anew.
const MAX_TENANTS: usize = 10_000;

/// Open guards as last seen, of tenants whose writes are logged or whose routes are behind. Never relied on: what is asked of a guard by
/// it is checked by the storage.
#[derive(Debug, Default)]
pub struct KnownGuards(Mutex<HashMap<String, Arc<Known>>>);

#[derive(Debug)]
pub(super) struct Known {
    pub home: Home,
    pub guard: StoredGuard,
}

impl KnownGuards {
    pub(super) fn of(&self, tenant: &str) -> Option<Arc<Known>> {
        self.0.lock().get(tenant).cloned()
    }

    pub(super) fn epoch(&self, tenant: &str) -> Option<u64> {
        self.0.lock().get(tenant).map(|known| known.guard.guard.epoch)
    }

    /// An open guard was seen. `routed`: the cell and epoch that the route named.
    pub(super) fn saw(
        &self,
        tenant: &str,
        home: &Home,
        guard: &StoredGuard,
        routed: (&str, Option<u64>),
    ) {
        let said = (guard.cell.as_str(), Some(guard.guard.epoch)) == routed;
        let plain = guard.guard.mode == WriteMode::Direct && guard.shards == 1;
        let mut known = self.0.lock();
        if (said && plain) || guard.guard.state != GuardState::Open {
            known.remove(tenant);
            return;
        }
        if known.len() >= MAX_TENANTS && !known.contains_key(tenant) {
            known.clear();
        }
        let of = Known { home: home.clone(), guard: guard.clone() };
        known.insert(tenant.to_owned(), Arc::new(of));
    }

    pub(super) fn forget(&self, tenant: &str) {
        self.0.lock().remove(tenant);
    }
}
