//! `experiments`: quantization experiments from TOML files.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

// Fresh buffers for every tensor would cost page faults worth a third of a matrix product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's number of the option `purge_delay`: after how many milliseconds freed memory goes back to the system.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Freed memory stays with the program for 10 seconds: what the next tensor needs, the system would have to clear first, which was a
/// twentieth of a search. For ever would save as much again, and take a tenth more memory.
#[allow(unsafe_code, reason = "an option of the allocator is set through its C interface")]
fn keep_freed_memory() {
    // SAFETY: any option may be set at any time, and this one takes any number.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 10_000) };
}

/// As many open files as the system permits: each stored block of each cell that is quantized together is one, and most shells begin
/// with 1024.
#[cfg(unix)]
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is not permitted after all, the limit stays what it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn main() -> ExitCode {
    keep_freed_memory();
    #[cfg(unix)]
    allow_open_files();
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
