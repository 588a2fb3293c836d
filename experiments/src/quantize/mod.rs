//! One model quantized outside of an experiment: to be written as a packed checkpoint, or decoded from at once.

pub mod card;
pub mod export;
pub mod gguf_file;
pub mod place;
pub mod request;
pub mod scaled;
pub mod target;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use awq_core::backend::QuantBackend;
use awq_core::driver::FullPrecisionShare;
use awq_core::load::Checkpoint;
use awq_core::load::packed::{LAYOUT_VERSION, PackedHeader};
use awq_core::rule::GridRule;

use crate::assets::{AssetStore, sha256_of};
use crate::codes::Codes;
use crate::config::{
    BundledSplit, BundledText, CalibrationSpec, DatasetSpec, DocumentSeparator, Sotu, SotuSplit, TextFile,
};
use crate::data::Texts;
use crate::device::{DeviceJob, run_on};
use crate::packed;
use crate::provenance::Provenance;
use crate::registry::MethodSpec;
use crate::session::{Machine, Model, Session, Wanted};

/// How a model is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The method and its settings.
    pub method: MethodSpec,
    /// The grid of each linear.
    pub rule: GridRule,
    /// What it is calibrated on; `None` for methods that look at no activations.
    pub calibration: Option<CalibrationSpec>,
}

impl Recipe {
    /// `AWQ W4 g128`.
    pub fn label(&self) -> String {
        format!("{} {}", self.method.label(), self.rule.label())
    }
}

/// A quantized model.
pub struct Quantized {
    /// Its tensors.
    pub checkpoint: Arc<dyn Checkpoint>,
    /// Stored bits per quantized weight.
    pub bits_per_weight: f64,
    /// Linears of the blocks that were left in full precision.
    pub full_precision: Option<FullPrecisionShare>,
    /// See [`codes_sha256`](awq_core::driver::codes_sha256).
    pub codes_sha256: String,
}

/// Quantizes an opened model. Blocks that the code store has are not quantized again.
///
/// # Errors
/// A model that is quantized already, a calibration text that is missing or too short, or what the method objects to.
pub fn quantize(model: &Model, recipe: &Recipe, machine: Machine<'_>, store: &AssetStore) -> anyhow::Result<Quantized> {
    if let Some(packed) = &model.opened.packed {
        let source = model.opened.checkpoint.source().display();
        anyhow::bail!("{source}: is quantized already ({}); quantize the model that it was made from", packed.method);
    }
    ensure!(
        recipe.rule.head().is_none() || recipe.method.settings().quantizes_head(),
        "method `{}` cannot quantize `lm_head`, of which no activations are known; quantize it with rtn or hqq, or remove its override",
        recipe.method.key()
    );
    for grid in recipe.rule.grids() {
        let problem = grid.check().and_then(|()| recipe.method.settings().supports(grid));
        problem
            .map_err(|problem| anyhow::anyhow!("method `{}` on {}: {problem}", recipe.method.key(), grid.label()))?;
    }
    let (device, precision, codes) = (machine.device, machine.precision, machine.codes);
    let made = run_on(device, precision, QuantizeJob { model, recipe, machine, texts: Texts::new(store) })?;
    let (bits_per_weight, codes_sha256) = (made.bits_per_weight(), made.sha256()?);
    let full_precision = model.left_in_full_precision(&made)?;
    let checkpoint = made.checkpoint();
    // What is open can be read to the end.
    codes.trim();
    Ok(Quantized { checkpoint, bits_per_weight, full_precision, codes_sha256 })
}

/// Bytes that must be free for `recipe`'s packed checkpoint of a model.
///
/// # Errors
/// Overrides that do not fit the model.
pub fn needed_bytes(model: &Model, recipe: &Recipe) -> anyhow::Result<u64> {
    recipe.rule.resolve(&model.wiring)?;
    Ok(packed::needed_bytes(model.opened.checkpoint.as_ref(), |name| model.grid_of(&recipe.rule, name)))
}

struct QuantizeJob<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    machine: Machine<'a>,
    texts: Texts<'a>,
}

impl DeviceJob for QuantizeJob<'_> {
    type Output = Codes;

    fn run<B: QuantBackend>(mut self, device: B::Device) -> anyhow::Result<Codes> {
        let Recipe { method, rule, calibration } = self.recipe;
        let session = Session::<B>::open(self.model, self.machine, &device)?;
        let calibrated = calibration.as_ref().map(|spec| session.calibrate(spec, None, &mut self.texts)).transpose()?;
        let codes = session.stored(method, rule, calibrated.as_ref())?;
        if codes.is_whole() {
            return Ok(codes);
        }
        let label = format!("quantize to {}, blocks", self.recipe.label());
        let made = session.quantize(&label, vec![Wanted { method, rule: rule.clone(), codes }], calibrated.as_ref())?;
        made.into_iter().next().context("one job gives one model")?.with_context(|| self.recipe.label())
    }
}

/// The header of a packed checkpoint.
///
/// # Errors
/// Settings that are no JSON.
pub fn header(recipe: &Recipe, quantized: &Quantized) -> anyhow::Result<PackedHeader> {
    let provenance = Provenance::collect("", 0, Default::default());
    Ok(PackedHeader {
        layout_version: LAYOUT_VERSION,
        method: recipe.method.label(),
        settings: serde_json::to_value(&recipe.method)?,
        grid: recipe.rule.grid,
        overrides: recipe.rule.overrides.clone(),
        bits_per_weight: quantized.bits_per_weight,
        calibration: recipe.calibration.as_ref().map(serde_json::to_value).transpose()?,
        codes_sha256: quantized.codes_sha256.clone(),
        version: provenance.version,
        commit: provenance.commit,
        linears: Default::default(),
    })
}

/// The data set that `--calibration` names: `sotu`, `bundled`, or a text file.
///
/// # Errors
/// A file that cannot be read.
pub fn calibration_text(name: &str) -> anyhow::Result<DatasetSpec> {
    const BUNDLED_DOCUMENTS: std::num::NonZeroU32 = std::num::NonZeroU32::new(400).expect("400 is not 0");
    Ok(match name {
        "sotu" => DatasetSpec::Sotu(Sotu { split: SotuSplit::Calibration }),
        "bundled" => DatasetSpec::Bundled(BundledText {
            split: BundledSplit::Calibration,
            n_documents: BUNDLED_DOCUMENTS,
            topic: None,
        }),
        file => {
            let path = Path::new(file);
            ensure!(path.is_file(), "--calibration {file}: no such text file; give one, or sotu or bundled");
            let bytes = std::fs::read(path).with_context(|| format!("--calibration {file}: cannot read"))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let (path, sha256) = (path.to_owned(), sha256_of(&bytes));
            DatasetSpec::TextFile(TextFile { name, path, sha256, documents: DocumentSeparator::None })
        }
    })
}
