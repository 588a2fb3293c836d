//! A cell's measurements: each text that it is scored on is cut once and passed through the model once, for all metrics that are
//! asked of it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::Context;
use awq_core::backend::QuantBackend;
use awq_core::model::Decoder;

use super::pass::Quantized;
use super::{ModelJob, failed, guarded};
use crate::config::{EvaluationSpec, ProtocolSpec, ScoredText};
use crate::data::calibration::{CalibrationSet, overlap_tokens};
use crate::eval::BaseModel;
use crate::eval::metric::{Metric, Needs};
use crate::eval::registry::MetricKey;
use crate::eval::score::{needs_of, score};
use crate::eval::scores::Scores;
use crate::eval::windows::Windows;
use crate::plan::Cell;
use crate::provenance::peak_resident_bytes;
use crate::record::{Cost, Done, Measurement, Outcome, Stage};

/// The texts of a model's cells.
pub(super) type PreparedTexts = BTreeMap<ScoredText, Prepared>;

/// The base model on each of them.
pub(super) type BaseModels<'a, B> = BTreeMap<ScoredText, BaseModel<'a, B>>;

/// One text under one protocol, cut and ready.
pub(super) struct Prepared {
    pub(super) windows: Windows,
    name: String,
    sha256: String,
    /// True entropy, where it is known.
    nats_per_token: Option<f64>,
}

/// The base model `decoder` on each text, with nothing computed yet.
pub(super) fn base_models<'a, B: QuantBackend>(
    decoder: &'a dyn Decoder<B>,
    texts: &PreparedTexts,
) -> BaseModels<'a, B> {
    texts.keys().map(|text| (text.clone(), BaseModel::new(decoder))).collect()
}

impl ModelJob<'_, '_, '_> {
    /// Every text that a cell is scored on.
    pub(super) fn prepare(&mut self) -> anyhow::Result<PreparedTexts> {
        let mut texts = BTreeMap::new();
        for spec in self.cells.iter().flat_map(|cell| &cell.evaluations).map(EvaluationSpec::text) {
            if !texts.contains_key(spec) {
                texts.insert(spec.clone(), self.prepared(spec)?);
            }
        }
        Ok(texts)
    }

    fn prepared(&mut self, spec: &ScoredText) -> anyhow::Result<Prepared> {
        let tokenizer = &self.opened.tokenizer;
        let text = self.texts.get(&spec.dataset)?;
        let (whole, sha256) = (text.scored(&spec.protocol), text.scored_sha256(&spec.protocol));
        let windows = Windows::cut(&whole, tokenizer, &spec.protocol, spec.max_windows.map(NonZeroUsize::get))
            .and_then(|windows| windows.check_fits(&self.opened.config).map(|()| windows))
            .with_context(|| format!("data set {}", text.name))?;
        let nats_per_token = match text.true_nats {
            // Tokens of the text itself: those put around it carry none of its nats.
            Some(nats) => Some(nats / tokenizer.encode(&whole)?.len() as f64),
            None => None,
        };
        self.assets.insert(text.name.clone(), text.sha256.clone());
        Ok(Prepared { windows, name: text.name.clone(), sha256, nats_per_token })
    }

    /// Everything that is asked of a cell, of whatever model `decoder` is.
    pub(super) fn evaluate<B: QuantBackend>(
        &self,
        decoder: &dyn Decoder<B>,
        cell: &Cell,
        (texts, base): (&PreparedTexts, &mut BaseModels<'_, B>),
        quantized: Option<&Quantized<'_>>,
    ) -> Outcome {
        let start = Instant::now();
        let calibration = quantized.and_then(|quantized| quantized.calibration).map(|calibrated| &calibrated.set);
        match guarded(|| self.measure(decoder, cell, (texts, base), calibration)) {
            Ok(measurements) => Outcome::Done(Box::new(Done {
                measurements,
                quantization: quantized.map(|quantized| self.describe(quantized, cell, texts)),
                packed: self.opened.packed.as_ref().map(Into::into),
                storage: self.storage.clone(),
                cost: Cost {
                    quantize_seconds: quantized.map_or(0.0, |q| q.codes.model.logs.iter().map(|log| log.seconds).sum()),
                    shared_capture_seconds: quantized.map_or(0.0, |q| q.codes.shared_seconds),
                    codes_from_store: quantized.is_some_and(|q| q.from_store),
                    evaluate_seconds: start.elapsed().as_secs_f64(),
                    peak_resident_bytes: peak_resident_bytes(),
                },
            })),
            Err(error) => failed(Stage::Evaluate, &error),
        }
    }

    /// One measurement an evaluation, in their order.
    fn measure<B: QuantBackend>(
        &self,
        decoder: &dyn Decoder<B>,
        cell: &Cell,
        (texts, base): (&PreparedTexts, &mut BaseModels<'_, B>),
        calibration: Option<&CalibrationSet>,
    ) -> anyhow::Result<Vec<Measurement>> {
        let mut measured: BTreeMap<&EvaluationSpec, Measurement> = BTreeMap::new();
        for evaluation in &cell.evaluations {
            if measured.contains_key(evaluation) {
                continue;
            }
            // The first evaluation of a text takes the others along.
            let spec = evaluation.text();
            let together: Vec<&EvaluationSpec> = cell.evaluations.iter().filter(|other| other.text() == spec).collect();
            let metrics: Vec<MetricKey> = together.iter().map(|one| one.metric()).collect();
            let base = base.get_mut(spec).context("the base model is not prepared for a text")?;
            let of_text = self.measure_text((decoder, base), cell, (spec, &texts[spec]), &metrics, calibration)?;
            measured.extend(together.into_iter().zip(of_text));
        }
        Ok(cell.evaluations.iter().filter_map(|evaluation| measured.remove(evaluation)).collect())
    }

    /// One measurement a metric, of one pass over a text.
    fn measure_text<B: QuantBackend>(
        &self,
        (decoder, base): (&dyn Decoder<B>, &mut BaseModel<'_, B>),
        cell: &Cell,
        (spec, text): (&ScoredText, &Prepared),
        metrics: &[MetricKey],
        calibration: Option<&CalibrationSet>,
    ) -> anyhow::Result<Vec<Measurement>> {
        let start = Instant::now();
        let windows = &text.windows;
        let seq_len = windows.windows.first().map_or(0, Vec::len);
        let to_score: Vec<&dyn Metric> = metrics.iter().map(|metric| metric.metric()).collect();
        let passes = if needs_of(&to_score) == Needs::BaseLogits && !base.is_kept() { 2 } else { 1 };
        let work = passes * windows.windows.len() * seq_len * decoder.config().n_blocks;
        let bar = self.progress.bar(&format!("{}: {}", cell.label(), text.name), work as u64);
        let scores =
            score(decoder, windows, spec.arithmetic, &to_score, base, &mut |tokens| bar.advance(tokens as u64))?;
        bar.finish();
        let overlap = calibration.map(|set| overlap_tokens(&set.ids, &windows.slices()));
        let seconds = start.elapsed().as_secs_f64();
        let measurement = |(metric, scores): (&MetricKey, Scores)| {
            let (protocol, standard_error) = match spec.protocol {
                ProtocolSpec::Gptq(_) => ("gptq", scores.window_standard_error()),
                ProtocolSpec::LlamaCpp(_) => ("llama-cpp", Some(scores.token_standard_error())),
            };
            Measurement {
                metric: metric.quantity().name.to_owned(),
                dataset: text.name.clone(),
                protocol: protocol.to_owned(),
                seq_len,
                arithmetic: spec.arithmetic,
                value: scores.value(),
                standard_error,
                n_windows: windows.windows.len(),
                n_windows_total: windows.n_total,
                n_tokens: scores.n_tokens(),
                samples: scores.samples(),
                floor: text.nats_per_token.and_then(|nats| metric.metric().floor(nats)),
                calibration_overlap_tokens: overlap,
                text_sha256: text.sha256.clone(),
                tokenizer_sha256: self.opened.tokenizer.sha256().to_owned(),
                seconds,
            }
        };
        Ok(metrics.iter().zip(scores).map(measurement).collect())
    }
}
