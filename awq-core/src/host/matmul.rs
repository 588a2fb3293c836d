//! The matrix product of linears. faer's kernels reach about twice the speed of burn-flex's own product here.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Multiplications below which handing work to other threads costs more than it gains.
const PARALLEL_FROM: usize = 1 << 21;

/// Columns of the result that are computed at a time, so that they stay in cache: a head of 49,152 rows is multiplied 1.3 times as
/// fast. No bit depends on it.
pub(super) const COLS: usize = 1024;

/// `x w^T` for row-major `x: [m, k]` and `w: [n, k]`; returns `[m, n]`.
///
/// Threads share out rows and columns, never the sum over `k`, so their number does not change a bit (tested).
pub fn matmul_transposed(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let (m, n) = (x.len() / k, w.len() / k);
    let mut out = vec![0.0; m * n];
    let parallelism = if m * n * k >= PARALLEL_FROM { Par::rayon(0) } else { Par::Seq };
    let (x, w) = (MatRef::from_row_major_slice(x, m, k), MatRef::from_row_major_slice(w, n, k));
    let mut product = MatMut::from_row_major_slice_mut(&mut out, m, n);
    for first in (0..n).step_by(COLS) {
        let n_cols = COLS.min(n - first);
        let w = w.subrows(first, n_cols);
        matmul(product.as_mut().subcols_mut(first, n_cols), Accum::Replace, x, w.transpose(), 1.0, parallelism);
    }
    out
}

/// The same for many rows by tiles, where the CPU has them: with last bits of its own, which are as exact.
pub fn matmul_transposed_bf16x3(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if let Some(product) = super::bf16::tiles::matmul_transposed(x, w, k) {
        return product;
    }
    matmul_transposed(x, w, k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_sum_of_products_at_any_thread_count() {
        for (m, n, k) in [(1, 5, 3), (7, 33, 64), (130, 257, 192), (512, 576, 576), (130, 2 * COLS + 5, 64)] {
            let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
            let x: Vec<f32> = (0..m * k).map(value).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
                pool.install(|| matmul_transposed(&x, &w, k))
            };
            let one = run(1);
            assert!(one == run(2) && one == run(3), "{m}x{k}x{n}: threads change the product");
            for (row, col) in [(0, 0), (m - 1, n - 1), (m / 2, n / 3)] {
                let exact: f64 = (0..k).map(|i| f64::from(x[row * k + i]) * f64::from(w[col * k + i])).sum();
                assert!((f64::from(one[row * n + col]) - exact).abs() < 1e-4, "{m}x{k}x{n} at {row}, {col}");
            }
        }
    }
}
