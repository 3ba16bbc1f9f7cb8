//! `celld-mutant`: `celld`, wrong in the way that `CELLD_MUTANT` names (`src/mutants.rs`). Exists only with the feature `mutants`.

use std::process::ExitCode;

use cell_directory::{app, config, mutants};

/// Which mutant to be.
const SWITCH: &str = "CELLD_MUTANT";

fn main() -> ExitCode {
    let chosen = std::env::var(SWITCH).map_err(|error| format!("{SWITCH}: {error}"));
    if let Err(problem) = chosen.and_then(|name| mutants::become_mutant(&name)) {
        eprintln!("celld-mutant: {problem}");
        return ExitCode::FAILURE;
    }
    // To the configuration it would be a key that does not exist.
    let settings = std::env::vars_os().filter(|(name, _)| name != SWITCH);
    match config::parse(std::env::args_os(), settings) {
        Ok(invocation) => app::main(invocation),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}
