//! Measures moves of tenants on DynamoDB Local, by the `celld` of this build; pauses also on the embedded engine, which collects no garbage
//! (`--embedded`).
//!
//! ```text
//! cargo bench --bench migration -- pause  how long writers wait while a tenant moves, of 100 items and of 20,000
//! cargo bench --bench migration -- copy   items copied a second against a bare loop of the same transactions
//! ```
//!
//! Options: `--rounds N` (default 5 moves of each kind), `--items N` (default 20,000). Both sides take turns.

// Of what the tests share, a benchmark uses a part.
#[path = "../../tests/support/celld.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod celld;
#[path = "../../tests/cells/cloudwatch.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod cloudwatch;
mod copy;
#[path = "../../tests/support/dynamodb_local.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod dynamodb_local;
#[path = "../../tests/support/embedded.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod embedded;
#[path = "../../tests/support/moto.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod moto;
mod pause;
#[path = "../../tests/migrations/scene.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod scene;
#[path = "../../tests/cells/streams_proxy.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod streams_proxy;
#[path = "../../tests/cells/world.rs"]
#[allow(dead_code, reason = "a benchmark uses a part of it")]
mod world;

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use scene::{Item, Scene, partition, text};

/// As in `celld`; the baseline has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What to measure, and how long.
pub struct Options {
    pub rounds: usize,
    pub items: usize,
    pub embedded: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        let text = at.and_then(|at| arguments.get(at + 1));
        text.map_or(default, |text| {
            text.parse().unwrap_or_else(|_| panic!("{name} takes a number, not {text:?}"))
        })
    };
    let options = Options {
        rounds: number("--rounds", 5),
        items: number("--items", 20_000),
        embedded: arguments.iter().any(|argument| argument == "--embedded"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match arguments.first().map(String::as_str) {
        Some("pause") => runtime.block_on(pause::run(&options)),
        Some("copy") => runtime.block_on(copy::run(&options)),
        _ => {
            eprintln!("usage: cargo bench --bench migration -- pause|copy [options]");
            std::process::exit(2);
        }
    }
}

/// An item of 200 bytes or so.
pub fn item(tenant: &str, cell: &str, number: usize) -> Item {
    Item::from([
        ("PK".to_owned(), text(&partition(tenant))),
        ("SK".to_owned(), text(&format!("{number:08}"))),
        ("CellId".to_owned(), text(cell)),
        ("Text".to_owned(), text(&"x".repeat(120))),
        ("Number".to_owned(), AttributeValue::N(number.to_string())),
    ])
}

/// Begins a move with a short soak, and answers it when it is done, with the states that were seen and when they began.
pub async fn moved(
    scene: &mut Scene,
    tenant: &str,
    to: &str,
) -> (v1::Migration, Vec<(v1::MigrationState, Duration)>) {
    let request = v1::StartMigrationRequest {
        // What is removed after it would have writers wait for the engine.
        soak_duration: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        pause_budget: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        ..scene::request(tenant, to)
    };
    let id = scene.start_with(request).await.unwrap().migration_id;
    let mut states: Vec<(v1::MigrationState, Duration)> = Vec::new();
    loop {
        let migration = scene.get(&id).await;
        assert_eq!(migration.parked_reason, "", "{migration:?}");
        if states.last().is_none_or(|(state, _)| *state != migration.state())
            && let Some(began) = migration.state_time
        {
            let began = Duration::new(began.seconds as u64, began.nanos as u32);
            states.push((migration.state(), began));
        }
        if migration.state() == v1::MigrationState::Done {
            return (migration, states);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The cell of two in which a tenant does not live.
pub fn other(cell: &str) -> &'static str {
    if cell == "cell-a" { "cell-b" } else { "cell-a" }
}

/// So many hundredths of the figures are at most this.
pub fn percentile(figures: &mut [f64], of: usize) -> f64 {
    figures.sort_by(f64::total_cmp);
    let at = (figures.len() * of).div_ceil(100).clamp(1, figures.len().max(1));
    figures.get(at - 1).copied().unwrap_or(f64::NAN)
}
