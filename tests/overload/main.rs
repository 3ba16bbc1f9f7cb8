//! What happens when there is too much of something: calls, connections, bytes, silence. Real `celld` processes on real sockets.
//!
//! `admission`: server-wide limits and priorities; `connections`: limits of a connection's number, size and time; `recycling`: no call is
//! lost when connections or servers end. What depends on a delay that a test cannot bring about for sure is in the unit tests of
//! `grpc/controller.rs` and `grpc/admission.rs`, which inject it.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod celld;
#[path = "../support/embedded.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod embedded;
#[path = "../support/otlp/mod.rs"]
mod otlp;
#[path = "../api/valve.rs"]
mod valve;

mod admission;
mod caller;
mod connections;
mod recycling;

use std::time::Duration;

use cell_directory::proto::v1;

use crate::celld::{Celld, unique};
use crate::embedded::Embedded;
use crate::valve::Valve;

/// Longest wait for something that must come about, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Budgets are wide, because what is tested is what is refused for want of room, not of time.
const FLAGS: [&str; 8] = [
    "--read-timeout=40s",
    "--lookup-budget=50s",
    "--commit-timeout=40s",
    "--commit-budget=50s",
    "--journal-poll-interval=50ms",
    "--drain-timeout=20s",
    "--max-queue-delay=1m",
    "--log-filter=error",
];

/// Tables on an embedded engine, behind a valve, and a server with one cell and one tenant in memory.
pub struct World {
    pub server: Celld,
    pub valve: Valve,
    prefix: String,
    _engine: Embedded,
}

impl World {
    pub async fn new(flags: &[&str]) -> Self {
        let engine = Embedded::temporary();
        let valve = Valve::before(engine.endpoint());
        let prefix = unique("overload");
        let server = Celld::serve(&valve.endpoint(), &prefix, &[&FLAGS[..], flags].concat());
        server.create_cells(&["cell-a"]).await;
        server.directory().await.resolve(resolve("known")).await.unwrap();
        Self { server, valve, prefix, _engine: engine }
    }

    /// Another replica.
    pub async fn replica(&self, flags: &[&str]) -> Celld {
        let flags = [&FLAGS[..], flags].concat();
        let replica = Celld::serve(&self.valve.endpoint(), &self.prefix, &flags);
        replica.ready().await;
        replica
    }
}

pub fn resolve(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { partition_key: key.to_owned(), ..Default::default() }
}

/// Tells a process to end, and does not wait for it.
pub fn terminate(id: u32) {
    let kill = std::process::Command::new("kill").args(["-TERM", &id.to_string()]).status();
    assert!(kill.unwrap().success());
}
