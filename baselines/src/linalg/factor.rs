//! Triangular factors: Cholesky's, its inverse, and QuIP's.

use std::ops::Range;

use awq_core::method::Precision;
use awq_core::progress::Listener;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::reborrow::ReborrowMut as _;
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, Par};
use rayon::prelude::*;

use super::ROWS_PER_TASK;

/// The upper triangular `U`, row-major `[n, n]`, with `U^T U = H^-1` for a symmetric `H: [n, n]`, given by its entries; `None`
/// where `H` is not positive definite in `precision`.
///
/// Factors `H = R R^T` with an upper triangular `R` (a Cholesky factorisation from the last row on) and inverts `R`: the same
/// matrix as factoring the explicit inverse, in half the operations. One `[n, n]` matrix in `precision` and a quarter of another
/// are alive at most. `listener` hears of it a step at a time.
pub(crate) fn inverse_factor(
    h: &Entries<'_>,
    n: usize,
    precision: Precision,
    listener: &Listener<'_>,
) -> Option<Vec<f32>> {
    match precision {
        Precision::F32 => inverse_factor_in::<f32>(h, n, &STEPS, listener),
        Precision::F64 => inverse_factor_in::<f64>(h, n, &STEPS, listener),
    }
}

/// A matrix by row and column.
pub(crate) type Entries<'a> = dyn Fn(usize, usize) -> f64 + Sync + 'a;

/// Multiplications of a factorisation, and of an inversion: an `n^3` share.
const MULTIPLICATIONS: f64 = 1.0 / 6.0;

fn inverse_factor_in<T: Float>(h: &Entries<'_>, n: usize, steps: &Steps, listener: &Listener<'_>) -> Option<Vec<f32>> {
    let done = |multiplications: f64| listener(multiplications / (2.0 * MULTIPLICATIONS * cube(n)));
    // Row `i` of the reversed matrix is row `n - 1 - i`, so that its lower factor is the wanted upper one, reversed.
    let mut lower = cholesky_lower(n, &|i, j| T::narrow(h(n - 1 - i, n - 1 - j)), steps, &done)?;
    invert_lower_in_place(MatMut::from_column_major_slice_mut(&mut lower, n, n), steps, &done);
    let inverse = lower;
    upper_rows(n, &|i, j| inverse[(n - 1 - j) * n + n - 1 - i].to_f32())
}

fn cube(n: usize) -> f64 {
    (n as f64).powi(3)
}

/// Is told of multiplications that are done.
type Done<'a> = dyn Fn(f64) + 'a;

/// How large matrices are taken.
struct Steps {
    /// Up to this size as a whole.
    most_at_once: usize,
    /// Larger ones so many rows or columns at a time.
    of_larger: usize,
}

/// Each is seconds on a single core.
const STEPS: Steps = Steps { most_at_once: 4096, of_larger: 1024 };

impl Steps {
    /// The `len` rows or columns of a part of an `[n, n]` matrix, cut into what is taken at a time.
    fn of(&self, n: usize, len: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = if n <= self.most_at_once { len.max(1) } else { self.of_larger };
        (0..len).step_by(step).map(move |start| start..(start + step).min(len))
    }
}

/// Rows of a triangular matrix that are inverted beside it, in one go.
const ROWS_INVERTED_APART: usize = 64;

/// Puts its inverse in place of the lower triangular matrix in the lower triangle of `matrix`; what is above is left alone. With
/// halves `[[A, 0], [B, C]]` it is `[[A^-1, 0], [-C^-1 B A^-1, C^-1]]`, and no more than a copy of `B` is beside it.
fn invert_lower_in_place<T: Float>(matrix: MatMut<'_, T>, steps: &Steps, done: &Done<'_>) {
    let n = matrix.nrows();
    if n <= ROWS_INVERTED_APART {
        let mut inverse = Mat::<T>::zeros(n, n);
        invert_lower_triangular(inverse.as_mut(), matrix.as_ref(), Par::Seq);
        let mut matrix = matrix;
        (0..n).for_each(|j| (j..n).for_each(|i| matrix[(i, j)] = inverse[(i, j)]));
        return done(MULTIPLICATIONS * cube(n));
    }
    let middle = n / 2;
    let (mut a, _, mut b, c) = matrix.split_at_mut(middle, middle);
    invert_lower_in_place(a.rb_mut(), steps, done);
    let before = b.to_owned();
    let parallelism = Par::rayon(0);
    for rows in steps.of(n, n - middle) {
        triangular::matmul(
            b.rb_mut().subrows_mut(rows.start, rows.len()),
            BlockStructure::Rectangular,
            Accum::Replace,
            before.as_ref().subrows(rows.start, rows.len()),
            BlockStructure::Rectangular,
            a.as_ref(),
            BlockStructure::TriangularLower,
            T::narrow(-1.0),
            parallelism,
        );
        done(rows.len() as f64 * (middle as f64).powi(2) / 2.0);
    }
    drop(before);
    for columns in steps.of(n, middle) {
        let columns_of_b = b.rb_mut().subcols_mut(columns.start, columns.len());
        solve_lower_triangular_in_place(c.as_ref(), columns_of_b, parallelism);
        done(columns.len() as f64 * ((n - middle) as f64).powi(2) / 2.0);
    }
    invert_lower_in_place(c, steps, done);
}

/// The unit lower triangular `L`, row-major, with `H = L D L^T` and a diagonal `D`, the diagonal of ones left out (QuIP's
/// feedback matrix); `None` where `H` is not positive definite.
pub(crate) fn ldl_feedback(h: &Entries<'_>, n: usize, listener: &Listener<'_>) -> Option<Vec<f32>> {
    let done = |multiplications: f64| listener(multiplications / (MULTIPLICATIONS * cube(n)));
    let lower = cholesky_lower(n, h, &STEPS, &done)?;
    let entry = |i: usize, j: usize| if j < i { (lower[j * n + i] / lower[j * n + j]) as f32 } else { 0.0 };
    let feedback: Vec<f32> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
    feedback.iter().all(|entry| entry.is_finite()).then_some(feedback)
}

/// The lower Cholesky factor, column-major `[n, n]`; what is above it means nothing.
fn cholesky_lower<T: Float>(
    n: usize,
    h: &(dyn Fn(usize, usize) -> T + Sync),
    steps: &Steps,
    done: &Done<'_>,
) -> Option<Vec<T>> {
    let mut lower = vec![T::narrow(0.0); n * n];
    let columns = lower.par_chunks_mut(n.max(1)).with_min_len(ROWS_PER_TASK).enumerate();
    columns.for_each(|(j, column)| column.iter_mut().enumerate().for_each(|(i, entry)| *entry = h(i, j)));
    let parallelism = Par::rayon(0);
    let mut matrix = MatMut::from_column_major_slice_mut(&mut lower, n, n);
    for columns in steps.of(n, n) {
        let (_, _, before, rest) = matrix.rb_mut().split_at_mut(columns.start, columns.start);
        let mut panel = rest.subcols_mut(0, columns.len());
        if columns.start > 0 {
            let across = before.as_ref().subrows(0, columns.len()).transpose();
            matmul(panel.rb_mut(), Accum::Add, before.as_ref(), across, T::narrow(-1.0), parallelism);
        }
        let (mut diagonal, mut below) = panel.split_at_row_mut(columns.len());
        let scratch = cholesky_in_place_scratch::<T>(columns.len(), parallelism, Default::default());
        let mut memory = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut memory);
        cholesky_in_place(diagonal.rb_mut(), Default::default(), parallelism, stack, Default::default()).ok()?;
        solve_lower_triangular_in_place(diagonal.as_ref(), below.rb_mut().transpose_mut(), parallelism);
        let (width, rows) = (columns.len() as f64, (n - columns.start) as f64);
        let of_panel = width * (rows - width / 2.0) * columns.start as f64;
        done(of_panel + width.powi(2) * (rows - width) / 2.0 + MULTIPLICATIONS * width.powi(3));
    }
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

    use std::cell::RefCell;

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
            let u = inverse_factor(&entries(&H), 3, precision, &|_| {}).unwrap();
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
        let feedback = ldl_feedback(&entries(&H), 3, &|_| {}).unwrap();
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
        assert!(inverse_factor(&indefinite, 2, Precision::F64, &|_| {}).is_none());
        assert!(inverse_factor(&indefinite, 2, Precision::F32, &|_| {}).is_none());
        assert!(ldl_feedback(&indefinite, 2, &|_| {}).is_none());
        assert!(inverse_factor(&|_, _| f64::NAN, 2, Precision::F64, &|_| {}).is_none());
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
            invert_lower_in_place(found.as_mut(), &STEPS, &|_| {});
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
                    on_threads(threads, || {
                        let factor = inverse_factor(&h, n, precision, &|_| {}).unwrap();
                        (factor, ldl_feedback(&h, n, &|_| {}).unwrap())
                    })
                });
                assert!(one == two && one == three, "{n} columns, {precision:?}");
            }
        }
    }

    /// Steps that end inside and outside of halves, and one that is narrower than the others.
    #[test]
    fn a_factor_made_in_steps_is_the_one_made_at_once_and_the_steps_make_the_whole() {
        const N: usize = 200;
        let h = |i: usize, j: usize| {
            let (i, j) = (i.min(j), i.max(j));
            if i == j { N as f64 } else { ((i * 31 + j * 17) % 23) as f64 / 23.0 }
        };
        let in_steps = Steps { most_at_once: 64, of_larger: 48 };
        let told = |steps: &Steps| {
            let told = RefCell::new(Vec::new());
            inverse_factor_in::<f32>(&h, N, steps, &|share| told.borrow_mut().push(share)).unwrap();
            told.into_inner()
        };
        let (few, many) = (told(&STEPS), told(&in_steps));
        assert!(few.len() < many.len());
        for told in [few, many] {
            assert!((told.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{told:?}");
        }
        fn differ<T: Float>(h: &Entries<'_>, in_steps: &Steps) -> f64 {
            let factor = |threads, steps| on_threads(threads, || inverse_factor_in::<T>(h, N, steps, &|_| {}).unwrap());
            let (found, expected) = (factor(1, in_steps), factor(1, &STEPS));
            assert!(found == factor(2, in_steps) && found == factor(3, in_steps));
            let difference = found.iter().zip(&expected).map(|(a, b)| f64::from(a - b).abs());
            let largest = expected.iter().map(|entry| f64::from(entry.abs())).fold(0.0, f64::max);
            difference.fold(0.0, f64::max) / largest
        }
        assert!(differ::<f64>(&h, &in_steps) < 1e-7);
        assert!(differ::<f32>(&h, &in_steps) < 1e-5);
    }
}
