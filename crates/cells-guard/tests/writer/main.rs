//! The writers' contract on the embedded engine, with faults between the two.

mod conditions;
mod direct;
#[path = "../../../../tests/support/embedded.rs"]
mod embedded;
mod faults;
mod guarded;
mod moves;
mod reads;
mod repeatable;
mod watched;
mod world;
