//! The two products of attention: queries with keys, and weights with values.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::{AttentionShape, QUERY_ROWS, score_scale};

/// Multiplications of what faer takes for a small product.
#[cfg(target_arch = "x86_64")]
const SMALL: usize = 16 * 16 * 16;

/// Whether products are faer's in any case: with a vector, or small ones, it adds up in another order.
#[cfg(target_arch = "x86_64")]
const fn is_small(n_queries: usize, n_keys: usize, head_dim: usize) -> bool {
    n_queries < 2 || n_keys < 2 || n_queries * n_keys * head_dim <= SMALL
}

/// Rotated queries and keys, and values, of all sequences and heads.
pub(super) struct Heads<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    seq: usize,
    shape: &'a AttentionShape,
    #[cfg(target_arch = "x86_64")]
    packed: Option<super::avx512::Packed>,
}

/// Neighbouring queries of a head, and the keys that any of them sees.
pub(super) struct Queries {
    pub(super) sequence: usize,
    pub(super) head: usize,
    /// Positions in the sequence.
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl<'a> Heads<'a> {
    /// Of `[batch * seq, n_heads * head_dim]`, and `n_kv_heads` for keys and values.
    pub(super) fn new([q, k, v]: [&'a [f32]; 3], seq: usize, shape: &'a AttentionShape) -> Self {
        Self {
            q,
            k,
            v,
            seq,
            shape,
            #[cfg(target_arch = "x86_64")]
            packed: if is_small(seq.min(QUERY_ROWS), seq, shape.head_dim) {
                None
            } else {
                super::avx512::Packed::new([k, v], seq, shape)
            },
        }
    }

    /// Scaled products of queries with keys, `[n_queries, n_keys]`. Those of keys that a query does not see may stay as they are.
    pub(super) fn scores(&self, scores: &mut [f32], queries: &Queries) {
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = self.packed_for(queries) {
            return packed.scores(scores, queries, self.q, self.shape);
        }
        self.scores_by_faer(scores, queries);
    }

    /// Sums of values by weights, `[n_queries, n_keys]`, to the columns of the head in `out`, `[n_queries, n_heads * head_dim]`. Weights of
    /// keys that a query does not see must be zero.
    pub(super) fn mix(&self, out: &mut [f32], weights: &[f32], queries: &Queries) {
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = self.packed_for(queries) {
            return packed.mix(out, weights, queries, self.shape);
        }
        self.mix_by_faer(out, weights, queries);
    }

    /// Packed keys and values, unless products are faer's.
    #[cfg(target_arch = "x86_64")]
    fn packed_for(&self, queries: &Queries) -> Option<&super::avx512::Packed> {
        let (n_queries, n_keys) = (queries.rows.len(), queries.keys.len());
        self.packed.as_ref().filter(|_| !is_small(n_queries, n_keys, self.shape.head_dim))
    }

    /// Where the first key that is seen has its values, as one among keys, too.
    fn first_value(&self, queries: &Queries) -> usize {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *self.shape;
        ((queries.sequence * self.seq + queries.keys.start) * n_kv_heads + queries.head / (n_heads / n_kv_heads))
            * head_dim
    }

    fn scores_by_faer(&self, scores: &mut [f32], queries: &Queries) {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *self.shape;
        let (n_queries, n_keys) = (queries.rows.len(), queries.keys.len());
        let first_query = ((queries.sequence * self.seq + queries.rows.start) * n_heads + queries.head) * head_dim;
        let q = rows(&self.q[first_query..], n_queries, head_dim, n_heads * head_dim);
        let k = rows(&self.k[self.first_value(queries)..], n_keys, head_dim, n_kv_heads * head_dim);
        let scores = MatMut::from_row_major_slice_mut(scores, n_queries, n_keys);
        matmul(scores, Accum::Replace, q, k.transpose(), score_scale(self.shape.scale, head_dim), Par::Seq);
    }

    fn mix_by_faer(&self, out: &mut [f32], weights: &[f32], queries: &Queries) {
        let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *self.shape;
        let (n_queries, n_keys, width) = (queries.rows.len(), queries.keys.len(), n_heads * head_dim);
        let weights = MatRef::from_row_major_slice(weights, n_queries, n_keys);
        let v = rows(&self.v[self.first_value(queries)..], n_keys, head_dim, n_kv_heads * head_dim);
        let out = &mut out[queries.head * head_dim..][..(n_queries - 1) * width + head_dim];
        // faer 0.24 mixes up the strides of a row-major `MatMut` with a stride (and writes out of bounds); its
        // column-major one, transposed, is the same view.
        let out = MatMut::from_column_major_slice_with_stride_mut(out, head_dim, n_queries, width);
        matmul(out.transpose_mut(), Accum::Replace, weights, v, 1.0, Par::Seq);
    }
}

/// `n` rows of `width` values that lie `stride` apart.
fn rows(slice: &[f32], n: usize, width: usize, stride: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice_with_stride(&slice[..(n - 1) * stride + width], n, width, stride)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Numbers of many sizes, so that sums in another order have other bits.
    fn values(n: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| {
            let bits = (i + seed).wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15) as u32;
            f32::from_bits(bits & 0x807f_ffff | (120 + (bits >> 24) % 12) << 23)
        };
        (0..n).map(value).collect()
    }

    #[test]
    fn vectors_add_up_as_faer_does() {
        if !is_x86_feature_detected!("avx512f") {
            return eprintln!("not run: this CPU has no AVX-512");
        }
        let mut n_compared = 0;
        for (seq, n_heads, n_kv_heads, head_dim) in [
            (2, 1, 1, 2),
            (17, 2, 2, 16),
            (64, 3, 1, 64),
            (129, 2, 1, 80),
            (300, 4, 2, 33),
            (1_100, 2, 1, 128),
            (70, 1, 1, 256),
        ] {
            for window in [None, Some(1), Some(40), Some(700)] {
                let shape = AttentionShape { window, ..AttentionShape::new(n_heads, n_kv_heads, head_dim) };
                let (width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
                let (q, k, v) =
                    (values(2 * seq * width, 1), values(2 * seq * kv_width, 2), values(2 * seq * kv_width, 3));
                let heads = Heads::new([&q, &k, &v], seq, &shape);
                for (start, end) in [(0, seq), (0, 2), (seq / 2, seq), (seq - 2, seq)] {
                    let keys = shape.first_visible(start)..end;
                    let queries = Queries { sequence: 1, head: n_heads - 1, rows: start..end, keys: keys.clone() };
                    n_compared += usize::from(heads.packed_for(&queries).is_some());
                    let case = format!("{seq} x {head_dim}, window {window:?}, queries {start}..{end}");
                    let (n, n_keys) = (end - start, keys.len());
                    let [mut found, mut expected] = [(); 2].map(|()| vec![0.0; n * n_keys]);
                    heads.scores(&mut found, &queries);
                    heads.scores_by_faer(&mut expected, &queries);
                    let mut weights = vec![0.0; n * n_keys];
                    for row in 0..n {
                        for key in shape.first_visible(start + row)..=start + row {
                            let at = row * n_keys + key - keys.start;
                            assert_eq!(found[at].to_bits(), expected[at].to_bits(), "{case}: query {row}, key {key}");
                            weights[at] = found[at];
                        }
                    }
                    let [mut found, mut expected] = [(); 2].map(|()| vec![7.0; n * width]);
                    heads.mix(&mut found, &weights, &queries);
                    heads.mix_by_faer(&mut expected, &weights, &queries);
                    let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differs.map(|at| (at / width, at % width)), None, "{case}: row and column");
                }
            }
        }
        assert!(n_compared > 44, "{n_compared} pairs of products were compared");
    }
}
