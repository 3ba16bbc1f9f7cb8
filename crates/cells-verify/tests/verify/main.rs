//! The verifier against a naive reference: two maps.

mod answers;
mod cells;
mod concurrent;
mod merge;
mod recheck;
mod report;
mod world;
