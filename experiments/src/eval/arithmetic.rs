//! [`ScoringArithmetic`]: how the products of a scoring pass are computed.

use std::sync::Arc;

use awq_core::arithmetic::Arithmetic;
use awq_core::backend::QuantBackend;
use awq_core::kernel::Activations;
use awq_core::load::LoadError;
use awq_core::model::{Block, CodeProducts, Decoder, Products, RoundedProducts, with_products};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the products of linears and of the head are computed in a scoring pass. Sums across groups, norms, softmax and likelihoods are f32
/// (or wider) in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoringArithmetic {
    /// f32 as stored.
    #[default]
    F32,
    /// Activations and weights rounded half to even to bf16 (8 bits of mantissa), f32 sums.
    Bf16,
    /// f32 as sums of three bf16 numbers, where the CPU multiplies those by tiles (AMX): of the nine products of their parts the six largest
    /// are added. As exact as f32, the last bits others, and faster. Elsewhere f32.
    #[serde(rename = "bf16x3")]
    Bf16x3,
    /// Codes multiplied as integers with activations in 16 bits, a scale for each token and group of at most 128 input channels; sums
    /// within a group are exact. Weights that are floats, the head, and codes with kept or rotated inputs or of a table of values: f32.
    /// The kernels run on a CPU, whatever the device.
    Int16,
}

impl ScoringArithmetic {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Bf16x3, Self::Int16];

    /// Whether this is [`Self::F32`], which configurations and records leave out.
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// Its name in configurations and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16x3 => "bf16x3",
            Self::Int16 => "int16",
        }
    }

    /// In what weights that are floats are multiplied.
    pub const fn of_floats(self) -> Arithmetic {
        match self {
            Self::F32 | Self::Int16 => Arithmetic::F32,
            Self::Bf16 => Arithmetic::Bf16,
            Self::Bf16x3 => Arithmetic::Bf16x3,
        }
    }

    /// What becomes of activations that are multiplied with codes; `None` where weights are restored first.
    pub const fn of_codes(self) -> Option<Activations> {
        match self {
            Self::F32 | Self::Bf16 | Self::Bf16x3 => None,
            Self::Int16 => Some(Activations::Int16),
        }
    }

    /// A block of `decoder`, with its products computed so.
    ///
    /// # Errors
    /// Codes that can no longer be read.
    pub(super) fn block<B: QuantBackend>(
        self,
        decoder: &dyn Decoder<B>,
        (block_idx, block): (usize, &dyn Block<B>),
    ) -> Result<Box<dyn Block<B>>, LoadError> {
        let products: Arc<dyn Products<B>> = if let Some(activations) = self.of_codes() {
            Arc::new(CodeProducts::new(&decoder.codes(block_idx)?, activations))
        } else if self == Self::Bf16 && !B::BESIDE_HOST && is_narrow(decoder.config().hidden_size) {
            Arc::new(RoundedProducts::new(block.params().linears.iter().map(|(name, linear)| (*name, linear))))
        } else {
            Arc::new(self.of_floats())
        };
        Ok(with_products(block, products))
    }
}

/// Whether a model is so narrow that its batches are small and many, and its blocks small: weights are then rounded once for all batches.
pub(super) const fn is_narrow(hidden_size: usize) -> bool {
    hidden_size <= 1024
}

impl From<Arithmetic> for ScoringArithmetic {
    fn from(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::F32 => Self::F32,
            Arithmetic::Bf16 => Self::Bf16,
            Arithmetic::Bf16x3 => Self::Bf16x3,
        }
    }
}
