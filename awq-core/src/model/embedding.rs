//! The embedding of a model, read when tokens go in and dropped before the blocks run: it may be as large as a block.

use burn::tensor::{Int, Tensor};

use super::ids_tensor;
use super::layers::{Norm, projected};
use super::packing::{Packing, indices};
use crate::backend::QuantBackend;

/// What makes hidden states of token ids.
pub struct Embedding<B: QuantBackend> {
    /// `[vocab, width]`, see [`Wiring::embedding_width`](super::wiring::Wiring::embedding_width).
    pub(super) rows: Tensor<B, 2>,
    /// What rows are multiplied by.
    pub(super) scale: Option<f32>,
    pub(super) norm: Option<Norm<B>>,
    /// Into the residual stream, `[hidden, width]`.
    pub(super) to_stream: Option<Tensor<B, 2>>,
    /// Rows `[max_positions, hidden]` that are added, where positions are learned.
    pub(super) positions: Option<Tensor<B, 2>>,
    pub(super) hidden_size: usize,
    pub(super) device: B::Device,
}

impl<B: QuantBackend> Embedding<B> {
    /// Token ids `[batch, seq]` to hidden states `[batch, seq, hidden]`.
    pub fn embed(&self, ids: &[Vec<u32>]) -> Tensor<B, 3> {
        let [batch, seq] = [ids.len(), ids.first().map_or(0, Vec::len)];
        let rows = self.of_tokens(ids_tensor::<B>(ids, &self.device).reshape([batch * seq]));
        let rows = rows.reshape([batch, seq, self.hidden_size]);
        match &self.positions {
            None => rows,
            Some(positions) => rows + positions.clone().narrow(0, 0, seq).unsqueeze::<3>(),
        }
    }

    /// Tokens of packed sequences to hidden states `[1, tokens, hidden]`.
    pub fn embed_packed(&self, packing: &Packing) -> Tensor<B, 3> {
        let ids: Vec<usize> = packing.tokens().iter().map(|&id| id as usize).collect();
        let rows = self.of_tokens(indices(&ids, &self.device));
        match &self.positions {
            None => rows,
            Some(positions) => {
                let positions = positions.clone().select(0, indices(packing.positions(), &self.device));
                rows + positions.unsqueeze::<3>()
            }
        }
    }

    /// Token ids `[tokens]` to `[1, tokens, hidden]`, before positions are added.
    fn of_tokens(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 3> {
        let rows = self.rows.clone().select(0, ids).unsqueeze::<3>();
        let rows = match self.scale {
            None => rows,
            Some(scale) => rows * scale,
        };
        let rows = match &self.norm {
            None => rows,
            Some(norm) => norm.forward(rows),
        };
        match &self.to_stream {
            None => rows,
            Some(to_stream) => projected(rows, to_stream),
        }
    }
}
