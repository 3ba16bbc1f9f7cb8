//! The load: closed loops over some connections, each with some calls under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cpu_time::ProcessTime;
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
    pub calls: usize,
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// Processor time of one call, of all threads of this process: servers, engine and load.
    pub cpu: Duration,
}

impl Figures {
    /// Of calls that took so long each, in so much time and processor time together.
    pub fn of(mut latencies: Vec<Duration>, elapsed: Duration, cpu: Duration) -> Self {
        latencies.sort();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
        let calls = latencies.len();
        Self {
            calls,
            per_second: calls as f64 / elapsed.as_secs_f64(),
            p50: at(0.5),
            p99: at(0.99),
            cpu: cpu.div_f64(calls as f64),
        }
    }
}

/// Calls for a while, `streams` calls at a time on each connection, and counts.
pub async fn measure<C, F, T>(clients: &[C], streams: usize, duration: Duration, call: F) -> Figures
where
    C: Clone + Send + 'static,
    F: Fn(C, u64) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = ()> + Send,
{
    let on = |client: &C| {
        let (client, call) = (client.clone(), call.clone());
        move |number| call(client.clone(), number)
    };
    repeat(clients.iter().flat_map(|client| (0..streams).map(move |_| on(client))), duration).await
}

/// Lets callers call for a while, each one call after the other, and counts.
pub async fn repeat<F, T>(callers: impl Iterator<Item = F>, duration: Duration) -> Figures
where
    F: Fn(u64) -> T + Send + 'static,
    T: Future<Output = ()> + Send,
{
    let (began, cpu) = (Instant::now(), ProcessTime::now());
    let until = began + duration;
    let mut loops = Vec::new();
    for (at, call) in callers.enumerate() {
        let seed = (at * 1000) as u64 ^ began.elapsed().as_nanos() as u64;
        loops.push(tokio::spawn(async move {
            let mut numbers = Numbers(seed);
            let mut latencies = Vec::new();
            while Instant::now() < until {
                let sent = Instant::now();
                call(numbers.next()).await;
                latencies.push(sent.elapsed());
            }
            latencies
        }));
    }
    let mut latencies = Vec::new();
    for each in loops {
        latencies.extend(each.await.unwrap());
    }
    Figures::of(latencies, began.elapsed(), cpu.elapsed())
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
