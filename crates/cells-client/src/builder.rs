//! Puts a directory together: options, transport, memory, tasks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cells::CellTable;
use crate::clock::{Clock, SystemClock};
use crate::directory::{Core, Directory, Handle};
use crate::driver;
use crate::error::Error;
use crate::fetch::Latency;
use crate::floors::Floors;
use crate::follower::Follower;
use crate::grpc::{Grpc, Tls};
use crate::memory::{Memory, UNATTACHED};
use crate::options::{FallbackCell, Hedge, Mode, Options};
use crate::picture::{Picture, Shared};
use crate::rng::Rng;
use crate::snapshot;
use crate::transport::Transport;

/// The options of a [`Directory`], with their defaults. Made by [`Directory::builder`].
#[must_use]
pub struct Builder {
    endpoints: Vec<String>,
    options: Options,
    tls: Tls,
    transport: Option<Arc<dyn Transport>>,
    clock: Option<Arc<dyn Clock>>,
}

impl Builder {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            options: Options::default(),
            tls: Tls::default(),
            transport: None,
            clock: None,
        }
    }

    /// What to hold in memory. Default: [`Mode::Whole`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.options.mode = mode;
        self
    }

    /// A file of this directory's own, from which the next process answers at once. Its folder must exist. Default: none.
    ///
    /// Written through a neighbour with the ending `.tmp`, at the interval of [`Builder::snapshot_interval`] and at the end. A file that
    /// is damaged or of another version is reported and ignored. What is answered from it has no lease and counts as stale until a
    /// replica has confirmed it. Where it can be used, `connect` does not wait for any endpoint.
    pub fn snapshot(mut self, path: impl Into<PathBuf>) -> Self {
        self.options.snapshot = Some(path.into());
        self
    }

    /// How often the snapshot file is written: 1 ms to 24 h. Default: 60 s.
    pub fn snapshot_interval(mut self, interval: Duration) -> Self {
        self.options.snapshot_interval = interval;
        self
    }

    /// How long `connect` waits for the first whole picture: 1 ms to 24 h. Default: 30 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.options.connect_timeout = timeout;
        self
    }

    /// `connect` returns at once. Until the first picture is there, what is asked for is a miss.
    pub fn connect_lazily(mut self) -> Self {
        self.options.wait = false;
        self
    }

    /// When a miss is asked of a second endpoint. A tenth of all misses at most are, in the long run. Default:
    /// [`Hedge::Adaptive`] between 2 and 100 ms.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.options.hedge = hedge;
        self
    }

    /// How long one endpoint may take to answer a miss: 1 ms to 24 h. Default: 500 ms.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.options.attempt_timeout = timeout;
        self
    }

    /// How long a miss may take altogether: 1 ms to 24 h. Default: 2 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// How often the lease is renewed, at least: 1 ms to 24 h. It is renewed sooner where the lease is shorter than three of these.
    /// Default: 1 s.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.options.sync_interval = interval;
        self
    }

    /// After how long without a message a Watch counts as broken: 1 ms to 24 h. Replicas send one every few seconds. Default: 10 s.
    pub fn watch_silence(mut self, silence: Duration) -> Self {
        self.options.watch_silence = silence;
        self
    }

    /// From which age on an answer without a lease counts as stale: 1 ms to 24 h. Default: 10 s.
    pub fn stale_after(mut self, age: Duration) -> Self {
        self.options.stale_after = age;
        self
    }

    /// The longest pause between attempts to open a Watch: 1 ms to 24 h. Default: 10 s.
    pub fn backoff_max(mut self, pause: Duration) -> Self {
        self.options.backoff_max = pause;
        self
    }

    /// By how much this machine's clock may run slower than the directory's clocks, in millionths: at most 500,000. Every lease is
    /// shortened by as much. Default: 1,000 (a millisecond in a second; a quartz is off by 100 millionths at worst).
    pub fn clock_drift_ppm(mut self, parts_per_million: u32) -> Self {
        self.options.clock_drift_ppm = parts_per_million;
        self
    }

    /// After the directory was restored from a backup: how long answers to misses are not kept, because a replica that has not noticed
    /// yet may have given them. At least as long as a replica can take to notice. Default: 60 s.
    pub fn journal_settle(mut self, settle: Duration) -> Self {
        self.options.journal_settle = settle;
        self
    }

    /// The cell to answer as a guess ([`crate::Source::Fallback`], not authoritative, no lease) for a key that is not in memory when no
    /// endpoint answers. Only guarded writes are safe with a guess. Default: none.
    pub fn fallback_cell(mut self, cell: FallbackCell) -> Self {
        self.options.fallback_cell = Some(cell);
        self
    }

    /// For `https://` endpoints: trust these certificates (PEM) instead of the system's.
    #[cfg(feature = "tls")]
    pub fn ca_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.ca = Some(pem.into());
        self
    }

    /// For `https://` endpoints: this client's own certificate and key (PEM).
    #[cfg(feature = "tls")]
    pub fn client_identity(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.tls.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Makes every choice the same in every run.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = Some(seed);
        self
    }

    /// Another clock.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    #[cfg(feature = "fake")]
    pub(crate) fn set_fake(&mut self, transport: Arc<dyn Transport>, clock: Arc<dyn Clock>) {
        self.transport = Some(transport);
        self.clock = Some(clock);
    }

    /// Another way to the replicas; the endpoints are not looked at.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn transport(mut self, transport: Arc<dyn Transport>) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Begins to follow the directory. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::NotReady`] if no whole picture arrived in time.
    pub async fn connect(self) -> Result<Directory, Error> {
        let (transport, clock, tls) = (self.transport, self.clock, self.tls);
        let endpoints =
            transport.as_ref().map_or(self.endpoints.len(), |transport| transport.endpoints());
        self.options.check(endpoints)?;
        let transport = match transport {
            Some(transport) => transport,
            None => Arc::new(Grpc::new(&self.endpoints, &tls, &self.options)?),
        };
        let core = assemble(
            self.options,
            transport,
            clock.unwrap_or_else(|| Arc::new(SystemClock::new())),
        )
        .await?;
        let (sender, mut ready) = watch::channel(core.follower.lock().is_ready());
        let directory = Directory { handle: Arc::new(Handle { core: core.clone() }) };
        core.tasks.spawn(driver::follow(core.clone(), sender));
        if core.options.snapshot.is_some() {
            core.tasks.spawn(driver::keep_saving(core.clone()));
        }
        if core.options.wait {
            let waited = core.options.connect_timeout;
            // Nothing of it is held across the next `await`: callers connect in tasks of their own.
            let is_ready = tokio::time::timeout(waited, ready.wait_for(|ready| *ready))
                .await
                .is_ok_and(|ready| ready.is_ok());
            if !is_ready {
                directory.close().await;
                return Err(Error::NotReady { waited });
            }
        }
        Ok(directory)
    }
}

async fn assemble(
    options: Options,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Core>, Error> {
    let floors = Arc::new(Floors::new());
    let memory = match options.mode {
        Mode::Whole => Memory::whole(options.seed),
        Mode::Bounded { capacity } => Memory::bounded(capacity, floors.clone(), options.seed),
    };
    let shared = Arc::new(Shared {
        picture: ArcSwap::from_pointee(Picture::new(Arc::new(memory), UNATTACHED, None)),
        cells: CellTable::new(),
        floors,
        clock,
        stale_after: options.stale_after,
    });
    let mut follower = Follower::new(options.clone(), shared.clone(), transport.endpoints());
    if let Some(path) = options.snapshot.clone() {
        let place = shared.clone();
        let loaded = tokio::task::spawn_blocking(move || snapshot::load(&path, &place)).await;
        if let Ok(Some(position)) = loaded {
            follower.resume(position);
        }
    }
    let fallback = options.fallback_cell.as_ref().and_then(|cell| {
        shared.cells.address(&cell.cell_id, &cell.endpoint, &cell.region, 0);
        shared.cells.intern(&cell.cell_id)
    });
    Ok(Arc::new(Core {
        latency: Mutex::new(Latency::new(options.hedge)),
        rng: Mutex::new(Rng::new(options.seed)),
        options,
        shared,
        follower: Mutex::new(follower),
        transport,
        fallback,
        flights: Mutex::new(HashMap::new()),
        saving: Arc::new(Mutex::new(())),
        tasks: TaskTracker::new(),
        cancel: CancellationToken::new(),
    }))
}
