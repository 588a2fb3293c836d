//! Norms, gates and the log-likelihood, a row at a time.

use pulp::Arch;
use rayon::prelude::*;

use super::exp::exp;

/// Rows handled by one task: enough work to hide the hand-over, few enough to balance.
const ROWS_PER_TASK: usize = 32;
/// Values handled by one task of an elementwise loop.
const VALUES_PER_TASK: usize = 1 << 15;
/// Independent partial sums: lets the compiler keep a whole vector of sums, and fixes the order of addition.
const LANES: usize = 16;

/// `gate = silu(gate) * up`.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    let arch = Arch::new();
    gate.par_chunks_mut(VALUES_PER_TASK).zip(up.par_chunks(VALUES_PER_TASK)).for_each(|(gate, up)| {
        arch.dispatch(
            #[inline(always)]
            || {
                for (g, &u) in gate.iter_mut().zip(up) {
                    *g = *g / (1.0 + exp(-*g)) * u;
                }
            },
        );
    });
}

/// Root-mean-square norm of each row of `weight.len()` values.
pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let arch = Arch::new();
    x.par_chunks_mut(weight.len() * ROWS_PER_TASK).for_each(|rows| {
        arch.dispatch(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(weight.len()) {
                    let inverse_rms = 1.0 / (lane_sum(row, |v| v * v) / row.len() as f32 + eps).sqrt();
                    for (v, &w) in row.iter_mut().zip(weight) {
                        *v = *v * inverse_rms * w;
                    }
                }
            },
        );
    });
}

/// `logsumexp(row) - row[target]` for each row of `vocab` logits.
pub fn token_nll(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<f32> {
    assert_eq!(logits.len(), vocab * targets.len(), "one target a row");
    let arch = Arch::new();
    let row_nll = |row: &[f32], target: u32| {
        arch.dispatch(
            #[inline(always)]
            || {
                let max = lane_max(row);
                max + lane_sum(row, |v| exp(v - max)).ln() - row[target as usize]
            },
        )
    };
    logits.par_chunks(vocab).zip(targets.par_iter()).map(|(row, &target)| row_nll(row, target)).collect()
}

/// Sum of `f` over a slice in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(crate) fn lane_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (sum, &v) in sums.iter_mut().zip(chunk) {
            *sum += f(v);
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Largest value of a slice.
#[inline(always)]
pub(crate) fn lane_max(values: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    for chunk in chunks {
        for (max, &v) in maxima.iter_mut().zip(chunk) {
            *max = if v > *max { v } else { *max };
        }
    }
    maxima.iter().fold(rest, |a, &b| a.max(b))
}
