//! A quantized model read again from a checkpoint that holds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BlockLog, QuantizedModel, StoredBlock};
use crate::load::{Checkpoint, LoadError};
use crate::model::wiring::Wiring;
use crate::pack::PackedWeight;

impl QuantizedModel {
    /// The model whose edit `checkpoint` holds, with the logs of its blocks: the reverse of [`QuantizedModel::into_checkpoint`].
    /// Only changed tensors are read; `checkpoint` may have no others.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn from_checkpoint(
        wiring: &Wiring,
        checkpoint: &dyn Checkpoint,
        logs: Vec<BlockLog>,
    ) -> Result<Self, LoadError> {
        let blocks = (0..wiring.blocks.len().min(logs.len())).map(|idx| StoredBlock::read(wiring, idx, checkpoint));
        let head = checkpoint.read_quantized(wiring.head_name())?.map(|head| Arc::new(PackedWeight::new(head)));
        Ok(Self { blocks: blocks.collect::<Result<_, _>>()?, head, logs })
    }
}

impl StoredBlock {
    fn read(wiring: &Wiring, block_idx: usize, checkpoint: &dyn Checkpoint) -> Result<Self, LoadError> {
        let vector = |name: String| checkpoint.shape(&name).map(|_| checkpoint.read_f32(&name)).transpose();
        let mut block =
            Self { weights: BTreeMap::new(), biases: BTreeMap::new(), kept: BTreeMap::new(), norms: BTreeMap::new() };
        let parts = &wiring.blocks[block_idx];
        for linear in parts.layout.linears.iter().map(|facts| facts.name) {
            let name = wiring.linear(block_idx, linear);
            let weight = format!("{name}.weight");
            match checkpoint.read_quantized(&weight)? {
                Some(quantized) => {
                    block.weights.insert(linear, Arc::new(PackedWeight::new(quantized)));
                }
                // Left in full precision: it is there where a scale was folded into it.
                None => block.kept.extend(vector(weight)?.map(|values| (linear, values))),
            }
            block.biases.extend(vector(format!("{name}.bias"))?.map(|bias| (linear, bias)));
        }
        for linear in parts.mlp.module.kept() {
            let values = vector(format!("{}.weight", wiring.linear(block_idx, linear)))?;
            block.kept.extend(values.map(|values| (linear, values)));
        }
        for norm in parts.norms() {
            let name = wiring.block_norm(block_idx, norm);
            if let Some(weight) = vector(format!("{name}.weight"))? {
                block.norms.insert(norm, (weight, vector(format!("{name}.bias"))?));
            }
        }
        Ok(block)
    }
}
