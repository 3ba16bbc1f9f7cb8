//! What memory holds while others read, change and apply: by hand for each order of events, and with threads for those nobody thought of.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Held, Memory, Mode, Residence};
use crate::directory::clock::Clock;
use crate::directory::fixtures::{key, now, placed, placement};
use crate::directory::randomness::Randomness;
use crate::domain::{Change, Mapping};

fn put(epoch: u64) -> Change {
    Change::Placed { placement: placement("k", "a", epoch), replaced: None }
}

fn gone(epoch: u64) -> Change {
    Change::Vacated { placement: placement("k", "a", epoch) }
}

fn read(epoch: u64) -> Residence {
    Residence::from(&placement("k", "a", epoch))
}

fn held(memory: &Memory) -> Option<u64> {
    memory.get("k").map(|held| held.residence.epoch.get())
}

fn memory() -> Arc<Memory> {
    memory_of(Mode::Bounded(1000))
}

fn memory_of(mode: Mode) -> Arc<Memory> {
    Arc::new(Memory::new(mode, Clock::from_fn(now), &Randomness::system()))
}

#[test]
fn a_late_reader_does_not_put_an_old_placement_over_a_newer_one() {
    let memory = memory();
    let (late, early) = (memory.begin_read(key("k")), memory.begin_read(key("k")));
    assert!(early.keep(read(2)));
    assert!(!late.keep(read(1)), "lower than what was told: not to be answered");
    assert_eq!(held(&memory), Some(2));
    // One that read the same is in nobody's way.
    let (one, other) = (memory.begin_read(key("k")), memory.begin_read(key("k")));
    assert!(one.keep(read(2)) && other.keep(read(2)));
}

#[test]
fn entries_that_the_table_is_ahead_of_change_nothing() {
    let memory = memory();
    assert!(memory.begin_read(key("k")).keep(read(2)));
    for old in [put(1), gone(1)] {
        memory.apply(&[old], None);
        assert_eq!(held(&memory), Some(2));
    }
    memory.apply(&[put(2)], None);
    assert_eq!(held(&memory), Some(2));
    memory.apply(&[gone(2)], None);
    assert_eq!(held(&memory), None);
}

/// Overtaken by an entry, but by an older one than what it read: it is the later of the two, and kept.
#[test]
fn a_read_that_is_ahead_of_what_overtook_it_is_kept() {
    for overtaking in [put(1), gone(1)] {
        let memory = memory();
        let ticket = memory.begin_read(key("k"));
        memory.apply(&[overtaking], None);
        assert!(ticket.keep(read(2)));
        assert_eq!(held(&memory), Some(2));
    }
    // Of the same epoch: it may have been read before the tenant left.
    let memory = memory();
    let ticket = memory.begin_read(key("k"));
    memory.apply(&[gone(2)], None);
    assert!(ticket.keep(read(2)), "it may be answered: it was true");
    assert_eq!(held(&memory), None, "but it is not kept");
}

#[test]
fn what_was_read_from_a_table_that_was_replaced_is_not_kept() {
    let memory = memory();
    let before = [memory.begin_read(key("k")), memory.begin_read(key("k"))];
    memory.apply(&[put(7)], None);
    memory.clear();
    let after = memory.begin_read(key("k"));
    for ticket in before {
        assert!(ticket.keep(read(9)));
        assert_eq!(held(&memory), None);
    }
    drop(after);
    assert!(memory.begin_read(key("k")).keep(read(3)), "epochs start over with the table");
    assert_eq!(held(&memory), Some(3));
}

/// Rounds: shared until an entry about the key comes, and as long as anybody reads.
#[test]
fn a_round_lasts_from_change_to_change() {
    let memory = memory();
    let first = memory.begin_read(key("k"));
    let joined = memory.begin_read(key("k"));
    assert_eq!(first.round(), joined.round());
    assert_ne!(memory.begin_read(key("l")).round(), first.round());
    memory.apply(&[gone(1)], None);
    let later = memory.begin_read(key("k"));
    assert!(later.round() > first.round());
    // The old round's readers keep nothing that is not ahead; the new one's do.
    assert!(first.keep(read(1)));
    assert_eq!(held(&memory), None);
    assert!(later.keep(read(2)));
    assert_eq!(held(&memory), Some(2));
    assert!(!joined.keep(read(1)), "known as long as one reader is left");
    assert!(memory.begin_read(key("k")).keep(read(1)), "and not longer");
}

/// The age of what is held, for each way it came in.
#[test]
fn an_entry_proves_nothing_about_the_present() {
    let memory = memory();
    let tick = || {
        std::thread::sleep(Duration::from_micros(50));
        Instant::now()
    };
    let proof = tick();
    memory.proven(proof);
    let close = |as_of: Instant, at: Instant| as_of <= at && at < as_of + Duration::from_micros(2);
    tick();
    memory.apply(&[put(1)], None);
    assert!(close(memory.get("k").unwrap().as_of, proof), "not newer than the last proof");
    let committed = tick();
    memory.apply(&[put(2)], Some(committed));
    assert!(close(memory.get("k").unwrap().as_of, committed));
    // A reader of an old round counts from its own round's start.
    let old = memory.begin_read(key("k"));
    let announced = tick();
    memory.apply(&[put(3)], None);
    let _young = memory.begin_read(key("k"));
    assert!(old.keep(read(4)));
    assert!(memory.get("k").unwrap().as_of <= announced);
}

const KEYS: usize = 4;

/// A table and its journal, changed under one lock.
#[derive(Default)]
struct Table {
    mappings: Vec<Mapping>,
    journal: Vec<Change>,
    /// When a placement ended: its key and epoch.
    ended: HashMap<(usize, u64), Instant>,
}

impl Table {
    fn change(&mut self, at: usize) {
        let name = format!("k{at}");
        match &self.mappings[at] {
            Mapping::Placed(placement) => {
                let placement = placement.clone();
                self.ended.insert((at, placement.epoch.get()), Instant::now());
                self.mappings[at] = Mapping::Vacated(placement.epoch);
                self.journal.push(Change::Vacated { placement });
            }
            vacant => {
                let placement = placement(&name, "a", vacant.next_epoch().get());
                self.mappings[at] = Mapping::Placed(placement.clone());
                self.journal.push(Change::Placed { placement, replaced: None });
            }
        }
    }
}

/// Readers, appliers and a table that changes, all at once.
struct Chaos {
    memory: Arc<Memory>,
    table: Mutex<Table>,
    applied: Mutex<usize>,
    /// The highest epoch that was answered of each key.
    answered: [AtomicU64; KEYS],
    stop: AtomicBool,
}

impl Chaos {
    fn change(&self, changes: usize) {
        for n in 0..changes {
            // Runs of changes of one key, so that the journal falls behind the table.
            self.table.lock().change(n / 3 % KEYS);
            if n % 16 == 0 {
                std::thread::yield_now();
            }
        }
        self.stop.store(true, Ordering::SeqCst);
    }

    fn poll(&self) {
        let mut applied = self.applied.lock();
        let began = Instant::now();
        let entries = self.table.lock().journal[*applied..].to_vec();
        for entry in &entries {
            self.memory.apply(std::slice::from_ref(entry), None);
        }
        *applied += entries.len();
        self.memory.proven(began);
    }

    /// Asks for a key as the cache layer does.
    fn ask(&self, at: usize) -> Option<(u64, Instant)> {
        let name = format!("k{at}");
        if let Some(Held { residence, as_of, .. }) = self.memory.get(&name) {
            return Some((residence.epoch.get(), as_of));
        }
        loop {
            let began = Instant::now();
            let ticket = self.memory.begin_read(key(&name));
            let mapping = self.table.lock().mappings[at].clone();
            std::thread::yield_now();
            let Mapping::Placed(placement) = mapping else { return None };
            if ticket.keep(Residence::from(&placement)) {
                return Some((placement.epoch.get(), began));
            }
        }
    }

    fn read(&self, seed: usize, monotonic: bool) {
        for n in seed.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let at = n % KEYS;
            let before = self.answered[at].load(Ordering::SeqCst);
            let Some((epoch, as_of)) = self.ask(at) else { continue };
            if monotonic {
                assert!(epoch >= before, "epoch {epoch} of k{at} after {before}");
            }
            self.answered[at].fetch_max(epoch, Ordering::SeqCst);
            if let Some(ended) = self.table.lock().ended.get(&(at, epoch)) {
                assert!(as_of <= *ended, "epoch {epoch} of k{at} ended before it was current");
            }
        }
    }
}

fn chaos(mode: Mode, monotonic: bool) {
    let capacity = match mode {
        Mode::Whole => usize::MAX,
        Mode::Bounded(capacity) => capacity,
    };
    let table = Table { mappings: vec![Mapping::Absent; KEYS], ..Table::default() };
    let chaos = Chaos {
        memory: memory_of(mode),
        table: Mutex::new(table),
        applied: Mutex::new(0),
        answered: Default::default(),
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let chaos = &chaos;
            scope.spawn(move || chaos.read(seed, monotonic));
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while !chaos.stop.load(Ordering::SeqCst) {
                    chaos.poll();
                }
            });
        }
        scope.spawn(|| chaos.change(10_000));
    });
    chaos.poll();
    let table = chaos.table.lock();
    let mut found = 0;
    for (at, mapping) in table.mappings.iter().enumerate() {
        let held = chaos.memory.get(&format!("k{at}"));
        found += usize::from(held.is_some());
        match held {
            Some(held) => {
                let told = mapping.placement().map(Residence::from);
                assert_eq!(Some(held.residence), told, "k{at}");
            }
            None if capacity > KEYS => assert_eq!(mapping.placement(), None, "k{at}"),
            None => {}
        }
    }
    assert!(found <= capacity);
}

#[test]
fn after_all_the_noise_memory_is_what_the_table_says() {
    for mode in [Mode::Bounded(1000), Mode::Whole, Mode::Whole] {
        chaos(mode, true);
    }
}

/// With room for fewer than there are: what is held is right all the same.
#[test]
fn eviction_brings_nothing_old_back() {
    for _ in 0..3 {
        chaos(Mode::Bounded(2), false);
    }
}

fn vacated(name: &str) -> Change {
    Change::Vacated { placement: placement(name, "a", 1) }
}

#[test]
fn a_read_that_the_journal_overtook_is_not_kept() {
    let memory = memory();
    for overtaking in [vacated("k"), placed("k", "b", None)] {
        let ticket = memory.begin_read(key("k"));
        memory.apply(std::slice::from_ref(&overtaking), Some(Instant::now()));
        memory.holding.remove("k"); // evicted
        assert!(ticket.keep(read(1)));
        assert!(memory.get("k").is_none(), "{overtaking:?}");
    }
    let ticket = memory.begin_read(key("k"));
    memory.clear();
    assert!(ticket.keep(read(1)));
    assert!(memory.get("k").is_none());
}

#[test]
fn a_read_that_nothing_overtook_is_kept() {
    let memory = memory();
    memory.apply(&[vacated("k")], Some(Instant::now()));
    let ticket = memory.begin_read(key("k"));
    memory.apply(&[vacated("other")], Some(Instant::now()));
    assert!(ticket.keep(read(2)));
    assert_eq!(memory.get("k").unwrap().residence.epoch.get(), 2);
    assert!(memory.reads.iter().all(|shard| shard.lock().is_empty()));
}

#[test]
fn the_journal_puts_and_takes_away() {
    let memory = memory();
    memory.apply(&[placed("k", "a", None)], Some(Instant::now()));
    assert_eq!(memory.get("k").unwrap().residence.cell.as_str(), "a");
    memory.apply(&[vacated("k")], Some(Instant::now()));
    assert!(memory.get("k").is_none());
}

#[test]
fn the_age_is_counted_from_the_later_of_read_and_proof() {
    let memory = memory();
    let started = Instant::now();
    let ticket = memory.begin_read(key("k"));
    std::thread::sleep(Duration::from_millis(20));
    assert!(ticket.keep(read(1)));
    let by_read = memory.get("k").unwrap().as_of;
    // Memory keeps whole microseconds, and rounds so that nothing looks younger than it is.
    assert!(
        by_read + Duration::from_micros(1) >= started
            && by_read.elapsed() >= Duration::from_millis(20)
    );

    std::thread::sleep(Duration::from_millis(20));
    let poll = Instant::now();
    memory.proven(poll);
    memory.proven(started); // an older poll's proof, late: takes nothing back
    let by_proof = memory.get("k").unwrap().as_of;
    assert!(by_proof > by_read && by_proof <= poll);
}
