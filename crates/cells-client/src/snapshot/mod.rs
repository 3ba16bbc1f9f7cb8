//! The snapshot file: what the next process answers before any replica has answered it.
//!
//! Invariants:
//! - The file is there as a whole or not at all: written aside, flushed, renamed, and the folder flushed.
//! - It says a position first and the placements after it. Memory goes on changing while it is written, so placements may be ahead of
//!   the position; following the journal from the position brings both together, as with any snapshot.
//! - Nothing in it carries a lease.
//! - A file that cannot be used costs a warning and nothing else.

mod codec;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::codec::{Contents, Reader, Writer};
use crate::directory::Core;
use crate::follower::{Export, Position};
use crate::memory::attached;
use crate::picture::{Picture, Shared};

/// A larger file is not read: some hundred million placements.
const MAX_FILE_BYTES: u64 = 16 << 30;
/// The generation of the picture that a file makes: the first that is attached.
const GENERATION: u32 = 2;

/// Writes the file, where the option is set.
pub(crate) fn save(core: &Core) -> io::Result<()> {
    let Some(path) = &core.options.snapshot else { return Ok(()) };
    let _alone = core.saving.lock();
    // The position first: see the module.
    let export = core.follower.lock().export();
    // Who never followed a journal has nothing that is worth keeping, and may stand before a file that has.
    if !export.position.attached {
        return Ok(());
    }
    write(path, &export, &core.shared, || core.follower.lock().position().applied)
}

/// `reached`: the position at the time of the call.
pub(crate) fn write(
    path: &Path,
    export: &Export,
    shared: &Shared,
    reached: impl FnOnce() -> u64,
) -> io::Result<()> {
    let Export { position, picture, ahead } = export;
    let aside = aside(path);
    let mut writer = Writer::new(File::create(&aside)?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // What was never confirmed is as old as its own file.
    let unconfirmed = picture.saved_at.filter(|_| picture.as_of() == crate::clock::Moment::NEVER);
    let saved_at =
        unconfirmed.map_or(now, |at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    writer.header(
        u64::try_from(saved_at.as_millis()).unwrap_or(u64::MAX),
        position,
        picture.memory.is_bounded(),
    )?;
    let mut outcome = Ok(());
    for portion in 0..picture.memory.portions() {
        picture.memory.visit(portion, picture.generation, |key, held, generation| {
            if outcome.is_ok() {
                let exact = attached(generation, picture.generation) && !ahead.contains(key);
                outcome = writer.placement(key, &held, exact);
            }
        });
    }
    outcome?;
    writer.reached(reached().max(position.reached))?;
    // After the placements: what is evicted meanwhile is in the one or the other.
    for (bucket, epoch) in shared.floors.raised() {
        writer.floor(bucket, epoch)?;
    }
    // Last: every placement's cell is among them.
    for cell in shared.cells.all() {
        writer.cell(&cell)?;
    }
    let mut file = writer.finish()?;
    file.flush()?;
    file.sync_all()?;
    drop(file);
    fs::rename(&aside, path)?;
    sync_folder(path)
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// The rename is on disk once its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix)
        && let Some(folder) = path.parent()
    {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Puts what the file holds in place, as far as it can be used.
pub(crate) fn load(path: &Path, shared: &Shared) -> Option<Position> {
    match read(path) {
        Ok(Some(contents)) if contents.bounded == shared.picture.load().memory.is_bounded() => {
            place(contents, shared)
        }
        Ok(Some(_)) => {
            tracing::warn!(path = %path.display(), "the snapshot file is of the other mode; going on without it");
            None
        }
        Ok(None) => None,
        Err(problem) => {
            tracing::warn!(path = %path.display(), %problem, "the snapshot file cannot be used; going on without it");
            None
        }
    }
}

fn read(path: &Path) -> Result<Option<Contents>, String> {
    let length = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if length > MAX_FILE_BYTES {
        return Err(format!("it has {length} bytes, more than {MAX_FILE_BYTES}"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    Reader::read(&bytes).map(Some)
}

fn place(contents: Contents, shared: &Shared) -> Option<Position> {
    let cells: Option<Vec<_>> =
        contents.cells.iter().map(|cell| shared.cells.intern(&cell.id)).collect();
    let cells = cells?;
    for cell in contents.cells {
        shared.cells.update(cell, 0);
    }
    for (bucket, epoch) in contents.floors {
        shared.floors.restore(bucket, epoch);
    }
    let memory = shared.picture.load().memory.clone();
    for (key, held, attached) in contents.placements {
        // Checked by the reader; a number out of range would name no cell.
        let Some(cell) = cells.get(held.cell.to_bits() as usize) else { continue };
        memory.put(&key, held.in_cell(*cell), if attached { GENERATION } else { GENERATION | 1 });
    }
    let saved_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(contents.saved_at_ms));
    let saved_at = saved_at.or(Some(SystemTime::UNIX_EPOCH));
    tracing::info!(
        placements = memory.len(),
        sequence = contents.position.applied,
        "answering from the snapshot file"
    );
    shared.picture.store(Arc::new(Picture::new(memory, GENERATION, saved_at)));
    Some(contents.position)
}
