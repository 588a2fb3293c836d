//! AWQ's clip search with every candidate of a few rows in cache.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::elementwise::dot;
use crate::grid::{FittedGrid, Grid, group_params};

/// Rows judged together: their candidate errors times the Gram matrix are one small matrix product.
const ROWS_PER_TASK: usize = 32;

/// What [`clip_search`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct ClipBounds {
    /// Bound of each group, `[out, n_groups]`.
    pub bound: Vec<f32>,
    /// Mean over rows of the groups' losses without clipping.
    pub loss_before: f64,
    /// The same with the bounds found.
    pub loss_after: f64,
}

/// See [`crate::backend::QuantBackend::clip_search`]; clamps `weight: [out, n_in]` in place.
pub fn clip_search(weight: &mut [f32], n_in: usize, grams: &[Vec<f32>], grid: &Grid, factors: &[f64]) -> ClipBounds {
    let n_out = weight.len() / n_in;
    let fitted = grid.fitted(weight);
    let mut bound = vec![0.0_f32; n_out * grams.len()];
    let tasks = weight.par_chunks_mut(n_in * ROWS_PER_TASK).zip(bound.par_chunks_mut(grams.len() * ROWS_PER_TASK));
    // Losses of a task are summed in row order and tasks in their order: no thread count changes the sum.
    let losses: Vec<(f64, f64)> = tasks
        .map(|(rows, bounds)| {
            let (mut before, mut after) = (0.0, 0.0);
            for ((group, gram), columns) in grams.iter().enumerate().zip(grid.granularity.columns(n_in)) {
                let part: Vec<f32> = rows.chunks_exact(n_in).flat_map(|row| &row[columns.clone()]).copied().collect();
                let best = best_bounds(&part, columns.len(), gram, &fitted, factors);
                for (row_idx, (row, found)) in rows.chunks_exact_mut(n_in).zip(best).enumerate() {
                    bounds[row_idx * grams.len() + group] = found.bound;
                    clamp(&mut row[columns.clone()], found.bound);
                    before += f64::from(found.loss_before);
                    after += f64::from(found.loss_after);
                }
            }
            (before, after)
        })
        .collect();
    let (before, after) = losses.iter().fold((0.0, 0.0), |sum, loss| (sum.0 + loss.0, sum.1 + loss.1));
    ClipBounds { bound, loss_before: before / n_out as f64, loss_after: after / n_out as f64 }
}

#[derive(Clone, Copy)]
struct Found {
    bound: f32,
    loss_before: f32,
    loss_after: f32,
}

/// The best bound of one group in a few rows, `part: [rows, len]`.
fn best_bounds(part: &[f32], len: usize, gram: &[f32], grid: &FittedGrid, factors: &[f64]) -> Vec<Found> {
    let n_rows = part.len() / len;
    let largest: Vec<f32> =
        part.chunks_exact(len).map(|row| row.iter().fold(0.0, |max: f32, w| max.max(w.abs()))).collect();
    let mut found: Vec<Found> = Vec::new();
    let mut delta = vec![0.0; part.len()];
    let mut product = vec![0.0; part.len()];
    let mut losses = vec![0.0; n_rows];
    for &factor in factors {
        for ((delta, row), &full) in delta.chunks_exact_mut(len).zip(part.chunks_exact(len)).zip(&largest) {
            quantization_error(delta, row, full * factor as f32, grid);
        }
        let target = MatMut::from_row_major_slice_mut(&mut product, n_rows, len);
        let errors = MatRef::from_row_major_slice(&delta, n_rows, len);
        matmul(target, Accum::Replace, errors, MatRef::from_row_major_slice(gram, len, len), 1.0, Par::Seq);
        row_dots(&delta, &product, len, &mut losses);
        for (row_idx, &loss) in losses.iter().enumerate() {
            let bound = largest[row_idx] * factor as f32;
            match found.get_mut(row_idx) {
                None => found.push(Found { bound, loss_before: loss, loss_after: loss }),
                Some(best) if loss < best.loss_after => (best.bound, best.loss_after) = (bound, loss),
                Some(_) => {}
            }
        }
    }
    found
}

vectorized! {
    /// `delta = Q(clamp(row, bound)) - row`.
    fn quantization_error<'a>(delta: &'a mut [f32], row: &'a [f32], bound: f32, grid: &'a FittedGrid) -> () {
        for (d, &w) in delta.iter_mut().zip(row) {
            *d = w.clamp(-bound, bound);
        }
        let params = group_params(delta, grid);
        grid.grid.fake_quant_group(delta, &params);
        for (d, &w) in delta.iter_mut().zip(row) {
            *d -= w;
        }
    }

    /// Sum of products of each pair of rows of `len` values.
    fn row_dots<'a>(a: &'a [f32], b: &'a [f32], len: usize, out: &'a mut [f32]) -> () {
        for ((out, a), b) in out.iter_mut().zip(a.chunks_exact(len)).zip(b.chunks_exact(len)) {
            *out = dot(a, b);
        }
    }
}

fn clamp(values: &mut [f32], bound: f32) {
    for w in values {
        *w = w.clamp(-bound, bound);
    }
}
