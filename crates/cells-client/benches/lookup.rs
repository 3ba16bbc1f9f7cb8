//! What an answer from memory costs, as a ratio to a plain read-only `HashMap` of the same million keys in the same order.
//!
//! `cargo bench -p cells-client --bench lookup`. Rounds of both are interleaved, so that both meet the same weather; the median counts.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cells_client::fake::FakeDirectory;
use cells_client::{Directory, Mode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: usize = 1_000_000;
const ROUNDS: usize = 7;

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

/// Nanoseconds a lookup, with so many threads that each ask for every key.
fn time(threads: usize, keys: &[&str], lookup: impl Fn(&str) -> u64 + Sync) -> f64 {
    let took: Vec<Duration> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let lookup = &lookup;
                scope.spawn(move || {
                    let from = thread * keys.len() / threads;
                    let began = Instant::now();
                    let mut sum = 0_u64;
                    for key in keys[from..].iter().chain(&keys[..from]) {
                        sum = sum.wrapping_add(lookup(key));
                    }
                    black_box(sum);
                    began.elapsed()
                })
            })
            .collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let slowest = took.iter().max().unwrap();
    slowest.as_nanos() as f64 / keys.len() as f64
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn answered(directory: &Directory, key: &str) -> u64 {
    let answer = directory.resolve(key).unwrap();
    answer.epoch() + answer.write_mode() as u64
}

fn compare(name: &str, directory: &Directory, plain: &HashMap<String, Plain>, keys: &[&str]) {
    for threads in [1, 2] {
        let (mut base, mut ours, mut full) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            base.push(time(threads, keys, |key| {
                let found = plain[key];
                found.epoch + u64::from(found.cell) + found.lease_until
            }));
            ours.push(time(threads, keys, |key| answered(directory, key)));
            full.push(time(threads, keys, |key| {
                let answer = directory.resolve(key).unwrap();
                answer.epoch()
                    + answer.endpoint().len() as u64
                    + u64::from(answer.may_write_directly())
            }));
        }
        let (base, ours, full) = (median(base), median(ours), median(full));
        println!(
            "{name}, {threads} thread(s): HashMap {base:.1} ns, resolve {ours:.1} ns = {:.2}x, \
             with endpoint and lease {full:.1} ns = {:.2}x",
            ours / base,
            full / base
        );
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
