//! Gram matrices in f64.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Rows of the Gram matrix that one task computes. Fixed, so that thread count never changes a bit.
const PANEL: usize = 64;

/// Adds `X^T X` of a row-major `X: [n, n_in]` to a row-major `[n_in, n_in]`.
pub fn add_gram(gram: &mut [f64], rows: &[f32], n_in: usize) {
    if rows.is_empty() {
        return;
    }
    let wide: Vec<f64> = rows.par_iter().map(|&x| f64::from(x)).collect();
    let x = MatRef::from_row_major_slice(&wide, rows.len() / n_in, n_in);
    // Only the upper triangle (and the rest of its panels' diagonal blocks) is multiplied out.
    gram.par_chunks_mut(PANEL * n_in).enumerate().for_each(|(panel, gram)| {
        let start = panel * PANEL;
        let n_rows = gram.len() / n_in;
        let out = MatMut::from_row_major_slice_mut(gram, n_rows, n_in).subcols_mut(start, n_in - start);
        let (left, right) = (x.subcols(start, n_rows), x.subcols(start, n_in - start));
        matmul(out, Accum::Add, left.transpose(), right, 1.0, Par::Seq);
    });
    for row in 0..n_in {
        for col in 0..row {
            gram[row * n_in + col] = gram[col * n_in + row];
        }
    }
}

/// Adds `A^T X` of row-major `A` and `X: [n, n_in]` to a row-major `[n_in, n_in]`.
pub fn add_cross_gram(sum: &mut [f64], a: &[f32], x: &[f32], n_in: usize) {
    if x.is_empty() {
        return;
    }
    let widen = |rows: &[f32]| -> Vec<f64> { rows.par_iter().map(|&x| f64::from(x)).collect() };
    let (a, x) = (widen(a), widen(x));
    let n = x.len() / n_in;
    let (a, x) = (MatRef::from_row_major_slice(&a, n, n_in), MatRef::from_row_major_slice(&x, n, n_in));
    sum.par_chunks_mut(PANEL * n_in).enumerate().for_each(|(panel, sum)| {
        let n_rows = sum.len() / n_in;
        let out = MatMut::from_row_major_slice_mut(sum, n_rows, n_in);
        matmul(out, Accum::Add, a.subcols(panel * PANEL, n_rows).transpose(), x, 1.0, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_make_the_whole_symmetric_matrix_and_batches_add_up() {
        let (n, n_in) = (5, PANEL + 3);
        let x: Vec<f32> = (0..n * n_in).map(|i| ((i * 31 + 7) % 23) as f32 - 11.0).collect();
        let mut gram = vec![0.0; n_in * n_in];
        add_gram(&mut gram, &x[..2 * n_in], n_in);
        add_gram(&mut gram, &x[2 * n_in..], n_in);
        for row in 0..n_in {
            for col in 0..n_in {
                let expected: f64 = (0..n).map(|k| f64::from(x[k * n_in + row]) * f64::from(x[k * n_in + col])).sum();
                assert_eq!(gram[row * n_in + col], expected, "entry {row}, {col}");
            }
        }
    }

    #[test]
    fn the_cross_gram_of_equal_matrices_is_the_gram() {
        let (n, n_in) = (4, PANEL + 5);
        let x: Vec<f32> = (0..n * n_in).map(|i| ((i * 17 + 3) % 19) as f32 - 9.0).collect();
        let doubled: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
        let (mut gram, mut cross) = (vec![0.0; n_in * n_in], vec![0.0; n_in * n_in]);
        add_gram(&mut gram, &x, n_in);
        add_cross_gram(&mut cross, &doubled, &x, n_in);
        assert!(cross.iter().zip(&gram).all(|(cross, gram)| *cross == 2.0 * gram));
    }

    #[test]
    fn no_tokens_add_nothing() {
        let mut gram = vec![1.0; 4];
        add_gram(&mut gram, &[], 2);
        add_cross_gram(&mut gram, &[], &[], 2);
        assert_eq!(gram, [1.0; 4]);
    }
}
