//! What a rule leaves in full precision, counted.

use serde::{Deserialize, Serialize};

use super::QuantizedModel;
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

impl QuantizedModel {
    /// What is left of the linears of the blocks in full precision; `None` where nothing is, or where the checkpoint does not say
    /// how it stores one of them.
    pub fn left_in_full_precision(
        &self,
        wiring: &Wiring,
        config: &ModelConfig,
        base: &dyn Checkpoint,
    ) -> Option<FullPrecisionShare> {
        let (mut n_left, mut n_all, mut bits) = (0_u64, 0_u64, 0.0);
        for (block_idx, (stored, block)) in self.blocks.iter().zip(&wiring.blocks).enumerate() {
            for (linear, shape) in block.linear_shapes(config) {
                let n_weights = shape.iter().product::<usize>() as u64;
                n_all += n_weights;
                if let Some(weight) = stored.weights.get(&linear) {
                    bits += weight.stored_bits() as f64;
                } else {
                    let name = format!("{}.weight", wiring.linear(block_idx, linear));
                    bits += base.stored_type(&name)?.bits_per_weight * n_weights as f64;
                    n_left += n_weights;
                }
            }
        }
        if let Some(head) = &self.head {
            let (n_out, n_in) = head.shape();
            n_all += (n_out * n_in) as u64;
            bits += head.stored_bits() as f64;
        }
        (n_left > 0).then(|| FullPrecisionShare { n_weights: n_left, bits_per_weight_of_all: bits / n_all as f64 })
    }
}
