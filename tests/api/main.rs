//! The API over a real socket, every case on both engines: the embedded one and Amazon's DynamoDB Local.
//!
//! A case gets an [`world::Engine`], on which it starts `celld` processes with tables of their own. Where a case says that nothing was
//! changed, it compares all items of all tables before and after.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
#[path = "../support/dynamodb_local.rs"]
mod dynamodb_local;
#[path = "../support/embedded.rs"]
mod embedded;

/// Makes each function a test on each engine.
macro_rules! on_both_engines {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            use crate::world::Engine;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case(Engine::embedded()).await; })+
        }
        mod dynamodb_local {
            use crate::world::Engine;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case(Engine::dynamodb_local()).await; })+
        }
    };
}

mod adoption;
mod batch;
mod cells;
mod checks;
mod cluster;
mod eligibility;
mod expiry;
mod import;
mod input;
mod leases;
mod listing;
mod placements;
mod races;
mod replicas;
mod requests;
mod resolve;
mod serving;
mod valve;
mod watch;
mod wire;
mod world;
