//! `experiments list`.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Args, ValueEnum};

use crate::inspect::{List, Listed};

/// Where experiments' files are in a checkout.
const CONFIGS: &str = "configs";

/// List what there is to choose from, with a word on each.
///
///   experiments list methods
///   experiments list presets --json
///   experiments list            all lists but the experiments' files
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct ListArgs {
    /// What to list.
    #[arg(value_enum)]
    what: Option<What>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Quantization methods.
    Methods,
    /// Model families.
    Families,
    /// Texts to calibrate and evaluate on.
    Datasets,
    /// Questions to evaluate on.
    Tasks,
    /// What is measured.
    Metrics,
    /// What to run on.
    Devices,
    /// Named settings of methods.
    Presets,
    /// Layouts that `quantize` writes.
    Formats,
    /// Experiments' files in the folder `configs`.
    Configs,
}

impl What {
    fn list(self) -> anyhow::Result<List> {
        Ok(match self {
            Self::Methods => List::methods(),
            Self::Families => List::families(),
            Self::Datasets => List::datasets(),
            Self::Tasks => List::tasks(),
            Self::Metrics => List::metrics(),
            Self::Devices => List::devices(),
            Self::Presets => List::presets(),
            Self::Formats => List::formats(),
            Self::Configs => List::configs(Path::new(CONFIGS))?,
        })
    }
}

pub(super) fn run(args: &ListArgs) -> anyhow::Result<()> {
    let wanted: Vec<What> = match args.what {
        Some(what) => vec![what],
        None => What::value_variants().iter().copied().filter(|what| *what != What::Configs).collect(),
    };
    let lists = wanted.into_iter().map(What::list).collect::<anyhow::Result<Vec<List>>>()?;
    let text = if args.json {
        let by_name: BTreeMap<&str, &[Listed]> = lists.iter().map(|list| (list.of, list.entries.as_slice())).collect();
        serde_json::to_string_pretty(&by_name)? + "\n"
    } else {
        lists.iter().map(List::text).collect::<Vec<_>>().join("\n")
    };
    super::print(&text);
    Ok(())
}
