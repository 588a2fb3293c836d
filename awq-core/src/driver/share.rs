//! What a rule leaves in full precision, counted.

use serde::{Deserialize, Serialize};

use crate::grids::ModelGrids;
use crate::load::{Checkpoint, ModelConfig};
use crate::model::wiring::Wiring;

/// The linears of a quantized model that are not quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FullPrecisionShare {
    /// Their weights.
    pub n_weights: u64,
    /// Stored bits a weight, the mean over all linears of all blocks, and the head where it is quantized: these count with the
    /// bits of their type in the checkpoint.
    pub bits_per_weight_of_all: f64,
}

impl FullPrecisionShare {
    /// What `grids` leaves of the linears of the blocks; `None` where it leaves nothing, or where the checkpoint does not say how it
    /// stores one of them.
    pub fn of(grids: &ModelGrids, wiring: &Wiring, config: &ModelConfig, quantized: &dyn Checkpoint) -> Option<Self> {
        let (mut n_left, mut n_all, mut bits) = (0_u64, 0_u64, 0.0);
        for (block_idx, block) in wiring.blocks.iter().enumerate() {
            for (linear, shape) in block.linear_shapes(config) {
                let n_weights = shape.iter().product::<usize>() as u64;
                let name = format!("{}.weight", wiring.linear(block_idx, linear));
                let is_quantized = grids.block(block_idx).of(linear).is_some();
                // One into which a scale was folded is no longer as its checkpoint had it.
                bits += quantized.stored_type(&name)?.bits_per_weight * n_weights as f64;
                n_all += n_weights;
                n_left += if is_quantized { 0 } else { n_weights };
            }
        }
        if grids.head().is_some() {
            let n_weights = quantized.shape(wiring.head_name())?.iter().product::<usize>() as u64;
            bits += quantized.stored_type(wiring.head_name())?.bits_per_weight * n_weights as f64;
            n_all += n_weights;
        }
        (n_left > 0).then(|| Self { n_weights: n_left, bits_per_weight_of_all: bits / n_all as f64 })
    }
}
