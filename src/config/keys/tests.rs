use super::*;
use crate::config::parse;
use std::ffi::OsString;

fn with_flag(key: &str, value: &str) -> Result<Config, String> {
    let flag = format!("--{}={value}", key.replace('_', "-"));
    parse(["celld", "serve", &flag].map(OsString::from), [])
        .map(|invocation| invocation.config)
        .map_err(|error| error.to_string())
}

/// Key, lowest, highest, just below, just above. The cross-field rules are kept out of the way by choosing keys
/// whose partner's default does not interfere, or by testing the partner in `mod.rs`.
const EDGES: &[(&str, &str, &str, &str, &str)] = &[
    ("lookup_budget", "10ms", "1m", "9ms", "61s"),
    ("read_timeout", "1ms", "1m", "999us", "61s"),
    ("retry_attempts", "1", "10", "0", "11"),
    ("retry_budget_ratio", "0", "1", "-0.1", "1.1"),
    ("retry_budget_floor", "0", "10000", "-1", "10001"),
    ("memory_placements", "1000", "100000000", "999", "100000001"),
    ("journal_poll_interval", "10ms", "1m", "9ms", "61s"),
    ("sweep_interval", "10ms", "1h", "9ms", "61m"),
    ("journal_retention", "1m", "30d", "59s", "31d"),
    ("load_interval", "100ms", "1h", "99ms", "61m"),
    ("events_lease", "1s", "10m", "999ms", "11m"),
    ("backups_interval", "10ms", "1h", "9ms", "61m"),
    ("drill_pages_per_second", "1", "1000", "0", "1001"),
    ("guards_interval", "10ms", "1h", "9ms", "61m"),
    ("migration_interval", "10ms", "5s", "9ms", "6s"),
    ("migration_takeover", "1s", "1h", "999ms", "61m"),
    ("migration_lease_margin", "0s", "1m", "-1s", "61s"),
    ("migration_soak", "0s", "30d", "-1s", "31d"),
    ("migration_pause_budget", "50ms", "1m", "49ms", "61s"),
    ("migration_concurrency", "1", "64", "0", "65"),
    ("migration_write_units", "0", "1000000", "-1", "1000001"),
    ("migration_freeze_timeout", "100ms", "1m", "99ms", "61s"),
    ("migration_guard_shards", "1", "16", "0", "17"),
    ("operations_interval", "10ms", "1m", "9ms", "61s"),
    ("operations_takeover", "2s", "1h", "1999ms", "61m"),
    ("snapshot_interval", "0s", "1d", "-1s", "25h"),
    ("expiry_grace", "1h", "365d", "59m", "366d"),
    ("request_id_retention", "10m", "90d", "9m", "91d"),
    ("batch_concurrency", "1", "1024", "0", "1025"),
    ("max_message_bytes", "1024", "67108864", "1023", "67108865"),
    ("serve_threads", "0", "1024", "-1", "1025"),
    ("max_concurrent_streams", "1", "100000", "0", "100001"),
    ("drain_timeout", "0s", "1h", "-1s", "61m"),
    ("drain_delay", "0s", "5m", "-1s", "6m"),
    ("max_header_bytes", "1024", "1048576", "1023", "1048577"),
    ("max_connections", "1", "1000000", "0", "1000001"),
    ("handshake_timeout", "10ms", "1m", "9ms", "61s"),
    ("idle_timeout", "100ms", "1d", "99ms", "25h"),
    ("max_connection_age", "100ms", "365d", "99ms", "366d"),
    ("connection_grace", "0s", "1h", "-1s", "61m"),
    ("keepalive_interval", "100ms", "1h", "99ms", "61m"),
    ("keepalive_timeout", "100ms", "1m", "99ms", "61s"),
    ("max_queue_delay", "1ms", "1m", "999us", "61s"),
    ("max_in_flight", "4", "1000000", "3", "1000001"),
    ("max_refusal_hold", "0s", "10s", "-1s", "11s"),
    ("otlp_timeout", "10ms", "1m", "9ms", "61s"),
    ("trace_sample_ratio", "0", "1", "NaN", "inf"),
    ("metrics_interval", "100ms", "10m", "99ms", "11m"),
];

#[test]
fn bounds_hold_at_their_edges_and_the_help_text_tells_them() {
    let command = <Config as clap::Args>::augment_args(clap::Command::new("celld"));
    for (key, lowest, highest, below, above) in EDGES {
        for allowed in [lowest, highest] {
            assert!(
                with_flag(key, allowed).is_ok(),
                "{key} = {allowed}: {:?}",
                with_flag(key, allowed)
            );
        }
        for refused in [below, above, &"x", &""] {
            let error = with_flag(key, refused).expect_err(&format!("{key} = {refused}"));
            assert!(
                error.contains(&format!("from {lowest} to {highest}")),
                "{key} = {refused}: {error}"
            );
            assert!(error.contains(&key.replace('_', "-")), "{error}");
        }
        let arg = command.get_arguments().find(|arg| arg.get_id() == *key).expect(key);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("{lowest} to {highest}")), "{key}: {help}");
    }
}

#[test]
fn shapes_of_text_values() {
    let fine = [
        ("listen", "[::1]:0"),
        ("listen", "[::ffff:127.0.0.1]:1"),
        ("table_prefix", "Prod_1.eu-"),
        ("dynamodb_endpoint", "http://localhost:8000"),
        ("dynamodb_endpoint", "https://[::1]:8000/path"),
        ("region", "eu-west-1"),
        ("default_cell", "cell-a"),
        ("log_filter", "info,cell_directory=debug"),
        ("assignment_policy", "least-loaded"),
        ("memory_mode", "bounded"),
        ("cloudwatch_metrics", "publish"),
        ("load_limit", "10"),
        ("load_spare_from", "0.9"),
        ("log_format", "json"),
        ("insecure", "false"),
    ];
    for (key, value) in fine {
        assert!(with_flag(key, value).is_ok(), "{key} = {value}: {:?}", with_flag(key, value));
    }
    let (long_prefix, long_cell) = ("p".repeat(65), "c".repeat(64));
    let long_region = "r".repeat(33);
    let refused = [
        ("listen", "localhost"),
        ("listen", ""),
        ("table_prefix", "a b"),
        ("table_prefix", "ä"),
        ("table_prefix", &long_prefix),
        ("dynamodb_endpoint", "localhost:8000"),
        ("dynamodb_endpoint", "ftp://localhost"),
        ("dynamodb_endpoint", "http://"),
        ("dynamodb_endpoint", "/x"),
        ("otlp_endpoint", "http://user:pass@collector:4317"),
        ("otlp_endpoint", "http://collector:4317?token=x"),
        ("region", "EU West"),
        ("region", &long_region),
        ("default_cell", "-a"),
        ("default_cell", "Cell"),
        ("default_cell", ""),
        ("default_cell", &long_cell),
        ("dev_dynamodb_listen", "0.0.0.0:50052"),
        ("log_filter", "info,x=loud"),
        ("assignment_policy", "random"),
        ("memory_mode", "half"),
        ("cloudwatch_metrics", "on"),
        ("load_limit", "10.1"),
        ("load_limit", "0.7"),
        ("load_spare_from", "-0.1"),
        ("load_spare_from", "0.91"),
        ("insecure", "yes"),
        ("data_dir", ""),
    ];
    for (key, value) in refused {
        assert!(with_flag(key, value).is_err(), "{key} = {value}");
    }
}

#[test]
fn short_durations_are_exact_and_parse_again() {
    for (duration, text) in [
        (Duration::ZERO, "0s"),
        (Duration::from_millis(1500), "1500ms"),
        (Duration::from_secs(90), "90s"),
        (Duration::from_secs(365 * 86_400), "365d"),
        (Duration::from_micros(1_001), "1001us"),
    ] {
        assert_eq!(short(duration), text);
        assert_eq!(humantime::parse_duration(text).expect(text), duration);
    }
}

#[test]
fn debug_hides_the_secret_and_expose_gives_it() {
    let config = with_flag("tenant_hash_key", "0123456789abcdef").expect("a key of 16 characters");
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
    assert_eq!(config.tenant_hash_key.expect("set").expose(), "0123456789abcdef");
}
