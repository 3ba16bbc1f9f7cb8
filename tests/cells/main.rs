//! What a cell is made of, by a `celld` over a real socket: on moto, which knows most of what AWS does around a table, and on the
//! engines that hold data better.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
#[path = "../support/dynamodb_local.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod dynamodb_local;
#[path = "../support/embedded.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod embedded;
#[path = "../support/moto.rs"]
mod moto;
#[path = "../support/otlp/mod.rs"]
mod otlp;

mod capacity;
mod cloudwatch;
mod consumption;
mod data;
mod events;
mod failover;
mod former;
mod guarded;
mod load;
mod provision;
mod recovery;
mod sinks;
mod streams_proxy;
#[allow(dead_code, reason = "each test file uses a part of it")]
mod world;
