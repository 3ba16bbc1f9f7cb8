//! The bytes of a snapshot file.
//!
//! ```text
//! magic 8 │ version u32 │ saved at, ms u64 │ applied u64 │ journal id, text │ token, text │ bounded u8
//! records: 'f' bucket u32, epoch u64
//!          'p' attached u8, placement 19, key text           (the placement's cell: its place among the cells)
//!          'c' id text, region text, endpoint text, state u8, labels u32 × (text, text),
//!          tables: length u32 (0: none) and the API's message
//!          'r' reached u64
//! 'e' records u64 │ XXH3-64 of all before
//! ```
//! Numbers are little-endian; a text is its length as u32 and its bytes. The checksum is verified before anything is believed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use cells_map::Packed;
use prost::Message;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::cells::{Cell, CellState};
use crate::follower::Position;
use crate::held::Held;
use crate::proto;

const MAGIC: [u8; 8] = *b"cellsnap";
/// Raised with every change of the format; others are not read.
pub(crate) const VERSION: u32 = 2;
const CHECKSUM: usize = 8;

pub(super) struct Contents {
    pub saved_at_ms: u64,
    /// Whether a bounded memory has written it.
    pub bounded: bool,
    pub position: Position,
    pub floors: Vec<(u32, u64)>,
    pub placements: Vec<(Box<str>, Held, bool)>,
    pub cells: Vec<Cell>,
}

pub(super) struct Writer {
    file: BufWriter<File>,
    hash: Xxh3,
    records: u64,
}

impl Writer {
    pub fn new(file: File) -> Self {
        Self { file: BufWriter::with_capacity(1 << 20, file), hash: Xxh3::new(), records: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.put(&length.to_le_bytes())?;
        self.put(text.as_bytes())
    }

    pub fn header(
        &mut self,
        saved_at_ms: u64,
        position: &Position,
        bounded: bool,
    ) -> io::Result<()> {
        self.put(&MAGIC)?;
        self.put(&VERSION.to_le_bytes())?;
        self.put(&saved_at_ms.to_le_bytes())?;
        self.put(&position.applied.to_le_bytes())?;
        self.text(&position.journal_id)?;
        self.text(&position.token)?;
        self.put(&[u8::from(bounded)])
    }

    pub fn floor(&mut self, bucket: u32, epoch: u64) -> io::Result<()> {
        self.records += 1;
        self.put(b"f")?;
        self.put(&bucket.to_le_bytes())?;
        self.put(&epoch.to_le_bytes())
    }

    pub fn reached(&mut self, sequence: u64) -> io::Result<()> {
        self.records += 1;
        self.put(b"r")?;
        self.put(&sequence.to_le_bytes())
    }

    pub fn placement(&mut self, key: &str, held: &Held, attached: bool) -> io::Result<()> {
        self.records += 1;
        let mut packed = [0; Held::BYTES];
        held.pack(&mut packed);
        self.put(&[b'p', u8::from(attached)])?;
        self.put(&packed)?;
        self.text(key)
    }

    pub fn cell(&mut self, cell: &Cell) -> io::Result<()> {
        self.records += 1;
        self.put(b"c")?;
        self.text(&cell.id)?;
        self.text(&cell.region)?;
        self.text(&cell.endpoint)?;
        let state = match cell.state {
            CellState::Unknown => 0,
            CellState::Active => 1,
            CellState::Cordoned => 2,
            CellState::Draining => 3,
            CellState::Quarantined => 4,
            CellState::Retired => 5,
        };
        self.put(&[state])?;
        self.put(&u32::try_from(cell.labels.len()).map_err(io::Error::other)?.to_le_bytes())?;
        for (key, value) in &cell.labels {
            self.text(key)?;
            self.text(value)?;
        }
        let tables = cell.tables.as_ref().map(|tables| tables.encode_to_vec()).unwrap_or_default();
        let length = u32::try_from(tables.len()).map_err(io::Error::other)?;
        self.put(&length.to_le_bytes())?;
        self.put(&tables)
    }

    pub fn finish(mut self) -> io::Result<File> {
        let records = self.records;
        self.put(b"e")?;
        self.put(&records.to_le_bytes())?;
        self.file.write_all(&self.hash.digest().to_le_bytes())?;
        self.file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Everything, or why not.
    pub fn read(bytes: &'a [u8]) -> Result<Contents, String> {
        let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM>() else {
            return Err("it is too short".into());
        };
        if !body.starts_with(&MAGIC) {
            return Err("it is no snapshot file".into());
        }
        let mut reader = Self(&body[MAGIC.len()..]);
        let version = reader.u32()?;
        if version != VERSION {
            return Err(format!("it is of version {version}, not {VERSION}"));
        }
        if xxh3_64(body).to_le_bytes() != *checksum {
            return Err("its checksum is wrong".into());
        }
        reader.contents()
    }

    fn contents(mut self) -> Result<Contents, String> {
        let saved_at_ms = self.u64()?;
        let applied = self.u64()?;
        let (journal_id, token) = (self.text()?.to_owned(), self.text()?.to_owned());
        let bounded = self.u8()? == 1;
        let position = Position { attached: true, journal_id, applied, token, reached: 0 };
        let mut contents = Contents {
            saved_at_ms,
            bounded,
            position,
            floors: Vec::new(),
            placements: Vec::new(),
            cells: Vec::new(),
        };
        let mut records = 0;
        loop {
            match self.u8()? {
                b'f' => contents.floors.push((self.u32()?, self.u64()?)),
                b'p' => {
                    let attached = self.u8()? == 1;
                    let held = Held::unpack(self.take(Held::BYTES)?);
                    contents.placements.push((self.text()?.into(), held, attached));
                }
                b'r' => contents.position.reached = self.u64()?,
                b'c' => contents.cells.push(self.cell()?),
                b'e' if self.u64()? == records && self.0.is_empty() => return check(contents),
                _ => return Err("it holds what no writer wrote".into()),
            }
            records += 1;
        }
    }

    fn cell(&mut self) -> Result<Cell, String> {
        let (id, region, endpoint) =
            (self.text()?.into(), self.text()?.into(), self.text()?.into());
        let state = match self.u8()? {
            1 => CellState::Active,
            2 => CellState::Cordoned,
            3 => CellState::Draining,
            4 => CellState::Quarantined,
            5 => CellState::Retired,
            _ => CellState::Unknown,
        };
        let mut labels = BTreeMap::new();
        for _ in 0..self.u32()? {
            labels.insert(self.text()?.to_owned(), self.text()?.to_owned());
        }
        let length = self.u32()? as usize;
        let tables = match self.take(length)? {
            [] => None,
            bytes => {
                let tables = proto::CellTables::decode(bytes).map_err(|error| error.to_string())?;
                Some(Arc::new(tables))
            }
        };
        Ok(Cell { id, region, endpoint, labels, state, tables })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it ends too soon")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u32()? as usize;
        std::str::from_utf8(self.take(length)?).map_err(|error| error.to_string())
    }
}

fn check(contents: Contents) -> Result<Contents, String> {
    let known = contents.cells.len();
    match contents.placements.iter().all(|(_, held, _)| (held.cell.to_bits() as usize) < known) {
        true => Ok(contents),
        false => Err("a placement names a cell that it does not hold".into()),
    }
}
