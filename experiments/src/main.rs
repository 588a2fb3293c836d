//! `experiments`: quantization experiments from TOML files.

use std::process::ExitCode;

use clap::Parser;

// Fresh buffers for every tensor would cost page faults worth a third of a matrix product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match experiments::cli::run(experiments::cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
