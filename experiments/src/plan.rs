//! [`ExperimentSpec`] to [`Plan`]: the cells of an experiment, with stable content ids. Pure: opens no file.

use awq_core::grid::Grid;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{CalibrationSpec, EvaluationSpec, ExperimentSpec, ModelSpec, ReferenceValue};
use crate::registry::MethodSpec;

/// First 16 hex digits of the sha256 of a cell's canonical JSON: the same question has the same id, in any file and order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct CellId(pub String);

/// One unit of work: a model, what is done to it, and what is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The model.
    pub model: ModelSpec,
    /// How it is quantized; `None` is full precision.
    pub quantization: Option<QuantizationCell>,
    /// What is measured.
    pub evaluations: Vec<EvaluationSpec>,
}

/// How a cell quantizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizationCell {
    /// The method and its settings.
    pub method: MethodSpec,
    /// The grid that it rounds to.
    pub grid: Grid,
    /// What it sees of the data; `None` for a method that needs no activations.
    pub calibration: Option<CalibrationSpec>,
}

impl Cell {
    /// Content id.
    pub fn id(&self) -> CellId {
        // serde_json writes struct fields in declaration order and maps from BTreeMap: the text is canonical.
        let json = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(&json);
        CellId(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// `FP`, or the method's label: `RTN`, `AWQ`.
    pub fn method_label(&self) -> String {
        self.quantization.as_ref().map_or_else(|| "FP".to_owned(), |q| q.method.label())
    }

    /// `W4 g128`; empty for full precision.
    pub fn grid_label(&self) -> String {
        self.quantization.as_ref().map_or_else(String::new, |q| q.grid.label())
    }

    /// `SmolLM2-135M AWQ W4 g128`: how messages name a cell.
    pub fn label(&self) -> String {
        [self.model.name.as_str(), &self.method_label(), &self.grid_label()].join(" ").trim_end().to_owned()
    }
}
