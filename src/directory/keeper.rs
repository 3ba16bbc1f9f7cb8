//! Saves what this replica holds to a file, and begins with it: a replica that starts while DynamoDB is out of reach serves all that it
//! knew, and says how old that is.
//!
//! ```text
//!   start ─► Keep::open ── lock the directory ── check and read `snapshot` ─► Memory, Registry ─► Directory::start
//!                                                                                                      │
//!   Keeper: every interval, and at the end ── visit memory ─► `snapshot.tmp` ─► fsync ─► rename ─► fsync the directory
//! ```
//!
//! What holds:
//! - *The file is exact as of its sequence, or ahead of it.* The registry is taken before memory is gone through, so all up to its entry
//!   is in there; what came later may be, too. A replica that begins with it applies all entries after that one, in order, and memory
//!   lets no epoch fall.
//! - *Its age is honest.* The proof that it is dated by was made before memory was gone through. It is saved in the wall clock's time, since
//!   the monotonic clock ends with the machine, and what a wall clock dates gives no lease (`Memory::lease_after`).
//! - *It is whole or not there.* It gets its name when it is on disk; whoever is stopped in between leaves the one before.
//! - *A bad file is reported and ignored*, and so is a directory that cannot be used: neither keeps a replica from serving.
//! - *A better file gives way to no worse one*: while a memory that is to hold the whole table does not, a file that does is left alone.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::memory::{Memory, Mode};
use super::randomness::Randomness;
use super::registry::Registry;
use super::replica::Replica;
use super::snapshot::{Footer, Header, SnapshotError, SnapshotReader, SnapshotWriter};
use crate::domain::{JournalId, Sequence, Timestamp};

const FILE: &str = "snapshot";
const UNFINISHED: &str = "snapshot.tmp";
const LOCK: &str = "snapshot.lock";

/// Shortest time between two snapshots, whatever is asked for.
const SHORTEST: Duration = Duration::from_millis(100);

/// How much is gathered before it is written.
const PORTION: usize = 1 << 18;

/// Where and when to save.
#[derive(Debug, Clone)]
pub struct KeepSettings {
    /// Made if missing.
    pub directory: PathBuf,
    pub interval: Duration,
    /// Names the tables: a file that was made of others is not believed.
    pub tables: String,
}

/// Files of a directory that this process may write.
#[derive(Debug)]
pub struct Files {
    settings: KeepSettings,
    /// Held while this process runs; the system lets go of it when it ends, however it ends.
    _lock: File,
}

/// What an earlier process saved.
pub struct Recalled {
    pub memory: Memory,
    pub registry: Registry,
}

/// A directory for snapshots, and what was found in it.
#[derive(Default)]
pub struct Keep {
    /// `None`: it cannot be used.
    files: Option<Files>,
    recalled: Option<Recalled>,
}

impl Keep {
    /// Reads what an earlier process saved. Blocks: up to a second for a million placements. Never fails: what cannot be read or written is
    /// reported and done without.
    pub fn open(settings: KeepSettings, mode: Mode, clock: &Clock) -> Self {
        let directory = settings.directory.display().to_string();
        let recalled = recall(&settings, mode, clock);
        let files = match lock(&settings.directory) {
            Ok(lock) => Some(Files { settings, _lock: lock }),
            Err(problem) => {
                tracing::warn!(
                    directory,
                    problem,
                    "no snapshots are saved: the data directory cannot be used; choose another --data-dir"
                );
                None
            }
        };
        Self { files, recalled }
    }

    /// Whether there is something to begin with.
    pub fn recalled(&self) -> bool {
        self.recalled.is_some()
    }

    pub(super) fn into_parts(self) -> (Option<Files>, Option<Recalled>) {
        (self.files, self.recalled)
    }
}

/// Makes the directory and locks it: two processes would write to the same files.
fn lock(directory: &Path) -> Result<File, String> {
    let failed = |error: io::Error| error.to_string();
    std::fs::create_dir_all(directory).map_err(failed)?;
    let path = directory.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err("another celld uses it".to_owned()),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn recall(settings: &KeepSettings, mode: Mode, clock: &Clock) -> Option<Recalled> {
    let path = settings.directory.join(FILE);
    let name = path.display().to_string();
    let began = clock.instant();
    match read(&path, settings, mode, clock) {
        Ok((recalled, header, footer)) => {
            tracing::info!(
                file = name,
                placements = footer.placements,
                complete = footer.complete,
                proven = %header.proven,
                sequence = %header.registry.applied(),
                took = ?clock.instant().saturating_duration_since(began),
                "began with a snapshot"
            );
            Some(recalled)
        }
        Err(SnapshotError::Io(error)) if error.kind() == ErrorKind::NotFound => {
            tracing::info!(file = name, "there is no snapshot to begin with");
            None
        }
        Err(error) => {
            tracing::warn!(file = name, %error, "the snapshot is ignored; placements are read from the table");
            None
        }
    }
}

/// Makes a memory of a file. One that turns out bad half-way is dropped with what it holds.
fn read(
    path: &Path,
    settings: &KeepSettings,
    mode: Mode,
    clock: &Clock,
) -> Result<(Recalled, Header, Footer), SnapshotError> {
    let reader = SnapshotReader::open(File::open(path)?)?;
    let header = reader.header();
    if header.tables != settings.tables {
        return Err(SnapshotError::OtherTables(header.tables.clone()));
    }
    // What differs between two runs of this is only what a bounded memory lets go first.
    let memory = Memory::new(mode, clock.clone(), &Randomness::system());
    let proven = proven_at(header.proven, clock);
    let (header, footer) = reader.placements(|key, residence| memory.restore(key, residence))?;
    memory.restored(proven, footer.complete);
    let registry = header.registry.clone();
    Ok((Recalled { memory, registry }, header, footer))
}

/// A wall clock's time on the monotonic clock, as far back as that reaches.
fn proven_at(proven: Timestamp, clock: &Clock) -> Instant {
    let age = clock.now().millis().saturating_sub(proven.millis());
    if age < 0 {
        tracing::warn!(%proven, "the snapshot comes from the future: its age is unknown");
    }
    let mut age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
    let now = clock.instant();
    loop {
        match now.checked_sub(age) {
            Some(instant) => return instant,
            None => age /= 2,
        }
    }
}

/// Saves, again and again.
pub struct Keeper {
    interval: Duration,
    saver: Saver,
}

struct Saver {
    replica: Arc<Replica>,
    files: Files,
    /// The proof that the file is dated by, and its sequence, if this process wrote it.
    saved: Option<(Instant, Sequence)>,
    /// The journal of the file, where the file holds the whole table.
    whole_of: Option<JournalId>,
    failing: bool,
}

/// What became of a saving.
#[derive(Debug, PartialEq, Eq)]
enum Saved {
    Placements(u64),
    /// There is nothing to save, or nothing better than what the file says.
    Nothing,
    /// What was held was given up meanwhile.
    Overtaken,
}

impl Keeper {
    /// `whole_of`: the journal of what was found, where that was the whole table.
    pub fn new(replica: Arc<Replica>, files: Files, whole_of: Option<JournalId>) -> Self {
        let interval = files.settings.interval.max(SHORTEST);
        Self { interval, saver: Saver { replica, files, saved: None, whole_of, failing: false } }
    }

    /// Saves every interval until `stop`, and then once more.
    pub async fn run(self, stop: CancellationToken) {
        let Self { interval, mut saver } = self;
        let mut last = false;
        while !last {
            tokio::select! {
                biased;
                () = stop.cancelled() => last = true,
                () = tokio::time::sleep(interval) => {}
            }
            let saving = tokio::task::spawn_blocking(move || {
                saver.save();
                saver
            });
            saver = match saving.await {
                Ok(saver) => saver,
                Err(error) => {
                    tracing::error!(%error, "no more snapshots are saved");
                    return stop.cancelled().await;
                }
            };
        }
    }
}

impl Saver {
    fn save(&mut self) {
        let file = self.files.settings.directory.join(FILE).display().to_string();
        match self.try_save() {
            Ok(saved) => {
                if self.failing {
                    tracing::info!(file, "snapshots are saved again");
                }
                self.failing = false;
                tracing::debug!(file, ?saved, "saved a snapshot");
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(file, %error, "the snapshot cannot be saved; the one before stays, and it is tried again");
                }
                self.failing = true;
                // Half a file takes room that may be what is missing. One that is not there is no problem.
                let _ = std::fs::remove_file(self.files.settings.directory.join(UNFINISHED));
            }
        }
    }

    fn try_save(&mut self) -> io::Result<Saved> {
        let memory = self.replica.memory();
        // Proof, registry, memory, in this order: each speaks of what comes after it.
        let proof = memory.last_proof();
        let generation = memory.generation();
        let whole = memory.complete();
        let Ok(registry) = self.replica.registry() else {
            return Ok(Saved::Nothing);
        };
        let journal = registry.journal();
        let worse = memory.wants_load() && self.whole_of == Some(journal);
        let saved = Some((proof, registry.applied()));
        if worse || !memory.witnessed(proof) || self.saved == saved {
            return Ok(Saved::Nothing);
        }
        let header = Header {
            tables: self.files.settings.tables.clone(),
            proven: dated(proof, self.replica.clock()),
            registry: Registry::clone(&registry),
        };
        let directory = &self.files.settings.directory;
        let unfinished = directory.join(UNFINISHED);
        let mut writer = SnapshotWriter::begin(create(&unfinished)?, &header)?;
        for part in 0..memory.parts() {
            memory.visit(part, |key, residence| writer.put(key, &residence));
            if writer.buffered() >= PORTION {
                writer.flush()?;
            }
        }
        let whole = whole && memory.complete();
        let (file, placements) = writer.finish(whole)?;
        // What was distrusted or forgotten half-way is not all there, and nothing tells what is missing.
        let now = self.replica.registry().map(|registry| registry.journal());
        if memory.generation() != generation || now != Ok(journal) {
            return Ok(Saved::Overtaken);
        }
        file.sync_all()?;
        drop(file);
        std::fs::rename(&unfinished, directory.join(FILE))?;
        File::open(directory)?.sync_all()?;
        self.saved = saved;
        self.whole_of = whole.then_some(journal);
        Ok(Saved::Placements(placements))
    }
}

/// A file for this user's eyes only: it names tenants.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// When that was by the wall clock; rather a little earlier.
fn dated(at: Instant, clock: &Clock) -> Timestamp {
    let now = clock.now();
    let age = clock.instant().saturating_duration_since(at);
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX).saturating_add(1);
    Timestamp::from_millis(now.millis().saturating_sub(age)).unwrap_or(now)
}
