//! [`ExperimentSpec`]: an experiment, and [`ExperimentFile`]: exactly what its TOML file may say.
//!
//! One file asks one question. It says each thing once: it may extend another file, name a preset of a method, and print published
//! numbers as a table. All of that is resolved by [`ExperimentSpec::read`]. Enums are externally tagged newtypes over `deny_unknown_fields` structs, so that a typo is
//! an error that names line, column and path. What changes a number is said in the file; the two keys that
//! may be absent mean all windows (`max_windows`) and f32 (`arithmetic`). A record stores its cell as planned.

mod calibration;
mod check;
mod checkpoints;
pub mod derive;
mod document;
mod draws;
mod export;
mod file;
mod grids;
mod layout;
mod memory;
pub(crate) mod names;
mod place;
pub mod profile;
mod published;
mod reference;
pub mod sources;
mod speed;
mod task_protocols;
mod tasks;
mod texts;

use std::num::{NonZeroU16, NonZeroUsize};

use anyhow::Context;
use awq_core::arithmetic::FloatType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::calibration::{CalibrationSpec, CalibrationUse, MethodEntry, NamedCalibration};
pub use self::check::json_schema;
pub use self::checkpoints::CheckpointSpec;
pub use self::draws::{Draw, DrawnCalibration};
pub use self::export::{CheckpointFormat, ExportSpec};
pub use self::file::ExperimentFile;
pub use self::grids::{GridChange, GridKeys, GridSweep, OverrideSpec};
pub use self::layout::*;
pub use self::memory::Memory;
use self::memory::whole_number;
pub use self::published::{PublishedFor, PublishedRow, PublishedTable};
pub use self::reference::ReferenceValue;
pub use self::sources::*;
pub use self::speed::*;
pub use self::task_protocols::{LmEvalGenerationProtocol, LmEvalTaskProtocol, SeveralTexts};
pub use self::tasks::TasksSection;
pub use self::texts::MeasuredText;
use crate::eval::ScoringArithmetic;
pub use crate::eval::registry::EvaluationSpec;

/// A whole experiment: what its file, the one that this extends, presets and published tables come to. Its keys are a file's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExperimentSpec {
    /// The question this experiment answers, in one sentence. Printed above its tables.
    pub question: String,
    /// Where and on how many threads it runs, and in what precision. Only the last is part of a cell's identity.
    pub run: RunSpec,
    /// Models to quantize, or to time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelSpec>,
    /// What activations are collected on. Absent: only methods that need no activations may run.
    pub calibration: Option<DrawnCalibration>,
    /// Several calibrations to compare, in place of `calibration`; every method runs under each, unless its entry says
    /// otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calibrations: Vec<NamedCalibration>,
    /// Grids, as the product of its lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grids: Option<GridSweep>,
    /// Methods, each run on every grid. Full precision is always measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<MethodEntry>,
    /// Models that other programs have quantized, scored beside ours.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointSpec>,
    /// What is measured of every quantized model. An experiment without one has a `[speed]` section.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<EvaluationSpec>,
    /// What is timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<SpeedSpec>,
    /// What is kept of the quantized models.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<ExportSpec>,
    /// Published numbers to print beside ours.
    #[serde(rename = "reference", skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<ReferenceValue>,
    /// What tables compare with. Absent: RTN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<ReportSpec>,
    /// A table laid out as a published one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<TableSpec>,
    /// A figure beside those that every run gets.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// Memory that quantizing may take, such as `"8G"`; nine tenths of what is free when absent. Hidden states of the calibration that do
    /// not fit lie in temporary files, methods that need more are refused. Never changes a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// A text that a metric is measured on, and how it is scored. Metrics of one such text are measured in one pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoredText {
    /// The text, or a task.
    pub dataset: DatasetSpec,
    /// How it is cut, fed and scored.
    pub protocol: ProtocolSpec,
    /// Score only the first this many windows (documents with `lm-eval`, questions of a task); the whole text when absent. A limited number is marked in every table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_windows: Option<NonZeroUsize>,
    /// How the products of linears and of the head are computed; f32 when absent. Named in every table.
    #[serde(default, skip_serializing_if = "ScoringArithmetic::is_f32")]
    pub arithmetic: ScoringArithmetic,
}

impl ScoredText {
    /// Tokens of a window.
    pub fn seq_len(&self) -> usize {
        match &self.protocol {
            ProtocolSpec::Gptq(gptq) => gptq.seq_len.get().into(),
            ProtocolSpec::LlamaCpp(chunks) => chunks.chunk_len.get().into(),
            ProtocolSpec::LmEval(rolling) => rolling.max_len.get().into(),
            ProtocolSpec::LmEvalTask(task) => task.max_len.get().into(),
            ProtocolSpec::LmEvalGeneration(task) => task.max_len.get().into(),
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
    /// lm-eval's rolling log-likelihood: each document apart, every token of it scored.
    LmEval(LmEvalProtocol),
    /// lm-eval's log-likelihoods of the answers to a task's questions.
    LmEvalTask(LmEvalTaskProtocol),
    /// lm-eval's generation: texts that a model writes on the problems of a task.
    LmEvalGeneration(LmEvalGenerationProtocol),
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

/// See [`ProtocolSpec::LmEval`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LmEvalProtocol {
    /// Tokens that a window scores at most, `max_length` in lm-eval, whose default is the context of the model.
    pub max_len: NonZeroU16,
    /// Whether the BOS that a tokenizer puts in front of a document is scored as a token of it, behind the prefix token (the same
    /// BOS): lm-eval 0.4.13 does. Without effect where the tokenizer adds none.
    pub scores_bos: bool,
}

impl LmEvalProtocol {
    /// Its name in records.
    pub const NAME: &'static str = "lm-eval";
    /// Its name where no BOS is scored.
    pub const NAME_WITHOUT_BOS: &'static str = "lm-eval-without-bos";

    fn name(&self) -> &'static str {
        if self.scores_bos { Self::NAME } else { Self::NAME_WITHOUT_BOS }
    }
}

impl ProtocolSpec {
    /// Its name and the tokens of a window, as records have them.
    pub fn name_and_window(&self) -> (String, usize) {
        let (name, window) = match self {
            Self::Gptq(protocol) => ("gptq".into(), protocol.seq_len),
            Self::LlamaCpp(protocol) => ("llama-cpp".into(), protocol.chunk_len),
            Self::LmEval(protocol) => (protocol.name().into(), protocol.max_len),
            Self::LmEvalTask(protocol) => (protocol.name(), protocol.max_len),
            Self::LmEvalGeneration(protocol) => (protocol.name(), protocol.max_len),
        };
        (name, window.get().into())
    }

    /// Examples before each question of a task.
    pub fn n_shots(&self) -> u16 {
        match self {
            Self::Gptq(_) | Self::LlamaCpp(_) | Self::LmEval(_) => 0,
            Self::LmEvalTask(protocol) => protocol.n_shots,
            Self::LmEvalGeneration(protocol) => protocol.n_shots,
        }
    }
}

impl ExperimentSpec {
    /// The experiment as one flat file: nothing extended, presets and published tables spelled out. It reads as this experiment.
    ///
    /// # Errors
    /// Only if TOML cannot hold a value.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string(self).context("the experiment cannot be written as TOML")
    }
}

#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod profile_tests;
#[cfg(test)]
mod published_tests;
#[cfg(test)]
mod tests;
