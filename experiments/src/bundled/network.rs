//! Forward pass of the bundled model for training: the Llama architecture over a map of named tensors, nothing else.
//!
//! Independent of `awq_core::model` on purpose, so that the two can be held against each other.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::weights::{NetworkConfig, Weights};

/// The bundled model on a device. Every tensor has rank 2: linears `[out, in]`, norms `[1, hidden]`.
#[derive(Clone, Debug)]
pub struct Network<B: Backend> {
    config: NetworkConfig,
    pub(super) tensors: BTreeMap<String, Tensor<B, 2>>,
    device: B::Device,
}

/// What attention needs to know about positions in windows of one length.
struct Positions<B: Backend> {
    /// `[1, 1, seq, head_dim / 2]`.
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
    /// `[1, 1, heads_per_key * seq, seq]`: 0 where a query may look, far below elsewhere.
    mask: Tensor<B, 4>,
}

impl<B: Backend> Network<B> {
    /// Copies `weights` to `device`.
    pub fn new(weights: &Weights, device: &B::Device) -> Self {
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
    pub fn logits(&self, ids: &[u32], seq_len: usize) -> Tensor<B, 2> {
        let batch = ids.len() / seq_len;
        assert_eq!(ids.len(), batch * seq_len, "token ids do not fill rows of {seq_len}");
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [batch * seq_len]), &self.device);
        let embedding = &self.tensors["model.embed_tokens.weight"];
        let positions = self.positions(seq_len);
        let mut x = embedding.clone().select(0, ids);
        for block_idx in 0..self.config.num_hidden_layers {
            let normed = self.norm(x.clone(), &format!("model.layers.{block_idx}.input_layernorm"));
            x = x + self.attention(normed, block_idx, batch, &positions);
            let normed = self.norm(x.clone(), &format!("model.layers.{block_idx}.post_attention_layernorm"));
            x = x + self.mlp(normed, block_idx);
        }
        self.norm(x, "model.norm").matmul(embedding.clone().transpose())
    }

    /// Negative log-likelihood of each target, `[batch * seq]`.
    pub(super) fn nll(&self, ids: &[u32], targets: &[u32], seq_len: usize) -> Tensor<B, 1> {
        let targets: Vec<i32> = targets.iter().map(|id| *id as i32).collect();
        let n = targets.len();
        let targets = Tensor::<B, 2, Int>::from_data(TensorData::new(targets, [n, 1]), &self.device);
        log_softmax(self.logits(ids, seq_len), 1).gather(1, targets).neg().reshape([n])
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

    /// Causal attention; the queries that share a key head are stacked along the sequence, so keys are not repeated.
    fn attention(&self, x: Tensor<B, 2>, block_idx: usize, batch: usize, positions: &Positions<B>) -> Tensor<B, 2> {
        let NetworkConfig { num_attention_heads: heads, num_key_value_heads: key_heads, head_dim, .. } = self.config;
        let seq_len = x.dims()[0] / batch;
        let split = |x: Tensor<B, 2>, heads: usize| x.reshape([batch, seq_len, heads, head_dim]).swap_dims(1, 2);
        let queries = split(self.linear(x.clone(), block_idx, "self_attn.q_proj"), heads);
        let keys = split(self.linear(x.clone(), block_idx, "self_attn.k_proj"), key_heads);
        let values = split(self.linear(x, block_idx, "self_attn.v_proj"), key_heads);

        let stacked = heads / key_heads * seq_len;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let queries = (rotate(queries, positions) * scale).reshape([batch, key_heads, stacked, head_dim]);
        let scores = queries.matmul(rotate(keys, positions).transpose()) + positions.mask.clone();
        let mixed = softmax(scores, 3).matmul(values).reshape([batch, heads, seq_len, head_dim]);
        let mixed = mixed.swap_dims(1, 2).reshape([batch * seq_len, heads * head_dim]);
        self.linear(mixed, block_idx, "self_attn.o_proj")
    }

    fn positions(&self, seq_len: usize) -> Positions<B> {
        let half = self.config.head_dim / 2;
        let angles: Vec<f64> = (0..seq_len * half)
            .map(|i| (i / half) as f64 * self.config.rope_theta.powf(-((i % half) as f64) / half as f64))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| f(*angle) as f32).collect();
            Tensor::from_data(TensorData::new(values, [1, 1, seq_len, half]), &self.device)
        };
        let stacked = self.config.num_attention_heads / self.config.num_key_value_heads * seq_len;
        let mask: Vec<f32> = (0..stacked * seq_len)
            .map(|i| if i % seq_len <= (i / seq_len) % seq_len { 0.0 } else { -1e9 })
            .collect();
        let mask = Tensor::from_data(TensorData::new(mask, [1, 1, stacked, seq_len]), &self.device);
        Positions { cos: table(f64::cos), sin: table(f64::sin), mask }
    }
}

/// Rotary embedding of `x: [batch, heads, seq, head_dim]`; pairs are (i, i + head_dim / 2).
fn rotate<B: Backend>(x: Tensor<B, 4>, positions: &Positions<B>) -> Tensor<B, 4> {
    let halves = x.chunk(2, 3);
    let (a, b) = (halves[0].clone(), halves[1].clone());
    let (cos, sin) = (positions.cos.clone(), positions.sin.clone());
    Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin], 3)
}

/// Logits `[seq, vocab]`, row-major, that the trainer's own forward pass gives for the model in `dir` and one window
/// `ids`: what other implementations are compared with.
///
/// # Errors
/// Where the model cannot be read, or an id is outside its vocabulary.
pub fn reference_logits<B: Backend>(dir: &Path, ids: &[u32], device: &B::Device) -> anyhow::Result<Vec<f32>> {
    let weights = Weights::load(dir)?;
    let vocab_size = weights.config.vocab_size;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        anyhow::bail!("token id {id} is outside the vocabulary of {vocab_size} of the model in {}", dir.display());
    }
    let logits = Network::<B>::new(&weights, device).logits(ids, ids.len());
    Ok(logits.into_data().convert::<f32>().iter::<f32>().collect())
}
