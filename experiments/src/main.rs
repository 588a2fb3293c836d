//! `experiments`: quantization experiments from TOML files.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

// Fresh buffers for every tensor would cost page faults worth a third of a matrix product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = experiments::cli::Cli::parse();
    let log = cli.log();
    match experiments::cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            // Where standard error is closed, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "{}", log.error(&error));
            ExitCode::FAILURE
        }
    }
}
