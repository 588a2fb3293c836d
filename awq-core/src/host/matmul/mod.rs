//! The matrix product of linears: with AVX-512 our own, on all other CPUs, and for small products, faer's, of the same bits. faer's
//! reaches about twice the speed of burn-flex's.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Multiplications below which handing work to other threads costs more than it gains.
const PARALLEL_FROM: usize = 1 << 21;

/// Columns of the result that are computed at a time, so that they stay in cache: a head of 49,152 rows is multiplied 1.3 times as
/// fast. No bit depends on it.
const COLS: usize = 1024;

/// The columns of a result in runs of [`COLS`]. A last one joins those before: alone, faer adds up its products in another order.
pub(super) fn runs_of_columns(n: usize) -> impl Iterator<Item = Range<usize>> {
    let n_runs = n.saturating_sub(1).div_ceil(COLS).max(1);
    (0..n_runs).map(move |run| run * COLS..if run + 1 == n_runs { n } else { (run + 1) * COLS })
}

/// `x w^T` for row-major `x: [m, k]` and `w: [n, k]`; returns `[m, n]`.
///
/// Threads share out rows and columns, never the sum over `k`, so their number does not change a bit, and neither does the number of
/// rows (tested).
pub fn matmul_transposed(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    if x.len() / k == 1 {
        // Alone a row is added up in another order: a token would depend on how many stand beside it.
        let mut twice = matmul_transposed(&[x, x].concat(), w, k);
        twice.truncate(w.len() / k);
        return twice;
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(product) = avx512::matmul_transposed(x, w, k) {
        return product;
    }
    by_faer(x, w, k)
}

fn by_faer(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let (m, n) = (x.len() / k, w.len() / k);
    let mut out = vec![0.0; m * n];
    let parallelism = if m * n * k >= PARALLEL_FROM { Par::rayon(0) } else { Par::Seq };
    let (x, w) = (MatRef::from_row_major_slice(x, m, k), MatRef::from_row_major_slice(w, n, k));
    let mut product = MatMut::from_row_major_slice_mut(&mut out, m, n);
    for Range { start, end } in runs_of_columns(n) {
        let (columns, w) = (product.as_mut().subcols_mut(start, end - start), w.subrows(start, end - start));
        matmul(columns, Accum::Replace, x, w.transpose(), 1.0, parallelism);
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

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions beyond the baseline are unsafe to call until their presence is known"
)]
mod avx512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_sum_of_products_at_any_thread_count() {
        for (m, n, k) in
            [(1, 5, 3), (7, 33, 64), (130, 257, 192), (512, 576, 576), (130, 2 * COLS + 5, 64), (9, COLS + 1, 64)]
        {
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

    #[test]
    fn a_row_is_what_it_is_among_others() {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
        for (n, k) in [(1, 300), (2, 1_030), (7, 64), (33, 1), (257, 576), (1_025, 192), (300, 1_536)] {
            let w: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
            let x: Vec<f32> = (0..65 * k).map(value).collect();
            let (all, all_by_faer) = (matmul_transposed(&x, &w, k), by_faer(&x, &w, k));
            for m in [1, 2, 3, 16, 33, 64] {
                let rows = &x[k..(m + 1) * k];
                assert!(matmul_transposed(rows, &w, k) == all[n..(m + 1) * n], "{m} rows of {k}, {n} columns");
                let same_by_faer = by_faer(rows, &w, k) == all_by_faer[n..(m + 1) * n];
                assert!(same_by_faer || m == 1, "{m} rows of {k}, {n} columns");
            }
        }
    }

    #[test]
    fn runs_are_all_columns_and_none_is_alone() {
        for n in [0, 1, 2, COLS - 1, COLS, COLS + 1, COLS + 2, 3 * COLS, 3 * COLS + 1] {
            let runs: Vec<_> = runs_of_columns(n).collect();
            assert_eq!(runs.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            assert!(runs.iter().all(|run| run.len() <= COLS + 1 && (run.len() > 1 || n < 2)), "{runs:?}");
        }
    }

    /// Numbers of many sizes, so that sums in another order have other bits.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn vectors_add_up_as_faer_does() {
        let value = |i: usize| {
            let bits = i.wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15) as u32;
            f32::from_bits(bits & 0x807f_ffff | (120 + (bits >> 24) % 12) << 23)
        };
        let mut n_compared = 0;
        for m in [2, 3, 15, 16, 17, 32, 33, 90, 385, 800] {
            for (n, k) in [
                (2, 20_000),
                (12, 4_096),
                (13, 1_025),
                (60, 512),
                (299, 513),
                (577, 192),
                (1_025, 40),
                (1_030, 65),
                (7, 4_000),
                (70_000, 2),
            ] {
                let x: Vec<f32> = (0..m * k).map(value).collect();
                let w: Vec<f32> = (0..n * k).map(|i| value(i + 5)).collect();
                let Some(found) = avx512::matmul_transposed(&x, &w, k) else {
                    continue;
                };
                n_compared += 1;
                let expected = by_faer(&x, &w, k);
                let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
                assert_eq!(differs.map(|i| (i / n, i % n)), None, "{m}x{k}x{n}: row and column");
            }
        }
        if !is_x86_feature_detected!("avx512f") {
            return eprintln!("not run: this CPU has no AVX-512");
        }
        assert!(n_compared > 80, "{n_compared} products were compared");
    }
}
