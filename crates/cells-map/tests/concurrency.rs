//! Readers beside a writer: no value is torn, and no key is lost while the table grows, shrinks and moves records around it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use cells_map::{CompactMap, Packed};

/// Two halves that are equal in every value that was ever written, with room between them.
#[derive(Clone, Copy)]
struct Pair(u64, u64);

impl Packed for Pair {
    const BYTES: usize = 40;

    fn pack(&self, to: &mut [u8]) {
        to[..8].copy_from_slice(&self.0.to_le_bytes());
        to[8..32].fill(0xaa);
        to[32..].copy_from_slice(&self.1.to_le_bytes());
    }

    fn unpack(from: &[u8]) -> Self {
        let word =
            |at: usize| u64::from_le_bytes(from[at..at + 8].try_into().expect("eight bytes"));
        Self(word(0), word(32))
    }
}

const KEPT: u64 = 64;
const OTHERS: u64 = 20_000;
const ROUNDS: u64 = 12;
const BETWEEN_VISITS: Duration = Duration::from_millis(5);

fn kept(n: u64) -> String {
    format!("kept-{n}")
}

/// Grows, updates, and empties the map around the kept keys.
fn write(map: &CompactMap<Pair>) {
    for round in 1..=ROUNDS {
        for n in 0..OTHERS {
            map.insert(
                &format!("other-{n:>width$}", width = 1 + (round * 7 % 40) as usize),
                Pair(n, n),
            );
            map.insert(&kept(n % KEPT), Pair(round * OTHERS + n, round * OTHERS + n));
        }
        for n in 0..OTHERS {
            map.remove(&format!("other-{n:>width$}", width = 1 + (round * 7 % 40) as usize));
        }
    }
}

#[test]
fn readers_see_whole_values_and_every_key_that_stays() {
    let map = CompactMap::with_shards(2);
    for n in 0..KEPT {
        map.insert(&kept(n), Pair(0, 0));
    }
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let read = || {
        let mut last = [0; KEPT as usize];
        while !done.load(Ordering::Relaxed) {
            for n in 0..KEPT {
                let Pair(a, b) = map.get(&kept(n)).expect("a key that stays is always there");
                assert_eq!(a, b, "a torn value");
                assert!(a >= last[n as usize], "an older value after a newer one");
                last[n as usize] = a;
            }
            reads.fetch_add(KEPT, Ordering::Relaxed);
        }
    };
    let visit = || {
        while !done.load(Ordering::Relaxed) {
            let mut seen = [0; KEPT as usize];
            for shard in 0..map.shards() {
                map.visit(shard, |key, Pair(a, b)| {
                    assert_eq!(a, b, "a torn value");
                    if let Some(n) = key.strip_prefix("kept-") {
                        seen[n.parse::<usize>().expect("a number")] += 1;
                    }
                });
            }
            assert_eq!(seen, [1; KEPT as usize], "a key that stays is seen once");
            // A visit holds its shard. One after the other without a pause, they would leave the writer hardly a turn.
            thread::sleep(BETWEEN_VISITS);
        }
    };
    thread::scope(|scope| {
        let others = [scope.spawn(read), scope.spawn(read), scope.spawn(visit)];
        let writer = scope.spawn(|| write(&map));
        // A reader that fails ends the test, not the writer's patience.
        let written = writer.join();
        done.store(true, Ordering::Relaxed);
        written.expect("the writer does not panic");
        for other in others {
            other.join().expect("a reader found a fault");
        }
    });
    assert_eq!(map.len(), KEPT as usize);
    assert!(reads.load(Ordering::Relaxed) > 0);
}

#[test]
fn updates_of_one_key_do_not_overtake_each_other() {
    let map = CompactMap::with_shards(1);
    let add = |map: &CompactMap<Pair>| {
        for n in 0..20_000 {
            map.update("sum", |old| {
                let sum = old.map_or(0, |old| old.0) + 1;
                (Some(Pair(sum, sum)), ())
            });
            // Two keys that come and go, so that records move meanwhile.
            map.update(&format!("key-{}", n % 2), |old| {
                (old.map_or(Some(Pair(n, n)), |_| None), ())
            });
        }
    };
    thread::scope(|scope| {
        let (a, b) = (scope.spawn(|| add(&map)), scope.spawn(|| add(&map)));
        a.join().expect("an update does not panic");
        b.join().expect("an update does not panic");
    });
    assert_eq!(map.get("sum").map(|sum| sum.0), Some(40_000));
    let mut keys = 0;
    map.visit(0, |_, _| keys += 1);
    assert_eq!(map.len(), keys);
}
