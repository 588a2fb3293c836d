//! Gram matrices in f64.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::elementwise::dot_chunk;

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

/// Columns of a panel of [`quadratic_form`].
const COLUMNS: usize = 256;

/// `tr(D G D^T)` for row-major `D: [n, n_in]` and a symmetric `G: [n_in, n_in]`: the sum over rows `d` of `d G d^T`. What lies
/// above the diagonal counts twice and is not multiplied, which is half the work.
pub fn quadratic_form(d: &[f32], g: &[f32], n_in: usize) -> f64 {
    let n = d.len() / n_in;
    let (rows, gram) = (MatRef::from_row_major_slice(d, n, n_in), MatRef::from_row_major_slice(g, n_in, n_in));
    let mut product = vec![0.0_f32; n * COLUMNS.min(n_in)];
    let mut sum = 0.0;
    for start in (0..n_in).step_by(COLUMNS) {
        let width = COLUMNS.min(n_in - start);
        let panel = gram.subrows(start, width);
        let product = &mut product[..n * width];
        let mut out = MatMut::from_row_major_slice_mut(product, n, width);
        let (before, own) = (panel.subcols(0, start), panel.subcols(start, width));
        matmul(out.as_mut(), Accum::Replace, rows.subcols(start, width), own.transpose(), 1.0, Par::rayon(0));
        matmul(out, Accum::Add, rows.subcols(0, start), before.transpose(), 2.0, Par::rayon(0));
        // Collected first: the order of the sum must not depend on threads.
        let of_rows = product.par_chunks(width).zip(d.par_chunks(n_in)).with_min_len(64);
        let of_rows: Vec<f32> = of_rows.map(|(product, d)| dot_chunk(product, &d[start..][..width])).collect();
        sum += of_rows.into_iter().map(f64::from).sum::<f64>();
    }
    sum
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
    fn a_quadratic_form_is_the_sum_over_all_pairs_of_channels() {
        let (n, n_in) = (3, 2 * COLUMNS + 5);
        let d: Vec<f32> = (0..n * n_in).map(|i| ((i * 31 + 7) % 23) as f32 - 11.0).collect();
        let g = |row: usize, col: usize| ((row.min(col) * 7 + row.max(col) * 3) % 11) as f32 - 5.0;
        let gram: Vec<f32> = (0..n_in * n_in).map(|at| g(at / n_in, at % n_in)).collect();
        let of_row =
            |d: &[f32]| -> f64 { (0..n_in * n_in).map(|at| f64::from(d[at / n_in] * d[at % n_in] * gram[at])).sum() };
        let expected: f64 = d.chunks(n_in).map(of_row).sum();
        let found = quadratic_form(&d, &gram, n_in);
        assert!((found - expected).abs() < 1e-5 * expected.abs(), "{found} instead of {expected}");
    }

    #[test]
    fn a_quadratic_form_is_the_same_at_any_number_of_threads() {
        let (n, n_in) = (1000, 3 * COLUMNS + 1);
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let (d, g): (Vec<f32>, Vec<f32>) = ((0..n * n_in).map(value).collect(), (0..n_in * n_in).map(value).collect());
        let form = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(|| quadratic_form(&d, &g, n_in)).to_bits()
        };
        let one = form(1);
        assert!([2, 3, 3].iter().all(|&threads| form(threads) == one));
    }

    #[test]
    fn no_tokens_add_nothing() {
        let mut gram = vec![1.0; 4];
        add_gram(&mut gram, &[], 2);
        add_cross_gram(&mut gram, &[], &[], 2);
        assert_eq!(gram, [1.0; 4]);
    }
}
