//! [`Pass`]: new tokens of one text or of several through all blocks.

use rayon::prelude::*;

use super::attention::attend;
use super::cache::KvCache;
use super::mlp::MlpBuffers;
use super::model::{DecodeBlock, DecodeModel, HostNorm};
use super::session::{DecodeError, PREFILL_TOKENS};
use crate::host::attention::rotate_row;
use crate::host::elementwise::soft_cap;
use crate::host::vectorized;
use crate::load::Rope;
use crate::model::wiring::{Order, Residual};

/// The tokens of a text so far, and room for more.
pub(super) struct Text {
    pub(super) n_past: usize,
    pub(super) capacity: usize,
    /// One a block.
    pub(super) caches: Vec<KvCache>,
}

impl Text {
    /// An empty one with room for `capacity` tokens.
    pub(super) fn new(model: &DecodeModel, capacity: usize) -> Result<Self, DecodeError> {
        let longest = model.config.longest_sequence();
        if capacity > longest {
            return Err(DecodeError::TooLong { asked: capacity, longest });
        }
        let caches = model.blocks.iter().map(|_| KvCache::new(model.heads, capacity)).collect();
        Ok(Self { n_past: 0, capacity, caches })
    }

    /// Whether `ids` can be fed.
    pub(super) fn check(&self, model: &DecodeModel, ids: &[u32]) -> Result<(), DecodeError> {
        let vocab = model.config.vocab_size;
        if ids.is_empty() {
            return Err(DecodeError::Empty);
        }
        if ids.len() > self.capacity - self.n_past {
            return Err(DecodeError::Full { n_tokens: ids.len(), used: self.n_past, capacity: self.capacity });
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(DecodeError::UnknownToken { id, vocab });
        }
        match ids.iter().find(|id| model.unusable_ids.contains(id)) {
            Some(&id) => Err(DecodeError::UnusableToken { id }),
            None => Ok(()),
        }
    }
}

/// New tokens of a text.
pub(super) struct Run<'a> {
    pub(super) text: &'a mut Text,
    pub(super) ids: &'a [u32],
}

/// What goes through the blocks, and the buffers that it is written to: allocated once, and grown for prompts.
pub(super) struct Pass<'m> {
    model: &'m DecodeModel,
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

#[derive(Default)]
struct Buffers {
    /// Rows that products have at least, see [`Pass::new`].
    least_rows: usize,
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    delta: Vec<f32>,
    mlp: MlpBuffers,
    of_mlp: Vec<f32>,
    logits: Vec<f32>,
}

impl<'m> Pass<'m> {
    /// Products are computed of `least_rows` rows at least, copies of the last one where there are fewer: kernels add up one row in
    /// another order than several.
    pub(super) fn new(model: &'m DecodeModel, least_rows: usize) -> Self {
        let rotaries = model.ropes.iter().map(|rope| Rotary::new(rope, model.heads.dim)).collect();
        let mlp = MlpBuffers::new(least_rows);
        Self { model, rotaries, buffers: Buffers { least_rows, mlp, ..Buffers::default() } }
    }

    /// Takes the tokens of a prompt through all blocks, piece by piece, and returns the logits behind the last one, `[vocab]`.
    pub(super) fn read(&mut self, text: &mut Text, ids: &[u32]) -> &[f32] {
        let mut n_last = 0;
        for ids in ids.chunks(PREFILL_TOKENS) {
            self.forward(&mut [Run { text, ids }]);
            n_last = ids.len();
        }
        self.logits(n_last - 1, 1)
    }

    /// Takes new tokens through all blocks; their hidden states are then in the buffers, one run behind the other.
    pub(super) fn forward(&mut self, runs: &mut [Run<'_>]) {
        let Self { model, rotaries, buffers } = self;
        buffers.embed(model, runs);
        let end = runs.iter().map(|run| run.text.n_past + run.ids.len()).max().unwrap_or(0);
        for (rotary, rope) in rotaries.iter_mut().zip(&model.ropes) {
            rotary.reach(rope, end);
        }
        for (block_idx, block) in model.blocks.iter().enumerate() {
            buffers.norm(block.attention_norm.as_ref());
            block.qkv.product(&buffers.normed, &mut buffers.qkv);
            if block.residual.order == Order::SideBySide {
                // Before attention adds to what it sees.
                buffers.norm(block.mlp_norm.as_ref());
                block.mlp.forward(&buffers.normed, &mut buffers.mlp, &mut buffers.of_mlp);
            }
            buffers.attend(model, block_idx, block.rope.map(|rope| &rotaries[rope]), runs);
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
        runs.iter_mut().for_each(|run| run.text.n_past += run.ids.len());
    }

    /// Logits of `n` hidden states from row `first` on, `[n, vocab]`.
    pub(super) fn logits(&mut self, first: usize, n: usize) -> &[f32] {
        let Self { model, buffers, .. } = self;
        let hidden = model.config.hidden_size;
        buffers.normed.clear();
        buffers.normed.extend_from_slice(&buffers.hidden[first * hidden..][..n * hidden]);
        fill_up(&mut buffers.normed, hidden, buffers.least_rows);
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
        &buffers.logits[..n * model.config.vocab_size]
    }
}

impl Buffers {
    fn embed(&mut self, model: &DecodeModel, runs: &[Run<'_>]) {
        let hidden = model.config.hidden_size;
        self.hidden.clear();
        runs.iter().flat_map(|run| run.ids).for_each(|&id| model.embedding.append_row(id as usize, &mut self.hidden));
        if let Some(scale) = model.embedding_scale {
            self.hidden.iter_mut().for_each(|value| *value *= scale);
        }
        if let Some(norm) = &model.embedding_norm {
            norm.apply(&mut self.hidden);
        }
        if let Some(projections) = &model.projections {
            fill_up(&mut self.hidden, model.embedding.n_in(), self.least_rows);
            projections.to_stream.product(&self.hidden, &mut self.delta);
            std::mem::swap(&mut self.hidden, &mut self.delta);
        }
        if let Some(positions) = &model.positions {
            let mut rows = self.hidden.as_mut_slice();
            for run in runs {
                let (of_run, rest) = rows.split_at_mut(run.ids.len() * hidden);
                add(of_run, &positions[run.text.n_past * hidden..]);
                rows = rest;
            }
        }
        fill_up(&mut self.hidden, hidden, self.least_rows);
    }

    /// What a module sees of the residual stream.
    fn norm(&mut self, norm: Option<&HostNorm>) {
        self.normed.clone_from(&self.hidden);
        if let Some(norm) = norm {
            norm.apply(&mut self.normed);
        }
    }

    /// Attention of each run over its own text.
    fn attend(&mut self, model: &DecodeModel, block_idx: usize, rotary: Option<&Rotary>, runs: &mut [Run<'_>]) {
        let width = model.heads.q_width();
        let stride = width + 2 * model.heads.kv_width();
        self.mixed.resize(self.qkv.len() / stride * width, 0.0);
        let (mut qkv, mut mixed) = (self.qkv.as_mut_slice(), self.mixed.as_mut_slice());
        let mut tasks = Vec::with_capacity(runs.len());
        let n_tokens: usize = runs.iter().map(|run| run.ids.len()).sum();
        for Run { text, ids } in runs {
            let (own_qkv, rest) = qkv.split_at_mut(ids.len() * stride);
            let (own_mixed, rest_mixed) = mixed.split_at_mut(ids.len() * width);
            (qkv, mixed) = (rest, rest_mixed);
            tasks.push((text.n_past, &mut text.caches[block_idx], own_qkv, own_mixed));
        }
        tasks.into_par_iter().for_each(|(n_past, cache, qkv, mixed)| {
            attend_text(model, &model.blocks[block_idx], rotary, (n_past, cache), qkv, mixed);
        });
        self.mixed.truncate(n_tokens * width);
        fill_up(&mut self.mixed, width, self.least_rows);
    }
}

/// Normalizes queries and keys where they have norms, rotates, stores keys and values, and mixes values.
fn attend_text(
    model: &DecodeModel,
    block: &DecodeBlock,
    rotary: Option<&Rotary>,
    (n_past, cache): (usize, &mut KvCache),
    qkv: &mut [f32],
    mixed: &mut [f32],
) {
    let (q_width, kv_width) = (model.heads.q_width(), model.heads.kv_width());
    let stride = q_width + 2 * kv_width;
    for (i, row) in qkv.chunks_exact_mut(stride).enumerate() {
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
    attend(cache, model.heads, &block.scoring, qkv, stride, n_past + qkv.len() / stride, mixed);
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

/// Repeats the last row until there are `least` rows.
pub(super) fn fill_up(rows: &mut Vec<f32>, width: usize, least: usize) {
    while !rows.is_empty() && rows.len() < least * width {
        rows.extend_from_within(rows.len() - width..);
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
