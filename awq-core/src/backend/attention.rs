//! Causal attention in plain tensor operations: the definition that [`crate::host::attention`] is tested against, and what
//! GPU backends run.

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::QuantBackend;
use crate::host::attention::AttentionShape;

/// Query rows scored at once, so that scores of `[heads, QUERY_ROWS, seq]` exist, not of `[heads, seq, seq]`.
const QUERY_ROWS: usize = 512;

/// Rotary angles: `cos` and `sin` of `[seq, n_rotated / 2]`, in the order of positions.
#[derive(Clone, Debug)]
pub struct RotaryTable<B: Backend> {
    /// Cosines, `[seq, n_rotated / 2]`.
    pub cos: Tensor<B, 2>,
    /// Sines, `[seq, n_rotated / 2]`.
    pub sin: Tensor<B, 2>,
}

impl<B: Backend> RotaryTable<B> {
    /// The angles of the first `n` positions, `[n, n_rotated / 2]`.
    pub fn first(&self, n: usize) -> Self {
        let rows = |table: &Tensor<B, 2>| table.clone().narrow(0, 0, n);
        Self { cos: rows(&self.cos), sin: rows(&self.sin) }
    }
}

/// See [`QuantBackend::causal_attention`].
pub(super) fn causal_attention<B: QuantBackend>(
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    rotary: Option<&RotaryTable<B>>,
    shape: &AttentionShape,
) -> Tensor<B, 3> {
    let [batch, seq, _] = q.dims();
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *shape;
    let dtype = q.dtype();
    let split = |x: Tensor<B, 3>, heads: usize| x.reshape([batch, seq, heads, head_dim]).swap_dims(1, 2);
    let rotate = |x: Tensor<B, 4>| match rotary {
        Some(table) => rotate_halves(B::in_f32(x), &table.first(seq)),
        None => B::in_f32(x),
    };
    // Queries are divided, not scores: those of f16 would overflow.
    let q = rotate(split(q, n_heads));
    let q = match shape.scale {
        None => q / (head_dim as f64).sqrt(),
        Some(scale) => q * scale,
    };
    let q = q.cast(dtype);
    let k = rotate(split(k, n_kv_heads)).cast(dtype);
    let v = split(v, n_kv_heads);
    let mixed = (0..seq).step_by(QUERY_ROWS).map(|first_query| {
        let n_queries = QUERY_ROWS.min(seq - first_query);
        let first_key = shape.first_visible(first_query);
        let n_keys = first_query + n_queries - first_key;
        let q = q.clone().narrow(2, first_query, n_queries);
        let (k, v) = (k.clone().narrow(2, first_key, n_keys), v.clone().narrow(2, first_key, n_keys));
        mix(q, k, v, [first_query, first_key], shape)
    });
    Tensor::cat(mixed.collect(), 2).swap_dims(1, 2).reshape([batch, seq, n_heads * head_dim])
}

/// Values mixed for some queries, `[batch, n_heads, n_queries, head_dim]` like `q`; `k` and `v` are
/// `[batch, n_kv_heads, n_keys, head_dim]`. Queries are at the positions from `first_query` on, keys from `first_key` on.
fn mix<B: QuantBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    [first_query, first_key]: [usize; 2],
    shape: &AttentionShape,
) -> Tensor<B, 4> {
    let [batch, n_heads, n_queries, head_dim] = q.dims();
    let [_, n_kv_heads, n_keys, _] = k.dims();
    let offset = first_query - first_key;
    let n_rep = n_heads / n_kv_heads;
    let (device, dtype) = (q.device(), q.dtype());
    // Query heads of one key head become rows of one matrix: no copy of keys or values is needed.
    let q = q.reshape([batch, n_kv_heads, n_rep * n_queries, head_dim]);
    let scores = B::in_f32(B::matmul(q, k.swap_dims(2, 3)));
    let scores = match shape.cap {
        None => scores,
        Some(cap) => (scores / cap).tanh() * cap,
    };
    let scores = scores.reshape([batch, n_kv_heads, n_rep, n_queries, n_keys]);
    let scores = match &shape.slopes {
        None => scores,
        Some(slopes) => {
            // Distances count from the last key: a softmax does not see by how much all scores are shifted.
            let biases = (0..n_heads).flat_map(|head| slopes.of_keys(head, first_key..first_key + n_keys)).collect();
            let biases = TensorData::new::<f32, _>(biases, [1, n_kv_heads, n_rep, 1, n_keys]);
            scores + Tensor::<B, 5>::from_data(biases, (&device, DType::F32))
        }
    };
    let ones = || Tensor::<B, 2, Int>::ones([n_queries, n_keys], &device);
    let hide = |scores: Tensor<B, 5>, hidden: Tensor<B, 2, Int>| {
        let mask = hidden.bool().unsqueeze::<5>().expand([batch, n_kv_heads, n_rep, n_queries, n_keys]);
        scores.mask_fill(mask, f32::NEG_INFINITY)
    };
    // Query i sees the keys up to i + offset, and of these the last `window`.
    let scores = hide(scores, ones().triu(offset as i64 + 1));
    let scores = match shape.window {
        Some(window) if window < n_keys => hide(scores, ones().tril(offset as i64 - window as i64)),
        _ => scores,
    };
    let weights = softmax(scores, 4).cast(dtype).reshape([batch, n_kv_heads, n_rep * n_queries, n_keys]);
    B::matmul(weights, v).reshape([batch, n_heads, n_queries, head_dim])
}

/// Rotates channel pairs `(c, c + r/2)` of `[batch, heads, seq, d]` by the table's angles, of which there are `r/2`; channels
/// from `r` on stay.
fn rotate_halves<B: QuantBackend>(x: Tensor<B, 4>, table: &RotaryTable<B>) -> Tensor<B, 4> {
    let ([_, _, _, head_dim], [_, half]) = (x.dims(), table.cos.dims());
    let cos = B::in_f32(table.cos.clone()).unsqueeze::<4>();
    let sin = B::in_f32(table.sin.clone()).unsqueeze::<4>();
    let first = x.clone().narrow(3, 0, half);
    let second = x.clone().narrow(3, half, half);
    let rotated_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let rotated_second = second * cos + first * sin;
    let mut parts = vec![rotated_first, rotated_second];
    if 2 * half < head_dim {
        parts.push(x.narrow(3, 2 * half, head_dim - 2 * half));
    }
    Tensor::cat(parts, 3)
}
