//! [`SpeedRecord`]: one comparison of `speed.jsonl`. All its forms took turns in one process on one machine, so that their
//! ratios mean something although the machine's speed changes from minute to minute.

use awq_core::arithmetic::FloatType;
use awq_core::kernel::Activations;
use awq_core::kernel::bench::{Bandwidth, Latency, Peak};
use serde::{Deserialize, Serialize};

use crate::config::Shape;
use crate::provenance::Provenance;
use crate::record::Line;

/// A finished comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeedRecord {
    /// [`crate::record::SCHEMA_VERSION`] when it was written.
    pub schema: u32,
    /// Content hash of what was asked.
    pub id: String,
    /// What came out.
    pub measured: Measured,
    /// What the machine could do, measured just before.
    pub machine: Machine,
    /// The GPU, where it ran on one: its memory and arithmetic are then those of `machine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<Gpu>,
    /// With what it was made.
    pub provenance: Provenance,
}

/// A comparison that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailedComparison {
    /// [`crate::record::SCHEMA_VERSION`] when it was written.
    pub schema: u32,
    /// Content hash of what was asked.
    pub id: String,
    /// How messages name it.
    pub label: String,
    /// The error chain, outermost first.
    pub error: String,
    /// Type of weights and activations, where it was to run on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_precision: Option<FloatType>,
    /// With what it was tried.
    pub provenance: Provenance,
}

/// A line of `speed.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SpeedLine {
    /// It finished.
    Done(Box<SpeedRecord>),
    /// It failed; the run went on.
    Failed(Box<FailedComparison>),
}

impl SpeedLine {
    /// Content hash of what was asked.
    pub fn id(&self) -> &str {
        match self {
            Self::Done(record) => &record.id,
            Self::Failed(failed) => &failed.id,
        }
    }

    /// With what it was made.
    pub fn provenance(&self) -> &Provenance {
        match self {
            Self::Done(record) => &record.provenance,
            Self::Failed(failed) => &failed.provenance,
        }
    }

    /// Type of weights and activations on a GPU; `None` on a CPU.
    pub fn gpu_precision(&self) -> Option<FloatType> {
        match self {
            Self::Done(record) => record.gpu.as_ref().map(|gpu| gpu.precision),
            Self::Failed(failed) => failed.gpu_precision,
        }
    }
}

impl Line for SpeedLine {
    type Written = Self;

    const FILE: &'static str = "speed.jsonl";

    fn schema(&self) -> u32 {
        match self {
            Self::Done(record) => record.schema,
            Self::Failed(failed) => failed.schema,
        }
    }
}

/// What finished, and what failed as `label: error`.
pub(crate) fn told_apart(lines: &[SpeedLine]) -> (Vec<SpeedRecord>, Vec<String>) {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for line in lines {
        match line {
            SpeedLine::Done(record) => done.push(record.as_ref().clone()),
            SpeedLine::Failed(comparison) => failed.push(format!("{} failed: {}", comparison.label, comparison.error)),
        }
    }
    (done, failed)
}

/// Bounds of the machine, of a CPU on as many threads as the comparison used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Memory, bytes a second.
    pub bandwidth: Bandwidth,
    /// Arithmetic.
    pub peak: MachinePeak,
}

/// Operations a second, at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MachinePeak {
    /// Of a CPU's instructions.
    Cpu(Peak),
    /// Of a GPU: what a product of large dense matrices reaches in the run's precision.
    Gpu {
        /// Operations a second.
        dense_product: f64,
    },
}

/// A GPU as a comparison used it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// What the driver calls it.
    pub name: String,
    /// Type of weights and activations.
    pub precision: FloatType,
}

/// What a comparison measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// Products of one weight.
    Kernels(KernelTimes),
    /// A model.
    Decode(DecodeTimes),
}

/// Times of products with one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelTimes {
    /// The weight.
    pub shape: Shape,
    /// Rows of activations.
    pub batch_size: usize,
    /// Each form of the weight; on a CPU the first two are dense f32 and dense bf16.
    pub arms: Vec<KernelArm>,
}

impl KernelTimes {
    /// Of forms by the name of the kernel and the codes where there are any.
    pub(super) fn new(
        shape: &Shape,
        batch_size: usize,
        names: &[(String, Option<PackedForm>)],
        bytes: impl Iterator<Item = usize>,
        latencies: Vec<Latency>,
    ) -> Self {
        let arm = |(((kernel, packed), bytes), latency): ((&(String, Option<PackedForm>), usize), Latency)| KernelArm {
            kernel: kernel.clone(),
            packed: packed.clone(),
            bytes,
            latency,
        };
        Self { shape: shape.clone(), batch_size, arms: names.iter().zip(bytes).zip(latencies).map(arm).collect() }
    }
}

/// One form of a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelArm {
    /// Registry name of the kernel; `dense-f32`, `dense-bf16`, `cublas-f16`; `matvec`, `tensor-core`, `dequantize`, `gptq` on a GPU.
    pub kernel: String,
    /// Its codes; `None` where it is dense.
    pub packed: Option<PackedForm>,
    /// Bytes that a product reads.
    pub bytes: usize,
    /// Times of a product.
    pub latency: Latency,
}

/// How codes are stored and multiplied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedForm {
    /// Bits of a code.
    pub bits: u8,
    /// `g128`, `per-channel`.
    pub granularity: String,
    /// What is done to activations.
    pub activations: Activations,
    /// Type of the activations on a GPU; on a CPU they are f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<FloatType>,
}

impl PackedForm {
    /// `W4A16 int16 g128`.
    pub fn label(&self) -> String {
        let multiplied = match self.precision {
            Some(precision) => format!("W{}A16 {}", self.bits, precision.name()),
            None => self.activations.label(self.bits),
        };
        format!("{multiplied} {}", self.granularity)
    }
}

/// Times of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeTimes {
    /// Its name.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Single-token steps.
    pub new_tokens: usize,
    /// Each form of the model; the first is dense.
    pub arms: Vec<DecodeArm>,
}

/// One form of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeArm {
    /// How the linears of blocks are stored; `None` where they are dense.
    pub packed: Option<PackedForm>,
    /// Bits of the head; `None` where it is dense.
    pub head_bits: Option<u8>,
    /// Bits of a weight of a block that is dense; absent from records of before there were others than 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub float_bits: Option<u8>,
    /// Bytes of weights that a step reads.
    pub step_bytes: usize,
    /// Bytes of keys and values that a step reads, the mean over the steps.
    pub cache_bytes: usize,
    /// Times of the prompt's pass.
    pub prefill: Latency,
    /// Times of one step, each the mean of a repetition's steps.
    pub step: Latency,
}

impl DecodeArm {
    /// `dense f32`, `dense 16 bits`, `W4A16 int16 g64, head W8`.
    pub fn label(&self) -> String {
        let linears = match (&self.packed, self.float_bits) {
            (Some(packed), _) => packed.label(),
            (None, Some(16)) => "dense 16 bits".to_owned(),
            (None, _) => "dense f32".to_owned(),
        };
        self.head_bits.map_or(linears.clone(), |bits| format!("{linears}, head W{bits}"))
    }
}
