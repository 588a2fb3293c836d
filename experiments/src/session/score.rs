//! Measurements: each text that a model is scored on is cut once and passed through the model once, for all metrics that are asked
//! of it.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Instant;

use anyhow::{Context, bail};
use awq_core::backend::QuantBackend;
use awq_core::model::Decoder;

use super::Session;
use super::write::LazyModel;
use crate::codes::Codes;
use crate::config::{DatasetSpec, EvaluationSpec, ProtocolSpec, ScoredText};
use crate::data::Texts;
use crate::data::calibration::{CalibrationSet, overlap_tokens};
use crate::eval::metric::{Metric, Needs};
use crate::eval::registry::MetricKey;
use crate::eval::score::{n_tokens_fed, needs_of, score};
use crate::eval::scores::Scores;
use crate::eval::windows::{Items, ScoredAs, Windows};
use crate::eval::{BaseModel, ScoringArithmetic};
use crate::record::Measurement;

/// Texts, cut for a model's tokenizer.
pub type PreparedTexts = BTreeMap<ScoredText, Prepared>;

/// The base model on each of them.
pub type BaseModels<'a, B> = BTreeMap<ScoredText, BaseModel<'a, B>>;

/// One text under one protocol, cut and ready.
pub struct Prepared {
    /// Its windows.
    pub windows: Windows,
    /// Name of the text.
    pub name: String,
    /// sha256 of what is scored.
    scored_sha256: String,
    /// sha256 of the text.
    pub sha256: String,
    /// True entropy, where it is known.
    nats_per_token: Option<f64>,
}

/// Whose numbers are asked for.
#[derive(Clone, Copy)]
pub enum Subject<'a, B: QuantBackend> {
    /// The session's model as its files have it.
    Base,
    /// The one whose codes these are.
    Made(&'a Codes),
    /// The model of another session, whose texts have the same tokens.
    ByOthers(&'a Session<'a, B>),
}

impl<B: QuantBackend> Session<'_, B> {
    /// Every text of `evaluations`.
    ///
    /// # Errors
    /// A text that is missing, or too short for a window.
    pub fn prepare<'e>(
        &self,
        evaluations: impl Iterator<Item = &'e EvaluationSpec>,
        texts: &mut Texts<'_>,
    ) -> anyhow::Result<PreparedTexts> {
        let mut prepared = BTreeMap::new();
        for spec in evaluations.map(EvaluationSpec::text) {
            if !prepared.contains_key(spec) {
                prepared.insert(spec.clone(), self.cut(spec, texts)?);
            }
        }
        Ok(prepared)
    }

    fn cut(&self, spec: &ScoredText, texts: &mut Texts<'_>) -> anyhow::Result<Prepared> {
        let tokenizer = &self.model.opened.tokenizer;
        let text = texts.get_scored(spec)?;
        let (whole, scored_sha256) = (text.scored(&spec.protocol)?, text.scored_sha256(&spec.protocol)?);
        let windows = Windows::cut(&whole, tokenizer, &spec.protocol, spec.max_windows.map(NonZeroUsize::get))
            .and_then(|windows| windows.check_fits(&self.model.opened.config).map(|()| windows))
            .with_context(|| format!("data set {}", text.name))?;
        let nats_per_token = match text.true_nats {
            // Tokens of the text itself: those put around it carry none of its nats.
            Some(nats) => match &whole {
                ScoredAs::Joined(whole) => Some(nats / tokenizer.encode(whole)?.len() as f64),
                ScoredAs::Documents(_) | ScoredAs::Asked(_) => None,
            },
            None => None,
        };
        let (name, sha256) = (text.name.clone(), text.sha256.clone());
        Ok(Prepared { windows, name, scored_sha256, sha256, nats_per_token })
    }

    /// This session's model on each text, with nothing computed yet.
    pub fn base_models(&self, texts: &PreparedTexts) -> BaseModels<'_, B> {
        // Codes of a base model are restored: what others are held against is what its files stand for.
        let arithmetic = |text: &ScoredText| text.arithmetic.of_floats().into();
        let base = |text: &ScoredText| (text.clone(), BaseModel::new(self.decoder(), arithmetic(text)));
        texts.keys().map(base).collect()
    }

    /// One measurement an evaluation, in their order, of this session's model, or of what is measured in its place: what was made with
    /// `calibration`, or elsewhere. `label` is that of the cell.
    ///
    /// # Errors
    /// A block that cannot be read, or values that are not finite.
    pub fn score(
        &self,
        label: &str,
        subject: Subject<'_, B>,
        evaluations: &[EvaluationSpec],
        (texts, base): (&PreparedTexts, &mut BaseModels<'_, B>),
        calibration: Option<&CalibrationSet>,
    ) -> anyhow::Result<Vec<Measurement>> {
        let is_base = matches!(subject, Subject::Base);
        let made;
        let (decoder, opened) = match subject {
            Subject::Base => (self.decoder(), &self.model.opened),
            Subject::Made(codes) => {
                made = self.quantized(codes)?;
                (made.as_ref(), &self.model.opened)
            }
            Subject::ByOthers(other) => (other.decoder(), &other.model.opened),
        };
        let checkpoint = match subject {
            Subject::Made(codes) => codes.checkpoint(),
            Subject::Base | Subject::ByOthers(_) => opened.checkpoint.clone(),
        };
        let mut writes = LazyModel::new(opened.config.clone(), checkpoint);
        let mut measured: BTreeMap<&EvaluationSpec, Measurement> = BTreeMap::new();
        for evaluation in evaluations {
            if measured.contains_key(evaluation) {
                continue;
            }
            // The first evaluation of a text takes the others along.
            let (spec, arithmetic) = (evaluation.text(), self.arithmetic(is_base, evaluation));
            let is_beside =
                |other: &&EvaluationSpec| other.text() == spec && self.arithmetic(is_base, other) == arithmetic;
            let together: Vec<&EvaluationSpec> = evaluations.iter().filter(is_beside).collect();
            let metrics: Vec<MetricKey> = together.iter().map(|one| one.metric()).collect();
            let text = (spec, &texts[spec]);
            let of_text = match &spec.protocol {
                ProtocolSpec::LmEvalGeneration(_) => {
                    self.judge_texts(label, &mut writes, text, &metrics, calibration)?
                }
                _ => {
                    let base = base.get_mut(spec).context("the base model is not prepared for a text")?;
                    self.score_text(label, (decoder, base), arithmetic, text, &metrics, calibration)?
                }
            };
            measured.extend(together.into_iter().zip(of_text));
        }
        Ok(evaluations.iter().filter_map(|evaluation| measured.remove(evaluation)).collect())
    }

    /// In what the products of a pass are computed: as the evaluation says. The base model would be at nothing from itself; so
    /// its divergences are those of bf16 from f32, the noise floor, where a device has both.
    fn arithmetic(&self, is_base: bool, evaluation: &EvaluationSpec) -> ScoringArithmetic {
        let asked = evaluation.text().arithmetic;
        let is_from_itself =
            is_base && evaluation.metric().metric().needs() == Needs::BaseLogits && self.machine.precision.is_f32();
        if is_from_itself { asked.of_floats().other().into() } else { asked }
    }

    /// One measurement a metric, of one pass over a text.
    fn score_text(
        &self,
        label: &str,
        (decoder, base): (&dyn Decoder<B>, &mut BaseModel<'_, B>),
        arithmetic: ScoringArithmetic,
        (spec, text): (&ScoredText, &Prepared),
        metrics: &[MetricKey],
        calibration: Option<&CalibrationSet>,
    ) -> anyhow::Result<Vec<Measurement>> {
        let start = Instant::now();
        let windows = &text.windows;
        let to_score: Vec<&dyn Metric> = metrics.iter().map(|metric| metric.metric()).collect();
        let passes = if needs_of(&to_score) == Needs::BaseLogits && !base.is_kept() { 2 } else { 1 };
        let config = decoder.config();
        let work = passes * n_tokens_fed(windows, config.hidden_size) * config.n_blocks;
        let bar = self.machine.progress.bar(&format!("{label}: {}", text.name), work as u64);
        let scores = score(decoder, windows, arithmetic, &to_score, base, &mut |tokens| bar.advance(tokens as u64))?;
        bar.finish();
        Ok(self.measurements((spec, text), metrics, scores, calibration, start))
    }

    /// One measurement a metric, of what a model writes on the problems of a task.
    fn judge_texts(
        &self,
        label: &str,
        model: &mut LazyModel,
        (spec, text): (&ScoredText, &Prepared),
        metrics: &[MetricKey],
        calibration: Option<&CalibrationSet>,
    ) -> anyhow::Result<Vec<Measurement>> {
        let start = Instant::now();
        let (Items::Problems(problems), ProtocolSpec::LmEvalGeneration(protocol)) =
            (&text.windows.items, &spec.protocol)
        else {
            bail!("{} has no problems to write on", text.name)
        };
        let label = format!("{label}: {}", text.name);
        let writings = self.write(&label, model, (&text.windows, problems), protocol)?;
        let judged = metrics.iter().map(|metric| {
            let metric = metric.metric();
            Scores::of_writings(&writings, &text.windows.items, metric.of_item(), metric.quantity().estimator)
        });
        let scores = judged.collect::<anyhow::Result<_>>()?;
        let mut measurements = self.measurements((spec, text), metrics, scores, calibration, start);
        let written = writings.digests();
        measurements.iter_mut().for_each(|measurement| measurement.written.clone_from(&written));
        Ok(measurements)
    }

    fn measurements(
        &self,
        (spec, text): (&ScoredText, &Prepared),
        metrics: &[MetricKey],
        scores: Vec<Scores>,
        calibration: Option<&CalibrationSet>,
        start: Instant,
    ) -> Vec<Measurement> {
        let windows = &text.windows;
        let (protocol, seq_len) = spec.protocol.name_and_window();
        let runs_programs = matches!(&spec.dataset, DatasetSpec::Task(task) if task.definition().runs_programs());
        let ran_with = self.machine.sandbox.filter(|_| runs_programs).map(|sandbox| sandbox.about().to_owned());
        let overlap = calibration.map(|set| overlap_tokens(&set.ids, &windows.slices()));
        let seconds = start.elapsed().as_secs_f64();
        let measurement = |(metric, scores): (&MetricKey, Scores)| {
            let standard_error = match spec.protocol {
                ProtocolSpec::Gptq(_) | ProtocolSpec::LmEvalTask(_) | ProtocolSpec::LmEvalGeneration(_) => {
                    scores.window_standard_error()
                }
                ProtocolSpec::LlamaCpp(_) => Some(scores.token_standard_error()),
                // lm-eval prints none.
                ProtocolSpec::LmEval(_) => None,
            };
            Measurement {
                metric: metric.quantity().name.to_owned(),
                dataset: text.name.clone(),
                protocol: protocol.clone(),
                seq_len,
                arithmetic: spec.arithmetic,
                value: scores.value(),
                standard_error,
                n_windows: scores.samples.len(),
                n_windows_total: windows.n_total,
                n_tokens: scores.n_tokens,
                samples: scores.samples.clone(),
                weights: scores.weights.clone(),
                floor: text.nats_per_token.and_then(|nats| metric.metric().floor(nats)),
                calibration_overlap_tokens: overlap,
                text_sha256: text.scored_sha256.clone(),
                tokenizer_sha256: self.model.opened.tokenizer.sha256().to_owned(),
                written: Vec::new(),
                ran_with: ran_with.clone(),
                seconds,
            }
        };
        metrics.iter().zip(scores).map(measurement).collect()
    }
}
