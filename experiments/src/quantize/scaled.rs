//! A model in floats as one GGUF file, with AWQ's scales folded in or as it is, and what its linears see as llama.cpp's importance
//! matrix: `llama-quantize --imatrix` rounds it by its own rules, K-quants among them. A block is in memory at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use awq_core::arithmetic::FloatType;
use awq_core::awq::{Awq, InputSquares, Scaled};
use awq_core::backend::QuantBackend;
use awq_core::driver::{BlockSink, Job, QuantizedBlock, Room, quantize_blocks};
use awq_core::formats::gguf::GgmlType;
use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::load::{Contents, EditedCheckpoint, GgufOutline, Importance, imatrix_file};
use awq_core::model::LinearName;
use awq_core::open::{gguf_outline, open_model};
use awq_core::pack::PackedWeight;
use awq_core::rule::GridRule;

use super::export::{about, activation_obstacle};
use super::gguf_file::GgufFile;
use crate::assets::AssetStore;
use crate::config::CalibrationSpec;
use crate::data::Texts;
use crate::device::{DeviceJob, run_on};
use crate::files;
use crate::guard::guarded;
use crate::packed;
use crate::progress::Bar;
use crate::session::{Machine, Model, Session};

/// What is asked of a model in floats.
pub struct Asked {
    /// Whose scales are folded in, for which grids; `None` for the model as it is.
    pub scales: Option<(Awq, GridRule)>,
    /// What is seen; `None` where nothing is asked of it.
    pub calibration: Option<CalibrationSpec>,
    /// The type of matrices; norms and biases are f32.
    pub float: GgmlType,
}

/// The outline of the file, before any work.
///
/// # Errors
/// A model that is quantized already, or that no GGUF file holds.
pub fn outline(model: &Model, asked: &Asked) -> anyhow::Result<GgufOutline> {
    let source = model.opened.checkpoint.source().display();
    ensure!(model.opened.packed.is_none(), "{source}: is quantized already; export the model that it was made from");
    let description = match &asked.scales {
        Some((_, rule)) => format!("scaled by AWQ for {}, in {}", rule.label(), asked.float),
        None => format!("in {}", asked.float),
    };
    let outline = match activation_obstacle(&model.wiring, &model.opened.config, asked.scales.is_some()) {
        Some(problem) => Err(problem),
        None => {
            gguf_outline(&model.opened, &model.wiring, false, &about(model, &[("general.description", description)]))
        }
    };
    outline.map_err(|problem| anyhow::anyhow!("{source}: {problem}"))
}

/// Writes the model to `path` and, where asked for, its importance matrix to `imatrix`.
///
/// # Errors
/// A calibration text that is missing or too short, activations that are not finite, a tensor that cannot be read, a value that the
/// type does not hold, or a disk that is full.
pub fn write(
    (path, imatrix): (&Path, Option<&Path>),
    model: &Model,
    (asked, outline): (&Asked, &GgufOutline),
    machine: Machine<'_>,
    store: &AssetStore,
) -> anyhow::Result<()> {
    let mut file = GgufFile::create(path, outline, Some(asked.float))?;
    let Some(calibration) = &asked.calibration else {
        file.add(model.opened.checkpoint.as_ref(), outline.tensors().len())?;
        return finish(file, path);
    };
    let texts = Texts::new(store);
    let made =
        run_on(machine.device, FloatType::F32, ScaleJob { model, asked, calibration, outline, file, machine, texts })?;
    finish(made.file, path)?;
    let Some(imatrix) = imatrix else { return Ok(()) };
    let (n_chunks, chunk_size) = made.chunks;
    let tensors = importance(model, outline, &made.seen);
    let problem = || packed::cannot_write(imatrix);
    let folder = files::folder_of(imatrix);
    files::sweep(folder);
    let mut partial = files::temporary_in(folder, ".tmp").with_context(problem)?;
    partial.write_all(&imatrix_file(&tensors, &made.text, n_chunks, chunk_size)).with_context(problem)?;
    partial.as_file().sync_all().with_context(problem)?;
    partial.persist(imatrix).with_context(problem)?;
    Ok(())
}

fn finish(file: GgufFile<'_>, path: &Path) -> anyhow::Result<()> {
    file.finish()?;
    open_model(path).map(drop).context("what was written cannot be read again")
}

/// What was seen, under the names that tensors have in the file.
fn importance(
    model: &Model,
    outline: &GgufOutline,
    seen: &BTreeMap<(usize, LinearName), InputSquares>,
) -> Vec<Importance> {
    let named =
        |(&(block_idx, linear), squares)| (format!("{}.weight", model.wiring.linear(block_idx, linear)), squares);
    let by_name: BTreeMap<String, &InputSquares> = seen.iter().map(named).collect();
    let of_tensor = |tensor: &awq_core::load::GgufTensor| {
        let Contents::Tensors(names) = &tensor.contents else { return None };
        let squares: Vec<&InputSquares> = names.iter().map(|name| by_name.get(name).copied()).collect::<Option<_>>()?;
        // Linears whose rows one matrix has read one input.
        let n_matrices = if tensor.shape.len() > 2 { squares.len() } else { 1 };
        let matrices = squares.into_iter().take(n_matrices).map(|one| (one.sums.clone(), one.n_tokens)).collect();
        Some(Importance { name: tensor.name.clone(), matrices })
    };
    outline.tensors().iter().filter_map(of_tensor).collect()
}

struct ScaleJob<'a> {
    model: &'a Model,
    asked: &'a Asked,
    calibration: &'a CalibrationSpec,
    outline: &'a GgufOutline,
    file: GgufFile<'a>,
    machine: Machine<'a>,
    texts: Texts<'a>,
}

struct Made<'a> {
    file: GgufFile<'a>,
    seen: BTreeMap<(usize, LinearName), InputSquares>,
    text: String,
    /// Sequences, and tokens of one.
    chunks: (usize, usize),
}

impl<'a> DeviceJob for ScaleJob<'a> {
    type Output = Made<'a>;

    fn run<B: QuantBackend>(mut self, device: B::Device) -> anyhow::Result<Made<'a>> {
        let session = Session::<B>::open(self.model, self.machine, &device)?;
        let calibrated = session.calibrate(self.calibration, None, &mut self.texts)?;
        let (awq, grids) = match &self.asked.scales {
            Some((awq, rule)) => (Some(awq.clone()), rule.resolve(&self.model.wiring)?),
            None => (None, of_no_matter().resolve(&self.model.wiring)?),
        };
        let scaled = Scaled::new(awq);
        let bar = self.machine.progress.bar("scale, blocks", self.model.opened.config.n_blocks as u64);
        session.check_memory(&[(&scaled, &grids)], Some(&calibrated))?;
        let room = session.room(&[(&scaled, &grids)], Some(&calibrated));
        let mut sink = Blocks { model: self.model, outline: self.outline, file: self.file, room, bar: &bar };
        let n_before = self.outline.tensors().iter().take_while(|tensor| !is_of_a_block(&tensor.name)).count();
        sink.file.add(self.model.opened.checkpoint.as_ref(), n_before)?;
        let jobs = [Job { method: &scaled, grids }];
        let results = guarded(|| quantize_blocks(session.decoder(), Some(calibrated.calibration()), &jobs, &mut sink))?;
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        let file = sink.file;
        bar.finish();
        let chunks = (calibrated.set.ids.len(), calibrated.set.ids.first().map_or(0, Vec::len));
        Ok(Made { file, seen: scaled.into_seen(), text: calibrated.text_name, chunks })
    }
}

/// Any grid: nothing is rounded, and no scale is searched for it.
fn of_no_matter() -> GridRule {
    const BITS: Bits = Bits::new(8).expect("8 bits");
    Grid::awq(BITS, Granularity::PerChannel).into()
}

fn is_of_a_block(name: &str) -> bool {
    name.starts_with("blk.")
}

/// Writes each block as soon as it is scaled.
struct Blocks<'a, 'b> {
    model: &'a Model,
    outline: &'a GgufOutline,
    file: GgufFile<'a>,
    room: Room,
    bar: &'b Bar,
}

impl BlockSink for Blocks<'_, '_> {
    type Error = anyhow::Error;

    fn room(&self) -> Room {
        self.room.clone()
    }

    fn keep(&mut self, _: usize, block: QuantizedBlock) -> anyhow::Result<()> {
        let (block_idx, base) = (block.log.block_idx, &self.model.opened.checkpoint);
        let tensors = block.codes.tensors(&self.model.wiring, block_idx, base.as_ref());
        let checkpoint = EditedCheckpoint::new(base.clone(), vec![Arc::new(tensors)]);
        let own = format!("blk.{block_idx}.");
        let n_tensors = self.outline.tensors().iter().filter(|tensor| tensor.name.starts_with(&own)).count();
        self.file.add(&checkpoint, n_tensors)
    }

    fn keep_head(&mut self, _: usize, _: PackedWeight) -> anyhow::Result<()> {
        Ok(())
    }

    fn passed(&mut self, _: usize, _: f64) {
        self.bar.advance(1);
    }
}
