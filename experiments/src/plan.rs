//! [`ExperimentSpec`] to [`Plan`]: the cells of an experiment, with stable content ids. Pure: opens no file.

use std::collections::BTreeMap;

use awq_core::arithmetic::FloatType;
use awq_core::driver::Propagation;
use awq_core::grid::Grid;
use awq_core::rule::{GridOverride, GridRule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{
    CalibrationSpec, CheckpointSpec, Draw, EvaluationSpec, ExperimentSpec, ExportSpec, FigureSpec, GridSweep,
    ModelSpec, PublishedSpeed, ReferenceValue, TableAxis, TableSpec,
};
use crate::registry::MethodSpec;

pub(crate) mod cost;
pub mod select;

pub use self::cost::Need;

/// First 16 hex digits of the sha256 of a cell's canonical JSON: the same question has the same id, in any file and order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct CellId(pub String);

/// One unit of work: a model, what is done to it, and what is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The model.
    pub model: ModelSpec,
    /// How it is quantized; `None` is full precision, or what another program has quantized.
    pub quantization: Option<QuantizationCell>,
    /// A quantized checkpoint of the model, which is measured in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointSpec>,
    /// What is measured.
    pub evaluations: Vec<EvaluationSpec>,
    /// Type of weights and activations in a GPU's memory.
    #[serde(default, skip_serializing_if = "FloatType::is_f32")]
    pub precision: FloatType,
}

/// How a cell quantizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizationCell {
    /// The method and its settings.
    pub method: MethodSpec,
    /// The grid that it rounds to.
    pub grid: Grid,
    /// Linears that have another grid, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<GridOverride>,
    /// The experiment's calibration, also where the method looks at no activations: the output error of its blocks is
    /// measured on it. `None` where the experiment has none.
    pub calibration: Option<CalibrationSpec>,
    /// What this experiment calls the calibration, where it compares several and the method looks at activations. A
    /// label: no part of the cell's id.
    #[serde(skip)]
    pub calibration_name: Option<String>,
    /// Which draw of its calibration the cell is, where the method looks at activations. A label: the seed is what counts.
    #[serde(skip)]
    pub draw: Option<Draw>,
}

impl QuantizationCell {
    /// The grid of each linear.
    pub fn rule(&self) -> GridRule {
        GridRule { grid: self.grid, overrides: self.overrides.clone() }
    }

    /// What the method saw on the calibration sequences; `None` where it looks at no activations.
    pub fn propagation(&self) -> Option<Propagation> {
        let calibration = self.calibration.as_ref().filter(|_| self.method.settings().needs().inputs)?;
        Some(calibration.propagation)
    }
}

impl Cell {
    /// Content id.
    pub fn id(&self) -> CellId {
        // serde_json writes struct fields in declaration order and maps from BTreeMap: the text is canonical.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(&json);
        CellId(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Id of the cell that asks the same of the first draw of its calibration: its own, unless it is a later draw.
    pub fn first_draw_id(&self) -> CellId {
        let mut first = self.clone();
        if let Some(quantization) = &mut first.quantization
            && let (Some(draw), Some(own)) = (quantization.draw, &quantization.calibration)
        {
            quantization.calibration = Some(draw.first(own));
        }
        first.id()
    }

    /// Whether it is the model as its own files have it.
    pub fn is_base(&self) -> bool {
        self.quantization.is_none() && self.checkpoint.is_none()
    }

    /// `FP`, the method's label, `RTN` or `AWQ`, or the name of a checkpoint.
    pub fn method_label(&self) -> String {
        match (&self.quantization, &self.checkpoint) {
            (Some(quantization), _) => quantization.method.label(),
            (None, Some(checkpoint)) => checkpoint.name.clone(),
            (None, None) => "FP".to_owned(),
        }
    }

    /// `W4 g128`, with the overrides of some linears if there are any; empty for full precision.
    pub fn grid_label(&self) -> String {
        self.quantization.as_ref().map_or_else(String::new, |q| q.rule().label())
    }

    /// `SmolLM2-135M AWQ W4 g128`: how messages name a cell. A named calibration, the draw where there are several, and
    /// quantized propagation, are added.
    pub fn label(&self) -> String {
        let label =
            [self.model.name.as_str(), &self.method_label(), &self.grid_label()].join(" ").trim_end().to_owned();
        let Some(quantization) = &self.quantization else { return label };
        let calibration = quantization.calibration_name.as_ref().map(|name| format!(", {name}")).unwrap_or_default();
        let draw = quantization.draw.filter(|draw| !draw.is_only());
        let draw = draw.map(|draw| format!(", draw {}", draw.index)).unwrap_or_default();
        let propagation = match quantization.propagation() {
            None | Some(Propagation::FullPrecision) => "",
            Some(Propagation::Quantized) => ", quantized inputs",
            Some(Propagation::QuantizedPerStage) => ", quantized inputs per stage",
        };
        label + &calibration + &draw + propagation
    }

    /// What tells this cell from others along an axis of a table; nothing along `dataset`, of which a cell may have several.
    pub fn place(&self, axis: TableAxis) -> String {
        let calibration = || self.quantization.as_ref().and_then(|q| q.calibration_name.clone()).unwrap_or_default();
        match axis {
            TableAxis::Model => self.model.name.clone(),
            TableAxis::Method => self.method_label(),
            TableAxis::Grid => self.grid_label(),
            TableAxis::Calibration => calibration(),
            TableAxis::Dataset => String::new(),
        }
    }
}

/// Quantized cells that one pass over a model's blocks serves. They share captured activations, Hessians and searches, in as few passes
/// as memory allows (`need.rs`). More would save little: first numbers come behind a pass, its codes lie on the disk together, each block of
/// each cell is an open file, and on a GPU each cell may have hidden states of its own.
const CELLS_OF_A_PASS: usize = 16;

/// The quantized cells among `cells` as passes over their model's blocks: each of one calibration, and of whole grids, for
/// methods share most of their work on one grid.
pub fn passes<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Vec<Vec<&'a Cell>> {
    let mut passes: Vec<Vec<&Cell>> = Vec::new();
    for grid in of_one_grid(cells) {
        let calibration = |cell: &&'a Cell| cell.quantization.as_ref().map(|it| it.calibration.as_ref());
        match passes.last_mut() {
            Some(pass)
                if pass.last().map(calibration) == grid.first().map(calibration)
                    && pass.len() + grid.len() <= CELLS_OF_A_PASS =>
            {
                pass.extend(grid);
            }
            _ => passes.push(grid),
        }
    }
    passes
}

/// The quantized cells among `cells` of one calibration and grid, which have most of their work in common.
fn of_one_grid<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Vec<Vec<&'a Cell>> {
    let mut by_calibration: BTreeMap<Option<&CalibrationSpec>, Vec<(GridRule, &Cell)>> = BTreeMap::new();
    for cell in cells {
        if let Some(quantization) = &cell.quantization {
            by_calibration.entry(quantization.calibration.as_ref()).or_default().push((quantization.rule(), cell));
        }
    }
    let grids = by_calibration.values().flat_map(|cells| cells.chunk_by(|a, b| a.0 == b.0));
    grids.map(|grid| grid.iter().map(|(_, cell)| *cell).collect()).collect()
}

/// All cells of one model, in the order in which they run and are shown.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    /// The model.
    pub model: ModelSpec,
    /// Full precision first, then every method on every grid, then checkpoints of others.
    pub cells: Vec<Cell>,
}

/// What tables compare with, where the experiment does not say.
const BASELINE: &str = "RTN";

/// An experiment as a list of cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The question that the experiment asks.
    pub question: String,
    /// The cells, by model.
    pub models: Vec<ModelPlan>,
    /// What is kept of the quantized models.
    pub export: Option<ExportSpec>,
    /// Published numbers to print beside ours.
    pub references: Vec<ReferenceValue>,
    /// Label of the method that tables compare the others with.
    pub baseline: String,
    /// A table laid out as a published one.
    pub table: Option<TableSpec>,
    /// A figure beside those that every run gets.
    pub figure: Option<FigureSpec>,
    /// Published decoding speeds to print below ours.
    pub published_speed: Vec<PublishedSpeed>,
}

impl Plan {
    /// The cells of an experiment: every method on every grid under every calibration for every model, full precision and the
    /// checkpoints of others.
    pub fn new(spec: &ExperimentSpec) -> Self {
        let model_plan = |model: &ModelSpec| {
            let cell = |quantization| {
                let (model, evaluations) = (model.clone(), spec.evaluations.clone());
                Cell { model, quantization, checkpoint: None, evaluations, precision: spec.run.precision }
            };
            let uses = || {
                spec.methods
                    .iter()
                    .flat_map(|entry| spec.calibrations_of(entry).into_iter().map(move |used| (entry, used)))
            };
            let quantized = spec.grids.iter().flat_map(GridSweep::rules).flat_map(|rule| {
                uses().map(move |(entry, used)| {
                    cell(Some(QuantizationCell {
                        method: entry.method.clone(),
                        grid: rule.grid,
                        overrides: rule.overrides.clone(),
                        calibration: used.spec,
                        calibration_name: used.name,
                        draw: used.draw,
                    }))
                })
            });
            let of_model = spec.checkpoints.iter().filter(|one| one.is_of(model, spec.models.len()));
            let by_others = of_model.map(|one| Cell { checkpoint: Some(one.clone()), ..cell(None) });
            let cells = std::iter::once(cell(None)).chain(quantized).chain(by_others).collect();
            ModelPlan { model: model.clone(), cells }
        };
        Self {
            question: spec.question.clone(),
            // Models that are only timed have no cells.
            models: spec.models.iter().filter(|_| !spec.evaluations.is_empty()).map(model_plan).collect(),
            export: spec.export.clone(),
            references: spec.references.clone(),
            baseline: spec.report.as_ref().map_or_else(|| BASELINE.to_owned(), |report| report.baseline.clone()),
            table: spec.table.clone(),
            figure: spec.figure.clone(),
            published_speed: spec.speed.as_ref().map_or_else(Vec::new, |speed| speed.published.clone()),
        }
    }

    /// Every cell, in order.
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.models.iter().flat_map(|model| &model.cells)
    }

    /// What the cells need, about; `None` where the name of a model does not say its size.
    pub fn need(&self) -> Option<Need> {
        Need::of(self.models.iter().map(|plan| (&plan.model, plan.cells.as_slice())))
    }

    /// The cells as a text table with their ids, and what they will cost as far as a configuration can tell.
    pub fn describe(&self) -> String {
        let mut lines = vec![format!("Question: {}", self.question), String::new()];
        let width = self.cells().map(|cell| cell.label().len()).max().unwrap_or(0);
        lines.extend(
            self.cells().map(|cell| format!("{}  {:width$}  {}", cell.id().0, cell.label(), cost::describe(cell))),
        );
        lines.push(String::new());
        let total = self
            .need()
            .map_or_else(String::new, |need| format!(" In all {}, less what cells of one pass share.", need.time()));
        lines.push(format!("{} cells of {} model(s).{total}", self.cells().count(), self.models.len()));
        lines.extend(self.models.iter().filter_map(|plan| cost::model_summary(&plan.model, &plan.cells)));
        lines.extend(self.export.as_ref().map(ExportSpec::describe));
        lines.join("\n") + "\n"
    }
}
