//! `celld`, the Cell Directory's server.

use std::process::ExitCode;

use cell_directory::{app, config};

fn main() -> ExitCode {
    match config::parse(std::env::args_os(), std::env::vars_os()) {
        Ok(invocation) => app::main(invocation),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}
