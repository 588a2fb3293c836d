//! [`DecodeModel`]: a whole decoder in host memory, its linears as decode steps multiply with them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cache::KvCache;
use super::linear::{Linear, Part};
use super::mlp::{Dense, Experts, Inner, Mlp};
use super::{Heads, Scoring};
use crate::grid::Grid;
use crate::host::attention::score_scale;
use crate::host::elementwise;
use crate::host::matrix::HostMatrix;
use crate::kernel::Activations;
use crate::load::{Checkpoint, LoadError, ModelConfig, Rope, read_exact_shape};
use crate::model::layers::NormKind;
use crate::model::rows::{TokenRows, position_rows};
use crate::model::wiring::{
    DenseWiring, ExpertsWiring, FeedForward, InnerWiring, LogitsWiring, Order, Positions, Projections, QkNorms,
    Residual, SharedExpert, Wiring,
};
use crate::model::wiring_of;
use crate::model::{LinearName, NormName};

/// What is chosen when a model is loaded for decoding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeOptions {
    /// What packed linears do to their inputs.
    pub activations: Activations,
    /// Whose codes are multiplied with.
    pub codes: CodesOf,
    /// Grid to which the head is rounded, to the nearest code; `None` keeps it as it is. Methods leave the head alone, and in
    /// a small model it is a fifth of the weights or more.
    pub head: Option<Grid>,
}

/// Whose codes kernels multiply with. Other weights are held as floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodesOf {
    /// Those that this program has quantized.
    Ours,
    /// Also those of other tools: [`Checkpoint::read_codes`]. Their products are not rounded to 16 bits, as scoring has them.
    All,
}

impl DecodeOptions {
    /// The weights are those that are scored.
    pub const EXACT: Self = Self { activations: Activations::F32, codes: CodesOf::Ours, head: None };
}

/// How the weights that a decode step reads are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the linears and of the head; of experts, those that one token goes through.
    pub step_bytes: usize,
    /// Linears of blocks that are packed; those that read one input count as one where they lie on one grid.
    pub n_packed: usize,
    /// Those that are quantized and held as floats, because no kernel takes their codes.
    pub n_dequantized: usize,
    /// All linears of blocks, counted so.
    pub n_linears: usize,
    /// Bits of the weights of blocks that are held as floats, the most of one; `None` where none is.
    pub float_bits: Option<u8>,
}

/// A decoder in host memory.
pub struct DecodeModel {
    pub(super) config: ModelConfig,
    pub(super) heads: Heads,
    /// `[vocab, width]`.
    pub(super) embedding: Arc<HostMatrix>,
    /// Ids whose row of the embedding is not finite.
    pub(super) unusable_ids: BTreeSet<u32>,
    /// See [`Wiring::embedding_scale`].
    pub(super) embedding_scale: Option<f32>,
    pub(super) embedding_norm: Option<HostNorm>,
    pub(super) projections: Option<HostProjections>,
    /// `[max_positions, hidden]`, where positions are learned.
    pub(super) positions: Option<Vec<f32>>,
    /// See [`Wiring::ropes`].
    pub(super) ropes: Vec<Rope>,
    pub(super) blocks: Vec<DecodeBlock>,
    pub(super) final_norm: Option<HostNorm>,
    pub(super) head: Linear,
    pub(super) logits: LogitsWiring,
}

/// One block.
pub(super) struct DecodeBlock {
    pub(super) residual: Residual,
    pub(super) attention_norm: Option<HostNorm>,
    pub(super) scoring: Scoring,
    /// Which of the ropes turns queries and keys.
    pub(super) rope: Option<usize>,
    /// Queries, keys and values.
    pub(super) qkv: Linear,
    pub(super) qk_norms: Option<HostQkNorms>,
    pub(super) o: Linear,
    pub(super) norm_after_attention: Option<HostNorm>,
    pub(super) mlp_norm: Option<HostNorm>,
    pub(super) mlp: Mlp,
    pub(super) norm_after_mlp: Option<HostNorm>,
    /// Of the residual stream behind each module, see [`Order::Normalized`].
    pub(super) stream_norms: Option<[HostNorm; 2]>,
}

impl DecodeBlock {
    /// See [`Mlp::linears`].
    fn linears(&self) -> Vec<(&Linear, f64)> {
        let mut linears = vec![(&self.qkv, 1.0), (&self.o, 1.0)];
        linears.extend(self.mlp.linears());
        linears
    }
}

/// See [`Wiring::projections`].
pub(super) struct HostProjections {
    pub(super) to_stream: Linear,
    pub(super) from_stream: Linear,
}

/// Norms of queries and keys.
pub(super) struct HostQkNorms {
    /// One for all heads of queries, or one for each.
    q: Vec<HostNorm>,
    k: Vec<HostNorm>,
}

impl HostQkNorms {
    /// Normalizes the queries and the keys of one token.
    pub(super) fn apply(&self, queries: &mut [f32], keys: &mut [f32]) {
        for (norms, row) in [(&self.q, queries), (&self.k, keys)] {
            let width = row.len() / norms.len();
            norms.iter().zip(row.chunks_exact_mut(width)).for_each(|(norm, heads)| norm.apply(heads));
        }
    }
}

/// A norm on rows, `[n, n_channels]`.
pub(super) struct HostNorm {
    kind: NormKind,
    /// What multiplies.
    weight: Vec<f32>,
    /// Zeros for an RMS norm.
    bias: Vec<f32>,
    eps: f32,
}

impl HostNorm {
    pub(super) fn apply(&self, rows: &mut [f32]) {
        match self.kind {
            NormKind::Rms | NormKind::RmsPlusOne => elementwise::rms_norm(rows, &self.weight, self.eps),
            NormKind::Layer | NormKind::LayerNoBias => {
                elementwise::layer_norm(rows, &self.weight, &self.bias, self.eps);
            }
            NormKind::Scale => rows.chunks_exact_mut(self.weight.len()).for_each(|row| {
                row.iter_mut().zip(&self.weight).for_each(|(value, scale)| *value *= scale);
            }),
        }
    }
}

impl DecodeModel {
    /// Reads a whole model. Linears that the checkpoint has quantized stay packed.
    ///
    /// # Errors
    /// An architecture without a [`Wiring`], or a tensor that is missing, misshapen or not finite.
    pub fn load(config: ModelConfig, checkpoint: &dyn Checkpoint, options: &DecodeOptions) -> Result<Self, LoadError> {
        let wiring = wiring_of(&config, checkpoint)?;
        let (hidden, width) = (config.hidden_size, wiring.embedding_width(&config));
        let rows = TokenRows::read(checkpoint, &wiring, &config)?;
        let positions = match &wiring.positions {
            Positions::Rotary => None,
            Positions::Learned { tensor, first_row } => Some(position_rows(checkpoint, tensor, *first_row, &config)?),
        };
        let reader = Reader { config: &config, wiring: &wiring, checkpoint, options };
        let blocks: Result<_, LoadError> = (0..config.n_blocks).map(|block_idx| reader.block(block_idx)).collect();
        let read_norm = |name: &String| reader.norm(name, wiring.norm, hidden);
        let final_norm = wiring.final_norm.as_ref().map(read_norm).transpose()?;
        let projections = wiring.projections.as_ref().map(|projections| reader.projections(projections)).transpose()?;
        let embedding_norm = wiring.embedding_norm.as_ref();
        let embedding_norm = embedding_norm.map(read_norm).transpose()?;
        let read_bias = |name: &String| read_exact_shape(checkpoint, name, &[config.vocab_size]);
        let head_bias = wiring.head_bias.as_ref().map(read_bias).transpose()?;
        let head = match (&wiring.head, &options.head) {
            (None, None) => None,
            (None, Some(grid)) => Some(Linear::rounded(&rows.values, head_bias.clone(), width, grid, options)),
            (Some(name), None) => {
                let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
                let part = Part { name, n_out: config.vocab_size, has_bias: head_bias.is_some() };
                Some(Linear::load(checkpoint, &[part], width, options)?)
            }
            (Some(name), Some(grid)) => {
                let weight = read_exact_shape(checkpoint, name, &[config.vocab_size, width])?;
                Some(Linear::rounded(&weight, head_bias.clone(), width, grid, options))
            }
        };
        let (embedding, unusable_ids) = (Arc::new(HostMatrix::new(rows.values, width)), rows.unusable_ids);
        let head = head.unwrap_or_else(|| Linear::dense(embedding.clone(), head_bias));
        let heads = reader.heads();
        let Wiring { embedding_scale, ropes, logits, .. } = wiring;
        Ok(Self {
            config,
            heads,
            embedding,
            unusable_ids,
            embedding_scale,
            embedding_norm,
            projections,
            positions,
            ropes,
            blocks: blocks?,
            final_norm,
            head,
            logits,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of the keys and values of a text of `n_tokens`.
    pub fn cache_bytes(&self, n_tokens: usize) -> usize {
        self.config.n_blocks * KvCache::bytes_of(self.heads, n_tokens)
    }

    /// What a decode step reads.
    pub fn footprint(&self) -> Footprint {
        let linears: Vec<(&Linear, f64)> = self.blocks.iter().flat_map(DecodeBlock::linears).collect();
        let step_bytes: f64 = linears.iter().map(|(linear, share)| linear.bytes() as f64 * share).sum();
        let parts = || linears.iter().flat_map(|(linear, _)| linear.parts());
        Footprint {
            step_bytes: step_bytes as usize + self.head.bytes(),
            n_packed: parts().filter(|linear| linear.is_packed()).count(),
            n_dequantized: parts().filter(|linear| linear.is_dequantized()).count(),
            n_linears: parts().count(),
            float_bits: parts().filter_map(Linear::float_bits).max(),
        }
    }
}

/// Reads the parts of one model.
struct Reader<'a> {
    config: &'a ModelConfig,
    wiring: &'a Wiring,
    checkpoint: &'a dyn Checkpoint,
    options: &'a DecodeOptions,
}

impl Reader<'_> {
    fn heads(&self) -> Heads {
        Heads { n_q: self.config.n_heads, n_kv: self.config.n_kv_heads, dim: self.config.head_dim }
    }

    fn block(&self, block_idx: usize) -> Result<DecodeBlock, LoadError> {
        let wiring = &self.wiring.blocks[block_idx];
        let (attention, mlp) = (wiring.attention, &wiring.mlp);
        let shapes: BTreeMap<LinearName, [usize; 2]> =
            wiring.linear_shapes(self.config).into_iter().chain(wiring.kept_shapes(self.config)).collect();
        // Linears that read one input are stacked, and multiplied together.
        let linear = |names: &[LinearName]| {
            let parts: Vec<Part> = names.iter().map(|&name| self.part(block_idx, name, shapes[&name][0])).collect();
            Linear::load(self.checkpoint, &parts, shapes[&names[0]][1], self.options)
        };
        let norm = |name: NormName| {
            let kind = wiring.norm_kind(name, self.wiring.norm);
            self.norm(&self.wiring.block_norm(block_idx, name), kind, wiring.n_channels(name, self.config))
        };
        let dense = |module: &DenseWiring| -> Result<Dense, LoadError> {
            let inner = match module.inner {
                InnerWiring::Gated { activation, .. } => Inner::Gated(activation),
                InnerWiring::Plain { activation, .. } => Inner::Plain(activation),
            };
            let scale = match module.inner {
                InnerWiring::Plain { scale, .. } => scale.filter(|_| self.wiring.scaled_activations),
                InnerWiring::Gated { .. } => None,
            };
            let scale = scale.map(norm).transpose()?;
            Ok(Dense { inner, up: linear(&module.ups())?, down: linear(&[module.down])?, scale })
        };
        let norms = |names: Vec<NormName>| names.into_iter().map(norm).collect::<Result<Vec<_>, LoadError>>();
        let qk_norms = |names: QkNorms| -> Result<_, LoadError> {
            Ok(HostQkNorms { q: norms(names.of_queries())?, k: norms(names.of_keys())? })
        };
        let stream_norms = match wiring.residual.order {
            Order::Normalized { after_attention, after_mlp } => Some([norm(after_attention)?, norm(after_mlp)?]),
            Order::AttentionFirst | Order::SideBySide => None,
        };
        Ok(DecodeBlock {
            residual: wiring.residual,
            attention_norm: attention.norm.map(norm).transpose()?,
            scoring: Scoring {
                window: self.config.windows[block_idx],
                scale: score_scale(attention.scale, self.config.head_dim),
                cap: attention.cap.map(|cap| cap as f32),
                slopes: attention.alibi.map(|alibi| alibi.biases(self.config.n_heads, self.config.head_dim)),
            },
            rope: attention.rope,
            qkv: linear(&[attention.q, attention.k, attention.v])?,
            qk_norms: attention.qk_norms.map(qk_norms).transpose()?,
            o: linear(&[attention.o])?,
            norm_after_attention: attention.norm_after.map(norm).transpose()?,
            mlp_norm: mlp.norm.map(norm).transpose()?,
            mlp: match &mlp.module {
                FeedForward::Dense(module) => Mlp::Dense(dense(module)?),
                FeedForward::Experts(ExpertsWiring { router, n_active, weighting, experts, shared }) => {
                    let of_shared = |shared: &SharedExpert| -> Result<_, LoadError> {
                        Ok((dense(&shared.module)?, linear(&[shared.gate])?))
                    };
                    Mlp::Experts(Box::new(Experts {
                        router: linear(&[*router])?,
                        n_active: *n_active,
                        weighting: *weighting,
                        experts: experts.iter().map(dense).collect::<Result<_, _>>()?,
                        shared: shared.as_ref().map(of_shared).transpose()?,
                    }))
                }
            },
            norm_after_mlp: mlp.norm_after.map(norm).transpose()?,
            stream_norms,
        })
    }

    fn projections(&self, names: &Projections) -> Result<HostProjections, LoadError> {
        let (width, hidden) = (names.width, self.config.hidden_size);
        let read = |name: &str, n_out: usize, n_in: usize| -> Result<Linear, LoadError> {
            let values = read_exact_shape(self.checkpoint, name, &[n_out, n_in])?;
            Ok(Linear::dense(Arc::new(HostMatrix::new(values, n_in)), None))
        };
        Ok(HostProjections {
            to_stream: read(&names.to_stream, hidden, width)?,
            from_stream: read(&names.from_stream, width, hidden)?,
        })
    }

    fn part(&self, block_idx: usize, linear: LinearName, n_out: usize) -> Part {
        Part { name: self.wiring.linear(block_idx, linear), n_out, has_bias: self.wiring.biased.contains(&linear) }
    }

    fn norm(&self, name: &str, kind: NormKind, n_channels: usize) -> Result<HostNorm, LoadError> {
        let read = |what: &str| read_exact_shape(self.checkpoint, &format!("{name}.{what}"), &[n_channels]);
        let bias = if kind.has_bias() { read("bias")? } else { vec![0.0; n_channels] };
        let weight = read("weight")?.into_iter().map(|weight| weight + kind.offset()).collect();
        Ok(HostNorm { kind, weight, bias, eps: self.config.norm_eps as f32 })
    }
}
