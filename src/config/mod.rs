//! Configuration of `celld`: flags over `CELLD_*` variables over a TOML file over defaults.
//!
//! One definition per key ([`Config`] in `keys.rs`) serves all layers. The command line is parsed twice: once for the
//! flags alone, which also finds `--config`, and once more with the values of the lower layers (`layers.rs`) in place of
//! the built-in defaults. Clap then does the overriding, and knows which values came from flags.
//!
//! Invariants: nothing is read that was not named (no default file); a key or value nobody understands is an error, never
//! ignored, because a setting that silently has no effect is found in the worst hour; no secret reaches an error, `Debug` or
//! `config show`.

mod keys;
mod layers;
mod sinks;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use keys::{
    AssignmentPolicy, CloudWatchMetrics, Config, HttpUrl, LogFormat, MemoryMode, Secret, bound,
};
use layers::{Kind, Layer};
pub use sinks::{EventSink, SinkTarget};

/// What the process was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve with an embedded DynamoDB: no AWS, no network
    Dev,
    /// Serve on DynamoDB
    Serve,
    /// Manage the directory's own tables
    Tables(TablesCommand),
    /// Print the effective configuration
    ConfigShow,
}

/// What to do with the directory's own tables.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum TablesCommand {
    /// Create the tables that are missing
    Create,
    /// Print the state of the tables
    Describe,
    /// Delete the tables with everything in them
    Delete {
        /// The table prefix once more, as a confirmation; it must equal --table-prefix
        #[arg(long, value_name = "PREFIX")]
        confirm_prefix: Option<String>,
    },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag, such as `--listen`
    Flag(String),
    /// A variable, such as `CELLD_LISTEN`
    Environment(String),
    File(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment {}", escaped(name)),
            // a path may hold a line break, which would end the comment it is shown in
            Self::File(path) => write!(f, "file {}", escaped(&path.to_string_lossy())),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One key's effective value, ready to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub key: String,
    pub value: Shown,
    pub origin: Origin,
}

/// A value as far as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A TOML value
    Toml(String),
    /// A secret is set; what it is, this type does not know
    Secret,
    /// No value, and no default
    Absent,
}

/// A parsed and validated command line, with the configuration that goes with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    pub command: Command,
    pub config: Config,
    /// Every key, in the order of [`Config`]
    pub origins: Vec<Effective>,
    /// Where the event sinks came from, which are no key of the other layers
    pub sinks_origin: Origin,
}

/// Something wrong with one key in one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub origin: Origin,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", escaped(&self.key), self.origin, self.message)
    }
}

/// Why there is no [`Invocation`].
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A command line that clap refuses, or one that asks for help or the version, which is no failure
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// All that is wrong with the environment and the file, or with the values together; never empty
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// 0 for `--help` and `--version`, else 2.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(error) if !error.use_stderr() => 0,
            _ => 2,
        }
    }

    /// Prints help and version to standard output, everything else to standard error. A closed stream is ignored, for
    /// there is nobody left to tell.
    pub fn print(&self) {
        match self {
            Self::Usage(error) => drop(error.print()),
            Self::Invalid(problems) => {
                let lines: String =
                    problems.iter().map(|problem| format!("error: {problem}\n")).collect();
                drop(std::io::Write::write_all(&mut std::io::stderr(), lines.as_bytes()));
            }
        }
    }
}

#[derive(Parser)]
#[command(
    name = "celld",
    version,
    about = "Cell Directory: finds, assigns and moves the cells of tenants",
    after_help = "Precedence: flags, CELLD_* variables, the file of --config, defaults. In the file a key is its flag with _ for -; [[event_sinks]] are in the file alone.",
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    /// TOML file to read; none is read by default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Config,
    #[command(subcommand)]
    verb: Verb,
}

/// [`Command`] as it is spelled on the command line.
#[derive(Subcommand)]
enum Verb {
    /// Serve with an embedded DynamoDB: no AWS, no network
    Dev,
    /// Serve on DynamoDB
    Serve,
    /// Manage the directory's own tables
    #[command(subcommand)]
    Tables(TablesCommand),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Print the effective configuration as TOML, with the origin of each value
    Show,
}

/// The whole command, with what is the same for every key added here and not forty times in `keys.rs`.
fn command() -> clap::Command {
    Cli::command().mut_args(|arg| {
        let key = arg.get_id().to_string();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let arg = arg.help(format!("{help} [env: {}]", layers::env_name(&key))).global(true);
        if Kind::of(&arg) == Kind::Duration { arg.value_name("DURATION") } else { arg }
    })
}

/// Parses a command line (`args`, the program's name first) with an environment (`variables`) and, if one of the two
/// names it, a TOML file of at most 1 MiB.
///
/// # Errors
/// [`ConfigError::Usage`] for a bad flag, `--help` and `--version`. [`ConfigError::Invalid`] for everything wrong in the
/// lower layers (unreadable file, unknown key, bad value, whether or not a flag overrides it); or, when every value is
/// good by itself, for values that contradict each other: one of `tls_cert` and `tls_key`; `listen` beyond loopback with neither
/// TLS nor `insecure`; `commit_budget` under `commit_timeout`; `journal_retention` under `commit_budget`; `operations_takeover` under `operations_interval`; `migration_takeover` under `migration_interval`; `migration_freeze_budget` under twice `migration_freeze_settle`; a token or a probe without `migration_freeze_url`; `retry_backoff_max` under `retry_backoff_min`; `load_limit` under `load_spare_from`;
/// a short `tenant_hash_key`; and for `dev` a `dynamodb_endpoint` or both listeners on one address.
pub fn parse<A, E>(args: A, variables: E) -> Result<Invocation, ConfigError>
where
    A: IntoIterator<Item = OsString>,
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let args: Vec<OsString> = args.into_iter().collect();
    let flags = command().try_get_matches_from(&args)?;
    let (lower, sinks, sinks_origin) =
        lower_layers(&flags, variables).map_err(ConfigError::Invalid)?;

    let layered = command().mut_args(|arg| match lower.get(arg.get_id().as_str()) {
        Some(given) => arg.default_value(given.text.clone()),
        None => arg,
    });
    let matches = layered.try_get_matches_from(&args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.settings.event_sinks = sinks;
    let invocation = Invocation {
        command: match cli.verb {
            Verb::Dev => Command::Dev,
            Verb::Serve => Command::Serve,
            Verb::Tables(tables) => Command::Tables(tables),
            Verb::Config(ConfigVerb::Show) => Command::ConfigShow,
        },
        config: cli.settings,
        origins: keys().iter().map(|arg| effective(arg, &matches, &lower)).collect(),
        sinks_origin,
    };
    let problems = contradictions(&invocation);
    if problems.is_empty() { Ok(invocation) } else { Err(ConfigError::Invalid(problems)) }
}

/// The arguments that are keys: all but `config`, which says where keys are.
fn keys() -> Vec<Arg> {
    command().get_arguments().filter(|arg| arg.get_id() != "config").cloned().collect()
}

/// The environment over the file.
fn lower_layers<E>(
    flags: &ArgMatches,
    variables: E,
) -> Result<(Layer, Vec<EventSink>, Origin), Vec<Problem>>
where
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut problems = Vec::new();
    let all: Vec<Arg> = command().get_arguments().cloned().collect();
    let environment = layers::environment(&all, variables, &mut problems);
    let file = flags
        .get_one::<PathBuf>("config")
        .map(|path| (path.clone(), Origin::Flag("--config".to_owned())))
        .or_else(|| layers::config_path(&environment));
    let (mut lower, sinks, origin) = match file {
        Some((path, named_by)) => {
            let (layer, sinks) = layers::file(&keys(), &path, &named_by, &mut problems);
            let origin = if sinks.is_empty() { Origin::Default } else { Origin::File(path) };
            (layer, sinks, origin)
        }
        None => (Layer::new(), Vec::new(), Origin::Default),
    };
    lower.extend(environment);
    if problems.is_empty() { Ok((lower, sinks, origin)) } else { Err(problems) }
}

fn effective(arg: &Arg, matches: &ArgMatches, lower: &Layer) -> Effective {
    let key = arg.get_id().as_str();
    let origin = match (matches.value_source(key), lower.get(key)) {
        (Some(ValueSource::CommandLine), _) => {
            Origin::Flag(format!("--{}", arg.get_long().unwrap_or(key)))
        }
        (_, Some(given)) => given.origin.clone(),
        (_, None) => Origin::Default,
    };
    let value = match matches.get_raw(key).and_then(|mut raw| raw.next()) {
        Some(raw) => shown(Kind::of(arg), raw),
        None => Shown::Absent,
    };
    Effective { key: key.to_owned(), value, origin }
}

/// A value that its key's parser took, in TOML's spelling.
fn shown(kind: Kind, raw: &OsStr) -> Shown {
    let text = raw.to_string_lossy();
    let number = match kind {
        Kind::Secret => return Shown::Secret,
        Kind::Boolean => Some(text.to_string()),
        // Rust takes `007` and `.5`, TOML does not
        Kind::Integer => text.parse::<u64>().ok().map(|number| number.to_string()),
        Kind::Float => text.parse::<f64>().ok().map(|number| format!("{number:?}")),
        Kind::Duration | Kind::Text => None,
    };
    Shown::Toml(number.unwrap_or_else(|| format!("\"{}\"", escaped(&text))))
}

/// The inside of a TOML basic string.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // writing to a String cannot fail
            c if c.is_control() => drop(write!(out, "\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
        out
    })
}

/// The effective configuration as a TOML file, one key a line, each with the origin of its value as a comment. Absent keys
/// and secrets are comments altogether: the file can be used as it is, and never sets a secret to its placeholder.
pub fn show(invocation: &Invocation) -> String {
    let keys = invocation.origins.iter().fold(
        String::new(),
        |mut out, Effective { key, value, origin }| {
            let line = match value {
                Shown::Toml(value) => format!("{key} = {value}  # {origin}"),
                Shown::Secret => format!("# {key} = \"(set)\"  # {origin}"),
                Shown::Absent => format!("# {key} is not set  # {origin}"),
            };
            out.push_str(&line);
            out.push('\n');
            out
        },
    );
    // Tables come last in TOML.
    keys + &sinks::show(&invocation.config.event_sinks, &invocation.sinks_origin)
}

/// What is wrong although every value is good by itself.
fn contradictions(invocation: &Invocation) -> Vec<Problem> {
    let config = &invocation.config;
    let origins: BTreeMap<&str, &Origin> = invocation
        .origins
        .iter()
        .map(|effective| (effective.key.as_str(), &effective.origin))
        .collect();
    let origin = |key: &str| origins.get(key).map_or(Origin::Default, |origin| (*origin).clone());
    let mut problems = Vec::new();
    let mut refuse = |wrong: bool, key: &str, message: String| {
        if wrong {
            problems.push(Problem { key: key.to_owned(), origin: origin(key), message });
        }
    };

    let (cert, key) = (config.tls_cert.is_some(), config.tls_key.is_some());
    refuse(
        cert && !key,
        "tls_cert",
        "a certificate needs its private key; set --tls-key too".to_owned(),
    );
    refuse(
        key && !cert,
        "tls_key",
        "a private key needs its certificate; set --tls-cert too".to_owned(),
    );
    refuse(
        !(keys::is_loopback(&config.listen) || config.insecure || cert || key),
        "listen",
        format!(
            "{} can be reached from other hosts, without TLS; set --tls-cert and --tls-key, or --insecure to allow it",
            config.listen
        ),
    );

    for (upper_key, upper, lower_key, lower) in [
        ("commit_budget", config.commit_budget, "commit_timeout", config.commit_timeout),
        // The entry of a commit whose reply was lost is looked for for as long.
        ("journal_retention", config.journal_retention, "commit_budget", config.commit_budget),
        (
            "operations_takeover",
            config.operations_takeover,
            "operations_interval",
            config.operations_interval,
        ),
        (
            "migration_takeover",
            config.migration_takeover,
            "migration_interval",
            config.migration_interval,
        ),
        (
            "retry_backoff_max",
            config.retry_backoff_max,
            "retry_backoff_min",
            config.retry_backoff_min,
        ),
    ] {
        let (upper_text, lower_text) = (keys::short(upper), keys::short(lower));
        let at_least = format!("{lower_text}, the value of {lower_key} ({})", origin(lower_key));
        refuse(
            upper < lower,
            upper_key,
            format!("bad value \"{upper_text}\": expected at least {at_least}"),
        );
    }

    // The time that a freeze has to hold is part of the budget, as is what comes after it: the marker, and the fence.
    let settle = config.migration_freeze_settle;
    refuse(
        config.migration_freeze_budget < 2 * settle,
        "migration_freeze_budget",
        format!(
            "bad value \"{}\": expected at least {}, twice the value of migration_freeze_settle ({})",
            keys::short(config.migration_freeze_budget),
            keys::short(2 * settle),
            origin("migration_freeze_settle")
        ),
    );

    refuse(
        config.load_limit < config.load_spare_from,
        "load_limit",
        format!(
            "bad value {}: expected at least {}, the value of load_spare_from ({})",
            config.load_limit,
            config.load_spare_from,
            origin("load_spare_from")
        ),
    );

    for (key, is_set) in [
        ("migration_freeze_token", config.migration_freeze_token.is_some()),
        ("migration_freeze_probe_profile", config.migration_freeze_probe_profile.is_some()),
    ] {
        let hookless = is_set && config.migration_freeze_url.is_none();
        refuse(hookless, key, "there is no hook; set --migration-freeze-url too".to_owned());
    }

    let key_chars = config.tenant_hash_key.as_ref().map(|key| key.expose().chars().count());
    let min_chars = bound::TENANT_HASH_KEY_MIN_CHARS;
    refuse(
        key_chars.is_some_and(|chars| chars < min_chars),
        "tenant_hash_key",
        format!("bad value: expected at least {min_chars} characters"),
    );

    if invocation.command == Command::Dev {
        let endpoint =
            "`dev` brings its own DynamoDB; use `serve`, or unset the endpoint".to_owned();
        refuse(config.dynamodb_endpoint.is_some(), "dynamodb_endpoint", endpoint);
        let same = config.listen == config.dev_dynamodb_listen && config.listen.port() != 0;
        refuse(
            same,
            "dev_dynamodb_listen",
            format!("{} is taken by listen; choose another port", config.listen),
        );
    }
    for (number, sink) in config.event_sinks.iter().enumerate() {
        let homeless = matches!(sink.target, SinkTarget::Otlp { endpoint: None, .. })
            && config.otlp_endpoint.is_none();
        if homeless {
            problems.push(Problem {
                key: format!("{}[{number}].endpoint", sinks::KEY),
                origin: invocation.sinks_origin.clone(),
                message: "is missing; set it, or otlp_endpoint".to_owned(),
            });
        }
    }
    problems
}

#[cfg(test)]
pub(crate) mod tests;
