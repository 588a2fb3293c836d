//! A quantized model as a decoder, over the one that it was made from.

use std::sync::OnceLock;

use burn::tensor::Tensor;

use super::QuantizedModel;
use crate::arithmetic::Arithmetic;
use crate::backend::QuantBackend;
use crate::load::{LoadError, ModelConfig};
use crate::model::layers::product;
use crate::model::{Block, BlockLayout, Decoder};

pub(super) struct QuantizedDecoder<'a, B: QuantBackend> {
    pub(super) base: &'a dyn Decoder<B>,
    pub(super) model: &'a QuantizedModel,
    /// The quantized head, dequantized when it is needed first.
    pub(super) head: OnceLock<Tensor<B, 2>>,
}

impl<B: QuantBackend> Decoder<B> for QuantizedDecoder<'_, B> {
    fn config(&self) -> &ModelConfig {
        self.base.config()
    }

    fn layout(&self, block_idx: usize) -> &BlockLayout {
        self.base.layout(block_idx)
    }

    fn check_ids(&self, ids: &[Vec<u32>]) -> Result<(), LoadError> {
        self.base.check_ids(ids)
    }

    fn embed(&self, ids: &[Vec<u32>]) -> Tensor<B, 3> {
        self.base.embed(ids)
    }

    fn block(&self, block_idx: usize) -> Result<Box<dyn Block<B>>, LoadError> {
        Ok(self.model.blocks[block_idx].onto(self.base.block(block_idx)?.as_ref()))
    }

    fn final_norm(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.base.final_norm(hidden)
    }

    fn head_weight(&self) -> Tensor<B, 2> {
        let Some(packed) = &self.model.head else { return self.base.head_weight() };
        let dequantized = || B::dequantize_weight(&packed.unpack(), &self.base.head_weight().device());
        self.head.get_or_init(dequantized).clone()
    }

    fn head(&self, rows: Tensor<B, 2>, arithmetic: Arithmetic) -> Tensor<B, 2> {
        match self.model.head {
            Some(_) => product(rows, self.head_weight(), arithmetic),
            None => self.base.head(rows, arithmetic),
        }
    }
}
