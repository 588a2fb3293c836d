//! [`PublishedTable`]: published numbers, typed as the paper prints them, rows times models.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EvaluationSpec, ReferenceValue};
use crate::eval::registry::MetricKey;
use crate::plan::{Cell, Plan};

/// A published table of one source. Each number is expanded to a `[[reference]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedTable {
    /// Where it was published.
    pub source: String,
    /// What to know about all of its numbers.
    pub note: Option<String>,
    /// What holds for all of its numbers; any text, protocol and window where absent.
    #[serde(default, rename = "for")]
    pub conditions: PublishedFor,
    /// Names of models, one a column.
    pub models: Vec<String>,
    /// A row for each method and grid.
    pub rows: Vec<PublishedRow>,
}

/// How the numbers of a published table were scored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedFor {
    /// Name of the text scored, as in our tables (`wikitext2-test`).
    pub dataset: Option<String>,
    /// Name of the protocol (`gptq`, `llama-cpp`).
    pub protocol: Option<String>,
    /// Tokens of a window.
    pub seq_len: Option<NonZeroUsize>,
}

/// Numbers of one method on one grid, one for each model; `nan` where the table has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    /// Method label as in our tables (`FP16`, `RTN`, `AWQ`, ...).
    pub method: String,
    /// Grid label as in our tables (`W4 g128`); absent for full precision.
    pub grid: Option<String>,
    /// Name of the calibration; any where absent.
    pub calibration: Option<String>,
    /// Name of the text scored, where `for` names none.
    pub dataset: Option<String>,
    /// Perplexities.
    pub perplexity: Option<Vec<f64>>,
    /// The metric that `value` is of, where other numbers than perplexities were published.
    pub metric: Option<MetricKey>,
    /// Numbers of `metric`.
    pub value: Option<Vec<f64>>,
    /// Shares of quantization steps that a fixed scale changed, 0 to 1.
    pub changed_steps: Option<Vec<f64>>,
    /// Means of a step after a fixed scale over the step before.
    pub step_ratio: Option<Vec<f64>>,
    /// The same divided by the scale.
    pub step_ratio_over_scale: Option<Vec<f64>>,
    /// What to know about the row, in place of the table's `note`.
    pub note: Option<String>,
    /// What to know about the number of one model, by its name; in place of `note`.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
}

/// A part of a published table that does not fit the experiment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misplaced {
    /// Path of the key or value, e.g. `published.rows[2].grid`.
    pub(super) path: String,
    /// What is wrong, and the remedy.
    pub(super) problem: String,
}

fn misplaced(path: impl Into<String>, problem: impl Into<String>) -> Misplaced {
    Misplaced { path: path.into(), problem: problem.into() }
}

impl PublishedTable {
    /// The numbers, row by row.
    ///
    /// # Errors
    /// A row or a model that no cell of `plan` matches, for its numbers would never be shown; and rows of another length than
    /// the list of models.
    pub(super) fn numbers(&self, plan: &Plan) -> Result<Vec<ReferenceValue>, Misplaced> {
        self.check_models(plan)?;
        self.check_conditions(plan)?;
        if self.rows.is_empty() {
            return Err(misplaced("published.rows", "is an empty list; give at least one row"));
        }
        let mut numbers = Vec::new();
        for (row_idx, row) in self.rows.iter().enumerate() {
            let path = format!("published.rows[{row_idx}]");
            self.check_row(row, &path, plan)?;
            let is_same = |other: &&PublishedRow| other.key() == row.key();
            if self.rows[..row_idx].iter().any(|other| is_same(&other)) {
                return Err(misplaced(path, format!("`{}` has a row already; remove one of the two", row.label())));
            }
            let columns = self.models.iter().enumerate();
            numbers.extend(columns.filter_map(|(model_idx, model)| self.number(row, model_idx, model)));
        }
        Ok(numbers)
    }

    /// What the table says of a model in a row; `None` where it says nothing.
    fn number(&self, row: &PublishedRow, model_idx: usize, model: &str) -> Option<ReferenceValue> {
        let value = |values: &Option<Vec<f64>>| values.as_ref().map(|values| values[model_idx]).filter(|x| !x.is_nan());
        let number = ReferenceValue {
            model: model.to_owned(),
            method: row.method.clone(),
            grid: row.grid.clone(),
            calibration: row.calibration.clone(),
            dataset: row.dataset.clone().or_else(|| self.conditions.dataset.clone()),
            protocol: self.conditions.protocol.clone(),
            seq_len: self.conditions.seq_len,
            perplexity: value(&row.perplexity),
            metric: row.metric,
            value: value(&row.value),
            changed_steps: value(&row.changed_steps),
            step_ratio: value(&row.step_ratio),
            step_ratio_over_scale: value(&row.step_ratio_over_scale),
            source: self.source.clone(),
            note: row.notes.get(model).or(row.note.as_ref()).or(self.note.as_ref()).cloned(),
        };
        number.numbers().iter().any(Option::is_some).then_some(number)
    }

    fn check_models(&self, plan: &Plan) -> Result<(), Misplaced> {
        if self.models.is_empty() {
            return Err(misplaced("published.models", "is an empty list; name at least one model"));
        }
        let known: Vec<&str> = plan.models.iter().map(|model| model.model.name.as_str()).collect();
        for (model_idx, model) in self.models.iter().enumerate() {
            let path = format!("published.models[{model_idx}]");
            if !known.contains(&model.as_str()) {
                return Err(misplaced(path, unknown("model of this experiment is named", model, known)));
            }
            if self.models[..model_idx].contains(model) {
                return Err(misplaced(path, format!("`{model}` has a column already; remove one of the two")));
            }
        }
        Ok(())
    }

    /// `for` must describe something that is measured. Names of texts are known only once texts are read.
    fn check_conditions(&self, plan: &Plan) -> Result<(), Misplaced> {
        let PublishedFor { protocol, seq_len, .. } = &self.conditions;
        let scored: BTreeSet<_> = plan.cells().flat_map(|cell| &cell.evaluations).map(scored_as).collect();
        let is_meant = |(name, len): &(String, usize)| {
            protocol.as_ref().is_none_or(|protocol| protocol == name) && seq_len.is_none_or(|seq| seq.get() == *len)
        };
        if scored.iter().any(is_meant) {
            return Ok(());
        }
        let known: Vec<String> = scored.iter().map(|(name, len)| format!("`{name}` with {len} tokens")).collect();
        let known = known.join(", ");
        let problem =
            format!("no evaluation has this protocol and window; correct it, or remove the table; known: {known}");
        Err(misplaced("published.for", problem))
    }

    fn check_row(&self, row: &PublishedRow, path: &str, plan: &Plan) -> Result<(), Misplaced> {
        let mut is_empty = true;
        for (key, values) in row.values() {
            let Some(values) = values else { continue };
            is_empty = false;
            let (n_values, n_models) = (values.len(), self.models.len());
            if n_values != n_models {
                let problem = format!(
                    "{n_values} numbers for {n_models} models; give one for each of `models`, `nan` where there is none"
                );
                return Err(misplaced(format!("{path}.{key}"), problem));
            }
            if let Some(index) = values.iter().position(|value| value.is_infinite()) {
                let problem = "is no number that a paper prints; write `nan` where there is none";
                return Err(misplaced(format!("{path}.{key}[{index}]"), problem));
            }
        }
        if is_empty {
            return Err(misplaced(path, "the row has no numbers; give `perplexity`"));
        }
        if row.metric.is_some() != row.value.is_some() || row.metric.is_some() && row.perplexity.is_some() {
            let problem = "`metric` and `value` go together, and without `perplexity`; give the two or the one";
            return Err(misplaced(path, problem));
        }
        let measures = |metric: MetricKey| {
            plan.cells().flat_map(|cell| &cell.evaluations).any(|evaluation| evaluation.metric() == metric)
        };
        if let Some(metric) = row.metric.filter(|metric| !measures(*metric)) {
            let problem = format!("no evaluation measures `{}`; correct it, or remove the row", metric.key());
            return Err(misplaced(format!("{path}.metric"), problem));
        }
        if row.dataset.is_some() && self.conditions.dataset.is_some() {
            let problem = "`for` names the text of all rows already; remove one of the two";
            return Err(misplaced(format!("{path}.dataset"), problem));
        }
        if let Some(model) = row.notes.keys().find(|model| !self.models.contains(model)) {
            let known = self.models.iter().map(String::as_str);
            return Err(misplaced(
                format!("{path}.notes.{model}"),
                unknown("model of this table is named", model, known),
            ));
        }
        row.check_cells(path, plan)
    }
}

impl PublishedRow {
    /// The kinds of numbers that it may have, by their keys.
    fn values(&self) -> [(&'static str, Option<&Vec<f64>>); 5] {
        [
            ("perplexity", self.perplexity.as_ref()),
            ("value", self.value.as_ref()),
            ("changed_steps", self.changed_steps.as_ref()),
            ("step_ratio", self.step_ratio.as_ref()),
            ("step_ratio_over_scale", self.step_ratio_over_scale.as_ref()),
        ]
    }

    /// What tells it from other rows.
    fn key(&self) -> [Option<&str>; 5] {
        let method = self.grid.is_some().then_some(self.method.as_str());
        let metric = self.metric.map(MetricKey::key);
        [method, self.grid.as_deref(), self.calibration.as_deref(), self.dataset.as_deref(), metric]
    }

    /// `AWQ W3 g128`: how messages name it.
    fn label(&self) -> String {
        let parts = [Some(&self.method), self.grid.as_ref(), self.calibration.as_ref(), self.dataset.as_ref()];
        let metric = self.metric.map(MetricKey::key);
        parts.into_iter().flatten().map(String::as_str).chain(metric).collect::<Vec<_>>().join(" ")
    }

    /// The cells that it is about: there must be some.
    fn check_cells(&self, path: &str, plan: &Plan) -> Result<(), Misplaced> {
        let quantized = || plan.cells().filter(|cell| cell.quantization.is_some());
        let labels = |of: fn(&Cell) -> String| quantized().map(of).collect::<BTreeSet<String>>();
        let methods = labels(Cell::method_label);
        let Some(grid) = &self.grid else {
            // Full precision is matched by whatever name it goes; a quantized row that lost its grid is none.
            if methods.contains(&self.method) {
                let problem = format!("`{}` is measured on grids; add `grid`, such as `W4 g128`", self.method);
                return Err(misplaced(path, problem));
            }
            return Ok(());
        };
        let calibration_of = |cell: &Cell| cell.quantization.as_ref().and_then(|q| q.calibration_name.clone());
        let grids = labels(Cell::grid_label);
        let calibrations: BTreeSet<String> = quantized().filter_map(calibration_of).collect();
        let wanted = [
            ("method", "method of this experiment is labelled", Some(&self.method), &methods),
            ("grid", "grid of this experiment is labelled", Some(grid), &grids),
            ("calibration", "calibration of this experiment is named", self.calibration.as_ref(), &calibrations),
        ];
        for (key, what, name, known) in wanted {
            if let Some(name) = name.filter(|name| !known.contains(*name)) {
                return Err(misplaced(format!("{path}.{key}"), unknown(what, name, known.iter().map(String::as_str))));
            }
        }
        let is_meant = |cell: &Cell| {
            cell.method_label() == self.method
                && cell.grid_label() == *grid
                && (self.calibration.is_none() || calibration_of(cell) == self.calibration)
        };
        if quantized().any(is_meant) {
            return Ok(());
        }
        Err(misplaced(path, format!("no cell of this experiment is `{}`; remove the row", self.label())))
    }
}

/// Name of the protocol and tokens of a window, as records have them.
fn scored_as(evaluation: &EvaluationSpec) -> (String, usize) {
    evaluation.text().protocol.name_and_window()
}

fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<String> = known.into_iter().map(|known| format!("`{known}`")).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!("no {what} `{name}`; correct it or remove it; known: {known}")
}
