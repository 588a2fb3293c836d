//! `experiments collect`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::merge::merge;
use super::status::submitted_in;
use super::write_report;
use crate::cluster::status::{Counts, records_in};
use crate::plan::Plan;
use crate::progress::{Progress, Style};
use crate::record::{Line as _, StoredRecord};

/// Merge the records of a submitted experiment's shares into its folder, make tables and figures of them, and say what is missing.
/// It may be run at any time: nothing is taken twice. The exit code is 0 where every cell has its numbers.
///
///   experiments collect results/smollm2
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct CollectArgs {
    /// The folder that `submit` wrote to.
    folder: PathBuf,
}

pub(super) fn run(args: &CollectArgs) -> anyhow::Result<ExitCode> {
    let progress = Progress::new(Style::detect(false));
    let (shares, spec) = submitted_in(&args.folder)?;
    let folders = shares.all().map(|shard| shares.folder_of(shard));
    let begun: Vec<PathBuf> = folders.filter(|folder| folder.join(StoredRecord::FILE).is_file()).collect();
    merge(&args.folder, &spec, &begun, &progress)?;
    write_report(&args.folder, &progress)?;

    let (records, _) = records_in(&args.folder)?;
    let plan = Plan::new(&spec);
    let mut is_whole = true;
    for shard in shares.all() {
        let Counts { n_cells, n_done, n_failed, n_to_do } = Counts::of(&plan.clone().shard(shard), &[&records]);
        if n_done < n_cells {
            is_whole = false;
            let log = shares.log_of(shard);
            let log = if log.exists() { format!("; see {}", log.display()) } else { String::new() };
            progress.note(&format!("share {shard}: of {n_cells} cells {n_failed} failed and {n_to_do} are to do{log}"));
        }
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
