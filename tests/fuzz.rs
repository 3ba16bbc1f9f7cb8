//! Arbitrary bytes in every string field of every RPC give the documented codes, and what is refused changes nothing.
//!
//! The methods and fields are taken from the descriptors, so a new one is covered as soon as it exists; the rules of fields are written
//! down in `oracle`. Cases are made from a seed, a method and a number: a failure names them, and `CELLD_FUZZ_SEED` makes them again.
//! `CELLD_FUZZ_CASES` sets how many cases a method gets.

#[path = "support/bulks.rs"]
mod bulks;
#[path = "fuzz/client.rs"]
mod client;
#[path = "fuzz/generate.rs"]
mod generate;
#[path = "fuzz/methods.rs"]
mod methods;
#[allow(dead_code, reason = "each test program uses its own part")]
#[path = "support/migrations.rs"]
mod migrations;
#[path = "fuzz/oracle.rs"]
mod oracle;
#[path = "fuzz/roundtrip.rs"]
mod roundtrip;
#[path = "fuzz/schema.rs"]
mod schema;
#[path = "fuzz/server.rs"]
mod server;
#[path = "fuzz/tokens.rs"]
mod tokens;

/// How many cases a method gets.
fn cases() -> u64 {
    setting("CELLD_FUZZ_CASES").unwrap_or(10_000)
}

/// The seed, printed where a case fails.
fn seed() -> u64 {
    setting("CELLD_FUZZ_SEED").unwrap_or_else(rand::random)
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, which is not a number")))
}
