//! Triangular factors and quadratic forms on the host, bit for bit the same at any thread count: tasks have a fixed size, and
//! threads share out the rows and columns of a factorisation, never a sum (tested).

use awq_core::method::Precision;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::reborrow::ReborrowMut as _;
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows that one task treats.
pub(crate) const ROWS_PER_TASK: usize = 32;

/// The upper triangular `U`, row-major `[n, n]`, with `U^T U = H^-1` for a symmetric `H: [n, n]`, given by its entries; `None`
/// where `H` is not positive definite in `precision`.
///
/// Factors `H = R R^T` with an upper triangular `R` (a Cholesky factorisation from the last row on) and inverts `R`: the same
/// matrix as factoring the explicit inverse, in half the operations. One `[n, n]` matrix in `precision` and a quarter of another
/// are alive at most.
pub(crate) fn inverse_factor(h: &Entries<'_>, n: usize, precision: Precision) -> Option<Vec<f32>> {
    match precision {
        Precision::F32 => inverse_factor_in::<f32>(h, n),
        Precision::F64 => inverse_factor_in::<f64>(h, n),
    }
}

/// A matrix by row and column.
pub(crate) type Entries<'a> = dyn Fn(usize, usize) -> f64 + Sync + 'a;

fn inverse_factor_in<T: Float>(h: &Entries<'_>, n: usize) -> Option<Vec<f32>> {
    // Row `i` of the reversed matrix is row `n - 1 - i`, so that its lower factor is the wanted upper one, reversed.
    let mut lower = cholesky_lower(n, &|i, j| T::narrow(h(n - 1 - i, n - 1 - j)))?;
    invert_lower_in_place(MatMut::from_column_major_slice_mut(&mut lower, n, n));
    let inverse = lower;
    upper_rows(n, &|i, j| inverse[(n - 1 - j) * n + n - 1 - i].to_f32())
}

/// Rows of a triangular matrix that are inverted beside it, in one go.
const ROWS_INVERTED_APART: usize = 64;

/// Puts its inverse in place of the lower triangular matrix in the lower triangle of `matrix`; what is above is left alone. With
/// halves `[[A, 0], [B, C]]` it is `[[A^-1, 0], [-C^-1 B A^-1, C^-1]]`, and no more than a copy of `B` is beside it.
fn invert_lower_in_place<T: Float>(matrix: MatMut<'_, T>) {
    let n = matrix.nrows();
    if n <= ROWS_INVERTED_APART {
        let mut inverse = Mat::<T>::zeros(n, n);
        invert_lower_triangular(inverse.as_mut(), matrix.as_ref(), Par::Seq);
        let mut matrix = matrix;
        return (0..n).for_each(|j| (j..n).for_each(|i| matrix[(i, j)] = inverse[(i, j)]));
    }
    let middle = n / 2;
    let (mut a, _, mut b, c) = matrix.split_at_mut(middle, middle);
    invert_lower_in_place(a.rb_mut());
    let before = b.to_owned();
    let parallelism = Par::rayon(0);
    triangular::matmul(
        b.rb_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        before.as_ref(),
        BlockStructure::Rectangular,
        a.as_ref(),
        BlockStructure::TriangularLower,
        T::narrow(-1.0),
        parallelism,
    );
    drop(before);
    solve_lower_triangular_in_place(c.as_ref(), b, parallelism);
    invert_lower_in_place(c);
}

/// The unit lower triangular `L`, row-major, with `H = L D L^T` and a diagonal `D`, the diagonal of ones left out (QuIP's
/// feedback matrix); `None` where `H` is not positive definite.
pub(crate) fn ldl_feedback(h: &Entries<'_>, n: usize) -> Option<Vec<f32>> {
    let lower = cholesky_lower(n, h)?;
    let entry = |i: usize, j: usize| if j < i { (lower[j * n + i] / lower[j * n + j]) as f32 } else { 0.0 };
    let feedback: Vec<f32> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
    feedback.iter().all(|entry| entry.is_finite()).then_some(feedback)
}

/// The lower Cholesky factor, column-major `[n, n]`; its upper triangle is that of the matrix.
fn cholesky_lower<T: Float>(n: usize, h: &(dyn Fn(usize, usize) -> T + Sync)) -> Option<Vec<T>> {
    let mut lower = vec![T::narrow(0.0); n * n];
    let columns = lower.par_chunks_mut(n.max(1)).with_min_len(ROWS_PER_TASK).enumerate();
    columns.for_each(|(j, column)| column.iter_mut().enumerate().for_each(|(i, entry)| *entry = h(i, j)));
    let parallelism = Par::rayon(0);
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<T>(n, parallelism, Default::default()));
    let matrix = MatMut::from_column_major_slice_mut(&mut lower, n, n);
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(matrix, Default::default(), parallelism, stack, Default::default()).ok()?;
    Some(lower)
}

/// The upper triangle of a matrix, row-major `[n, n]`, zeros below it; `None` where an entry of it is not finite.
fn upper_rows(n: usize, entry: &(dyn Fn(usize, usize) -> f32 + Sync)) -> Option<Vec<f32>> {
    let mut rows = vec![0.0_f32; n * n];
    rows.par_chunks_mut(ROWS_PER_TASK * n.max(1)).enumerate().for_each(|(task, rows)| {
        let first = task * ROWS_PER_TASK;
        // Down the columns, as the inverse is stored.
        for j in first..n {
            for i in first..(first + rows.len() / n).min(j + 1) {
                rows[(i - first) * n + j] = entry(i, j);
            }
        }
    });
    rows.iter().all(|entry| entry.is_finite()).then_some(rows)
}

/// `tr(D G D^T) / n_out` for `D: [n_out, n_in]` and a symmetric `G: [n_in, n_in]`, both row-major: with `G = X^T X / n_tokens`
/// the mean squared error of the linear's outputs when its weight is off by `D`.
pub(crate) fn output_loss(delta: &[f32], gram: &[f32], n_in: usize) -> f64 {
    let gram = MatRef::from_row_major_slice(gram, n_in, n_in);
    let sums: Vec<f64> = delta
        .par_chunks(ROWS_PER_TASK * n_in)
        .map(|delta| {
            let n_rows = delta.len() / n_in;
            let mut product = vec![0.0_f32; delta.len()];
            let out = MatMut::from_row_major_slice_mut(&mut product, n_rows, n_in);
            matmul(out, Accum::Replace, MatRef::from_row_major_slice(delta, n_rows, n_in), gram, 1.0, Par::Seq);
            product.iter().zip(delta).map(|(&p, &d)| f64::from(p) * f64::from(d)).sum()
        })
        .collect();
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

/// The two precisions that Hessians are factored in.
trait Float: RealField + Copy {
    fn narrow(value: f64) -> Self;
    fn to_f32(self) -> f32;
}

impl Float for f32 {
    fn narrow(value: f64) -> Self {
        value as f32
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Float for f64 {
    fn narrow(value: f64) -> Self {
        value
    }

    fn to_f32(self) -> f32 {
        self as f32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::on_threads;

    fn entries(h: &[f64; 9]) -> impl Fn(usize, usize) -> f64 {
        move |i, j| h[i * 3 + j]
    }

    const H: [f64; 9] = [4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 2.0];

    fn product(a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64, i: usize, j: usize) -> f64 {
        (0..3).map(|k| a(i, k) * b(k, j)).sum()
    }

    #[test]
    fn inverse_factor_is_upper_and_squares_to_the_inverse() {
        for precision in [Precision::F32, Precision::F64] {
            let u = inverse_factor(&entries(&H), 3, precision).unwrap();
            let u = |i: usize, j: usize| f64::from(u[i * 3 + j]);
            assert_eq!((u(1, 0), u(2, 0), u(2, 1)), (0.0, 0.0, 0.0));
            for i in 0..3 {
                for j in 0..3 {
                    let inverse = |i: usize, j: usize| product(|i, k| u(k, i), u, i, j);
                    let identity = product(inverse, |i, j| H[i * 3 + j], i, j);
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!((identity - expected).abs() < 1e-5, "{precision:?} entry {i}, {j}: {identity}");
                }
            }
        }
    }

    #[test]
    fn feedback_is_strictly_lower_and_restores_the_matrix() {
        let feedback = ldl_feedback(&entries(&H), 3).unwrap();
        let l = |i: usize, j: usize| if i == j { 1.0 } else { f64::from(feedback[i * 3 + j]) };
        // D from the first column on: D_0 = 4, D_1 = 5 - 4 (1/2)^2 = 4, D_2 = 2 - 4 (1/4)^2 = 1.75.
        let d = [4.0, 4.0, 1.75];
        for i in 0..3 {
            for j in 0..3 {
                assert!((product(|i, k| l(i, k) * d[k], |k, j| l(j, k), i, j) - H[i * 3 + j]).abs() < 1e-6);
            }
        }
        assert_eq!(feedback[1], 0.0);
    }

    #[test]
    fn an_indefinite_matrix_has_no_factor() {
        let indefinite = |i, j| if i == j { 1.0 } else { 2.0 };
        assert!(inverse_factor(&indefinite, 2, Precision::F64).is_none());
        assert!(inverse_factor(&indefinite, 2, Precision::F32).is_none());
        assert!(ldl_feedback(&indefinite, 2).is_none());
        assert!(inverse_factor(&|_, _| f64::NAN, 2, Precision::F64).is_none());
    }

    /// Sizes that are inverted apart, that are halved, and that are halved into odd parts.
    #[test]
    fn inverting_in_place_leaves_the_inverse_below_the_diagonal_and_the_rest_alone() {
        for n in [1, 2, 64, 65, 200, 613] {
            let entry = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Less => 7.0,
                std::cmp::Ordering::Equal => 1.0 + (i % 5) as f64,
                std::cmp::Ordering::Greater => ((i * 31 + j * 17) % 23) as f64 / (23.0 * n as f64),
            };
            let lower = Mat::from_fn(n, n, entry);
            let mut found = lower.clone();
            invert_lower_in_place(found.as_mut());
            let mut expected = Mat::<f64>::zeros(n, n);
            invert_lower_triangular(expected.as_mut(), lower.as_ref(), Par::Seq);
            for j in 0..n {
                assert!((0..j).all(|i| found[(i, j)] == 7.0), "{n} rows, above column {j}");
                for i in j..n {
                    assert!((found[(i, j)] - expected[(i, j)]).abs() < 1e-13, "{n} rows, entry {i}, {j}");
                }
            }
        }
    }

    /// Sizes at which faer hands work to other threads, whole tasks and not.
    #[test]
    fn factors_do_not_depend_on_threads() {
        for n in [160, 613] {
            let h = |i: usize, j: usize| {
                let (i, j) = (i.min(j), i.max(j));
                if i == j { n as f64 } else { ((i * 31 + j * 17) % 23) as f64 / 23.0 }
            };
            for precision in [Precision::F32, Precision::F64] {
                let [one, two, three] = [1, 2, 3].map(|threads| {
                    on_threads(threads, || (inverse_factor(&h, n, precision).unwrap(), ldl_feedback(&h, n).unwrap()))
                });
                assert!(one == two && one == three, "{n} columns, {precision:?}");
            }
        }
    }

    #[test]
    fn output_loss_is_the_mean_over_rows_of_the_quadratic_form() {
        // Rows (1, 0, 0) and (0, 1, 1): forms 4 and 5 + 2 + 2 * 1.
        let h = H.map(|entry| entry as f32);
        assert_eq!(output_loss(&[1.0, 0.0, 0.0, 0.0, 1.0, 1.0], &h, 3), (4.0 + 9.0) / 2.0);
    }
}
