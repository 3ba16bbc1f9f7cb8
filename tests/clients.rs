//! Python and Go clients, generated from `proto/` as another team would, against a running `celld`; and the examples of `docs/writers.md`,
//! against DynamoDB Local and whatever goes wrong on the way there.

#[path = "clients/writers/cases.rs"]
mod cases;
#[path = "support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;
#[path = "support/dynamodb_local.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod dynamodb_local;
#[path = "support/proxy.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod proxy;
#[path = "clients/writers/service.rs"]
mod service;
#[path = "clients/writers/world.rs"]
mod world;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use world::{Build, Language, World};

#[test]
fn generated_clients_work() {
    let folder = tempfile::tempdir().unwrap();
    let server = celld::Celld::dev(folder.path(), &["--log-filter=error"]);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = Command::new(here.join("scripts/client-tests")).arg(&server.address).output();
    let output = script.unwrap();
    let (said, wrong) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{wrong}", output.status);
    for language in ["Python", "Go"] {
        assert!(said.contains(language), "{language} was not run:\n{said}\n{wrong}");
    }
}

/// Longer than anything here takes.
const AMPLE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writer_in_python_keeps_the_contract() {
    keeps_the_contract(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writer_in_go_keeps_the_contract() {
    keeps_the_contract(Language::Go).await;
}

async fn keeps_the_contract(language: Language) {
    let build = Build::of(language);
    let world = World::new(&build, AMPLE).await;
    cases::under_a_lease_a_write_is_plain(&world).await;
    cases::an_answer_after_the_lease_does_not_count(&world).await;
    cases::a_lease_is_counted_from_the_question(&world).await;
    cases::a_late_write_is_done_where_the_tenant_is(&world).await;
    cases::a_lost_reply_is_asked_for_under_guard(&world).await;
    cases::what_cannot_be_repeated_is_never_plain(&world).await;
    cases::without_a_lease_a_write_is_checked(&world).await;
    cases::while_a_tenant_moves_every_write_leaves_a_record(&world).await;
    cases::a_directory_that_says_logged_is_asked_no_more(&world).await;
    cases::a_lost_reply_leaves_one_record(&world).await;
    cases::a_table_that_is_busy_is_tried_again(&world).await;
    cases::what_is_refused_for_another_reason_is_said_at_once(&world).await;
    cases::a_fence_is_waited_out(&world).await;
    cases::a_fence_that_outlasts_the_deadline_lets_nothing_pass(&world).await;
    cases::a_moved_tenant_is_followed(&world).await;
    cases::a_tenant_that_moved_long_ago_is_followed(&world).await;
    cases::a_tenant_that_moves_on_and_on_is_not_chased(&world).await;
    cases::a_cell_without_a_guard_is_not_written_to(&world).await;
    cases::a_cell_that_is_about_to_open_is_waited_for(&world).await;
    cases::a_strict_read_is_of_the_cell_that_has_the_tenant(&world).await;
    cases::a_write_that_is_never_answered_is_unknown(&world).await;
    let world = World::new(&build, Duration::from_secs(1)).await;
    cases::an_answer_that_does_not_come_is_asked_for_again(&world).await;
    service::a_writer_and_the_service_agree(&build).await;
}

/// The excerpts of `docs/writers.md` are what the examples are.
#[test]
fn what_the_document_shows_is_in_the_examples() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Indented as it may be, and in a comment or out of it.
    let plain = |text: &str| {
        let lines = text.lines().map(|line| line.trim_start_matches("//").trim());
        lines.collect::<Vec<_>>().join("\n")
    };
    let read = |name: &str| std::fs::read_to_string(here.join(name)).unwrap();
    let document = read("docs/writers.md");
    for (language, folder) in [("python", "examples/writers/python"), ("go", "examples/writers/go")]
    {
        let files = std::fs::read_dir(here.join(folder)).unwrap();
        let sources: Vec<_> =
            files.map(|file| plain(&read(file.unwrap().path().to_str().unwrap()))).collect();
        let opening = format!("```{language}\n");
        let excerpts: Vec<_> = document
            .split(&opening)
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert!(!excerpts.is_empty(), "{language}");
        for excerpt in excerpts {
            let found = sources.iter().any(|source| source.contains(plain(excerpt).trim()));
            assert!(found, "not in {folder}:\n{excerpt}");
        }
    }
}
