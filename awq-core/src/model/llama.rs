//! The Llama family: RMSNorm, rotary positions (half-split pairing), grouped-query attention, SwiGLU.
//!
//! Also Mistral (same block; its sliding window must not be shorter than the sequences) and Qwen2 (biases on q, k, v).
//! Llama's own `attention_bias` puts one on all four linears of the attention module, its `mlp_bias` on the other three.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde_json::json;

use super::layers::{Linear, Norm, NormKind, matrix, product, rotary_table, vector};
use super::wiring::{AttentionWiring, InnerWiring, MlpWiring, Positions, Wiring};
use super::{
    Block, BlockLayout, BlockParams, Decoder, Inspect, LinearFacts, LinearName, NormName, PrevOp, ScaleGroup, Tap,
    check_fixed, ids_tensor,
};
use crate::arithmetic::Arithmetic;
use crate::backend::{AttentionShape, QuantBackend, RotaryTable};
use crate::load::{Checkpoint, LoadError, ModelConfig};

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.o_proj");
const GATE: LinearName = LinearName("mlp.gate_proj");
const UP: LinearName = LinearName("mlp.up_proj");
const DOWN: LinearName = LinearName("mlp.down_proj");
const ATTENTION_NORM: NormName = NormName("input_layernorm");
const MLP_NORM: NormName = NormName("post_attention_layernorm");

const fn reads(name: LinearName, input: LinearName, clips: bool) -> LinearFacts {
    LinearFacts { name, input, clips }
}

/// `o_proj` is scaled only where `v_proj` has as many rows as `o_proj` has columns: with grouped queries one value
/// channel feeds several columns, and the official code leaves the pair out. The loader picks the layout.
static LAYOUT_GQA: BlockLayout =
    BlockLayout { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, GATE_UP, DOWN_GROUP] };
static LAYOUT_MHA: BlockLayout =
    BlockLayout { linears: LINEARS, stages: STAGES, scale_groups: &[QKV, O_GROUP, GATE_UP, DOWN_GROUP] };

const LINEARS: &[LinearFacts] = &[
    reads(Q, Q, false),
    reads(K, Q, false),
    reads(V, Q, true),
    reads(O, O, true),
    reads(GATE, GATE, true),
    reads(UP, GATE, true),
    reads(DOWN, DOWN, true),
];
const STAGES: &[&[LinearName]] = &[&[K, V, Q], &[O], &[UP, GATE], &[DOWN]];
const QKV: ScaleGroup =
    ScaleGroup { prev_op: PrevOp::Norm(ATTENTION_NORM), linears: &[Q, K, V], inspect: Inspect::Attention };
const O_GROUP: ScaleGroup = ScaleGroup { prev_op: PrevOp::Linear(V), linears: &[O], inspect: Inspect::Linear };
const GATE_UP: ScaleGroup = ScaleGroup { prev_op: PrevOp::Norm(MLP_NORM), linears: &[GATE, UP], inspect: Inspect::Mlp };
const DOWN_GROUP: ScaleGroup = ScaleGroup { prev_op: PrevOp::Linear(UP), linears: &[DOWN], inspect: Inspect::Linear };

/// A Llama-family decoder over a checkpoint.
struct Llama<B: QuantBackend> {
    config: ModelConfig,
    wiring: Wiring,
    checkpoint: Arc<dyn Checkpoint>,
    embedding: Tensor<B, 2>,
    final_norm: Norm<B>,
    /// `None` for a tied head: the embedding is used.
    head: Option<Tensor<B, 2>>,
    rotary: RotaryTable<B>,
    device: B::Device,
}

/// Wires a Llama or Mistral model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let mlp_bias = config.raw.get("mlp_bias").is_some_and(|value| *value == true);
    let attention: &[LinearName] = if config.attention_bias { &[Q, K, V, O] } else { &[] };
    let mlp: &[LinearName] = if mlp_bias { &[GATE, UP, DOWN] } else { &[] };
    wire(config, checkpoint, [attention, mlp].concat())
}

/// Wires a Qwen2 model: q, k and v have biases whatever the configuration says.
pub(super) fn qwen2_wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    wire(config, checkpoint, vec![Q, K, V])
}

fn wire(config: &ModelConfig, checkpoint: &dyn Checkpoint, biased: Vec<LinearName>) -> Result<Wiring, LoadError> {
    check_fixed(config, checkpoint, &[("hidden_act", json!("silu"))])?;
    Ok(Wiring {
        embedding: "model.embed_tokens.weight".into(),
        positions: Positions::Rotary,
        blocks: "model.layers".into(),
        norm: NormKind::Rms,
        attention: AttentionWiring { norm: ATTENTION_NORM, q: Q, k: K, v: V, o: O },
        mlp: MlpWiring { norm: MLP_NORM, inner: InnerWiring::SwiGlu { gate: GATE, up: UP }, down: DOWN },
        biased,
        final_norm: "model.norm".into(),
        head: (!config.tie_word_embeddings).then(|| "lm_head.weight".into()),
    })
}

/// Opens a model that is wired so.
pub(super) fn open<B: QuantBackend>(
    wiring: Wiring,
    config: ModelConfig,
    checkpoint: Arc<dyn Checkpoint>,
    device: &B::Device,
) -> Result<Box<dyn Decoder<B>>, LoadError> {
    let vocab_by_hidden = [config.vocab_size, config.hidden_size];
    let source = checkpoint.as_ref();
    let embedding = matrix(source, &wiring.embedding, vocab_by_hidden, device)?;
    let final_norm = rms(source, &format!("{}.weight", wiring.final_norm), &config, device)?;
    let head = wiring.head.as_ref().map(|name| matrix(source, name, vocab_by_hidden, device)).transpose()?;
    let rotary = rotary_table(&config, config.longest_sequence(), device);
    Ok(Box::new(Llama { config, wiring, checkpoint, embedding, final_norm, head, rotary, device: device.clone() }))
}

fn rms<B: QuantBackend>(
    source: &dyn Checkpoint,
    name: &str,
    config: &ModelConfig,
    device: &B::Device,
) -> Result<Norm<B>, LoadError> {
    let weight = vector(source, name, config.hidden_size, device)?;
    Ok(Norm { weight, bias: None, kind: NormKind::Rms, eps: config.norm_eps })
}

impl<B: QuantBackend> Decoder<B> for Llama<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &'static BlockLayout {
        if self.config.n_heads == self.config.n_kv_heads { &LAYOUT_MHA } else { &LAYOUT_GQA }
    }

    fn embed(&self, ids: &[Vec<u32>]) -> Tensor<B, 3> {
        let ids = ids_tensor::<B>(ids, &self.device);
        let [batch, seq] = ids.dims();
        let rows = self.embedding.clone().select(0, ids.reshape([batch * seq]));
        rows.reshape([batch, seq, self.config.hidden_size])
    }

    fn block(&self, block_idx: usize) -> Result<Box<dyn Block<B>>, LoadError> {
        let config = &self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let source = self.checkpoint.as_ref();
        let linear = |name: LinearName, shape| -> Result<_, LoadError> {
            let has_bias = self.wiring.biased.contains(&name);
            Ok((name, Linear::load(source, &self.wiring.linear(block_idx, name), shape, has_bias, &self.device)?))
        };
        let linears = BTreeMap::from([
            linear(Q, [q_width, hidden])?,
            linear(K, [kv_width, hidden])?,
            linear(V, [kv_width, hidden])?,
            linear(O, [hidden, q_width])?,
            linear(GATE, [inner, hidden])?,
            linear(UP, [inner, hidden])?,
            linear(DOWN, [hidden, inner])?,
        ]);
        let norm = |name: NormName| -> Result<_, LoadError> {
            let tensor = format!("{}.weight", self.wiring.block_norm(block_idx, name));
            Ok((name, rms(source, &tensor, config, &self.device)?))
        };
        let norms = BTreeMap::from([norm(ATTENTION_NORM)?, norm(MLP_NORM)?]);
        Ok(Box::new(LlamaBlock {
            params: BlockParams { linears, norms, arithmetic: Arithmetic::F32 },
            layout: self.layout(),
            shape: AttentionShape { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, head_dim: config.head_dim },
            rotary: self.rotary.clone(),
        }))
    }

    fn final_norm(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.final_norm.forward(hidden)
    }

    fn head(&self, rows: Tensor<B, 2>, arithmetic: Arithmetic) -> Tensor<B, 2> {
        product(rows, self.head.as_ref().unwrap_or(&self.embedding).clone(), arithmetic)
    }
}

struct LlamaBlock<B: QuantBackend> {
    params: BlockParams<B>,
    layout: &'static BlockLayout,
    shape: AttentionShape,
    rotary: RotaryTable<B>,
}

impl<B: QuantBackend> Block<B> for LlamaBlock<B> {
    fn layout(&self) -> &'static BlockLayout {
        self.layout
    }

    fn params(&self) -> &BlockParams<B> {
        &self.params
    }

    fn with_params(&self, params: BlockParams<B>) -> Box<dyn Block<B>> {
        Box::new(Self { params, layout: self.layout, shape: self.shape.clone(), rotary: self.rotary.clone() })
    }

    fn forward(&self, hidden: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        let normed = self.params.norm(ATTENTION_NORM).forward(hidden.clone());
        let hidden = hidden + self.attention(normed, tap);
        let normed = self.params.norm(MLP_NORM).forward(hidden.clone());
        hidden + self.mlp(normed, tap)
    }

    fn attention(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        tap.see(Q, &input);
        let project = |name| self.params.forward(name, input.clone());
        let (q, k, v) = (project(Q), project(K), project(V));
        let mixed = B::causal_attention(q, k, v, Some(&self.rotary), &self.shape);
        tap.see(O, &mixed);
        self.params.forward(O, mixed)
    }

    fn mlp(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        tap.see(GATE, &input);
        let gate = self.params.forward(GATE, input.clone());
        let up = self.params.forward(UP, input);
        let inner = B::swiglu(gate, up);
        tap.see(DOWN, &inner);
        self.params.forward(DOWN, inner)
    }
}
