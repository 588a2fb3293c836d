//! `experiments merge`.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Args;

use super::{experiment_of, write_report};
use crate::compare::settings_that_differ;
use crate::config::ExperimentSpec;
use crate::progress::{Progress, Style};
use crate::record::{Merged, RecordFile, StoredRecord};
use crate::runner::claim_folder;
use crate::runner::exports::CHECKPOINTS;

/// Join the records of shares of one experiment (`--shard`), and make its tables and figures.
///
///   experiments merge results/sweep results/sweep-shard-1-of-2 results/sweep-shard-2-of-2
///
/// The shares stay as they are, and what is on record already is not taken twice: a share that went on may be merged again. Where
/// folders have records of one cell, the newest with numbers counts, in whichever order they come. Models that shares kept
/// (`[export]`) stay where they are. A share may be unfinished; the experiment
/// itself, run with --out, then does what is missing.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct MergeArgs {
    /// Folder of the whole, made if it is not there.
    out: PathBuf,
    /// Folders of the shares.
    #[arg(required = true)]
    shares: Vec<PathBuf>,
}

pub(super) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let progress = Progress::new(Style::detect(false));
    let specs: Vec<ExperimentSpec> = args.shares.iter().map(|share| experiment_of(share)).collect::<Result<_, _>>()?;
    let whole =
        args.out.join(crate::record::RESOLVED_CONFIG).is_file().then(|| experiment_of(&args.out)).transpose()?;
    let first = whole.as_ref().unwrap_or(&specs[0]);
    for (spec, share) in specs.iter().zip(&args.shares) {
        let keys = settings_that_differ(first, spec);
        ensure!(
            keys.is_empty(),
            "{}: no share of the same experiment: {} differ; merge what one file asked",
            share.display(),
            keys.join(", ")
        );
    }
    merge(&args.out, first, &args.shares, &progress)?;
    write_report(&args.out, &progress)
}

/// Takes the records of all shares over into `out`, a folder of the experiment that they are shares of.
pub(super) fn merge(out: &Path, spec: &ExperimentSpec, shares: &[PathBuf], progress: &Progress) -> anyhow::Result<()> {
    let mut records: RecordFile<StoredRecord> = claim_folder(out, spec, None)?;
    for share in shares {
        let Merged { n_new, n_known, n_left, n_bad, n_without_blocks } = records.merge(share)?;
        let some = |n: usize, what: &str| if n > 0 { format!(", {n} {what}") } else { String::new() };
        progress.note(&format!(
            "{}: {n_new} records taken over{}, {n_known} known{}{}",
            share.display(),
            some(n_without_blocks, "without logs of blocks"),
            some(n_left, "left out, for their cells have newer ones here, or numbers in place of failures"),
            some(n_bad, "lines that are no records left out"),
        ));
        let kept = share.join(CHECKPOINTS);
        if kept.is_dir() {
            progress.note(&format!("{}: the models that this share kept stay there", kept.display()));
        }
    }
    Ok(())
}
