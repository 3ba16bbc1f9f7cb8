//! Writers of a tenant's items that keep the contract, and hold what they read and what their conditions say against what they were told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cells_client::data::{
    Call, Data, DataError, Expression, How, Item, Options, Reads, Write, Written,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::ledger::{
    Allowed, At, Counter, Ledger, TABLES, TENANT, Tally, add, count, number, said,
};

/// What a writer has under way at the same time, each on keys of its own.
const LANES: usize = 4;

/// Between two calls of all lanes together: 250 a second, of which one in seven is a read, or has a condition that does not hold.
const PACE: Duration = Duration::from_millis(4);

/// What a fence has held up is made up for as far as this goes.
const BEHIND: Duration = Duration::from_secs(1);

/// Keys of a lane in each table.
const KEYS: usize = 3;

/// Patient enough that no request is under way still when its call is answered for: the model of a key has no late writes.
pub fn options() -> Options {
    Options {
        least_lease: Duration::from_millis(50),
        patience: Duration::from_secs(60),
        attempt: Duration::from_secs(30),
        attempts: 12,
    }
}

/// What all writers share.
#[derive(Default)]
pub struct Shared {
    pub tally: Tally,
    pub counters: [Counter; 3],
    pub stop: CancellationToken,
    next: Mutex<Option<Instant>>,
}

impl Shared {
    /// Waits until another call is due. How long calls take does not change how many there are, as long as lanes are free.
    async fn turn(&self) {
        let due = {
            let mut next = self.next.lock();
            let now = Instant::now();
            let due = next.map_or(now, |next| (next + PACE).max(now - BEHIND));
            *next = Some(due);
            due
        };
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Writes until it is told to stop, and answers what its keys may hold.
pub async fn write(name: usize, data: Data, shared: Arc<Shared>, seed: u64) -> Ledger {
    let lanes = (0..LANES).map(|lane| {
        let lane = Lane::new(name * LANES + lane, data.clone(), Arc::clone(&shared), seed);
        tokio::spawn(lane.run())
    });
    let lanes: Vec<_> = lanes.collect();
    let mut ledger = Ledger::new();
    for lane in lanes {
        ledger.append(&mut lane.await.unwrap());
    }
    ledger
}

/// One call after the other.
struct Lane {
    name: usize,
    data: Data,
    shared: Arc<Shared>,
    ledger: Ledger,
    random: StdRng,
    values: u64,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Came {
    Done,
    Unknown,
    /// A condition did not hold.
    Failed,
    /// Nothing was written.
    Nothing,
}

impl Lane {
    fn new(name: usize, data: Data, shared: Arc<Shared>, seed: u64) -> Self {
        let keys = TABLES.iter().flat_map(|table| {
            (0..KEYS).map(move |key| (At::new(table, format!("W{name}#{key}")), Allowed::default()))
        });
        let random = StdRng::seed_from_u64(seed ^ name as u64);
        Self { name, data, shared, ledger: keys.collect(), random, values: 0 }
    }

    async fn run(mut self) -> Ledger {
        while !self.shared.stop.is_cancelled() {
            self.shared.turn().await;
            let began = Instant::now();
            self.step().await;
            self.shared.tally.took(began.elapsed());
        }
        self.ledger
    }

    async fn step(&mut self) {
        let at = self.any_key();
        match self.random.random_range(0..100) {
            0..25 => self.put(at).await,
            25..40 => self.update(at).await,
            40..50 => self.delete(at).await,
            50..65 => self.put_if_as_known(at).await,
            65..70 => self.put_if_never(at).await,
            70..83 => self.transact().await,
            83..88 => self.count_up().await,
            88..93 => self.compare_and_count().await,
            _ => self.read(at).await,
        }
    }

    fn any_key(&mut self) -> At {
        let nth = self.random.random_range(0..self.ledger.len());
        self.ledger.keys().nth(nth).unwrap().clone()
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        self.name as u64 * 1_000_000_000 + self.values
    }

    async fn put(&mut self, at: At) {
        let value = self.value();
        let came = self.write(Write::put(at.table, at.item(value))).await;
        self.note(&at, Some(value), came);
    }

    async fn update(&mut self, at: At) {
        let value = self.value();
        let set = Expression::new("SET V = :v, #t = :t").name("#t", "Text");
        let set = set.value(":v", number(value)).value(":t", crate::scene::text(&said(value)));
        let came = self.write(Write::update(at.table, at.key(), set)).await;
        self.note(&at, Some(value), came);
    }

    async fn delete(&mut self, at: At) {
        let came = self.write(Write::delete(at.table, at.key())).await;
        self.note(&at, None, came);
    }

    /// A condition that holds if nothing was lost.
    async fn put_if_as_known(&mut self, at: At) {
        let Some(known) = self.ledger[&at].exact() else { return self.put(at).await };
        let value = self.value();
        let came = self.write(Write::put(at.table, at.item(value)).only_if(is(known))).await;
        if came == Came::Failed {
            self.wrong(format!("{at:?} was not {known:?}, which was acknowledged"));
        }
        self.note(&at, Some(value), came);
    }

    async fn put_if_never(&mut self, at: At) {
        let value = self.value();
        let never = is(Some(value));
        let came = self.write(Write::put(at.table, at.item(value)).only_if(never)).await;
        if came == Came::Done {
            self.wrong(format!("{at:?} was written though its condition cannot hold"));
        }
        self.note(&at, Some(value), came);
    }

    /// Two to four keys, perhaps a check of another, perhaps a counter: all or nothing.
    async fn transact(&mut self) {
        let mut changes = std::collections::BTreeMap::new();
        for _ in 0..self.random.random_range(2..5) {
            let value = self.random.random_ratio(3, 4).then(|| self.value());
            changes.insert(self.any_key(), value);
        }
        let mut writes: Vec<_> = changes.iter().map(|(at, value)| set(at, *value)).collect();
        let checked = self.any_key();
        let known = self.ledger[&checked].exact().filter(|_| !changes.contains_key(&checked));
        if let Some(known) = known {
            writes.push(Write::check(checked.table, checked.key(), is(known)));
        }
        let counter = self.random.random_range(0..self.shared.counters.len() * 2);
        if counter < self.shared.counters.len() {
            writes.push(one_more(counter));
        }
        let answer = self.data.transact(TENANT, &writes, Call::default()).await;
        let came = self.came(answer);
        if came == Came::Failed {
            self.wrong(format!("{checked:?} was not {known:?} in a transaction"));
        }
        changes.iter().for_each(|(at, value)| self.note(at, *value, came));
        if came == Came::Done {
            // The call itself counts as one.
            add(&self.shared.tally.more_items, changes.len() as u64 - 1);
        }
        if counter < self.shared.counters.len() {
            self.counted(counter, came);
        }
    }

    async fn count_up(&mut self) {
        let counter = self.random.random_range(0..self.shared.counters.len());
        let came = self.write(one_more(counter)).await;
        self.counted(counter, came);
    }

    /// Reads a counter and writes it if nobody did meanwhile.
    async fn compare_and_count(&mut self) {
        let counter = self.random.random_range(0..self.shared.counters.len());
        let at = Counter::at(counter);
        // Acknowledged before it is read: less than that must not be found.
        let least = count(&self.shared.counters[counter].acknowledged);
        let Some(found) = self.get(&at).await else { return };
        let found = found.map(|item| item["N"].as_n().unwrap().parse::<u64>().unwrap());
        if found.unwrap_or(0) < least {
            self.wrong(format!("{at:?} is {found:?}, after {least} were acknowledged"));
        }
        let condition = match found {
            Some(found) => Expression::new("N = :old").value(":old", number(found)),
            None => Expression::new("attribute_not_exists(N)"),
        };
        let next = number(found.unwrap_or(0) + 1);
        let next = Expression::new("SET N = :new").value(":new", next);
        let write = Write::update(at.table, at.key(), next).only_if(condition);
        let came = self.write(write).await;
        self.counted(counter, came);
    }

    async fn read(&mut self, at: At) {
        let Some(found) = self.get(&at).await else { return };
        match found.map(|item| at.value(item)).transpose() {
            Ok(value) if self.ledger[&at].has(value) => {}
            Ok(value) => {
                let allowed = &self.ledger[&at];
                self.wrong(format!("{at:?} reads {value:?}, not one of {allowed:?}"));
            }
            Err(problem) => self.wrong(problem),
        }
    }

    async fn get(&mut self, at: &At) -> Option<Option<Item>> {
        let read = self.data.get(TENANT, at.table, at.key(), Reads::Strict).await;
        match read {
            Ok(found) => {
                add(&self.shared.tally.reads, 1);
                Some(found)
            }
            Err(error) => {
                self.passing(&error);
                None
            }
        }
    }

    async fn write(&mut self, write: Write) -> Came {
        let answer = self.data.write(TENANT, write).await;
        self.came(answer)
    }

    fn came(&self, answer: Result<Written, DataError>) -> Came {
        let tally = &self.shared.tally;
        match answer {
            Ok(written) => {
                let how = match written.how {
                    How::Direct => &tally.direct,
                    How::Guarded => &tally.guarded,
                    How::Logged => &tally.logged,
                };
                add(how, 1);
                add(&tally.redirects, written.redirects.into());
                Came::Done
            }
            Err(DataError::Unknown) => {
                add(&tally.unknown, 1);
                Came::Unknown
            }
            Err(DataError::ConditionFailed { .. }) => {
                add(&tally.refused, 1);
                Came::Failed
            }
            Err(error) => {
                self.passing(&error);
                Came::Nothing
            }
        }
    }

    /// An error that leaves nothing written has to be one that can pass.
    fn passing(&self, error: &DataError) {
        add(&self.shared.tally.passing, 1);
        match error {
            DataError::Busy(_)
            | DataError::Fenced { .. }
            | DataError::Moving
            | DataError::Route(_) => {}
            error => self.wrong(format!("unexpected: {error:?}")),
        }
    }

    fn note(&mut self, at: &At, value: Option<u64>, came: Came) {
        let allowed = self.ledger.get_mut(at).unwrap();
        match came {
            Came::Done => allowed.acknowledged(value),
            Came::Unknown => allowed.unknown(value),
            Came::Failed | Came::Nothing => {}
        }
    }

    fn counted(&self, counter: usize, came: Came) {
        let counter = &self.shared.counters[counter];
        match came {
            Came::Done => add(&counter.acknowledged, 1),
            Came::Unknown => add(&counter.unknown, 1),
            Came::Failed | Came::Nothing => {}
        }
    }

    fn wrong(&self, what: String) {
        self.shared.tally.wrong(format!("lane {}: {what}", self.name));
    }
}

fn set(at: &At, value: Option<u64>) -> Write {
    match value {
        Some(value) => Write::put(at.table, at.item(value)),
        None => Write::delete(at.table, at.key()),
    }
}

fn one_more(counter: usize) -> Write {
    let at = Counter::at(counter);
    Write::update(at.table, at.key(), Expression::new("ADD N :one").value(":one", number(1)))
}

fn is(value: Option<u64>) -> Expression {
    match value {
        Some(value) => Expression::new("V = :is").value(":is", number(value)),
        None => Expression::new("attribute_not_exists(PK)"),
    }
}
