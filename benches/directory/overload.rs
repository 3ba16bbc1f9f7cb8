//! Ten times too many calls: what is still answered, how fast, and how soon it is over.
//!
//! First a closed loop finds the peak and its p99. Then an open loop offers ten times that for a while, whatever becomes of it: each client
//! has the calls under way that HTTP/2 lets it have and drops what is due beyond that, as a bounded client does. Then the closed loop
//! again: how soon it is as it is in the end. The peak is the mean of both ends.
//!
//! The load comes from lean clients: others could not offer ten times as much. Latencies count from the moment a call was due.

use std::time::{Duration, Instant};

use cell_directory::store::memory::MemoryStore;
use cell_directory::telemetry::Telemetry;

use crate::lean::Client;
use crate::{Options, lean, resolve, service};

/// Calls under way, all connections together, while the peak is looked for: 8 x 32.
const CLOSED_CALLS: usize = 256;
const TIMES: f64 = 10.0;
/// How long the closed loop looks for the peak.
const CALM: Duration = Duration::from_secs(5);
/// How long the return to normal may take, and the pieces in which it is looked at.
const RETURN: Duration = Duration::from_secs(20);
const PIECE: Duration = Duration::from_millis(500);

pub fn run(options: &Options) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let servers = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.saturating_sub(1).max(1))
        .enable_all()
        .build()
        .unwrap();
    let placements = options.placements.min(100_000);
    let mut config = service::config(placements);
    // The rest is for the load.
    config.serve_threads = cores.saturating_sub(1).max(1) as u32;
    config.max_concurrent_streams =
        options.max_concurrent_streams.unwrap_or(config.max_concurrent_streams);
    config.max_queue_delay = options.max_queue_delay.unwrap_or(config.max_queue_delay);
    let most = config.max_concurrent_streams as usize;
    let service = servers.block_on(service::start(
        service::store(MemoryStore::default()),
        &config,
        &Telemetry::noop(),
    ));
    servers.block_on(resolve::fill(&service.directory, placements));
    let mut clients: Vec<_> = (0..options.connections as u64)
        .map(|at| lean::resolving(service.address, move || at))
        .collect();

    let _warm = measure(&mut clients, Pace::Closed, Duration::from_secs(1));
    let before = measure(&mut clients, Pace::Closed, CALM);
    print("closed loop", &before);
    let rate = before.per_second * TIMES;
    let over = measure(&mut clients, Pace::Open { rate, most }, options.duration);
    print("open loop, 10 x", &over);
    let pieces: Vec<Figures> =
        std::iter::repeat_with(|| measure(&mut clients, Pace::Closed, PIECE))
            .take(RETURN.div_duration_f64(PIECE) as usize)
            .collect();
    let after = measure(&mut clients, Pace::Closed, CALM);
    print("closed loop again", &after);

    // A machine that others share is not as fast after a minute as before.
    let peak = (before.per_second + after.per_second) / 2.0;
    let normal = (before.p99 + after.p99) / 2;
    let abnormal = |piece: &Figures| {
        piece.per_second < 0.9 * after.per_second || piece.p99 > normal.mul_f64(1.5)
    };
    let back = pieces.iter().take_while(|piece| abnormal(piece)).count() as u32 + 1;
    let offered = over.offered as f64 / options.duration.as_secs_f64() / peak;
    println!("offered / peak            {offered:>8.2}");
    println!("goodput / peak            {:>8.2}   (at least 0.90)", over.per_second / peak);
    let p99 = over.p99.as_secs_f64() / normal.as_secs_f64();
    println!("p99 admitted / normal     {p99:>8.2}   (at most 3.00)");
    let seconds = (PIECE * back).as_secs_f64();
    match back as usize <= pieces.len() {
        true => println!("back to normal after      {seconds:>7.1}s   (at most 10 s)"),
        false => println!("not back to normal after  {seconds:>7.1}s   (at most 10 s)"),
    }
}

fn print(name: &str, figures: &Figures) {
    println!(
        "{name:<20} {:>9.0} answered/s  p50 {:>8.2?}  p99 {:>8.2?}  sent {} refused {} not sent {} reset {}  \
         server ran {:.0} % and waited {:.0} %",
        figures.per_second,
        figures.p50,
        figures.p99,
        figures.sent,
        figures.refused,
        figures.offered - figures.sent,
        figures.reset,
        figures.cpu.ran * 100.0,
        figures.cpu.waited * 100.0,
    );
}

#[derive(Clone, Copy)]
enum Pace {
    Closed,
    Open {
        /// Calls a second, all connections together.
        rate: f64,
        /// Calls under way on a connection, which the server sets.
        most: usize,
    },
}

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    offered: u64,
    sent: u64,
    refused: u64,
    reset: u64,
    cpu: Cpu,
}

/// What the server's threads had of a processor, as parts of a processor: a machine that does something else besides is seen here.
#[derive(Clone, Copy, Default)]
struct Cpu {
    ran: f64,
    /// For a processor, ready to run.
    waited: f64,
}

impl Cpu {
    /// Seconds since the threads that serve began; where the system does not tell, nothing is known.
    fn so_far() -> Self {
        let mut sum = Self::default();
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        for task in tasks.map(|task| task.path()) {
            let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
            if !name.starts_with("serve-") {
                continue;
            }
            let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let mut times =
                text.split_whitespace().map(|nanos| nanos.parse::<f64>().unwrap_or(0.0) / 1e9);
            sum.ran += times.next().unwrap_or(0.0);
            sum.waited += times.next().unwrap_or(0.0);
        }
        sum
    }

    fn since(self, before: Self, elapsed: Duration) -> Self {
        let part = |now: f64, before: f64| (now - before) / elapsed.as_secs_f64();
        Self { ran: part(self.ran, before.ran), waited: part(self.waited, before.waited) }
    }
}

fn measure(clients: &mut [Client], pace: Pace, duration: Duration) -> Figures {
    let began = Instant::now();
    let cpu = Cpu::so_far();
    clients.iter_mut().for_each(Client::forget);
    let mut offered = vec![0u64; clients.len()];
    let (connections, closed) = (clients.len() as f64, CLOSED_CALLS.div_ceil(clients.len()));
    loop {
        let elapsed = began.elapsed();
        if elapsed >= duration {
            break;
        }
        for (client, offered) in clients.iter_mut().zip(&mut offered) {
            client.receive();
            match pace {
                Pace::Closed => {
                    while client.under_way < closed && client.begin() {
                        *offered += 1;
                    }
                }
                Pace::Open { rate, most } => {
                    let due = (elapsed.as_secs_f64() * rate / connections) as u64;
                    while *offered < due {
                        *offered += 1;
                        if client.under_way >= most || !client.begin() {
                            // The rest of this round finds no room either.
                            *offered = due;
                        }
                    }
                }
            }
            client.send();
        }
        std::thread::sleep(lean::PAUSE);
    }
    let mut latencies: Vec<Duration> =
        clients.iter().flat_map(|client| client.latencies.iter().copied()).collect();
    latencies.sort();
    let at = |share: f64| {
        let last = latencies.len().saturating_sub(1);
        latencies.get((last as f64 * share) as usize).copied().unwrap_or(Duration::MAX)
    };
    let sum = |of: fn(&Client) -> u64| clients.iter().map(of).sum();
    Figures {
        per_second: latencies.len() as f64 / began.elapsed().as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        offered: offered.iter().sum(),
        sent: sum(|client| client.sent),
        refused: sum(|client| client.refused),
        reset: sum(|client| client.reset),
        cpu: Cpu::so_far().since(cpu, began.elapsed()),
    }
}
