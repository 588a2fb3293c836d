//! In what precision the matrix products of linears and of the head are computed, and tensors are stored.

use burn::tensor::FloatDType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numbers::of_table;

/// Precision of the inputs of a matrix product. Sums, norms, softmax and losses are f32 (or wider) in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// f32 as stored.
    #[default]
    F32,
    /// Activations and weights rounded half to even to bf16 (8 bits of mantissa), f32 sums. Twice as fast where the CPU
    /// has AVX-512 BF16.
    Bf16,
    /// f32 as sums of three bf16 numbers, where the CPU multiplies those by tiles (AMX): of the nine products of their parts the six largest
    /// are added. As exact as f32, the last bits others, and faster. Elsewhere f32.
    #[serde(rename = "bf16x3")]
    Bf16x3,
}

impl Arithmetic {
    /// Whether this is [`Arithmetic::F32`], which configurations and records leave out.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// One of another precision, whose distance from this one shows what rounding does.
    pub fn other(self) -> Self {
        match self {
            Self::F32 | Self::Bf16x3 => Self::Bf16,
            Self::Bf16 => Self::F32,
        }
    }
}

/// Type of weights and activations in the memory of a GPU, and of plain floats in files. On a GPU norms, softmax, losses and all that methods compute are f32 in
/// each; matrix products are summed in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FloatType {
    /// 32 bits. burn's matrix products round f32 inputs to TF32 (10 bits of mantissa) where an NVIDIA GPU has tensor cores
    /// for it and those are found to be the fastest.
    #[default]
    F32,
    /// 16 bits with 10 of mantissa, up to 65504: what the papers use. Some models overflow it.
    F16,
    /// 16 bits with 7 of mantissa and the range of f32: what most models are trained in.
    Bf16,
}

impl FloatType {
    /// Whether this is [`FloatType::F32`], which configurations and records leave out.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Its name in configurations: `f16`.
    pub fn name(self) -> &'static str {
        self.number().name()
    }

    /// burn's name for it.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::Bf16 => FloatDType::BF16,
        }
    }
}

of_table!(FloatType: F32, F16, Bf16);
