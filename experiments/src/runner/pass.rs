//! Cells of one calibration: their codes from the code store, or quantized together; then scored, and what came out.

use std::collections::BTreeSet;
use std::time::Instant;

use awq_core::backend::QuantBackend;

use super::{ModelJob, fail_all, failed};
use crate::codes::Codes;
use crate::config::EvaluationSpec;
use crate::data::calibration::{CalibrationSet, overlap_tokens};
use crate::guard::guarded;
use crate::plan::Cell;
use crate::plan::cost::Kind;
use crate::progress::sweep::Sweep;
use crate::provenance::peak_resident_bytes;
use crate::record::{ByOthers, Cost, Done, Outcome, Quantization, Stage};
use crate::session::{BaseModels, Calibrated, Model, PreparedTexts, Session, Subject, Wanted};

/// A session with what its cells are scored on.
pub(super) struct Scoring<'s, 'm, B: QuantBackend> {
    pub(super) session: &'s Session<'m, B>,
    pub(super) texts: &'s PreparedTexts,
    pub(super) base: &'s mut BaseModels<'s, B>,
}

/// What is measured of a model.
pub(super) enum Measured<'a, B: QuantBackend> {
    /// The model itself.
    Base,
    /// What a method made of it.
    Quantized(Quantized<'a>),
    /// What another program made of it.
    ByOthers(&'a Session<'a, B>, ByOthers),
}

/// A quantized model and what it was made with.
pub(super) struct Quantized<'a> {
    codes: &'a Codes,
    from_store: bool,
    calibration: Option<&'a Calibrated>,
}

impl ModelJob<'_, '_, '_> {
    /// Codes that are stored are scored first. The others are quantized together, and stored before any of them is scored.
    pub(super) fn run_pass<B: QuantBackend>(
        &mut self,
        at: &mut Scoring<'_, '_, B>,
        name: &str,
        cells: &[&Cell],
    ) -> anyhow::Result<()> {
        let first = cells.first().and_then(|cell| cell.quantization.as_ref());
        let calibration = first.and_then(|quantization| Some((quantization.calibration.as_ref()?, quantization.draw)));
        let calibrated = calibration.map(|(spec, draw)| at.session.calibrate(spec, draw, self.texts)).transpose();
        let calibrated = match calibrated {
            Ok(calibrated) => calibrated,
            Err(error) => return fail_all(cells, Stage::Quantize, &error, &self.assets, self.sink),
        };
        let calibrated = calibrated.as_ref();
        self.assets.extend(calibrated.map(|one| (one.text_name.clone(), one.text_sha256.clone())));
        let mut missing: Vec<&Cell> = Vec::new();
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for &cell in cells {
            let Some(quantization) = &cell.quantization else { continue };
            let (method, rule) = (&quantization.method, quantization.rule());
            let codes = at.session.stored(method, &rule, calibrated)?;
            if codes.is_whole() {
                self.sweep(|sweep| sweep.has_codes(&cell.id()));
                let quantized = Quantized { codes: &codes, from_store: true, calibration: calibrated };
                let outcome = at.evaluate(cell, &Measured::Quantized(quantized));
                (self.sink)(cell, outcome, &self.assets)?;
            } else {
                missing.push(cell);
                wanted.push(Wanted { method, rule, codes });
            }
        }
        self.note_stored(name, cells.len(), &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let label = format!("{name}quantize {} cell(s), blocks", missing.len());
        self.sweep(|sweep| sweep.begin(Kind::Quantize, missing.iter().map(|cell| cell.id()).collect(), 1));
        let made = match at.session.quantize(&label, wanted, calibrated) {
            Ok(made) => {
                self.sweep(Sweep::end_stage);
                made
            }
            Err(error) => return fail_all(&missing, Stage::Quantize, &error, &self.assets, self.sink),
        };
        for (cell, codes) in missing.into_iter().zip(made) {
            let outcome = match codes {
                Ok(codes) => {
                    let quantized = Quantized { codes: &codes, from_store: false, calibration: calibrated };
                    at.evaluate(cell, &Measured::Quantized(quantized))
                }
                Err(error) => failed(Stage::Quantize, &error),
            };
            (self.sink)(cell, outcome, &self.assets)?;
        }
        Ok(())
    }

    fn sweep(&self, tell: impl Fn(&Sweep)) {
        if let Some(sweep) = self.machine.progress.sweep() {
            tell(sweep);
        }
    }

    fn note_stored(&self, name: &str, n_cells: usize, wanted: &[Wanted<'_>]) {
        let progress = self.machine.progress;
        if wanted.len() < n_cells {
            let n_stored = n_cells - wanted.len();
            progress.note(&format!("{name}codes of {n_stored} of {n_cells} cell(s) are from the code store"));
        }
        let begun = wanted.iter().map(|one| one.codes.n_blocks()).filter(|&n_blocks| n_blocks > 0);
        if let Some(least) = begun.clone().min() {
            let n_begun = begun.count();
            progress
                .note(&format!("{name}{n_begun} cell(s) go on behind block {least}, as far as an earlier run came"));
        }
        let n_damaged = wanted.iter().filter(|one| one.codes.is_damaged()).count();
        if n_damaged > 0 {
            progress.note(&format!(
                "{name}stored codes of {n_damaged} cell(s) were damaged; from the first damaged block on they are made again"
            ));
        }
    }
}

impl<B: QuantBackend> Scoring<'_, '_, B> {
    /// Everything that is asked of a cell.
    pub(super) fn evaluate(&mut self, cell: &Cell, measured: &Measured<'_, B>) -> Outcome {
        let start = Instant::now();
        let n_texts = cell.evaluations.iter().map(EvaluationSpec::text).collect::<BTreeSet<_>>().len();
        let sweep = self.session.machine().progress.sweep();
        if let Some(sweep) = sweep {
            sweep.begin(Kind::Score, vec![cell.id()], n_texts);
        }
        let outcome = match guarded(|| self.measure(cell, measured, start)) {
            Ok(done) => Outcome::Done(Box::new(done)),
            Err(error) => failed(Stage::Evaluate, &error),
        };
        if let Some(sweep) = sweep {
            sweep.end_stage();
        }
        outcome
    }

    fn measure(&mut self, cell: &Cell, measured: &Measured<'_, B>, start: Instant) -> anyhow::Result<Done> {
        let Self { session, texts, base } = self;
        let (subject, quantized, checkpoint) = match measured {
            Measured::Base => (Subject::Base, None, None),
            Measured::Quantized(quantized) => (Subject::Made(quantized.codes), Some(quantized), None),
            Measured::ByOthers(other, made) => (Subject::ByOthers(other), None, Some(made.clone())),
        };
        let calibration = quantized.and_then(|quantized| quantized.calibration).map(|calibrated| &calibrated.set);
        let measurements = session.score(&cell.label(), subject, &cell.evaluations, (texts, base), calibration)?;
        let seconds = |codes: &Codes| codes.logs().map(|log| log.seconds).sum::<f64>();
        Ok(Done {
            measurements,
            quantization: quantized.map(|quantized| quantized.describe(cell, texts, session.model())).transpose()?,
            checkpoint,
            packed: session.model().opened.packed.as_ref().map(Into::into),
            storage: session.model().storage.clone(),
            cost: Cost {
                quantize_seconds: quantized.map_or(0.0, |quantized| seconds(quantized.codes)),
                shared_capture_seconds: quantized.map_or(0.0, |quantized| quantized.codes.shared_seconds()),
                codes_from_store: quantized.is_some_and(|quantized| quantized.from_store),
                evaluate_seconds: start.elapsed().as_secs_f64(),
                peak_resident_bytes: peak_resident_bytes(),
            },
        })
    }
}

impl Quantized<'_> {
    fn describe(&self, cell: &Cell, texts: &PreparedTexts, model: &Model) -> anyhow::Result<Quantization> {
        let overlap = |set: &CalibrationSet| {
            let windows: Vec<&[u32]> =
                cell.evaluations.iter().flat_map(|evaluation| texts[evaluation.text()].windows.slices()).collect();
            overlap_tokens(&set.ids, &windows)
        };
        Ok(Quantization {
            method_version: cell.quantization.as_ref().map(|quantization| quantization.method.version()),
            calibration_text_sha256: self.calibration.map(|calibrated| calibrated.text_sha256.clone()),
            bits_per_weight: self.codes.bits_per_weight(),
            full_precision: model.left_in_full_precision(self.codes)?,
            codes_sha256: self.codes.sha256()?,
            n_calibration_sequences: self.calibration.map_or(0, |calibrated| calibrated.set.ids.len()),
            calibration_overlap_tokens: self.calibration.map_or(0, |calibrated| overlap(&calibrated.set)),
            blocks: self.codes.logs().cloned().collect(),
            blocks_sha256: None,
        })
    }
}
