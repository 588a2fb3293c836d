//! Attention of new tokens over the cache.
//!
//! Up to [`MAX_ROWS`] queries that look at one key head (of several query heads, and in a prompt of several tokens) go over
//! its keys and values together: each is read once for all of them.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions (prompts took twice as long): indices stay"
)]

use rayon::prelude::*;

use super::cache::{KvCache, TILE};
use super::{Heads, Scoring};
use crate::host::attention::first_visible;
use crate::host::elementwise::{lane_max, lane_sum, soft_cap_chunk};
use crate::host::exp::exp;
use crate::host::vectorized;

/// Multiplications of one step below which one thread does it all.
const PARALLEL_FROM: usize = 1 << 18;
/// Queries of a block: their sums must fit into registers.
const MAX_ROWS: usize = 4;
/// Tokens of a prompt whose queries make a task.
const TOKENS_PER_TASK: usize = 8;

/// One query of one head.
#[derive(Clone, Copy)]
struct Row<'a> {
    /// `[head_dim]`.
    query: &'a [f32],
    /// The first position that it sees.
    first: usize,
    /// The position after the last that it sees.
    end: usize,
    /// Its head.
    head: usize,
    /// Where its result begins in the task's part of the output.
    out_start: usize,
}

/// Attention of the last `out.len() / width` positions of the cache, causal among themselves, each over the last
/// positions of its window where there is one, into rows of `n_heads * head_dim`. Row `i` of `queries` begins with the (rotated) queries of
/// token `i`; rows are `stride` long.
pub(super) fn attend(
    cache: &KvCache,
    heads: Heads,
    scoring: &Scoring,
    queries: &[f32],
    stride: usize,
    n_positions: usize,
    out: &mut [f32],
) {
    let (dim, width, n_rep) = (heads.dim, heads.q_width(), heads.n_q / heads.n_kv);
    let (n_queries, window) = (out.len() / width, scoring.window);
    let row = |token: usize, head: usize, out_start| {
        let position = n_positions - n_queries + token;
        let query = &queries[token * stride + head * dim..][..dim];
        Row { query, first: first_visible(window, position), end: position + 1, head, out_start }
    };
    let one_token = |kv_head: usize, out: &mut [f32]| {
        let rows: Vec<Row<'_>> = (0..n_rep).map(|rep| row(0, kv_head * n_rep + rep, rep * dim)).collect();
        attend_rows(cache, kv_head, scoring, &rows, out);
    };
    let tokens = |first: usize, out: &mut [f32]| {
        for kv_head in 0..heads.n_kv {
            let head = |token: usize, rep: usize| {
                let head = kv_head * n_rep + rep;
                row(first + token, head, token * width + head * dim)
            };
            let rows: Vec<Row<'_>> =
                (0..out.len() / width).flat_map(|token| (0..n_rep).map(move |rep| head(token, rep))).collect();
            attend_rows(cache, kv_head, scoring, &rows, out);
        }
    };
    let n_seen = window.map_or(n_positions, |window| n_positions.min(window + n_queries));
    let is_long = n_queries * n_seen * width >= PARALLEL_FROM;
    match (n_queries, is_long) {
        (1, false) => out.chunks_exact_mut(n_rep * dim).enumerate().for_each(|(head, out)| one_token(head, out)),
        (1, true) => out.par_chunks_exact_mut(n_rep * dim).enumerate().for_each(|(head, out)| one_token(head, out)),
        (_, false) => tokens(0, out),
        // The last tokens see most: they begin.
        (_, true) => out
            .par_chunks_mut(TOKENS_PER_TASK * width)
            .enumerate()
            .rev()
            .for_each(|(task, out)| tokens(task * TOKENS_PER_TASK, out)),
    }
}

/// Attention of queries that look at one key head.
fn attend_rows(cache: &KvCache, kv_head: usize, scoring: &Scoring, rows: &[Row<'_>], out: &mut [f32]) {
    for rows in rows.chunks(MAX_ROWS) {
        let first = rows.iter().map(|row| row.first).min().unwrap_or(0) / TILE * TILE;
        let end = rows.iter().map(|row| row.end).max().unwrap_or(first);
        let (keys, values) = (cache.keys(kv_head, first..end), cache.values(kv_head, first..end));
        attend_block(rows, scoring, first, keys, values, out);
    }
}

vectorized! {
    fn attend_block<'a>(
        rows: &'a [Row<'a>],
        scoring: &'a Scoring,
        first: usize,
        keys: &'a [f32],
        values: &'a [f32],
        out: &'a mut [f32],
    ) -> () {
        match rows.len() {
            1 => block::<1>(rows, scoring, first, keys, values, out),
            2 => block::<2>(rows, scoring, first, keys, values, out),
            3 => block::<3>(rows, scoring, first, keys, values, out),
            _ => block::<MAX_ROWS>(rows, scoring, first, keys, values, out),
        }
    }
}

/// `ROWS` queries over all keys that one of them sees; keys and values begin with those of position `first_position`.
#[inline(always)]
fn block<const ROWS: usize>(
    rows: &[Row<'_>],
    scoring: &Scoring,
    first_position: usize,
    keys: &[f32],
    values: &[f32],
    out: &mut [f32],
) {
    let dim = rows[0].query.len();
    let n = values.len() / dim;
    let stride = n.next_multiple_of(TILE);
    let mut weights = vec![0.0_f32; ROWS * stride];
    scores::<ROWS>(rows, scoring.scale, keys, &mut weights, stride);
    if let Some(cap) = scoring.cap {
        soft_cap_chunk(&mut weights, cap);
    }
    let mut inverse_sums = [0.0_f32; ROWS];
    for row_idx in 0..ROWS {
        let row = &rows[row_idx];
        let (before, weights) = weights[row_idx * stride..][..stride].split_at_mut(row.first - first_position);
        let (seen, after) = weights.split_at_mut(row.end - row.first);
        if let Some(slopes) = &scoring.slopes {
            slopes.add(seen, row.head, row.first, row.end - 1);
        }
        let max = lane_max(seen);
        for at in 0..seen.len() {
            seen[at] = exp(seen[at] - max);
        }
        inverse_sums[row_idx] = 1.0 / lane_sum(seen);
        before.fill(0.0);
        after.fill(0.0);
    }
    // The weights of a position side by side, as they are used.
    let mut by_position = vec![[0.0_f32; ROWS]; n];
    for row in 0..ROWS {
        let weights = &weights[row * stride..][..n];
        for position in 0..n {
            by_position[position][row] = weights[position] * inverse_sums[row];
        }
    }
    let mut first = 0;
    while first < dim {
        first += match dim - first {
            32.. => mix::<ROWS, 32>(rows, &by_position, values, first, out),
            16.. => mix::<ROWS, 16>(rows, &by_position, values, first, out),
            _ => mix::<ROWS, 1>(rows, &by_position, values, first, out),
        };
    }
}

/// `sums += factor * values`, lane by lane.
#[inline(always)]
fn add_product<const N: usize>(sums: &mut [f32; N], factor: f32, values: &[f32; N]) {
    for lane in 0..N {
        sums[lane] += factor * values[lane];
    }
}

/// Adds to the sums of each of `ROWS` rows; in the form of one variable a row, for the compiler keeps these in registers,
/// which it does not with an array of arrays (ten times slower).
macro_rules! add_products {
    ($ROWS:ident, [$($sums:ident)*], $factors:expr, $values:expr) => {{
        let mut row = 0;
        $(
            if row < $ROWS {
                add_product(&mut $sums, $factors[row], $values);
            }
            row += 1;
        )*
        let _ = row;
    }};
}

/// Scaled products of queries and keys, `[ROWS, stride]`.
#[inline(always)]
fn scores<const ROWS: usize>(rows: &[Row<'_>], scale: f32, keys: &[f32], scores: &mut [f32], stride: usize) {
    let dim = rows[0].query.len();
    let mut by_channel = vec![[0.0_f32; ROWS]; dim];
    for row in 0..ROWS {
        let query = &rows[row].query[..dim];
        for channel in 0..dim {
            by_channel[channel][row] = query[channel] * scale;
        }
    }
    let keys = keys.as_chunks::<TILE>().0;
    for tile_idx in 0..keys.len() / dim {
        let tile = &keys[tile_idx * dim..][..dim];
        let [mut s0, mut s1, mut s2, mut s3] = [[0.0_f32; TILE]; MAX_ROWS];
        for channel in 0..dim {
            let (q, key) = (&by_channel[channel], &tile[channel]);
            add_products!(ROWS, [s0 s1 s2 s3], q, key);
        }
        let sums = [s0, s1, s2, s3];
        for row in 0..ROWS {
            scores[row * stride + tile_idx * TILE..][..TILE].copy_from_slice(&sums[row]);
        }
    }
}

/// Channels `first` to `first + WIDTH` of the weighted sums of values; returns `WIDTH`.
#[inline(always)]
fn mix<const ROWS: usize, const WIDTH: usize>(
    rows: &[Row<'_>],
    weights: &[[f32; ROWS]],
    values: &[f32],
    first: usize,
    out: &mut [f32],
) -> usize {
    let dim = rows[0].query.len();
    let [mut s0, mut s1, mut s2, mut s3] = [[0.0_f32; WIDTH]; MAX_ROWS];
    for position in 0..weights.len() {
        let Some(value) = values[position * dim + first..].first_chunk::<WIDTH>() else { continue };
        let factors = &weights[position];
        add_products!(ROWS, [s0 s1 s2 s3], factors, value);
    }
    let sums = [s0, s1, s2, s3];
    for row in 0..ROWS {
        out[rows[row].out_start + first..][..WIDTH].copy_from_slice(&sums[row]);
    }
    WIDTH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::attention::{SlopeBias, Slopes};

    /// Softmax attention in f64, from the definition.
    fn expected(
        heads: Heads,
        Scoring { window, scale, cap, slopes }: &Scoring,
        queries: &[Vec<f32>],
        keys: &[Vec<f32>],
        values: &[Vec<f32>],
    ) -> Vec<f64> {
        let n_rep = heads.n_q / heads.n_kv;
        let first = keys.len() - queries.len();
        let mut out = Vec::new();
        for (i, query) in queries.iter().enumerate() {
            for (head, q) in query.chunks(heads.dim).take(heads.n_q).enumerate() {
                let slice = |row: &Vec<f32>| row[head / n_rep * heads.dim..][..heads.dim].to_vec();
                let dot = |k: Vec<f32>| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(k)).sum::<f64>();
                let weight = |(position, k): (usize, &Vec<f32>)| {
                    let is_seen = position <= first + i && window.is_none_or(|window| position + window > first + i);
                    let score = dot(slice(k)) * f64::from(*scale);
                    let score = cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    let distance = position as f64 - (first + i) as f64;
                    let score =
                        score + slopes.as_ref().map_or(0.0, |slopes| f64::from(slopes.of_heads[head]) * distance);
                    if is_seen { score.exp() } else { 0.0 }
                };
                let weights: Vec<f64> = keys.iter().enumerate().map(weight).collect();
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
        // Three query heads a key head, as in SmolLM2; heads that are no whole vectors, and such as Llama's.
        let shapes =
            [(10, 1, 1), (10, 16, 1), (10, 17, 1), (10, 70, 3), (58, 40, 40), (10, 700, 8), (64, 700, 1), (64, 90, 30)];
        // Windows that begin within a tile, at its start, and before the text.
        let windows = [None, Some(1), Some(7), Some(16), Some(33), Some(5000)];
        let scoring = |(dim, ..): (usize, usize, usize), window: Option<usize>| {
            [(1.0 / (dim as f32).sqrt(), None), (0.3, Some(1.5))].map(|(scale, cap)| {
                let of_heads = vec![0.5, 0.25, 0.1, 0.01, 0.3, 0.7];
                let slopes = cap.map(|_| Slopes { of_heads, bias: SlopeBias::Distance });
                Scoring { window, scale, cap, slopes }
            })
        };
        for ((dim, n_positions, n_queries), scoring) in shapes.into_iter().flat_map(|shape| {
            windows.into_iter().flat_map(move |window| scoring(shape, window)).map(move |scoring| (shape, scoring))
        }) {
            let heads = Heads { n_q: 6, n_kv: 2, dim };
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 300.0 - 1.7;
            let rows = |width: usize, n: usize, from: usize| -> Vec<Vec<f32>> {
                (0..n).map(|row| (0..width).map(|i| value(from + row * width + i)).collect()).collect()
            };
            let (keys, values) = (rows(2 * dim, n_positions, 3), rows(2 * dim, n_positions, 77));
            // Rows are longer than the queries: keys and values stand behind them in the engine.
            let stride = 6 * dim + 5;
            let queries = rows(stride, n_queries, 5);
            let mut cache = KvCache::new(heads, n_positions + 3);
            for (position, (key, value)) in keys.iter().zip(&values).enumerate() {
                cache.store(position, key, value);
            }
            let mut out = vec![f32::NAN; n_queries * 6 * dim];
            attend(&cache, heads, &scoring, &queries.concat(), stride, n_positions, &mut out);
            let expected = expected(heads, &scoring, &queries, &keys, &values);
            for (found, expected) in out.iter().zip(expected) {
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-5,
                    "{n_positions}, {scoring:?}: {found} is not {expected}"
                );
            }
        }
    }
}
