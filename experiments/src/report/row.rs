//! [`Row`]: the columns of the long-format frame, each named once: `table.csv` and `records.parquet`.

use polars::prelude::*;

use super::columns::{Cell, columns};
use crate::eval::metric::Quantity;
use crate::eval::registry::MetricKey;
use crate::stats::Estimator;

columns! {
    /// One measurement of one cell.
    Row {
        /// Model name.
        model: String,
        /// The method's label. Of the base model as it is: `FP` where its file stores 16 bits a weight or more, `base (GGUF Q4_1)`
        /// of a quantized file, `packed AWQ W4 g128` of a packed checkpoint, `base model` where the record does not tell.
        method: String,
        /// Registry name of the method, `awq_gptq`; `checkpoint` of what another program has quantized; null for the base model.
        method_key: Option<String>,
        /// Grid label, `W4 g128`; of what another program has quantized the types of its linears; null for the base model.
        grid: Option<String>,
        /// Bits of one code; null for the base model and for what another program has quantized.
        bits: Option<u64>,
        /// `g128`, `per-channel`, `per-tensor`; null for the base model.
        granularity: Option<String>,
        /// Stored bits per quantized weight with scales and zero points; of the base model, what its file stores; null where
        /// the record does not tell.
        bits_per_weight: Option<f64>,
        /// Weights of linears that were left in full precision; null where none was. The column is left out where all are null.
        full_precision_weights: Option<u64>,
        /// Stored bits per weight over all linears of blocks, these among them, likewise.
        bits_per_weight_of_all: Option<f64>,
        /// In what types the file of the base model stores the linears of blocks; null where the record does not tell.
        base_storage: Option<String>,
        /// Stored bits per weight of these, with scales and minima.
        base_bits_per_weight: Option<f64>,
        /// What was measured, by its name in records: `token_perplexity`.
        metric: MetricKey,
        /// Text that it was measured on.
        dataset: String,
        /// Protocol of scoring: `gptq`, `llama-cpp`.
        protocol: String,
        /// Tokens of a window.
        seq_len: u64,
        /// How matrix products were computed while scoring: `f32`, `bf16`; `f16-tensors`, `bf16-tensors` where weights and
        /// activations were stored so.
        arithmetic: String,
        /// Windows scored.
        n_windows: u64,
        /// Windows of the whole text.
        n_windows_total: u64,
        /// Whether fewer windows were scored than the text has.
        limited: bool,
        /// Tokens scored.
        n_tokens: u64,
        /// The number of the metric: a perplexity.
        value: f64,
        /// Its standard error: over blocks of windows as the interval; with protocol `llama-cpp` over tokens taken
        /// as independent, as llama.cpp prints it.
        standard_error: Option<f64>,
        /// Lower end of the 95% interval of the value, over blocks of windows.
        ci_low: Option<f64>,
        /// Upper end of the 95% interval of the value.
        ci_high: Option<f64>,
        /// Windows of a block of that interval on average; null for a single window.
        block_len: Option<f64>,
        /// Value minus that of the base model on the same windows.
        delta_fp: Option<f64>,
        /// Lower end of its paired 95% interval.
        delta_fp_ci_low: Option<f64>,
        /// Upper end of its paired 95% interval.
        delta_fp_ci_high: Option<f64>,
        /// ln of the perplexity over that of full precision on the same windows, in nats per token; null for what is no
        /// perplexity.
        log_ratio_fp: Option<f64>,
        /// Lower end of its paired 95% interval.
        log_ratio_fp_ci_low: Option<f64>,
        /// Upper end of its paired 95% interval.
        log_ratio_fp_ci_high: Option<f64>,
        /// Windows of a block of that interval on average; where there is no ratio, of the interval of the difference.
        log_ratio_fp_block_len: Option<f64>,
        /// Questions of a task that the base model answers right and this one wrong; null for what is no share of questions. The columns
        /// of questions are left out where all are null.
        questions_lost: Option<u64>,
        /// The other way round.
        questions_won: Option<u64>,
        /// p of McNemar's exact test: how likely so uneven a split is between models that are alike.
        mcnemar_p: Option<f64>,
        /// Label of the method that the next columns compare with (`report.baseline` of the experiment, else RTN); null where
        /// there is none on the same grid and windows, and for that method itself.
        baseline: Option<String>,
        /// Value minus that of the baseline on the same grid and windows.
        delta_baseline: Option<f64>,
        /// Lower end of its paired 95% interval.
        delta_baseline_ci_low: Option<f64>,
        /// Upper end of its paired 95% interval.
        delta_baseline_ci_high: Option<f64>,
        /// ln of the perplexity over that of the baseline, in nats per token.
        log_ratio_baseline: Option<f64>,
        /// Lower end of its paired 95% interval.
        log_ratio_baseline_ci_low: Option<f64>,
        /// Upper end of its paired 95% interval.
        log_ratio_baseline_ci_high: Option<f64>,
        /// Windows of a block of that interval on average; where there is no ratio, of the interval of the difference.
        log_ratio_baseline_block_len: Option<f64>,
        /// Value of the process that wrote the text, where it is known and the whole text was scored.
        floor: Option<f64>,
        /// Published value.
        reference: Option<f64>,
        /// Value minus the published one.
        reference_difference: Option<f64>,
        /// Where it was published, and what to know about it.
        reference_source: Option<String>,
        /// Wall time of the method, without the capture that cells share.
        quantize_seconds: f64,
        /// Wall time of the capture of activations, shared by all cells of one pass.
        shared_capture_seconds: f64,
        /// Wall time of the pass over the text that gave it.
        evaluate_seconds: f64,
        /// Tokens scored per second of that pass.
        tokens_per_second: Option<f64>,
        /// Largest resident memory of the process until the cell ended; null where unknown.
        peak_bytes: Option<u64>,
        /// sha256 of all codes, scales and zero points; null for the base model.
        codes_sha256: Option<String>,
        /// Calibration sequences; null for the base model.
        n_calibration_sequences: Option<u64>,
        /// Tokens of a calibration sequence; null where the run has no calibration.
        calibration_seq_len: Option<u64>,
        /// Name of the calibration, where the experiment compares several; null where the method looks at no activations.
        calibration: Option<String>,
        /// Which draw of the calibration; null where the method looks at no activations.
        draw: Option<u64>,
        /// Finished draws of this cell, where its calibration is drawn several times; null where it is drawn once.
        n_draws: Option<u64>,
        /// Lowest value of a draw.
        draws_low: Option<f64>,
        /// Highest value of a draw.
        draws_high: Option<f64>,
        /// What the blocks after the first saw during calibration: `full_precision`, `quantized`, `quantized_per_stage`; null
        /// where the method looks at no activations.
        propagation: Option<String>,
        /// Share of the quantization steps that a fixed scale changed, 0 to 1; null for methods without one.
        changed_steps: Option<f64>,
        /// Mean of a step after a fixed scale over the step before; null for methods without one.
        step_ratio: Option<f64>,
        /// The same divided by the scale.
        step_ratio_over_scale: Option<f64>,
        /// Calibration tokens that also occur in a scored window; null for the base model.
        calibration_overlap_tokens: Option<u64>,
        /// Content hash of the cell.
        cell_id: String,
        /// Commit that measured it.
        commit: String,
        /// Whether sources of the program differed from that commit; null where it is not known.
        dirty: Option<bool>,
        /// Backend and device.
        device: String,
    }
}

impl Row {
    /// Stands between the commits of a row that several made.
    pub(super) const BETWEEN_COMMITS: &str = ", ";

    /// The commit of the program, and whether its sources are known to have differed from it; all of them where the row is a
    /// mean of draws.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (&str, bool)> {
        self.commit.split(Self::BETWEEN_COMMITS).map(|commit| (commit, self.dirty == Some(true)))
    }

    /// What reports know of its metric.
    pub fn quantity(&self) -> Quantity {
        self.metric.quantity()
    }

    /// Whether the numbers of both rows may be compared: one metric, model, text, protocol and arithmetic, and the same windows.
    pub fn is_comparable(&self, other: &Self) -> bool {
        let numbers = |row: &Self| (row.metric, row.seq_len, row.n_windows, row.n_windows_total);
        let names = |row: &Self| [&row.model, &row.dataset, &row.protocol, &row.arithmetic].map(Clone::clone);
        numbers(self) == numbers(other) && names(self) == names(other)
    }

    /// Model, text, protocol and window length, and the arithmetic where it is not f32.
    pub fn setting(&self) -> String {
        let arithmetic = if self.arithmetic == "f32" { String::new() } else { format!(" {}", self.arithmetic) };
        format!("{} {} {} {}{arithmetic}", self.model, self.dataset, self.protocol, self.seq_len)
    }

    /// The metric after a blank, where a name must tell it from the usual one.
    pub(super) fn unusual_metric(&self) -> String {
        if self.metric == MetricKey::USUAL { String::new() } else { format!(" {}", self.quantity().label) }
    }

    /// How it compares with the base model on the same windows, with the ends of the paired 95% interval: see [`comparison`].
    pub(super) fn to_base(&self) -> Compared {
        match self.quantity().estimator {
            Estimator::ExpOfMean => (self.log_ratio_fp, self.log_ratio_fp_ci_low, self.log_ratio_fp_ci_high),
            Estimator::Mean | Estimator::RootOfMean | Estimator::Largest => {
                (self.delta_fp, self.delta_fp_ci_low, self.delta_fp_ci_high)
            }
        }
    }

    /// The same with the baseline.
    pub(super) fn to_baseline(&self) -> Compared {
        match self.quantity().estimator {
            Estimator::ExpOfMean => {
                (self.log_ratio_baseline, self.log_ratio_baseline_ci_low, self.log_ratio_baseline_ci_high)
            }
            Estimator::Mean | Estimator::RootOfMean | Estimator::Largest => {
                (self.delta_baseline, self.delta_baseline_ci_low, self.delta_baseline_ci_high)
            }
        }
    }
}

/// A comparison, and the ends of its interval.
pub(super) type Compared = (Option<f64>, Option<f64>, Option<f64>);

/// What two numbers are compared by: differences of means, which of perplexities are ln ratios.
pub(super) fn comparison(estimator: Estimator) -> &'static str {
    match estimator {
        Estimator::ExpOfMean => "ln ratio",
        Estimator::Mean | Estimator::RootOfMean | Estimator::Largest => "difference",
    }
}

/// The column holds the name of records.
impl Cell for MetricKey {
    const DTYPE: DataType = DataType::String;

    fn to_column(name: &str, values: Vec<Self>) -> Column {
        let names: Vec<&str> = values.iter().map(|metric| metric.quantity().name).collect();
        Column::new(name.into(), names)
    }

    fn from_column(column: &Column) -> PolarsResult<Vec<Self>> {
        let names: Vec<String> = Cell::from_column(column)?;
        let metric = |name: &String| Self::of_record(name).map_err(|error| polars_err!(ComputeError: "{error}"));
        names.iter().map(metric).collect()
    }
}
