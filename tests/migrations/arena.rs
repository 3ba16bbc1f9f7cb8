//! Three replicas, each with a bad network to DynamoDB of its own, which are killed all the time and started again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::celld::{Celld, command};
use crate::proxy::{Fault, Laid, Proxy, Rule};
use crate::scene::FLAGS;

pub const REPLICAS: usize = 3;

/// From one kill to the next.
const KILLS: std::ops::Range<u64> = 200..2000;

/// Where ports are looked for: below those that systems hand out by themselves, so that the port of a dead replica stays its own.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A lost reply is settled long before anybody gives up.
const MORE: [&str; 10] = [
    "--migration-interval=200ms",
    "--migration-guard-shards=4",
    "--guards-interval=10s",
    "--migration-takeover=1s",
    "--migration-pause-budget=5s",
    "--read-timeout=5s",
    "--lookup-budget=30s",
    "--commit-timeout=5s",
    "--commit-budget=25s",
    "--journal-poll-interval=100ms",
];

const WRITES: &[&str] =
    &["PutItem", "UpdateItem", "DeleteItem", "TransactWriteItems", "BatchWriteItem"];
const TRANSACTIONS: &[&str] = &["TransactWriteItems"];

/// A bad network, bad enough to be met with all the time and good enough to get on: the fewer faults, the higher `rare`.
pub fn faulty(backend: &str, rare: usize) -> (Proxy, Vec<Laid>) {
    let proxy = Proxy::start(backend);
    proxy.count_nothing();
    let rules = [
        Rule::on(WRITES, Fault::LoseReply).every(61 * rare),
        Rule::on(TRANSACTIONS, Fault::CONFLICT).every(31 * rare),
        Rule::on(WRITES, Fault::THROUGHPUT).every(67 * rare),
        Rule::on(WRITES, Fault::INTERNAL).every(83 * rare),
        Rule::all(Fault::THROTTLING).every(127 * rare),
        Rule::all(Fault::UNAVAILABLE).every(211 * rare),
        Rule::all(Fault::LoseRequest).every(173 * rare),
        Rule::all(Fault::LoseReply).every(199 * rare),
        Rule::all(Fault::Slow(Duration::from_millis(40))).every(23 * rare),
    ];
    let laid = rules.into_iter().map(|rule| proxy.lay(rule)).collect();
    (proxy, laid)
}

struct Seat {
    address: String,
    proxy: Proxy,
    faults: Vec<Laid>,
    replica: Mutex<Option<Celld>>,
}

pub struct Arena {
    prefix: String,
    seats: Vec<Seat>,
    kills: AtomicUsize,
    stop: CancellationToken,
}

impl Arena {
    /// Starts the replicas on tables that exist.
    pub fn start(backend: &str, prefix: &str) -> Arc<Self> {
        let seats = free_addresses().into_iter().map(|address| {
            let (proxy, faults) = faulty(backend, 3);
            Seat { address, proxy, faults, replica: Mutex::new(None) }
        });
        let arena = Self {
            prefix: prefix.to_owned(),
            seats: seats.collect(),
            kills: AtomicUsize::new(0),
            stop: CancellationToken::new(),
        };
        for seat in &arena.seats {
            *seat.replica.lock() = Some(arena.replica(seat));
        }
        Arc::new(arena)
    }

    fn replica(&self, seat: &Seat) -> Celld {
        let mut serve = command(&["serve", "--listen", &seat.address]);
        serve.args(["--dynamodb-endpoint", &seat.proxy.endpoint()]);
        serve.args(["--table-prefix", &self.prefix]);
        // What is given twice counts as it was given last.
        let flags = FLAGS.iter().filter(|flag| {
            let name = flag.split('=').next().unwrap();
            !MORE.iter().any(|more| more.starts_with(name))
        });
        serve.args(flags).args(MORE);
        let told = std::env::var_os("CELLD_TEST_LOAD_TOLD").is_some();
        let filter = if told { "off,cell_directory::migration=debug" } else { "off" };
        serve.args(["--log-filter", filter]);
        Celld::start(serve)
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.seats.iter().map(|seat| format!("http://{}", seat.address)).collect()
    }

    pub fn kills(&self) -> usize {
        self.kills.load(Ordering::SeqCst)
    }

    /// Faults that replicas met with.
    pub fn faults(&self) -> usize {
        self.seats.iter().flat_map(|seat| &seat.faults).map(Laid::fired).sum()
    }

    /// Kills one replica after the other, and starts it again at once, until [`Arena::settle`].
    pub fn rampage(self: &Arc<Self>, seed: u64) -> std::thread::JoinHandle<()> {
        let arena = Arc::clone(self);
        std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            while !arena.stop.is_cancelled() {
                std::thread::sleep(Duration::from_millis(random.random_range(KILLS)));
                let at = random.random_range(0..arena.seats.len());
                let seat = &arena.seats[at];
                let mut replica = seat.replica.lock();
                replica.take().into_iter().for_each(Celld::kill);
                arena.kills.fetch_add(1, Ordering::SeqCst);
                // The next one is killed after this one listens: on a slow machine, too, somebody is there most of the time.
                *replica = Some(arena.replica(seat));
            }
        })
    }

    /// No more kills, and no more faults.
    pub fn settle(&self) {
        self.stop.cancel();
        self.seats.iter().for_each(|seat| seat.proxy.clear());
    }
}

/// Kills what is left when a test ends, however it ends.
pub struct Ended(pub Arc<Arena>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.settle();
        for seat in &self.0.seats {
            drop(seat.replica.lock().take());
        }
    }
}

fn free_addresses() -> Vec<String> {
    let mut found = HashSet::new();
    while found.len() < REPLICAS {
        let address = format!("127.0.0.1:{}", rand::random_range(PORTS));
        if std::net::TcpListener::bind(&address).is_ok() {
            found.insert(address);
        }
    }
    found.into_iter().collect()
}
