//! `experiments compare`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::experiment_of;
use crate::compare::{Comparison, Results};
use crate::progress::{Progress, Style};
use crate::report::{markdown, terminal};

/// Compare two folders of results: settings, what made them, and numbers, with which of them differ beyond noise.
///
///   experiments compare results/before results/after
///   experiments compare results/before results/after --format markdown > comparison.md
///
/// Cells are matched by their settings, else by name; numbers by metric, text and protocol. Where both were scored on the same windows, a
/// difference is paired window by window, which shows what is far smaller than the interval of either number.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct CompareArgs {
    /// The folder that is held against.
    first: PathBuf,
    /// The folder that is compared with it.
    second: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables for the terminal.
    Text,
    /// Markdown.
    Markdown,
    /// JSON, with every number whole.
    Json,
}

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let read = |folder: &PathBuf| {
        let (results, notes) = Results::read(folder, experiment_of(folder)?)?;
        notes.iter().for_each(|note| Progress::new(Style::detect(false)).note(note));
        anyhow::Ok(results)
    };
    let comparison = Comparison::of(&read(&args.first)?, &read(&args.second)?)?;
    super::print(&match args.format {
        Format::Text => terminal::render(&comparison.document()),
        Format::Markdown => markdown::render(&comparison.document()),
        Format::Json => serde_json::to_string_pretty(&comparison)? + "\n",
    });
    Ok(())
}
