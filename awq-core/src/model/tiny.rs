//! A tiny Llama decoder with seeded random weights: what tests quantize, in milliseconds and without a file.
//!
//! Weights are sums of uniform numbers, so that a seed gives the same bits on every machine. Norm weights may be large in a
//! few channels, as in trained models: the inputs of q, k, v, gate and up then have the outliers that AWQ looks for.

use std::sync::Arc;

use crate::backend::QuantBackend;
use crate::load::{LoadError, MemoryCheckpoint, ModelConfig};

use super::{Decoder, open_decoder};

/// Sizes of a tiny decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TinySpec {
    /// Width of the residual stream; a multiple of `2 n_heads`.
    pub hidden_size: usize,
    /// Width inside the feed-forward module.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub n_blocks: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`. As many as `n_heads`: AWQ scales `o_proj` too.
    pub n_kv_heads: usize,
    /// Rows of the embedding and the head.
    pub vocab_size: usize,
    /// Whether q, k and v have a bias.
    pub attention_bias: bool,
    /// Channels whose norm weight is multiplied by [`Self::outlier_gain`], evenly spaced.
    pub n_outliers: usize,
    /// See [`Self::n_outliers`].
    pub outlier_gain: f32,
}

impl TinySpec {
    /// Grouped-query attention (4 heads, 2 key heads), 2 blocks, hidden 64, untied head, 4 outlier channels of gain 12.
    pub const GQA: Self = Self {
        hidden_size: 64,
        intermediate_size: 96,
        n_blocks: 2,
        n_heads: 4,
        n_kv_heads: 2,
        vocab_size: 50,
        attention_bias: false,
        n_outliers: 4,
        outlier_gain: 12.0,
    };

    /// As [`Self::GQA`] with a key head for each query head and biases on q, k and v.
    pub const MHA: Self = Self { n_kv_heads: 4, attention_bias: true, ..Self::GQA };

    /// The configuration of such a model.
    pub fn config(&self) -> ModelConfig {
        ModelConfig {
            // Llama's own `attention_bias` would put one on `o_proj`, too.
            architecture: if self.attention_bias { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }.into(),
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            n_blocks: self.n_blocks,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.hidden_size / self.n_heads,
            vocab_size: self.vocab_size,
            max_positions: 512,
            norm_eps: 1e-5,
            rotary_dim: self.hidden_size / self.n_heads,
            rope_theta: 10_000.0,
            rope_scaling: None,
            local_rope: None,
            tie_word_embeddings: false,
            attention_bias: self.attention_bias,
            mlp_bias: false,
            bos_id: None,
            eos_ids: Vec::new(),
            windows: vec![None; self.n_blocks],
            raw: serde_json::Value::Null,
            outer: None,
        }
    }
}

/// Weights of a tiny decoder. Each tensor depends on its own name and `seed` alone.
pub fn checkpoint(spec: &TinySpec, seed: u64) -> MemoryCheckpoint {
    let mut checkpoint = MemoryCheckpoint::default();
    let mut random = |name: String, shape: &[usize], std: f32| {
        let mut numbers = Numbers::new(seed, &name);
        let values = (0..shape.iter().product()).map(|_| std * numbers.bell()).collect();
        checkpoint.insert(&name, shape, values);
    };
    let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
    let kv_width = hidden / spec.n_heads * spec.n_kv_heads;
    random("model.embed_tokens.weight".into(), &[spec.vocab_size, hidden], 1.0);
    random("lm_head.weight".into(), &[spec.vocab_size, hidden], 1.0 / (hidden as f32).sqrt());
    for block_idx in 0..spec.n_blocks {
        for (linear, [n_out, n_in]) in [
            ("self_attn.q_proj", [hidden, hidden]),
            ("self_attn.k_proj", [kv_width, hidden]),
            ("self_attn.v_proj", [kv_width, hidden]),
            ("self_attn.o_proj", [hidden, hidden]),
            ("mlp.gate_proj", [inner, hidden]),
            ("mlp.up_proj", [inner, hidden]),
            ("mlp.down_proj", [hidden, inner]),
        ] {
            let prefix = format!("model.layers.{block_idx}.{linear}");
            random(format!("{prefix}.weight"), &[n_out, n_in], 1.0 / (n_in as f32).sqrt());
            if spec.attention_bias && ["q_proj", "k_proj", "v_proj"].iter().any(|name| linear.ends_with(name)) {
                random(format!("{prefix}.bias"), &[n_out], 0.1);
            }
        }
    }
    let norms = (0..spec.n_blocks)
        .flat_map(|block_idx| {
            ["input_layernorm", "post_attention_layernorm"]
                .map(|norm| format!("model.layers.{block_idx}.{norm}.weight"))
        })
        .chain(["model.norm.weight".into()]);
    for name in norms {
        checkpoint.insert(&name, &[hidden], norm_weight(spec, &name, seed));
    }
    checkpoint
}

/// About 1 in every channel but the outliers.
fn norm_weight(spec: &TinySpec, name: &str, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers::new(seed, name);
    let mut weight: Vec<f32> = (0..spec.hidden_size).map(|_| 1.0 + 0.1 * numbers.bell()).collect();
    for outlier in 0..spec.n_outliers {
        weight[outlier * spec.hidden_size / spec.n_outliers] *= spec.outlier_gain;
    }
    weight
}

/// A tiny decoder on a device.
///
/// # Errors
/// None for a spec that keeps the rules of its fields.
pub fn decoder<B: QuantBackend>(
    spec: &TinySpec,
    seed: u64,
    device: &B::Device,
) -> Result<Box<dyn Decoder<B>>, LoadError> {
    open_decoder(spec.config(), Arc::new(checkpoint(spec, seed)), device)
}

/// `n` sequences of `len` token ids.
pub fn sequences(spec: &TinySpec, n: usize, len: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut numbers = Numbers::new(seed, "sequences");
    (0..n).map(|_| (0..len).map(|_| (numbers.next() % spec.vocab_size as u64) as u32).collect()).collect()
}

/// The SplitMix64 generator (Steele, Lea and Flood 2014), started from a seed and a name.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a of the name.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, hash) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Mean 0, standard deviation 1, bell-shaped: the sum of six uniform numbers.
    fn bell(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
        let sum: f32 = (0..6).map(|_| uniform(self.next())).sum();
        sum * std::f32::consts::SQRT_2
    }
}
