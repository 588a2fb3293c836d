//! One model quantized outside of an experiment: to be written as a packed checkpoint, or decoded from at once.

mod companions;
pub mod place;
pub mod request;
pub mod write;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use awq_core::arithmetic::FloatType;
use awq_core::backend::QuantBackend;
use awq_core::driver::{Calibration, FullPrecisionShare, Job, QuantizedModel, quantize_model};
use awq_core::load::packed::{LAYOUT_VERSION, PackedHeader};
use awq_core::load::{OpenedModel, QuantizedCheckpoint};
use awq_core::model::{open_decoder, wiring_of};
use awq_core::rule::GridRule;

use crate::assets::{AssetStore, sha256_of};
use crate::config::{
    BundledSplit, BundledText, CalibrationSpec, DatasetSpec, DocumentSeparator, Sotu, SotuSplit, TextFile,
};
use crate::data;
use crate::data::calibration::calibration_set;
use crate::device::{DeviceJob, run_on};
use crate::progress::Progress;
use crate::provenance::Provenance;
use crate::registry::MethodSpec;

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

/// A quantized model in memory.
pub struct Quantized {
    /// Its tensors.
    pub checkpoint: Arc<QuantizedCheckpoint>,
    /// Stored bits per quantized weight.
    pub bits_per_weight: f64,
    /// Linears of the blocks that were left in full precision.
    pub full_precision: Option<FullPrecisionShare>,
    /// See [`QuantizedModel::codes_sha256`].
    pub codes_sha256: String,
}

/// Quantizes an opened model.
///
/// # Errors
/// A model that is quantized already, a calibration text that is missing or too short, or what the method objects to.
pub fn quantize(
    opened: &OpenedModel,
    recipe: &Recipe,
    device: &str,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<Quantized> {
    if let Some(packed) = &opened.packed {
        let source = opened.checkpoint.source().display();
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
    let sequences = recipe.calibration.as_ref().map(|spec| calibration_ids(opened, spec, store)).transpose()?;
    let wiring = wiring_of(&opened.config, opened.checkpoint.as_ref())?;
    let model =
        run_on(device, FloatType::F32, QuantizeJob { opened, recipe, sequences: sequences.as_deref(), progress })?;
    let (bits_per_weight, codes_sha256) = (model.bits_per_weight(), model.codes_sha256());
    let full_precision = model.left_in_full_precision(&wiring, &opened.config, opened.checkpoint.as_ref());
    let checkpoint = Arc::new(model.into_checkpoint(&wiring, opened.checkpoint.clone()));
    Ok(Quantized { checkpoint, bits_per_weight, full_precision, codes_sha256 })
}

/// Bytes that must be free for `recipe`'s packed checkpoint of a model.
///
/// # Errors
/// A model of an unknown family, or overrides that do not fit it.
pub fn needed_bytes(opened: &OpenedModel, recipe: &Recipe) -> anyhow::Result<u64> {
    let wiring = wiring_of(&opened.config, opened.checkpoint.as_ref())?;
    recipe.rule.resolve(&wiring)?;
    let grid_of = |name: &str| {
        let linear = wiring.quantizable_linear(name)?;
        recipe.rule.grid_of(name.strip_suffix(".weight")?, linear.0).copied()
    };
    Ok(write::needed_bytes(opened.checkpoint.as_ref(), grid_of))
}

fn calibration_ids(opened: &OpenedModel, spec: &CalibrationSpec, store: &AssetStore) -> anyhow::Result<Vec<Vec<u32>>> {
    Ok(calibration_set(opened, spec, &data::load(&spec.dataset, store)?)?.ids)
}

struct QuantizeJob<'a> {
    opened: &'a OpenedModel,
    recipe: &'a Recipe,
    sequences: Option<&'a [Vec<u32>]>,
    progress: &'a Progress,
}

impl DeviceJob for QuantizeJob<'_> {
    type Output = QuantizedModel;

    fn run<B: QuantBackend>(self, device: B::Device) -> anyhow::Result<QuantizedModel> {
        let decoder = open_decoder::<B>(self.opened.config.clone(), self.opened.checkpoint.clone(), &device)?;
        let wiring = wiring_of(&self.opened.config, self.opened.checkpoint.as_ref())?;
        let job = Job { method: self.recipe.method.method::<B>(), grids: self.recipe.rule.resolve(&wiring)? };
        let calibration = self.recipe.calibration.as_ref().zip(self.sequences);
        let calibration = calibration.map(|(spec, sequences)| Calibration { sequences, propagation: spec.propagation });
        let n_blocks = decoder.config().n_blocks as u64;
        let bar = self.progress.bar(&format!("quantize to {}, blocks", self.recipe.label()), n_blocks);
        let pass = quantize_model(decoder.as_ref(), calibration, &[job], &mut |_| bar.advance(1))?;
        bar.finish();
        let model = pass.models.into_iter().next().context("one job gives one model")?;
        model.with_context(|| self.recipe.label())
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
