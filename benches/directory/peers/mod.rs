//! gRPC Resolve against what else answers where something is: etcd's serializable Range, which reads no quorum either, and Redis GET.
//!
//! All hold the same keys, with the encoded placement as the value, and are asked in the same shape by turns, by clients that cost little:
//! what is compared is the servers.

mod etcd;
mod program;
mod redis;

use std::net::SocketAddr;

use cell_directory::proto::v1;
use cell_directory::store::memory::MemoryStore;
use prost::Message;
use tokio::runtime::Runtime;

use crate::load::{Figures, Numbers, Shape};
use crate::{Options, collector, echo, lean, median, resolve, service};

const SHAPE: Shape = Shape { connections: 8, streams: 32 };

const NAMES: [&str; 4] =
    ["bare tonic echo", "directory, Resolve", "etcd, serializable Range", "Redis, GET, pipelined"];
const DIRECTORY: usize = 1;
const ETCD: usize = 2;

/// What Resolve is to reach of etcd's Range.
const TIMES_ETCD: f64 = 3.0;

pub fn run(options: &Options) {
    // Said before a million keys are placed.
    let (etcd, redis) = (program::find("etcd"), program::find("redis-server"));
    let skip = |found: &Option<_>, name: &str, package: &str| {
        if found.is_none() {
            println!(
                "{name} is left out: the program is not installed (Debian: apt-get install {package})"
            );
        }
    };
    skip(&etcd, "etcd", "etcd-server");
    skip(&redis, "redis-server", "redis-server");

    let (servers, clients) = (resolve::runtime(), resolve::runtime());
    let collector = servers.block_on(collector::start());
    let telemetry = service::telemetry(&collector);
    let config = service::config(options.placements);
    let store = service::store(MemoryStore::default());
    let directory = servers.block_on(service::start(store, &config, &telemetry));
    eprintln!("placing {} tenants", options.placements);
    servers.block_on(resolve::fill(&directory.directory, options.placements));
    let placements = options.placements as u64;
    let sample = clients.block_on(resolve::sample(directory.address));
    let value = sample.resolve.placement.clone().unwrap_or_default();
    let echo = servers.block_on(echo::start(sample));

    // Each is ended when this function ends, however it does.
    let mut etcd = etcd.map(|program| etcd::Etcd::start(&program));
    let redis = redis.map(|program| redis::Redis::start(&program));
    let peers = clients.block_on(async {
        if let Some(etcd) = &mut etcd {
            eprintln!("filling etcd {}", etcd.version);
            etcd::fill(etcd.address, placements, &value).await;
            etcd.restart();
        }
        if let Some(redis) = &redis {
            eprintln!("filling Redis {}", redis.version);
            redis::fill(redis.address, placements, &value).await;
        }
        let peers = Peers {
            echo,
            directory: directory.address,
            etcd: etcd.as_ref().map(|etcd| etcd.address),
            redis: redis.as_ref().map(|redis| redis.address),
        };
        println!(
            "{placements} keys, values of {} bytes, {} connections x {} calls under way; {}{}",
            value.encoded_len(),
            SHAPE.connections,
            SHAPE.streams,
            etcd.as_ref().map(|etcd| format!("etcd {}, ", etcd.version)).unwrap_or_default(),
            redis.as_ref().map(|redis| format!("Redis {}", redis.version)).unwrap_or_default(),
        );
        peers
    });
    print(&compare(options, &peers, value.encoded_len(), &clients));
}

/// Where to ask.
struct Peers {
    echo: SocketAddr,
    directory: SocketAddr,
    etcd: Option<SocketAddr>,
    redis: Option<SocketAddr>,
}

/// The value that is stored under a key.
fn value(of: &v1::Placement, key: String) -> Vec<u8> {
    v1::Placement { partition_key: key, ..of.clone() }.encode_to_vec()
}

/// Lets all take turns. The rounds' figures, in the order of the names.
fn compare(
    options: &Options,
    peers: &Peers,
    value: usize,
    clients: &Runtime,
) -> Vec<[Option<Figures>; NAMES.len()]> {
    let placements = options.placements as u64;
    let numbers = |at: u64| {
        let mut numbers = Numbers(at);
        move || numbers.next() % placements
    };
    let connections = 0..SHAPE.connections as u64;
    let resolving =
        |address| connections.clone().map(|at| lean::resolving(address, numbers(at))).collect();
    let mut echo: Vec<lean::Client> = resolving(peers.echo);
    let mut directory: Vec<lean::Client> = resolving(peers.directory);
    let mut etcd: Option<Vec<lean::Client>> = peers
        .etcd
        .map(|address| connections.clone().map(|at| etcd::ranging(address, numbers(at))).collect());
    let ask = |clients: &mut Vec<lean::Client>| {
        let figures = lean::closed(clients, SHAPE.streams, options.duration);
        for client in clients {
            let answers = client.latencies.len() as u64;
            let whole = client.answered >= answers * value as u64;
            assert!(whole && client.refused + client.reset == 0, "not every answer has its value");
        }
        Some(figures)
    };
    let mut rounds = Vec::new();
    // The first round warms up.
    for round in 0..=options.rounds {
        let redis = peers.redis.map(|address| {
            clients.block_on(redis::measure(address, placements, SHAPE, options.duration))
        });
        let figures = [ask(&mut echo), ask(&mut directory), etcd.as_mut().and_then(ask), redis];
        if round > 0 {
            rounds.push(figures);
        }
    }
    rounds
}

fn print(rounds: &[[Option<Figures>; NAMES.len()]]) {
    println!(
        "{:<26} {:>10} {:>10} {:>10} {:>16}",
        "", "calls/s", "p50 us", "p99 us", "Resolve / it"
    );
    let of = |side: usize, pick: fn(&Figures) -> f64| -> Option<f64> {
        let picked: Option<Vec<f64>> =
            rounds.iter().map(|round| round[side].as_ref().map(pick)).collect();
        picked.map(median)
    };
    // The median of the rounds' ratios, not the ratio of the medians.
    let ratio = |side: usize| -> Option<f64> {
        let ratios: Option<Vec<f64>> = rounds
            .iter()
            .map(|round| Some(round[DIRECTORY]?.per_second / round[side]?.per_second))
            .collect();
        ratios.map(median)
    };
    for (side, name) in NAMES.iter().enumerate() {
        let rate = of(side, |figures| figures.per_second);
        let p50 = of(side, |figures| figures.p50.as_secs_f64() * 1e6);
        let p99 = of(side, |figures| figures.p99.as_secs_f64() * 1e6);
        let (Some(rate), Some(p50), Some(p99), Some(ratio)) = (rate, p50, p99, ratio(side)) else {
            continue;
        };
        println!("{name:<26} {rate:>10.0} {p50:>10.0} {p99:>10.0} {ratio:>16.3}");
    }
    if let Some(ratio) = ratio(ETCD) {
        println!("Resolve / etcd's serializable Range: {ratio:.2} (at least {TIMES_ETCD:.2})");
    }
}
