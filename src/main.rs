//! `celld`, the Cell Directory's server.

use std::process::ExitCode;

use cell_directory::{app, config};

/// A batch's answer is a thousand small strings: the allocator is a good part of the work.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match config::parse(std::env::args_os(), std::env::vars_os()) {
        Ok(invocation) => app::main(invocation),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}
