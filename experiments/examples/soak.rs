//! Runs one experiment over and over in one process, each time in a new folder, and says after each time what the process holds:
//! `soak CONFIG SCRATCH SECONDS`. `scripts/check-soak.py` reads it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use experiments::cli::{Cli, run};

// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Soak {
    /// An experiment of some fractions of a second.
    config: PathBuf,
    /// Where folders are made and removed.
    scratch: PathBuf,
    /// How long.
    seconds: u64,
}

fn main() -> anyhow::Result<()> {
    let Soak { config, scratch, seconds } = Soak::parse();
    let began = Instant::now();
    for n_runs in 1.. {
        let out = scratch.join(n_runs.to_string());
        let arguments: [&Path; 4] = [Path::new("experiments"), &config, Path::new("--out"), &out];
        let code = run(Cli::try_parse_from(arguments)?)?;
        ensure!(code == ExitCode::SUCCESS, "run {n_runs} failed, see {}", out.display());
        std::fs::remove_dir_all(&out)?;
        let held = Held::of_this_process()?;
        // Apart from the tables of the experiment, which go to standard output.
        eprintln!("soak {} {n_runs} {} {} {}", began.elapsed().as_secs(), held.kib, held.n_files, held.n_threads);
        if began.elapsed() > Duration::from_secs(seconds) {
            break;
        }
    }
    Ok(())
}

/// What a process holds, as Linux counts it.
struct Held {
    kib: u64,
    n_files: usize,
    n_threads: usize,
}

impl Held {
    fn of_this_process() -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let n_of = |folder: &str| anyhow::Ok(std::fs::read_dir(folder)?.count());
        Ok(Self {
            kib: kib.trim().trim_end_matches(" kB").parse()?,
            n_files: n_of("/proc/self/fd")?,
            n_threads: n_of("/proc/self/task")?,
        })
    }
}
