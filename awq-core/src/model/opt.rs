//! OPT (Zhang et al. 2022): learned positions, LayerNorm before each module, ReLU, a bias on every linear, a tied head.
//!
//! The sizes that normalize after each module or project their embeddings (OPT-350m) are refused: there a norm's output
//! also goes past the linears, so that no scale can be folded into it.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use serde_json::json;

use super::layers::{Linear, Norm, NormKind, matrix, product, vector};
use super::wiring::{AttentionWiring, InnerWiring, MlpWiring, Positions, Wiring};
use super::{
    Block, BlockLayout, BlockParams, Decoder, Inspect, LinearFacts, LinearName, NormName, PrevOp, ScaleGroup, Tap,
    bad_key, check_fixed, ids_tensor,
};
use crate::arithmetic::Arithmetic;
use crate::backend::{AttentionShape, QuantBackend};
use crate::load::{Checkpoint, LoadError, ModelConfig};

const Q: LinearName = LinearName("self_attn.q_proj");
const K: LinearName = LinearName("self_attn.k_proj");
const V: LinearName = LinearName("self_attn.v_proj");
const O: LinearName = LinearName("self_attn.out_proj");
const FC1: LinearName = LinearName("fc1");
const FC2: LinearName = LinearName("fc2");
const ATTENTION_NORM: NormName = NormName("self_attn_layer_norm");
const MLP_NORM: NormName = NormName("final_layer_norm");

const fn reads(name: LinearName, input: LinearName, clips: bool) -> LinearFacts {
    LinearFacts { name, input, clips }
}

/// Groups as in the official AWQ code, where all but q, k and v are judged by their own output. `fc1` takes the inverse
/// scale of `fc2` although a ReLU lies between them: `relu(x / s) = relu(x) / s` for a positive `s`.
static LAYOUT: BlockLayout = BlockLayout {
    linears: &[
        reads(Q, Q, false),
        reads(K, Q, false),
        reads(V, Q, true),
        reads(O, O, true),
        reads(FC1, FC1, true),
        reads(FC2, FC2, true),
    ],
    stages: &[&[K, V, Q], &[O], &[FC1], &[FC2]],
    scale_groups: &[
        ScaleGroup { prev_op: PrevOp::Norm(ATTENTION_NORM), linears: &[Q, K, V], inspect: Inspect::Attention },
        ScaleGroup { prev_op: PrevOp::Linear(V), linears: &[O], inspect: Inspect::Linear },
        ScaleGroup { prev_op: PrevOp::Norm(MLP_NORM), linears: &[FC1], inspect: Inspect::Linear },
        ScaleGroup { prev_op: PrevOp::Linear(FC1), linears: &[FC2], inspect: Inspect::Linear },
    ],
};

/// The position table begins with this many rows that no position uses: position `p` has row `p + 2`.
const POSITION_OFFSET: usize = 2;

/// An OPT decoder over a checkpoint.
struct Opt<B: QuantBackend> {
    config: ModelConfig,
    checkpoint: Arc<dyn Checkpoint>,
    wiring: Wiring,
    embedding: Tensor<B, 2>,
    /// `[max_positions, hidden]`, in the order of positions.
    positions: Tensor<B, 2>,
    final_norm: Norm<B>,
    /// `None` for a tied head: the embedding is used.
    head: Option<Tensor<B, 2>>,
    device: B::Device,
}

/// Wires an OPT model.
pub(super) fn wiring(config: &ModelConfig, checkpoint: &dyn Checkpoint) -> Result<Wiring, LoadError> {
    let (hidden, n_heads) = (config.hidden_size, config.n_heads);
    if n_heads * config.head_dim != hidden {
        let problem = format!("{n_heads}, expected a divisor of hidden_size, {hidden}");
        return Err(bad_key(checkpoint, "num_attention_heads", problem));
    }
    let fixed = [
        ("do_layer_norm_before", json!(true)),
        ("word_embed_proj_dim", json!(hidden)),
        ("activation_function", json!("relu")),
        ("layer_norm_elementwise_affine", json!(true)),
        ("_remove_final_layer_norm", json!(false)),
    ];
    check_fixed(config, checkpoint, &fixed)?;
    let prefix = prefix(checkpoint);
    Ok(Wiring {
        embedding: format!("{prefix}.embed_tokens.weight"),
        positions: Positions::Learned {
            tensor: format!("{prefix}.embed_positions.weight"),
            first_row: POSITION_OFFSET,
        },
        blocks: format!("{prefix}.layers"),
        norm: NormKind::Layer,
        attention: AttentionWiring { norm: ATTENTION_NORM, q: Q, k: K, v: V, o: O },
        mlp: MlpWiring { norm: MLP_NORM, inner: InnerWiring::Relu { up: FC1 }, down: FC2 },
        biased: if config.attention_bias { vec![Q, K, V, O, FC1, FC2] } else { Vec::new() },
        final_norm: format!("{prefix}.final_layer_norm"),
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
    let (source, hidden) = (checkpoint.as_ref(), config.hidden_size);
    let vocab_by_hidden = [config.vocab_size, hidden];
    let embedding = matrix(source, &wiring.embedding, vocab_by_hidden, device)?;
    let positions = format!("{}.embed_positions.weight", prefix(source));
    let positions = matrix(source, &positions, [config.max_positions + POSITION_OFFSET, hidden], device)?;
    let positions = positions.narrow(0, POSITION_OFFSET, config.max_positions);
    let final_norm = layer_norm(source, &wiring.final_norm, &config, device)?;
    let head = wiring.head.as_ref().map(|name| matrix(source, name, vocab_by_hidden, device)).transpose()?;
    Ok(Box::new(Opt { config, wiring, checkpoint, embedding, positions, final_norm, head, device: device.clone() }))
}

/// Checkpoints saved without a head lack the leading `model.`.
fn prefix(source: &dyn Checkpoint) -> &'static str {
    const WITHOUT_HEAD: &str = "decoder";
    let is_bare = source.shape(&format!("{WITHOUT_HEAD}.embed_tokens.weight")).is_some();
    if is_bare { WITHOUT_HEAD } else { "model.decoder" }
}

fn layer_norm<B: QuantBackend>(
    source: &dyn Checkpoint,
    prefix: &str,
    config: &ModelConfig,
    device: &B::Device,
) -> Result<Norm<B>, LoadError> {
    let weight = vector(source, &format!("{prefix}.weight"), config.hidden_size, device)?;
    let bias = vector(source, &format!("{prefix}.bias"), config.hidden_size, device)?;
    Ok(Norm { weight, bias: Some(bias), kind: NormKind::Layer, eps: config.norm_eps })
}

impl<B: QuantBackend> Decoder<B> for Opt<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &'static BlockLayout {
        &LAYOUT
    }

    fn embed(&self, ids: &[Vec<u32>]) -> Tensor<B, 3> {
        let ids = ids_tensor::<B>(ids, &self.device);
        let [batch, seq] = ids.dims();
        let rows = self.embedding.clone().select(0, ids.reshape([batch * seq]));
        let positions = self.positions.clone().narrow(0, 0, seq);
        rows.reshape([batch, seq, self.config.hidden_size]) + positions.unsqueeze::<3>()
    }

    fn block(&self, block_idx: usize) -> Result<Box<dyn Block<B>>, LoadError> {
        let config = &self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let source = self.checkpoint.as_ref();
        let linear = |name: LinearName, shape| -> Result<_, LoadError> {
            let has_bias = self.wiring.biased.contains(&name);
            Ok((name, Linear::load(source, &self.wiring.linear(block_idx, name), shape, has_bias, &self.device)?))
        };
        let linears = BTreeMap::from([
            linear(Q, [hidden, hidden])?,
            linear(K, [hidden, hidden])?,
            linear(V, [hidden, hidden])?,
            linear(O, [hidden, hidden])?,
            linear(FC1, [inner, hidden])?,
            linear(FC2, [hidden, inner])?,
        ]);
        let norm = |name: NormName| -> Result<_, LoadError> {
            Ok((name, layer_norm(source, &self.wiring.block_norm(block_idx, name), config, &self.device)?))
        };
        let norms = BTreeMap::from([norm(ATTENTION_NORM)?, norm(MLP_NORM)?]);
        Ok(Box::new(OptBlock {
            params: BlockParams { linears, norms, arithmetic: Arithmetic::F32 },
            shape: AttentionShape { n_heads: config.n_heads, n_kv_heads: config.n_heads, head_dim: config.head_dim },
        }))
    }

    fn final_norm(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.final_norm.forward(hidden)
    }

    fn head(&self, rows: Tensor<B, 2>, arithmetic: Arithmetic) -> Tensor<B, 2> {
        product(rows, self.head.as_ref().unwrap_or(&self.embedding).clone(), arithmetic)
    }
}

struct OptBlock<B: QuantBackend> {
    params: BlockParams<B>,
    shape: AttentionShape,
}

impl<B: QuantBackend> Block<B> for OptBlock<B> {
    fn layout(&self) -> &'static BlockLayout {
        &LAYOUT
    }

    fn params(&self) -> &BlockParams<B> {
        &self.params
    }

    fn with_params(&self, params: BlockParams<B>) -> Box<dyn Block<B>> {
        Box::new(Self { params, shape: self.shape.clone() })
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
        let mixed = B::causal_attention(q, k, v, None, &self.shape);
        tap.see(O, &mixed);
        self.params.forward(O, mixed)
    }

    fn mlp(&self, input: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        tap.see(FC1, &input);
        let inner = relu(self.params.forward(FC1, input));
        tap.see(FC2, &inner);
        self.params.forward(FC2, inner)
    }
}
