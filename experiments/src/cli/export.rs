//! `experiments export`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use awq_core::formats::Container;
use awq_core::formats::gguf::GgmlType;
use clap::{Args, ValueEnum};

use super::model::ModelArgs;
use crate::codes::CodeStore;
use crate::device;
use crate::packed;
use crate::quantize::place::{self, Place};
use crate::quantize::request::Request;
use crate::quantize::scaled::{self, Asked};
use crate::registry::MethodSpec;
use crate::session::Machine;

/// Write a model in floats as a GGUF file, with AWQ's scales folded in if asked for, and an importance matrix: what llama-quantize
/// rounds by its own rules, to K-quants say.
///
///   experiments export models/my-model --scales-for w4g32 --imatrix my-imatrix.gguf --out my-model-f16.gguf
///   llama-quantize --imatrix my-imatrix.gguf my-model-f16.gguf my-model-Q4_K_M.gguf Q4_K_M
///
/// A model with scales computes what it did before. `quantize --format gguf` writes codes of this program instead.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Fold in the scales that AWQ searches for this grid: w4g32, w4 for one group a channel [default: the model as it is].
    #[arg(long, value_name = "wBITSgGROUP")]
    scales_for: Option<String>,
    /// Write what linears see of the calibration text, as llama.cpp's importance matrix.
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Type of matrices; norms and biases are f32.
    #[arg(long, value_enum, default_value_t = FloatArg::F16)]
    float: FloatArg,
    /// File to create, NAME.gguf.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FloatArg {
    F16,
    Bf16,
    F32,
}

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let device = args.model.device()?;
    device::set_threads(args.model.machine.threads.map(std::num::NonZero::get));
    place::check(&args.out, args.model.path(), Container::File)?;
    if let Some(imatrix) = &args.imatrix {
        let shown = imatrix.display();
        ensure!(!imatrix.exists(), "{shown}: exists already; choose another file with --imatrix, or remove this one");
        let folder = imatrix.parent().is_none_or(|folder| folder.as_os_str().is_empty() || folder.is_dir());
        ensure!(folder, "{shown}: its folder is not there; create it, or choose another with --imatrix");
        let is_same = std::path::absolute(imatrix).ok() == std::path::absolute(&args.out).ok();
        ensure!(!is_same, "{shown}: --out and --imatrix name one file; choose another with --imatrix");
    }
    let model = args.model.open()?;
    // Where only inputs are asked for, the grid does not matter.
    let grid = args.scales_for.as_deref().or(args.imatrix.as_ref().map(|_| "w8"));
    let recipe = match grid {
        None => None,
        Some(grid) => {
            let request: Request = format!("awq-{grid}")
                .parse()
                .map_err(|_| anyhow::anyhow!("--scales-for {grid}: not a grid such as w4g32"))?;
            Some(args.model.recipe(&request, &model.opened)?)
        }
    };
    let scales = match (&args.scales_for, &recipe) {
        (Some(_), Some(recipe)) => match &recipe.method {
            MethodSpec::Awq(awq) => Some((awq.clone(), recipe.rule.clone())),
            other => bail!("scales of {} are not AWQ's", other.label()),
        },
        _ => None,
    };
    let float = match args.float {
        FloatArg::F16 => GgmlType::F16,
        FloatArg::Bf16 => GgmlType::Bf16,
        FloatArg::F32 => GgmlType::F32,
    };
    let asked = Asked { scales, calibration: recipe.and_then(|recipe| recipe.calibration), float };
    let outline = scaled::outline(&model, &asked)?;
    let place = Place::claim(&args.out, packed::needed_bytes(model.opened.checkpoint.as_ref(), |_| None))?;
    let (store, progress) = (args.model.machine.store()?, args.model.machine.progress());
    let codes = CodeStore::from_env(store.cache(), &progress)?;
    let to = (place.file(), args.imatrix.as_deref());
    let machine = Machine::in_f32(device, &codes, &progress).within(args.model.machine.memory.as_ref());
    scaled::write((&to.0, to.1), &model, (&asked, &outline), machine, &store)?;
    let n_bytes = place.file().metadata().with_context(|| args.out.display().to_string())?.len();
    place.finish_file()?;
    let seen = args.imatrix.as_ref().map_or_else(String::new, |file| format!(", importance in {}", file.display()));
    super::print(&format!(
        "{}: {float}{}, {:.1} MB on disk{seen}\n",
        args.out.display(),
        args.scales_for.as_ref().map_or_else(String::new, |grid| format!(" scaled by AWQ for {grid}")),
        n_bytes as f64 / 1e6
    ));
    Ok(())
}
