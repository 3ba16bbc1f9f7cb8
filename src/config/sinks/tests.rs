use crate::config::tests::{celld, celld_with_file};
use crate::config::{EventSink, SinkTarget, show};

const ALL: &str = "
otlp_endpoint = 'http://127.0.0.1:4317'

[[event_sinks]]
group = 'archive'
kind = 'ndjson'
file = '/var/lib/celld/events.ndjson'
images = true

[[event_sinks]]
group = 'hooks'
kind = 'webhook'
url = 'https://example.com/hook'
headers = { Authorization = 'Bearer hunter2' }
cells = ['cell-a']
tables = ['Orders']
start = 'latest'
timeout = '3s'

[[event_sinks]]
group = 'audit'
kind = 'otlp'
";

fn sinks(file: &str) -> Vec<EventSink> {
    celld_with_file("serve", file, &[]).expect(file).config.event_sinks
}

#[test]
fn sinks_come_from_the_file_and_are_shown_without_their_secrets() {
    let invocation = celld_with_file("config show", ALL, &[]).expect("a good file");
    let [archive, hooks, audit] = &invocation.config.event_sinks[..] else { panic!("three sinks") };
    assert_eq!((archive.images, archive.latest, &archive.cells), (true, false, &None));
    assert_eq!((hooks.kind(), hooks.latest, hooks.images), ("webhook", true, false));
    assert_eq!(hooks.tables.as_deref(), Some(&["Orders".to_owned()][..]));
    let SinkTarget::Webhook { headers, timeout, .. } = &hooks.target else { panic!("{hooks:?}") };
    assert_eq!(headers["authorization"].expose(), "Bearer hunter2");
    assert_eq!(timeout.as_secs(), 3);
    assert!(matches!(audit.target, SinkTarget::Otlp { endpoint: None, .. }));

    let shown = show(&invocation);
    assert!(!shown.contains("hunter2") && !format!("{invocation:?}").contains("hunter2"));
    assert!(shown.contains("# headers.authorization = \"(set)\""), "{shown}");
    let again = sinks(&shown);
    assert_eq!(again[0], *archive);
    assert_eq!(again[2], *audit);
    assert_eq!((&again[1].cells, &again[1].group), (&hooks.cells, &hooks.group));
}

#[test]
fn what_is_wrong_is_named_by_its_key() {
    let sink = |more: &str| {
        format!("[[event_sinks]]\ngroup = 'g'\nkind = 'webhook'\nurl = 'http://h'\n{more}")
    };
    let twice = "[[event_sinks]]\ngroup = 'g'\nkind = 'ndjson'\nfile = 'a'\n";
    for (file, expected) in [
        ("event_sinks = 'x'".to_owned(), "event_sinks (file /"),
        ("event_sinks = ['x']".to_owned(), "event_sinks[0] (file /"),
        ("[[event_sinks]]\nkind = 'ndjson'\nfile = 'x'".to_owned(), "event_sinks[0].group (file /"),
        (
            "[[event_sinks]]\ngroup = 'a b'\nkind = 'otlp'".to_owned(),
            "event_sinks[0].group (file /",
        ),
        ("[[event_sinks]]\ngroup = 'g'".to_owned(), "event_sinks[0].kind (file /"),
        ("[[event_sinks]]\ngroup = 'g'\nkind = 'kafka'".to_owned(), "ndjson or webhook or otlp"),
        ("[[event_sinks]]\ngroup = 'g'\nkind = 'ndjson'".to_owned(), "event_sinks[0].file (file /"),
        ("[[event_sinks]]\ngroup = 'g'\nkind = 'otlp'".to_owned(), "set it, or otlp_endpoint"),
        (sink("file = 'x'"), "event_sinks[0].file (file /"),
        (sink("color = 'x'"), "event_sinks[0].color (file /"),
        (sink("cells = ['A']"), "event_sinks[0].cells[0] (file /"),
        (sink("cells = []"), "leave it out for all"),
        (sink("tables = [1]"), "event_sinks[0].tables[0] (file /"),
        (sink("start = 'now'"), "expected trim_horizon or latest"),
        (sink("images = 'yes'"), "event_sinks[0].images (file /"),
        (sink("timeout = '1h'"), "expected a duration from 10ms to 1m"),
        (sink("headers = { a = 1 }"), "event_sinks[0].headers.a (file /"),
        (sink("headers = { 'a b' = 'x' }"), "event_sinks[0].headers.a b (file /"),
        (format!("{twice}{twice}"), "event_sinks[1].group (file /"),
        (format!("{twice}{twice}"), "event_sinks[1].file (file /"),
        (twice.repeat(9), "at most 8 sinks"),
    ] {
        let error = celld_with_file("serve", &file, &[]).expect_err(&file).to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
    let url = sink("").replace("http://h", "http://user:hunter2@h");
    let error = celld_with_file("serve", &url, &[]).expect_err("a password").to_string();
    assert!(error.contains("event_sinks[0].url") && !error.contains("hunter2"), "{error}");
}

#[test]
fn other_layers_say_that_sinks_are_for_the_file() {
    let error = celld("serve", &[("CELLD_EVENT_SINKS", "x")]).expect_err("a variable").to_string();
    assert!(error.contains("only in the file"), "{error}");
    assert!(celld("serve --event-sinks x", &[]).is_err());
    assert!(celld("serve", &[]).expect("none").config.event_sinks.is_empty());
}
