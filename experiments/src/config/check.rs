//! What no type can express: values of an experiment that contradict each other.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use awq_core::arithmetic::FloatType;

use super::{
    DatasetSpec, EvaluationSpec, ExperimentFile, ExperimentSpec, FigureSpec, GridSweep, LmEvalGenerationProtocol,
    LmEvalTaskProtocol, ModelSource, ProtocolSpec, ScoredText, TableAxis,
};
use crate::eval::metric::{OfItem, Per};
use crate::eval::registry::MetricKey;
use crate::plan::{Cell, Plan};
use crate::tasks::TaskName;

impl ExperimentSpec {
    /// Checks the experiment as a whole; touches no file.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.question.trim().is_empty(),
            "key `question` is empty; say in one sentence what the experiment asks"
        );
        self.check_packages()?;
        self.check_speed()?;
        self.check_baseline()?;
        if self.measures_quality() {
            self.check_quality()?;
        }
        Ok(())
    }

    /// Every grid that some linears have makes sense, and every method can round to it.
    fn check_grids(&self) -> anyhow::Result<()> {
        for rule in self.grids.iter().flat_map(GridSweep::rules) {
            let methods = || self.methods.iter().map(|entry| &entry.method);
            if let Some(method) = methods().find(|one| rule.head().is_some() && !one.settings().quantizes_head()) {
                bail!(
                    "method `{}` cannot quantize `lm_head`, of which no activations are known; quantize it with rtn or hqq, or \
                     remove its override",
                    method.key()
                );
            }
            for grid in rule.grids() {
                grid.check().map_err(|problem| anyhow::anyhow!("section `[grids]`: {problem}"))?;
                for method in self.methods.iter().map(|entry| &entry.method) {
                    let supported = method.settings().supports(grid);
                    supported.map_err(|problem| {
                        anyhow::anyhow!("method `{}` on {}: {problem}", method.key(), grid.label())
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Whether models are quantized and scored; an experiment may only time things.
    fn measures_quality(&self) -> bool {
        self.speed.is_none() || self.grids.is_some() || !self.methods.is_empty() || !self.evaluations.is_empty()
    }

    fn check_quality(&self) -> anyhow::Result<()> {
        not_empty("models", self.models.len())?;
        self.check_checkpoints()?;
        // What others have quantized needs neither.
        if self.checkpoints.is_empty() || !self.methods.is_empty() {
            not_empty("methods", self.methods.len())?;
            let grids = self.grids.as_ref().context("section `[grids]` is missing; say which bits and groups")?;
            grids.check()?;
            not_empty("grids.granularity", grids.granularity.len())?;
        }
        not_empty("evaluations", self.evaluations.len())?;
        self.check_calibrations()?;
        for (index, evaluation) in self.evaluations.iter().enumerate() {
            let key = || format!("key `evaluations[{index}].{}", evaluation.metric().key());
            check_evaluation(evaluation).map_err(|problem| anyhow::anyhow!("{}{problem}", key()))?;
            ensure!(
                !self.evaluations[..index].contains(evaluation),
                "evaluations[{index}] is the same as an earlier one; remove it"
            );
        }
        self.check_precision()?;
        for method in self.methods.iter().map(|entry| &entry.method) {
            method.settings().check().map_err(|problem| anyhow::anyhow!("method `{}`: {problem}", method.key()))?;
        }
        self.check_grids()?;
        let mut names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two models are named `{}`; tables could not tell them apart", twice[0]);
        }
        let plan = Plan::new(self);
        let mut ids = BTreeSet::new();
        if let Some(twice) = plan.cells().find(|cell| !ids.insert(cell.id())) {
            bail!(
                "the cell `{}` is asked for twice; remove the repeated entry of models, methods, calibrations, grids.bits or \
                 grids.granularity",
                twice.label()
            );
        }
        for (index, reference) in self.references.iter().enumerate() {
            let label = reference.label();
            reference.check().map_err(|problem| anyhow::anyhow!("reference[{index}] ({label}): {problem}"))?;
        }
        self.check_export()?;
        self.check_layout(&plan)
    }

    /// A baseline that there is.
    fn check_baseline(&self) -> anyhow::Result<()> {
        let Some(report) = &self.report else { return Ok(()) };
        let labels: BTreeSet<String> = self.methods.iter().map(|entry| entry.method.label()).collect();
        ensure!(
            labels.contains(&report.baseline),
            "key `report.baseline`: no method of this experiment is labelled `{}`; use one of: {}",
            report.baseline,
            labels.into_iter().collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }

    fn check_packages(&self) -> anyhow::Result<()> {
        for model in &self.models {
            let (of_model, files) = (|| format!("model `{}`", model.name), model.source.registry_files());
            files.iter().try_for_each(|file| file.check()).with_context(of_model)?;
            ensure!(
                !files.is_empty() || !matches!(model.source, ModelSource::RegistryParts(_)),
                "{}: key `parts` is an empty list; give the packages that carry the parts of the file",
                of_model()
            );
        }
        Ok(())
    }

    fn check_speed(&self) -> anyhow::Result<()> {
        let Some(speed) = &self.speed else { return Ok(()) };
        ensure!(
            speed.kernels.is_some() || speed.decode.is_some(),
            "[speed]: nothing to time; add a [speed.kernels] or a [speed.decode] section"
        );
        for published in &speed.published {
            let n_forms = published.forms.len();
            let short = published.rows.iter().find(|row| row.tokens_per_s.len() != n_forms);
            if let Some(row) = short {
                anyhow::bail!(
                    "key `speed.published` ({}): the row of {} on {} has {} speeds for {n_forms} forms; give each form one, or \"\"",
                    published.source,
                    row.model,
                    row.machine,
                    row.tokens_per_s.len()
                );
            }
        }
        if let Some(kernels) = &speed.kernels {
            not_empty("speed.kernels.shapes", kernels.shapes.len())?;
            not_empty("speed.kernels.batch_sizes", kernels.batch_sizes.len())?;
        }
        if speed.decode.is_some() {
            not_empty("models", self.models.len())?;
        }
        Ok(())
    }

    /// `arithmetic` says how f32 tensors are multiplied; there are none in another precision.
    fn check_precision(&self) -> anyhow::Result<()> {
        let mut rounding =
            self.evaluations.iter().enumerate().filter(|(_, evaluation)| !evaluation.text().arithmetic.is_f32());
        if let (false, Some((index, evaluation))) = (self.run.precision.is_f32(), rounding.next()) {
            bail!(
                "`evaluations[{index}].{}.arithmetic` says how tensors of f32 are multiplied, and they are {} by \
                 `run.precision`; remove one of the two",
                evaluation.metric().key(),
                self.run.precision.name()
            );
        }
        let written = |evaluation: &&EvaluationSpec| {
            matches!(evaluation.text().protocol, ProtocolSpec::LmEvalGeneration(_)) && !self.run.precision.is_f32()
        };
        if let Some(evaluation) = self.evaluations.iter().find(written) {
            bail!(
                "`evaluations.{}`: texts are written on the CPU in f32, and `run.precision` is {}; measure them in an experiment of \
                 their own",
                evaluation.metric().key(),
                self.run.precision.name()
            );
        }
        Ok(())
    }

    /// A table in which every cell has a place of its own, and a figure that has something to show.
    fn check_layout(&self, plan: &Plan) -> anyhow::Result<()> {
        if matches!(self.figure, Some(FigureSpec::Matrix(_))) {
            ensure!(self.table.is_some(), "`figure.matrix` draws the experiment's table; add a [table] section");
        }
        let Some(table) = &self.table else { return Ok(()) };
        not_empty("table.values", table.values.len())?;
        let measured: BTreeSet<MetricKey> = self.evaluations.iter().map(EvaluationSpec::metric).collect();
        if let Some(unmeasured) = table.metrics().find(|metric| !measured.contains(metric)) {
            bail!(
                "[table]: `values` names `{0}`, which no evaluation measures; remove it, or add `[evaluations.{0}]`",
                unmeasured.key()
            );
        }
        let axes: Vec<TableAxis> = table.rows.iter().chain(&table.columns).copied().collect();
        if let Some(twice) = axes.iter().enumerate().find(|(index, axis)| axes[..*index].contains(axis)) {
            bail!("[table]: `{}` is in `rows` and `columns` twice; remove one", twice.1.key());
        }
        let mut places = BTreeMap::new();
        let is_later = |cell: &Cell| cell.quantization.as_ref().and_then(|q| q.draw).is_some_and(|draw| draw.index > 0);
        // The draws of a calibration stand in one place, as their mean.
        for cell in plan.cells().filter(|cell| !is_later(cell)) {
            let place: Vec<String> = axes.iter().map(|&axis| cell.place(axis)).collect();
            if let Some(other) = places.insert(place, cell.label()) {
                bail!(
                    "[table]: `{other}` and `{}` would stand in one place; add what tells them apart to `rows` or `columns` \
                     (model, method, grid, calibration)",
                    cell.label()
                );
            }
        }
        Ok(())
    }

    /// Stores weights and activations on a GPU in another type.
    ///
    /// # Errors
    /// If the experiment asks for something that goes with f32 only.
    pub fn set_precision(&mut self, precision: FloatType) -> anyhow::Result<()> {
        self.run.precision = precision;
        self.check_precision()
    }

    /// Windows to which each evaluation is limited, in their order.
    pub fn limits(&self) -> Vec<Option<std::num::NonZeroUsize>> {
        self.evaluations.iter().map(|evaluation| evaluation.text().max_windows).collect()
    }

    /// Limits every evaluation to `max` windows, for a smoke run.
    pub fn limit_windows(&mut self, max: Option<std::num::NonZeroUsize>) {
        let Some(max) = max else { return };
        for text in self.evaluations.iter_mut().map(EvaluationSpec::text_mut) {
            text.max_windows = Some(text.max_windows.map_or(max, |own| own.min(max)));
        }
    }
}

/// Whether a metric, what it is measured on and the protocol go together: what is said follows the key of the evaluation.
fn check_evaluation(evaluation: &EvaluationSpec) -> Result<(), String> {
    let (metric, text) = (evaluation.metric(), evaluation.text());
    let (key, least) = match &text.protocol {
        // A window's first token is only ever context, with llama-cpp its first half is.
        ProtocolSpec::Gptq(_) => ("gptq.seq_len", 2),
        ProtocolSpec::LlamaCpp(_) => ("llama-cpp.chunk_len", 3),
        ProtocolSpec::LmEval(_) => ("lm-eval.max_len", 1),
        ProtocolSpec::LmEvalTask(_) => ("lm-eval-task.max_len", 1),
        ProtocolSpec::LmEvalGeneration(_) => ("lm-eval-generation.max_len", 1),
    };
    if text.seq_len() < least {
        return Err(format!(".protocol.{key}` is {}: nothing is left to predict; use {least} or more", text.seq_len()));
    }
    match &text.dataset {
        DatasetSpec::Task(task) => check_task(*task, metric, text),
        _ => check_text(metric, &text.protocol),
    }
}

/// The same of what is measured on a text.
fn check_text(metric: MetricKey, protocol: &ProtocolSpec) -> Result<(), String> {
    if let ProtocolSpec::LmEvalTask(_) | ProtocolSpec::LmEvalGeneration(_) = protocol {
        let (name, task) = match protocol {
            ProtocolSpec::LmEvalGeneration(_) => (LmEvalGenerationProtocol::NAME, TaskName::Gsm8k),
            _ => (LmEvalTaskProtocol::NAME, TaskName::Piqa),
        };
        return Err(format!(
            ".dataset` is a text: protocol {name} scores a task, such as `{{ task = \"{}\" }}`",
            task.name()
        ));
    }
    match metric.metric().of_item() {
        OfItem::Question(_) => {
            Err("` is of the questions of a task; use a data set such as `{ task = \"piqa\" }`".to_owned())
        }
        OfItem::Written { .. } => {
            Err("` is of the problems of a task; use a data set such as `{ task = \"gsm8k\" }`".to_owned())
        }
        OfItem::Sum(Per::Word | Per::Byte) if !matches!(protocol, ProtocolSpec::LmEval(_)) => {
            Err("` counts words or bytes of documents, which windows of a joined text cut; use protocol lm-eval"
                .to_owned())
        }
        OfItem::Sum(_) | OfItem::Quantile(_) | OfItem::Largest => Ok(()),
    }
}

/// The same of what is measured on a task.
fn check_task(task: TaskName, metric: MetricKey, text: &ScoredText) -> Result<(), String> {
    let definition = task.definition();
    let name = || text.protocol.name_and_window().0;
    match (&text.protocol, definition.is_written()) {
        (ProtocolSpec::LmEvalTask(_), false) | (ProtocolSpec::LmEvalGeneration(_), true) => {}
        (_, true) => {
            return Err(format!(
                ".protocol` is {}: the answers to task {} are written, with lm-eval-generation",
                name(),
                task.name()
            ));
        }
        (_, false) => return Err(format!(".protocol` is {}: a task is scored with lm-eval-task", name())),
    }
    if !task.has(metric) {
        let has: Vec<&str> = definition.metrics.iter().map(|metric| metric.key()).collect();
        return Err(format!("` is no metric of task {}; use {}", task.name(), has.join(", ")));
    }
    if definition.examples.is_none() && text.protocol.n_shots() > 0 {
        return Err(format!(
            ".protocol` shows examples, and task {} is asked without any; set `n_shots` to 0",
            task.name()
        ));
    }
    if let (ProtocolSpec::LmEvalGeneration(protocol), OfItem::Written { n_texts, .. }) =
        (&text.protocol, metric.metric().of_item())
    {
        if protocol.n_texts() < n_texts {
            return Err(format!(
                "` takes {n_texts} texts or more on each problem, and the protocol has {}; raise `several.n`",
                protocol.n_texts()
            ));
        }
        if !text.arithmetic.is_f32() {
            return Err(".arithmetic`: texts are written in f32 only; remove it".to_owned());
        }
    }
    Ok(())
}

/// Checks that a list names something, and nothing twice.
pub(super) fn not_repeated<T: PartialEq>(key: &str, list: &[T], name: impl Fn(&T) -> &str) -> anyhow::Result<()> {
    not_empty(key, list.len())?;
    let twice = list.iter().enumerate().find(|(index, one)| list[..*index].contains(one));
    match twice {
        Some((_, one)) => anyhow::bail!("key `{key}` has `{}` twice; remove one", name(one)),
        None => Ok(()),
    }
}

fn not_empty(key: &str, len: usize) -> anyhow::Result<()> {
    ensure!(len > 0, "key `{key}` is an empty list; give at least one entry");
    Ok(())
}

/// The JSON Schema of experiment files, generated from the types.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(ExperimentFile);
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}
