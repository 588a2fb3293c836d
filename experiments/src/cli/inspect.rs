//! `experiments inspect`.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::ExitCode;

use awq_core::grid::{Bits, Granularity, Grid};
use clap::Args;

use super::model::{locate, parse_bits, parse_group_size};
use super::source::source_of;
use crate::assets::{AssetSettings, AssetStore};
use crate::config::ModelSource;
use crate::inspect::Inspected;
use crate::progress::Style;

/// Say what a model is, from the headers of its files: shapes, parameters, what would be quantized and how, memory, tokenizer, and
/// what is not supported. Also of packed folders and of folders of results. The exit code is 1 for a model that does not open.
///
///   experiments inspect bundled
///   experiments inspect SmolLM2-135M --bits 3 --group-size 64
///   experiments inspect model.gguf --json
///   experiments inspect results/quickstart
///
/// A model of the hub is downloaded whole (once): what its tensors are stands in the files that hold them.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct InspectArgs {
    /// A folder in Hugging Face layout, a folder that `experiments quantize` or an experiment wrote, a .gguf file, `bundled`, or
    /// `owner/name` or `owner/name@revision` of the Hugging Face hub. A path that exists
    /// wins, and so does a folder called `owner`, unless a revision is given.
    model: String,
    /// Bits of the grid that linears are held against, 2 to 8.
    #[arg(long, value_name = "N", default_value = "4", value_parser = parse_bits)]
    bits: Bits,
    /// Its group size.
    #[arg(long, value_name = "N", default_value = "128", value_parser = parse_group_size)]
    group_size: NonZeroU16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Folder that is searched for assets by sha256 before any network; may be given more than once.
    #[arg(long, value_name = "DIR")]
    assets: Vec<PathBuf>,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let grid = Grid::awq(args.bits, Granularity::PerGroup(args.group_size));
    let inspected = match source_of(&args.model) {
        // Not through the store, which would read every byte to hash it.
        ModelSource::Path(model) => Inspected::of(&args.model, &model.path, &grid)?,
        ModelSource::Bundled(_) | ModelSource::Hub(_) | ModelSource::Registry(_) | ModelSource::RegistryParts(_) => {
            let store = AssetStore::new(AssetSettings::from_env(&args.assets, Style::detect(args.quiet))?)?;
            Inspected::of(&args.model, &locate(&args.model, &store)?.path, &grid)?
        }
    };
    let text = if args.json { serde_json::to_string_pretty(&inspected)? + "\n" } else { inspected.text() };
    super::print(&text);
    Ok(if inspected.opens() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
