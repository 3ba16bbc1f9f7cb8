//! What an answer from memory costs, as a ratio to a plain read-only `HashMap` of the same million keys in the same order.
//!
//! `cargo bench -p cells-client --bench lookup`. Rounds of both are interleaved,
//! so that both meet the same weather; the median of the rounds' ratios counts. Where other work is going on, so do
//! the figures of the processor's time rather than those of the clock.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use cells_client::fake::FakeDirectory;
use cells_client::{Directory, Mode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: usize = 1_000_000;
const ROUNDS: usize = 9;

/// What a caller who does it by hand would keep.
#[derive(Clone, Copy)]
struct Plain {
    cell: u32,
    epoch: u64,
    lease_until: u64,
}

/// Random order (Fisher-Yates over SplitMix64).
fn shuffled() -> Vec<usize> {
    let mut state = 42_u64;
    let mut order: Vec<usize> = (0..KEYS).collect();
    for n in (1..KEYS).rev() {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        order.swap(n, ((z ^ (z >> 31)) % (n as u64 + 1)) as usize);
    }
    order
}

/// What a lookup takes, in nanoseconds.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// On the clock: what counts, if nobody else wants the processors.
    elapsed: f64,
    /// Of the processor, waiting for memory included: what others do in between is left out.
    processor: f64,
}

/// The time that this thread has had a processor.
fn processor_time() -> Duration {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
    #[cfg(not(target_os = "linux"))]
    Duration::ZERO
}

/// A lookup by the slowest of so many threads that each ask for every key.
fn time(threads: usize, keys: &[&str], lookup: impl Fn(&str) -> u64 + Sync) -> Cost {
    let together = Barrier::new(threads);
    let took: Vec<(Duration, Duration)> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let (lookup, together) = (&lookup, &together);
                scope.spawn(move || {
                    let from = thread * keys.len() / threads;
                    // What a thread does once is not a part of a lookup.
                    black_box(lookup(keys[from]));
                    together.wait();
                    let (began, had) = (Instant::now(), processor_time());
                    let mut sum = 0_u64;
                    for key in keys[from..].iter().chain(&keys[..from]) {
                        sum = sum.wrapping_add(lookup(key));
                    }
                    black_box(sum);
                    (began.elapsed(), processor_time() - had)
                })
            })
            .collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let slowest = |which: fn(&(Duration, Duration)) -> Duration| {
        took.iter().map(which).max().unwrap().as_nanos() as f64 / keys.len() as f64
    };
    Cost { elapsed: slowest(|took| took.0), processor: slowest(|took| took.1) }
}

fn median(times: impl IntoIterator<Item = f64>) -> f64 {
    let mut times: Vec<f64> = times.into_iter().collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn answered(directory: &Directory, key: &str) -> u64 {
    let answer = directory.resolve(key).unwrap();
    answer.epoch() + answer.write_mode() as u64
}

fn compare(name: &str, directory: &Directory, plain: &HashMap<String, Plain>, keys: &[&str]) {
    let base = |key: &str| {
        let found = plain[key];
        found.epoch + u64::from(found.cell) + found.lease_until
    };
    let ours = |key: &str| answered(directory, key);
    let full = |key: &str| {
        let answer = directory.resolve(key).unwrap();
        answer.epoch() + answer.endpoint().len() as u64 + u64::from(answer.may_write_directly())
    };
    for threads in [1, 2] {
        let rounds: Vec<[Cost; 3]> = (0..ROUNDS)
            .map(|round| {
                let mut costs = [Cost::default(); 3];
                // Nobody always comes first.
                for turn in 0..3 {
                    let which = (round + turn) % 3;
                    costs[which] = match which {
                        0 => time(threads, keys, base),
                        1 => time(threads, keys, ours),
                        _ => time(threads, keys, full),
                    };
                }
                costs
            })
            .collect();
        for (of, cost) in [
            ("elapsed", (|cost| cost.elapsed) as fn(&Cost) -> f64),
            ("processor", |cost| cost.processor),
        ] {
            let time = |which: usize| median(rounds.iter().map(|costs| cost(&costs[which])));
            let ratio = |which: usize| {
                median(rounds.iter().map(|costs| cost(&costs[which]) / cost(&costs[0])))
            };
            println!(
                "{name}, {threads} thread(s), {of}: HashMap {:.1} ns, resolve {:.1} ns = {:.2}x, \
                 with endpoint and lease {:.1} ns = {:.2}x",
                time(0),
                time(1),
                ratio(1),
                time(2),
                ratio(2)
            );
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names: Vec<String> = (0..KEYS).map(|n| format!("customer-{n:07}")).collect();
    let order = shuffled();
    let keys: Vec<&str> = order.iter().map(|n| names[*n].as_str()).collect();
    let plain: HashMap<String, Plain> = names
        .iter()
        .enumerate()
        .map(|(n, name)| (name.clone(), Plain { cell: (n % 8) as u32, epoch: 1, lease_until: 0 }))
        .collect();
    let fake = FakeDirectory::new();
    (0..8).for_each(|n| fake.put_cell(&format!("cell-{n}"), "https://cell.example", "eu-west-1"));
    fake.place_all(
        names.iter().enumerate().map(|(n, name)| (name.as_str(), format!("cell-{}", n % 8))),
    );
    for (name, mode) in
        [("whole map", Mode::Whole), ("bounded", Mode::Bounded { capacity: KEYS * 2 })]
    {
        let directory = runtime.block_on(async {
            let directory = fake.builder().mode(mode).connect().await.unwrap();
            if mode != Mode::Whole {
                for key in &names {
                    directory.locate(key).await.unwrap();
                }
            }
            directory
        });
        compare(name, &directory, &plain, &keys);
        runtime.block_on(directory.close());
    }
}
