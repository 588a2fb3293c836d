//! How results are shown beside the tables that every run gets: laid out as a paper lays out its table, and as its figure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::eval::registry::MetricKey;

/// The tables that every run gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportSpec {
    /// Label of the method that the last column compares the others with, on the same grid and windows: `GPTQ`, `AWQ`. It must be
    /// a method of the experiment.
    pub baseline: String,
}

/// A table with the rows and columns of a published one. Published numbers stand beside ours, with the difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// What it is, e.g. `Table 3 of the AWQ paper`.
    pub title: String,
    /// What tells rows apart, outermost first. Empty: one row.
    pub rows: Vec<TableAxis>,
    /// What tells columns apart, outermost first. Empty: one column.
    pub columns: Vec<TableAxis>,
    /// The numbers shown of each cell, a row each. Each metric has a table of its own.
    pub values: Vec<TableValue>,
}

impl TableSpec {
    /// The metrics among the values.
    pub fn metrics(&self) -> impl Iterator<Item = MetricKey> {
        self.values.iter().filter_map(|value| match value {
            TableValue::Metric(metric) => Some(*metric),
            TableValue::ChangedSteps | TableValue::StepRatio | TableValue::StepRatioOverScale => None,
        })
    }
}

/// What tells two rows or columns of a table apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableAxis {
    /// The model's name.
    Model,
    /// The method's label.
    Method,
    /// The grid's label.
    Grid,
    /// The calibration's name. What needs no calibration stands under each.
    Calibration,
    /// The text that is scored.
    Dataset,
}

impl TableAxis {
    /// The word in TOML and at the head of a table.
    pub fn key(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Method => "method",
            Self::Grid => "grid",
            Self::Calibration => "calibration",
            Self::Dataset => "dataset",
        }
    }
}

/// A number of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableValue {
    /// Share of the quantization steps that a fixed scale changed.
    ChangedSteps,
    /// Mean of a step after a fixed scale over the step before.
    StepRatio,
    /// The same divided by the scale: how much smaller the error of a scaled channel is expected to be.
    StepRatioOverScale,
    /// What a metric measures.
    #[serde(untagged)]
    Metric(MetricKey),
}

impl TableValue {
    /// The heading of its rows.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Metric(metric) => metric.quantity().label,
            Self::ChangedSteps => "share of steps changed",
            Self::StepRatio => "mean step ratio",
            Self::StepRatioOverScale => "mean step ratio / s",
        }
    }
}

/// A figure of its own kind, beside those that every run gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FigureSpec {
    /// A metric against a number of the calibration, a line a method; a figure each.
    Lines(LinesSpec),
    /// The experiment's table as a coloured matrix: how far each number lies above the lowest of its column.
    Matrix(MatrixSpec),
}

/// See [`FigureSpec::Lines`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinesSpec {
    /// The horizontal axis.
    pub x: LinesX,
}

/// A number of the calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinesX {
    /// How many sequences.
    CalibrationSequences,
    /// Tokens of a sequence.
    CalibrationSeqLen,
}

/// See [`FigureSpec::Matrix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatrixSpec {}
