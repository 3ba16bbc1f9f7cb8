//! What everything in a simulation shares: its time, its lots, its faults, its trace and the truth.
//!
//! All of a run happens on one thread, in the virtual time of a paused runtime, and every lot is drawn from one seeded source. So the seed
//! decides everything, and the trace is the same, byte for byte, whenever it is run again.

use std::fmt::Write;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use cell_directory::directory::{Directory, Randomness};
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_server::CellDirectory;
use cell_directory::store::memory::MemoryStore;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use crate::truth::Truth;

pub const REPLICAS: usize = 3;
pub const CLIENTS: usize = 3;

/// How much every clock may be off the true time, in parts per million: what clients are configured with.
pub const DRIFT_PPM: u32 = 10_000;
pub const LEASE: Duration = Duration::from_secs(2);

/// How long a lease can last in true time. A replica whose clock is slow by `d` takes a proof for younger than it is, at most until it
/// is `L / (1 - d)` old; a client takes its own slowness off. So the margin of a mover is `L * d / (1 - d)` on a perfect clock of its
/// own; a mover whose clock is fast by `d` adds as much again.
pub fn lease_in_true_time() -> Duration {
    LEASE.mul_f64(1.0 / (1.0 - f64::from(DRIFT_PPM) / 1e6))
}

pub type Service =
    Arc<dyn CellDirectory<WatchStream = BoxStream<'static, Result<v1::WatchResponse, Status>>>>;

/// A replica that runs.
#[derive(Clone)]
pub struct Running {
    pub incarnation: u64,
    pub directory: Directory,
    pub service: Service,
}

/// Faults that last. Counted, as several may overlap.
#[derive(Default)]
struct Faults {
    store_down: u32,
    from_store: [u32; REPLICAS],
    links: [[u32; REPLICAS]; CLIENTS],
    /// All is well from now on.
    healed: bool,
}

#[derive(Clone, Copy)]
pub enum Cut {
    Store,
    FromStore(usize),
    Link(usize, usize),
}

/// What has happened, to tell that a run was worth something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub answers: u64,
    pub direct: u64,
    pub fetched: u64,
    pub changes: u64,
    pub moves: u64,
    pub watched: u64,
    pub crashes: u64,
    pub snapshots: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.answers += other.answers;
        self.direct += other.direct;
        self.fetched += other.fetched;
        self.changes += other.changes;
        self.moves += other.moves;
        self.watched += other.watched;
        self.crashes += other.crashes;
        self.snapshots += other.snapshots;
    }
}

pub struct World {
    began: Instant,
    /// Every lot.
    pub lots: Randomness,
    pub store: Arc<MemoryStore>,
    pub truth: Mutex<Truth>,
    pub counts: Mutex<Counts>,
    replicas: Mutex<Vec<Option<Running>>>,
    faults: Mutex<Faults>,
    trace: Mutex<String>,
    broken: Mutex<Option<String>>,
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            lots: Randomness::seeded(seed),
            store: Arc::default(),
            truth: Mutex::default(),
            counts: Mutex::default(),
            replicas: Mutex::new(vec![None; REPLICAS]),
            faults: Mutex::default(),
            trace: Mutex::default(),
            broken: Mutex::default(),
        })
    }

    /// The true time.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.lots.draw::<u64>() % bound.max(1)
    }

    pub fn index(&self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    pub fn chance(&self, probability: f64) -> bool {
        self.lots.draw::<f64>() < probability
    }

    /// A chance that something goes wrong: none once all is healed.
    pub fn mishap(&self, probability: f64) -> bool {
        let hit = self.chance(probability);
        hit && !self.faults.lock().healed
    }

    pub fn millis(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least + 1))
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// How long one way takes: mostly little, at times much.
    pub fn delay(&self) -> Duration {
        match self.below(100) {
            _ if self.faults.lock().healed => self.millis(1, 3),
            0..70 => self.millis(1, 4),
            70..95 => self.millis(4, 40),
            _ => self.millis(40, 280),
        }
    }

    /// How far off a clock is, in parts per million: at most the bound, and often at it.
    pub fn drift(&self) -> i64 {
        let bound = i64::from(DRIFT_PPM);
        match self.below(3) {
            0 => -bound,
            1 => bound,
            _ => i64::try_from(self.below(2 * bound.unsigned_abs() + 1)).unwrap() - bound,
        }
    }

    pub fn log(&self, event: std::fmt::Arguments<'_>) {
        let at = self.now().as_micros();
        writeln!(self.trace.lock(), "{at:>9} {event}").unwrap();
    }

    /// An invariant does not hold.
    pub fn broken(&self, what: String) {
        self.log(format_args!("BROKEN {what}"));
        let at = self.now();
        self.broken.lock().get_or_insert_with(|| format!("after {at:?}: {what}"));
    }

    pub fn verdict(&self) -> Result<(), String> {
        self.broken.lock().clone().map_or(Ok(()), Err)
    }

    pub fn trace(&self) -> String {
        self.trace.lock().clone()
    }

    pub fn running(&self, replica: usize) -> Option<Running> {
        self.replicas.lock()[replica].clone()
    }

    pub fn set_running(&self, replica: usize, running: Option<Running>) {
        self.replicas.lock()[replica] = running;
    }

    pub fn alive(&self, replica: usize, incarnation: u64) -> bool {
        let replicas = self.replicas.lock();
        replicas[replica].as_ref().is_some_and(|running| running.incarnation == incarnation)
    }

    pub fn store_reached(&self, replica: usize) -> bool {
        let faults = self.faults.lock();
        faults.healed || (faults.store_down == 0 && faults.from_store[replica] == 0)
    }

    pub fn linked(&self, client: usize, replica: usize) -> bool {
        let faults = self.faults.lock();
        faults.healed || faults.links[client][replica] == 0
    }

    /// Cuts something off for a while.
    pub fn cut(self: &Arc<Self>, what: Cut, duration: Duration) {
        let count = move |faults: &mut Faults, by: i32| {
            let counter = match what {
                Cut::Store => &mut faults.store_down,
                Cut::FromStore(replica) => &mut faults.from_store[replica],
                Cut::Link(client, replica) => &mut faults.links[client][replica],
            };
            *counter = counter.saturating_add_signed(by);
        };
        match what {
            Cut::Store => self.log(format_args!("cut store {duration:?}")),
            Cut::FromStore(replica) => self.log(format_args!("cut r{replica} {duration:?}")),
            Cut::Link(client, replica) => {
                self.log(format_args!("cut c{client}-r{replica} {duration:?}"));
            }
        }
        count(&mut self.faults.lock(), 1);
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            count(&mut world.faults.lock(), -1);
        });
    }

    pub fn heal(&self) {
        self.log(format_args!("heal"));
        self.faults.lock().healed = true;
    }

    pub fn healed(&self) -> bool {
        self.faults.lock().healed
    }
}

/// How much of the true time a clock that is off by `ppm` shows.
pub fn drifted(time: Duration, ppm: i64) -> Duration {
    let nanos = i128::try_from(time.as_nanos()).unwrap();
    let shown = nanos + nanos * i128::from(ppm) / 1_000_000;
    Duration::from_nanos(u64::try_from(shown).unwrap())
}

pub async fn never<T>() -> T {
    pending().await
}
