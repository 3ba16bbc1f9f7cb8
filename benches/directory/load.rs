//! The load: closed loops over some connections, each with some calls under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tonic::transport::{Channel, Endpoint};

pub type Client = CellDirectoryClient<Channel>;

/// How a load is spread.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub connections: usize,
    /// Calls under way on each connection.
    pub streams: usize,
}

/// Connections to a server.
pub async fn connect(address: SocketAddr, count: usize) -> Vec<CellDirectoryClient<Channel>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.tcp_nodelay(true).connect().await.unwrap();
        clients.push(CellDirectoryClient::new(channel));
    }
    clients
}

/// The name of a tenant.
pub fn key(number: u64) -> String {
    format!("customer-{number:08}")
}

/// A cheap sequence of numbers that look random: SplitMix64.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What one measurement came to.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Figures {
    /// Of calls that took so long each, in so much time together.
    pub fn of(mut latencies: Vec<Duration>, elapsed: Duration) -> Self {
        latencies.sort();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        Self {
            per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// Calls for a while and counts.
pub async fn measure<C, F, T>(clients: &[C], streams: usize, duration: Duration, call: F) -> Figures
where
    C: Clone + Send + 'static,
    F: Fn(C, u64) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = ()> + Send,
{
    let until = Instant::now() + duration;
    let began = Instant::now();
    let mut loops = Vec::new();
    for (at, client) in clients.iter().enumerate() {
        for stream in 0..streams {
            let (client, call) = (client.clone(), call.clone());
            let seed = (at * 1000 + stream) as u64 ^ began.elapsed().as_nanos() as u64;
            loops.push(tokio::spawn(async move {
                let mut numbers = Numbers(seed);
                let mut latencies = Vec::new();
                while Instant::now() < until {
                    let sent = Instant::now();
                    call(client.clone(), numbers.next()).await;
                    latencies.push(sent.elapsed());
                }
                latencies
            }));
        }
    }
    let mut latencies = Vec::new();
    for each in loops {
        latencies.extend(each.await.unwrap());
    }
    Figures::of(latencies, began.elapsed())
}

/// Resolves a tenant that is in memory.
pub fn hit(
    placements: u64,
) -> impl Fn(CellDirectoryClient<Channel>, u64) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
+ Clone
+ Send
+ Sync {
    move |mut client, number| {
        Box::pin(async move {
            let request = v1::ResolveRequest {
                partition_key: key(number % placements),
                ..Default::default()
            };
            let answer = client.resolve(request).await.unwrap().into_inner();
            assert!(answer.placement.is_some());
        })
    }
}

/// Resolves many tenants that are in memory.
pub fn batch(
    placements: u64,
    keys: u64,
) -> impl Fn(CellDirectoryClient<Channel>, u64) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
+ Clone
+ Send
+ Sync {
    move |mut client, number| {
        Box::pin(async move {
            let mut numbers = Numbers(number);
            let partition_keys = (0..keys).map(|_| key(numbers.next() % placements)).collect();
            let request = v1::BatchResolveRequest { partition_keys, ..Default::default() };
            let answer = client.batch_resolve(request).await.unwrap().into_inner();
            assert_eq!(answer.results.len() as u64, keys);
        })
    }
}
