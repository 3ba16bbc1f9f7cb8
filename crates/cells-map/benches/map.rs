//! What the map costs: time against the standard library's map, memory against what is stored.
//!
//! ```text
//! cargo bench -p cells-map --bench map -- lookup [--rounds N]
//! cargo bench -p cells-map --bench map -- memory [COUNT]
//! cargo bench -p cells-map --bench map -- small
//! ```
//!
//! `lookup` prints ratios: both maps are timed in turns in the same process, and the median of the rounds' ratios is what counts.
//! `memory` reads the process's resident memory; start it afresh for each count.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use cells_map::{CompactMap, Packed};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As large as a placement: five words.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Value([u64; 5]);

impl Packed for Value {
    const BYTES: usize = 40;

    fn pack(&self, to: &mut [u8]) {
        for (to, word) in to.chunks_exact_mut(8).zip(self.0) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn unpack(from: &[u8]) -> Self {
        let mut words = [0; 5];
        for (word, from) in words.iter_mut().zip(from.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*from);
        }
        Self(words)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            items.swap(n, self.below(n + 1));
        }
    }
}

fn value(n: u64) -> Value {
    Value([n, !n, n << 1, n >> 1, 7])
}

fn key_into(key: &mut String, n: u32) {
    key.clear();
    write!(key, "customer-{n:010}").expect("writing to a string cannot fail");
}

fn key(n: u32) -> String {
    let mut key_of = String::new();
    key_into(&mut key_of, n);
    key_of
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Nanoseconds a lookup, on the slowest of `threads` threads that each ask for every query once, from different places on.
fn time(threads: usize, queries: &[String], find: impl Fn(&str) -> Option<Value> + Sync) -> f64 {
    let barrier = std::sync::Barrier::new(threads);
    let run = |thread: usize| {
        let (late, early) = queries.split_at(thread * queries.len() / threads);
        barrier.wait();
        let start = Instant::now();
        let mut sum = 0_u64;
        for query in early.iter().chain(late) {
            sum = sum.wrapping_add(find(query).map_or(1, |value| value.0[0]));
        }
        black_box(sum);
        start.elapsed().as_nanos() as f64 / queries.len() as f64
    };
    if threads == 1 {
        return run(0);
    }
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a lookup does not panic"))
            .fold(0.0, f64::max)
    })
}

/// Copies `picked` keys, in that order, so that the queries themselves are read in sequence.
fn queries(picked: impl Iterator<Item = u32>) -> Vec<String> {
    picked.map(key).collect()
}

fn lookup(rounds: usize) {
    const KEYS: u32 = 1_000_000;
    let mut random = Random(42);
    let mut order: Vec<u32> = (0..KEYS).collect();
    random.shuffle(&mut order);
    let (plain, compact) = (
        order.iter().map(|n| (key(*n), value(u64::from(*n)))).collect::<HashMap<_, _>>(),
        CompactMap::new(),
    );
    for n in &order {
        compact.insert(&key(*n), value(u64::from(*n)));
    }
    random.shuffle(&mut order);
    // Rank r with a probability like 1/r.
    let zipf = (0..KEYS)
        .map(|_| f64::from(KEYS).powf(random.next() as f64 / u64::MAX as f64) as u32 % KEYS)
        .collect::<Vec<_>>();
    let cases = [
        ("hit, random keys", queries(order.iter().copied())),
        ("miss", queries(order.iter().map(|n| n + KEYS))),
        ("hit, keys as 1/rank", queries(zipf.into_iter())),
        ("hit, one key", queries(std::iter::repeat_n(7, KEYS as usize))),
    ];
    println!(
        "{KEYS} keys, {rounds} rounds; nanoseconds a lookup (medians), and the median of the rounds' ratios"
    );
    for (name, queries) in &cases {
        for threads in [1, 2] {
            let (mut std, mut own, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rounds {
                let a = time(threads, queries, |key| plain.get(key).copied());
                let b = time(threads, queries, |key| compact.get(key));
                std.push(a);
                own.push(b);
                ratios.push(b / a);
            }
            let (std, own, ratio) = (median(std), median(own), median(ratios));
            println!(
                "{name:20} {threads} thread(s): HashMap {std:6.1}  CompactMap {own:6.1}  ratio {ratio:.2}"
            );
        }
    }
}

/// A figure of `/proc/self/status`, in bytes.
fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("needs Linux");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the kernel reports it");
    let kib = line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok());
    kib.expect("a number of KiB") * 1024
}

/// Prints what the map takes for each key beyond the key's own bytes.
fn report(what: &str, map: &CompactMap<Value>, base: usize) {
    let (count, key_bytes) = (map.len() as f64, key(0).len() as f64);
    let rss = status("VmRSS").saturating_sub(base) as f64 / count - key_bytes;
    let own = map.memory_bytes() as f64 / count - key_bytes;
    let peak = status("VmHWM").saturating_sub(base) as f64 / 1e6;
    println!(
        "{what:28} {count:>10} keys: resident {rss:6.2}, own account {own:6.2} bytes beyond the key; peak {peak:.0} MB"
    );
}

fn memory(count: u32) {
    let mut random = Random(42);
    let mut ids: Vec<u32> = (0..count).collect();
    random.shuffle(&mut ids);
    let mut text = key(0);
    let map = CompactMap::new();
    let base = status("VmRSS");
    let start = Instant::now();
    let mut set = |n: u32| {
        key_into(&mut text, n);
        map.insert(&text, value(u64::from(n)));
    };
    ids.iter().for_each(|n| set(*n));
    let each = start.elapsed().as_nanos() as f64 / f64::from(count);
    report("filled", &map, base);
    println!("{each:.0} ns an insertion");
    let (part, mut fresh) = (count as usize * 3 / 10, count);
    for round in 1..=5 {
        for n in 0..part {
            let other = n + random.below(ids.len() - n);
            ids.swap(n, other);
        }
        let start = Instant::now();
        for n in &ids[..part] {
            map.remove(&key(*n));
        }
        let each = start.elapsed().as_nanos() as f64 / part as f64;
        report(&format!("churn {round}: 30 % removed"), &map, base);
        for id in &mut ids[..part] {
            *id = fresh;
            fresh += 1;
            key_into(&mut text, *id);
            map.insert(&text, value(u64::from(*id)));
        }
        report(&format!("churn {round}: 30 % new"), &map, base);
        println!("{each:.0} ns a removal");
    }
}

/// What small maps take.
fn small() {
    for count in [0, 100, 1000, 10_000, 100_000] {
        let map = CompactMap::new();
        for n in 0..count {
            map.insert(&key(n), value(u64::from(n)));
        }
        println!("{count:>7} keys: {:>9} bytes", map.memory_bytes());
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| {
        args.iter()
            .position(|arg| arg == name)
            .and_then(|at| args.get(at + 1))
            .and_then(|n| n.parse().ok())
    };
    match args.first().map(String::as_str) {
        Some("memory") => memory(after("memory").unwrap_or(10_000_000)),
        Some("small") => small(),
        Some("lookup") | None => lookup(after("--rounds").unwrap_or(11) as usize),
        // `cargo test --benches` and `cargo bench` pass flags of their own harness.
        Some(_) => lookup(1),
    }
}
