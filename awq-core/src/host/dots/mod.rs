//! Products of rows of a matrix with a few rows of activations, each a sum of its own: which are computed together changes no bit.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use super::elementwise::LANES;

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "vector instructions beyond the baseline are unsafe to call until their presence is known"
)]
mod avx512;

/// Rows of `w` that are multiplied at a time where the CPU has AVX-512: with as many rows of `x` their sums fill registers.
#[cfg(target_arch = "x86_64")]
const W_ROWS: usize = 4;

/// Of how many rows of `w` whole runs should be given with `n` rows of `x`.
pub(super) fn rows_of_run(n: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if n > 1 && is_x86_feature_detected!("avx512f") {
        return W_ROWS;
    }
    let _ = n;
    1
}

/// Rows of `x` that are multiplied with a row of weights at a time: their sums hide each other's latency.
const ROWS: usize = 4;

/// Products of each row of `w` with each of `x`, rows of `n_in` values: `out[row of w][row of x]`.
pub(super) fn dot_products(w: &[f32], x: &[f32], n_in: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if avx512::dot_products(w, x, n_in, out) {
        return;
    }
    by_rows(w, x, n_in, out);
}

vectorized! {
    /// See [`dot_products`].
    fn by_rows<'a>(w: &'a [f32], x: &'a [f32], n_in: usize, out: &'a mut [f32]) -> () {
        let n = x.len() / n_in;
        for row_idx in 0..w.len() / n_in {
            let row = &w[row_idx * n_in..][..n_in];
            let mut first = 0;
            while first < n {
                let n_rows = ROWS.min(n - first);
                let x = &x[first * n_in..][..n_rows * n_in];
                let products = match n_rows {
                    1 => dots::<1>(row, x),
                    2 => dots::<2>(row, x),
                    3 => dots::<3>(row, x),
                    _ => dots::<ROWS>(row, x),
                };
                out[row_idx * n + first..][..n_rows].copy_from_slice(&products[..n_rows]);
                first += n_rows;
            }
        }
    }
}

/// Products of a row with each of `N` rows of `x`, each added up as [`super::elementwise::dot`] does.
#[inline(always)]
fn dots<const N: usize>(row: &[f32], x: &[f32]) -> [f32; ROWS] {
    let n_in = row.len();
    let w = row.as_chunks::<LANES>();
    // One variable a row: the compiler keeps these in registers, which it does not with an array of arrays.
    let x0 = x[..n_in].as_chunks::<LANES>();
    let [mut x1, mut x2, mut x3] = [x0; 3];
    if N > 1 {
        x1 = x[n_in..2 * n_in].as_chunks::<LANES>();
    }
    if N > 2 {
        x2 = x[2 * n_in..3 * n_in].as_chunks::<LANES>();
    }
    if N > 3 {
        x3 = x[3 * n_in..4 * n_in].as_chunks::<LANES>();
    }
    let [mut s0, mut s1, mut s2, mut s3] = [[0.0_f32; LANES]; ROWS];
    for chunk in 0..w.0.len() {
        let weights = &w.0[chunk];
        add_products(&mut s0, weights, &x0.0[chunk]);
        if N > 1 {
            add_products(&mut s1, weights, &x1.0[chunk]);
        }
        if N > 2 {
            add_products(&mut s2, weights, &x2.0[chunk]);
        }
        if N > 3 {
            add_products(&mut s3, weights, &x3.0[chunk]);
        }
    }
    [total(&s0, w.1, x0.1), total(&s1, w.1, x1.1), total(&s2, w.1, x2.1), total(&s3, w.1, x3.1)]
}

/// The sums of the lanes, and the products of what fills no vector.
#[inline(always)]
fn total(sums: &[f32; LANES], w: &[f32], x: &[f32]) -> f32 {
    let (mut sum, mut rest) = (0.0, 0.0);
    for lane in 0..LANES {
        sum += sums[lane];
    }
    for i in 0..w.len() {
        rest += w[i] * x[i];
    }
    sum + rest
}

#[inline(always)]
fn add_products(sums: &mut [f32; LANES], w: &[f32; LANES], x: &[f32; LANES]) {
    for lane in 0..LANES {
        sums[lane] += w[lane] * x[lane];
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_rows_have_the_bits_of_single_rows() {
        if !is_x86_feature_detected!("avx512f") {
            return eprintln!("not run: this CPU has no AVX-512");
        }
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
        for (n_rows, n, n_in) in
            [(1, 2, 16), (9, 1, 1_000), (4, 4, 33), (5, 7, 576), (9, 16, 31), (3, 3, 5), (6, 13, 1_000)]
        {
            let w: Vec<f32> = (0..n_rows * n_in).map(value).collect();
            let x: Vec<f32> = (0..n * n_in).map(|i| value(i + 5)).collect();
            let [mut found, mut expected] = [(); 2].map(|()| vec![f32::NAN; n_rows * n]);
            assert!(avx512::dot_products(&w, &x, n_in, &mut found));
            by_rows(&w, &x, n_in, &mut expected);
            let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs.map(|at| (at / n, at % n)), None, "{n_rows} and {n} rows of {n_in}");
        }
    }
}
