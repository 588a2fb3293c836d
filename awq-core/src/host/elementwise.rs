//! Norms, gates and the log-likelihood, a row at a time.

use rayon::prelude::*;

use super::exp::{erf, exp, tanh};
use crate::activation::Activation;

/// Rows handled by one task: enough work to hide the hand-over, few enough to balance.
const ROWS_PER_TASK: usize = 32;
/// Values handled by one task of an elementwise loop.
const VALUES_PER_TASK: usize = 1 << 15;
/// Values whose products or squared differences are added in f32 before f64 takes over.
const VALUES_PER_SUM: usize = 1 << 12;
/// Independent partial sums: a whole vector of sums for the compiler, and a fixed order of addition.
pub(super) const LANES: usize = 16;
/// Exponentials computed before they are added up: a sum inside the loop would keep it scalar.
const EXP_BLOCK: usize = 256;

/// `gate = silu(gate) * up`.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    let chunks = gate.par_chunks_mut(VALUES_PER_TASK).zip(up.par_chunks(VALUES_PER_TASK));
    chunks.for_each(|(gate, up)| swiglu_chunk(gate, up));
}

/// The activation of each value.
pub fn activate(activation: Activation, x: &mut [f32]) {
    x.par_chunks_mut(VALUES_PER_TASK).for_each(|x| activate_chunk(activation, x));
}

/// `cap * tanh(x / cap)` of each value.
pub fn soft_cap(x: &mut [f32], cap: f32) {
    x.par_chunks_mut(VALUES_PER_TASK).for_each(|x| soft_cap_chunk(x, cap));
}

/// Root-mean-square norm of each row of `weight.len()` values.
pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    x.par_chunks_mut(weight.len() * ROWS_PER_TASK).for_each(|rows| rms_norm_rows(rows, weight, eps));
}

/// Norm of each row of `weight.len()` values about its mean, times `weight`, plus `bias`.
pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert_eq!(weight.len(), bias.len(), "weight and bias differ in length");
    x.par_chunks_mut(weight.len() * ROWS_PER_TASK).for_each(|rows| layer_norm_rows(rows, weight, bias, eps));
}

/// `logsumexp(row) - row[target]` for each row of `vocab` logits.
pub fn token_nll(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<f32> {
    assert_eq!(logits.len(), vocab * targets.len(), "one target a row");
    let rows = logits.par_chunks(vocab).zip(targets.par_iter());
    rows.map(|(row, &target)| log_sum_exp(row) - row[target as usize]).collect()
}

/// Sum of `a * b`: in f32 within a chunk, in f64 over the chunks, which lie where they lie whatever the threads.
pub fn dot_product(a: &[f32], b: &[f32]) -> f64 {
    sum_of_chunks(a, b, dot_chunk)
}

/// Sum of `(a - b)^2`, as [`dot_product`] adds.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    sum_of_chunks(a, b, distance_chunk)
}

/// The order of the sum depends on the length alone: parts are collected, and then added one after the other.
fn sum_of_chunks(a: &[f32], b: &[f32], of_chunk: impl for<'a> Fn(&'a [f32], &'a [f32]) -> f32 + Sync) -> f64 {
    assert_eq!(a.len(), b.len(), "the two differ in length");
    let chunks = a.par_chunks(VALUES_PER_SUM).zip(b.par_chunks(VALUES_PER_SUM));
    let sums: Vec<f64> = chunks.map(|(a, b)| f64::from(of_chunk(a, b))).collect();
    sums.iter().sum()
}

vectorized! {
    /// The sum of products, in f32.
    pub(crate) fn dot_chunk<'a>(a: &'a [f32], b: &'a [f32]) -> f32 {
        dot(a, b)
    }

    fn distance_chunk<'a>(a: &'a [f32], b: &'a [f32]) -> f32 {
        let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let mut sums = [0.0_f32; LANES];
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..LANES {
                sums[lane] += (a[lane] - b[lane]) * (a[lane] - b[lane]);
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
        sums.iter().sum::<f32>() + rest
    }

    fn swiglu_chunk<'a>(gate: &'a mut [f32], up: &'a [f32]) -> () {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }

    fn activate_chunk<'a>(activation: Activation, x: &'a mut [f32]) -> () {
        match activation {
            Activation::Relu => x.iter_mut().for_each(|v| *v = v.max(0.0)),
            Activation::Silu => x.iter_mut().for_each(|v| *v /= 1.0 + exp(-*v)),
            Activation::Gelu => x.iter_mut().for_each(|v| *v *= 0.5 + 0.5 * erf(*v * std::f32::consts::FRAC_1_SQRT_2)),
            // `(1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))`.
            Activation::GeluTanh => x.iter_mut().for_each(|v| {
                let u = Activation::GELU_FACTOR * (*v + Activation::GELU_CUBE * *v * *v * *v);
                *v /= 1.0 + exp(-2.0 * u);
            }),
        }
    }

    /// See [`soft_cap`]; of few values, in this thread.
    pub(crate) fn soft_cap_chunk<'a>(x: &'a mut [f32], cap: f32) -> () {
        for v in x {
            *v = cap * tanh(*v / cap);
        }
    }

    fn rms_norm_rows<'a>(rows: &'a mut [f32], weight: &'a [f32], eps: f32) -> () {
        for row in rows.chunks_exact_mut(weight.len()) {
            let rms = (dot(row, row) / row.len() as f32 + eps).sqrt();
            for (v, &w) in row.iter_mut().zip(weight) {
                *v = *v / rms * w;
            }
        }
    }

    fn layer_norm_rows<'a>(rows: &'a mut [f32], weight: &'a [f32], bias: &'a [f32], eps: f32) -> () {
        for row in rows.chunks_exact_mut(weight.len()) {
            let mean = lane_sum(row) / row.len() as f32;
            for v in row.iter_mut() {
                *v -= mean;
            }
            let deviation = (dot(row, row) / row.len() as f32 + eps).sqrt();
            for ((v, &w), &b) in row.iter_mut().zip(weight).zip(bias) {
                *v = *v / deviation * w + b;
            }
        }
    }

    fn log_sum_exp<'a>(row: &'a [f32]) -> f32 {
        let max = lane_max(row);
        let mut exponentials = [0.0; EXP_BLOCK];
        let mut total = 0.0;
        for block in row.chunks(EXP_BLOCK) {
            let exponentials = &mut exponentials[..block.len()];
            for (e, &v) in exponentials.iter_mut().zip(block) {
                *e = exp(v - max);
            }
            total += lane_sum(exponentials);
        }
        max + total.ln()
    }
}

/// Sum in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(crate) fn lane_sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    in_order(&sums, rest)
}

/// The sum of `first` and then `second`, one value after the other. In loops: where code is not optimised across units, `chain` and `sum` are calls for each.
#[inline(always)]
fn in_order(first: &[f32], second: &[f32]) -> f32 {
    let mut sum = -0.0;
    for values in [first, second] {
        for &value in values {
            sum += value;
        }
    }
    sum
}

/// Sum of products in [`LANES`] interleaved partial sums.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    in_order(&sums, &[]) + rest
}

/// Largest value; minus infinity for an empty slice.
#[inline(always)]
pub(crate) fn lane_max(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            maxima[lane] = if chunk[lane] > maxima[lane] { chunk[lane] } else { maxima[lane] };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for values in [&maxima, rest] {
        for &value in values {
            max = max.max(value);
        }
    }
    max
}
