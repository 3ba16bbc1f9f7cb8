//! Where changes of items are sent: the tables `[[event_sinks]]` of the file.
//!
//! A list of tables has no sensible spelling as a flag or as one variable, so the file is its only layer. The rest holds as for every
//! key: what nobody understands is an error that names the key, and no secret reaches an error, `Debug` or `config show`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use cells_streams::GroupName;
use http::{HeaderName, HeaderValue};
use toml::{Table, Value};

use super::keys::{self, HttpUrl, Secret, bound};
use super::{Origin, Problem, escaped};

/// The key of the list.
pub(super) const KEY: &str = "event_sinks";

/// Sinks of one process. Each is a reader of every shard, and a shard bears two.
const MAX_SINKS: usize = 8;
/// Cells or tables that one sink names, and headers that one sends.
const MAX_NAMES: usize = 1_000;
const MAX_HEADERS: usize = 32;

const KEYS: [&str; 11] = [
    "group", "kind", "cells", "tables", "start", "images", "file", "url", "endpoint", "headers",
    "timeout",
];

/// One sink: which changes go where.
#[derive(Clone, Debug, PartialEq)]
pub struct EventSink {
    /// Replicas with the same group share the work; no two sinks have the same.
    pub group: GroupName,
    pub target: SinkTarget,
    /// `None`: every cell.
    pub cells: Option<Vec<String>>,
    /// By their names in the table set. `None`: every table that has a stream.
    pub tables: Option<Vec<String>>,
    /// Whether a new group begins with what is changed from now on, and not with the oldest change that the stream has.
    pub latest: bool,
    /// Whether the items before and after a change are sent.
    pub images: bool,
}

/// Where to, and how.
#[derive(Clone, Debug, PartialEq)]
pub enum SinkTarget {
    /// JSON lines, appended to a file that no other process writes.
    Ndjson { file: PathBuf },
    /// A POST of JSON lines for each delivery.
    Webhook { url: HttpUrl, headers: BTreeMap<String, Secret>, timeout: Duration },
    /// A log record for each change. `endpoint`: `None` for that of the configuration as a whole.
    Otlp { endpoint: Option<HttpUrl>, headers: BTreeMap<String, Secret>, timeout: Duration },
}

impl EventSink {
    /// `ndjson`, `webhook` or `otlp`.
    pub fn kind(&self) -> &'static str {
        match self.target {
            SinkTarget::Ndjson { .. } => "ndjson",
            SinkTarget::Webhook { .. } => "webhook",
            SinkTarget::Otlp { .. } => "otlp",
        }
    }
}

/// Reads the list; what is wrong goes to `problems`.
pub(super) fn read(value: Value, origin: &Origin, problems: &mut Vec<Problem>) -> Vec<EventSink> {
    let mut refuse = |key: String, message: String| {
        problems.push(Problem { key, origin: origin.clone(), message });
    };
    let Value::Array(list) = value else {
        let found = value.type_str();
        refuse(KEY.to_owned(), format!("expected [[{KEY}]] tables, found {found}"));
        return Vec::new();
    };
    if list.len() > MAX_SINKS {
        refuse(KEY.to_owned(), format!("expected at most {MAX_SINKS} sinks, found {}", list.len()));
        return Vec::new();
    }
    let mut sinks: Vec<EventSink> = Vec::new();
    for (number, value) in list.into_iter().enumerate() {
        let at = format!("{KEY}[{number}]");
        let Value::Table(table) = value else {
            refuse(at, format!("expected a [[{KEY}]] table, found {}", value.type_str()));
            continue;
        };
        let mut fields = Fields { table, at, problems: Vec::new() };
        let sink = fields.sink();
        for (key, message) in fields.problems {
            refuse(key, message);
        }
        let Some(sink) = sink else { continue };
        let at = format!("{KEY}[{number}]");
        if sinks.iter().any(|other| other.group == sink.group) {
            let message = "is another sink's too: consumers of a group share the changes, so give each sink its own";
            refuse(format!("{at}.group"), message.to_owned());
        }
        let same_file = |other: &&EventSink| {
            matches!((&other.target, &sink.target),
            (SinkTarget::Ndjson { file: a }, SinkTarget::Ndjson { file: b }) if a == b)
        };
        if sinks.iter().find(same_file).is_some() {
            let message = "is another sink's too: give each sink its own file";
            refuse(format!("{at}.file"), message.to_owned());
        }
        sinks.push(sink);
    }
    sinks
}

/// One table being read; keys are taken out of it.
struct Fields {
    table: Table,
    at: String,
    /// Key and message.
    problems: Vec<(String, String)>,
}

impl Fields {
    fn sink(&mut self) -> Option<EventSink> {
        let unknown: Vec<_> =
            self.table.keys().filter(|key| !KEYS.contains(&key.as_str())).cloned().collect();
        for key in unknown {
            self.refuse(&key, format!("unknown key; a sink has {}", KEYS.join(", ")));
        }
        let group = self.required("group").and_then(|text| match GroupName::new(text) {
            Ok(group) => Some(group),
            Err(error) => self.none("group", error.to_string()),
        });
        let target = self.target();
        let start = self.choice("start", &["trim_horizon", "latest"]);
        let sink = EventSink {
            group: group?,
            target: target?,
            cells: self.names("cells", keys::cell_id),
            tables: self.names("tables", table_name),
            latest: start.as_deref() == Some("latest"),
            images: self.flag("images"),
        };
        self.problems.is_empty().then_some(sink)
    }

    fn target(&mut self) -> Option<SinkTarget> {
        let Some(kind) = self.choice("kind", &["ndjson", "webhook", "otlp"]) else {
            if self.problems.iter().all(|(key, _)| !key.ends_with(".kind")) {
                self.refuse("kind", "is missing: expected ndjson, webhook or otlp".to_owned());
            }
            return None;
        };
        let misplaced: &[&str] = match kind.as_str() {
            "ndjson" => &["url", "endpoint", "headers", "timeout"],
            "webhook" => &["file", "endpoint"],
            _ => &["file", "url"],
        };
        for key in misplaced {
            if self.table.contains_key(*key) {
                self.refuse(key, format!("is not for a sink of kind {kind}"));
            }
        }
        match kind.as_str() {
            "ndjson" => {
                let file = self.required("file")?;
                Some(SinkTarget::Ndjson { file: PathBuf::from(file) })
            }
            "webhook" => {
                let url = self.required("url").and_then(|text| self.url("url", &text));
                let (headers, timeout) = (self.headers(), self.timeout());
                Some(SinkTarget::Webhook { url: url?, headers, timeout })
            }
            _ => {
                let endpoint = self.text("endpoint").and_then(|text| self.url("endpoint", &text));
                let (headers, timeout) = (self.headers(), self.timeout());
                Some(SinkTarget::Otlp { endpoint, headers, timeout })
            }
        }
    }

    fn refuse(&mut self, key: &str, message: String) {
        self.problems.push((format!("{}.{key}", self.at), message));
    }

    fn none<T>(&mut self, key: &str, message: String) -> Option<T> {
        self.refuse(key, message);
        None
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            Value::String(_) => self.none(key, "expected a value".to_owned()),
            other => {
                self.none(key, format!("expected a text in quotes, found {}", other.type_str()))
            }
        }
    }

    fn required(&mut self, key: &str) -> Option<String> {
        if !self.table.contains_key(key) {
            return self.none(key, "is missing".to_owned());
        }
        self.text(key)
    }

    fn choice(&mut self, key: &str, of: &[&str]) -> Option<String> {
        let text = self.text(key)?;
        match of.contains(&text.as_str()) {
            true => Some(text),
            false => self.none(key, format!("bad value {text:?}: expected {}", of.join(" or "))),
        }
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.table.remove(key) {
            None => false,
            Some(Value::Boolean(flag)) => flag,
            Some(other) => {
                let found = other.type_str();
                self.refuse(key, format!("expected true or false, without quotes, found {found}"));
                false
            }
        }
    }

    fn url(&mut self, key: &str, text: &str) -> Option<HttpUrl> {
        match keys::url(text) {
            Ok(url) => Some(url),
            // Not repeated: it may hold a password.
            Err(expected) => self.none(key, format!("bad value: {expected}")),
        }
    }

    fn names(
        &mut self,
        key: &str,
        check: fn(&str) -> Result<String, String>,
    ) -> Option<Vec<String>> {
        let list = match self.table.remove(key)? {
            Value::Array(list) if (1..=MAX_NAMES).contains(&list.len()) => list,
            _ => {
                let message =
                    format!("expected a list of 1 to {MAX_NAMES} texts; leave it out for all");
                return self.none(key, message);
            }
        };
        let mut names = Vec::new();
        for (number, value) in list.iter().enumerate() {
            let at = format!("{key}[{number}]");
            match value.as_str().map(check) {
                Some(Ok(name)) => names.push(name),
                Some(Err(expected)) => self.refuse(&at, format!("bad value: {expected}")),
                None => {
                    let found = value.type_str();
                    self.refuse(&at, format!("expected a text in quotes, found {found}"));
                }
            }
        }
        Some(names)
    }

    fn headers(&mut self) -> BTreeMap<String, Secret> {
        let table = match self.table.remove("headers") {
            None => return BTreeMap::new(),
            Some(Value::Table(table)) if table.len() <= MAX_HEADERS => table,
            Some(_) => {
                let message = format!("expected a table of at most {MAX_HEADERS} texts");
                self.refuse("headers", message);
                return BTreeMap::new();
            }
        };
        let mut headers = BTreeMap::new();
        for (name, value) in table {
            let fits = name.parse::<HeaderName>().is_ok()
                && !name.ends_with("-bin")
                && value.as_str().is_some_and(|text| {
                    // What is not ASCII has no place in gRPC's headers.
                    text.is_ascii() && HeaderValue::from_str(text).is_ok()
                });
            match (fits, value) {
                (true, Value::String(text)) => {
                    headers.insert(name.to_ascii_lowercase(), Secret::new(text));
                }
                _ => {
                    let message = "expected a header's name and its value, an ASCII text in quotes";
                    self.refuse(&format!("headers.{name}"), message.to_owned());
                }
            }
        }
        headers
    }

    fn timeout(&mut self) -> Duration {
        let default = Duration::from_secs(10);
        let Some(text) = self.text("timeout") else { return default };
        match keys::duration(bound::SINK_TIMEOUT)(&text) {
            Ok(timeout) => timeout,
            Err(expected) => {
                self.refuse("timeout", format!("bad value {text:?}: {expected}"));
                default
            }
        }
    }
}

fn table_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    match (1..=255).contains(&text.len()) && text.bytes().all(allowed) {
        true => Ok(text.to_owned()),
        false => Err("expected a table's name: characters of A-Z a-z 0-9 _ . -".to_owned()),
    }
}

/// The sinks as TOML, in a form that parses again. Headers are comments: the file can be used, and sets no secret to its placeholder.
pub(super) fn show(sinks: &[EventSink], origin: &Origin) -> String {
    let mut out = String::new();
    for sink in sinks {
        // Writing to a String cannot fail.
        let _ = write_sink(&mut out, sink, origin);
    }
    out
}

fn write_sink(out: &mut String, sink: &EventSink, origin: &Origin) -> std::fmt::Result {
    let quoted = |text: &str| format!("\"{}\"", escaped(text));
    let list = |names: &[String]| {
        let names: Vec<_> = names.iter().map(|name| quoted(name)).collect();
        format!("[{}]", names.join(", "))
    };
    writeln!(out, "\n[[{KEY}]]  # {origin}")?;
    writeln!(out, "group = {}", quoted(sink.group.as_str()))?;
    writeln!(out, "kind = {}", quoted(sink.kind()))?;
    for (key, names) in [("cells", &sink.cells), ("tables", &sink.tables)] {
        match names {
            Some(names) => writeln!(out, "{key} = {}", list(names))?,
            None => writeln!(out, "# {key} is not set: all")?,
        }
    }
    writeln!(out, "start = {}", quoted(if sink.latest { "latest" } else { "trim_horizon" }))?;
    writeln!(out, "images = {}", sink.images)?;
    let (headers, timeout) = match &sink.target {
        SinkTarget::Ndjson { file } => {
            return writeln!(out, "file = {}", quoted(&file.to_string_lossy()));
        }
        SinkTarget::Webhook { url, headers, timeout } => {
            writeln!(out, "url = {}", quoted(url.as_str()))?;
            (headers, timeout)
        }
        SinkTarget::Otlp { endpoint, headers, timeout } => {
            match endpoint {
                Some(endpoint) => writeln!(out, "endpoint = {}", quoted(endpoint.as_str()))?,
                None => writeln!(out, "# endpoint is not set: otlp_endpoint")?,
            }
            (headers, timeout)
        }
    };
    writeln!(out, "timeout = {}", quoted(&keys::short(*timeout)))?;
    headers.keys().try_for_each(|name| writeln!(out, "# headers.{name} = \"(set)\""))
}

#[cfg(test)]
mod tests;
