//! `experiments quantize`.

use std::path::PathBuf;

use anyhow::Context;
use awq_core::codebook::Codebook;
use awq_core::formats;
use awq_core::grid::{Bits, Granularity, ScaleDtype, Symmetry};
use clap::{Args, ValueEnum};

use super::model::{ModelArgs, parse_bits, parse_group_size};
use crate::codes::CodeStore;
use crate::config::{CheckpointFormat, OverrideSpec};
use crate::device;
use crate::quantize::card::stored_as;
use crate::quantize::place::{self, Place};
use crate::quantize::request::{Codes, Request};
use crate::quantize::target::Target;
use crate::quantize::{needed_bytes, quantize};
use crate::session::Machine;

/// Quantize a model and write it as a packed checkpoint, which `generate`, `chat` and experiments load without the original, or in a
/// format of other programs.
///
///   experiments quantize bundled --method awq --bits 4 --group-size 128 --out bundled-awq
///   experiments generate bundled-awq --prompt "Once"
///   experiments quantize models/my-model --method awq --bits 4 --group-size 128 --format awq --out my-model-awq
///   experiments quantize models/my-model --method awq --bits 4 --group-size 32 --format gguf --out my-model.gguf
///
/// The folder has config.json, tokenizer.json, tokenizer_config.json, model.safetensors with codes, scales and zero points
/// in place of each quantized weight, and quantization.json, which says how it was made. In an experiment's file it is a
/// model like any other: `source = { path = { path = "bundled-awq" } }`.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct QuantizeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Method, with its authors' settings: rtn, awq, gptq, awq_gptq or hqq; METHOD:PRESET for others, such as gptq:act-order.
    #[arg(long, value_name = "METHOD")]
    method: String,
    /// Bits of a code, 2 to 8.
    #[arg(long, value_name = "N", value_parser = parse_bits, required_unless_present = "values")]
    bits: Option<Bits>,
    /// A table of values in place of evenly spaced codes. NF4 of bitsandbytes is nf4 with groups of 64 and f32 scales, MXFP4 is e2m1
    /// with groups of 32 and e8m0 scales, NVFP4 is e2m1 with groups of 16 and e4m3 scales.
    #[arg(long, value_name = "TABLE", value_parser = parse_values, conflicts_with = "bits")]
    values: Option<Codebook>,
    /// Input channels that share a scale [default: all of an output channel].
    #[arg(long, value_name = "N", value_parser = parse_group_size)]
    group_size: Option<std::num::NonZeroU16>,
    /// Type in which scales are stored: f32 for the rare weight whose scales f16 cannot hold; e8m0, powers of two, and
    /// e4m3, 8-bit floats over one scale of the matrix, with --values.
    #[arg(long, value_enum, default_value_t = ScaleDtypeArg::F16)]
    scale_dtype: ScaleDtypeArg,
    /// Where zero lies: at a code of each group's own; or at the middle one, of codes that are all used (full) or of as many below it
    /// as above (restricted).
    #[arg(long, value_enum, default_value_t = SymmetryArg::Asymmetric, conflicts_with = "values")]
    symmetry: SymmetryArg,
    /// Another grid for some linears: *.down_proj=w8g64, *.down_proj=w8 with the group of the others, or model.layers.0.*=fp to
    /// leave them in full precision; may be given several times, the first that matches decides.
    #[arg(long = "override", value_name = "LINEARS=GRID")]
    overrides: Vec<OverrideSpec>,
    /// Layout of the folder: packed, this program's own; awq (AutoAWQ's GEMM), gptq_v2 (GPTQModel, vLLM, transformers), gptq (the
    /// same for ExLlama and older loaders; GPTQModel loads it with a fixed zero alone), compressed-tensors or
    /// compressed-tensors-0.17, which other programs load; gguf, one file for llama.cpp. `experiments list formats` says more.
    #[arg(long, value_name = "FORMAT", default_value = formats::PACKED)]
    format: CheckpointFormat,
    /// Folder to create; with --format gguf the file, NAME.gguf.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A model in fewer bits is a quantized one.
const FULL_PRECISION_BITS: f64 = 16.0;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScaleDtypeArg {
    F16,
    F32,
    E8m0,
    E4m3,
}

impl From<ScaleDtypeArg> for ScaleDtype {
    fn from(argument: ScaleDtypeArg) -> Self {
        match argument {
            ScaleDtypeArg::F16 => Self::F16,
            ScaleDtypeArg::F32 => Self::F32,
            ScaleDtypeArg::E8m0 => Self::E8m0,
            ScaleDtypeArg::E4m3 => Self::E4m3,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SymmetryArg {
    Asymmetric,
    Full,
    Restricted,
}

impl From<SymmetryArg> for Symmetry {
    fn from(argument: SymmetryArg) -> Self {
        match argument {
            SymmetryArg::Asymmetric => Self::Asymmetric,
            SymmetryArg::Full => Self::SymmetricFullRange,
            SymmetryArg::Restricted => Self::SymmetricRestricted,
        }
    }
}

fn parse_values(key: &str) -> Result<Codebook, String> {
    let known = || Codebook::ALL.map(|book| book.facts().key).join(", ");
    Codebook::named(key).ok_or_else(|| format!("no table of values is called `{key}`; choose one of {}", known()))
}

pub(super) fn run(args: &QuantizeArgs) -> anyhow::Result<()> {
    let device = args.model.device()?;
    device::set_threads(args.model.machine.threads.map(std::num::NonZero::get));
    let granularity = args.group_size.map_or(Granularity::PerChannel, Granularity::PerGroup);
    let scale_dtype = args.scale_dtype.into();
    let wanted = match (args.values, args.bits) {
        (Some(values), _) => Codes::Of(values),
        (None, bits) => Codes::Even(bits.context("--bits is missing")?),
    };
    let request = Request {
        method: args.method.clone(),
        codes: wanted,
        granularity,
        symmetry: args.symmetry.into(),
        scale_dtype,
        overrides: args.overrides.clone(),
    };
    // Before the long work: a folder that cannot be used is found at once.
    place::check(&args.out, args.model.path(), args.format.container())?;
    let model = args.model.open()?;
    let recipe = args.model.recipe(&request, &model.opened)?;
    let target = Target::plan(&model, &recipe, args.format)?;
    let place = Place::claim(&args.out, needed_bytes(&model, &recipe)?)?;
    let (store, progress) = (args.model.machine.store()?, args.model.machine.progress());
    target.notes().iter().for_each(|note| progress.note(&format!("--format {}: {note}", args.format.key())));
    let base = model.storage.as_ref().filter(|_| model.opened.packed.is_none());
    if let Some(base) = base.filter(|base| base.bits_per_weight < FULL_PRECISION_BITS) {
        progress.note(&format!(
            "the model is itself quantized ({}): codes are made of the values that it restores to",
            stored_as(base)
        ));
    }
    let codes = CodeStore::from_env(store.cache(), &progress)?;
    let machine = Machine::in_f32(device, &codes, &progress).within(args.model.machine.memory.as_ref());
    let quantized = quantize(&model, &recipe, machine, &store)?;
    let written = target.write(&place, &quantized, None).with_context(|| args.out.display().to_string())?;
    target.finish(place)?;
    let left = quantized.full_precision.map_or_else(String::new, |share| {
        let (n, bits) = (share.n_weights, share.bits_per_weight_of_all);
        format!(", {n} weights of linears left in full precision, {bits:.3} bits per weight over all linears")
    });
    let stored = written
        .storage
        .as_ref()
        .map_or_else(String::new, |storage| format!(", linears of blocks stored as {}", stored_as(storage)));
    super::print(&format!(
        "{}: {}, {:.3} bits per quantized weight{left}{stored}, {:.1} MB on disk, codes {}\n",
        args.out.display(),
        recipe.label(),
        quantized.bits_per_weight,
        written.n_bytes as f64 / 1e6,
        quantized.codes_sha256,
    ));
    Ok(())
}
