//! The checker rejects builds that are wrong. Such a build is `celld-mutant`, made by
//! `cargo build --features mutants --example celld-mutant`; `scripts/test` does that before.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cluster::Build;
use crate::{ONE_AT_A_TIME, first_seed, run, seconds};

/// Histories until a mutant must have been found out.
const CHANCES: u64 = 10;

async fn is_found_out(name: &'static str, by: &[&str]) {
    let program = program();
    let _turn = ONE_AT_A_TIME.lock().await;
    let first = first_seed();
    for seed in first..first + CHANCES {
        let build = Build::Mutant { program: program.clone(), name };
        let ran = run(build, seed, seconds()).await;
        let failed = ran.report.failed();
        println!("{name}: {}: {failed:?}", ran.describe());
        if failed.iter().any(|check| by.contains(check)) {
            println!("{name}: found out in history {}: {}", seed - first + 1, ran.wrongs()[0]);
            std::fs::remove_dir_all(&ran.folder).unwrap();
            return;
        }
    }
    panic!("{name} was not found out in {CHANCES} histories, from seed {first} on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_without_the_conditional_write_is_rejected() {
    is_found_out("unconditional_write", &["linearizability"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_without_the_epoch_check_is_rejected() {
    is_found_out("no_epoch_check", &["linearizability", "epochs"]).await;
}

/// The build that can be wrong is no part of the one that is shipped.
#[test]
fn celld_has_no_such_switch() {
    if cfg!(feature = "mutants") {
        return;
    }
    let celld = std::fs::read(env!("CARGO_BIN_EXE_celld")).unwrap();
    for name in ["unconditional_write", "no_epoch_check"] {
        let found = celld.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(!found, "celld knows of {name}");
    }
}

/// The mutants' program, newer than all that it is made of.
fn program() -> PathBuf {
    let celld = Path::new(env!("CARGO_BIN_EXE_celld"));
    let program = celld.with_file_name("examples").join("celld-mutant");
    let build = "run `cargo build --features mutants --example celld-mutant`";
    // Beside the program, cargo writes down what it was made of: `program: source source …`.
    let Ok(made_of) = std::fs::read_to_string(program.with_extension("d")) else {
        panic!("{} does not exist: {build}", program.display());
    };
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let built: SystemTime = changed(&program).unwrap();
    let (_, sources) = made_of.split_once(": ").unwrap();
    // A space in a path is written with a backslash before it.
    for source in sources.trim().replace("\\ ", "\0").split(' ') {
        let source = source.replace('\0', " ");
        let newer = changed(Path::new(&source)).map_or(true, |changed| changed > built);
        assert!(!newer, "{source} is newer than {}: {build}", program.display());
    }
    program
}
