//! Causal attention without the `[seq, seq]` score matrix of all heads in memory, and without the half above the diagonal and
//! what lies before a window.

use std::ops::Range;

use rayon::prelude::*;

use self::products::{Heads, Queries};
use super::elementwise::{lane_max, lane_sum, soft_cap_chunk};
use super::exp::exp;

mod products;

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions beyond the baseline are unsafe to call until their presence is known"
)]
mod avx512;

/// Query rows scored at once: small enough that their scores of a few thousand keys stay in the second-level cache.
const QUERY_ROWS: usize = 128;

/// Geometry of one attention call.
#[derive(Clone, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; each serves `n_heads / n_kv_heads` query heads (GQA).
    pub n_kv_heads: usize,
    /// Channels of one head.
    pub head_dim: usize,
    /// How many positions a query sees at most, its own and those before it; `None` for all of them.
    pub window: Option<usize>,
    /// What the products of queries and keys are multiplied by; `None` for `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
    /// Scores `x` become `cap * tanh(x / cap)`.
    pub cap: Option<f64>,
    /// What is added to scores by positions (ALiBi).
    pub slopes: Option<Slopes>,
}

/// Attention with linear biases: what is added to scores by the positions of query and key.
#[derive(Clone, Debug, PartialEq)]
pub struct Slopes {
    /// One a head.
    pub of_heads: Vec<f32>,
    /// What is made of a slope and positions.
    pub bias: SlopeBias,
}

/// What a slope adds to a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SlopeBias {
    /// `-slope * distance` between query and key.
    Distance,
    /// `slope * position` of the key, of which slope, position and product are rounded to bf16, over `divisor` (Falcon in
    /// transformers). All scores of a query are larger by as much as its own position would add, which a softmax does not see.
    Bf16Position {
        /// What products are divided by.
        divisor: f32,
    },
}

impl Slopes {
    /// Adds to `scores` of a query at position `query` with the keys from `first_key` on.
    #[inline(always)]
    pub(crate) fn add(&self, scores: &mut [f32], head: usize, first_key: usize, query: usize) {
        let slope = self.of_heads[head];
        match self.bias {
            SlopeBias::Distance => {
                for (idx, score) in scores.iter_mut().enumerate() {
                    *score += slope * ((first_key + idx) as f32 - query as f32);
                }
            }
            SlopeBias::Bf16Position { divisor } => {
                for (idx, score) in scores.iter_mut().enumerate() {
                    *score += bf16_bias(slope, first_key + idx) / divisor;
                }
            }
        }
    }

    /// What is added to the scores of `head` for keys at `positions`, up to a number for each query.
    pub(crate) fn of_keys(&self, head: usize, positions: Range<usize>) -> Vec<f32> {
        let mut biases = vec![0.0; positions.len()];
        self.add(&mut biases, head, positions.start, positions.end - 1);
        biases
    }
}

fn bf16_bias(slope: f32, position: usize) -> f32 {
    let rounded = |value: f32| half::bf16::from_f32(value).to_f32();
    rounded(rounded(slope) * rounded(position as f32))
}

impl AttentionShape {
    /// Without a window, and with the usual scale.
    pub const fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self { n_heads, n_kv_heads, head_dim, window: None, scale: None, cap: None, slopes: None }
    }

    /// The first position that the query at `position` sees.
    pub(crate) fn first_visible(&self, position: usize) -> usize {
        first_visible(self.window, position)
    }
}

/// The first position that the query at `position` sees through `window`: the last one is its own.
pub(crate) fn first_visible(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// What products of queries and keys are multiplied by.
pub(crate) fn score_scale(scale: Option<f64>, head_dim: usize) -> f32 {
    scale.map_or_else(|| 1.0 / (head_dim as f32).sqrt(), |scale| scale as f32)
}

/// See [`crate::backend::QuantBackend::causal_attention`]; `rotary` is (cos, sin), each `[seq, n_rotated / 2]`, where
/// `n_rotated` is the number of channels of a head that are rotated.
pub fn causal_attention(
    mut q: Vec<f32>,
    mut k: Vec<f32>,
    v: &[f32],
    rotary: Option<(&[f32], &[f32])>,
    batch: usize,
    seq: usize,
    shape: &AttentionShape,
) -> Vec<f32> {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *shape;
    let (q_width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
    assert_eq!(q.len(), batch * seq * q_width, "queries are [batch, seq, n_heads * head_dim]");
    assert_eq!(k.len(), batch * seq * kv_width, "keys are [batch, seq, n_kv_heads * head_dim]");
    assert_eq!(v.len(), k.len(), "values have the shape of keys");
    if let Some((cos, sin)) = rotary {
        let half = cos.len() / seq;
        rotate(&mut q, cos, sin, seq, q_width, [head_dim, half]);
        rotate(&mut k, cos, sin, seq, kv_width, [head_dim, half]);
    }
    let (heads, mut out) = (Heads::new([&q, &k, v], seq, shape), vec![0.0; q.len()]);
    // One task a sequence and block of queries writes whole rows of the output; heads are its inner loop.
    let blocks_per_seq = seq.div_ceil(QUERY_ROWS);
    let mut tasks: Vec<(usize, usize, &mut [f32])> = Vec::with_capacity(batch * blocks_per_seq);
    for (sequence, rows) in out.chunks_mut(seq * q_width).enumerate() {
        tasks.extend(rows.chunks_mut(QUERY_ROWS * q_width).enumerate().map(|(block, rows)| (sequence, block, rows)));
    }
    // Late blocks see more keys, up to a window: start with them so that the last tasks to finish are short.
    tasks.sort_by_key(|task| std::cmp::Reverse(task.1));
    tasks.into_par_iter().for_each(|(sequence, block, out_rows)| {
        let first_query = block * QUERY_ROWS;
        let n_queries = out_rows.len() / q_width;
        let first_key = shape.first_visible(first_query);
        let n_keys = first_query + n_queries - first_key;
        let mut scores = vec![0.0_f32; n_queries * n_keys];
        for head in 0..n_heads {
            let queries = Queries {
                sequence,
                head,
                rows: first_query..first_query + n_queries,
                keys: first_key..first_key + n_keys,
            };
            heads.scores(&mut scores, &queries);
            if let Some(cap) = shape.cap {
                soft_cap_chunk(&mut scores, cap as f32);
            }
            for (row_idx, row) in scores.chunks_exact_mut(n_keys).enumerate() {
                let query = first_query + row_idx;
                if let Some(slopes) = &shape.slopes {
                    slopes.add(row, head, first_key, query);
                }
                softmax_between(row, shape.first_visible(query) - first_key, query + 1 - first_key);
            }
            heads.mix(out_rows, &scores, &queries);
        }
    });
    out
}

vectorized! {
    /// Softmax over the scores from `first` up to `end`; the rest becomes zero.
    fn softmax_between<'a>(row: &'a mut [f32], first: usize, end: usize) -> () {
        let (before, row) = row.split_at_mut(first);
        let (seen, after) = row.split_at_mut(end - first);
        let max = lane_max(seen);
        for score in seen.iter_mut() {
            *score = exp(*score - max);
        }
        let inverse_sum = 1.0 / lane_sum(seen);
        for score in seen.iter_mut() {
            *score *= inverse_sum;
        }
        before.fill(0.0);
        after.fill(0.0);
    }

    /// Rotates channel pairs `(c, c + n)` of every head of one position by `n` angles, in place; channels from `2 n` on stay.
    pub(crate) fn rotate_row<'a>(row: &'a mut [f32], head_dim: usize, cos: &'a [f32], sin: &'a [f32]) -> () {
        for head in row.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}

/// Rotates channel pairs `(c, c + half)` of every head, in place.
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], seq: usize, width: usize, [head_dim, half]: [usize; 2]) {
    x.par_chunks_mut(width).enumerate().with_min_len(32).for_each(|(row_idx, row)| {
        let angles = row_idx % seq * half..(row_idx % seq + 1) * half;
        rotate_row(row, head_dim, &cos[angles.clone()], &sin[angles]);
    });
}
