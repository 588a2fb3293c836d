//! The checkpoints that an experiment keeps (`[export]`): each quantized model in each format, in `checkpoints/` beside the records,
//! with what was measured on its card. Codes are those of the code store; what is there already is left alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use awq_core::formats::Container;
use itertools::Itertools as _;
use serde::{Deserialize, Serialize};

use crate::assets::AssetStore;
use crate::config::CheckpointFormat;
use crate::inputs::changes_of_model;
use crate::plan::{Cell, CellId, ModelPlan, Plan};
use crate::progress::Progress;
use crate::provenance::{Provenance, peak_resident_bytes};
use crate::quantize::place::Place;
use crate::quantize::target::Target;
use crate::quantize::{Quantized, Recipe, needed_bytes, quantize};
use crate::record::{Line, Outcome, RecordFile, SCHEMA_VERSION, StoredRecord, read_records};
use crate::report::{self, tables::slug};
use crate::session::{Machine, Model};

/// The folder of checkpoints, in that of the records.
pub const CHECKPOINTS: &str = "checkpoints";

/// A checkpoint that was written, one line of `exports.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// [`SCHEMA_VERSION`] when it was written.
    pub schema: u32,
    /// Its name in `checkpoints/`.
    pub name: String,
    /// The cell whose model it is.
    pub cell_id: CellId,
    /// Key of its format.
    pub format: String,
    /// sha256 over all codes, scales and zero points.
    pub codes_sha256: String,
    /// Bytes of its weights on disk.
    pub n_bytes: u64,
    /// Wall time of writing it and reading it again.
    pub seconds: f64,
    /// Largest resident memory of the process until it was written; 0 where that is unknown.
    pub peak_resident_bytes: u64,
    /// With what it was made.
    pub provenance: Provenance,
}

impl Line for ExportRecord {
    type Written = Self;

    const FILE: &'static str = "exports.jsonl";

    fn schema(&self) -> u32 {
        self.schema
    }
}

/// What became of the checkpoints that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Written now.
    pub written: usize,
    /// There already.
    pub kept: usize,
    /// Whose model was not measured.
    pub missing: usize,
}

/// A model of one cell, in one format.
struct Asked<'a> {
    cell: &'a Cell,
    format: CheckpointFormat,
    name: String,
}

/// What is asked for of each model of `plan`, which may be a part of the experiment `whole`. A part gives the names that the whole does.
fn asked<'a>(plan: &'a Plan, whole: &Plan) -> Vec<(&'a ModelPlan, Vec<Asked<'a>>)> {
    let Some(spec) = &plan.export else { return Vec::new() };
    let selected = whole.selected(&spec.only);
    let is_asked = |cell: &&Cell| cell.quantization.is_some() && selected.contains(&cell.id());
    let mut n_of: BTreeMap<String, usize> = BTreeMap::new();
    for cell in whole.cells().filter(is_asked) {
        *n_of.entry(slug(&cell.label())).or_default() += 1;
    }
    let name = |cell: &Cell, format: CheckpointFormat| {
        let label = slug(&cell.label());
        // Twins, which differ in a setting that labels do not say, have the head of their cell's id.
        let twin = if n_of[&label] > 1 { format!("-{:.6}", cell.id().0) } else { String::new() };
        let end = if format.container() == Container::File { ".gguf" } else { "" };
        format!("{label}{twin}-{}{end}", format.key())
    };
    let models = plan.models.iter().map(|model| {
        let pairs = model.cells.iter().filter(is_asked).cartesian_product(&spec.formats);
        (model, pairs.map(|(cell, &format)| Asked { cell, format, name: name(cell, format) }).collect())
    });
    models.collect()
}

/// How the model of a cell is quantized. The calibration of a method that looks at no activations is only its output errors'.
fn recipe(cell: &Cell) -> anyhow::Result<Recipe> {
    let quantization = cell.quantization.as_ref().context("full precision is no quantization")?;
    let calibration = quantization.calibration.clone();
    Ok(Recipe { method: quantization.method.clone(), rule: quantization.rule(), calibration })
}

/// The same for who reads of it.
fn described(recipe: &Recipe) -> Recipe {
    let needed = recipe.method.settings().needs().inputs;
    Recipe { calibration: recipe.calibration.clone().filter(|_| needed), ..recipe.clone() }
}

/// Checks that each format holds what it is to hold. A model that does not open is left to its cells.
///
/// # Errors
/// A grid or a method that a format does not hold, with the cell and the formats that do.
pub fn check(plan: &Plan, store: &AssetStore, progress: &Progress) -> anyhow::Result<()> {
    for (model_plan, asked) in asked(plan, plan).into_iter().filter(|(_, asked)| !asked.is_empty()) {
        let Ok(model) = Model::open(&model_plan.model, store, progress) else { continue };
        for one in asked {
            let recipe = recipe(one.cell)?;
            Target::plan(&model, &recipe, one.format).with_context(|| format!("key `export`, {}", one.cell.label()))?;
        }
    }
    Ok(())
}

/// Writes what is asked for and is not there, of every cell of `plan` that is finished. It may be a part of the experiment `whole`, whose
/// base model stands on cards wherever it is on record.
///
/// # Errors
/// A folder that holds another model, codes that are not those that were measured, or a disk that is full.
pub fn write(
    (plan, whole): (&Plan, &Plan),
    out: &Path,
    machine: Machine<'_>,
    threads: usize,
    store: &AssetStore,
) -> anyhow::Result<Exported> {
    let asked = asked(plan, whole);
    let mut exported = Exported::default();
    if asked.iter().all(|(_, asked)| asked.is_empty()) {
        return Ok(exported);
    }
    let records = read_records::<StoredRecord>(out)?.0;
    let mut file = RecordFile::<ExportRecord>::open(out)?;
    for (model_plan, asked) in asked {
        let mut model = None;
        // Formats of one cell follow each other: it is quantized once.
        let mut quantized: Option<(CellId, Quantized)> = None;
        for one in asked {
            let Some((codes, files)) = measured(&records, one.cell) else {
                exported.missing += 1;
                continue;
            };
            let path = out.join(CHECKPOINTS).join(&one.name);
            if path.exists() {
                let newest = written_as_measured(&path, &one, file.on_record(), (codes, files))?;
                if newest.cell_id != one.cell.id() {
                    machine.progress.note(&format!(
                        "{}: is the model that was measured; its card has what was measured before, move it away for a new one",
                        path.display()
                    ));
                }
                exported.kept += 1;
                continue;
            }
            if model.is_none() {
                model = Some(Model::open(&model_plan.model, store, machine.progress)?);
            }
            let Some(model) = &model else { continue };
            machine.progress.note(&format!("writes {}", path.display()));
            let in_place = || path.display().to_string();
            if quantized.as_ref().is_none_or(|(cell_id, _)| *cell_id != one.cell.id()) {
                let made = quantize_as_measured(model, one.cell, codes, machine, store).with_context(in_place)?;
                quantized = Some((one.cell.id(), made));
            }
            let Some((_, made)) = &quantized else { continue };
            let start = Instant::now();
            let described = described(&recipe(one.cell)?);
            let target = Target::plan(model, &described, one.format)?;
            target.notes().iter().for_each(|note| machine.progress.note(&format!("{}: {note}", one.name)));
            let place = Place::claim(&path, needed_bytes(model, &described)?)?;
            let tables = report::cell_tables(whole, &records, one.cell)?;
            let n_bytes = target.write(&place, made, Some(&tables)).with_context(in_place)?.n_bytes;
            // Before it has its name: a kill in between leaves nothing that no line knows.
            file.append(&ExportRecord {
                schema: SCHEMA_VERSION,
                name: one.name,
                cell_id: one.cell.id(),
                format: one.format.key().to_owned(),
                codes_sha256: codes.to_owned(),
                n_bytes,
                seconds: start.elapsed().as_secs_f64(),
                peak_resident_bytes: peak_resident_bytes(),
                provenance: Provenance::collect(machine.device, threads, model.files.clone()),
            })?;
            target.finish(place)?;
            exported.written += 1;
        }
    }
    Ok(exported)
}

/// The codes of the newest record of a cell, where that is finished, and the files that it was made of.
fn measured<'a>(records: &'a [StoredRecord], cell: &Cell) -> Option<(&'a str, &'a BTreeMap<String, String>)> {
    let id = cell.id();
    let newest = records.iter().rev().find(|record| record.cell_id == id)?;
    match &newest.outcome {
        Outcome::Done(done) => Some((&done.quantization.as_ref()?.codes_sha256, &newest.provenance.assets)),
        Outcome::Failed(_) => None,
    }
}

/// Checks that what lies there is the model of this cell as it was measured: its codes, over files that are the same. The line of it.
fn written_as_measured<'a>(
    path: &Path,
    asked: &Asked<'_>,
    written: &'a [ExportRecord],
    (codes, files): (&str, &BTreeMap<String, String>),
) -> anyhow::Result<&'a ExportRecord> {
    let newest = written.iter().rev().find(|record| record.name == asked.name);
    let is_same = |record: &&ExportRecord| {
        record.codes_sha256 == codes && changes_of_model(files, &record.provenance.assets).is_empty()
    };
    newest.filter(is_same).with_context(|| {
        format!(
            "{}: holds another model than {} as it was measured; move it away, and run again",
            path.display(),
            asked.cell.label()
        )
    })
}

/// The model of a cell, whose codes must be those that were measured.
fn quantize_as_measured(
    model: &Model,
    cell: &Cell,
    measured: &str,
    machine: Machine<'_>,
    store: &AssetStore,
) -> anyhow::Result<Quantized> {
    let quantized = quantize(model, &recipe(cell)?, machine, store)?;
    ensure!(
        quantized.codes_sha256 == measured,
        "the codes are not those that were measured ({measured:.8} then, {:.8} now); run the experiment with --rerun",
        quantized.codes_sha256
    );
    Ok(quantized)
}
