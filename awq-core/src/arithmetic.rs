//! In what precision the matrix products of linears and of the head are computed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Precision of the inputs of a matrix product. Sums, norms, softmax and losses are f32 (or wider) in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// f32 as stored.
    #[default]
    F32,
    /// Activations and weights rounded half to even to bf16 (8 bits of mantissa), f32 sums. Twice as fast where the CPU
    /// has AVX-512 BF16.
    Bf16,
}

impl Arithmetic {
    /// Whether this is [`Arithmetic::F32`], which configurations and records leave out.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}
