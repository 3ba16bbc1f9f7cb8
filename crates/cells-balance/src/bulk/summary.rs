//! How far a bulk is, in numbers.

use serde::{Deserialize, Serialize};

use super::{Bulk, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count {
    pub tenants: u64,
    /// Of those tenants whose bytes are known.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: Option<u64>) {
        self.tenants += 1;
        self.bytes = self.bytes.saturating_add(bytes.unwrap_or(0));
    }
}

/// Every tenant is in one of the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    pub waiting: Count,
    pub running: Count,
    pub done: Count,
    /// Failed, and to be tried again.
    pub to_retry: Count,
    /// Failed for good.
    pub failed: Count,
    pub skipped: Count,
}

impl Bulk {
    /// Takes time in proportion to the tenants.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for item in &self.items {
            let count = match &item.state {
                State::Waiting => &mut summary.waiting,
                State::Running { .. } => &mut summary.running,
                State::Done => &mut summary.done,
                State::Failed { .. } if self.is_tried_again(item) => &mut summary.to_retry,
                State::Failed { .. } => &mut summary.failed,
                State::Skipped { .. } => &mut summary.skipped,
            };
            count.add(item.bytes);
        }
        summary
    }
}
