//! Triangular factors and quadratic forms on the host, bit for bit the same at any thread count: tasks have a fixed size, and
//! threads share out the rows and columns of a factorisation, never a sum (tested).

mod factor;

use awq_core::progress::Listener;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

pub(crate) use factor::{inverse_factor, ldl_feedback};

/// Rows that one task treats.
pub(crate) const ROWS_PER_TASK: usize = 32;

/// Rows between two words of progress: on few threads some seconds at the widest linears of a 70B model, on many enough tasks for all.
/// No bit depends on it.
pub(crate) fn rows_per_word() -> usize {
    ROWS_PER_TASK * (4 * rayon::current_num_threads()).max(32)
}

/// Parts of a work as shares of it.
pub(crate) fn shares<const N: usize>(parts: [f64; N]) -> [f64; N] {
    let all: f64 = parts.iter().sum();
    parts.map(|part| part / all)
}

/// `tr(D G D^T) / n_out` for `D: [n_out, n_in]` and a symmetric `G: [n_in, n_in]`, both row-major: with `G = X^T X / n_tokens`
/// the mean squared error of the linear's outputs when its weight is off by `D`.
pub(crate) fn output_loss(delta: &[f32], gram: &[f32], n_in: usize, listener: &Listener<'_>) -> f64 {
    let gram = MatRef::from_row_major_slice(gram, n_in, n_in);
    let of_task = |delta: &[f32]| -> f64 {
        let n_rows = delta.len() / n_in;
        let mut product = vec![0.0_f32; delta.len()];
        let out = MatMut::from_row_major_slice_mut(&mut product, n_rows, n_in);
        matmul(out, Accum::Replace, MatRef::from_row_major_slice(delta, n_rows, n_in), gram, 1.0, Par::Seq);
        product.iter().zip(delta).map(|(&p, &d)| f64::from(p) * f64::from(d)).sum()
    };
    let mut sums: Vec<f64> = Vec::new();
    for rows in delta.chunks(rows_per_word() * n_in) {
        sums.par_extend(rows.par_chunks(ROWS_PER_TASK * n_in).map(of_task));
        listener(rows.len() as f64 / delta.len() as f64);
    }
    sums.iter().sum::<f64>() / (delta.len() / n_in.max(1)).max(1) as f64
}

/// `out -= left right` for row-major matrices; `out` and `right` are columns `cols` of wider ones.
pub(crate) fn subtract_product(
    out: &mut [f32],
    left: &[f32],
    right: &[f32],
    n_in: usize,
    cols: std::ops::Range<usize>,
) {
    let n_rows = out.len() / n_in;
    let n_inner = right.len() / n_in;
    if n_rows == 0 || n_inner == 0 || cols.is_empty() {
        return;
    }
    let out = MatMut::from_row_major_slice_mut(out, n_rows, n_in).subcols_mut(cols.start, cols.len());
    let right = MatRef::from_row_major_slice(right, n_inner, n_in).subcols(cols.start, cols.len());
    matmul(out, Accum::Add, MatRef::from_row_major_slice(left, n_rows, n_inner), right, -1.0, Par::Seq);
}

/// `triu(D U^T, 1) U` for row-major `[n, n]` matrices: rows times `U^T`, only what lies above the diagonal kept, times `U`.
pub(crate) fn strict_upper_through(d: &[f32], u: &[f32], n: usize) -> Vec<f32> {
    let u = MatRef::from_row_major_slice(u, n, n);
    let mut out = vec![0.0_f32; d.len()];
    let tasks = out.par_chunks_mut(ROWS_PER_TASK * n).zip(d.par_chunks(ROWS_PER_TASK * n));
    tasks.enumerate().for_each(|(task, (out, d))| {
        let n_rows = d.len() / n;
        let mut through = vec![0.0_f32; d.len()];
        let product = MatMut::from_row_major_slice_mut(&mut through, n_rows, n);
        matmul(product, Accum::Replace, MatRef::from_row_major_slice(d, n_rows, n), u.transpose(), 1.0, Par::Seq);
        for (row, through) in through.chunks_mut(n).enumerate() {
            through[..=task * ROWS_PER_TASK + row].fill(0.0);
        }
        let out = MatMut::from_row_major_slice_mut(out, n_rows, n);
        matmul(out, Accum::Replace, MatRef::from_row_major_slice(&through, n_rows, n), u, 1.0, Par::Seq);
    });
    out
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn output_loss_is_the_mean_over_rows_of_the_quadratic_form() {
        // Rows (1, 0, 0) and (0, 1, 1): forms 4 and 5 + 2 + 2 * 1.
        let h = [4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 2.0];
        let told = Cell::new(0.0);
        let listener = |share| told.set(told.get() + share);
        assert_eq!(output_loss(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0], &h, 3, &listener), (4.0 + 9.0) / 2.0);
        assert_eq!(told.get(), 1.0);
    }
}
