//! What GPTQ and QuIP do to `X^T X` before they factor it: dead columns and damping.

use awq_core::backend::QuantBackend;
use awq_core::method::{LinearCtx, MethodError, Precision};
use awq_core::quantized::QuantizedWeight;

use crate::linalg::output_loss;

/// Largest damping that is tried, relative to the mean of the diagonal: beyond it nothing of the Hessian is left.
const MAX_DAMP: f64 = 1.0;

/// `X^T X / n_tokens` with its dead columns put right.
#[derive(Clone, Debug)]
pub(crate) struct Hessian {
    /// Row-major `[n, n]`; the diagonal is 1 at dead columns.
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
        for &i in &dead {
            entries[i * n + i] = 1.0;
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

    /// Adds `damp` times the mean of the diagonal to the diagonal and factors; where that fails, ten times the damping is
    /// tried, and so on, with a note for each step.
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
            // No output depends on a dead column; its diagonal is 1 for the factorisation only.
            self.dead.iter().for_each(|&column| row[column] = 0.0);
        }
        output_loss(&delta, &self.entries, self.n)
    }

    /// A note on dead columns, if there are any.
    pub(crate) fn dead_note(&self) -> Option<String> {
        (!self.dead.is_empty()).then(|| format!("{} dead input channel(s), their weights set to 0", self.dead.len()))
    }
}
