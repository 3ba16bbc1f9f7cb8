//! What the contract says of a request: written from the comments in `proto/` and from `docs/errors.md`, not from the code.

use std::collections::HashMap;
use std::sync::LazyLock;

use cell_directory::grpc;
use cell_directory::proto::v1;
use prost::Message;
use prost_reflect::{DynamicMessage, Value};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::Answer;
use crate::generate::{Case, Leaf, leaves, now};
use crate::schema::Method;

type Verdict = Result<(), String>;

/// Reasons and their codes, as documented.
static DOCUMENTED: LazyLock<HashMap<&str, Code>> = LazyLock::new(|| {
    let rows = include_str!("../../docs/errors.md").lines();
    let cells = rows.filter_map(|row| {
        let (reason, rest) = row.strip_prefix("| `")?.split_once("` | ")?;
        Some((reason, code(rest.split_once(" |")?.0)))
    });
    cells.collect()
});

fn code(name: &str) -> Code {
    let codes = (0..=16).map(Code::from_i32);
    // `Code` names itself in camel case.
    let camel = |code: &Code| format!("{code:?}").to_uppercase();
    let plain = name.replace('_', "");
    codes.into_iter().find(|code| camel(code) == plain).unwrap_or_else(|| panic!("no code {name}"))
}

/// What a request on a healthy store can come to.
const POSSIBLE: [Code; 6] = [
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::FailedPrecondition,
    Code::Aborted,
    Code::ResourceExhausted,
];

/// Words that only the inside of the server would use.
const INTERNAL_WORDS: [&str; 9] =
    ["dynamodb", "amazon", "aws", "sdk", "exception", "panicked", ".rs:", "condition", "sqlite"];

/// What is wrong with a request: reason and field.
type Fault = (&'static str, String);

/// Holds an answer against the contract.
pub fn judge(method: &Method, case: &Case, answer: &Answer) -> Verdict {
    match &answer.0 {
        Ok(message) => {
            DynamicMessage::decode(method.response.clone(), message.as_slice())
                .map_err(|error| format!("the answer is not of its type: {error}"))?;
        }
        Err(status) => well_formed(status)?,
    }
    if case.damaged {
        return Ok(());
    }
    let mut request = Request::default();
    for message in &case.messages {
        request.read(method, message);
    }
    let reason = answer.0.as_ref().err().and_then(|status| status.get_details_error_info());
    let reason = reason.map(|info| info.reason);
    if request.ill_formed {
        return expect(reason.as_deref() == Some("MALFORMED_MESSAGE"), || {
            format!("text that is not UTF-8 got {reason:?}")
        });
    }
    if answer.code() == Code::InvalidArgument {
        // Depends on what came before, not on the request alone.
        if reason.as_deref() == Some("REQUEST_ID_REUSED") && request.named {
            return Ok(());
        }
        let status = answer.0.as_ref().err().unwrap();
        let bad = status.get_details_bad_request();
        let violation = bad.as_ref().and_then(|bad| bad.field_violations.first());
        let field = violation.map_or("", |violation| &violation.field);
        // What a table may be is AWS's to say, and tests/cells holds it field by field; here it is only that a table set is refused as one.
        if method.short() == "PutTableSet" && field.starts_with("table_set") {
            let reasons = [
                "INVALID_TABLE_SET",
                "MISSING_FIELD",
                "UNKNOWN_ENUM_VALUE",
                "INVALID_REGION",
                "INVALID_ETAG",
            ];
            return expect(reasons.contains(&reason.as_deref().unwrap_or_default()), || {
                format!("{reason:?} in {field:?}")
            });
        }
        let found = request.faults.iter().any(|(known, at)| {
            Some(*known) == reason.as_deref() && at.starts_with(field) && !field.is_empty()
        });
        return expect(found, || {
            format!("{reason:?} in {field:?}; wrong are {:?}", request.faults)
        });
    }
    expect(request.faults.is_empty(), || {
        format!("not refused, though wrong: {:?}", request.faults)
    })?;
    match &answer.0 {
        Ok(message) => rows(method, &request, message),
        Err(_) => Ok(()),
    }
}

/// An error as every error has to be.
pub fn well_formed(status: &Status) -> Verdict {
    let info = status.get_details_error_info().ok_or("no ErrorInfo")?;
    expect(info.domain == grpc::DOMAIN, || format!("the domain is {:?}", info.domain))?;
    let documented = DOCUMENTED.get(info.reason.as_str());
    let code = *documented.ok_or_else(|| format!("{} is not documented", info.reason))?;
    expect(code == status.code(), || format!("{} came as {:?}", info.reason, status.code()))?;
    let known = grpc::Reason::ALL.iter().any(|reason| reason.as_str() == info.reason);
    expect(known, || format!("{} is not in Reason::ALL", info.reason))?;
    expect(POSSIBLE.contains(&code), || format!("{} for a store that is well", info.reason))?;
    clean(status.message())?;
    // The bytes as a whole are about the message and not about a field.
    if code == Code::InvalidArgument && info.reason != "MALFORMED_MESSAGE" {
        let bad = status.get_details_bad_request().ok_or("no BadRequest")?;
        let violation = bad.field_violations.first().ok_or("BadRequest names no field")?;
        expect(!violation.field.is_empty(), || "BadRequest names an empty field".to_owned())?;
        clean(&violation.description)?;
    }
    Ok(())
}

/// Text for people: there is some, it is in one line, and it tells nothing of the inside.
fn clean(message: &str) -> Verdict {
    expect(!message.is_empty(), || "the message is empty".to_owned())?;
    expect(message.len() < 2000, || format!("a message of {} bytes", message.len()))?;
    expect(!message.chars().any(char::is_control), || format!("control characters: {message:?}"))?;
    // Whose limits they are may be said of tables.
    let lower = message.to_lowercase().replace("aws", "");
    let word = INTERNAL_WORDS.iter().find(|word| lower.contains(**word));
    expect(word.is_none(), || format!("{word:?} in {message:?}"))
}

fn expect(holds: bool, problem: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(problem()) }
}

/// What a request says.
#[derive(Default)]
struct Request {
    /// A text that is not UTF-8.
    ill_formed: bool,
    faults: Vec<Fault>,
    /// For each key of a batch, or row of an import, what is wrong with it.
    rows: Vec<Vec<&'static str>>,
    /// It has a request id.
    named: bool,
}

impl Request {
    fn read(&mut self, method: &Method, message: &DynamicMessage) {
        let mut message = message.clone();
        let mask = masked(&mut message, method);
        let before = self.rows.len();
        let overwritten = overwritten(&mut message, method);
        leaves(&mut message, &method.strict, &mut |leaf| {
            if let Value::Bytes(text) = &*leaf.value
                && std::str::from_utf8(text).is_err()
            {
                self.ill_formed = true;
                return;
            }
            // Of a map's entries with the same key the last one counts.
            if overwritten.iter().any(|entry| leaf.path.starts_with(entry)) {
                return;
            }
            self.read_leaf(method.short(), &leaf, &mask, before);
        });
        self.read_whole(method.short(), &message, &mask, before);
    }

    fn read_leaf(&mut self, method: &str, leaf: &Leaf, mask: &[String], before: usize) {
        let text = match &*leaf.value {
            Value::Bytes(text) => std::str::from_utf8(text).unwrap_or_default(),
            _ => "",
        };
        let number = match &*leaf.value {
            Value::I32(number) => i64::from(*number),
            Value::U32(number) => i64::from(*number),
            _ => 0,
        };
        let real = match &*leaf.value {
            Value::F64(number) => *number,
            _ => 0.0,
        };
        self.named |= leaf.field == "request_id" && !text.is_empty();
        // UpdateCell looks at what its mask names.
        let looked_at =
            |field: &str| method != "UpdateCell" || mask.iter().any(|path| path == field);
        let unknown =
            leaf.known.as_ref().is_some_and(|known| !known.iter().any(|n| i64::from(*n) == number));
        let wrong = match leaf.field.as_str() {
            "partition_key" | "cell_id" if method == "ListMigrations" && text.is_empty() => None,
            "migration_id" => (!is_migration_id(text)).then_some("INVALID_MIGRATION_ID"),
            "bulk_id" => (!is_migration_id(text)).then_some("INVALID_BULK_ID"),
            "low" | "max_utilisation" => {
                (!(0.0..=1000.0).contains(&real)).then_some("INVALID_UTILISATION")
            }
            "hotspot_share" => (!(0.0..=1.0).contains(&real)).then_some("INVALID_UTILISATION"),
            "targets.keep_labels" => (!is_name(text, 63, "-._/")).then_some("INVALID_LABELS"),
            "limits.running" | "limits.per_source" | "limits.per_target" => {
                (number > 1_000).then_some("INVALID_LIMIT")
            }
            "limits.open" => (number > 100_000).then_some("INVALID_LIMIT"),
            "limits.units_per_cell" => (number > 1_000_000).then_some("INVALID_LIMIT"),
            "limits.attempts" => (number > 10).then_some("INVALID_LIMIT"),
            "target_cell_id" => (!is_name(text, 63, "-")).then_some("INVALID_CELL_ID"),
            "choose" => (*leaf.value != Value::Bool(true)).then_some("MISSING_FIELD"),
            "rate_limit_units" => (number > 1_000_000).then_some("INVALID_RATE_LIMIT"),
            "partition_key" => (!is_key(text)).then_some("INVALID_PARTITION_KEY"),
            "cell_id"
                if matches!(method, "ListPlacements" | "ListOperations") && text.is_empty() =>
            {
                None
            }
            "table_set_id" if text.is_empty() && method != "GetTableSet" => None,
            "table_set_id" | "table_set.table_set_id" => {
                (!is_name(text, 63, "-")).then_some("INVALID_TABLE_SET")
            }
            "table_set.etag" => (!is_etag(text)).then_some("INVALID_ETAG"),
            "days" => (!(0..=30).contains(&number)).then_some("INVALID_WINDOW"),
            "operation_id" => (!is_operation_id(text)).then_some("INVALID_OPERATION_ID"),
            "cell_id" | "cell.cell_id" => (!is_name(text, 63, "-")).then_some("INVALID_CELL_ID"),
            "cell.region" if method == "UpdateCell" => None,
            "cell.region" | "constraints.regions" => {
                (!is_name(text, 32, "-")).then_some("INVALID_REGION")
            }
            "cell.endpoint" if looked_at("endpoint") => {
                (!is_endpoint(text)).then_some("INVALID_ENDPOINT")
            }
            "cell.labels.key" if looked_at("labels") => {
                (!is_name(text, 63, "-._/")).then_some("INVALID_LABELS")
            }
            "cell.labels.value" if looked_at("labels") => {
                (!is_label(text)).then_some("INVALID_LABELS")
            }
            "constraints.labels.key" => (!is_name(text, 63, "-._/")).then_some("INVALID_LABELS"),
            "constraints.labels.value" => (!is_label(text)).then_some("INVALID_LABELS"),
            "cell.etag" if method == "CreateCell" => (!text.is_empty()).then_some("INVALID_ETAG"),
            "cell.etag" | "etag" => (!is_etag(text)).then_some("INVALID_ETAG"),
            "request_id" => {
                (!text.is_empty() && !is_request_id(text)).then_some("INVALID_REQUEST_ID")
            }
            "page_token" => (!text.is_empty()).then_some("INVALID_PAGE_TOKEN"),
            "resume_token" => (!text.is_empty()).then_some("INVALID_RESUME_TOKEN"),
            "cell_ids" => (!is_name(text, 63, "-")).then_some("INVALID_CELL_ID"),
            "cluster.etag" => (!is_etag(text)).then_some("INVALID_ETAG"),
            "update_mask.paths" if method == "UpdateCluster" => {
                (text != "lease_duration").then_some("INVALID_UPDATE_MASK")
            }
            "page_size" => (!(0..=1000).contains(&number)).then_some("INVALID_PAGE_SIZE"),
            "update_mask.paths" => (!MASKABLE.contains(&text)).then_some("INVALID_UPDATE_MASK"),
            "cell.weight" if looked_at("weight") => {
                (number > 1_000_000).then_some("INVALID_WEIGHT")
            }
            "cell.state" if looked_at("state") => {
                let none = method == "UpdateCell" && number == 0;
                (unknown || none).then_some("UNKNOWN_ENUM_VALUE")
            }
            "mode" | "fallback" | "verification" | "terms.verification" | "writers" => {
                unknown.then_some("UNKNOWN_ENUM_VALUE")
            }
            "partition_keys" if method == "AnalyzeCell" => {
                (!is_key(text)).then_some("INVALID_PARTITION_KEY")
            }
            "partition_keys" => {
                self.rows.push(if is_key(text) { vec![] } else { vec!["INVALID_PARTITION_KEY"] });
                None
            }
            "placements.partition_key" if !is_key(text) => {
                self.row(leaf, before).push("INVALID_PARTITION_KEY");
                None
            }
            "placements.cell_id" if !is_name(text, 63, "-") => {
                self.row(leaf, before).push("INVALID_CELL_ID");
                None
            }
            _ => None,
        };
        self.faults.extend(wrong.map(|reason| (reason, leaf.path.clone())));
    }

    /// The row that a leaf of an import is in.
    fn row(&mut self, leaf: &Leaf, before: usize) -> &mut Vec<&'static str> {
        let at = leaf.path.split(['[', ']']).nth(1).unwrap();
        let at = before + at.parse::<usize>().unwrap();
        self.rows.resize_with(self.rows.len().max(at + 1), Vec::new);
        &mut self.rows[at]
    }

    fn read_whole(
        &mut self,
        method: &str,
        message: &DynamicMessage,
        mask: &[String],
        before: usize,
    ) {
        let has = |name: &str| message.has_field_by_name(name);
        if method == "PutTableSet" && !has("table_set") {
            self.faults.push(("MISSING_FIELD", "table_set".to_owned()));
        }
        if matches!(method, "CreateCell" | "UpdateCell") && !has("cell") {
            self.faults.push(("MISSING_FIELD", "cell".to_owned()));
        }
        if method == "UpdateCluster" {
            match message.get_field_by_name("cluster").filter(|_| has("cluster")) {
                None => self.faults.push(("MISSING_FIELD", "cluster".to_owned())),
                Some(cluster) => self.faults.extend(lease(cluster.as_message().unwrap())),
            }
        }
        if matches!(method, "UpdateCell" | "UpdateCluster") && mask.is_empty() {
            self.faults.push(("INVALID_UPDATE_MASK", "update_mask".to_owned()));
        }
        if method == "BatchResolve" && self.rows.is_empty() {
            self.faults.push(("INVALID_BATCH_SIZE", "partition_keys".to_owned()));
        }
        if method == "StartMigration" {
            if !has("target_cell_id") && !has("choose") {
                self.faults.push(("MISSING_FIELD", "target_cell_id".to_owned()));
            }
            if has("target_cell_id") && has("constraints") {
                self.faults.push(("MISSING_FIELD", "choose".to_owned()));
            }
            self.durations("", message);
        }
        if let Some(terms) = message.get_field_by_name("terms").filter(|_| has("terms")) {
            self.durations("terms.", terms.as_message().unwrap());
        }
        if matches!(method, "PlanRebalance" | "StartRebalance") {
            let end = |name: &str| message.get_field_by_name(name).unwrap().as_f64().unwrap();
            let (low, high) = (end("low"), end("high"));
            if !(high > low && high <= 1000.0) {
                self.faults.push(("INVALID_UTILISATION", "high".to_owned()));
            }
        }
        if method == "PinPlacement" && !is_time(message, "expire_time", |at| at > now()) {
            self.faults.push(("INVALID_TIME", "expire_time".to_owned()));
        }
        let Some(rows) = message.get_field_by_name("placements") else { return };
        let rows = rows.as_list().unwrap();
        self.rows.resize_with(before + rows.len(), Vec::new);
        for (row, faults) in rows.iter().zip(&mut self.rows[before..]) {
            let row = row.as_message().unwrap();
            let good = is_time(row, "expire_time", |at| at > now())
                && is_time(row, "create_time", |at| at <= now());
            faults.extend((!good).then_some("INVALID_TIME"));
        }
    }

    /// How long a soak and a pause may be.
    fn durations(&mut self, path: &str, message: &DynamicMessage) {
        for (field, least, most) in
            [("soak_duration", 0, 30 * 24 * 3600 * 1000), ("pause_budget", 50, 60_000)]
        {
            let sent = message.get_field_by_name(field);
            let sent = sent.filter(|_| message.has_field_by_name(field));
            let good = sent.is_none_or(|sent| is_duration(sent.as_message(), least, most));
            self.faults.extend((!good).then(|| ("INVALID_DURATION", format!("{path}{field}"))));
        }
    }
}

const MASKABLE: [&str; 5] = ["weight", "capacity", "labels", "endpoint", "state"];

/// What is wrong with a cluster's lease: 0-60 s in whole milliseconds.
fn lease(cluster: &DynamicMessage) -> Option<Fault> {
    let field = "cluster.lease_duration".to_owned();
    if !cluster.has_field_by_name("lease_duration") {
        return Some(("MISSING_FIELD", field));
    }
    let lease = cluster.get_field_by_name("lease_duration").unwrap();
    let lease = lease.as_message().unwrap();
    let seconds = lease.get_field_by_name("seconds").unwrap().as_i64().unwrap();
    let nanos = lease.get_field_by_name("nanos").unwrap().as_i32().unwrap();
    let well_formed = (0..1_000_000_000).contains(&nanos);
    let nanos = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let good = well_formed && (0..=60_000_000_000).contains(&nanos) && nanos % 1_000_000 == 0;
    (!good).then_some(("INVALID_LEASE_DURATION", field))
}

/// The paths of an update's mask.
fn masked(message: &mut DynamicMessage, method: &Method) -> Vec<String> {
    let mut paths = Vec::new();
    leaves(message, &method.strict, &mut |leaf| {
        if let ("update_mask.paths", Value::Bytes(path)) = (leaf.field.as_str(), &*leaf.value) {
            paths.push(String::from_utf8_lossy(path).into_owned());
        }
    });
    paths
}

/// Entries of maps whose key comes once more: `cell.labels[0]`.
fn overwritten(message: &mut DynamicMessage, method: &Method) -> Vec<String> {
    let mut keys: Vec<(String, String, Value)> = Vec::new();
    leaves(message, &method.strict, &mut |leaf| {
        if let Some(entry) = leaf.path.strip_suffix(".key") {
            keys.push((leaf.field, entry.to_owned(), leaf.value.clone()));
        }
    });
    let later = |at: usize| keys[at + 1..].iter();
    let same = |(at, (map, entry, key)): (usize, &(String, String, Value))| {
        let again = later(at).any(|(other, _, same)| other == map && same == key);
        again.then(|| entry.clone())
    };
    keys.iter().enumerate().filter_map(same).collect()
}

/// `partition_key`: 1-1,024 bytes of UTF-8 without control characters.
fn is_key(text: &str) -> bool {
    (1..=1024).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// `[a-z0-9][a-z0-9<more>]*`, at most so many characters.
fn is_name(text: &str, most: usize, more: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(plain)
        && text.len() <= most
        && text.chars().all(|c| plain(c) || more.contains(c))
}

/// 1-512 bytes of printable ASCII.
fn is_endpoint(text: &str) -> bool {
    (1..=512).contains(&text.len()) && text.chars().all(|c| ('!'..='~').contains(&c))
}

/// At most 128 bytes of UTF-8 without control characters.
fn is_label(text: &str) -> bool {
    text.len() <= 128 && !text.chars().any(char::is_control)
}

fn is_etag(text: &str) -> bool {
    text.len() <= 64 && text.chars().all(|c| ('!'..='~').contains(&c))
}

/// 1-64 characters of `[A-Za-z0-9._-]`.
fn is_request_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(allowed)
}

/// 1-64 characters of `[a-z0-9-]`.
fn is_operation_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=64).contains(&text.len()) && text.chars().all(allowed)
}

/// 32 of `[0-9a-f]`.
fn is_migration_id(text: &str) -> bool {
    text.len() == 32 && text.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
}

/// A duration between these milliseconds.
fn is_duration(message: Option<&DynamicMessage>, least: i128, most: i128) -> bool {
    let Some(message) = message else { return false };
    let seconds = message.get_field_by_name("seconds").unwrap().as_i64().unwrap();
    let nanos = message.get_field_by_name("nanos").unwrap().as_i32().unwrap();
    let whole = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    seconds >= 0
        && (0..1_000_000_000).contains(&nanos)
        && (least * 1_000_000..=most * 1_000_000).contains(&whole)
}

/// A time of the years 1 to 9999 for which `fits` holds, or none.
fn is_time(message: &DynamicMessage, field: &str, fits: impl Fn(i64) -> bool) -> bool {
    if !message.has_field_by_name(field) {
        return true;
    }
    let time = message.get_field_by_name(field).unwrap();
    let time = time.as_message().unwrap();
    let seconds = time.get_field_by_name("seconds").unwrap().as_i64().unwrap();
    let nanos = time.get_field_by_name("nanos").unwrap().as_i32().unwrap();
    let years = -62_135_596_800..=253_402_300_799;
    years.contains(&seconds) && (0..1_000_000_000).contains(&nanos) && fits(seconds)
}

/// Holds the results of many keys against what is wrong with each.
fn rows(method: &Method, request: &Request, message: &[u8]) -> Verdict {
    match method.short() {
        "BatchResolve" => {
            let answer = v1::BatchResolveResponse::decode(message).map_err(|e| e.to_string())?;
            let (results, keys) = (&answer.results, &request.rows);
            expect(results.len() == keys.len(), || format!("{} results", results.len()))?;
            for (result, faults) in results.iter().zip(keys) {
                let error = match &result.outcome {
                    Some(v1::batch_resolve_result::Outcome::Error(error)) => Some(error),
                    Some(v1::batch_resolve_result::Outcome::Placement(_)) => None,
                    None => return Err("a result without an outcome".to_owned()),
                };
                row(error, faults)?;
            }
            Ok(())
        }
        "ImportPlacements" => {
            let answer =
                v1::ImportPlacementsResponse::decode(message).map_err(|e| e.to_string())?;
            let sum = answer.created + answer.unchanged + answer.failed;
            expect(sum == request.rows.len() as u64, || format!("{sum} rows were counted"))?;
            for (index, faults) in request.rows.iter().enumerate() {
                let failure = answer.failures.iter().find(|failure| failure.index == index as u64);
                row(failure.and_then(|failure| failure.error.as_ref()), faults)
                    .map_err(|problem| format!("row {index}: {problem}"))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn row(error: Option<&v1::KeyError>, faults: &[&str]) -> Verdict {
    let Some(error) = error else {
        return expect(faults.is_empty(), || format!("taken, though {faults:?}"));
    };
    let documented = DOCUMENTED.get(error.reason.as_str()).map(|code| *code as i32);
    expect(documented == Some(error.code), || format!("{} came as {}", error.reason, error.code))?;
    expect(POSSIBLE.contains(&Code::from_i32(error.code)), || error.reason.clone())?;
    clean(&error.message)?;
    let refused = error.code == Code::InvalidArgument as i32;
    let fits = if faults.is_empty() { !refused } else { faults.contains(&error.reason.as_str()) };
    expect(fits, || format!("{} where {faults:?}", error.reason))
}
