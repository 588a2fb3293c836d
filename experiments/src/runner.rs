//! Plan to records: runs what is not yet on record, cell by cell, and appends each result at once.
//!
//! Cells of one model that share calibration are quantized together, a limited number in one pass over its blocks (`pass.rs`), and scored. A cell
//! that fails becomes a record and the sweep goes on; an experiment that was interrupted resumes at the first cell without a
//! finished record. A cell whose model was replaced since runs again.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use awq_core::arithmetic::FloatType;
use awq_core::backend::QuantBackend;
use awq_core::grids::ModelGrids;

use crate::assets::AssetStore;
use crate::codes::CodeStore;
use crate::config::ExperimentSpec;
use crate::data::Texts;
use crate::device::{DeviceJob, run_on};
use crate::files::{folder_of, sync_folder, write_durably};
use crate::forecast::Rates;
use crate::inputs;
use crate::limit::MemoryLimit;
use crate::need::{CalibrationSize, Need};
use crate::plan::cost::{ASSUMED_FLOPS, Estimate};
use crate::plan::select::Shard;
use crate::plan::{Cell, CellId, ModelPlan, Plan, passes};
use crate::progress::Progress;
use crate::progress::sweep::{PROGRESS_FILE, Sweep};
use crate::provenance::Provenance;
use crate::record::{
    Failed, Labels, Outcome, RESOLVED_CONFIG, Record, RecordFile, SCHEMA_VERSION, Stage, StoredRecord,
};
use crate::sandbox::Sandbox;
use crate::session::{Machine, Model, Session};

mod by_others;
pub mod exports;
mod pass;

use self::pass::{Measured, Scoring};

/// What an experiment runs on.
#[derive(Debug)]
pub struct RunOptions {
    /// Device name.
    pub device: String,
    /// CPU threads in use.
    pub threads: usize,
    /// Codes of earlier runs, and of this one.
    pub codes: CodeStore,
    /// Memory that quantizing may take.
    pub memory: MemoryLimit,
    /// What becomes of cells that are on record.
    pub on_record: OnRecord,
    /// What becomes of the others when a cell fails.
    pub on_failure: OnFailure,
    /// What runs generated code, where the user lets it run.
    pub sandbox: Option<Sandbox>,
}

/// What becomes of cells that are on record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRecord {
    /// They are left alone, unless their inputs changed.
    #[default]
    Skip,
    /// They run again, and their new records stand for them.
    RunAgain,
}

/// What becomes of the others when a cell fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// They run all the same.
    #[default]
    GoOn,
    /// The run ends.
    Stop,
}

/// The end of a run that stops at the first failure.
#[derive(Debug, thiserror::Error)]
#[error("stopped at the first cell that failed")]
struct Stopped;

/// How an experiment ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cells that finished now.
    pub finished: usize,
    /// Cells that were on record already.
    pub resumed: usize,
    /// Cells that failed.
    pub failed: usize,
    /// Whether it ended at the first of them ([`OnFailure::Stop`]).
    pub stopped: bool,
}

/// Runs every cell of `plan` that has no finished record in `file`, or one of a model whose files changed, and appends what
/// comes out.
///
/// # Errors
/// A device that is not there, or a record that cannot be appended. A cell's own errors become records.
pub fn run(
    plan: &Plan,
    options: &RunOptions,
    mut file: RecordFile<StoredRecord>,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<Summary> {
    file.notes().iter().for_each(|note| progress.note(note));
    let mut texts = Texts::new(store);
    let finished: BTreeSet<CellId> = match options.on_record {
        OnRecord::Skip => inputs::finished(plan, file.on_record(), store, &mut texts, progress),
        OnRecord::RunAgain => BTreeSet::new(),
    };
    let mut summary =
        Summary { resumed: plan.cells().filter(|cell| finished.contains(&cell.id())).count(), ..Summary::default() };
    if summary.resumed > 0 {
        progress.note(&format!(
            "{} of {} cells are on record in {}",
            summary.resumed,
            plan.cells().count(),
            file.path().display()
        ));
    }
    let left = plan.cells().filter(|cell| !finished.contains(&cell.id()));
    let left = left.map(|cell| (cell.id(), Estimate::new(cell))).collect();
    let measured = Rates::kept(store.cache(), &options.device, options.threads).and_then(|rates| rates.flops());
    let flops = measured.unwrap_or(ASSUMED_FLOPS);
    let sweep = Sweep::new(folder_of(file.path()).join(PROGRESS_FILE), plan.cells().count(), left, flops);
    let progress = &progress.within(sweep.clone());
    for model in &plan.models {
        let cells: Vec<&Cell> = model.cells.iter().filter(|cell| !finished.contains(&cell.id())).collect();
        if cells.is_empty() {
            continue;
        }
        let mut sink = |cell: &Cell, outcome: Outcome, assets: &BTreeMap<String, String>| {
            let outcome = recordable(outcome);
            let is_failed = match &outcome {
                Outcome::Done(_) => {
                    summary.finished += 1;
                    false
                }
                Outcome::Failed(failed) => {
                    summary.failed += 1;
                    progress.note(&format!("FAILED {}: {}", cell.label(), failed.error));
                    true
                }
            };
            let provenance = Provenance::collect(&options.device, options.threads, assets.clone());
            let (cell_id, labels) = (cell.id(), Some(Labels::from(cell)));
            file.append(&Record { schema: SCHEMA_VERSION, cell_id, labels, cell: cell.clone(), outcome, provenance })?;
            sweep.cell_ended(&cell.id(), !is_failed);
            if is_failed && options.on_failure == OnFailure::Stop { Err(Stopped.into()) } else { Ok(()) }
        };
        match run_model(model, &cells, options, store, &mut texts, progress, &mut sink) {
            Err(error) if error.is::<Stopped>() => {
                summary.stopped = true;
                break;
            }
            ended => ended?,
        }
    }
    sweep.end();
    Ok(summary)
}

/// JSON has no NaN and no infinity: a record that holds one where a number must be could not be read again, and would take
/// the whole file with it. Such a cell has failed.
fn recordable(outcome: Outcome) -> Outcome {
    let read_again = serde_json::to_vec(&outcome).and_then(|json| serde_json::from_slice::<Outcome>(&json));
    match read_again {
        Ok(_) => outcome,
        Err(_) => Outcome::Failed(Failed {
            stage: Stage::Evaluate,
            error: "a number of the result is NaN or infinite: the model is broken, or overflows in this precision"
                .into(),
        }),
    }
}

/// Takes a cell's outcome and the hashes of the assets it used.
type Sink<'a> = dyn FnMut(&Cell, Outcome, &BTreeMap<String, String>) -> anyhow::Result<()> + 'a;

fn run_model(
    plan: &ModelPlan,
    cells: &[&Cell],
    options: &RunOptions,
    store: &AssetStore,
    texts: &mut Texts<'_>,
    progress: &Progress,
    sink: &mut Sink<'_>,
) -> anyhow::Result<()> {
    let model = match Model::open(&plan.model, store, progress) {
        Ok(model) => model,
        Err(error) => return fail_all(cells, Stage::Load, &error, &BTreeMap::new(), sink),
    };
    // Overrides that do not fit the model, and methods that do not fit in memory, are found before any work.
    let mut fitting = Vec::new();
    for &cell in cells {
        match cell.quantization.as_ref().map(|quantization| quantization.rule().resolve(&model.wiring)).transpose() {
            Ok(grids) => match grids.map_or(Ok(()), |grids| check_memory(cell, &grids, &model, options)) {
                Ok(()) => fitting.push(cell),
                Err(error) => sink(cell, failed(Stage::Load, &error), &model.files)?,
            },
            Err(error) => sink(cell, failed(Stage::Load, &error.into()), &model.files)?,
        }
    }
    let cells = fitting.as_slice();
    // One experiment has one precision.
    let precision = cells.first().map_or(FloatType::F32, |cell| cell.precision);
    let sandbox = options.sandbox.as_ref();
    let RunOptions { device, codes, memory, .. } = options;
    let machine = Machine { device, precision, codes, memory: *memory, progress, sandbox };
    let assets = model.files.clone();
    run_on(&options.device, precision, ModelJob { model: &model, assets, cells, machine, store, texts, sink })
}

/// Refuses a cell that needs more memory than was asked for.
fn check_memory(cell: &Cell, grids: &ModelGrids, model: &Model, options: &RunOptions) -> anyhow::Result<()> {
    let Some(quantization) = &cell.quantization else { return Ok(()) };
    let method = quantization.method.settings();
    let size = quantization.calibration.as_ref().map(CalibrationSize::of);
    let need = Need::of_pass(&model.wiring, &model.opened.config, &[(method, grids)], size);
    need.check(&method.label(), options.memory)
}

fn fail_all(
    cells: &[&Cell],
    stage: Stage,
    error: &anyhow::Error,
    assets: &BTreeMap<String, String>,
    sink: &mut Sink<'_>,
) -> anyhow::Result<()> {
    cells.iter().try_for_each(|cell| sink(cell, failed(stage, error), assets))
}

fn failed(stage: Stage, error: &anyhow::Error) -> Outcome {
    Outcome::Failed(Failed { stage, error: format!("{error:#}") })
}

/// The cells of one opened model, on a backend.
struct ModelJob<'a, 'b, 'c> {
    model: &'a Model,
    /// sha256 of the model's files, and of the texts.
    assets: BTreeMap<String, String>,
    cells: &'a [&'a Cell],
    machine: Machine<'a>,
    store: &'a AssetStore,
    texts: &'a mut Texts<'b>,
    sink: &'a mut Sink<'c>,
}

impl DeviceJob for ModelJob<'_, '_, '_> {
    type Output = ();

    fn run<B: QuantBackend>(mut self, device: B::Device) -> anyhow::Result<()> {
        let session = match Session::<B>::open(self.model, self.machine, &device) {
            Ok(session) => session,
            Err(error) => return fail_all(self.cells, Stage::Load, &error, &self.assets, self.sink),
        };
        // What is evaluated is prepared first: a text that is missing or too short is found before any long work.
        let texts = match session.prepare(self.cells.iter().flat_map(|cell| &cell.evaluations), self.texts) {
            Ok(texts) => texts,
            Err(error) => return fail_all(self.cells, Stage::Evaluate, &error, &self.assets, self.sink),
        };
        self.assets.extend(texts.values().map(|text| (text.name.clone(), text.sha256.clone())));
        let mut base = session.base_models(&texts);
        let mut at = Scoring { session: &session, texts: &texts, base: &mut base };
        for cell in self.cells.iter().filter(|cell| cell.is_base()) {
            let outcome = at.evaluate(cell, &Measured::Base);
            (self.sink)(cell, outcome, &self.assets)?;
        }
        let passes = passes(self.cells.iter().copied());
        for (index, cells) in passes.iter().enumerate() {
            let name =
                if passes.len() > 1 { format!("pass {} of {}: ", index + 1, passes.len()) } else { String::new() };
            self.run_pass(&mut at, &name, cells)?;
            self.machine.codes.trim();
        }
        self.run_by_others(&mut at, &device)
    }
}

/// The default output folder of a configuration: `results/` and the file's stem, of a run of the first windows alone with
/// `-first-N`, for it must not take the place of the whole run, and of a share with `-shard-1-of-4`, for each is written by a process
/// of its own.
pub fn default_out(config: &Path, max_windows: Option<NonZeroUsize>, shard: Option<Shard>) -> PathBuf {
    let stem = config.file_stem().unwrap_or_else(|| "experiment".as_ref()).to_string_lossy();
    let first = max_windows.map_or_else(String::new, |n| format!("-first-{n}"));
    let share = shard.map_or_else(String::new, |shard| format!("-shard-{}-of-{}", shard.index, shard.n));
    Path::new("results").join(format!("{stem}{first}{share}"))
}

/// Creates the output folder, opens its records and writes the experiment, as parsed and limited, beside them. `max_windows` is
/// what the command limits it to.
///
/// # Errors
/// A folder that cannot be created or written, that another run writes to, or that shows a run of other windows than a smoke
/// run has: found before any work.
pub fn claim_folder(
    out: &Path,
    spec: &ExperimentSpec,
    max_windows: Option<NonZeroUsize>,
) -> anyhow::Result<RecordFile<StoredRecord>> {
    let place = || format!("{}: cannot write the output folder; choose another with --out", out.display());
    std::fs::create_dir_all(out).with_context(place)?;
    sync_folder(folder_of(out)).with_context(place)?;
    let records = RecordFile::open(out)?;
    if let Some(limit) = max_windows {
        check_limits(out, spec, limit)?;
    }
    write_durably(&out.join(RESOLVED_CONFIG), spec.to_toml()?.as_bytes()).with_context(place)?;
    Ok(records)
}

/// Checks that a smoke run does not take the place of what a folder shows.
fn check_limits(out: &Path, spec: &ExperimentSpec, limit: NonZeroUsize) -> anyhow::Result<()> {
    let path = out.join(RESOLVED_CONFIG);
    // An experiment that cannot be read is not shown either.
    let Some(shown) = path.exists().then(|| ExperimentSpec::read(&path).ok()).flatten() else { return Ok(()) };
    // Evaluations may come and go: what is shown must not be of other windows.
    let limits = |spec: &ExperimentSpec| -> BTreeSet<Option<NonZeroUsize>> { spec.limits().into_iter().collect() };
    let shown = limits(&shown);
    if !shown.is_empty() && shown != limits(spec) {
        let of = match (shown.contains(&None), shown.iter().flatten().max()) {
            (false, Some(n)) => format!("the first {n} windows"),
            _ => "all windows".to_owned(),
        };
        bail!(
            "{}: holds a run of {of}, which one of the first {limit} would take the place of; choose another folder with --out, or \
             leave it out",
            out.display()
        );
    }
    Ok(())
}
