//! What no type can express: values of an experiment that contradict each other.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};

use super::{EvaluationSpec, ExperimentSpec, ProtocolSpec};
use crate::plan::Plan;

impl ExperimentSpec {
    /// Checks the experiment as a whole; touches no file.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.question.trim().is_empty(),
            "key `question` is empty; say in one sentence what the experiment asks"
        );
        not_empty("models", self.models.len())?;
        not_empty("methods", self.methods.len())?;
        not_empty("grids.bits", self.grids.bits.len())?;
        not_empty("grids.granularity", self.grids.granularity.len())?;
        not_empty("evaluations", self.evaluations.len())?;
        let needs_activations = |method: &crate::registry::MethodSpec| method.settings().needs().inputs;
        if let (None, Some(method)) = (&self.calibration, self.methods.iter().find(|method| needs_activations(method)))
        {
            bail!("method `{}` needs activations, the experiment has no [calibration] section; add one", method.key());
        }
        for (index, evaluation) in self.evaluations.iter().enumerate() {
            let EvaluationSpec::Perplexity(perplexity) = evaluation;
            let (key, len, least) = match &perplexity.protocol {
                // A window's first token is only ever context, with llama-cpp its first half is.
                ProtocolSpec::Gptq(gptq) => ("gptq.seq_len", gptq.seq_len.get(), 2),
                ProtocolSpec::LlamaCpp(chunks) => ("llama-cpp.chunk_len", chunks.chunk_len.get(), 3),
            };
            ensure!(
                len >= least,
                "key `evaluations[{index}].perplexity.protocol.{key}` is {len}: nothing is left to predict; use {least} or more"
            );
            ensure!(
                !self.evaluations[..index].contains(evaluation),
                "evaluations[{index}] is the same as an earlier one; remove it"
            );
        }
        for method in &self.methods {
            method.settings().check().map_err(|problem| anyhow::anyhow!("method `{}`: {problem}", method.key()))?;
        }
        let mut names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two models are named `{}`; tables could not tell them apart", twice[0]);
        }
        let plan = Plan::new(self);
        let mut ids = BTreeSet::new();
        if let Some(twice) = plan.cells().find(|cell| !ids.insert(cell.id())) {
            bail!(
                "the cell `{}` is asked for twice; remove the repeated entry of models, methods, grids.bits or grids.granularity",
                twice.label()
            );
        }
        Ok(())
    }

    /// Limits every evaluation to `max` windows, for a smoke run.
    pub fn limit_windows(&mut self, max: Option<std::num::NonZeroUsize>) {
        let Some(max) = max else { return };
        for EvaluationSpec::Perplexity(perplexity) in &mut self.evaluations {
            perplexity.max_windows = Some(perplexity.max_windows.map_or(max, |own| own.min(max)));
        }
    }
}

fn not_empty(key: &str, len: usize) -> anyhow::Result<()> {
    ensure!(len > 0, "key `{key}` is an empty list; give at least one entry");
    Ok(())
}

/// The JSON Schema of experiment files, generated from the types.
pub fn json_schema() -> String {
    let schema = schemars::schema_for!(ExperimentSpec);
    serde_json::to_string_pretty(&schema).unwrap_or_default() + "\n"
}
