//! [`Session`]: one text in the making: its cache, its buffers, and the forward pass of new tokens.

use super::Heads;
use super::attention::attend;
use super::cache::KvCache;
use super::mlp::MlpBuffers;
use super::model::{DecodeBlock, DecodeModel, HostNorm};
use crate::host::attention::rotate_row;
use crate::host::elementwise::soft_cap;
use crate::host::vectorized;
use crate::load::Rope;
use crate::model::wiring::{Order, Residual};

/// Tokens of a prompt that go through the blocks at once: enough to fill the matrix kernels, and buffers stay small.
const PREFILL_TOKENS: usize = 256;

/// Why tokens cannot be fed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A session longer than the model has positions.
    #[error(
        "a context of {asked} tokens is longer than the {longest} positions of the model's configuration; ask for less"
    )]
    TooLong {
        /// Tokens asked for.
        asked: usize,
        /// See [`crate::load::ModelConfig::longest_sequence`].
        longest: usize,
    },
    /// More tokens than the session has room for.
    #[error(
        "{n_tokens} more tokens do not fit: {used} of the session's {capacity} are used; begin anew, or with more room"
    )]
    Full {
        /// Tokens that were to be fed.
        n_tokens: usize,
        /// Tokens in the cache.
        used: usize,
        /// Tokens that fit.
        capacity: usize,
    },
    /// An id that has no row in the embedding.
    #[error("token {id} is outside the model's vocabulary of {vocab}: model and tokenizer do not belong together")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// An id whose row of the embedding is NaN or infinite.
    #[error(
        "token {id} has a row in the embedding that holds NaN or infinity; use a text without it, or another checkpoint"
    )]
    UnusableToken {
        /// The id.
        id: u32,
    },
    /// Nothing to predict from.
    #[error("no tokens to feed; give a text, or a beginning-of-sequence token where the model has one")]
    Empty,
}

/// The tokens fed so far, and room for more.
pub struct Session<'m> {
    model: &'m DecodeModel,
    capacity: usize,
    n_past: usize,
    /// One a block.
    caches: Vec<KvCache>,
    /// One a rope of the model.
    rotaries: Vec<Rotary>,
    buffers: Buffers,
}

/// Cosines and sines of the positions reached so far, `[n, half]`.
struct Rotary {
    /// Channels of a head.
    head_dim: usize,
    /// Half of those that are rotated.
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// What a pass writes, allocated once and grown for prompts.
#[derive(Default)]
struct Buffers {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    delta: Vec<f32>,
    mlp: MlpBuffers,
    of_mlp: Vec<f32>,
    logits: Vec<f32>,
}

impl<'m> Session<'m> {
    /// An empty session with room for `capacity` tokens.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn new(model: &'m DecodeModel, capacity: usize) -> Result<Self, DecodeError> {
        let longest = model.config.longest_sequence();
        if capacity > longest {
            return Err(DecodeError::TooLong { asked: capacity, longest });
        }
        let caches = model.blocks.iter().map(|_| KvCache::new(model.heads, capacity)).collect();
        let rotaries = model.ropes.iter().map(|rope| Rotary::new(rope, model.heads.dim)).collect();
        Ok(Self { model, capacity, n_past: 0, caches, rotaries, buffers: Buffers::default() })
    }

    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        self.n_past
    }

    /// Whether no token was fed yet.
    pub fn is_empty(&self) -> bool {
        self.n_past == 0
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of the cache of keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(KvCache::bytes).sum()
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.n_past = self.n_past.min(n);
    }

    /// Feeds tokens, one or many, and returns the logits of the token that follows them, `[vocab]`.
    ///
    /// # Errors
    /// No token, no room for them, or an id outside the vocabulary; the session is then as it was.
    pub fn feed(&mut self, ids: &[u32]) -> Result<&[f32], DecodeError> {
        self.check(ids)?;
        // Inside the pool, where handing work over costs least.
        rayon::scope(|_| {
            for ids in ids.chunks(PREFILL_TOKENS) {
                self.pass(ids);
            }
            self.logits(1);
        });
        Ok(&self.buffers.logits)
    }

    /// Feeds tokens and returns the logits after each of them, `[ids.len(), vocab]`.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub fn feed_each(&mut self, ids: &[u32]) -> Result<Vec<f32>, DecodeError> {
        self.check(ids)?;
        let mut all = Vec::with_capacity(ids.len() * self.model.config.vocab_size);
        rayon::scope(|_| {
            for ids in ids.chunks(PREFILL_TOKENS) {
                self.pass(ids);
                self.logits(ids.len());
                all.extend_from_slice(&self.buffers.logits);
            }
        });
        Ok(all)
    }

    fn check(&self, ids: &[u32]) -> Result<(), DecodeError> {
        let vocab = self.model.config.vocab_size;
        if ids.is_empty() {
            return Err(DecodeError::Empty);
        }
        if ids.len() > self.capacity - self.n_past {
            return Err(DecodeError::Full { n_tokens: ids.len(), used: self.n_past, capacity: self.capacity });
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(DecodeError::UnknownToken { id, vocab });
        }
        match ids.iter().find(|id| self.model.unusable_ids.contains(id)) {
            Some(&id) => Err(DecodeError::UnusableToken { id }),
            None => Ok(()),
        }
    }

    /// Takes `ids` through all blocks; their hidden states are then in the buffers.
    fn pass(&mut self, ids: &[u32]) {
        let Self { model, n_past, caches, rotaries, buffers, .. } = self;
        buffers.embed(model, ids, *n_past);
        for (rotary, rope) in rotaries.iter_mut().zip(&model.ropes) {
            rotary.reach(rope, *n_past + ids.len());
        }
        for (block, cache) in model.blocks.iter().zip(caches) {
            buffers.norm(block.attention_norm.as_ref());
            block.qkv.product(&buffers.normed, &mut buffers.qkv);
            if block.residual.order == Order::SideBySide {
                // Before attention adds to what it sees.
                buffers.norm(block.mlp_norm.as_ref());
                block.mlp.forward(&buffers.normed, &mut buffers.mlp, &mut buffers.of_mlp);
            }
            buffers.attend(model.heads, block, cache, block.rope.map(|rope| &rotaries[rope]), *n_past);
            block.o.product(&buffers.mixed, &mut buffers.delta);
            add_output(&mut buffers.hidden, &mut buffers.delta, block.norm_after_attention.as_ref(), block.residual);
            if block.residual.order != Order::SideBySide {
                if let Some([after_attention, _]) = &block.stream_norms {
                    after_attention.apply(&mut buffers.hidden);
                }
                buffers.norm(block.mlp_norm.as_ref());
                block.mlp.forward(&buffers.normed, &mut buffers.mlp, &mut buffers.of_mlp);
            }
            add_output(&mut buffers.hidden, &mut buffers.of_mlp, block.norm_after_mlp.as_ref(), block.residual);
            if let Some([_, after_mlp]) = &block.stream_norms {
                after_mlp.apply(&mut buffers.hidden);
            }
        }
        self.n_past += ids.len();
    }

    /// Logits of the last `n` hidden states.
    fn logits(&mut self, n: usize) {
        let Self { model, buffers, .. } = self;
        let first = buffers.hidden.len() - n * model.config.hidden_size;
        buffers.normed.clear();
        buffers.normed.extend_from_slice(&buffers.hidden[first..]);
        if let Some(norm) = &model.final_norm {
            norm.apply(&mut buffers.normed);
        }
        if let Some(projections) = &model.projections {
            projections.from_stream.product(&buffers.normed, &mut buffers.delta);
            std::mem::swap(&mut buffers.normed, &mut buffers.delta);
        }
        model.head.product(&buffers.normed, &mut buffers.logits);
        if let Some(divisor) = model.logits.divisor {
            buffers.logits.iter_mut().for_each(|logit| *logit /= divisor as f32);
        }
        if let Some(cap) = model.logits.cap {
            soft_cap(&mut buffers.logits, cap as f32);
        }
    }
}

impl Buffers {
    fn embed(&mut self, model: &DecodeModel, ids: &[u32], n_past: usize) {
        let hidden = model.config.hidden_size;
        let width = model.projections.as_ref().map_or(hidden, |projections| projections.to_stream.n_in);
        self.hidden.clear();
        for &id in ids {
            self.hidden.extend_from_slice(&model.embedding[id as usize * width..][..width]);
        }
        if let Some(scale) = model.embedding_scale {
            self.hidden.iter_mut().for_each(|value| *value *= scale);
        }
        if let Some(norm) = &model.embedding_norm {
            norm.apply(&mut self.hidden);
        }
        if let Some(projections) = &model.projections {
            projections.to_stream.product(&self.hidden, &mut self.delta);
            std::mem::swap(&mut self.hidden, &mut self.delta);
        }
        if let Some(positions) = &model.positions {
            add(&mut self.hidden, &positions[n_past * hidden..]);
        }
    }

    /// What a module sees of the residual stream.
    fn norm(&mut self, norm: Option<&HostNorm>) {
        self.normed.clone_from(&self.hidden);
        if let Some(norm) = norm {
            norm.apply(&mut self.normed);
        }
    }

    /// Normalizes queries and keys where they have norms, rotates, stores keys and values, and mixes values.
    fn attend(
        &mut self,
        heads: Heads,
        block: &DecodeBlock,
        cache: &mut KvCache,
        rotary: Option<&Rotary>,
        n_past: usize,
    ) {
        let (q_width, kv_width) = (heads.q_width(), heads.kv_width());
        let stride = q_width + 2 * kv_width;
        let n = self.qkv.len() / stride;
        for (i, row) in self.qkv.chunks_exact_mut(stride).enumerate() {
            let (rotated, value) = row.split_at_mut(q_width + kv_width);
            if let Some(norms) = &block.qk_norms {
                let (queries, keys) = rotated.split_at_mut(q_width);
                norms.apply(queries, keys);
            }
            if let Some(rotary) = rotary {
                rotary.rotate(rotated, n_past + i);
            }
            cache.store(n_past + i, &rotated[q_width..], value);
        }
        let n_positions = n_past + n;
        self.mixed.resize(n * q_width, 0.0);
        attend(cache, heads, &block.scoring, &self.qkv, stride, n_positions, &mut self.mixed);
    }
}

impl Rotary {
    fn new(rope: &Rope, head_dim: usize) -> Self {
        Self { head_dim, half: rope.n_channels / 2, cos: Vec::new(), sin: Vec::new() }
    }

    /// Adds the angles of the positions before `end` that are not there yet.
    fn reach(&mut self, rope: &Rope, end: usize) {
        let (cos, sin) = rope.angles(self.cos.len() / self.half..end);
        self.cos.extend(cos);
        self.sin.extend(sin);
    }

    /// Rotates every head of a row.
    fn rotate(&self, row: &mut [f32], position: usize) {
        let angles = position * self.half..(position + 1) * self.half;
        rotate_row(row, self.head_dim, &self.cos[angles.clone()], &self.sin[angles]);
    }
}

/// Adds a module's output to the residual stream.
fn add_output(hidden: &mut [f32], output: &mut [f32], norm_after: Option<&HostNorm>, residual: Residual) {
    if let Some(norm) = norm_after {
        norm.apply(output);
    }
    if let Some(scale) = residual.scale {
        output.iter_mut().for_each(|value| *value *= scale as f32);
    }
    add(hidden, output);
}

vectorized! {
    fn add<'a>(x: &'a mut [f32], y: &'a [f32]) -> () {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}
