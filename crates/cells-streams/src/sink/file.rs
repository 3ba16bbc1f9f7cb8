//! A file of JSON lines, to which deliveries are appended.
//!
//! Invariants: a delivery is written in one piece under a lock, so lines of two shards never mix; a line that a crash tore is cut off
//! when the file is opened, and its delivery is offered again, for it was not accepted. The file is locked for as long as it is open, as
//! each writer remembers where it goes on, and two would write over each other's lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{Sink, SinkError};
use crate::Delivery;
use crate::json::Json;

/// When what was written is safe from a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before a delivery is accepted: nothing accepted is lost with the machine. Costs an fsync a delivery.
    EachDelivery,
    /// When the system sees fit: a crash of the process loses nothing, one of the machine may.
    Never,
}

/// Bytes read at a time when looking for the last line's end.
const TAIL: u64 = 64 * 1024;

/// Appends to one file, which no other sink or process may write. It is never rotated.
#[derive(Debug, Clone)]
pub struct FileSink {
    file: Arc<Mutex<State>>,
    fsync: Fsync,
    json: Json,
}

#[derive(Debug)]
struct State {
    file: File,
    /// The end of the last whole delivery: where the next one goes, also after a write that failed half-way.
    end: u64,
}

impl FileSink {
    /// Opens or makes the file, locks it until the last clone is dropped, and cuts off a torn last line. Blocks for as long as that
    /// takes.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened, read or cut, or if another has it locked ([`io::ErrorKind::WouldBlock`]).
    pub fn open(path: &Path, fsync: Fsync, json: Json) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        // Before anything is cut: what looks torn may be a line that another is writing.
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process or sink writes this file, give each its own",
            ),
            TryLockError::Error(error) => error,
        })?;
        let end = whole_lines(&mut file)?;
        file.set_len(end)?;
        Ok(Self { file: Arc::new(Mutex::new(State { file, end })), fsync, json })
    }

    /// The same file with other lines, such as those of another table.
    pub fn writing(&self, json: Json) -> Self {
        Self { file: self.file.clone(), fsync: self.fsync, json }
    }
}

/// Where the last whole line ends.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    while end > 0 {
        let start = end.saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.take(end - start).read_to_end(&mut tail)?;
        if let Some(at) = tail.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

impl State {
    fn append(&mut self, text: &[u8], fsync: Fsync) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.end))?;
        let written = self.file.write_all(text).and_then(|()| match fsync {
            Fsync::EachDelivery => self.file.sync_data(),
            Fsync::Never => Ok(()),
        });
        match written {
            Ok(()) => self.end += text.len() as u64,
            // Best effort: the next delivery overwrites it, and opening cuts what is torn.
            Err(_) => drop(self.file.set_len(self.end)),
        }
        written
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let (file, fsync) = (self.file.clone(), self.fsync);
        let text = self.json.lines(delivery);
        // In one piece on a thread of its own: a caller that is dropped cannot tear it.
        let write = tokio::task::spawn_blocking(move || file.lock().append(&text, fsync));
        let outcome = write.await.map_err(|_| SinkError("the writing thread failed".into()))?;
        outcome.map_err(|error| SinkError(format!("the file cannot be written: {error}")))
    }
}
