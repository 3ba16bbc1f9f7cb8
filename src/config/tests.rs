use super::*;
use std::io::Write as _;
use std::time::Duration;

/// Parses `celld` with the words of `line` and these variables.
pub(crate) fn celld(line: &str, variables: &[(&str, &str)]) -> Result<Invocation, ConfigError> {
    let args = std::iter::once("celld").chain(line.split_whitespace()).map(OsString::from);
    parse(args, variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

/// The same with `--config` and a file of this content.
pub(crate) fn celld_with_file(
    line: &str,
    content: &str,
    variables: &[(&str, &str)],
) -> Result<Invocation, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(content.as_bytes()).expect("write");
    celld(&format!("{line} --config {}", file.path().display()), variables)
}

fn origin(invocation: &Invocation, key: &str) -> String {
    invocation.origins.iter().find(|effective| effective.key == key).expect(key).origin.to_string()
}

#[test]
fn defaults_are_valid_and_are_what_an_empty_command_line_gives() {
    clap::Command::debug_assert(command());
    let invocation =
        celld("serve", &[("PATH", "/bin"), ("CELLCTL_X", "other program")]).expect("defaults");
    assert_eq!(invocation.config, Config::default());
    assert!(invocation.origins.iter().all(|effective| effective.origin == Origin::Default));
    assert_eq!(invocation.config.expiry_grace, Duration::from_secs(30 * 86_400));
}

#[test]
fn flags_beat_the_environment_beats_the_file_beats_defaults() {
    let file = "retry_attempts = 4";
    let env = [("CELLD_RETRY_ATTEMPTS", "5")];
    let flag = "serve --retry-attempts 6";
    let all = celld_with_file(flag, file, &env).expect("all");
    assert_eq!(
        (all.config.retry_attempts, origin(&all, "retry_attempts").as_str()),
        (6, "flag --retry-attempts")
    );
    let env_over_file = celld_with_file("serve", file, &env).expect("environment");
    assert_eq!(env_over_file.config.retry_attempts, 5);
    assert_eq!(origin(&env_over_file, "retry_attempts"), "environment CELLD_RETRY_ATTEMPTS");
    let file_only = celld_with_file("serve", file, &[]).expect("file");
    assert_eq!(file_only.config.retry_attempts, 4);
    assert!(origin(&file_only, "retry_attempts").starts_with("file /"));
    assert_eq!(origin(&file_only, "retry_backoff_min"), "default");
}

#[test]
fn a_flag_that_repeats_the_default_is_still_a_flag_and_false_overrides_true() {
    let invocation =
        celld_with_file("serve --insecure=false --log-format text", "insecure = true", &[])
            .expect("ok");
    assert!(!invocation.config.insecure);
    assert_eq!(origin(&invocation, "insecure"), "flag --insecure");
    assert_eq!(origin(&invocation, "log_format"), "flag --log-format");
    assert!(celld("serve --insecure --clear-tenants", &[]).expect("bare").config.clear_tenants);
}

#[test]
fn the_file_can_be_named_by_the_environment_and_the_flag_wins() {
    let mut named = tempfile::NamedTempFile::new().expect("temporary file");
    named.write_all(b"region = 'eu-west-1'").expect("write");
    let path = named.path().display().to_string();
    let by_env = celld("serve", &[("CELLD_CONFIG", &path)]).expect("by environment");
    assert_eq!(by_env.config.region.as_deref(), Some("eu-west-1"));
    assert_eq!(origin(&by_env, "region"), format!("file {path}"));
    let by_flag = celld_with_file("serve", "region = 'eu-west-2'", &[("CELLD_CONFIG", &path)])
        .expect("by flag");
    assert_eq!(by_flag.config.region.as_deref(), Some("eu-west-2"));
}

#[test]
fn flags_are_taken_before_and_after_every_subcommand() {
    for line in [
        "--retry-attempts 7 tables create",
        "tables --retry-attempts 7 create",
        "tables create --retry-attempts 7",
        "config show --retry-attempts 7",
        "dev --retry-attempts=7",
    ] {
        let invocation = celld(line, &[("CELLD_RETRY_ATTEMPTS", "2")]).expect(line);
        assert_eq!(invocation.config.retry_attempts, 7, "{line}");
        assert_eq!(origin(&invocation, "retry_attempts"), "flag --retry-attempts", "{line}");
    }
}

#[test]
fn commands() {
    let command = |line| celld(line, &[]).expect(line).command;
    assert_eq!(command("dev"), Command::Dev);
    assert_eq!(command("serve"), Command::Serve);
    assert_eq!(command("tables create"), Command::Tables(TablesCommand::Create));
    assert_eq!(command("tables describe"), Command::Tables(TablesCommand::Describe));
    let delete = |confirm_prefix| Command::Tables(TablesCommand::Delete { confirm_prefix });
    assert_eq!(command("tables delete"), delete(None));
    assert_eq!(command("tables delete --confirm-prefix p-"), delete(Some("p-".to_owned())));
    assert_eq!(command("config show"), Command::ConfigShow);
    for line in ["", "tables", "config", "serve --confirm-prefix x", "frobnicate"] {
        assert_eq!(celld(line, &[]).expect_err(line).exit_code(), 2, "{line}");
    }
}

#[test]
fn help_and_version_are_no_failures_even_in_a_broken_environment() {
    for line in ["--help", "--version", "serve --help", "help tables"] {
        assert_eq!(
            celld(line, &[("CELLD_LISTEN", "nonsense")]).expect_err(line).exit_code(),
            0,
            "{line}"
        );
    }
    let help = celld("serve --help", &[]).expect_err("help").to_string();
    for effective in celld("serve", &[]).expect("defaults").origins {
        let (flag, variable) = (effective.key.replace('_', "-"), layers::env_name(&effective.key));
        assert!(
            help.contains(&format!("--{flag}")) && help.contains(&format!("[env: {variable}]")),
            "{flag}"
        );
    }
}

#[test]
fn contradictions_name_both_sides() {
    let refused = |line: &str, env: &[(&str, &str)]| match celld(line, env) {
        Err(error @ ConfigError::Invalid(_)) => error.to_string(),
        other => panic!("{line}: {other:?}"),
    };
    let open = refused("serve", &[("CELLD_LISTEN", "0.0.0.0:50051")]);
    assert!(open.starts_with("listen (environment CELLD_LISTEN): 0.0.0.0:50051"), "{open}");
    assert!(
        ["--insecure", "--tls-cert", "--tls-key"].iter().all(|flag| open.contains(flag)),
        "{open}"
    );
    assert!(celld("serve --listen 0.0.0.0:1 --insecure", &[]).is_ok());
    assert!(celld("serve --listen [::]:1 --tls-cert c --tls-key k", &[]).is_ok());
    assert!(celld("serve --listen [::1]:1", &[]).is_ok());
    assert!(refused("serve --tls-cert c", &[]).contains("--tls-key"));
    assert!(refused("serve --tls-key k --listen 0.0.0.0:1", &[]).contains("--tls-cert"));
    let backoff = refused("serve --retry-backoff-max 10ms", &[("CELLD_RETRY_BACKOFF_MIN", "20ms")]);
    assert_eq!(
        backoff,
        "retry_backoff_max (flag --retry-backoff-max): bad value \"10ms\": expected at least 20ms, \
         the value of retry_backoff_min (environment CELLD_RETRY_BACKOFF_MIN)"
    );
    assert!(refused("serve --commit-timeout 6s", &[]).contains("commit_budget (default)"));
    assert!(celld("serve --commit-timeout 5s", &[]).is_ok());
    let short = refused("serve --journal-retention 1m --commit-budget 2m", &[]);
    assert!(short.contains("expected at least 2m, the value of commit_budget"), "{short}");
    let short = refused("serve --tenant-hash-key hunter2", &[]);
    assert!(short.contains("at least 16 characters") && !short.contains("hunter2"), "{short}");
    assert!(refused("dev --dynamodb-endpoint http://x", &[]).contains("use `serve`"));
    assert!(refused("dev --listen 127.0.0.1:50052", &[]).contains("choose another port"));
    assert!(celld("serve --listen 127.0.0.1:50052 --dynamodb-endpoint http://x", &[]).is_ok());
}

#[test]
fn shown_configuration_parses_again_to_the_same() {
    let line = "config show --data-dir a\"b\\c --retry-attempts 007 --trace-sample-ratio .5 --insecure --region r \
                --retry-budget-ratio 1 --expiry-grace 36h --otlp-endpoint http://x:4317 --memory-placements +5000";
    let first = celld(line, &[("CELLD_TLS_CERT", "new\nline\u{7f}"), ("CELLD_TLS_KEY", "k # k")])
        .expect("first");
    let second = celld_with_file("config show", &show(&first), &[]).expect("second");
    assert_eq!(second.config, first.config);
    let values = |invocation: &Invocation| -> Vec<_> {
        invocation
            .origins
            .iter()
            .map(|effective| (effective.key.clone(), effective.value.clone()))
            .collect()
    };
    assert_eq!(values(&second), values(&first));
}

#[test]
fn show_tells_origins_and_keeps_secrets() {
    let secret = "0123456789abcdef";
    let file = format!("lookup_budget = '2s'\ntenant_hash_key = '{secret}'");
    let invocation =
        celld_with_file("config show --log-format=json", &file, &[("CELLD_INSECURE", "true")])
            .expect("ok");
    let text = show(&invocation);
    for line in [
        "log_format = \"json\"  # flag --log-format",
        "insecure = true  # environment CELLD_INSECURE",
        "retry_budget_ratio = 0.2  # default",
        "# region is not set  # default",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    assert!(text.contains("lookup_budget = \"2s\"  # file /"), "{text}");
    assert!(text.contains("# tenant_hash_key = \"(set)\"  # file /"), "{text}");
    assert!(!text.contains(secret) && !format!("{invocation:?}").contains(secret));
    assert_eq!(invocation.config.tenant_hash_key.expect("set").expose(), secret);
}

#[test]
fn a_path_with_a_line_break_cannot_leave_its_comment() {
    let origin = Origin::File(PathBuf::from("a\nlisten = 1"));
    assert_eq!(origin.to_string(), "file a\\u000Alisten = 1");
}

#[test]
fn a_freeze_has_a_hook_and_time_to_settle() {
    let refused = |line: &str| {
        let error = celld(&format!("serve {line}"), &[]).expect_err(line);
        error.to_string()
    };
    let url = "--migration-freeze-url=https://ops.example.com/freeze";
    let secret = "--migration-freeze-token=0123456789abcdef";
    for lonely in [secret, "--migration-freeze-probe-profile=orders"] {
        let error = refused(lonely);
        assert!(error.contains("set --migration-freeze-url too"), "{error}");
        assert!(!error.contains("0123456789abcdef"), "{error}");
        assert!(celld(&format!("serve {lonely} {url}"), &[]).is_ok());
    }
    for outside in ["999ms", "61m"] {
        let error = refused(&format!("--migration-freeze-budget={outside}"));
        assert!(error.contains("from 1s to 1h"), "{error}");
    }
    for outside in ["-1s", "301s"] {
        let error = refused(&format!("--migration-freeze-settle={outside}"));
        assert!(error.contains("from 0s to 5m"), "{error}");
    }
    // One that lasts no longer than it has to hold would always be late.
    for budget in ["2s", "3s", "5999ms"] {
        let line = format!("--migration-freeze-budget={budget} --migration-freeze-settle=3s");
        let error = refused(&line);
        assert!(
            error.contains("expected at least 6s, twice the value of migration_freeze_settle"),
            "{error}"
        );
    }
    assert!(celld("serve --migration-freeze-budget=6s --migration-freeze-settle=3s", &[]).is_ok());
    for wrong in ["ftp://x", "ops/freeze", "https://user@ops/freeze"] {
        refused(&format!("--migration-freeze-url={wrong}"));
    }
    refused("--migration-freeze-probe-profile=[orders]");
}
