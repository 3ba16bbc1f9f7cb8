//! gRPC hits against a bare tonic echo.

use cell_directory::directory::{Directory, Mutation, NewCell, Placing};
use cell_directory::domain::{CellId, CellState, Endpoint, Labels, PartitionKey, Region, Weight};
use cell_directory::proto::v1;
use cell_directory::store::memory::MemoryStore;
use futures::StreamExt;

use crate::load::{self, Figures, Shape};
use crate::{Options, collector, echo, median, service};

const BATCH: u64 = 256;

pub fn run(options: &Options) {
    // Servers and load share the machine, each side with threads of its own.
    let servers = runtime();
    let clients = runtime();
    let collector = servers.block_on(collector::start());
    let telemetry = service::telemetry(&collector);
    let config = service::config(options.placements);
    let directory = servers.block_on(service::start(
        service::store(MemoryStore::default()),
        &config,
        &telemetry,
    ));
    eprintln!("placing {} tenants", options.placements);
    servers.block_on(fill(&directory.directory, options.placements));

    let placements = options.placements as u64;
    let sample = clients.block_on(sample(directory.address));
    let echo = servers.block_on(echo::start(sample));

    println!("{} placements in memory, telemetry on at 1 % sampling", options.placements);
    println!(
        "{:<34} {:>12} {:>12} {:>7}   p50/p99 echo, directory",
        "", "echo/s", "directory/s", "ratio"
    );
    for (name, shape) in [
        ("Resolve, 1 connection x 1 stream", Shape { connections: 1, streams: 1 }),
        ("Resolve, 8 connections x 32 streams", Shape { connections: 8, streams: 32 }),
    ] {
        let call = load::hit(placements);
        compare(&clients, options, name, 1.0, shape, [echo, directory.address], call);
    }
    let shape = Shape { connections: 8, streams: 4 };
    let call = load::batch(placements, BATCH);
    let name = "BatchResolve of 256, keys, 8 x 4";
    compare(&clients, options, name, BATCH as f64, shape, [echo, directory.address], call);
}

/// Lets echo and directory take turns and prints both.
fn compare<F, T>(
    clients: &tokio::runtime::Runtime,
    options: &Options,
    name: &str,
    unit: f64,
    shape: Shape,
    addresses: [std::net::SocketAddr; 2],
    call: F,
) where
    F: Fn(v1::cell_directory_client::CellDirectoryClient<tonic::transport::Channel>, u64) -> T
        + Clone
        + Send
        + Sync
        + 'static,
    T: Future<Output = ()> + Send,
{
    clients.block_on(async {
        let mut sides = Vec::new();
        for address in addresses {
            sides.push(load::connect(address, shape.connections).await);
        }
        let mut pairs: Vec<[Figures; 2]> = Vec::new();
        // The first pair warms up.
        for round in 0..=options.rounds {
            let mut pair = Vec::new();
            for side in &sides {
                pair.push(load::measure(side, shape.streams, options.duration, call.clone()).await);
            }
            if round > 0 {
                pairs.push([pair[0], pair[1]]);
            }
        }
        let middle =
            |side: usize| median(pairs.iter().map(|pair| pair[side].per_second).collect()) * unit;
        let ratio =
            median(pairs.iter().map(|pair| pair[1].per_second / pair[0].per_second).collect());
        let latency = |side: usize| {
            let of = |pick: fn(&Figures) -> f64| {
                median(pairs.iter().map(|pair| pick(&pair[side])).collect())
            };
            let (p50, p99) = (of(|f| f.p50.as_secs_f64()), of(|f| f.p99.as_secs_f64()));
            let cpu = of(|f| f.cpu.as_secs_f64());
            format!("{:.0}/{:.0}/{:.0} us", p50 * 1e6, p99 * 1e6, cpu * 1e6)
        };
        println!(
            "{name:<34} {:>12.0} {:>12.0} {ratio:>7.3}   {}, {}",
            middle(0),
            middle(1),
            latency(0),
            latency(1)
        );
    });
}

/// What the directory answers, for the echo to answer.
pub async fn sample(address: std::net::SocketAddr) -> echo::Echo {
    let mut client = load::connect(address, 1).await.remove(0);
    let request = v1::ResolveRequest { partition_key: load::key(1), ..Default::default() };
    let resolve = client.resolve(request).await.unwrap().into_inner();
    let partition_keys = (0..BATCH).map(load::key).collect();
    let request = v1::BatchResolveRequest { partition_keys, ..Default::default() };
    let batch = client.batch_resolve(request).await.unwrap().into_inner();
    echo::Echo { resolve, batch }
}

/// Places tenants in three cells.
pub async fn fill(directory: &Directory, placements: usize) {
    for id in ["cell-a", "cell-b", "cell-c"] {
        directory.create_cell(cell(id), Mutation::default()).await.unwrap();
    }
    let imports = (0..placements as u64).map(|number| {
        let placing = Placing {
            key: PartitionKey::new(load::key(number)).unwrap(),
            cell: CellId::new(["cell-a", "cell-b", "cell-c"][number as usize % 3]).unwrap(),
            since: None,
            expires: None,
        };
        directory.import(placing, false)
    });
    let mut imports = futures::stream::iter(imports).buffer_unordered(500);
    while let Some(outcome) = imports.next().await {
        outcome.unwrap();
    }
}

pub fn cell(id: &str) -> NewCell {
    NewCell {
        id: CellId::new(id).unwrap(),
        region: Region::new("eu-west-1").unwrap(),
        endpoint: Endpoint::new(format!("https://{id}.example.com")).unwrap(),
        labels: Labels::default(),
        weight: Weight::DEFAULT,
        capacity: None,
        state: CellState::Active,
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}
