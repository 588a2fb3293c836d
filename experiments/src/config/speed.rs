//! `[speed]`: what is timed, of kernels and of whole models.

use std::num::NonZeroUsize;

use awq_core::grid::{Bits, Granularity};
use awq_core::kernel::Activations;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is timed: kernels on the run's device, models on the CPU. Times depend on the machine and on what else runs on it:
/// leave it alone meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpeedSpec {
    /// CPU thread counts, each measured on its own; those of the run when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<NonZeroUsize>,
    /// Products of one weight with some rows of activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelSpeed>,
    /// Prefill and decoding of the experiment's models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<DecodeSpeed>,
    /// Published decoding speeds, shown below what is measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedSpeed>,
}

/// A published table of decoding speeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedSpeed {
    /// Where it was published.
    pub source: String,
    /// What was timed: prompt, tokens, batch.
    pub protocol: String,
    /// Programs and weights, the columns.
    pub forms: Vec<String>,
    /// The rows.
    pub rows: Vec<PublishedSpeedRow>,
    /// What to know about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A row of a published table of decoding speeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishedSpeedRow {
    /// Where it ran.
    pub machine: String,
    /// The model.
    pub model: String,
    /// Tokens a second of each form.
    pub tokens_per_s: Vec<PublishedTokens>,
}

/// A published speed, or the word that stands in its place: `OOM`, nothing where there is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PublishedTokens {
    /// Tokens a second.
    PerSecond(f64),
    /// A word.
    Word(String),
}

/// Latency of products: every shape at every batch size, dense and in every packed form, taking turns. Dense is f32 and bf16
/// on a CPU; on a GPU it is burn's product in the run's `precision`, and cuBLAS's in f16 where there is one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelSpeed {
    /// Weights.
    pub shapes: Vec<Shape>,
    /// Rows of activations: 1 is a decode step, a prompt has many.
    pub batch_sizes: Vec<NonZeroUsize>,
    /// Bits of a code.
    pub bits: Vec<Bits>,
    /// Groups, as in `[grids]`.
    pub granularity: Vec<Granularity>,
    /// What packed kernels of the CPU do to activations; the fastest kernel of each kind that it can run is taken. Those of a
    /// GPU leave them as they are.
    pub activations: Vec<Activations>,
    /// Timed calls of each form; on a GPU, timed queues of 20 calls.
    pub n_rounds: NonZeroUsize,
    /// Each form has so many copies of its weight that they fill this many MiB, and takes the next one at each call: several
    /// times the last-level cache, so that weights come from memory as they do in a model.
    pub distinct_mib: NonZeroUsize,
}

/// A linear layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// What it is: `Llama-2-7B gate_proj`.
    pub name: String,
    /// Output channels.
    pub n_out: NonZeroUsize,
    /// Input channels.
    pub n_in: NonZeroUsize,
}

/// Tokens a second of each of the experiment's models: dense (f32) and in every packed form, taking turns. Codes are those
/// of round-to-nearest, for speed does not depend on them. All forms of a model are in memory at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecodeSpeed {
    /// How weights are stored, beside dense.
    pub formats: Vec<DecodeFormat>,
    /// Tokens of the prompt.
    pub prompt_tokens: NonZeroUsize,
    /// Single-token steps after it.
    pub new_tokens: NonZeroUsize,
    /// Timed repetitions.
    pub n_repeats: NonZeroUsize,
}

/// How a model's weights are stored for decoding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecodeFormat {
    /// Bits of a code.
    pub bits: Bits,
    /// Groups.
    pub granularity: Granularity,
    /// What packed linears do to their inputs.
    pub activations: Activations,
    /// Bits of the head's codes, in groups of 32; as the model has it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_bits: Option<Bits>,
}
