//! Python and Go clients, generated from `proto/` as another team would, against a running `celld`.

#[path = "support/celld.rs"]
#[allow(dead_code, reason = "each test file uses a part of it")]
mod celld;

use std::path::Path;
use std::process::Command;

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
