//! `experiments status`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::print;
use crate::cluster::status::Status;
use crate::cluster::{Shares, slurm};
use crate::config::ExperimentSpec;
use crate::plan::Plan;
use crate::progress::{Progress, Style};

/// Show how far each share of a submitted experiment is: cells done, failed and to do, from its records, and what SLURM says of
/// its task. Where SLURM does not answer, records alone.
///
///   experiments status results/smollm2
///   experiments status results/smollm2 --json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct StatusArgs {
    /// The folder that `submit` wrote to.
    folder: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let (shares, spec) = submitted_in(&args.folder)?;
    let mut status = Status::of(&shares, &Plan::new(&spec))?;
    // A scheduler that keeps no accounts forgets tasks soon after their end: the records then say all.
    let of_accounts = slurm::accounts(&shares.job_ids());
    match slurm::queue(&shares.submitted.job_name) {
        Ok(queue) => status = status.with_tasks(queue.into_iter().chain(of_accounts.unwrap_or_default())),
        Err(error) => {
            status = status.with_tasks(of_accounts.unwrap_or_default());
            status.notes.push(format!("states of tasks are not known: {error:#}"));
        }
    }
    if args.json {
        print(&(serde_json::to_string_pretty(&status)? + "\n"));
        return Ok(());
    }
    let progress = Progress::new(Style::detect(false));
    status.notes.iter().for_each(|note| progress.note(note));
    print(&status.text(&args.folder));
    Ok(())
}

/// What was submitted in a folder, and the experiment.
pub(super) fn submitted_in(folder: &Path) -> anyhow::Result<(Shares, ExperimentSpec)> {
    let shares = Shares::open(folder)?.with_context(|| {
        format!("{}: nothing was submitted in it; give the folder that `experiments submit` named", folder.display())
    })?;
    let spec = ExperimentSpec::read(&shares.experiment_file())?;
    Ok((shares, spec))
}
