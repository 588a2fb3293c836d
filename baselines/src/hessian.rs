//! What GPTQ and QuIP do to `X^T X` before they factor it: dead columns and damping.

use awq_core::backend::QuantBackend;
use awq_core::method::{LinearCtx, MethodError, Precision};
use awq_core::quantized::QuantizedWeight;

use crate::linalg::output_loss;

/// Largest damping that is tried, relative to the mean of the live columns' diagonal: beyond it nothing of the Hessian is left.
const MAX_DAMP: f64 = 1.0;

/// `X^T X / n_tokens` with its dead columns put right.
///
/// Nothing here depends on the unit of the inputs: `c X` in place of `X` gives `c^2 H`, whatever share of the columns is dead.
#[derive(Clone, Debug)]
pub(crate) struct Hessian {
    /// Row-major `[n, n]`; at dead columns the diagonal is its mean over live ones, so that the mean over all columns is that
    /// of the live ones. The unit matrix where every column is dead.
    pub(crate) entries: Vec<f64>,
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
        let mut entries = ctx.gram(precision)?;
        let dead: Vec<usize> = (0..n).filter(|&i| entries[i * n + i] == 0.0).collect();
        let n_live = n - dead.len();
        let live_mean = match n_live {
            0 => 1.0,
            n_live => (0..n).map(|i| entries[i * n + i]).sum::<f64>() / n_live as f64,
        };
        for &i in &dead {
            entries[i * n + i] = live_mean;
        }
        Ok(Self { entries, dead, n })
    }

    /// The diagonal.
    pub(crate) fn diagonal(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.n).map(|i| self.entries[i * self.n + i])
    }

    /// Channels by descending diagonal, ties in their own order.
    pub(crate) fn activation_order(&self) -> Vec<u32> {
        let diagonal: Vec<f64> = self.diagonal().collect();
        let mut order: Vec<u32> = (0..self.n as u32).collect();
        order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
        order
    }

    /// The matrix with rows and columns in another order.
    pub(crate) fn permuted(&self, order: &[u32]) -> Self {
        let n = self.n;
        let entry = |at: usize| self.entries[order[at / n] as usize * n + order[at % n] as usize];
        Self { entries: (0..n * n).map(entry).collect(), dead: self.dead.clone(), n }
    }

    /// Adds `damp` times the mean of the live columns' diagonal to the diagonal and factors; where that fails, ten times the
    /// damping is tried, and so on, with a note for each step.
    ///
    /// # Errors
    /// If damping by the whole mean of the diagonal does not help.
    pub(crate) fn damped<B: QuantBackend, T>(
        &self,
        ctx: &LinearCtx<'_, B>,
        damp: f64,
        notes: &mut Vec<String>,
        factor: impl Fn(&[f64]) -> Option<T>,
    ) -> Result<T, MethodError> {
        let mean = self.diagonal().sum::<f64>() / self.n.max(1) as f64;
        let mut tried = damp;
        loop {
            let mut entries = self.entries.clone();
            for i in 0..self.n {
                entries[i * self.n + i] += tried * mean;
            }
            if let Some(factor) = factor(&entries) {
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

    /// Mean squared error of the linear's outputs (on the inputs that made the Hessian) when `weight` is quantized.
    pub(crate) fn output_loss(&self, weight: &[f32], quantized: &QuantizedWeight) -> f64 {
        let mut delta: Vec<f32> = weight.iter().zip(quantized.dequantize()).map(|(w, q)| q - w).collect();
        for row in delta.chunks_mut(self.n) {
            // No output depends on a dead column; it has a diagonal for the factorisation only.
            self.dead.iter().for_each(|&column| row[column] = 0.0);
        }
        output_loss(&delta, &self.entries, self.n)
    }

    /// A note on dead columns, if there are any.
    pub(crate) fn dead_note(&self) -> Option<String> {
        (!self.dead.is_empty()).then(|| format!("{} dead input channel(s), their weights set to 0", self.dead.len()))
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
        let hessian = Hessian::of(&one_dead(1.0).ctx(), Precision::F64).unwrap();
        assert_eq!(hessian.dead, [1]);
        assert_eq!(hessian.entries, [4.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 16.0]);
        let small = Hessian::of(&one_dead(0.125).ctx(), Precision::F64).unwrap();
        assert!(small.entries.iter().zip(&hessian.entries).all(|(small, entry)| *small == entry / 64.0));
    }

    #[test]
    fn damping_is_relative_to_live_columns_and_every_raise_is_noted() {
        let case = one_dead(0.125);
        let hessian = Hessian::of(&case.ctx(), Precision::F64).unwrap();
        let (tried, mut notes) = (RefCell::new(Vec::new()), Vec::new());
        let third = |entries: &[f64]| {
            tried.borrow_mut().push(entries[4] * 64.0 / 10.0 - 1.0);
            (tried.borrow().len() == 3).then_some(())
        };
        hessian.damped(&case.ctx(), 0.01, &mut notes, third).unwrap();
        for (tried, expected) in tried.borrow().iter().zip([0.01, 0.1, 1.0]) {
            assert!((tried - expected).abs() < 1e-12, "{tried} in place of {expected}");
        }
        let raised = |from, to| format!("Hessian not positive definite at damp {from}; raised to {to}");
        assert_eq!(notes, [raised("0.01", "0.1"), raised("0.1", "1")]);
        let never = |_: &[f64]| None::<()>;
        assert_eq!(
            hessian.damped(&case.ctx(), 0.01, &mut Vec::new(), never).unwrap_err().to_string(),
            "block 3, mlp.down_proj: the Hessian is not positive definite after damping by 1 of its mean diagonal; use more calibration tokens or a larger `damp`"
        );
    }

    #[test]
    fn inputs_of_nothing_but_zeros_make_the_unit_matrix() {
        let case = Case { input: inputs(vec![0.0; 12], 3), ..Case::new(2, 3, 1, grid(4, 0)) };
        let hessian = Hessian::of(&case.ctx(), Precision::F64).unwrap();
        assert_eq!((hessian.dead.len(), hessian.entries), (3, vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]));
    }
}
