//! An in-process directory without sockets, for users' own tests.
//!
//! It speaks the real protocol beneath a real [`Directory`], so that leases, staleness, failover and snapshots behave as they do in
//! production; time is tokio's, so tests with a paused clock run at once and always the same.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), cells_client::Error> {
//! use cells_client::fake::FakeDirectory;
//!
//! let fake = FakeDirectory::new();
//! fake.put_cell("cell-a", "https://a.example", "eu-west-1");
//! fake.put_cell("cell-b", "https://b.example", "eu-west-1");
//! fake.place("customer-1", "cell-a");
//!
//! let directory = fake.connect().await?;
//! assert_eq!(directory.resolve("customer-1").unwrap().cell_id(), "cell-a");
//!
//! fake.place("customer-1", "cell-b");
//! fake.caught_up(&directory).await;
//! let answer = directory.resolve("customer-1").unwrap();
//! assert_eq!((answer.cell_id(), answer.epoch()), ("cell-b", 2));
//!
//! fake.disconnect();
//! tokio::time::sleep(std::time::Duration::from_secs(60)).await;
//! let answer = directory.resolve("customer-1").unwrap();
//! assert!(answer.is_stale() && answer.lease().is_zero());
//! # Ok(())
//! # }
//! ```

mod replica;
mod transport;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use self::replica::Replica;
pub(crate) use self::transport::FakeTransport;
use crate::builder::Builder;
use crate::clock::Clock;
use crate::directory::Directory;
use crate::error::Error;
use crate::held::WriteMode;
use crate::proto;
use crate::proto::placement_change::Change;

/// A directory in memory, with one replica or several. Clones are the same directory. See the [module](self).
#[derive(Clone)]
pub struct FakeDirectory {
    world: Arc<World>,
}

pub(crate) struct World {
    state: Mutex<State>,
    /// Rises with whatever a stream may be waiting for.
    changed: watch::Sender<u64>,
}

struct State {
    journal_id: String,
    lives: u64,
    /// Entry `n` is at place `n - 1`.
    journal: Vec<Vec<Change>>,
    /// Tokens before this entry have expired.
    oldest: u64,
    /// The truth: what the tables hold.
    placements: BTreeMap<String, proto::Placement>,
    cells: BTreeMap<String, proto::Cell>,
    /// Left behind by what is gone.
    epochs: BTreeMap<String, u64>,
    lease: Duration,
    leases_paused: bool,
    replicas: Vec<Replica>,
    calls: u64,
}

/// Tokio's time: stands still and jumps with a paused test.
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

impl Default for FakeDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeDirectory {
    /// One replica, a lease of 5 s, no cells, no placements.
    pub fn new() -> Self {
        Self::with_replicas(1)
    }

    /// Several equal replicas (at least one), as endpoints 0, 1, …
    pub fn with_replicas(count: usize) -> Self {
        let state = State {
            journal_id: "fake-1".to_owned(),
            lives: 1,
            journal: Vec::new(),
            oldest: 0,
            placements: BTreeMap::new(),
            cells: BTreeMap::new(),
            epochs: BTreeMap::new(),
            lease: Duration::from_secs(5),
            leases_paused: false,
            replicas: (0..count.max(1)).map(|_| Replica::default()).collect(),
            calls: 0,
        };
        Self { world: Arc::new(World { state: Mutex::new(state), changed: watch::channel(0).0 }) }
    }

    /// A client of it, the whole map in memory.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`] if all replicas are disconnected.
    pub async fn connect(&self) -> Result<Directory, Error> {
        self.builder().connect().await
    }

    /// A client of it, with options. Must be called within a tokio runtime.
    pub fn builder(&self) -> Builder {
        let transport: Arc<FakeTransport> = Arc::new(FakeTransport { world: self.world.clone() });
        let mut builder = Builder::new(Vec::new());
        builder.set_fake(transport, Arc::new(TokioClock(tokio::time::Instant::now())));
        builder
    }

    /// The transport alone.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn transport(&self) -> Arc<dyn crate::transport::Transport> {
        Arc::new(FakeTransport { world: self.world.clone() })
    }

    /// Registers a cell, or changes it.
    pub fn put_cell(&self, cell_id: &str, endpoint: &str, region: &str) {
        let cell = proto::Cell {
            cell_id: cell_id.to_owned(),
            endpoint: endpoint.to_owned(),
            region: region.to_owned(),
            state: proto::CellState::Active.into(),
            ..proto::Cell::default()
        };
        self.world.commit(|_| vec![Change::Cell(cell)]);
    }

    /// Unregisters a cell.
    pub fn delete_cell(&self, cell_id: &str) {
        self.world.commit(|_| vec![Change::CellDeleted(cell_id.to_owned())]);
    }

    /// Places a tenant, or moves it: its epoch rises where the cell is another one.
    pub fn place(&self, key: &str, cell_id: &str) {
        self.world.commit(|state| match state.placements.get(key) {
            Some(present) if present.cell_id == cell_id => Vec::new(),
            _ => vec![Change::Placed(state.next_placement(key, cell_id))],
        });
    }

    /// Places many tenants in one entry of the journal.
    pub fn place_all<'a>(&self, placements: impl IntoIterator<Item = (&'a str, String)>) {
        self.world.commit(|state| {
            let placements = placements.into_iter();
            placements.map(|(key, cell)| Change::Placed(state.next_placement(key, &cell))).collect()
        });
    }

    /// Changes how writers of a tenant write. Does nothing for one that has no cell.
    pub fn set_write_mode(&self, key: &str, mode: WriteMode) {
        let mode = match mode {
            WriteMode::Direct => proto::WriteMode::Direct,
            WriteMode::Logged => proto::WriteMode::Logged,
            WriteMode::Unknown => proto::WriteMode::Unspecified,
        };
        self.world.commit(|state| {
            let placement = state.placements.get(key).cloned();
            let changed = placement
                .map(|placement| proto::Placement { write_mode: mode.into(), ..placement });
            changed.map(Change::Placed).into_iter().collect()
        });
    }

    /// Removes a tenant's placement. Its epoch is remembered.
    pub fn vacate(&self, key: &str) {
        self.world.commit(|state| {
            let placement = state.placements.get(key).cloned();
            placement.map(Change::Vacated).into_iter().collect()
        });
    }

    /// The lease of what a replica knows to be current. Default: 5 s.
    pub fn set_lease(&self, lease: Duration) {
        self.world.change(|state| state.lease = lease);
    }

    /// No lease is granted until [`FakeDirectory::resume_leases`]; those that were granted run out.
    pub fn pause_leases(&self) {
        self.world.change(|state| state.leases_paused = true);
    }

    /// Leases are granted again.
    pub fn resume_leases(&self) {
        self.world.change(|state| state.leases_paused = false);
    }

    /// Cuts the connections to all replicas.
    pub fn disconnect(&self) {
        self.world.change(|state| state.replicas.iter_mut().for_each(Replica::disconnect));
    }

    /// All replicas can be reached again.
    pub fn reconnect(&self) {
        self.world.change(|state| state.replicas.iter_mut().for_each(Replica::reconnect));
    }

    /// Cuts the connections to one replica.
    pub fn disconnect_replica(&self, replica: usize) {
        self.world.with_replica(replica, Replica::disconnect);
    }

    /// One replica can be reached again.
    pub fn reconnect_replica(&self, replica: usize) {
        self.world.with_replica(replica, Replica::reconnect);
    }

    /// From now on the replica does not follow the journal: it answers what it knows.
    pub fn hold_replica(&self, replica: usize) {
        self.world.with_replica(replica, Replica::hold);
    }

    /// The replica follows the journal again.
    pub fn release_replica(&self, replica: usize) {
        self.world.change(|state| state.release(replica));
    }

    /// The replica takes so long for every answer, Watch excepted.
    pub fn slow_replica(&self, replica: usize, delay: Duration) {
        self.world.with_replica(replica, |replica| replica.delay = delay);
    }

    /// The replica says nothing more on its streams, and does not end them either.
    pub fn silence_replica(&self, replica: usize) {
        self.world.with_replica(replica, |replica| replica.silent = true);
    }

    /// Resume tokens that were given so far have expired.
    pub fn forget_history(&self) {
        self.world.change(|state| state.oldest = state.journal.len() as u64 + 1);
    }

    /// Restored from a backup, as it is: the journal is another one from here on, its numbers begin with 1.
    pub fn restore(&self) {
        self.world.change(State::restore);
    }

    /// How many unary calls there were.
    pub fn calls(&self) -> u64 {
        self.world.state.lock().calls
    }

    /// The journal's last entry.
    pub fn sequence(&self) -> u64 {
        self.world.state.lock().journal.len() as u64
    }

    /// Waits until the client has applied all that was done so far.
    ///
    /// Never, if it cannot: for a client without a connection to a replica that follows the journal.
    pub async fn caught_up(&self, directory: &Directory) {
        let target = self.sequence();
        while !directory.status().ready || directory.status().sequence < target {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl World {
    fn change<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let result = f(&mut self.state.lock());
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
        result
    }

    fn with_replica(&self, replica: usize, f: impl FnOnce(&mut Replica)) {
        self.change(|state| {
            if let Some(replica) = state.replicas.get_mut(replica) {
                f(replica);
            }
        });
    }

    /// An entry of what `f` says; none if that is nothing.
    fn commit(&self, f: impl FnOnce(&State) -> Vec<Change>) {
        self.change(|state| {
            let changes = f(state);
            state.commit(changes);
        });
    }
}

impl State {
    fn next_placement(&self, key: &str, cell_id: &str) -> proto::Placement {
        let before = self.placements.get(key).map_or(0, |placement| placement.epoch);
        let left = self.epochs.get(key).copied().unwrap_or(0);
        proto::Placement {
            partition_key: key.to_owned(),
            cell_id: cell_id.to_owned(),
            epoch: before.max(left) + 1,
            write_mode: proto::WriteMode::Direct.into(),
            state: proto::PlacementState::Active.into(),
            ..proto::Placement::default()
        }
    }

    fn commit(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            if let Change::Vacated(placement) = change {
                self.epochs.insert(placement.partition_key.clone(), placement.epoch);
            }
            replica::apply(&mut self.placements, &mut self.cells, change);
        }
        self.journal.push(changes);
        for replica in &mut self.replicas {
            replica.follow(&self.journal);
        }
    }

    fn release(&mut self, replica: usize) {
        if let Some(replica) = self.replicas.get_mut(replica) {
            replica.held_since = None;
            replica.follow(&self.journal);
        }
    }

    fn restore(&mut self) {
        self.lives += 1;
        self.journal_id = format!("fake-{}", self.lives);
        let cells = self.cells.values().cloned().map(Change::Cell);
        let placements = self.placements.values().cloned().map(Change::Placed);
        self.journal = vec![cells.chain(placements).collect()];
        self.oldest = 0;
        for replica in &mut self.replicas {
            replica.begin_anew(&self.journal_id, &self.journal);
        }
    }
}
