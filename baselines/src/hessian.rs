//! What GPTQ and QuIP do to `X^T X` before they factor it: dead columns and damping.

use std::sync::Arc;

use awq_core::backend::QuantBackend;
use awq_core::method::{LinearCtx, MethodError, Precision};
use awq_core::progress::Listener;
use awq_core::quantized::QuantizedWeight;
use rayon::prelude::*;

use crate::linalg::output_loss;

/// Largest damping that is tried, relative to the mean of the live columns' diagonal: beyond it nothing of the Hessian is left.
const MAX_DAMP: f64 = 1.0;

/// `X^T X / n_tokens` with its dead columns put right.
///
/// Nothing here depends on the unit of the inputs: `c X` in place of `X` gives `c^2 H`, whatever share of the columns is dead.
#[derive(Clone, Debug)]
pub(crate) struct Hessian {
    /// Row-major `[n, n]`, shared with all who look at the same inputs: hence the diagonal beside it.
    entries: Arc<Vec<f64>>,
    /// The diagonal; at dead columns the mean over live ones, so that the mean over all columns is that of the live ones. All 1
    /// where every column is dead.
    pub(crate) diagonal: Vec<f64>,
    /// Channels that are zero on every token.
    pub(crate) dead: Vec<usize>,
    /// Rows.
    pub(crate) n: usize,
}

impl Hessian {
    /// Of what a linear sees.
    ///
    /// # Errors
    /// No calibration, or activations that are not finite.
    pub(crate) fn of<B: QuantBackend>(ctx: &LinearCtx<'_, B>, precision: Precision) -> Result<Self, MethodError> {
        let [_, n] = ctx.weight.dims();
        let mut hessian = Self::without_dead(ctx.gram(precision)?, n);
        let dead: Vec<usize> = (0..n).filter(|&i| hessian.diagonal[i] == 0.0).collect();
        let n_live = n - dead.len();
        let live_mean = match n_live {
            0 => 1.0,
            n_live => hessian.diagonal.iter().sum::<f64>() / n_live as f64,
        };
        dead.iter().for_each(|&i| hessian.diagonal[i] = live_mean);
        Ok(Self { dead, ..hessian })
    }

    /// Of a matrix whose columns all count.
    pub(crate) fn without_dead(entries: Arc<Vec<f64>>, n: usize) -> Self {
        let diagonal = (0..n).map(|i| entries[i * n + i]).collect();
        Self { entries, diagonal, dead: Vec::new(), n }
    }

    /// The matrix, row-major `[n, n]`.
    pub(crate) fn matrix(&self) -> Vec<f64> {
        let mut matrix = self.entries.as_ref().clone();
        self.diagonal.iter().enumerate().for_each(|(i, &entry)| matrix[i * self.n + i] = entry);
        matrix
    }

    /// Channels by descending diagonal, ties in their own order.
    pub(crate) fn activation_order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.n as u32).collect();
        order.sort_by(|&a, &b| self.diagonal[b as usize].total_cmp(&self.diagonal[a as usize]));
        order
    }

    /// Adds `damp` times the mean of the live columns' diagonal to the diagonal and factors the matrix, rows and columns in
    /// `order`; where that fails, ten times the damping is tried, and so on, with a note for each step.
    ///
    /// # Errors
    /// If damping by the whole mean of the diagonal does not help.
    pub(crate) fn damped<B: QuantBackend, T>(
        &self,
        ctx: &LinearCtx<'_, B>,
        order: &[u32],
        damp: f64,
        notes: &mut Vec<String>,
        factor: impl Fn(&Damped<'_>) -> Option<T>,
    ) -> Result<T, MethodError> {
        let mean = order.iter().map(|&i| self.diagonal[i as usize]).sum::<f64>() / self.n.max(1) as f64;
        let mut tried = damp;
        loop {
            if let Some(factor) = factor(&Damped { hessian: self, order, added: tried * mean }) {
                return Ok(factor);
            }
            let next = (tried * 10.0).max(1e-6);
            if next > MAX_DAMP {
                return Err(MethodError::NotPositiveDefinite {
                    block_idx: ctx.block_idx,
                    linear: ctx.linear.0,
                    damp: tried,
                });
            }
            notes.push(format!("Hessian not positive definite at damp {tried}; raised to {next}"));
            tried = next;
        }
    }

    /// Mean squared error of the linear's outputs (on the inputs that made the Hessian) for each of several quantized forms of
    /// `weight`. `listener` hears of it a step at a time.
    pub(crate) fn output_losses<const N: usize>(
        &self,
        weight: &[f32],
        quantized: [&QuantizedWeight; N],
        listener: &Listener<'_>,
    ) -> [f64; N] {
        let mut gram = vec![0.0_f32; self.entries.len()];
        gram.par_chunks_mut(self.n.max(1)).zip(self.entries.par_chunks(self.n.max(1))).for_each(|(narrow, row)| {
            narrow.iter_mut().zip(row).for_each(|(narrow, &entry)| *narrow = entry as f32);
        });
        quantized.map(|quantized| {
            let mut delta: Vec<f32> = weight.iter().zip(quantized.dequantize()).map(|(w, q)| q - w).collect();
            for row in delta.chunks_mut(self.n) {
                // No output depends on a dead column, and rounding need not leave its weight as it is.
                self.dead.iter().for_each(|&column| row[column] = 0.0);
            }
            output_loss(&delta, &gram, self.n, &|share| listener(share / N as f64))
        })
    }

    /// A note on dead columns, if there are any.
    pub(crate) fn dead_note(&self) -> Option<String> {
        (!self.dead.is_empty()).then(|| format!("{} dead input channel(s), their weights set to 0", self.dead.len()))
    }
}

/// A Hessian with rows and columns in another order and something added to its diagonal.
#[derive(Clone, Copy)]
pub(crate) struct Damped<'a> {
    hessian: &'a Hessian,
    order: &'a [u32],
    added: f64,
}

impl Damped<'_> {
    /// Rows.
    pub(crate) fn n(&self) -> usize {
        self.hessian.n
    }

    /// One entry.
    #[inline]
    pub(crate) fn entry(&self, i: usize, j: usize) -> f64 {
        let (row, column) = (self.order[i] as usize, self.order[j] as usize);
        if row == column {
            return self.hessian.diagonal[row] + self.added;
        }
        self.hessian.entries[row * self.hessian.n + column]
    }

    /// All of them, row-major `[n, n]`.
    pub(crate) fn matrix(&self) -> Vec<f64> {
        let n = self.n();
        (0..n * n).map(|at| self.entry(at / n, at % n)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use super::*;
    use crate::testing::{Case, grid, inputs};

    /// Two live columns with a mean square of 4 and 16, and one dead.
    fn one_dead(unit: f32) -> Case {
        let rows = [2.0, 0.0, 4.0, -2.0, 0.0, 4.0].map(|x| unit * x).to_vec();
        Case { input: inputs(rows, 3), ..Case::new(2, 3, 1, grid(4, 0)) }
    }

    #[test]
    fn a_dead_column_gets_the_mean_of_the_live_ones() {
        let (case, small) = (one_dead(1.0), one_dead(0.125));
        let (ctx, small) = (case.ctx(), small.ctx());
        let hessian = Hessian::of(&ctx, Precision::F64).unwrap();
        assert_eq!(hessian.dead, [1]);
        assert_eq!(hessian.matrix(), [4.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 16.0]);
        let small = Hessian::of(&small, Precision::F64).unwrap();
        assert!(small.matrix().iter().zip(&hessian.matrix()).all(|(small, entry)| *small == entry / 64.0));
    }

    #[test]
    fn damping_is_relative_to_live_columns_and_every_raise_is_noted() {
        let case = one_dead(0.125);
        let (ctx, order) = (case.ctx(), [2, 1, 0]);
        let hessian = Hessian::of(&ctx, Precision::F64).unwrap();
        let (tried, mut notes) = (RefCell::new(Vec::new()), Vec::new());
        let third = |damped: &Damped<'_>| {
            tried.borrow_mut().push(damped.entry(1, 1) * 64.0 / 10.0 - 1.0);
            (tried.borrow().len() == 3).then(|| damped.matrix())
        };
        let matrix = hessian.damped(&ctx, &order, 0.01, &mut notes, third).unwrap();
        // In the order of rounding: 16, 10, 4, all with the mean of 10 added.
        let expected = [16.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 4.0];
        for (at, (found, expected)) in matrix.iter().zip(expected).enumerate() {
            let added = if at % 4 == 0 { 10.0 } else { 0.0 };
            assert!((found * 64.0 - expected - added).abs() < 1e-12, "entry {at}: {found}");
        }
        for (tried, expected) in tried.borrow().iter().zip([0.01, 0.1, 1.0]) {
            assert!((tried - expected).abs() < 1e-12, "{tried} in place of {expected}");
        }
        let raised = |from, to| format!("Hessian not positive definite at damp {from}; raised to {to}");
        assert_eq!(notes, [raised("0.01", "0.1"), raised("0.1", "1")]);
        let never = |_: &Damped<'_>| None::<()>;
        assert_eq!(
            hessian.damped(&ctx, &order, 0.01, &mut Vec::new(), never).unwrap_err().to_string(),
            "block 3, mlp.down_proj: the Hessian is not positive definite after damping by 1 of its mean diagonal; use more calibration tokens or a larger `damp`"
        );
    }

    #[test]
    fn inputs_of_nothing_but_zeros_make_the_unit_matrix() {
        let case = Case { input: inputs(vec![0.0; 12], 3), ..Case::new(2, 3, 1, grid(4, 0)) };
        let ctx = case.ctx();
        let hessian = Hessian::of(&ctx, Precision::F64).unwrap();
        assert_eq!((hessian.dead.len(), hessian.matrix()), (3, vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]));
    }
}
