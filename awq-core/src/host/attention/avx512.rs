//! The two products of attention by AVX-512, with the bits of faer's: sums grow by fused multiplication and addition, those of weighted
//! values along 512 keys at a time. Keys, or channels of values, lie across the lanes of vectors. What no query of a tile sees is left out, so
//! that values which are not finite reach fewer of the queries before them than with faer.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::products::Queries;
use super::{AttentionShape, score_scale};
use crate::host::avx512::{DEEP, LANES, Line, mask_of, transposed};

/// Vectors of a tile, and queries: their sums take 24 of the 32 registers.
const VECTORS: usize = 4;
const QUERIES: usize = 6;
/// Keys, or channels of values, that lie side by side in a panel.
const WIDTH: usize = VECTORS * LANES;

/// What vectors multiply with numbers of queries: keys of one channel, or channels of one key.
type Row = [Line; VECTORS];

/// Keys and values of all sequences and heads, a second time, filled up to whole panels.
pub(super) struct Packed {
    /// 64 keys side by side: `[sequence][head][key / 64][channel]`.
    keys: Vec<Row>,
    /// 64 channels side by side: `[sequence][head][channel / 64][key]`.
    values: Vec<Row>,
    seq: usize,
}

impl Packed {
    /// Packs rotated keys and values, `[batch * seq, n_kv_heads * head_dim]`; `None` where the CPU has no AVX-512 or faer sums otherwise.
    pub(super) fn new([k, v]: [&[f32]; 2], seq: usize, shape: &AttentionShape) -> Option<Self> {
        let AttentionShape { n_kv_heads: n_heads, head_dim, .. } = *shape;
        if !is_x86_feature_detected!("avx512f") || !(2..=DEEP).contains(&head_dim) {
            return None;
        }
        let n_tasks = k.len() / (seq * head_dim);
        let (n_keys, n_values) = (seq.div_ceil(WIDTH) * head_dim, head_dim.div_ceil(WIDTH) * seq);
        let mut keys = vec![[Line::ZERO; VECTORS]; n_tasks * n_keys];
        let mut values = vec![[Line::ZERO; VECTORS]; n_tasks * n_values];
        let tasks = keys.par_chunks_exact_mut(n_keys).zip(values.par_chunks_exact_mut(n_values));
        tasks.enumerate().for_each(|(task, (keys, values))| {
            let first = (task / n_heads * seq * n_heads + task % n_heads) * head_dim;
            // SAFETY: AVX-512 was found above.
            unsafe {
                pack_keys(keys, &k[first..], seq, n_heads * head_dim, head_dim);
                pack_values(values, &v[first..], seq, n_heads * head_dim, head_dim);
            }
        });
        Some(Self { keys, values, seq })
    }

    /// Scaled products of queries in `q` with the keys that they see, `[n_queries, n_keys]`.
    pub(super) fn scores(&self, scores: &mut [f32], queries: &Queries, q: &[f32], shape: &AttentionShape) {
        let AttentionShape { n_heads, head_dim, .. } = *shape;
        let first = (queries.sequence * self.seq + queries.rows.start) * n_heads + queries.head;
        let panels = of_head(&self.keys, self.seq.div_ceil(WIDTH) * head_dim, queries, shape);
        // SAFETY: keys are packed only where AVX-512 was found.
        unsafe { self::scores(scores, queries, &q[first * head_dim..], shape, panels) };
    }

    /// Sums of values by weights, `[n_queries, n_keys]`, to the columns of the head in `out`.
    pub(super) fn mix(&self, out: &mut [f32], weights: &[f32], queries: &Queries, shape: &AttentionShape) {
        let AttentionShape { n_heads, head_dim, .. } = *shape;
        let panels = of_head(&self.values, head_dim.div_ceil(WIDTH) * self.seq, queries, shape);
        for (panel, values) in panels.chunks_exact(self.seq).enumerate() {
            let out = &mut out[queries.head * head_dim + panel * WIDTH..];
            let n_channels = WIDTH.min(head_dim - panel * WIDTH);
            // SAFETY: values are packed only where AVX-512 was found.
            unsafe { mix(out, n_heads * head_dim, n_channels, weights, queries, shape, values) };
        }
    }
}

/// The `n` rows of what the head of some queries attends to.
fn of_head<'a>(rows: &'a [Row], n: usize, queries: &Queries, shape: &AttentionShape) -> &'a [Row] {
    let head = queries.sequence * shape.n_kv_heads + queries.head / (shape.n_heads / shape.n_kv_heads);
    &rows[head * n..][..n]
}

/// Keys of one head, the first values of rows that lie `stride` apart.
#[target_feature(enable = "avx512f")]
fn pack_keys(panels: &mut [Row], k: &[f32], seq: usize, stride: usize, head_dim: usize) {
    for first in (0..seq).step_by(LANES) {
        let panel = &mut panels[first / WIDTH * head_dim..][..head_dim];
        for start in (0..head_dim).step_by(LANES) {
            let n_channels = LANES.min(head_dim - start);
            let mut by_key = [_mm512_setzero_si512(); LANES];
            for lane in 0..LANES.min(seq - first) {
                let channels = &k[(first + lane) * stride + start..][..n_channels];
                // SAFETY: the mask admits only the channels that there are.
                by_key[lane] = unsafe { _mm512_maskz_loadu_epi32(mask_of(n_channels), channels.as_ptr().cast()) };
            }
            let by_channel = transposed(by_key);
            for channel in 0..n_channels {
                panel[start + channel][first % WIDTH / LANES].store(by_channel[channel]);
            }
        }
    }
}

/// Values of one head, the same.
#[target_feature(enable = "avx512f")]
fn pack_values(panels: &mut [Row], v: &[f32], seq: usize, stride: usize, head_dim: usize) {
    for key in 0..seq {
        for start in (0..head_dim).step_by(LANES) {
            let n_channels = LANES.min(head_dim - start);
            let channels = &v[key * stride + start..][..n_channels];
            // SAFETY: the mask admits only the channels that there are.
            let channels = unsafe { _mm512_maskz_loadu_epi32(mask_of(n_channels), channels.as_ptr().cast()) };
            panels[start / WIDTH * seq + key][start % WIDTH / LANES].store(channels);
        }
    }
}

/// Tiles of queries, as indices from the first on, and the keys that any query of a tile sees.
fn tiles<'a>(
    queries: &'a Queries,
    shape: &'a AttentionShape,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + 'a {
    let Queries { rows, keys, .. } = queries;
    (0..rows.len()).step_by(QUERIES).map(|start| {
        let end = rows.len().min(start + QUERIES);
        let first_key = shape.first_visible(rows.start + start).max(keys.start);
        (start..end, first_key..(rows.start + end).min(keys.end))
    })
}

/// Sums of products of the first `N` vectors of rows with one number of each query for each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn products<const N: usize>(rows: &[Row], numbers: [&[f32]; QUERIES]) -> [[__m512; N]; QUERIES] {
    let [a, b, c, d, e, f] = numbers;
    let n = rows.len();
    let numbers = [&a[..n], &b[..n], &c[..n], &d[..n], &e[..n], &f[..n]];
    let mut sums = [[_mm512_setzero_ps(); N]; QUERIES];
    for row in 0..n {
        let mut x = [_mm512_setzero_ps(); N];
        for vector in 0..N {
            x[vector] = rows[row][vector].load();
        }
        for query in 0..QUERIES {
            let number = _mm512_set1_ps(numbers[query][row]);
            for vector in 0..N {
                sums[query][vector] = _mm512_fmadd_ps(x[vector], number, sums[query][vector]);
            }
        }
    }
    sums
}

/// See [`Packed::scores`]; `q` begins with the first query, and `panels` holds all keys of its head.
#[target_feature(enable = "avx512f")]
fn scores(scores: &mut [f32], queries: &Queries, q: &[f32], shape: &AttentionShape, panels: &[Row]) {
    let AttentionShape { n_heads, head_dim, .. } = *shape;
    let mut to = Scores { scores, keys: queries.keys.clone(), scale: score_scale(shape.scale, head_dim) };
    for (rows, keys) in tiles(queries, shape) {
        let q = of_queries(q, &rows, n_heads * head_dim, 0..head_dim);
        for panel in keys.start / WIDTH..keys.end.div_ceil(WIDTH) {
            let channels = &panels[panel * head_dim..][..head_dim];
            let first_key = panel * WIDTH;
            match (keys.end - first_key).div_ceil(LANES) {
                1 => to.store(products::<1>(channels, q), &rows, first_key),
                2 => to.store(products::<2>(channels, q), &rows, first_key),
                3 => to.store(products::<3>(channels, q), &rows, first_key),
                _ => to.store(products::<VECTORS>(channels, q), &rows, first_key),
            }
        }
    }
}

/// A part of the rows of some queries, which lie `stride` apart, the last again where they are fewer.
#[inline]
fn of_queries<'a>(values: &'a [f32], rows: &Range<usize>, stride: usize, part: Range<usize>) -> [&'a [f32]; QUERIES] {
    let mut of_queries = [&values[..0]; QUERIES];
    for query in 0..QUERIES {
        let row = rows.end.min(rows.start + query + 1) - 1;
        of_queries[query] = &values[row * stride..][part.clone()];
    }
    of_queries
}

/// Where scores go, `[n_queries, n_keys]`.
struct Scores<'a> {
    scores: &'a mut [f32],
    keys: Range<usize>,
    scale: f32,
}

impl Scores<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store<const N: usize>(&mut self, sums: [[__m512; N]; QUERIES], rows: &Range<usize>, first_key: usize) {
        let (n_keys, scale) = (self.keys.len(), _mm512_set1_ps(self.scale));
        for vector in 0..N {
            let first = first_key + vector * LANES;
            // Those of the 16 keys that have a column.
            let mask = mask_of(self.keys.end.saturating_sub(first)) & !mask_of(self.keys.start.saturating_sub(first));
            for query in 0..rows.len() {
                let scores = &mut self.scores[(rows.start + query) * n_keys..][..n_keys];
                let at = scores.as_mut_ptr().wrapping_add(first).wrapping_sub(self.keys.start);
                // SAFETY: the mask admits only columns that there are.
                unsafe { _mm512_mask_storeu_ps(at, mask, _mm512_mul_ps(sums[query][vector], scale)) };
            }
        }
    }
}

/// See [`Packed::mix`], up to 64 channels: rows of `out` lie `stride` apart, and `values` are those of all keys.
#[target_feature(enable = "avx512f")]
fn mix(
    out: &mut [f32],
    stride: usize,
    n_channels: usize,
    weights: &[f32],
    queries: &Queries,
    shape: &AttentionShape,
    values: &[Row],
) {
    for (rows, keys) in tiles(queries, shape) {
        let sums = Mixed { queries, weights, values, rows: rows.clone(), keys };
        let out = &mut out[rows.start * stride..];
        match n_channels.div_ceil(LANES) {
            1 => store(out, stride, n_channels, sums.sums::<1>(), rows.len()),
            2 => store(out, stride, n_channels, sums.sums::<2>(), rows.len()),
            3 => store(out, stride, n_channels, sums.sums::<3>(), rows.len()),
            _ => store(out, stride, n_channels, sums.sums::<VECTORS>(), rows.len()),
        }
    }
}

/// What a tile of queries mixes.
struct Mixed<'a> {
    queries: &'a Queries,
    weights: &'a [f32],
    values: &'a [Row],
    rows: Range<usize>,
    keys: Range<usize>,
}

impl Mixed<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sums<const N: usize>(&self) -> [[__m512; N]; QUERIES] {
        let first = self.queries.keys.start;
        let (mut key, end) = (self.keys.start - first, self.keys.end - first);
        let mut all = [[_mm512_set1_ps(-0.0); N]; QUERIES];
        while key < end {
            let run = key..end.min((key / DEEP + 1) * DEEP);
            let weights = of_queries(self.weights, &self.rows, self.queries.keys.len(), run.clone());
            let sums = products::<N>(&self.values[first + run.start..first + run.end], weights);
            for query in 0..QUERIES {
                for vector in 0..N {
                    all[query][vector] = _mm512_add_ps(all[query][vector], sums[query][vector]);
                }
            }
            key = run.end;
        }
        all
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const N: usize>(
    out: &mut [f32],
    stride: usize,
    n_channels: usize,
    sums: [[__m512; N]; QUERIES],
    n_queries: usize,
) {
    for query in 0..n_queries {
        let out = &mut out[query * stride..][..n_channels];
        for vector in 0..N {
            let mask = mask_of(n_channels - vector * LANES);
            // SAFETY: the mask admits only channels that there are.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(vector * LANES), mask, sums[query][vector]) };
        }
    }
}
