//! [`Wiring`]: how the tensors of a checkpoint make up a decoder, by name. `decoder.rs` runs it in tensors, the engine of
//! [`crate::decode`] on plain slices.

use std::collections::BTreeSet;
use std::sync::Arc;

pub use super::alibi::Alibi;
use super::layers::NormKind;
use super::tensors::HEAD;
use super::{BlockLayout, LinearName, NormName};
use crate::activation::Activation;
use crate::host::routing::Weighting;
use crate::load::{ModelConfig, Rope};

/// A decoder as data.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// Tensor of the token embedding, `[vocab, hidden]`; see [`Self::projections`].
    pub embedding: String,
    /// What rows of the embedding are multiplied by where they enter the first block; the head is not.
    pub embedding_scale: Option<f32>,
    /// Name of a norm of embeddings, without `.weight`.
    pub embedding_norm: Option<String>,
    /// Between embeddings of another width and the residual stream.
    pub projections: Option<Projections>,
    /// How positions enter.
    pub positions: Positions,
    /// How queries and keys may be rotated; a block names the one that it uses.
    pub ropes: Vec<Rope>,
    /// What the names of the tensors of all blocks begin with: `{block_prefix}.{block_idx}.{linear}.weight`.
    pub block_prefix: String,
    /// One for each block; blocks that are alike share it.
    pub blocks: Vec<Arc<BlockWiring>>,
    /// The kind of every norm, but for the scales behind activations.
    pub norm: NormKind,
    /// Whether the checkpoint has scales behind activations; the tensors decide.
    pub scaled_activations: bool,
    /// The linears that have a bias, in every block that has the linear. A family names those that may have one; the
    /// tensors decide.
    pub biased: Vec<LinearName>,
    /// Name of the last norm, without `.weight`; `None` where the last block has normalized.
    pub final_norm: Option<String>,
    /// Tensor of the head, `[vocab, hidden]`; `None` where it is the embedding. Where embeddings have another width, it has theirs.
    pub head: Option<String>,
    /// Tensor of a bias of the head, `[vocab]`.
    pub head_bias: Option<String>,
    /// What becomes of the head's products.
    pub logits: LogitsWiring,
    /// What a user should know of the checkpoint, a sentence each: tensors that are not read, a head that is not tied.
    pub notes: Vec<String>,
}

/// Linears between embeddings and a residual stream of another width, without biases. They stay in full precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projections {
    /// Channels of the embedding and of the head.
    pub width: usize,
    /// Tensor that rows of the embedding are multiplied by, `[hidden, width]`; positions are added behind it.
    pub to_stream: String,
    /// Tensor that the output of the last block is multiplied by, `[width, hidden]`.
    pub from_stream: String,
}

/// `cap * tanh(y / cap)` with `y = x / divisor`, of the head's products `x`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogitsWiring {
    /// What they are divided by, if by anything.
    pub divisor: Option<f64>,
    /// No logit is larger.
    pub cap: Option<f64>,
}

/// A block as data.
#[derive(Clone, Debug)]
pub struct BlockWiring {
    /// What methods must know of it.
    pub layout: BlockLayout,
    /// The attention module.
    pub attention: AttentionWiring,
    /// The feed-forward module.
    pub mlp: MlpWiring,
    /// How the outputs of both are added to the residual stream.
    pub residual: Residual,
}

/// How the outputs of modules are added to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// Which module sees what the other has added.
    pub order: Order,
    /// What outputs are multiplied by before they are added, if by anything.
    pub scale: Option<f64>,
}

/// Which module sees what the other has added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The feed-forward module sees what attention has added.
    AttentionFirst,
    /// Both see what the block was given.
    SideBySide,
    /// The feed-forward module sees what attention has added, and the stream itself is normalized behind each of both (OPT-350m).
    Normalized {
        /// What the stream goes through when attention's output was added.
        after_attention: NormName,
        /// What it goes through when the feed-forward module's was.
        after_mlp: NormName,
    },
}

impl Residual {
    /// One after the other, as they are.
    pub const PLAIN: Self = Self { order: Order::AttentionFirst, scale: None };
}

/// How positions enter a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// In attention: queries and keys of blocks that name a rope are rotated, half-split pairing; scores of blocks with ALiBi
    /// depend on distances.
    Rotary,
    /// A row of a table is added to the embedding.
    Learned {
        /// The table, `[first_row + max_positions, hidden]`.
        tensor: String,
        /// Row of position 0.
        first_row: usize,
    },
}

/// `hidden + o(attention(q(x), k(x), v(x)))` with `x = norm(hidden)`, where there is a norm; queries and keys may be normalized
/// before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionWiring {
    /// What normalizes the residual stream first.
    pub norm: Option<NormName>,
    /// Queries.
    pub q: LinearName,
    /// Keys.
    pub k: LinearName,
    /// Values.
    pub v: LinearName,
    /// Output projection.
    pub o: LinearName,
    /// Norms of queries and keys.
    pub qk_norms: Option<QkNorms>,
    /// Which of the decoder's ropes turns queries and keys; `None` where they are not rotated.
    pub rope: Option<usize>,
    /// What the products of queries and keys are multiplied by; `None` for `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
    /// Scores `x` become `cap * tanh(x / cap)`.
    pub cap: Option<f64>,
    /// What is added to scores by the distance between query and key.
    pub alibi: Option<Alibi>,
    /// What the output goes through before it is added.
    pub norm_after: Option<NormName>,
}

impl AttentionWiring {
    /// Rotated by the first rope, and nothing else.
    pub(super) const fn rotated(norm: NormName, [q, k, v, o]: [LinearName; 4]) -> Self {
        Self {
            norm: Some(norm),
            q,
            k,
            v,
            o,
            qk_norms: None,
            rope: Some(0),
            scale: None,
            cap: None,
            alibi: None,
            norm_after: None,
        }
    }
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorms {
    /// Of queries.
    pub q: NormName,
    /// Of keys.
    pub k: NormName,
    /// What is normalized at once.
    pub span: NormSpan,
}

/// What a norm of queries or keys normalizes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormSpan {
    /// Each head; all share the weight, of `head_dim` channels.
    Head,
    /// Each head by a LayerNorm of its own, without a bias; `{}` in the names is the number of a head.
    OwnHead {
        /// Heads of queries.
        n_q: usize,
        /// Heads of keys.
        n_kv: usize,
    },
    /// All heads together.
    AllHeads,
}

impl QkNorms {
    /// The norms of queries: one, or one a head.
    pub(crate) fn of_queries(self) -> Vec<NormName> {
        match self.span {
            NormSpan::OwnHead { n_q, .. } => (0..n_q).map(|head| self.q.numbered(head)).collect(),
            NormSpan::Head | NormSpan::AllHeads => vec![self.q],
        }
    }

    /// The norms of keys: one, or one a head.
    pub(crate) fn of_keys(self) -> Vec<NormName> {
        match self.span {
            NormSpan::OwnHead { n_kv, .. } => (0..n_kv).map(|head| self.k.numbered(head)).collect(),
            NormSpan::Head | NormSpan::AllHeads => vec![self.k],
        }
    }

    fn all(self) -> impl Iterator<Item = NormName> {
        self.of_queries().into_iter().chain(self.of_keys())
    }
}

/// `hidden + module(x)` with `x = norm(hidden)`, where there is a norm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlpWiring {
    /// What normalizes the residual stream first; side by side it may be attention's.
    pub norm: Option<NormName>,
    /// What is added to the residual stream.
    pub module: FeedForward,
    /// What the output goes through before it is added.
    pub norm_after: Option<NormName>,
}

/// A feed-forward module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// One for all tokens.
    Dense(DenseWiring),
    /// Several, of which each token goes through some.
    Experts(ExpertsWiring),
}

/// `down(inner(x))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseWiring {
    /// What lies between.
    pub inner: InnerWiring,
    /// Back to the residual stream.
    pub down: LinearName,
    /// Channels that lie between; `None` for the configuration's.
    pub width: Option<usize>,
}

/// The sum of `weight_e * expert_e(x)` over the `n_active` experts whose entries in `router(x)` are largest, and of what an
/// expert for all tokens adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertsWiring {
    /// `[n_experts, hidden]`. It stays in full precision.
    pub router: LinearName,
    /// Experts that a token goes through.
    pub n_active: usize,
    /// What the weights of these are.
    pub weighting: Weighting,
    /// The experts, in the order of the router's outputs.
    pub experts: Vec<DenseWiring>,
    /// One that every token goes through.
    pub shared: Option<SharedExpert>,
}

/// `sigmoid(gate(x)) * module(x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    /// What every token goes through.
    pub module: DenseWiring,
    /// `[1, hidden]`. It stays in full precision.
    pub gate: LinearName,
}

impl FeedForward {
    /// The share of the tokens that an expert sees, were they sent out evenly; 1 without experts.
    pub fn share_of_expert(&self) -> f64 {
        match self {
            Self::Experts(experts) => experts.n_active as f64 / experts.experts.len().max(1) as f64,
            _ => 1.0,
        }
    }

    /// The module, or each of the experts.
    fn parts(&self) -> impl Iterator<Item = &DenseWiring> {
        let (parts, shared) = match self {
            Self::Dense(module) => (std::slice::from_ref(module), None),
            Self::Experts(experts) => (experts.experts.as_slice(), experts.shared.as_ref()),
        };
        parts.iter().chain(shared.map(|shared| &shared.module))
    }
}

impl DenseWiring {
    /// The linears that read its input.
    pub(crate) fn ups(&self) -> Vec<LinearName> {
        match self.inner {
            InnerWiring::Gated { gate, up, .. } => vec![gate, up],
            InnerWiring::Plain { up, .. } => vec![up],
        }
    }
}

/// The inside of a feed-forward module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InnerWiring {
    /// `activation(gate(x)) * up(x)`.
    Gated {
        /// The gate.
        gate: LinearName,
        /// What is gated.
        up: LinearName,
        /// What is done to the gate.
        activation: Activation,
    },
    /// `activation(up(x))`.
    Plain {
        /// The first linear.
        up: LinearName,
        /// What is done to its output.
        activation: Activation,
        /// What the result is multiplied by, [`NormKind::Scale`]: it takes the inverse of `down`'s scale.
        scale: Option<NormName>,
    },
}

impl BlockWiring {
    /// The linears that methods quantize and their shapes, `[out, in]`.
    pub fn linear_shapes(&self, config: &ModelConfig) -> Vec<(LinearName, [usize; 2])> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let AttentionWiring { q, k, v, o, .. } = self.attention;
        let attention =
            [(q, [q_width, hidden]), (k, [kv_width, hidden]), (v, [kv_width, hidden]), (o, [hidden, q_width])];
        let mlp = self.mlp.module.parts().flat_map(|part| {
            let inner = part.width.unwrap_or(inner);
            let ups = part.ups().into_iter().map(move |up| (up, [inner, hidden]));
            ups.chain([(part.down, [hidden, inner])])
        });
        attention.into_iter().chain(mlp).collect()
    }

    /// The linears that stay in full precision and their shapes, `[out, in]`.
    pub fn kept_shapes(&self, config: &ModelConfig) -> Vec<(LinearName, [usize; 2])> {
        let FeedForward::Experts(experts) = &self.mlp.module else { return Vec::new() };
        let router = (experts.router, [experts.experts.len(), config.hidden_size]);
        let gate = experts.shared.map(|shared| (shared.gate, [1, config.hidden_size]));
        std::iter::once(router).chain(gate).collect()
    }

    /// The norms.
    pub fn norms(&self) -> Vec<NormName> {
        let Self { attention, mlp, residual, .. } = self;
        // Both modules may read the output of one.
        let of_mlp = mlp.norm.filter(|norm| attention.norm != Some(*norm));
        let of_qk = attention.qk_norms.into_iter().flat_map(QkNorms::all);
        let of_stream = match residual.order {
            Order::Normalized { after_attention, after_mlp } => vec![after_attention, after_mlp],
            Order::AttentionFirst | Order::SideBySide => Vec::new(),
        };
        let after = attention.norm_after.into_iter().chain(mlp.norm_after).chain(of_stream);
        attention.norm.into_iter().chain(of_mlp).chain(of_qk).chain(after).chain(self.activation_scales()).collect()
    }

    /// The scales behind activations.
    fn activation_scales(&self) -> impl Iterator<Item = NormName> {
        self.mlp.module.parts().filter_map(|part| match part.inner {
            InnerWiring::Plain { scale, .. } => scale,
            InnerWiring::Gated { .. } => None,
        })
    }

    /// Kind of a norm, in a decoder whose norms are of `kind`.
    pub fn norm_kind(&self, norm: NormName, kind: NormKind) -> NormKind {
        let of_own_heads = self.attention.qk_norms.filter(|norms| matches!(norms.span, NormSpan::OwnHead { .. }));
        if self.activation_scales().any(|scale| scale == norm) {
            NormKind::Scale
        } else if of_own_heads.is_some_and(|norms| norms.all().any(|of_head| of_head == norm)) {
            NormKind::LayerNoBias
        } else {
            kind
        }
    }

    /// Channels of a norm.
    pub fn n_channels(&self, norm: NormName, config: &ModelConfig) -> usize {
        match self.attention.qk_norms {
            Some(QkNorms { q, k, span: NormSpan::Head }) if norm == q || norm == k => config.head_dim,
            Some(norms @ QkNorms { span: NormSpan::OwnHead { .. }, .. }) if norms.all().any(|own| own == norm) => {
                config.head_dim
            }
            Some(QkNorms { q, .. }) if norm == q => config.n_heads * config.head_dim,
            Some(QkNorms { k, .. }) if norm == k => config.n_kv_heads * config.head_dim,
            _ if self.activation_scales().any(|scale| scale == norm) => config.intermediate_size,
            _ => config.hidden_size,
        }
    }
}

impl Wiring {
    /// Channels of the embedding and of the head.
    pub fn embedding_width(&self, config: &ModelConfig) -> usize {
        self.projections.as_ref().map_or(config.hidden_size, |projections| projections.width)
    }

    /// Name of a linear of a block, without `.weight`.
    pub fn linear(&self, block_idx: usize, linear: LinearName) -> String {
        format!("{}.{block_idx}.{linear}", self.block_prefix)
    }

    /// Tensor of the head; the name that it would have where it is the embedding.
    pub fn head_name(&self) -> &str {
        self.head.as_deref().unwrap_or(HEAD)
    }

    /// Name of a norm of a block, without `.weight`.
    pub fn block_norm(&self, block_idx: usize, norm: NormName) -> String {
        format!("{}.{block_idx}.{}", self.block_prefix, norm.0)
    }

    /// Whether the tensor `name` is a weight that methods quantize.
    pub fn quantizes(&self, name: &str) -> bool {
        self.quantizable_linear(name).is_some()
    }

    /// The linear whose weight the tensor `name` is, if methods quantize it.
    pub fn quantizable_linear(&self, name: &str) -> Option<LinearName> {
        let (block_idx, linear) = self.in_block(name)?;
        let (block, linear) = (self.blocks.get(block_idx)?, linear.strip_suffix(".weight")?);
        block.layout.linears.iter().map(|facts| facts.name).find(|name| name.0 == linear)
    }

    /// The block that the tensor `name` belongs to, and its name there.
    pub(super) fn in_block<'a>(&self, name: &'a str) -> Option<(usize, &'a str)> {
        let (block_idx, rest) = name.strip_prefix(self.block_prefix.as_str())?.strip_prefix('.')?.split_once('.')?;
        Some((block_idx.parse().ok()?, rest))
    }

    /// Every quantizable linear of every block, each name once, in the order of blocks.
    pub(super) fn quantizable(&self) -> Vec<LinearName> {
        let mut seen = BTreeSet::new();
        let names = self.blocks.iter().flat_map(|block| block.layout.linears.iter().map(|facts| facts.name));
        names.filter(|name| seen.insert(*name)).collect()
    }
}
