//! The handle that users hold, and what its tasks share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{Answer, Resolved};
use crate::builder::Builder;
use crate::cells::CellIndex;
use crate::error::Error;
use crate::fetch::{Latency, Question, fetch};
use crate::follower::Follower;
use crate::options::Options;
use crate::picture::Shared;
use crate::rng::Rng;
use crate::transport::Transport;

/// Different questions that may be under way at once.
pub(crate) const MAX_FLIGHTS: usize = 65_536;

type Outcome = Option<Result<Resolved, Error>>;

/// The questions under way, and where their answers will be.
type Flights = HashMap<(Box<str>, Question), watch::Receiver<Outcome>>;

/// What the tasks of a directory share.
pub(crate) struct Core {
    pub options: Options,
    pub shared: Arc<Shared>,
    pub follower: Mutex<Follower>,
    pub transport: Arc<dyn Transport>,
    pub latency: Mutex<Latency>,
    pub rng: Mutex<Rng>,
    pub fallback: Option<CellIndex>,
    /// The questions under way: who asks the same waits for the same answer.
    pub flights: Mutex<Flights>,
    /// Held while the snapshot file is written: two writers would tear it.
    pub saving: Arc<Mutex<()>>,
    pub tasks: TaskTracker,
    pub cancel: CancellationToken,
}

/// Ends the tasks when the last handle goes.
pub(crate) struct Handle {
    pub core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.cancel.cancel();
    }
}

/// Knows which cell each tenant lives in, from this process's own memory.
///
/// Cheap to clone; all clones are one directory. Its background tasks end when the last clone is dropped, or with
/// [`Directory::close`], which waits for them.
#[derive(Clone)]
pub struct Directory {
    pub(crate) handle: Arc<Handle>,
}

/// How a directory is doing, for metrics and readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Whether there is a whole picture, however old.
    pub ready: bool,
    /// Whether a Watch is open, and of which endpoint (by its place in the list).
    pub watching: Option<usize>,
    /// The journal's entry up to which everything is applied.
    pub sequence: u64,
    /// How many placements memory holds.
    pub placements: usize,
    /// What is left of the lease on all that is held.
    pub lease: std::time::Duration,
    /// How old what is held can be. `None`: not known.
    pub age: Option<std::time::Duration>,
}

impl Directory {
    /// Connects to a directory's replicas, which are all equal, with the default options: the whole map in memory.
    ///
    /// Returns when the first whole picture is there, or after 30 s. See [`Directory::builder`] for everything else.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] if an endpoint is not an `http://` or (feature `tls`) `https://` URI; [`Error::NotReady`].
    pub async fn connect<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
    ) -> Result<Self, Error> {
        Self::builder(endpoints).connect().await
    }

    /// All options, with their defaults.
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Builder {
        Builder::new(endpoints.into_iter().map(Into::into).collect())
    }

    /// The cell of the tenant `key`, from memory: no allocation, no RPC, no waiting. `None`: not in memory.
    ///
    /// What is in memory is always answered, however old it is; the answer says so.
    #[inline]
    pub fn resolve(&self, key: &str) -> Option<Answer<'_>> {
        let shared = &*self.handle.core.shared;
        let resolved = shared.picture.load().resolve(key)?;
        Some(Answer { resolved, shared })
    }

    /// The cell of the tenant `key`: from memory, or else from a replica, which places a tenant that has none.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`], [`Error::Unavailable`], [`Error::Overloaded`], [`Error::Closed`]. Never for a key that is in memory.
    pub async fn locate(&self, key: &str) -> Result<Answer<'_>, Error> {
        match self.resolve(key) {
            Some(answer) => Ok(answer),
            None => self.ask(key, &Question::default()).await,
        }
    }

    /// [`Directory::locate`] with conditions. Of those who ask the same at the same time, one asks for all.
    ///
    /// # Errors
    ///
    /// As `locate`, and [`Error::NotFound`] if the question is to look up only.
    pub async fn locate_with(&self, key: &str, question: &Question) -> Result<Answer<'_>, Error> {
        if let Some(answer) = self.resolve(key)
            && question.is_met_by(&answer.resolved, answer.shared.now())
        {
            return Ok(answer);
        }
        self.ask(key, question).await
    }

    async fn ask(&self, key: &str, question: &Question) -> Result<Answer<'_>, Error> {
        let mut flight = self.join(key, question)?;
        let resolved = match flight.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(Error::Closed))?,
            Err(_) => return Err(Error::Closed),
        };
        Ok(Answer { resolved, shared: &self.handle.core.shared })
    }

    fn join(&self, key: &str, question: &Question) -> Result<watch::Receiver<Outcome>, Error> {
        let core = &self.handle.core;
        if core.cancel.is_cancelled() {
            return Err(Error::Closed);
        }
        let mut flights = core.flights.lock();
        let full = flights.len() >= MAX_FLIGHTS;
        match flights.entry((key.into(), question.clone())) {
            Entry::Occupied(flight) => Ok(flight.get().clone()),
            Entry::Vacant(_) if full => Err(Error::Overloaded { limit: MAX_FLIGHTS }),
            Entry::Vacant(place) => {
                let flight = place.key().clone();
                let (sender, receiver) = watch::channel(None);
                place.insert(receiver.clone());
                let core = core.clone();
                // A task of its own: whoever asked first may lose patience, the others have not.
                core.tasks.clone().spawn(async move {
                    let asked = fetch(core.clone(), flight.0.clone(), flight.1.clone());
                    let outcome =
                        core.cancel.run_until_cancelled(asked).await.unwrap_or(Err(Error::Closed));
                    core.flights.lock().remove(&flight);
                    let _ = sender.send(Some(outcome));
                });
                Ok(receiver)
            }
        }
    }

    /// How the directory is doing.
    pub fn status(&self) -> Status {
        let core = &self.handle.core;
        let (ready, watching, sequence) = {
            let follower = core.follower.lock();
            (follower.is_ready(), follower.alive(), follower.position().applied)
        };
        let picture = core.shared.picture.load();
        let (now, as_of) = (core.shared.now(), picture.as_of());
        Status {
            ready,
            watching,
            sequence,
            placements: picture.memory.len(),
            lease: picture.lease_until().since(now),
            age: (as_of != crate::clock::Moment::NEVER).then(|| now.since(as_of)),
        }
    }

    /// Writes the snapshot file now, where the option is set. Blocks for as long as writing takes.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn save(&self) -> std::io::Result<()> {
        crate::snapshot::save(&self.handle.core)
    }

    /// Ends the background tasks, writes the snapshot file and waits for all of it. Clones go on answering from memory, ever older.
    pub async fn close(self) {
        let core = self.handle.core.clone();
        core.cancel.cancel();
        core.tasks.close();
        core.tasks.wait().await;
    }
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("status", &self.status()).finish_non_exhaustive()
    }
}
