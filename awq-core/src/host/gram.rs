//! Gram matrices in f64.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Rows of the Gram matrix that one task computes. Fixed, so that thread count never changes a bit.
const PANEL: usize = 64;
/// Tokens that are widened and multiplied at a time. faer sums as many before it adds to the result, so that cutting tokens
/// there changes no bit, and they stay in cache.
const TOKENS: usize = 512;

/// Adds `X^T X` of a row-major `X: [n, n_in]` to a row-major `[n_in, n_in]`.
pub fn add_gram(gram: &mut [f64], rows: &[f32], n_in: usize) {
    let mut wide = Vec::new();
    for rows in rows.chunks(TOKENS * n_in) {
        widen(rows, &mut wide);
        let x = MatRef::from_row_major_slice(&wide, rows.len() / n_in, n_in);
        // Only the upper triangle (and the rest of its panels' diagonal blocks) is multiplied out.
        gram.par_chunks_mut(PANEL * n_in).enumerate().for_each(|(panel, gram)| {
            let start = panel * PANEL;
            let n_rows = gram.len() / n_in;
            let out = MatMut::from_row_major_slice_mut(gram, n_rows, n_in).subcols_mut(start, n_in - start);
            let (left, right) = (x.subcols(start, n_rows), x.subcols(start, n_in - start));
            matmul(out, Accum::Add, left.transpose(), right, 1.0, Par::Seq);
        });
    }
    for row in 0..n_in {
        for col in 0..row {
            gram[row * n_in + col] = gram[col * n_in + row];
        }
    }
}

/// Adds `A^T X` of row-major `A` and `X: [n, n_in]` to a row-major `[n_in, n_in]`.
pub fn add_cross_gram(sum: &mut [f64], a: &[f32], x: &[f32], n_in: usize) {
    let (mut wide_a, mut wide_x) = (Vec::new(), Vec::new());
    for (a, x) in a.chunks(TOKENS * n_in).zip(x.chunks(TOKENS * n_in)) {
        widen(a, &mut wide_a);
        widen(x, &mut wide_x);
        let n = x.len() / n_in;
        let (a, x) = (MatRef::from_row_major_slice(&wide_a, n, n_in), MatRef::from_row_major_slice(&wide_x, n, n_in));
        sum.par_chunks_mut(PANEL * n_in).enumerate().for_each(|(panel, sum)| {
            let n_rows = sum.len() / n_in;
            let out = MatMut::from_row_major_slice_mut(sum, n_rows, n_in);
            matmul(out, Accum::Add, a.subcols(panel * PANEL, n_rows).transpose(), x, 1.0, Par::Seq);
        });
    }
}

/// Values that one task widens.
const VALUES: usize = 1 << 14;

/// Puts `values` into `wide` in place of what is there.
fn widen(values: &[f32], wide: &mut Vec<f64>) {
    wide.resize(values.len(), 0.0);
    wide.par_chunks_mut(VALUES).zip(values.par_chunks(VALUES)).for_each(|(wide, values)| {
        wide.iter_mut().zip(values).for_each(|(wide, &value)| *wide = f64::from(value));
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

    /// The definition, and the same sum from tokens that come a few at a time.
    #[test]
    fn tokens_beyond_one_chunk_add_up() {
        let (n, n_in) = (2 * TOKENS + 7, 3);
        let x: Vec<f32> = (0..n * n_in).map(|i| ((i * 31 + 7) % 23) as f32 - 11.0).collect();
        let (mut gram, mut cross) = (vec![0.0; n_in * n_in], vec![0.0; n_in * n_in]);
        add_gram(&mut gram, &x, n_in);
        add_cross_gram(&mut cross, &x, &x, n_in);
        let entry =
            |at: usize| (0..n).map(|k| f64::from(x[k * n_in + at / n_in] * x[k * n_in + at % n_in])).sum::<f64>();
        let expected: Vec<f64> = (0..n_in * n_in).map(entry).collect();
        assert_eq!([gram, cross], [expected.clone(), expected]);
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
