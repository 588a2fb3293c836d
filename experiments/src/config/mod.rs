//! [`ExperimentSpec`]: exactly what an experiment's TOML file may say.
//!
//! One file asks one question. Enums are externally tagged newtypes over `deny_unknown_fields` structs, so that a typo is
//! an error that names line, column and path. What changes a number is said in the file; the two keys that
//! may be absent mean all windows (`max_windows`) and f32 (`arithmetic`). A record stores its cell as planned.

mod calibration;
mod check;
mod draws;
mod layout;
pub(crate) mod names;
mod place;
mod reference;
pub mod sources;
mod speed;

use std::num::{NonZeroU16, NonZeroUsize};
use std::path::Path;

use anyhow::Context;
use awq_core::arithmetic::{Arithmetic, FloatType};
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::encoding::{BYTE_ORDER_MARK, utf8};

pub use self::calibration::{CalibrationSpec, CalibrationUse, MethodEntry, NamedCalibration};
pub use self::check::json_schema;
pub use self::draws::{Draw, DrawnCalibration};
pub use self::layout::*;
pub use self::reference::ReferenceValue;
pub use self::sources::*;
pub use self::speed::*;
pub use crate::eval::registry::EvaluationSpec;

/// A whole experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExperimentSpec {
    /// The question this experiment answers, in one sentence. Printed above its tables.
    pub question: String,
    /// Where and on how many threads it runs, and in what precision. Only the last is part of a cell's identity.
    pub run: RunSpec,
    /// Models to quantize, or to time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelSpec>,
    /// What activations are collected on. Absent: only methods that need no activations may run.
    pub calibration: Option<DrawnCalibration>,
    /// Several calibrations to compare, in place of `calibration`; every method runs under each, unless its entry says
    /// otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calibrations: Vec<NamedCalibration>,
    /// Grids, as the product of its lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grids: Option<GridSweep>,
    /// Methods, each run on every grid. Full precision is always measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodEntry>,
    /// What is measured of every quantized model. An experiment without one has a `[speed]` section.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<EvaluationSpec>,
    /// What is timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<SpeedSpec>,
    /// Published numbers to print beside ours.
    #[serde(default, rename = "reference", skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<ReferenceValue>,
    /// What tables compare with. Absent: RTN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportSpec>,
    /// A table laid out as a published one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableSpec>,
    /// A figure beside those that every run gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figure: Option<FigureSpec>,
}

/// Execution settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// `flex`, `ndarray`, `cuda`, `cuda:N` or `wgpu`.
    pub device: String,
    /// Type of weights and activations in a GPU's memory, f32 when absent; CPU devices store f32 only. Part of every cell,
    /// because it changes numbers, and named in every table.
    #[serde(default, skip_serializing_if = "FloatType::is_f32")]
    pub precision: FloatType,
    /// CPU threads; all cores when absent. Never changes a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<NonZeroUsize>,
}

/// Lists whose product gives the grids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GridSweep {
    /// Bits of a code.
    pub bits: Vec<Bits>,
    /// `"per_tensor"`, `"per_channel"` or `{ per_group = 128 }`.
    pub granularity: Vec<Granularity>,
    /// Where zero lies.
    pub symmetry: Symmetry,
    /// Whether a group's range is widened to hold zero (AWQ: false, GPTQ: true).
    pub range_includes_zero: bool,
    /// How scales are stored.
    pub scale_dtype: ScaleDtype,
}

impl GridSweep {
    /// Every grid, granularity outermost, in the order of the lists.
    pub fn grids(&self) -> Vec<Grid> {
        let grid = |bits, granularity| Grid {
            bits,
            granularity,
            symmetry: self.symmetry,
            range_includes_zero: self.range_includes_zero,
            scale_dtype: self.scale_dtype,
        };
        self.granularity
            .iter()
            .flat_map(|&granularity| self.bits.iter().map(move |&bits| grid(bits, granularity)))
            .collect()
    }
}

/// A text that a metric is measured on, and how it is scored. Metrics of one such text are measured in one pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoredText {
    /// The text.
    pub dataset: DatasetSpec,
    /// How it is cut, fed and scored.
    pub protocol: ProtocolSpec,
    /// Score only the first this many windows; the whole text when absent. A limited number is marked in every table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_windows: Option<NonZeroUsize>,
    /// How the products of linears and of the head are computed; f32 when absent. Named in every table.
    #[serde(default, skip_serializing_if = "Arithmetic::is_f32")]
    pub arithmetic: Arithmetic,
}

impl ScoredText {
    /// Tokens of a window.
    pub fn seq_len(&self) -> usize {
        match &self.protocol {
            ProtocolSpec::Gptq(gptq) => gptq.seq_len.get().into(),
            ProtocolSpec::LlamaCpp(chunks) => chunks.chunk_len.get().into(),
        }
    }
}

/// A protocol of scoring a text. Two numbers may be compared only if their protocols are the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProtocolSpec {
    /// Joined text, non-overlapping windows, all but the first token of a window scored, tail dropped.
    Gptq(GptqProtocol),
    /// llama.cpp's `llama-perplexity`: chunks with a BOS in front, the second half scored.
    LlamaCpp(LlamaCppProtocol),
}

/// See [`ProtocolSpec::Gptq`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GptqProtocol {
    /// Tokens of a window (2048 in the papers).
    pub seq_len: NonZeroU16,
}

/// See [`ProtocolSpec::LlamaCpp`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlamaCppProtocol {
    /// Tokens of a chunk (512 in llama.cpp's default).
    pub chunk_len: NonZeroU16,
}

impl ExperimentSpec {
    /// Reads and checks a TOML file.
    ///
    /// # Errors
    /// A file that cannot be read, a key or type that the schema does not know (with line, column and path), or values that
    /// contradict each other; each names the file and the remedy.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("{}: cannot read the experiment's TOML file", path.display()))?;
        let text = utf8(path, bytes)?;
        // Without the mark that some editors put there, so that columns of the first line are right.
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text);
        let spec: Self = toml::from_str(text).map_err(|error| {
            let key = error.span().and_then(|span| place::path_at(text, span.start));
            let place = key.map_or_else(String::new, |key| format!(", key `{key}`"));
            anyhow::anyhow!("{}: not a valid experiment{place}: {}", path.display(), error.to_string().trim_end())
        })?;
        spec.check().with_context(|| format!("{}: not a valid experiment", path.display()))?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests;
