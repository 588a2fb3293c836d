//! Cells of checkpoints that other programs have quantized: each is opened as a model of its own, and scored on the windows of the
//! model that it was made of.

use anyhow::{Context, ensure};
use awq_core::backend::QuantBackend;

use super::pass::{Measured, Scoring};
use super::{ModelJob, failed};
use crate::plan::Cell;
use crate::record::{ByOthers, Outcome, Stage};
use crate::session::{Model, PreparedTexts, Session};

impl ModelJob<'_, '_, '_> {
    pub(super) fn run_by_others<B: QuantBackend>(
        &mut self,
        at: &mut Scoring<'_, '_, B>,
        device: &B::Device,
    ) -> anyhow::Result<()> {
        let cells = self.cells;
        for &cell in cells.iter().filter(|cell| cell.checkpoint.is_some()) {
            let outcome = self.measure_by_others(at, cell, device).unwrap_or_else(|error| failed(Stage::Load, &error));
            (self.sink)(cell, outcome, &self.assets)?;
        }
        Ok(())
    }

    fn measure_by_others<B: QuantBackend>(
        &mut self,
        at: &mut Scoring<'_, '_, B>,
        cell: &Cell,
        device: &B::Device,
    ) -> anyhow::Result<Outcome> {
        let spec = cell.checkpoint.as_ref().context("the cell has no checkpoint")?;
        let model = Model::open(&spec.as_model(), self.store, self.machine.progress)?;
        let name = &cell.model.name;
        let (own, theirs) = (&self.model.opened.config, &model.opened.config);
        ensure!(
            own.vocab_size == theirs.vocab_size,
            "{} has a vocabulary of {}, {name} one of {}: it is no checkpoint of it; name its model with `model`",
            spec.name,
            theirs.vocab_size,
            own.vocab_size
        );
        let session = Session::<B>::open(&model, self.machine, device)?;
        let prepared = session.prepare(cell.evaluations.iter(), self.texts)?;
        check_same_tokens(at.texts, &prepared).with_context(|| format!("{} beside {name}", spec.name))?;
        let made = ByOthers {
            storage: model.storage.clone().context("it is not known how its linears are stored")?,
            quantized_by: model.opened.quantized_by.clone(),
            files: model.files.clone(),
        };
        Ok(at.evaluate(cell, &Measured::ByOthers(&session, made)))
    }
}

/// Numbers on other tokens cannot be compared.
fn check_same_tokens(own: &PreparedTexts, theirs: &PreparedTexts) -> anyhow::Result<()> {
    for (spec, theirs) in theirs {
        let same = own.get(spec).is_some_and(|own| own.windows.slices() == theirs.windows.slices());
        ensure!(
            same,
            "their tokenizers make other tokens of {}; give the checkpoint the tokenizer files of the model",
            theirs.name
        );
    }
    Ok(())
}
