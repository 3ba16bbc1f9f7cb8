//! What happened, in the words of the checker (`checker/history.go`): one line a fact.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Resolve that assigns if missing.
    Resolve,
    /// Resolve that only looks up.
    Lookup,
    /// GetPlacement.
    Get,
    Pin,
    Delete,
    /// The table itself, when everything has come to rest.
    Final,
}

impl Kind {
    pub fn writes(self) -> bool {
        matches!(self, Kind::Resolve | Kind::Pin | Kind::Delete)
    }
}

/// What came of it, as far as that says something of the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Ok,
    NotFound,
    Exists,
    EpochMismatch,
    EpochNotReached,
    /// Took effect, or will, or never does.
    Unknown,
    /// Of a final read: no placement, and the epoch of the last one.
    Vacated,
}

/// An operation on one key.
#[derive(Debug, Clone, Serialize)]
pub struct Op {
    pub id: usize,
    pub client: usize,
    pub key: String,
    pub op: Kind,
    /// The cell to pin to.
    pub cell: String,
    /// The least epoch to take, or the only one to delete; 0: any.
    pub epoch: u64,
    /// The process that was asked last.
    pub replica: String,
    pub call: u64,
    #[serde(rename = "return")]
    pub back: Option<u64>,
    pub outcome: Outcome,
    pub got_cell: String,
    pub got_epoch: u64,
    pub source: &'static str,
    pub age: u64,
    pub repeatable: bool,
}

impl Op {
    /// An operation that begins now.
    pub fn new(client: usize, key: &str, op: Kind, call: u64) -> Self {
        Self {
            id: 0,
            client,
            key: key.to_owned(),
            op,
            cell: String::new(),
            epoch: 0,
            replica: String::new(),
            call,
            back: None,
            outcome: Outcome::Unknown,
            got_cell: String::new(),
            got_epoch: 0,
            source: "",
            age: 0,
            repeatable: false,
        }
    }
}

/// A placement's change, out of the journal.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    pub sequence: u64,
    pub change: String,
    pub key: String,
    pub cell: String,
    pub epoch: u64,
}

/// A journal entry without its changes.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub sequence: u64,
    pub nonce: String,
}

/// What the tables say at the end, apart from placements.
#[derive(Debug, Clone, Serialize)]
pub struct Tables {
    pub head: u64,
    pub counts: BTreeMap<String, u64>,
    pub entries: Vec<Entry>,
}

/// A fault, from when to when.
#[derive(Debug, Clone, Serialize)]
struct Fault {
    what: String,
    from: u64,
    to: u64,
}

/// An attempt of which nothing may have come, for whoever looks at a history.
#[derive(Debug, Clone, Serialize)]
struct Nothing {
    op: Op,
    why: String,
}

/// How operations ended, those included that say nothing of the tenant and so are in no history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// An answer, or a refusal that says what is.
    Known,
    /// Answered from memory.
    Remembered,
    /// "Nothing was changed": not in the history, so if it is not true, the history is wrong.
    Nothing,
    /// The connection was not even made.
    NotSent,
    Unknown,
}

#[derive(Default)]
struct Recorded {
    ops: Vec<Op>,
    changes: Vec<Change>,
    faults: Vec<Fault>,
    nothings: Vec<Nothing>,
    tables: Option<Tables>,
    ends: BTreeMap<(Kind, End), usize>,
    /// Answers that no history may hold.
    unexpected: Vec<String>,
}

/// A history in the making. All times are nanoseconds of its one clock.
pub struct Recorder {
    origin: Instant,
    recorded: Mutex<Recorded>,
}

impl Recorder {
    pub fn new() -> Self {
        Self { origin: Instant::now(), recorded: Mutex::default() }
    }

    pub fn now(&self) -> u64 {
        self.origin.elapsed().as_nanos().try_into().expect("five centuries")
    }

    pub fn op(&self, op: Op) {
        let ops = &mut self.recorded.lock().ops;
        let id = ops.len();
        ops.push(Op { id, ..op });
    }

    /// An attempt that was answered with the promise that nothing was changed, or that was not sent.
    pub fn nothing(&self, op: Op, why: String) {
        self.recorded.lock().nothings.push(Nothing { op, why });
    }

    pub fn end(&self, kind: Kind, end: End) {
        *self.recorded.lock().ends.entry((kind, end)).or_default() += 1;
    }

    pub fn unexpected(&self, what: String) {
        self.recorded.lock().unexpected.push(what);
    }

    pub fn fault(&self, what: String, from: u64) {
        let to = self.now();
        self.recorded.lock().faults.push(Fault { what, from, to });
    }

    pub fn tables(&self, tables: Tables, changes: Vec<Change>) {
        let mut recorded = self.recorded.lock();
        recorded.tables = Some(tables);
        recorded.changes = changes;
    }

    /// Writes it all down.
    pub fn write(&self, seed: u64, path: &Path) {
        let recorded = self.recorded.lock();
        let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
        let mut line = |name: &str, value: serde_json::Value| {
            writeln!(file, "{}", serde_json::json!({ name: value })).unwrap();
        };
        line("run", serde_json::json!({ "seed": seed }));
        recorded.faults.iter().for_each(|fault| line("fault", serde_json::json!(fault)));
        recorded.nothings.iter().for_each(|nothing| line("nothing", serde_json::json!(nothing)));
        recorded.ops.iter().for_each(|op| line("op", serde_json::json!(op)));
        recorded.changes.iter().for_each(|change| line("change", serde_json::json!(change)));
        recorded.tables.iter().for_each(|tables| line("tables", serde_json::json!(tables)));
        file.flush().unwrap();
    }

    pub fn totals(&self, took: Duration) -> Totals {
        let recorded = self.recorded.lock();
        Totals { took, ends: recorded.ends.clone(), unexpected: recorded.unexpected.clone() }
    }
}

/// What a run came to in numbers.
#[derive(Debug, Clone)]
pub struct Totals {
    pub took: Duration,
    pub ends: BTreeMap<(Kind, End), usize>,
    pub unexpected: Vec<String>,
}

impl Totals {
    pub fn count(&self, wanted: impl Fn(Kind, End) -> bool) -> usize {
        let counted = self.ends.iter().filter(|((kind, end), _)| wanted(*kind, *end));
        counted.map(|(_, count)| count).sum()
    }

    /// Operations a second that were answered.
    pub fn rate(&self) -> f64 {
        let answered = self.count(|_, end| matches!(end, End::Known | End::Remembered));
        answered as f64 / self.took.as_secs_f64()
    }

    /// The share of writes whose outcome nobody knows. A Resolve that memory answered is none, nor what was never sent.
    pub fn ambiguous(&self) -> f64 {
        let unknown = self.count(|kind, end| kind.writes() && end == End::Unknown);
        let writes = self.count(|kind, end| {
            kind.writes() && matches!(end, End::Known | End::Nothing | End::Unknown)
        });
        unknown as f64 / writes.max(1) as f64
    }
}
