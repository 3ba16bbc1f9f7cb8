//! The two layers below the flags: environment variables and the TOML file.
//!
//! Both come down to the same thing, a text and an origin for a key, which [`super::parse`] hands to clap as that key's
//! default value. Every value is first tried against its key's own parser, even where a higher layer overrides it, so
//! that a mistake is reported with the layer it is in, and on the day it is made.
//!
//! Nothing here echoes a line of the file: it may hold a secret.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Arg;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::keys::Secret;
use super::sinks::{self, EventSink};
use super::{Origin, Problem};

/// What every variable of ours begins with.
pub(super) const ENV_PREFIX: &str = "CELLD_";
/// Largest configuration file read, in bytes; all keys with long comments fit a hundred times.
const FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Longest unknown key for which a similar one is sought, in bytes; comparing takes time in the square of it.
const SUGGEST_MAX_BYTES: usize = 64;
/// Characters of a bad value that an error repeats.
const ECHO_MAX_CHARS: usize = 80;

/// The values of one or more layers, by key.
pub(super) type Layer = BTreeMap<String, Given>;

/// A value as somebody gave it.
pub(super) struct Given {
    pub text: OsString,
    pub origin: Origin,
}

/// What a key's values are in TOML; follows from the type its parser yields.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Integer,
    Float,
    Duration,
    Text,
    Secret,
}

impl Kind {
    pub(super) fn of(arg: &Arg) -> Self {
        use std::any::TypeId;
        let yields = arg.get_value_parser().type_id();
        let any_of = |types: &[TypeId]| types.iter().any(|known| yields == *known);
        if any_of(&[TypeId::of::<bool>()]) {
            Self::Boolean
        } else if any_of(&[TypeId::of::<u32>(), TypeId::of::<u64>()]) {
            Self::Integer
        } else if any_of(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) {
            Self::Float
        } else if any_of(&[TypeId::of::<std::time::Duration>()]) {
            Self::Duration
        } else if any_of(&[TypeId::of::<Secret>()]) {
            Self::Secret
        } else {
            Self::Text
        }
    }

    fn in_toml(self) -> &'static str {
        match self {
            Self::Boolean => "true or false, without quotes",
            Self::Integer => "an integer, without quotes",
            Self::Float => "a number, without quotes",
            Self::Duration => "a duration in quotes, such as \"250ms\"",
            Self::Text | Self::Secret => "a text in quotes",
        }
    }
}

/// Reads the environment layer: each `CELLD_*` variable must name one of `args` (which include `config`).
pub(super) fn environment<E>(args: &[Arg], variables: E, problems: &mut Vec<Problem>) -> Layer
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut layer = Layer::new();
    for (name, text) in variables {
        // our names are ASCII, so a name that is not UTF-8 is at worst unknown
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        if is_service_link(rest, &text) {
            continue;
        }
        let origin = Origin::Environment(name.to_string());
        let key = rest.to_ascii_lowercase();
        match args.iter().find(|arg| env_name(arg.get_id().as_str()) == name) {
            None if key == sinks::KEY => {
                let message = "can be set only in the file of --config, as [[event_sinks]] tables";
                problems.push(Problem { key, origin, message: message.to_owned() });
            }
            None => {
                let near = nearest(args, &key).map(|key| env_name(&key));
                problems.push(unknown(name.to_string(), origin, near));
            }
            Some(arg) => match try_value(arg, &text) {
                Ok(()) => drop(layer.insert(key, Given { text, origin })),
                Err(message) => problems.push(Problem { key, origin, message }),
            },
        }
    }
    layer
}

pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_ascii_uppercase())
}

/// Kubernetes tells every pod about every Service: one named `celld` puts `CELLD_SERVICE_HOST` and the like here, and
/// one named `celld-admin` `CELLD_ADMIN_PORT_443_TCP`. Taking these for typing errors would stop every restart from the
/// moment such a Service is created. No key of ours ends in these ways (a test holds us to it).
fn is_service_link(rest: &str, text: &OsStr) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let ends = |suffix: &str| rest == suffix || rest.ends_with(&format!("_{suffix}"));
    let is_address = || {
        ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| text.to_string_lossy().starts_with(scheme))
    };
    let is_port_variable = || {
        let words: Vec<&str> = rest.split('_').collect();
        let at = words.iter().rposition(|word| PROTOCOLS.contains(word));
        at.is_some_and(|at| {
            at >= 2
                && words[at - 2] == "PORT"
                && words[at - 1].bytes().all(|byte| byte.is_ascii_digit())
                && matches!(words[at + 1..], [] | ["PROTO" | "PORT" | "ADDR"])
        })
    };
    ends("SERVICE_HOST")
        || ends("SERVICE_PORT")
        || rest.starts_with("SERVICE_PORT_")
        || rest.contains("_SERVICE_PORT_")
        || (ends("PORT") && is_address())
        || is_port_variable()
}

/// Reads the file layer from `path`, which `named_by` (flag or environment) gave; each key in it must be one of `args`.
pub(super) fn file(
    args: &[Arg],
    path: &Path,
    named_by: &Origin,
    problems: &mut Vec<Problem>,
) -> (Layer, Vec<EventSink>) {
    let mut layer = Layer::new();
    let mut table = match read(path) {
        Ok(table) => table,
        Err(message) => {
            problems.push(Problem { key: "config".to_owned(), origin: named_by.clone(), message });
            return (layer, Vec::new());
        }
    };
    let sinks = table.remove(sinks::KEY);
    let sinks = sinks.map(|list| sinks::read(list, &Origin::File(path.to_owned()), problems));
    for (key, value) in table {
        let origin = Origin::File(path.to_owned());
        let Some(arg) = args.iter().find(|arg| arg.get_id() == key.as_str()) else {
            let near = nearest(args, &key.to_ascii_lowercase());
            problems.push(unknown(key, origin, near));
            continue;
        };
        let checked = toml_text(Kind::of(arg), &value).and_then(|text| {
            let text = OsString::from(text);
            try_value(arg, &text).map(|()| text)
        });
        match checked {
            Ok(text) => drop(layer.insert(key, Given { text, origin })),
            Err(message) => problems.push(Problem { key, origin, message }),
        }
    }
    (layer, sinks.unwrap_or_default())
}

fn read(path: &Path) -> Result<toml::Table, String> {
    let shown = path.display();
    let mut text = String::new();
    let length = std::fs::File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| format!("cannot read {shown}: {error}"))?;
    if length as u64 > FILE_MAX_BYTES {
        return Err(format!(
            "{shown} is larger than {FILE_MAX_BYTES} bytes; is it the right file?"
        ));
    }
    text.parse().map_err(|error: toml::de::Error| {
        // the error's own Display would quote the line, and with it perhaps a secret
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("{shown}, line {line}, column {column}: {}", error.message().replace('\n', ", "))
    })
}

/// A TOML value as the text a flag would have; an error if TOML's type is not that of the key.
fn toml_text(kind: Kind, value: &toml::Value) -> Result<String, String> {
    match (kind, value) {
        (Kind::Boolean, toml::Value::Boolean(value)) => Ok(value.to_string()),
        (Kind::Integer | Kind::Float, toml::Value::Integer(value)) => Ok(value.to_string()),
        (Kind::Float, toml::Value::Float(value)) => Ok(value.to_string()),
        (Kind::Duration | Kind::Text | Kind::Secret, toml::Value::String(value)) => {
            Ok(value.clone())
        }
        _ => Err(format!("expected {}, found {}", kind.in_toml(), value.type_str())),
    }
}

/// Whether the key's own parser takes the text. Runs clap on a command with this argument alone, since clap gives no
/// other way to its parsers.
fn try_value(arg: &Arg, text: &OsStr) -> Result<(), String> {
    let mut flag = OsString::from(format!("--{}=", arg.get_long().unwrap_or_default()));
    flag.push(text);
    let probe =
        clap::Command::new("probe").no_binary_name(true).disable_help_flag(true).arg(arg.clone());
    let Err(error) = probe.try_get_matches_from([flag]) else {
        return Ok(());
    };
    let expected = match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(source), _) => source.to_string(),
        (None, Some(ContextValue::Strings(valid))) if !valid.is_empty() => {
            format!("expected {}", valid.join(" or "))
        }
        _ if error.kind() == ErrorKind::InvalidUtf8 => "expected UTF-8".to_owned(),
        _ => "expected a value".to_owned(),
    };
    Err(match echo(Kind::of(arg), text) {
        Some(value) => format!("bad value {value}: {expected}"),
        None => format!("bad value: {expected}"),
    })
}

/// The value for an error message, unless it could tell a secret: the key's own, or a URL's password.
fn echo(kind: Kind, text: &OsStr) -> Option<String> {
    let text = text.to_string_lossy();
    if kind == Kind::Secret || text.contains('@') {
        return None;
    }
    let mut shown: String = text.chars().take(ECHO_MAX_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    Some(format!("{shown:?}"))
}

fn unknown(key: String, origin: Origin, near: Option<String>) -> Problem {
    let message = match near {
        Some(near) => format!("unknown key; did you mean {near}?"),
        None => "unknown key; see `celld --help` for all keys".to_owned(),
    };
    Problem { key, origin, message }
}

/// The known key most like `key`, if any is near enough to be meant.
fn nearest(args: &[Arg], key: &str) -> Option<String> {
    if key.len() > SUGGEST_MAX_BYTES {
        return None;
    }
    let key = key.replace('-', "_");
    args.iter()
        .map(|arg| arg.get_id().as_str())
        .map(|known| (edits(known, &key), known))
        .filter(|(edits, known)| *edits <= known.len().div_ceil(4))
        .min()
        .map(|(_, known)| known.to_owned())
}

/// The Levenshtein distance in bytes (Wagner–Fischer, one row at a time).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The path given for `config` itself by `layer`, if any.
pub(super) fn config_path(layer: &Layer) -> Option<(PathBuf, Origin)> {
    layer.get("config").map(|given| (PathBuf::from(&given.text), given.origin.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigError;
    use crate::config::tests::{celld, celld_with_file};

    fn problems(result: Result<crate::config::Invocation, ConfigError>) -> String {
        let error = result.expect_err("a problem");
        assert!(matches!(error, ConfigError::Invalid(_)), "{error}");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn unknown_keys_are_named_with_their_layer_and_the_nearest_key() {
        let env = problems(celld("serve", &[("CELLD_LISEN", "x")]));
        assert_eq!(
            env,
            "CELLD_LISEN (environment CELLD_LISEN): unknown key; did you mean CELLD_LISTEN?"
        );
        let far = problems(celld("serve", &[("CELLD_BANANA", "x")]));
        assert!(far.ends_with("unknown key; see `celld --help` for all keys"), "{far}");
        let file = problems(celld_with_file("serve", "lookup-budget = '1s'", &[]));
        assert!(
            file.contains("lookup-budget (file /") && file.contains("did you mean lookup_budget?"),
            "{file}"
        );
        let table = problems(celld_with_file("serve", "[server]\nlisten = '127.0.0.1:1'", &[]));
        assert!(table.contains("server (file /") && table.contains("unknown key"), "{table}");
        assert!(
            celld("serve --lisen 1", &[])
                .expect_err("unknown flag")
                .to_string()
                .contains("'--listen'")
        );
    }

    #[test]
    fn bad_values_are_named_with_their_layer_even_when_overridden() {
        let env = problems(celld("serve --retry-attempts 3", &[("CELLD_RETRY_ATTEMPTS", "many")]));
        assert_eq!(
            env,
            "retry_attempts (environment CELLD_RETRY_ATTEMPTS): bad value \"many\": expected a number from 1 to 10"
        );
        let file = problems(celld_with_file(
            "serve",
            "retry_attempts = 11",
            &[("CELLD_RETRY_ATTEMPTS", "3")],
        ));
        assert!(file.contains("retry_attempts (file /"), "{file}");
        assert!(file.ends_with("bad value \"11\": expected a number from 1 to 10"), "{file}");
        let flag = celld("serve --retry-attempts 11", &[]).expect_err("bad flag");
        assert_eq!(flag.exit_code(), 2);
        let flag = flag.to_string();
        assert!(
            flag.contains("--retry-attempts") && flag.contains("expected a number from 1 to 10"),
            "{flag}"
        );
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let text = problems(celld_with_file(
            "serve",
            "a_b = 1\ninsecure = 1",
            &[("CELLD_LOG_FORMAT", "xml")],
        ));
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("bad value \"xml\": expected text or json"), "{text}");
    }

    #[test]
    fn toml_types_are_those_of_the_key() {
        let good = "insecure = true\nretry_attempts = 4\nretry_budget_ratio = 1\ntrace_sample_ratio = 0.5\n\
                    read_timeout = '250ms'\nmemory_placements = 2_000";
        let config = celld_with_file("serve", good, &[]).expect("good file").config;
        assert!(config.insecure);
        assert_eq!((config.retry_attempts, config.memory_placements), (4, 2000));
        assert_eq!((config.retry_budget_ratio, config.trace_sample_ratio), (1.0, 0.5));
        assert_eq!(config.read_timeout.as_millis(), 250);

        for (line, expected) in [
            ("insecure = 'true'", "expected true or false, without quotes, found string"),
            ("insecure = 1", "expected true or false, without quotes, found integer"),
            ("retry_attempts = '4'", "expected an integer, without quotes, found string"),
            ("retry_attempts = 4.0", "expected an integer, without quotes, found float"),
            ("retry_attempts = -4", "bad value \"-4\": expected a number from 1 to 10"),
            ("retry_budget_ratio = nan", "expected a number from 0 to 1"),
            (
                "read_timeout = 250",
                "expected a duration in quotes, such as \"250ms\", found integer",
            ),
            ("listen = 1979-05-27", "expected a text in quotes, found datetime"),
            ("tls_cert = ['a']", "expected a text in quotes, found array"),
            ("tls_cert = ''", "expected a value"),
        ] {
            let text = problems(celld_with_file("serve", line, &[]));
            assert!(text.contains(expected), "{line}: {text}");
        }
    }

    #[test]
    fn environment_booleans_are_true_or_false() {
        assert!(celld("serve", &[("CELLD_INSECURE", "true")]).expect("true").config.insecure);
        assert!(!celld("serve", &[("CELLD_INSECURE", "false")]).expect("false").config.insecure);
        for bad in ["1", "yes", "TRUE", ""] {
            let text = problems(celld("serve", &[("CELLD_INSECURE", bad)]));
            assert!(
                text.contains("(environment CELLD_INSECURE): bad value")
                    && text.contains("true or false"),
                "{text}"
            );
        }
    }

    #[test]
    fn service_links_of_kubernetes_are_no_keys_of_ours() {
        let links = [
            ("CELLD_SERVICE_HOST", "10.0.0.1"),
            ("CELLD_SERVICE_PORT", "50051"),
            ("CELLD_SERVICE_PORT_GRPC", "50051"),
            ("CELLD_PORT", "tcp://10.0.0.1:50051"),
            ("CELLD_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
            ("CELLD_PORT_50051_TCP_PROTO", "tcp"),
            ("CELLD_PORT_50051_TCP_PORT", "50051"),
            ("CELLD_PORT_50051_TCP_ADDR", "10.0.0.1"),
            ("CELLD_ADMIN_SERVICE_HOST", "10.0.0.1"),
            ("CELLD_ADMIN_PORT_443_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(
            celld("serve", &links).expect("ignored").config,
            crate::config::Config::default()
        );
        for not_a_link in [
            "CELLD_PORT",
            "CELLD_LISTEN_PORT",
            "CELLD_TCP",
            "CELLD_PORT_X_TCP",
            "CELLD_PORT_1_TCP_X",
        ] {
            problems(celld("serve", &[(not_a_link, "50051")]));
        }
        for arg in crate::config::command().get_arguments() {
            let rest = arg.get_id().as_str().to_ascii_uppercase();
            assert!(!is_service_link(&rest, OsStr::new("tcp://x")), "{rest}");
        }
    }

    #[test]
    fn unreadable_and_malformed_files_are_told_apart_and_quote_nothing() {
        let missing = problems(celld("serve --config /nonexistent/celld.toml", &[]));
        assert!(
            missing.starts_with("config (flag --config): cannot read /nonexistent/celld.toml: "),
            "{missing}"
        );
        let missing = problems(celld("serve", &[("CELLD_CONFIG", "/nonexistent/celld.toml")]));
        assert!(missing.starts_with("config (environment CELLD_CONFIG): cannot read"), "{missing}");
        let empty = problems(celld("serve", &[("CELLD_CONFIG", "")]));
        assert!(empty.contains("expected a value"), "{empty}");
        let broken = problems(celld_with_file(
            "serve",
            "log_format = 'text'\ntenant_hash_key = \"hunter2",
            &[],
        ));
        assert!(broken.contains(", line 2, column ") && !broken.contains("hunter2"), "{broken}");
        let twice =
            problems(celld_with_file("serve", "log_format = 'text'\nlog_format = 'json'", &[]));
        assert!(twice.contains(", line 2, column 1: duplicate key"), "{twice}");
        let large =
            problems(celld_with_file("serve", &"#".repeat(FILE_MAX_BYTES as usize + 1), &[]));
        assert!(large.contains("is larger than"), "{large}");
    }

    #[test]
    fn errors_repeat_no_password_and_no_endless_value() {
        let text = problems(celld(
            "serve",
            &[("CELLD_OTLP_ENDPOINT", "http://user:hunter2@collector:4317")],
        ));
        assert!(
            text.contains("without user, password and query") && !text.contains("hunter2"),
            "{text}"
        );
        let text = problems(celld("serve", &[("CELLD_REGION", &"X".repeat(5000))]));
        assert!(text.len() < 300, "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn environment_values_that_are_not_utf8_are_refused_not_lost() {
        use std::os::unix::ffi::OsStringExt;
        let variable = (OsString::from("CELLD_REGION"), OsString::from_vec(vec![0xff]));
        let text =
            problems(crate::config::parse(["celld", "serve"].map(OsString::from), [variable]));
        assert!(
            text.contains("region (environment CELLD_REGION)") && text.contains("expected UTF-8"),
            "{text}"
        );
    }

    #[test]
    fn edit_distances() {
        for (a, b, distance) in
            [("", "abc", 3), ("listen", "lisen", 1), ("kitten", "sitting", 3), ("a", "a", 0)]
        {
            assert_eq!((edits(a, b), edits(b, a)), (distance, distance), "{a} {b}");
        }
    }
}
