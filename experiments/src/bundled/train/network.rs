//! Forward pass of the bundled model for training: the Llama architecture over a map of named tensors, nothing else.
//!
//! Independent of `awq_core::model` on purpose, so that the two can be held against each other.

use std::collections::BTreeMap;

use burn::tensor::activation::silu;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::weights::{NetworkConfig, Weights};

/// The bundled model on a device. Every tensor has rank 2: linears `[out, in]`, norms `[1, hidden]`.
#[derive(Clone, Debug)]
pub(super) struct Network<B: Backend> {
    config: NetworkConfig,
    pub(super) tensors: BTreeMap<String, Tensor<B, 2>>,
    device: B::Device,
}

/// Added to the score of a key in the future. No training can outgrow it: with a mask of -80 the model learned to
/// raise scores by as much and to read the next word.
const MASKED: f32 = -1e9;

/// What attention needs to know about positions in windows of one length, laid out so that every product with it
/// runs over whole rows.
struct Positions<B: Backend> {
    seq_len: usize,
    /// `[1, seq * head_dim]`, of each pair both times.
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    /// `[head_dim, head_dim]`: takes `(a, b)` to `(-b, a)`.
    quarter_turn: Tensor<B, 2>,
    /// `[1, heads_per_key * seq * seq]`: 0 where a query may look, [`MASKED`] elsewhere.
    mask: Tensor<B, 2>,
}

impl<B: Backend> Network<B> {
    /// Copies `weights` to `device`.
    pub(super) fn new(weights: &Weights, device: &B::Device) -> Self {
        let tensors = weights
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let columns = tensor.shape[tensor.shape.len() - 1];
                let shape = [tensor.values.len() / columns, columns];
                let data = TensorData::new(tensor.values.clone(), shape);
                (name.clone(), Tensor::from_data(data, device))
            })
            .collect();
        Network { config: weights.config.clone(), tensors, device: device.clone() }
    }

    /// The same network with every tensor tracked for gradients.
    pub(super) fn trainable(mut self) -> Self {
        self.tensors = self.tensors.into_iter().map(|(name, tensor)| (name, tensor.require_grad())).collect();
        self
    }

    /// Logits `[batch * seq, vocab]` of `ids`, rows of `[batch, seq]`.
    pub(super) fn logits(&self, ids: &[u32], seq_len: usize) -> Tensor<B, 2> {
        self.hidden(ids, seq_len).matmul(self.embedding().transpose())
    }

    /// Negative log-likelihood of each target, `[batch * seq, 1]`.
    ///
    /// The sum of exponentials is a product with ones and the target's logit a product with its embedding: what is
    /// as large as the logits then appears in few operations, forward and backward.
    pub(super) fn nll(&self, ids: &[u32], targets: &[u32], seq_len: usize) -> Tensor<B, 2> {
        let hidden = self.hidden(ids, seq_len);
        let of_target = (hidden.clone() * self.embedding().select(0, self.int(targets))).sum_dim(1);
        let logits = hidden.matmul(self.embedding().transpose());
        let largest = logits.clone().detach().max_dim(1);
        let ones = Tensor::ones([self.config.vocab_size, 1], &self.device);
        (logits - largest.clone()).exp().matmul(ones).log() + largest - of_target
    }

    /// Output of the last norm, `[batch * seq, hidden]`.
    fn hidden(&self, ids: &[u32], seq_len: usize) -> Tensor<B, 2> {
        assert!(ids.len().is_multiple_of(seq_len), "{} token ids do not fill rows of {seq_len}", ids.len());
        let positions = self.positions(seq_len);
        let mut x = self.embedding().select(0, self.int(ids));
        for block_idx in 0..self.config.num_hidden_layers {
            let normed = self.norm(x.clone(), &format!("model.layers.{block_idx}.input_layernorm"));
            x = x + self.attention(normed, block_idx, &positions);
            let normed = self.norm(x.clone(), &format!("model.layers.{block_idx}.post_attention_layernorm"));
            x = x + self.mlp(normed, block_idx);
        }
        self.norm(x, "model.norm")
    }

    fn embedding(&self) -> Tensor<B, 2> {
        self.tensors["model.embed_tokens.weight"].clone()
    }

    fn int(&self, ids: &[u32]) -> Tensor<B, 1, Int> {
        let n = ids.len();
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        Tensor::from_data(TensorData::new(ids, [n]), &self.device)
    }

    /// `x W^T`.
    fn linear(&self, x: Tensor<B, 2>, block_idx: usize, name: &str) -> Tensor<B, 2> {
        x.matmul(self.tensors[&format!("model.layers.{block_idx}.{name}.weight")].clone().transpose())
    }

    fn norm(&self, x: Tensor<B, 2>, name: &str) -> Tensor<B, 2> {
        let mean_square = x.clone().powi_scalar(2).mean_dim(1) + self.config.rms_norm_eps;
        x / mean_square.sqrt() * self.tensors[&format!("{name}.weight")].clone()
    }

    fn mlp(&self, x: Tensor<B, 2>, block_idx: usize) -> Tensor<B, 2> {
        let gate = silu(self.linear(x.clone(), block_idx, "mlp.gate_proj"));
        let up = self.linear(x, block_idx, "mlp.up_proj");
        self.linear(gate * up, block_idx, "mlp.down_proj")
    }

    /// Causal attention. The queries that share a key head are stacked along the sequence, so keys are not repeated;
    /// a column of ones beside the values yields the softmax's denominator, so the division comes after the sum.
    fn attention(&self, x: Tensor<B, 2>, block_idx: usize, positions: &Positions<B>) -> Tensor<B, 2> {
        let NetworkConfig { num_attention_heads: heads, num_key_value_heads: key_heads, head_dim, .. } = self.config;
        let seq_len = positions.seq_len;
        let batch = x.dims()[0] / seq_len;
        let split = |x: Tensor<B, 2>, heads: usize| x.reshape([batch, seq_len, heads, head_dim]).swap_dims(1, 2);
        let queries = split(self.linear(x.clone(), block_idx, "self_attn.q_proj"), heads);
        let keys = split(self.linear(x.clone(), block_idx, "self_attn.k_proj"), key_heads);
        let values = split(self.linear(x, block_idx, "self_attn.v_proj"), key_heads);

        let stacked = heads / key_heads * seq_len;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let queries = (rotate(queries, positions) * scale).reshape([batch, key_heads, stacked, head_dim]);
        let scores = queries.matmul(rotate(keys, positions).transpose());
        let scores = scores.reshape([batch * key_heads, stacked * seq_len]) + positions.mask.clone();
        let scores = scores.reshape([batch, key_heads, stacked, seq_len]);
        let largest = scores.clone().detach().max_dim(3);
        let ones = Tensor::ones([batch, key_heads, seq_len, 1], &self.device);
        let sums = (scores - largest).exp().matmul(Tensor::cat(vec![values, ones], 3));
        let mixed = sums.clone().narrow(3, 0, head_dim) / sums.narrow(3, head_dim, 1);
        let mixed = mixed.reshape([batch, heads, seq_len, head_dim]).swap_dims(1, 2);
        self.linear(mixed.reshape([batch * seq_len, heads * head_dim]), block_idx, "self_attn.o_proj")
    }

    fn positions(&self, seq_len: usize) -> Positions<B> {
        let head_dim = self.config.head_dim;
        let half = head_dim / 2;
        let table = |f: fn(f64) -> f64| {
            let angle = |i: usize| {
                let (position, pair) = (i / head_dim, i % half);
                position as f64 * self.config.rope_theta.powf(-(pair as f64) / half as f64)
            };
            self.row((0..seq_len * head_dim).map(|i| f(angle(i)) as f32).collect())
        };
        let turn = |i: usize| match (i / head_dim, i % head_dim) {
            (from, to) if from == to + half => -1.0,
            (from, to) if from + half == to => 1.0,
            _ => 0.0,
        };
        let stacked = self.config.num_attention_heads / self.config.num_key_value_heads * seq_len;
        let may_look = |i: usize| i % seq_len <= (i / seq_len) % seq_len;
        Positions {
            seq_len,
            cos: table(f64::cos),
            sin: table(f64::sin),
            quarter_turn: self.row((0..head_dim * head_dim).map(turn).collect()).reshape([head_dim, head_dim]),
            mask: self.row((0..stacked * seq_len).map(|i| if may_look(i) { 0.0 } else { MASKED }).collect()),
        }
    }

    fn row(&self, values: Vec<f32>) -> Tensor<B, 2> {
        let n = values.len();
        Tensor::from_data(TensorData::new(values, [1, n]), &self.device)
    }
}

/// Rotary embedding of `x: [batch, heads, seq, head_dim]`; pairs are (i, i + head_dim / 2).
fn rotate<B: Backend>(x: Tensor<B, 4>, positions: &Positions<B>) -> Tensor<B, 4> {
    let shape = x.dims();
    let [batch, heads, seq_len, head_dim] = shape;
    let turned = x.clone().reshape([batch * heads * seq_len, head_dim]).matmul(positions.quarter_turn.clone());
    let rows = [batch * heads, seq_len * head_dim];
    let rotated = x.reshape(rows) * positions.cos.clone() + turned.reshape(rows) * positions.sin.clone();
    rotated.reshape(shape)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use awq_core::arithmetic::Arithmetic;
    use awq_core::backend::float_vec;
    use awq_core::model::{NoTap, open_decoder};
    use awq_core::open::open_model;
    use burn::backend::Flex;

    use super::*;

    fn logits(weights: &Weights, ids: &[u32]) -> Vec<f32> {
        let logits = Network::<Flex>::new(weights, &Default::default()).logits(ids, ids.len());
        logits.into_data().to_vec().unwrap()
    }

    /// Also with attention scores in the thousands, which a mask of moderate size would let through.
    #[test]
    fn no_position_sees_the_future() {
        let mut weights = Weights::initial(NetworkConfig::bundled(50, 16, 0, 1), 2);
        for (name, tensor) in &mut weights.tensors {
            if name.contains("q_proj") || name.contains("k_proj") {
                tensor.values.iter_mut().for_each(|value| *value *= 40.0);
            }
        }
        let before = logits(&weights, &[3, 1, 4, 1, 5, 9, 2, 6]);
        let after = logits(&weights, &[3, 1, 4, 1, 5, 30, 31, 32]);
        assert_eq!(before[..5 * 50], after[..5 * 50]);
        assert_ne!(before[5 * 50..], after[5 * 50..]);
    }

    #[test]
    fn windows_of_a_batch_do_not_meet() {
        let weights = Weights::initial(NetworkConfig::bundled(50, 16, 0, 1), 2);
        let (first, second) = ([3, 1, 4, 1], [5, 9, 2, 6]);
        let together = Network::<Flex>::new(&weights, &Default::default());
        let together: Vec<f32> = together.logits(&[first, second].concat(), 4).into_data().to_vec().unwrap();
        let apart = [logits(&weights, &first), logits(&weights, &second)].concat();
        for (a, b) in together.iter().zip(&apart) {
            assert!((a - b).abs() < 1e-4, "{a} against {b}");
        }
    }

    /// The model that is quantized is the one that was trained: two implementations of one architecture.
    #[test]
    fn the_decoder_computes_what_the_trainer_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/bundled");
        let ids: Vec<u32> = (0..100).map(|i| (i * 37 + 5) % 1000).collect();
        let expected = logits(&Weights::load(&folder).unwrap(), &ids);
        let opened = open_model(&folder).unwrap();
        let (n_blocks, width) = (opened.config.n_blocks, opened.config.hidden_size);
        let decoder = open_decoder::<Flex>(opened.config, opened.checkpoint, &Default::default()).unwrap();
        let mut hidden = decoder.embedding().unwrap().embed(&[ids]);
        for block_idx in 0..n_blocks {
            hidden = decoder.block(block_idx).unwrap().forward(hidden, &mut NoTap);
        }
        let found =
            float_vec(decoder.head(Arithmetic::F32).unwrap().logits(decoder.final_norm(hidden).reshape([100, width])));
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0_f32, |max, logit| max.max(logit.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4 * largest, "{found} is not {expected}, of at most {largest}");
        }
    }

    /// The loss is written in another way than log-softmax and must agree with it.
    #[test]
    fn nll_is_the_log_softmax_at_the_target() {
        let weights = Weights::initial(NetworkConfig::bundled(50, 16, 0, 1), 2);
        let (ids, targets) = ([3, 1, 4, 1], [1, 4, 1, 5]);
        let logits = logits(&weights, &ids);
        let nll = Network::<Flex>::new(&weights, &Default::default()).nll(&ids, &targets, 4);
        for (i, nll) in nll.into_data().iter::<f64>().enumerate() {
            let row = &logits[50 * i..50 * (i + 1)];
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            assert!((nll - (sum.ln() - f64::from(row[targets[i] as usize]))).abs() < 1e-5);
        }
    }
}
