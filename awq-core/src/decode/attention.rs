//! Attention of new tokens over the cache.

use rayon::prelude::*;

use super::Heads;
use super::cache::{KvCache, TILE};
use crate::host::elementwise::{lane_max, lane_sum};
use crate::host::exp::exp;
use crate::host::vectorized;

/// Multiplications of one step below which one thread does it all.
const PARALLEL_FROM: usize = 1 << 18;
/// Positions whose values are added in one pass over the output.
const VALUES_PER_PASS: usize = 4;

/// Attention of the last `out.len() / width` positions of the cache, causal among themselves, into rows of
/// `n_heads * head_dim`. Row `i` of `queries` begins with the (rotated) queries of token `i`; rows are `stride` long.
/// `scores` holds `n_heads` rows of `n_positions` rounded up to whole tiles for each query.
pub(super) fn attend(
    cache: &KvCache,
    heads: Heads,
    queries: &[f32],
    stride: usize,
    n_positions: usize,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let width = heads.n_q * heads.dim;
    let n_queries = out.len() / width;
    let scores_len = n_positions.next_multiple_of(TILE);
    let head = |query: usize, head: usize, scores: &mut [f32], out: &mut [f32]| {
        // The last query sees every position, the one before it one less.
        let visible = n_positions - (n_queries - 1 - query);
        let kv_head = head / (heads.n_q / heads.n_kv);
        let q = &queries[query * stride + head * heads.dim..][..heads.dim];
        let scores = &mut scores[..visible.next_multiple_of(TILE)];
        attend_head(q, cache.keys(kv_head, visible), cache.values(kv_head, visible), visible, scores, out);
    };
    let tasks = out.chunks_exact_mut(heads.dim).zip(scores.chunks_exact_mut(scores_len)).enumerate();
    if n_queries * n_positions * width < PARALLEL_FROM {
        tasks.for_each(|(task, (out, scores))| head(task / heads.n_q, task % heads.n_q, scores, out));
    } else {
        let tasks = out.par_chunks_exact_mut(heads.dim).zip(scores.par_chunks_exact_mut(scores_len)).enumerate();
        tasks.for_each(|(task, (out, scores))| head(task / heads.n_q, task % heads.n_q, scores, out));
    }
}

vectorized! {
    /// One query of one head over `visible` positions; `scores` is room for them.
    fn attend_head<'a>(
        q: &'a [f32],
        keys: &'a [f32],
        values: &'a [f32],
        visible: usize,
        scores: &'a mut [f32],
        out: &'a mut [f32],
    ) -> () {
        let scale = 1.0 / (q.len() as f32).sqrt();
        for (tile, scores) in keys.chunks_exact(q.len() * TILE).zip(scores.as_chunks_mut::<TILE>().0) {
            // Two sums: one addition does not wait for the last.
            let (mut even, mut odd) = ([0.0_f32; TILE], [0.0_f32; TILE]);
            let channels = tile.as_chunks::<TILE>().0.as_chunks::<2>().0;
            for ([a, b], [qa, qb]) in channels.iter().zip(q.as_chunks::<2>().0) {
                for lane in 0..TILE {
                    even[lane] += qa * a[lane];
                    odd[lane] += qb * b[lane];
                }
            }
            for lane in 0..TILE {
                scores[lane] = (even[lane] + odd[lane]) * scale;
            }
        }
        let scores = &mut scores[..visible];
        let max = lane_max(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        let inverse_sum = 1.0 / lane_sum(scores);
        out.fill(0.0);
        let dim = q.len();
        let mut passes = values.chunks_exact(VALUES_PER_PASS * dim);
        let (weights, last_weights) = scores.as_chunks::<VALUES_PER_PASS>();
        for (weights, values) in weights.iter().zip(passes.by_ref()) {
            let (v0, rest) = values.split_at(dim);
            let (v1, rest) = rest.split_at(dim);
            let (v2, v3) = rest.split_at(dim);
            for ((((o, &a), &b), &c), &d) in out.iter_mut().zip(v0).zip(v1).zip(v2).zip(v3) {
                *o += weights[0] * a + weights[1] * b + (weights[2] * c + weights[3] * d);
            }
        }
        for (weight, values) in last_weights.iter().zip(passes.remainder().chunks_exact(dim)) {
            for (o, v) in out.iter_mut().zip(values) {
                *o += weight * v;
            }
        }
        for o in out.iter_mut() {
            *o *= inverse_sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Softmax attention in f64, from the definition.
    fn expected(heads: Heads, queries: &[Vec<f32>], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
        let n_rep = heads.n_q / heads.n_kv;
        let first = keys.len() - queries.len();
        let mut out = Vec::new();
        for (i, query) in queries.iter().enumerate() {
            for (head, q) in query.chunks(heads.dim).take(heads.n_q).enumerate() {
                let slice = |row: &Vec<f32>| row[head / n_rep * heads.dim..][..heads.dim].to_vec();
                let dot = |k: Vec<f32>| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(k)).sum::<f64>();
                let weights: Vec<f64> =
                    keys[..=first + i].iter().map(|k| (dot(slice(k)) / (heads.dim as f64).sqrt()).exp()).collect();
                let total: f64 = weights.iter().sum();
                for channel in 0..heads.dim {
                    let column = values.iter().zip(&weights).map(|(v, w)| f64::from(slice(v)[channel]) * w);
                    out.push(column.sum::<f64>() / total);
                }
            }
        }
        out
    }

    #[test]
    fn equals_the_definition_for_one_and_many_queries() {
        let heads = Heads { n_q: 6, n_kv: 2, dim: 10 };
        for (n_positions, n_queries) in [(1, 1), (16, 1), (17, 1), (70, 3), (40, 40), (700, 8)] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 300.0 - 1.7;
            let rows = |width: usize, n: usize, from: usize| -> Vec<Vec<f32>> {
                (0..n).map(|row| (0..width).map(|i| value(from + row * width + i)).collect()).collect()
            };
            let (keys, values) = (rows(20, n_positions, 3), rows(20, n_positions, 77));
            // Rows are longer than the queries: keys and values stand behind them in the engine.
            let queries = rows(65, n_queries, 5);
            let mut cache = KvCache::new(heads, n_positions + 3);
            for (position, (key, value)) in keys.iter().zip(&values).enumerate() {
                cache.store(position, key, value);
            }
            let mut out = vec![f32::NAN; n_queries * 60];
            let mut scores = vec![f32::NAN; n_queries * heads.n_q * n_positions.next_multiple_of(TILE)];
            attend(&cache, heads, &queries.concat(), 65, n_positions, &mut scores, &mut out);
            let expected = expected(heads, &queries, &keys, &values);
            for (found, expected) in out.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{n_positions}: {found} is not {expected}");
            }
        }
    }
}
