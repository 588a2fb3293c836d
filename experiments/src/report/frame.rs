//! Records to rows: the newest record of each cell, its intervals, and its differences to the base model, to a baseline on
//! the same grid and to published numbers. Pure: everything comes from the records.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use awq_core::driver::Propagation;
use rayon::prelude::*;

use super::base;
use super::row::Row;
use crate::config::ReferenceValue;
use crate::eval::metric::Unit;
use crate::eval::registry::MetricKey;
use crate::inputs::differences;
use crate::plan::Cell;
use crate::record::{Done, Measurement, Outcome, PackedOrigin, Quantization, Record};
use crate::registry::MethodSpec;
use crate::stats::mcnemar::McNemar;
use crate::stats::{self, Bootstrap, Estimator, Paired};

/// The resampling behind every interval of a report. Fixed, so that a report made again is the same report.
pub const BOOTSTRAP: Bootstrap = Bootstrap { n: 4000, seed: 0 };

/// A cell that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Model, method and grid.
    pub label: String,
    /// `load`, `quantize` or `evaluate`.
    pub stage: &'static str,
    /// The error chain, outermost first.
    pub error: String,
}

/// How far each block's output is off, for one quantized cell.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockCurve {
    /// Model name.
    pub model: String,
    /// Method label.
    pub method: String,
    /// Registry name of the method.
    pub method_key: String,
    /// Grid label.
    pub grid: String,
    /// Name of the calibration, where the experiment compares several.
    pub calibration: Option<String>,
    /// As in [`Row`].
    pub propagation: Option<String>,
    /// Draw of the calibration, where there are several: the first, the others are alike.
    pub draw: Option<u16>,
    /// Block index, and the squared output error over the squared output.
    pub relative_errors: Vec<(usize, f64)>,
}

/// The newest record of each cell, in the order in which cells first appear.
pub fn newest(records: &[Record]) -> Vec<&Record> {
    let mut position = BTreeMap::new();
    let mut newest: Vec<&Record> = Vec::new();
    for record in records {
        let index = *position.entry(&record.cell_id).or_insert(newest.len());
        if index == newest.len() {
            newest.push(record);
        }
        newest[index] = record;
    }
    newest
}

/// One row a measurement of each finished cell among `records` ([`newest`]): by model as they first appear, then text and
/// protocol, then metric, then the base model before quantized, most bits first, RTN before other methods.
///
/// `baseline` is the label of the method that others are compared with.
///
/// # Errors
/// A metric that this program does not know.
pub fn rows(records: &[&Record], references: &[ReferenceValue], baseline: &str) -> anyhow::Result<Vec<Row>> {
    let finished: Vec<Finished<'_>> = records.iter().filter_map(|record| Finished::of(record)).collect();
    let models: Vec<&str> = finished.iter().map(|cell| cell.cell().model.name.as_str()).collect();
    let mut measured = Vec::new();
    for cell in &finished {
        for measurement in &cell.done.measurements {
            let metric =
                MetricKey::of_record(&measurement.metric).with_context(|| format!("cell {}", cell.cell().label()))?;
            measured.push((cell, (metric, measurement)));
        }
    }
    // Each has intervals of some hundredths of a second, and a large experiment has a thousand of them.
    let row = |(cell, of_metric)| row(cell, of_metric, &finished, references, baseline);
    let mut rows: Vec<Row> = measured.into_par_iter().map(row).collect();
    let place = |row: &Row| models.iter().position(|model| *model == row.model);
    rows.sort_by(|a, b| {
        let text = |row: &Row| {
            let numbers = Reverse((row.n_windows, row.n_windows_total));
            (row.dataset.clone(), row.protocol.clone(), row.seq_len, row.arithmetic.clone(), numbers)
        };
        let bits = |row: &Row| row.bits_per_weight.unwrap_or_default();
        // Cells that differ in nothing else stay in their order: that of the plan.
        let method = |row: &Row| (row.method != "RTN", row.method.clone());
        (place(a), text(a), a.metric, a.grid.is_some())
            .cmp(&(place(b), text(b), b.metric, b.grid.is_some()))
            .then(bits(b).total_cmp(&bits(a)))
            .then_with(|| (&a.grid, method(a)).cmp(&(&b.grid, method(b))))
    });
    Ok(rows)
}

/// The cells whose newest record is a failure.
pub fn failures(records: &[&Record]) -> Vec<Failure> {
    let failure = |record: &&Record| match &record.outcome {
        Outcome::Done(_) => None,
        Outcome::Failed(failed) => {
            Some(Failure { label: record.cell.label(), stage: failed.stage.name(), error: failed.error.clone() })
        }
    };
    records.iter().filter_map(failure).collect()
}

/// Curves of all cells that logged output errors, in the order of the records; of several draws of a calibration the first.
pub fn block_curves(records: &[&Record]) -> Vec<BlockCurve> {
    let curve = |record: &&Record| {
        let finished = Finished::of(record)?;
        let draw = record.cell.quantization.as_ref().and_then(|q| q.draw).filter(|draw| !draw.is_only());
        if draw.is_some_and(|draw| draw.index > 0) {
            return None;
        }
        let blocks = &finished.done.quantization.as_ref()?.blocks;
        let relative = |block: &awq_core::log::BlockLog| {
            let error = block.output_mse? / block.output_mean_square?;
            // A block without error (or without output) has no place on a log axis.
            (error.is_finite() && error > 0.0).then_some((block.block_idx, error))
        };
        let relative_errors: Vec<_> = blocks.iter().filter_map(relative).collect();
        let curve = BlockCurve {
            model: record.cell.model.name.clone(),
            method: record.cell.method_label(),
            method_key: method_key(&record.cell).unwrap_or_default(),
            grid: record.cell.grid_label(),
            calibration: record.cell.quantization.as_ref().and_then(|q| q.calibration_name.clone()),
            propagation: propagation_of(&record.cell),
            draw: draw.map(|draw| draw.index),
            relative_errors,
        };
        (!curve.relative_errors.is_empty()).then_some(curve)
    };
    records.iter().filter_map(curve).collect()
}

/// The texts that were scored, in the order of the experiment's evaluations.
pub fn texts(records: &[&Record]) -> Vec<String> {
    let measurements =
        records.iter().filter_map(|record| Finished::of(record)).flat_map(|cell| &cell.done.measurements);
    let mut texts: Vec<String> = Vec::new();
    for measurement in measurements {
        if !texts.contains(&measurement.dataset) {
            texts.push(measurement.dataset.clone());
        }
    }
    texts
}

/// Published numbers that no row stands beside: not run, or misspelt.
pub fn unmatched_references<'a>(rows: &[Row], references: &'a [ReferenceValue]) -> Vec<&'a ReferenceValue> {
    references.iter().filter(|reference| !rows.iter().any(|row| is_reference_of(reference, row))).collect()
}

/// Whether a published number may stand beside a row. Published full precision (no grid) is matched by whatever name it
/// goes; what the reference leaves open matches anything.
pub fn is_reference_of(reference: &ReferenceValue, row: &Row) -> bool {
    let open_or = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
    reference.metric() == row.metric
        && reference.model == row.model
        && reference.grid == row.grid
        && (row.grid.is_none() || reference.method == row.method)
        && open_or(&reference.calibration, row.calibration.as_deref())
        && open_or(&reference.dataset, Some(&row.dataset))
        && open_or(&reference.protocol, Some(&row.protocol))
        && reference.seq_len.is_none_or(|seq_len| seq_len.get() as u64 == row.seq_len)
}

/// Steps of all linears that a fixed scale was folded into: the share that it changed and the mean ratio after to before.
fn step_change(quantization: &Quantization) -> Option<(f64, f64)> {
    let changes = quantization.blocks.iter().flat_map(|block| &block.linears).filter_map(|linear| linear.step_change);
    let (mut n_groups, mut n_changed, mut ratios) = (0, 0, 0.0);
    for change in changes {
        n_groups += change.n_groups;
        n_changed += change.n_changed;
        ratios += change.mean_ratio * change.n_groups as f64;
    }
    (n_groups > 0).then(|| (n_changed as f64 / n_groups as f64, ratios / n_groups as f64))
}

/// The factor of a method that scales channels by one.
fn fixed_scale(cell: &Cell) -> Option<f64> {
    match &cell.quantization.as_ref()?.method {
        MethodSpec::FixedScale(method) => Some(method.scale),
        _ => None,
    }
}

fn method_key(cell: &Cell) -> Option<String> {
    let by_others = cell.checkpoint.as_ref().map(|_| "checkpoint".to_owned());
    cell.quantization.as_ref().map(|quantization| quantization.method.key().to_owned()).or(by_others)
}

fn propagation_of(cell: &Cell) -> Option<String> {
    let propagation = cell.quantization.as_ref().and_then(|quantization| quantization.propagation());
    propagation.map(|propagation| propagation_name(propagation).to_owned())
}

/// The word of the configuration.
fn propagation_name(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::FullPrecision => "full_precision",
        Propagation::Quantized => "quantized",
        Propagation::QuantizedPerStage => "quantized_per_stage",
    }
}

/// A record that holds numbers.
struct Finished<'a> {
    record: &'a Record,
    done: &'a Done,
}

impl<'a> Finished<'a> {
    fn of(record: &'a Record) -> Option<Self> {
        match &record.outcome {
            Outcome::Done(done) => Some(Self { record, done }),
            Outcome::Failed(_) => None,
        }
    }

    fn cell(&self) -> &'a Cell {
        &self.record.cell
    }

    /// As [`Cell::method_label`]; of a packed checkpoint as it is, what it was quantized with; of any other base model, what
    /// its file is.
    fn method_label(&self) -> String {
        match self.packed_as_it_is() {
            Some(packed) => format!("packed {}", packed.label),
            None if self.cell().is_base() => base::label(self.done.storage.as_ref()),
            None => self.cell().method_label(),
        }
    }

    fn bits_per_weight(&self) -> Option<f64> {
        let quantized = self.done.quantization.as_ref().map(|quantization| quantization.bits_per_weight);
        let by_others = self.done.checkpoint.as_ref().map(|checkpoint| checkpoint.storage.bits_per_weight);
        quantized.or(by_others).or(self.base_bits_per_weight())
    }

    fn base_bits_per_weight(&self) -> Option<f64> {
        let storage = self.done.storage.as_ref().map(|storage| storage.bits_per_weight);
        storage.or(self.done.packed.as_ref().map(|packed| packed.bits_per_weight))
    }

    fn base_storage(&self) -> Option<String> {
        let packed = self.done.packed.as_ref().map(|packed| format!("packed {}", packed.label));
        self.done.storage.as_ref().map(base::types).or(packed)
    }

    fn packed_as_it_is(&self) -> Option<&'a PackedOrigin> {
        self.done.packed.as_ref().filter(|_| self.cell().is_base())
    }
}

/// How a measurement compares with another one; without intervals for a single window.
#[derive(Default)]
struct Comparison {
    delta: Option<f64>,
    delta_interval: Option<Paired>,
    log_ratio: Option<f64>,
    log_ratio_interval: Option<Paired>,
    questions: Option<McNemar>,
}

fn row(
    cell: &Finished<'_>,
    (metric, measurement): (MetricKey, &Measurement),
    finished: &[Finished<'_>],
    references: &[ReferenceValue],
    baseline: &str,
) -> Row {
    let (record, done, estimator) = (cell.record, cell.done, metric.quantity().estimator);
    let method = cell.method_label();
    let grid = record.cell.quantization.as_ref().map(|quantization| quantization.grid);
    let by_others = done.checkpoint.as_ref().map(|checkpoint| base::grid_of(&checkpoint.storage));
    let grid_label = grid.map(|_| record.cell.grid_label()).or(by_others);
    let estimate = stats::estimate(measurement.weighted_samples(), estimator, BOOTSTRAP).ok();
    let to_fp = compare(cell, (measurement, estimator), finished, |other| !record.cell.is_base() && other.is_base());
    let to_baseline =
        compare(cell, (measurement, estimator), finished, |other| is_baseline_of(other, &record.cell, baseline));
    let low = |paired: Option<Paired>| paired.map(|paired| paired.interval.low);
    let high = |paired: Option<Paired>| paired.map(|paired| paired.interval.high);
    let block_len = |paired: Option<Paired>| paired.map(|paired| paired.block_len);
    let quantization = done.quantization.as_ref();
    let full_precision = quantization.and_then(|quantization| quantization.full_precision);
    let planned = record.cell.quantization.as_ref();
    let steps = quantization.and_then(step_change);
    let row = Row {
        model: record.cell.model.name.clone(),
        method_key: method_key(&record.cell),
        bits: grid.map(|grid| u64::from(grid.bits.get())),
        granularity: grid.map(|grid| grid.granularity.label()),
        bits_per_weight: cell.bits_per_weight(),
        full_precision_weights: full_precision.map(|share| share.n_weights),
        bits_per_weight_of_all: full_precision.map(|share| share.bits_per_weight_of_all),
        base_storage: cell.base_storage(),
        base_bits_per_weight: cell.base_bits_per_weight(),
        metric,
        dataset: measurement.dataset.clone(),
        protocol: measurement.protocol.clone(),
        seq_len: measurement.seq_len as u64,
        arithmetic: arithmetic_name(&record.cell, measurement),
        n_windows: measurement.n_windows as u64,
        n_windows_total: measurement.n_windows_total as u64,
        limited: measurement.n_windows < measurement.n_windows_total,
        n_tokens: measurement.n_tokens,
        value: measurement.value,
        standard_error: match measurement.protocol.as_str() {
            "llama-cpp" => measurement.standard_error,
            _ => estimate.map(|estimate| estimate.standard_error),
        },
        ci_low: estimate.map(|estimate| estimate.interval.low),
        ci_high: estimate.map(|estimate| estimate.interval.high),
        block_len: estimate.map(|estimate| estimate.block_len),
        delta_fp: to_fp.delta,
        delta_fp_ci_low: low(to_fp.delta_interval),
        delta_fp_ci_high: high(to_fp.delta_interval),
        log_ratio_fp: to_fp.log_ratio,
        log_ratio_fp_ci_low: low(to_fp.log_ratio_interval),
        log_ratio_fp_ci_high: high(to_fp.log_ratio_interval),
        log_ratio_fp_block_len: block_len(to_fp.log_ratio_interval.or(to_fp.delta_interval)),
        questions_lost: to_fp.questions.map(|questions| questions.n_lost),
        questions_won: to_fp.questions.map(|questions| questions.n_won),
        mcnemar_p: to_fp.questions.map(|questions| questions.p),
        baseline: to_baseline.delta.map(|_| baseline.to_owned()),
        delta_baseline: to_baseline.delta,
        delta_baseline_ci_low: low(to_baseline.delta_interval),
        delta_baseline_ci_high: high(to_baseline.delta_interval),
        log_ratio_baseline: to_baseline.log_ratio,
        log_ratio_baseline_ci_low: low(to_baseline.log_ratio_interval),
        log_ratio_baseline_ci_high: high(to_baseline.log_ratio_interval),
        log_ratio_baseline_block_len: block_len(to_baseline.log_ratio_interval.or(to_baseline.delta_interval)),
        floor: measurement.floor.filter(|_| scores_whole_text(measurement)),
        reference: None,
        reference_difference: None,
        reference_source: None,
        quantize_seconds: done.cost.quantize_seconds,
        shared_capture_seconds: done.cost.shared_capture_seconds,
        evaluate_seconds: measurement.seconds,
        tokens_per_second: (measurement.seconds > 0.0).then(|| measurement.n_tokens as f64 / measurement.seconds),
        peak_bytes: (done.cost.peak_resident_bytes > 0).then_some(done.cost.peak_resident_bytes),
        codes_sha256: quantization.map(|quantization| quantization.codes_sha256.clone()),
        n_calibration_sequences: quantization.map(|quantization| quantization.n_calibration_sequences as u64),
        // Records from before there was one number a measurement have one for all.
        calibration_overlap_tokens: measurement
            .calibration_overlap_tokens
            .or(quantization.map(|quantization| quantization.calibration_overlap_tokens)),
        calibration_seq_len: planned.and_then(|q| Some(q.calibration.as_ref()?.seq_len.get() as u64)),
        calibration: planned.and_then(|q| q.calibration_name.clone()),
        draw: planned.and_then(|q| q.draw).map(|draw| draw.index.into()),
        n_draws: None,
        draws_low: None,
        draws_high: None,
        propagation: propagation_of(&record.cell),
        changed_steps: steps.map(|(changed, _)| changed),
        step_ratio: steps.map(|(_, ratio)| ratio),
        step_ratio_over_scale: steps.zip(fixed_scale(&record.cell)).map(|((_, ratio), scale)| ratio / scale),
        cell_id: record.cell_id.0.clone(),
        commit: record.provenance.commit.clone(),
        dirty: record.provenance.dirty,
        device: record.provenance.device.clone(),
        method,
        grid: grid_label,
    };
    let Some(reference) = references.iter().find(|reference| is_reference_of(reference, &row)) else { return row };
    Row {
        reference: reference.measured(),
        reference_difference: reference.measured().map(|published| row.value - published),
        reference_source: Some(source(reference)),
        ..row
    }
}

/// The word of the column: how matrix products were computed while scoring.
pub(super) fn arithmetic_name(cell: &Cell, measurement: &Measurement) -> String {
    match cell.precision {
        FloatType::F32 => measurement.arithmetic.name().to_owned(),
        precision => format!("{}-tensors", precision.name()),
    }
}

/// Whether the entropy of the whole text can be held against the number: protocol `llama-cpp` scores half of it, and `lm-eval` each
/// document without those before it.
fn scores_whole_text(measurement: &Measurement) -> bool {
    measurement.n_windows == measurement.n_windows_total && measurement.protocol == "gptq"
}

/// With the first cell of the same model, with the same files, that `is_other` accepts and that was scored on the same windows.
fn compare(
    cell: &Finished<'_>,
    (measurement, estimator): (&Measurement, Estimator),
    finished: &[Finished<'_>],
    is_other: impl Fn(&Cell) -> bool,
) -> Comparison {
    let same = |other: &Cell| other.model == cell.cell().model && other.precision == cell.cell().precision;
    let assets = &cell.record.provenance.assets;
    let others = finished.iter().filter(|other| same(other.cell()) && is_other(other.cell()));
    // The model of one may have been replaced in its folder before the other ran.
    let others = others.filter(|other| differences(assets, &other.record.provenance.assets).is_empty());
    let Some(other) = others.flat_map(|other| &other.done.measurements).find(|other| same_windows(measurement, other))
    else {
        return Comparison::default();
    };
    let (own, theirs) = (measurement.weighted_samples(), other.weighted_samples());
    // Only a perplexity has a ratio whose logarithm is a difference of means.
    let is_exp = estimator == Estimator::ExpOfMean;
    Comparison {
        delta: Some(measurement.value - other.value),
        delta_interval: stats::difference(own, theirs, estimator, BOOTSTRAP).ok(),
        log_ratio: is_exp.then(|| (measurement.value / other.value).ln()),
        log_ratio_interval: if is_exp { stats::difference_of_means(own, theirs, BOOTSTRAP).ok() } else { None },
        questions: McNemar::of(own.values, theirs.values).filter(|_| is_share_of_questions(&measurement.metric)),
    }
}

fn is_share_of_questions(metric: &str) -> bool {
    MetricKey::of_record(metric).is_ok_and(|metric| metric.quantity().unit == Unit::FractionOfQuestions)
}

/// Whether window `i` of both measurements holds the same tokens.
pub(crate) fn same_windows(a: &Measurement, b: &Measurement) -> bool {
    let key = |m: &Measurement| (m.seq_len, m.arithmetic, m.n_windows, m.samples.len());
    let content =
        |m: &Measurement| [m.metric.clone(), m.protocol.clone(), m.text_sha256.clone(), m.tokenizer_sha256.clone()];
    key(a) == key(b) && content(a) == content(b)
}

/// Whether `other` is what `cell` is compared with: the method of label `baseline` on the same grid of every linear, and under the same
/// calibration where it has one of several.
fn is_baseline_of(other: &Cell, cell: &Cell, baseline: &str) -> bool {
    let (Some(theirs), Some(own)) = (&other.quantization, &cell.quantization) else { return false };
    other.method_label() == baseline
        && cell.method_label() != baseline
        && theirs.rule() == own.rule()
        && (theirs.calibration_name.is_none() || theirs.calibration_name == own.calibration_name)
}

fn source(reference: &ReferenceValue) -> String {
    match &reference.note {
        Some(note) => format!("{} ({note})", reference.source),
        None => reference.source.clone(),
    }
}
