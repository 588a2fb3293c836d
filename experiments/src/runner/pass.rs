//! Cells of one calibration: their codes from the code store, or quantized in one pass over the model's blocks; then scored.

use anyhow::{Context, ensure};
use awq_core::backend::QuantBackend;
use awq_core::driver::{Calibration, Job, Propagation, quantize_model};
use awq_core::model::wiring::Wiring;
use awq_core::model::{Decoder, wiring_of};
use awq_core::rule::GridRule;

use super::scoring::{BaseModels, PreparedTexts};
use super::{ModelJob, fail_all, failed, guarded};
use crate::codes::{CodeStore, Question, StoredCodes, hash_of_sequences};
use crate::config::{CalibrationSpec, Draw};
use crate::data::calibration::{CalibrationSet, calibration_set, overlap_tokens};
use crate::plan::Cell;
use crate::record::{Quantization, Stage};

/// Calibration sequences and where they are from.
pub(super) struct Calibrated {
    pub(super) set: CalibrationSet,
    text_sha256: String,
    /// [`hash_of_sequences`].
    sequences_sha256: String,
    propagation: Propagation,
}

/// A quantized model and what it was made with.
pub(super) struct Quantized<'a> {
    pub(super) codes: &'a StoredCodes,
    pub(super) from_store: bool,
    pub(super) calibration: Option<&'a Calibrated>,
}

/// Where codes are kept, and how their tensors are called.
struct Kept<'a> {
    store: &'a CodeStore,
    wiring: Wiring,
}

impl<'a> ModelJob<'a, '_, '_> {
    /// Codes that are stored are scored first. The others are quantized together, and kept before any of them is scored: a kill
    /// then costs no quantization.
    pub(super) fn run_pass<B: QuantBackend>(
        &mut self,
        decoder: &dyn Decoder<B>,
        name: &str,
        cells: &[&Cell],
        (texts, base): (&PreparedTexts, &mut BaseModels<'_, B>),
    ) -> anyhow::Result<()> {
        let calibration = cells.first().and_then(|cell| cell.quantization.as_ref()?.calibration.as_ref());
        let draw = cells.first().and_then(|cell| cell.quantization.as_ref()?.draw);
        let calibrated = match calibration.map(|spec| self.drawn(spec, draw)).transpose() {
            Ok(calibrated) => calibrated,
            Err(error) => return fail_all(cells, Stage::Quantize, &error, &self.assets, self.sink),
        };
        let calibrated = calibrated.as_ref();
        let kept = self.kept();
        let mut missing = Vec::new();
        for &cell in cells {
            match kept.as_ref().and_then(|kept| self.stored(kept, cell, calibrated)) {
                Some(codes) => self.score(decoder, cell, (texts, &mut *base), (&codes, true), calibrated)?,
                None => missing.push(cell),
            }
        }
        if missing.len() < cells.len() {
            let (n_stored, n) = (cells.len() - missing.len(), cells.len());
            self.progress.note(&format!("{name}codes of {n_stored} of {n} cell(s) are from the code store"));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let jobs: Vec<Job<'_, B>> = missing
            .iter()
            .filter_map(|cell| cell.quantization.as_ref())
            .map(|quantization| {
                let grids = quantization.rule().resolve(&self.wiring)?;
                Ok(Job { method: quantization.method.method::<B>(), grids })
            })
            .collect::<anyhow::Result<_>>()?;
        let sequences = calibrated.map(|one| Calibration { sequences: &one.set.ids, propagation: one.propagation });
        let n_blocks = decoder.config().n_blocks;
        let bar = self.progress.bar(&format!("{name}quantize {} cell(s), blocks", jobs.len()), n_blocks as u64);
        let pass = guarded(|| Ok(quantize_model(decoder, sequences, &jobs, &mut |_| bar.advance(1))?));
        bar.finish();
        let pass = match pass {
            Ok(pass) => pass,
            Err(error) => return fail_all(&missing, Stage::Quantize, &error, &self.assets, self.sink),
        };
        let shared_seconds = pass.shared_seconds;
        let codes = pass.models.into_iter().map(|model| model.map(|model| StoredCodes { model, shared_seconds }));
        let codes: Vec<Result<StoredCodes, _>> = codes.collect();
        if let Some(kept) = &kept {
            for (cell, codes) in missing.iter().zip(&codes) {
                let saved = codes.as_ref().map_or(Ok(()), |codes| self.keep(kept, cell, calibrated, codes));
                if let Err(error) = saved {
                    self.progress.note(&format!("{}: its codes are not kept: {error:#}", cell.label()));
                }
            }
        }
        for (cell, codes) in missing.into_iter().zip(codes) {
            match codes {
                Ok(codes) => self.score(decoder, cell, (texts, &mut *base), (&codes, false), calibrated)?,
                Err(error) => (self.sink)(cell, failed(Stage::Quantize, &error.into()), &self.assets)?,
            }
        }
        Ok(())
    }

    fn score<B: QuantBackend>(
        &mut self,
        decoder: &dyn Decoder<B>,
        cell: &Cell,
        texts: (&PreparedTexts, &mut BaseModels<'_, B>),
        (codes, from_store): (&StoredCodes, bool),
        calibration: Option<&Calibrated>,
    ) -> anyhow::Result<()> {
        let quantized = Quantized { codes, from_store, calibration };
        let outcome = self.evaluate(&codes.model.decoder(decoder), cell, texts, Some(&quantized));
        (self.sink)(cell, outcome, &self.assets)
    }

    /// A draw that is no other than the first is an error: the spread of the two would be nothing, and say nothing.
    fn drawn(&mut self, spec: &CalibrationSpec, draw: Option<Draw>) -> anyhow::Result<Calibrated> {
        let calibrated = self.calibrated(spec)?;
        if let Some(draw) = draw.filter(|draw| draw.index > 0) {
            let sorted = |calibrated: &Calibrated| {
                let mut ids = calibrated.set.ids.clone();
                ids.sort();
                ids
            };
            ensure!(
                sorted(&calibrated) != sorted(&self.calibrated(&draw.first(spec))?),
                "draw {} of the calibration takes the same sequences as draw 0: the text has no others; remove `draws` or \
                 calibrate on a longer text",
                draw.index
            );
        }
        Ok(calibrated)
    }

    fn calibrated(&mut self, spec: &CalibrationSpec) -> anyhow::Result<Calibrated> {
        let text = self.texts.get(&spec.dataset)?;
        let set = calibration_set(&self.opened, spec, text)?;
        self.assets.insert(text.name.clone(), text.sha256.clone());
        let sequences_sha256 = hash_of_sequences(&set.ids);
        Ok(Calibrated { set, text_sha256: text.sha256.clone(), sequences_sha256, propagation: spec.propagation })
    }

    /// `None` where this run keeps no codes.
    fn kept(&self) -> Option<Kept<'a>> {
        let store = self.options.codes.as_ref()?;
        // A model without wiring has failed before.
        let wiring = wiring_of(&self.opened.config, self.opened.checkpoint.as_ref()).ok()?;
        Some(Kept { store, wiring })
    }

    fn question<'q>(
        &'q self,
        cell: &'q Cell,
        rule: &'q GridRule,
        calibrated: Option<&'q Calibrated>,
    ) -> Option<Question<'q>> {
        let quantization = cell.quantization.as_ref()?;
        let calibration = calibrated.map(|one| (one.sequences_sha256.as_str(), one.propagation));
        let method = (&quantization.method, rule);
        Some(Question::new(&self.model_files, method, calibration, (&self.options.device, self.precision)))
    }

    fn stored(&self, kept: &Kept<'_>, cell: &Cell, calibrated: Option<&Calibrated>) -> Option<StoredCodes> {
        let rule = cell.quantization.as_ref()?.rule();
        let id = self.question(cell, &rule, calibrated)?.id().ok()?;
        kept.store.load(&id, &kept.wiring)
    }

    fn keep(
        &self,
        kept: &Kept<'_>,
        cell: &Cell,
        calibrated: Option<&Calibrated>,
        codes: &StoredCodes,
    ) -> anyhow::Result<()> {
        let rule = cell.quantization.as_ref().context("full precision has no codes")?.rule();
        let question = self.question(cell, &rule, calibrated).context("full precision has no codes")?;
        kept.store.save(&question, codes, &kept.wiring, self.opened.checkpoint.clone())
    }

    pub(super) fn describe(&self, quantized: &Quantized<'_>, cell: &Cell, texts: &PreparedTexts) -> Quantization {
        let overlap = |set: &CalibrationSet| {
            let windows: Vec<&[u32]> =
                cell.evaluations.iter().flat_map(|evaluation| texts[evaluation.text()].windows.slices()).collect();
            overlap_tokens(&set.ids, &windows)
        };
        let (model, calibration) = (&quantized.codes.model, quantized.calibration);
        let checkpoint = self.opened.checkpoint.as_ref();
        Quantization {
            method_version: cell.quantization.as_ref().map(|quantization| quantization.method.version()),
            calibration_text_sha256: calibration.map(|calibrated| calibrated.text_sha256.clone()),
            bits_per_weight: model.bits_per_weight(),
            full_precision: model.left_in_full_precision(&self.wiring, &self.opened.config, checkpoint),
            codes_sha256: model.codes_sha256(),
            n_calibration_sequences: calibration.map_or(0, |calibrated| calibrated.set.ids.len()),
            calibration_overlap_tokens: calibration.map_or(0, |calibrated| overlap(&calibrated.set)),
            blocks: model.logs.clone(),
            blocks_sha256: None,
        }
    }
}
