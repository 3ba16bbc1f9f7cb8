//! Bad days: a `celld serve` whose DynamoDB loses replies, throttles, fails, hangs, is slow, or dies and comes back.
//!
//! Faults come from a proxy (`support/proxy.rs`) in front of Amazon's DynamoDB Local. What the service answers is held against the
//! tables themselves, read past the proxy.

#[path = "support/celld.rs"]
#[allow(dead_code, reason = "not every test file uses all of it")]
mod celld;
#[path = "support/dynamodb_local.rs"]
mod dynamodb_local;
#[path = "faults/lost_replies.rs"]
mod lost_replies;
#[path = "faults/outages.rs"]
mod outages;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "faults/reads.rs"]
mod reads;
#[path = "faults/world.rs"]
mod world;
#[path = "faults/writes.rs"]
mod writes;
