//! Requests: valid ones, with arbitrary bytes in place of some of their texts.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use cell_directory::proto::v1;
use prost::Message;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::schema::{Method, enum_numbers, strict_child};
use crate::server::{BULKS, CELLS, MIGRATIONS, TENANTS};

/// A request as it is sent.
pub struct Case {
    /// Loosened; all but client streams have one.
    pub messages: Vec<DynamicMessage>,
    pub encoded: Vec<Vec<u8>>,
    /// Where a valid value was replaced.
    pub changed: Vec<String>,
    /// The bytes are no longer those of the messages.
    pub damaged: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "changed {:?}, damaged: {}, bytes {:02x?}",
            self.changed, self.damaged, self.encoded
        )?;
        self.messages.iter().try_for_each(|message| write!(f, "\n  {message}"))
    }
}

/// A value in a message that holds no further message.
pub struct Leaf<'a> {
    /// As the server names it: `constraints.regions[0]`.
    pub path: String,
    /// Without positions: `constraints.regions`.
    pub field: String,
    /// The numbers that the contract knows, for an enum.
    pub known: Option<Vec<i32>>,
    pub value: &'a mut Value,
}

/// Visits every leaf that is there, and every text whether there or not.
pub fn leaves(
    message: &mut DynamicMessage,
    strict: &MessageDescriptor,
    visit: &mut dyn FnMut(Leaf),
) {
    walk(message, strict, ("", ""), visit);
}

fn walk(
    message: &mut DynamicMessage,
    strict: &MessageDescriptor,
    (path, name): (&str, &str),
    visit: &mut dyn FnMut(Leaf),
) {
    let fields: Vec<_> = message.descriptor().fields().collect();
    for field in fields {
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{}", field.name());
        let name = format!("{name}{dot}{}", field.name());
        let known = enum_numbers(strict, &field);
        // A scalar without presence is always there; anything else only if it is set.
        if (field.supports_presence() || field.is_list()) && !message.has_field(&field) {
            continue;
        }
        let mut one = |value: &mut Value, path: String| match value {
            Value::Message(child) => {
                walk(child, &strict_child(strict, &field), (&path, &name), visit);
            }
            value => visit(Leaf { path, field: name.clone(), known: known.clone(), value }),
        };
        match message.get_field_mut(&field) {
            Value::List(values) => {
                for (at, value) in values.iter_mut().enumerate() {
                    one(value, format!("{path}[{at}]"));
                }
            }
            value => one(value, path),
        }
    }
}

/// Makes a case.
pub fn case(method: &Method, random: &mut StdRng) -> Case {
    let count = if method.client_streams { random.random_range(1..=3) } else { 1 };
    let mut messages: Vec<_> = (0..count)
        .map(|_| match method.short() {
            "PutTableSet" => table_set(method, random),
            _ => valid(method, &method.request, &method.strict, ("", 0), random),
        })
        .collect();
    let mut changed = Vec::new();
    for message in &mut messages {
        change(message, &method.strict, random, &mut changed);
    }
    let mut encoded: Vec<_> = messages.iter().map(Message::encode_to_vec).collect();
    let damaged = random.random_bool(0.03) && encoded.iter().any(|bytes| !bytes.is_empty());
    if damaged {
        let bytes = encoded.iter_mut().find(|bytes| !bytes.is_empty()).unwrap();
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..3) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            _ => bytes.extend(noise(random, 20)),
        }
    }
    Case { messages, encoded, changed, damaged }
}

/// A table set that is right: its fields fit each other, which drawn ones hardly ever would.
fn table_set(method: &Method, random: &mut StdRng) -> DynamicMessage {
    let key = |name: &str| Some(v1::KeyAttribute { name: name.to_owned(), r#type: 1 });
    let table = |at: usize| v1::TableSpec {
        name: format!("Table-{at}"),
        partition_key: key("PK"),
        sort_key: key("SK"),
        tenant_key_templates: vec!["CUSTOMER#{partition_key}".to_owned()],
        indexes: vec![v1::IndexSpec {
            name: "CellIdIndex".to_owned(),
            partition_key: key("CellId"),
            ..Default::default()
        }],
        ttl_attribute: "TTL".to_owned(),
        stream: 4,
        point_in_time_recovery_days: 35,
        ..Default::default()
    };
    let set = v1::TableSet {
        table_set_id: format!("set-{}", random.random_range(0..5)),
        tables: (0..random.random_range(1..3)).map(table).collect(),
        tags: [("tier".to_owned(), "standard".to_owned())].into(),
        ..Default::default()
    };
    let request =
        v1::PutTableSetRequest { table_set: Some(set), validate_only: random.random_bool(0.2) };
    let encoded = request.encode_to_vec();
    DynamicMessage::decode(method.request.clone(), encoded.as_slice()).unwrap()
}

/// Replaces one text, some, or all; and now and then a number.
fn change(
    message: &mut DynamicMessage,
    strict: &MessageDescriptor,
    random: &mut StdRng,
    changed: &mut Vec<String>,
) {
    let mut texts = 0usize;
    leaves(message, strict, &mut |leaf| {
        texts += usize::from(matches!(leaf.value, Value::Bytes(_)))
    });
    let share = match random.random_range(0..20) {
        0 | 1 => 0.0,
        2..16 => 1.0 / texts.max(1) as f64,
        16..19 => 0.4,
        _ => 1.0,
    };
    let numbers = random.random_bool(0.15);
    leaves(message, strict, &mut |leaf| {
        let new = match &*leaf.value {
            Value::Bytes(old) if random.random_bool(share) => {
                let text = arbitrary(old, random);
                Value::Bytes(text.into())
            }
            number if numbers && random.random_bool(0.4) => {
                match extreme(number, &leaf.field, random) {
                    Some(value) => value,
                    None => return,
                }
            }
            _ => return,
        };
        changed.push(leaf.path);
        *leaf.value = new;
    });
}

/// Bytes for a text whose valid value is `old`.
pub fn arbitrary(old: &[u8], random: &mut StdRng) -> Vec<u8> {
    const ILL_FORMED: [&[u8]; 9] = [
        b"\x80",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf5\x80\x80\x80",
        b"\xe2\x82",
        b"ok\xfe",
        b"\xf0\x9f\x98",
        b"\xc3\x28",
    ];
    const ODD: [&str; 14] = [
        "null",
        "{}",
        "[]",
        "../../etc/passwd",
        "' OR 1=1 --",
        "%00",
        "${jndi:ldap://x}",
        "#",
        "|",
        "\u{feff}",
        "\u{202e}abc",
        "-",
        "ALL",
        "cell-0\n",
    ];
    // Around every documented limit.
    const LENGTHS: [usize; 13] = [32, 33, 63, 64, 65, 128, 129, 512, 513, 1023, 1024, 1025, 9000];
    match random.random_range(0..10) {
        0 => Vec::new(),
        1 => {
            let most = random.random_range(1..80);
            noise(random, most)
        }
        2 => {
            let at = random.random_range(0..=old.len());
            let bad = ILL_FORMED[random.random_range(0..ILL_FORMED.len())];
            [&old[..at], bad, &old[at..]].concat()
        }
        3 => {
            let control = ['\0', '\n', '\t', '\u{1b}', '\u{7f}', '\u{80}', '\u{85}', '\u{9f}'];
            let control = control[random.random_range(0..control.len())].to_string();
            let at = random.random_range(0..=old.len());
            [&old[..at], control.as_bytes(), &old[at..]].concat()
        }
        4 => {
            let unit = ["a", "é", "漢", "😀", "-", "A"][random.random_range(0..6)];
            unit.repeat(LENGTHS[random.random_range(0..LENGTHS.len())] / unit.len()).into_bytes()
        }
        5 => {
            let count = random.random_range(1..20);
            let text: String = (0..count).map(|_| random.random::<char>()).collect();
            text.into_bytes()
        }
        6 => ODD[random.random_range(0..ODD.len())].as_bytes().to_vec(),
        7 => {
            let elsewhere =
                ["cell-1", "tenant-1", "eu-west-1", "weight", "https://x.example", "r-1"];
            elsewhere[random.random_range(0..elsewhere.len())].as_bytes().to_vec()
        }
        _ => nearly(old, random),
    }
}

/// A valid value with one thing wrong, or not.
fn nearly(old: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut text = old.to_vec();
    let at = random.random_range(0..=text.len());
    match random.random_range(0..5) {
        0 if at < text.len() => text[at] ^= 1 << random.random_range(0..8),
        1 if at < text.len() => drop(text.remove(at)),
        2 if at < text.len() => text[at] = text[at].to_ascii_uppercase(),
        3 => text.insert(at, random.random_range(b' '..=b'~')),
        _ => text.push(b' '),
    }
    text
}

fn noise(random: &mut StdRng, most: usize) -> Vec<u8> {
    (0..random.random_range(1..=most)).map(|_| random.random()).collect()
}

/// A number at or beyond the edge of what is allowed.
fn extreme(old: &Value, field: &str, random: &mut StdRng) -> Option<Value> {
    const SECONDS: [i64; 8] = [
        i64::MIN,
        i64::MAX,
        0,
        -1,
        253_402_300_799,
        253_402_300_800,
        -62_135_596_800,
        -62_135_596_801,
    ];
    Some(match old {
        Value::I32(_) => {
            let edges =
                [i32::MIN, -1, 0, 1, 3, 7, 99, 1000, 1001, 999_999_999, 1_000_000_000, i32::MAX];
            Value::I32(edges[random.random_range(0..edges.len())])
        }
        Value::I64(_) if field.ends_with("seconds") => {
            Value::I64(SECONDS[random.random_range(0..SECONDS.len())])
        }
        Value::I64(_) => Value::I64(random.random()),
        Value::U32(_) => {
            let edges =
                [0, 1, 10, 11, 1000, 1001, 100_000, 100_001, 1_000_000, 1_000_001, u32::MAX];
            Value::U32(edges[random.random_range(0..edges.len())])
        }
        Value::F64(_) => {
            let edges = [f64::NAN, f64::INFINITY, -1.0, -0.0, 0.0, 0.3, 1.0, 1.1, 1000.0, 1000.1];
            Value::F64(edges[random.random_range(0..edges.len())])
        }
        Value::U64(_) => Value::U64([0, 1, 2, u64::MAX - 1, u64::MAX][random.random_range(0..5)]),
        _ => return None,
    })
}

/// A message that a careful caller would send.
fn valid(
    method: &Method,
    loose: &MessageDescriptor,
    strict: &MessageDescriptor,
    (path, position): (&str, usize),
    random: &mut StdRng,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(loose.clone());
    for field in loose.fields() {
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{}", field.name());
        let one = |at: usize, random: &mut StdRng| match field.kind() {
            Kind::Message(child) => {
                let strict = strict_child(strict, &field);
                Value::Message(valid(method, &child, &strict, (&path, at), random))
            }
            _ => scalar(method, strict, &field, (&path, position + at), random),
        };
        if field.is_list() {
            let count = match field.name() {
                "partition_keys" => 1..=5,
                "placements" => 1..=4,
                "paths" => 1..=2,
                _ => 0..=2,
            };
            let count = random.random_range(count);
            let values = (0..count).map(|at| one(at, random)).collect();
            message.set_field(&field, Value::List(values));
        } else {
            let wanted =
                matches!(field.name(), "cell" | "cluster" | "lease_duration" | "update_mask");
            let there = if wanted { 0.97 } else { 0.6 };
            if !field.supports_presence() || random.random_bool(there) {
                let value = one(0, random);
                message.set_field(&field, value);
            }
        }
    }
    message
}

fn scalar(
    method: &Method,
    strict: &MessageDescriptor,
    field: &FieldDescriptor,
    (path, at): (&str, usize),
    random: &mut StdRng,
) -> Value {
    if let Some(numbers) = enum_numbers(strict, field) {
        // A cell that is RETIRED stays so; then nothing else could happen to it.
        let numbers: Vec<_> =
            numbers.into_iter().filter(|number| field.name() != "state" || *number != 5).collect();
        return Value::I32(numbers[random.random_range(0..numbers.len())]);
    }
    match field.kind() {
        Kind::Bytes => {
            Value::Bytes(text(method, field.name(), path, at, random).into_bytes().into())
        }
        Kind::Bool => Value::Bool(random.random()),
        Kind::Int32 if path.contains("lease_duration") => Value::I32(5_000_000),
        Kind::Int64 if path.contains("lease_duration") => Value::I64(random.random_range(0..60)),
        Kind::Int32 if field.name() == "nanos" => Value::I32(random.random_range(0..1_000_000_000)),
        Kind::Int32 => Value::I32(random.random_range(0..20)),
        // Within the bounds of a soak and of a pause, most of the time.
        Kind::Int64 if path.contains("soak_duration") || path.contains("pause_budget") => {
            Value::I64(random.random_range(1..60))
        }
        Kind::Int64 if path.contains("create_time") => {
            Value::I64(now() - random.random_range(3600..9999))
        }
        Kind::Int64 => Value::I64(now() + random.random_range(86_400..999_999)),
        Kind::Uint32 if field.name() == "attempts" => Value::U32(random.random_range(0..=10)),
        Kind::Uint32 => Value::U32(random.random_range(1..200)),
        // A band, and shares: above 0 and below 1.
        Kind::Double if field.name() == "low" => Value::F64(random.random_range(0.0..0.4)),
        Kind::Double => Value::F64(random.random_range(0.5..1.0)),
        Kind::Uint64 if field.name() == "capacity" => Value::U64(random.random_range(0..5000)),
        Kind::Uint64 => Value::U64(random.random_range(0..2)),
        _ => Value::default_value_for_field(field),
    }
}

/// A valid text. A field that is not known here gets some word.
fn text(method: &Method, name: &str, path: &str, at: usize, random: &mut StdRng) -> String {
    match name {
        "partition_key" | "partition_keys" => format!("tenant-{}", random.random_range(0..TENANTS)),
        "bulk_id" => format!("{:032x}", random.random_range(0..BULKS + 2)),
        "migration_id" => format!("{:032x}", random.random_range(0..MIGRATIONS + 2)),
        "cell_id" | "target_cell_id" => format!("cell-{}", random.random_range(0..CELLS + 2)),
        "region" | "regions" => "eu-west-1".to_owned(),
        "endpoint" => "https://cell.example.com".to_owned(),
        "key" => format!("tier-{at}"),
        "value" => "standard".to_owned(),
        "paths" if method.short() == "UpdateCluster" => "lease_duration".to_owned(),
        "cell_ids" => format!("cell-{}", random.random_range(0..CELLS + 2)),
        "paths" => {
            let paths = ["weight", "capacity", "labels", "endpoint", "state"];
            paths[random.random_range(0..paths.len())].to_owned()
        }
        "request_id" if random.random() => format!("r-{}", random.random_range(0..100_000)),
        "etag" if method.short() != "CreateCell" && random.random_bool(0.2) => "W-1".to_owned(),
        "request_id" | "etag" | "page_token" | "resume_token" => String::new(),
        _ => format!("word-{}-{at}", path.len()),
    }
}

pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}
