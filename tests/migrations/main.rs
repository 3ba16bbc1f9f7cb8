//! Moves of tenants, by `celld` over a real socket, on engines that hold data: what was written is there, wherever the tenant lives.

#[path = "../support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
#[path = "../cells/cloudwatch.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod cloudwatch;
#[path = "../support/dynamodb_local.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod dynamodb_local;
#[path = "../support/embedded.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod embedded;
#[path = "../support/moto.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod moto;
#[path = "../support/otlp/mod.rs"]
mod otlp;
#[path = "../support/proxy.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod proxy;
#[path = "../cells/streams_proxy.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod streams_proxy;
#[path = "../cells/world.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod world;

mod arena;
mod counted;
mod crash;
mod drain;
mod frozen;
mod ledger;
mod limits;
mod load;
mod movement;
mod mover;
mod proxy_denying;
mod rebalance;
mod scene;
mod steered;
mod traced;
mod workers;
mod writers;
