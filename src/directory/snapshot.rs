//! The file in which a replica saves what it holds: its form, and nothing else.
//!
//! ```text
//!   magic "celldsnp" │ version: u32 │ length: u32, header: JSON          journal, sequence, time of the last proof, tables, cells, settings
//!   placement ...                   a key's length (varint, never 0), the key, then
//!                                   cell (varint: its number in the order of first mention; a new one is followed by its length and id)
//!                                   epoch (varint), flags (u8), and the times that the flags tell of (zigzag varints, milliseconds after the proof)
//!   0 │ complete: u8 │ placements: u64                                    the end
//!   XXH3 64 of all that: u64                                              numbers of fixed size are little-endian
//! ```
//!
//! Two readings: one that only checks the sum over the whole file, and a second one that takes something in. So nothing of a file that is
//! damaged, cut short or of another version is ever believed, and no length that it claims is allocated before that many bytes were
//! read. A file that passes the sum and still makes no sense is refused, too.

use std::collections::HashMap;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Take, Write};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::memory::{CellName, Residence};
use super::registry::Registry;
use crate::domain::{
    Cell, CellId, Cluster, Epoch, PartitionKey, PlacementEvent, Sequence, Timestamp, WriteMode,
};
use crate::store::Head;

const MAGIC: [u8; 8] = *b"celldsnp";
/// Raised with every change of the form: a file of another version is not read.
const VERSION: u32 = 1;
/// Magic, version.
const PREFIX: usize = 8 + 4;
const SUM: u64 = 8;
/// Longest header: some hundred thousand cells.
const MAX_HEADER: usize = 1 << 28;
/// How much is read at once.
const BUFFER: usize = 1 << 18;

/// Flags of a placement.
mod flag {
    pub const LOGGED: u8 = 1;
    /// The event, in three bits.
    pub const EVENT: u8 = 1;
    pub const CREATED: u8 = 1 << 4;
    pub const UPDATED: u8 = 1 << 5;
    /// Updated when it was created, which most are.
    pub const UNCHANGED: u8 = 1 << 6;
    pub const EXPIRES: u8 = 1 << 7;
}

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no snapshot")]
    NoSnapshot,
    #[error("it has version {0}, and this celld reads version {VERSION}")]
    Version(u32),
    #[error("it is cut short")]
    CutShort,
    #[error("its checksum does not match")]
    Damaged,
    #[error("it makes no sense: {0}")]
    Senseless(&'static str),
    #[error("it is of other tables: {0}")]
    OtherTables(String),
}

/// What a file says besides the placements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Which tables it was read from.
    pub tables: String,
    /// The wall clock's time of the last proof: all was current as of then.
    pub proven: Timestamp,
    /// The cells as of the entry up to which everything is taken in. Placements may be ahead of it.
    pub registry: Registry,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderRecord {
    tables: String,
    proven: i64,
    journal: String,
    sequence: Sequence,
    cells: Vec<Cell>,
    cluster: Cluster,
}

impl Header {
    fn encode(&self) -> io::Result<Vec<u8>> {
        let registry = &self.registry;
        let record = HeaderRecord {
            tables: self.tables.clone(),
            proven: self.proven.millis(),
            journal: registry.journal().to_string(),
            sequence: registry.applied(),
            cells: registry.cells().map(|cell| Cell::clone(cell)).collect(),
            cluster: registry.cluster().clone(),
        };
        Ok(serde_json::to_vec(&record)?)
    }

    fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let senseless = SnapshotError::Senseless;
        let record: HeaderRecord =
            serde_json::from_slice(bytes).map_err(|_| senseless("its header cannot be read"))?;
        let journal = record.journal.parse().map_err(|_| senseless("its journal has no id"))?;
        let proven = Timestamp::from_millis(record.proven);
        Ok(Self {
            tables: record.tables,
            proven: proven.ok_or(senseless("its time is out of range"))?,
            registry: Registry::load(
                Head { journal, sequence: record.sequence },
                record.cells,
                record.cluster,
            ),
        })
    }
}

/// What a file says at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// These are all placements of the table.
    pub complete: bool,
    pub placements: u64,
}

/// Writes a file.
pub struct SnapshotWriter<W> {
    to: W,
    sum: Xxh3,
    buffer: Vec<u8>,
    proven: i64,
    cells: HashMap<&'static str, u64>,
    placements: u64,
}

impl<W: Write> SnapshotWriter<W> {
    /// # Errors
    /// Those of `to`, as of the other methods.
    pub fn begin(to: W, header: &Header) -> io::Result<Self> {
        let json = header.encode()?;
        let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_HEADER);
        let length = length.ok_or_else(|| io::Error::other("too many cells for a snapshot"))?;
        let mut writer = Self {
            to,
            sum: Xxh3::new(),
            buffer: Vec::with_capacity(BUFFER),
            proven: header.proven.millis(),
            cells: HashMap::new(),
            placements: 0,
        };
        writer.buffer.extend(MAGIC);
        writer.buffer.extend(VERSION.to_le_bytes());
        writer.buffer.extend(length.to_le_bytes());
        writer.buffer.extend(json);
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a placement, in memory: nothing waits for the disk while a lock is held.
    pub fn put(&mut self, key: &str, residence: &Residence) {
        let known = self.cells.len() as u64;
        let name = residence.cell.id().as_str();
        let cell = *self.cells.entry(name).or_insert(known);
        self.varint(key.len() as u64);
        self.buffer.extend(key.as_bytes());
        self.varint(cell);
        if cell == known {
            self.varint(name.len() as u64);
            self.buffer.extend(name.as_bytes());
        }
        self.varint(residence.epoch.get());
        let Residence { created, updated, expires, .. } = *residence;
        let unchanged = updated.is_some() && updated == created;
        let mut flags = (residence.began_by as u8) << flag::EVENT;
        for (bit, set) in [
            (flag::LOGGED, residence.write_mode == WriteMode::Logged),
            (flag::CREATED, created.is_some()),
            (flag::UNCHANGED, unchanged),
            (flag::UPDATED, updated.is_some() && !unchanged),
            (flag::EXPIRES, expires.is_some()),
        ] {
            flags |= if set { bit } else { 0 };
        }
        self.buffer.push(flags);
        for time in [created, updated.filter(|_| !unchanged), expires].into_iter().flatten() {
            let after = time.millis() - self.proven;
            self.varint((after << 1 ^ after >> 63).cast_unsigned());
        }
        self.placements += 1;
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.buffer.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.buffer.push(number as u8);
    }

    /// Writes what was added.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sum.update(&self.buffer);
        self.to.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// How much waits for [`SnapshotWriter::flush`].
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Writes the end. Answers what was written to, and how many placements there are.
    pub fn finish(mut self, complete: bool) -> io::Result<(W, u64)> {
        self.buffer.push(0);
        self.buffer.push(u8::from(complete));
        self.buffer.extend(self.placements.to_le_bytes());
        self.flush()?;
        self.to.write_all(&self.sum.digest().to_le_bytes())?;
        self.to.flush()?;
        Ok((self.to, self.placements))
    }
}

/// Reads a file whose sum is right.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    header: Header,
    from: BufReader<Take<R>>,
}

impl<R: Read + Seek> SnapshotReader<R> {
    /// Reads the whole file to check it, and then its header.
    ///
    /// # Errors
    /// Why the file is not believed.
    pub fn open(mut from: R) -> Result<Self, SnapshotError> {
        let content = check(&mut from)?;
        from.seek(SeekFrom::Start(PREFIX as u64))?;
        let left = content - PREFIX as u64;
        let mut from = BufReader::with_capacity(BUFFER, from.take(left));
        let length = u32::from_le_bytes(array(&mut from)?) as usize;
        if length > MAX_HEADER {
            return Err(SnapshotError::Senseless("its header is too long"));
        }
        let mut json = Vec::new();
        from.by_ref().take(length as u64).read_to_end(&mut json)?;
        if json.len() < length {
            return Err(SnapshotError::Senseless("its header is too long"));
        }
        Ok(Self { header: Header::decode(&json)?, from })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Hands all placements on.
    ///
    /// # Errors
    /// What makes no sense; what was handed on until then must not be believed either.
    pub fn placements(
        mut self,
        mut take: impl FnMut(&PartitionKey, Residence),
    ) -> Result<(Header, Footer), SnapshotError> {
        let senseless = SnapshotError::Senseless;
        let from = &mut self.from;
        let proven = self.header.proven.millis();
        let mut names = Vec::new();
        let mut placements = 0;
        let mut text = Vec::new();
        loop {
            let length = varint(from)?;
            if length == 0 {
                break;
            }
            let key = string(from, length, PartitionKey::MAX_BYTES, &mut text)?;
            let key = PartitionKey::new(key).map_err(|_| senseless("a key is none"))?;
            let number = varint(from)?;
            if number == names.len() as u64 {
                let length = varint(from)?;
                let id = CellId::new(string(from, length, PartitionKey::MAX_BYTES, &mut text)?);
                names.push(CellName::of(&id.map_err(|_| senseless("a cell's id is none"))?));
            }
            let cell = usize::try_from(number).ok().and_then(|number| names.get(number));
            let cell = *cell.ok_or(senseless("a cell has no name"))?;
            let epoch = Epoch::new(varint(from)?).ok_or(senseless("an epoch is 0"))?;
            let [flags] = array(from)?;
            let began_by = PlacementEvent::ALL.get(usize::from(flags >> flag::EVENT & 0b111));
            let mut time = |bit: u8| match flags & bit {
                0 => Ok(None),
                _ => {
                    let coded = varint(from)?;
                    let after = (coded >> 1).cast_signed() ^ -(coded & 1).cast_signed();
                    let time = proven.checked_add(after).and_then(Timestamp::from_millis);
                    time.map(Some).ok_or(senseless("a time is out of range"))
                }
            };
            let created = time(flag::CREATED)?;
            let updated = time(flag::UPDATED)?;
            let residence = Residence {
                cell,
                epoch,
                write_mode: match flags & flag::LOGGED {
                    0 => WriteMode::Direct,
                    _ => WriteMode::Logged,
                },
                began_by: *began_by.ok_or(senseless("an event is unknown"))?,
                created,
                updated: if flags & flag::UNCHANGED == 0 { updated } else { created },
                expires: time(flag::EXPIRES)?,
            };
            take(&key, residence);
            placements += 1;
        }
        let [complete] = array(from)?;
        let footer = Footer { complete: complete == 1, placements };
        if complete > 1 || u64::from_le_bytes(array(from)?) != placements {
            return Err(senseless("its end does not match"));
        }
        match from.read(&mut [0])? {
            0 => Ok((self.header, footer)),
            _ => Err(senseless("something comes after its end")),
        }
    }
}

/// Checks magic, version and sum. Answers how long the content is, without the sum.
fn check<R: Read + Seek>(from: &mut R) -> Result<u64, SnapshotError> {
    let length = from.seek(SeekFrom::End(0))?;
    from.rewind()?;
    let content = length.checked_sub(SUM).filter(|content| *content >= PREFIX as u64);
    let content = content.ok_or(SnapshotError::CutShort)?;
    let prefix: [u8; PREFIX] = array(from)?;
    let Some(version) = prefix.strip_prefix(&MAGIC) else {
        return Err(SnapshotError::NoSnapshot);
    };
    let version = version.try_into().map_or(0, u32::from_le_bytes);
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    let mut sum = Xxh3::new();
    sum.update(&prefix);
    let mut left = content - PREFIX as u64;
    let mut buffer = vec![0; BUFFER];
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..most]) {
            Ok(0) => return Err(SnapshotError::CutShort),
            Ok(read) => {
                sum.update(&buffer[..read]);
                left -= read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    match u64::from_le_bytes(array(from)?) == sum.digest() {
        true => Ok(content),
        false => Err(SnapshotError::Damaged),
    }
}

fn array<const N: usize>(from: &mut impl Read) -> Result<[u8; N], SnapshotError> {
    let mut bytes = [0; N];
    match from.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(SnapshotError::CutShort),
        Err(error) => Err(error.into()),
    }
}

fn varint(from: &mut impl Read) -> Result<u64, SnapshotError> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = array(from)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            break;
        }
        number |= bits << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(SnapshotError::Senseless("a number is too large"))
}

fn string<'a>(
    from: &mut impl Read,
    length: u64,
    longest: usize,
    text: &'a mut Vec<u8>,
) -> Result<&'a str, SnapshotError> {
    let length = usize::try_from(length).ok().filter(|length| *length <= longest);
    let length = length.ok_or(SnapshotError::Senseless("a text is too long"))?;
    text.resize(length, 0);
    match from.read_exact(text) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(SnapshotError::CutShort);
        }
        Err(error) => return Err(error.into()),
    }
    std::str::from_utf8(text).map_err(|_| SnapshotError::Senseless("a text is not UTF-8"))
}

#[cfg(test)]
mod tests;
