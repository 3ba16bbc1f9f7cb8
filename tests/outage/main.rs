//! What lasts when something ends: DynamoDB for a minute, a replica meanwhile, a server under load, all that was in memory. Real `celld`
//! processes, each with a fault proxy of its own before Amazon's DynamoDB Local.
//!
//! `dynamodb_stopped`: what is known is answered as fast as ever, also by who was restarted meanwhile, and DynamoDB is not asked more for it,
//! then or afterwards; `empty_start`: a start with nothing in memory reads the table about once; `termination`: clients that balance lose
//! no call when a server is told to end.
//!
//! The outage lasts a minute, or as many seconds as `CELLD_TEST_OUTAGE_SECONDS` says.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod celld;
#[path = "../support/dynamodb_local.rs"]
mod dynamodb_local;
#[path = "../support/proxy.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod proxy;

mod dynamodb_stopped;
mod empty_start;
mod figures;
mod load;
mod misses;
mod termination;
mod world;

use tokio::sync::{Mutex, MutexGuard};

/// One test at a time: they measure.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}
