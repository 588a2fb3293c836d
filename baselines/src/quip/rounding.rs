//! LDLQ and greedy passes onto grids that are known beforehand. Rows do not depend on each other.

use awq_core::grid::{Grid, GroupParams, Groups};
use awq_core::progress::Listener;
use rayon::prelude::*;

use crate::linalg::{ROWS_PER_TASK, rows_per_word, subtract_product};

/// Columns whose errors are kept back and applied to the rest in one product.
const BLOCK: usize = 128;

/// What a column is rounded to, and in which order.
pub(super) struct Rounding<'a> {
    pub(super) grid: &'a Grid,
    /// Row-major `[n_out, n_groups]`, or one for the whole matrix.
    pub(super) params: &'a [GroupParams],
    pub(super) groups: Groups,
    /// Column `j` of Hessian and feedback is column `order[j]` of the weight.
    pub(super) order: &'a [u32],
}

impl Rounding<'_> {
    /// Rounds a row-major `[n_out, n]` weight from the last column in `order` to the first: column `i` to the code nearest to
    /// `w_i + sum over j > i of (w_j - q_j) L[j, i]`. `feedback` is `L`, strictly lower triangular, row-major.
    pub(super) fn ldlq(&self, weight: &[f32], feedback: &[f32], listener: &Listener<'_>) -> Vec<u8> {
        let n = self.order.len();
        let mut codes = vec![0_u8; weight.len()];
        self.for_each_task(weight, &mut codes, listener, |first_row, weight, codes| {
            let mut target: Vec<f32> =
                weight.chunks(n).flat_map(|row| self.order.iter().map(|&column| row[column as usize])).collect();
            for start in (0..n).step_by(BLOCK).rev() {
                let end = (start + BLOCK).min(n);
                let mut errors = vec![0.0_f32; target.len() / n * (end - start)];
                let rows = weight.chunks(n).zip(codes.chunks_mut(n)).zip(target.chunks_mut(n));
                for (row, (((weight, codes), target), errors)) in rows.zip(errors.chunks_mut(end - start)).enumerate() {
                    for i in (start..end).rev() {
                        let column = self.order[i] as usize;
                        let params = self.params(first_row + row, column);
                        codes[column] = self.grid.nearest_code_of_real_zero(target[i], &params);
                        let error = self.grid.weight(codes[column], &params) - weight[column];
                        errors[i - start] = error;
                        let feedback = &feedback[i * n + start..i * n + i];
                        for (target, l) in target[start..i].iter_mut().zip(feedback) {
                            *target -= error * l;
                        }
                    }
                }
                subtract_product(&mut target, &errors, &feedback[start * n..end * n], n, 0..start);
            }
        });
        codes
    }

    /// Runs work on a few rows at a time, their first being the first argument; `listener` hears of it many rows at a time.
    fn for_each_task(
        &self,
        weight: &[f32],
        codes: &mut [u8],
        listener: &Listener<'_>,
        work: impl Fn(usize, &[f32], &mut [u8]) + Sync,
    ) {
        let (n, at_once) = (self.order.len(), rows_per_word());
        let pieces = weight.chunks(at_once * n).zip(codes.chunks_mut(at_once * n));
        for (piece_idx, (piece, codes)) in pieces.enumerate() {
            let tasks = piece.par_chunks(ROWS_PER_TASK * n).zip(codes.par_chunks_mut(ROWS_PER_TASK * n));
            tasks.enumerate().for_each(|(task, (weight, codes))| {
                work(piece_idx * at_once + task * ROWS_PER_TASK, weight, codes);
            });
            listener(piece.len() as f64 / weight.len() as f64);
        }
    }

    /// Sends each column, the last first, to the code that is best while all others stay, until no code of a task changes or
    /// `n_passes` are done. The loss `tr(D H D^T)` never rises. `hessian` is row-major in `order`.
    pub(super) fn greedy_passes(
        &self,
        weight: &[f32],
        codes: &mut [u8],
        hessian: &[f64],
        n_passes: u16,
        listener: &Listener<'_>,
    ) {
        let n = self.order.len();
        let hessian: Vec<f32> = hessian.iter().map(|&h| h as f32).collect();
        self.for_each_task(weight, codes, listener, |first_row, weight, codes| {
            let params = |row: usize, column: usize| self.params(first_row + row, column);
            let mut errors: Vec<f32> = (0..weight.len())
                .map(|at| {
                    let (row, column) = (at / n, self.order[at % n] as usize);
                    self.grid.weight(codes[row * n + column], &params(row, column)) - weight[row * n + column]
                })
                .collect();
            for _ in 0..n_passes {
                let mut changed = false;
                for i in (0..n).rev() {
                    let (column, hessian) = (self.order[i] as usize, &hessian[i * n..(i + 1) * n]);
                    for (row, errors) in errors.chunks_mut(n).enumerate() {
                        let (params, code) = (params(row, column), &mut codes[row * n + column]);
                        let best = self.grid.weight(*code, &params) - dot(errors, hessian) / hessian[i];
                        let next = self.grid.nearest_code_of_real_zero(best, &params);
                        changed |= next != *code;
                        *code = next;
                        errors[i] = self.grid.weight(next, &params) - weight[row * n + column];
                    }
                }
                if !changed {
                    break;
                }
            }
        });
    }

    fn params(&self, row: usize, column: usize) -> GroupParams {
        let n_in = self.order.len();
        self.params[self.groups.group_of(row * n_in + column)]
    }
}

/// A dot product in sixteen sums, which the compiler can keep in vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
